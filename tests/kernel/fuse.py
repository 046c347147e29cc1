"""A file system in user space for tests, without a library: one file, or one that never answers."""

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


def _attributes(node: int) -> bytes:
    mode = stat.S_IFDIR | 0o777 if node == 1 else stat.S_IFREG | 0o666
    return struct.pack("=6Q10I", node, len(CONTENT), 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _serve(fd: int, silent: bool) -> None:
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
        elif opcode in (FORGET, 42) or (silent and opcode != GETATTR):
            continue
        elif opcode == LOOKUP:
            answer = struct.pack("=4Q2I", 2, 1, 0, 0, 0, 0) + _attributes(2) if message[40:] == b"file\0" else -errno.ENOENT
        elif opcode == GETATTR:
            answer = struct.pack("=QII", 0, 0, 0) + _attributes(node)
        elif opcode == OPEN:
            answer = struct.pack("=QII", 0, 1, 0)
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
def mounted(at: Path, options: str = "", silent: bool = False, user: int = 0) -> Iterator[bool]:
    """Mount it for one user alone, or with allow_other; silent: names are never found, and never not found. False: no fuse here."""
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
            _serve(fd, silent)
        finally:
            os._exit(0)
    os.close(fd)
    try:
        yield True
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
        libc.umount2(bytes(at), 2)
