"""The manager's side of the guardian: the process that keeps a filter's promises when the manager is dead.

One guardian serves one :class:`Filter`; it is started with the first attachment that wants it. What it does is in
``csrc/guardian.c``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyseccomp import _core, shortage
from pyseccomp.errors import KernelError, NotPermittedError, ShortageError, UnsupportedError

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

Message = dict[str, Any]
OnActed = Callable[[Message, list[int]], None]
OnLost = Callable[[], None]


class Guardian:
    """A connection to a guardian. Every request is answered; what it does by itself goes to ``on_acted``.

    Raises UnsupportedError when it cannot be started, or ShortageError: nothing may then rely on it.
    """

    def __init__(
        self, memfd: int, inbox: _core.Inbox, on_acted: OnActed, on_lost: OnLost, named: Callable[[], int] | None = None
    ) -> None:
        path = Path(_core.__file__ or "").with_name("guardian")
        try:
            self._socket = _core.guardian_start(os.fsencode(path))
        except OSError as error:
            if shortage.of(error):
                raise ShortageError(error.errno, f"starting the guardian: {shortage.WANTS[error.errno or 0]}") from None
            raise UnsupportedError(
                error.errno, f"starting the guardian {path}: {error.strerror}; without it nothing outlives this process"
            ) from None
        self._begin(on_acted, on_lost)
        pidfd = os.pidfd_open(self._owner)
        fds = [memfd, -1, pidfd]
        try:
            journal = _core.Journal()
            fds[1] = journal.fd
            if named is not None:
                fds.append(named())
            self._ask("greet the guardian", HELLO, fds)
            inbox.keep_journal(journal)
        except BaseException:
            self.close()
            raise
        finally:
            for fd in fds[2:]:
                os.close(fd)

    def _begin(self, on_acted: OnActed, on_lost: OnLost) -> None:
        self._owner = os.getpid()
        self._on_acted, self._on_lost = on_acted, on_lost
        self._lock = threading.Lock()
        self._serial = 0
        self._waiting: dict[int, queue.SimpleQueue[tuple[Message, list[int]]]] = {}
        self._slots = threading.BoundedSemaphore(_AT_ONCE)  # what is under way always fits into the socket
        self._refused: OSError | None = None
        self._closing = self._lost = False
        self._thread = threading.Thread(target=self._hear, name="pyseccomp-guardian", daemon=True)
        self._thread.start()

    @classmethod
    def adopt(cls, connection: int, on_acted: OnActed, on_lost: OnLost) -> Guardian:
        """Be the manager of a guardian that was reclaimed over this connection, which becomes this object's."""
        self = cls.__new__(cls)
        self._socket = connection
        self._begin(on_acted, on_lost)
        return self

    def watch(self, ward: int, pidfd: int, what: str, **options: Any) -> bool:
        """Put a target into its care; True if it can inject there.

        Raises NotPermittedError when it could not do at the deadline what it is asked to.
        """
        return bool(self._ask(what, WATCH, [pidfd], ward=ward, **options)[0]["inject"])

    def activate(self, ward: int, timeout_ns: int) -> tuple[Message, list[int]]:
        """Filter a ward: the message that tells the result, and the listeners.

        An error of ETIMEDOUT leaves open what became of it: a result that comes later goes to ``on_acted``.
        """
        return self._exchange(ACTIVATE, [], timeout_ns / 1e9 + PATIENCE, ward=ward, timeout_ns=timeout_ns)

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
            message, _ = self._exchange(RELEASE, [], PATIENCE, ward=ward)
            if message["error"] != -errno.EBUSY:
                return
            time.sleep(0.01)  # it is being filtered at this moment; that ends

    def close(self) -> None:
        """Send the guardian away: it closes all that it holds and does nothing. In a forked child: only let go."""
        if self._closing:
            return
        self._closing = True
        if os.getpid() != self._owner:
            os.close(self._socket)
            return
        try:
            self._send([], BYE, 0, time.monotonic() + PATIENCE, {})
        except OSError:
            self._shut(socket.SHUT_RDWR)  # as if this process had died: that is kept rather than nothing
        if threading.current_thread() is not self._thread:
            self._thread.join(PATIENCE)
            if self._thread.is_alive():  # it is stopped; what was sent is read first when it runs again
                self._shut(socket.SHUT_RDWR)
                self._thread.join()
        os.close(self._socket)

    def leave(self) -> None:
        """Let go as if this process had died: the guardian has done what was promised for that, or has begun to, on return."""
        self._closing = True
        if os.getpid() == self._owner:
            self._shut(socket.SHUT_WR)
            if threading.current_thread() is not self._thread:
                self._thread.join(_TAKES_OVER)
            self._shut(socket.SHUT_RDWR)
            if threading.current_thread() is not self._thread:
                self._thread.join()
        os.close(self._socket)

    def _shut(self, how: int) -> None:
        """Shut the connection down, without another descriptor: there may be none."""
        with contextlib.suppress(OSError):
            connection = socket.socket(fileno=self._socket)
            try:
                connection.shutdown(how)
            finally:
                connection.detach()

    def _ask(self, what: str, kind: int, fds: Sequence[int], **fields: Any) -> tuple[Message, list[int]]:
        message, got = self._exchange(kind, fds, PATIENCE, **fields)
        error = -message["error"]
        if error == errno.EPERM:
            raise NotPermittedError(
                error,
                f"{what}: the guardian, which acts when this process is dead, would not be permitted to (ptrace: same user, "
                "and under YAMA's ptrace_scope 1 CAP_SYS_PTRACE)",
            )
        if error == errno.ETIMEDOUT:
            raise KernelError(error, f"{what}: the guardian has not answered: {self.why_silent()}")
        if error:
            raise KernelError(error, f"{what}: {os.strerror(error)}")
        return message, got

    def _exchange(self, kind: int, fds: Sequence[int], timeout: float, **fields: Any) -> tuple[Message, list[int]]:
        """Send a request and wait for its answer; the error is ETIMEDOUT when none has come in time."""
        end = time.monotonic() + timeout
        if not self._slots.acquire(timeout=timeout):
            return {"error": -errno.ETIMEDOUT}, []
        answer: queue.SimpleQueue[tuple[Message, list[int]]] = queue.SimpleQueue()
        serial = 0
        try:
            with self._lock:
                if self._lost:
                    return {"error": -errno.ECONNRESET}, []
                self._serial += 1
                serial = self._serial
                self._waiting[serial] = answer
            self._send(fds, kind, serial, end, fields)
            return answer.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            return {"error": -errno.ETIMEDOUT}, []
        except OSError as error:
            return {"error": -(error.errno or errno.EIO)}, []
        finally:
            with self._lock:
                self._waiting.pop(serial, None)
            self._slots.release()

    def _send(self, fds: Sequence[int], kind: int, serial: int, end: float, fields: Any) -> None:
        """Send a request; what the kernel refuses for a moment is tried again until ``end``."""
        while True:
            try:
                with self._lock:
                    _core.guardian_send(self._socket, fds, kind, serial, **fields)
                return
            except OSError as error:
                if error.errno not in _MAY_PASS or time.monotonic() >= end:
                    raise
            time.sleep(_AGAIN)

    def _receive(self) -> tuple[Message, list[int]] | None:
        """One message, or None at the connection's end. What finds no room here stays in the socket until it does."""
        while True:
            try:
                found = _core.guardian_receive(self._socket)
                self._refused = None
                return found
            except OSError as error:
                if self._closing or error.errno in (errno.ECONNRESET, errno.EBADMSG, errno.EBADF):
                    return None
                self._refused = error
            time.sleep(_AGAIN)

    def _hear(self) -> None:
        parts: dict[tuple[int, int, int], list[tuple[Message, list[int]]]] = {}
        while (part := self._receive()) is not None:
            key = (part[0]["kind"], part[0]["serial"], part[0]["ward"])
            parts.setdefault(key, []).append(part)
            if not part[0]["more"]:
                self._deliver(parts.pop(key))
        for _, fds in (part for unfinished in parts.values() for part in unfinished):
            for fd in fds:
                os.close(fd)
        with self._lock:
            self._lost = True
            waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer.put(({"error": -errno.ECONNRESET}, []))
        if not self._closing:
            self._on_lost()

    def _deliver(self, parts: list[tuple[Message, list[int]]]) -> None:
        message = dict(parts[0][0], outcomes=[o for part, _ in parts for o in part["outcomes"]])
        fds = [fd for _, part in parts for fd in part]
        if message["kind"] == ACTED:
            self._on_acted(message, fds)
            return
        with self._lock:
            answer = self._waiting.pop(message["serial"], None)
        if answer is not None:
            answer.put((message, fds))
        elif message["state"] == ACTIVE:  # its request is not waited for any more, and the filter is in force
            self._on_acted(message, fds)
        else:
            for fd in fds:
                os.close(fd)
