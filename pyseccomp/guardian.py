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

from pyseccomp import _core
from pyseccomp.errors import KernelError, NotPermittedError, UnsupportedError

HELLO, WATCH, ACTIVATE, LISTEN, RELEASE, BYE = range(1, 7)
INFO, RECLAIM = 7, 8
DONE, ACTED, WARD = 9, 10, 11
INACTIVE, ACTIVE, KILLED, GONE, FAILED = range(5)

_TAKES_OVER = 5.0
"""Seconds that a guardian is waited for to take over; it does so in well under a millisecond."""

Message = dict[str, Any]
OnActed = Callable[[Message, list[int]], None]
OnLost = Callable[[], None]


class Guardian:
    """A connection to a guardian. Every request is answered; what it does by itself goes to ``on_acted``.

    Raises UnsupportedError when it cannot be started: nothing may then rely on it.
    """

    def __init__(
        self, memfd: int, inbox: _core.Inbox, on_acted: OnActed, on_lost: OnLost, named: Callable[[], int] | None = None
    ) -> None:
        path = Path(_core.__file__ or "").with_name("guardian")
        try:
            self._socket = _core.guardian_start(os.fsencode(path))
        except OSError as error:
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
        """Filter a ward: the message that tells the result, and the listeners."""
        return self._exchange(ACTIVATE, [], ward=ward, timeout_ns=timeout_ns)

    def listen(self, ward: int, listeners: Sequence[int]) -> None:
        """Hand over copies of the listeners of a ward that was filtered otherwise."""
        for start in range(0, max(1, len(listeners)), 64):
            self._ask("hand listeners to the guardian", LISTEN, listeners[start : start + 64], ward=ward)

    def release(self, ward: int) -> None:
        """Take a target out of its care."""
        while not self._lost and os.getpid() == self._owner:
            message, _ = self._exchange(RELEASE, [], ward=ward)
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
        with contextlib.suppress(OSError):
            _core.guardian_send(self._socket, [], BYE, 0)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        os.close(self._socket)

    def leave(self) -> None:
        """Let go as if this process had died: the guardian has done what was promised for that, or has begun to, on return."""
        self._closing = True
        if os.getpid() == self._owner:
            with socket.socket(fileno=os.dup(self._socket)) as connection, contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
                if threading.current_thread() is not self._thread:
                    self._thread.join(_TAKES_OVER)
                connection.shutdown(socket.SHUT_RDWR)
            if threading.current_thread() is not self._thread:
                self._thread.join()
        os.close(self._socket)

    def _ask(self, what: str, kind: int, fds: Sequence[int], **fields: Any) -> tuple[Message, list[int]]:
        message, got = self._exchange(kind, fds, **fields)
        error = -message["error"]
        if error == errno.EPERM:
            raise NotPermittedError(
                error,
                f"{what}: the guardian, which acts when this process is dead, would not be permitted to (ptrace: same user, "
                "and under YAMA's ptrace_scope 1 CAP_SYS_PTRACE)",
            )
        if error:
            raise KernelError(error, f"{what}: {os.strerror(error)}")
        return message, got

    def _exchange(self, kind: int, fds: Sequence[int], **fields: Any) -> tuple[Message, list[int]]:
        answer: queue.SimpleQueue[tuple[Message, list[int]]] = queue.SimpleQueue()
        with self._lock:
            if self._lost:
                return {"error": -errno.ECONNRESET}, []
            self._serial += 1
            self._waiting[self._serial] = answer
            try:
                _core.guardian_send(self._socket, fds, kind, self._serial, **fields)
            except OSError as error:
                del self._waiting[self._serial]
                return {"error": -(error.errno or errno.EIO)}, []
        return answer.get()

    def _hear(self) -> None:
        parts: list[tuple[Message, list[int]]] = []
        while True:
            try:
                parts.append(_core.guardian_receive(self._socket))
            except OSError:
                break
            if not parts[-1][0]["more"]:
                self._deliver(parts)
                parts = []
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
        if answer is None:
            for fd in fds:
                os.close(fd)
        else:
            answer.put((message, fds))
