"""What a policy means, said the slow way, and random policies to say it about. Nothing here knows the compiler."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyseccomp as ps
from pyseccomp.errors import ContradictionError

Args = Sequence[int]
Predicate = Callable[[Args], bool]
X32 = 0x40000000


@dataclass
class Case:
    """A policy with its rules as (action, arch -> number or None, predicate), and values that may make a difference."""

    policy: ps.Policy
    rules: list[tuple[ps.Action, dict[ps.Arch, int], Predicate]]
    numbers: list[int]
    values: list[int]
    through: dict[int, tuple[dict[ps.Arch, tuple[int, int, int]], bool]] = field(default_factory=dict)
    """By rule: how its call is multiplexed, and whether its conditions may hold or not there (else they always do)."""

    def decide(self, token: int, nr: int, args: Args) -> ps.Action:
        """Answer one call by trying every rule."""
        arch = self._arch(token, nr)
        if arch is None:
            return self.policy.bad_arch
        certain, maybe = [], []
        for at, (action, numbers, holds) in enumerate(self.rules):
            through, unsure = self.through.get(at, ({}, False))
            muxed, mask, call = through.get(arch, (-1, 0, 0))
            if numbers.get(arch) == nr and holds(args):
                certain.append((at, action))
            elif muxed == nr and args[0] & mask == call:
                (maybe if unsure else certain).append((at, action))
        if self.policy.priority == "first":
            return self._first(certain, maybe)
        decided = self.policy.default
        if certain:
            strictest = min(action.rank for _, action in certain)
            decided = [action for _, action in certain if action.rank == strictest][-1]
        for _, action in reversed(maybe):
            decided = action if action.rank < decided.rank else decided
        return decided

    def _first(self, certain: list[tuple[int, ps.Action]], maybe: list[tuple[int, ps.Action]]) -> ps.Action:
        decided = self.policy.default
        for rule in sorted(certain + maybe, key=lambda rule: rule[0], reverse=True):
            if rule in certain or rule[1].rank < decided.rank:
                decided = rule[1]
        return decided

    def _arch(self, token: int, nr: int) -> ps.Arch | None:
        for arch in self.policy.arches:
            if arch.token != token:
                continue
            if token != ps.Arch.X86_64.token or nr == 0xFFFFFFFF:
                return arch
            if (arch is ps.Arch.X32) == (nr >= X32):
                return arch
        return None


def signed(value: int, bits: int) -> int:
    value %= 1 << bits
    return value - (1 << bits) if value >> (bits - 1) else value


def compare(index: int, op: ps.actions.Op, a: int, b: int, bits: int, is_signed: bool) -> Predicate:
    def holds(args: Args) -> bool:
        arg = args[index] % (1 << bits)
        x, y = a % (1 << bits), b % (1 << bits)
        if is_signed and op is not ps.MASKED_EQ:
            arg, x, y = (signed(v, bits) for v in (arg, x, y))
        return {
            ps.NE: arg != x, ps.LT: arg < x, ps.LE: arg <= x, ps.EQ: arg == x, ps.GE: arg >= x, ps.GT: arg > x,
            ps.MASKED_EQ: arg & x == y, ps.RANGE: x <= arg <= y,
        }[op]  # fmt: skip

    return holds


def random_value(rng: random.Random, bits: int) -> int:
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice([0, 1, 2, 3, 0xFFFFFFFF, 0x80000000, 0x7FFFFFFF]) % (1 << bits)
    if kind == 1:
        return rng.getrandbits(bits)
    if kind == 2:
        return 1 << rng.randrange(bits)
    if kind == 3 and bits == 64:
        return rng.choice([1 << 32, (1 << 64) - 1, 1 << 63, (1 << 32) + 5, 0xFFFFFFFF00000000])
    return rng.randrange(12)


def random_compare(rng: random.Random, values: list[int]) -> tuple[ps.Condition, Predicate]:
    bits = rng.choice([64, 64, 64, 32])
    is_signed = rng.random() < 0.15
    index, op = rng.randrange(6) if rng.random() < 0.3 else rng.randrange(2), rng.choice(list(ps.actions.Op))
    a, b = random_value(rng, bits), random_value(rng, bits)
    if op is ps.MASKED_EQ:
        b, is_signed = b & a, False
    else:
        if is_signed:
            a, b = signed(a, bits), signed(b, bits)
        a, b = (min(a, b), max(a, b)) if op is ps.RANGE else (a, 0)
    values += [v % (1 << 64) for edge in (a, b) for v in (edge - 1, edge, edge + 1, edge + (1 << 32), edge ^ (1 << 63))]
    return ps.Arg(index, op, a, b, bits, is_signed), compare(index, op, a, b, bits, is_signed)


def random_condition(rng: random.Random, values: list[int], depth: int = 2) -> tuple[ps.Condition, Predicate]:
    kind = rng.random() if depth else 1.0
    if kind < 0.1:
        one, holds = random_condition(rng, values, depth - 1)
        return ~one, lambda args: not holds(args)
    if kind < 0.4:
        one, left = random_condition(rng, values, depth - 1)
        two, right = random_condition(rng, values, depth - 1)
        if kind < 0.25:
            return one & two, lambda args: left(args) and right(args)
        return one | two, lambda args: left(args) or right(args)
    return random_compare(rng, values)


ACTIONS = [
    ps.ALLOW, ps.ALLOW, ps.ALLOW, ps.ERRNO(1), ps.ERRNO(1), ps.ERRNO(2), ps.ERRNO(0), ps.LOG, ps.KILL_PROCESS, ps.KILL_THREAD,
    ps.TRAP, ps.TRACE(7), ps.TRACE(8), ps.NOTIFY,
]  # fmt: skip
ARCHES = [
    (ps.Arch.X86_64,), (ps.Arch.X86_64,), (ps.Arch.X86_64, ps.Arch.X86, ps.Arch.X32), (ps.Arch.X86_64, ps.Arch.X32), (ps.Arch.X32,),
    (ps.Arch.AARCH64, ps.Arch.ARM), (ps.Arch.S390X, ps.Arch.S390), (ps.Arch.MIPS64, ps.Arch.MIPS, ps.Arch.MIPS64N32),
]  # fmt: skip


def random_case(seed: int, *, arches: Sequence[tuple[ps.Arch, ...]] = ARCHES, actions: Sequence[ps.Action] = ACTIONS) -> Case:
    """Make a policy of names and numbers: clustered, so that runs, holes and shared tails arise."""
    rng = random.Random(seed)
    chosen = rng.choice(arches)
    policy = ps.Policy(rng.choice(actions), chosen, bad_arch=rng.choice([ps.KILL_PROCESS, ps.ERRNO(99)]),
                       priority=rng.choice(["restrictive", "first"]))  # fmt: skip
    case = Case(policy, [], [0, 1, 0xFFFFFFFF, X32, X32 - 1, X32 | 1, 0x80000000, 0x80000001, 0xC0000005], [0, 1, 1 << 32])
    names = [rng.choice(ps.syscalls.names(rng.choice(chosen))) for _ in range(40)]
    if any(ps.syscalls.multiplexed("socket", arch) for arch in chosen):
        names += ["socket", "socket", "connect", "accept", "recv", "socketcall", "semop", "shmat", "msgrcv", "ipc"]
    some = rng.sample(actions, 3)
    for _ in range(rng.choice([1, 5, 30, 120])):
        action = rng.choice(actions) if rng.random() < 0.1 else rng.choice(some)
        conditions = [random_condition(rng, case.values) for _ in range(rng.choice([0, 0, 0, 1, 1, 2]))]
        if rng.random() < 0.5:
            add_name(case, action, rng.choice(names), conditions)
        else:
            add_number(case, action, rng.choice(chosen), rng.randrange(90), conditions)
    return case


def add_name(case: Case, action: ps.Action, name: str, conditions: list[tuple[ps.Condition, Predicate]]) -> None:
    numbers = {}
    for arch in case.policy.arches:
        if name in ps.syscalls.names(arch):
            numbers[arch] = ps.syscalls.resolve(name, arch)
    try:
        case.policy.add(action, name, *(c for c, _ in conditions))
    except ContradictionError:
        return
    note_multiplexed(case, name, [c for c, _ in conditions])
    note(case, action, numbers, conditions)


def note_multiplexed(case: Case, name: str, conditions: list[ps.Condition]) -> None:
    found = {arch: ps.syscalls.multiplexed(name, arch) for arch in case.policy.arches}
    through = {arch: how for arch, how in found.items() if how is not None}
    if not through:
        return
    alone, never, always = (ps.Policy(ps.ALLOW, "x86_64") for _ in range(3))
    alone.add(ps.ERRNO(1), "read", *conditions)
    always.add(ps.ERRNO(1), "read")
    if not ps.equivalent(alone, never):
        case.through[len(case.rules)] = (through, not ps.equivalent(alone, always))
    for number, _, call in through.values():
        case.numbers += [number] * 3
        case.values += [call, call + 1, call | 1 << 16, call | 1 << 32]


def add_number(case: Case, action: ps.Action, arch: ps.Arch, number: int, conditions: list[tuple[ps.Condition, Predicate]]) -> None:
    try:
        case.policy.add(action, number, *(c for c, _ in conditions), arch=arch)
    except ContradictionError:
        return
    note(case, action, {arch: number | X32 if arch is ps.Arch.X32 else number}, conditions)


def note(case: Case, action: ps.Action, numbers: dict[ps.Arch, int], conditions: list[tuple[ps.Condition, Predicate]]) -> None:
    holds = [predicate for _, predicate in conditions]
    case.rules.append((action, numbers, lambda args: all(one(args) for one in holds)))
    for number in numbers.values():
        case.numbers += [number, (number + 1) % (1 << 32), (number - 1) % (1 << 32), number ^ X32]


def random_calls(case: Case, seed: int, count: int) -> list[tuple[int, int, tuple[int, ...]]]:
    """Calls (token, number, arguments) near everything that the policy mentions."""
    rng = random.Random(seed)
    tokens = [arch.token for arch in case.policy.arches]
    calls = []
    for _ in range(count):
        token = rng.choice(tokens) if rng.random() < 0.95 else rng.choice([0, 0xC00000B7, 0x40000003])
        number = rng.choice(case.numbers) if rng.random() < 0.9 else rng.getrandbits(32)
        args = tuple(rng.choice(case.values) if rng.random() < 0.9 else rng.getrandbits(64) for _ in range(6))
        calls.append((token, number, args))
    return calls
