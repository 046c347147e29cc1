"""Calls that resume by restart_syscall(2) after a ptrace-stop go on, though a filter of the thread forbids restart_syscall."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

import pyseccomp as ps
from attaching import DENIED, facts, filter_counts, is_waiting, may_suspend, state, wait_until
from harness import SLOW, Victim, build_victim, in_child, status_field, victim
from test_attach_filtered import become_nobody

RESTARTING = ("nanosleep", "clock_nanosleep", "futex_timeout", "futex_abs", "poll_timeout")
LATE_US = 100000 * SLOW
PART = 0.2
PYSECCOMP = (sys.executable, "-m", "pyseccomp")
needs_suspension = pytest.mark.skipif(not may_suspend(), reason="privilege: CAP_SYS_ADMIN and no filter, to suspend those of targets")


def forgetful(arches: object = None, *, probe: bool = True) -> ps.Program:
    """Kills at restart_syscall; with probe, denies what the victims probe."""
    policy = ps.Policy(arches=arches)
    policy.add(ps.KILL_PROCESS, "restart_syscall")
    if probe:
        policy.add(ps.ERRNO(DENIED), "getppid")
    return policy.compile()


@contextlib.contextmanager
def asleep(call: str = "nanosleep", *, filtered: bool = False) -> Iterator[Victim]:
    """A victim that waits in a call for 0.4 s; filtered: it cannot call restart_syscall."""
    with victim(build_victim("sleeper"), call) as subject:
        wait_until(lambda: is_waiting(subject.pid), f"the victim waits in {call}")
        if filtered:
            with ps.Filter(forgetful(probe=False)) as f:
                f.attach(subject)
        yield subject


def ended_well(subject: Victim, *, probe: int) -> None:
    """The call came to its end, at its time, and the process lives."""
    answer = facts(subject.line())
    assert answer["errno"] == (errno.ETIMEDOUT if str(subject.args[1]).startswith("futex") else 0)
    assert answer["probe"] == probe
    assert 0 <= answer["late_us"] <= LATE_US
    assert status_field(subject.pid, "TracerPid") == "0"


@needs_suspension
@pytest.mark.parametrize("call", RESTARTING)
def test_the_filter_that_is_attached_does_not_break_the_call_that_the_attach_interrupts(call: str) -> None:
    with asleep(call) as subject:
        time.sleep(PART)  # a call that began anew would be as late
        with ps.Filter(forgetful()) as f:
            result = f.attach(subject).result
        assert result is not None and filter_counts(subject.pid) == {subject.pid: 1}
        ended_well(subject, probe=DENIED)


@needs_suspension
def test_a_whitelist_without_restart_syscall_lets_sleep_sleep() -> None:
    policy = ps.Policy(default=ps.KILL_PROCESS)
    for call in ("nanosleep", "clock_nanosleep", "exit_group", "write", "close"):
        policy.add(ps.ALLOW, call)
    start = time.monotonic()
    with subprocess.Popen(["sleep", "1"]) as process, ps.Filter(policy) as f:
        wait_until(lambda: is_waiting(process.pid), "sleep sleeps")
        f.attach(process)
        assert process.wait(10) == 0
    assert 1 <= time.monotonic() - start < 1 + SLOW


def by_second_attach(pid: int) -> None:
    with ps.Filter(forgetful()) as f:
        f.attach(pid)


def by_tree(pid: int) -> None:
    with ps.Filter(forgetful()) as f:
        f.attach(pid, tree=True)


def by_query(pid: int) -> None:
    assert ps.query(pid, programs=True).programs


def by_command(*words: str) -> Callable[[int], None]:
    def run(pid: int) -> None:
        subprocess.run([*PYSECCOMP, words[0], str(pid), *words[1:]], check=True, stdout=subprocess.DEVNULL, timeout=30)

    return run


@needs_suspension
@pytest.mark.parametrize("call", RESTARTING)
@pytest.mark.parametrize(
    ("ask", "probe"),
    [
        (by_query, 0),
        (lambda pid: ps.dump(pid), 0),
        (lambda pid: ps.explain(pid, "getppid"), 0),
        (by_second_attach, DENIED),
        (by_tree, DENIED),
    ],
    ids=["query", "dump", "explain", "attach", "tree"],
)
def test_no_operation_breaks_the_call_of_a_target_whose_filter_forbids_restart_syscall(
    call: str, ask: Callable[[int], None], probe: int
) -> None:
    with asleep(call, filtered=True) as subject:
        for _ in range(3 if probe == 0 else 1):
            ask(subject.pid)
        ended_well(subject, probe=probe)


@needs_suspension
@pytest.mark.parametrize("words", [("query",), ("dump", "-o", "-"), ("explain", "mkdir")], ids=lambda words: words[0])
def test_the_command_line_breaks_no_call_either(words: tuple[str, ...]) -> None:
    with subprocess.Popen(["sleep", "2"]) as process:
        wait_until(lambda: is_waiting(process.pid), "sleep sleeps")
        with ps.Filter(forgetful(probe=False)) as f:
            f.attach(process)
        by_command(*words)(process.pid)
        assert process.wait(10) == 0


POLLER = """
import select, threading, time
def wait(results):
    p = select.poll()
    begin = time.monotonic()
    p.poll(600)
    results.append(time.monotonic() - begin)
results = []
threads = [threading.Thread(target=wait, args=(results,)) for _ in range(20)]
[t.start() for t in threads]
print("ready", flush=True)
[t.join() for t in threads]
print(f"ended={len(results)} early={sum(r < 0.6 for r in results)} late={sum(r > 1 + %f for r in results)}", flush=True)
"""


@needs_suspension
def test_twenty_threads_go_on_after_one_attach_and_two_queries() -> None:
    with victim(sys.executable, "-c", POLLER % SLOW) as subject:
        with ps.Filter(forgetful()) as f:
            f.attach(subject)
        for _ in range(2):
            assert len({t.programs for t in ps.query(subject.pid, programs=True).threads}) == 1
        assert facts(subject.line()) == {"ended": 20, "early": 0, "late": 0}


@needs_suspension
def test_a_gate_and_its_hardening_break_no_call() -> None:
    with asleep() as subject, ps.Filter(forgetful()) as f:
        attachment = f.attach(subject, mode="gate", active=False)
        attachment.activate()
        attachment.harden()
        ended_well(subject, probe=DENIED)


@needs_suspension
@pytest.mark.parametrize("event", ["exec", "fork", "fork-all"])
def test_a_trigger_breaks_no_call_when_it_is_armed_when_an_ignored_signal_comes_and_when_it_is_disarmed(event: str) -> None:
    with asleep(filtered=True) as subject, ps.Filter(forgetful()) as f:
        attachment = f.attach(subject, activate_on=event)
        for _ in range(3):
            subject.send_signal(signal.SIGWINCH)
            select.select([], [], [], 0.01)
        attachment.disarm()
        ended_well(subject, probe=0)


FORKING = POLLER.replace("[t.join()", "input()\nif os.fork() == 0: os._exit(0)\nprint('forked', flush=True)\n[t.join()").replace("import ", "import os, ", 1)


@needs_suspension
def test_the_siblings_of_the_thread_that_forks_sleep_on_when_the_process_gets_the_filter_with_its_first_child() -> None:
    with victim(sys.executable, "-c", FORKING % SLOW) as subject, ps.Filter(forgetful()) as f:
        attachment = f.attach(subject, activate_on="fork-all")
        subject.tell("fork")
        assert subject.line() == "forked"
        start = time.monotonic()
        attachment.wait(10)
        assert time.monotonic() - start < 0.4 * SLOW
        assert set(filter_counts(subject.pid).values()) == {1}
        assert facts(subject.line()) == {"ended": 20, "early": 0, "late": 0}


@needs_suspension
def test_a_signal_with_a_handler_ends_the_call_as_always() -> None:
    with asleep(filtered=True) as subject, ps.Filter(forgetful()) as f:
        attachment = f.attach(subject, activate_on="exec")
        subject.send_signal(signal.SIGUSR1)
        answer = facts(subject.line())
        assert (answer["ret"], answer["errno"]) == (-1, errno.EINTR)
        attachment.disarm()


@needs_suspension
def test_a_stopped_thread_stays_stopped_when_asked_and_is_refused_what_would_kill_it() -> None:
    with asleep() as subject, ps.Filter(forgetful()) as f:
        subject.send_signal(signal.SIGSTOP)
        wait_until(lambda: state(subject.pid) == "T", "the victim stops")
        with pytest.raises(ps.TargetBusyError, match="restart_syscall"):
            f.attach(subject)
        assert filter_counts(subject.pid) == {subject.pid: 0}
        assert state(subject.pid) == "T"
        subject.send_signal(signal.SIGCONT)
        ended_well(subject, probe=0)


@needs_suspension
def test_a_32_bit_thread_goes_on_too() -> None:
    with victim(build_victim("compat32", "-m32"), "sleep") as subject:
        wait_until(lambda: is_waiting(subject.pid, not_in=(3, 4)), "the victim sleeps")
        with ps.Filter(forgetful(arches=["x86_64", "x86"])) as f:
            f.attach(subject)
        assert len(ps.dump(subject.pid)) == 1
        answer = facts(subject.line())
        assert (answer["errno"], answer["probe"]) == (0, DENIED)
        assert 0 <= answer["late_us"] <= LATE_US


def refused_to_nobody(call: str) -> tuple[str, str, dict[str, int]]:
    become_nobody()
    with asleep(call) as subject:
        with ps.Filter(forgetful()) as f, pytest.raises(ps.SeccompError) as caught:
            f.attach(subject)
        return type(caught.value).__name__, str(caught.value), facts(subject.line())


@pytest.mark.parametrize("call", RESTARTING)
def test_where_filters_cannot_be_suspended_the_attach_is_refused_before_the_stop(call: str) -> None:
    name, text, answer = in_child(refused_to_nobody, call)
    assert (name, answer["probe"]) == ("NotPermittedError", 0)
    assert answer["errno"] == (errno.ETIMEDOUT if call.startswith("futex") else 0)
    assert "restart_syscall" in text
    assert "nothing was changed" in text


def allowed_to_nobody(call: str) -> dict[str, int]:
    become_nobody()
    with asleep(call) as subject, ps.Filter(forgetful()) as f:
        f.attach(subject)
        return facts(subject.line())


@pytest.mark.parametrize("call", ["clock_nanosleep_abs", "ppoll_timeout", "select_timeout"])
def test_calls_that_are_made_again_without_restart_syscall_are_no_reason_to_refuse(call: str) -> None:
    answer = in_child(allowed_to_nobody, call)
    assert (answer["errno"], answer["probe"]) == (0, DENIED)


def asked_by_nobody() -> tuple[list[tuple[str, bool]], dict[str, int]]:
    """Of a target that filtered itself, by its own parent: what a second attach and the read-only operations say."""
    become_nobody()
    said = []
    with victim(build_victim("sleeper"), "poll_timeout", preexec_fn=lambda: _load(forgetful(probe=False))) as subject:
        wait_until(lambda: is_waiting(subject.pid), "the victim waits")
        state_ = ps.query(subject.pid, programs=True)
        said.append(("query", state_.programs is None and bool(state_.unknown)))
        for operation in (ps.dump, lambda pid: ps.explain(pid, "mkdir"), by_second_attach, by_tree):
            try:
                operation(subject.pid)
                said.append((str(operation), False))
            except ps.SeccompError as error:
                said.append((str(operation), isinstance(error, (ps.NotPermittedError, ps.TargetFilteredError))))
        for words in (["dump", str(subject.pid), "-o", "-"], ["explain", str(subject.pid), "mkdir"]):
            done = subprocess.run([*PYSECCOMP, *words], capture_output=True, text=True, timeout=30)
            said.append((words[0], done.returncode not in (0, -signal.SIGSEGV) and "CAP_SYS_ADMIN" in done.stderr))
        return said, facts(subject.line())


def _load(program: ps.Program) -> None:
    ps.Filter(program).attach()


def test_an_ordinary_user_is_told_what_cannot_be_asked_and_the_target_is_not_stopped() -> None:
    said, answer = in_child(asked_by_nobody)
    assert [name for name, good in said if not good] == []
    assert (answer["ret"], answer["errno"], answer["probe"]) == (0, 0, 0)


CLONE_NEWUSER = 0x10000000


def asked_in_user_namespace() -> tuple[list[str], dict[str, int]]:
    """All capabilities, but not those that the kernel wants, which are of the first user namespace."""
    if ctypes.CDLL(None).unshare(CLONE_NEWUSER):
        return [], {}
    said = []
    with victim(build_victim("sleeper"), "poll_timeout", preexec_fn=lambda: _load(forgetful(probe=False))) as subject:
        wait_until(lambda: is_waiting(subject.pid), "the victim waits")
        for operation in (ps.dump, by_second_attach, by_tree):
            with pytest.raises(ps.SeccompError) as caught:
                operation(subject.pid)
            said.append(type(caught.value).__name__)
        return said, facts(subject.line())


def test_capabilities_of_another_user_namespace_stop_nothing() -> None:
    said, answer = in_child(asked_in_user_namespace)
    if not said:
        pytest.skip("privilege: to make a user namespace")
    assert set(said) <= {"NotPermittedError", "TargetFilteredError"}
    assert (answer["ret"], answer["errno"], answer["probe"]) == (0, 0, 0)


def notified_to_nobody() -> tuple[int, dict[str, int]]:
    become_nobody()
    policy = ps.Policy()
    for call in ("restart_syscall", "getppid"):
        policy.add(ps.NOTIFY, call)
    with asleep() as subject, ps.Filter(policy) as f:
        f.attach(subject)
        seen = 0
        while not select.select([subject.stdout], [], [], 0)[0]:
            if select.select([f, subject.stdout], [], [], 30)[0][0] is f:
                f.receive().allow()
                seen += 1
        return seen, facts(subject.line())


def test_a_filter_that_asks_about_restart_syscall_is_no_reason_to_refuse() -> None:
    seen, answer = in_child(notified_to_nobody)
    assert seen >= 1
    assert (answer["ret"], answer["errno"]) == (0, 0)


def at_the_deadline() -> dict[str, int]:
    become_nobody()
    policy = ps.Policy()
    policy.add(ps.ERRNO(77), "restart_syscall")
    policy.add(ps.ERRNO(DENIED), "getppid")
    with asleep() as subject, ps.Filter(policy) as f:
        attachment = f.attach(subject, active=False, deadline=0.05)
        with pytest.raises(ps.NotPermittedError, match="restart_syscall"):
            attachment.activate()
        answer = facts(subject.line())
        wait_until(lambda: attachment.activated, "the guardian tells of it")
        return answer


def test_at_its_deadline_the_filter_comes_into_force_all_the_same_and_the_target_is_not_killed() -> None:
    answer = in_child(at_the_deadline)
    assert (answer["ret"], answer["errno"], answer["probe"]) == (-1, 77, DENIED)
