"""Answers, and the rules that choose them."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from pyseccomp import _core, syscalls
from pyseccomp._core import Answer as Answer
from pyseccomp.actions import Condition, Term
from pyseccomp.errors import KernelError, PolicyError
from pyseccomp.records import EventRing
from pyseccomp.strings import STRING_TERM

if TYPE_CHECKING:
    from pyseccomp.notify import Notification

_HOLD, _CONTINUE, _ERROR, _VALUE, _KILL, _ADD_FD = range(6)
KINDS = ("hold", "allow", "deny", "reply", "kill", "add_fd")

Callback = Callable[["Notification"], Answer | None | Awaitable[Answer | None]]
"""A function of a Responder; one that returns an awaitable is for serve_async()."""


class HasFileno(Protocol):
    """A file, a socket..."""

    def fileno(self) -> int:
        """Return the descriptor."""


def allow() -> Answer:
    """Answer: carry the call out. See :meth:`Notification.allow` for what this cannot promise."""
    return Answer(_CONTINUE)


def deny(error: int = errno.EPERM) -> Answer:
    """Answer: fail with errno ``error`` (1 to 4095), without carrying the call out."""
    return Answer(_ERROR, error)


def reply(value: int) -> Answer:
    """Answer: return value, without carrying the call out."""
    return Answer(_VALUE, 0, value)


def kill() -> Answer:
    """Answer: SIGKILL to the caller's process. Where that is not permitted the call fails with EPERM."""
    return Answer(_KILL)


def add_fd(fd: int | HasFileno, *, at: int | None = None, cloexec: bool = True) -> Answer:
    """Answer: a copy of fd in the target, whose number there the call returns, in one step (in two before Linux 5.14).

    The answer holds a duplicate of fd from now on and closes it when it goes. at: the number in the target (what is open
    there is closed), None for the lowest free one. cloexec: whether the target's copy closes on exec. If the target
    cannot take it (its limit: EMFILE) the call fails with that errno.

    Raises: KernelError: fd is not open; ValueError: at is no number for a descriptor.
    """
    if at is not None and not 0 <= at < 1 << 31:
        raise ValueError(f"at is a file descriptor number or None, got {at}")
    number = fd if isinstance(fd, int) else fd.fileno()
    try:
        if number < 0:
            raise OSError(errno.EBADF, "not a descriptor")
        return Answer(_ADD_FD, 0, 0, number, -1 if at is None else at, cloexec)
    except OSError as error:
        raise KernelError(error.errno, f"add_fd: descriptor {number}: {error.strerror}") from None


def hold() -> Answer:
    """No answer yet: whoever kept the Notification answers it later."""
    return Answer(_HOLD)


@dataclasses.dataclass(frozen=True, slots=True)
class ResponderStats:
    """What a responder's loops did so far.

    ``by_syscall`` maps (arch, number) to counts by answer; ``latencies`` holds (from_ns, count) of the histogram's
    buckets that are not empty, four to an octave, of the time from receiving to answering. ``gone``: targets that were
    gone before their answer. ``uncounted``: answers to syscalls beyond the 1024 that are told apart. ``pending``: calls that
    were handed to a function and are not answered yet. ``dropped``: records that found no room in the event ring.
    """

    answered: Mapping[str, int]
    by_syscall: Mapping[tuple[int, int], Mapping[str, int]]
    latencies: tuple[tuple[int, int], ...]
    gone: int
    uncounted: int
    pending: int = 0
    dropped: int = 0

    @property
    def total(self) -> int:
        """All answers."""
        return sum(self.answered.values())

    def latency(self, quantile: float) -> int:
        """The lower bound of the bucket that holds the quantile (0 to 1), in nanoseconds; 0 when nothing was counted."""
        if not 0 <= quantile <= 1:
            raise ValueError(f"a quantile is 0 to 1, got {quantile}")
        rest = quantile * sum(count for _, count in self.latencies)
        for from_ns, count in self.latencies:
            rest -= count
            if rest <= 0:
                return from_ns
        return 0


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a responder: the answer to a call that fulfils all conditions, by one of processes (none: any)."""

    answer: Answer | Callback
    conditions: tuple[Condition, ...]
    processes: tuple[int, ...]
    unreadable: Answer | Callback

    @property
    def conditional(self) -> bool:
        """True unless it matches always."""
        return bool(self.conditions or self.processes)


class Responder:
    """Rules that answer notifications: by a table in C, or by a Python function.

    A function gets the Notification and returns an answer (which is sent on the way to the next notification, the
    cheapest way), or answers through the Notification's methods and returns None, or returns ``hold()`` and answers
    later. When it raises, or does none of that, the call fails with ``fallback`` and ``on_error`` is told; the loop goes
    on. KeyboardInterrupt and SystemExit end the loop, after the same answer.

    No default allows a call. A call that no rule matches gets ``default``, a failing function ``fallback``, a string that
    cannot be read the rule's ``unreadable``; each of the three denies unless it is given. While no loop runs, notified calls wait
    for the next one; once the listener is closed they fail with ENOSYS.

    Calls that threads of this very process make get ``fallback`` wherever a function would be asked: the thread may hold the
    interpreter, and would wait for itself. ``on_error`` is told (EDEADLK) when the loop next has to do with Python, at its
    end at the latest, once for all such calls since. While a function answers another process's call, own threads have
    nobody to answer them: give these a Filter of their own, and a responder without functions.

    Args:
        default: the answer, or the function, for syscalls without a rule and for calls that match none of theirs. If it is
            not given, ``deny(EPERM)``, as on the command line; write ``Responder(default=allow())`` to let the other calls run.
        fallback: what a failing function stands for. Default ``deny(EPERM)``: ENOSYS would make libraries try an older
            call instead, which the policy may treat otherwise.
        on_error: called with the exception and the Notification; by default ``sys.unraisablehook`` reports it.
        events: a ring that gets a record of each answer, see :class:`EventRing`.
    """

    def __init__(
        self,
        default: Answer | Callback | None = None,
        *,
        fallback: Answer | None = None,
        on_error: Callable[[Exception, Notification], object] | None = None,
        events: EventRing | None = None,
    ) -> None:
        self._default = deny(errno.EPERM) if default is None else _rule(default)
        self._rules: dict[tuple[int, int], list[Rule]] = {}
        self._frozen = False
        self._on_error = on_error
        self._stats = _core.Stats()
        self.events = events
        """The ring that was given."""
        if events is not None:
            self._stats.keep_records(events._ring)
        self.fallback = deny(errno.EPERM) if fallback is None else fallback
        if not isinstance(self.fallback, Answer) or self.fallback.kind in (_HOLD, _ADD_FD):
            raise ValueError(f"a fallback is allow(), deny(), reply() or kill(), got {self.fallback!r}")

    def on(
        self,
        syscall: str | int,
        answer: Answer | Callback,
        *conditions: Condition,
        arch: int | str | None = None,
        tgid: int | Iterable[int] | None = None,
        unreadable: Answer | Callback | None = None,
    ) -> Responder:
        """Answer a syscall, by name or number, with an answer or a function, where all conditions hold.

        Of several rules for a call the last one given that matches wins; when none does, ``default`` does. Conditions are
        ``Arg(index, op, value)`` and ``StringArg(index, prefix=...)``, and what ``&``, ``|`` and ``~`` make of them; all are
        decided in C. ``tgid`` restricts the rule to the threads of a process or of several (pids as this process sees
        them; a pid that ends and is given to another process means that one from then on). ``arch`` is an AUDIT_ARCH_
        token (or what the tables of syscalls know by name), None for the native one. Takes effect at the next ``serve()``.

        ``unreadable`` is the answer where a StringArg cannot be read and the rest does not decide the rule: no memory there,
        no ptrace access, no end within 4096 bytes. Default: ``deny(EFAULT)``.

        To deny, to reply and to kill by a string is sound. To ``allow()`` by a string is no security boundary: the kernel
        reads the string again, and another thread of the target, or whoever shares its memory, can change it in between.

        Raises: UnknownSyscallError: no syscall of that name there. PolicyError: the responder's rules are in a Filter
        already. TypeError, ValueError: something that is no answer, condition or pid.

        Source: seccomp_unotify(2).
        """
        if self._frozen:
            raise PolicyError(f"{syscall}: these rules became part of a Filter, which cannot change; make it after the last rule")
        for condition in conditions:
            if not isinstance(condition, Condition):
                raise TypeError(f"{syscall}: {condition!r} is not a condition; write Arg(index, op, value) or StringArg(...)")
        missing = deny(errno.EFAULT) if unreadable is None else _rule(unreadable)
        rule = Rule(_rule(answer), conditions, () if tgid is None else _pids(tgid), missing)
        rules = self._rules.setdefault(_call_key(syscall, arch), [])
        if not rule.conditional:
            rules.clear()
        rules.append(rule)
        return self

    def simulate(
        self, syscall: str | int, args: Sequence[int] = (), *, arch: int | str | None = None, pid: int = 0
    ) -> Answer | Callback:
        """Tell which answer, or function, a call of task ``pid`` would get now; strings are read from its memory as it is.

        Negative arguments stand for their two's complement. Task 0 is none: nothing of it can be read.
        """
        if len(args) > 6:
            raise ValueError(f"a system call has six arguments, {len(args)} were given")
        token, number = _call_key(syscall, arch)
        table, functions = self._table()
        kind, error, value, fd = table.decide(token, number, [arg % (1 << 64) for arg in args], pid)
        if kind == _HOLD:
            return functions[value] if value else hold()
        if kind != _ADD_FD:
            return Answer(kind, error, value)
        given = [self._default, *(a for rules in self._rules.values() for r in rules for a in (r.answer, r.unreadable))]
        return next(answer for answer in given if isinstance(answer, Answer) and answer.fd == fd)

    def stats(self) -> ResponderStats:
        """Read the counters of all loops that used this responder; they never stop for it."""
        answered, gone, uncounted, pending = self._stats.totals()
        rows = {(arch, nr): _counts(counts) for arch, nr, counts in self._stats.rows()}
        return ResponderStats(
            _counts(answered), MappingProxyType(rows), tuple(self._stats.latencies()), gone, uncounted, pending, 0 if self.events is None else self.events.dropped
        )

    def _table(self) -> tuple[_core.Table, list[Callback]]:
        """The rules for C. Where Python is asked it says hold, with the number of the function; 0 is hold() itself."""
        functions: list[Callback] = [lambda _: hold()]

        def fixed(answer: Answer | Callback) -> Answer:
            if isinstance(answer, Answer):
                return answer
            functions.append(answer)
            return Answer(_HOLD, 0, len(functions) - 1)

        rows = [
            (arch, nr, fixed(rule.answer), *_flatten(rule.conditions), rule.processes, fixed(rule.unreadable))
            for (arch, nr), rules in self._rules.items()
            for rule in rules
        ]
        return _core.Table(rows, fixed(self._default), self.fallback), functions

    def _compile(self) -> tuple[_core.Table, _core.Stats, Callable[[Any], object]]:
        """Split the rules: the table answers or holds, and what it holds goes to the function returned."""
        table, functions = self._table()
        if any(condition.strings for rules in self._rules.values() for rule in rules for condition in rule.conditions):
            table.keep_memory()  # or not, where that takes more privilege: features() tells
        if not self._rules and not isinstance(self._default, Answer):
            return table, self._stats, self._default
        return table, self._stats, lambda notification: functions[notification._rule](notification)

    def _report(self, error: Exception, notification: Notification) -> None:
        if self._on_error is not None:
            try:
                self._on_error(error, notification)
                return
            except Exception as second:
                error = second
        _core.report(error, notification)


def _call_key(syscall: str | int, arch: int | str | None) -> tuple[int, int]:
    """The token of the architecture and the number there."""
    if isinstance(syscall, int) and isinstance(arch, int):
        return arch, syscall
    number = syscall if isinstance(syscall, int) else syscalls.resolve(syscall, arch)
    return syscalls.Arch.of(arch).token, number


def _rule(answer: Answer | Callback) -> Answer | Callback:
    if isinstance(answer, Answer) or callable(answer):
        return answer
    raise TypeError(f"a rule is an answer such as deny(errno.EPERM), or a function, got {answer!r}")


def _pids(tgid: int | Iterable[int]) -> tuple[int, ...]:
    pids = (tgid,) if isinstance(tgid, int) else tuple(tgid)
    for pid in pids:
        if isinstance(pid, bool) or not isinstance(pid, int) or not 0 < pid < 1 << 31:
            raise ValueError(f"tgid is a pid or several, got {pid!r}")
    if not pids:
        raise ValueError("tgid: no pid was given, so the rule could never match")
    return tuple(sorted(set(pids)))


def _flatten(conditions: tuple[Condition, ...]) -> tuple[tuple[Term, ...], tuple[tuple[int, bytes], ...]]:
    """All terms, and what they ask of strings, by number."""
    strings = tuple(string for condition in conditions for string in condition.strings)
    terms = []
    number = 0
    for term in (term for condition in conditions for term in condition.terms):
        if term[0] == STRING_TERM:
            terms.append((STRING_TERM, term[1], 0, 0, number, 0))
            number += 1
        else:
            terms.append(term)
    return tuple(terms), strings


def _counts(counts: tuple[int, ...]) -> Mapping[str, int]:
    return MappingProxyType({kind: count for kind, count in zip(KINDS, counts, strict=True) if count})
