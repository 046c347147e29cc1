"""Targets that cannot be attached to: a clear error of the package, and nothing is changed anywhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import pyseccomp as ps
from attaching import ask, deny_getppid, filter_counts, thread_ids, visible, wait_until
from harness import build_victim, descriptors, in_child, status_field, victim

NOBODY = 65534


def test_a_process_id_that_nobody_has_is_gone() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    with ps.Filter(deny_getppid()) as f:
        before = descriptors()
        with pytest.raises(ps.TargetGoneError, match=str(pid)) as caught:
            f.attach(pid)
        assert isinstance(caught.value, ProcessLookupError)
        assert descriptors() == before
        assert f.query().state == "detached"


@pytest.mark.parametrize("pid", [0, -1, -2, 2**31 - 1, 2**31, 2**64])
def test_a_number_that_cannot_be_a_process_id_is_refused(pid: int) -> None:
    with ps.Filter(deny_getppid()) as f, pytest.raises((ps.TargetGoneError, ValueError, OverflowError)):
        f.attach(pid)


def test_a_zombie_is_gone_and_its_status_stays_for_its_parent() -> None:
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 3"], {})
    wait_until(lambda: status_field(pid, "State")[0] == "Z", "the child ends")
    with ps.Filter(deny_getppid()) as f, pytest.raises(ps.TargetGoneError):
        f.attach(pid)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


def test_the_pidfd_of_a_process_that_was_reaped_is_gone() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    fd = os.pidfd_open(pid)
    os.waitpid(pid, 0)
    try:
        with ps.Filter(deny_getppid()) as f, pytest.raises(ps.TargetGoneError):
            f.attach(pidfd=fd)
    finally:
        os.close(fd)


def test_a_descriptor_that_is_no_pidfd_is_refused() -> None:
    fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with ps.Filter(deny_getppid()) as f, pytest.raises((ps.SeccompError, ValueError)):
            f.attach(pidfd=fd)
        os.fstat(fd)
    finally:
        os.close(fd)


def test_a_target_and_a_pidfd_together_are_refused() -> None:
    with victim(build_victim("idle")) as subject, ps.Filter(deny_getppid()) as f:
        fd = os.pidfd_open(subject.pid)
        try:
            with pytest.raises((TypeError, ValueError)):
                f.attach(subject.pid, pidfd=fd)
        finally:
            os.close(fd)
        assert ask(subject)["probe"] == 0


def test_a_closed_filter_cannot_be_attached() -> None:
    with victim(build_victim("idle")) as subject:
        f = ps.Filter(deny_getppid())
        f.close()
        with pytest.raises(ps.FilterClosedError):
            f.attach(subject.pid)
        assert ask(subject)["probe"] == 0


def kernel_threads() -> list[int]:
    """Kernel threads: they have no memory of their own, so their status has no VmSize, and yet they are no zombies."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            text = Path(f"/proc/{entry}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "VmSize" not in text and "State:\tZ" not in text and "State:\tX" not in text:
            found.append(int(entry))
    return found


def test_a_kernel_thread_is_refused() -> None:
    threads = kernel_threads()
    if not threads:
        pytest.skip("privilege: no kernel thread is visible in this pid namespace")
    with ps.Filter(deny_getppid()) as f, pytest.raises(ps.AttachError, match="kernel thread|permit"):
        f.attach(threads[0])
    assert status_field(threads[0], "Seccomp") == "0"


def attach_as_nobody(pid: int) -> str:
    """The class of the error that an ordinary user gets."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    try:
        with ps.Filter(deny_getppid()) as f:
            f.attach(pid)
    except ps.SeccompError as e:
        return type(e).__name__
    return ""


@pytest.mark.skipif(os.geteuid() != 0, reason="privilege: root, to have a process of another user")
def test_a_process_of_another_user_is_not_permitted_and_unchanged() -> None:
    with victim(build_victim("idle")) as subject:
        before = visible(subject.pid), filter_counts(subject.pid)
        assert in_child(attach_as_nobody, subject.pid) == "NotPermittedError"
        assert (visible(subject.pid), filter_counts(subject.pid)) == before
        assert ask(subject)["probe"] == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="privilege: to have too little, root may attach to any process")
def test_process_one_is_not_permitted_to_an_ordinary_user() -> None:
    with ps.Filter(deny_getppid()) as f, pytest.raises(ps.NotPermittedError):
        f.attach(1)


def test_a_process_under_another_tracer_is_busy_and_the_error_names_that() -> None:
    with victim(build_victim("idle")) as subject, victim(build_victim("tracer"), subject.pid) as tracer:
        before = visible(subject.pid), filter_counts(subject.pid)
        with ps.Filter(deny_getppid()) as f, pytest.raises(ps.TargetBusyError, match=str(tracer.pid)):
            f.attach(subject.pid)
        assert (visible(subject.pid), filter_counts(subject.pid)) == before
        assert status_field(subject.pid, "TracerPid") == str(tracer.pid)
        assert ask(subject)["probe"] == 0


def test_one_traced_thread_of_many_is_enough_to_refuse_all_of_them() -> None:
    with victim(build_victim("idle"), "6") as subject:
        traced = thread_ids(subject.pid)[-1]
        with victim(build_victim("tracer"), traced) as tracer:
            before = filter_counts(subject.pid)
            with ps.Filter(deny_getppid()) as f, pytest.raises(ps.TargetBusyError, match=str(tracer.pid)) as caught:
                f.attach(subject.pid)
            assert caught.value.tid == traced
            assert filter_counts(subject.pid) == before
            assert {status_field(subject.pid, "TracerPid", t) for t in thread_ids(subject.pid) if t != traced} == {"0"}
        assert ask(subject)["probe"] == 0


def test_the_id_of_a_thread_that_is_not_the_first_is_refused_and_nothing_changes() -> None:
    with victim(build_victim("idle"), "4") as subject:
        thread = thread_ids(subject.pid)[-1]
        before = visible(subject.pid), filter_counts(subject.pid)
        with ps.Filter(deny_getppid()) as f, pytest.raises(ps.SeccompError, match=str(subject.pid)):
            f.attach(thread)
        assert (visible(subject.pid), filter_counts(subject.pid)) == before
        assert ask(subject)["probe"] == 0


def test_a_refused_attach_leaves_no_descriptor_and_no_child_behind() -> None:
    with victim(build_victim("idle")) as subject, victim(build_victim("tracer"), subject.pid), ps.Filter(deny_getppid()) as f:
        with pytest.raises(ps.TargetBusyError):
            f.attach(subject.pid)
        before = descriptors(), children()
        for _ in range(50):
            with pytest.raises(ps.TargetBusyError):
                f.attach(subject.pid)
        assert (descriptors(), children()) == before


def children() -> list[str]:
    """The children of this process's threads, zombies included."""
    return sorted(c for t in os.listdir("/proc/self/task") for c in Path(f"/proc/self/task/{t}/children").read_text().split())
