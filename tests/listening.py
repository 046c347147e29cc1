"""Targets under hand-made notifying filters, and their listeners, without the package's own install code."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import platform
import select
import signal
import socket
import struct
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from harness import DEADLINE, ChildFailed, _kill_group, _read_all

from pyseccomp.notify import Receiver, new_inbox

_NUMBERS = {
    "x86_64": (0xC000003E, {"seccomp": 317, "getppid": 110, "getpgid": 121, "mkdirat": 258, "openat": 257, "umask": 95}),
    "aarch64": (0xC00000B7, {"seccomp": 277, "getppid": 173, "getpgid": 155, "mkdirat": 34, "openat": 56, "umask": 166}),
}
ARCH, NR = _NUMBERS[platform.machine()]
NEW_LISTENER, WAIT_KILLABLE = 1 << 3, 1 << 5

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def call(name: str, *args: Any) -> int:
    """Make a system call; -errno when it fails."""
    ctypes.set_errno(0)
    result = libc.syscall(NR[name], *(ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args))
    return -ctypes.get_errno() if result == -1 and ctypes.get_errno() else int(result)


def notifying(*names: str) -> bytes:
    """Assemble a program that notifies of the calls named and allows all others."""
    insns = [(0x20, 0, 0, 0)]
    insns += [(0x15, len(names) - i, 0, NR[name]) for i, name in enumerate(names)]
    insns += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x7FC00000)]
    return b"".join(struct.pack("=HBBI", *insn) for insn in insns)


class _Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install(program: bytes, flags: int = 0) -> int:
    """Load program into this thread and return its listener."""
    if libc.prctl(38, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(NO_NEW_PRIVS)")
    fd = call("seccomp", 1, flags | NEW_LISTENER, ctypes.byref(_Program(len(program) // 8, program)))
    if fd < 0:
        raise OSError(-fd, "seccomp(NEW_LISTENER)")
    return fd


class Target:
    """A forked child in its own process group that runs function under a filter, and its listener here."""

    def __init__(self, function: Callable[[], Any], *names: str, flags: int = 0) -> None:
        ours, theirs = socket.socketpair()
        self._result, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(function, notifying(*names), flags, theirs, writer)
        os.close(writer)
        theirs.close()
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(self.pid, self.pid)
        ours.settimeout(DEADLINE)
        with ours:
            _, (self.listener,), _, _ = socket.recv_fds(ours, 1, 1)
        self.pidfd = os.pidfd_open(self.pid)

    @staticmethod
    def _run(function: Callable[[], Any], program: bytes, flags: int, sock: socket.socket, writer: int) -> None:
        try:
            os.setpgid(0, 0)
            libc.prctl(1, signal.SIGKILL, 0, 0, 0)
            try:
                fd = install(program, flags)
                socket.send_fds(sock, [b"L"], [fd])
                sock.close()
                os.close(fd)
                answer = (True, function())
            except BaseException:
                answer = (False, traceback.format_exc())
            with os.fdopen(writer, "wb") as out:
                out.write(pickle.dumps(answer))
        finally:
            os._exit(0)

    def result(self) -> Any:
        """What function returned."""
        data = _read_all(self._result, DEADLINE)
        if not data:
            raise ChildFailed("the target ended, or was late, without a result")
        good, value = pickle.loads(data)
        if not good:
            raise ChildFailed(value)
        return value

    def wait_dead(self) -> None:
        """Wait until it has exited; it stays a zombie."""
        assert select.select([self.pidfd], [], [], DEADLINE)[0], "the target lives on"

    def reap(self) -> int:
        """Wait for its end; the status as subprocess has it."""
        self.wait_dead()
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def close(self) -> None:
        """Kill its group and close all that is held here."""
        if self.pid:
            _kill_group(self.pid)
            os.kill(self.pid, signal.SIGKILL)
            self.reap()
        for fd in (self.listener, self.pidfd, self._result):
            os.close(fd)


class Box(Receiver):
    """A Receiver whose listeners are given by hand."""

    def __init__(self, *listeners: int) -> None:
        self._inbox = new_inbox()
        for fd in listeners:
            self._inbox.add(fd)

    def add(self, fd: int) -> None:
        self._inbox.add(fd)

    def remove(self, fd: int) -> bool:
        return self._inbox.remove(fd)


@contextlib.contextmanager
def listening(function: Callable[[], Any], *names: str, count: int = 1, flags: int = 0) -> Iterator[tuple[Any, ...]]:
    """Yield (box, target, ...): count targets that run function, all in one box."""
    targets: list[Target] = []
    try:
        for _ in range(count):
            targets.append(Target(function, *names, flags=flags))
        yield (Box(*(t.listener for t in targets)), *targets)
    finally:
        for target in targets:
            target.close()
