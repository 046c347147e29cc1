"""How long does an attach hold its target still, beside the bare ptrace operations without one check (attach_floor.c)?

    python -m pytest benchmarks/bench_attach.py

Every round is a pair: the floor on one fresh target, then ours on another one of the same kind. The table shows what
an attach takes as a whole; the ratios of the stop times, ours to the floor's, median and quartiles, are in the
extra_info of the JSON (--benchmark-json) and in the lines printed at the end (-s). The rival is gdb, doing the same
injection by a batch of commands.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import pyseccomp as ps
from attaching import DENIED, ask, deny_getppid, errno_action, notify_getppid, program_bytes
from harness import Victim, build_victim, victim

PAIRS = 25
WARM_UP = 3
GDB_ROUNDS = 5
PROMISED = 1.5
"""Stop time of ours to that of the floor, at most."""


@pytest.fixture(scope="session")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The floor's program."""
    out = tmp_path_factory.mktemp("floor") / "attach_floor"
    source = Path(__file__).parent / "attach_floor.c"
    subprocess.run(["cc", "-O2", "-o", str(out), str(source)], check=True)
    return out


def run_floor(floor: Path, pid: int, listen: bool) -> dict[str, int]:
    """Inject by the floor; what it measured."""
    command = [str(floor), str(pid), *(["listener"] if listen else [])]
    answer: dict[str, int] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return answer


@contextmanager
def fresh_target(threads: int) -> Iterator[Victim]:
    """A process whose threads are all blocked: the first in read, the others in futexes."""
    with victim(build_victim("idle"), str(threads)) as subject:
        yield subject


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and spread."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"q1": round(low, 3), "median": round(middle, 3), "q3": round(high, 3)}


@pytest.mark.parametrize("listen", [False, True], ids=["plain", "listener"])
@pytest.mark.parametrize("threads", [1, 100])
def test_the_target_is_stopped_at_most_half_as_long_again_as_by_the_floor(
    benchmark: Any, floor: Path, threads: int, listen: bool
) -> None:
    program = notify_getppid() if listen else deny_getppid()
    ours: list[float] = []
    bare: list[float] = []
    with ExitStack() as open_pair:

        def pair() -> tuple[tuple[ps.Filter, int], dict[str, Any]]:
            open_pair.close()
            subject = open_pair.enter_context(fresh_target(threads))
            with fresh_target(threads) as other:
                bare.append(run_floor(floor, other.pid, listen)["stop_ns"])
            return (open_pair.enter_context(ps.Filter(program)), subject.pid), {}

        def attach(f: ps.Filter, pid: int) -> None:
            ours.append(f.attach(pid).result.stop_ns)

        benchmark.pedantic(attach, setup=pair, rounds=PAIRS, warmup_rounds=WARM_UP)
    ratios = [a / b for a, b in zip(ours[WARM_UP:], bare[WARM_UP:], strict=True)]
    report = {
        "threads": threads,
        "listener": listen,
        "ours_us": quartiles([v / 1000 for v in ours[WARM_UP:]]),
        "floor_us": quartiles([v / 1000 for v in bare[WARM_UP:]]),
        "ratio": quartiles(ratios),
    }
    benchmark.extra_info.update(report)
    print(json.dumps(report))
    assert statistics.median(ratios) <= PROMISED


def gdb_commands() -> list[str]:
    """mmap, the program word by word, seccomp with TSYNC, munmap: as an expert would type it."""
    code = program_bytes(errno_action(DENIED), 110)
    words = struct.unpack(f"<{len(code) // 8}Q", code)
    commands = ["set $page = ((long (*)(long, ...)) syscall)(9, 0, 4096, 3, 0x22, -1, 0)"]
    commands += [f"set *(unsigned long *)$page = {len(words)}", "set *(unsigned long *)($page + 8) = $page + 16"]
    commands += [f"set *(unsigned long *)($page + {16 + 8 * i}) = {word}ul" for i, word in enumerate(words)]
    if os.geteuid() != 0:
        commands += ["call ((long (*)(long, ...)) syscall)(157, 38, 1, 0, 0, 0)"]
    commands += ["call ((long (*)(long, ...)) syscall)(317, 1, 1, $page)"]
    return [*commands, "call ((long (*)(long, ...)) syscall)(11, $page, 4096)", "detach"]


def run_gdb(pid: int) -> float:
    """Inject by gdb; for how many nanoseconds /proc showed a tracer."""
    command = ["gdb", "-nx", "-batch", "-p", str(pid)]
    for line in gdb_commands():
        command += ["-ex", line]
    first = last = 0
    status = Path(f"/proc/{pid}/status")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as gdb:
        while gdb.poll() is None:
            if "\nTracerPid:\t0\n" not in status.read_text():
                last = time.monotonic_ns()
                first = first or last
            time.sleep(0.0002)
    return last - first


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")
def test_gdb_does_the_same_injection_and_holds_the_target_far_longer(benchmark: Any) -> None:
    ours: list[float] = []
    theirs: list[float] = []
    with ExitStack() as open_target:

        def target() -> tuple[tuple[Victim], dict[str, Any]]:
            open_target.close()
            with fresh_target(1) as other, ps.Filter(deny_getppid()) as f:
                ours.append(f.attach(other.pid).result.stop_ns)
            return (open_target.enter_context(fresh_target(1)),), {}

        def inject(subject: Victim) -> None:
            theirs.append(run_gdb(subject.pid))
            assert ask(subject)["probe"] == DENIED

        benchmark.pedantic(inject, setup=target, rounds=GDB_ROUNDS)
    report = {
        "ours_us": quartiles([v / 1000 for v in ours]),
        "gdb_us": quartiles([v / 1000 for v in theirs]),
        "ratio_gdb_to_ours": quartiles([g / o for g, o in zip(theirs, ours, strict=True)]),
    }
    benchmark.extra_info.update(report)
    print(json.dumps(report))
