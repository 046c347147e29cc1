"""The command line as a person or a script meets it: exit statuses, one-line errors, real filters."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import build_victim, status_field, victim

PROGRAM = [sys.executable, "-m", "pyseccomp"]
SLEEPER = [sys.executable, "-c", "print('ready', flush=True); import os; os.read(0, 1)"]


def cli(*args: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *map(str, args)], input=stdin, capture_output=True, text=True, timeout=30, check=False
    )


def failed(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """It failed with that status and one line on stderr, with those words and no traceback."""
    assert (done.returncode, done.stderr.count("\n")) == (status, 1), done
    for word in words:
        assert word in done.stderr


def test_query_shows_a_process_and_json_says_the_same() -> None:
    with victim(*SLEEPER) as process:
        text, data = cli("query", process.pid), json.loads(cli("query", process.pid, "--json").stdout)
    assert f"process {process.pid}: detached" in text.stdout
    assert (data["pid"], data["state"], len(data["threads"])) == (process.pid, "detached", 1)


def test_check_passes_where_the_main_job_works() -> None:
    done = cli("check", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["ok"] is True
    assert "The main job works here" in cli("check").stdout


def test_compile_disasm_and_simulate_agree(tmp_path: Path) -> None:
    out = tmp_path / "out.bpf"
    assert cli("compile", "--deny", "mkdirat=EACCES", "--kill", "ptrace", "-o", out).returncode == 0
    assert out.stat().st_size % 8 == 0
    assert "ERRNO" in cli("disasm", out).stdout
    assert cli("simulate", "--policy", out, "mkdirat", "1", "0x10").stdout.startswith("ERRNO EACCES after ")
    assert cli("simulate", "--policy", out, "ptrace").stdout.startswith("KILL_PROCESS")
    assert cli("simulate", "--policy", out, "read").stdout.startswith("ALLOW")


def test_an_oci_profile_is_told_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "no-extension"
    rule = {"names": ["mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}
    file.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    assert cli("simulate", "--policy", file, "mkdirat").stdout.startswith("ERRNO EACCES")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("query", "4194305"), ("TargetGoneError", "4194305")),
        (("attach", "4194305", "--deny", "mkdirat"), ("TargetGoneError", "4194305")),
        (("simulate", "--deny", "mkdirta", "read"), ("UnknownSyscallError", "mkdirat")),
        (("simulate", "--deny", "mkdirat=EWHAT", "read"), ("PolicyError", "EWHAT")),
        (("simulate", "--allow", "read=EPERM", "read"), ("PolicyError", "only --deny")),
        (("simulate", "--deny", ",read", "read"), ("PolicyError", "name is missing")),
        (("simulate", "read"), ("PolicyError", "no policy")),
        (("simulate", "--policy", "x", "--deny", "read", "read"), ("PolicyError", "exclude")),
        (("simulate", "--deny", "read", "read", "ten"), ("PolicyError", "ten")),
        (("disasm", "/nonexistent"), ("FileNotFoundError", "/nonexistent")),
        (("disasm", "/dev/null"), ("ProgramError", "0 bytes")),
    ],
)
def test_an_error_is_one_line_that_names_class_and_cause(args: tuple[str, ...], words: tuple[str, ...]) -> None:
    failed(cli(*args), 1, *words)


def test_a_program_that_the_kernel_would_refuse_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bad"
    file.write_bytes(b"\x05\0\0\0\xff\0\0\0")
    failed(cli("disasm", file), 1, "ProgramError", "instruction 0")


def test_misuse_of_the_line_exits_with_2() -> None:
    assert [cli(*args).returncode for args in ((), ("nonsense",), ("attach", "1", "--after", "1"))] == [2, 2, 2]


def test_run_puts_the_command_under_the_policy_and_returns_its_status(tmp_path: Path) -> None:
    script = f"mkdir {tmp_path}/new; grep -q '^Seccomp:.2' /proc/self/status && exit 7"
    done = cli("run", "--deny", "mkdir,mkdirat=ENOSPC", "--", "sh", "-c", script)
    assert (done.returncode, "No space left" in done.stderr, (tmp_path / "new").exists()) == (7, True, False)


def test_run_tells_how_the_command_failed(tmp_path: Path) -> None:
    assert cli("run", "--kill", "mkdir,mkdirat", "--", "mkdir", tmp_path / "new").returncode == 128 + signal.SIGSYS
    assert cli("run", "--deny", "mkdirat", "--", "no-such-command").returncode == 127
    assert cli("run", "--deny", "mkdirat", "--", "/etc/passwd").returncode == 126
    assert cli("run", "--", "true").returncode == 125


def test_run_refuses_notified_calls_unless_told_otherwise(tmp_path: Path) -> None:
    rules = ("run", "--notify", "mkdir,mkdirat")
    refused = cli(*rules, "--", "mkdir", tmp_path / "a")
    assert refused.returncode == 1 and "deny Operation not permitted (EPERM)" in refused.stderr
    assert cli(*rules, "--answer", "allow", "--", "mkdir", tmp_path / "b").returncode == 0
    assert cli(*rules, "--answer", "mkdir,mkdirat=reply:0", "--quiet", "--", "mkdir", tmp_path / "c").returncode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]


def test_attach_inactive_changes_nothing_until_enter() -> None:
    with victim(*SLEEPER) as process:
        before = int(status_field(process.pid, "Seccomp_filters"))
        with subprocess.Popen(
            [*PROGRAM, "attach", str(process.pid), "--deny", "mkdirat", "--inactive"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as supervisor:
            assert supervisor.stdout is not None and supervisor.stdin is not None
            assert supervisor.stdout.readline().startswith("detached")
            assert supervisor.stdout.readline().startswith("inactive")
            assert int(status_field(process.pid, "Seccomp_filters")) == before
            supervisor.stdin.write("\n")
            supervisor.stdin.flush()
            assert supervisor.stdout.readline().startswith("active")
            assert supervisor.wait(20) == 0
        assert int(status_field(process.pid, "Seccomp_filters")) == before + 1


def test_attach_inactive_is_activated_by_time_and_not_by_end_of_input() -> None:
    with victim(*SLEEPER) as process:
        done = cli("attach", process.pid, "--deny", "mkdirat", "--inactive", "--after", "0.2")
        assert (done.returncode, [line.split(":")[0] for line in done.stdout.splitlines()]) == (
            0,
            ["detached", "inactive", "active"],
        )


def test_attach_inactive_ends_with_its_target() -> None:
    with victim(*SLEEPER) as process:
        with subprocess.Popen(
            [*PROGRAM, "attach", str(process.pid), "--deny", "mkdirat", "--inactive"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as supervisor:
            assert supervisor.stdout is not None and supervisor.stderr is not None
            assert [supervisor.stdout.readline().split(":")[0] for _ in range(2)] == ["detached", "inactive"]
            process.kill()
            assert supervisor.wait(20) == 1
            assert "TargetGoneError" in supervisor.stderr.read()


def test_ctrl_c_ends_an_attach_in_one_line() -> None:
    with victim(*SLEEPER) as process:
        with subprocess.Popen(
            [*PROGRAM, "attach", str(process.pid), "--notify", "mkdirat"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as supervisor:
            assert supervisor.stdout is not None and supervisor.stderr is not None
            assert [supervisor.stdout.readline().split(":")[0] for _ in range(2)] == ["detached", "active"]
            supervisor.send_signal(signal.SIGINT)
            assert supervisor.wait(20) == 130
            said = supervisor.stderr.read()
            assert said.startswith("pyseccomp: interrupted; notified calls of process ") and said.count("\n") == 1
        assert process.poll() is None


def test_a_reader_that_leaves_early_gives_no_traceback() -> None:
    with subprocess.Popen([*PROGRAM, "check"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert select.select([process.stderr], [], [], 20)[0]
        assert process.stderr.read() == ""


def test_the_demo_verifies_every_step() -> None:
    done = cli("demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\nok  ") + done.stdout.startswith("ok  ") == 13
    assert done.stdout.endswith("Every step was verified.\n")


def test_the_demo_fails_where_ptrace_is_denied() -> None:
    done = cli("run", "--deny", "ptrace=EPERM", "--", *PROGRAM, "demo")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "FAILED" in done.stdout


# ---------------------------------------------------------------- many processes

PARENT = ["/bin/sh", "-c", "sleep 60 & echo ready; read x; wait"]


def rows(text: str) -> dict[str, list[str]]:
    """The table of who got what, by name."""
    lines = [line.split(None, 4) for line in text.splitlines()]
    return {line[1]: line for line in lines if line[0].isdigit()}


def test_attach_tree_filters_a_process_and_its_children_and_shows_who_got_it() -> None:
    with victim(*PARENT) as process:
        done = cli("attach", "--tree", process.pid, "--deny", "mkdirat")
        assert (done.returncode, done.stderr) == (0, "")
        shown = rows(done.stdout)
        assert set(shown) == {"sh", "sleep"}
        assert all(row[2:4] == ["filtered", "1"] for row in shown.values())
        assert shown["sh"][0] == str(process.pid)
        assert f"active: the tree of {process.pid}, 2 of 2 processes, 2 threads" in done.stdout
        assert all(status_field(int(row[0]), "Seccomp") == "2" for row in shown.values())


def test_attach_tree_tells_who_refused_and_skip_leaves_him_alone() -> None:
    with victim(*PARENT) as process:
        sleeper = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
        with victim(build_victim("tracer"), sleeper) as tracer:
            done = cli("attach", "--tree", process.pid, "--deny", "mkdirat")
            failed(done, 1, "TargetBusyError", sleeper, str(tracer.pid), "nothing was changed")
            assert status_field(process.pid, "Seccomp") == "0"
            done = cli("attach", "--tree", process.pid, "--deny", "mkdirat", "--on-error", "skip")
            assert done.returncode == 0
            shown = rows(done.stdout)
            assert shown["sh"][2] == "filtered" and shown["sleep"][2] == "skipped"
            assert "traced by" in shown["sleep"][3] + " " + shown["sleep"][4]
            assert "1 of 2 processes" in done.stdout


def test_attach_tree_inactive_is_activated_by_enter_and_serves_all() -> None:
    with victim(*PARENT) as process:
        done = cli("attach", "--tree", process.pid, "--deny", "mkdirat", "--inactive", stdin="\n")
        assert done.returncode == 0
        assert f"inactive: the tree of {process.pid}; Enter" in done.stdout
        assert status_field(process.pid, "Seccomp") == "2"


def test_attach_cgroup_refuses_what_is_none() -> None:
    failed(cli("attach", "--cgroup", "/tmp", "--deny", "mkdirat"), 1, "AttachError", "/tmp", "no directory of a cgroup")


@pytest.mark.parametrize(
    "args",
    [
        (), ("1", "--cgroup", "/sys"), ("--tree",), ("--cgroup", "/sys", "--tree"), ("1", "--on-error", "skip"), ("1", "--tree", "--gate"),
        ("1", "--tree", "--on", "exec"), ("1", "--tree", "--inactive", "--deadline", "5s"), ("1", "--tree", "--on-death", "kill"),
        ("--cgroup", "/sys", "--name", "x"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_attach_to_many_with_options_that_contradict_each_other_is_a_usage_error(args: tuple[str, ...]) -> None:
    done = cli("attach", *args, "--deny", "mkdirat")
    assert done.returncode == 2 and "usage: pyseccomp attach" in done.stderr
