"""Targets of an architecture for which the program has no rules: refused before anything is changed, unless that is meant."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pyseccomp as ps
from attaching import DENIED, KILL_PROCESS, X86_64, facts, filter_counts, is_waiting, program_bytes, wait_until
from harness import Victim, build_victim, in_child, victim

FOREIGN = "runs on (x86,|an architecture) for which the program has no rules"
PYSECCOMP = (sys.executable, "-m", "pyseccomp")


def policy(**options: Any) -> ps.Policy:
    made = ps.Policy(**options)
    made.add(ps.ERRNO(DENIED), "getppid")
    return made


@pytest.fixture
def subject() -> Iterator[Victim]:
    """A 32-bit process that sleeps for 0.4 s, then probes."""
    with victim(build_victim("compat32", "-m32"), "sleep") as process:
        wait_until(lambda: is_waiting(process.pid, not_in=(3, 4)), "the victim sleeps")
        yield process


def lives(subject: Victim, probe: int = 0) -> None:
    answer = facts(subject.line())
    assert (answer["errno"], answer["probe"]) == (0, probe)


@pytest.mark.parametrize(
    "options",
    [{}, {"tree": True}, {"mode": "gate"}, {"active": False}, {"active": False, "deadline": 30.0}, {"activate_on": "fork"}, {"threads": "one"}],
    ids=lambda options: "-".join(options) or "plain",
)
def test_a_policy_without_the_architecture_of_the_target_is_refused_and_nothing_is_changed(subject: Victim, options: dict[str, Any]) -> None:
    with ps.Filter(policy()) as f:
        with pytest.raises(ps.AttachError, match=FOREIGN):
            f.attach(subject, **options)
        assert not f.attachments
    assert filter_counts(subject.pid) == {subject.pid: 0}
    lives(subject)


def test_the_right_program_is_attached(subject: Victim) -> None:
    with ps.Filter(policy(arches=["x86_64", "x86"])) as f:
        f.attach(subject)
        lives(subject, DENIED)


@pytest.mark.parametrize("options", [{}, {"tree": True}, {"active": False, "deadline": 30.0}], ids=["plain", "tree", "guardian"])
def test_the_answer_for_other_architectures_is_given_where_it_is_meant(options: dict[str, Any]) -> None:
    with victim(build_victim("compat32", "-m32"), "busy") as subject:
        with ps.Filter(policy(bad_arch=ps.ERRNO(DENIED)), foreign_arch="allow") as f:
            attachment = f.attach(subject, **options)
            attachment.activate()
            assert filter_counts(subject.pid) == {subject.pid: 1}


def test_one_that_allows_other_architectures_or_knows_none_needs_no_permission(subject: Victim) -> None:
    with ps.Filter(policy(bad_arch=ps.ALLOW)) as f:
        f.attach(subject)
    lives(subject)


def test_a_member_of_a_tree_that_has_another_architecture_keeps_all_from_being_filtered() -> None:
    script = 'import subprocess, sys\nc = subprocess.Popen(sys.argv[1:], stdin=0)\nprint(c.pid, flush=True)\nc.wait()'
    with victim(sys.executable, "-c", script, build_victim("compat32", "-m32"), "busy", ready=None) as root:
        child = next(int(line) for line in sorted([root.line(), root.line()]) if line != "ready")
        with ps.Filter(policy()) as f:
            with pytest.raises(ps.AttachError, match=f"{child}.*x86, for which"):
                f.attach(root, tree=True)
            assert filter_counts(root.pid) == {root.pid: 0}
            group = f.attach(root, tree=True, on_error="skip")
            assert [one.outcome for one in group.results if one.pid == child] == ["skipped"]
        assert filter_counts(child) == {child: 0}


def started(start: Callable[[ps.Filter], Any]) -> tuple[str, str]:
    with ps.Filter(policy()) as f:
        try:
            start(f)
        except ps.AttachError as error:
            return type(error).__name__, str(error)
    return "", ""


def test_a_program_is_not_started_under_a_filter_without_its_architecture(tmp_path: Path) -> None:
    program = build_victim("compat32", "-m32")
    script = tmp_path / "script"
    script.write_text(f"#!{program} sleep\n")
    script.chmod(0o755)
    for start in (
        lambda f: ps.Popen([program], filter=f),
        lambda f: ps.Popen(["any"], executable=str(program), filter=f),
        lambda f: ps.Popen([f"./{program.name}"], cwd=program.parent, filter=f),
        lambda f: ps.Popen([program.name], env={"PATH": str(program.parent)}, filter=f),
        lambda f: ps.Popen([script], filter=f),
        lambda f: asyncio.run(ps.create_subprocess_exec(program, filter=f)),
    ):
        assert started(start)[0] == "AttachError"


def test_the_rules_of_the_command_line_cover_what_the_target_runs_on(subject: Victim) -> None:
    done = subprocess.run([*PYSECCOMP, "attach", str(subject.pid), f"--deny=getppid={DENIED}"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert filter_counts(subject.pid) == {subject.pid: 1}
    run = [*PYSECCOMP, "run", f"--deny=getppid={DENIED}", "--", str(build_victim("compat32", "-m32")), "sleep"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert f"probe={DENIED}" in done.stdout
    assert done.returncode == 0


def test_a_policy_file_without_the_architecture_is_refused_by_the_command_line(subject: Victim, tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.write_bytes(bytes(policy().compile()))
    for words in (["attach", str(subject.pid), "--policy", file], ["run", "--policy", file, "--", build_victim("compat32", "-m32"), "sleep"]):
        done = subprocess.run([*PYSECCOMP, *map(str, words)], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
        assert done.returncode not in (0, 128 + signal.SIGSYS)
        assert "x86" in done.stderr
    lives(subject)


def on_oneself(options: dict[str, Any]) -> str:
    with ps.Filter(policy(arches=["aarch64"])) as f:
        try:
            f.attach(**options)
        except ps.AttachError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("options", [{}, {"mode": "gate"}, {"active": False}], ids=["plain", "gate", "park"])
def test_a_process_is_not_killed_by_a_filter_for_another_machine_that_it_puts_on_itself(options: dict[str, Any]) -> None:
    assert "has no rules" in in_child(on_oneself, options)


def test_covers() -> None:
    assert policy().compile().covers()
    assert not policy().compile().covers("x86")
    assert not policy().compile().covers("x32")
    assert policy(arches=["x86_64", "x86", "x32"]).compile().covers("x32")
    assert policy(bad_arch=ps.ALLOW).compile().covers("x86")
    assert ps.Policy(default=ps.KILL_PROCESS).compile().covers("x86")  # kills whatever it is: that is meant
    assert ps.Program.from_bytes(program_bytes(KILL_PROCESS, 110, arch=X86_64)).covers("x86")  # allows what it does not know
    strict = ps.Policy(default=ps.KILL_PROCESS)
    strict.add(ps.ALLOW, "write", ps.Arg(0, ps.EQ, 1))
    assert strict.compile().covers()
    assert not strict.compile().covers("x86")
