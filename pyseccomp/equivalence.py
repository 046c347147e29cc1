"""Whether two programs mean the same, proved over all inputs."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from pyseccomp import _core, syscalls
from pyseccomp.actions import Action
from pyseccomp.policy import Policy
from pyseccomp.program import Decision, Program
from pyseccomp.syscalls import Arch


@dataclass(frozen=True, slots=True)
class Difference:
    """A call that two programs answer differently, with both decisions."""

    token: int
    arch: Arch | None
    nr: int
    args: tuple[int, ...]
    ip: int
    first: Decision
    second: Decision

    @property
    def syscall(self) -> str | None:
        """The call's name, or None where the architecture or the number has none."""
        return None if self.arch is None else syscalls.name(self.nr, self.arch)

    def __str__(self) -> str:
        where = f"architecture {self.token:#x}" if self.arch is None else self.arch.value
        args = ", ".join(f"{a:#x}" for a in self.args)
        ip = f" at {self.ip:#x}" if self.ip else ""
        return f"{where}: {self.syscall or self.nr}({args}){ip}: {self.first.action} against {self.second.action}"


def _program(value: Program | Policy | bytes) -> Program:
    if isinstance(value, Policy):
        return value.compile()
    return value if isinstance(value, Program) else Program(value)


def difference(a: Program | Policy | bytes, b: Program | Policy | bytes) -> Difference | None:
    """Return a call that a and b answer differently, or None: a proof that there is none.

    All of struct seccomp_data counts: every number, architecture, argument and instruction pointer, possible or not.
    Answers on which the kernel acts alike are the same (the data of ALLOW, an errno above 4095).

    Raises:
        ProgramError: not a valid program, or one that calculates with arguments in ways too many to follow.
    """
    first, second = _program(a), _program(b)
    found = _core.difference(bytes(first), bytes(second))
    if found is None:
        return None
    nr, token, ip, args = found
    signed = nr - (1 << 32) if nr >> 31 else nr
    decisions = []
    for program in (first, second):
        word, executed = _core.run_program(bytes(program), signed, token, ip, args)
        decisions.append(Decision(Action(word), word & 0xFFFF, executed))
    index = _core.arch_of(token, nr)
    arch = None if index < 0 else list(Arch)[index]
    if arch is not None and arch.big_endian != (sys.byteorder == "big"):
        ip, *args = [value >> 32 | (value & 0xFFFFFFFF) << 32 for value in (ip, *args)]
    return Difference(token, arch, nr, tuple(args), ip, decisions[0], decisions[1])


def equivalent(a: Program | Policy | bytes, b: Program | Policy | bytes) -> bool:
    """Return whether a and b answer every call alike; exact, see :func:`difference`.

    Raises:
        ProgramError: not a valid program, or one that calculates with arguments in ways too many to follow.
    """
    return difference(a, b) is None
