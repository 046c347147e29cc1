"""What is expected of each cell, and the table of what was found."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from matrix.cell import Outcome

Rule = tuple[str, str, str, str]


@functools.lru_cache(1)
def rules() -> tuple[Rule, ...]:
    """The lines of expected.txt: three patterns, and "works" or the expression of a refusal."""
    found: list[Rule] = []
    lists: dict[str, str] = {}
    for line in (Path(__file__).parent / "expected.txt").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("@") and " = " in line:
            name, _, meaning = line.partition(" = ")
            lists[name] = meaning.strip()
            continue
        patterns, _, wanted = line.partition(" : ")
        operation, place, asker = (",".join(lists.get(p, p) for p in one.split(",")) for one in patterns.split())
        found.append((operation, place, asker, wanted.strip()))
    return tuple(found)


def rule_of(cell: Sequence[str]) -> int | None:
    """The first rule that the cell falls under."""
    for at, rule in enumerate(rules()):
        if all(any(fnmatch.fnmatchcase(name, one) for one in pattern.split(",")) for name, pattern in zip(cell, rule, strict=False)):
            return at
    return None


def expected(cell: Sequence[str]) -> str:
    """"works", or the expression that its refusal matches."""
    at = rule_of(cell)
    return "works" if at is None else rules()[at][3]


def deviation(outcome: Outcome) -> str | None:
    """How a cell is not as it must be; None: it is."""
    if outcome.kind == "skipped":
        return None
    wanted = expected(outcome.cell.split())
    if outcome.harm or re.search(r"\b(pid|process|thread|task) 0\b", outcome.text):  # there is no such number to name
        return outcome.line
    expression = wanted.removeprefix("works or ")
    if outcome.kind == "works" and (wanted == "works" or wanted.startswith("works or ")):
        return None
    if wanted == "works":
        return outcome.line
    wanted = expression
    if outcome.kind != "refused" or not re.search(wanted, outcome.text):
        return f"{outcome.line} | expected /{wanted}/"
    return None


def reason(outcome: Outcome) -> str:
    """The refusal without its numbers and names, to be counted."""
    text = re.sub(r"(pid|process|thread|fd) \d+", r"\1 N", outcome.text.split(" | ")[0])
    return re.sub(r"/tmp/\S+", "PATH", text)[:150]


def table(outcomes: Sequence[Outcome]) -> tuple[str, list[str]]:
    """The figures in words, and the deviations."""
    bad = [text for text in map(deviation, outcomes) if text is not None]
    kinds = Counter(o.kind for o in outcomes)
    lines = [f"cells {len(outcomes)}: " + ", ".join(f"{kind} {n}" for kind, n in kinds.most_common()) + f"; harm in {sum(bool(o.harm) for o in outcomes)}"]
    for title, kind in (("refused", "refused"), ("skipped", "skipped")):
        for text, n in Counter(reason(o) for o in outcomes if o.kind == kind).most_common():
            lines.append(f"  {title} {n:5d}  {text}")
    lines.append(f"not as expected: {len(bad)}")
    lines += [f"  {text}" for text in bad]
    return "\n".join(lines), bad
