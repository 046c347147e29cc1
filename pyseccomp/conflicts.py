"""Rules that get into each other's way: found exactly, with a call that shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pyseccomp import _core, syscalls
from pyseccomp.actions import ALLOW, ERRNO, Action, Condition, Term
from pyseccomp.equivalence import Difference, difference
from pyseccomp.program import Program
from pyseccomp.stack import Call, calls_of

if TYPE_CHECKING:
    from pyseccomp.policy import CoreRule, Policy, Rule

@dataclass(frozen=True, slots=True)
class Conflict:
    """What is odd about a rule.

    kind "overlap": ``rule`` and ``other`` both match a call (``example`` is one) and want different things; ``decides``
    wins, by the policy's priority. "never": no call can match the rule. "shadowed": other rules decide wherever it
    matches, or do the same, so that it changes nothing.
    """

    kind: Literal["overlap", "never", "shadowed"]
    rule: Rule
    other: Rule | None = None
    decides: Rule | None = None
    example: Difference | None = None

    def __str__(self) -> str:
        if self.kind == "never":
            return f"{self.rule.syscall}: {self.rule.action!r} never happens: no call can match its conditions"
        if self.kind == "shadowed":
            return f"{self.rule.syscall}: {self.rule.action!r} changes nothing: the other rules decide wherever it matches"
        assert self.other is not None and self.decides is not None and self.example is not None
        args = ", ".join(f"{a:#x}" for a in self.example.args)
        return (
            f"{self.rule.syscall}({args}) matches {self.rule.action!r} and {self.other.action!r}: "
            f"{self.decides.action!r} decides"
        )


def _program(policy: Policy, default: int, rules: list[CoreRule]) -> Program:
    bare = [a.index for a in policy.arches]
    first = policy.priority == "first"
    return Program(_core.compile_policy(default, ALLOW, int(first), policy.low_words, bare, rules, 0, [], True))


def _seen(policy: Policy, call: int, index: int, terms: tuple[Term, ...]) -> Difference | None:
    """A call that these conditions match, or None: there is none."""
    return difference(_program(policy, ALLOW, [(int(ERRNO(1)), call, index, terms)]), _program(policy, ALLOW, []))


def contradict(policy: Policy, call: int, index: int, conditions: tuple[Condition, ...]) -> bool:
    """Return whether conditions of one rule exclude each other, or one itself. Looks only where an argument is asked twice."""
    seen: set[int] = set()
    for condition in conditions:
        args = [term[1] for term in condition.terms if term[0] == 0]
        within = len(set(args)) < len(args) and any(term[0] in (1, 2) for term in condition.terms)  # In() only has |
        if within or not seen.isdisjoint(args):
            return _seen(policy, call, index, tuple(t for c in conditions for t in c.terms)) is None
        seen.update(args)
    return False


def never(policy: Policy, condition: Condition) -> bool:
    """Return whether a condition excludes itself, for whatever call of the policy's architectures."""
    return contradict(policy, syscalls.IDS["read"], -1, (condition,))


def find(policy: Policy) -> tuple[Conflict, ...]:
    """Return everything odd about a policy's rules; see :meth:`Policy.conflicts`."""
    rules, core = policy.rules, policy._one_by_one()
    found = []
    live: dict[Call, list[int]] = {}
    for at, (_, call, index, terms) in enumerate(core):
        if terms and _seen(policy, call, index, terms) is None:
            found.append(Conflict("never", rules[at]))
            continue
        for number in calls_of(policy, core[at]):
            live.setdefault(number, []).append(at)
    pairs = {(a, b) for group in live.values() for i, b in enumerate(group) for a in group[:i]}
    found += [c for a, b in sorted(pairs) if (c := _overlap(policy, rules, core, a, b)) is not None]
    for at in sorted({at for group in live.values() for at in group}):
        groups = {tuple(group) for group in live.values() if at in group}
        if all(_changes_nothing(policy, core, group, at) for group in groups):
            found.append(Conflict("shadowed", rules[at]))
    return tuple(found)


def _overlap(policy: Policy, rules: tuple[Rule, ...], core: list[CoreRule], a: int, b: int) -> Conflict | None:
    (action, call, index, terms), (other, _, _, more) = core[a], core[b]
    if action == other:
        return None
    example = _seen(policy, call, index, terms + more)
    if example is None:
        return None
    earlier = policy.priority == "first" or Action(action).rank < Action(other).rank
    return Conflict("overlap", rules[b], rules[a], rules[a] if earlier else rules[b], example)


def _changes_nothing(policy: Policy, core: list[CoreRule], group: tuple[int, ...], at: int) -> bool:
    if len(group) == 1:
        return False
    with_it, without = [core[i] for i in group], [core[i] for i in group if i != at]
    return difference(_program(policy, policy.default, with_it), _program(policy, policy.default, without)) is None
