"""One meaning: reference == interpreter == kernel, for random policies and random calls."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import struct
import sys

import pytest
from harness import in_child
from oracle.reference import Case, random_calls, random_case

import pyseccomp as ps
from pyseccomp import _core

ENOSYS = 38
X86_64 = platform.machine() == "x86_64"


@pytest.mark.parametrize("block", range(10))
def test_interpreter_agrees_with_the_reference(block):
    for seed in range(block * 50, block * 50 + 50):
        case = random_case(seed)
        swapped = case.policy.arches[0].big_endian != (sys.byteorder == "big")
        for mode in ("size", "depth"):
            program = bytes(case.policy.compile(optimize=mode))
            for token, number, args in random_calls(case, seed, 150):
                nr = number - (1 << 32) if number >> 31 else number
                halves = [a >> 32 | (a & 0xFFFFFFFF) << 32 for a in args] if swapped else args
                word, _ = _core.run_program(program, nr, token, 0, halves)
                assert word == case.decide(token, number, args), f"seed {seed}, {mode}: {token:#x} {number:#x} {args}"


def seccomp(operation: int, flags: int, program: bytes) -> int:
    """The system call itself; the result or -errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(program, max(len(program), 1))
    fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    numbers = {"x86_64": 317, "aarch64": 277, "riscv64": 277, "s390x": 348, "ppc64le": 358}
    result = libc.syscall(ctypes.c_long(numbers[platform.machine()]), operation, flags, fprog)
    return -ctypes.get_errno() if result < 0 else result


def no_new_privs() -> None:
    assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0


class I386:
    """Makes calls of the i386 ABI from a 64-bit process: int $0x80 out of a page of its own."""

    CODE = bytes.fromhex("535541544989fc 418b0424 418b5c2404 418b4c2408 418b54240c 418b742410 418b7c2414 418b6c2418 cd80 415c5d5b c3".replace(" ", ""))

    def __init__(self) -> None:
        self.page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.page.write(self.CODE)
        self.call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(ctypes.addressof(ctypes.c_char.from_buffer(self.page)))

    def __call__(self, number: int, args: tuple[int, ...]) -> int:
        registers = (ctypes.c_uint32 * 7)(number, *(a & 0xFFFFFFFF for a in args))
        return int(self.call(ctypes.addressof(registers)))


def really_call(program: bytes, calls: list[tuple[int, int, tuple[int, ...]]]) -> list[int]:
    """Load the program into this process, then make the calls: 0 or -errno of each."""
    libc = ctypes.CDLL(None, use_errno=True)
    i386 = I386() if X86_64 else None
    longs = [(token, nr, tuple(ctypes.c_ulong(a) for a in args), args) for token, nr, args in calls]
    no_new_privs()
    assert seccomp(1, 0, program) == 0
    found = []
    for token, nr, args, plain in longs:
        if token == ps.Arch.X86.token:
            assert i386 is not None
            result = i386(nr, plain)
            found.append(result if result < 0 else 0)
        else:
            found.append(-ctypes.get_errno() if libc.syscall(ctypes.c_long(nr), *args) == -1 else 0)
    return found


def harmless(seed: int) -> Case:
    """A policy about numbers that no kernel has, so that every call that gets through ends in ENOSYS."""
    native = ps.Arch.native()
    arches = [(native,), (native, ps.Arch.X86, ps.Arch.X32)] if X86_64 else [(native,)]
    answers = [ps.ALLOW, ps.ERRNO(1), ps.ERRNO(2), ps.ERRNO(3), ps.ERRNO(4095), ps.LOG, ps.NOTIFY, ps.TRACE(5)]
    donor = random_case(seed, arches=arches, actions=answers)
    policy = ps.Policy(ps.ALLOW, donor.policy.arches, bad_arch=ps.ERRNO(99), priority=donor.policy.priority)
    case = Case(policy, [], [2000], donor.values)
    for (action, numbers, holds), rule in zip(donor.rules, donor.policy.rules, strict=True):
        if not numbers:
            continue  # a call that is made through a multiplexer only
        arch, number = next(iter(numbers.items()))
        number = 2000 + number % 200
        policy.add(action, number, *rule.conditions, arch=arch)
        number |= 0x40000000 if arch is ps.Arch.X32 else 0
        case.rules.append((action, {arch: number}, holds))
        case.numbers += [number, number + 1]
    return case


@pytest.mark.parametrize("seed", range(40))
def test_kernel_agrees_with_the_reference(seed):
    case = harmless(seed)
    tokens = {arch.token for arch in case.policy.arches}
    calls = [c for c in random_calls(case, seed, 300) if c[0] in tokens and 2000 <= c[1] & 0xFFFFFFF < 2300]
    calls = [(t, n, tuple(a & 0xFFFFFFFF for a in args) if t == ps.Arch.X86.token else args) for t, n, args in calls]
    assert len(calls) > 100
    expected = []
    for token, nr, args in calls:
        action = case.decide(token, nr, args)
        expected.append(-action.data if action.name == "ERRNO" else -ENOSYS)
    assert in_child(really_call, bytes(case.policy.compile(optimize=("size", "depth")[seed % 2])), calls) == expected


def call_names(program: bytes, numbers: list[int]) -> list[int]:
    return really_call(program, [(ps.Arch.native().token, n, (0,) * 6) for n in numbers])


def test_kernel_agrees_on_calls_by_name():
    policy = ps.Policy()
    names = ["getppid", "getuid", "getgid", "sched_yield", "geteuid", "getpgid"]
    for at, name in enumerate(names[:-1]):
        policy.add(ps.ERRNO(at + 1), name)
    policy.add(ps.ERRNO(77), "getpgid", ps.Arg(0, ps.NE, 0))
    found = in_child(call_names, bytes(policy.compile()), [ps.syscalls.resolve(n) for n in names])
    assert found == [-1, -2, -3, -4, -5, 0]


def make_call_and_die(program: bytes) -> None:
    no_new_privs()
    assert seccomp(1, 0, program) == 0
    os.getppid()


@pytest.mark.parametrize("action", [ps.KILL_PROCESS, ps.KILL_THREAD, ps.TRAP])
def test_actions_that_kill_do(action):
    policy = ps.Policy()
    policy.add(action, "getppid")
    in_child(make_call_and_die, bytes(policy.compile()), dies_of=31)
