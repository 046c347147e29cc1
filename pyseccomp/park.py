"""Parked processes: a thread of the target waits with the filter in its hand, and the creator of the filter wakes it.

The target does it itself (``Filter.recv(sock).attach(active=False)``), so nobody needs the right to trace it. What it parked is
announced to the creator over a socket that went with the filter; that way comes the listener, too, which is never among the
target's descriptors.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from pyseccomp import _core, gate
from pyseccomp.actions import ALLOW, LOG
from pyseccomp.attach import Attachment, AttachmentState, AttachResult, ThreadOutcome
from pyseccomp.errors import AttachError, AttachTimeoutError, NotPermittedError, TargetFilteredError, TargetGoneError, UnsupportedError
from pyseccomp.query import State, TaskState, query

if TYPE_CHECKING:
    from pyseccomp.filter import Filter

_MESSAGE: Final = struct.Struct("=8sIiQII")
_MAGIC: Final = b"PSCPARK\0"
_HELLO, _DONE, _GONE = 1, 2, 3
_WAITING, _APPLIED, _LOST = range(3)
_NEW_LISTENER = 1 << 3
_LAST_WORDS = 0.2
_AT_ONCE: Final = 1024
_SPARE: Final = 4  # descriptors that a look at a parked process takes
_EACH: Final = 0.00005
_LONGEST: Final = 0.005
_PAUSE: Final = 0.05
"""Nothing for so long: a process that was woken and is silent does not run, or is gone."""
_WITHOUT_LISTENER: Final = "in force, but its listener is lost, so its notified calls fail with ENOSYS"


class Channel:
    """The way between a filter's creator and those who park; the creator keeps one end, the other goes with the filter."""

    def __init__(self) -> None:
        self.ours, self.theirs = _core.socket_pair(socket.SOCK_SEQPACKET)
        self.fd = self.ours.fileno()
        self.refused: OSError | None = None
        """What kept the next message from being received; it waits."""

    def close(self) -> None:
        """Close both ends: who is parked stays so."""
        self.ours.close()
        self.theirs.close()


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a target needs to park: its end of the channel, and its word."""

    channel: _core.Fd
    slot: int

    def close(self) -> None:
        """Close the end."""
        self.channel.close()


def check_end(fd: int) -> None:
    """Raise ValueError if fd is no end of a channel."""
    try:
        kind = _core.socket_kind(fd)
    except OSError:
        raise ValueError("no socket") from None
    if kind != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        raise ValueError("another kind of socket")


class ParkedHere(Attachment):
    """This process, parked by itself. Made by ``attach(active=False)`` without a target.

    A thread waits for the creator of the filter; it is in force as soon as that activates it, for every thread, and
    nothing of it can be undone. Neither exec nor vfork carries it on; a fork() of the C library's (os.fork, multiprocessing)
    parks the child, which is killed if that fails. ``result`` stays None: the kernel's truth is what :meth:`query` tells.

    With ``deadline=`` the waiting thread puts it in force by itself then, or with ``on_deadline="kill"`` ends the process, whether its
    creator lives or not; children that fork() parks have the same moment.

    A thread more is in the process: calls that only a process of one thread may make (unshare of a user namespace) fail.
    """

    _park: _core.Park | None = None
    _before: TaskState

    def _begin(self) -> None:
        filter, ticket = self._filter, self._filter._ticket
        if ticket is None:
            raise NotPermittedError(
                errno.EPERM,
                "park: the creator of this filter cannot be reached; get it by Filter.send() and recv(), or call accept_parked() "
                "before the fork that inherits it",
            )
        program = filter.program
        if program.simulate("exit").action not in (ALLOW, LOG):
            raise UnsupportedError(
                errno.EOPNOTSUPP, "park: the program does not let a thread end (exit), as the waiting one must; use mode='gate'"
            )
        self._before = query(os.getpid())
        counts = {thread.filters for thread in self._before.threads if thread.alive}
        if len(counts) > 1:
            raise AttachError(
                errno.ESRCH,
                f"park: threads of this process carry different filters ({counts} of them), and the kernel would refuse all; park before "
                "they load their own, or have another process attach (mode='inject'), which gives each thread the filter",
            )
        flags = filter._load_flags()
        flags |= _NEW_LISTENER if program.notifies else 0
        mode = {False: 0, True: 1, "auto": -1}[self.no_new_privs]
        self.mode = "park"
        self._slot_parked = ticket.slot
        try:
            self._park = _core.Park(
                filter._memfd,
                ticket.channel.fileno(),
                ticket.slot,
                bytes(program),
                flags,
                mode,
                -1 if self._ends is None else int(self._ends * 1e9),
                self.on_deadline == "kill",
            )
        except OSError as error:
            if error.errno == errno.EACCES:
                raise TargetFilteredError(
                    errno.EACCES,
                    "park: a filter that this process carries kills or denies a call that the waiting thread makes (close_range, futex, "
                    "wait4, tgkill, sched_yield, sendmsg, exit); nothing waits; allow them, or have another process attach",
                ) from None
            raise AttachError(error.errno or 0, f"park: {error.strerror}; nothing waits") from None

    @property
    def activated(self) -> bool:
        """True once the kernel took the filter."""
        return self._park is not None and self._park.state == _APPLIED and self._park.result == 0

    def activate(self) -> None:
        """Put the filter in force: for its creator only, who holds the word. Returns when it is in force."""
        gate.write(self._filter, self._slot_parked, gate.ACTIVE, "activate what this process parked")
        self._filter._page.ring()
        deadline = time.monotonic() + self.timeout
        while self._park is not None and self._park.state == _WAITING and time.monotonic() < deadline:
            time.sleep(0.0005)
        if not self.activated:
            raise AttachError(-(self._park.result if self._park else -errno.ECANCELED), "park: the kernel did not take the filter")

    def _judge(self, task: TaskState) -> State:
        if task.state == "dead":
            return "dead"
        if self._park is None or self._park.state == _LOST:
            return "detached"
        return "active" if self.activated else "inactive"

    def close(self) -> None:
        """Give it up, if it waits yet: the creator is told."""
        self._close()

    def _close(self, keep: bool = False) -> None:
        if self._park is not None and self._pidfd >= 0:
            self._park.end()
        super()._close(keep)


class Parked(Attachment):
    """A process that parked itself, as the creator of the filter sees it; among ``filter.attachments``.

    ``activate`` wakes it: one store, and a wake-up; no ptrace. Where several processes share a word (children of one that
    parked, or that inherited the filter) it wakes them all.
    """

    lost = False
    """True if its thread ended before: the process executed a program, ended, or gave up. Nothing is in force then."""

    def __init__(self, filter: Filter, pidfd: _core.Fd, token: int, slot: int, timeout: float = 5.0) -> None:
        task = query(pidfd=pidfd.number)
        super().__init__(filter, task.pid, pidfd, "all", "auto", timeout)
        self.mode = "park"
        self._token = token
        self._word = slot
        self._filters = {thread.tid: thread.filters for thread in task.threads}
        self._error = 0
        self._done = False
        self._woken = False

    @property
    def activated(self) -> bool:
        """True once the kernel took the filter."""
        self._filter._hear_parked()
        return self.result is not None

    def _begin(self) -> None:
        raise AssertionError("it parks itself")

    def activate(self) -> None:
        """Wake it, and wait until the kernel has taken the filter.

        Raises TargetGoneError: it executed a program or ended before. AttachTimeoutError: nothing came within ``timeout`` s; it
        takes the filter as soon as it runs. AttachError: the kernel refused; ESRCH: a thread of it has other filters.
        """
        self._check_open("activate")
        if self.result is not None:
            return
        # First of all; whether it lives yet is asked afterwards.
        channel, deadline = self._filter._channel, time.monotonic() + self.timeout
        if self._filter._page.writable and channel is not None:
            self._woken = True
            wait = 0 if self._done or self.lost else int(min(self.timeout, _PAUSE) * 1000)
            self._filter._page.wake(self._word, gate.ACTIVE, channel.fd, self._pidfd, wait)
        self._confirm(deadline)

    def _confirm(self, deadline: float) -> None:
        """Wait for what became of it."""
        while not self._done and not self.lost:
            left = max(0.0, deadline - time.monotonic())
            ended = bool(select.select([self._pidfd], [], [], 0)[0])
            # What it left is on its way, unless its helper was killed with it; or another thread of ours has heard it.
            self._filter._hear_parked(min(left, _LAST_WORDS), None if ended else self._pidfd)
            if ended and not self._done and not self.lost:
                raise TargetGoneError(errno.ESRCH, f"parked process {self.pid}: it has ended, and said nothing of the filter")
            if time.monotonic() >= deadline and not self._done and not self.lost:
                raise AttachTimeoutError(errno.ETIMEDOUT, f"parked process {self.pid}: nothing within {self.timeout} s; {self._why_silent()}")
        if self.lost:
            raise TargetGoneError(errno.ESRCH, f"parked process {self.pid}: its thread ended before (exec, death, or given up)")
        if self._error and self.result is not None:
            raise AttachError(self._error, f"parked process {self.pid}: {_WITHOUT_LISTENER}: {os.strerror(self._error)}")
        if self._error:
            raise AttachError(self._error, f"parked process {self.pid}: the kernel refused: {os.strerror(self._error)}")

    def _why_silent(self) -> str:
        channel = self._filter._channel
        if channel is not None and channel.refused is not None:
            return f"its message cannot be received here ({channel.refused.strerror}) and waits"
        if not self.closed and self._judge(query(pidfd=self._pidfd)) == "active":
            return "the filter is in force; its listener cannot be sent yet, and is kept by its process"
        return "is it stopped?"

    def _end(self, error: int, listener: _core.Fd | None) -> bool:
        """Take what its helper reports, if the kernel says so too; True if the listener was taken."""
        self._done = True
        task = query(pidfd=self._pidfd)
        lost = 0
        if not error and task.state != "dead" and self._bare(task):
            error = -errno.EBADMSG
        if not error and self._filter.program.notifies and listener is None:
            lost = errno.EBADMSG
        elif not error and listener is not None:
            try:
                self._filter._listen((listener.number,))
            except OSError as refused:
                lost, listener = refused.errno or errno.EBADMSG, None
        self._error = lost or -error
        if error:
            self._changed("inactive", f"what was parked is not in force: {os.strerror(-error)}")
            return False
        outcomes = tuple(ThreadOutcome(tid, n, n + 1 if n is not None else None) for tid, n in self._filters.items())
        self._outcome.keep([] if listener is None else [listener])
        self.result = AttachResult(outcomes, False, False, 0, 0)
        self._changed("active", f"{_WITHOUT_LISTENER}: {os.strerror(lost)}" if lost else "activated: it was parked")
        return listener is not None

    def _bare(self, task: TaskState) -> bool:
        """Whether a thread of it carries no more filters than when it parked."""
        counts = [n for n in self._filters.values() if n is not None]
        before = min(counts, default=0)
        return any(t.alive and (t.seccomp != "filter" or (t.filters is not None and t.filters <= before)) for t in task.threads)

    def _judge(self, task: TaskState) -> State:
        if task.state == "dead":
            return "dead"
        if self.lost:
            return "detached"
        if self.result is None:
            return "active" if self._woken and not self._bare(task) else "inactive"
        return "detached" if self._bare(task) else "active"

    def query(self) -> AttachmentState:
        """Ask the kernel what is true of it, now."""
        self._filter._hear_parked()
        return super().query()

    def close(self) -> None:
        """Forget it; what waits goes on waiting for the filter's own word."""
        super().close()


def activate(filter: Filter, channel: Channel) -> None:
    """Wake all that are known by one store, before anything else; then receive all that they say, and only then look into it."""
    for one in filter._attachments:
        if type(one) is Parked and not one._done and not one.lost:
            break
    else:
        return
    try:
        filter._page.wake(0, gate.ACTIVE, channel.fd, -1, int(_PAUSE * 1000))
    except PermissionError:
        gate.write(filter, 0, gate.ACTIVE, "activate what is parked")
    waiting = [one for one in filter._parked_ones() if not one._done and not one.lost]
    for one in waiting:
        one._woken = True
    count = len(waiting)
    found: list[_Received] = []
    try:
        while (left := count - len(found)) > 0:
            if left > 1:
                time.sleep(min(left * _EACH, _LONGEST))  # the processors are for those who were woken
            select.select([channel.fd], [], [], _PAUSE)
            if not _receive(channel, found):
                break
        _take_all(filter, found)
    finally:
        _close_all(found)


def hear(filter: Filter, channel: Channel, timeout: float = 0.0, pidfd: int | None = None) -> None:
    """Take the messages that have come; wait for one if told, or for the end of a process."""
    if timeout > 0:
        select.select([channel.fd, *([] if pidfd is None else [pidfd])], [], [], timeout)
    found: list[_Received] = []
    try:
        if not _receive(channel, found) and channel.refused is not None:
            time.sleep(min(timeout, _LONGEST))  # the socket is readable all the time
        _take_all(filter, found)
    finally:
        _close_all(found)


_Received = tuple[bytes, list[_core.Fd]]


def _receive(channel: Channel, found: list[_Received]) -> bool:
    """Receive what there is; False if there is nothing."""
    before = len(found)
    while len(found) < before + _AT_ONCE:
        channel.refused = None
        try:
            data, fds, flags = _core.receive_now(channel.ours, _MESSAGE.size + 1, _SPARE)
        except BlockingIOError:
            break
        except OSError as error:  # no free descriptor, no memory: the message stays where it is
            channel.refused = error
            break
        if not data:
            _core.close_foreign(fds)
            break
        if len(data) == _MESSAGE.size and len(fds) <= 1 and not flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            found.append((data, fds))
        else:
            _core.close_foreign(fds)
    return len(found) > before


def _take_all(filter: Filter, found: list[_Received]) -> None:
    for data, fds in found:
        _take(filter, data, fds)


def _close_all(found: list[_Received]) -> None:
    for _, fds in found:
        _core.close_foreign(fds)


def _take(filter: Filter, data: bytes, fds: list[_core.Fd]) -> None:
    """Believe nothing: it comes from who may be hostile by now. fds that are kept leave the list."""
    magic, kind, result, token, slot, _ = _MESSAGE.unpack(data)
    if magic != _MAGIC:
        return
    known = next((a for a in filter._parked_ones() if a._token == token), None)
    if kind == _HELLO and known is None and fds:
        with contextlib.suppress(OSError, ValueError):
            attachment = Parked(filter, fds[0], token, slot)
            fds.clear()
            filter._adopt_parked(attachment)
    elif kind == _DONE and known is not None and not known._done:
        if known._end(min(result, 0), fds[0] if fds and filter.program.notifies else None):
            fds.clear()
    elif kind == _GONE and known is not None and not known._done and not known.lost:
        known.lost = True
        known._changed("detached", "its parked thread ended: exec, death, or given up")


Mode = Literal["auto", "inject", "gate", "park"]
