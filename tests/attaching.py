"""What the tests of attach share: small programs, the facts that victims report, and what /proc says of a target."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pyseccomp as ps
from harness import SLOW, Victim, status_field

X86_64 = 0xC000003E
I386 = 0x40000003
GETPPID = {X86_64: 110, I386: 64}

ALLOW = 0x7FFF0000
NOTIFY = 0x7FC00000
KILL_PROCESS = 0x80000000
DENIED = 91
"""The errno that these tests deny with: no system call that the victims make can fail with it by itself."""


def errno_action(number: int) -> int:
    """SECCOMP_RET_ERRNO with that number."""
    return 0x00050000 | number


def program_bytes(action: int, *numbers: int, arch: int = X86_64) -> bytes:
    """A program that answers action to the calls of those numbers on arch, and ALLOW to everything else."""
    end = len(numbers) + 1
    code = [(0x20, 0, 0, 4), (0x15, 1, 0, arch), (0x06, 0, 0, ALLOW), (0x20, 0, 0, 0)]
    code += [(0x15, end - i - 1, 0, number) for i, number in enumerate(numbers)]
    code += [(0x06, 0, 0, ALLOW), (0x06, 0, 0, action)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def deny_getppid(number: int = DENIED, arch: int = X86_64) -> ps.Program:
    """The filter of most tests: getppid, which the victims probe, fails with that errno."""
    return ps.Program.from_bytes(program_bytes(errno_action(number), GETPPID[arch], arch=arch))


def notify_getppid() -> ps.Program:
    """The probe of the victims asks the listener."""
    return ps.Program.from_bytes(program_bytes(NOTIFY, GETPPID[X86_64]))


def facts(line: str) -> dict[str, int]:
    """The numbers of a line of facts; text is left out."""
    pairs = (word.partition("=") for word in line.split())
    return {key: int(value) for key, _, value in pairs if value.lstrip("-").isdigit()}


def ask(process: Victim, timeout: float = 30.0) -> dict[str, int]:
    """Ask a victim for its facts."""
    process.tell("report")
    return facts(process.line(timeout))


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
    """Look again and again until condition() holds: for what the kernel shows in /proc alone, where nothing can be polled."""
    end = time.monotonic() + timeout * SLOW
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {timeout} s"
        time.sleep(0.0005)


def thread_ids(pid: int) -> list[int]:
    """The live threads of a process, zombies left out."""
    found = []
    for entry in os.listdir(f"/proc/{pid}/task"):
        try:
            if status_field(pid, "State", int(entry))[0] not in "ZX":
                found.append(int(entry))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return sorted(found)


def filter_counts(pid: int) -> dict[int, int]:
    """How many filters each live thread of a process carries."""
    counts = {}
    for tid in thread_ids(pid):
        try:
            counts[tid] = int(status_field(pid, "Seccomp_filters", tid))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return counts


def is_waiting(pid: int, *, not_in: tuple[int, ...] = (0, 1)) -> bool:
    """True if a process sleeps inside a system call other than read and write, or any but those given."""
    text = Path(f"/proc/{pid}/syscall").read_text().split()[0]
    return text.isdigit() and int(text) not in not_in and status_field(pid, "State")[0] in "SD"


def state(pid: int) -> str:
    """The letter of a process's state."""
    return status_field(pid, "State")[0]


def visible(pid: int) -> dict[str, object]:
    """Everything about a process that an attach must leave as it was."""
    fields = ("TracerPid", "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt", "CapEff", "VmData", "VmExe")
    view: dict[str, object] = {name: status_field(pid, name) for name in fields}
    view["maps"] = [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "[heap]" not in line]
    view["fds"] = {fd: os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    return view


def listeners_in(pid: int) -> list[str]:
    """The descriptors of a process that are seccomp listeners: there must never be any."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            if "seccomp" in os.readlink(f"/proc/{pid}/fd/{fd}"):
                found.append(fd)
        except FileNotFoundError:
            continue
    return found


def may_suspend() -> bool:
    """True if this process may suspend the filters of a target: CAP_SYS_ADMIN, and no filter of its own."""
    return bool(int(status_field(os.getpid(), "CapEff"), 16) >> 21 & 1) and status_field(os.getpid(), "Seccomp") == "0"


def attaches(wanted: int) -> int:
    """How often one target can be attached to: who may not suspend filters is refused from the second time on."""
    return wanted if may_suspend() else 1


def rounds(usual: int) -> int:
    """How often to repeat: usual, or PYSECCOMP_ROUNDS for a full run."""
    return int(os.environ.get("PYSECCOMP_ROUNDS", usual))
