"""Policies as OCI seccomp profiles, for :func:`pyseccomp.oci.load` and container engines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

from pyseccomp import actions, oci, oci_form, syscalls
from pyseccomp.actions import Action, Arg, Op
from pyseccomp.equivalence import Difference, difference
from pyseccomp.errors import PolicyError
from pyseccomp.policy import Policy, Rule
from pyseccomp.syscalls import Arch

_ACTION_NAMES: Final = {
    "KILL_THREAD": "SCMP_ACT_KILL_THREAD",
    "KILL_PROCESS": "SCMP_ACT_KILL_PROCESS",
    "TRAP": "SCMP_ACT_TRAP",
    "ERRNO": "SCMP_ACT_ERRNO",
    "TRACE": "SCMP_ACT_TRACE",
    "ALLOW": "SCMP_ACT_ALLOW",
    "LOG": "SCMP_ACT_LOG",
    "NOTIFY": "SCMP_ACT_NOTIFY",
}
_Written = tuple[str, Action, tuple[Arg, ...]]
"""A rule of the profile: the call, the action, the comparisons."""


def dump(policy: Policy) -> dict[str, Any]:
    """Return a policy as a profile that :func:`pyseccomp.oci.load` and container engines read.

    What OCI rules cannot say in one is said in several: conditions joined by ``|`` and ``~``, ranges, 32-bit and signed
    comparisons, the order of rules. What has no field there (``bad_arch``, ``low_words``) stands under "x-pyseccomp" when it
    differs from libseccomp's: load reads it, engines pass over it and do what libseccomp does. Unless it says the very same
    rules, the profile is proved to be equivalent when it is read again.

    Raises:
        PolicyError: something in it has no OCI form: a number without a name, a call that is decided otherwise on another
            architecture, an action with data other than ERRNO's and TRACE's, conditions that take too many rules.
    """
    problem = ""
    for low_words, overlap in _ways(policy):
        try:
            profile = _profile(policy, low_words, _rules(policy, low_words, overlap))
            same = overlap == "any" and _says_the_same(policy, low_words)
            other = None if same else _read_again(policy, profile)
        except PolicyError as error:
            problem = problem or str(error)
        else:
            if other is None:
                return profile
            problem = f"no OCI profile says the same: the nearest one differs in {other}"
    raise PolicyError(problem)


_Overlap = Literal["any", "same action", "none"]
"""Which rules of a call may match together: to let them is shortest, but then an engine's order decides."""


def _ways(policy: Policy) -> Iterator[tuple[bool, _Overlap]]:
    """Whether 32-bit ABIs compare low words only, and what may overlap, in the order of trying."""
    wide = all(arch.wide for arch in policy.arches)
    for low_words in (True,) if wide else (policy.low_words, not policy.low_words):
        as_written = policy.priority == "restrictive" or _says_the_same(policy, low_words)
        overlaps: tuple[_Overlap, ...] = ("any", "same action", "none") if as_written else ("none", "same action", "any")
        for overlap in overlaps:
            yield low_words, overlap


def _profile(policy: Policy, low_words: bool, rules: list[_Written]) -> dict[str, Any]:
    profile: dict[str, Any] = _action_fields(policy.default, "defaultAction", "defaultErrnoRet")
    profile["architectures"] = [f"SCMP_ARCH_{arch.name}" for arch in policy.arches]
    profile.update(policy.oci)
    if policy.bad_arch != actions.KILL_THREAD or not low_words:
        profile[oci.EXTENSION] = {**_action_fields(policy.bad_arch, "badArch", "badArchData"), "lowWords": low_words}
    groups: dict[tuple[Action, tuple[Arg, ...]], list[str]] = {}
    for name, action, args in rules:
        groups.setdefault((action, args), []).append(name)
    profile["syscalls"] = [
        {"names": names, **_action_fields(action, "action", "errnoRet"), **_args(args)} for (action, args), names in groups.items()
    ]
    return profile


def _rules(policy: Policy, low_words: bool, overlap: _Overlap) -> list[_Written]:
    found: list[_Written] = []
    for name, rules in _by_call(policy).items():
        arch = _witness(policy, name)
        earlier: list[Rule] = []
        written: list[tuple[int, _Written]] = []
        for at, rule in _tried(policy, [rule for rule in rules if rule.arch in (None, arch)]):
            unless = [one.conditions for one in earlier if _kept_out(policy, one, rule, overlap)]
            earlier.append(rule)
            if rule.action == policy.default:
                continue
            try:
                ways = oci_form.alternatives(rule.conditions, unless, narrow=low_words and not arch.wide)
            except PolicyError as error:
                raise PolicyError(f"{name}: {rule.action!r}: {error}") from None
            written += [(at, (name, rule.action, tuple(way.values()))) for way in ways]
        ordered = [one for _, one in sorted(written, key=lambda pair: pair[0])]
        found += ordered if overlap != "none" else _tidy(ordered)
    return list(dict.fromkeys(found))


def _kept_out(policy: Policy, one: Rule, rule: Rule, overlap: _Overlap) -> bool:
    """Whether a rule must not match where an earlier one does."""
    if overlap == "none":
        return True
    return one.action != rule.action and (overlap == "same action" or one.action == policy.default)


def _tidy(rules: list[_Written]) -> list[_Written]:
    """The same rules of a call, as few as it takes; none of them overlaps another."""
    actions_of: dict[Action, oci_form.Alternatives] = {}
    for _, action, args in rules:
        actions_of.setdefault(action, []).append({arg.index: arg for arg in args})
    return [(rules[0][0], action, tuple(way.values())) for action, ways in actions_of.items() for way in oci_form.joined(ways)]


def _by_call(policy: Policy) -> dict[str, list[Rule]]:
    calls: dict[str, list[Rule]] = {}
    for rule in policy.rules:
        if not isinstance(rule.syscall, str):
            raise PolicyError(f"rule about number {rule.syscall}: an OCI profile names calls, and this number has no name")
        calls.setdefault(rule.syscall, []).append(rule)
    return calls


def _witness(policy: Policy, name: str) -> Arch:
    """The architecture whose rules are taken: one with 64-bit arguments if such a one has the call."""
    having = [arch for arch in policy.arches if name in syscalls.ids_of((arch,))]
    return max(having or policy.arches, key=lambda arch: arch.wide)


def _tried(policy: Policy, rules: list[Rule]) -> Iterator[tuple[int, Rule]]:
    """The rules of a call, and where each stood, in an order in which the first that matches decides."""
    order = list(enumerate(rules))
    if policy.priority == "restrictive":
        order.sort(key=lambda pair: (pair[1].action.rank, -pair[0]))
    for at, rule in order:
        yield at, rule
        if not rule.conditions:
            return


def _says_the_same(policy: Policy, low_words: bool) -> bool:
    """Whether every rule is written as it is, and no order matters."""
    if policy.multiplexed == "separate" or (low_words != policy.low_words and not all(arch.wide for arch in policy.arches)):
        return False
    if not all(rule.arch is None and rule.action != policy.default and _plain(rule) for rule in policy.rules):
        return False
    first: dict[str | int, Action] = {}
    return all(first.setdefault(rule.syscall, rule.action) == rule.action for rule in policy.rules)


def _plain(rule: Rule) -> bool:
    args = [one for one in rule.conditions if isinstance(one, Arg) and one.bits == 64 and not one.signed and one.op is not Op.RANGE]
    return len(args) == len(rule.conditions) == len({arg.index for arg in args})


def _read_again(policy: Policy, profile: dict[str, Any]) -> Difference | None:
    again = oci.load(profile, arch=policy.arches[0], name="as an OCI profile")
    return difference(policy.split(), again.split())


def _action_fields(action: Action, key: str, data_key: str) -> dict[str, Any]:
    fields: dict[str, Any] = {key: _ACTION_NAMES[action.name]}
    if action.name in ("ERRNO", "TRACE"):
        fields[data_key] = action.data
    elif action.data:
        raise PolicyError(f"{action} has no OCI form: {action.name} carries no data there")
    return fields


def _args(args: tuple[Arg, ...]) -> dict[str, Any]:
    written = []
    for arg in args:
        one = {"index": arg.index, "value": arg.a % (1 << 64), "op": f"SCMP_CMP_{arg.op.name}"}
        if arg.op is Op.MASKED_EQ:
            one["valueTwo"] = arg.b % (1 << 64)
        written.append(one)
    return {"args": written} if written else {}
