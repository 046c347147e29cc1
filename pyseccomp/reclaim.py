"""Take over the filters of a manager that is dead, from the guardian that holds them."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
import weakref

from pyseccomp import _core, guardian, names, shortage
from pyseccomp.attach import Attachment, AttachResult, ThreadOutcome
from pyseccomp.errors import ReclaimError, TargetGoneError
from pyseccomp.filter import Filter
from pyseccomp.query import query

_ANSWER_NS = struct.pack("ll", 10, 0)
_RETRY = 5.0


@shortage.told("reclaim a name")
def reclaim(name: str) -> Filter:
    """Become the manager of the filter of that name, whose manager is dead.

    The Filter has the attachments, with their listeners and whatever waits there. What the dead manager had received and
    left unanswered is received first, each once; the same notification was never answered before. When this process
    dies too, the name can be reclaimed again.

    Raises:
        ReclaimError: nobody has that name (ENOENT); its manager lives (EBUSY); it belongs to another user (EPERM).
    """
    end = time.monotonic() + _RETRY
    while True:
        connection = _connect(name)
        try:
            manager, filter_ = _ask(name, connection)
        except BaseException:
            connection.close()
            raise
        if filter_ is not None:
            return filter_
        connection.close()
        if manager or time.monotonic() > end:
            who = f"process {manager}, its manager, lives" if manager else "its guardian is filtering a process at this moment"
            raise ReclaimError(errno.EBUSY, f"reclaim {name!r}: {who}")
        time.sleep(0.01)


def _connect(name: str) -> socket.socket:
    path = names.path_of(name)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # A timeout of Python's would make it non-blocking.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _ANSWER_NS)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _ANSWER_NS)  # for connect, where many do
        sock.connect(str(path))
        _, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (os.geteuid(), 0):
            raise ReclaimError(errno.EPERM, f"reclaim {name!r}: it belongs to user {uid}, and this is user {os.geteuid()}")
    except BaseException as error:
        sock.close()
        if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            raise ReclaimError(errno.ENOENT, f"reclaim {name!r}: no guardian has that name ({path})") from None
        if isinstance(error, BlockingIOError):
            raise ReclaimError(errno.ETIMEDOUT, f"reclaim {name!r}: its guardian does not answer") from None
        raise
    return sock


def _receive(name: str, connection: socket.socket) -> tuple[guardian.Message, list[_core.Fd]]:
    """One message with all its parts."""
    fds: list[_core.Fd] = []
    while True:
        try:
            message, more = _core.guardian_receive(connection.fileno())
        except OSError as error:
            raise ReclaimError(error.errno, f"reclaim {name!r}: its guardian does not answer: {error.strerror}") from None
        # Every part of a ward begins with its pidfd.
        if fds and message["kind"] == guardian.WARD:
            more.pop(0).close()
        fds += more
        if not message["more"]:
            return message, fds


def _ask(name: str, connection: socket.socket) -> tuple[int, Filter | None]:
    """(the living manager or 0, None), or (0, the filter)."""
    try:
        _core.guardian_send(connection.fileno(), [], guardian.RECLAIM, 1)
    except OSError as error:
        raise ReclaimError(error.errno, f"reclaim {name!r}: its guardian has ended: {error.strerror}") from None
    message, fds = _receive(name, connection)
    if message["error"] == -errno.EBUSY:
        return message["manager"], None
    wards: list[tuple[guardian.Message, list[_core.Fd]]] = []
    try:
        if message["error"] or len(fds) != 2:
            raise ReclaimError(-message["error"] or errno.EBADMSG, f"reclaim {name!r}: {os.strerror(-message['error'])}")
        wards += [_receive(name, connection) for _ in range(message["wards"])]
        return 0, _take_over(name, connection, fds, wards)
    finally:
        for fd in (*fds, *(fd for _, more in wards for fd in more)):
            fd.close()


def _take_over(
    name: str, connection: socket.socket, fds: list[_core.Fd], wards: list[tuple[guardian.Message, list[_core.Fd]]]
) -> Filter:
    """Build the objects; what they own is taken out of the lists."""
    self = Filter.from_fd(fds[0].number)
    try:
        self._name = name
        # From here on the connection's end is a death: what fails below leaves everything to the next one.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))
        for message, more in wards:
            _adopt_ward(self, message, more)
        # After the listeners: under them its orphans are looked for.
        self._inbox.keep_journal(_core.Journal(fds[1]))
        self._guardian = guardian.Guardian(*self._hooks())
        self._guardian.adopt(_core.duplicate(connection.fileno()))
        connection.close()
    except BaseException:
        self.leave()
        raise
    return self


def _adopt_ward(self: Filter, message: guardian.Message, fds: list[_core.Fd]) -> None:
    if message["state"] not in (guardian.ACTIVE, guardian.INACTIVE):
        return
    try:
        task = query(pidfd=fds[0].number)
    except TargetGoneError:
        return
    attachment = Attachment(self, task.pid, fds[0], "one" if message["leader_only"] else "all", "auto", 5.0)
    attachment._ward = message["ward"]
    self._next_ward = max(self._next_ward, message["ward"] + 1)
    self._wards[message["ward"]] = weakref.ref(attachment)
    if message["state"] == guardian.ACTIVE:
        outcomes = tuple(ThreadOutcome(t.tid, None, t.filters) for t in task.threads if t.alive)
        listeners, fds[:] = fds[1:], []
        attachment._adopt(AttachResult(outcomes, False, False, 0, 0), listeners)
    else:
        fds.clear()
        attachment._guardian_injects = bool(message["inject"])
    self._adopt(attachment)
