"""Attach when something happens: a process executes another program or forks, a time comes, a descriptor is readable, a function returns."""

from __future__ import annotations

import errno
import os
import select
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeGuard, runtime_checkable

from pyseccomp import _core, shortage
from pyseccomp.attach import Attachment, Raw, arm, check, may_suspend_filters
from pyseccomp.errors import AttachError, AttachShortageError, AttachTimeoutError, TargetFilteredError, TargetGoneError, UnsupportedError
from pyseccomp.owned import Worker
from pyseccomp.query import query

if TYPE_CHECKING:
    from pyseccomp.filter import Filter

_CANCELED = -errno.ECANCELED


def _arm(
    trigger: _core.Trigger, filter: Filter, pidfd: int, no_new_privs: bool | Literal["auto"], timeout: float, event: str = "exec"
) -> None:
    filter._check_open("attach")
    arm(trigger, filter.program, filter._load_flags(), pidfd, no_new_privs, timeout, filter.foreign_arch == "allow", event)


class TriggeredAttachment(Attachment):
    """A filter that comes into force when its target executes a program. Made by ``attach(activate_on="exec")``.

    A process of the core seizes the target with ptrace and sleeps: system calls cost nothing more, the birth of a thread
    and the delivery of a signal cost two switches. At an execve that succeeds, by whichever thread, the new program is
    filtered before its first instruction; an execve that fails leaves the trigger armed. Children are not followed.

    Never silently unenforced: the core's process outlives this one, and :meth:`close` leaves the trigger armed; if it is
    killed itself, or the new program cannot be filtered, the target is killed with SIGKILL. While armed, nobody else can
    trace the target, and set-user-ID programs gain privileges only if this process has CAP_SYS_PTRACE.
    """

    _event = "exec"
    _trigger: _core.Trigger | None = None
    _waiter: Worker | None = None
    error: Exception | None = None
    """Why the trigger ended without the filter in force: the target ended, or was killed."""

    def _begin(self) -> None:
        if self.pid == os.getpid():
            raise UnsupportedError(
                errno.EOPNOTSUPP,
                f"attach to oneself on {self._event}: a process cannot trace itself; attach from another process, or use pyseccomp.Popen",
            )
        self._check_earlier_filters()
        trigger = self._trigger = _core.Trigger()
        _arm(trigger, self._filter, self.pidfd, self.no_new_privs, self.timeout, self._event)
        if trigger.refused is not None:
            check(trigger.refused, self)
        self._waiter = Worker(self._follow)
        self._waiter.start()

    def _give_up(self) -> None:
        """End what an exception interrupted: nothing may stay armed that the caller does not know of."""
        trigger = self._trigger
        if trigger is not None:
            trigger.disarm()
            if trigger.follow():  # no thread has begun to
                trigger.finish(self._outcome)
                self._trigger = None
        super()._give_up()

    def _check_earlier_filters(self) -> None:
        """Refuse now what could only end in a kill: filters that nobody may suspend for the injection."""
        if may_suspend_filters() or all(thread.seccomp == "disabled" for thread in query(pidfd=self.pidfd).threads):
            return
        raise TargetFilteredError(
            errno.EACCES,
            f"attach to pid {self.pid} on {self._event}: it carries filters already, which may forbid or kill the injected calls; "
            "suspending them takes CAP_SYS_ADMIN and an unfiltered caller",
        )

    def _follow(self) -> None:
        trigger = self._trigger
        if trigger is not None and trigger.follow():
            self._finish(trigger)

    def _finish(self, trigger: _core.Trigger) -> None:
        try:
            outcome = _core.Outcome()
            raw, _ = trigger.finish(outcome)
            if raw[0] != _CANCELED:
                self._take(raw, outcome)
        except Exception as error:
            self.error = error
        finally:
            self._trigger = None

    def _take(self, raw: Raw, outcome: _core.Outcome) -> None:
        check(raw, self)
        with self._lock:
            if self.closed or self._filter.closed:
                outcome.close()
                return
            self._outcome = outcome
            if outcome.fds:
                self._filter._listen(self.listeners)
        self._changed("active", f"activated by its {self._event}")

    @property
    def armed(self) -> bool:
        """True while the trigger waits."""
        return self._trigger is not None

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the filter is in force.

        Raises AttachTimeoutError; what :attr:`error` holds if it never will be.
        """
        assert self._waiter is not None
        self._waiter.join(timeout)
        if self._waiter.is_alive():
            raise AttachTimeoutError(errno.ETIMEDOUT, f"trigger of pid {self.pid}: no {self._event} within {timeout} s; still armed")
        if self.error is not None:
            raise self.error

    def disarm(self) -> None:
        """Let the target go, untouched and not filtered, unless it has executed a program by now."""
        if (trigger := self._trigger) is not None:
            trigger.disarm()
        if self._waiter is not None:
            self._waiter.join()

    def activate(self) -> None:
        """Put the filter in force now, without waiting for an exec. A no-op when it is in force."""
        self.disarm()
        super().activate()


class ForkAttachment(TriggeredAttachment):
    """A filter that comes into force in the children of its target. Made by ``attach(activate_on="fork")`` or ``"fork-all"``.

    Each child that the target makes while this is armed (fork, vfork, clone, posix_spawn; by any of its threads) is filtered
    before its first instruction, and becomes an attachment of its own: in :attr:`children`, and in ``filter.attachments``.
    What it starts inherits the filter. Threads are not children. "fork": the target itself never gets the filter, and its
    state stays "inactive". "fork-all": at the first of these calls the target gets it too, before the call returns there
    (that of vfork: when its child has executed or ended), and so do all its threads.

    A system call of the target costs nothing more, a fork some hundred microseconds. As with exec, the core's process outlives this one; a
    child that cannot be filtered is killed and told in :attr:`errors`; without this process notified calls get ENOSYS. A
    child that has ended, with all that shares its listener, is closed when the next one is born.

    A child by clone() with CLONE_UNTRACED, which the C library never uses, is hidden from the kernel's tracing and not caught.
    """

    _event = "fork"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._born = threading.Condition()
        self._children: list[Attachment] = []
        self._place: tuple[int, int] | None = None
        self.errors: list[Exception] = []
        """Why children were killed before their first instruction, or are without a listener."""

    @property
    def children(self) -> tuple[Attachment, ...]:
        """The attachments of those that were born, and have not ended as far as this has seen."""
        with self._born:
            return tuple(self._children)

    def _begin(self) -> None:
        # Who receives waits for children that are still to come, and does not take an ended one for the end.
        self._place = self._filter._inbox.expect() if self._filter.program.notifies else None
        try:
            super()._begin()
        except BaseException:
            self._expect_no_more()
            raise

    def _expect_no_more(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            self._filter._inbox.expect_no_more(place)

    def _follow(self) -> None:
        trigger = self._trigger
        if trigger is None or not trigger.follow():
            return
        while (child := trigger.next(outcome := _core.Outcome())) is not None:
            try:
                self._welcome(*child, outcome)
            except TargetGoneError:
                pass
            except Exception as error:
                self.errors.append(error)
            with self._born:
                self._born.notify_all()
        self._finish(trigger)
        self._expect_no_more()
        with self._born:
            self._born.notify_all()

    def _welcome(self, raw: Raw, pidfd: _core.Fd, outcome: _core.Outcome) -> None:
        self._forget_ended()
        attachment = Attachment(self._filter, raw[4], pidfd, "all", self.no_new_privs, self.timeout, None, outcome)
        try:
            check(raw, attachment)
            self._filter._adopt(attachment)
            # Before its first notification can be received.
            with self._born:
                self._children.append(attachment)
            if attachment.listeners:
                self._filter._listen(attachment.listeners)
        except BaseException:
            attachment.close()
            raise
        attachment._changed("active", f"born of process {self.pid}")

    def _forget_ended(self) -> None:
        with self._born:
            ended = [a for a in self._children if a.closed or _all_ended(a)]
            self._children = [a for a in self._children if a not in ended]
        for attachment in ended:
            attachment.close()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until a child was born and filtered ("fork-all": until the process is filtered).

        Raises AttachTimeoutError; what :attr:`error` holds, or the first of :attr:`errors`, if none ever will be.
        """
        if self._event == "fork-all":
            super().wait(timeout)
            return
        with self._born:
            if not self._born.wait_for(lambda: self._children or self.errors or self._trigger is None, timeout):
                raise AttachTimeoutError(errno.ETIMEDOUT, f"trigger of pid {self.pid}: no fork within {timeout} s; still armed")
            if not self._children:
                raise (self.errors or [self.error or AttachError(errno.ECANCELED, f"trigger of pid {self.pid}: it was disarmed")])[0]


class ForkAllAttachment(ForkAttachment):
    """A filter for a process and its children from its next fork on. See :class:`ForkAttachment`."""

    _event = "fork-all"


def _all_ended(attachment: Attachment) -> bool:
    poll = select.poll()
    for fd in (attachment.pidfd, *attachment.listeners):
        poll.register(fd, select.POLLIN if fd == attachment.pidfd else 0)
    return len(poll.poll(0)) == 1 + len(attachment.listeners)


TRIGGERS: dict[str, type[TriggeredAttachment]] = {"exec": TriggeredAttachment, "fork": ForkAttachment, "fork-all": ForkAllAttachment}
"""What activate_on= names and the core waits for."""


class Watch:
    """Activates an attachment when something happens in this process; a thread that sleeps until then.

    ``event`` is seconds (from now), an object with fileno() that becomes readable, or a function that returns. One that raises
    activates too: what was to come may never, and inactive must not mean forgotten.
    """

    def __init__(self, attachment: Attachment, event: Event) -> None:
        self._attachment = weakref.ref(attachment)
        self._fd = _core.duplicate(event.fileno()) if isinstance(event, _HasFileno) else None
        self._seconds = float(event) if isinstance(event, (int, float)) else None
        self._function = event if callable(event) and self._fd is None else None
        self._stopped, self._stop = _core.own_pair(os.pipe2, os.O_CLOEXEC)
        self._pidfd = _core.duplicate(attachment.pidfd)
        self.error: Exception | None = None
        """Why it could not be activated, or what the function raised."""
        self.thread = Worker(self._run)

    def start(self) -> None:
        """Begin to wait."""
        self.thread.start()

    def _run(self) -> None:
        try:
            if self._function is not None:
                try:
                    self._function()
                except Exception as error:
                    self.error = error
            elif not self._happens():
                return
            attachment = self._attachment()
            if attachment is not None and not attachment.closed:
                attachment.activate()
        except Exception as error:
            self.error = error
            attachment = self._attachment()
            if attachment is not None:
                attachment._changed("inactive", f"its event came, but it could not be activated: {error}")
        finally:
            for fd in (self._fd, self._stopped, self._pidfd):
                if fd is not None:
                    fd.close()

    def _happens(self) -> bool:
        """Wait; False if it was closed, or its target ended, before."""
        poll = select.poll()
        for fd in (self._stopped, self._pidfd, self._fd):
            if fd is not None:
                poll.register(fd.number, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(None if self._seconds is None else max(0, self._seconds * 1000))}
        return not ready & {self._stopped.number, self._pidfd.number}

    def stop(self) -> None:
        """End it, if it waits; a function goes on, without effect."""
        self._stop.close()


@runtime_checkable
class _HasFileno(Protocol):
    def fileno(self) -> int: ...


Event = float | _HasFileno | Callable[[], object]


def is_event(activate_on: object) -> TypeGuard[Event]:
    """Whether activate_on is something that happens here, and not a name.

    Raises ValueError for a time that is none.
    """
    if isinstance(activate_on, (int, float)) and not isinstance(activate_on, bool):
        if not 0 <= activate_on <= 1e9:
            raise ValueError(f"attach: activate_on={activate_on!r}: a time is 0 to 1e9 seconds from now")
        return True
    return isinstance(activate_on, _HasFileno) or callable(activate_on)


class Spawn:
    """The next process that this thread forks gets the filter when it executes its program. For Popen."""

    def __init__(self, filter: Filter, no_new_privs: bool | Literal["auto"], timeout: float) -> None:
        if no_new_privs not in (True, False, "auto"):
            raise ValueError(f"Popen: no_new_privs is True, False or 'auto', got {no_new_privs!r}")
        if not 0 < timeout <= 3600:
            raise ValueError(f"Popen: timeout is more than 0 and at most 3600 seconds, got {timeout!r}")
        self._filter, self._no_new_privs, self._timeout = filter, no_new_privs, timeout
        self._trigger: _core.Trigger | None = _core.Trigger()
        _arm(self._trigger, filter, -1, no_new_privs, timeout)
        if self._trigger.refused is not None:
            error = -self._trigger.refused[0]
            if error in shortage.WANTS:
                raise AttachShortageError(error, f"starting a filtered program: {shortage.WANTS[error]}")
            raise UnsupportedError(
                error,
                f"starting a filtered program: this process cannot be traced by one of its own, which catches the exec "
                f"({os.strerror(error)}); is it under a debugger or strace, set-user-ID, or YAMA's ptrace_scope not 0?",
            )

    def abandon(self) -> None:
        """End it: no process came of it."""
        if (trigger := self._trigger) is not None:
            trigger.disarm()
            if trigger.follow():
                trigger.finish(_core.Outcome())
            self._trigger = None

    def finish(self, pid: int) -> Attachment:
        """Wait for the exec of the process that was forked, and give the attachment."""
        trigger = self._trigger
        assert trigger is not None
        trigger.follow()
        raw, pidfd = trigger.finish(outcome := _core.Outcome())
        self._trigger = None
        if pidfd.number < 0 and -raw[0] in shortage.WANTS:
            why = shortage.WANTS[-raw[0]]
            raise AttachShortageError(-raw[0], f"starting pid {pid}: {why}; it was killed before its program began")
        if pidfd.number < 0:
            raise TargetGoneError(errno.ESRCH, f"starting pid {pid}: it was not forked by this thread, or ended at once")
        attachment = Attachment(self._filter, pid, pidfd, "all", self._no_new_privs, self._timeout, None, outcome)
        self._filter._link(attachment)
        try:
            check(raw, attachment)
            if raw[4] != pid:
                raise UnsupportedError(errno.EOPNOTSUPP, f"starting pid {pid}: another process, {raw[4]}, was forked before it")
            if attachment.listeners:
                self._filter._listen(attachment.listeners)
            return self._filter._adopt(attachment)
        except BaseException:
            attachment.close()
            raise
