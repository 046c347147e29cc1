"""Policies too large for one program: cut into a stack, which is proved to decide the same."""

from __future__ import annotations

import ctypes
import errno
import os
import random
from pathlib import Path

import pytest
from harness import in_child

import pyseccomp as ps

POLICIES = Path(os.environ.get("PYSECCOMP_POLICIES", Path(__file__).parents[3] / "shared" / "policies"))


def scattered(count: int) -> list[int]:
    return random.Random(5).sample(range(1 << 30), count)


def large(values: int = 60, default: int = ps.ALLOW, arches: object = "x86_64", per_call: int = 60) -> ps.Policy:
    """Many values of an argument for many calls: some ten thousand instructions."""
    rng = random.Random(7)
    policy = ps.Policy(default, arches)  # type: ignore[arg-type]
    for name in ps.syscalls.names("x86_64")[100 : 100 + per_call]:
        for value in rng.sample(range(100_000), values):
            policy.add(ps.ERRNO(value % 97 + 1), name, ps.Arg(1, ps.EQ, value << 16))
    return policy


def whole(policy: ps.Policy) -> list[ps.Policy]:
    """The policy's own meaning in pieces that fit: a policy for each call, its default allowed elsewhere."""
    pieces = []
    for call in dict.fromkeys(rule.syscall for rule in policy.rules):
        piece = ps.Policy(ps.ALLOW, policy.arches, bad_arch=ps.ALLOW)
        for rule in policy.rules:
            if rule.syscall == call:
                piece.add(rule.action, call, *rule.conditions)
        pieces.append(piece)
    return [*pieces, ps.Policy(ps.ALLOW, policy.arches)]


def test_a_policy_that_fits_is_one_program() -> None:
    policy = ps.Policy(ps.ALLOW)
    policy.add(ps.ERRNO(1), "mkdir")
    assert policy.split() == (policy.compile(),)


def test_a_policy_that_is_too_large_says_what_costs_most() -> None:
    policy = large()
    for value in scattered(2000):
        policy.add(ps.KILL_PROCESS, "ioctl", ps.Arg(1, ps.EQ, value))
    with pytest.raises(ps.PolicyTooLargeError, match=r"costliest calls.*: ioctl \(x86_64\) [0-9]{4}, .*split") as caught:
        policy.compile()
    assert caught.value.instructions > 4096


def test_a_stack_decides_what_the_policy_does() -> None:
    policy = large()
    stack = policy.split()
    assert len(stack) > 1 and all(len(program) <= 4096 for program in stack)
    assert ps.difference(stack, whole(policy)) is None


@pytest.mark.parametrize("default", [ps.ERRNO(38), ps.KILL_PROCESS, ps.NOTIFY, ps.LOG])
def test_only_the_last_program_decides_the_default(default: int) -> None:
    policy = large(default=default, arches=("x86_64", "x86", "x32"))
    stack = policy.split()
    rng = random.Random(3)
    for rule in rng.sample(policy.rules, 200):
        value = rule.conditions[0].terms[0][4] + rng.choice([0, 0, 1])
        for arch in ("x86_64", "x86", "x32"):
            answers = [p.simulate(rule.syscall, (0, value), arch=arch).action for p in stack] if known(rule.syscall, arch) else []
            wanted = rule.action if value == rule.conditions[0].terms[0][4] else default
            if answers:
                assert min(answers, key=lambda action: action.rank) == wanted
    for token in (0, 0xC00000B7):
        assert [p.simulate(0, arch="aarch64").action for p in stack][-1] == policy.bad_arch, token
    assert all(p.simulate("acct").action == ps.ALLOW for p in stack[:-1])
    assert stack[-1].simulate("acct").action == default


def known(name: str | int, arch: str) -> bool:
    return name in ps.syscalls.names(arch)


def test_what_is_notified_stays_in_the_last_program() -> None:
    policy = large()
    for name in ("mkdir", "rmdir"):
        policy.add(ps.NOTIFY, name)
    stack = policy.split()
    assert [program.notifies for program in stack] == [False] * (len(stack) - 1) + [True]


def test_what_cannot_be_split_is_refused() -> None:
    policy = ps.Policy(ps.ALLOW)
    for value in scattered(4200):
        policy.add(ps.ERRNO(1), "ioctl", ps.Arg(1, ps.EQ, value))
    with pytest.raises(ps.PolicyTooLargeError, match=r"cannot be split: ioctl \(x86_64\) alone needs [0-9]{4,}"):
        policy.split()
    notifying = ps.Policy(ps.ALLOW)
    for value in scattered(4200):
        notifying.add(ps.NOTIFY, "ioctl", ps.Arg(1, ps.EQ, value))
    with pytest.raises(ps.PolicyTooLargeError, match="one listener"):
        notifying.split()


def test_the_kernel_decides_by_a_stack_as_the_policy_says() -> None:
    policy = large(default=ps.ALLOW)
    denied = {rule.syscall: rule for rule in policy.rules}

    def probe() -> str:
        libc = ctypes.CDLL(None, use_errno=True)
        for program in policy.split():
            ps.Filter(program).attach()
        wrong = []
        for name, rule in denied.items():
            result = libc.syscall(ps.syscalls.resolve(str(name)), -1, ctypes.c_ulong(rule.conditions[0].terms[0][4]), 0, 0, 0, 0)
            if (result, ctypes.get_errno()) != (-1, rule.action.data):
                wrong.append((name, result, errno.errorcode.get(ctypes.get_errno())))
        return repr(wrong)

    assert in_child(probe) == "[]"
