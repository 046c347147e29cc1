"""A monitor that is killed and started again: its listeners and unanswered calls, reclaimed by name."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyseccomp as ps
from attaching import DENIED, ask, filter_counts, notify_getppid, rounds, wait_until
from harness import build_victim, descriptors, in_child, victim
from pyseccomp import _core, guardian, names
from test_guardian import dies, guardians, managing


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Names of these tests alone; short, for a socket's path is."""
    with tempfile.TemporaryDirectory(prefix="psc") as path:
        monkeypatch.setenv("XDG_RUNTIME_DIR", path)
        yield Path(path, "pyseccomp")


def holding(pids: list[int], started: int) -> None:
    f = ps.Filter(notify_getppid(), name="held")
    for pid in pids:
        f.attach(pid, on_supervisor_death="hold")
    os.write(started, b"x")
    signal.pause()


def silent(*victims: object) -> bool:
    return not select.select([v.stdout for v in victims], [], [], 0.2)[0]  # type: ignore[attr-defined]


def test_received_and_waiting_calls_are_answered_once_by_who_reclaims() -> None:
    before = guardians()
    with victim(build_victim("idle")) as a, victim(build_victim("idle"), "3") as b:
        reader, writer = os.pipe()

        def received(pipe: int) -> None:
            f = ps.Filter(notify_getppid(), name="held")
            for pid in (a.pid, b.pid):
                f.attach(pid, on_supervisor_death=ps.hold())
            os.write(pipe, b"x")
            n = f.receive(20)
            os.write(writer, b"r")
            signal.pause()
            n.allow()

        with managing(received) as manager:
            a.tell("report")
            assert select.select([reader], [], [], 30)[0] and os.read(reader, 1) == b"r"
            b.tell("report")
            assert silent(a, b)
            dies(manager)
            assert silent(a, b)
            with ps.reclaim("held") as f:
                assert {x.pid for x in f.attachments} == {a.pid, b.pid}
                assert all(x.query().state == "active" for x in f.attachments)
                first, second = f.receive(20), f.receive(20)
                assert first.pid == a.pid and second.pid in filter_counts(b.pid)
                first.deny(DENIED)
                second.deny(DENIED)
                assert f"probe={DENIED}" in a.line() and f"probe={DENIED}" in b.line()
                with pytest.raises(ps.ReceiveTimeoutError):
                    f.receive(0.2)
                a.tell("report")  # and what comes later
                f.receive(20).deny(DENIED)
                assert f"probe={DENIED}" in a.line()
        assert ask(a)["probe"] == errno.ENOSYS  # closed in order: nobody holds it any more
        os.close(reader)
        os.close(writer)
    wait_until(lambda: guardians() <= before, "the guardian has left")
    with pytest.raises(ps.ReclaimError, match="no guardian"):
        ps.reclaim("held")


def test_while_the_manager_lives_nobody_reclaims() -> None:
    with victim(build_victim("idle")) as target, managing(lambda pipe: holding([target.pid], pipe)) as manager:
        with pytest.raises(ps.ReclaimError, match=f"process {manager}, its manager, lives") as caught:
            ps.reclaim("held")
        assert caught.value.errno == errno.EBUSY
        dies(manager)
        with ps.reclaim("held") as f:

            def second() -> tuple[str, int | None]:
                try:
                    ps.reclaim("held")
                except ps.ReclaimError as error:
                    return str(error), error.errno
                return "reclaimed", 0

            text, number = in_child(second)
            assert number == errno.EBUSY and str(os.getpid()) in text
            target.tell("report")
            f.receive(20).deny(DENIED)
            assert f"probe={DENIED}" in target.line()


def test_who_reclaimed_attaches_closes_and_activates_like_any_manager() -> None:
    with victim(build_victim("idle")) as a, victim(build_victim("idle")) as b:
        with managing(lambda pipe: holding([a.pid], pipe)) as manager:
            dies(manager)
            with ps.reclaim("held") as f:
                (old,) = f.attachments
                new = f.attach(b.pid, on_supervisor_death="hold")
                assert new._ward != old._ward
                b.tell("report")
                f.receive(20).deny(DENIED)
                assert f"probe={DENIED}" in b.line()
                old.close()
                assert ask(a)["probe"] == errno.ENOSYS


@pytest.mark.skipif(os.geteuid() != 0, reason="privilege: to be root, to become another user")
def test_another_user_is_refused(runtime: Path) -> None:
    def stranger() -> str:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(runtime / "held"))
            with contextlib.suppress(OSError):
                _core.guardian_send(sock.fileno(), [], guardian.RECLAIM, 1)
            try:
                return str(_core.guardian_receive(sock.fileno()))
            except OSError as error:
                return errno.errorcode[error.errno or 0]

    with victim(build_victim("idle")) as target, managing(lambda pipe: holding([target.pid], pipe)) as manager:
        dies(manager)
        for path in (runtime.parent, runtime, runtime / "held"):
            path.chmod(0o777)
        assert in_child(stranger) in ("ECONNRESET", "EPIPE")
        runtime.chmod(0o700)
        with ps.reclaim("held") as f:
            assert len(f.attachments) == 1


def test_hold_takes_a_name() -> None:
    with ps.Filter(notify_getppid()) as f, pytest.raises(ValueError, match="name="):
        f.attach(1, on_supervisor_death="hold")


@pytest.mark.parametrize("wrong", ["", ".", "..", "../x", "a/b", "-x", "x" * 65, "a\0b", "ä", b"x", 1])
def test_names_that_are_none_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="a name is"):
        ps.Filter(notify_getppid(), name=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a name is"):
        ps.reclaim(wrong)  # type: ignore[arg-type]


def test_a_name_that_nobody_has_cannot_be_reclaimed() -> None:
    with pytest.raises(ps.ReclaimError, match="no guardian") as caught:
        ps.reclaim("nobody")
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("what", ["mode", "link", "file"])
def test_a_directory_that_others_could_write_is_refused(runtime: Path, what: str) -> None:
    if what == "mode":
        runtime.mkdir()
        runtime.chmod(0o755)
    elif what == "link":
        runtime.symlink_to(runtime.parent)
    else:
        runtime.touch()
    with pytest.raises(ps.ReclaimError, match="0700"):
        ps.reclaim("held")


def test_a_path_too_long_for_a_socket_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with pytest.raises(ps.ReclaimError, match="too long"):
        ps.reclaim("held")


def test_a_name_in_use_is_not_taken_again_and_a_stale_one_is(runtime: Path) -> None:
    with victim(build_victim("idle")) as a, victim(build_victim("idle")) as b:
        before = guardians()
        with managing(lambda pipe: holding([a.pid], pipe)) as manager:
            (held_by,) = guardians() - before
            with ps.Filter(notify_getppid(), name="held") as f, pytest.raises(ps.ReclaimError, match="in use"):
                f.attach(b.pid, on_supervisor_death="hold")
            dies(manager)
            os.kill(held_by, signal.SIGKILL)
            wait_until(lambda: not guardians() - before, "the guardian is dead")
            assert (runtime / "held").exists()
            with ps.Filter(notify_getppid(), name="held") as f:
                f.attach(b.pid, on_supervisor_death="hold")
                b.tell("report")
                f.receive(20).deny(DENIED)
                assert f"probe={DENIED}" in b.line()
    wait_until(lambda: not (runtime / "held").exists(), "the name is given back")


def test_the_end_of_the_held_targets_ends_the_guardian_and_its_name(runtime: Path) -> None:
    before = guardians()
    with victim(build_victim("idle")) as target, managing(lambda pipe: holding([target.pid], pipe)) as manager:
        dies(manager)
        assert (runtime / "held").exists()
        target.kill()
        target.wait(20)
        wait_until(lambda: guardians() <= before, "the guardian has left")
        assert not (runtime / "held").exists()


def test_managers_killed_at_random_lose_no_call_and_answer_none_twice() -> None:
    """Each new manager reclaims from the one killed before: every call is denied by one of them, none by the kernel."""
    chance = random.Random(5)

    def manage(pipe: int, pid: int, first: bool) -> None:
        if first:
            f = ps.Filter(notify_getppid(), name="held")
            f.attach(pid, on_supervisor_death="hold")
        else:
            f = ps.reclaim("held")
        os.write(pipe, b"x")
        f.serve(ps.Responder(ps.deny(DENIED)) if chance.random() < 0.5 else ps.Responder(lambda n: ps.deny(DENIED)))

    fds = len(descriptors())
    with victim(build_victim("idle"), "3") as target:
        for i in range(rounds(30)):
            with managing(lambda pipe, first=not i: manage(pipe, target.pid, first)) as manager:
                pending = chance.random() < 0.5
                if pending:
                    target.tell("report")
                    select.select([], [], [], chance.uniform(0, 0.003))
                dies(manager)
                if not pending:
                    target.tell("report")
                    assert silent(target)
            with managing(lambda pipe: manage(pipe, target.pid, False)) as manager:
                assert f"probe={DENIED}" in target.line()
                assert ask(target)["probe"] == DENIED
                dies(manager)
    assert len(descriptors()) == fds


def test_reclaiming_leaks_no_descriptor() -> None:
    with victim(build_victim("idle")) as target, managing(lambda pipe: holding([target.pid], pipe)) as manager:
        with contextlib.suppress(ps.ReclaimError):
            ps.reclaim("held")
        fds = len(descriptors())
        for _ in range(5):
            with pytest.raises(ps.ReclaimError):
                ps.reclaim("held")
        assert len(descriptors()) == fds
        dies(manager)
        ps.reclaim("held").close()
        assert len(descriptors()) == fds


def test_the_directory_without_xdg_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    if not any(os.access(p, os.W_OK) for p in (f"/run/user/{os.geteuid()}", "/run", "/tmp")):
        with pytest.raises(ps.ReclaimError, match="the directory of names: Permission denied"):
            names.path_of("x")
        return
    path = names.path_of("x").parent
    st = path.stat()
    assert (st.st_uid, st.st_mode & 0o777) == (os.geteuid(), 0o700)
    with contextlib.suppress(OSError):
        path.rmdir()
