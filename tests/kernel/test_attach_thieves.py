"""Attackers beside the target: none gets a listener, exchanges one, or has another program loaded unnoticed.

PYSECCOMP_ROUNDS sets the number of attaches of each test; 1,000 is the promise, fewer is the ordinary run.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

import pyseccomp as ps
from attaching import (
    DENIED,
    GETPPID,
    NOTIFY,
    X86_64,
    ask,
    deny_getppid,
    facts,
    filter_counts,
    listeners_in,
    may_suspend,
    notify_getppid,
    program_bytes,
    rounds,
)
from harness import Victim, build_victim, status_field, victim

ROUNDS = rounds(20)
PER_TARGET = 250
"""Attaches to one process: every call of it passes all its filters."""
root_only = pytest.mark.skipif(not may_suspend(), reason="privilege: CAP_SYS_ADMIN in an unfiltered caller, to attach again and again")


@contextlib.contextmanager
def attacked(how: str) -> Iterator[tuple[Victim, Victim]]:
    """A target and its attacker: one program, where they share, or two."""
    if how in ("table", "swap", "memory"):
        with victim(build_victim("thief"), how) as both:
            yield both, both
        return
    with victim(build_victim("idle"), "3") as subject, victim(build_victim("thief"), how, str(subject.pid)) as thief:
        yield subject, thief


def answered(f: ps.Filter, subject: Victim) -> bool:
    """True if the filter's listener is asked for the target's probe, and its answer counts."""
    subject.tell("report")
    f.receive(timeout=10).deny(DENIED)
    return facts(subject.line())["probe"] == DENIED


@root_only
@pytest.mark.parametrize(("how", "tree"), [("table", False), ("swap", False), ("getfd", False), ("getfd", True)])
def test_no_thief_gets_the_listener(how: str, tree: bool) -> None:
    for first in range(0, ROUNDS, PER_TARGET):
        with attacked(how) as (subject, thief):
            for _ in range(min(PER_TARGET, ROUNDS - first)):
                with ps.Filter(notify_getppid()) as f:
                    f.attach(subject.pid, tree=tree)
                    assert answered(f, subject)
            thief.tell("report")
            assert facts(thief.line())["taken"] == 0


@root_only
def test_a_program_that_is_rewritten_before_the_kernel_has_it_is_told() -> None:
    for first in range(0, ROUNDS, PER_TARGET):
        told = 0
        with attacked("write") as (subject, thief):
            for _ in range(min(PER_TARGET, ROUNDS - first)):
                with ps.Filter(notify_getppid()) as f:
                    try:
                        f.attach(subject.pid)
                    except ps.AttachError as error:
                        assert error.errno == errno.EBADMSG
                        told += 1
                        continue
                    assert answered(f, subject)
            thief.tell("report")
            assert facts(thief.line())["taken"] >= told


@root_only
@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("program", [deny_getppid(), notify_getppid()], ids=["plain", "listener"])
def test_rewritten_code_decides_neither_flags_nor_whose_the_listener_is(program: ps.Program, tree: bool) -> None:
    """Without TSYNC one thread alone had the filter, and the attach succeeded; with CLONE_FILES the target kept the listener."""
    for first in range(0, ROUNDS, PER_TARGET):
        with attacked("code") as (subject, _):
            for done in range(1, min(PER_TARGET, ROUNDS - first) + 1):
                with ps.Filter(program) as f:
                    f.attach(subject.pid, tree=tree)
                    assert set(filter_counts(subject.pid).values()) == {done}
                    assert not listeners_in(subject.pid)


@pytest.mark.parametrize("program", [deny_getppid(), notify_getppid()], ids=["plain", "listener"])
def test_a_target_whose_memory_another_process_shares_is_refused(program: ps.Program) -> None:
    with attacked("memory") as (subject, _), ps.Filter(program) as f:
        sharer = Path(f"/proc/{subject.pid}/task/{subject.pid}/children").read_text().strip()
        with pytest.raises(ps.TargetBusyError, match=f"process {sharer} shares its memory"):
            f.attach(subject.pid)
        assert ask(subject)["probe"] == 0
        assert filter_counts(subject.pid) == {subject.pid: 0}


def test_a_parent_that_waits_in_vfork_is_no_hindrance() -> None:
    with victim(build_victim("thief"), "waits", ready=None) as outer:
        pid = facts(outer.line())["target"]
        with ps.Filter(deny_getppid()) as f:
            f.attach(pid)
            assert ask(outer)["probe"] == DENIED
        assert status_field(outer.pid, "Seccomp_filters") == "0"


NOTIFIES_EXIT = ps.Program.from_bytes(program_bytes(NOTIFY, GETPPID[X86_64], 60))
"""No temporary thread could end under it, so a thread of the target must load it, with the descriptors that it has."""


def test_without_a_temporary_thread_a_sharer_of_descriptors_is_refused() -> None:
    with attacked("table") as (subject, _), ps.Filter(NOTIFIES_EXIT) as f:
        sharer = Path(f"/proc/{subject.pid}/task/{subject.pid}/children").read_text().strip()
        with pytest.raises(ps.TargetBusyError, match=f"process {sharer} shares its descriptors"):
            f.attach(subject.pid)
        assert ask(subject) == {"taken": 0, "probe": 0}


def test_a_sharer_of_descriptors_is_found_behind_a_parent_that_waits_in_vfork() -> None:
    with victim(build_victim("thief"), "behind", ready=None) as outer:
        sharer, pid = facts(outer.line())["sharer"], facts(outer.line())["target"]
        with ps.Filter(NOTIFIES_EXIT) as f, pytest.raises(ps.TargetBusyError, match=f"process {sharer} shares its descriptors"):
            f.attach(pid)
        assert ask(outer)["probe"] == 0


@pytest.mark.parametrize("threads", ["all", "one"])
def test_without_a_temporary_thread_the_listener_comes_all_the_same(threads: Literal["all", "one"]) -> None:
    with victim(build_victim("idle"), "3") as subject, ps.Filter(NOTIFIES_EXIT) as f:
        f.attach(subject.pid, threads=threads)
        assert not listeners_in(subject.pid)
        assert answered(f, subject)
        counts = filter_counts(subject.pid)
        assert counts == {tid: int(threads == "all" or tid == subject.pid) for tid in counts}
