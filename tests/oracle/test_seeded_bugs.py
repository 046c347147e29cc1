"""The tests of the compiler notice a bug in each of its stages: one is put into a copy of each, and they must fail."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITES = ("test_compiler", "test_policy", "test_program")

BUGS = {
    "rules: the weaker action wins": ("policy.c", "return x != y ? x > y : a->rule < b->rule;", "return x != y ? x < y : a->rule < b->rule;"),
    "rules: any rule makes a call plain": ("policy.c", "\t\tif (rule->action != action)\n\t\t\treturn false;\n", ""),
    "rules: numbers sorted by their low byte only": ("policy.c", "shift < 32; shift += 8", "shift < 8; shift += 8"),
    "diagram: remembered for another else": ("diagram.c", " && memo[at].t == t && memo[at].e == e", " && memo[at].t == t"),
    "diagram: leaves are one": ("diagram.c", "return a->first == b->first;", "return true;"),
    "search: a hole of many numbers tested as one": ("optimize.c", "\t\t\tif (!is_single(s, j))\n\t\t\t\treturn;\n", ""),
    "emission: a jump too far": ("emit.c", "e->len - e->nearest[t] > 256 || e->len - e->nearest[f] > 256", "e->len - e->nearest[t] > 300 || e->len - e->nearest[f] > 300"),
    "emission: the mask forgotten": ("emit.c", "test->mask != RAW && e->uses[node]", "0 && e->uses[node]"),
    "equivalence: all are equal": ("equiv.c", "if (r >= 0 && first != second) {", "if (0) {"),
    "equivalence: >= taken for >": ("equiv.c", "case BPF_JGE: return above(m, a, b, true);", "case BPF_JGE: return above(m, a, b, false);"),
    "checker: one past the end": ("validate.c", 'return insn->k >= left ? "jump past the end" : NULL;', 'return insn->k > left ? "jump past the end" : NULL;'),
    "interpreter: >= taken for >": ("interpret.c", "case BPF_JGE: return acc >= operand;", "case BPF_JGE: return acc > operand;"),
}  # fmt: skip


def suites_pass(csrc: Path) -> bool:
    """Build and run the compiler's C tests."""
    make = ["make", "-s", "-C", str(csrc), "CFLAGS=-O1", *(f"build/{suite}" for suite in SUITES)]
    subprocess.run(make, check=True, capture_output=True, timeout=120)
    for suite in SUITES:
        if subprocess.run([csrc / "build" / suite], capture_output=True, timeout=60, check=False).returncode:
            return False
    return True


@pytest.fixture(scope="module")
def csrc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the core and its tests, built, whose tests pass."""
    root = tmp_path_factory.mktemp("seeded")
    shutil.copytree(ROOT / "csrc", root / "csrc", ignore=shutil.ignore_patterns("build"))
    shutil.copytree(ROOT / "tests" / "c", root / "tests" / "c")
    assert suites_pass(root / "csrc")
    return root / "csrc"


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_does_not_pass(csrc: Path, bug: str) -> None:
    name, right, wrong = BUGS[bug]
    source = csrc / name
    text = source.read_text()
    assert text.count(right) == 1
    try:
        source.write_text(text.replace(right, wrong))
        assert not suites_pass(csrc)
    finally:
        source.write_text(text)
