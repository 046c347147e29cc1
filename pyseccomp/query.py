"""What a task carries: asked of the kernel at the time of the call, never remembered.

How many filters each thread carries can be read from /proc by anybody who can see the task, and touches nobody. Which
programs these are takes ptrace and CAP_SYS_ADMIN, and stops each thread for a moment; :func:`query` does that when asked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from pyseccomp import _core, loaded, shortage
from pyseccomp.errors import KernelError, NotPermittedError, SeccompError, ShortageError, TargetGoneError, UnsupportedError
from pyseccomp.listeners import ListenerHolder
from pyseccomp.listeners import listeners as find_listeners
from pyseccomp.loaded import LoadedFilter
from pyseccomp.program import Program

State = Literal["detached", "inactive", "active", "dead"]
Mode = Literal["disabled", "strict", "filter"]

_MODES: dict[int, Mode | None] = {-1: None, 0: "disabled", 1: "strict", 2: "filter"}
_ELFCLASS32 = 1
_MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}


class HasPid(Protocol):
    """Anything with a process number: ``subprocess.Popen``, asyncio's and psutil's processes, an attachment."""

    @property
    def pid(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ThreadState:
    """One thread of a process, as the kernel described it."""

    tid: int
    name: str
    seccomp: Mode | None
    """The mode in force; None on a kernel without seccomp."""
    filters: int | None
    """Filters in the thread's chain; None before Linux 5.10, which does not tell."""
    no_new_privs: bool | None
    tracer: int
    """The process that traces this thread, 0 for none."""
    state: str
    """The letter of proc(5): R running, S and D asleep, T stopped, t traced, Z zombie, X dead, I idle."""

    programs: tuple[LoadedFilter, ...] | None = None
    """Its filters, the oldest first (the kernel runs all, the newest first); None: not asked for, or ``unknown``."""
    unknown: str | None = None
    """Why ``programs`` is None though asked for."""

    @property
    def alive(self) -> bool:
        """True unless the thread is a zombie: a zombie makes no call, so nothing is in force there."""
        return self.state not in "ZXx"


@dataclass(frozen=True, slots=True)
class TaskState:
    """A process and its threads. ``pid`` and ``start_time`` together name it for ever, a pid alone does not."""

    pid: int
    """-1 when the state is "dead" and the process was already reaped: its number may belong to another by now."""
    state: State
    """"active": a filter or strict mode is in force for a thread at least; "detached": for none; "dead": no thread runs."""
    threads: tuple[ThreadState, ...]
    uid: int | None
    """The real user id; None when reaped."""
    arch: str | None
    """The executable's architecture; None for kernel threads, and when we lack the right to read it."""
    start_time: int | None
    """Clock ticks since boot (``os.sysconf("SC_CLK_TCK")`` per second); None when reaped."""
    kernel_thread: bool = False
    listeners: tuple[ListenerHolder, ...] | None = None
    """If a program of the task can notify: all listeners in use that this process can see, among them the task's own if its
    holder can be seen. Which one it is the kernel does not tell. None: not asked for."""

    @property
    def programs(self) -> tuple[LoadedFilter, ...] | None:
        """The main thread's filters, or those of the first live thread that tells; None: not asked for, or not known."""
        return next((t.programs for t in self.threads if t.programs is not None), None)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Why programs that were asked for are not known, each reason once."""
        return tuple(dict.fromkeys(t.unknown for t in self.threads if t.unknown is not None))

    @property
    def uniform(self) -> bool:
        """True if every live thread has the same mode, number of filters and no_new_privs."""
        return len({(t.seccomp, t.filters, t.no_new_privs) for t in self.threads if t.alive}) <= 1


REAPED = TaskState(pid=-1, state="dead", threads=(), uid=None, arch=None, start_time=None)


def query(
    target: int | HasPid | None = None,
    *,
    pidfd: int | None = None,
    programs: bool = False,
    known: Iterable[tuple[Program, str]] = (),
    timeout: float = 1.0,
) -> TaskState:
    """Read what a process carries: the seccomp mode, filters and no_new_privs of each of its threads.

    The target is a pid, anything with ``.pid``, or goes by ``pidfd``. Everything is read through one handle of the
    process, so a number that is used again is never mistaken for it; a thread that is born or ends during the reading
    may be missing. No right over the target is needed but to see it in /proc; its ``arch`` needs the right to trace it.

    programs: read every thread's programs too, and who holds listeners. Each thread with filters is stopped by ptrace for some
    60 microseconds (as by :meth:`Filter.attach`; interrupted calls go on, a notification that waits is sent again); timeout:
    seconds within which it must stop. That takes CAP_SYS_ADMIN and an asker without filters; what cannot be read is None, and
    ``unknown`` says why. known: programs with names, by which :attr:`LoadedFilter.known` tells them; Filters of this process
    are known anyway.

    Raises TargetGoneError when there is no such process (a zombie, or a pidfd or Popen that has been reaped, is no error:
    its state is "dead"), NotPermittedError when /proc hides it, UnsupportedError without a usable /proc.

    Source: proc_pid_status(5), ptrace(2).

    >>> import os
    >>> query(os.getpid()).state in ("detached", "active")
    True
    """
    with _handle(target, pidfd) as (state, handle):
        if not programs or state.state != "active":
            return state
        state = with_programs(state, handle, timeout, known)
        notifying = any(one.program.notifies for thread in state.threads for one in thread.programs or ())
        holders = tuple(one for one in find_listeners() if one.in_use is not False) if notifying else ()
        return dataclasses.replace(state, listeners=holders)


def dump(target: int | HasPid | None = None, *, pidfd: int | None = None, timeout: float = 1.0) -> tuple[LoadedFilter, ...]:
    """Read the programs of a process's main thread, the oldest first; of the first thread with filters, if the main one has none.

    That thread is stopped as by :func:`query` with ``programs=True``; nothing else is looked for.

    Raises what query() raises, and NotPermittedError, TargetBusyError, TargetGoneError, UnsupportedError, KernelError, each with
    the reason, where the programs cannot be read.
    """
    with _handle(target, pidfd) as (state, handle):
        filtered = (thread for thread in state.threads if thread.alive and thread.seccomp == "filter")
        thread = next(filtered, None)
        return loaded.read(handle, state.pid, thread.tid, timeout, _named()) if thread is not None else ()


@contextlib.contextmanager
def _handle(target: int | HasPid | None, pidfd: int | None) -> Iterator[tuple[TaskState, int]]:
    """The state of a process, and a pidfd of that very process (-1 when it was reaped)."""
    if (target is None) == (pidfd is None):
        raise TypeError("query() takes a target or a pidfd: exactly one")
    if pidfd is not None:
        if pidfd < 0:
            raise ValueError(f"query: a pidfd is not negative: {pidfd}")
        yield _by_pidfd(pidfd), pidfd
        return
    assert target is not None
    if not isinstance(target, int):
        if getattr(target, "returncode", None) is not None:
            yield REAPED, -1
            return
        target = target.pid
    state = _by_pid(target)
    if state.state != "active":
        yield state, -1
        return
    try:
        handle = _core.own(os.pidfd_open, target)
    except OSError as error:
        raise _explain(error, f"pid {target}", target) from None
    try:
        yield _by_pidfd(handle.number), handle.number
    finally:
        handle.close()


def _by_pid(pid: int) -> TaskState:
    try:
        return _build(_core.query_process(pid, -1))
    except OverflowError:
        raise TargetGoneError(errno.ESRCH, f"query of pid {pid}: no process can have that number") from None
    except OSError as error:
        raise _explain(error, f"pid {pid}", pid) from None


def _by_pidfd(pidfd: int) -> TaskState:
    try:
        return _build(_core.query_process(0, pidfd))
    except OSError as error:
        if error.errno == errno.ESRCH:
            return REAPED
        raise _explain(error, f"pidfd {pidfd}", 0) from None


def with_programs(state: TaskState, pidfd: int, timeout: float, known: Iterable[tuple[Program, str]] = ()) -> TaskState:
    """Add the threads' programs, or why they are not known. For this package only."""
    named = [*_named(), *known]
    threads = []
    for thread in state.threads:
        if thread.alive and thread.seccomp == "filter":
            try:
                thread = dataclasses.replace(thread, programs=loaded.read(pidfd, state.pid, thread.tid, timeout, named))
            except SeccompError as error:
                thread = dataclasses.replace(thread, unknown=str(error.args[-1]))
        threads.append(thread)
    return dataclasses.replace(state, threads=tuple(threads))


_sources: list[Callable[[], list[tuple[Program, str]]]] = []


def _named() -> list[tuple[Program, str]]:
    return [one for source in _sources for one in source()]


def know_from(source: Callable[[], list[tuple[Program, str]]]) -> None:
    """Ask this for programs and names whenever programs are read. For this package only."""
    _sources.append(source)


def _build(process: tuple[int, int, int, int, bool, bool, list[_core.Task]]) -> TaskState:
    pid, start_time, machine, elf_class, kernel_thread, alive, tasks = process
    threads = tuple(
        ThreadState(
            tid=tid,
            name=name,
            seccomp=_MODES[mode],
            filters=filters if filters >= 0 else None,
            no_new_privs=bool(no_new_privs) if no_new_privs >= 0 else None,
            tracer=tracer,
            state=state,
        )
        for _, tid, name, state, mode, filters, no_new_privs, tracer, _, _ in tasks
    )
    in_force = any(t.seccomp in ("strict", "filter") for t in threads if t.alive)
    state: State = "dead" if not alive else "active" if in_force else "detached"
    return TaskState(
        pid=pid,
        state=state,
        threads=threads,
        uid=tasks[0][8],
        arch=arch_name(machine, elf_class),
        start_time=start_time,
        kernel_thread=kernel_thread,
    )


def arch_name(machine: int, elf_class: int) -> str | None:
    """Name the architecture of an ELF file; None: not known. For this package only."""
    if not machine:
        return None
    if machine == 62 and elf_class == _ELFCLASS32:
        return "x32"
    return _MACHINES.get(machine, f"e_machine {machine}")


def _explain(error: OSError, what: str, pid: int) -> SeccompError:
    number = error.errno or 0
    if number == errno.ESRCH:
        return TargetGoneError(number, f"query of {what}: no such process")
    if number in shortage.WANTS:
        return ShortageError(number, f"query of {what}: {shortage.WANTS[number]}")
    if number == errno.EACCES:
        return NotPermittedError(
            number, f"query of {what}: the process exists but /proc hides it from this user (mount option hidepid)"
        )
    if number == errno.EINVAL:
        leader = _core.query_thread(pid, pid)[0]
        return KernelError(number, f"query of {what}: that is a thread of process {leader}; ask for the process")
    if number == errno.EBADF:
        return KernelError(number, f"query of {what}: not an open pidfd")
    if number == errno.EOPNOTSUPP:
        return UnsupportedError(number, f"query of {what}: no procfs is mounted on /proc")
    if number == errno.EXDEV:
        return UnsupportedError(
            number, f"query of {what}: /proc belongs to another pid namespace; mount one for this one"
        )
    return KernelError(number, f"query of {what}: {error.strerror}")
