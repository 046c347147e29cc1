"""Thousands of attaches to short-lived targets: the manager leaks nothing, no target is harmed.

PYSECCOMP_ROUNDS sets how many; 10,000 is the promise, fewer is the ordinary run.
"""

from __future__ import annotations

import gc
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

import pyseccomp as ps
from attaching import deny_getppid, notify_getppid, rounds
from harness import build_victim, descriptors, in_child

ROUNDS = rounds(400)
WARM_UP = 50
ALLOWED_GROWTH = 8 << 20  # pages of the forked parent that are written for the first time count too


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a process holds at a moment."""

    descriptors: int
    threads: int
    children: int
    mappings: int
    resident: int


def holdings() -> Holdings:
    """What this process holds now."""
    gc.collect()
    tasks = os.listdir("/proc/self/task")
    return Holdings(
        descriptors=len(descriptors()),
        threads=len(tasks),
        children=sum(len(Path(f"/proc/self/task/{t}/children").read_text().split()) for t in tasks),
        mappings=len(Path("/proc/self/maps").read_text().splitlines()),
        resident=int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
    )


def attach_to_brief_ones(program: str, notify: bool, times: int) -> tuple[int, list[int], Holdings, Holdings]:
    """Attach to that many targets: how many were, the exit codes that are not 7, what was held after the warm-up and last."""
    attached, harmed, before = 0, [], holdings()
    for i in range(times + WARM_UP):
        if i == WARM_UP:
            before = holdings()
        pid = os.posix_spawn(program, [program], {})
        try:
            with ps.Filter(notify_getppid() if notify else deny_getppid()) as f:
                f.attach(pid)
            attached += i >= WARM_UP
        except ps.TargetGoneError:
            pass
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status != 7:
            harmed.append(status)
    return attached, harmed, before, holdings()


@pytest.mark.parametrize("notify", [False, True], ids=["plain", "listener"])
def test_attaching_to_short_lived_targets_leaks_nothing_and_harms_none(notify: bool) -> None:
    program = str(build_victim("brief"))
    attached, harmed, before, after = in_child(attach_to_brief_ones, program, notify, ROUNDS, timeout=60 + ROUNDS / 20)
    assert harmed == []
    assert attached > ROUNDS * 0.5
    assert after.descriptors == before.descriptors
    assert after.threads == before.threads
    assert after.children == before.children == 0
    assert after.mappings <= before.mappings + 4
    assert after.resident - before.resident < ALLOWED_GROWTH
