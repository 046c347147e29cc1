"""Programs that a task carries, read back from the kernel."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyseccomp import _core, gate
from pyseccomp.decompile import Decompiled, decompile, notified
from pyseccomp.errors import KernelError, NotPermittedError, SeccompError, TargetBusyError, TargetGoneError, UnsupportedError
from pyseccomp.program import Program

_LOG: Final = 2
_SYS_ADMIN: Final = 21


@dataclass(frozen=True, slots=True)
class LoadedFilter:
    """One filter of a task's chain, as it was loaded."""

    program: Program
    log: bool | None
    """Whether it was loaded with SECCOMP_FILTER_FLAG_LOG; None before Linux 4.16, which does not tell."""
    known: str | None = None
    """Whose program it is, if it is one of those that were named to :func:`query`, or of a Filter of this process."""

    def decompile(self) -> Decompiled:
        """Return what it decides; see :func:`decompile`."""
        return _decompiled(self.program)

    @property
    def notified(self) -> tuple[str, ...] | None:
        """The calls that it can notify, as ``openat`` or, of another architecture, ``x86:open``; None: not to be told."""
        return _notified(self.program) if self.program.notifies else ()


@functools.lru_cache(64)
def _decompiled(program: Program) -> Decompiled:
    return decompile(program)


@functools.lru_cache(64)
def _notified(program: Program) -> tuple[str, ...] | None:
    return notified(program)


def why_not() -> str | None:
    """Tell what keeps this process from reading the programs of others; None: nothing that it can know."""
    if _core.query_thread(os.getpid(), os.getpid())[4] > 0:
        return "this process carries a filter itself, and the kernel shows programs to unfiltered processes only (ptrace(2))"
    for line in Path("/proc/thread-self/status").read_bytes().decode(errors="replace").split("\n"):
        name, _, value = line.partition(":")
        if name == "CapEff" and not int(value, 16) >> _SYS_ADMIN & 1:
            return "the kernel shows programs to CAP_SYS_ADMIN only (ptrace(2), PTRACE_SECCOMP_GET_FILTER)"
    if not gate.in_first_user_namespace():
        return "the kernel shows programs to CAP_SYS_ADMIN of the first user namespace only, not to a container's"
    return None


def read(pidfd: int, pid: int, tid: int, timeout: float, known: Iterable[tuple[Program, str]] = ()) -> tuple[LoadedFilter, ...]:
    """Read the chain of one thread, the oldest filter first; it stands still for as long as that takes.

    Raises NotPermittedError, TargetBusyError, TargetGoneError, UnsupportedError, KernelError; each says why.
    """
    what = f"reading the programs of thread {tid} of process {pid}"
    reason = why_not()
    if reason is not None:
        raise NotPermittedError(errno.EACCES, f"{what}: {reason}")
    try:
        found = _core.dump_thread(pidfd, pid, tid, int(timeout * 1e9))
    except OSError as error:
        raise _explain(error, what) from None
    names = {program.digest: name for program, name in known}
    chain = []
    for data, flags in found:
        program = Program(data)
        chain.append(LoadedFilter(program, None if flags < 0 else bool(flags & _LOG), names.get(program.digest)))
    return tuple(chain)


def _explain(error: OSError, what: str) -> SeccompError:
    number = error.errno or 0
    if number == errno.EACCES:
        return NotPermittedError(number, f"{what}: it takes CAP_SYS_ADMIN in the first user namespace, not in a container's")
    if number == errno.EPERM:
        return NotPermittedError(number, f"{what}: not permitted to trace it (ptrace(2), YAMA)")
    if number == errno.EBUSY:
        return TargetBusyError(number, f"{what}: process {error.args[1]} traces it; detach that first")
    if number == errno.ESRCH:
        return TargetGoneError(number, f"{what}: it has ended")
    if number == errno.ETIMEDOUT:
        return KernelError(number, f"{what}: it did not stop; it sleeps where nothing interrupts it")
    if number == errno.EOPNOTSUPP:
        return UnsupportedError(number, f"{what}: it is a kernel worker of io_uring or vhost, which makes no calls; a stop would fail its requests")
    if number == errno.EMEDIUMTYPE:
        return UnsupportedError(number, f"{what}: one of them is no classic BPF")
    if number in (errno.EIO, errno.EINVAL):
        return UnsupportedError(number, f"{what}: this kernel has no CONFIG_CHECKPOINT_RESTORE")
    return KernelError(number, f"{what}: {os.strerror(number)}")
