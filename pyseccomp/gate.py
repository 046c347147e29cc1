"""Gates: a filter that is in the kernel but asks, and turns for every task under it by one store.

The gate program asks its listener wherever the policy does not allow; a C process that shares this one's memory, never
the GIL, answers "continue" while inactive and what the policy says afterwards.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pyseccomp import _core, syscalls
from pyseccomp.errors import AttachError, NotPermittedError, UnsupportedError
from pyseccomp.program import Program
from pyseccomp.syscalls import Arch

if TYPE_CHECKING:
    from pyseccomp.filter import Filter

NONE, INACTIVE, ACTIVE, PAUSED = range(4)  # enum psc_gate_state

SYS_PTRACE, SYS_ADMIN = 19, 21

_VDSO = ("clock_gettime", "clock_getres", "gettimeofday", "time", "getcpu")
_FINAL = ("exit", "exit_group")
_ELSEWHERE = ("exec", "fork", "fork-all")


def yama_scope() -> int:
    """YAMA's ptrace_scope; 0 without YAMA."""
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        return 0


def has_capability(number: int) -> bool:
    """True if this process has a capability."""
    capabilities = next(
        line.split()[1] for line in Path("/proc/self/status").read_bytes().split(b"\n") if line.startswith(b"CapEff:")
    )
    return bool(int(capabilities, 16) >> number & 1)


def in_first_user_namespace() -> bool:
    """True if this process is in the first user namespace, where alone CAP_SYS_ADMIN suspends and reads filters."""
    try:
        return os.stat("/proc/thread-self/ns/user").st_ino == 0xEFFFFFFD  # PROC_USER_INIT_INO of linux/proc_ns.h
    except OSError:
        return False


def shown(state: int) -> Literal["inactive", "active"]:
    """Name a gate's state; paused is inactive."""
    return "active" if state == ACTIVE else "inactive"


def resolve_trigger(activate_on: object) -> list[tuple[int, int]]:
    """Find a trigger's (AUDIT_ARCH token, number) on the native ABI and those that run beside it.

    Raises UnsupportedError for what is no system call's name, UnknownSyscallError for a name that does not exist here,
    ValueError for a call that never comes or after which nothing comes.
    """
    if not isinstance(activate_on, str) or activate_on in _ELSEWHERE:
        raise UnsupportedError(
            errno.EOPNOTSUPP,
            f"attach: activate_on={activate_on!r}: a gate is activated by the name of a call ('execve'); for 'exec', 'fork' and 'fork-all' "
            "leave mode='gate' out",
        )
    if activate_on in _VDSO:
        raise ValueError(
            f"attach: activate_on={activate_on!r} can never fire: the vDSO answers it without a system call; name a call "
            "that enters the kernel, or activate by hand"
        )
    if activate_on in _FINAL:
        raise ValueError(f"attach: activate_on={activate_on!r}: the task ends with that call, nothing is left to filter")
    native, *others = syscalls.local_arches()
    found = [(native.token, syscalls.resolve(activate_on, native))]
    for arch in others:
        try:
            found.append((arch.token, syscalls.resolve(activate_on, arch)))
        except LookupError:
            continue
    return found


def check_trap(program: Program) -> None:
    """Refuse a program with TRAP where nobody of ours may give its SIGSYS: that takes ptrace by who is no ancestor."""
    traps = any(code == 0x06 and k & 0xFFFF0000 == 0x00030000 for code, _, _, k in struct.iter_unpack("=HBBI", bytes(program)))
    if traps and yama_scope() and not has_capability(SYS_PTRACE):
        raise UnsupportedError(
            errno.EOPNOTSUPP,
            f"attach: the program answers TRAP, whose SIGSYS a gate gives by ptrace, which YAMA (ptrace_scope {yama_scope()}) "
            "allows to CAP_SYS_PTRACE alone; use mode='inject'",
        )


def build_program(program: Program, triggers: list[tuple[int, int]]) -> Program:
    """Make the gate program, or say what to do instead."""
    try:
        return Program.from_bytes(_core.gate_program(bytes(program), triggers))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise UnsupportedError(
                error.errno, f"attach: the program cannot be gated: {error.strerror}; use mode='inject'"
            ) from None
        if error.errno == errno.ENODATA:
            raise AttachError(
                error.errno, "attach: the program denies and notifies nothing, so a gate has nothing to turn; use mode='inject'"
            ) from None
        raise AttachError(error.errno or 0, f"attach: making the gate program: {error.strerror}") from None


def take_slot(filter: Filter, state: int) -> _core.Slot:
    """Take a word for one more attachment; only the creator of the filter can."""
    try:
        return filter._page.take_slot(state)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise NotPermittedError(
                errno.EPERM,
                "attach as a gate: only the process that created the filter can turn it, and this one received or "
                "inherited it; use mode='inject', or have the creator attach",
            ) from None
        raise AttachError(
            error.errno or 0, "attach as a gate: 510 gates of one filter are in use; close one, or gate the parent of many"
        ) from None


def write(filter: Filter, slot: int, state: int, doing: str) -> None:
    """Store a word. Raises NotPermittedError for who is not the creator."""
    try:
        filter._page.set(slot, state)
    except OSError as error:
        raise NotPermittedError(
            error.errno or 0,
            f"{doing}: only the process that created the filter holds its writable page, and process {os.getpid()} received or "
            "inherited it; ask the creator",
        ) from None
