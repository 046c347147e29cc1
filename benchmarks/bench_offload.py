"""What does a call cost that a responder's rule answers inside the program, beside the same call without a filter?

    python -m pytest -s benchmarks/bench_offload.py

Every round makes calls without a program and with the filter's, each in a fresh child, in turns. The rule looks at an
argument, so that the kernel cannot know the answer beforehand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyseccomp as ps

sys.path.insert(0, str(Path(__file__).parent))

import _harness as h

ROUNDS = int(os.environ.get("PYSECCOMP_BENCH_ROUNDS", "60"))
CALLS = 10_000
UNDER_TEST = {"getpgid(0): allowed by an argument": ("getpgid", 0), "getpgid(7): denied": ("getpgid", 7)}


def test_a_rule_inside_the_program_costs_at_most_a_call(benchmark: Any, tmp_path: Path) -> None:
    policy = ps.Policy()
    for name in ("getpgid", "openat", "mkdirat"):
        policy.add(ps.NOTIFY, name)
    r = ps.Responder(default=ps.allow()).on("getpgid", ps.deny(1)).on("getpgid", ps.allow(), ps.Arg(0, ps.EQ, 0, bits=32))
    r.on("openat", lambda n: ps.allow())
    with ps.Filter(policy, responder=r) as f:
        (tmp_path / "program").write_bytes(bytes(f.program))
    driver = h.build("enforce_rivals.c", tmp_path / "enforce_rivals")
    calls = [f"{ps.syscalls.resolve(name)}:{arg}" for name, arg in UNDER_TEST.values()]
    command = [str(driver), str(ROUNDS), str(CALLS), "none", str(tmp_path / "program"), "--", *calls]
    samples: list[dict[str, Any]] = benchmark.pedantic(
        lambda: json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout), rounds=1
    )
    bare, inside = ([s["call_ns"] for s in samples if s["program"] == at] for at in (0, 1))
    figures = {
        name: h.ratios([s[at] for s in inside], [s[0] for s in bare]) for at, name in enumerate(UNDER_TEST)
    }
    h.report(benchmark, "a rule inside the program : getpgid(0) without a filter", figures)
    for name, ratio in figures.items():
        assert ratio["median"] <= 2, name

