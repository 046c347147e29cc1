"""The processes of a cgroup that lack the filter that was put on it, and the thread that filters what enters."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyseccomp import _core
from pyseccomp.attach import Attachment, AttachResult, may_suspend_filters
from pyseccomp.errors import SeccompError, TargetGoneError
from pyseccomp.query import TaskState, query

if TYPE_CHECKING:
    from pyseccomp.group import GroupAttachment

_TICKS = os.sysconf("SC_CLK_TCK")
_PF_EXITING = 4
_FRESH = 0.002
_FIRST_TRY, _NEXT_TRY = 1.0, 0.25
_BACKOFF, _MOST_BACKOFF = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class Stray:
    """A process of a cgroup that does not carry the filter put on the cgroup, or of which that is not known."""

    pid: int
    reason: str
    """What the kernel shows of it, and why it could not be filtered if that was tried."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A process that carries the filter. Its number and start time name it for ever."""

    start: int
    since: int
    """Ticks since boot: what it forked after that inherited the filter."""
    filters: int | None


@dataclass(frozen=True, slots=True)
class _Refusal:
    start: int
    reason: str
    next_try: float
    delay: float


def _identify(pid: int) -> tuple[int, int] | None:
    """(parent, start time) of a process that lives."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "Xx" else (int(fields[1]), int(fields[19]))


def _exits(pid: int, tid: int) -> bool:
    """True if a thread has ended, or is about to."""
    try:
        fields = Path(f"/proc/{pid}/task/{tid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return bool(int(fields[6]) & _PF_EXITING)


class Census:
    """Judge whether processes of a cgroup carry its filter.

    One does that was filtered here; that is a child of one that carries it, was born after that was filtered, and has no fewer
    filters; or whose filters show it, where this process may read them. A thread without a filter, or with fewer than those that
    carry it, settles the contrary.
    """

    def __init__(self, digest: bytes) -> None:
        self._digest = digest
        self._known: dict[int, _Known] = {}
        self._lock = threading.Lock()

    def add(self, pid: int, result: AttachResult) -> None:
        """Know a process that was filtered just now."""
        identity = _identify(pid)
        if identity is not None:
            counts = [t.filters_after for t in result.threads if t.filters_after is not None]
            with self._lock:
                self._known[pid] = _Known(identity[1], _now(), min(counts, default=None))

    def judge(self, pid: int) -> Stray | None:
        """None: it carries the filter, or is no process that makes calls any more."""
        identity = _identify(pid)
        if identity is None:
            return None
        known = self._known.get(pid)
        if known is not None and known.start == identity[1]:
            return None
        try:
            task = query(pid)
            if task.start_time != identity[1] or task.kernel_thread or not any(t.alive for t in task.threads):
                return None
            return self._judge(task, identity[0], identity[1])
        except TargetGoneError:
            return None

    def _judge(self, task: TaskState, parent: int, start: int) -> Stray | None:
        # A task that exits has given its filters back, and makes no more calls.
        alive = [t for t in task.threads if t.alive and not _exits(task.pid, t.tid)]
        if not alive:
            return None
        bare = [t.tid for t in alive if t.seccomp != "filter"]
        if bare:
            return Stray(task.pid, "carries no filter" if len(bare) == len(alive) else f"its thread {bare[0]} carries no filter")
        counts = [t.filters for t in alive if t.filters is not None]
        fewest = min(counts, default=None)
        carrier = self._known.get(parent)
        known = [carrier] if carrier is not None else list(self._known.values())
        floor = min((one.filters for one in known if one.filters is not None), default=None)
        if fewest is not None and floor is not None and fewest < floor:
            return Stray(task.pid, f"carries {fewest} filters, fewer than with this one ({floor})")
        readable = may_suspend_filters()
        # Born in the very tick in which its parent was filtered: the number of its filters tells, but for one it loaded itself.
        late_enough = carrier is not None and (start > carrier.since or (start == carrier.since and not readable))
        if carrier is not None and late_enough and fewest is not None and carrier.start == (_identify(parent) or (0, -1))[1]:
            self._carries(task.pid, start, fewest)
            return None
        if not readable:
            return Stray(task.pid, f"carries {fewest} filters, which this process may not read: whether this one is among them is not known")
        for thread in query(task.pid, programs=True).threads:
            if not thread.alive or (thread.programs is None and _exits(task.pid, thread.tid)):
                continue
            if thread.programs is None:
                return Stray(task.pid, f"the filters of its thread {thread.tid} cannot be read: {thread.unknown}")
            if all(one.program.digest != self._digest for one in thread.programs):
                return Stray(task.pid, f"carries {thread.filters} filters, but not this one")
        self._carries(task.pid, start, fewest)
        return None

    def _carries(self, pid: int, start: int, filters: int | None) -> None:
        with self._lock:
            self._known[pid] = _Known(start, 0, filters)

    def forget_all_but(self, pids: Iterable[int]) -> None:
        """Drop what has ended or left."""
        living = set(pids)
        with self._lock:
            for pid in [pid for pid in self._known if pid not in living]:
                del self._known[pid]


def _now() -> int:
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS)


def processes(directory: int) -> list[int]:
    """Return the processes of a cgroup and of those below it. OSError: it was removed (ENODEV), or cannot be read."""
    return _core.CgroupWatch(directory, directory).next(False)


class Follower:
    """A thread that filters what enters a cgroup, until it is stopped, the group is dropped, or the cgroup is removed."""

    def __init__(self, group: GroupAttachment, directory: int) -> None:
        self._group = weakref.ref(group)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._owner = os.getpid()
        self._refusals: dict[int, _Refusal] = {}
        self._newcomers: list[Attachment] = []
        self.error: str | None = None
        """Why it ended by itself."""
        try:
            watch = _core.CgroupWatch(directory, self._stop)
            self.thread = threading.Thread(target=self._run, args=(watch,), name="pyseccomp-follow", daemon=True)
        except BaseException:
            os.close(self._stop)
            raise

    def start(self) -> None:
        """Begin; the group knows this object by now."""
        self.thread.start()

    @property
    def refusals(self) -> dict[int, str]:
        """Why the processes that entered and could not be filtered were refused."""
        return {pid: refusal.reason for pid, refusal in list(self._refusals.items())}

    def stop(self) -> None:
        """End the thread; an attach under way is waited for."""
        if os.getpid() == self._owner:
            os.eventfd_write(self._stop, 1)
            if self.thread.ident is not None and threading.current_thread() is not self.thread:
                self.thread.join()
        os.close(self._stop)

    def _run(self, watch: _core.CgroupWatch) -> None:
        while True:
            try:
                entered = watch.next(True)
            except OSError as error:
                self._ended(error)
                return
            group = self._group()
            if group is None or group._following is not self:
                return
            try:
                if entered:
                    self._welcome(group, entered)
                else:
                    self._look_again(group)
            except (SeccompError, OSError) as error:
                if group._filter.closed:
                    return
                group._changed("detached", f"processes that enter {group.what} could not be looked at: {error}")
            del group

    def _ended(self, error: OSError) -> None:
        if error.errno == errno.ECANCELED:
            return
        self.error = "the cgroup was removed" if error.errno == errno.ENODEV else f"its processes cannot be read: {error.strerror}"
        group = self._group()
        if group is not None and group._following is self:
            group._changed("detached", f"{group.what} is not followed any more: {self.error}")

    def _look_again(self, group: GroupAttachment) -> None:
        """Once a second: what was refused may be filtered by now; numbers may be those of other processes; the dead are let go."""
        assert group._directory is not None
        pids = processes(group._directory.number)
        group._census.forget_all_but(pids)
        for pid in [pid for pid in self._refusals if pid not in pids]:
            del self._refusals[pid]
        self._welcome(group, pids)
        self._bury(group)

    def _welcome(self, group: GroupAttachment, pids: list[int]) -> None:
        seen = time.monotonic()
        for pid in pids:
            stray = group._census.judge(pid)
            if stray is None:
                continue
            if time.monotonic() - seen > _FRESH:
                assert group._directory is not None
                if pid not in processes(group._directory.number):
                    continue
            self._filter(group, stray)

    def _filter(self, group: GroupAttachment, stray: Stray) -> None:
        identity = _identify(stray.pid)
        before = self._refusals.get(stray.pid)
        if identity is None or (before is not None and before.start == identity[1] and time.monotonic() < before.next_try):
            return
        if before is not None and before.start != identity[1]:
            before = None
        try:
            attachment = self._attach(group, stray.pid, identity[1], _FIRST_TRY if before is None else _NEXT_TRY)
        except TargetGoneError:
            return
        except (SeccompError, OSError) as error:
            if group._filter.closed:
                raise
            self._refuse(group, stray, identity[1], str(error.args[-1]), before)
            return
        self._refusals.pop(stray.pid, None)
        self._newcomers.append(attachment)
        group._add(attachment)

    def _attach(self, group: GroupAttachment, pid: int, start: int, timeout: float) -> Attachment:
        if pid == os.getpid():
            raise OSError(errno.EDEADLK, "it is this process, which cannot stop itself")
        try:
            pidfd = _core.own(os.pidfd_open, pid)
        except ProcessLookupError:
            raise TargetGoneError(errno.ESRCH, "it ended") from None
        attachment = Attachment(group._filter, pid, pidfd, "all", group.no_new_privs, min(group.timeout, timeout))
        try:
            if (_identify(pid) or (0, -1))[1] != start:
                raise TargetGoneError(errno.ESRCH, "it ended")
            with attachment._lock:
                group._filter._install(attachment)
            group._filter._adopt(attachment)
            if group._death is not None:
                group._filter._guard_active(attachment, group._death)
        except BaseException:
            attachment._close(keep=True)
            raise
        finally:
            if attachment.result is not None:  # in force, whatever was raised after that
                group._census.add(pid, attachment.result)
        return attachment

    def _refuse(self, group: GroupAttachment, stray: Stray, start: int, why: str, before: _Refusal | None) -> None:
        reason = why.removeprefix(f"attach to pid {stray.pid}: ")
        delay = _BACKOFF if before is None else min(2 * before.delay, _MOST_BACKOFF)
        self._refusals[stray.pid] = _Refusal(start, reason, time.monotonic() + delay, delay)
        if before is None or before.reason != reason:
            group._refused(stray.pid, reason)

    def _bury(self, group: GroupAttachment) -> None:
        """Close the attachments of newcomers that have ended with all that shares their listener."""
        for attachment in [one for one in self._newcomers if _ended(one)]:
            self._newcomers.remove(attachment)
            group._remove(attachment)
            attachment.close()


def _ended(attachment: Attachment) -> bool:
    if attachment.closed:
        return True
    poll = select.poll()
    with contextlib.suppress(SeccompError):
        fds = {attachment.pidfd: select.POLLIN, **dict.fromkeys(attachment.listeners, 0)}
        for fd, events in fds.items():
            poll.register(fd, events)
        return len(poll.poll(0)) == len(fds)
    return True
