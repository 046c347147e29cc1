"""Where a target lives."""

from __future__ import annotations

from dataclasses import dataclass

from matrix import programs


@dataclass(frozen=True)
class Place:
    """A place, and what the target is like there."""

    name: str
    options: tuple[str, ...] = ()
    """Of the victim."""
    filters: tuple[str, ...] = ()
    """Names of programs (:func:`program`) that it loads on itself before its threads are born."""
    root: bool = False
    """Only root can make it."""
    inside: bool = False
    """The asker is in the target's namespaces too."""
    machine: str = ""
    """A switch of the compiler."""
    condition: str = ""
    """What is done to it before the operation: stopped, frozen, traced."""
    runtime: str = ""
    """The container runtime that runs it."""
    without: str = ""
    """Threads that it does not have."""

    @property
    def filtered(self) -> bool:
        return bool(self.filters) or "--diverge" in self.options or bool(self.runtime)


def program(name: str) -> bytes:
    """The program that a place's target loads on itself."""
    kind, _, call = name.partition(":")
    match kind:
        case "plain":
            return programs.raw(programs.ERRNO | 1, "chroot")
        case "kills":
            return programs.raw(programs.KILL_PROCESS, call)
        case "denies":
            return programs.raw(programs.ERRNO | 1, call)
        case "container":
            return programs.container_program()
    raise ValueError(name)


_NAMESPACES = ("--user", "--pid", "--mnt")

PLACES = {
    place.name: place
    for place in (
        Place("host"),
        Place("pidns", ("--pid", "--mnt"), root=True),
        Place("pidns-inside", ("--pid", "--mnt"), root=True, inside=True),
        Place("rootless", _NAMESPACES),
        Place("rootless-inside", _NAMESPACES, root=True, inside=True),
        Place("chroot", ("--chroot",), root=True),
        Place("runc", root=True, runtime="runc"),
        Place("filters-1", filters=("plain",)),
        Place("filters-2", filters=("plain", "kills:chroot")),
        Place("container-policy", filters=("container",)),
        Place("pidns-filtered", ("--pid", "--mnt"), ("container",), root=True),
        Place("diverged", ("--diverge",)),
        Place("kills-restart", filters=("kills:restart_syscall",)),
        Place("denies-restart", filters=("denies:restart_syscall",)),
        Place("kills-close", filters=("kills:close",)),
        Place("kills-futex", ("--no-futex",), ("kills:futex",), without="f"),
        Place("kills-sigreturn", filters=("kills:rt_sigreturn",)),
        Place("kills-exit", filters=("kills:exit",)),
        Place("io-uring", ("--io-uring",)),
        Place("io-uring-diverged", ("--io-uring", "--diverge")),
        Place("shares-memory", ("--share-memory",)),
        Place("shares-files", ("--share-files",)),
        Place("frozen", condition="frozen", root=True),
        Place("stopped", condition="stopped"),
        Place("traced", condition="traced"),
        Place("i386", machine="-m32"),
        Place("i386-filtered", filters=("plain",), machine="-m32"),
    )
}
