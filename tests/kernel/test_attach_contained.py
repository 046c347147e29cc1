"""Targets in other pid namespaces and containers, and targets that can make no thread: attached to in every way, and never harmed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyseccomp as ps
from attaching import (
    DENIED,
    KILL_PROCESS,
    ask,
    deny_getppid,
    filter_counts,
    listeners_in,
    may_suspend,
    notify_getppid,
    program_bytes,
    wait_until,
)
from harness import Victim, build_victim, victim
from test_cgroup import cgroup, move  # noqa: F401

NOBODY = 65534
CLONE_NEWPID = 0x20000000
EXIT = 60
root_only = pytest.mark.skipif(not may_suspend(), reason="privilege: CAP_SYS_ADMIN in an unfiltered caller, to suspend filters")


def children(pid: int) -> list[int]:
    """The processes that a process has made."""
    return [int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text().split()]


def attach_once(program: ps.Program, pid: int) -> None:
    """Filter a process, and be done with it."""
    with ps.Filter(program) as f:
        f.attach(pid)


@contextlib.contextmanager
def in_pid_namespace(*arguments: str, options: tuple[str, ...] = ()) -> Iterator[tuple[Victim, int]]:
    """The idle victim as process 1 of a new pid namespace, and its number here."""
    with victim("unshare", "-p", "-f", "--mount-proc", "--kill-child", *options, build_victim("idle"), *arguments) as outer:
        yield outer, children(outer.pid)[0]


def policy_of_a_container() -> dict[str, object]:
    """Docker's default policy, or a short one where that is missing."""
    beside = Path(__file__).parents[2].parent / "shared" / "policies"
    file = Path(os.environ.get("PYSECCOMP_POLICIES", beside)) / "docker-default.json"
    if file.exists():
        return ps.Policy.from_oci(file).to_oci()
    rules = [{"names": ["keyctl", "ptrace", "process_vm_readv"], "action": "SCMP_ACT_ERRNO"}]
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}


@contextlib.contextmanager
def container(folder: Path) -> Iterator[tuple[Victim, int]]:
    """The idle victim in a container of runc under that policy, and its number here."""
    if not shutil.which("runc"):
        pytest.skip("material lacks runc")
    name, root = f"pyseccomp-{os.getpid()}-{time.monotonic_ns()}", folder / "state"
    (folder / "rootfs").mkdir()
    shutil.copy(build_victim("idle", "-static"), folder / "rootfs" / "idle")
    subprocess.run(["runc", "spec"], cwd=folder, check=True)
    config = json.loads((folder / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": ["/idle", "3"]}
    config["linux"] |= {"seccomp": policy_of_a_container(), "cgroupsPath": f"/{name}"}
    (folder / "config.json").write_text(json.dumps(config))
    pid_file = folder / "pid"
    run = ["runc", "--root", root, "run", "--pid-file", pid_file, "--bundle", folder, name]
    try:
        with (folder / "log").open("w") as log, victim(*run, ready=None, stderr=log) as outer:
            try:
                line = outer.line()
            except AssertionError:
                pytest.skip(f"material lacks a runc that works here: {(folder / 'log').read_text()[:200]}")
            assert line == "ready"
            wait_until(pid_file.exists, "runc names the process")
            yield outer, int(pid_file.read_text())
    finally:
        subprocess.run(["runc", "--root", root, "delete", "--force", name], capture_output=True, check=False)


@root_only
@pytest.mark.parametrize("on_error", ["abort", "skip"])
def test_a_filtered_process_of_another_pid_namespace_is_attached_to_as_a_tree(on_error: str) -> None:
    with in_pid_namespace("3") as (subject, pid):
        attach_once(deny_getppid(DENIED + 1), pid)
        assert ask(subject)["probe"] == DENIED + 1
        with ps.Filter(notify_getppid()) as f:
            f.attach(pid, tree=True, on_error=on_error)  # type: ignore[call-overload]
            assert filter_counts(pid) == dict.fromkeys(filter_counts(pid), 2)
            assert not listeners_in(pid)
        with ps.Filter(deny_getppid()) as f:
            f.attach(pid, tree=True, on_error=on_error)  # type: ignore[call-overload]
        assert ask(subject)["probe"] == DENIED


@root_only
def test_a_filtered_process_of_another_pid_namespace_is_attached_to_through_its_cgroup(cgroup: Path) -> None:  # noqa: F811
    with in_pid_namespace() as (subject, pid):
        attach_once(deny_getppid(DENIED + 1), pid)
        move(pid, cgroup)
        with ps.Filter(deny_getppid()) as f:
            f.attach(cgroup=cgroup)
        assert ask(subject)["probe"] == DENIED


@root_only
def test_a_container_is_attached_to_in_every_way(tmp_path: Path) -> None:
    with container(tmp_path) as (subject, pid):
        with ps.Filter(notify_getppid()) as f:
            f.attach(pid)
            assert not listeners_in(pid)
        for _ in range(3):
            with ps.Filter(notify_getppid()) as f:
                f.attach(pid, tree=True)
                assert not listeners_in(pid)
        with ps.Filter(deny_getppid()) as f:
            f.attach(pid, tree=True, on_error="skip")
        assert ask(subject)["probe"] == DENIED
        assert set(filter_counts(pid).values()) == {6}


def at_the_limit() -> None:
    """In a child before exec: become another user, with as many processes as it may have. The limit comes last, for exec's sake."""
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def after_unshare() -> None:
    """In a child before exec: what it makes from now on would be of another pid namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWPID):
        raise OSError(ctypes.get_errno(), "unshare")


@contextlib.contextmanager
def without_threads(kind: str) -> Iterator[Victim]:
    """The idle victim, which can make no thread: for RLIMIT_NPROC, or after unshare(CLONE_NEWPID)."""
    with victim(build_victim("idle"), preexec_fn=after_unshare if kind == "CLONE_NEWPID" else at_the_limit) as subject:
        yield subject


@root_only
@pytest.mark.parametrize("kind", ["RLIMIT_NPROC", "CLONE_NEWPID"])
def test_a_process_that_can_make_no_thread_is_attached_to_as_a_tree(kind: str) -> None:
    with without_threads(kind) as subject:
        attach_once(deny_getppid(DENIED + 1), subject.pid)
        with ps.Filter(notify_getppid()) as f:
            f.attach(subject.pid, tree=True)
            assert not listeners_in(subject.pid)
        with ps.Filter(deny_getppid()) as f:
            f.attach(subject.pid, tree=True)
        assert ask(subject)["probe"] == DENIED


@root_only
@pytest.mark.parametrize(("kind", "number"), [("RLIMIT_NPROC", errno.EAGAIN), ("CLONE_NEWPID", errno.EINVAL)])
def test_where_no_thread_can_ask_the_kernel_the_error_says_why(kind: str, number: int) -> None:
    with without_threads(kind) as subject, ps.Filter(notify_getppid()) as first:
        first.attach(subject.pid)
        counts = filter_counts(subject.pid)
        with ps.Filter(notify_getppid()) as f, pytest.raises(ps.AttachError, match=kind) as caught:
            f.attach(subject.pid, tree=True)
        assert caught.value.errno == number
        assert filter_counts(subject.pid) == counts
        subject.tell("report")
        first.receive(timeout=10).deny(DENIED)
        assert subject.line().endswith(f"probe={DENIED}")


@root_only
def test_a_program_that_kills_on_exit_is_not_tried_on_the_target() -> None:
    lethal = ps.Program.from_bytes(program_bytes(KILL_PROCESS, EXIT))
    with victim(build_victim("idle"), "3") as subject:
        attach_once(deny_getppid(), subject.pid)
        with ps.Filter(lethal) as f:
            f.attach(subject.pid, tree=True)
        assert ask(subject)["probe"] == DENIED
        assert set(filter_counts(subject.pid).values()) == {2}


@root_only
def test_a_caller_that_may_not_ask_for_limits_filters_another_users_process(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(bytes(notify_getppid()))
    attach = "import sys, pyseccomp as ps; f = ps.Filter(ps.Program.from_bytes(open(sys.argv[1], 'rb').read()))"
    attach += "; f.attach(int(sys.argv[2]), tree=True); f.close()"
    with in_pid_namespace("2", options=("--setuid", str(NOBODY))) as (subject, pid):
        caller: list[str | Path] = ["setpriv", "--bounding-set", "-sys_resource", sys.executable, "-c", attach, program, str(pid)]
        subprocess.run(caller, check=True, timeout=60)
        assert set(filter_counts(pid).values()) == {1}
        assert ask(subject)["threads"] == 2
