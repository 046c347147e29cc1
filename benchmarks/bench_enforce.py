"""What does a program cost once it is in force: loading it, and each call, beside libseccomp's for the same rules?

    python -m pytest -s benchmarks/bench_enforce.py

Every round loads each program in a fresh child and times calls under it; the same calls without a program are subtracted.
Rounds go through all programs in turns. Needs libseccomp-dev. Plots go to PYSECCOMP_PLOTS (the working directory).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import _harness as h

ROUNDS = int(os.environ.get("PYSECCOMP_BENCH_ROUNDS", "60"))
CALLS = 10_000
PROGRAMS = ("none", "size", "depth", "linear", "tree")
UNDER_TEST = {
    "getppid: allowed by its number, cached": "110",
    "personality(0xffffffff): allowed by an argument": "135:0xffffffff",
    "vserver: denied": "236",
    "number 460: unknown, denied": "460",
    "getppid by x32's number": "0x4000006e",
    "i386 getppid: allowed, cached": "i386:64",
    "i386 number 460: unknown, denied": "i386:460",
}
NOISE = 8.0
NOISY = 0.03
"""Nanoseconds, and part of the bare call, by which a shared machine's medians differ between two runs of one program."""


@pytest.mark.parametrize("shape", ["x86_64", "3 ABIs"])
def test_load_time_and_cost_of_a_call(benchmark: Any, shape: str, tmp_path: Path) -> None:
    policy = h.oci_policy("docker-default.json", h.THREE if shape == "3 ABIs" else h.ONE)
    (tmp_path / "rules").write_text(h.rules_text(policy))
    compiler = h.build("compile_rivals.c", tmp_path / "compile_rivals", "-lseccomp", core=True)
    subprocess.run([compiler, tmp_path / "rules", "1", tmp_path / "program"], check=True, stdout=subprocess.DEVNULL)
    driver = h.build("enforce_rivals.c", tmp_path / "enforce_rivals")
    files = [name if name == "none" else f"{tmp_path}/program.{name}" for name in PROGRAMS]
    calls = {name: call for name, call in UNDER_TEST.items() if shape == "3 ABIs" or not call.startswith(("i386", "0x4"))}
    command = [str(driver), str(ROUNDS), str(CALLS), *files, "--", *calls.values()]
    samples: list[dict[str, Any]] = benchmark.pedantic(
        lambda: json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout), rounds=1
    )
    rounds = {name: [s for s in samples if s["program"] == at] for at, name in enumerate(PROGRAMS)}
    loads = {name: [s["load_ns"] for s in rounds[name]] for name in PROGRAMS[1:]}
    cost = {
        call: {
            name: h.spread(
                [s["call_ns"][at] - bare["call_ns"][at] for s, bare in zip(rounds[name], rounds["none"], strict=True)]
            )
            for name in PROGRAMS[1:]
        }
        for at, call in enumerate(calls)
    }
    figures = {
        "load us": {name: h.spread([ns / 1000 for ns in times]) for name, times in loads.items()},
        "load, ours : tree": h.ratios(loads["size"], loads["tree"]),
        "load, ours : linear": h.ratios(loads["size"], loads["linear"]),
        "ns a call, unfiltered": {
            call: h.spread([s["call_ns"][at] for s in rounds["none"]])["median"] for at, call in enumerate(calls)
        },
        "ns more a call": cost,
    }
    h.report(benchmark, f"docker-default, {shape}, in force", figures)
    medians = {name: spread["median"] for name, spread in figures["load us"].items()}
    h.bars(h.PLOTS / f"load-{len(policy.arches)}.svg", f"Docker's default, {shape}: the seccomp() that loads it", "µs", medians)
    assert figures["load, ours : tree"]["median"] <= 0.40
    for call, by_program in cost.items():
        best = min(by_program["size"]["median"], by_program["depth"]["median"])
        allowance = NOISE + NOISY * figures["ns a call, unfiltered"][call]
        assert best <= by_program["tree"]["median"] + allowance, call
