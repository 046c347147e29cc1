"""How long from activate() until it is in force in every task, and what does a gated call cost before?

    python -m pytest -s benchmarks/bench_activate.py

Each figure stands beside the bare C of it (activate_floor.c, attach_floor.c), round by round in turn, on fresh processes of
the same kind; medians and quartiles, and the ratio of each pair.

park: from activate() until the last thread that was parked has ended, which it does as soon as the kernel has taken the filter;
the floor stores, wakes all and watches the same, its threads having called seccomp() themselves. Then, for one process that calls
all the while, until the first call that is denied. inject: activate() beside the ptrace operations without one check.
gate: activate() beside a store and a fence; from its return on every call that begins is answered by the policy.
A gated call that is let run: beside the same call without a filter, and under a bare loop of RECV and SEND.

PYSECCOMP_PROCESSES caps the number of processes; PYSECCOMP_PAIRS is how many pairs, where processes are few.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import json
import subprocess

import pyseccomp as ps
from _harness import build, ratios, report, spread
from attaching import deny_getppid
from harness import Victim, victim

PROMISED_NS = 10_000
"""For the activation of a gate, whatever is under it."""
PROMISED = 1.5
"""Park to its floor, at most."""
TURNS = 200
PAIRS = int(os.environ.get("PYSECCOMP_PAIRS", "40"))
CALLS = 15
MOST = int(os.environ.get("PYSECCOMP_PROCESSES", "1000"))
SHAPES = [(1, 1), (10, 1), (100, 1), (1000, 1), (1, 100)]
"""Processes, and the threads of each."""
SETTLE = 0.03

shapes = pytest.mark.parametrize(("processes", "threads"), SHAPES)


def pairs_for(processes: int) -> int:
    """How many pairs: the more processes, the fewer."""
    return max(8, PAIRS // max(1, processes // 25))


@pytest.fixture(scope="session", autouse=True)
def room() -> None:
    """Descriptors for two of each process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@pytest.fixture(scope="session")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The floor's program, and the crowds."""
    return build("activate_floor.c", tmp_path_factory.mktemp("floor") / "activate_floor", "-pthread", core=True)


@pytest.fixture(scope="session")
def injector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The floor of inject."""
    return build("attach_floor.c", tmp_path_factory.mktemp("floor") / "attach_floor")


@pytest.fixture
def denied(tmp_path: Path) -> tuple[ps.Program, Path]:
    """A program that denies getpgid, and its file."""
    policy = ps.Policy(ps.ALLOW)
    policy.add(ps.ERRNO(1), "getpgid")
    program = policy.compile()
    (tmp_path / "program").write_bytes(bytes(program))
    return program, tmp_path / "program"


def in_turn(ours: Callable[[], float], bare: Callable[[], float], pairs: int) -> tuple[list[float], list[float]]:
    """Both, again and again, each of them first every other time."""
    mine: list[float] = []
    other: list[float] = []
    for i in range(pairs):
        for act, found in ((ours, mine), (bare, other))[:: 1 if i % 2 else -1]:
            found.append(act())
    return mine, other


def show(benchmark: Any, name: str, mine: list[float], other: list[float], **more: Any) -> float:
    """Print ours, the floor and the ratio; the ratio's median."""
    benchmark.pedantic(lambda: None)
    shares = ratios(mine, other)
    figures = {"ours_us": spread(v / 1000 for v in mine), "floor_us": spread(v / 1000 for v in other), "ratio": shares}
    report(benchmark, name, figures | more)
    return shares["median"]


# --------------------------------------------------------------------- gate


@shapes
def test_a_gate_is_activated_within_ten_microseconds_whatever_is_under_it(
    benchmark: Any, floor: Path, processes: int, threads: int
) -> None:
    n = min(processes, MOST)
    with (
        victim(floor, "crowd", n, threads, ready=None) as crowd,
        victim(floor, "store", ready=None) as bare,
        ps.Filter(deny_getppid()) as f,
    ):
        a = f.attach(crowd.pid, active=False, mode="gate")
        crowd.tell("go")
        assert len(crowd.line(120).split()) == n + 1

        def ours() -> float:
            f.pause()
            began = time.perf_counter_ns()
            f.activate()
            return time.perf_counter_ns() - began

        mine, other = in_turn(ours, lambda: _asked(bare), TURNS)
        show(benchmark, f"gate, {n} processes of {threads} threads", mine, other)
        assert a.query().state == "active"
    assert statistics.median(mine) <= PROMISED_NS


def _asked(process: Victim) -> float:
    process.tell("go")
    return float(process.line(120))


# --------------------------------------------------------------------- park


@contextmanager
def _parked(floor: Path, program: ps.Program, *mode: object) -> Iterator[tuple[Victim, ps.Filter]]:
    """Processes in C that park themselves by the core, watched by their parent; and their filter."""
    with ps.Filter(program) as f:
        f.accept_parked()
        assert f._ticket is not None
        ends = (f.fileno(), f._ticket.channel)
        with victim(floor, *mode, *ends, ready=None, pass_fds=ends) as crowd:
            f.wait_parked(int(str(mode[1])) if len(mode) > 1 else 1, 60)
            assert crowd.line() == "ready"
            yield crowd, f


def _until_enforced(floor: Path, program: ps.Program, returned: list[float], *mode: object) -> float:
    with _parked(floor, program, *mode) as (crowd, f):
        time.sleep(SETTLE)
        began = time.monotonic_ns()
        f.activate()
        returned.append(time.monotonic_ns() - began)
        return float(crowd.line(60)) - began


def _bare_until_enforced(floor: Path, *mode: object) -> float:
    with victim(floor, *mode) as crowd:
        time.sleep(SETTLE)
        return _asked(crowd)


@shapes
def test_parked_processes_are_activated_as_fast_as_by_a_bare_wake_up_and_seccomp(
    benchmark: Any, floor: Path, denied: tuple[ps.Program, Path], processes: int, threads: int
) -> None:
    program, file = denied
    n, returned = min(processes, MOST), list[float]()
    mine, other = in_turn(
        lambda: _until_enforced(floor, program, returned, "parked", n, threads),
        lambda: _bare_until_enforced(floor, "wake", n, threads, file),
        pairs_for(n),
    )
    ratio = show(
        benchmark, f"park, {n} processes of {threads} threads", mine, other, activate_returns_us=spread(v / 1000 for v in returned)
    )
    assert ratio <= PROMISED


def test_the_calls_of_a_parked_process_are_denied_as_soon_as_by_a_bare_wake_up_and_seccomp(
    benchmark: Any, floor: Path, denied: tuple[ps.Program, Path]
) -> None:
    program, file = denied
    mine, other = in_turn(
        lambda: _until_enforced(floor, program, [], "parked-denied"), lambda: _bare_until_enforced(floor, "denied", file), PAIRS
    )
    # Who calls all the while, the woken thread and the manager share the processors: only on an idle machine a measure of ours.
    show(benchmark, "park, until a process that calls all the while is denied", mine, other)


# ------------------------------------------------------------------- inject


@contextmanager
def _crowd(floor: Path, processes: int, threads: int) -> Iterator[list[int]]:
    with victim(floor, "crowd", processes, threads, ready=None) as crowd:
        crowd.tell("go")
        ready, *pids = crowd.line(120).split()
        assert ready == "ready"
        yield [int(pid) for pid in pids]


def _injected(floor: Path, program: ps.Program, processes: int, threads: int, stopped: list[float]) -> float:
    with _crowd(floor, processes, threads) as pids, ps.Filter(program) as f:
        attachments = [f.attach(pid, active=False) for pid in pids]
        time.sleep(SETTLE)
        began = time.monotonic_ns()
        f.activate()
        taken = time.monotonic_ns() - began
        stopped.append(statistics.median(a.result.stop_ns for a in attachments if a.result is not None))
        return taken


def _barely_injected(floor: Path, injector: Path, processes: int, threads: int) -> float:
    with _crowd(floor, processes, threads) as pids:
        time.sleep(SETTLE)
        said = subprocess.run([injector, *map(str, pids)], check=True, capture_output=True, text=True).stdout
    return float(json.loads(said)["total_ns"])


@shapes
def test_inject_activates_every_thread(benchmark: Any, floor: Path, injector: Path, processes: int, threads: int) -> None:
    n, stopped = min(processes, MOST), list[float]()
    mine, other = in_turn(
        lambda: _injected(floor, deny_getppid(), n, threads, stopped),
        lambda: _barely_injected(floor, injector, n, threads),
        min(25, pairs_for(n)),
    )
    show(benchmark, f"inject, {n} processes of {threads} threads", mine, other, stopped_each_us=spread(v / 1000 for v in stopped))


# -------------------------------------------------------- while it is inactive


def test_a_gated_call_while_inactive_costs_what_a_bare_loop_that_continues_it_does(benchmark: Any, floor: Path) -> None:
    with (
        victim(floor, "calls") as gated,
        victim(floor, "calls") as free,
        victim(floor, "continued") as continued,
        ps.Filter(deny_getppid()) as f,
    ):
        a = f.attach(gated.pid, active=False, mode="gate")
        kinds = (gated, continued, free)
        found = [[_asked(kind) for kind in kinds] for _ in range(CALLS)]
        assert a.query().state == "inactive"
        a.activate()
    mine, bare, unfiltered = ([float(row[i]) for row in found] for i in range(3))
    show(benchmark, "a gated call while inactive", mine, bare, unfiltered_us=spread(v / 1000 for v in unfiltered))
