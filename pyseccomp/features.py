"""What this kernel, this user and this container allow: each thing tried, none deduced from a version.

Trials that would change the caller run in children of their own that no ``wait()`` of the program sees.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from pyseccomp import _core
from pyseccomp.errors import KernelError


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that was tried."""

    name: str
    available: bool
    detail: str
    """What was seen: how the trial ended, or what else there is to know."""
    cost: str
    """What its absence costs; said whether it is absent or not."""
    needed: bool = False
    """Without it the main job cannot be done: load, attach to one's own child, notify."""


class _Probe(IntEnum):
    """enum psc_feature of psc.h, in its order."""

    FILTER = 0
    UNPRIVILEGED = 1
    FILTER_COUNT = 2
    LOG = 3
    TSYNC = 4
    TSYNC_ESRCH = 5
    NOTIFY = 6
    CONTINUE = 7
    ADDFD = 8
    ADDFD_SEND = 9
    WAIT_KILLABLE = 10
    SYNC_WAKE_UP = 11
    LISTENER_ENDS = 12
    PIDFD_OPEN = 13
    PIDFD_GETFD = 14
    PIDFD_THREAD = 15
    PTRACE_CHILD = 16
    PTRACE_OTHER = 17
    CAP_SYS_ADMIN = 18
    CAP_SYS_PTRACE = 19
    SUSPEND_SECCOMP = 20
    GET_FILTER = 21
    PROC_MEM = 22
    MEMFD_SEALS = 23
    I386 = 24
    X32 = 25


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    probe: _Probe | Callable[[], tuple[bool, str]]
    cost: str
    needed: bool = False
    explain: Callable[[int], str] | None = None


_INITIAL_USER_NAMESPACE = 0xEFFFFFFD
_CONTINUE = 1


def _actions(_: int = 0) -> str:
    try:
        return "actions: " + Path("/proc/sys/kernel/seccomp/actions_avail").read_text().strip()
    except OSError:
        return "the list of actions is not readable here"


def _logged(_: int = 0) -> str:
    try:
        return "actions logged: " + Path("/proc/sys/kernel/seccomp/actions_logged").read_text().strip()
    except OSError:
        return "the list of logged actions is not readable here"


def _user_namespace(_: int = 0) -> str:
    try:
        initial = os.stat("/proc/self/ns/user").st_ino == _INITIAL_USER_NAMESPACE
    except OSError:
        return "effective; which user namespace is not known"
    return "effective, in the initial user namespace" if initial else "effective, in a user namespace of this container"


def _yama(_: int = 0) -> str:
    try:
        scope = Path("/proc/sys/kernel/yama/ptrace_scope").read_text().strip()
    except OSError:
        return "no YAMA on this kernel"
    return f"YAMA ptrace_scope is {scope}"


def _jit() -> tuple[bool, str]:
    try:
        value = Path("/proc/sys/net/core/bpf_jit_enable").read_text().strip()
    except OSError as error:
        return False, f"cannot be told: net.core.bpf_jit_enable: {error.strerror} (it is hidden in network namespaces)"
    return value != "0", f"net.core.bpf_jit_enable is {value}"


def _cgroup() -> tuple[bool, str]:
    """Cgroup v2 is available if a hierarchy of it is mounted at all; the detail says how."""
    try:
        lines = Path("/proc/self/mounts").read_bytes().decode(errors="surrogateescape").split("\n")[:-1]
    except OSError as error:
        return False, f"cannot be told: /proc/self/mounts: {error.strerror}"
    mounts = [line.split(" ") for line in lines]
    v1 = any(m[2] == "cgroup" for m in mounts)
    v2 = next((m[1] for m in mounts if m[2] == "cgroup2"), None)
    if v2 is None:
        return False, "only version 1 is mounted" if v1 else "no cgroup file system is mounted"
    return True, f"hybrid: version 2 on {v2} beside version 1" if v1 else f"version 2 on {v2}"


def _kept_memory() -> tuple[bool, str]:
    error = _core.Table([], _core.Answer(_CONTINUE), _core.Answer(_CONTINUE)).keep_memory()
    if error == errno.EPERM:
        return False, "takes CAP_BPF and CAP_PERFMON, and a process without a filter"
    return error == 0, "works" if error == 0 else os.strerror(error)


_ENTRIES = (
    _Entry("filter", _Probe.FILTER, "nothing works: no filter can be loaded", needed=True, explain=_actions),
    _Entry("unprivileged", _Probe.UNPRIVILEGED, "only holders of CAP_SYS_ADMIN can load a filter"),
    _Entry("tsync", _Probe.TSYNC, "threads must be filtered one by one, each at its own time", needed=True),
    _Entry("tsync-esrch", _Probe.TSYNC_ESRCH, "a notifying filter reaches only one thread of a process", needed=True),
    _Entry("notify", _Probe.NOTIFY, "no notification: a filter can only allow, refuse or kill", needed=True),
    _Entry("continue", _Probe.CONTINUE, "a notified call cannot be let through, only emulated or refused"),
    _Entry("addfd", _Probe.ADDFD, "no file can be put into a target: open() cannot be emulated"),
    _Entry(
        "addfd-send",
        _Probe.ADDFD_SEND,
        "adding a file and answering are two calls; the target can be interrupted between",
    ),
    _Entry(
        "wait-killable",
        _Probe.WAIT_KILLABLE,
        "signals interrupt notified calls after they were received; targets see EINTR",
    ),
    _Entry(
        "sync-wake-up", _Probe.SYNC_WAKE_UP, "answers cost 1.4 to 11 times more on several cores; pin both sides to one"
    ),
    _Entry(
        "listener-ends", _Probe.LISTENER_ENDS, "receive() learns that all targets exited only once they were reaped"
    ),
    _Entry("pidfd-open", _Probe.PIDFD_OPEN, "targets can only be named by numbers that may be reused", needed=True),
    _Entry("pidfd-getfd", _Probe.PIDFD_GETFD, "a listener cannot be fetched out of a target", needed=True),
    _Entry(
        "pidfd-thread",
        _Probe.PIDFD_THREAD,
        "no listener from a process whose first thread has ended, or from threads with descriptors and filters of their own",
    ),
    _Entry(
        "ptrace-child",
        _Probe.PTRACE_CHILD,
        "no attach to a running task, not even to an own child",
        needed=True,
        explain=_yama,
    ),
    _Entry(
        "ptrace-other",
        _Probe.PTRACE_OTHER,
        "attach reaches only own descendants: start targets from here",
        explain=_yama,
    ),
    _Entry(
        "cap-sys-admin", _Probe.CAP_SYS_ADMIN, "targets must have, or be given, no_new_privs", explain=_user_namespace
    ),
    _Entry(
        "cap-sys-ptrace",
        _Probe.CAP_SYS_PTRACE,
        "only processes of the same user can be attached to",
        explain=_user_namespace,
    ),
    _Entry("suspend-seccomp", _Probe.SUSPEND_SECCOMP, "a target whose filters forbid seccomp() or prctl() is refused"),
    _Entry(
        "get-filter",
        _Probe.GET_FILTER,
        "filters already in a target cannot be read, so not simulated, dumped or checkpointed",
        explain=lambda count: f"read a filter of {count} instructions back",
    ),
    _Entry(
        "proc-mem",
        _Probe.PROC_MEM,
        "no code can be written over a target's own: injection must find its instructions there",
        explain=lambda how: "at any time" if how == 1 else "only while tracing (proc_mem.force_override)",
    ),
    _Entry("memfd-seals", _Probe.MEMFD_SEALS, "no filter file descriptors: nothing works", needed=True),
    _Entry(
        "filter-count",
        _Probe.FILTER_COUNT,
        "query() tells whether a filter is in force, not how many",
        explain=lambda _: "Seccomp_filters in /proc/PID/status",
    ),
    _Entry("i386", _Probe.I386, "none: no 32-bit program can run, so none needs rules"),
    _Entry("x32", _Probe.X32, "none: no x32 program can run; programs refuse its calls all the same"),
    _Entry("jit", _jit, "filters are interpreted: several times slower where the kernel's bitmap does not decide"),
    _Entry("log", _Probe.LOG, "the action LOG acts as KILL: do not use it", explain=_logged),
    _Entry("kept-memory", _kept_memory, "rules that read a target's string cost a tenth of a notified call more"),
    _Entry("cgroup-v2", _cgroup, "tasks of a cgroup can only be found in version 1 hierarchies"),
)


def features() -> list[Feature]:
    """Try everything that this package can use, here and now; takes some ten milliseconds.

    Nothing is remembered: a policy, a capability or a sysctl may change between two calls.
    Raises KernelError if the trials themselves cannot be made (no process or pipe can be created).
    """
    return [_feature(entry) for entry in _ENTRIES]


def _feature(entry: _Entry) -> Feature:
    if isinstance(entry.probe, _Probe):
        available, detail = _run(entry.probe, entry.explain)
    else:
        available, detail = entry.probe()
    return Feature(entry.name, available, detail, entry.cost, entry.needed)


def _run(probe: _Probe, explain: Callable[[int], str] | None) -> tuple[bool, str]:
    try:
        error, died_of, value = _core.probe_feature(probe)
    except OSError as failure:
        raise KernelError(failure.errno, f"features: {probe.name}: no child to try it in: {failure.strerror}") from None
    if died_of:
        name = signal.Signals(died_of).name
        why = ": a filter above this process kills for it" if died_of == signal.SIGSYS else ""
        return False, f"the trial was killed by {name}{why}"
    if error:
        more = f"; {explain(0)}" if explain is _yama else ""
        return False, os.strerror(error) + more
    return True, explain(value) if explain else "works"
