"""One call of a guardian fails at a deadline; and what is known to fail there is refused when the deadline is given."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

import pyseccomp as ps
from attaching import DENIED, NOTIFY, ask, deny_getppid, errno_action, filter_counts, may_suspend, notify_getppid, program_bytes, wait_until
from harness import build_victim, in_child, victim
from matrix.faults import Fault, bad, run_fault
from matrix.run import run_processes, victims
from pyseccomp import guardian
from test_attach_filtered import become_nobody
from test_attach_uring import ended, with_worker
from test_guardian_hostile import as_root, guardian_of, refused

PTRACE, PRCTL, PIDFD_GETFD = 101, 157, 438


@as_root
@pytest.mark.parametrize("rule", ["wait4:error=ECHILD:when=1", "clone:error=EAGAIN:when=1"])
def test_one_failed_call_at_a_deadline_kills_no_target(rule: str) -> None:
    with victim(build_victim("idle"), "3") as target, ps.Filter(deny_getppid()) as f:
        a = f.attach(target.pid, active=False, deadline=0.5)
        with refused(guardian_of(f), rule):
            wait_until(lambda: a.activated or a.query().state == "dead", "the deadline is kept")
        assert a.query().state == "active"
        assert ask(target)["probe"] == DENIED


def filter_under_a_policy(error: int, number: int) -> tuple[str, int, bool, bool]:
    """In a child: its own filter, which the guardian inherits, refuses one ptrace request. The state of the target after its deadline, its probe."""
    policy = ps.Filter(ps.Program.from_bytes(program_bytes(NOTIFY, PTRACE)))
    times = [0]

    def serve() -> None:
        for n in policy:
            times[0] += 1
            n.deny(error) if times[0] == number else n.allow()

    with victim(build_victim("idle"), "3") as target, ps.Filter(deny_getppid()) as f:
        policy.attach(os.getpid())
        threading.Thread(target=serve, daemon=True).start()
        most = max(filter_counts(target.pid).values())
        a = f.attach(target.pid, active=False, deadline=0.1, timeout=1.0)
        wait_until(lambda: a.activated or a.query().state == "dead", "the deadline is kept")
        return a.query().state, ask(target)["probe"], times[0] > number, set(filter_counts(target.pid).values()) == {most + 1}


WAYS: list[tuple[str, dict[str, Any]]] = [
    ("deny", {"deadline": 0.2}),
    ("notify", {"deadline": 0.2}),
    ("notify", {"on_supervisor_death": "allow"}),
]


def refuse(filter_bytes: bytes | None, own_filter: bytes | None = None) -> list[str]:
    """In a child, as an ordinary user: the errors of each way to bind a target for later, which must not notice."""
    become_nobody()
    said = []
    program = ["filtered", "nnp", "/proc/self/fd/{}"] if filter_bytes else ["idle"]
    fd = os.memfd_create("program", 0)
    os.write(fd, filter_bytes or b"")
    with victim(build_victim(program[0]), *(word.format(fd) for word in program[1:]), pass_fds=(fd,)) as target:
        if own_filter is not None:
            own = ps.Filter(ps.Program.from_bytes(own_filter))
            own.attach(os.getpid())
        for kind, options in WAYS if own_filter is None else WAYS[:2]:
            before = filter_counts(target.pid)
            with ps.Filter(deny_getppid() if kind == "deny" else notify_getppid()) as f:
                try:
                    f.attach(target.pid, active=False, **options)
                    said.append("accepted")
                except ps.SeccompError as error:
                    said.append(f"{type(error).__name__}: {error}")
                assert f.attachments == ()
            assert filter_counts(target.pid) == before
        assert ask(target)["probe"] == 0
        return said


def test_a_target_whose_filters_the_guardian_may_not_suspend_is_refused_when_it_is_bound() -> None:
    build_victim("filtered")
    said = in_child(refuse, program_bytes(errno_action(1), PRCTL))
    assert len(said) == 3
    assert all(one.startswith("TargetFilteredError") and "carries filters already" in one for one in said), said


def test_a_guardian_that_the_callers_own_filter_holds_up_is_not_blamed_on_users_and_yama() -> None:
    build_victim("idle")
    said = in_child(refuse, None, program_bytes(errno_action(errno.EPERM), PIDFD_GETFD))
    for one in said:
        assert one.startswith("NotPermittedError") and "a filter that this process itself carries" in one and "pidfd_getfd(2)" in one, said


@pytest.mark.skipif(not may_suspend(), reason="privilege: CAP_SYS_ADMIN and no filter, to suspend those of targets")
def test_a_worker_beside_diverged_threads_is_refused_when_a_deadline_is_given(tmp_path: Path) -> None:
    with with_worker(tmp_path, "diverged") as target, ps.Filter(deny_getppid()) as f:
        before = filter_counts(target.pid)
        with pytest.raises(ps.UnsupportedError, match="io_uring worker"):
            f.attach(target, active=False, deadline=0.0)
        assert filter_counts(target.pid) == before
        answer = ended(target)
        assert (answer["probe"], answer["sibling"]) == (0, 0)


def test_no_new_privs_that_may_not_be_set_is_refused_when_a_deadline_is_given() -> None:
    def bind() -> str:
        become_nobody()
        with victim(build_victim("idle")) as target, ps.Filter(deny_getppid()) as f:
            if ps.query(target.pid).threads[0].no_new_privs:
                return "no_new_privs is set"
            with pytest.raises(ps.NotPermittedError, match="no_new_privs"):
                f.attach(target.pid, active=False, deadline=0.0, no_new_privs=False)
            return str(ask(target)["probe"])

    build_victim("idle")
    assert in_child(bind) in ("0", "no_new_privs is set")


@pytest.mark.parametrize(("error", "number"), [(errno.EPERM, 1), (errno.ESRCH, 2), (errno.EIO, 3), (errno.EIO, 6), (errno.EPERM, 9)])
def test_one_failed_ptrace_request_at_a_deadline_kills_no_target(error: int, number: int) -> None:
    build_victim("idle")
    assert in_child(filter_under_a_policy, error, number) == ("active", DENIED, True, True)


def bind_with_a_message_that_stays(error: str) -> tuple[str, int, str]:
    """In a child: the kernel refuses once to take a message of the guardian, with its listener, from the queue of the manager."""
    guardian.PATIENCE = 1.0
    with victim(build_victim("idle")) as one, victim(build_victim("idle")) as two, ps.Filter(notify_getppid()) as f:
        a = f.attach(one.pid, active=False, on_supervisor_death="allow")
        with refused(os.getpid(), f"recvfrom:error={error}:when=1"):
            a.activate()
        b = f.attach(two.pid, active=False, on_supervisor_death="allow")
        b.activate()
        return a.query().state, len(a.listeners), b.query().state


@as_root
@pytest.mark.parametrize("error", ["EINTR", "ECONNRESET", "ENOMEM"])
def test_a_message_that_cannot_be_taken_from_the_queue_is_not_received_twice(error: str) -> None:
    build_victim("idle")
    assert in_child(bind_with_a_message_that_stays, error) == ("active", 1, "active")


@as_root
@pytest.mark.skipif(shutil.which("strace") is None, reason="material lacks strace")
def test_a_guardian_that_dies_in_its_start_does_not_hang_the_manager() -> None:
    target = victims()[""]
    assert target is not None
    (result,) = run_processes([Fault("deadline", "mprotect", "ENOMEM", 3)], lambda fault: run_fault(fault, target), 1)
    assert not isinstance(result, str), result
    assert not bad(result[0]), result[0].line
