"""System calls that Python has no function for, and what /proc tells of processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_SECUREBITS = 1, 4, 24, 28
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
SYS_PTRACE, SYS_ADMIN, SYS_RESOURCE = 19, 21, 24
DOCKER_CAPS = {
    "CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_FOWNER": 3, "CAP_FSETID": 4, "CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7,
    "CAP_SETPCAP": 8, "CAP_NET_BIND_SERVICE": 10, "CAP_NET_RAW": 13, "CAP_SYS_CHROOT": 18, "CAP_MKNOD": 27,
    "CAP_AUDIT_WRITE": 29, "CAP_SETFCAP": 31,
}  # fmt: skip
"""The capabilities of a container of Docker's."""


def check(result: int, what: str) -> int:
    """Raise OSError where a function of libc returned -1."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def prctl(option: int, value: int = 0) -> int:
    """prctl(2)."""
    return check(libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl({option})")


def setns(fd: int, flags: int) -> None:
    """setns(2)."""
    check(libc.setns(fd, flags), "setns")


def unshare(flags: int) -> None:
    """unshare(2)."""
    check(libc.unshare(flags), "unshare")


def drop_capabilities(*numbers: int) -> None:
    """Take capabilities out of every set of this process, the bounding set too: an exec does not bring them back."""
    header = struct.pack("Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    check(libc.capget(header, data), "capget")
    sets = list(struct.unpack("6I", data.raw))
    for number in numbers:
        prctl(PR_CAPBSET_DROP, number)
        for at in range(3):
            sets[number // 32 * 3 + at] &= ~(1 << number % 32)
    check(libc.capset(header, struct.pack("6I", *sets)), "capset")


def load_filter(program: bytes) -> None:
    """Load a raw program on this thread."""
    code = ctypes.create_string_buffer(program)
    block = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    check(libc.prctl(22, ctypes.c_ulong(2), block, 0, 0), "prctl(PR_SET_SECCOMP)")


def fields(pid: int, tid: int | None = None) -> dict[str, str]:
    """/proc/PID/status, or that of a thread; empty when it is gone."""
    path = f"/proc/{pid}/status" if tid is None else f"/proc/{pid}/task/{tid}/status"
    try:
        text = Path(path).read_text()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def parents() -> dict[int, int]:
    """Every process that is seen, and its parent."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                found[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def descendants(pid: int) -> set[int]:
    """All processes that descend from pid, zombies too."""
    below: dict[int, list[int]] = {}
    for child, parent in parents().items():
        below.setdefault(parent, []).append(child)
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for child in below.get(waiting.pop(), ()):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def command(pid: int) -> str:
    """A process in words: its name, state, parent and arguments."""
    with contextlib.suppress(OSError):
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        status = fields(pid)
        return f"{pid} {status.get('Name')} ({status.get('State')}) {argv[:80]}"
    return f"{pid} (gone)"
