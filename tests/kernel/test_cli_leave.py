"""Commands that a signal ends leave no target whose notified calls fail for ever."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from attaching import DENIED, ask, wait_until
from harness import Victim, build_victim, victim
from listening import NR
from test_cli import PROGRAM, cli
from test_holder import ok, targets

from pyseccomp import holder

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RULES = ("--notify", "getppid,getpgid", "--answer", "allow", "--answer", "getppid=EHOSTUNREACH")
ANSWERED = errno.EHOSTUNREACH
"""By a rule of its own: what a guardian's single answer could not say."""


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Names of these tests alone; short, for a socket's path is."""
    with tempfile.TemporaryDirectory(prefix="psc") as path:
        monkeypatch.setenv("XDG_RUNTIME_DIR", path)
        yield Path(path, "pyseccomp")
        with contextlib.suppress(OSError):
            for one in holder.show_all():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one["pid"], signal.SIGKILL)


@contextlib.contextmanager
def command(*arguments: object, lines: int = 2, **options: object) -> Iterator[Victim]:
    """A command in the foreground that has said so many lines."""
    with victim(*PROGRAM, *map(str, arguments), ready=None, stderr=subprocess.PIPE, **options) as process:  # type: ignore[arg-type]
        for _ in range(lines):
            process.line()
        yield process
        assert process.stderr is not None
        process.stderr.close()


def interrupt(process: Victim, by: signal.Signals) -> str:
    """End it by a signal; the last line that it said."""
    process.send_signal(by)
    assert process.wait(30) == 128 + by
    assert process.stderr is not None
    text = process.stderr.read()
    assert "Traceback" not in text
    return text.splitlines()[-1]


@pytest.mark.parametrize("by", SIGNALS)
def test_attach_that_is_ended_goes_on_answering_by_its_rules(by: signal.Signals) -> None:
    with victim(build_victim("idle"), "3") as target:
        name = f"attach-{target.pid}"
        with command("attach", target.pid, *RULES) as process:
            assert ask(target)["probe"] == ANSWERED
            said = interrupt(process, by)
        assert f"held as {name!r}" in said and f"activate {name} --close --force" in said
        assert [ask(target)["probe"] for _ in range(3)] == [ANSWERED] * 3
        assert targets(name) == [(target.pid, "active")]
        ok(cli("activate", name, "--close", "--force"))
        assert ask(target)["probe"] == errno.ENOSYS


def test_background_holder_ends_with_its_targets() -> None:
    with victim(build_victim("idle")) as target:
        with command("attach", target.pid, *RULES) as process:
            interrupt(process, signal.SIGINT)
        assert len(holder.show_all()) == 1
        target.kill()
        target.wait(20)
        wait_until(lambda: holder.show_all() == [], "the holder ends")


def test_attach_whose_signal_is_ignored_goes_on_in_the_foreground() -> None:
    """As under nohup."""
    with victim(build_victim("idle")) as target:
        start = f"import signal, os, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv({PROGRAM[0]!r}, {PROGRAM!r} + sys.argv[1:])"
        arguments = [sys.executable, "-c", start, "attach", str(target.pid), *RULES]
        with victim(*arguments, ready=None, stderr=subprocess.DEVNULL) as process:
            process.line(), process.line()
            process.send_signal(signal.SIGHUP)
            assert ask(target)["probe"] == ANSWERED and process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 128 + signal.SIGTERM
        assert ask(target)["probe"] == ANSWERED


def test_attach_of_a_tree_is_answered_on_for_all() -> None:
    with victim(build_victim("family"), "2", "2", "1") as root:
        with command("attach", root.pid, "--tree", *RULES) as process:
            while not process.line().startswith("active"):
                pass
            assert "held as" in interrupt(process, signal.SIGTERM)
        (one,) = holder.show_all()
        assert len(one["targets"]) == 7 and {t["state"] for t in one["targets"]} == {"active"}


@pytest.mark.parametrize("by", SIGNALS)
@pytest.mark.parametrize("inactive", [False, True], ids=["active", "inactive"])
def test_gate_is_left_to_its_standby(by: signal.Signals, inactive: bool) -> None:
    """It was closed, and what it gated failed with ENOSYS."""
    with victim(build_victim("idle")) as target:
        how = ["--gate", "--inactive"] if inactive else ["--gate"]
        with command("attach", target.pid, "--deny", f"getppid={DENIED}", *how) as process:
            assert ask(target)["probe"] == (0 if inactive else DENIED)
            assert "gate is active" in interrupt(process, by)
        assert [ask(target)["probe"] for _ in range(2)] == [DENIED] * 2


def test_gate_that_notifies_gets_the_default_answer() -> None:
    with victim(build_victim("idle")) as target:
        with command("attach", target.pid, "--notify", "getppid", "--answer", "EHOSTUNREACH", "--gate") as process:
            interrupt(process, signal.SIGINT)
        assert ask(target)["probe"] == ANSWERED


def test_promise_of_on_death_begins() -> None:
    with victim(build_victim("idle")) as target:
        with command("attach", target.pid, *RULES, "--on-death", "EHOSTDOWN") as process:
            assert "--on-death" in interrupt(process, signal.SIGINT)
        assert ask(target)["probe"] == errno.EHOSTDOWN
        assert holder.show_all() == []


FORKER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
print("ready", flush=True)
os.read(0, 100)
if os.fork():
    os.wait()
while os.read(0, 100):
    print(0 if libc.syscall(int(sys.argv[1])) >= 0 else ctypes.get_errno(), flush=True)
"""


def test_children_of_a_fork_trigger_are_answered_on() -> None:
    with victim(sys.executable, "-c", FORKER, str(NR["getppid"])) as subject:
        with command("attach", subject.pid, *RULES, "--on", "fork") as process:
            subject.tell("fork")
            assert process.line().startswith("active: process ")
            assert "held as" in interrupt(process, signal.SIGINT)
        subject.tell("ask")
        assert subject.line() == str(ANSWERED)


@pytest.mark.parametrize("by", SIGNALS)
def test_agent_that_is_ended_leaves_a_holder_of_its_name(by: signal.Signals) -> None:
    with victim(build_victim("idle")) as target:
        with command("agent", target.pid, "--name", "web", *RULES, lines=1) as process:
            assert ask(target)["probe"] == ANSWERED
            assert "held as 'web'" in interrupt(process, by)
        assert ask(target)["probe"] == ANSWERED
        assert targets() == [(target.pid, "active")]


@pytest.mark.parametrize("on", [(), ("--on", "exec")], ids=["start", "exec"])
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGHUP])
def test_run_that_is_ended_goes_on_answering_for_its_command(by: signal.Signals, on: tuple[str, ...]) -> None:
    with command("run", *RULES, *on, "--", build_victim("idle"), lines=1) as process:
        assert ask(process)["probe"] == ANSWERED
        process.send_signal(by)
        assert process.wait(30) == 128 + by
        assert ask(process)["probe"] == ANSWERED
        (one,) = holder.show_all()
        assert one["name"].startswith("run-")
        os.kill(one["targets"][0]["pid"], signal.SIGKILL)


def test_run_goes_on_answering_for_what_its_command_leaves(tmp_path: Path) -> None:
    """A daemon that the command started outlives it, and the command line with it."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = f"{build_victim('idle')} < {fifo} & exec 1>&-; exit 5"
    with command("run", *RULES, "--", "sh", "-c", script, lines=0) as process:
        with open(fifo, "w") as orders:
            assert process.line() == "ready"
            assert process.wait(30) == 5
            assert process.stderr is not None
            (one,) = holder.show_all()
            orders.write("report\n")
            orders.flush()
            assert process.line().endswith(f"probe={ANSWERED}")


def test_run_leaves_nothing_when_its_command_leaves_nothing() -> None:
    done = cli("run", *RULES, "--", "sh", "-c", "true | true; exit 4")
    assert (done.returncode, "held as" in done.stderr) == (4, False)
    assert holder.show_all() == []


def test_command_that_cannot_leave_a_holder_stays_and_answers(runtime: Path) -> None:
    runtime.mkdir(0o755)  # not a directory of names: others could look into it
    with victim(build_victim("idle")) as target:
        with command("attach", target.pid, *RULES, "--quiet") as process:
            process.send_signal(signal.SIGTERM)
            assert process.stderr is not None
            assert "answers on until they end" in process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            assert ask(target)["probe"] == ANSWERED and process.poll() is None
            target.kill()
            assert process.wait(30) == 128 + signal.SIGTERM
    runtime.rmdir()


def test_what_is_not_in_force_yet_is_given_up() -> None:
    with victim(build_victim("idle")) as target:
        with command("attach", target.pid, *RULES, "--inactive") as process:
            assert interrupt(process, signal.SIGTERM) == "pyseccomp: ended by SIGTERM"
        assert ask(target)["probe"] == 0
        assert holder.show_all() == []
