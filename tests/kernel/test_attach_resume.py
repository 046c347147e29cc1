"""After an attach every thread goes on as if nothing had happened, wherever it was: in a loop, in a call, under signals."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import time
from pathlib import Path

import pytest

import pyseccomp as ps
from attaching import (
    DENIED,
    I386,
    ask,
    attaches,
    deny_getppid,
    facts,
    filter_counts,
    is_waiting,
    listeners_in,
    notify_getppid,
    state,
    thread_ids,
    visible,
    wait_until,
)
from harness import SLOW, build_victim, status_field, victim

TIMED = (
    "nanosleep",
    "clock_nanosleep",
    "clock_nanosleep_abs",
    "futex_timeout",
    "futex_abs",
    "poll_timeout",
    "ppoll_timeout",
    "select_timeout",
)
WOKEN = (
    "read",
    "write",
    "futex",
    "epoll",
    "accept",
    "connect",
    "poll",
    "select",
    "waitpid",
    "waitid",
    "recvfrom",
    "recvmsg",
    "sem_wait",
    "pause",
    "flock",
)
# signal(7): these fail with EINTR after any stop, even one that no handler sees.
INTERRUPTED_BY_ANY_STOP = ("recv_timeout", "sigtimedwait_timeout", "semtimedop", "sigwaitinfo")
READ, WRITE = 0, 1
ALLOWED_DELAY_US = 5000 * SLOW
PART = 0.06
"""Seconds between attaches to a call that has a due time, 0.4 s after its start."""
SETTLE = 0.2
"""Seconds that a call interrupted by a stop has to say so, before it is woken."""


def attach_and_close(pid: int, program: ps.Program) -> ps.Attachment:
    """Attach once; the filter object is closed, the attachment's result is what is wanted."""
    with ps.Filter(program) as f:
        return f.attach(pid)


def wait_in_call(pid: int, call: str) -> None:
    """Wait until a sleeper sits in its call."""
    not_in = {"read": (WRITE,), "write": ()}.get(call, (READ, WRITE))
    wait_until(lambda: is_waiting(pid, not_in=not_in), f"the victim waits in {call}")


def disturbed(call: str, times: int, *, stop: bool = False) -> tuple[dict[str, int], dict[str, int]]:
    """The facts of a sleeper that was attached to (or stopped and continued), and those of one left alone."""
    program = build_victim("sleeper")
    with victim(program, call) as subject, victim(program, call) as control:
        for _ in range(attaches(times)):
            if call not in WOKEN:
                time.sleep(PART)  # what is left of the call's time must be kept, so let some of it pass
            wait_in_call(subject.pid, call)
            if stop:
                subject.send_signal(signal.SIGSTOP)
                wait_until(lambda: state(subject.pid) == "T", "the victim stops")
                subject.send_signal(signal.SIGCONT)
                select.select([subject.stdout], [], [], SETTLE)
            else:
                attach_and_close(subject.pid, deny_getppid())
        if call in WOKEN or call == "sigwaitinfo":
            subject.tell("wake")
            control.tell("wake")
        return facts(subject.line()), facts(control.line())


@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("call", TIMED)
def test_a_call_with_a_due_time_ends_at_it_and_as_if_nothing_happened(call: str, times: int) -> None:
    late = []
    for _ in range(3):  # a machine that has other work may be late by itself, once or twice
        subject, control = disturbed(call, times)
        assert subject["probe"] == DENIED
        assert (subject["ret"], subject["errno"]) == (control["ret"], control["errno"])
        assert subject["late_us"] >= 0
        late.append(subject["late_us"] - 2 * control["late_us"])
        if late[-1] <= ALLOWED_DELAY_US:
            return
    pytest.fail(f"three times later than it was due, by {late} microseconds more than undisturbed")


@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("call", WOKEN)
def test_a_waiting_call_resumes_and_is_woken_as_if_nothing_happened(call: str, times: int) -> None:
    subject, control = disturbed(call, times)
    assert subject["probe"] == DENIED
    assert (subject["ret"], subject["errno"]) == (control["ret"], control["errno"])


def test_epoll_wait_with_a_time_out_does_not_fail_though_its_time_may_begin_anew() -> None:
    subject, control = disturbed("epoll_timeout", 1)
    assert subject["probe"] == DENIED
    assert (subject["ret"], subject["errno"]) == (control["ret"], control["errno"])
    assert 0 <= subject["late_us"] <= ALLOWED_DELAY_US + PART * 2e6 + 2 * control["late_us"]


@pytest.mark.parametrize("call", INTERRUPTED_BY_ANY_STOP)
def test_a_call_fails_with_eintr_only_if_a_plain_stop_has_that_effect_too(call: str) -> None:
    subject, control = disturbed(call, 1)
    assert subject["probe"] == DENIED
    if subject["errno"] == errno.EINTR:
        control, _ = disturbed(call, 1, stop=True)
    assert (subject["ret"], subject["errno"]) == (control["ret"], control["errno"])


def test_a_busy_loop_keeps_every_register_over_fifty_attaches() -> None:
    with victim(build_victim("busy")) as subject:
        for _ in range(attaches(50)):
            attach_and_close(subject.pid, deny_getppid())
        answer = ask(subject)
    assert answer["probe"] == DENIED
    assert (answer["bad"], answer["word"]) == (0, 0)
    assert answer["rounds"] > 0


def test_busy_threads_keep_every_register_while_another_one_is_injected_into() -> None:
    with victim(build_victim("busy"), "3") as subject:
        for _ in range(attaches(25)):
            attach_and_close(subject.pid, deny_getppid())
        answer = ask(subject)
    assert answer["probe"] == DENIED
    assert (answer["bad"], answer["word"]) == (0, 0)


@pytest.mark.parametrize("name", ["busy", "idle"])
def test_an_attach_leaves_memory_descriptors_and_signals_as_they_were(name: str) -> None:
    with victim(build_victim(name)) as subject:
        before = visible(subject.pid)
        result = attach_and_close(subject.pid, deny_getppid()).result
        after = visible(subject.pid)
        assert ask(subject)["probe"] == DENIED
    assert after == before
    assert result.residue == 0


def test_the_result_names_each_thread_and_its_filters() -> None:
    with victim(build_victim("idle"), "5") as subject:
        before = filter_counts(subject.pid)
        result = attach_and_close(subject.pid, deny_getppid()).result
        after = filter_counts(subject.pid)
    assert after == {tid: count + 1 for tid, count in before.items()}
    assert {t.tid: (t.filters_before, t.filters_after) for t in result.threads} == {
        tid: (before[tid], after[tid]) for tid in before
    }
    assert 0 < result.stop_ns < 5_000_000_000


def test_two_hundred_threads_in_mixed_states_are_all_filtered_and_none_notices() -> None:
    with victim(build_victim("threads200"), "200") as subject:
        result = attach_and_close(subject.pid, deny_getppid()).result
        assert len(result.threads) == 201
        assert all(t.filters_after == t.filters_before + 1 for t in result.threads)
        answer = ask(subject)
    assert answer == {"threads": 200, "denied": 200, "errno": DENIED, "bad": 0, "probe": DENIED}


def test_of_a_thousand_threads_that_stop_while_others_are_seized_none_is_taken_for_dead() -> None:
    """A timer breaks into the seizing to reap the dead: it once took the stops of the living for deaths."""
    for _ in range(attaches(5)):
        with victim(build_victim("threads200"), "1000") as subject:
            assert len(attach_and_close(subject.pid, deny_getppid()).result.threads) == 1001


def test_threads_on_full_four_kib_stacks_keep_their_red_zone_and_all_around_it() -> None:
    with victim(build_victim("smallstack")) as subject:
        for _ in range(attaches(30)):
            attach_and_close(subject.pid, deny_getppid())
        answer = ask(subject)
    assert (answer["bad"], answer["denied"], answer["probe"]) == (0, answer["threads"], DENIED)


@pytest.mark.skipif(shutil.which("go") is None, reason="material lacks a Go compiler: the goroutines victim cannot be built")
def test_a_go_program_computes_and_sleeps_on_over_twenty_attaches() -> None:
    with victim(build_victim("goroutines")) as subject:
        for _ in range(attaches(20)):
            attach_and_close(subject.pid, deny_getppid())
        answer = ask(subject)
    assert (answer["bad"], answer["probe"]) == (0, DENIED)


def test_restartable_sequences_are_aborted_never_continued() -> None:
    with victim(build_victim("rseq")) as subject:
        for _ in range(attaches(60)):
            attach_and_close(subject.pid, deny_getppid())
        answer = ask(subject)
    assert (answer["lost"], answer["probe"]) == (0, DENIED)
    assert answer["added"] > 0


@pytest.mark.parametrize("mode", ["restart", "norestart"])
def test_every_queued_signal_arrives_once_and_in_order(mode: str) -> None:
    with victim(build_victim("sigs"), mode) as subject:
        for _ in range(attaches(40)):
            attach_and_close(subject.pid, deny_getppid())
        answer = ask(subject)
    assert answer["arrived"] == answer["sent"] > 0
    assert (answer["lost"], answer["doubled"], answer["failed"], answer["probe"]) == (0, 0, 0, DENIED)
    assert answer["overtaken"] == 0
    assert mode == "norestart" or answer["eintr"] == 0


def test_a_stopped_process_stays_stopped_and_is_filtered_when_continued() -> None:
    with victim(build_victim("stopped")) as subject:
        subject.send_signal(signal.SIGSTOP)
        wait_until(lambda: state(subject.pid) == "T", "the victim stops")
        result = attach_and_close(subject.pid, deny_getppid()).result
        assert status_field(subject.pid, "TracerPid") == "0"
        wait_until(lambda: state(subject.pid) == "T", "the victim is back in its stop")
        assert result.threads[0].filters_after == result.threads[0].filters_before + 1
        subject.send_signal(signal.SIGCONT)
        answer = ask(subject)
    assert answer == {"continued": 1, "bad": 0, "probe": DENIED}


def test_a_stopped_process_of_many_threads_stays_stopped_in_all_of_them() -> None:
    with victim(build_victim("threads200"), "20") as subject:
        subject.send_signal(signal.SIGSTOP)
        wait_until(
            lambda: all(status_field(subject.pid, "State", t)[0] == "T" for t in thread_ids(subject.pid)), "all stop"
        )
        attach_and_close(subject.pid, deny_getppid())
        wait_until(
            lambda: all(status_field(subject.pid, "State", t)[0] == "T" for t in thread_ids(subject.pid)), "all are back"
        )
        subject.send_signal(signal.SIGCONT)
        assert ask(subject)["denied"] == 20


def test_the_parent_of_a_stopped_process_is_not_told_of_another_stop() -> None:
    with victim(build_victim("stopped")) as subject:
        subject.send_signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(subject.pid, os.WUNTRACED)[1])
        attach_and_close(subject.pid, deny_getppid())
        assert os.waitpid(subject.pid, os.WNOHANG | os.WUNTRACED) == (0, 0)
        subject.send_signal(signal.SIGCONT)
        assert ask(subject)["probe"] == DENIED


@pytest.fixture(scope="module")
def compat() -> Path:
    """The 32-bit victim; a compiler that cannot build it is an error, not a skip: the engine must not be left untested."""
    return build_victim("compat32", "-m32")


def test_a_busy_32_bit_process_keeps_its_registers(compat: Path) -> None:
    with victim(compat, "busy") as subject:
        for _ in range(attaches(20)):
            attach_and_close(subject.pid, deny_getppid(arch=I386))
        answer = ask(subject)
    assert (answer["bad"], answer["probe"]) == (0, DENIED)


def test_a_sleeping_32_bit_process_wakes_in_time(compat: Path) -> None:
    with victim(compat, "sleep") as subject, victim(compat, "sleep") as control:
        wait_until(lambda: is_waiting(subject.pid, not_in=(3, 4)), "the victim sleeps")
        attach_and_close(subject.pid, deny_getppid(arch=I386))
        answer, alone = facts(subject.line()), facts(control.line())
    assert (answer["errno"], answer["probe"]) == (0, DENIED)
    assert 0 <= answer["late_us"] <= ALLOWED_DELAY_US + 2 * alone["late_us"]


def test_the_listener_is_taken_and_answers_and_the_target_never_holds_it() -> None:
    with victim(build_victim("busy")) as subject, ps.Filter(notify_getppid()) as f:
        before = visible(subject.pid)
        f.attach(subject.pid)
        assert visible(subject.pid) == before
        assert listeners_in(subject.pid) == []
        subject.tell("report")
        n = f.receive(timeout=10)
        assert (n.pid, n.syscall) == (subject.pid, "getppid")
        n.deny(DENIED)
        assert facts(subject.line())["probe"] == DENIED


def test_after_the_listener_is_closed_the_target_gets_enosys_and_never_hangs() -> None:
    with victim(build_victim("busy")) as subject:
        attach_and_close(subject.pid, notify_getppid())
        assert ask(subject)["probe"] == errno.ENOSYS


def test_an_inactive_attach_changes_nothing_until_it_is_activated() -> None:
    with victim(build_victim("busy")) as subject, ps.Filter(deny_getppid()) as f:
        before = visible(subject.pid)
        assert f.query().state == "detached"
        attachment = f.attach(subject.pid, active=False)
        assert attachment.query().state == f.query().state == "inactive"
        assert ask(subject)["probe"] == 0
        assert visible(subject.pid) == before
        attachment.activate()
        assert attachment.query().state == f.query().state == "active"
        assert attachment.pid == subject.pid
        assert ask(subject)["probe"] == DENIED


def test_a_target_that_ended_is_reported_as_dead() -> None:
    with ps.Filter(deny_getppid()) as f:
        with victim(build_victim("busy")) as subject:
            attachment = f.attach(subject.pid)
        assert attachment.query().state == "dead"


def test_attach_takes_a_pidfd() -> None:
    with victim(build_victim("busy")) as subject, ps.Filter(deny_getppid()) as f:
        fd = os.pidfd_open(subject.pid)
        try:
            assert f.attach(pidfd=fd).pid == subject.pid
        finally:
            os.close(fd)
        assert ask(subject)["probe"] == DENIED


def test_attach_takes_an_object_that_has_a_pid() -> None:
    with victim(build_victim("busy")) as subject, ps.Filter(deny_getppid()) as f:
        assert f.attach(subject).pid == subject.pid
        assert ask(subject)["probe"] == DENIED


def test_no_new_privs_is_set_only_for_a_target_that_needs_it() -> None:
    with victim(build_victim("busy")) as subject:
        privileged = int(status_field(subject.pid, "CapEff"), 16) >> 21 & 1
        already = status_field(subject.pid, "NoNewPrivs") == "1"
        result = attach_and_close(subject.pid, deny_getppid()).result
        assert result.no_new_privs_set == (not privileged and not already)
        assert status_field(subject.pid, "NoNewPrivs") == ("0" if privileged and not already else "1")
