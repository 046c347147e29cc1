"""Programs under a filter from their first instruction, and the exec trigger on a process that runs."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import pyseccomp as ps
from attaching import DENIED, listeners_in, rounds, state, wait_until
from harness import SLOW, build_victim, descriptors, in_child, status_field, victim

SHELL_EXECS = "/bin/true && echo ran || echo failed"


def no_exec(number: int = errno.EACCES) -> ps.Filter:
    policy = ps.Policy(default=ps.ALLOW)
    policy.add(ps.ERRNO(number), "execve")
    policy.add(ps.ERRNO(number), "execveat")
    return ps.Filter(policy)


def no_mkdir() -> ps.Filter:
    policy = ps.Policy(default=ps.ALLOW)
    policy.add(ps.NOTIFY, "mkdir")
    policy.add(ps.NOTIFY, "mkdirat")
    return ps.Filter(policy)


def test_a_program_runs_under_a_filter_that_denies_execve_and_its_own_execve_fails() -> None:
    code = "import os\ntry: os.execv('/bin/true', ['true'])\nexcept OSError as e: print(e.errno)"
    with no_exec(DENIED) as f, ps.Popen([sys.executable, "-c", code], filter=f, stdout=subprocess.PIPE, text=True) as p:
        assert p.communicate(timeout=30)[0] == f"{DENIED}\n"
        assert p.returncode == 0
        assert p.attachment is not None and p.attachment.activated


def test_a_script_and_its_interpreter_start_and_what_they_start_fails(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\n{SHELL_EXECS}\n")
    script.chmod(0o755)
    with no_exec() as f, ps.Popen([script], filter=f, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        assert p.communicate(timeout=30)[0] == b"failed\n"


def test_a_32_bit_program_is_filtered() -> None:
    policy = ps.Policy(default=ps.ALLOW, arches=["x86", "x86_64"])
    policy.add(ps.ERRNO(DENIED), "getppid")
    program = build_victim("compat32", "-m32")
    with ps.Filter(policy) as f:
        with ps.Popen([program, "busy"], filter=f, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as p:
            assert p.stdout is not None and p.stdin is not None and p.stdout.readline() == "ready\n"
            p.stdin.write("report\n")
            p.stdin.flush()
            assert f"probe={DENIED}" in p.stdout.readline()
            p.kill()


@pytest.mark.parametrize(
    ("argv", "options", "error"),
    [
        (["/does/not/exist"], {}, FileNotFoundError),
        (["/etc/passwd"], {}, PermissionError),
        (["/bin/true"], {"cwd": "/does/not/exist"}, FileNotFoundError),
        (["a\0b"], {}, ValueError),
    ],
)
def test_errors_are_those_of_subprocess(argv: list[str], options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as theirs:
        subprocess.Popen(argv, **options)
    with no_exec() as f:
        before = len(descriptors())
        with pytest.raises(error) as ours:
            ps.Popen(argv, filter=f, **options)
        assert ours.value.args == theirs.value.args
        assert getattr(ours.value, "filename", None) == getattr(theirs.value, "filename", None)
        assert f.attachments == () and len(descriptors()) == before
    assert status_field(os.getpid(), "TracerPid") == "0"


def test_the_arguments_of_subprocess_mean_what_they_mean() -> None:
    reader, writer = os.pipe()
    code = "import os\nprint(os.getsid(0) == os.getpid(), os.environ['A'], os.getcwd())\nos.write(%d, b'x')" % writer
    with no_exec() as f:
        options: dict[str, Any] = dict(start_new_session=True, pass_fds=[writer], env={"A": "1"}, cwd="/", text=True)
        with ps.Popen([sys.executable, "-c", code], filter=f, stdout=subprocess.PIPE, **options) as p:
            assert p.communicate(timeout=30)[0] == "True 1 /\n"
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    os.close(writer)


def test_without_a_filter_it_is_subprocess_popen() -> None:
    with ps.Popen(["echo", "x"], stdout=subprocess.PIPE) as p:
        assert p.communicate(timeout=30)[0] == b"x\n" and p.attachment is None


def test_the_listener_is_there_on_return() -> None:
    with no_mkdir() as f, ps.Popen(["mkdir", "/tmp/never"], filter=f, stderr=subprocess.DEVNULL) as p:
        n = f.receive(timeout=30)
        assert n.pid == p.pid and listeners_in(p.pid) == []
        n.deny(errno.EPERM)
        assert p.wait(30) == 1


def start_many() -> list[bytes]:
    out: list[bytes] = []

    def run() -> None:
        for _ in range(3):
            with no_exec() as f:
                with ps.Popen(["sh", "-c", SHELL_EXECS], filter=f, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as p:
                    out.append(p.communicate(timeout=30)[0])

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


def test_threads_start_programs_at_the_same_time() -> None:
    assert in_child(start_many, timeout=60) == [b"failed\n"] * 12


def test_asyncio_starts_programs_under_a_filter() -> None:
    async def main() -> bytes:
        with no_exec() as f:
            process = await ps.create_subprocess_exec(
                "sh", "-c", SHELL_EXECS, filter=f, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            out, _ = await process.communicate()
            assert f.attachments[0].pid == process.pid
            return out

    assert in_child(lambda: asyncio.run(main())) == b"failed\n"


def test_popen_refuses_what_makes_no_sense() -> None:
    with no_exec() as f:
        for wrong in ({"activate_on": "fork"}, {"timeout": -1}, {"no_new_privs": "maybe"}):
            with pytest.raises(ValueError):
                ps.Popen(["true"], filter=f, **wrong)  # type: ignore[arg-type]


# ----------------------------------------------------------- attach(activate_on="exec")

WAITS = ["sh", "-c", f"echo ready; read x; /does/not/exist 2>/dev/null; exec sh -c '{SHELL_EXECS}' 2>/dev/null"]
"""Waits for a line, starts a child that cannot execute, then executes a shell that starts a program."""


def test_an_exec_by_a_running_process_is_filtered_from_its_first_instruction() -> None:
    with no_exec() as f, victim(*WAITS) as process:
        a = f.attach(process, activate_on="exec")
        assert isinstance(a, ps.TriggeredAttachment)
        assert a.armed and a.query().state == "inactive" and status_field(process.pid, "Seccomp") == "0"
        process.tell("go")
        assert process.line() == "failed"
        a.wait(30)
        assert a.activated and not a.armed


SCRIPT = "script = sys.argv[1]\nos.execv(script, [script])"
BY_NAME = "os.environ['PATH'] = '/does/not/exist:/proc:/bin'\nos.execvp('sh', ['sh', '-c', sys.argv[2]])"


@pytest.mark.parametrize("code", [SCRIPT, BY_NAME], ids=["a script", "a dynamic program by name through PATH"])
def test_what_a_running_process_executes_is_filtered_whatever_it_is(tmp_path: Path, code: str) -> None:
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\n{SHELL_EXECS} 2>/dev/null\n")
    script.chmod(0o755)
    waits = f"import os, sys\nprint('ready', flush=True)\ninput()\n{code}"
    with no_exec() as f, victim(sys.executable, "-c", waits, script, f"{SHELL_EXECS}", stderr=subprocess.DEVNULL) as process:
        a = f.attach(process, activate_on="exec")
        process.tell("go")
        assert process.line() == "failed"
        a.wait(30)
        assert a.activated


def test_an_exec_that_fails_leaves_the_trigger_armed_and_the_process_unfiltered() -> None:
    code = (
        "import os\nprint('ready', flush=True)\nwhile True:\n  try: os.execv(input(), ['sh', '-c', 'echo in'])\n"
        "  except OSError as e: print(e.errno, flush=True)"
    )
    with no_exec(DENIED) as f, victim(sys.executable, "-c", code) as process:
        a = f.attach(process, activate_on="exec")
        assert isinstance(a, ps.TriggeredAttachment)
        for program, error in (("/does/not/exist", errno.ENOENT), ("/etc/passwd", errno.EACCES), ("/", errno.EACCES)):
            process.tell(program)
            assert process.line() == str(error)
            assert a.armed and status_field(process.pid, "Seccomp") == status_field(os.getpid(), "Seccomp")
        process.tell("/bin/sh")
        assert process.line() == "in"
        a.wait(30)


def test_a_set_user_id_program_is_filtered_and_has_its_privileges() -> None:
    if os.geteuid() != 0:
        pytest.skip("privilege: only root makes a set-user-ID program of root's")
    with tempfile.TemporaryDirectory() as folder:
        if os.statvfs(folder).f_flag & os.ST_NOSUID:
            pytest.skip("material lacks a file system with set-user-ID programs")
        os.chmod(folder, 0o755)
        program = Path(folder) / "id"
        shutil.copy("/usr/bin/id", program)
        program.chmod(0o4755)
        policy = ps.Policy(default=ps.ALLOW)
        policy.add(ps.ERRNO(DENIED), "getgroups")
        options: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": [], "stdout": subprocess.PIPE, "text": True}
        with ps.Filter(policy) as f, ps.Popen([program, "-u"], filter=f, **options) as p:
            assert p.communicate(timeout=30)[0] == "0\n"
            assert p.attachment is not None and p.attachment.activated


def test_an_exec_by_a_thread_that_is_not_the_first() -> None:
    policy = ps.Policy(default=ps.ALLOW)
    policy.add(ps.ERRNO(DENIED), "getppid")
    with ps.Filter(policy) as f, victim(build_victim("execer")) as process:
        a = f.attach(process, activate_on="exec")
        assert isinstance(a, ps.TriggeredAttachment)
        a.wait(30)
        process.tell("report")
        assert f"probe={DENIED}" in process.line()


def test_a_target_that_executes_itself_while_it_is_armed_is_never_killed() -> None:
    """A thread that took the first one's number was once taken for it, and nobody was traced: beside others, 2 of 150 died."""
    policy = ps.Policy(default=ps.ALLOW)
    policy.add(ps.ERRNO(DENIED), "getppid")
    with victim(build_victim("busy"), "6"):
        for _ in range(rounds(30)):
            with ps.Filter(policy) as f, victim(build_victim("execer")) as process:
                a = f.attach(process, activate_on="exec")
                assert isinstance(a, ps.TriggeredAttachment)
                a.wait(30)
                assert a.query().state == "active"


def test_an_armed_target_stops_and_continues_by_signals() -> None:
    with no_exec() as f, victim(*WAITS) as process:
        a = f.attach(process, activate_on="exec")
        os.kill(process.pid, signal.SIGSTOP)
        wait_until(lambda: state(process.pid) in "tT", "it stops")
        assert os.waitpid(process.pid, os.WUNTRACED)[1] == signal.SIGSTOP << 8 | 0x7F
        process.tell("go")
        assert not select.select([process.stdout], [], [], 0.2)[0], "it ran on through its stop"
        os.kill(process.pid, signal.SIGCONT)
        assert process.line() == "failed"
        assert isinstance(a, ps.TriggeredAttachment)
        a.wait(30)


def test_a_disarmed_target_is_untouched() -> None:
    with no_exec() as f, victim(*WAITS) as process:
        a = f.attach(process, activate_on="exec")
        assert isinstance(a, ps.TriggeredAttachment)
        a.disarm()
        assert status_field(process.pid, "TracerPid") == "0"
        process.tell("go")
        assert process.line() == "ran"


def test_activate_does_not_wait_for_the_exec() -> None:
    with no_exec() as f, victim(*WAITS) as process:
        a = f.attach(process, activate_on="exec")
        a.activate()
        assert a.query().state == "active" and status_field(process.pid, "TracerPid") == "0"


def test_a_target_that_ends_before_its_exec_says_so() -> None:
    with no_exec() as f, victim(*WAITS) as process:
        a = f.attach(process, activate_on="exec")
        process.kill()
        assert isinstance(a, ps.TriggeredAttachment)
        with pytest.raises(ps.TargetGoneError):
            a.wait(30)


def test_triggers_that_can_never_fire_are_refused() -> None:
    with no_exec() as f, victim(*WAITS) as process:
        with pytest.raises(ps.UnsupportedError, match="oneself"):
            f.attach(activate_on="exec")
        with pytest.raises(ValueError, match="active=False"):
            f.attach(process, activate_on="exec", active=False)
        with pytest.raises(ValueError, match="threads"):
            f.attach(process, activate_on="exec", threads="one")
        with pytest.raises(ps.TargetGoneError):
            f.attach(2**22 + 1, activate_on="exec")
        with pytest.raises(ps.UnsupportedError, match="activate_on"):
            f.attach(process, activate_on=b"exec")  # type: ignore[arg-type]
        assert f.attachments == ()


def manage(pid: int, armed: int) -> None:
    with no_exec() as f:
        os.write(armed, b"1")
        f.attach(pid, activate_on="exec")
        os.write(armed, b"2")
        signal.pause()


def test_the_kill_of_a_manager_leaves_a_target_untouched_or_its_exec_filtered() -> None:
    chance = random.Random(6)
    filtered = 0
    for _ in range(rounds(30)):
        with victim(*WAITS) as process:
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    os.setpgid(0, 0)
                    manage(process.pid, writer)
                finally:
                    os._exit(3)
            os.close(writer)
            assert os.read(reader, 1) == b"1"
            end = time.perf_counter() + chance.uniform(0, 0.01 * SLOW)
            while time.perf_counter() < end:
                pass
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            promised = b"2" in os.read(reader, 1)
            process.tell("go")
            answer = process.line()
            assert answer in ("ran", "failed")
            assert answer == "failed" or not promised
            filtered += answer == "failed"
            os.close(reader)
    assert filtered, "the managers were killed too early to test anything"


def test_the_kill_of_the_watcher_kills_the_target() -> None:
    with no_exec() as f, victim(*WAITS) as process:
        f.attach(process, activate_on="exec")
        os.kill(int(status_field(process.pid, "TracerPid")), signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL


# ------------------------------------------------------- the program of the first idea


def test_the_parent_attaches_between_set_up_and_exec() -> None:
    """fork, set up, tell the parent, wait for it, execute; the parent attaches by pidfd in between."""
    done, filtered = os.pipe(), os.pipe()
    out = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(out[1], 1)
            os.write(done[1], b"x")
            os.read(filtered[0], 1)
            os.execv("/bin/sh", ["sh", "-c", "mkdir /proc/never 2>/dev/null || echo denied"])
        finally:
            os._exit(9)
    pidfd = os.pidfd_open(pid)
    try:
        with no_mkdir() as f:
            assert os.read(done[0], 1) == b"x"
            a = f.attach(pidfd=pidfd)
            os.write(filtered[1], b"x")
            n = f.receive(timeout=30)
            assert n.syscall in ("mkdir", "mkdirat") and a.query().state == "active"
            n.deny(errno.EPERM)
            assert os.read(out[0], 100) == b"denied\n"
        assert os.waitpid(pid, 0)[1] == 0
    finally:
        for fd in (*done, *filtered, *out, pidfd):
            os.close(fd)


def test_the_example_of_the_mail_thread_runs() -> None:
    example = Path(ps.get_examples()) / "thread.py"
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=60, env={**os.environ, "LC_ALL": "C"})
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    attached, denied, mode = lines[0::3], lines[1::3], lines[2::3]
    assert attached == ["by its parent: active", "by itself: active"] and mode == ["Seccomp:\t2"] * 2
    assert all("not permitted" in line for line in denied)


def test_a_stashed_filter_is_sent_to_a_second_task_that_attaches_itself() -> None:
    ours, theirs = socket.socketpair()
    with ours, no_exec() as f:
        f.send(ours)
        assert in_child(_exec_fails_after_attach, theirs) == errno.EACCES
    theirs.close()


def _exec_fails_after_attach(sock: socket.socket) -> int | None:
    with ps.Filter.recv(sock) as f:
        f.attach()
        try:
            os.execv("/bin/true", ["true"])
        except OSError as error:
            return error.errno
    return None


def test_a_set_user_id_program_starts() -> None:
    su = shutil.which("su")
    if su is None or not os.stat(su).st_mode & 0o4000:
        pytest.skip("material lacks a set-user-ID program")
    with no_exec() as f, ps.Popen([su, "--help"], filter=f, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as p:
        assert b"Usage" in p.communicate(timeout=30)[0] and p.returncode == 0
