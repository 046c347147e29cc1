"""Policies that no single program can hold: which calls cost most, and how to cut them into a stack of programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pyseccomp import _core, syscalls
from pyseccomp.errors import PolicyError, PolicyTooLargeError
from pyseccomp.program import Program

if TYPE_CHECKING:
    from pyseccomp.policy import Policy

Call = tuple[int, int]
"""A token of an architecture, and a number there."""

MAX_PATH: Final = 32768
"""Instructions in all programs of a task, with 4 more for each (MAX_INSNS_PER_PATH in kernel/seccomp.c)."""
_ARCHES: Final = tuple(syscalls.Arch)
_TOLD: Final = 5
_ASKED: Final = 20
_LOADERS: Final = ("seccomp", "prctl")


def calls_of(policy: Policy, rule: tuple[int, int, int, object]) -> list[Call]:
    """Return the calls that a rule decides, by their own numbers and by a multiplexer's."""
    _, call, index, _ = rule
    if index >= 0 and call >= 0:
        return [(_ARCHES[index].token, call)]
    found = []
    for arch in policy.arches:
        if index not in (-1, arch.index):
            continue
        name = ~call if call < 0 else call
        number = _core.syscall_number(arch.index, name)
        if number >= 0:
            found.append((arch.token, number))
        through = None if policy.multiplexed == "separate" else _core.syscall_multiplexed(arch.index, name)
        if through is not None:
            found.append((arch.token, through[0]))
    return found


def _spans(calls: list[Call]) -> list[tuple[int, int, int]]:
    spans: list[tuple[int, int, int]] = []
    for token, number in sorted(calls):
        if spans and spans[-1][0] == token and spans[-1][2] == number - 1:
            spans[-1] = token, spans[-1][1], number
        else:
            spans.append((token, number, number))
    return spans


def _name(call: Call) -> str:
    index = _core.arch_of(*call)
    arch = None if index < 0 else _ARCHES[index]
    known = None if arch is None else syscalls.name(call[1], arch)
    return f"{known or call[1]} ({arch.value if arch else hex(call[0])})"


def say_what_costs(policy: Policy, error: PolicyTooLargeError) -> PolicyTooLargeError:
    """Return the error with the calls that need most instructions, each with how many it needs by itself."""
    terms: dict[Call, int] = {}
    for rule in policy._one_by_one():
        for call in calls_of(policy, rule):
            terms[call] = terms.get(call, 0) + len(rule[3]) + 1
    costs: dict[Call, int] = {}
    for call in sorted(terms, key=lambda call: -terms[call])[:_ASKED]:
        try:
            costs[call] = len(_part(policy, [call]))
        except PolicyTooLargeError as alone:
            costs[call] = alone.instructions
    worst = sorted(costs, key=lambda call: -costs[call])[:_TOLD]
    told = ", ".join(f"{_name(call)} {costs[call]}" for call in worst)
    return PolicyTooLargeError(
        f"{error}; the costliest calls, with the instructions of each alone: {told}. Simplify their rules, or install the "
        "programs of Policy.split()",
        instructions=error.instructions,
    )


def most_asked(policy: Policy) -> str:
    """Return which call has most comparisons, and how many."""
    terms: dict[Call, int] = {}
    for rule in policy._one_by_one():
        for call in calls_of(policy, rule):
            terms[call] = terms.get(call, 0) + len(rule[3])
    most = max(terms, key=lambda call: terms[call], default=None)
    return "it has no rules" if most is None else f"{_name(most)} has most comparisons, {terms[most]}"


def _part(policy: Policy, calls: list[Call], others: bool = False) -> Program:
    """The program that decides these calls, or all others, as the policy does, and allows the rest."""
    return Program(policy._compiled("size", [], _spans(calls), others))


def _parts(policy: Policy, calls: list[Call]) -> list[Program]:
    if not calls:
        return []
    try:
        return [_part(policy, calls)]
    except PolicyTooLargeError as error:
        if len(calls) == 1:
            raise PolicyTooLargeError(
                f"the policy cannot be split: {_name(calls[0])} alone needs {error.instructions} instructions",
                instructions=error.instructions,
            ) from None
    half = len(calls) // 2
    return _parts(policy, calls[:half]) + _parts(policy, calls[half:])


def split(policy: Policy) -> tuple[Program, ...]:
    """Cut a policy into programs that decide together what it decides; see :meth:`Policy.split`."""
    try:
        return (policy.compile(),)
    except PolicyTooLargeError:
        pass
    loaders = {(a.token, syscalls.resolve(name, a)) for a in policy.arches for name in _LOADERS}
    kept: set[Call] = set(loaders)
    movable: set[Call] = set()
    for rule in policy._one_by_one():
        notifies = rule[0] & 0xFFFF0000 == 0x7FC00000
        (kept if notifies else movable).update(calls_of(policy, rule))
    movable -= kept
    parts = _parts(policy, sorted(movable))
    try:
        last = _part(policy, sorted(movable), others=True)
    except PolicyTooLargeError as error:
        raise PolicyTooLargeError(
            f"the policy cannot be split: the calls that it notifies must be in one program (a task has one listener), and "
            f"need {error.instructions} instructions",
            instructions=error.instructions,
        ) from None
    length = sum(len(part) + 4 for part in (*parts, last))
    if length > MAX_PATH:
        raise PolicyError(f"the policy cannot be split: {len(parts) + 1} programs count as {length}, a task may have {MAX_PATH}")
    return (*parts, last)
