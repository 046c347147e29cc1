"""The filters of the matrix: those that are attached, and those that targets and askers have already."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pyseccomp as ps
from pyseccomp import syscalls
from matrix import system

DENIED, ANSWERED = 91, 93
"""Errnos that the target's calls do not fail with by themselves: of the attached filter, and of its listener."""

ALLOW, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
ARCHES = (ps.Arch.X86_64, ps.Arch.X86) if ps.Arch.native() is ps.Arch.X86_64 else (ps.Arch.native(),)


def denying() -> ps.Policy:
    """getppid, which every thread of the target makes in each round, is denied."""
    policy = ps.Policy(arches=ARCHES)
    policy.add(ps.ERRNO(DENIED), "getppid")
    return policy


def notifying(*names: str) -> ps.Policy:
    """The same, and those calls are notified, which the target makes when it is asked to."""
    policy = denying()
    for name in names:
        policy.add(ps.NOTIFY, name)
    return policy


def forgetting(*names: str, notify: bool = False) -> ps.Policy:
    """A policy that forgets those calls, which then kill; it denies getppid as the others do."""
    policy = notifying("getpgid") if notify else denying()
    for name in names:
        policy.add(ps.KILL_PROCESS, name)
    return policy


def raw(action: int, *names: str, other: int = ALLOW) -> bytes:
    """A raw program: action for those calls by their numbers on each architecture, other for all others."""
    blocks = []
    for arch in ARCHES:
        numbers = [syscalls.resolve(name, arch) for name in names if name in syscalls.names(arch)]
        block = [(0x20, 0, 0, 0)]
        block += [(0x15, len(numbers) - at, 0, number & 0xFFFFFFFF) for at, number in enumerate(numbers)]
        block += [(0x06, 0, 0, other), (0x06, 0, 0, action)]
        blocks.append((arch.token, block))
    code: list[tuple[int, int, int, int]] = [(0x20, 0, 0, 4)]
    for token, block in blocks:
        code += [(0x15, 0, len(block), token), *block]
    code.append((0x06, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *one) for one in code)


_REFUSED = {
    "acct", "add_key", "bpf", "chroot", "clock_settime", "create_module", "delete_module", "finit_module", "fsconfig", "fsmount",
    "fsopen", "fspick", "get_kernel_syms", "get_mempolicy", "init_module", "io_uring_enter", "io_uring_register",
    "io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl", "lookup_dcookie", "mbind",
    "mount", "mount_setattr", "move_mount", "move_pages", "name_to_handle_at", "nfsservctl", "open_by_handle_at", "open_tree",
    "perf_event_open", "personality", "pidfd_getfd", "pivot_root", "process_madvise", "process_vm_readv", "process_vm_writev",
    "ptrace", "query_module", "quotactl", "quotactl_fd", "reboot", "request_key", "set_mempolicy", "setdomainname",
    "sethostname", "setns", "settimeofday", "stime", "swapoff", "swapon", "sysfs", "syslog", "umount", "umount2", "unshare",
    "uselib", "userfaultfd", "ustat", "vhangup", "vm86", "vm86old",
}  # fmt: skip


def container_policy() -> dict[str, Any]:
    """A container engine's default policy, in OCI's form: a list of what is allowed, namespaces and tracing are not.

    Docker's own is taken where it is there (PYSECCOMP_POLICIES, or beside the clone), else one of the same shape.
    """
    beside = Path(__file__).parents[2].parent / "shared" / "policies"
    file = Path(os.environ.get("PYSECCOMP_POLICIES", beside)) / "docker-default.json"
    if file.exists():
        return dict(ps.Policy.from_oci(file, caps=tuple(system.DOCKER_CAPS)).to_oci())
    names = sorted({name for arch in ARCHES for name in syscalls.names(arch)} - _REFUSED - {"clone", "clone3"})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            {"names": names, "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 0x7E020000, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        ],
    }


def container_program() -> bytes:
    """The same, compiled."""
    return bytes(ps.Policy.from_oci(container_policy()).compile())
