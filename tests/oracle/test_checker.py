"""The checker takes exactly the programs that this kernel takes."""

from __future__ import annotations

import os
import random
import struct

from harness import in_child
from oracle.reference import random_case
from oracle.test_oracle import no_new_privs, seccomp

import pyseccomp as ps
from pyseccomp.errors import ProgramError

ALLOW = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
LD_NR = struct.pack("=HBBI", 0x20, 0, 0, 0)
NEW_LISTENER = 1 << 3
EINVAL, EBUSY = 22, 16
CODES = [
    *range(0x00, 0x100),
    0x20, 0x20, 0x80, 0x81, 0x00, 0x01, 0x60, 0x61, 0x02, 0x03, 0x04, 0x0C, 0x14, 0x1C, 0x24, 0x2C, 0x34, 0x3C, 0x44, 0x4C, 0x54, 0x5C,
    0x64, 0x6C, 0x74, 0x7C, 0x84, 0xA4, 0xAC, 0x94, 0x9C, 0x05, 0x15, 0x1D, 0x25, 0x2D, 0x35, 0x3D, 0x45, 0x4D, 0x06, 0x16, 0x07, 0x87,
    0x106, 0x8006, 0x28, 0x30, 0xB1,
]  # fmt: skip


def insn(rng: random.Random, left: int) -> bytes:
    k = rng.choice([0, 1, 4, 15, 16, 31, 32, 60, 63, 64, 68, 0x7FFF0000, 0xFFFFFFFF, rng.getrandbits(32), rng.randrange(left + 2)])
    jump = [0, 1, left, max(left - 1, 0), 255, rng.randrange(left + 2)]
    return struct.pack("=HBBI", rng.choice(CODES), rng.choice(jump) & 255, rng.choice(jump) & 255, k)


def random_program(rng: random.Random, seeds: list[bytes]) -> bytes:
    kind = rng.random()
    if kind < 0.5:  # random instructions of which most are good
        length = rng.randrange(1, 8)
        body = [insn(rng, length - i) for i in range(length)]
        return b"".join(body) + (ALLOW if rng.random() < 0.9 else b"")
    program = bytearray(rng.choice(seeds))
    for _ in range(rng.choice([0, 1, 1, 2])):
        at = rng.randrange(len(program) // 8)
        if kind < 0.7:
            program[at * 8 : at * 8 + 8] = insn(rng, len(program) // 8 - at - 1)
        else:
            program[at * 8 + rng.randrange(8)] ^= 1 << rng.randrange(8)
    return bytes(program)


def scratch_program(rng: random.Random) -> bytes:
    """Stores, loads and jumps over them: what the check of scratch memory is about."""
    length = rng.randrange(2, 9)
    body = []
    for left in range(length, 0, -1):
        code, k = rng.choice([(0x02, 0), (0x03, 1), (0x60, 0), (0x61, 1), (0x15, 0), (0x05, rng.randrange(left + 1)), (0x60, 1)])
        jt, jf = (rng.randrange(left + 1), rng.randrange(left + 1)) if code == 0x15 else (0, 0)
        body.append(struct.pack("=HBBI", code, jt, jf, k))
    return b"".join(body) + ALLOW


def programs() -> list[bytes]:
    rng = random.Random(1)
    seeds = [bytes(random_case(seed).policy.compile()) for seed in range(30)]
    found = [random_program(rng, seeds) for _ in range(4000)] + [scratch_program(rng) for _ in range(2000)]
    jumps = [struct.pack("=HBBI", code, jt, jf, k) for code in (0x05, 0x15) for jt in (0, 1) for jf in (0, 1) for k in (0, 1, 2)]
    return [*found, *(j + ALLOW for j in jumps), ALLOW * 4096, ALLOW * 4097, LD_NR, ALLOW + LD_NR, ALLOW * 2]


def ask_kernel(candidates: list[bytes]) -> list[bool]:
    """A task with a listener is refused a second one (EBUSY), but only after the program was checked (EINVAL)."""
    no_new_privs()
    listener = seccomp(1, NEW_LISTENER, ALLOW)
    assert listener >= 0
    verdicts = [-seccomp(1, NEW_LISTENER, program) for program in candidates]
    os.close(listener)
    assert set(verdicts) <= {EINVAL, EBUSY}, set(verdicts)
    return [verdict == EBUSY for verdict in verdicts]


def accepted(program: bytes) -> bool:
    try:
        ps.Program(program)
    except ProgramError:
        return False
    return True


def test_checker_takes_what_the_kernel_takes():
    candidates = programs()
    kernel = in_child(ask_kernel, candidates)
    ours = [accepted(program) for program in candidates]
    differ = [(p.hex(), k) for p, o, k in zip(candidates, ours, kernel, strict=True) if o != k]
    assert not differ, differ[:3]
    assert 1000 < sum(kernel) < len(candidates) - 1000
