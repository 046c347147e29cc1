"""Programs read back from real processes, decompiled, and explained; who listens."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attaching import ask, deny_getppid, may_suspend, notify_getppid
from harness import Victim, build_victim, descriptors, in_child, victim

import pyseccomp as ps
from pyseccomp import criu, formats

POLICIES = Path(os.environ.get("PYSECCOMP_POLICIES", "/nonexistent"))
SYSTEM_PYTHON = "/usr/bin/python3"

needs_right = pytest.mark.skipif(not may_suspend(), reason="privilege: CAP_SYS_ADMIN in an unfiltered asker, to read programs")


@contextlib.contextmanager
def carrying(*programs: ps.Program, name: str = "idle") -> Iterator[Victim]:
    with contextlib.ExitStack() as stack:
        subject = stack.enter_context(victim(build_victim(name)))
        for program in programs:
            stack.enter_context(ps.Filter(program)).attach(subject)
        yield subject


def harmless(number: int, errno_: int = 77) -> ps.Program:
    """Denies a call that nobody makes."""
    policy = ps.Policy()
    policy.add(ps.ERRNO(errno_), number)
    return policy.compile()


def proved(chain: tuple[ps.LoadedFilter, ...]) -> None:
    for one in chain:
        found = one.decompile()
        assert found.exact, found.why
        assert found.policy is not None and ps.equivalent(found.policy.compile(), one.program)


BY_LIBSECCOMP = """
import ctypes, errno, seccomp as s, sys
def allow(*rules):
    f = s.SyscallFilter(s.ALLOW)
    for action, call, *args in rules:
        f.add_rule(action, call, *args)
    f.load()
kind = sys.argv[1]
if kind == "one":
    allow((s.ERRNO(errno.EPERM), "mkdir"), (s.ERRNO(errno.EACCES), "openat", s.Arg(2, s.MASKED_EQ, 3, 1)))
else:
    # As systemd does: one filter for each of its settings, natively and for i386.
    for calls in (["reboot", "kexec_load"], ["mount", "umount2"], ["swapon"], ["init_module", "delete_module"]):
        f = s.SyscallFilter(s.ALLOW)
        f.add_arch(s.Arch.X86)
        for call in calls:
            f.add_rule(s.ERRNO(errno.EPERM), call)
        f.load()
    families = s.SyscallFilter(s.ALLOW)
    families.add_rule(s.ERRNO(errno.EAFNOSUPPORT), "socket", s.Arg(0, s.GE, 41))
    families.load()
    exec_memory = s.SyscallFilter(s.ALLOW)
    exec_memory.add_rule(s.ERRNO(errno.EPERM), "mmap", s.Arg(2, s.MASKED_EQ, 6, 6))
    exec_memory.add_rule(s.ERRNO(errno.EPERM), "mprotect", s.Arg(2, s.MASKED_EQ, 4, 4))
    exec_memory.load()
print("ready", flush=True)
sys.stdin.readline()
"""


@needs_right
@pytest.mark.parametrize(("kind", "filters"), [("one", 1), ("systemd", 6)])
def test_programs_that_libseccomp_made(kind: str, filters: int) -> None:
    if subprocess.run([SYSTEM_PYTHON, "-c", "import seccomp"], capture_output=True).returncode:
        pytest.skip("material lacks python3-seccomp, the rival")
    with victim(SYSTEM_PYTHON, "-c", BY_LIBSECCOMP, kind) as subject:
        state = ps.query(subject, programs=True)
        assert state.programs is not None and len(state.programs) == filters == state.threads[0].filters
        proved(state.programs)
        if kind == "one":
            text = state.programs[0].decompile().text
            assert "(flags & O_ACCMODE) == O_WRONLY" in text and "ERRNO(13)" in text and "mkdir:\n    ERRNO(1)" in text
            assert ps.explain(subject, "openat", (0, 0, 1)).action == ps.ERRNO(errno.EACCES)
        else:
            assert ps.explain(subject, "mprotect", (0, 4096, 5)).action == ps.ERRNO(errno.EPERM)
            found = ps.explain(subject, "socket", (45,))
            assert (found.decides, found.action) == (4, ps.ERRNO(errno.EAFNOSUPPORT))
            assert found.opinions[4].reasons == (("domain > AF_VSOCK", True),)


@needs_right
@pytest.mark.parametrize("name", ["docker-default.json", "podman-containers-common.json", "oci-spec-example.json", "firecracker-x86_64.json"])
def test_engines_policies_come_back_as_they_were(name: str) -> None:
    if not (POLICIES / name).exists():
        pytest.skip(f"material lacks {name} (PYSECCOMP_POLICIES)")
    data = (POLICIES / name).read_bytes()
    program = formats.program(formats.parse(data, name, thread="vmm" if name.startswith("fire") else None))
    with victim(build_victim("idle")) as subject:
        with ps.Filter(program) as f:
            f.attach(subject)
            (one,) = ps.dump(subject)
            assert one.program == program and one.known is not None
        proved(ps.dump(subject))


@needs_right
def test_a_browser_s_stack_by_hand_and_by_us() -> None:
    by_hand = ps.Program.from_bytes(
        b"".join(
            int(code).to_bytes(2, "little") + bytes([jt, jf]) + k.to_bytes(4, "little")
            for code, jt, jf, k in [(0x20, 0, 0, 4), (0x15, 0, 3, 0xC000003E), (0x20, 0, 0, 0), (0x15, 0, 1, 57), (6, 0, 0, 0x5000B), (6, 0, 0, 0x7FFF0000)]
        )
    )
    stack = (harmless(430), by_hand, notify_getppid(), harmless(431, 5))
    with carrying(*stack) as subject:
        state = ps.query(subject, programs=True)
        assert state.programs is not None
        assert tuple(one.program for one in state.programs) == stack
        assert state.programs[2].notified == ("getppid",) and not state.programs[0].notified
        proved(state.programs)
        assert "fork" in state.programs[1].decompile().text
        assert state.listeners and any(h.pid == os.getpid() and h.in_use for h in state.listeners)


@needs_right
def test_each_thread_has_its_own_answer() -> None:
    with victim(build_victim("threader")) as subject, ps.Filter(deny_getppid()) as f:
        f.attach(subject, threads="one")
        state = ps.query(subject, programs=True)
        for thread in state.threads:
            if thread.filters:
                assert thread.programs is not None and [one.program for one in thread.programs] == [f.program]
            else:
                assert thread.programs is None and thread.unknown is None


@needs_right
def test_reading_disturbs_nobody_and_leaves_nothing() -> None:
    with carrying(deny_getppid(), harmless(430)) as subject:
        before, said = descriptors(), ask(subject)
        for _ in range(300):
            assert len(ps.dump(subject.pid)) == 2
        assert ask(subject) == said and descriptors() == before
        assert Path(f"/proc/{subject.pid}/status").read_text().count("TracerPid:\t0") == 1


@needs_right
def test_a_stopped_process_stays_stopped_and_a_notified_one_is_answered() -> None:
    with carrying(harmless(430)) as subject:
        subject.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, subject.pid, os.WSTOPPED)
        assert len(ps.dump(subject)) == 1
        assert ps.query(subject).threads[0].state == "T"
        subject.send_signal(signal.SIGCONT)
        ask(subject)
    with victim(build_victim("idle")) as subject, ps.Filter(notify_getppid()) as f:
        f.attach(subject)
        subject.tell("report")
        assert select.select([f], [], [], 10)[0]
        (state,) = {ps.query(subject, programs=True)}
        assert state.listeners is not None
        (ours,) = {h.listener for h in state.listeners if h.pid == os.getpid()}
        assert ours is not None and any(h.waiting for h in state.listeners if h.listener == ours)
        n = f.receive(10)
        assert n is not None
        n.deny(91)
        assert "probe=91" in subject.line()


def test_a_serving_thread_is_seen() -> None:
    def child() -> None:
        with victim(build_victim("idle")) as subject, ps.Filter(notify_getppid()) as f:
            f.attach(subject)
            pid = os.fork()
            if pid == 0:
                f.serve(ps.Responder())
                os._exit(0)
            try:
                end = time.monotonic() + 10
                while time.monotonic() < end and not any(h.served for h in ps.listeners(pid)):
                    time.sleep(0.01)
                (served,) = {h.listener for h in ps.listeners(pid) if h.served}
                assert served is not None
            finally:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    in_child(child)


@needs_right
def test_a_listener_without_tasks_is_not_in_use() -> None:
    with ps.Filter(notify_getppid()) as f:
        with victim(build_victim("idle")) as subject:
            f.attach(subject)
            assert all(h.in_use for h in ps.listeners(os.getpid()))
        assert not any(h.in_use for h in ps.listeners(os.getpid()))


@needs_right
def test_why_programs_are_not_known() -> None:
    with carrying(deny_getppid()) as subject:
        def filtered() -> tuple[str, ...]:
            with ps.Filter(harmless(430)) as f:
                f.attach()
            state = ps.query(subject.pid, programs=True)
            assert state.programs is None and state.state == "active"
            with pytest.raises(ps.NotPermittedError, match="carries a filter itself"):
                ps.dump(subject.pid)
            return state.unknown

        def poor() -> tuple[str, ...]:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            return ps.query(subject.pid, programs=True).unknown

        def traced() -> tuple[str, ...]:
            libc = ctypes.CDLL(None)
            assert libc.ptrace(0x4206, subject.pid, 0, 0) == 0
            state = ps.query(subject.pid, programs=True)
            with pytest.raises(ps.TargetBusyError, match=f"process {os.getpid()} traces it"):
                ps.dump(subject.pid)
            return state.unknown

        assert "carries a filter itself" in in_child(filtered)[0]
        assert "CAP_SYS_ADMIN" in in_child(poor)[0]
        assert "traces it; detach that first" in in_child(traced)[0]
        ask(subject)


def test_without_the_right_the_counts_are_told_and_the_reason() -> None:
    if may_suspend():
        pytest.skip("privilege: to have too little, programs can be read here")
    with carrying(deny_getppid()) as subject:
        state = ps.query(subject, programs=True)
        assert state.threads[0].filters and state.programs is None
        (why,) = state.unknown
        assert "CAP_SYS_ADMIN" in why or "filter itself" in why


@needs_right
def test_the_explanation_is_the_kernel_s() -> None:
    """Random stacks over one call: what explain says is what the call then gets."""
    import random

    chance = random.Random(7)
    for _ in range(30):
        stack = []
        for _ in range(chance.randint(1, 4)):
            policy = ps.Policy()
            for value in range(4):
                if chance.random() < 0.7:
                    policy.add(chance.choice([ps.ERRNO(chance.randint(50, 60)), ps.LOG, ps.ERRNO(0)]), 430, ps.Arg(0, ps.EQ, value))
            stack.append(policy.compile())

        def child(stack: list[ps.Program] = stack) -> list[int]:
            for program in stack:
                with ps.Filter(program) as f:
                    f.attach()
            libc = ctypes.CDLL(None, use_errno=True)
            found = []
            for value in range(4):
                ctypes.set_errno(0)
                found.append(ctypes.get_errno() if libc.syscall(430, value, 0, 0) < 0 else 0)
            return found

        chain = tuple(ps.LoadedFilter(program, False) for program in stack)
        said = [ps.explain_chain(chain, 430, (value,)).action for value in range(4)]
        # 430 is fsopen: of a null pointer it fails with EFAULT when it is let through.
        expected = [action.data if action.name == "ERRNO" else None for action in said]
        for value, got in zip(expected, in_child(child), strict=True):
            assert got == value if value is not None else got in (errno.EFAULT, errno.EPERM, errno.EINVAL, errno.ENOSYS)


def test_equal_answers_are_the_newest_filter_s() -> None:
    chain = (ps.LoadedFilter(harmless(430, 5), False), ps.LoadedFilter(harmless(430, 6), False))
    found = ps.explain_chain(chain, 430)
    assert found.decides == 1 and found.action == ps.ERRNO(6)
    assert ps.explain_chain((), 430).action == ps.ALLOW


# ----------------------------------------------------------------------- CLI


def cli(*argv: object, status: int = 0) -> str:
    done = subprocess.run([sys.executable, "-m", "pyseccomp", *map(str, argv)], capture_output=True, text=True, timeout=60)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


@needs_right
def test_query_dump_and_explain_on_the_command_line(tmp_path: Path) -> None:
    policy = ps.Policy()
    policy.add(ps.ERRNO(13), "mkdir", ps.Arg(1, ps.EQ, 0o777))
    first = policy.compile()
    with carrying(first, notify_getppid()) as subject:
        text = cli("query", subject.pid)
        assert "mode == 0777" in text and "ERRNO(13)" in text and "notifies getppid" in text and str(os.getpid()) in text
        assert "programs" not in cli("query", subject.pid, "--no-programs")
        told = json.loads(cli("query", subject.pid, "--json"))
        assert told["threads"][0]["programs"][0] == first.digest.hex()
        assert told["programs"][first.digest.hex()]["rules_exact"] is True
        table = cli("query", "--all", "--programs")
        assert any(line.split()[0] == str(subject.pid) and first.digest.hex()[:12] in line for line in table.splitlines()[1:])
        assert any(state["pid"] == subject.pid for state in json.loads(cli("query", "--all", "--json")))
        tree = cli("query", "--tree", os.getpid()).splitlines()
        assert any(line.startswith(f"  {subject.pid}") for line in tree)
        cli("dump", subject.pid, "-o", tmp_path / "p")
        assert [(tmp_path / f"p.{n}").read_bytes() for n in (0, 1)] == [bytes(first), bytes(notify_getppid())]
        cli("dump", subject.pid, "-o", tmp_path / "text", "--format", "text", "--index", 0)
        assert (tmp_path / "text").read_text().rstrip("\n") == first.disassemble().rstrip("\n")
        cli("dump", subject.pid, "-o", tmp_path / "seccomp.img", "--format", "criu")
        image = criu.load((tmp_path / "seccomp.img").read_bytes())
        assert [one.program for one in image.chain(image.last()[0])] == [first, notify_getppid()]
        assert "no number 2" in cli("dump", subject.pid, "-o", tmp_path / "x", "--index", 2, status=1)
        said = cli("explain", subject.pid, "mkdir", 0, "0o777")
        assert cli("explain", subject.pid, "openat", "AT_FDCWD", 0, "O_WRONLY|O_CREAT").endswith("ALLOW\n")
        assert "is no argument" in cli("explain", subject.pid, "mkdir", "O_NONSENSE", status=1)
        assert "mode == 0777: yes" in said and "<- decides" in said and said.endswith("the kernel answers: ERRNO(13) EACCES\n")
        there = cli("explain", subject.pid, "openat", "AT_FDCWD", 0, "O_DIRECTORY", "--arch", "aarch64")
        assert there.endswith("the kernel answers: KILL_PROCESS\n")
    with victim(build_victim("idle")) as bare:
        assert "carries no filter" in cli("dump", bare.pid, "-o", tmp_path / "x", status=1)
        assert "there is no filter" in cli("explain", bare.pid, "mkdir")


def test_query_wants_one_of_pid_and_all() -> None:
    assert "give a PID" in cli("query", status=2)
    assert "no such process" in cli("query", "--tree", 2**22 - 1, status=1)
