"""attach(activate_on="fork"): the children of a process that runs, filtered before their first instruction."""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyseccomp as ps
from attaching import DENIED, deny_getppid, listeners_in, notify_getppid, rounds, wait_until
from harness import DEADLINE, SLOW, Victim, build_victim, descriptors, status_field, victim

SHELL_FORKS = ["sh", "-c", "echo ready; while read x; do (exec /bin/mkdir /proc/never 2>/dev/null) || echo $?; done"]
KINDS = ["fork", "vfork", "clone", "untidy", "thread", "spawn"]
"""How the victim makes a child: fork(), vfork(), clone(SIGCHLD or 0), CLONE_VM without waiting, fork() by another thread, posix_spawn()."""


@pytest.fixture
def forker() -> Iterator[Victim]:
    with victim(build_victim("births")) as process:
        yield process


def answers(process: Victim, kind: str) -> tuple[int, int]:
    """The errno of the first getppid() of a child, and of the parent's after it."""
    process.tell(kind)
    child, parent = process.line().split()
    return int(child), int(parent)


def fork_trigger(f: ps.Filter, process: Victim, event: str = "fork") -> ps.ForkAttachment:
    a = f.attach(process, activate_on=event)
    assert isinstance(a, ps.ForkAttachment) and a.armed
    return a


@pytest.mark.parametrize("kind", KINDS)
def test_every_child_is_filtered_from_its_first_call_and_the_parent_is_not(forker: Victim, kind: str) -> None:
    with ps.Filter(deny_getppid()) as f:
        a = fork_trigger(f, forker)
        for _ in range(3):
            assert answers(forker, kind) == (DENIED, 0)
        a.wait(DEADLINE)
        assert a.armed and a.query().state == "inactive" and a.result is None and a.errors == []
        assert status_field(forker.pid, "Seccomp") == "0"
        a.disarm()
        assert status_field(forker.pid, "TracerPid") == "0"
        assert answers(forker, kind) == (0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_with_fork_all_the_parent_is_filtered_when_its_fork_returns(forker: Victim, kind: str) -> None:
    with ps.Filter(deny_getppid()) as f:
        a = fork_trigger(f, forker, "fork-all")
        assert answers(forker, kind) == (DENIED, DENIED)
        a.wait(DEADLINE)
        assert not a.armed and a.query().state == "active" and a.errors == []
        assert status_field(forker.pid, "TracerPid") == "0"
        assert answers(forker, kind) == (DENIED, DENIED)
        assert status_field(forker.pid, "Seccomp_filters") == "1"


def test_each_child_is_an_attachment_and_all_are_answered_in_one_place() -> None:
    with victim(build_victim("births")) as process, ps.Filter(notify_getppid()) as f:
        a = fork_trigger(f, process)
        seen = []
        for _ in range(3):
            process.tell("fork")
            n = f.receive(timeout=DEADLINE)
            seen.append(n.pid)
            assert listeners_in(n.pid) == [] and a.pid != n.pid
            assert n.pid in [child.pid for child in a.children] and set(a.children) < set(f.attachments)
            assert next(c for c in a.children if c.pid == n.pid).query().state == "active"
            n.deny(DENIED)
            assert process.line() == f"{DENIED} 0"
        assert len(set(seen)) == 3


def test_children_that_have_ended_cost_no_descriptors(forker: Victim) -> None:
    with ps.Filter(notify_getppid()) as f:
        a = fork_trigger(f, forker)
        before = 0
        for turn in range(20):
            forker.tell("fork")
            f.receive(timeout=DEADLINE).deny(DENIED)
            assert forker.line() == f"{DENIED} 0"
            if turn == 3:
                before = len(descriptors())
        assert len(descriptors()) <= before + 4 and len(a.children) <= 3


def test_a_shell_s_children_and_what_they_execute_are_filtered() -> None:
    policy = ps.Policy(default=ps.ALLOW)
    policy.add(ps.KILL_PROCESS, "mkdir")
    policy.add(ps.KILL_PROCESS, "mkdirat")
    with ps.Filter(policy) as f, victim(*SHELL_FORKS) as process:
        fork_trigger(f, process)
        process.tell("go")
        assert process.line() == str(128 + signal.SIGSYS)


def test_children_of_many_threads_and_of_vfork_at_once() -> None:
    with ps.Filter(deny_getppid()) as f, victim(build_victim("births")) as process:
        a = fork_trigger(f, process)
        process.tell("storm")
        assert process.line() == "400 0", "children filtered, parent's errno"
        a.disarm()
        assert status_field(process.pid, "TracerPid") == "0" and a.errors == []


def test_with_fork_all_no_child_of_a_storm_escapes_and_none_is_filtered_twice() -> None:
    for _ in range(rounds(5)):
        with ps.Filter(deny_getppid()) as f, victim(build_victim("births")) as process:
            a = fork_trigger(f, process, "fork-all")
            process.tell("storm")
            assert process.line() == f"400 {DENIED}"
            a.wait(DEADLINE)
            assert a.query().state == "active" and a.errors == []


def test_a_disarm_in_a_storm_harms_nobody() -> None:
    for _ in range(rounds(5)):
        with ps.Filter(deny_getppid()) as f, victim(build_victim("births")) as process:
            a = fork_trigger(f, process)
            process.tell("storm")
            a.wait(DEADLINE)
            a.disarm()
            filtered, parent = map(int, process.line().split())
            assert 0 < filtered <= 400 and parent == 0
            assert status_field(process.pid, "TracerPid") == "0"


def test_activate_filters_the_process_at_once_and_its_children_inherit(forker: Victim) -> None:
    with ps.Filter(deny_getppid()) as f:
        a = fork_trigger(f, forker)
        a.activate()
        assert a.query().state == "active" and not a.armed
        assert answers(forker, "fork") == (DENIED, DENIED)


def test_a_target_that_ends_is_told_and_its_children_stay_filtered(forker: Victim) -> None:
    with ps.Filter(deny_getppid()) as f:
        a = fork_trigger(f, forker)
        forker.kill()
        with pytest.raises(ps.TargetGoneError):
            a.wait(DEADLINE)
        assert not a.armed


def test_fork_triggers_that_can_never_work_are_refused(forker: Victim) -> None:
    with ps.Filter(deny_getppid()) as f:
        for event in ("fork", "fork-all"):
            with pytest.raises(ps.UnsupportedError, match="oneself"):
                f.attach(activate_on=event)
            with pytest.raises(ValueError, match="active=False"):
                f.attach(forker, activate_on=event, active=False)
            with pytest.raises(ValueError, match="threads"):
                f.attach(forker, activate_on=event, threads="one")
            with pytest.raises(ps.UnsupportedError, match="activate_on"):
                f.attach(forker, activate_on=event, mode="gate")
        a = fork_trigger(f, forker)
        with pytest.raises(ps.TargetBusyError):
            f.attach(forker, activate_on="fork")
        assert f.attachments == (a,)


def test_the_kill_of_the_watcher_kills_the_target(forker: Victim) -> None:
    with ps.Filter(deny_getppid()) as f:
        fork_trigger(f, forker)
        os.kill(int(status_field(forker.pid, "TracerPid")), signal.SIGKILL)
        assert forker.wait(DEADLINE) == -signal.SIGKILL


def manage(pid: int, armed: int, event: str, program: ps.Program) -> None:
    with ps.Filter(program) as f:
        os.write(armed, b"1")
        f.attach(pid, activate_on=event)
        os.write(armed, b"2")
        signal.pause()


def killed_manager(pid: int, event: str, program: ps.Program, wait: float) -> bool:
    """Start a manager, kill it, and tell whether it had armed before."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            manage(pid, writer, event, program)
        finally:
            os._exit(3)
    os.close(writer)
    assert os.read(reader, 1) == b"1"
    if wait < 0:
        assert os.read(reader, 1) == b"2"
    end = time.perf_counter() + wait
    while time.perf_counter() < end:
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    promised = wait < 0 or b"2" in os.read(reader, 1)
    os.close(reader)
    return promised


@pytest.mark.parametrize("event", ["fork", "fork-all"])
def test_the_kill_of_a_manager_leaves_a_target_untouched_or_its_children_filtered(event: str) -> None:
    chance = random.Random(6)
    filtered = 0
    for _ in range(rounds(20)):
        with victim(build_victim("births")) as process:
            promised = killed_manager(process.pid, event, deny_getppid(), chance.uniform(0, 0.01 * SLOW))
            kind = chance.choice(KINDS)
            child, parent = answers(process, kind)
            assert child in (0, DENIED) and (child == DENIED or not promised)
            assert parent == (child if event == "fork-all" else 0)
            filtered += child == DENIED
    assert filtered, "the managers were killed too early to test anything"


def test_without_a_manager_the_notified_calls_of_children_fail_with_enosys(forker: Victim) -> None:
    assert killed_manager(forker.pid, "fork", notify_getppid(), -1)
    for _ in range(3):
        assert answers(forker, "fork") == (errno.ENOSYS, 0)
