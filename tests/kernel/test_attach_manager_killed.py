"""SIGKILL of the manager at random instants of an attach: every target lives, untouched or wholly filtered.

PYSECCOMP_ROUNDS sets the number of kills of each test; 500 is the promise, fewer is the ordinary run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyseccomp as ps
from attaching import (
    DENIED,
    ask,
    deny_getppid,
    filter_counts,
    listeners_in,
    may_suspend,
    notify_getppid,
    rounds,
    thread_ids,
    wait_until,
)
from harness import SLOW, Victim, build_victim, status_field, victim

ROUNDS = rounds(60)
KILLS_PER_VICTIM, LONGEST_LIFE = (10, 0.012 * SLOW) if may_suspend() else (1, 0.02 * SLOW)
"""Seconds that a manager may live after its first attach has begun: several attaches long, where it can make several."""
LONGEST_TRACE = 0.0003 * SLOW
"""Seconds that a target may have been traced when its tracer is killed: about as long as that takes."""
NOBODYS_PID = 2**22 + 1
"""More than the kernel's limit."""
VARIANTS = {
    "one busy thread": ("busy", (), False, False),
    "a sleeping thread": ("idle", (), False, False),
    "busy threads": ("busy", ("3",), False, True),
    "tiny stacks": ("smallstack", (), False, False),
    "busy threads and a listener": ("busy", ("2",), True, False),
    "sleeping threads, a listener, the whole group": ("idle", ("8",), True, True),
    "a rain of new threads, the whole group": ("threader", (), False, True),
}


def manage(pid: int, notify: bool, tree: bool, started: int) -> None:
    """A manager: attaches as fast as it can, for as long as it lives."""
    program = notify_getppid() if notify else deny_getppid()
    with ps.Filter(program) as f, contextlib.suppress(ps.TargetGoneError):
        f.attach(NOBODYS_PID)  # what a forked process does for the first time is slow
    os.write(started, b"x")
    with ps.Filter(program) as f:
        f.attach(pid, tree=tree)
        if not may_suspend():
            signal.pause()
    while True:
        with ps.Filter(program) as f:
            f.attach(pid, tree=tree)


@contextlib.contextmanager
def manager(pid: int, notify: bool, tree: bool = False) -> Iterator[int]:
    """A manager in a forked child that leads its own process group.

    In the end it must have died of SIGKILL, and whoever shares its descriptors must have ended as well: the pipe says so.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            manage(pid, notify, tree, writer)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(3)
    os.close(writer)
    try:
        assert select.select([reader], [], [], 30)[0] and os.read(reader, 1) == b"x"
        yield child
    finally:
        try:
            os.kill(child, signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            ended = select.select([reader], [], [], 10)[0] and os.read(reader, 1) == b""
            assert ended, "something that the manager started has its descriptors and does not end"
        finally:
            os.close(reader)


def released(pid: int) -> bool:
    """True when no thread has a tracer or is stopped by one."""
    for tid in thread_ids(pid):
        try:
            if status_field(pid, "TracerPid", tid) != "0" or status_field(pid, "State", tid)[0] in "tT":
                return False
        except (FileNotFoundError, ProcessLookupError):
            continue
    return True


def same_everywhere(pid: int, name: str) -> bool:
    """True when all threads carry the same number of filters. Threads come and go, so a second look may be needed."""
    return any(len(set(filter_counts(pid).values())) == 1 for _ in range(3 if name == "threader" else 1))


def kill_a_manager(subject: Victim, notify: bool, whole_group: bool, life: float, tree: bool = False) -> None:
    """One round: a manager attaches to the victim and is killed after that many seconds."""
    with manager(subject.pid, notify, tree) as pid:
        end = time.perf_counter() + life
        while time.perf_counter() < end:
            pass
        (os.killpg if whole_group else os.kill)(pid, signal.SIGKILL)


def kill_manager_and_tracer(subject: Victim, notify: bool, life: float, trace: float, tree: bool = False) -> bool:
    """The same, and whoever has traced the victim for that long is killed with the manager; True if it still lived."""
    with manager(subject.pid, notify, tree) as pid:
        end = time.perf_counter() + life
        while (tracer := int(status_field(subject.pid, "TracerPid"))) == 0 or time.perf_counter() < end:
            if time.perf_counter() > end + 0.1:
                return False
        end = time.perf_counter() + trace
        while time.perf_counter() < end:
            pass
        os.kill(pid, signal.SIGKILL)
        try:
            os.kill(tracer, signal.SIGKILL)
        except ProcessLookupError:
            return False
    return True


def judge(subject: Victim, name: str, none: int, denied: int) -> bool:
    """A victim after its manager's death: free, alive, its work undisturbed, and in all threads the same; True if filtered."""
    wait_until(lambda: released(subject.pid), "no thread is traced or stopped")
    wait_until(lambda: same_everywhere(subject.pid, name), "all threads have the same filters", 1.0)
    ask(subject)  # when it has answered it has finished whatever it had to finish alone
    assert listeners_in(subject.pid) == []
    filtered = filter_counts(subject.pid)[subject.pid] > none
    answer = ask(subject)
    assert answer["probe"] == (denied if filtered else 0)
    assert answer.get("bad", 0) == 0
    if name == "smallstack":
        assert answer["denied"] == (answer["threads"] if filtered else 0)
    return filtered


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_target_lives_untouched_or_wholly_filtered_when_its_manager_is_killed(variant: str) -> None:
    name, arguments, notify, whole_group = VARIANTS[variant]
    chance = random.Random(variant)
    filtered = 0
    for first in range(0, ROUNDS, KILLS_PER_VICTIM):
        with victim(build_victim(name), *arguments) as subject:
            none = filter_counts(subject.pid)[subject.pid]
            for _ in range(min(KILLS_PER_VICTIM, ROUNDS - first)):
                kill_a_manager(subject, notify, whole_group, chance.uniform(0, LONGEST_LIFE))
                filtered += judge(subject, name, none, errno.ENOSYS if notify else DENIED)
    assert filtered, "the managers were killed too early to test anything"


@pytest.mark.parametrize("notify", [False, True], ids=["plain", "listener"])
@pytest.mark.parametrize("name", ["busy", "idle"])
def test_a_target_finishes_alone_when_whoever_injects_is_killed_too(name: str, notify: bool) -> None:
    chance = random.Random(name)
    killed = done = 0
    while done < ROUNDS // 3 or (not killed and done < ROUNDS * 3):
        done += 1
        with victim(build_victim(name)) as subject:
            none = filter_counts(subject.pid)[subject.pid]
            life = chance.uniform(0, LONGEST_LIFE) if may_suspend() else 0.0
            killed += kill_manager_and_tracer(subject, notify, life, chance.uniform(0, LONGEST_TRACE))
            judge(subject, name, none, errno.ENOSYS if notify else DENIED)
    assert killed, "the tracers had ended before they were killed"


# ------------------------------------------------------------------------ trees

TREE = ("3", "2", "1")
"""1 + 3 + 9 processes of two threads, which fork all the while."""
LONGEST_TREE_LIFE = 0.06 * SLOW
LONGEST_TREE_TRACE = 0.01 * SLOW


def tree_counts(root: int) -> dict[int, set[int]]:
    """How many filters the threads of each living process of a tree carry."""
    found: dict[int, set[int]] = {}
    left = [root]
    while left:
        pid = left.pop()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            counts = set(filter_counts(pid).values())
            if counts:
                found[pid] = counts
            for tid in os.listdir(f"/proc/{pid}/task"):
                left += map(int, Path(f"/proc/{pid}/task/{tid}/children").read_text().split())
    return found


def judge_tree(root: Victim, all_or_none: bool, denied: int) -> int:
    """A tree after its manager's death: nobody is held, each process is the same in all threads; how many are filtered."""

    def is_free(pid: int) -> bool:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return released(pid)
        return True

    def settled() -> bool:
        counts = tree_counts(root.pid)
        kinds = {frozenset(one) for one in counts.values()}
        return all(map(is_free, counts)) and all(len(kind) == 1 for kind in kinds) and (not all_or_none or len(kinds) == 1)

    wait_until(settled, "nobody is held, and the filters are the same in all threads (and processes)")
    answer = ask(root)
    assert answer["bad"] == 0
    counts = tree_counts(root.pid)
    assert answer["probe"] == (denied if min(counts[root.pid]) else 0)
    before = answer["forks"]
    wait_until(lambda: ask(root)["forks"] > before + 20, "the tree goes on")
    for pid in counts:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # those that end just now
            assert listeners_in(pid) == []
    return sum(min(one) > 0 for one in counts.values())


@pytest.mark.parametrize("notify", [False, True], ids=["plain", "listener"])
@pytest.mark.parametrize("whole_group", [False, True], ids=["manager", "whole group"])
def test_a_tree_is_untouched_or_wholly_filtered_when_its_manager_is_killed(notify: bool, whole_group: bool) -> None:
    chance = random.Random(f"{notify}{whole_group}")
    filtered = 0
    for first in range(0, max(1, ROUNDS // 2), KILLS_PER_VICTIM):
        with victim(build_victim("family"), *TREE) as root:
            for _ in range(min(KILLS_PER_VICTIM, ROUNDS // 2 - first)):
                kill_a_manager(root, notify, whole_group, chance.uniform(0, LONGEST_TREE_LIFE), tree=True)
                filtered += judge_tree(root, True, errno.ENOSYS if notify else DENIED)
    assert filtered, "the managers were killed too early to test anything"


@pytest.mark.parametrize("notify", [False, True], ids=["plain", "listener"])
def test_each_process_of_a_tree_is_whole_when_whoever_injects_is_killed_too(notify: bool) -> None:
    chance = random.Random(str(notify))
    killed = done = 0
    while done < max(1, ROUNDS // 4) or (not killed and done < ROUNDS * 3):
        done += 1
        with victim(build_victim("family"), *TREE) as root:
            life = chance.uniform(0, LONGEST_TREE_LIFE) if may_suspend() else 0.0
            killed += kill_manager_and_tracer(root, notify, life, chance.uniform(0, LONGEST_TREE_TRACE), tree=True)
            judge_tree(root, False, errno.ENOSYS if notify else DENIED)
    assert killed, "the tracers had ended before they were killed"
