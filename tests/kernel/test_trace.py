"""Watching the calls of real programs, and policies learnt from it: beside strace, which sees the same calls."""

from __future__ import annotations

import collections
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import pyseccomp as ps
from attaching import wait_until
from pyseccomp import profile, results
from pyseccomp.trace import Call, Tracer, select_calls

CLI = [sys.executable, "-m", "pyseccomp"]
TIMEOUT = 60


def cli(*args: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(ps.__file__).parents[1]), **(env or {})}
    return subprocess.run(
        [*CLI, *args], cwd=cwd, env=environment, text=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT
    )


def trace(argv: list[str], calls: frozenset[str] | None = None) -> tuple[list[Call], Tracer]:
    seen: list[Call] = []
    with Tracer(calls, records=True, snap=4096, from_exec=True) as tracer:
        tracer.launch(argv)
        tracer.follow(seen.extend)
        assert tracer.status == 0
    return seen, tracer


def strace_counts(argv: list[str], tmp_path: Path) -> dict[str, int]:
    """Each call that strace -f sees, from the execve of the program on."""
    out = tmp_path / "strace"
    subprocess.run(["strace", "-f", "-qq", "-e", "signal=none", "-o", out, *argv], check=True, timeout=TIMEOUT)
    names = re.findall(r"^\d+ +(\w+)\(", out.read_text(), re.M)
    return collections.Counter(names)


@pytest.mark.parametrize("argv", [["sh", "-c", "for i in 1 2 3; do /bin/true; done; cat /etc/passwd | wc -l"], ["git", "--version"]])
def test_counts_are_what_strace_counts(argv: list[str], tmp_path: Path) -> None:
    with Tracer(from_exec=True) as tracer:
        tracer.launch(argv)
        tracer.follow()
        ours = {count.name: count.count for count in tracer.counts()}
        total = sum(thread.count for thread in tracer.threads())
    assert sum(ours.values()) == total
    theirs = strace_counts(argv, tmp_path)
    for counts in (ours, theirs):
        # How often these are made hangs on timing, and on where the heap lies.
        for name in ("brk", "wait4", "rt_sigreturn", "read", "restart_syscall"):
            counts.pop(name, None)
    assert ours == theirs


def test_errors_are_what_strace_counts(tmp_path: Path) -> None:
    argv = ["sh", "-c", "ls /nonexistent /also-not; cat /nonexistent; test -e /neither; true"]
    (tmp_path / "theirs").touch()
    subprocess.run(["strace", "-f", "-c", "-o", tmp_path / "theirs", *argv], check=True, stderr=subprocess.DEVNULL, timeout=TIMEOUT)
    theirs = {}
    for line in (tmp_path / "theirs").read_text().splitlines():
        words = line.split()
        if len(words) == 6 and words[4].isdigit() and words[5] != "total":
            theirs[words[5]] = int(words[4])
    with Tracer(from_exec=True, errors=True) as tracer:
        tracer.launch(argv)
        tracer.follow()
        ours = {count.name: count.errors for count in tracer.counts() if count.errors != 0}
        why = tracer.errors_unknown
    out = tmp_path / "table"
    assert cli("trace", "-c", "-o", str(out), "--", *argv).returncode == 0
    if why is not None:  # no privilege, or no tracefs here
        assert set(ours.values()) == {None} and f"ERRORS are not known: {why}" in out.read_text()
        return
    assert tracer.errors_lost == 0
    for counts in (ours, theirs):
        counts.pop("wait4", None)  # ECHILD and EINTR, as timing will have it
    assert ours == theirs and ours["openat"] > 2 and ours["newfstatat"] >= 1
    assert re.search(rf"^\d+ +[\d.]+ +{ours['openat']} .* openat$", out.read_text(), re.M)


def test_a_tracepoint_of_another_shape_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = tmp_path / "events/raw_syscalls/sys_exit/format"
    described.parent.mkdir(parents=True)
    described.write_text("ID: 1\nformat:\n\tfield:long id;\toffset:16;\tsize:8;\n\tfield:long ret;\toffset:24;\tsize:8;\n")
    monkeypatch.setattr(results, "_PLACES", (str(tmp_path),))
    assert results.Failures(os.getpid()).unknown == f"{described} describes other fields than this version knows"


def test_errors_of_a_running_process_and_its_threads() -> None:
    text = """
import os, threading
def fail():
    for _ in range(40):
        try:
            os.rmdir("/none")
        except OSError:
            pass
input()
for _ in range(50):
    threading.Thread(target=fail).start()
"""
    child = subprocess.Popen([sys.executable, "-c", text], stdin=subprocess.PIPE, text=True)
    try:
        with Tracer(errors=True) as tracer:
            tracer.attach(child)
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
            tracer.follow()
            errors = {count.name: count.errors for count in tracer.counts()}
            if tracer.errors_unknown is None:
                assert errors["rmdir"] == 2000
    finally:
        child.kill()
        child.communicate()


def test_lines_say_what_was_called(tmp_path: Path) -> None:
    (tmp_path / "some file").write_text("x")
    seen, _ = trace(["sh", "-c", f"echo x; cat '{tmp_path}/some file'"])
    text = "\n".join(map(str, seen))
    assert f'openat(AT_FDCWD, "{tmp_path}/some file", O_RDONLY)' in text
    assert 'write(1, "x\\n", 2)' in text
    assert text.startswith("execve(") and '["sh", "-c", "echo x' in text
    assert seen[-1].name == "exit_group"
    assert [c.time_ns for c in seen] == sorted(c.time_ns for c in seen)


def test_only_the_chosen_calls_are_shown_and_the_others_are_not_asked_about(tmp_path: Path) -> None:
    calls = select_calls("trace=openat,%network")
    assert {"openat", "connect"} <= calls and "read" not in calls
    seen, tracer = trace(["cat", "/etc/passwd"], calls)
    assert {c.name for c in seen} == {"openat"}
    assert {c.name for c in tracer.counts()} == {"openat"}


@pytest.mark.parametrize("expression", ["trace=no_such_call", "signal=SIGINT", "trace=%nonsense", "!all", "@no-such-group"])
def test_an_expression_that_says_nothing_is_refused(expression: str) -> None:
    with pytest.raises(ps.PolicyError):
        select_calls(expression)


def test_a_running_process_is_traced_and_goes_on_afterwards(tmp_path: Path) -> None:
    """Ctrl-C ends the tracing, not the target; a guardian lets its calls run from then on."""
    code = "import os, time\nwhile True:\n    os.getppid(); time.sleep(0.01); print(flush=True)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as target:
        assert target.stdout is not None
        try:
            target.stdout.readline()
            out = tmp_path / "out"
            tracer = subprocess.Popen([*CLI, "trace", "-p", str(target.pid), "-o", out], stderr=subprocess.PIPE, text=True)
            wait_until(lambda: out.exists() and "getppid()" in out.read_text(), "a traced call")
            tracer.send_signal(signal.SIGINT)
            _, err = tracer.communicate(timeout=TIMEOUT)
            assert tracer.returncode == 130 and "no longer tracing" in err
            for _ in range(50):
                assert target.stdout.readline() == b"\n"
            assert ps.query(target.pid).state == "active"
        finally:
            target.kill()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_tracer_leaves_its_target_alive(how: signal.Signals, tmp_path: Path) -> None:
    code = "import os\nwhile True:\n    os.getppid(); os.write(1, b'x')"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as target:
        assert target.stdout is not None
        try:
            target.stdout.read(1)
            tracer = subprocess.Popen([*CLI, "trace", "-c", "-p", str(target.pid)], stderr=subprocess.DEVNULL)
            wait_until(lambda: ps.query(target.pid).state == "active", "the trace begins")
            target.stdout.read(1 << 16)
            tracer.send_signal(how)
            tracer.wait(TIMEOUT)
            assert len(target.stdout.read(1 << 18)) == 1 << 18
        finally:
            target.kill()


def test_threads_and_the_time_until_their_next_call_are_told_apart() -> None:
    code = "import threading, time, os\nt = threading.Thread(target=lambda: [os.getppid() for _ in range(500)])\nt.start(); t.join(); time.sleep(0.3); os.getpgrp()"
    with Tracer(from_exec=True) as tracer:
        tracer.launch([sys.executable, "-c", code])
        tracer.follow()
        counts = {c.name: c for c in tracer.counts()}
        threads = tracer.threads()
    assert counts["getppid"].count == 500 and len(threads) == 2
    sleep = counts["clock_nanosleep"]
    assert sleep.longest_until_next_ns >= 300_000_000 and sleep.mean_until_next_ns is not None


def test_a_ring_that_is_full_loses_nothing() -> None:
    n = 40_000  # some 72 bytes each: more than the ring holds
    seen = 0

    def slow(calls: list[Call]) -> None:
        nonlocal seen
        seen += sum(call.name == "getppid" for call in calls)
        time.sleep(0.02)

    with Tracer(frozenset({"getppid"}), records=True, from_exec=True) as tracer:
        tracer.launch([sys.executable, "-c", f"import os\nfor _ in range({n}): os.getppid()"])
        tracer.follow(slow)
    assert seen == n


def test_closing_from_another_thread_ends_following() -> None:
    with subprocess.Popen(["sleep", "100"]) as target:
        tracer = Tracer()
        try:
            tracer.attach(target.pid)
            threading.Timer(0.2, tracer.close).start()
            tracer.follow()
            assert tracer.closed and ps.query(target.pid).state == "active"
        finally:
            tracer.close()
            target.kill()


def test_a_command_that_is_not_there() -> None:
    done = cli("trace", "--", "/no/such/program")
    assert done.returncode in (125, 127) and "No such file" in done.stderr
    assert "usage" in cli("trace").stderr


# -------------------------------------------------------------------- profile


def learn(out: Path, *argv: str, merge: Path | None = None, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    options = [] if merge is None else ["--merge", str(merge)]
    done = cli("profile", "-o", str(out), *options, "--", *argv, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    assert "NOT in the profile" not in done.stderr


def enforced(policy: Path, *argv: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return cli("run", "--policy", str(policy), "--", *argv, cwd=cwd, env=env)


def denied_calls(policy_file: Path, argv: list[str], cwd: Path | None = None) -> list[str]:
    """The calls that a policy would not let pass, seen by asking about them instead of denying them."""
    policy = ps.Policy.from_oci(json.loads(policy_file.read_text()))
    asking = ps.Policy(ps.NOTIFY, policy.arches, bad_arch=ps.NOTIFY, low_words=policy.low_words)
    for rule in policy.rules:
        asking.add(rule.action, rule.syscall, *rule.conditions, arch=rule.arch)
    denied: list[str] = []

    def ask(n: ps.Notification) -> None:
        denied.append(f"{n.syscall}{n.args}")
        n.allow()

    with ps.Filter(asking) as f:
        child = ps.Popen(argv, filter=f, activate_on="exec", cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        loop = threading.Thread(target=f.serve, args=(ps.Responder(default=ask),))
        loop.start()
        child.wait(TIMEOUT)
        loop.join(TIMEOUT)
    assert child.returncode == 0
    return denied


def c_source(tmp_path: Path) -> Path:
    source = tmp_path / "hello.c"
    source.write_text('#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n')
    return source


@pytest.mark.parametrize("program", ["git", "gcc"])
def test_a_learnt_profile_runs_its_program_and_no_other(program: str, tmp_path: Path) -> None:
    if program == "git":
        argv = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "gc.auto=0", "commit", "-q", "--allow-empty", "-m", "x"]
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
    else:
        argv = ["gcc", "-O2", "-o", "hello", str(c_source(tmp_path))]
    out = tmp_path / "profile.json"
    learn(out, *argv, cwd=tmp_path)
    learn(out, *argv, merge=out, cwd=tmp_path)
    assert denied_calls(out, argv, cwd=tmp_path) == []
    done = enforced(out, *argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    foreign = [sys.executable, "-c", "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"]
    done = enforced(out, *foreign, cwd=tmp_path)
    assert done.returncode != 0


SERVER = """
import http.server, threading, urllib.request
with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
    threading.Thread(target=server.serve_forever).start()
    for path in ("/", "/hello.c"):
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}") as answer:
            assert answer.read()
    server.shutdown()
"""


def test_a_learnt_profile_runs_an_http_server_and_denies_others(tmp_path: Path) -> None:
    c_source(tmp_path)
    argv = [sys.executable, "-c", SERVER]
    out = tmp_path / "profile.json"
    learn(out, *argv, cwd=tmp_path)
    for _ in range(3):
        learn(out, *argv, merge=out, cwd=tmp_path)
    done = enforced(out, *argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = enforced(out, sys.executable, "-c", "import os; os.mkdir('never')", cwd=tmp_path)
    assert "PermissionError" in done.stderr and not (tmp_path / "never").exists()
    done = enforced(out, sys.executable, "-c", "import socket; socket.socket(socket.AF_NETLINK)", cwd=tmp_path)
    assert "PermissionError" in done.stderr


def test_without_a_name_the_profile_is_a_new_file(tmp_path: Path) -> None:
    done = cli("profile", "--", "true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ps.load(tmp_path / "seccomp-profile.json").default == ps.ERRNO(1)
    again = cli("profile", "--", "true", cwd=tmp_path)
    assert again.returncode == 2 and "is there already" in again.stderr


def test_values_are_kept_where_they_say_what_is_meant(tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    learn(out, sys.executable, "-c", "import socket; socket.socket(socket.AF_UNIX)")
    rules = json.loads(out.read_text())["syscalls"]
    [args] = [rule["args"] for rule in rules if "socket" in rule["names"]]
    assert [(a["index"], a["valueTwo"]) for a in args] == [(0, 1)]
    assert cli("profile", "--no-args", "-o", str(out), "--", "/bin/true").returncode == 0
    assert not any(rule.get("args") for rule in json.loads(out.read_text())["syscalls"])


def test_merging_keeps_what_was_there_and_refuses_what_was_denied() -> None:
    old = ps.Policy(ps.ERRNO(1), [ps.Arch.native()])
    old.add(ps.ALLOW, "getppid")
    old.add(ps.ERRNO(13), "mkdirat")
    merged = profile.merge(old, {"getpid": None, "socket": frozenset({1, 2})}, (ps.Arch.native(),))
    names = [rule.syscall for rule in merged.rules]
    assert names.count("socket") == 2 and {"getppid", "mkdirat", "getpid"} <= set(names)
    again = profile.merge(merged, {"socket": frozenset({2}), "getppid": None}, (ps.Arch.native(),))
    assert len(again.rules) == len(merged.rules)
    with pytest.raises(ps.PolicyError, match="rule of its own for mkdirat"):
        profile.merge(old, {"mkdirat": None}, (ps.Arch.native(),))
    with pytest.raises(ps.PolicyError, match="allows what it does not name"):
        profile.merge(ps.Policy(ps.ALLOW), {"getpid": None}, (ps.Arch.native(),))


def test_an_interrupted_profile_is_written(tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    learning = subprocess.Popen(
        [*CLI, "profile", "-o", out, "--", "sh", "-c", "sleep 0.01; echo slept; exec sleep 100"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert learning.stdout is not None and learning.stdout.readline() == b"slept\n"
        os.killpg(learning.pid, signal.SIGINT)
        learning.communicate(timeout=TIMEOUT)
        names = {name for rule in json.loads(out.read_text())["syscalls"] for name in rule["names"]}
        assert {"execve", "clock_nanosleep", "write"} <= names
    finally:
        learning.kill()


assert shutil.which("strace"), "the tests need strace: .ci/run installs it"
