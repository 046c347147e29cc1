"""What peers and the kernel can do to a guardian: clients that mean harm, and calls that are refused to it."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyseccomp as ps
from attaching import DENIED, ask, deny_getppid, filter_counts, notify_getppid, wait_until
from harness import SLOW, build_victim, in_child, status_field, victim
from pyseccomp import _core, guardian
from test_guardian import dies, guardians, managing

NAME = "crowded"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="privilege: root, to trace a guardian, which is not dumpable")


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="psc") as path:
        monkeypatch.setenv("XDG_RUNTIME_DIR", path)
        yield Path(path, "pyseccomp")


def connect(path: Path) -> socket.socket:
    one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 10, 0))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 10, 0))
    one.connect(str(path))
    return one


def info(path: Path) -> int:
    """Ask a guardian as an honest client does: the pid of its manager. A crowd may take the place once or twice."""
    for _ in range(20):
        with contextlib.suppress(OSError), connect(path) as one:
            _core.guardian_send(one.fileno(), [], guardian.INFO, 1)
            return int(_core.guardian_receive(one.fileno())[0]["manager"])
    raise AssertionError("no answer")


# ------------------------------------------------------------------- hostile clients


def says_nothing(path: Path, ready: Callable[[], object]) -> None:
    keep = []
    for i in range(1000):
        keep.append(connect(path))
        if len(keep) > 200:
            keep.pop(0).close()
        if i == 300:
            ready()
    signal.pause()


def says_half(path: Path, ready: Callable[[], object]) -> None:
    keep = []
    for size in (1, 4, 100, 700) * 50:
        keep.append(connect(path))
        with contextlib.suppress(OSError):
            keep[-1].send(b"\0" * size)
    ready()
    signal.pause()


def says_garbage(path: Path, ready: Callable[[], object]) -> None:
    ready()
    while True:
        with contextlib.suppress(OSError), connect(path) as one:
            for size in (1, 1 << 10, 1 << 16, 0):
                one.send(os.urandom(size))


def never_reads(path: Path, ready: Callable[[], object]) -> None:
    """Connections that are full of requests, whose answers stay where they are."""
    keep = [connect(path) for _ in range(5)]
    for _ in range(10):
        for one in keep:
            one.setblocking(False)
            with contextlib.suppress(OSError):
                while True:
                    _core.guardian_send(one.fileno(), [], guardian.INFO, 1)
        time.sleep(0.01)
    ready()
    signal.pause()


def stuck_socket(server: socket.socket, keep: list[socket.socket]) -> int:
    """A TCP socket whose last close waits for its peer, which does not read."""
    one = socket.create_connection(server.getsockname())
    keep.append(server.accept()[0])
    one.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            one.send(bytes(1 << 16))
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1000))
    return one.detach()


def sends_descriptors(path: Path, ready: Callable[[], object]) -> None:
    """250 at a time, and the receiver of the last of them is the one that closes it."""
    keep: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(20):
            fds = [0] * 245 + [stuck_socket(server, keep) for _ in range(5)]
            one = connect(path)
            with contextlib.suppress(OSError):
                one.sendmsg([b"x" * 100], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
                for fd in fds[245:]:  # where the receiver was faster, it is this close that waits
                    threading.Thread(target=os.close, args=(fd,), daemon=True).start()
            keep.append(one)
    ready()
    signal.pause()


@contextlib.contextmanager
def hostile(work: Callable[[Path, Callable[[], object]], None], path: Path) -> Iterator[None]:
    with managing(lambda pipe: work(path, lambda: os.write(pipe, b"x"))):
        yield


@pytest.mark.parametrize("work", [says_nothing, says_half, says_garbage, never_reads, sends_descriptors])
def test_a_hostile_client_neither_stops_nor_delays_a_guardian(work: Callable[[Path, Callable[[], object]], None], runtime: Path) -> None:
    """A deadline comes on time, an attach works, another client is answered, and the guardian ends with its manager."""
    before = guardians()
    with victim(build_victim("idle"), "3") as due, victim(build_victim("idle")) as asked:
        with ps.Filter(notify_getppid(), name=NAME) as f:
            a = f.attach(due.pid, active=False, deadline=1.0, on_supervisor_death="allow")
            end = time.monotonic() + 1.0
            with hostile(work, runtime / NAME):
                b = f.attach(asked.pid, on_supervisor_death=ps.deny(DENIED))
                assert info(runtime / NAME) == os.getpid()
                wait_until(lambda: set(filter_counts(due.pid).values()) == {min(filter_counts(asked.pid).values())}, "the deadline", 20)
                assert time.monotonic() - end < 0.5 * SLOW
                wait_until(lambda: a.activated, "it is told")
                assert (a.query().state, b.query().state, len(a.listeners)) == ("active", "active", 1)
                asked.tell("report")
                f.receive(20).deny(DENIED + 1)
                assert f"probe={DENIED + 1}" in asked.line()
                assert info(runtime / NAME) == os.getpid()
        wait_until(lambda: guardians() <= before, "it leaves with its manager")


def test_a_new_manager_that_does_not_read_holds_nobody_up(runtime: Path) -> None:
    """It reclaims the name and reads nothing of what is handed over: its death ends that, and the next one gets all."""

    def manage(pipe: int) -> None:
        f = ps.Filter(notify_getppid(), name=NAME)
        for one in targets:
            f.attach(one.pid, on_supervisor_death="hold")
        os.write(pipe, b"x")
        signal.pause()

    def reclaims(pipe: int) -> None:
        keep.append(connect(runtime / NAME))
        _core.guardian_send(keep[-1].fileno(), [], guardian.RECLAIM, 1)
        os.write(pipe, b"x")

    keep: list[socket.socket] = []
    with victim(build_victim("idle")) as one, victim(build_victim("idle")) as two:
        targets = (one, two)
        with managing(manage) as manager:
            dies(manager)
            with managing(reclaims) as thief:
                wait_until(lambda: info(runtime / NAME) == thief, "it is the manager")
                dies(thief)
                with ps.reclaim(NAME) as f:
                    for target in targets:
                        target.tell("report")
                        f.receive(20).deny(DENIED)
                        assert f"probe={DENIED}" in target.line()


def test_descriptors_that_find_no_room_in_the_manager_are_not_lost() -> None:
    """The manager has no free descriptor when the answer comes: it waits in the socket, with its listener."""

    def manage() -> tuple[str, int, list[str]]:
        f = ps.Filter(notify_getppid())
        a = f.attach(target.pid, active=False, on_supervisor_death="allow")
        told: list[str] = []
        f.on_state_change = lambda a, state, why: told.append(state)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
        filled = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        with contextlib.suppress(OSError):
            while True:
                filled.append(os.dup(0))
        room = threading.Timer(1.0, lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)))
        room.start()
        a.activate()
        return a.query().state, len(a.listeners), told

    with victim(build_victim("idle")) as target:
        assert in_child(manage) == ("active", 1, ["active"])


def test_a_stopped_guardian_does_not_hang_its_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guardian, "PATIENCE", 0.5)
    before = guardians()
    with victim(build_victim("idle")) as target:
        f = ps.Filter(deny_getppid())
        a = f.attach(target.pid, active=False, deadline=1e6, timeout=0.5)
        (process,) = guardians() - before
        os.kill(process, signal.SIGSTOP)
        try:
            with pytest.raises(ps.AttachTimeoutError, match="has not answered.*the filter is not in force"):
                a.activate()
            assert a.query().state == "inactive"
            with pytest.raises(ps.SeccompError, match="has not answered"):
                f.attach(os.getppid(), active=False, deadline=1e6)
        finally:
            os.kill(process, signal.SIGCONT)
        wait_until(lambda: a.query().state == "active", "it does what it was asked, and that is told")
        assert ask(target)["probe"] == DENIED
        f.close()
    wait_until(lambda: guardians() <= before, "it leaves")


# ------------------------------------------------------------------- refused calls


def guardian_of(f: ps.Filter) -> int:
    """The guardian that holds this filter's memfd."""
    mine = os.fstat(f._memfd)
    for pid in guardians():
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                found = os.stat(f"/proc/{pid}/fd/{fd}")
                if (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino):
                    return pid
    raise AssertionError("no guardian")


@contextlib.contextmanager
def refused(pid: int, *rules: str) -> Iterator[None]:
    """Have the kernel refuse calls of a process and its threads, as strace's inject= says; it lives on afterwards."""
    calls = ",".join(rule.partition(":")[0] for rule in rules)
    options = [word for rule in rules for word in ("-e", f"inject={rule}")]
    with tempfile.TemporaryDirectory() as path:
        out = Path(path, "strace")
        command = ["strace", "-qq", "-f", "-p", str(pid), "-o", str(out), "-e", f"trace={calls}", *options]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as tracer:
            try:
                traced = (lambda: status_field(pid, "TracerPid") == str(tracer.pid))
                wait_until(traced, "it is traced")
                yield
                wait_until(lambda: "(INJECTED)" in out.read_text(), "a call was refused")
            finally:
                tracer.terminate()


@as_root
@pytest.mark.parametrize("error", ["ETOOMANYREFS", "ENOBUFS", "ENOMEM", "EAGAIN", "EPERM"])
@pytest.mark.parametrize("how_often", ["1", "1..5"])
def test_an_answer_that_cannot_be_sent_at_first_comes_later(error: str, how_often: str) -> None:
    before = guardians()
    with victim(build_victim("idle"), "3") as target, ps.Filter(notify_getppid()) as f:
        a = f.attach(target.pid, active=False, on_supervisor_death="allow")
        with refused(guardian_of(f), f"sendmsg:error={error}:when={how_often}"):
            a.activate()
        assert (a.query().state, len(a.listeners)) == ("active", 1)
        target.tell("report")
        f.receive(20).deny(DENIED)
        assert f"probe={DENIED}" in target.line()
        f.close()
        wait_until(lambda: guardians() <= before, "it leaves")


@as_root
@pytest.mark.parametrize("error", ["ETOOMANYREFS", "ENOMEM"])
def test_an_answer_that_cannot_be_sent_at_all_is_told_and_its_listener_kept(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guardian, "PATIENCE", 0.5)
    with victim(build_victim("idle")) as target, ps.Filter(notify_getppid()) as f:
        a = f.attach(target.pid, active=False, on_supervisor_death="allow", timeout=0.5)
        with refused(guardian_of(f), f"sendmsg:error={error}"):
            with pytest.raises(ps.AttachTimeoutError, match="keeps the listener.*the filter is in force"):
                a.activate()
            assert (a.query().state, a.listeners) == ("active", ())
        wait_until(lambda: a.activated, "the answer comes when it can be sent")
        target.tell("report")
        f.receive(20).deny(DENIED)
        assert f"probe={DENIED}" in target.line()


@as_root
def test_a_deadlines_result_that_cannot_be_sent_is_not_lost() -> None:
    with victim(build_victim("idle")) as target, ps.Filter(notify_getppid()) as f:
        a = f.attach(target.pid, active=False, on_supervisor_death="allow", deadline=0.5)
        with refused(guardian_of(f), "sendmsg:error=ETOOMANYREFS"):
            wait_until(lambda: a.query().state == "active", "the deadline is kept, and the kernel's word is shown")
            assert a.listeners == ()
        wait_until(lambda: a.activated, "the listener comes when it can be sent")
        target.tell("report")
        f.receive(20).deny(DENIED)
        assert f"probe={DENIED}" in target.line()


@as_root
@pytest.mark.parametrize("error", ["ENOSYS", "EPERM"])
def test_without_epoll_a_guardian_goes_on_and_ends_when_it_should(error: str) -> None:
    before = guardians()

    def manage(pipe: int) -> None:
        f = ps.Filter(notify_getppid())
        f.attach(one.pid, on_supervisor_death=ps.deny(DENIED))
        f.attach(two.pid, active=False, deadline=1e6)
        os.write(pipe, b"x")
        signal.pause()

    with victim(build_victim("idle")) as one, victim(build_victim("idle")) as two:
        with managing(manage) as manager:
            (process,) = guardians() - before
            rules = [f"{call}:error={error}" for call in ("epoll_wait", "epoll_pwait", "epoll_pwait2", "epoll_ctl")]
            with refused(process, *rules):
                dies(manager)
                assert [ask(one)["probe"] for _ in range(3)] == [DENIED] * 3
                wait_until(lambda: set(filter_counts(two.pid).values()) == set(filter_counts(one.pid).values()), "the deadline")
                spent = cpu_ticks(process)
                assert not select.select([], [], [], 0.3)[0]
                assert cpu_ticks(process) - spent <= 5, "it spins"
                one.kill(), two.kill()
                one.wait(20), two.wait(20)
                wait_until(lambda: process not in guardians(), "it ends with the last target")


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@as_root
def test_a_guardian_that_gets_no_thread_keeps_its_deadlines() -> None:
    with victim(build_victim("idle")) as one, victim(build_victim("idle")) as two, victim(build_victim("idle")) as three:
        with ps.Filter(deny_getppid()) as f:
            for target in (one, two):
                f.attach(target.pid, active=False, deadline=0.5)
            f.attach(three.pid, active=False, deadline=0.5, on_deadline="kill")
            process = guardian_of(f)
            threads = len(os.listdir(f"/proc/{process}/task"))
            with refused(process, "clone3:error=EAGAIN:when=1"):
                assert three.wait(20) == -signal.SIGKILL
                for target in (one, two):
                    wait_until(lambda pid=target.pid: ask_probe(pid), "filtered")  # type: ignore[misc]
            assert [ask(target)["probe"] for target in (one, two)] == [DENIED] * 2
            wait_until(lambda: len(os.listdir(f"/proc/{process}/task")) <= threads, "threads that are not needed end")


def ask_probe(pid: int) -> bool:
    return min(filter_counts(pid).values()) > min(filter_counts(os.getpid()).values())


@as_root
@pytest.mark.parametrize("rule", ["accept4:error=EMFILE:when=1..3", "accept4:error=ENOMEM:when=1..3", "recvfrom:error=ENOMEM:when=1"])
def test_a_client_that_is_refused_by_the_kernel_comes_later(rule: str, runtime: Path) -> None:
    with victim(build_victim("idle")) as target, ps.Filter(notify_getppid(), name=NAME) as f:
        f.attach(target.pid, on_supervisor_death="allow")
        with refused(guardian_of(f), rule):
            assert info(runtime / NAME) == os.getpid()


@as_root
@pytest.mark.parametrize("error", ["ENOMEM", "ENOBUFS", "EINTR"])
def test_a_request_that_cannot_be_received_at_first_is_no_death(error: str) -> None:
    with victim(build_victim("idle")) as target, ps.Filter(notify_getppid()) as f:
        a = f.attach(target.pid, active=False, on_supervisor_death="kill", deadline=1e6, on_deadline="kill")
        with refused(guardian_of(f), f"recvmsg:error={error}:when=1..2"):
            a.activate()
        assert a.query().state == "active"


@as_root
def test_an_orderly_end_while_a_target_is_filtered_is_no_death() -> None:
    """BYE comes while a worker waits for a target that cannot be stopped: the other one is left alone."""
    before = guardians()
    with victim(build_victim("idle")) as stuck, victim(build_victim("idle")) as other:
        with victim(build_victim("tracer"), str(stuck.pid), ready=None):
            wait_until(lambda: status_field(stuck.pid, "TracerPid") != "0", "it is traced")
            f = ps.Filter(deny_getppid())
            f.attach(other.pid, active=False, deadline=1e6, on_deadline="kill")
            f.attach(stuck.pid, active=False, deadline=0.0, timeout=1.0)
            (process,) = guardians() - before
            wait_until(lambda: len(os.listdir(f"/proc/{process}/task")) >= 2, "it works")
            f._guardian.close()  # type: ignore[union-attr]
            wait_until(lambda: process not in guardians(), "it has left")
            f._guardian = None
            assert other.poll() is None
            f.close()


RECEIVER = """
import sys
import pyseccomp as ps
from attaching import DENIED, notify_getppid
f = ps.Filter(notify_getppid())
for pid in sys.argv[1:]:
    f.attach(int(pid))
print("ready", flush=True)
sys.stdin.readline()
for _ in sys.argv[1:]:
    f.receive(20).deny(DENIED)
sys.stdin.readline()
"""


@as_root
@pytest.mark.parametrize("error", ["ENOSYS", "EPERM"])
def test_a_manager_without_epoll_pwait2_receives_all_the_same(error: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with victim(build_victim("idle")) as one, victim(build_victim("idle")) as two:
        with victim(sys.executable, "-c", RECEIVER, str(one.pid), str(two.pid), env=environment) as manager:
            with refused(manager.pid, f"epoll_pwait2:error={error}"):
                manager.tell("go")
                assert [ask(target)["probe"] for target in (one, two)] == [DENIED] * 2
