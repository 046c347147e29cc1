"""Whether two programs mean the same, proved over all inputs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pyseccomp import _core, syscalls
from pyseccomp.actions import Action
from pyseccomp.errors import PolicyError
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


One = Program | Policy | bytes | bytearray | memoryview


def _programs(value: One | Sequence[One]) -> list[Program]:
    """A stack of programs, the oldest first; one program is a stack of one."""
    stack: Sequence[One] = (value,) if isinstance(value, (Program, Policy, bytes, bytearray, memoryview)) else value
    if not stack:
        raise PolicyError("a stack of programs needs at least one")
    return [v.compile() if isinstance(v, Policy) else v if isinstance(v, Program) else Program(v) for v in stack]


def _decide(stack: list[Program], nr: int, token: int, ip: int, args: list[int]) -> Decision:
    """What the kernel takes out of the answers of all: the strictest, of equal ones the newest."""
    answers = [_core.run_program(bytes(program), nr, token, ip, args) for program in reversed(stack)]
    word = min((word for word, _ in answers), key=lambda word: Action(word).rank)
    return Decision(Action(word), word & 0xFFFF, sum(executed for _, executed in answers))


def difference(a: One | Sequence[One], b: One | Sequence[One]) -> Difference | None:
    """Return a call that a and b answer differently, or None: a proof that there is none.

    All of struct seccomp_data counts: every number, architecture, argument and instruction pointer, possible or not.
    Answers on which the kernel acts alike are the same (the data of ALLOW, an errno above 4095). A list or tuple is a stack
    of filters in the order of their installation: the kernel asks all and takes the strictest action, of equal ones the
    newest filter's.

    Raises:
        ProgramError: not a valid program, or one that calculates with its input in ways too many to follow. The work is
            bounded, some ten seconds at most, and a signal handler that raises ends it.
    """
    first, second = _programs(a), _programs(b)
    found = _core.difference([bytes(p) for p in first], [bytes(p) for p in second])
    if found is None:
        return None
    nr, token, ip, args = found
    signed = nr - (1 << 32) if nr >> 31 else nr
    decisions = [_decide(stack, signed, token, ip, args) for stack in (first, second)]
    index = _core.arch_of(token, nr)
    arch = None if index < 0 else list(Arch)[index]
    if arch is not None and arch.big_endian != (sys.byteorder == "big"):
        ip, *args = [value >> 32 | (value & 0xFFFFFFFF) << 32 for value in (ip, *args)]
    return Difference(token, arch, nr, tuple(args), ip, decisions[0], decisions[1])


def equivalent(a: One | Sequence[One], b: One | Sequence[One]) -> bool:
    """Return whether a and b answer every call alike; exact, see :func:`difference`.

    Raises:
        ProgramError: not a valid program, or one that calculates with its input in ways too many to follow.
    """
    return difference(a, b) is None
