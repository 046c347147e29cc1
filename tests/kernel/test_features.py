"""features(): every trial is real, hidden from the program, and tells what a container took away."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
import threading
from pathlib import Path

import pytest
from harness import descriptors, in_child, status_field

from pyseccomp import _core
from pyseccomp.features import _ENTRIES, Feature, _Probe, features

libc = ctypes.CDLL(None, use_errno=True)
ERRNO_EPERM, KILL_PROCESS, ALLOW = 0x00050000 | errno.EPERM, 0x80000000, 0x7FFF0000
SYSCALLS = {
    "x86_64": {"seccomp": 317, "ptrace": 101, "pidfd_open": 434, "pidfd_getfd": 438, "ioctl": 16, "memfd_create": 319}
}

# What each call takes away when a container's policy forbids it.
LOST = {
    "seccomp": {"filter", "unprivileged", "tsync", "tsync-esrch", "notify", "wait-killable", "log"},
    "ptrace": {"ptrace-child", "ptrace-other"},
    "pidfd_open": {"pidfd-open", "pidfd-getfd", "pidfd-thread"},
    "pidfd_getfd": {"pidfd-getfd"},
    "ioctl": {"notify", "continue", "addfd", "addfd-send", "sync-wake-up"},
    "memfd_create": {"memfd-seals"},
}

x86_64 = pytest.mark.skipif(platform.machine() not in SYSCALLS, reason="kernel lacks x86_64 call numbers")


def deny(name: str, action: int) -> None:
    """Load into this thread: one system call gets action."""
    insns = [(0x20, 0, 0, 0), (0x15, 0, 1, SYSCALLS["x86_64"][name]), (0x06, 0, 0, action), (0x06, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *i) for i in insns))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(insns), ctypes.addressof(code)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, program, 0, 0) == 0


def by_name() -> dict[str, Feature]:
    return {f.name: f for f in features()}


def test_every_probe_of_the_core_has_one_entry() -> None:
    assert len(_Probe) == _core.FEATURE_COUNT
    assert sorted(e.probe for e in _ENTRIES if isinstance(e.probe, _Probe)) == sorted(_Probe)
    assert len({e.name for e in _ENTRIES}) == len(_ENTRIES)


def test_what_this_machine_must_have_is_there() -> None:
    found = by_name()
    absent = [f for f in found.values() if f.needed and not f.available]
    assert absent == []
    assert all(f.detail and f.cost for f in found.values())


def test_an_unknown_feature_is_an_error_not_a_crash() -> None:
    for number in (-1, _core.FEATURE_COUNT, 2**31 - 1):
        with pytest.raises(OSError) as caught:
            _core.probe_feature(number)
        assert caught.value.errno == errno.EINVAL


def test_the_caller_is_left_as_it_was() -> None:
    def census() -> tuple[object, ...]:
        own = os.getpid()
        return (
            [
                status_field(own, name)
                for name in ("NoNewPrivs", "Seccomp", "Seccomp_filters", "Threads", "SigBlk", "CapEff")
            ],
            descriptors(),
            Path(f"/proc/{own}/task/{own}/children").read_text(),
        )

    before = census()
    for _ in range(20):
        features()
    assert census() == before


def test_no_sigchld_and_no_child_for_wait() -> None:
    def watch() -> tuple[list[int], bool]:
        seen: list[int] = []
        signal.signal(signal.SIGCHLD, lambda number, _: seen.append(number))
        features()
        try:
            os.waitpid(-1, os.WNOHANG)
            return seen, True
        except ChildProcessError:
            return seen, False

    assert in_child(watch) == ([], False)


def test_it_works_while_sigchld_is_ignored() -> None:
    def ignoring() -> bool:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        return by_name()["notify"].available

    assert in_child(ignoring)


def test_threads_may_ask_at_the_same_time() -> None:
    wanted = [(f.name, f.available) for f in features()]
    answers: list[list[tuple[str, bool]]] = []
    threads = [
        threading.Thread(target=lambda: answers.append([(f.name, f.available) for f in features()])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [wanted] * 8


@x86_64
@pytest.mark.parametrize(
    ("call", "action"),
    [(call, ERRNO_EPERM) for call in sorted(LOST)]
    # Not ioctl: CPython's open() calls it, so nothing would be left to report.
    + [(call, KILL_PROCESS) for call in sorted(LOST) if call != "ioctl"],
)
def test_what_a_containers_filter_takes_away_is_told(call: str, action: int) -> None:
    lost = LOST[call]

    def inside() -> dict[str, tuple[bool, str]]:
        deny(call, action)
        return {f.name: (f.available, f.detail) for f in features()}

    found = in_child(inside)
    assert {name for name in lost if found[name][0]} == set()
    told = "SIGSYS" if action == KILL_PROCESS else os.strerror(errno.EPERM)
    assert {name for name in lost if told not in found[name][1]} == set()
    assert found["jit"][0] == by_name()["jit"].available


def test_lost_capabilities_are_told() -> None:
    def as_nobody() -> dict[str, bool]:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            assert libc.prctl(4, 1, 0, 0, 0) == 0  # PR_SET_DUMPABLE, which a change of user clears
        return {f.name: f.available for f in features()}

    found = in_child(as_nobody)
    assert not any(found[name] for name in ("cap-sys-admin", "cap-sys-ptrace", "suspend-seccomp", "get-filter"))
    assert all(
        found[name] for name in ("filter", "unprivileged", "notify", "ptrace-child", "pidfd-getfd", "memfd-seals")
    )


def test_a_process_that_may_not_be_dumped_cannot_be_attached_to() -> None:
    def undumpable() -> dict[str, bool]:
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        assert libc.prctl(4, 0, 0, 0, 0) == 0
        return {f.name: f.available for f in features()}

    found = in_child(undumpable)
    assert not found["ptrace-child"] and not found["pidfd-getfd"] and found["notify"]


def test_signals_during_the_trials_reach_the_caller_once() -> None:
    def interrupted() -> int:
        count = 0

        def handler(number: int, frame: object) -> None:
            nonlocal count
            count += 1

        signal.signal(signal.SIGUSR1, handler)
        me, stop = os.getpid(), threading.Event()
        sent = 0

        def pester() -> None:
            nonlocal sent
            while not stop.is_set():
                os.kill(me, signal.SIGUSR1)
                sent += 1

        thread = threading.Thread(target=pester)
        thread.start()
        found = by_name()
        stop.set()
        thread.join()
        assert all(f.available for f in found.values() if f.needed)
        assert sent > 0
        return count

    assert in_child(interrupted) > 0
