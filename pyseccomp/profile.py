"""Learn a policy from what a program does.

A :class:`Tracer` lets every call of the program run and counts it; of calls whose meaning hangs on one register argument
(the family of a socket, the command of fcntl, the protection of a mapping) the values are kept, as long as they are at
most 16. What was seen becomes an allow-list; what was not is denied.

A policy learnt from a run knows that run: run all that the program must be able to do, more than once, and merge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pyseccomp import actions, syscalls
from pyseccomp.actions import Action, Arg
from pyseccomp.errors import PolicyError
from pyseccomp.policy import Policy, Rule
from pyseccomp.syscalls import Arch
from pyseccomp.trace import Tracer, call_name

WATCHED: Final = {
    "socket": 0, "socketpair": 0, "prctl": 0, "arch_prctl": 0, "clone": 0, "unshare": 0, "setns": 1, "ioctl": 1, "fcntl": 1,
    "fcntl64": 1, "personality": 0, "mmap": 2, "mmap2": 2, "mprotect": 2, "ptrace": 0, "seccomp": 0, "bpf": 0, "keyctl": 0,
    "prlimit64": 1,
}  # fmt: skip
"""Calls whose allowance is narrowed to values that were seen, and the argument meant; the kernel reads 32 bits of each."""

ALWAYS: Final = ("execve", "exit", "exit_group", "rt_sigreturn", "sigreturn", "restart_syscall")
"""What starting, ending and interrupting a program takes, seen or not."""

_LOW: Final = 0xFFFFFFFF

Learnt = Mapping[str, frozenset[int] | None]
"""Calls by name, with the values of the watched argument; None for any."""


def learnt(tracer: Tracer) -> tuple[dict[str, frozenset[int] | None], tuple[Arch, ...]]:
    """Return what a tracer that watches :data:`WATCHED` has seen, and the architectures it was seen on."""
    found: dict[str, frozenset[int] | None] = {}
    arches = {Arch.native()}
    for count in tracer.counts():
        if count.arch is None or count.name.startswith("syscall_"):
            continue  # no name, no rule: an OCI profile goes by names
        arches.add(count.arch)
        values = tracer.values(count.arch, count.nr) if count.name in WATCHED else None
        before = found.get(count.name, frozenset())
        found[count.name] = None if values is None or before is None else before | frozenset(values)
    return found, tuple(arch for arch in Arch if arch in arches)


def make_policy(calls: Learnt, arches: tuple[Arch, ...], default: Action | None = None) -> Policy:
    """Make the policy that allows those calls, those of :data:`ALWAYS`, and answers all others with EPERM (or default)."""
    policy = Policy(
        actions.ERRNO(1) if default is None else default, _native_first(arches), bad_arch=actions.KILL_THREAD, low_words=True
    )
    known = {name for arch in policy.arches for name in syscalls.names(arch)}
    for name in sorted({*calls, *ALWAYS} & known):
        _allow(policy, name, calls.get(name))
    return policy


def _allow(policy: Policy, name: str, values: frozenset[int] | None) -> None:
    if values is None:
        policy.add(actions.ALLOW, name)
        return
    for value in sorted(values):
        policy.add(actions.ALLOW, name, Arg(WATCHED[name], actions.MASKED_EQ, _LOW, value))


def _native_first(arches: tuple[Arch, ...]) -> tuple[Arch, ...]:
    native = Arch.native()
    return (native, *(arch for arch in arches if arch is not native))


def merge(old: Policy, calls: Learnt, arches: tuple[Arch, ...]) -> Policy:
    """Return the old policy with what was learnt allowed besides; its other rules and its default stay.

    Raises:
        PolicyError: the old policy allows by default, so nothing can be added to it; or it denies, by a rule of its own, a
            call that was seen: decide by hand.
    """
    if old.default == actions.ALLOW:
        raise PolicyError("merge: the old policy allows what it does not name, so there is nothing to learn for it")
    policy = Policy(
        old.default, [*old.arches, *(arch for arch in arches if arch not in old.arches)], bad_arch=old.bad_arch, low_words=old.low_words
    )
    policy.oci = dict(old.oci)
    rules: dict[str | int, list[Rule]] = {}
    for rule in old.rules:
        rules.setdefault(rule.syscall, []).append(rule)
        policy.add(rule.action, rule.syscall, *rule.conditions, arch=rule.arch)
    for name, values in sorted(calls.items()):
        before = rules.get(name, [])
        denied = [rule for rule in before if rule.action != actions.ALLOW]
        if denied:
            raise PolicyError(f"merge: the old policy has a rule of its own for {name} ({denied[0].action}), which the program calls")
        if any(not rule.conditions for rule in before):
            continue
        seen = {rule.conditions for rule in before}
        if values is None:
            policy.add(actions.ALLOW, name)
            continue
        for value in sorted(values):
            condition = Arg(WATCHED[name], actions.MASKED_EQ, _LOW, value)
            if (condition,) not in seen:
                policy.add(actions.ALLOW, name, condition)
    return policy


def unnamed(tracer: Tracer) -> list[str]:
    """Return the calls that were seen and have no name here, so that no rule can allow them."""
    return [c.name for c in tracer.counts() if c.arch is None or call_name(c.arch.token, c.nr).startswith("syscall_")]
