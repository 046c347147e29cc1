"""OCI linux.seccomp.flags: every way to put a filter into force loads it with them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pyseccomp as ps
from attaching import may_suspend
from harness import build_victim, in_child, victim

TSYNC, LOG, SPEC_ALLOW, NEW_LISTENER, TSYNC_ESRCH, WAIT_KILLABLE = 1, 2, 4, 8, 16, 32
ALL = ("TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV")


def profile(*flags: str, action: str = "SCMP_ACT_NOTIFY", **more: Any) -> dict[str, Any]:
    """Getppid, which the victims probe, gets the action."""
    rule = {"names": ["getppid"], "action": action}
    return {"defaultAction": "SCMP_ACT_ALLOW", "flags": [f"SECCOMP_FILTER_FLAG_{flag}" for flag in flags], "syscalls": [rule], **more}


@contextlib.contextmanager
def loads_of() -> Iterator[Callable[[int], list[int]]]:
    """Record each seccomp() call in an instance of tracefs of our own; gives the flags of the filters that a process loads.

    A load can be made by a thread that was injected for it, so the births of threads are recorded too.
    """
    where = Path(tempfile.mkdtemp(prefix="psc-flags-"))
    mounted = subprocess.run(["mount", "-t", "tracefs", "none", str(where)], capture_output=True, check=False)
    if mounted.returncode:
        where.rmdir()
        pytest.skip("kernel lacks tracefs" if os.geteuid() == 0 else "privilege: to mount tracefs")
    instance = where / "instances" / where.name
    try:
        instance.mkdir()
        event, birth = instance / "events/syscalls/sys_enter_seccomp", instance / "events/sched/sched_process_fork"
        if not event.exists():
            pytest.skip("kernel lacks CONFIG_FTRACE_SYSCALLS")
        (event / "filter").write_text("op == 1 && uargs != 0")
        (event / "enable").write_text("1")
        (birth / "filter").write_text('parent_comm == "idle"')
        (birth / "enable").write_text("1")

        def read(pid: int) -> list[int]:
            text = (instance / "trace").read_text()
            tids = {pid, *(int(child) for parent, child in re.findall(r"pid=(\d+) child_comm=.* child_pid=(\d+)", text) if int(parent) == pid)}
            found = re.findall(r"-(\d+) +\[.*sys_seccomp\(op: (?:0x)?1, flags: (?:0x)?([0-9a-f]+)", text)
            return [int(flags, 16) for task, flags in found if int(task) in tids]

        yield read
        (event / "enable").write_text("0")
        (birth / "enable").write_text("0")
    finally:
        if instance.exists():
            instance.rmdir()
        subprocess.run(["umount", "-l", str(where)], check=True)
        where.rmdir()


def attach(f: ps.Filter, pid: int) -> None:
    f.attach(pid)


def group(f: ps.Filter, pid: int) -> None:
    f.attach(pid, tree=True)


def gate(f: ps.Filter, pid: int) -> None:
    f.attach(pid, mode="gate")


def guardian(f: ps.Filter, pid: int) -> None:
    f.attach(pid, active=False, deadline=60).activate()


@pytest.mark.parametrize("way", [attach, group, gate, guardian])
@pytest.mark.parametrize("flags", [ALL, ("LOG",), ()], ids=["all", "LOG", "none"])
def test_flags_of_a_profile_are_those_of_the_load(way: Callable[[ps.Filter, int], None], flags: tuple[str, ...]) -> None:
    wanted = (LOG if "LOG" in flags else 0) | (SPEC_ALLOW if "SPEC_ALLOW" in flags else 0)
    with loads_of() as loads, victim(build_victim("idle"), "3") as target:
        with ps.Filter(ps.Policy.from_oci(profile(*flags)), wait_killable=None if flags == ALL else False) as f:
            way(f, target.pid)
            found = loads(target.pid)
            assert found and found[-1] & ~(NEW_LISTENER | TSYNC_ESRCH) == TSYNC | wanted | (WAIT_KILLABLE if flags == ALL else 0), found


def test_explicit_arguments_win_over_the_profile() -> None:
    with loads_of() as loads, victim(build_victim("idle")) as target:
        with ps.Filter(ps.Policy.from_oci(profile(*ALL)), log=False, spec_allow=False, wait_killable=False) as f:
            assert (f.log, f.spec_allow, f.wait_killable) == (False, False, False)
            f.attach(target.pid, threads="one")
            assert loads(target.pid)[-1] == NEW_LISTENER
    with ps.Filter(ps.Policy.from_oci(profile()), log=True, spec_allow=True) as f:
        assert (f.log, f.spec_allow, f.wait_killable) == (True, True, True)


def test_flags_travel_with_the_filter() -> None:
    with ps.Filter(ps.Policy.from_oci(profile("SPEC_ALLOW", "LOG"))) as f, ps.Filter.from_fd(f.fileno()) as copy:
        assert (copy.log, copy.spec_allow) == (True, True)
        restored = ps.Filter.restore(f.checkpoint())
        with restored:
            assert (restored.log, restored.spec_allow) == (True, True)


def test_log_of_a_profile_is_in_the_kernel() -> None:
    if not may_suspend():
        pytest.skip("privilege: CAP_SYS_ADMIN, to read a filter's flags back")
    with victim(build_victim("idle")) as target:
        for flags, action in ((("LOG",), "SCMP_ACT_ERRNO"), ((), "SCMP_ACT_LOG")):
            with ps.Filter(ps.Policy.from_oci(profile(*flags, action=action))) as f:
                f.attach(target.pid)
                chain = ps.query(target.pid, programs=True).threads[0].programs
                assert chain is not None
                assert [one.log for one in chain if one.program == f.program] == [bool(flags)]


def test_own_process_loads_with_the_flags() -> None:
    """Seen by strace, which needs no privilege."""
    if shutil.which("strace") is None:
        pytest.skip("material lacks strace")
    code = f"import pyseccomp as ps; f = ps.Filter(ps.Policy.from_oci({profile(*ALL)!r})); f.attach()"
    text = subprocess.run(
        ["strace", "-f", "-e", "trace=seccomp", sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    ).stderr
    load = [line for line in text.splitlines() if "SECCOMP_SET_MODE_FILTER" in line and "len=" in line][-1]
    assert all(f"SECCOMP_FILTER_FLAG_{flag}" in load for flag in ("TSYNC", "LOG", "SPEC_ALLOW")), load
    assert "WAIT_KILLABLE" in load or "0x20" in load, load


def test_command_line_loads_with_the_flags(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile("LOG", "SPEC_ALLOW", action="SCMP_ACT_ERRNO")))
    with loads_of() as loads, victim(build_victim("idle")) as target:
        subprocess.run(
            [sys.executable, "-m", "pyseccomp", "attach", str(target.pid), "--policy", str(path)], check=True, timeout=60, capture_output=True
        )
        assert loads(target.pid)[-1] == TSYNC | TSYNC_ESRCH | LOG | SPEC_ALLOW


def test_unknown_flag_is_refused_with_its_place() -> None:
    with pytest.raises(ps.PolicyError, match=r"\$\.flags\[1\]: unknown flag 'SECCOMP_FILTER_FLAG_LGO'; did you mean SECCOMP_FILTER_FLAG_LOG"):
        ps.Policy.from_oci(profile("TSYNC", "LGO"))
    policy = ps.Policy.from_oci(profile("LOG"))
    policy.oci["flags"] = ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]
    with pytest.raises(ps.PolicyError, match=r"\$\.flags\[0\]: unknown flag"):
        ps.Filter(policy)


def test_flags_are_written_back() -> None:
    policy = ps.Policy.from_oci(profile(*ALL))
    assert policy.flags == tuple(f"SECCOMP_FILTER_FLAG_{flag}" for flag in ALL)
    assert policy.to_oci()["flags"] == list(policy.flags)
    assert ps.Policy().flags == ()


def test_compiling_tells_that_a_program_has_no_flags(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile("LOG", action="SCMP_ACT_ERRNO")))
    command = [sys.executable, "-m", "pyseccomp", "compile", str(path), "-o", str(tmp_path / "out"), "--format"]
    told = {kind: subprocess.run([*command, kind], check=True, capture_output=True, text=True).stderr for kind in ("bpf", "oci")}
    assert "SECCOMP_FILTER_FLAG_LOG" in told["bpf"] and told["oci"] == ""
    assert json.loads((tmp_path / "out").read_text())["flags"] == ["SECCOMP_FILTER_FLAG_LOG"]


def _asks_wait_killable(flags: tuple[str, ...]) -> str:
    """In a process whose own filter refuses the flag as an old kernel would."""
    policy = ps.Policy()
    policy.add(ps.ERRNO(errno.EINVAL), "seccomp", ps.Arg(1, ps.MASKED_EQ, WAIT_KILLABLE, WAIT_KILLABLE))
    with ps.Filter(policy) as f:
        f.attach()
    try:
        ps.Filter(ps.Policy.from_oci(profile(*flags))).close()
    except ps.UnsupportedError as error:
        return str(error)
    return ""


def test_flag_that_the_kernel_lacks_is_refused() -> None:
    assert "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" in in_child(_asks_wait_killable, ("WAIT_KILLABLE_RECV",))
    assert in_child(_asks_wait_killable, ("LOG",)) == ""
