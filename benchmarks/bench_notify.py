"""What does a notified call cost under each loop, beside the barest loop in C (floor.c)?

    python -m pytest -s benchmarks/bench_notify.py          the promises, one target
    python benchmarks/bench_notify.py --compare [FOLDER]    everything, as a table, JSON and SVG in FOLDER (default: .)

Every measurement is a pair: the floor with SYNC_WAKE_UP and the loop in question, on fresh targets, in turns; ratios
are medians over the pairs, with quartiles. PYSECCOMP_PAIRS (25) and PYSECCOMP_ROUND_MS (25) scale a run, and
PYSECCOMP_SWITCH_INTERVAL is sys.setswitchinterval()'s for the loops in Python. What is in FOLDER/notify.json is not measured again: a comparison, which takes some ten minutes, may be broken off and go on later.
PyPI's rivals are installed into a temporary folder with pip; what is missing is listed as missing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
PAIRS = max(15, int(os.environ.get("PYSECCOMP_PAIRS", "25")))
ROUND_NS = int(os.environ.get("PYSECCOMP_ROUND_MS", "25")) * 1_000_000
TARGETS = (1, 4, 16, 64)
DEADLINE = 60.0
RIVALS = ("seccompy==0.2.0", "pyseccomp==0.1.2")
OURS = ("table", "one", "two", "string", "callback", "loop", "asyncio", "uvloop")
THEIRS = ("libseccomp", "ctypes", "seccompy")

PROMISES = {
    ("table", "idle"): 1.03,
    ("table", "busy"): 1.06,
    ("string", "idle"): 1.40,
    ("callback", "idle"): 1.06,
    ("loop", "idle"): 1.12,
    ("asyncio", "idle"): 1.40,
}
"""Cost of a call to that of the floor, one target, at most."""


class Missing(Exception):
    """A loop cannot run here; the text says what it lacks."""


def build_floor(folder: Path) -> Path:
    """Compile floor.c."""
    out = folder / "floor"
    subprocess.run(["cc", "-O2", "-o", str(out), str(HERE / "floor.c")], check=True)
    return out


def install_rivals(folder: Path) -> Path | None:
    """Install PyPI's rivals where only they are; None where pip cannot."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *RIVALS]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=120)
    return folder if done.returncode == 0 else None


class Monitor:
    """A process that serves the listeners it is sent."""

    def __init__(self, command: list[str], environment: dict[str, str] | None = None, ready: bool = True) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(DEADLINE)
        with theirs:
            self.process = subprocess.Popen(command, stdin=theirs, stderr=subprocess.PIPE, text=True, env=environment)
        if ready and self.sock.recv(1) != b"r":
            _, err = self.process.communicate(timeout=DEADLINE)
            self.sock.close()
            raise Missing(err.strip().splitlines()[-1] if err.strip() else f"exit status {self.process.returncode}")

    def close(self) -> None:
        self.sock.close()
        self.process.kill()
        self.process.communicate()


def start(name: str, load: str, floor: Path, rivals: Path | None) -> Monitor:
    """Start a loop's process. Raises Missing."""
    if name == "floor":
        return Monitor([str(floor), "serve"], ready=False)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    python = sys.executable
    if name == "libseccomp":
        python = "/usr/bin/python3"
        if not Path(python).exists():
            raise Missing(f"no {python}, which Debian's python3-seccomp is for")
    elif name in THEIRS:
        if rivals is None:
            raise Missing("pip could not install it")
        environment["PYTHONPATH"] = str(rivals)
    else:
        environment["PYTHONPATH"] = str(HERE.parent)
    return Monitor([python, str(HERE / "_loops.py"), name, load], environment)


def one_round(monitor: Monitor, floor: Path, targets: int, calls: int, sync: bool) -> float:
    """Nanoseconds a call, with so many targets that make so many calls each."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [str(floor), "target", str(targets), str(calls), "sync" if sync else "plain"]
        with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, text=True) as target:
            try:
                ours.settimeout(DEADLINE)
                _, (listener,), _, _ = socket.recv_fds(ours, 1, 1)
                try:
                    socket.send_fds(monitor.sock, [b"L"], [listener])
                finally:
                    os.close(listener)
                ours.send(b"g")
                out, _ = target.communicate(timeout=DEADLINE)
                if target.returncode:
                    raise RuntimeError(f"targets failed with status {target.returncode}")
                if monitor.sock.recv(1) != b"d":
                    raise RuntimeError("the monitor ended")
            except BaseException:
                target.kill()
                raise
    return int(out) / (targets * calls)


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """One loop under one load with so many targets; nanoseconds and ratios to the floor with as many are (quartile, median,
    quartile)."""

    name: str
    sync: bool
    load: str
    targets: int
    pairs: int
    ns: tuple[float, float, float]
    ratio: tuple[float, float, float]
    to_one: tuple[float, float, float]
    """The ratio to the floor with one target."""


def quartiles(values: list[float], digits: int) -> tuple[float, float, float]:
    """Quartiles with the median between."""
    low, middle, high = statistics.quantiles(values, n=4)
    return round(low, digits), round(middle, digits), round(high, digits)


def calls_for(monitor: Monitor, floor: Path, targets: int, sync: bool) -> int:
    """How many calls each of the targets is to make for a round of ROUND_NS, or of four for several targets: their start is
    part of it, and what a loop learns of its load."""
    one_round(monitor, floor, targets, max(4, 64 // targets), sync)
    cost = one_round(monitor, floor, targets, max(4, 64 // targets), sync)
    length = ROUND_NS if targets == 1 else 4 * ROUND_NS
    if cost * 2000 < ROUND_NS:  # so few are mostly the start of the targets
        cost = one_round(monitor, floor, targets, 2000 // targets, sync)
    return max(2, min(20000, int(length / cost / targets)))


def measure(name: str, load: str, targets: int, floor: Path, rivals: Path | None, sync: bool = True) -> Result:
    """Measure one loop against the floor, in interleaved pairs. Raises Missing."""
    with ExitStack() as stack:
        monitor = start(name, load, floor, rivals)
        stack.callback(monitor.close)
        bare = start("floor", "idle", floor, rivals)
        stack.callback(bare.close)
        calls = calls_for(monitor, floor, targets, sync)
        bare_calls = calls_for(bare, floor, targets, True)
        one_calls = calls_for(bare, floor, 1, True)
        theirs: list[float] = []
        ratios: list[float] = []
        to_one: list[float] = []
        for pair in range(PAIRS):
            first = one_round(bare, floor, targets, bare_calls, True) if pair % 2 else None
            cost = one_round(monitor, floor, targets, calls, sync)
            base = first if first is not None else one_round(bare, floor, targets, bare_calls, True)
            theirs.append(cost)
            ratios.append(cost / base)
            to_one.append(cost / (base if targets == 1 else one_round(bare, floor, 1, one_calls, True)))
    return Result(name, sync, load, targets, PAIRS, quartiles(theirs, 0), quartiles(ratios, 3), quartiles(to_one, 3))


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
    return {
        "processor": model,
        "processors": os.cpu_count(),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


# -------------------------------------------------------------------- promises


@pytest.fixture(scope="session")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The floor's program."""
    return build_floor(tmp_path_factory.mktemp("floor"))


@pytest.mark.parametrize(("name", "load"), PROMISES)
def test_a_call_costs_at_most_what_is_promised(benchmark: Any, floor: Path, name: str, load: str) -> None:
    result = benchmark.pedantic(measure, args=(name, load, 1, floor, None), rounds=1)
    benchmark.extra_info.update(dataclasses.asdict(result), machine=machine())
    print(json.dumps(dataclasses.asdict(result)))
    assert result.ratio[1] <= PROMISES[name, load]


def test_many_targets_cost_less_where_threads_are_called_up(benchmark: Any, floor: Path) -> None:
    def both() -> list[Result]:
        return [measure("table", "idle", targets, floor, None) for targets in (16, 64)]

    few, many = benchmark.pedantic(both, rounds=1)
    for result in (few, many):
        print(json.dumps(dataclasses.asdict(result)))
    benchmark.extra_info.update(few=dataclasses.asdict(few), many=dataclasses.asdict(many), machine=machine())
    assert few.ratio[1] <= 0.80
    assert many.ratio[1] <= few.ratio[1] * 1.1


# ------------------------------------------------------------------ comparison


def plot(results: list[Result], path: Path) -> None:
    """Draw medians and quartiles, one target."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    chosen = [r for r in results if r.targets == 1]
    figure, axes = pyplot.subplots(figsize=(8, 0.35 * len(chosen) + 1.2))
    labels = [f"{r.name}{'' if r.sync else ' as shipped'}, {r.load}" for r in chosen]
    middle = [r.ratio[1] for r in chosen]
    spread = [[r.ratio[1] - r.ratio[0] for r in chosen], [r.ratio[2] - r.ratio[1] for r in chosen]]
    axes.barh(labels, middle, xerr=spread, color=["#36c" if r.name in OURS else "#999" for r in chosen])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set_xlabel("cost of a notified call, one target; the barest loop in C = 1")
    figure.tight_layout()
    figure.savefig(path)


def row(r: Result) -> str:
    """One line of the table."""
    how = "sync" if r.sync else "as shipped"
    ratio = f"{r.ratio[1]:8.3f}  [{r.ratio[0]:.3f}, {r.ratio[2]:.3f}]"
    return f"{r.load:5} {r.name:11} {how:11} {r.targets:3} targets {r.ns[1]:10.0f} ns  {ratio}  to one target {r.to_one[1]:8.3f}"


def cases() -> list[tuple[str, str, bool, int]]:
    """What is compared: load, loop, synchronous or as shipped, targets; one target first, then what the table does of many."""
    loops = [(name, True) for name in ("floor", *OURS, *THEIRS)] + [(name, False) for name in ("floor", *THEIRS)]
    all_cases = [
        (load, name, sync, targets)
        for load in ("idle", "busy")
        for name, sync in loops
        for targets in (TARGETS if load == "idle" or name in OURS else (1,) if name in THEIRS else ())
    ]
    return sorted(all_cases, key=lambda case: (case[3] > 1) + (case[3] > 1 and (case[0] == "busy" or case[1] not in OURS[:3])))


def recall(path: Path) -> list[Result]:
    """What a comparison that was broken off had measured."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text())["results"]
    return [Result(**{key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}) for row in rows]


def keep(path: Path, results: list[Result], **more: Any) -> None:
    """Write what is measured so far."""
    measured = [dataclasses.asdict(r) for r in results]
    path.write_text(json.dumps({"machine": machine(), "results": measured, **more}, indent=1))


def compare(folder: Path) -> None:
    """Measure all, print a table, write notify.json and notify.svg."""
    report = folder / "notify.json"
    results = recall(report)
    known = {(r.load, r.name, r.sync, r.targets): r for r in results}
    missing: dict[str, str] = {}
    print(json.dumps(machine()))
    with tempfile.TemporaryDirectory() as scratch:
        floor = build_floor(Path(scratch))
        rivals = install_rivals(Path(scratch) / "rivals")
        for case in cases():
            load, name, sync, targets = case
            if case not in known and name not in missing:
                try:
                    results.append(measure(name, load, targets, floor, rivals, sync))
                except Missing as error:
                    missing[name] = str(error)
                    continue
                known[case] = results[-1]
                keep(report, results)
            if case in known:
                print(row(known[case]), flush=True)
        turns = 20000
        pingpong = int(subprocess.run([floor, "pingpong", str(turns)], check=True, capture_output=True).stdout) / turns
    print(f"futex ping-pong, a turn and back: {pingpong:.0f} ns")
    for name, why in missing.items():
        print(f"MISSING {name}: {why}")
    keep(report, results, pingpong_ns=pingpong, missing=missing)
    plot(results, folder / "notify.svg")


if __name__ == "__main__":
    if sys.argv[1:2] != ["--compare"] or len(sys.argv) > 3:
        sys.exit(__doc__)
    compare(Path(sys.argv[2] if len(sys.argv) == 3 else "."))
