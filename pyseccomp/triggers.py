"""Attach when something happens: so far, when a process executes another program."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, Literal

from pyseccomp import _core
from pyseccomp.attach import Attachment, Raw, arm, installed
from pyseccomp.errors import AttachTimeoutError, TargetGoneError, UnsupportedError

if TYPE_CHECKING:
    from pyseccomp.filter import Filter

_CANCELED = -errno.ECANCELED


def _arm(filter: Filter, pidfd: int, no_new_privs: bool | Literal["auto"], timeout: float) -> _core.Trigger:
    filter._check_open("attach")
    return arm(filter.program, filter.log, filter.wait_killable, pidfd, no_new_privs, timeout)


class TriggeredAttachment(Attachment):
    """A filter that comes into force when its target executes a program. Made by ``attach(activate_on="exec")``.

    A process of the core seizes the target with ptrace and sleeps: system calls cost nothing more, the birth of a thread
    and the delivery of a signal cost two switches. At an execve that succeeds, by whichever thread, the new program is
    filtered before its first instruction; an execve that fails leaves the trigger armed. Children are not followed.

    Never silently unenforced: the core's process outlives this one, and :meth:`close` leaves the trigger armed; if it is
    killed itself, or the new program cannot be filtered, the target is killed with SIGKILL. While armed, nobody else can
    trace the target, and set-user-ID programs gain privileges only if this process has CAP_SYS_PTRACE.
    """

    _trigger: _core.Trigger | None = None
    _waiter: threading.Thread | None = None
    error: Exception | None = None
    """Why the trigger ended without the filter in force: the target ended, or was killed."""

    def _begin(self) -> None:
        if self.pid == os.getpid():
            raise UnsupportedError(
                errno.EOPNOTSUPP,
                "attach to oneself on exec: a process cannot trace itself; attach from another process, or use pyseccomp.Popen",
            )
        trigger = _arm(self._filter, self.pidfd, self.no_new_privs, self.timeout)
        if trigger.refused is not None:
            installed(trigger.refused, self)
        self._trigger = trigger
        self._waiter = threading.Thread(target=self._follow, name=f"pyseccomp exec {self.pid}", daemon=True)
        self._waiter.start()

    def _follow(self) -> None:
        trigger = self._trigger
        assert trigger is not None
        try:
            raw, pidfd = trigger.finish()
            os.close(pidfd)
            if raw[0] != _CANCELED:
                self._take(raw)
        except Exception as error:
            self.error = error
        finally:
            self._trigger = None

    def _take(self, raw: Raw) -> None:
        result, listeners = installed(raw, self)
        with self._lock:
            if self.closed or self._filter.closed:
                for fd in listeners:
                    os.close(fd)
                return
            self.result, self._listeners = result, listeners
            if listeners:
                self._filter._listen(listeners)

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
            raise AttachTimeoutError(errno.ETIMEDOUT, f"trigger of pid {self.pid}: no exec within {timeout} s; still armed")
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


class Spawn:
    """The next process that this thread forks gets the filter when it executes its program. For Popen."""

    def __init__(self, filter: Filter, no_new_privs: bool | Literal["auto"], timeout: float) -> None:
        if no_new_privs not in (True, False, "auto"):
            raise ValueError(f"Popen: no_new_privs is True, False or 'auto', got {no_new_privs!r}")
        if not 0 < timeout <= 3600:
            raise ValueError(f"Popen: timeout is more than 0 and at most 3600 seconds, got {timeout!r}")
        self._filter, self._no_new_privs, self._timeout = filter, no_new_privs, timeout
        self._trigger: _core.Trigger | None = _arm(filter, -1, no_new_privs, timeout)
        if self._trigger.refused is not None:
            error = -self._trigger.refused[0]
            raise UnsupportedError(
                error,
                f"starting a filtered program: this process cannot be traced by one of its own, which catches the exec "
                f"({os.strerror(error)}); is it under a debugger or strace, set-user-ID, or YAMA's ptrace_scope not 0?",
            )

    def abandon(self) -> None:
        """End it: no process came of it."""
        if (trigger := self._trigger) is not None:
            self._trigger = None
            trigger.disarm()
            raw, pidfd = trigger.finish()
            for fd in (pidfd, raw[5], *(thread[3] for thread in raw[11])):
                if fd >= 0:
                    os.close(fd)

    def finish(self, pid: int) -> Attachment:
        """Wait for the exec of the process that was forked, and give the attachment."""
        trigger, self._trigger = self._trigger, None
        assert trigger is not None
        raw, pidfd = trigger.finish()
        if pidfd < 0:
            raise TargetGoneError(errno.ESRCH, f"starting pid {pid}: it was not forked by this thread, or ended at once")
        attachment = Attachment(self._filter, pid, pidfd, "all", self._no_new_privs, self._timeout)
        try:
            result, listeners = installed(raw, attachment)
            attachment.result, attachment._listeners = result, listeners
            if raw[4] != pid:
                raise UnsupportedError(errno.EOPNOTSUPP, f"starting pid {pid}: another process, {raw[4]}, was forked before it")
            if listeners:
                self._filter._listen(listeners)
            return self._filter._adopt(attachment)
        except BaseException:
            attachment.close()
            raise
