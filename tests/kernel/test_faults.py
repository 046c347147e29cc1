"""A sample of the fault injection in every run: one system call of ours fails, and the target does not notice. .ci/faults runs all."""

from __future__ import annotations

import os
import shutil

import pytest
from matrix.faults import Fault, bad, run_fault, run_scenarios
from matrix.run import run_processes, victims

SCENARIOS = ("attach", "tree")
PENDING = ("seccomp", "wait4")
"""Calls whose failure is not yet handled as it must be."""
FOUND = ("exec clone3 EAGAIN 2", "gate kill EPERM 1", "gate eventfd2 EMFILE 2", "gate epoll_ctl ENOMEM 3",
         "listen dup3 EMFILE 1", "trace dup3 EBUSY 1", "serve ioctl EINTR 3")  # fmt: skip
"""Faults that left a target armed, a close() waiting for ever, or a filter in force without its server or listener."""


strace = pytest.mark.skipif(shutil.which("strace") is None, reason="material lacks strace")
root = pytest.mark.skipif(os.geteuid() != 0, reason="privilege: root, as which the manager is traced by strace")


@root
@strace
def test_a_process_whose_status_cannot_be_read_is_not_taken_for_one_that_has_ended() -> None:
    victim = victims()[""]
    assert victim is not None
    faults = [Fault("cgroup", "read", "EIO", when) for when in range(14, 26)]
    found = run_processes(faults, lambda fault: run_fault(fault, victim)[0], 2 * (os.cpu_count() or 1))
    assert [one for one in found if isinstance(one, str) or bad(one)] == []
    assert any(not isinstance(one, str) and one.kind == "refused" for one in found)


@root
@strace
def test_a_failing_system_call_harms_no_target_and_leaves_nothing() -> None:
    limit = int(os.environ.get("PYSECCOMP_ROUNDS", 60))
    outcomes = run_scenarios(SCENARIOS, jobs=2 * (os.cpu_count() or 1), every=1, sampled=1, limit=limit)
    assert [outcome.line for outcome in outcomes if bad(outcome) and outcome.cell.split()[1:2] not in [[call] for call in PENDING]] == []
    assert len(outcomes) > limit // 2


@pytest.mark.skipif(os.geteuid() != 0, reason="privilege: root, as which the manager is traced by strace")
@pytest.mark.skipif(shutil.which("strace") is None, reason="material lacks strace")
def test_what_can_fail_does_so_before_the_target_is_touched_and_no_close_waits_for_ever() -> None:
    program = victims()[""]
    assert program is not None
    faults = [Fault(scenario, call, error, int(when)) for scenario, call, error, when in map(str.split, FOUND)]
    for fault, result in zip(faults, run_processes(faults, lambda fault: run_fault(fault, program), len(faults)), strict=True):
        assert not isinstance(result, str), result
        outcome = result[0]
        assert not bad(outcome) and outcome.kind in ("works", "refused"), outcome.line
        assert outcome.text != "not reached" and "it is in" not in outcome.text, outcome.line
        assert outcome.kind == "works" or "ShortageError" in outcome.text, f"{fault}: {outcome.line}"
