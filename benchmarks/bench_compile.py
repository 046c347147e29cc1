"""How long does it take to make a program of rules, and how good is it, beside libseccomp?

    python -m pytest -s benchmarks/bench_compile.py

The rivals are Debian's libseccomp, linear and as a binary tree (what runc asks for), in C and by its Python binding; every
round takes all of them in turns. Names are resolved before. In Python each does its work twice in a row: the first time the
processor's caches hold what the others left, the second time its own. The mixes of calls are recorded here, with strace,
from real programs under a short load (git, gcc, Python; redis-server where it is installed). Plots go to PYSECCOMP_PLOTS
(the working directory).
Needs libseccomp-dev python3-seccomp strace, and for instruction counts valgrind; redis-server is optional.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import _harness as h

import pyseccomp as ps

ROUNDS = int(os.environ.get("PYSECCOMP_BENCH_ROUNDS", "40"))
SHAPES = {"x86_64": h.ONE, "3 ABIs": h.THREE}
EMITTERS = ("size", "depth", "linear", "tree")


@pytest.fixture(scope="session")
def compile_rivals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C program that builds rules with all emitters in turns."""
    return h.build("compile_rivals.c", tmp_path_factory.mktemp("c") / "compile_rivals", "-lseccomp", core=True)


def rivals(program: Path, policy: ps.Policy, folder: Path, rounds: int = ROUNDS) -> dict[str, Any]:
    """What compile_rivals.c measured; the programs are in folder."""
    (folder / "rules").write_text(h.rules_text(policy))
    command = [str(program), str(folder / "rules"), str(rounds), str(folder / "program")]
    said: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return said


@pytest.mark.parametrize("shape", SHAPES)
def test_rules_to_bytes_in_c(benchmark: Any, compile_rivals: Path, shape: str, tmp_path: Path) -> None:
    policy = h.oci_policy("docker-default.json", SHAPES[shape])
    said = rivals(compile_rivals, policy, tmp_path)
    rules = tmp_path / "rules"
    counted = {emitter: h.instructions([compile_rivals, rules, "once", emitter]) for emitter in ("size", "depth")}
    benchmark.pedantic(policy.compile, rounds=ROUNDS)
    figures = {
        "rules": said["rules"],
        "rules libseccomp does not know, left out of all": said["unknown"],
        "us": {emitter: h.spread([ns / 1000 for ns in said[emitter]["ns"]]) for emitter in EMITTERS},
        "linear : ours": h.ratios(said["linear"]["ns"], said["size"]["ns"]),
        "tree : ours": h.ratios(said["tree"]["ns"], said["size"]["ns"]),
        "machine instructions, start of the process included": counted,
        "program": {emitter: said[emitter]["instructions"] for emitter in EMITTERS},
    }
    h.report(benchmark, f"docker-default, {shape}, rules to bytes in C", figures)
    h.bars(h.PLOTS / f"compile-{len(policy.arches)}.svg", f"Docker's default, {shape}: rules to bytes", "µs",
           {emitter: figures["us"][emitter]["median"] for emitter in EMITTERS})  # fmt: skip
    if shape == "3 ABIs":
        assert figures["linear : ours"]["median"] >= 100


@pytest.mark.parametrize("start_from", ["rules", "JSON file"])
def test_policy_and_adds_and_compile_in_python(benchmark: Any, tmp_path: Path, start_from: str) -> None:
    if subprocess.run(["/usr/bin/python3", "-c", "import seccomp"], capture_output=True, check=False).returncode:
        pytest.skip("material lacks python3-seccomp, the rival")
    policy = h.oci_policy("docker-default.json")
    (tmp_path / "rules").write_text(h.rules_text(policy))
    command = ["/usr/bin/python3", str(h.HERE / "libseccomp_binding.py"), str(tmp_path / "rules")]
    times: dict[str, list[float]] = {name: [] for name in ("ours", "linear", "tree")}
    rules = policy.rules
    profile = h.POLICIES / "docker-default.json"
    expected = bytes(policy.compile())

    def from_file() -> bytes:
        return bytes(ps.Policy.from_oci(profile, h.CAPS, "x86_64", kernel="6.18").compile())

    def from_rules() -> bytes:
        made = ps.Policy(policy.default, policy.arches, bad_arch=policy.bad_arch, low_words=True)
        for rule in rules:
            made.add(rule.action, rule.syscall, *rule.conditions)
        return bytes(made.compile())

    build = from_rules if start_from == "rules" else from_file

    def ours() -> None:
        for _ in range(2):
            start = time.perf_counter_ns()
            made = build()
            times["ours"].append((time.perf_counter_ns() - start) / 1000)
            assert made == expected

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as binding:
        assert binding.stdin and binding.stdout

        def theirs() -> None:
            for kind in ("tree", "tree", "linear", "linear"):
                print(kind, file=binding.stdin, flush=True)
                times[kind].append(int(binding.stdout.readline().split()[0]) / 1000)

        benchmark.pedantic(ours, setup=theirs, rounds=ROUNDS)
        binding.stdin.close()
    figures: dict[str, Any] = {"rules": len(rules)}
    for which, at in (("right after another's work", 0), ("once more", 1)):
        picked = {name: found[at::2] for name, found in times.items()}
        figures[which] = {"us": {name: h.spread(found) for name, found in picked.items()}}
        figures[which] |= {f"ours : {name}": h.ratios(picked["ours"], picked[name]) for name in ("linear", "tree")}
    h.report(benchmark, f"docker-default, 3 ABIs, Python, from {start_from}", figures)
    assert figures["right after another's work"]["ours : linear"]["median"] <= 0.1


def test_adding_rules_is_linear(benchmark: Any) -> None:
    per_rule: dict[int, list[float]] = {400: [], 4_000: [], 40_000: []}

    def add(count: int) -> ps.Policy:
        policy = ps.Policy(ps.ALLOW, "x86_64")
        start = time.perf_counter_ns()
        for nr in range(count):
            policy.add(ps.ERRNO(1), nr)
        per_rule[count].append((time.perf_counter_ns() - start) / count)
        return policy

    for _ in range(8):
        for count in per_rule:
            add(count)
    benchmark.pedantic(lambda: add(400), rounds=ROUNDS)
    h.report(benchmark, "ns to add a rule, by their number", {str(n): h.spread(times) for n, times in per_rule.items()})


POLICIES = {
    "docker-default": lambda: h.oci_policy("docker-default.json"),
    "docker-default, x86_64": lambda: h.oci_policy("docker-default.json", h.ONE),
    "podman": lambda: h.oci_policy("podman-containers-common.json"),
    "podman, x86_64": lambda: h.oci_policy("podman-containers-common.json", h.ONE),
    "firecracker vmm": lambda: h.firecracker_policy("vmm"),
    "firecracker api": lambda: h.firecracker_policy("api"),
    "firecracker vcpu": lambda: h.firecracker_policy("vcpu"),
    "oci example": lambda: h.oci_policy("oci-spec-example.json"),
    "oci example, x86_64": lambda: h.oci_policy("oci-spec-example.json", h.ONE),
}


@pytest.mark.parametrize("name", POLICIES)
def test_program_size(benchmark: Any, compile_rivals: Path, name: str, tmp_path: Path) -> None:
    policy = POLICIES[name]()
    said = rivals(compile_rivals, policy, tmp_path, rounds=4)
    benchmark.pedantic(policy.compile, rounds=10)
    sizes = {emitter: said[emitter]["instructions"] for emitter in EMITTERS}
    h.report(benchmark, f"{name}, instructions", sizes | {"ours : tree": round(sizes["size"] / sizes["tree"], 3)})


# ------------------------------------------------------------------ the mixes


def traced(folder: Path, *command: str, **options: Any) -> Counter[str]:
    """How often a command, with all its children, makes each call."""
    counts = folder / "counts"
    subprocess.run(
        ["strace", "-f", "-c", "-U", "calls,name", "-o", str(counts), *command],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options,
    )  # fmt: skip
    found: Counter[str] = Counter()
    for line in counts.read_text().splitlines():
        words = line.split()
        if len(words) == 2 and words[0].isdigit() and words[1] != "total":
            found[words[1]] += int(words[0])
    return found


def record_git(folder: Path) -> Counter[str]:
    script = (
        "git init -q r && cd r && git config user.email a@b && git config user.name a && "
        "for i in $(seq 20); do seq $i 2000 >f$i; git add . ; git commit -qm $i; done; git log --stat; git gc -q; git status"
    )
    return traced(folder, "sh", "-c", script, cwd=folder, env={**os.environ, "HOME": str(folder)})


def record_gcc(folder: Path) -> Counter[str]:
    return traced(folder, "gcc", "-O2", "-c", "-o", str(folder / "o"), str(h.HERE / "compile_rivals.c"), f"-I{h.HERE.parent}/csrc")


def record_python(folder: Path) -> Counter[str]:
    script = (
        "import threading, urllib.request, http.server as s, json, asyncio, email\n"
        "class Q(s.SimpleHTTPRequestHandler):\n log_message = lambda *a: None\n"
        "d = s.ThreadingHTTPServer(('127.0.0.1', 0), Q)\n"
        "threading.Thread(target=d.serve_forever, daemon=True).start()\n"
        "for i in range(200): urllib.request.urlopen(f'http://127.0.0.1:{d.server_port}/').read()\n"
    )
    return traced(folder, sys.executable, "-c", script, cwd=folder)


def record_redis(folder: Path) -> Counter[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    load = f"(until redis-cli -p {port} ping; do :; done; redis-benchmark -p {port} -n 4000 -q; redis-cli -p {port} shutdown nosave) >/dev/null 2>&1 &"
    return traced(folder, "sh", "-c", f"{load} exec redis-server --port {port} --save ''", cwd=folder)


RECORDERS = {"git": record_git, "gcc": record_gcc, "python": record_python, "redis": record_redis}


def executed(path: Path, mix: Counter[str]) -> float:
    """Mean executed instructions of a program over a mix (arguments are 0; the kernel's cache is left out)."""
    program = ps.Program.from_bytes(path.read_bytes())
    return sum(program.simulate(call, arch="x86_64").executed * count for call, count in mix.items()) / mix.total()


def test_instructions_executed_by_real_programs(benchmark: Any, compile_rivals: Path, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("material lacks strace, which records the mixes")
    mixes = {}
    for name, record in RECORDERS.items():
        if name == "redis" and shutil.which("redis-server") is None:
            print("redis-server is not installed: its mix is left out", file=sys.stderr)
            continue
        (tmp_path / name).mkdir()
        found = record(tmp_path / name)
        mixes[name] = Counter({call: n for call, n in found.items() if call in ps.syscalls.names("x86_64")})
    everything: Counter[str] = Counter()
    for mix in mixes.values():
        everything.update({call: 1_000_000 * n // mix.total() for call, n in mix.items()})
    mixes["all, of equal weight"] = everything
    policy = h.oci_policy("docker-default.json")
    rivals(compile_rivals, policy, tmp_path, rounds=4)
    weighted = tmp_path / "program.profile"
    weighted.write_bytes(bytes(policy.compile(profile=everything)))
    benchmark.pedantic(lambda: policy.compile(profile=everything), rounds=10)
    means: dict[str, dict[str, float]] = {}
    for name, mix in mixes.items():
        means[name] = {e: round(executed(tmp_path / f"program.{e}", mix), 2) for e in ("profile", *EMITTERS)}
    means["calls recorded"] = {name: float(mix.total()) for name, mix in mixes.items()}
    h.report(benchmark, "docker-default, 3 ABIs, executed instructions a call", means)
    h.bars(h.PLOTS / "executed.svg", "Docker's default, 3 ABIs: executed instructions a call", "git, gcc, Python, redis",
           means["all, of equal weight"])  # fmt: skip
    assert means["all, of equal weight"]["profile"] <= 7.5
