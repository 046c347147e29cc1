"""Every ptrace request and wait of a trigger's watcher fails, each in its turn: no thread of the target stays stopped, and no new program or child is unfiltered.

strace makes them fail. PYSECCOMP_ROUNDS, set to anything, takes every occurrence and every errno; the ordinary run takes some.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

import pyseccomp as ps
from attaching import DENIED, facts, wait_until
from harness import DEADLINE, SLOW, VICTIMS, ChildFailed, Victim, build_victim, status_field, victim

FULL = "PYSECCOMP_ROUNDS" in os.environ
MOST = 120
"""More than the calls of one trigger."""
CALLS = [("ptrace", "EPERM"), ("ptrace", "ESRCH"), ("wait4", "EINTR"), ("wait4", "ECHILD")]
KILLED = 1000 + signal.SIGKILL


@pytest.fixture(scope="module")
def armer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manager in C, which starts fast."""
    if not shutil.which("strace"):
        pytest.skip("material lacks strace")
    out = tmp_path_factory.mktemp("faults") / "armer"
    include = ["-D_GNU_SOURCE", f"-I{ps.get_include()}", f"-I{VICTIMS}"]
    subprocess.run(["cc", "-O1", "-Wall", "-Wextra", *include, VICTIMS / "armer.c", ps.get_library(), "-static", "-pthread", "-o", out], check=True)
    return out


def use(subject: Victim, event: str) -> set[tuple[int, int]]:
    """Have the target do what the trigger waits for; the errnos of the probe in the child and in the parent."""
    found = set()
    for kind in ["exec"] if event == "exec" else ["fork", "thread", "vfork"]:
        subject.tell(kind)
        child, parent = subject.line(10 * SLOW).split()
        found.add((int(child), int(parent)))
    return found


EXPECTED = {"exec": (DENIED, DENIED), "fork": (DENIED, 0), "fork-all": (DENIED, DENIED)}


def trigger_with_fault(armer: Path, event: str, fault: str) -> bool:
    """Arm, let the event come, disarm. False: the fault did not come about."""
    log = armer.with_suffix(".log")
    strace = ["strace", "-f", "-qq", "-o", log, "-e", f"trace={fault.partition(':')[0]}", "-e", f"inject={fault}"]
    lasting = fault.endswith("+")
    with victim(build_victim("births")) as subject, victim(*strace, armer, str(subject.pid), event, ready=None) as manager:
        armed = facts(manager.line(20 * SLOW))["armed"]
        what = f"{event} {fault}: armed {armed}"
        try:
            answers = use(subject, event)
            if lasting and armed == 0:
                answers = {(DENIED if child == KILLED else child, parent) for child, parent in answers}
            assert answers == {EXPECTED[event] if armed == 0 else (0, 0)}, f"{what}: {answers}"
            if armed == 0:
                manager.tell("disarm")
                said = facts(manager.line(20 * SLOW))
                assert lasting or said["r"] == (-errno.ECANCELED if event == "fork" else 0), f"{what}: {said}"
            wait_until(lambda: subject.poll() is not None or status_field(subject.pid, "TracerPid") == "0", f"{what}: it is let go")
            use(subject, event)
        except (ChildFailed, BrokenPipeError):
            # What can neither be filtered nor let go is killed; it is not left stopped.
            assert lasting and subject.wait(DEADLINE) == -signal.SIGKILL, what
    return "INJECTED" in log.read_text()


@pytest.mark.parametrize("event", list(EXPECTED))
@pytest.mark.parametrize(("call", "error"), CALLS)
def test_no_thread_stays_stopped_or_unfiltered_whatever_fails_once(armer: Path, call: str, error: str, event: str) -> None:
    injected = 0
    for number in range(1, MOST, 1 if FULL else 6):
        if not trigger_with_fault(armer, event, f"{call}:error={error}:when={number}"):
            break
        injected += 1
    assert injected


@pytest.mark.parametrize("event", list(EXPECTED))
def test_what_fails_from_then_on_while_arming_leaves_no_thread_stopped(armer: Path, event: str) -> None:
    for number in range(2, 8, 1 if FULL else 2):
        assert trigger_with_fault(armer, event, f"ptrace:error=EPERM:when={number}+")


def test_a_child_that_is_born_when_there_is_no_memory_to_tell_of_it_is_filtered(armer: Path) -> None:
    assert trigger_with_fault(armer, "fork", "mmap:error=ENOMEM:when=4")
