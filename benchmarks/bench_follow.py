"""How long does a process that enters a followed cgroup run unfiltered?

    python -m pytest -s benchmarks/bench_follow.py

Each round is a new process: it has written its number to cgroup.procs, or is born in the cgroup (CLONE_INTO_CGROUP, of which the kernel
tells nothing), and calls getppid() every 50 us until the filter denies it. The manager is idle, or another of its threads computes in Python all the
while and so holds the interpreter. The cost of following is the processor time of a manager in whose cgroup nothing happens.
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "kernel"))

import pyseccomp as ps
from attaching import deny_getppid
from harness import build_victim, victim
from test_cgroup import cgroup, v2_alone, within

__all__ = ["cgroup"]

ROUNDS = int(os.environ.get("PYSECCOMP_BENCH_ROUNDS", "300"))
IDLE_S = 2.0


def windows(cgroup: Path, how: str) -> list[float]:
    """Milliseconds, of each round."""
    with victim(build_victim("entrant"), str(cgroup), how, str(ROUNDS)) as outside:
        outside.tell("go")
        return sorted(int(outside.line().removeprefix("window=")) / 1e6 for _ in range(ROUNDS))


@pytest.fixture(params=["idle", "busy"])
def manager(request: pytest.FixtureRequest) -> Iterator[str]:
    stop = False

    def compute() -> None:
        n = 0
        while not stop:
            n += 1

    thread = threading.Thread(target=compute)
    if request.param == "busy":
        thread.start()
    yield str(request.param)
    stop = True
    if request.param == "busy":
        thread.join()


@pytest.mark.parametrize("how", ["move", "clone"])
@v2_alone
def test_window_of_what_enters(cgroup: Path, how: str, manager: str) -> None:
    with within(cgroup, "idle"), ps.Filter(deny_getppid()) as f:
        f.attach(cgroup=cgroup, follow=True)
        found = windows(cgroup, how)
    assert found[0] >= 0, "one was not filtered within 5 s"
    p99 = found[min(len(found) - 1, int(0.99 * len(found)))]
    print(f"\n{how}, manager {manager}: median {statistics.median(found):.2f} ms, p99 {p99:.2f} ms, longest {found[-1]:.2f} ms ({len(found)} rounds)")


@pytest.mark.parametrize("members", [1, 200])
@v2_alone
def test_cost_of_following_when_nothing_enters(cgroup: Path, members: int) -> None:
    script = 'echo $$ > "$0/cgroup.procs"; i=1; while [ $i -lt $1 ]; do sleep 60 & i=$((i+1)); done; echo ready; exec sleep 60'
    with victim("/bin/sh", "-c", script, str(cgroup), str(members)), ps.Filter(deny_getppid()) as f:
        f.attach(cgroup=cgroup, follow=True)
        time.sleep(0.2)
        begin, cpu = time.monotonic(), time.process_time()
        time.sleep(IDLE_S)
        share = (time.process_time() - cpu) / (time.monotonic() - begin)
    print(f"\nfollowing {members} processes: {100 * share:.2f} % of a processor")
