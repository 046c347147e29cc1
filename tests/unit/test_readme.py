"""What the README prints works as printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()


def block(mark: str) -> str:
    """The code block after a marker."""
    found = re.search(rf"<!-- {mark} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_example_runs_as_printed(tmp_path: Path) -> None:
    assert len([line for line in block("example").splitlines() if line.strip()]) <= 20
    script = tmp_path / "example.py"
    script.write_text(block("example"))
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split("\n")) == sorted(["inactive detached", "active True", "denied", ""])
    assert not Path("/tmp/never").exists()


def run(mark: str, tmp_path: Path) -> str:
    script = tmp_path / "script.py"
    script.write_text(block(mark))
    env = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=30, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_program_for_libseccomp_and_the_same_for_us(tmp_path: Path) -> None:
    assert run("before", tmp_path) == "b'rmdir' 256\n"
    assert run("after", tmp_path) == "rmdir 1\n"


def test_each_command_is_one_line() -> None:
    assert block("install").count("\n") == block("tests").count("\n") == 1


TABLE = """
import errno, json, os, subprocess, sys, tempfile
import pyseccomp as ps
from pyseccomp import *

rows = json.load(sys.stdin)
file = tempfile.TemporaryFile()
g = SyscallFilter(ALLOW); g.remove_arch(Arch()); g.add_arch(Arch.ARM)
policy, other = ps.Policy(ps.ALLOW), ps.Policy(ps.LOG)
program = policy.compile()
done = 0
for theirs, ctypes, ours, better in rows:
    if any("receive_notify" in code for code in theirs):
        if os.fork() == 0:
            f.reset(); f.add_rule(NOTIFY, "rmdir"); f.load()
            target = os.fork()
            if target == 0:
                os.execvp("rmdir", ["rmdir", "/nosuch"])
            for code in theirs:
                exec(code)
            exec(*ctypes)  # it is made, and not sent
            os._exit(os.waitstatus_to_exitcode(os.waitpid(target, 0)[1]) != 1)
        assert os.wait()[1] == 0
    elif theirs != ["f.load()"]:
        for code in theirs + ctypes:
            exec(code)
    done += len(theirs + ctypes)
    for code in ours:
        if code == "n = f.receive()":
            asking = ps.Policy(ps.ALLOW)
            asking.add(ps.NOTIFY, "rmdir")
            f = ps.Filter(asking)
            child = ps.Popen(["rmdir", "/nosuch"], filter=f, stderr=subprocess.DEVNULL)
        if "attach()" not in code:
            exec(code)
        done += 1
print(done)
"""


def test_the_cells_of_the_migration_table_run(tmp_path: Path) -> None:
    """load() and attach() of oneself are in the two programs above the table."""
    lines = README.partition("## Coming from libseccomp")[2].partition("## What is true")[0].splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("| `")]
    assert len(rows) >= 9
    codes = [[re.findall(r"`([^`]+)`", cell) for cell in row] for row in rows]
    done = subprocess.run([sys.executable, "-c", TABLE], input=json.dumps(codes), capture_output=True, text=True, timeout=60, check=False,
                          env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
