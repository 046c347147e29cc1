"""SIGKILL of the manager at random instants of attach, activate, harden and of a deadline, in every mode.

Each round kills the manager of a fresh target inside one of these: afterwards the target lives, its threads all alike, untouched
or wholly filtered, or it was killed where on_deadline says so. PYSECCOMP_ROUNDS is the number of kills of each operation: 500 is
the promise. Other tests kill managers of busy targets (test_attach_manager_killed.py) and over whole lives (test_guardian.py,
test_gate.py, test_gate_guarded.py).
"""

from __future__ import annotations

import errno
import os
import random
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

import pyseccomp as ps
from attaching import DENIED, ask, deny_getppid, filter_counts, listeners_in, may_suspend, notify_getppid, rounds, state, wait_until
from harness import SLOW, Victim, build_victim, status_field, victim
from test_guardian import dies, managing
from test_park import Target, answer, denying

ROUNDS = rounds(20)
LONG = 1e6
"""Seconds: a deadline that is in force, and does not come."""

Setup = Callable[[int], Callable[[], object]]
"""In the manager, by the target's pid: make ready, and return the operation itself."""


@dataclass(frozen=True)
class Play:
    """One operation in one mode. shown: what the probe of a target that carries so many filters more may give."""

    setup: Setup
    shown: dict[int, tuple[int, ...]]
    longest: float
    """Seconds that the manager may live from the beginning of the operation: somewhat longer than it takes."""
    kills: bool = False
    certain: bool = False
    """It had been bound before: what its deadline says must come."""


def filtered(program: Callable[[], ps.Program] = deny_getppid) -> ps.Filter:
    f = ps.Filter(program())
    keep.append(f)
    return f


keep: list[object] = []


def attach(program: Callable[[], ps.Program] = deny_getppid, **options: Any) -> Setup:
    def setup(pid: int) -> Callable[[], object]:
        f = filtered(program)
        return lambda: f.attach(pid, **options)

    return setup


def activate(**options: Any) -> Setup:
    def setup(pid: int) -> Callable[[], object]:
        return filtered().attach(pid, active=False, **options).activate

    return setup


def harden(**options: Any) -> Setup:
    def setup(pid: int) -> Callable[[], object]:
        return filtered().attach(pid, mode="gate", active=False, **options).harden

    return setup


def wait_for_deadline(**options: Any) -> Setup:
    def setup(pid: int) -> Callable[[], object]:
        filtered().attach(pid, active=False, deadline=0.006, **options)
        return signal.pause

    return setup


OPEN = (0,)
CLOSED = (errno.ENOSYS,)
TOLD = (DENIED,)
EITHER = (errno.ENOSYS, DENIED)
"""Of a guarded gate: in the kernel, and not served yet when its manager died; or served on."""

PLAYS: dict[str, dict[str, Play]] = {
    "attach": {
        "inject": Play(attach(), {0: OPEN, 1: TOLD}, 0.003),
        "inject, a listener": Play(attach(notify_getppid), {0: OPEN, 1: CLOSED}, 0.003),
        "inject, guarded": Play(attach(notify_getppid, on_supervisor_death=ps.deny(DENIED)), {0: OPEN, 1: EITHER}, 0.02),
        "gate": Play(attach(mode="gate"), {0: OPEN, 1: CLOSED}, 0.004),
        "gate, guarded": Play(attach(mode="gate", on_supervisor_death="allow"), {0: OPEN, 1: EITHER}, 0.005),
    },
    "activate": {
        "inject": Play(activate(), {0: OPEN, 1: TOLD}, 0.003),
        "inject, guarded": Play(activate(deadline=LONG), {0: OPEN, 1: TOLD}, 0.004, certain=True),
        "gate": Play(activate(mode="gate"), {1: CLOSED}, 0.0005),
        "gate, guarded": Play(activate(mode="gate", deadline=LONG), {1: TOLD}, 0.0005, certain=True),
    },
    "harden": {
        "gate": Play(harden(), {1: CLOSED, 2: TOLD}, 0.003),
        "gate, guarded": Play(harden(deadline=LONG), {1: TOLD, 2: TOLD}, 0.003, certain=True),
    },
    "deadline": {
        "inject": Play(wait_for_deadline(), {0: OPEN, 1: TOLD}, 0.012, certain=True),
        "inject, kill": Play(wait_for_deadline(on_deadline="kill"), {}, 0.012, kills=True, certain=True),
        "gate": Play(wait_for_deadline(mode="gate"), {1: TOLD}, 0.012, certain=True),
        "gate, kill": Play(wait_for_deadline(mode="gate", on_deadline="kill"), {}, 0.012, kills=True, certain=True),
    },
}
VICTIMS = [("idle", "3"), ("busy", "2"), ("idle",)]


def lives_for(play: Play, target: Victim, life: float) -> None:
    """A manager that is killed so many seconds after the operation has begun."""

    def manage(pipe: int) -> None:
        operation = play.setup(target.pid)
        os.write(pipe, b"x")
        operation()
        signal.pause()

    kill_after(manage, life)


def kill_after(manage: Callable[[int], None], life: float) -> None:
    """Kill a manager so long after its byte, and wait for the end of all that share its descriptors: who injects for it."""
    reader, writer = os.pipe()

    def held(pipe: int) -> None:
        os.close(reader)
        manage(pipe)

    with managing(held) as manager:
        os.close(writer)
        end = time.perf_counter() + life
        while time.perf_counter() < end:
            pass
        dies(manager)
        assert select.select([reader], [], [], 20)[0], "something that the manager started has its descriptors and does not end"
    os.close(reader)


def ended(target: Victim, within: float) -> bool:
    pidfd = os.pidfd_open(target.pid)
    try:
        return bool(select.select([pidfd], [], [], within)[0])
    finally:
        os.close(pidfd)


def alike(pid: int) -> bool:
    """No thread is traced, and all carry the same filters."""
    try:
        return status_field(pid, "TracerPid") == "0" and len(set(filter_counts(pid).values())) == 1
    except (FileNotFoundError, ProcessLookupError, KeyError):
        return False


def judge(target: Victim, play: Play, none: int) -> int:
    """What became of the target: 1 if something was done to it."""
    if play.kills:
        assert ended(target, 20) and target.wait(5) == -signal.SIGKILL
        return 1
    most = max(play.shown)

    def settled() -> bool:
        if not alike(target.pid) or state(target.pid) not in "SR":
            return False
        more = filter_counts(target.pid)[target.pid] - none
        assert more in play.shown, f"{more} filters more than before"
        if play.certain and more < min(1, most):
            return False
        return ask(target)["probe"] in play.shown[more]

    wait_until(settled, f"untouched or wholly filtered: {play.shown}")
    assert listeners_in(target.pid) == []
    assert ask(target).get("bad", 0) == 0
    return filter_counts(target.pid)[target.pid] - none


@pytest.mark.parametrize("operation", PLAYS)
def test_a_target_lives_untouched_or_wholly_filtered_when_its_manager_is_killed_in(operation: str) -> None:
    if operation == "harden" and not may_suspend():
        pytest.skip("privilege: harden() injects under the gate, which takes CAP_SYS_ADMIN")
    chance = random.Random(operation)
    plays = list(PLAYS[operation].values())
    outcomes: set[int] = set()
    for i in range(ROUNDS * 4):
        if i >= ROUNDS and outcomes - {0}:
            break
        patience = SLOW if i < ROUNDS else 20 * SLOW  # on a machine that others keep busy
        play = plays[i % len(plays)]
        name, *arguments = VICTIMS[i // len(plays) % len(VICTIMS)]
        with victim(build_victim(name), *arguments) as target:
            none = filter_counts(target.pid)[target.pid]
            lives_for(play, target, chance.uniform(0, play.longest * patience))
            outcomes.add(judge(target, play, none))
    assert outcomes - {0}, "every manager was killed before it had done anything"


def test_a_parked_target_lives_parked_or_wholly_filtered_when_its_creator_is_killed_in_activate() -> None:
    chance = random.Random("park")
    seen = set()
    for _ in range(ROUNDS // 4 or 1):
        target = Target(answer)
        try:

            def manage(pipe: int, sock: Any = target.sock) -> None:
                f = ps.Filter(denying())
                f.send(sock)
                assert sock.recv(200) == b"parked"
                (attachment,) = f.wait_parked(1, 20)
                os.write(pipe, b"x")
                attachment.activate()
                signal.pause()

            kill_after(manage, chance.uniform(0, 0.0005))
            wait_until(lambda: alike(target.pid), "all threads are alike")  # noqa: B023
            expected = {False: "0", True: str(errno.EXDEV)}
            wait_until(lambda: target.ask() == expected[status_field(target.pid, "Seccomp") == "2"], "as filtered as it shows")  # noqa: B023
            seen.add(target.ask())
        finally:
            target.close()
    assert seen <= {"0", str(errno.EXDEV)}
