"""A compiler without any thought: one rule after the other, every comparison spelled out. For rules of plain Args."""

from __future__ import annotations

import struct

import pyseccomp as ps

Insns = list[tuple[int, int, int, int]]
LD, JEQ, JGT, AND, JA, RET = 0x20, 0x15, 0x25, 0x54, 0x05, 0x06


def bytes_of(insns: Insns) -> bytes:
    return b"".join(struct.pack("=HBBI", *insn) for insn in insns)


def compare(arg: ps.Arg) -> Insns:
    """Go on behind these when the comparison holds; jump over one more instruction (-1) when not."""
    high, low = 16 + 8 * arg.index + 4, 16 + 8 * arg.index
    a, b = arg.a % (1 << 64), arg.b % (1 << 64)
    yes, no = -1, -2
    if arg.op is ps.MASKED_EQ:
        plan = [(LD, 0, 0, high), (AND, 0, 0, a >> 32), (JEQ, 0, no, b >> 32),
                (LD, 0, 0, low), (AND, 0, 0, a & 0xFFFFFFFF), (JEQ, yes, no, b & 0xFFFFFFFF)]  # fmt: skip
    elif arg.op in (ps.EQ, ps.NE):
        t, f = (yes, no) if arg.op is ps.EQ else (no, yes)
        plan = [(LD, 0, 0, high), (JEQ, 0, f, a >> 32), (LD, 0, 0, low), (JEQ, t, f, a & 0xFFFFFFFF)]
    else:
        over, under = (yes, no) if arg.op in (ps.GT, ps.GE) else (no, yes)
        same = yes if arg.op in (ps.GE, ps.LE) else no
        plan = [(LD, 0, 0, high), (JGT, over, 0, a >> 32), (JEQ, 0, under, a >> 32),
                (LD, 0, 0, low), (JGT, over, 0, a & 0xFFFFFFFF), (JEQ, same, under, a & 0xFFFFFFFF)]  # fmt: skip
    if arg.bits == 32:
        assert arg.op in (ps.MASKED_EQ, ps.EQ)
        plan = plan[len(plan) // 2 :]
    out = []
    for at, (code, jt, jf, k) in enumerate(plan):
        jumps = [len(plan) - 1 - at if j == yes else len(plan) - at if j == no else 0 for j in (jt, jf)]
        out.append((code, *jumps, k))
    return [*out]  # type: ignore[list-item]


def rule_insns(number: int, rule: ps.Rule) -> Insns:
    """One rule; the number is in the accumulator before, and after it if it did not match."""
    body: Insns = [(RET, 0, 0, int(rule.action))]
    for condition in reversed(rule.conditions):
        assert isinstance(condition, ps.Arg)
        # "yes" lands on the jump over the one that "no" lands on
        body = [*compare(condition), (JA, 0, 0, 1), (JA, 0, 0, len(body)), *body]
    reload: Insns = [(LD, 0, 0, 0)] if rule.conditions else []
    return [(JEQ, 0, len(body), number), *body, *reload]


def may_hold(rule: ps.Rule, always: bool) -> bool:
    """Whether the rule's conditions hold for some arguments, or (always) for all of them."""
    ends = [[(RET, 0, 0, int(ps.ALLOW))], [(RET, 0, 0, int(ps.ERRNO(1)))]]
    alone = [(LD, 0, 0, 0), *rule_insns(0, ps.Rule(ps.ERRNO(1), 0, rule.conditions)), *ends[0]]
    named = [(LD, 0, 0, 0), (JEQ, 0, 1, 0), *ends[1], *ends[0]]
    if always:
        return ps.equivalent(bytes_of(alone), bytes_of(named))
    return not ps.equivalent(bytes_of(alone), bytes_of(ends[0]))


def multiplexed_of(policy: ps.Policy, arch: ps.Arch) -> Insns:
    """Calls through socketcall and ipc that rules name, one block for each; the number is in the accumulator."""
    calls: dict[tuple[int, int, int], list[ps.Rule]] = {}
    for rule in policy.rules:
        through = ps.syscalls.multiplexed(str(rule.syscall), arch)
        if through is not None and may_hold(rule, always=False):
            calls.setdefault(through, []).append(rule)
    insns: Insns = []
    for (number, mask, call), rules in calls.items():
        unsure = [rule.action for rule in rules if not may_hold(rule, always=True)]
        named = [r for r in policy.rules if ps.syscalls.name(number, arch) == r.syscall]
        certain = [rule for rule in policy.rules if rule in named or (rule in rules and may_hold(rule, always=True))]

        def cap(action: ps.Action, unsure: list[ps.Action] = unsure) -> ps.Action:
            strictest = min((a.rank for a in unsure), default=action.rank)
            return [a for a in unsure if a.rank == strictest][-1] if strictest < action.rank else action

        block: Insns = [(LD, 0, 0, 0)]
        for _, rule in sorted(enumerate(certain), key=lambda item: (item[1].action.rank, -item[0])):
            conditions = rule.conditions if rule in named else ()
            block += rule_insns(number, ps.Rule(cap(rule.action), number, conditions))
        block.append((RET, 0, 0, int(cap(policy.default))))
        first = [(LD, 0, 0, 16), (AND, 0, 0, mask), (JEQ, 1, 0, call), (JA, 0, 0, len(block))]
        insns += [(JEQ, 1, 0, number), (JA, 0, 0, len(block) + 4), *first, *block, (LD, 0, 0, 0)]  # type: ignore[list-item]
    return insns


def rules_of(policy: ps.Policy, arch: ps.Arch) -> Insns:
    """All rules of an architecture, the strictest first, of equals the last."""
    ordered = sorted(enumerate(policy.rules), key=lambda item: (item[1].action.rank, -item[0]))
    names = set(ps.syscalls.names(arch))
    insns = multiplexed_of(policy, arch)
    for _, rule in ordered:
        if rule.syscall in names:
            insns += rule_insns(ps.syscalls.resolve(str(rule.syscall), arch), rule)
    return insns


def compile_naively(policy: ps.Policy) -> bytes:
    """One section for each architecture's token."""
    default, bad = int(policy.default), int(policy.bad_arch)
    insns: Insns = []
    for token in dict.fromkeys(arch.token for arch in policy.arches):
        section: Insns = [(LD, 0, 0, 0)]
        for arch in policy.arches:
            section += rules_of(policy, arch) if arch.token == token else []
        if token == ps.Arch.X86_64.token:
            plain, x32 = (default if arch in policy.arches else bad for arch in (ps.Arch.X86_64, ps.Arch.X32))
            section += [(JEQ, 0, 1, 0xFFFFFFFF), (RET, 0, 0, default), (0x35, 0, 1, 0x40000000), (RET, 0, 0, x32), (RET, 0, 0, plain)]
        else:
            section.append((RET, 0, 0, default))
        insns += [(LD, 0, 0, 4), (JEQ, 1, 0, token), (JA, 0, 0, len(section)), *section]
    return bytes_of([*insns, (RET, 0, 0, bad)])
