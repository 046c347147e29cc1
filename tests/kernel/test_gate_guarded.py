"""What outlives the manager of a gate: the gate goes on, active, and deadlines hold."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

import pyseccomp as ps
from attaching import DENIED, ask, deny_getppid, filter_counts, may_suspend, notify_getppid, rounds, wait_until
from harness import DEADLINE, SLOW, ChildFailed, Victim, build_victim, in_child, victim
from test_guardian import dies, managing


def gating(pid: int, started: int, policy: ps.Program, active: bool = False, then: Any = None, **options: Any) -> None:
    f = ps.Filter(policy)
    a = f.attach(pid, mode="gate", active=active, **options)
    if then is not None:
        then(f, a)
    os.write(started, b"x")
    signal.pause()


def pause(f: ps.Filter, a: ps.Attachment) -> None:
    a.pause()


@pytest.mark.parametrize(
    ("options", "then"),
    [
        ({"deadline": 1e6}, None),
        ({"on_supervisor_death": "allow"}, None),
        ({"on_supervisor_death": "allow", "active": True}, None),
        ({"on_supervisor_death": "allow", "active": True}, pause),
    ],
    ids=["deadline", "inactive", "active", "paused"],
)
def test_a_guarded_gate_is_active_after_its_managers_death_for_all_that_look(options: dict[str, Any], then: Any) -> None:
    with victim(build_victim("idle"), "3") as target:
        with managing(lambda pipe: gating(target.pid, pipe, deny_getppid(), then=then, **options)) as manager:
            assert ask(target)["probe"] == (DENIED if options.get("active") and then is None else 0)
            dies(manager)
            wait_until(lambda: ask(target)["probe"] == DENIED, "it is in force")
            assert [ask(target)["probe"] for _ in range(3)] == [DENIED] * 3


def test_without_care_the_gate_ends_with_its_manager() -> None:
    with victim(build_victim("idle")) as target:
        with managing(lambda pipe: gating(target.pid, pipe, deny_getppid())) as manager:
            dies(manager)
            wait_until(lambda: ask(target)["probe"] == 38, "ENOSYS")


@pytest.mark.parametrize(("answer", "probe"), [(ps.deny(DENIED), DENIED), ("allow", 0)])
def test_what_a_guarded_gate_notifies_gets_the_answer(answer: Any, probe: int) -> None:
    with victim(build_victim("idle")) as target:
        with managing(lambda pipe: gating(target.pid, pipe, notify_getppid(), active=True, on_supervisor_death=answer)) as manager:
            target.tell("report")
            assert not select.select([target.stdout], [], [], 0.1)[0]
            dies(manager)
            assert f"probe={probe}" in target.line()
            assert [ask(target)["probe"] for _ in range(3)] == [probe] * 3


def test_what_the_manager_had_received_from_a_guarded_gate_gets_the_answer_too() -> None:
    def receive_one(f: ps.Filter, a: ps.Attachment) -> None:
        held.append(f.receive(20))

    held: list[ps.Notification] = []
    with victim(build_victim("idle")) as target:
        target.tell("report")
        assert "probe=0" in target.line()

        def work(pipe: int) -> None:
            gating(target.pid, pipe, notify_getppid(), True, receive_one, on_supervisor_death=ps.deny(DENIED))

        with managing_late(work, target) as manager:
            dies(manager)
            assert f"probe={DENIED}" in target.line()


def managing_late(work: Any, target: Victim) -> Any:
    """As managing(), but the target calls once it is gated."""
    none = filter_counts(target.pid)[target.pid]

    def both(pipe: int) -> None:
        if os.fork() == 0:
            wait_until(lambda: filter_counts(target.pid)[target.pid] > none, "gated")
            target.tell("report")
            os._exit(0)
        work(pipe)

    return managing(both)


def test_kill_kills_the_target_of_a_guarded_gate() -> None:
    with victim(build_victim("idle")) as target:
        with managing(lambda pipe: gating(target.pid, pipe, notify_getppid(), on_supervisor_death="kill")) as manager:
            dies(manager)
            assert target.wait(20) == -signal.SIGKILL


def test_the_managers_death_kills_where_the_gates_deadline_would() -> None:
    with victim(build_victim("idle")) as target:
        with managing(lambda pipe: gating(target.pid, pipe, deny_getppid(), deadline=1e6, on_deadline="kill")) as manager:
            assert ask(target)["probe"] == 0
            dies(manager)
            assert target.wait(20) == -signal.SIGKILL


def test_a_gates_deadline_activates_it_and_tells() -> None:
    with victim(build_victim("idle"), "3") as target, ps.Filter(deny_getppid()) as f:
        reader, writer = os.pipe()
        seen: list[tuple[str, str]] = []
        f.on_state_change = lambda a, state, why: (seen.append((state, why)), os.write(writer, b"x"))
        a = f.attach(target.pid, mode="gate", active=False, deadline=0.3)
        assert (a.query().state, ask(target)["probe"]) == ("inactive", 0)
        for _ in range(2):
            assert select.select([reader], [], [], 30)[0] and os.read(reader, 1)
        assert (a.query().state, ask(target)["probe"]) == ("active", DENIED)
        assert seen[1][0] == "active" and "deadline" in seen[1][1]
        os.close(reader)
        os.close(writer)


def test_a_gates_deadline_kills_where_that_was_said_but_not_what_is_active() -> None:
    with victim(build_victim("idle")) as one, victim(build_victim("idle")) as two, ps.Filter(deny_getppid()) as f:
        f.attach(one.pid, mode="gate", active=False, deadline=0.2, on_deadline="kill")
        b = f.attach(two.pid, mode="gate", active=False, deadline=0.2, on_deadline="kill")
        b.activate()
        assert one.wait(20) == -signal.SIGKILL
        assert not select.select([b.pidfd], [], [], 0.3)[0] and ask(two)["probe"] == DENIED


def test_a_deadline_that_has_passed_when_the_gate_is_in_kills_and_the_attach_succeeds() -> None:
    """The server killed before attach() had looked, which then raised ENOTTY."""
    for _ in range(rounds(10)):
        with victim(build_victim("idle")) as target, ps.Filter(deny_getppid()) as f:
            a = f.attach(target.pid, mode="gate", active=False, deadline=0, on_deadline="kill")
            assert target.wait(20) == -signal.SIGKILL
            assert a.query().state == "dead"


def test_a_gates_deadline_holds_while_the_manager_is_stopped() -> None:
    with victim(build_victim("idle")) as target:
        with managing(lambda pipe: gating(target.pid, pipe, deny_getppid(), deadline=0.3)) as manager:
            os.kill(manager, signal.SIGSTOP)
            wait_until(lambda: ask(target)["probe"] == DENIED, "it is in force")


def calls() -> int:
    """0, or the errno of a call that these gates decide."""
    try:
        os.getpgid(0)
    except OSError as error:
        return error.errno or -1
    return 0


def no_getpgid() -> ps.Filter:
    policy = ps.Policy(ps.ALLOW)
    policy.add(ps.ERRNO(DENIED), "getpgid")
    return ps.Filter(policy)


def until_denied() -> int:
    wait_until(lambda: calls() != 0, "the deadline has come", 20)
    return calls()


def test_a_gate_on_oneself_keeps_its_deadline() -> None:
    def child() -> tuple[int, int, str]:
        f = no_getpgid()
        a = f.attach(mode="gate", active=False, deadline=0.2)
        return calls(), until_denied(), a.query().state

    assert in_child(child) == (0, DENIED, "active")


def test_a_deadline_of_a_gate_on_oneself_can_kill() -> None:
    def child() -> None:
        f = no_getpgid()
        f.attach(mode="gate", active=False, deadline=0.1, on_deadline="kill")
        signal.pause()

    in_child(child, dies_of=signal.SIGKILL)


@pytest.mark.parametrize("ends", ["kill", "exit"])
def test_who_gated_itself_leaves_its_children_filtered_when_it_ends(ends: str) -> None:
    reader, writer = os.pipe()

    def child() -> None:
        keep.append(f := no_getpgid())
        f.attach(mode="gate", active=False, on_supervisor_death="allow")
        parent = os.getpid()
        asked, ask_ = os.pipe()
        if os.fork() == 0:
            before = calls()
            os.write(ask_, b"x")
            wait_until(lambda: os.getppid() != parent, "the parent has ended")
            os.write(writer, f"{before} {until_denied()} {until_denied()}".encode())
            os._exit(0)
        os.read(asked, 1)
        if ends == "kill":
            os.kill(parent, signal.SIGKILL)

    keep: list[ps.Filter] = []
    with contextlib.suppress(ChildFailed):
        in_child(child)
    assert select.select([reader], [], [], 20)[0] and os.read(reader, 100) == f"0 {DENIED} {DENIED}".encode()
    os.close(reader)
    os.close(writer)


def test_who_gated_itself_and_executes_a_program_is_filtered_in_it() -> None:
    code = (
        "import errno, os, sys\nimport pyseccomp as ps\np = ps.Policy(ps.ALLOW)\np.add(ps.ERRNO(int(sys.argv[1])), 'getppid')\n"
        "f = ps.Filter(p)\nf.attach(mode='gate', active=False, on_supervisor_death='allow')\nos.execv(sys.argv[2], sys.argv[2:])"
    )
    with victim(sys.executable, "-c", code, str(DENIED), build_victim("idle")) as target:
        wait_until(lambda: ask(target)["probe"] == DENIED, "it is in force")
        assert [ask(target)["probe"] for _ in range(3)] == [DENIED] * 3


def test_who_gated_itself_and_executes_a_program_passes_on_its_descriptors() -> None:
    """Whoever keeps the gate once closed them, on a busy machine, before the exec had made a table of its own."""
    code = (
        "import errno, os\nimport pyseccomp as ps\np = ps.Policy(ps.ALLOW)\np.add(ps.ERRNO(errno.EPERM), 'getppid')\n"
        "f = ps.Filter(p)\nf.attach(mode='gate', active=False, on_supervisor_death='allow')\nos.execv('/bin/echo', ['echo', 'here'])"
    )
    with victim(build_victim("busy"), "6"):
        for _ in range(rounds(8)):
            found = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=DEADLINE)
            assert (found.returncode, found.stdout) == (0, b"here\n")


def test_a_gate_that_waits_for_a_call_can_have_a_deadline() -> None:
    with victim(build_victim("idle")) as target, ps.Filter(deny_getppid()) as f:
        a = f.attach(target.pid, activate_on="listen", deadline=0.2)
        assert (ask(target)["probe"], a.query().state) == (0, "inactive")
        wait_until(lambda: a.query().state == "active", "its deadline has come")
        assert ask(target)["probe"] == DENIED


def test_a_gate_that_waits_for_a_call_is_active_when_its_manager_is_dead() -> None:
    def work(pipe: int) -> None:
        f = ps.Filter(deny_getppid())
        keep = f.attach(target.pid, activate_on="listen", on_supervisor_death="allow")
        os.write(pipe, b"x")
        signal.pause()
        keep.close()

    with victim(build_victim("idle")) as target, managing(work) as manager:
        assert ask(target)["probe"] == 0
        dies(manager)
        wait_until(lambda: ask(target)["probe"] == DENIED, "it is in force")


@pytest.mark.parametrize("event", ["exec", "fork", "fork-all"])
@pytest.mark.parametrize("care", [{"deadline": 1}, {"on_supervisor_death": "allow"}], ids=["deadline", "death"])
def test_what_waits_for_an_exec_or_fork_takes_no_care_and_says_what_does(event: str, care: dict[str, Any]) -> None:
    with victim(build_victim("idle")) as target, ps.Filter(deny_getppid()) as f:
        with pytest.raises(ps.UnsupportedError, match="gate"):
            f.attach(target.pid, activate_on=event, **care)


@pytest.mark.parametrize(
    ("options", "kind"),
    [({"on_supervisor_death": ps.hold()}, (ps.UnsupportedError, ValueError)), ({"deadline": 1, "active": True}, ValueError)],
)
def test_care_that_makes_no_sense_for_a_gate_is_refused(options: dict[str, Any], kind: Any) -> None:
    with victim(build_victim("idle")) as target, ps.Filter(deny_getppid(), name=f"gate-{os.getpid()}") as f:
        before = filter_counts(target.pid)
        with pytest.raises(kind):
            f.attach(target.pid, mode="gate", **{"active": False, **options})
        assert filter_counts(target.pid) == before


@pytest.mark.parametrize("on_deadline", ["activate", "kill"])
def test_the_manager_of_a_guarded_gate_killed_at_any_instant_leaves_no_target_between(on_deadline: str) -> None:
    """Across attach, activate, harden and the deadline: untouched, or closed (gated, not served yet), or wholly filtered."""
    chance = random.Random(on_deadline)
    acted = 0
    for _ in range(rounds(30)):
        with victim(build_victim("idle"), "3") as target:
            none = filter_counts(target.pid)[target.pid]

            def work(pipe: int, pid: int = target.pid) -> None:
                f = ps.Filter(deny_getppid())
                os.write(pipe, b"x")
                a = f.attach(pid, mode="gate", active=False, deadline=0.004, on_deadline=on_deadline)  # type: ignore[arg-type]
                if on_deadline == "activate":
                    a.activate()
                    if may_suspend():
                        a.harden()
                signal.pause()

            with managing(work) as manager:
                end = time.perf_counter() + chance.uniform(0, 0.03 * SLOW)
                while time.perf_counter() < end:
                    pass
                dies(manager)
                if killed(target):
                    assert on_deadline == "kill"
                    acted += 1
                    continue
                wait_until(lambda: len(set(filter_counts(target.pid).values())) == 1, "no thread is in between")  # noqa: B023
                wait_until(lambda: settled(target, none), "in force, or nothing is")  # noqa: B023
                acted += filter_counts(target.pid)[target.pid] > none
    assert acted


def killed(target: Victim) -> bool:
    pidfd = os.pidfd_open(target.pid)
    ended = bool(select.select([pidfd], [], [], 0.1)[0])
    os.close(pidfd)
    if ended:
        assert target.wait(5) == -signal.SIGKILL
    return ended


def settled(target: Victim, none: int) -> bool:
    probe = ask(target)["probe"]
    return probe in ((0,) if filter_counts(target.pid)[target.pid] == none else (38, DENIED))
