"""What does being watched cost a program that makes many calls: by pyseccomp trace, and by strace?

    python -m pytest -s benchmarks/bench_trace.py

Every round runs dd alone, under each tracer in turns, output to /dev/null; overhead is the time beyond dd's own, with the start
of the tracer, Python's included. The counts of calls must be the same.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import _harness as h

ROUNDS = int(os.environ.get("PYSECCOMP_BENCH_ROUNDS", "5"))
BLOCKS = int(os.environ.get("PYSECCOMP_BENCH_CALLS", "20000"))
WORK = ["dd", "if=/dev/zero", "of=/dev/null", "bs=1", f"count={BLOCKS}", "status=none"]
OURS = [sys.executable, "-m", "pyseccomp", "trace"]
TRACERS = {
    "nobody": [],
    "pyseccomp trace": [*OURS, "-o", "/dev/null", "--"],
    "pyseccomp trace -c": [*OURS, "-c", "-o", "/dev/null", "--"],
    "strace -f": ["strace", "-f", "-o", "/dev/null"],
    "strace -f -c": ["strace", "-f", "-c", "-o", "/dev/null"],
    "strace --seccomp-bpf": ["strace", "-f", "--seccomp-bpf", "-e", "trace=read,write", "-o", "/dev/null"],
    "pyseccomp -e": [*OURS, "-e", "trace=read,write", "-o", "/dev/null", "--"],
}


def seconds(prefix: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([*prefix, *WORK], check=True)
    return time.perf_counter() - start


def counts(path: Path, name: int, count: int) -> dict[str, int]:
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[name]: int(row[count]) for row in rows if len(row) > 2 and row[count].isdigit() and re.fullmatch(r"[a-z]\w+", row[name])}


def test_watching_costs_less_than_strace(benchmark: Any) -> None:
    times: dict[str, list[float]] = {name: [] for name in TRACERS}

    def turn() -> None:
        for name, prefix in TRACERS.items():
            times[name].append(seconds(prefix))

    turn()
    for found in times.values():
        found.clear()
    benchmark.pedantic(turn, rounds=ROUNDS)
    over = {name: [t - bare for t, bare in zip(found, times["nobody"], strict=True)] for name, found in times.items()}
    pairs = [("pyseccomp trace", "strace -f"), ("pyseccomp trace -c", "strace -f -c"), ("pyseccomp -e", "strace --seccomp-bpf")]
    figures = {f"{ours} : {theirs}": h.ratios(over[ours], over[theirs]) for ours, theirs in pairs}
    figures["overhead in ns a call"] = {name: round(statistics.median(found) / BLOCKS / 2 * 1e9) for name, found in over.items()}
    h.report(benchmark, "overhead", figures)
    for ours, theirs in pairs:
        assert statistics.median(over[ours]) * 3 < statistics.median(over[theirs])


def test_the_counts_are_strace_s(benchmark: Any, tmp_path: Path) -> None:
    def turn() -> None:
        subprocess.run(["strace", "-f", "-c", "-o", tmp_path / "theirs", *WORK], check=True)
        subprocess.run([*OURS, "-c", "-o", tmp_path / "ours", "--", *WORK], check=True)

    benchmark.pedantic(turn, rounds=1)
    theirs, ours = counts(tmp_path / "theirs", -1, 3), counts(tmp_path / "ours", -1, 0)
    # The first execve is made before our filter is there, and strace counts calls that return.
    for name in ("execve", "total", "exit_group", "ended"):
        theirs.pop(name, None)
        ours.pop(name, None)
    h.report(benchmark, "counts", {"same": theirs == ours, "read": ours.get("read"), "write": ours.get("write")})
    assert theirs == ours
