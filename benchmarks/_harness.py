"""What the compiler's benchmarks share: policies that people run, rivals built from C, spread, and the machine."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import pyseccomp as ps

HERE = Path(__file__).parent
POLICIES = Path(os.environ.get("PYSECCOMP_POLICIES", HERE.parent.parent / "shared" / "policies"))
PLOTS = Path(os.environ.get("PYSECCOMP_PLOTS", "."))
CAPS = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP",
    "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
]  # fmt: skip
"""Docker's default capabilities."""
ONE = ("x86_64",)
THREE = ("x86_64", "x86", "x32")


def oci_policy(name: str, arches: Sequence[str] = THREE) -> ps.Policy:
    """A container engine's policy, with Docker's default capabilities, for these architectures."""
    profile: dict[str, Any] = json.loads((POLICIES / name).read_text())
    profile = profile.get("linux", {}).get("seccomp", profile)
    for key in ("archMap", "architectures"):
        profile.pop(key, None)
    profile["architectures"] = [f"SCMP_ARCH_{arch.upper()}" for arch in arches]
    return ps.Policy.from_oci(profile, caps=CAPS, arch="x86_64", kernel="6.18")


def firecracker_policy(thread: str) -> ps.Policy:
    """The policy of one of Firecracker's threads. libseccomp has no 32-bit comparisons: a masked one does the same."""
    filters = json.loads((POLICIES / "firecracker-x86_64.json").read_text())[thread]
    policy = ps.Policy(ps.TRAP, "x86_64")
    for rule in filters["filter"]:
        conditions = []
        for arg in rule.get("args", []):
            low = 0xFFFFFFFF if arg["type"] == "dword" else 0xFFFFFFFFFFFFFFFF
            op = arg["op"]
            mask = op["masked_eq"] if isinstance(op, dict) else low
            if not isinstance(op, dict) and (op != "eq" or low > 0xFFFFFFFF):
                conditions.append(ps.Arg(arg["index"], ps.actions.Op[op.upper()], arg["val"]))
            else:
                conditions.append(ps.Arg(arg["index"], ps.MASKED_EQ, mask, arg["val"] & mask))
        policy.add(ps.ALLOW, rule["syscall"], *conditions)
    return policy


def rules_text(policy: ps.Policy) -> str:
    """The policy for compile_rivals.c and libseccomp_binding.py."""
    lines = [f"default {int(policy.default)}", f"badarch {int(policy.bad_arch)}"]
    lines += [f"arch {arch.value}" for arch in policy.arches]
    for rule in policy.rules:
        terms = [term for condition in rule.conditions for term in condition.terms]
        comparisons = [f"{arg} {op} {a} {b}" for _, arg, op, _, a, b in terms]
        lines.append(" ".join([f"rule {int(rule.action)} {rule.syscall} {len(terms)}", *comparisons]))
    return "\n".join(lines) + "\n"


def build(source: str, out: Path, *libraries: str, core: bool = False) -> Path:
    """Compile a C program of this folder, with libpsc if it needs the core; skips without the rival's headers."""
    csrc = HERE.parent / "csrc"
    if "-lseccomp" in libraries and not Path("/usr/include/seccomp.h").exists():
        pytest.skip("material lacks libseccomp-dev, the rival")
    command = ["cc", "-O2", "-o", str(out), str(HERE / source)]
    if core:
        subprocess.run(["make", "-s", "-C", str(csrc), f"BUILD={out.parent}/psc"], check=True)
        command += [f"-I{csrc}", f"{out.parent}/psc/libpsc.a"]
    subprocess.run([*command, *libraries], check=True)
    return out


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"q1": round(low, 3), "median": round(middle, 3), "q3": round(high, 3)}


def ratios(mine: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """How many times as much, pair by pair of the same round."""
    return spread([a / b for a, b in zip(mine, other, strict=True)])


def machine() -> dict[str, str]:
    """Where the figures were taken."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?")
    return {"kernel": platform.release(), "cpus": str(os.cpu_count()), "cpu": model, "python": platform.python_version()}


def report(benchmark: Any, name: str, figures: Mapping[str, Any]) -> None:
    """Keep the figures with the benchmark's own, and print them (-s)."""
    benchmark.extra_info.update({name: figures, "machine": machine()})
    print(f"\n{name}: {json.dumps(figures, indent=1)}")


def instructions(command: Sequence[str | Path]) -> int | None:
    """How many machine instructions a command executes, by valgrind, which is exact; None where it is not installed."""
    if shutil.which("valgrind") is None:
        return None
    said = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *map(str, command)],
        check=True, capture_output=True, text=True,
    ).stderr  # fmt: skip
    return int(said.split("Collected :")[1].split()[0])


def bars(path: Path, title: str, unit: str, values: Mapping[str, float]) -> None:
    """Draw one figure of each emitter, ours first, as SVG; says so if matplotlib is missing (extra 'bench')."""
    try:
        import matplotlib
    except ImportError:
        print(f"{path.name} was not drawn: matplotlib is not installed", file=sys.stderr)
        return
    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 0.45 * len(values) + 1.2))
    drawn = axes.barh(list(values), list(values.values()))
    axes.bar_label(drawn, fmt="%.4g", padding=3)
    axes.invert_yaxis()
    axes.set(title=title, xlabel=unit)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
