"""Targets that do not keep still: they fork, create threads, execute themselves or end while they are attached to."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path

import fuse
import pytest

import pyseccomp as ps
from attaching import (
    DENIED,
    ask,
    attaches,
    deny_getppid,
    facts,
    filter_counts,
    listeners_in,
    notify_getppid,
    visible,
    wait_until,
)
from harness import build_victim, in_child, status_field, victim
from listening import libc

ATTACHES = 25


def attach_repeatedly(pid: int, times: int = ATTACHES) -> None:
    """Attach the same filter again and again, without a pause between."""
    with ps.Filter(deny_getppid()) as f:
        for _ in range(attaches(times)):
            f.attach(pid)


def fewest_filters(pid: int) -> int:
    """The least number of filters on any thread; in the middle of an exec, with a dead leader, none may be seen for a moment."""
    seen: list[int] = []
    wait_until(lambda: bool(seen.extend(filter_counts(pid).values()) or seen), "a thread is seen")
    return min(seen)


def test_a_process_that_forks_continuously_is_filtered_and_so_is_every_later_child() -> None:
    with victim(build_victim("forker")) as subject:
        attach_repeatedly(subject.pid)
        then = ask(subject)
        now = ask(subject)
    assert (now["bad"], now["probe"]) == (0, DENIED)
    assert now["forks"] > then["forks"]
    assert now["denied"] - then["denied"] == now["forks"] - then["forks"]


def test_a_process_that_creates_threads_continuously_leaves_no_thread_unfiltered() -> None:
    with victim(build_victim("threader")) as subject:
        attach_repeatedly(subject.pid)
        counts = filter_counts(subject.pid)
        answer = ask(subject)
    assert len(set(counts.values())) == 1
    assert (answer["bad"], answer["probe"]) == (0, DENIED)
    assert answer["denied"] > 0


def test_a_process_whose_threads_execute_it_anew_is_filtered_for_good_or_refused_whole() -> None:
    attached = refused = 0
    with victim(build_victim("execer")) as subject, ps.Filter(deny_getppid()) as f:
        while attached < attaches(ATTACHES):
            before = fewest_filters(subject.pid)
            try:
                f.attach(subject.pid)
            except ps.AttachError:
                refused += 1
                assert refused <= ATTACHES // 2
                continue
            attached += 1
            assert fewest_filters(subject.pid) > before
        then = ask(subject)
        now = ask(subject)
    assert (now["bad"], now["probe"]) == (0, DENIED)
    assert now["executions"] > then["executions"]


def test_threads_that_end_meanwhile_do_not_stop_an_attach() -> None:
    with victim(build_victim("exiter"), "churn") as subject:
        attach_repeatedly(subject.pid)
        answer = ask(subject)
    assert (answer["bad"], answer["probe"]) == (0, DENIED)
    assert answer["gone"] > 0


def test_a_process_whose_first_thread_has_ended_is_filtered_in_the_others() -> None:
    with victim(build_victim("exiter"), "leader") as subject:
        assert status_field(subject.pid, "State")[0] == "Z"
        before = filter_counts(subject.pid)
        assert len(before) == 2
        attach_repeatedly(subject.pid, 1)
        assert filter_counts(subject.pid) == {tid: count + 1 for tid, count in before.items()}
        answer = ask(subject)
    assert (answer["bad"], answer["probe"]) == (0, DENIED)


def test_the_listener_of_a_process_whose_first_thread_has_ended_is_fetched_or_the_attach_refused() -> None:
    can = next(f.available for f in ps.features() if f.name == "pidfd-thread")
    with victim(build_victim("exiter"), "leader") as subject, ps.Filter(notify_getppid()) as f:
        before = filter_counts(subject.pid)
        with contextlib.nullcontext() if can else pytest.raises(ps.UnsupportedError, match="first thread has ended"):
            f.attach(subject.pid)
        assert filter_counts(subject.pid) == {tid: count + can for tid, count in before.items()}
        assert [fd for tid in before for fd in listeners_in(tid)] == []
        if not can:
            return
        subject.tell("report")
        f.receive(timeout=5).deny(DENIED)
        assert facts(subject.line(5))["probe"] == DENIED


def test_a_target_that_cannot_be_stopped_in_time_is_let_go_unchanged_and_can_be_attached_later() -> None:
    with victim(build_victim("vforker")) as subject, ps.Filter(deny_getppid()) as f:
        wait_until(lambda: status_field(subject.pid, "State")[0] == "D", "the parent waits for its vfork child")
        before = filter_counts(subject.pid)
        with pytest.raises(ps.AttachTimeoutError):
            f.attach(subject.pid, timeout=0.3)
        assert filter_counts(subject.pid) == before
        assert status_field(subject.pid, "TracerPid") == "0"
        assert ask(subject) == {"child": 5, "probe": 0}
        f.attach(subject.pid)
        assert ask(subject)["probe"] == DENIED


def test_repeated_timeouts_leave_the_target_as_it_was() -> None:
    with victim(build_victim("vforker")) as subject, ps.Filter(deny_getppid()) as f:
        wait_until(lambda: status_field(subject.pid, "State")[0] == "D", "the parent waits for its vfork child")
        view = visible(subject.pid)
        for _ in range(5):
            with pytest.raises(TimeoutError):
                f.attach(subject.pid, timeout=0.05)
        assert visible(subject.pid) == view
        assert ask(subject)["child"] == 5


def test_a_mapped_file_that_can_never_be_read_does_not_hold_the_manager(tmp_path: Path) -> None:
    """A target without a vDSO had its files' mappings read for unused room: a FUSE server that never answers hung the manager."""
    if os.geteuid() != 0:
        pytest.skip("privilege: to mount a file system")

    def target(ready: int) -> None:
        fd = os.open(tmp_path / "file", os.O_RDONLY)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        assert libc.mmap(0x10000, 4096, 5, 0x12, fd, 0) == 0x10000
        vdso = next(line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[vdso]"))
        start, end = (int(word, 16) for word in vdso.split()[0].split("-"))
        libc.munmap(ctypes.c_void_p(start), ctypes.c_size_t(end - start))
        os.write(ready, b"r")
        libc.pause()

    def manager() -> str:
        with fuse.mounted(tmp_path, unread=True) as is_mounted:
            if not is_mounted:
                return "no fuse"
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    target(writer)
                finally:
                    os._exit(1)
            try:
                assert os.read(reader, 1) == b"r"
                with ps.Filter(deny_getppid()) as f:
                    return f.attach(pid, timeout=3).query().state
            finally:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    state = in_child(manager)
    if state == "no fuse":
        pytest.skip("kernel lacks fuse, or privilege: to mount it")
    assert state == "active"
