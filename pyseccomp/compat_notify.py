"""Notifications in the shape of libseccomp's binding: plain values, answered by their id."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any


class Notification:
    """One notification as ``receive_notify()`` returns it; nothing is lost when it is dropped, the call goes on waiting.

    Arguments: id, pid (of the thread), flags, syscall (its number), the AUDIT_ARCH token, the instruction pointer, and the six
    arguments. The last three are called ``arch``, ``ip``, ``args`` by libseccomp's binding, ``syscall_arch``... by the ctypes one.
    """

    __slots__ = ("flags", "id", "pid", "syscall", "syscall_arch", "syscall_args", "syscall_ip")

    def __init__(
        self,
        id: int,  # noqa: A002 - their name
        pid: int,
        flags: int,
        syscall: int,
        arch: int | None = None,
        ip: int | None = None,
        args: Iterable[int] | None = None,
        *,
        syscall_arch: int | None = None,
        syscall_ip: int | None = None,
        syscall_args: Iterable[int] | None = None,
    ) -> None:
        words = list(args if args is not None else syscall_args if syscall_args is not None else ())
        if len(words) != 6:
            raise IndexError(f"a system call has six arguments, {len(words)} were given")
        token, pointer = arch if arch is not None else syscall_arch, ip if ip is not None else syscall_ip
        if token is None or pointer is None:
            raise TypeError("Notification() needs arch and ip")
        self.id = id
        self.pid = pid
        self.flags = flags
        self.syscall = syscall
        self.syscall_arch = token
        self.syscall_ip = pointer
        self.syscall_args = words

    def __repr__(self) -> str:
        return f"<Notification {self.id:#x}: call {self.syscall} of {self.syscall_arch:#x} by task {self.pid}>"


class NotificationResponse:
    """The answer to a notification: ``NotificationResponse(notify, val=0, error=0, flags=0)``.

    With flags 1 (SECCOMP_USER_NOTIF_FLAG_CONTINUE) the kernel carries the call out; otherwise it returns error (a negative
    errno) if that is not 0, else val. The ctypes binding's ``NotificationResponse(error=, flags=, id=, val=)`` works too.
    """

    __slots__ = ("error", "flags", "id", "val")

    def __init__(self, *values: Any, **named: Any) -> None:
        theirs = ("error", "flags", "id", "val") if "id" in named or isinstance(values[0] if values else None, int) else None
        names = theirs or ("notify", "val", "error", "flags")
        if len(values) > len(names) or named.keys() - names or named.keys() & set(names[: len(values)]):
            raise TypeError(f"NotificationResponse() takes {', '.join(names)}")
        given = {**dict(zip(names, values, strict=False)), **named}
        if theirs and given.keys() != set(names) or not theirs and "notify" not in given:
            raise TypeError(f"NotificationResponse() needs {'all of ' + ', '.join(names) if theirs else 'a Notification'}")
        self.id: int = given["id"] if theirs else given["notify"].id
        self.val: int = given.get("val", 0)
        self.error: int = given.get("error", 0)
        self.flags: int = given.get("flags", 0)


@dataclasses.dataclass(init=False, slots=True)
class NotificationAddfd:
    """A descriptor for the target: ``NotificationAddfd(notify, flags, srcfd, newfd=0, newfd_flags=0)``.

    flags: 1 (SECCOMP_ADDFD_FLAG_SETFD) to use the number newfd there, 2 (SECCOMP_ADDFD_FLAG_SEND) to answer the call with the
    number in the same step. newfd_flags: 0 or O_CLOEXEC.
    """

    id: int
    flags: int
    srcfd: int
    newfd: int
    newfd_flags: int

    def __init__(self, notify: Notification, flags: int, srcfd: int, newfd: int = 0, newfd_flags: int = 0) -> None:
        self.id = notify.id
        self.flags = flags
        self.srcfd = srcfd
        self.newfd = newfd
        self.newfd_flags = newfd_flags
