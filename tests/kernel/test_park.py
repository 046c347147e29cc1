"""Processes that park themselves: a thread waits, the creator of the filter wakes it, no ptrace anywhere."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import resource
import random
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attaching import wait_until
from harness import DEADLINE, descriptors, in_child

import pyseccomp as ps
from pyseccomp import park
from pyseccomp.park import Parked

LIBC = ctypes.CDLL(None)
SYS_KCMP, KCMP_VM = ps.resolve_syscall(ps.Arch.native(), "kcmp"), 1
ROUNDS = int(os.environ.get("PYSECCOMP_ROUNDS", "20"))


def denying(name: str = "getpgid", action: int | None = None) -> ps.Policy:
    policy = ps.Policy(ps.ALLOW)
    policy.add(ps.ERRNO(errno.EXDEV) if action is None else action, name)
    return policy


def getpgid() -> int:
    """0, or the errno of a call that the filter decides."""
    try:
        os.getpgid(0)
    except OSError as error:
        return error.errno or -1
    return 0


class Target:
    """A forked process that receives a filter, parks, and does what it is told by function names."""

    def __init__(self, body: Callable[[ps.Attachment, socket.socket], Any], **options: Any) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(DEADLINE)
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                self.sock.close()
                theirs.settimeout(DEADLINE)
                filter = ps.Filter.recv(theirs)
                try:
                    attachment = filter.attach(active=False, **options)
                except ps.SeccompError as error:
                    theirs.send(f"refused {error}".encode())
                else:
                    theirs.send(b"parked")
                    body(attachment, theirs)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        theirs.close()

    def ask(self, word: str = "call") -> str:
        self.sock.send(word.encode())
        return self.sock.recv(200).decode()

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        self.sock.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def answer(attachment: ps.Attachment, sock: socket.socket) -> None:
    """Say what a call gives, as often as asked."""
    while word := sock.recv(20):
        if word == b"call":
            sock.send(str(getpgid()).encode())
        elif word == b"state":
            sock.send(attachment.query().state.encode())
        elif word == b"fds":
            links = sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}"))
            sock.send(("\n".join(link for link in links if "seccomp" in link and "memfd" not in link) or "none").encode())
        elif word == b"threads":
            sock.send(str(len(os.listdir("/proc/self/task"))).encode())
        elif word == b"close":
            attachment.close()
            sock.send(b"closed")


@contextlib.contextmanager
def parked(
    policy: ps.Policy, body: Callable[[ps.Attachment, socket.socket], Any] = answer, **options: Any
) -> Iterator[tuple[ps.Filter, Target, Parked]]:
    target = Target(body, **options)
    try:
        with ps.Filter(policy) as f:
            f.send(target.sock)
            assert target.sock.recv(200) == b"parked"
            [attachment] = f.wait_parked(1, DEADLINE)
            assert isinstance(attachment, Parked)
            try:
                yield f, target, attachment
            finally:
                f.close()
    finally:
        target.close()


def test_inactive_until_its_creator_says() -> None:
    with parked(denying()) as (f, target, attachment):
        assert attachment.pid == target.pid
        assert (target.ask(), target.ask("state"), attachment.query().state, f.query().state) == ("0", "inactive", "inactive", "inactive")
        assert ps.query(target.pid).state == "detached"
        attachment.activate()
        assert (target.ask(), target.ask("state"), attachment.query().state) == (str(errno.EXDEV), "active", "active")
        assert attachment.result is not None
        attachment.activate()
        assert target.ask("threads") == "1"


def test_the_filter_activates_all_that_are_parked() -> None:
    targets = [Target(answer) for _ in range(5)]
    try:
        with ps.Filter(denying()) as f:
            for target in targets:
                f.send(target.sock)
                assert target.sock.recv(200) == b"parked"
            f.wait_parked(5, DEADLINE)
            f.attachments[2].activate()
            assert [target.ask() for target in targets] == ["0", "0", str(errno.EXDEV), "0", "0"]
            f.activate()
            assert {target.ask() for target in targets} == {str(errno.EXDEV)}
            assert {a.query().state for a in f.attachments} == {"active"}
    finally:
        for target in targets:
            target.close()


def test_listener_arrives_though_the_filter_denies_to_send() -> None:
    policy = denying(action=ps.NOTIFY)
    for name in ("sendmsg", "close", "pidfd_getfd", "ptrace"):
        policy.add(ps.ERRNO(errno.EPERM), name)
    with parked(policy) as (f, target, attachment):
        attachment.activate()
        target.sock.send(b"call")
        n = f.receive(DEADLINE)
        assert n is not None
        assert (n.pid, n.syscall) == (target.pid, "getpgid")
        n.deny(errno.ELOOP)
        assert target.sock.recv(20).decode() == str(errno.ELOOP)
        assert target.ask("fds") == "none"


def test_all_threads_get_it() -> None:
    def body(attachment: ps.Attachment, sock: socket.socket) -> None:
        results: list[int] = []
        go = threading.Event()
        threads = [threading.Thread(target=lambda: (go.wait(), results.append(getpgid()))) for _ in range(8)]
        for thread in threads:
            thread.start()
        sock.send(b"ready")
        sock.recv(20)
        go.set()
        for thread in threads:
            thread.join()
        sock.send(str(sorted(set(results))).encode())

    with parked(denying(), body) as (_f, target, attachment):
        assert target.sock.recv(20) == b"ready"
        attachment.activate()
        assert target.ask() == str([errno.EXDEV])


def test_a_forked_child_parks_too() -> None:
    def body(attachment: ps.Attachment, sock: socket.socket) -> None:
        child = os.fork()
        if child == 0:
            sock.send(b"forked")
            sock.recv(20)
            os._exit(0 if getpgid() == errno.EXDEV else 1)
        sock.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())

    with parked(denying(), body) as (f, target, attachment):
        assert target.sock.recv(20) == b"forked"
        both = f.wait_parked(2, DEADLINE)
        assert len({a.pid for a in both}) == 2
        f.activate()
        assert target.ask() == "0"
        assert {a.query().state for a in both} <= {"active", "dead"}


def test_exec_is_told() -> None:
    def body(attachment: ps.Attachment, sock: socket.socket) -> None:
        sock.recv(20)
        os.execv("/bin/sleep", ["sleep", "30"])

    with parked(denying(), body) as (f, target, attachment):
        target.sock.send(b"go")
        end = time.monotonic() + DEADLINE
        while not attachment.lost and time.monotonic() < end:
            f._hear_parked(0.1)
        assert attachment.query().state == "detached"
        began = time.monotonic()
        with pytest.raises(ps.TargetGoneError, match="exec, death"):
            attachment.activate()
        assert time.monotonic() - began < attachment.timeout / 2, "it waited for what it knew already"
        f.activate()


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_death_is_told_and_leaves_nobody_behind(kind: int) -> None:
    with parked(denying()) as (f, target, attachment):
        os.kill(target.pid, kind)
        assert target.wait() == -kind
        end = time.monotonic() + DEADLINE
        while not attachment.lost and time.monotonic() < end:
            f._hear_parked(0.1)
        assert attachment.lost
        assert attachment.query().state == "dead"
        assert f._channel is not None


def test_death_that_nobody_is_left_to_tell_is_seen() -> None:
    with parked(denying()) as (f, target, attachment):
        others = (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != target.pid)
        (helper,) = (pid for pid in others if LIBC.syscall(SYS_KCMP, target.pid, pid, KCMP_VM, 0, 0) == 0)
        for pid in (helper, target.pid):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(ps.TargetGoneError, match="said nothing of the filter"):
            attachment.activate()


def test_giving_up_is_told() -> None:
    with parked(denying()) as (f, target, attachment):
        assert target.ask("close") == "closed"
        f._hear_parked(DEADLINE)
        assert attachment.lost
        assert target.ask("threads") == "1"
        f.activate()
        assert target.ask() == "0"


def test_diverged_threads_and_programs_without_an_end_are_refused() -> None:
    def diverged(sock: socket.socket) -> str:
        f = ps.Filter.recv(sock)
        stay, ready = threading.Event(), threading.Event()

        def one() -> None:
            g = ps.SyscallFilter(ps.ALLOW)
            g.add_rule(ps.ERRNO(1), "chroot")
            g.load()
            ready.set()
            stay.wait()

        threading.Thread(target=one).start()
        ready.wait()
        try:
            f.attach(active=False)
        except ps.AttachError as error:
            return str(error)
        finally:
            stay.set()
        return "parked"

    def run(policy: ps.Policy, function: Callable[[socket.socket], str]) -> str:
        ours, theirs = socket.socketpair()
        with ours, theirs, ps.Filter(policy) as f:
            f.send(ours)
            return str(in_child(function, theirs))

    def plain(sock: socket.socket) -> str:
        f = ps.Filter.recv(sock)
        try:
            f.attach(active=False)
        except ps.UnsupportedError as error:
            return str(error)
        return "parked"

    assert re.search("different filters.*inject", run(denying(), diverged))
    assert "does not let a thread end" in run(denying("exit"), plain)


@pytest.mark.parametrize(("name", "action"), [("exit", ps.KILL_PROCESS), ("exit", ps.ERRNO(errno.EPERM)), ("close_range", ps.KILL_PROCESS)])
def test_an_earlier_filter_that_forbids_what_the_parked_thread_does_is_refused(name: str, action: int) -> None:
    """The parked thread's exit() was killed at the activation, and the process with it."""
    def child(sock: socket.socket) -> str:
        earlier = ps.Policy(ps.ALLOW)
        earlier.add(action, name)
        ps.Filter(earlier).attach()
        with pytest.raises(ps.SeccompError, match="a filter that this process carries kills or denies a call"):
            ps.Filter.recv(sock).attach(active=False)
        return "lives"

    def creator() -> str:
        ours, theirs = socket.socketpair()
        with ps.Filter(denying()) as filter:
            filter.send(ours)
            return in_child(child, theirs)

    assert in_child(creator) == "lives"


def test_a_creator_short_of_descriptors_hears_of_the_parked_later() -> None:
    """Without room for its pidfd the kernel dropped it from the message, and the process was parked unknown to its creator."""

    def creator() -> tuple[str, int]:
        ours, theirs = socket.socketpair()
        with ps.Filter(denying()) as filter:
            filter.accept_parked()
            filter.send(ours)
            pid = os.fork()
            if pid == 0:
                with contextlib.suppress(BaseException):
                    ps.Filter.recv(theirs).attach(active=False)
                    theirs.send(b"parked")
                    theirs.recv(1)
                os._exit(0)
            assert ours.recv(20) == b"parked"
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            taken = [os.dup(0) for _ in range(50)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, limits[1]))
            with pytest.raises(ps.ShortageError, match="hear from parked processes"):
                filter.wait_parked(timeout=0.3)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in taken:
                os.close(fd)
            (parked,) = filter.wait_parked(timeout=5)
            parked.activate()
            ours.send(b"x")
            os.waitpid(pid, 0)
            return parked.query().state, parked.pid - pid

    assert in_child(creator) == ("dead", 0)


def test_a_deadline_puts_it_in_force_and_the_creator_hears_of_it() -> None:
    with parked(denying(action=ps.NOTIFY), deadline=0.3) as (f, target, attachment):
        assert attachment.query().state == "inactive"
        wait_until(lambda: attachment.query().state == "active", "the deadline has come")
        assert target.ask("state") == "active"
        target.sock.send(b"call")
        f.receive(DEADLINE).deny(errno.EXDEV)
        assert target.sock.recv(200) == str(errno.EXDEV).encode()


@pytest.mark.parametrize("activated", [False, True])
def test_a_deadline_kills_what_is_inactive_then(activated: bool) -> None:
    with parked(denying(), deadline=0.3, on_deadline="kill") as (_, target, attachment):
        if activated:
            attachment.activate()
            assert not select.select([attachment.pidfd], [], [], 0.4)[0], "the deadline was its end"
            assert target.ask() == str(errno.EXDEV)
        else:
            assert target.wait() == -signal.SIGKILL


def test_a_deadline_holds_though_the_creator_is_dead_and_for_forked_children() -> None:
    def fork_and_tell(attachment: ps.Attachment, sock: socket.socket) -> None:
        sock.recv(20)
        child = os.fork()
        wait_until(lambda: getpgid() != 0, "the deadline has come")
        if child == 0:
            os._exit(getpgid())
        sock.send(f"{getpgid()} {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}".encode())

    target = Target(fork_and_tell, deadline=0.5)
    creator = os.fork()
    if creator == 0:
        with contextlib.suppress(BaseException):
            f = ps.Filter(denying())
            f.send(target.sock)
            signal.pause()
        os._exit(1)
    try:
        assert target.sock.recv(200) == b"parked"
        os.kill(creator, signal.SIGKILL)
        os.waitpid(creator, 0)
        assert target.ask("fork") == f"{errno.EXDEV} {errno.EXDEV}"
    finally:
        target.close()


def test_wrong_uses_are_refused() -> None:
    def child() -> None:
        with ps.Filter(denying()) as f:
            with pytest.raises(ps.UnsupportedError, match="a process parks itself"):
                f.attach(os.getppid(), mode="park", active=False)
            with pytest.raises(ValueError, match="active=False"):
                f.attach(mode="park")
            for option in ({"activate_on": "listen"}, {"activate_on": "exec"}, {"active": False, "on_supervisor_death": "allow"}):
                with pytest.raises(ps.UnsupportedError, match="not for mode='park'"):
                    f.attach(mode="park", **option)
            with pytest.raises(ps.NotPermittedError, match="cannot be reached"):
                f.attach(active=False)
            with pytest.raises(ps.AttachTimeoutError, match="0 of 1"):
                f.wait_parked(1, 0.05)
            with ps.Filter.from_fd(f.fileno()) as copy, pytest.raises(ps.NotPermittedError):
                copy.accept_parked()

    in_child(child)


def test_the_creator_s_own_child_inherits_the_way() -> None:
    with ps.Filter(denying()) as f:
        f.accept_parked()

        def child() -> int:
            a = f.attach(active=False)
            end = time.monotonic() + DEADLINE
            while getpgid() == 0 and time.monotonic() < end:
                time.sleep(0.001)
            a.close()  # the creator has been told
            return getpgid()

        thread = threading.Thread(target=lambda: (f.wait_parked(1, DEADLINE), f.activate()))
        thread.start()
        assert in_child(child) == errno.EXDEV
        thread.join()


def test_hostile_messages_are_believed_nothing() -> None:
    with ps.Filter(denying(action=ps.NOTIFY)) as f:
        f.accept_parked()
        assert f._channel is not None
        rng = random.Random(1)
        before = len(descriptors())
        r, w, pidfd = *os.pipe(), os.pidfd_open(os.getpid())
        for _ in range(500):
            kind = rng.choice([0, 1, 2, 3, 9])
            data = park._MESSAGE.pack(rng.choice([b"PSCPARK\0", b"x" * 8]), kind, rng.randint(-40, 40), rng.randint(0, 3), rng.randint(0, 600), 0)
            data = data[: rng.choice([len(data), len(data), 0, 5])]
            with socket.fromfd(f._channel.theirs.fileno(), socket.AF_UNIX, socket.SOCK_SEQPACKET) as theirs:
                socket.send_fds(theirs, [data], rng.choice([[], [r], [r, w], [pidfd]]))
            f._hear_parked()
        for attachment in f.attachments:
            assert attachment.result is None
            attachment.close()
        for fd in (r, w, pidfd):
            os.close(fd)
        assert len(descriptors()) == before


def test_rounds_leave_nothing() -> None:
    def child() -> tuple[int, int]:
        ours, theirs = socket.socketpair()
        with ps.Filter(denying()) as f:
            def once() -> None:
                f.send(ours)
                with ps.Filter.recv(theirs) as mine:
                    mine.attach(active=False)
                    [one] = f.wait_parked(1, DEADLINE)
                for attachment in f.attachments:
                    end = time.monotonic() + DEADLINE
                    while not attachment.lost and time.monotonic() < end:  # type: ignore[attr-defined]
                        f._hear_parked(0.1)
                    attachment.close()

            once()
            gc.collect()  # what earlier tests left in cycles
            before = len(descriptors()), len(Path("/proc/self/maps").read_text().splitlines())
            for _ in range(ROUNDS):
                once()
            after = len(descriptors()), len(Path("/proc/self/maps").read_text().splitlines())
        return after[0] - before[0], after[1] - before[1]

    fds, maps = in_child(child)
    assert fds == 0
    assert maps <= 2


def test_signals_and_pipes_of_the_target_are_its_own() -> None:
    def body(attachment: ps.Attachment, sock: socket.socket) -> None:
        r, w = os.pipe()
        os.close(w)
        assert os.read(r, 1) == b""
        hits = []
        signal.signal(signal.SIGUSR1, lambda *_: hits.append(threading.current_thread() is threading.main_thread()))
        os.kill(os.getpid(), signal.SIGUSR1)
        done = subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, text=True, check=True)
        sock.send(f"{hits} {done.stdout.strip()}".encode())

    with parked(denying(), body) as (_f, target, _attachment):
        assert target.sock.recv(100) == b"[True] 1"


def test_select_shows_the_channel_quiet() -> None:
    with parked(denying()) as (f, _target, _attachment):
        assert f._channel is not None
        assert select.select([f._channel.ours], [], [], 0)[0] == []
