"""Filters that are held by a name, as commands meet them, and what hostile clients meet."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import random
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attaching import DENIED, ask, attaches, filter_counts, may_suspend, rounds, wait_until
from harness import Victim, build_victim, in_child, victim
from test_cli import PROGRAM, cli, failed

from pyseccomp import holder

RULE = ("--deny", f"getppid={DENIED}")
TALKER = """
import os, socket, sys
s = socket.socket()
s.bind(("127.0.0.1", 0))
print("ready", flush=True)
for line in sys.stdin:
    if line == "listen\\n":
        s.listen()
    try:
        os.rmdir("")
    except OSError as error:
        print(error.errno, flush=True)
"""


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Names of these tests alone; short, for a socket's path is."""
    with tempfile.TemporaryDirectory(prefix="psc") as path:
        monkeypatch.setenv("XDG_RUNTIME_DIR", path)
        yield Path(path, "pyseccomp")
        for one in holder.show_all():
            with contextlib.suppress(ProcessLookupError):
                os.kill(one["pid"], signal.SIGKILL)


def ok(done: subprocess.CompletedProcess[str]) -> str:
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def held(name: str = "web") -> dict[str, Any]:
    """What the list shows of one name."""
    return {one["name"]: one for one in json.loads(ok(cli("activate", "--list", "--json")))}[name]  # type: ignore[no-any-return]


def targets(name: str = "web") -> list[tuple[int, str]]:
    return [(one["pid"], one["state"]) for one in held(name)["targets"]]


def ends(pid: int) -> None:
    """Wait until a process has ended, or is gone already."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], 30)[0], f"process {pid} goes on"
    finally:
        os.close(fd)


def dies(pid: int, by: int = signal.SIGKILL) -> None:
    os.kill(pid, by)
    ends(pid)


@contextlib.contextmanager
def agent(*args: object) -> Iterator[tuple[Victim, str]]:
    """A holder in the foreground, and its first line."""
    with victim(*PROGRAM, "agent", *map(str, args), ready=None, stderr=subprocess.PIPE) as process:
        yield process, process.line()
        assert process.stderr is not None
        process.stderr.close()


# ------------------------------------------------------------------- by a name


def test_one_command_binds_and_another_activates(runtime: Path) -> None:
    with victim(build_victim("idle"), "3") as subject:
        line = ok(cli("attach", subject.pid, *RULE, "--inactive", "--name", "web"))
        assert line.startswith(f"inactive: process {subject.pid}, 3 threads, inject; held as web by process ")
        assert (targets(), set(filter_counts(subject.pid).values())) == ([(subject.pid, "inactive")], {0})
        assert ask(subject)["probe"] == 0
        assert ok(cli("activate", "web")).startswith(f"active: process {subject.pid}")
        assert (targets(), ask(subject)["probe"]) == ([(subject.pid, "active")], DENIED)
        assert str(subject.pid) in ok(cli("query", "--name", "web"))
        pid = held()["pid"]
    ends(pid)
    assert list(runtime.iterdir()) == []
    failed(cli("activate", "web"), 1, "ReclaimError", "nobody holds 'web'")


def test_a_held_gate_is_turned_by_commands() -> None:
    with victim(build_victim("idle")) as subject:
        ok(cli("attach", subject.pid, *RULE, "--gate", "--inactive", "--name", "web"))
        assert (targets(), ask(subject)["probe"]) == ([(subject.pid, "inactive")], 0)
        answers = []
        for turn in ((), ("--pause",), ("--resume",), ("--pause",)):
            ok(cli("activate", "web", *turn))
            answers.append(ask(subject)["probe"])
        assert answers == [DENIED, 0, DENIED, 0]
        assert "inactive, paused" in ok(cli("activate", "--list"))


@pytest.mark.skipif(not may_suspend(), reason="privilege: CAP_SYS_ADMIN in an unfiltered caller, to suspend filters")
def test_a_hardened_gate_denies_without_its_holder() -> None:
    with victim(build_victim("idle")) as subject:
        ok(cli("attach", subject.pid, *RULE, "--gate", "--inactive", "--name", "web"))
        assert ok(cli("activate", "web", "--harden")).startswith("active, hardened: ")
        failed(cli("activate", "web", "--pause"), 1, "UnsupportedError", "hardened")
        failed(cli("activate", "web", "--close"), 1, "AttachError", "--force")
        ok(cli("activate", "web", "--close", "--force"))
        assert ask(subject)["probe"] == DENIED


def test_a_held_filter_answers_notified_calls_by_itself() -> None:
    with victim(build_victim("idle")) as subject:
        ok(cli("attach", subject.pid, "--notify", "getppid", "--answer", DENIED, "--inactive", "--name", "web"))
        ok(cli("activate", "web"))
        assert [ask(subject)["probe"] for _ in range(3)] == [DENIED] * 3


def test_a_gate_is_held_for_those_that_the_target_left_behind() -> None:
    with victim("sh", "-c", f"exec 3<&0; echo ready; read x; {build_victim('idle')} <&3 &") as subject:
        ok(cli("attach", subject.pid, *RULE, "--gate", "--name", "web"))
        pid = held()["pid"]
        subject.tell("go")
        assert (subject.wait(30), subject.line()) == (0, "ready")
        assert [ask(subject)["probe"] for _ in range(3)] == [DENIED] * 3
        assert held()["pid"] == pid
        os.killpg(subject.pid, signal.SIGKILL)
        ends(pid)


def test_the_children_of_a_process_are_filtered_by_the_holder_and_shown() -> None:
    with victim(build_victim("births")) as subject:
        said = ok(cli("attach", subject.pid, *RULE, "--on", "fork", "--name", "web"))
        assert "inactive, waits for fork" in said
        for _ in range(3):
            subject.tell("fork")
            assert subject.line() == f"{DENIED} 0"
        assert (subject.pid, "inactive") in targets()
        ok(cli("activate", "--close", "web", "--force"))
        subject.tell("fork")
        assert subject.line() == "0 0"


@pytest.mark.parametrize("event", ["fork", "fork-all"])
def test_attach_on_fork_in_the_foreground_filters_the_children(event: str) -> None:
    with victim(build_victim("births")) as subject:
        command = [*PROGRAM, "attach", str(subject.pid), *RULE, "--on", event]
        with victim(*command, ready=None) as process:
            assert [process.line().split(":")[0] for _ in range(2)] == ["detached", "inactive"]
            subject.tell("fork")
            assert subject.line() == (f"{DENIED} 0" if event == "fork" else f"{DENIED} {DENIED}")
            assert process.line().startswith("active: process ")
            if event == "fork":
                process.send_signal(signal.SIGINT)
            assert process.wait(30) == (130 if event == "fork" else 0)
        subject.tell("fork")
        assert subject.line().split()[1] == ("0" if event == "fork" else str(DENIED))


def test_activation_on_exec_needs_no_command() -> None:
    with victim("sh", "-c", f"echo ready; read x; exec {build_victim('idle')}") as subject:
        assert "inactive, waits for exec" in ok(cli("attach", subject.pid, *RULE, "--on", "exec", "--name", "web"))
        subject.tell("go")
        assert subject.line() == "ready"
        assert ask(subject)["probe"] == DENIED
        wait_until(lambda: targets() == [(subject.pid, "active")], "the holder shows it")


def test_activation_on_a_call_lets_that_call_run() -> None:
    with victim(sys.executable, "-c", TALKER) as subject:
        ok(cli("attach", subject.pid, "--deny", f"rmdir={DENIED}", "--on", "listen", "--name", "web"))
        answers = []
        for word in ("x", "listen", "x"):
            subject.tell(word)
            answers.append(int(subject.line()))
        assert answers == [errno.ENOENT, DENIED, DENIED]
        assert targets() == [(subject.pid, "active")]


def test_activation_by_time() -> None:
    with victim(build_victim("idle")) as subject:
        ok(cli("attach", subject.pid, *RULE, "--on", "300ms", "--name", "web"))
        wait_until(lambda: set(filter_counts(subject.pid).values()) == {1}, "activated", 30)
        assert ask(subject)["probe"] == DENIED


def test_a_name_that_is_held_is_refused_and_nothing_is_changed() -> None:
    with victim(build_victim("idle")) as subject, victim(build_victim("idle")) as other:
        ok(cli("attach", subject.pid, *RULE, "--inactive", "--name", "web"))
        failed(cli("attach", other.pid, *RULE, "--name", "web"), 1, "ReclaimError", "in use", "activate --close web")
        assert (targets(), ask(other)["probe"]) == ([(subject.pid, "inactive")], 0)
        ok(cli("activate", "--close", "web"))
        assert "inactive" in ok(cli("attach", other.pid, *RULE, "--inactive", "--name", "web"))
        assert ask(subject)["probe"] == 0


def test_targets_are_added_to_a_held_filter_and_activated_together() -> None:
    with victim(build_victim("idle")) as one, victim(build_victim("idle")) as two:
        with agent("--name", "web", *RULE) as (process, line):
            assert line.startswith("detached: ")
            for subject in (one, two):
                ok(cli("attach", subject.pid, "--inactive", "--name", "web"))
                assert process.line().startswith(f"inactive: process {subject.pid}")
            assert ok(cli("activate", "web")).count("active: process ") == 2
            assert [ask(subject)["probe"] for subject in (one, two)] == [DENIED] * 2
            one.kill(), two.kill()
            assert process.wait(30) == 0


def test_ctrl_c_ends_an_agent() -> None:
    with agent("--name", "web", *RULE) as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert holder.show_all() == []


def test_another_process_receives_the_filter_and_parks_under_it() -> None:
    def park(writer: int, reader: int) -> tuple[bool, int]:
        libc = ctypes.CDLL(None, use_errno=True)
        with holder.fetch("web") as f, f.attach(active=False) as a:
            before = libc.syscall(110)
            os.write(writer, b"p")
            assert os.read(reader, 1) == b"a"
            after = ctypes.get_errno() if libc.syscall(110) < 0 else 0
            return before > 0, after

    ours, theirs = os.pipe(), os.pipe()
    with agent("--name", "web", *RULE):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                os._exit(0 if park(ours[1], theirs[0]) == (True, DENIED) else 1)
            os._exit(2)
        assert select.select([ours[0]], [], [], 30)[0] and os.read(ours[0], 1) == b"p"
        assert targets() == [(child, "inactive")]
        ok(cli("activate", "web"))
        os.write(theirs[1], b"a")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for fd in (*ours, *theirs):
        os.close(fd)


# ----------------------------------------------------------- start, end, death


def test_the_holder_has_a_session_of_its_own_and_none_of_our_descriptors() -> None:
    reader, writer = os.pipe()
    with victim(build_victim("idle")) as subject:
        done = subprocess.run(
            [*PROGRAM, "attach", str(subject.pid), *RULE, "--inactive", "--name", "web"],
            pass_fds=[writer],
            stdout=subprocess.DEVNULL,
            timeout=30,
            check=True,
        )
        os.close(writer)
        assert done.returncode == 0 and os.read(reader, 1) == b""
        pid = held()["pid"]
        assert (os.getsid(pid), os.readlink(f"/proc/{pid}/cwd")) == (pid, "/")
        assert {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)} == {os.devnull}
    os.close(reader)


@pytest.mark.parametrize(
    "args",
    [
        ("4194305", *RULE, "--inactive"),
        ("4194305", *RULE, "--gate"),
        ("1", "--deny", "mkdirta", "--inactive"),
        ("1", "--inactive", "--policy", "/nonexistent"),
        ("SELF", "--deny", "mkdir", "--on", "exit"),
        ("SELF", "--deny", "mkdir", "--on", "5x"),
        ("SELF", "--deny", "mkdir", "--on", "mkdirta"),
        ("SELF", "--deny", "mkdir", "--deadline", "5s"),
        ("SELF", "--deny", "mkdir", "--inactive", "--timeout", "-1"),
        ("SELF", "--deny", "mkdir", "--inactive", "--on-death", "EWHAT"),
    ],
)
def test_what_cannot_be_held_fails_as_without_a_name(args: tuple[str, ...]) -> None:
    with victim(build_victim("idle")) as subject:
        line = [str(subject.pid) if arg == "SELF" else arg for arg in args]
        plain, named = cli("attach", *line), cli("attach", *line, "--name", "web")
        assert plain.returncode in (1, 2) and "Traceback" not in plain.stderr
        assert (named.returncode, named.stderr, named.stdout) == (plain.returncode, plain.stderr, "")
        assert holder.show_all() == [] and set(filter_counts(subject.pid).values()) == {0}


def test_a_command_that_is_interrupted_leaves_nothing_or_a_held_name() -> None:
    with victim(build_victim("idle")) as subject:
        for _ in range(rounds(8)):
            process = subprocess.Popen(
                [*PROGRAM, "attach", str(subject.pid), *RULE, "--inactive", "--name", "web"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(random.uniform(0.05, 0.5))
            process.send_signal(signal.SIGINT)
            if process.wait(30) == 0:
                ok(cli("activate", "--close", "web"))
            assert holder.show_all() == []
        assert (set(filter_counts(subject.pid).values()), ask(subject)["probe"]) == ({0}, 0)


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_a_guarded_gate_is_active_when_its_holder_is_dead(by: int) -> None:
    with victim(build_victim("idle")) as subject:
        ok(cli("attach", subject.pid, *RULE, "--gate", "--inactive", "--deadline", "1h", "--name", "web"))
        assert ask(subject)["probe"] == 0
        dies(held()["pid"], by)
        wait_until(lambda: ask(subject)["probe"] == DENIED, "the gate is active")


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_a_deadline_is_kept_when_the_holder_dies(by: int) -> None:
    with victim(build_victim("idle")) as subject:
        said = ok(cli("attach", subject.pid, *RULE, "--inactive", "--deadline", "1h", "--name", "web"))
        assert re.search(r"has a deadline: activate in 3[56]\d\d s", said)
        dies(held()["pid"], by)
        wait_until(lambda: set(filter_counts(subject.pid).values()) == {1}, "activated by the guardian")
        assert ask(subject)["probe"] == DENIED


def test_the_deadline_of_a_gate_is_shown_until_it_is_active() -> None:
    with victim(build_victim("idle")) as subject:
        how = ("--gate", "--inactive", "--deadline", "1h", "--on-deadline", "kill")
        shown = r"inactive, has a deadline: kill in 3[56]\d\d s"
        assert re.search(shown, ok(cli("attach", subject.pid, *RULE, *how, "--name", "web")))
        assert re.search(shown, ok(cli("activate", "--list")))
        assert 3500 < json.loads(ok(cli("activate", "--list", "--json")))[0]["targets"][0]["deadline"] <= 3600
        assert "deadline" not in ok(cli("activate", "web"))


def test_a_deadline_can_kill_when_the_holder_dies() -> None:
    with victim(build_victim("idle")) as subject:
        ok(cli("attach", subject.pid, *RULE, "--inactive", "--deadline", "1h", "--on-deadline", "kill", "--name", "web"))
        dies(held()["pid"])
        assert subject.wait(30) == -signal.SIGKILL


def test_a_deadline_comes_while_the_holder_lives() -> None:
    with victim(build_victim("idle")) as subject:
        ok(cli("attach", subject.pid, "--notify", "getppid", "--answer", DENIED, "--inactive", "--deadline", "200ms", "--name", "web"))
        wait_until(lambda: set(filter_counts(subject.pid).values()) == {1}, "activated by the guardian")
        assert ask(subject)["probe"] == DENIED


def test_what_is_closed_before_its_deadline_stays_untouched() -> None:
    with victim(build_victim("idle")) as subject:
        ok(cli("attach", subject.pid, *RULE, "--inactive", "--deadline", "1h", "--name", "web"))
        pid = held()["pid"]
        ok(cli("activate", "--close", "web"))
        ends(pid)
        assert ask(subject)["probe"] == 0


def test_calls_are_answered_as_said_when_the_holder_is_dead() -> None:
    with victim(build_victim("idle")) as subject:
        ok(cli("attach", subject.pid, "--notify", "getppid", "--answer", "allow", "--on-death", DENIED, "--name", "web"))
        assert ask(subject)["probe"] == 0
        dies(held()["pid"])
        assert ask(subject)["probe"] == DENIED


def test_what_a_dead_holder_left_is_replaced(runtime: Path) -> None:
    with victim(build_victim("idle")) as subject:
        ok(cli("attach", subject.pid, *RULE, "--inactive", "--name", "web"))
        dies(held()["pid"])
        assert [path.name for path in runtime.iterdir()] == ["web@holder"]
        assert ok(cli("activate", "--list")).count("\n") == 1
        ok(cli("attach", subject.pid, *RULE, "--inactive", "--name", "web"))
        assert targets() == [(subject.pid, "inactive")]


# ------------------------------------------------------------------- hostility


@contextlib.contextmanager
def connection(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 30, 0))  # a timeout of Python's would not wait to connect
        one.connect(str(path))
        yield one


def exchange(path: Path, data: bytes, fds: list[int] | None = None) -> dict[str, Any]:
    with connection(path) as one:
        socket.send_fds(one, [data], fds or [])
        return json.loads(one.recv(1 << 16))  # type: ignore[no-any-return]


def test_malformed_requests_are_answered_with_errors_and_change_nothing(runtime: Path) -> None:
    with victim(build_victim("idle")) as subject:
        ok(cli("attach", subject.pid, *RULE, "--inactive", "--name", "web"))
        path, pid = runtime / "web@holder", held()["pid"]
        before = len(os.listdir(f"/proc/{pid}/fd"))
        attach = {"do": "attach", "pid": subject.pid}
        requests: list[object] = [
            *([], "activate", 7, None, {}, {"do": None}, {"do": []}, {"do": "exec"}, {"do": {"do": "activate"}}, {"do": "attach"}),
            *({"do": "attach", "pid": value, "how": {}} for value in (-1, 0, True, "1", None, 10**30, 4194305)),
            *({**attach, "how": how} for how in ([], {"x": 1}, {"mode": "y"}, {"timeout": "5"}, {"timeout": float("nan")})),
            *({**attach, "how": how} for how in ({"active": 1}, {"on_supervisor_death": 10**9}, {"activate_on": -1}, {"deadline": -1})),
            {**attach, "how": {"activate_on": "no such call"}},
            *({"do": word} for word in ("pause", "resume")),
        ]
        raw = [b"\xff\xfe", b"{", b"[" * 4000, b"x" * 100_000, b"9" * 4000, *(json.dumps(one).encode() for one in requests)]
        answers = [exchange(path, data, [0, 1]) for data in raw]
        assert ["error" in answer for answer in answers] == [True] * len(raw)
        assert (targets(), ask(subject)["probe"], held()["pid"]) == ([(subject.pid, "inactive")], 0, pid)
        wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) == before, "all descriptors are closed")
        ok(cli("activate", "web"))
        assert ask(subject)["probe"] == DENIED


def test_random_bytes_never_end_a_holder(runtime: Path) -> None:
    rng = random.Random(6)
    with victim(build_victim("idle")) as subject:
        ok(cli("attach", subject.pid, *RULE, "--inactive", "--name", "web"))
        for _ in range(rounds(300)):
            base = bytearray(b'{"do": "attach", "pid": 1, "how": {"active": false}}')
            for _ in range(rng.randrange(1, 8)):
                base[rng.randrange(len(base))] = rng.randrange(256)
            with connection(runtime / "web@holder") as one:
                one.send(base if rng.random() < 0.8 else rng.randbytes(rng.randrange(1, 5000)))
                if rng.random() < 0.5:
                    assert one.recv(1 << 16)
        assert any(one["pid"] == subject.pid and one["state"] == "inactive" for one in held()["targets"])


def test_a_crowd_that_says_nothing_keeps_nobody_out_and_is_sent_away(runtime: Path) -> None:
    with victim(build_victim("idle")) as subject:
        ok(cli("attach", subject.pid, *RULE, "--inactive", "--name", "web"))
        pid = held()["pid"]
        before = len(os.listdir(f"/proc/{pid}/fd"))
        with contextlib.ExitStack() as stack:
            crowd = [stack.enter_context(connection(runtime / "web@holder")) for _ in range(300)]
            ok(cli("activate", "web"))
            assert ask(subject)["probe"] == DENIED
            assert [one.recv(1) for one in crowd] == [b""] * len(crowd)
        wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) == before, "all descriptors are closed")


@pytest.mark.skipif(os.geteuid() != 0, reason="privilege: to be root, to become another user")
def test_another_user_is_refused_even_with_a_way_to_the_socket(runtime: Path) -> None:
    def stranger(path: Path) -> dict[str, Any]:
        os.setuid(65534)
        with connection(path) as one:
            return json.loads(one.recv(1 << 16))  # type: ignore[no-any-return]

    with victim(build_victim("idle")) as subject:
        ok(cli("attach", subject.pid, *RULE, "--inactive", "--name", "web"))
        for path in (runtime.parent, runtime, runtime / "web@holder"):
            path.chmod(0o777)
        assert in_child(stranger, runtime / "web@holder")["error"]["errno"] == errno.EPERM
        runtime.chmod(0o700)
        assert targets() == [(subject.pid, "inactive")]


def test_a_directory_that_others_may_enter_is_refused(runtime: Path) -> None:
    runtime.mkdir()
    runtime.chmod(0o755)
    with victim(build_victim("idle")) as subject:
        failed(cli("attach", subject.pid, *RULE, "--inactive", "--name", "web"), 1, "ReclaimError", "0700")
        failed(cli("activate", "web"), 1, "ReclaimError", "0700")
    runtime.chmod(0o700)


# ------------------------------------------------------------- in the foreground


def test_a_gate_in_the_foreground_is_kept_until_its_target_ends() -> None:
    with victim(build_victim("idle")) as subject:
        with victim(*PROGRAM, "attach", subject.pid, *RULE, "--gate", ready=None) as process:
            assert [process.line().split(":")[0] for _ in range(2)] == ["detached", "active"]
            assert ask(subject)["probe"] == DENIED
            subject.kill()
            assert process.line().startswith("dead") and process.wait(30) == 0


def test_an_exec_is_waited_for_in_the_foreground() -> None:
    with victim("sh", "-c", f"echo ready; read x; exec {build_victim('idle')}") as subject:
        with victim(*PROGRAM, "attach", subject.pid, *RULE, "--on", "exec", ready=None) as process:
            assert [process.line().split(":")[0] for _ in range(2)] == ["detached", "inactive"]
            subject.tell("go")
            assert subject.line() == "ready"
            assert process.line().startswith("active") and process.wait(30) == 0
            assert ask(subject)["probe"] == DENIED


@pytest.mark.skipif(attaches(2) < 2, reason="privilege: CAP_SYS_ADMIN in an unfiltered caller, to attach twice")
def test_ctrl_c_gives_an_event_up() -> None:
    with victim(build_victim("idle")) as subject:
        for event in ("exec", "1h"):
            with victim(*PROGRAM, "attach", subject.pid, *RULE, "--on", event, ready=None, stderr=subprocess.PIPE) as process:
                assert [process.line().split(":")[0] for _ in range(2)] == ["detached", "inactive"]
                process.send_signal(signal.SIGINT)
                assert process.wait(30) == 130
                assert process.stderr is not None
                process.stderr.close()
        assert ask(subject)["probe"] == 0


def test_run_on_exec_enforces_a_policy_that_denies_execve() -> None:
    done = cli("run", "--on", "exec", "--deny", "execve,execveat=EACCES", "--", "sh", "-c", "ls; exit 7")
    assert (done.returncode, "Permission denied" in done.stderr) == (7, True)


def test_run_on_exec_tells_how_the_command_failed(tmp_path: Path) -> None:
    rules = ("run", "--on", "exec", "--kill", "mkdir,mkdirat")
    commands = (["mkdir", tmp_path / "x"], ["no-such-command"], ["/etc/passwd"], ["/etc/passwd/x"])
    assert [cli(*rules, "--", *one).returncode for one in commands] == [128 + signal.SIGSYS, 127, 126, 127]


def test_run_on_exec_answers_notified_calls(tmp_path: Path) -> None:
    done = cli("run", "--on", "exec", "--notify", "mkdir,mkdirat", "--answer", "reply:0", "--", "mkdir", tmp_path / "x")
    assert (done.returncode, done.stderr.count("reply 0"), (tmp_path / "x").exists()) == (0, 1, False)
