"""A file system in user space for tests, without a library: one file, or one that never answers (all, or what is read)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from listening import libc

LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, INIT = 1, 2, 3, 14, 15, 17, 18, 26
CONTENT = b"of the fuse"


def _attributes(node: int, size: int) -> bytes:
    mode = stat.S_IFDIR | 0o777 if node == 1 else stat.S_IFREG | 0o777
    return struct.pack("=6Q10I", node, size, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _serve(fd: int, silent: bool, unread: bool) -> None:
    size = 8192 if unread else len(CONTENT)
    while True:
        try:
            message = os.read(fd, 1 << 17)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            continue
        _, opcode, unique, node = struct.unpack_from("=IIQQ", message)
        answer: bytes | int = -errno.ENOSYS
        if opcode == INIT:
            answer = struct.pack("=4I2H2I2H8I", 7, 31, 0, 0, 0, 0, 4096, 1, 0, 0, *[0] * 8)
        elif opcode in (FORGET, 42) or (silent and opcode != GETATTR) or (unread and opcode == READ):
            continue
        elif opcode == LOOKUP:
            answer = struct.pack("=4Q2I", 2, 1, 0, 0, 0, 0) + _attributes(2, size) if message[40:] == b"file\0" else -errno.ENOENT
        elif opcode == GETATTR:
            answer = struct.pack("=QII", 0, 0, 0) + _attributes(node, size)
        elif opcode == OPEN:
            answer = struct.pack("=QII", 0, not unread, 0)  # FOPEN_DIRECT_IO, with which no private mapping is made
        elif opcode == READ:
            offset, size = struct.unpack_from("=QI", message, 48)
            answer = CONTENT[offset : offset + size]
        elif opcode == STATFS:
            answer = bytes(80)
        elif opcode == RELEASE:
            answer = b""
        data = answer if isinstance(answer, bytes) else b""
        with contextlib.suppress(OSError):
            os.write(fd, struct.pack("=IiQ", 16 + len(data), 0 if isinstance(answer, bytes) else answer, unique) + data)


@contextlib.contextmanager
def mounted(at: Path, options: str = "", silent: bool = False, unread: bool = False, user: int = 0) -> Iterator[bool]:
    """Mount it for one user alone, or with allow_other; False: no fuse here.

    silent: names are never found, and never not found. unread: the file can be opened and mapped, and reading it never ends.
    """
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    how = f"fd={fd},rootmode=40000,user_id={user},group_id={user}{options}".encode()
    if libc.mount(b"test", bytes(at), b"fuse", 6, how):  # nosuid, nodev
        os.close(fd)
        if ctypes.get_errno() not in (errno.ENODEV, errno.EPERM):
            raise OSError(ctypes.get_errno(), "mount fuse")
        yield False
        return
    server = os.fork()
    if server == 0:
        try:
            libc.prctl(1, signal.SIGKILL, 0, 0, 0)
            _serve(fd, silent, unread)
        finally:
            os._exit(0)
    os.close(fd)
    try:
        yield True
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
        libc.umount2(bytes(at), 2)
