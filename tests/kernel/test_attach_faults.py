"""Every system call of an attach fails, each in its turn, once or from then on: the target is sound, and what is said of it is true.

strace makes them fail. PYSECCOMP_ROUNDS, set to anything, takes every occurrence and every errno; the ordinary run takes some.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import pyseccomp as ps
from attaching import DENIED, ask, deny_getppid, facts, filter_counts, listeners_in, may_suspend, wait_until
from harness import SLOW, VICTIMS, build_victim, status_field, victim

FULL = "PYSECCOMP_ROUNDS" in os.environ
ENOSYS, EARLIER = 38, 77
MOST = 90
"""More than the calls of one attach."""
KERNEL, PARTIAL, NO_LISTENER, UNKNOWN, REPLACED = 0, 13, 14, 25, 26  # enum psc_refusal
CALLS = [("ptrace", "EIO"), ("wait4", "EIO"), ("pidfd_getfd", "EMFILE"), ("pwrite64", "EIO")]
MORE = [("ptrace", "ESRCH"), ("ptrace", "EPERM"), ("wait4", "ECHILD"), ("pidfd_open", "EMFILE"), ("kcmp", "EPERM"), ("ioctl", "EIO")]


@pytest.fixture(scope="module")
def attacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manager in C, which starts fast."""
    if not shutil.which("strace"):
        pytest.skip("material lacks strace")
    out = tmp_path_factory.mktemp("faults") / "attacher"
    include = ["-D_GNU_SOURCE", f"-I{ps.get_include()}", f"-I{VICTIMS}"]
    subprocess.run(["cc", "-O1", "-Wall", "-Wextra", *include, VICTIMS / "attacher.c", ps.get_library(), "-pthread", "-o", out], check=True)
    return out


def attach_with_fault(attacher: Path, kind: str, fault: str) -> bool:
    """Attach to a fresh target and check what came of it. False: the fault did not come about."""
    log, call = attacher.with_suffix(".log"), fault.partition(":")[0]
    with victim(build_victim("idle"), "3") as subject:
        before = 0
        if kind == "tree":
            before = 1
            with ps.Filter(deny_getppid(EARLIER)) as f:
                f.attach(subject.pid)
        strace = ["strace", "-f", "-qq", "-o", log, "-e", f"trace={call}", "-e", f"inject={fault}"]
        done = subprocess.run([*strace, attacher, str(subject.pid), kind], capture_output=True, text=True, timeout=20 * SLOW)
        said = facts(done.stdout)
        wait_until(lambda: status_field(subject.pid, "TracerPid") == "0", "it is let go")
        # A temporary thread that could not be seen dead ends when the tracer has ended.
        wait_until(lambda: len(filter_counts(subject.pid)) == 3, "its own threads are left")
        probe, counts = ask(subject)["probe"], set(filter_counts(subject.pid).values())
        what = f"{kind} {fault}: {said}, filters {counts}, probe {probe}"
        assert not listeners_in(subject.pid), what
        assert counts in ({before}, {before + 1}), what
        filtered = counts == {before + 1}
        denied = EARLIER if before else ENOSYS if kind == "notify" else DENIED
        assert probe == (denied if filtered or before else 0), what
        assert said["leaked"] == 0, what
        if said["r"] == 0:
            assert filtered, what
        elif said["refusal"] in (NO_LISTENER, REPLACED):
            assert filtered, what
        elif said["refusal"] not in (UNKNOWN, PARTIAL):
            assert not filtered, what
    return "INJECTED" in log.read_text()


@pytest.mark.parametrize("kind", ["notify", "deny", "tree"])
@pytest.mark.parametrize("lasting", ["", "+"], ids=["once", "from then on"])
@pytest.mark.parametrize(("call", "error"), CALLS + (MORE if FULL else []))
def test_a_target_is_sound_and_the_result_true_whatever_fails(attacher: Path, call: str, error: str, lasting: str, kind: str) -> None:
    if kind == "tree" and not may_suspend():
        pytest.skip("privilege: CAP_SYS_ADMIN in an unfiltered caller, to suspend filters")
    injected = 0
    for number in range(1, MOST, 1 if FULL else 7):
        if not attach_with_fault(attacher, kind, f"{call}:error={error}:when={number}{lasting}"):
            break
        injected += 1
    assert injected or call in ("pidfd_getfd", "pwrite64", "ioctl", "kcmp")
