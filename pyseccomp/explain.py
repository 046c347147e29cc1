"""What a task's filters say to one call, which of them decides, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyseccomp import syscalls
from pyseccomp.actions import ALLOW, Action
from pyseccomp.decompile import reasons
from pyseccomp.loaded import LoadedFilter
from pyseccomp.program import Decision
from pyseccomp.query import HasPid, dump
from pyseccomp.syscalls import Arch, ArchLike


@dataclass(frozen=True, slots=True)
class Opinion:
    """What one filter of the chain says to the call."""

    filter: LoadedFilter
    decision: Decision
    reasons: tuple[tuple[str, bool], ...] | None
    """The comparisons of arguments that led there, and whether each held; None: it cannot be told in comparisons."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the kernel would answer to the call."""

    opinions: tuple[Opinion, ...]
    """Of each filter, the oldest first."""
    decides: int | None
    """Which of them decides; None: there is no filter, and the call is allowed."""

    @property
    def action(self) -> Action:
        """The answer."""
        return ALLOW if self.decides is None else self.opinions[self.decides].decision.action


def explain(
    target: int | HasPid, syscall: str | int, args: Sequence[int] = (), *, arch: ArchLike = None, ip: int = 0
) -> Explanation:
    """Ask the kernel for a process's filters, and tell what they say to a call; nothing is called.

    The kernel runs every filter, the newest first, and takes the answer of the highest precedence (KILL_PROCESS, KILL_THREAD,
    TRAP, ERRNO, NOTIFY, TRACE, LOG, ALLOW), of equal ones the first that it met: the newest filter's.

    Raises what :func:`dump` and :meth:`Program.simulate` raise.

    Source: seccomp(2), kernel/seccomp.c (seccomp_run_filters).
    """
    return explain_chain(dump(target), syscall, args, arch=arch, ip=ip)


def explain_chain(
    chain: Sequence[LoadedFilter], syscall: str | int, args: Sequence[int] = (), *, arch: ArchLike = None, ip: int = 0
) -> Explanation:
    """Tell what filters, the oldest first, say to a call together; see :func:`explain`."""
    where = Arch.of(arch)
    nr = syscalls.resolve(syscall, where) if isinstance(syscall, str) else syscall
    opinions = tuple(
        Opinion(
            one,
            one.program.simulate(nr, args, where, ip),
            reasons(one.program, where, nr % (1 << 32), ip % (1 << 64), [arg % (1 << 64) for arg in args]),
        )
        for one in chain
    )
    decides = None
    for at in reversed(range(len(opinions))):
        if decides is None or opinions[at].decision.action.rank < opinions[decides].decision.action.rank:
            decides = at
    return Explanation(opinions, decides)
