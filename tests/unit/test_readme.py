"""What the README prints works as printed."""

from __future__ import annotations

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
