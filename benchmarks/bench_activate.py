"""How long from activate() until it is in force for every task, and what does a gated call cost before?

    python -m pytest -s benchmarks/bench_activate.py

gate: the call of activate() from Python, in processes of one tree, beside a bare store and fence in C; from its return on
every call that begins is answered by the policy. park: from activate() to the first denied call of a process that calls all
the while, beside a bare store, futex wake and seccomp() in C. inject: activate() and the time its target stood still. A gated call
that is continued, beside the same call without a filter. PYSECCOMP_PROCESSES caps the number of processes.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import pyseccomp as ps
from attaching import DENIED, ask, deny_getppid
from harness import build_victim, victim

TURNS = 200
ROUNDS = 15
PARKED = 40
PROMISED_NS = 10_000
MOST = int(os.environ.get("PYSECCOMP_PROCESSES", "1000"))


@pytest.fixture(scope="session")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The floor's program."""
    out = tmp_path_factory.mktemp("floor") / "activate_floor"
    subprocess.run(["cc", "-O2", "-pthread", "-o", str(out), str(Path(__file__).parent / "activate_floor.c")], check=True)
    return out


def report(benchmark: Any, **facts: Any) -> None:
    """Put the facts into the JSON, and print them."""
    benchmark.extra_info.update(facts)
    print(json.dumps(facts))


@pytest.mark.parametrize("processes", [1, 10, 100, 1000])
def test_a_gate_is_activated_within_ten_microseconds_for_any_number_of_processes(
    benchmark: Any, floor: Path, processes: int
) -> None:
    n = min(processes, MOST)
    bare = float(subprocess.run([str(floor), "store"], check=True, capture_output=True, text=True).stdout)
    with victim(floor, "crowd", n, ready=None) as crowd, ps.Filter(deny_getppid()) as f:
        a = f.attach(crowd.pid, active=False, mode="gate")
        crowd.tell("go")
        assert crowd.line(120) == "ready"
        taken = []

        def turn() -> None:
            f.pause()
            began = time.perf_counter_ns()
            f.activate()
            taken.append(time.perf_counter_ns() - began)

        benchmark.pedantic(turn, rounds=TURNS)
        assert a.query().state == "active"
    median = statistics.median(taken)
    report(benchmark, mode="gate", processes=n, activate_ns=median, bare_store_ns=bare)
    assert median <= PROMISED_NS


def _parked_until_denied(program: ps.Program) -> float:
    """ns from activate() to the first call denied, of a process that parked itself."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        with ps.Filter.recv(theirs) as f:
            f.attach(active=False)
            ours.close()
            for pid in (-1, 0):  # the first to have gone that way before
                call = functools.partial(os.getpgid, pid)
                try:
                    while True:
                        call()
                except OSError:
                    denied = time.monotonic_ns()
            theirs.send(str(denied).encode())
        os._exit(0)
    theirs.close()
    with ours, ps.Filter(program) as f:
        f.send(ours)
        [attachment] = f.wait_parked(1, 30)
        time.sleep(0.02)
        began = time.monotonic_ns()
        attachment.activate()
        denied = int(ours.recv(30))
    os.waitpid(pid, 0)
    return denied - began


def test_a_parked_process_is_activated_as_fast_as_a_bare_wake_up(benchmark: Any, floor: Path, tmp_path: Path) -> None:
    ratios: list[float] = []
    taken: list[float] = []
    policy = ps.Policy(ps.ALLOW)
    policy.add(ps.ERRNO(errno.EPERM), "getpgid")
    program = policy.compile()
    (tmp_path / "program").write_bytes(bytes(program))
    with subprocess.Popen([floor, "park", tmp_path / "program"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as bare:
        assert bare.stdin and bare.stdout
        for _ in range(PARKED):
            print("go", file=bare.stdin, flush=True)
            base = float(bare.stdout.readline())
            taken.append(_parked_until_denied(program))
            ratios.append(taken[-1] / base)
        bare.stdin.close()
    benchmark.pedantic(lambda: None)
    quartiles = statistics.quantiles(ratios, n=4)
    report(benchmark, mode="park", until_denied_ns=statistics.median(taken), ours_to_bare=quartiles)


@pytest.mark.parametrize("threads", [1, 100])
def test_inject_activates_all_threads(benchmark: Any, threads: int) -> None:
    taken: list[int] = []
    stopped: list[int] = []
    for _ in range(ROUNDS):
        with victim(build_victim("idle"), str(threads)) as subject, ps.Filter(deny_getppid()) as f:
            a = f.attach(subject.pid, active=False)
            began = time.perf_counter_ns()
            a.activate()
            taken.append(time.perf_counter_ns() - began)
            assert a.result is not None
            stopped.append(a.result.stop_ns)
            assert ask(subject)["probe"] == DENIED
    benchmark.pedantic(lambda: None)
    report(benchmark, mode="inject", threads=threads, activate_ns=statistics.median(taken), stop_ns=statistics.median(stopped))


def test_a_gated_call_while_inactive_beside_the_same_call_without_a_filter(benchmark: Any, floor: Path) -> None:
    with victim(floor, "calls") as gated, victim(floor, "calls") as free, ps.Filter(deny_getppid()) as f:
        f.attach(gated.pid, active=False, mode="gate")
        pairs = []
        for _ in range(ROUNDS):
            times = []
            for subject in (gated, free):
                subject.tell("go")
                times.append(float(subject.line()))
            pairs.append(times)
        benchmark.pedantic(lambda: None)
    report(
        benchmark,
        gated_inactive_ns=statistics.median(p[0] for p in pairs),
        ungated_ns=statistics.median(p[1] for p in pairs),
        added_ns=statistics.median(p[0] - p[1] for p in pairs),
    )
