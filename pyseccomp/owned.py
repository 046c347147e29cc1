"""The life of objects that own file descriptors."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pyseccomp import _core
from pyseccomp.errors import FilterClosedError

_ending = False


def _begin_to_end() -> None:
    global _ending
    _ending = True
    _core.leave_to_exit()


atexit.register(_begin_to_end)


LETTING_GO = ("epoll_ctl", "futex", "tgkill", "clock_nanosleep")
"""The calls by which receivers are told that a listener leaves."""


def close_fds(*fds: int) -> None:
    """Close descriptors, unless a filter that this process loaded on itself forbids it: the kernel closes them at the end then."""
    if _core.may("close"):
        for fd in fds:
            os.close(fd)


class Moment:
    """Something that happens once. Unlike threading.Event it bears an exception that a signal handler raises in a wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._come = False

    def set(self) -> None:
        """Let it happen, for all that wait."""
        if not self._come:
            self._come = True
            self._lock.release()

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._come

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for it, at most timeout seconds; False if it has not happened."""
        return self._come or _core.pass_through(self._lock, -1 if timeout is None else timeout)


class Worker:
    """A thread that calls a function. It runs or does not, and this knows which, whatever a signal handler raises."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._running: list[int] = []
        self._ended = Moment()

    def start(self) -> None:
        """Start it."""
        _core.launch(self._running, self._run)

    def _run(self) -> None:
        try:
            self._function()
        finally:
            self._ended.set()

    def is_alive(self) -> bool:
        """Whether it runs."""
        return bool(self._running) and not self._ended.is_set()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it does not run, at most timeout seconds. A no-op in the thread itself."""
        if not self._running or threading.get_ident() in self._running:
            return True
        return self._ended.wait(timeout)


class Owned:
    """Base of the objects that own file descriptors: closed once, by ``with`` or :meth:`close`; dropped open, they warn.

    What is still open when the interpreter ends is not touched: the kernel closes it with the process, whose death others
    wait for.
    """

    @property
    def closed(self) -> bool:
        """True after :meth:`close`, and before there was anything to close."""
        raise AssertionError("defined by each owner")

    def close(self) -> None:
        """Close what is owned. Idempotent."""
        raise AssertionError("defined by each owner")

    def __enter__(self) -> Self:
        self._check_open("with")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self.closed:
            if _core.may("openat", "write"):  # which a shown warning takes
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            if not _ending and not sys.is_finalizing():
                self._drop()

    def _drop(self) -> None:
        """Let go of what is owned: the last reference to this object has gone."""
        self.close()

    def _check_open(self, what: str) -> None:
        if self.closed:
            raise FilterClosedError(f"{what}: this {type(self).__name__.lower()} is closed")
