"""A manager that runs short of descriptors, processes or memory says so, by one class, and changes nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from harness import in_child, status_field

import pyseccomp as ps

POLICY = ps.Policy(ps.ALLOW)
POLICY.add(ps.NOTIFY, "getpgid")


KEPT: list[object] = []
"""What a manager holds until it ends."""


@contextlib.contextmanager
def family() -> Iterator[tuple[int, int]]:
    """A shell that waits, and its child that sleeps."""
    code = "import os, sys\nchild = os.fork()\nif child: print(child, flush=True)\nsys.stdin.read()\n"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            yield parent.pid, int(parent.stdout.readline())
        finally:
            parent.kill()


def free_descriptors(count: int) -> None:
    """Leave this process so many."""
    taken = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(100)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, max(taken) + 1))
    for fd in sorted(taken)[len(taken) - count :] if count else []:
        os.close(fd)


OPERATIONS: dict[str, Callable[[int], object]] = {
    "query": lambda pid: ps.query(pid),
    "attach": lambda pid: ps.Filter(POLICY).attach(pid),
    "tree": lambda pid: ps.Filter(POLICY).attach(pid, tree=True),
    "gate": lambda pid: ps.Filter(POLICY).attach(pid, mode="gate"),
    "exec": lambda pid: ps.Filter(POLICY).attach(pid, activate_on="exec"),
    "deadline": lambda pid: ps.Filter(POLICY).attach(pid, active=False, deadline=60),
    "death": lambda pid: ps.Filter(POLICY).attach(pid, on_supervisor_death=ps.deny(errno.EPERM)),
    "popen": lambda pid: ps.Popen(["true"], filter=ps.Filter(POLICY)).wait(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_want_of_descriptors_is_told_and_nothing_is_changed(operation: str) -> None:
    """With few free a manager heard that no procfs is mounted or that the target is gone; a tree's child stayed unfiltered."""

    def manager(pid: int, count: int) -> bool:
        free_descriptors(count)
        try:
            KEPT.append(OPERATIONS[operation](pid))
        except ps.ShortageError as error:
            assert error.errno == errno.EMFILE and "RLIMIT_NOFILE" in str(error)
            return False
        return True

    outcomes = []
    for count in (0, 1, 2, 4, 6, 7, 8, 9, 11, 14, 18, 90):
        with family() as (pid, child):
            outcomes.append(in_child(manager, pid, count))
            modes = [status_field(pid, "Seccomp"), status_field(child, "Seccomp")]
            if not outcomes[-1]:
                assert modes == ["0", "0"]
            elif operation == "tree":
                assert modes == ["2", "2"], f"a process of the tree was left out with {count} descriptors free"
    assert outcomes[0] is False and outcomes[-1] is True
    assert outcomes == sorted(outcomes), "more descriptors must not be worse"


@pytest.mark.parametrize("operation", ["gate", "deadline", "attach"])
def test_want_of_processes_is_told_and_nothing_is_changed(operation: str) -> None:
    """A gate raised BlockingIOError, and a deadline RuntimeError."""

    def manager(pid: int) -> bool:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        with pytest.raises(ps.ShortageError) as caught:
            OPERATIONS[operation](pid)
        return caught.value.errno == errno.EAGAIN

    if os.geteuid() != 0:
        pytest.skip("privilege: to become another user")

    def target() -> None:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)

    with subprocess.Popen(["sleep", "60"], preexec_fn=target) as process:
        try:
            assert in_child(manager, process.pid) is True
            assert status_field(process.pid, "Seccomp") == "0"
        finally:
            process.kill()
