"""Compiler output proved equivalent to a compiler without any thought, over all inputs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from oracle.naive import compile_naively
from oracle.reference import random_value

import pyseccomp as ps
from pyseccomp.errors import ContradictionError

X86 = (ps.Arch.X86_64, ps.Arch.X32, ps.Arch.X86)
COUNT = int(os.environ.get("PYSECCOMP_PROOFS", "500"))
POLICIES = Path(os.environ.get("PYSECCOMP_POLICIES", Path(__file__).parents[3] / "shared" / "policies"))
CAPS = [
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP",
    "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
]  # fmt: skip
ALL_CAPS = [*CAPS, "CAP_SYS_ADMIN", "CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_SYSLOG", "CAP_SYS_TIME", "CAP_SYS_MODULE"]
MODES = ("size", "depth")


def random_policy(seed: int) -> ps.Policy:
    """Rules by name with plain comparisons; few enough that a linear program of them fits the kernel's limit."""
    rng = random.Random(seed)
    arches = rng.choice([X86[:1], X86[:2], X86, X86[1:], (ps.Arch.X86,), (ps.Arch.AARCH64, ps.Arch.ARM)])
    actions = rng.sample([ps.ALLOW, ps.ERRNO(1), ps.ERRNO(2), ps.TRAP, ps.LOG, ps.KILL_PROCESS, ps.NOTIFY, ps.TRACE(3)], 3)
    policy = ps.Policy(rng.choice(actions), arches, bad_arch=rng.choice([ps.KILL_PROCESS, ps.ERRNO(9)]))
    names = [name for name in ps.syscalls.names(arches[0])]
    start = rng.randrange(len(names) - 40)
    if ps.Arch.X86 in arches and rng.random() < 0.5:
        names[start : start + 6] = ["socket", "connect", "accept", "socketcall", "semop", "ipc"]
    for _ in range(rng.choice([3, 20, 60])):
        conditions = []
        for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
            op = rng.choice([op for op in ps.actions.Op if op is not ps.RANGE])
            a, b = random_value(rng, 64), random_value(rng, 64)
            conditions.append(ps.Arg(rng.randrange(3), op, a, b & a if op is ps.MASKED_EQ else 0))
        with contextlib.suppress(ContradictionError):
            policy.add(rng.choice(actions), names[start + rng.randrange(40)], *conditions)
    return policy


@pytest.mark.parametrize("block", range(10))
def test_random_policies_are_compiled_to_what_they_say(block):
    for seed in range(block * COUNT // 10, (block + 1) * COUNT // 10):
        policy = random_policy(seed)
        naive = compile_naively(policy)
        for mode in MODES:
            found = ps.difference(policy.compile(optimize=mode), naive)
            assert found is None, f"seed {seed}, {mode}: {found}"


def profile(name: str) -> dict[str, Any]:
    """A profile that people run. They are other projects' files, so they are not in this repository."""
    path = POLICIES / name
    if not path.exists():
        pytest.skip(f"material lacks {name}: PYSECCOMP_POLICIES can name a folder of container engines' policies")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def prove(policy: ps.Policy) -> None:
    policy.low_words = False  # the naive compiler knows 64-bit arguments only
    naive = compile_naively(policy)
    for options in ({}, {"optimize": "depth"}, {"profile": {"read": 1e6, "openat": 1e4, "futex": 1e5}}):
        assert ps.difference(policy.compile(**options), naive) is None


@pytest.mark.parametrize("caps", [(), CAPS, ALL_CAPS])
@pytest.mark.parametrize("name", ["docker-default.json", "podman-containers-common.json"])
def test_container_engines_profiles_are_compiled_to_what_they_say(name, caps):
    policy = ps.Policy.from_oci(profile(name), caps=caps, arch="x86_64", kernel="6.18")
    assert policy.arches == (ps.Arch.X86_64, ps.Arch.X86, ps.Arch.X32)
    prove(policy)


def test_specification_s_example_is_compiled_to_what_it_says():
    prove(ps.Policy.from_oci(profile("oci-spec-example.json"), arch="x86_64"))


@pytest.mark.parametrize("thread", ["vmm", "api", "vcpu"])
def test_firecracker_s_filters_are_compiled_to_what_they_say(thread):
    filters = profile("firecracker-x86_64.json")[thread]
    policy = ps.Policy(ps.TRAP, "x86_64")
    for rule in filters["filter"]:
        conditions = []
        for arg in rule.get("args", []):
            bits = 32 if arg["type"] == "dword" else 64
            if isinstance(arg["op"], dict):
                mask = arg["op"]["masked_eq"]
                conditions.append(ps.Arg(arg["index"], ps.MASKED_EQ, mask, arg["val"] & mask, bits))
            else:
                conditions.append(ps.Arg(arg["index"], ps.actions.Op[arg["op"].upper()], arg["val"], bits=bits))
        policy.add(ps.ALLOW, rule["syscall"], *conditions)
    prove(policy)


def cacheable(program: ps.Program) -> list[int]:
    """The numbers that the kernel finds to be always allowed when it loads a program (seccomp_is_const_allow)."""
    insns = list(struct.iter_unpack("=HBBI", bytes(program)))
    return [number for number in range(470) if always_allowed(insns, number)]


def always_allowed(insns: list[tuple[int, int, int, int]], number: int) -> bool:
    pc = accumulator = 0
    while True:
        code, jt, jf, k = insns[pc]
        pc += 1
        if code == 0x20 and k in (0, 4):
            accumulator = (number, ps.Arch.X86_64.token)[k // 4]
        elif code == 0x06:
            return k == 0x7FFF0000
        elif code == 0x05:
            pc += k
        elif code in (0x15, 0x25, 0x35, 0x45):
            met = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k, 0x45: accumulator & k != 0}
            pc += jt if met[code] else jf
        elif code == 0x54:
            accumulator &= k
        else:
            return False


@pytest.mark.parametrize("arches", [["SCMP_ARCH_X86_64"], ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]])
def test_docker_s_default_is_as_small_and_as_fast_as_promised(arches):
    json_profile = profile("docker-default.json") | {"archMap": None, "architectures": arches}
    policy = ps.Policy.from_oci(json_profile, caps=CAPS, arch="x86_64", kernel="6.18")
    small, shallow = policy.compile(), policy.compile(optimize="depth")
    assert len(small) <= (64 if len(arches) == 1 else 185)
    assert sum(shallow.simulate(nr, arch="x86_64").executed for nr in range(461)) / 461 <= 10.0
    weights = {"read": 400, "write": 200, "futex": 150, "newfstatat": 100, "openat": 80, "close": 80, "mmap": 60, "epoll_wait": 60}
    fast = policy.compile(profile=weights)
    executed = sum(fast.simulate(name, arch="x86_64").executed * count for name, count in weights.items())
    assert executed / sum(weights.values()) <= 7.5
    allowed = cacheable(small)
    assert len(allowed) == 306
    assert cacheable(shallow) == allowed and cacheable(fast) == allowed
