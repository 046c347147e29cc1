"""Who holds a listener: processes with such a descriptor, and whether anybody waits there.

The kernel does not tell which listener belongs to which task. What can be read is who has one open (the right to trace that
process), which of them are the same one (kcmp(2)), whether tasks are left under it, and what its holder's threads wait for.
"""

from __future__ import annotations

import dataclasses
import os
import select
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyseccomp import _core, syscalls

_LINK: Final = "anon_inode:seccomp notify"
_RECV: Final = 0xC0502100
_MAX_POLLED: Final = 4096


@dataclass(frozen=True, slots=True)
class ListenerHolder:
    """A listener in a process. Those with the same ``listener`` are copies of one."""

    pid: int
    fd: int
    name: str
    listener: int | None
    """A number for each listener, from 0, of this answer only; None: cannot be compared (no kcmp(2), or no right)."""
    served: bool | None
    """A thread waits there for notifications at this moment. False: all its threads wait for other things. None: some run."""
    waiting: bool | None
    """A call waits there that nobody has received yet; None: no right to see."""
    in_use: bool | None
    """A task is under its filter still; None: no right to see."""


def listeners(pid: int | None = None) -> tuple[ListenerHolder, ...]:
    """Find the listeners of one process, or of all whose descriptors this one may see."""
    found: list[ListenerHolder] = []
    for one in sorted(_processes()) if pid is None else [pid]:
        for fd in sorted(_listening(one)):
            events = _core.holder_events(one, fd)
            found.append(
                ListenerHolder(
                    one,
                    fd,
                    _name(one),
                    None,
                    _is_served(one, fd),
                    None if events < 0 else bool(events & select.POLLIN),
                    None if events < 0 else not events & select.POLLHUP,
                )
            )
    return tuple(_numbered(found))


def _numbered(found: list[ListenerHolder]) -> Iterator[ListenerHolder]:
    firsts: list[ListenerHolder] = []
    for one in found:
        same = [_core.holder_same(one.pid, one.fd, other.pid, other.fd) for other in firsts]
        if any(r < 0 for r in same) and 1 not in same:
            yield one
            continue
        number = same.index(1) if 1 in same else len(firsts)
        if number == len(firsts):
            firsts.append(one)
        yield dataclasses.replace(one, listener=number)


def _processes() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name)


def _listening(pid: int) -> Iterator[int]:
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return  # gone, or not ours to see
    for name in names:
        try:
            if os.readlink(f"/proc/{pid}/fd/{name}") == _LINK:
                yield int(name)
        except OSError:
            continue


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return "?"


def _is_served(pid: int, fd: int) -> bool | None:
    sure = True
    try:
        tids = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return None
    for tid in tids:
        try:
            words = Path(f"/proc/{pid}/task/{tid}/syscall").read_text().split()
            if words[0] == "running":
                sure = False
            elif int(words[0]) >= 0 and _waits(pid, fd, syscalls.name(int(words[0])) or "", [int(word, 16) for word in words[1:7]]):
                return True
        except (OSError, ValueError, IndexError):
            sure = False
    return False if sure else None


def _waits(pid: int, fd: int, call: str, args: list[int]) -> bool:
    if call == "ioctl":
        return args[0] == fd and args[1] & 0xFFFFFFFF == _RECV
    if call in ("epoll_wait", "epoll_pwait", "epoll_pwait2"):
        lines = Path(f"/proc/{pid}/fdinfo/{args[0]}").read_bytes().decode(errors="replace").split("\n")
        return any(line.split()[:2] == ["tfd:", str(fd)] for line in lines)
    if call in ("poll", "ppoll"):
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(args[0])
            data = memory.read(8 * min(args[1], _MAX_POLLED))
        return any(polled == fd for polled, _, _ in struct.iter_unpack("=ihh", data[: len(data) // 8 * 8]))
    return False
