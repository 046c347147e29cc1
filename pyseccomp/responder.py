"""Answers, and the rules that choose them."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pyseccomp import _core, syscalls
from pyseccomp._core import Answer as Answer

if TYPE_CHECKING:
    from pyseccomp.notify import Notification

_HOLD, _CONTINUE, _ERROR, _VALUE, _KILL = range(5)
_KINDS = ("hold", "allow", "deny", "reply", "kill")

Callback = Callable[["Notification"], "Answer | None"]


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


def hold() -> Answer:
    """No answer yet: whoever kept the Notification answers it later."""
    return Answer(_HOLD)


@dataclasses.dataclass(frozen=True, slots=True)
class ResponderStats:
    """What a responder's loops did so far.

    ``by_syscall`` maps (arch, number) to counts by answer; ``latencies`` holds (from_ns, count) of the histogram's
    buckets that are not empty, four to an octave, of the time from receiving to answering. ``gone``: targets that were
    gone before their answer. ``uncounted``: answers to syscalls beyond the 1024 that are told apart.
    """

    answered: Mapping[str, int]
    by_syscall: Mapping[tuple[int, int], Mapping[str, int]]
    latencies: tuple[tuple[int, int], ...]
    gone: int
    uncounted: int

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


class Responder:
    """Rules that answer notifications: by a table in C, or by a Python function.

    A function gets the Notification and returns an answer (which is sent on the way to the next notification, the
    cheapest way), or answers through the Notification's methods and returns None, or returns ``hold()`` and answers
    later. When it raises, or does none of that, the call fails with ``fallback`` and ``on_error`` is told; the loop goes
    on. KeyboardInterrupt and SystemExit end the loop, after the same answer.

    Args:
        default: the answer, or the function, for syscalls without a rule.
        fallback: what a failing function stands for. Default ``deny(EPERM)``: ENOSYS would make libraries try an older
            call instead, which the policy may treat otherwise.
        on_error: called with the exception and the Notification; by default ``sys.unraisablehook`` reports it.
    """

    def __init__(
        self,
        default: Answer | Callback | None = None,
        *,
        fallback: Answer | None = None,
        on_error: Callable[[Exception, Notification], object] | None = None,
    ) -> None:
        self._default = allow() if default is None else _rule(default)
        self._rules: dict[tuple[int, int], Answer | Callback] = {}
        self._on_error = on_error
        self._stats = _core.Stats()
        self.fallback = deny(errno.EPERM) if fallback is None else fallback
        if not isinstance(self.fallback, Answer) or self.fallback == hold():
            raise ValueError(f"a fallback is allow(), deny(), reply() or kill(), got {self.fallback!r}")

    def on(self, syscall: str | int, answer: Answer | Callback, *, arch: int | str | None = None) -> Responder:
        """Answer a syscall, by name or number, with an answer or a function; the last rule for it wins.

        Takes effect at the next ``serve()``. ``arch`` is an AUDIT_ARCH_ token (or what the tables of syscalls know by
        name), None for the native one.

        Raises: UnknownSyscallError: no syscall of that name there.
        """
        self._rules[_call_key(syscall, arch)] = _rule(answer)
        return self

    def stats(self) -> ResponderStats:
        """Read the counters of all loops that used this responder; they never stop for it."""
        answered, gone, uncounted = self._stats.totals()
        rows = {(arch, nr): _counts(counts) for arch, nr, counts in self._stats.rows()}
        return ResponderStats(
            _counts(answered), MappingProxyType(rows), tuple(self._stats.latencies()), gone, uncounted
        )

    def _compile(self) -> tuple[_core.Table, _core.Stats, Callable[[Any], object]]:
        """Split the rules: the table answers or holds, and what it holds goes to the function returned."""
        fixed = [(arch, nr, _in_table(answer)) for (arch, nr), answer in self._rules.items()]
        functions = {key: answer for key, answer in self._rules.items() if not isinstance(answer, Answer)}
        default = self._default

        def call(notification: Notification) -> object:
            function = functions.get((notification.arch, notification.nr))
            if function is not None:
                return function(notification)
            return hold() if isinstance(default, Answer) else default(notification)

        table = _core.Table(fixed, _in_table(default))
        if not functions and not isinstance(default, Answer):
            return table, self._stats, default
        return table, self._stats, call

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


def _in_table(answer: Answer | Callback) -> Answer:
    return answer if isinstance(answer, Answer) else hold()


def _counts(counts: tuple[int, ...]) -> Mapping[str, int]:
    return MappingProxyType({kind: count for kind, count in zip(_KINDS, counts, strict=True) if count})
