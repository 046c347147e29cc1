"""Targets with io_uring workers: threads that never run code of the process, and fail their requests when they are stopped."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyseccomp as ps
from attaching import DENIED, deny_getppid, facts, filter_counts, may_suspend, notify_getppid, thread_ids, wait_until
from harness import SLOW, Victim, build_victim, victim

needs_suspension = pytest.mark.skipif(not may_suspend(), reason="privilege: CAP_SYS_ADMIN and no filter, to suspend those of targets")
SWITCH = Path("/proc/sys/kernel/io_uring_disabled")


def is_worker(pid: int, tid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/task/{tid}/comm").read_text().startswith("iou-wrk-")
    return False


def workers(pid: int) -> set[int]:
    return {tid for tid in thread_ids(pid) if is_worker(pid, tid)}


@contextlib.contextmanager
def with_worker(folder: Path, *arguments: str) -> Iterator[Victim]:
    if SWITCH.exists() and SWITCH.read_text().strip() != "0" and (os.geteuid() or SWITCH.read_text().strip() == "2"):
        pytest.skip("kernel lacks io_uring for this user")
    with victim(build_victim("uring"), folder / "fifo", *arguments, ready=None) as subject:
        line = subject.line()
        if line.startswith("failed=io_uring_setup"):
            pytest.skip("kernel lacks io_uring")
        assert line == "ready"
        wait_until(lambda: bool(workers(subject.pid)), "a worker begins")
        worker = min(workers(subject.pid))
        wait_until(lambda: Path(f"/proc/{subject.pid}/task/{worker}/stat").read_text().rpartition(")")[2].split()[0] == "S", "it waits")
        yield subject


def ended(subject: Victim) -> dict[str, int]:
    """What the request of the worker came to, which an interruption fails, and the probe of both threads."""
    subject.tell("end")
    answer = facts(subject.line())
    assert answer["opened"] >= 0
    return answer


@pytest.mark.parametrize("program", [deny_getppid(), notify_getppid()], ids=["deny", "notify"])
def test_a_worker_gets_the_filter_without_a_stop_and_its_request_goes_on(tmp_path: Path, program: ps.Program) -> None:
    with with_worker(tmp_path) as subject, ps.Filter(program) as f:
        attachment = f.attach(subject)
        assert set(filter_counts(subject.pid).values()) == {1}
        assert attachment.result is not None
        assert workers(subject.pid) <= {thread.tid for thread in attachment.result.threads}
        assert attachment.query().state == "active"
        if not program.notifies:
            answer = ended(subject)
            assert (answer["probe"], answer["sibling"]) == (DENIED, DENIED)


@needs_suspension
def test_a_worker_beside_diverged_threads_is_refused_at_once_and_nothing_is_changed(tmp_path: Path) -> None:
    with with_worker(tmp_path, "diverged") as subject, ps.Filter(deny_getppid()) as f:
        before = filter_counts(subject.pid)
        start = time.monotonic()
        with pytest.raises(ps.UnsupportedError, match="io_uring worker"):
            f.attach(subject, timeout=2)
        with pytest.raises(ps.SeccompError, match="io_uring worker"):
            f.attach(subject, tree=True, timeout=2)
        assert time.monotonic() - start < SLOW
        assert filter_counts(subject.pid) == before
        answer = ended(subject)
        assert (answer["probe"], answer["sibling"]) == (0, 0)


@needs_suspension
def test_a_query_of_the_programs_leaves_the_worker_alone(tmp_path: Path) -> None:
    with with_worker(tmp_path, "diverged") as subject:
        state = ps.query(subject.pid, programs=True)
        unknown = [thread for thread in state.threads if thread.unknown is not None]
        assert {thread.tid for thread in unknown} == workers(subject.pid)
        assert all("worker" in str(thread.unknown) for thread in unknown)
        ended(subject)


def test_a_thread_that_names_itself_like_a_worker_is_none(tmp_path: Path) -> None:
    with with_worker(tmp_path) as subject, ps.Filter(deny_getppid()) as f:
        f.attach(subject)
        named = [tid for tid in thread_ids(subject.pid) if Path(f"/proc/{subject.pid}/task/{tid}/comm").read_text() == "iou-thread\n"]
        assert len(named) == 1
        if may_suspend():
            state = ps.query(subject.pid, programs=True)
            assert [thread.unknown for thread in state.threads if thread.tid == named[0]] == [None]
        assert ended(subject)["sibling"] == DENIED
