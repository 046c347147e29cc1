"""Rules of a responder as part of the program: what registers alone decide need not be asked.

The rules become a program of their own, that answers what the responder's loop would (allow; deny; reply(0), which is
ERRNO(0)) or NOTIFY, and every NOTIFY of the filter's program jumps to it. NOTIFY is always right, since the loop has all
rules; so a rule whose answer the kernel cannot give, or that asks for memory or a process, is a NOTIFY rule here, with what
its registers say for conditions, and keeps its place among the others: nothing is decided past it. kill() stays with the
loop: it is SIGKILL there and would be SIGSYS here.

What a filter beside this one on the same task says counts as ever: the strictest answer. A tracer that the other asks for
(TRACE) is not asked about notified calls that are then allowed, but about those allowed here.
"""

from __future__ import annotations

import struct
from typing import Final

from pyseccomp import _core
from pyseccomp.actions import ALLOW, ERRNO, NOTIFY, Action
from pyseccomp.errors import ContradictionError, PolicyTooLargeError, UnknownSyscallError
from pyseccomp.policy import Policy
from pyseccomp.program import Program
from pyseccomp.responder import Answer, Callback, Responder, Rule, allow
from pyseccomp.syscalls import Arch

_INSN: Final = struct.Struct("=HBBI")
_RET, _JUMP = 0x06, 0x05
_LONGEST: Final = 4096


def offload(program: Program, responder: Responder) -> Program:
    """Return the program with what responder's rules decide by registers alone, or as it is: nothing to gain, or too long.

    The listener stays, even if nothing is left to be notified, so that serving ends with the last task as it would. The
    responder takes no rules from now on.
    """
    responder._frozen = True
    decisions = _decisions(responder)
    if decisions is None or not program.notifies:
        return program
    insns = list(_INSN.iter_unpack(bytes(program)))
    spliced = [
        (_JUMP, 0, 0, len(insns) - at - 1) if code == _RET and k & 0xFFFF0000 == NOTIFY else (code, jt, jf, k)
        for at, (code, jt, jf, k) in enumerate(insns)
    ]
    data = b"".join(_INSN.pack(*insn) for insn in spliced) + bytes(decisions)
    if not _core.program_notifies(data):
        data += _INSN.pack(_RET, 0, 0, int(NOTIFY))
    return Program(data) if len(data) <= _LONGEST * _INSN.size else program


def _decisions(responder: Responder) -> Program | None:
    """The rules as a program; None if all it could say is NOTIFY, or the rules cannot be said in one."""
    answers = [responder._default, *(rule.answer for rules in responder._rules.values() for rule in rules)]
    if all(_action(answer) == NOTIFY for answer in answers):
        return None
    default = _action(responder._default)
    places = {key: _place(*key) for key in responder._rules}
    arches = {place for place in places.values() if place is not None}
    if None in places.values() or any(arch.big_endian != Arch.native().big_endian for arch in arches):
        return None
    policy = Policy(default, sorted(arches) or None, bad_arch=default, priority="first")
    try:
        for key, rules in responder._rules.items():
            for rule in reversed(rules):
                _add(policy, key[1], places[key], rule)
        return policy.compile()
    except (PolicyTooLargeError, UnknownSyscallError):
        return None


def _place(token: int, nr: int) -> Arch | None:
    index = _core.arch_of(token, nr % (1 << 32))
    return None if index < 0 else list(Arch)[index]


def _add(policy: Policy, nr: int, arch: Arch | None, rule: Rule) -> None:
    registers = tuple(condition for condition in rule.conditions if not condition.strings)
    certain = not rule.processes and len(registers) == len(rule.conditions)
    try:
        policy.add(_action(rule.answer) if certain else NOTIFY, nr, *registers, arch=arch)
    except ContradictionError:
        pass  # it matches nothing


def _action(answer: Answer | Callback) -> Action:
    """What the kernel can do in the loop's place."""
    if not isinstance(answer, Answer):
        return NOTIFY
    if answer == allow():
        return ALLOW
    if answer.kind == 2:
        return ERRNO(answer.error)
    return ERRNO(0) if answer.kind == 3 and answer.value == 0 else NOTIFY
