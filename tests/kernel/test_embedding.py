"""The C core in programs of others: an installed copy, its header and library, and the two examples, compiled and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path, expect: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env={**os.environ, **env}, text=True, stdin=subprocess.DEVNULL, capture_output=True,
        timeout=300,
    )
    assert done.returncode == expect, f"{command}: status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def readme(mark: str) -> str:
    """The code block after a marker."""
    block = (ROOT / "README.md").read_text().split(f"<!-- {mark} -->\n```sh\n")[1]
    return block.split("```")[0]


class Installed:
    """A copy of the package, built from a copy of the sources and installed into a directory of its own."""

    def __init__(self, where: Path) -> None:
        self.site, self.work = where / "site", where / "work"
        self.work.mkdir()
        source = where / "source"
        junk = shutil.ignore_patterns("build", "*.so", "*.a", "guardian", "include", "_core.c", "__pycache__")
        for name in ("csrc", "pyseccomp"):
            shutil.copytree(ROOT / name, source / name, ignore=junk)
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        options = ("--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--no-warn-script-location", "--quiet")
        run(sys.executable, "-m", "pip", "install", *options, "--target", self.site, source, cwd=where, PYSECCOMP_DEBUG="1")
        self.env = {"PYTHONPATH": str(self.site), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self.include, self.library, self.examples, guardian = self.python(
            "import pyseccomp as p; print(p.get_include(), p.get_library(), p.get_examples(), p.get_guardian())"
        ).split()
        assert os.access(guardian, os.X_OK)
        for path in (self.include, self.library, self.examples):
            assert Path(path).is_relative_to(self.site)
        for example in Path(self.examples).iterdir():
            if example.is_file():
                shutil.copy(example, self.work)

    def python(self, code: str) -> str:
        return run(sys.executable, "-c", code, cwd=self.work, **self.env).stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    copy = Installed(tmp_path_factory.mktemp("embedding"))
    run("sh", "-euc", readme("embedding"), cwd=copy.work, **copy.env)
    return copy


def test_the_monitor_in_c_denies_tells_and_counts(installed: Installed) -> None:
    done = run("./monitor", "sh", "-c", "mkdir never; cat monitor.c >/dev/null; exit 7", cwd=installed.work, expect=7)
    assert "opens monitor.c\n" in done.stderr and "denied 1, gone 0\n" in done.stderr
    assert "ermission denied" in done.stderr and not (installed.work / "never").exists()


def test_the_monitor_in_c_passes_on_that_there_is_no_such_program(installed: Installed) -> None:
    assert "No such file" in run("./monitor", "/nonexistent", cwd=installed.work, expect=127).stderr
    assert "usage" in run("./monitor", cwd=installed.work, expect=125).stderr


def test_the_monitor_in_cython_denies_tells_and_counts(installed: Installed) -> None:
    code = "import cymonitor; print(*cymonitor.run(['sh', '-c', 'mkdir never; cat monitor.c >/dev/null; exit 7']), sep='\\n')"
    status, opened, counts = installed.python(code).splitlines()
    assert status == "7" and "'monitor.c'" in opened and "'denied': 1" in counts
    assert not (installed.work / "never").exists()


STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wstrict-prototypes", "-Wshadow")


@pytest.mark.parametrize("standard", ["c99", "c11", "c17"])
def test_the_header_and_the_example_are_clean_c(installed: Installed, standard: str) -> None:
    run("cc", f"-std={standard}", *STRICT, f"-I{installed.include}", "-c", "monitor.c", "-o", "/dev/null", cwd=installed.work)


@pytest.mark.parametrize("standard", ["c++11", "c++20"])
def test_the_header_is_clean_cpp_and_links(installed: Installed, standard: str) -> None:
    source = installed.work / "embed.cpp"
    # Every function's address, so that one which C++ takes for its own kind does not link.
    names = "\n".join(f"    reinterpret_cast<void *>({name})," for name in sorted(header_functions()))
    source.write_text(
        f"#include <psc.h>\nvoid *volatile functions[] = {{\n{names}\n}};\n"
        'int main() { return !functions[0] || psc_arch_native() < 0 || psc_syscall_id("openat") < 0; }\n'
    )
    out = installed.work / "embed"
    warn = [w for w in STRICT if w != "-Wstrict-prototypes"]
    run("c++", f"-std={standard}", *warn, f"-I{installed.include}", source, installed.library, "-o", out, "-pthread", cwd=installed.work)
    run(out, cwd=installed.work)


def header_functions() -> set[str]:
    """The functions that psc.h declares."""
    header = re.sub(r"/\*.*?\*/", "", (ROOT / "csrc/psc.h").read_text(), flags=re.S)
    return set(re.findall(r"\b(psc_\w+)\(", header))


def test_every_function_of_the_header_can_be_cimported() -> None:
    functions = header_functions()
    declared = set(re.findall(r"\b(psc_\w+)\(", (ROOT / "pyseccomp/cpsc.pxd").read_text()))
    assert len(functions) > 80 and functions - declared == set()


def test_the_library_needs_no_python_and_holds_no_main(installed: Installed) -> None:
    symbols = [line.split() for line in run("nm", "-P", installed.library, cwd=installed.work).stdout.splitlines()]
    names = {words[0] for words in symbols if len(words) > 1}
    assert "psc_serve" in names and "psc_guardian_run" in names
    assert not {name for name in names if name == "main" or name.startswith(("Py", "_Py"))}
