"""A part of the matrix in every run: each operation, where targets commonly live and where they are easily harmed. .ci/matrix runs all."""

from __future__ import annotations

import fnmatch
import os

import pytest
from matrix import report
from matrix.operations import OPERATIONS
from matrix.run import cells, run_all

PLACES = ("host", "pidns", "rootless", "runc", "filters-1", "diverged", "kills-restart", "traced", "i386")
PENDING: tuple[str, ...] = ()
"""Cells that are not yet as they must be."""
CALLERS = ("root", "user")
SHORT = ("fds-1", "fds-5", "fds-8", "pids-max", "no-sys-ptrace", "container")
"""Callers that ask on the host alone."""


def chosen(operation: str) -> list[tuple[str, str, str]]:
    """The cells of an operation that are run here."""
    return [
        cell
        for cell in cells()
        if cell[0] == operation
        and ((cell[1] in PLACES and cell[2] in CALLERS) or (cell[1] == "host" and cell[2] in SHORT))
        and not any(fnmatch.fnmatchcase(" ".join(cell), pattern) for pattern in PENDING)
    ]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_works_or_is_refused_for_its_true_reason_and_the_target_is_sound(operation: str) -> None:
    outcomes = run_all(chosen(operation), jobs=2 * (os.cpu_count() or 1))
    assert [text for text in map(report.deviation, outcomes) if text is not None] == []
    if outcomes and all(outcome.kind == "skipped" for outcome in outcomes):
        pytest.skip(outcomes[0].text)


def test_every_expectation_is_of_a_cell() -> None:
    used = {report.rule_of(cell) for cell in cells()}
    assert [rule for at, rule in enumerate(report.rules()) if at not in used] == []
