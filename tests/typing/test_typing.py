"""The types that users see, by mypy in strict mode."""

import subprocess
import sys
from pathlib import Path


def test_the_examples_have_the_types_that_they_assert() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "tests/typing/examples.py"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
