"""The callers of the matrix."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matrix import system
from matrix.programs import ERRNO, raw

USER = 65534


@dataclass(frozen=True)
class Asker:
    """A caller, and what is taken from it immediately before the operation."""

    name: str
    uid: int | None = None
    """An ordinary user; its targets are of the same user."""
    capability: int | None = None
    """A capability that it lacks."""
    limit: Callable[[], None] | None = None
    container: bool = False
    """It is in a container, and its targets are in the same one."""
    pids: bool = False
    """Its cgroup can have no more processes."""


def _descriptors(free: int) -> Callable[[], None]:
    def limit() -> None:
        used = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
        top = max(fd for fd in used if os.path.exists(f"/proc/self/fd/{fd}"))
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        for fd in range(top):
            with contextlib.suppress(OSError):
                os.fstat(fd)
                continue
            os.dup2(null, fd, inheritable=False)
        if null > top:
            os.close(null)
        resource.setrlimit(resource.RLIMIT_NOFILE, (top + 1 + free, top + 1 + free))

    return limit


def _no_processes() -> None:
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def _no_memfd() -> None:
    system.load_filter(raw(ERRNO | 38, "memfd_create"))


def pids_cgroup(name: str) -> Path | None:
    """A cgroup of the pids controller; None where there is none to be made."""
    for base in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")):
        folder = base / name
        with contextlib.suppress(OSError):
            folder.mkdir()
            if (folder / "pids.max").exists():
                return folder
            folder.rmdir()
    return None


ASKERS = {
    asker.name: asker
    for asker in (
        Asker("root"),
        Asker("user", USER),
        Asker("no-sys-admin", capability=system.SYS_ADMIN),
        Asker("no-sys-ptrace", capability=system.SYS_PTRACE),
        Asker("no-sys-resource", capability=system.SYS_RESOURCE),
        *(Asker(f"fds-{free}", limit=_descriptors(free)) for free in range(9)),
        Asker("pids-max", pids=True),
        Asker("user-nproc", USER, limit=_no_processes),
        Asker("no-memfd", limit=_no_memfd),
        Asker("container", container=True),
    )
}


def become(asker: Asker) -> None:
    """Be that asker, but for what :attr:`Asker.limit` takes."""
    if asker.capability is not None:
        system.drop_capabilities(asker.capability)
    if asker.uid is not None and os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(asker.uid, asker.uid, asker.uid)
        os.setresuid(asker.uid, asker.uid, asker.uid)
        system.prctl(system.PR_SET_DUMPABLE, 1)  # as any process of an ordinary user is
