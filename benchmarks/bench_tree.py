"""How long does an attach to a tree hold all of it still, beside injecting into each of its processes by bare ptrace operations?

    python -m pytest -s benchmarks/bench_tree.py

Every round is a pair: the floor (attach_floor.c, without one check) on each process of a fresh tree, one after the other, its stop
times added up; then ours on another tree of the same kind, from the first stop to the last release, the search for who belongs
included. Ours must hold all until the last is filtered; one by one, each would stand for a moment only, but while others run.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import pyseccomp as ps
from attaching import deny_getppid, notify_getppid, wait_until
from bench_attach import floor, quartiles, run_floor
from harness import build_victim, victim

__all__ = ["floor"]

PAIRS = 12
WARM_UP = 2
PROMISED = 2.5


def children(pid: int) -> list[int]:
    """Who was forked by the main thread."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def fresh_tree(processes: int) -> Iterator[int]:
    """A shell, and sleeping processes below it: so many in all."""
    script = f"exec 3<&0; for i in $(seq {processes - 1}); do {build_victim('idle')} <&3 >/dev/null & done; wait"
    with victim("/bin/sh", "-c", script, ready=None) as root:
        wait_until(lambda: len(children(root.pid)) == processes - 1, "all children")
        for pid in children(root.pid):
            wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "idle\n", "it executes")  # noqa: B023
        yield root.pid


@pytest.mark.parametrize("listen", [False, True], ids=["plain", "listener"])
@pytest.mark.parametrize("processes", [10, 100])
def test_a_tree_is_held_at_most_two_and_a_half_times_as_long_as_its_processes_by_the_floor(floor: Path, processes: int, listen: bool) -> None:  # noqa: F811
    ratios, ours, bare = [], [], []
    for _ in range(WARM_UP + PAIRS):
        with fresh_tree(processes) as root:
            bare.append(sum(run_floor(floor, pid, listen)["stop_ns"] for pid in [root, *children(root)]))
        with fresh_tree(processes) as root, ps.Filter(notify_getppid() if listen else deny_getppid()) as f:
            group = f.attach(root, tree=True)
            assert group.result is not None and len(group.attachments) == processes
            ours.append(group.result.stop_ns)
        ratios.append(ours[-1] / bare[-1])
    report = {
        "processes": processes,
        "listener": listen,
        "ours_ms": quartiles([value / 1e6 for value in ours[WARM_UP:]]),
        "floor_ms": quartiles([value / 1e6 for value in bare[WARM_UP:]]),
        "ratio": quartiles(ratios[WARM_UP:]),
    }
    print(json.dumps(report))
    assert statistics.median(ratios[WARM_UP:]) <= PROMISED
