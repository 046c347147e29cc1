"""Every error that pyseccomp raises on purpose.

All derive from :class:`SeccompError`; where the standard library has a class of the same meaning they derive from it
too, by meaning and never by the number of an errno (a notification that is gone is not a missing file).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyseccomp.group import MemberOutcome


class SeccompError(Exception):
    """Root of the errors of this package."""


class KernelError(SeccompError, OSError):
    """The kernel refused a call for a reason that has no class of its own; ``errno`` is set."""


class ProgramError(SeccompError, ValueError):
    """A BPF program is not one that the kernel would load; ``index`` is the instruction, or None."""

    def __init__(self, message: str, *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class PolicyError(SeccompError, ValueError):
    """A policy, a rule or one of its arguments makes no sense."""


class PolicyTypeError(PolicyError, TypeError):
    """What was given where a number must be is none."""


class ContradictionError(PolicyError):
    """Conditions of one rule exclude each other: no call can match them."""


class PolicyTooLargeError(PolicyError):
    """The policy needs more instructions than one program may have; ``instructions`` says how many (0: not known)."""

    def __init__(self, message: str, *, instructions: int = 0) -> None:
        super().__init__(message)
        self.instructions = instructions


class UnknownSyscallError(PolicyError, LookupError):
    """No system call of that name on that architecture; ``suggestions`` holds the nearest names."""

    def __init__(self, message: str, *, suggestions: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.suggestions = suggestions


class FilterFdError(SeccompError, OSError):
    """A file descriptor is not a filter, or not one that can be trusted (seals, size, header, digest, program)."""


class ShortageError(SeccompError, OSError):
    """This process or the system has run out of something that the operation takes; nothing is known against the target.

    ``errno`` says of what: EMFILE and ENFILE of descriptors, EAGAIN of processes or threads, ENOMEM of memory, ENOSPC and ENOBUFS of
    other room of the kernel. Every operation of this package raises this one class for its own want.
    """


class FilterClosedError(SeccompError, ValueError):
    """The object was closed."""


class UnsupportedError(SeccompError, OSError):
    """This kernel, this user or this release cannot do it; the message names what is missing."""


class AttachError(SeccompError, OSError):
    """A filter could not be attached; nothing was changed. ``tid`` is the thread concerned, or None."""

    def __init__(self, errno: int, message: str, *, tid: int | None = None) -> None:
        super().__init__(errno, message)
        self.tid = tid


class AttachShortageError(AttachError, ShortageError):
    """A filter could not be attached because this process, or the system, has run out of something; nothing was changed."""


class TargetGoneError(AttachError, ProcessLookupError):
    """The target does not exist, is a zombie, or died before anything was changed."""


class NotPermittedError(AttachError, PermissionError):
    """The kernel does not let this process touch the target."""


class TargetBusyError(AttachError):
    """Another tracer (a debugger, strace) holds a thread of the target."""


class TargetFilteredError(AttachError):
    """Filters that the target already has would deny the injected calls, and they cannot be suspended."""


class ListenerBusyError(AttachError):
    """The target already has a live listener in its chain of filters (the kernel allows one)."""


class AttachTimeoutError(AttachError, TimeoutError):
    """A thread could not be stopped in time; all were released."""


class PartialAttachError(AttachError):
    """The kernel ran out of memory between threads whose filters differ, or between processes: some have the filter, some not.

    The one case in which a refusal is not "nothing changed"; ``done`` lists the thread ids that have it. ``results``: of a tree
    or cgroup, what became of each process; those that have the filter are in ``filter.attachments``.
    """

    results: tuple[MemberOutcome, ...] = ()

    def __init__(self, errno: int, message: str, *, tid: int | None = None, done: tuple[int, ...] = ()) -> None:
        super().__init__(errno, message, tid=tid)
        self.done = done


class NotificationError(SeccompError, OSError):
    """A notification could not be received or answered."""


class NotificationGoneError(NotificationError):
    """The call that was notified is over: its task died or was interrupted. A normal race; nothing is left to answer."""


class OpenDeniedError(NotificationError):
    """A file could not be opened for a target; ``errno`` is what its call is to fail with."""


class ReclaimError(SeccompError, OSError):
    """A name of filters could not be taken or reclaimed: unknown (ENOENT), or its manager lives (EBUSY)."""


class CheckpointError(SeccompError, OSError):
    """A checkpoint could not be taken, or is damaged, foreign, or of tasks that are gone; the message says which."""


class TargetsGoneError(NotificationError):
    """No task is left under this listener."""


class ReceiveTimeoutError(NotificationError, TimeoutError):
    """No notification came in time."""


class ReceiveStoppedError(NotificationError):
    """``stop()`` ended the wait."""


class InactiveError(AttachError):
    """An attachment was left inactive where it must not be; it was activated, or its process killed."""
