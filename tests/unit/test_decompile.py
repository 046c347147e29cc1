"""Programs back to rules: proved equivalent, or told why there are none; any program in bounded time."""

import json
import os
import random
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

import pyseccomp as ps
from pyseccomp.decompile import decompile

POLICIES = Path(os.environ.get("PYSECCOMP_POLICIES", Path(__file__).parents[3] / "shared" / "policies"))
DRIVER = Path(__file__).with_name("libseccomp_driver.py")
PYTHON = "/usr/bin/python3"


def exactly(program):
    """Decompile, and prove what the result says of itself."""
    found = decompile(program)
    assert found.policy is not None, found.why
    assert ps.equivalent(found.policy, program)
    return found


def sources():
    for name, thread in [
        ("docker-default.json", None), ("podman-containers-common.json", None), ("oci-spec-example.json", None),
        *[("firecracker-x86_64.json", thread) for thread in ("vmm", "api", "vcpu")],
    ]:  # fmt: skip
        yield pytest.param(name, thread, id=f"{name} {thread or ''}")


@pytest.mark.parametrize("mode", ["size", "depth"])
@pytest.mark.parametrize(("name", "thread"), list(sources()))
def test_the_engines_policies(name, thread, mode):
    path = POLICIES / name
    if not path.exists():
        pytest.skip(f"material lacks {name} (PYSECCOMP_POLICIES)")
    policy = ps.load(path, thread=thread)
    found = exactly(policy.compile(optimize=mode))
    assert found.policy.default == policy.default
    assert "all others:" in found.text


@pytest.mark.parametrize("seed", range(8))
def test_what_libseccomp_compiled(seed):
    if not Path(PYTHON).exists() or subprocess.run([PYTHON, "-c", "import seccomp"], capture_output=True).returncode:
        pytest.skip("material lacks python3-seccomp, the rival")
    rng = random.Random(seed)
    rules = [
        (rng.choice([0x50001, 0x7FC00000, 0x30000]), call, [(i, rng.choice([1, 2, 3, 4, 5, 6, 7]), *_values(rng)) for i in rng.sample(range(6), rng.randint(0, 2))])
        for call in rng.sample(["read", "openat", "ioctl", "prctl", "clone", "kill"], 4)
    ]
    job = {"default": 0x7FFF0000, "arches": ["X86_64", *(["X86"] if seed % 2 else [])], "rules": rules}
    done = subprocess.run([PYTHON, DRIVER], input=json.dumps(job), capture_output=True, text=True, check=True)
    exactly(ps.Program(bytes.fromhex(json.loads(done.stdout)["program"])))


def _values(rng):
    mask = rng.choice([0xFF, 0xFFFF0000, (1 << 64) - 1])
    return mask, rng.choice([0, 1, 0x10, 1 << 33]) & mask


def bpf(*insns):
    return ps.Program(b"".join(struct.pack("=HBBI", *insn) for insn in insns))


def test_by_hand():
    found = exactly(
        bpf(
            (0x20, 0, 0, 4), (0x15, 1, 0, 0xC000003E), (0x06, 0, 0, 0), (0x20, 0, 0, 0), (0x35, 4, 0, 0x40000000),
            (0x15, 0, 4, 257), (0x20, 0, 0, 32), (0x45, 0, 2, 3), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0), (0x06, 0, 0, 0x7FFF0000),
        )
    )  # fmt: skip
    assert found.policy.default == ps.ALLOW
    decide = found.policy.compile().simulate
    assert decide("openat", (0, 0, 1), "x86_64").action == ps.ERRNO(1)
    assert decide("openat", (0, 0, 4), "x86_64").action == ps.ALLOW
    assert "openat:\n    if flags & O_ACCMODE:\n      ERRNO(1) EPERM\n    else:\n      ALLOW" in found.text


@pytest.mark.parametrize(
    ("insns", "why", "text"),
    [
        ([(0x20, 0, 0, 16), (0x04, 0, 0, 1), (0x15, 0, 1, 5), (0x06, 0, 0, 0), (0x06, 0, 0, 0x7FFF0000)], "calculates with an argument", "add"),
        ([(0x20, 0, 0, 8), (0x15, 0, 1, 5), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)], "unknown architectures", "ip == 5"),
        ([(0x20, 0, 0, 0), (0x15, 0, 1, 5), (0x06, 0, 0, 0), (0x06, 0, 0, 0x7FFF0000)], "unknown architectures", "other architectures"),
        ([(0x20, 0, 0, 16), (0x16, 0, 0, 0)], "answers with an argument", "ret"),
        ([(0x06, 0, 0, 0x7FFF0000)], "does not look at the architecture", "everything"),
        ([(0x20, 0, 0, 4), (0x15, 0, 1, 0x12345), (0x06, 0, 0, 0), (0x06, 0, 0, 0x7FFF0000)], "rules do not", "0x12345"),
    ],
)
def test_what_has_no_rules_is_told_and_shown(insns, why, text):
    found = decompile(bpf(*insns))
    assert not found.exact
    assert why in found.why
    assert text in found.text


@st.composite
def programs(draw):
    """Return any valid program: jumps forward, loads of data and memory, arithmetic."""
    size = draw(st.integers(2, 24))
    insns = []
    for at in range(size - 1):
        left = size - 2 - at
        kind = draw(st.sampled_from(["ld", "ld", "jmp", "jmp", "jmp", "alu", "ret", "st", "mem", "misc"]))
        if kind == "ld":
            insns.append((0x20, 0, 0, draw(st.sampled_from([0, 4, 8, 16, 20, 24, 28]))))
        elif kind == "jmp":
            op, x = draw(st.sampled_from([0x05, 0x15, 0x25, 0x35, 0x45])), draw(st.booleans()) and draw(st.booleans())
            jt, jf = draw(st.integers(0, left)), draw(st.integers(0, left))
            k = draw(st.sampled_from([0, 1, 5, 59, 257, 0xC000003E, 0x40000003, 0x40000000, 0xFFFFFFFF]))
            insns.append((0x05, 0, 0, jt) if op == 0x05 else (op | (8 if x else 0), jt, jf, k))
        elif kind == "alu":
            insns.append((0x04 | draw(st.sampled_from([0, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80, 0xA0])), 0, 0, draw(st.integers(1, 31))))
        elif kind == "ret":
            insns.append((0x06, 0, 0, draw(st.sampled_from([0, 0x7FFF0000, 0x50001, 0x7FC00000]))))
        elif kind == "st":
            insns.append((draw(st.sampled_from([0x02, 0x03])), 0, 0, 0))
        elif kind == "mem":
            insns.append((draw(st.sampled_from([0x00, 0x01])), 0, 0, draw(st.integers(0, 300))))
        else:
            insns.append((draw(st.sampled_from([0x07, 0x87])), 0, 0, 0))
    return [*insns, (0x06, 0, 0, draw(st.sampled_from([0, 0x7FFF0000])))]


@settings(max_examples=600, deadline=None)
@given(programs())
def test_any_program_is_decompiled_or_told_why_not(insns):
    try:
        program = bpf(*insns)
    except ps.ProgramError:
        return
    found = decompile(program)
    assert found.text
    if found.exact:
        assert ps.equivalent(found.policy, program)
    else:
        assert found.why


def test_time_is_bounded():
    """A program of many independent comparisons has more paths than atoms in the world."""
    insns = []
    for i in range(2000):
        insns += [(0x20, 0, 0, 16 + i % 12 * 4), (0x15, 0, 0, i)]
    found = decompile(bpf(*insns, (0x06, 0, 0, 0x7FFF0000)))
    assert found.text


@pytest.mark.parametrize("high", [0, 4])
@pytest.mark.parametrize("op", [0x25, 0x35])
def test_masked_words_that_are_greater_than_something_become_rules(op, high):
    """The compiler itself says ``(x & 7) == 7`` so; there was no rule form of it."""
    for mask in (3, 7, 0xF0, 0x101, 0x7E020000):
        for value in {1, mask // 3, mask - 1, mask}:
            head = [(0x20, 0, 0, 4), (0x15, 1, 0, 0xC000003E), (6, 0, 0, 0x80000000), (0x20, 0, 0, 0), (0x15, 0, 4, 0)]
            code = [*head, (0x20, 0, 0, 16 + high), (0x54, 0, 0, mask), (op, 0, 1, value), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)]
            program = ps.Program(b"".join(struct.pack("=HBBI", *one) for one in code))
            found = ps.decompile(program)
            assert found.exact, found.why
            assert ps.equivalent(found.policy, program)
