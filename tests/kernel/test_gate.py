"""Gates: in the kernel but asking, turned by one store, with the policy's real answers afterwards."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import random
import select
import signal
import struct
import time
from typing import Any

import pytest
from attaching import (
    ALLOW,
    DENIED,
    GETPPID,
    I386,
    X86_64,
    ask,
    deny_getppid,
    errno_action,
    filter_counts,
    listeners_in,
    may_suspend,
    notify_getppid,
    program_bytes,
    rounds,
    wait_until,
)
from harness import SLOW, Victim, build_victim, descriptors, in_child, status_field, victim

import pyseccomp as ps

BRANCHES = int(os.environ.get("PYSECCOMP_PROCESSES", "100"))
KILL_THREAD, KILL_PROCESS, TRAP, TRACE, LOG = 0, 0x80000000, 0x00030000, 0x7FF00000, 0x7FFC0000


def program(action: int, number: int = GETPPID[X86_64]) -> ps.Program:
    return ps.Program.from_bytes(program_bytes(action, number))


def gated(f: ps.Filter, subject: Victim, **options: Any) -> ps.Attachment:
    return f.attach(subject.pid, active=False, mode="gate", **options)


def raw_getppid() -> int:
    """getppid with its errno: negative when denied."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(GETPPID[X86_64])
    return -ctypes.get_errno() if result < 0 else 0


@pytest.mark.parametrize("threads", ["1", "8"])
def test_an_inactive_gate_changes_nothing_until_it_is_activated(threads: str) -> None:
    with victim(build_victim("idle"), threads) as subject, ps.Filter(deny_getppid()) as f:
        none = filter_counts(subject.pid)
        a = gated(f, subject)
        assert (a.query().state, f.query().state, a.activated, ask(subject)["probe"]) == ("inactive", "inactive", False, 0)
        assert filter_counts(subject.pid) == {tid: count + 1 for tid, count in none.items()}
        a.activate()
        assert (a.query().state, f.query().state, a.activated, ask(subject)["probe"]) == ("active", "active", True, DENIED)
        assert listeners_in(subject.pid) == []


def test_a_gate_can_be_active_from_the_start() -> None:
    with victim(build_victim("idle")) as subject, ps.Filter(deny_getppid()) as f:
        assert f.attach(subject.pid, mode="gate").query().state == "active"
        assert ask(subject)["probe"] == DENIED


def test_pause_lets_calls_run_again_and_resume_denies_them() -> None:
    with victim(build_victim("idle")) as subject, ps.Filter(deny_getppid()) as f:
        a = gated(f, subject)
        answers = []
        for turn in (f.activate, a.pause, f.resume, f.pause, a.resume, f.pause, a.activate):
            turn()
            answers.append((a.query().state, ask(subject)["probe"]))
        assert answers == [("active", DENIED), ("inactive", 0)] * 3 + [("active", DENIED)]


def test_one_gate_of_two_is_turned_alone_and_both_by_the_filter() -> None:
    with victim(build_victim("idle")) as one, victim(build_victim("idle")) as two, ps.Filter(deny_getppid()) as f:
        a, b = gated(f, one), gated(f, two)
        a.activate()
        assert (ask(one)["probe"], ask(two)["probe"]) == (DENIED, 0)
        f.activate()
        assert (ask(one)["probe"], ask(two)["probe"]) == (DENIED, DENIED)
        b.pause()
        assert (ask(one)["probe"], ask(two)["probe"]) == (DENIED, 0)
        b.resume()


@pytest.mark.parametrize(("data", "probe"), [(1, 1), (4095, 4095), (0xFFFF, 4095), (0, 0)])
def test_an_errno_is_the_kernels_one_capped_and_zero_as_value_zero(data: int, probe: int) -> None:
    with victim(build_victim("idle")) as subject, ps.Filter(program(errno_action(data))) as f:
        f.attach(subject.pid, mode="gate")
        assert ask(subject)["probe"] == probe


@pytest.mark.parametrize("action", [KILL_THREAD, KILL_PROCESS], ids=["thread", "process"])
def test_a_kill_ends_the_process_once_active_and_not_before(action: int) -> None:
    with victim(build_victim("idle"), "3") as subject, ps.Filter(program(action)) as f:
        a = gated(f, subject)
        assert ask(subject)["probe"] == 0
        a.activate()
        subject.tell("report")
        assert subject.wait(10) == -signal.SIGKILL
        assert a.query().state == "dead"


@pytest.mark.parametrize("many", [False, True], ids=["one", "several"])
def test_what_the_policy_notifies_reaches_receive_once_active(many: bool) -> None:
    with victim(build_victim("idle")) as subject, victim(build_victim("idle")) as other, ps.Filter(notify_getppid()) as f:
        gated(f, subject)
        if many:
            gated(f, other)
        assert ask(subject)["probe"] == 0
        f.activate()
        subject.tell("report")
        assert select.select([f], [], [], 10)[0] == [f]
        n = f.receive(10)
        assert n.nr == GETPPID[X86_64] and n.valid()
        n.deny(77)
        assert "probe=77" in subject.line()
        with pytest.raises(ps.ReceiveTimeoutError):
            f.receive(0)


def test_serve_answers_gated_notifications_and_ends_with_the_target() -> None:
    with victim(build_victim("idle")) as subject, ps.Filter(notify_getppid()) as f:
        f.attach(subject.pid, mode="gate")
        seen: list[int] = []

        def answer(n: ps.Notification) -> ps.Answer:
            seen.append(n.pid)
            os.kill(subject.pid, signal.SIGKILL)
            return ps.deny(77)

        subject.tell("report")
        assert f.serve(ps.Responder(answer)) is False
        assert seen == [subject.pid]


def test_harden_leaves_denials_to_the_kernel_and_notifications_to_the_gate() -> None:
    if not may_suspend():
        pytest.skip("privilege: to suspend the filters of a target")
    policy = ps.Policy()
    policy.add(ps.ERRNO(DENIED), "getppid")
    policy.add(ps.NOTIFY, "mkdir")
    with victim(build_victim("idle"), "4") as subject, ps.Filter(policy) as f:
        none = filter_counts(subject.pid)[subject.pid]
        a = gated(f, subject)
        assert a.harden() and a.hardened and a.query().state == "active"
        assert set(filter_counts(subject.pid).values()) == {none + 2}
        assert ask(subject)["probe"] == DENIED
        for pause in (a.pause, f.pause):
            with pytest.raises(ps.UnsupportedError, match="hardened"):
                pause()
        a.close()  # the gate is gone: ENOSYS would be its answer, the kernel's is the policy's
        assert ask(subject)["probe"] == DENIED


def gate_oneself() -> tuple[int, int, int, str]:
    with ps.Filter(deny_getppid()) as f:
        a = f.attach(active=False, mode="gate")
        before = raw_getppid()
        a.activate()
        after = raw_getppid()
        a.pause()
        paused = before, after, raw_getppid(), a.query().state
        a.resume()
        return paused


def test_a_process_can_gate_itself() -> None:
    assert in_child(gate_oneself) == (0, -DENIED, 0, "inactive")


def gate_every_call_of_oneself() -> int:
    everything = struct.pack("HBBI", 6, 0, 0, errno_action(1))
    f = ps.Filter(ps.Program.from_bytes(everything))
    f.attach(active=False, mode="gate")
    return raw_getppid()


def test_a_process_that_gates_all_its_own_calls_is_answered_from_the_first_one() -> None:
    assert in_child(gate_every_call_of_oneself) == 0


def test_who_holds_the_fd_reads_the_state_but_cannot_turn_it() -> None:
    with victim(build_victim("idle")) as subject, ps.Filter(deny_getppid()) as f, ps.Filter.from_fd(f.fileno()) as reader:
        a = gated(f, subject)
        assert reader.query().state == "inactive"
        a.activate()
        assert reader.query().state == "active"
        for turn in (reader.activate, reader.pause):
            with pytest.raises(ps.NotPermittedError, match="creator"):
                turn()
        with pytest.raises(ps.NotPermittedError, match="creator"):
            reader.attach(subject.pid, mode="gate")


def state_through(fd: int) -> str:
    with ps.Filter.from_fd(fd) as f:
        return f.query().state


def test_another_process_that_holds_the_fd_tells_inactive_from_active() -> None:
    with victim(build_victim("idle")) as subject, ps.Filter(deny_getppid()) as f:
        memfd = os.dup(f.fileno())
        a = gated(f, subject)
        seen = []
        for turn in (lambda: None, a.activate, a.pause, a.resume):
            turn()
            seen.append(in_child(state_through, memfd))
        os.close(memfd)
        assert seen == ["inactive", "active", "inactive", "active"]


@pytest.mark.parametrize("paused", [False, True], ids=["never active", "paused"])
def test_leaving_a_with_block_with_an_inactive_gate_raises_and_leaves_it_closed(paused: bool) -> None:
    with victim(build_victim("idle")) as subject:
        with pytest.raises(ps.InactiveError, match="inactive"), ps.Filter(deny_getppid()) as f:
            a = gated(f, subject)
            if paused:
                a.activate()
                a.pause()
        assert ask(subject)["probe"] == errno.ENOSYS


def turn_in_child(f: ps.Filter) -> tuple[str, str]:
    try:
        f.attachments[0].activate()
    except ps.NotPermittedError:
        return f.attachments[0].query().state, "refused"
    return "", ""


def test_a_forked_child_of_the_creator_reads_but_does_not_write() -> None:
    with victim(build_victim("idle")) as subject, ps.Filter(deny_getppid()) as f:
        gated(f, subject)
        assert in_child(turn_in_child, f) == ("inactive", "refused")
        assert ask(subject)["probe"] == 0
        f.activate()


# -------------------------------------------------------------------------- TRAP


def may_trap() -> None:
    try:
        with ps.Filter(program(TRAP)) as f:
            ps.gate.check_trap(f.program)
    except ps.UnsupportedError:
        pytest.skip("privilege: to trace under YAMA")


def trapping(how: str, *flags: str) -> Any:
    """The same addresses in each run."""
    return victim("setarch", "-R", build_victim("trapped", *flags), how)


def two_lines(subject: Victim) -> list[str]:
    lines = []
    for _ in range(2):
        subject.tell("report")
        lines.append(subject.line())
    return lines


@pytest.mark.parametrize("killable", [True, False], ids=["killable", "interruptible"])
@pytest.mark.parametrize(("how", "arch"), [("handle", X86_64), ("thread", X86_64), ("handle", I386)])
def test_a_gated_trap_gives_the_signal_information_and_registers_of_the_kernels(how: str, arch: int, killable: bool) -> None:
    may_trap()
    trap = ps.Program.from_bytes(program_bytes(TRAP | 1234, GETPPID[arch], arch=arch))
    flags = ["-m32"] if arch == I386 else []
    with trapping(how, *flags) as subject, ps.Filter(trap) as f:
        f.attach(subject.pid)
        kernels = two_lines(subject)
    with trapping(how, *flags) as subject, ps.Filter(trap, wait_killable=killable) as f:
        a = gated(f, subject)
        before = two_lines(subject)
        a.activate()
        ours = two_lines(subject)
        assert status_field(subject.pid, "TracerPid") == "0"
    assert before == [" result=0"] * 2
    assert ours == kernels
    assert f"errno=1234 at=1 syscall={GETPPID[arch]} arch={arch} rax={GETPPID[arch]}" in ours[0] and "result=4711" in ours[1]


@pytest.mark.parametrize(("how", "number"), [("default", signal.SIGSYS), ("block", signal.SIGKILL), ("ignore", signal.SIGKILL)])
def test_a_gated_trap_that_cannot_be_handled_kills(how: str, number: int) -> None:
    may_trap()
    with trapping(how) as subject, ps.Filter(program(TRAP)) as f:
        f.attach(subject.pid, mode="gate")
        subject.tell("report")
        assert subject.wait(10) == -number


def test_a_gated_trap_in_a_process_that_a_debugger_holds_is_denied_and_not_made() -> None:
    may_trap()
    with trapping("handle") as subject, ps.Filter(program(TRAP)) as f:
        f.attach(subject.pid, mode="gate")
        with victim(build_victim("tracer"), str(subject.pid)):
            subject.tell("report")
            assert subject.line() == " result=0"


def test_many_traps_in_many_threads_are_each_handled() -> None:
    may_trap()
    with victim(build_victim("trapstorm"), "4", "200") as subject, ps.Filter(program(TRAP)) as f:
        f.attach(subject.pid, mode="gate")
        subject.tell("report")
        assert subject.line() == "handled=800 wrong=0"


# ----------------------------------------------------------------------- trigger


def test_a_trigger_lets_its_call_run_and_gates_what_comes_after() -> None:
    command = ["python3", "-c", LISTENER]
    with victim(*command) as subject, ps.Filter(program(errno_action(DENIED), 41)) as f:  # socket
        a = f.attach(subject.pid, activate_on="listen")
        subject.tell("socket")
        assert (subject.line(), a.query().state) == ("0", "inactive")
        subject.tell("listen")
        assert (subject.line(), a.query().state) == ("0", "active")
        subject.tell("socket")
        assert subject.line() == str(DENIED)


def test_a_trigger_that_the_policy_denies_runs_once() -> None:
    with victim("python3", "-c", LISTENER) as subject, ps.Filter(program(errno_action(DENIED), 50)) as f:  # listen
        f.attach(subject.pid, activate_on="listen")
        said = []
        for _ in range(2):
            subject.tell("listen")
            said.append(subject.line())
        assert said == ["0", str(DENIED)]


def test_a_paused_gate_is_not_turned_by_its_trigger() -> None:
    with victim("python3", "-c", LISTENER) as subject, ps.Filter(program(errno_action(DENIED), 41)) as f:
        a = f.attach(subject.pid, activate_on="listen")
        a.pause()
        subject.tell("listen")
        assert (subject.line(), a.query().state) == ("0", "inactive")
        a.resume()


LISTENER = """
import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print("ready", flush=True)
while True:
    try:
        s.listen() if input() == "listen" else socket.socket().close()
        print(0, flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""


# --------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("action", "reason"), [(TRACE, "TRACE")], ids=["trace"]
)
def test_what_cannot_be_emulated_is_refused_at_once(action: int, reason: str) -> None:
    with victim(build_victim("idle")) as subject, ps.Filter(program(action)) as f:
        before = filter_counts(subject.pid)
        with pytest.raises(ps.UnsupportedError, match=f"{reason}.*inject"):
            gated(f, subject)
        assert filter_counts(subject.pid) == before


@pytest.mark.parametrize("action", [ALLOW, LOG], ids=["allow", "log"])
def test_a_program_that_denies_nothing_has_nothing_to_gate(action: int) -> None:
    with victim(build_victim("idle")) as subject, ps.Filter(program(action)) as f, pytest.raises(ps.AttachError, match="inject"):
        gated(f, subject)


@pytest.mark.parametrize(
    ("trigger", "options", "kind"),
    [
        ("clock_gettime", {}, ValueError),
        ("exit_group", {}, ValueError),
        ("lisen", {}, ps.UnknownSyscallError),
        ("socketcall", {}, ps.UnknownSyscallError),
        ("listen", {"mode": "inject"}, ValueError),
        (b"7", {}, ps.UnsupportedError),
    ],
)
def test_a_trigger_that_can_never_fire_is_refused(trigger: Any, options: dict[str, Any], kind: type[Exception]) -> None:
    with victim(build_victim("idle")) as subject, ps.Filter(deny_getppid()) as f:
        before = filter_counts(subject.pid)
        with pytest.raises(kind):
            f.attach(subject.pid, activate_on=trigger, **options)
        assert (filter_counts(subject.pid), f.attachments) == (before, ())


def test_a_gate_under_an_existing_listener_is_refused() -> None:
    expected = ps.ListenerBusyError if may_suspend() else ps.TargetFilteredError
    with victim(build_victim("idle")) as subject, ps.Filter(deny_getppid()) as f, ps.Filter(deny_getppid()) as g:
        gated(f, subject)
        before = filter_counts(subject.pid)
        with pytest.raises(expected, match="close that first" if may_suspend() else "carries filters already") as refused:
            gated(g, subject)
        assert refused.value.errno == (errno.EBUSY if may_suspend() else errno.EACCES)
        assert (filter_counts(subject.pid), g.attachments) == (before, ())
        assert ask(subject)["probe"] == 0
        f.activate()


def test_an_injected_attachment_cannot_be_paused_or_hardened() -> None:
    with victim(build_victim("idle")) as subject, ps.Filter(deny_getppid()) as f:
        a = f.attach(subject.pid)
        for turn in (a.pause, a.resume, a.harden, f.pause):
            with pytest.raises(ps.UnsupportedError, match="gate"):
                turn()


def gate_once() -> None:
    with victim(build_victim("idle")) as subject, ps.Filter(notify_getppid()) as f:
        gated(f, subject).activate()


def test_gates_leave_no_descriptor_behind() -> None:
    gate_once()
    gc.collect()
    before = descriptors()
    for _ in range(5):
        gate_once()
    gc.collect()
    assert descriptors() == before


# --------------------------------------------------------------- many, and killed


def start_gated_tree(f: ps.Filter, shell: Victim) -> None:
    """Gate a shell, which then becomes the tree: every task of it is under the gate."""
    f.attach(shell.pid, active=False, mode="gate")
    shell.tell("go")
    assert shell.line(120) == "ready"


def test_every_task_of_a_gated_tree_is_filtered_from_the_store_on() -> None:
    command = f"read go; exec {build_victim('gatetree')} {BRANCHES}"
    with victim("sh", "-c", command, ready=None) as tree, ps.Filter(deny_getppid()) as f:
        start_gated_tree(f, tree)
        wait_until(lambda: ask(tree)["least_free"] > 0 and ask(tree)["execs"] > 2 * BRANCHES, "all branches run", 120)
        f.activate()
        activated = time.monotonic_ns()
        wait_until(lambda: ask(tree)["least_denied"] > 0, "all branches are denied", 120)
        assert ask(tree)["last"] <= activated


def manage(pid: int, started: int) -> None:
    with ps.Filter(deny_getppid()) as f:
        os.write(started, b"x")
        a = f.attach(pid, active=False, mode="gate")
        a.activate()
        if may_suspend():
            a.harden()
        signal.pause()


def test_a_target_lives_untouched_or_wholly_filtered_when_the_manager_of_its_gate_is_killed() -> None:
    chance = random.Random(6)
    filtered = 0
    for _ in range(rounds(40)):
        with victim(build_victim("idle"), "3") as subject:
            none = filter_counts(subject.pid)[subject.pid]
            reader, writer = os.pipe()
            manager = os.fork()
            if manager == 0:
                try:
                    manage(subject.pid, writer)
                finally:
                    os._exit(3)
            os.close(writer)
            os.read(reader, 1)
            time.sleep(chance.uniform(0, 0.012 * SLOW))  # the random instant itself
            os.kill(manager, signal.SIGKILL)
            os.waitpid(manager, 0)
            assert select.select([reader], [], [], 10)[0] and os.read(reader, 1) == b""  # nobody shares its descriptors
            os.close(reader)
            probe = ask(subject)["probe"]
            counts = set(filter_counts(subject.pid).values())
            assert len(counts) == 1
            more = counts.pop() - none
            assert probe in {0: (0,), 1: (errno.ENOSYS,), 2: (DENIED,)}[more]
            filtered += more > 0
    assert filtered
