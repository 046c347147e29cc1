"""The manager's side of the guardian: the process that keeps a filter's promises when the manager is dead.

One guardian serves one :class:`Filter`; it is started with the first attachment that wants it. What it does is in
``csrc/guardian.c``.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyseccomp import _core, shortage
from pyseccomp.owned import Moment, Worker
from pyseccomp.errors import KernelError, ShortageError, UnsupportedError

HELLO, WATCH, ACTIVATE, LISTEN, RELEASE, BYE = range(1, 7)
INFO, RECLAIM = 7, 8
DONE, ACTED, WARD = 9, 10, 11
INACTIVE, ACTIVE, KILLED, GONE, FAILED = range(5)

_TAKES_OVER = 5.0
"""Seconds that a guardian is waited for to take over; it does so in well under a millisecond."""
PATIENCE = 10.0
"""Seconds that a guardian has to answer, besides what a request may take by itself."""
_AT_ONCE = 64
_AGAIN = 0.02
_MAY_PASS = (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN)

_log = logging.getLogger("pyseccomp")

Message = dict[str, Any]
OnActed = Callable[[Message, list[_core.Fd]], None]
OnLost = Callable[[], None]


class _Request:
    """What waits for an answer."""

    def __init__(self, then: OnActed | None) -> None:
        self.then = then
        self.answer: Message = {"error": -errno.ETIMEDOUT}
        self.answered = Moment()


class Guardian:
    """A connection to a guardian. Every request is answered; what it does by itself goes to ``on_acted``."""

    def __init__(self, on_acted: OnActed, on_lost: OnLost) -> None:
        self._socket = _core.Fd()
        self._owner = os.getpid()
        self._on_acted, self._on_lost = on_acted, on_lost
        self._lock = threading.Lock()
        self._serial = 0
        self._waiting: dict[int, _Request] = {}
        self._slots: queue.SimpleQueue[None] = queue.SimpleQueue()  # what is under way always fits into the socket
        for _ in range(_AT_ONCE):
            self._slots.put(None)
        self._refused: OSError | None = None
        self._closing = self._lost = False
        self._thread = Worker(self._hear)

    def start(self, memfd: int, inbox: _core.Inbox, named: Callable[[], _core.Fd] | None = None) -> None:
        """Start one. Whatever is raised, :meth:`close` ends what there is by then.

        Raises UnsupportedError when it cannot be started, or ShortageError: nothing may then rely on it.
        """
        path = Path(_core.__file__ or "").with_name("guardian")
        try:
            self._socket = _core.guardian_start(os.fsencode(path))
        except OSError as error:
            if shortage.of(error):
                raise ShortageError(error.errno, f"starting the guardian: {shortage.WANTS[error.errno or 0]}") from None
            raise UnsupportedError(
                error.errno, f"starting the guardian {path}: {error.strerror}; without it nothing outlives this process"
            ) from None
        self._begin()
        pidfd, journal = _core.own(os.pidfd_open, self._owner), _core.Journal()
        fds = [memfd, journal.fd, pidfd.number]
        name = named() if named is not None else None
        if name is not None:
            fds.append(name.number)
        self._ask("greet the guardian", HELLO, fds)
        inbox.keep_journal(journal)
        pidfd.close()
        if name is not None:
            name.close()

    def adopt(self, connection: _core.Fd) -> None:
        """Be the manager of a guardian that was reclaimed over this connection, which becomes this object's."""
        self._socket = connection
        self._begin()

    def _begin(self) -> None:
        """Start to hear. The thread is known to run or not to, whatever a signal handler raises."""
        self._thread.start()

    def watch(self, ward: int, pidfd: int, what: str, **options: Any) -> Message:
        """Put a target into its care. Of the answer, inject says whether it can inject there, refusal (not 0) why it could not now.

        An answer with an error and a refusal (enum psc_refusal) says that it could not do at the deadline what it is asked to.
        Raises KernelError when it cannot be asked, or cannot take the target.
        """
        message = self._exchange(WATCH, [pidfd], PATIENCE, None, ward=ward, **options)
        return message if message.get("refusal") else self._check(what, message)

    def activate(self, ward: int, timeout_ns: int, then: OnActed) -> Message:
        """Filter a ward: the message that tells the result. ``then`` gets it first, with the listeners, in the thread that hears.

        That thread runs no signal handlers, so nothing comes between the result and its owner. An error of ETIMEDOUT leaves
        open what became of it: a result that comes later goes to ``on_acted``.
        """
        return self._exchange(ACTIVATE, [], timeout_ns / 1e9 + PATIENCE, then, ward=ward, timeout_ns=timeout_ns)

    def why_silent(self) -> str:
        """Tell, as far as it is known, what keeps an answer from coming."""
        if self._refused is not None:
            return f"its answer is there and cannot be received here ({self._refused.strerror}); the guardian keeps the listener"
        return "it may be stopped, or the kernel may refuse to send its answer; it keeps the listener and tries again"

    def listen(self, ward: int, listeners: Sequence[int]) -> None:
        """Hand over copies of the listeners of a ward that was filtered otherwise."""
        for start in range(0, max(1, len(listeners)), 64):
            self._ask("hand listeners to the guardian", LISTEN, listeners[start : start + 64], ward=ward)

    def release(self, ward: int) -> None:
        """Take a target out of its care."""
        while not self._lost and os.getpid() == self._owner:
            message = self._exchange(RELEASE, [], PATIENCE, ward=ward)
            if message["error"] != -errno.EBUSY:
                return
            time.sleep(0.01)  # it is being filtered at this moment; that ends

    def close(self) -> None:
        """Send the guardian away: it closes all that it holds and does nothing. In a forked child: only let go.

        Idempotent; one that an exception interrupted is finished by the next.
        """
        self._closing = True
        if self._socket.number >= 0 and os.getpid() == self._owner:
            try:
                self._send([], BYE, 0, time.monotonic() + PATIENCE, {})
            except OSError:
                self._socket.shutdown()  # as if this process had died: that is kept rather than nothing
            if not self._thread.join(PATIENCE):  # it is stopped; what was sent is read first when it runs again
                self._socket.shutdown()
                self._thread.join()
        self._socket.close()

    def leave(self) -> None:
        """Let go as if this process had died: the guardian has done what was promised for that, or has begun to, on return."""
        self._closing = True
        if self._socket.number >= 0 and os.getpid() == self._owner:
            self._socket.shutdown(socket.SHUT_WR)
            self._thread.join(_TAKES_OVER)
            self._socket.shutdown()
            self._thread.join()
        self._socket.close()

    def _ask(self, what: str, kind: int, fds: Sequence[int], **fields: Any) -> Message:
        return self._check(what, self._exchange(kind, fds, PATIENCE, None, **fields))

    def _check(self, what: str, message: Message) -> Message:
        error = -message["error"]
        if error == errno.ETIMEDOUT:
            raise KernelError(error, f"{what}: the guardian has not answered: {self.why_silent()}")
        if error:
            raise KernelError(error, f"{what}: {os.strerror(error)}")
        return message

    def _exchange(self, kind: int, fds: Sequence[int], timeout: float, then: OnActed | None = None, **fields: Any) -> Message:
        """Send a request and wait for its answer; the error is ETIMEDOUT when none has come in time."""
        end = time.monotonic() + timeout
        try:
            self._slots.get(timeout=timeout)
        except queue.Empty:
            return {"error": -errno.ETIMEDOUT}
        request, serial = _Request(then), 0
        try:
            with self._lock:
                if self._lost:
                    return {"error": -errno.ECONNRESET}
                self._serial += 1
                serial = self._serial
                self._waiting[serial] = request
            self._send(fds, kind, serial, end, fields)
            request.answered.wait(max(0.0, end - time.monotonic()))
            return request.answer
        except OSError as error:
            return {"error": -(error.errno or errno.EIO)}
        finally:
            self._waiting.pop(serial, None)
            self._slots.put(None)

    def _send(self, fds: Sequence[int], kind: int, serial: int, end: float, fields: Any) -> None:
        """Send a request; what the kernel refuses for a moment is tried again until ``end``."""
        while True:
            try:
                with self._lock:
                    _core.guardian_send(self._socket.number, fds, kind, serial, **fields)
                return
            except OSError as error:
                if error.errno not in _MAY_PASS or time.monotonic() >= end:
                    raise
            time.sleep(_AGAIN)

    def _receive(self) -> tuple[Message, list[_core.Fd]] | None:
        """One message, or None at the connection's end. What finds no room here stays in the socket until it does."""
        while True:
            try:
                found = _core.guardian_receive(self._socket.number)
                self._refused = None
                return found
            except OSError as error:
                if self._closing or error.errno in (errno.ECONNRESET, errno.EBADMSG, errno.EBADF):
                    return None
                self._refused = error
            time.sleep(_AGAIN)

    def _hear(self) -> None:
        parts: dict[tuple[int, int, int], list[tuple[Message, list[_core.Fd]]]] = {}
        while (part := self._receive()) is not None:
            key = (part[0]["kind"], part[0]["serial"], part[0]["ward"])
            parts.setdefault(key, []).append(part)
            if not part[0]["more"]:
                self._deliver(parts.pop(key))
        with self._lock:
            self._lost = True
            waiting, self._waiting = self._waiting, {}
        for request in waiting.values():
            request.answer = {"error": -errno.ECONNRESET}
            request.answered.set()
        if not self._closing:
            self._on_lost()

    def _deliver(self, parts: list[tuple[Message, list[_core.Fd]]]) -> None:
        message = dict(parts[0][0], outcomes=[o for part, _ in parts for o in part["outcomes"]])
        fds = [fd for _, part in parts for fd in part]
        if message["kind"] == ACTED:
            self._tell(message, fds)
            return
        with self._lock:
            request = self._waiting.pop(message["serial"], None)
        if request is None:
            if message["state"] == ACTIVE:  # its request is not waited for any more, and the filter is in force
                self._tell(message, fds)
            return
        try:
            if request.then is not None:
                request.then(message, fds)
        finally:
            request.answer = message
            request.answered.set()

    def _tell(self, message: Message, fds: list[_core.Fd]) -> None:
        """Call ``on_acted``. An exception of it, or of the user's function behind it, must not end the thread that hears."""
        try:
            self._on_acted(message, fds)
        except Exception:
            if _core.may("write", "getpid"):  # which a log record takes
                _log.exception("what the guardian did for target %d could not be told", message["pid"])
