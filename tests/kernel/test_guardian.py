"""What outlives the manager: answers to notified calls, and deadlines, by the guardian."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import select
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyseccomp as ps
from attaching import DENIED, ask, deny_getppid, filter_counts, listeners_in, notify_getppid, rounds, state, wait_until
from harness import Victim, build_victim, status_field, victim

ROUNDS = rounds(24)


@contextlib.contextmanager
def managing(work: Callable[[int], object]) -> Iterator[int]:
    """A manager in a forked child: work(pipe) runs until it is killed; yields when a byte has come through the pipe."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            work(writer)
            signal.pause()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(3)
    os.close(writer)
    try:
        assert select.select([reader], [], [], 30)[0] and os.read(reader, 1) == b"x", "the manager failed"
        yield child
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def dies(manager: int) -> None:
    os.kill(manager, signal.SIGKILL)
    os.waitid(os.P_PID, manager, os.WEXITED | os.WNOWAIT)


def guardians() -> set[int]:
    found = set()
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and Path(f"/proc/{entry}/comm").read_text() == "psc-guardian\n" and state(int(entry)) != "Z":
                found.add(int(entry))
    return found


def guarding(pid: int, started: int, answer: object, received: int | None = None) -> None:
    f = ps.Filter(notify_getppid())
    f.attach(pid, on_supervisor_death=answer)  # type: ignore[arg-type]
    os.write(started, b"x")
    if received is not None:
        n = f.receive()
        os.write(received, b"r")
        signal.pause()
        n.allow()
    signal.pause()


@pytest.mark.parametrize(("answer", "probe"), [(ps.deny(DENIED), DENIED), ("allow", 0), (ps.allow(), 0)])
def test_calls_after_the_managers_death_get_the_answer(answer: object, probe: int) -> None:
    before = guardians()
    with victim(build_victim("idle"), "3") as target:
        with managing(lambda pipe: guarding(target.pid, pipe, answer)) as manager:
            dies(manager)
            assert [ask(target)["probe"] for _ in range(3)] == [probe] * 3
            assert listeners_in(target.pid) == []
    wait_until(lambda: guardians() <= before, "the guardian ends with the last target")


def test_a_call_that_waits_when_the_manager_dies_gets_the_answer() -> None:
    with victim(build_victim("idle")) as target, managing(
        lambda pipe: guarding(target.pid, pipe, ps.deny(DENIED))
    ) as manager:
        target.tell("report")
        assert not select.select([target.stdout], [], [], 0.1)[0]
        dies(manager)
        assert f"probe={DENIED}" in target.line()


def test_a_call_that_the_manager_had_received_gets_the_answer_too() -> None:
    with victim(build_victim("idle")) as target:
        reader, writer = os.pipe()
        with managing(lambda pipe: guarding(target.pid, pipe, ps.deny(DENIED), writer)) as manager:
            target.tell("report")
            assert select.select([reader], [], [], 30)[0] and os.read(reader, 1) == b"r"
            dies(manager)
            assert f"probe={DENIED}" in target.line()
        os.close(reader)
        os.close(writer)


def test_kill_kills_the_target_when_the_manager_dies() -> None:
    with victim(build_victim("idle")) as target, managing(lambda pipe: guarding(target.pid, pipe, "kill")) as manager:
        dies(manager)
        assert target.wait(20) == -signal.SIGKILL


def test_closing_in_order_is_no_death() -> None:
    before = guardians()
    with victim(build_victim("idle")) as target:
        with ps.Filter(notify_getppid()) as f:
            f.attach(target.pid, on_supervisor_death="kill")
            (guardian,) = guardians() - before
        assert ask(target)["probe"] == errno.ENOSYS
        wait_until(lambda: guardian not in guardians(), "the guardian has left")


def test_a_living_manager_answers_and_waits_see_no_guardian() -> None:
    with victim(build_victim("idle")) as target, ps.Filter(notify_getppid()) as f:
        a = f.attach(target.pid, on_supervisor_death="allow")
        assert a.result is not None and a.result.threads[0].tid == target.pid
        target.tell("report")
        f.receive(20).deny(DENIED)
        assert f"probe={DENIED}" in target.line()
        with pytest.raises(ChildProcessError):
            while True:
                pid, _ = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    raise ChildProcessError  # the victim, still running
                assert pid == target.pid


def test_without_a_guardian_program_the_attach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyseccomp.guardian.Path", lambda _: Path("/nonexistent/core"))
    with victim(build_victim("idle")) as target, ps.Filter(notify_getppid()) as f:
        with pytest.raises(ps.UnsupportedError, match="nothing outlives"):
            f.attach(target.pid, on_supervisor_death="allow")
        assert set(filter_counts(target.pid).values()) == {filter_counts(os.getpid())[os.getpid()]}


@pytest.mark.parametrize("wrong", ["hold", "deny", 1, ps.hold(), ps.reply(1)])
def test_answers_that_make_no_sense_are_refused(wrong: object) -> None:
    with ps.Filter(notify_getppid()) as f, pytest.raises(ValueError, match="on_supervisor_death"):
        f.attach(1, on_supervisor_death=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), "1"])
def test_deadlines_that_make_no_sense_are_refused(wrong: object) -> None:
    with ps.Filter(deny_getppid()) as f, pytest.raises(ValueError, match="deadline"):
        f.attach(1, active=False, deadline=wrong)  # type: ignore[arg-type]


def test_a_deadline_activates_while_the_manager_lives(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pyseccomp")
    seen: list[tuple[str, str]] = []
    with victim(build_victim("idle"), "3") as target, ps.Filter(deny_getppid()) as f:
        reader, writer = os.pipe()
        f.on_state_change = lambda a, state, why: (seen.append((state, why)), os.write(writer, b"x"))
        a = f.attach(target.pid, active=False, deadline=0.2)
        assert ask(target)["probe"] == 0 and a.query().state == "inactive"
        for _ in range(2):
            assert select.select([reader], [], [], 30)[0] and os.read(reader, 1)
        assert (a.query().state, ask(target)["probe"]) == ("active", DENIED)
        a.activate()
        assert [s for s, _ in seen][:2] == ["inactive", "active"] and "deadline" in seen[1][1]
        assert len(caplog.records) >= 2
        os.close(reader)
        os.close(writer)


def test_a_function_that_fails_when_it_is_told_does_not_end_the_connection_to_the_guardian(caplog: pytest.LogCaptureFixture) -> None:
    def fail(a: ps.Attachment, state: str, why: str) -> None:
        if "guardian" in why:
            raise ValueError("of the user's function")

    with victim(build_victim("idle"), "3") as first, victim(build_victim("idle"), "3") as second, ps.Filter(deny_getppid()) as f:
        f.on_state_change = fail
        a = f.attach(first.pid, active=False, deadline=0.0)
        wait_until(lambda: "on_state_change failed" in caplog.text, "the function was called and has failed")
        assert a.activated and ask(first)["probe"] == DENIED
        f.attach(second.pid, on_supervisor_death="kill")  # asks the guardian, which is heard
        assert ask(second)["probe"] == DENIED


def test_a_deadline_kills_while_the_manager_lives() -> None:
    with victim(build_victim("idle")) as target, ps.Filter(deny_getppid()) as f:
        f.attach(target.pid, active=False, deadline=0.1, on_deadline="kill")
        assert target.wait(20) == -signal.SIGKILL


def test_activation_before_the_deadline_ends_it() -> None:
    with victim(build_victim("idle")) as target, ps.Filter(deny_getppid()) as f:
        a = f.attach(target.pid, active=False, deadline=0.3, on_deadline="kill")
        a.activate()
        assert not select.select([a.pidfd], [], [], 0.6)[0]
        assert ask(target)["probe"] == DENIED


def test_a_target_that_cannot_be_filtered_at_the_deadline_is_killed() -> None:
    with victim(build_victim("idle")) as target, ps.Filter(deny_getppid()) as f:
        with victim(build_victim("tracer"), str(target.pid), ready=None) as tracer:
            with pytest.raises(ps.TargetBusyError):
                wait_until(lambda: status_field(target.pid, "TracerPid") != "0", "it is traced")
                f.attach(target.pid)
            f.attach(target.pid, active=False, deadline=0.0, timeout=0.3)
            wait_until(lambda: state(target.pid) == "Z", "it is killed (its tracer keeps it from being reaped)")
            tracer.kill()
            tracer.wait(20)
            assert target.wait(20) == -signal.SIGKILL


@pytest.mark.parametrize("on_deadline", ["activate", "kill"])
def test_the_managers_death_counts_as_the_deadline(on_deadline: str) -> None:
    def manage(pipe: int) -> None:
        f = ps.Filter(deny_getppid())
        keep.append(f.attach(target.pid, active=False, deadline=1e6, on_deadline=on_deadline))  # type: ignore[arg-type]
        os.write(pipe, b"x")
        signal.pause()

    keep: list[object] = []
    with victim(build_victim("idle"), "3") as target:
        none = filter_counts(target.pid)[target.pid]
        with managing(manage) as manager:
            assert set(filter_counts(target.pid).values()) == {none}
            dies(manager)
            if on_deadline == "kill":
                assert target.wait(20) == -signal.SIGKILL
            else:
                wait_until(lambda: set(filter_counts(target.pid).values()) == {none + 1}, "all threads are filtered")
                assert ask(target)["probe"] == DENIED


def test_leaving_a_with_block_inactive_activates_and_raises() -> None:
    with victim(build_victim("idle")) as target, ps.Filter(deny_getppid()) as f:
        with pytest.raises(ps.InactiveError, match="activated"), f.attach(target.pid, active=False):
            pass
        assert ask(target)["probe"] == DENIED


def test_leaving_the_filters_with_block_inactive_kills_where_that_was_said() -> None:
    with victim(build_victim("idle")) as target:
        with pytest.raises(ps.InactiveError, match="killed"), ps.Filter(deny_getppid()) as f:
            f.attach(target.pid, active=False, on_deadline="kill")
        assert target.wait(20) == -signal.SIGKILL


def test_an_exception_leaves_the_block_itself_with_a_note() -> None:
    with victim(build_victim("idle")) as target:
        with pytest.raises(KeyError) as caught, ps.Filter(deny_getppid()) as f:
            f.attach(target.pid, active=False)
            raise KeyError("mine")
        assert "inactive" in caught.value.__notes__[0]
        assert ask(target)["probe"] == DENIED


def test_given_up_by_close_nothing_happens() -> None:
    with victim(build_victim("idle")) as target, ps.Filter(deny_getppid()) as f:
        a = f.attach(target.pid, active=False, deadline=0.2, on_deadline="kill")
        with a:
            a.close()
        assert target.poll() is None
        with contextlib.suppress(subprocess.TimeoutExpired):
            target.wait(0.5)
        assert (target.poll(), ask(target)["probe"]) == (None, 0)


def test_the_death_of_the_guardian_is_the_deadline_too() -> None:
    before = guardians()
    with victim(build_victim("idle")) as target, ps.Filter(deny_getppid()) as f:
        told: list[str] = []
        f.on_state_change = lambda a, state, why: told.append(why)
        a = f.attach(target.pid, active=False, deadline=1e6)
        (guardian,) = guardians() - before
        os.kill(guardian, signal.SIGKILL)
        wait_until(lambda: a.query().state == "active", "the manager has activated it")
        wait_until(lambda: "activated" in told, "and told")
        assert not any("could not" in why for why in told)
        assert ask(target)["probe"] == DENIED


def test_the_guardian_has_only_its_own_descriptors_and_cannot_be_ended_by_signals() -> None:
    before = guardians()
    inheritable = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(inheritable, True)
    with victim(build_victim("idle")) as target, ps.Filter(notify_getppid()) as f:
        f.attach(target.pid, on_supervisor_death="allow")
        (guardian,) = guardians() - before
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            os.kill(guardian, number)
        assert os.getsid(guardian) == guardian
        if not int(status_field(os.getpid(), "CapEff"), 16) >> 19 & 1:
            with pytest.raises(PermissionError):  # nobody of the same user may reach into it
                os.readlink(f"/proc/{guardian}/fd/3")
        else:
            links = {os.readlink(f"/proc/{guardian}/fd/{fd}") for fd in os.listdir(f"/proc/{guardian}/fd")}
            assert not any("passwd" in link for link in links), links
        target.tell("report")
        f.receive(20).deny(DENIED)
        assert f"probe={DENIED}" in target.line() and guardian in guardians()
    os.close(inheritable)


@pytest.mark.parametrize("on_deadline", ["activate", "kill"])
def test_a_manager_killed_at_any_instant_leaves_no_target_between(on_deadline: str) -> None:
    """Killed while it binds, at the deadline, and while it activates: untouched, or what on_deadline says."""
    chance = random.Random(on_deadline)
    acted = 0

    def manage(pid: int, pipe: int) -> None:
        f = ps.Filter(notify_getppid())
        os.write(pipe, b"x")
        a = f.attach(pid, active=False, deadline=0.008, on_deadline=on_deadline, on_supervisor_death=ps.deny(DENIED))  # type: ignore[arg-type]
        if on_deadline == "activate":
            a.activate()
        signal.pause()

    for i in range(ROUNDS * 4):
        if i >= ROUNDS and acted:
            break
        with victim(build_victim("idle"), "3") as target:
            none = filter_counts(target.pid)[target.pid]
            with managing(lambda pipe, pid=target.pid: manage(pid, pipe)) as manager:
                end = time.perf_counter() + chance.uniform(0, 0.03 if i < ROUNDS else 0.3)
                while time.perf_counter() < end:
                    pass
                dies(manager)
                acted += judge(target, none, on_deadline)
    assert acted, "every manager was killed before it had done anything"


def judge(target: Victim, none: int, on_deadline: str) -> bool:
    """Until the guardian is gone or idle: the same number of filters everywhere, and what that means is what is seen."""
    def settled() -> bool:
        if target.poll() is not None:
            return True
        return status_field(target.pid, "TracerPid") == "0" and len(set(filter_counts(target.pid).values())) <= 1

    pidfd = os.pidfd_open(target.pid)
    select.select([pidfd], [], [], 0.1)  # what has been bound is acted on now
    os.close(pidfd)
    wait_until(settled, "no thread is in between")
    if target.poll() is not None:
        assert on_deadline == "kill" and target.returncode == -signal.SIGKILL
        return True
    assert state(target.pid) in "SR"
    filters = filter_counts(target.pid)[target.pid] - none
    assert filters in (0, 1) and (filters == 0 or on_deadline == "activate")
    assert ask(target)["probe"] == (DENIED if filters else 0)
    return bool(filters)
