"""attach(tree=True): a process and all its descendants get the filter, those born meanwhile too; or, on a refusal, nobody does."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyseccomp as ps
from attaching import (
    DENIED,
    I386,
    NOTIFY,
    ask,
    deny_getppid,
    errno_action,
    filter_counts,
    is_waiting,
    listeners_in,
    may_suspend,
    notify_getppid,
    program_bytes,
    wait_until,
)
from harness import Victim, build_victim, descriptors, in_child, status_field, victim
from test_guardian import dies, managing
from pyseccomp import _core, gate

FAMILY = ("2", "3", "1")
"""1 + 2 + 4 + 8 processes of two threads each."""
MEMBERS = 15
LONG_LIVED_PROBES = 40
"""As many probes as all members of the family need some rounds for."""
needs_suspension = pytest.mark.skipif(not may_suspend(), reason="privilege: CAP_SYS_ADMIN and no filter, to suspend those of targets")


def descendants(pid: int) -> set[int]:
    """The processes below one, without those that have ended."""
    found: set[int] = set()
    for task in list(Path(f"/proc/{pid}/task").iterdir()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, (task / "children").read_text().split()):
                if status_field(child, "State")[0] not in "ZX":
                    found |= {child} | descendants(child)
    return found


@contextlib.contextmanager
def family(*arguments: str) -> Iterator[Victim]:
    """A forking tree; its members' number is in its facts."""
    with victim(build_victim("family"), *(arguments or FAMILY)) as root:
        yield root


def tree_filters(root: int) -> dict[int, list[int]]:
    """How many filters each thread of each process of a tree carries; those that end meanwhile are left out."""
    found = {}
    for pid in {root} | descendants(root):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[pid] = sorted(filter_counts(pid).values())
    return found


def check_all_filtered(root: Victim, answer: int, since: int) -> None:
    """Everybody's answer has changed, and no probe that began after that moment was free."""
    denied = ask(root)["denied"]
    wait_until(lambda: ask(root)["denied"] > denied + LONG_LIVED_PROBES, "the family goes on")
    facts = ask(root)
    assert facts["bad"] == 0
    assert facts["last"] < since, f"free {(facts['last'] - since) / 1e6} ms after the attach"
    assert facts["probe"] == answer
    assert all(min(counts, default=1) >= 1 for counts in tree_filters(root.pid).values())


def check_untouched(root: Victim) -> None:
    """Nobody is traced, stopped or filtered, and all go on."""
    assert set(sum(tree_filters(root.pid).values(), [])) == {0}
    before = ask(root)
    wait_until(lambda: ask(root)["free"] > before["free"] + LONG_LIVED_PROBES, "the family goes on")
    assert ask(root)["bad"] == ask(root)["denied"] == 0


def test_every_descendant_of_a_tree_that_forks_all_the_while_is_filtered() -> None:
    with family() as root, ps.Filter(deny_getppid()) as f:
        group = f.attach(root.pid, tree=True)
        check_all_filtered(root, DENIED, time.monotonic_ns())
        assert len(group.attachments) >= MEMBERS == ask(root)["members"]
        assert {one.pid for one in group.attachments} == {one.pid for one in group.results if one.outcome == "filtered"}
        assert group.results[0].pid == root.pid
        assert set(f.attachments) == set(group.attachments)
        assert group.query().state == "active"
        assert {one.outcome for one in group.results} <= {"filtered", "gone"}
        assert group.result is not None and len(group.result.threads) >= 2 * MEMBERS


@pytest.mark.parametrize("arguments", [("8", "1", "3"), ("1", "8", "0"), ("2", "3", "0", "daemons"), ("0", "0", "4")], ids=" ".join)
def test_trees_of_all_shapes_are_filtered(arguments: tuple[str, ...]) -> None:
    with family(*arguments) as root, ps.Filter(deny_getppid()) as f:
        f.attach(root, tree=True)
        if "daemons" in arguments:  # their parents end: they may be nobody's descendants any more
            assert all(min(counts, default=1) == 1 for counts in tree_filters(root.pid).values())
            assert ask(root)["probe"] == DENIED
        else:
            check_all_filtered(root, DENIED, time.monotonic_ns())


def test_a_process_in_vfork_and_its_child_are_filtered_when_that_has_ended() -> None:
    with victim(build_victim("vforker")) as root, ps.Filter(deny_getppid()) as f:
        threading.Timer(0.3, lambda: root.tell("go")).start()
        group = f.attach(root, tree=True)
        assert [one.pid for one in group.attachments] == [root.pid]
        root.line()  # of the probe that was under way, before or after
        root.tell("again")
        assert root.line() == f"child=5 probe={DENIED}"


def test_children_are_found_without_the_kernels_lists_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "attach_group", functools.partial(_core.attach_group, by_parent=True))
    with family() as root, ps.Filter(deny_getppid()) as f:
        group = f.attach(root, tree=True)
        check_all_filtered(root, DENIED, time.monotonic_ns())
        assert len(group.attachments) >= MEMBERS


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=needs_suspension)])
def test_a_thread_that_injects_does_as_a_process_does(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """As under YAMA's scope 1; the second time every process carries a filter, and is asked by a trial."""
    monkeypatch.setattr(gate, "yama_scope", lambda: 1)
    monkeypatch.setattr(gate, "has_capability", lambda number: False)
    with family() as root, ps.Filter(deny_getppid()) as f:
        for _ in range(times):
            group = f.attach(root, tree=True)
        check_all_filtered(root, DENIED, time.monotonic_ns())
        assert len(group.attachments) >= MEMBERS


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=needs_suspension)])
@pytest.mark.parametrize("notify", [False, True], ids=["plain", "listener"])
def test_tasks_of_another_abi_are_filtered_beside_others(times: int, notify: bool) -> None:
    with contextlib.ExitStack() as stack:
        compat = build_victim("compat32", "-m32")
        script = f"exec 3<&0; {compat} <&3 & {build_victim('idle')} <&3 & wait"
        root = stack.enter_context(victim("/bin/sh", "-c", script, ready=None))
        wait_until(lambda: set(names_of_children(root.pid)) == {compat.name, "idle"}, "both")
        for _ in range(times):
            f = stack.enter_context(ps.Filter(notify_getppid() if notify else deny_getppid(arch=I386)))
            group = f.attach(root, tree=True)
            assert {one.outcome for one in group.results} == {"filtered"} and len(group.results) == 3
            f.close()
        for one in group.results:
            assert filter_counts(one.pid)[one.pid] == times
        for _ in range(6):  # whichever of the two reads it, 32 or 64 bits
            root.tell("report")
            root.line()


def test_a_tree_that_is_bound_inactive_is_whoever_belongs_when_it_is_activated() -> None:
    with victim("/bin/sh", "-c", "echo ready; read x; sleep 60 & echo $!; read x; wait") as root, ps.Filter(deny_getppid()) as f:
        group = f.attach(root.pid, tree=True, active=False)
        assert group.query().state == f.query().state == "inactive"
        assert not group.activated and group.attachments == ()
        root.tell("fork")
        child = int(root.line())
        assert filter_counts(child)[child] == 0
        f.activate()
        assert {one.pid for one in group.attachments} == {root.pid, child}
        assert filter_counts(child)[child] == 1
        assert f.query().state == group.query().state == "active"
        group.activate()
        assert filter_counts(child)[child] == 1


def test_leaving_a_block_with_an_inactive_tree_activates_it_and_is_an_error() -> None:
    with victim(build_victim("idle")) as root:
        with pytest.raises(ps.InactiveError), ps.Filter(deny_getppid()) as f, f.attach(root, tree=True, active=False):
            pass
        assert ask(root)["probe"] == DENIED


# ------------------------------------------------------------------- refusals


def a_member(root: Victim) -> int:
    """A descendant that lives long."""
    pid = root.pid
    while True:
        children = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        stable = [c for c in children if has_threads(c)]
        if not stable:
            return pid
        pid = stable[0]


def has_threads(pid: int) -> bool:
    """True of the members of the family: those that live for a moment have one thread."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return len(filter_counts(pid)) == 2
    return False


def test_a_descendant_that_is_traced_by_another_keeps_all_from_being_filtered() -> None:
    with family() as root:
        member = a_member(root)
        with victim(build_victim("tracer"), str(member)) as tracer, ps.Filter(deny_getppid()) as f:
            with pytest.raises(ps.TargetBusyError, match=f"{member}.*{tracer.pid}") as caught:
                f.attach(root, tree=True)
            assert "nothing was changed" in caught.value.__notes__[0]
            assert f.attachments == ()
            check_untouched(root)


def test_with_skip_all_but_the_one_that_is_traced_are_filtered() -> None:
    with family() as root:
        member = a_member(root)
        with victim(build_victim("tracer"), str(member)), ps.Filter(deny_getppid()) as f:
            group = f.attach(root, tree=True, on_error="skip")
            skipped = [one for one in group.results if one.outcome == "skipped"]
            assert [one.pid for one in skipped] == [member]
            assert "traced by" in skipped[0].reason
            assert set(filter_counts(member).values()) == {0}
            filtered = {one.pid for one in group.results if one.outcome == "filtered"}
            assert len(filtered) >= MEMBERS - 1
            for pid in filtered & set(tree_filters(root.pid)):
                with contextlib.suppress(FileNotFoundError):
                    assert set(filter_counts(pid).values()) <= {1}


def test_with_skip_a_root_that_refuses_is_left_alone_and_its_children_are_filtered() -> None:
    with with_strict_child() as (root, strict, idle), victim(build_victim("tracer"), str(root.pid)), ps.Filter(deny_getppid()) as f:
        group = f.attach(root, tree=True, on_error="skip")
        assert {one.pid: one.outcome for one in group.results} == {root.pid: "skipped", strict: "skipped", idle: "filtered"}
        assert filter_counts(root.pid)[root.pid] == 0
        with pytest.raises(ps.AttachError, match="each of its attachments"):
            group.pidfd  # noqa: B018
        assert group.query().state == "active"


def test_with_skip_it_is_an_error_if_all_refuse() -> None:
    with victim(build_victim("idle")) as root, victim(build_victim("tracer"), str(root.pid)), ps.Filter(deny_getppid()) as f:
        with pytest.raises(ps.TargetBusyError):
            f.attach(root, tree=True, on_error="skip")
        assert f.attachments == ()
        assert ask(root)["probe"] == 0


def test_with_skip_one_that_does_not_stop_in_time_is_left_alone() -> None:
    script = f"exec 3<&0; {build_victim('vforker')} <&3 & {build_victim('idle')} <&3 & wait"
    with victim("/bin/sh", "-c", script, ready=None) as root, ps.Filter(deny_getppid()) as f:
        wait_until(lambda: set(names_of_children(root.pid)) == {"vforker", "idle"}, "all children")
        wait_until(lambda: len(descendants(root.pid)) == 3, "vfork")
        children = names_of_children(root.pid, deep=False)
        group = f.attach(root, tree=True, on_error="skip", timeout=0.3)
        outcomes = {one.pid: one.outcome for one in group.results}
        assert outcomes[root.pid] == outcomes[children["idle"]] == "filtered"
        assert outcomes[children["vforker"]] == "skipped"
        assert filter_counts(children["vforker"])[children["vforker"]] == 0


@contextlib.contextmanager
def with_strict_child() -> Iterator[tuple[Victim, int, int]]:
    """A shell with an idle child, and one in strict mode."""
    script = f"exec 3<&0; {build_victim('strict')} <&3 & {build_victim('idle')} <&3 & wait"
    with victim("/bin/sh", "-c", script, ready=None) as root:
        wait_until(lambda: len(names_of_children(root.pid).keys() & {"strict", "idle"}) == 2, "both children")
        children = names_of_children(root.pid)
        wait_until(lambda: status_field(children["strict"], "Seccomp") == "1", "strict mode")
        yield root, children["strict"], children["idle"]


def names_of_children(pid: int, deep: bool = True) -> dict[str, int]:
    """What the children (and those of these) execute."""
    return {status_field(one, "Name"): one for one in descendants(pid) if deep or int(status_field(one, "PPid")) == pid}


def test_a_descendant_in_strict_mode_keeps_all_from_being_filtered() -> None:
    with with_strict_child() as (root, strict, idle), ps.Filter(deny_getppid()) as f:
        with pytest.raises(ps.TargetFilteredError, match=f"{strict}.*strict"):
            f.attach(root, tree=True)
        assert filter_counts(root.pid)[root.pid] == filter_counts(idle)[idle] == 0
        group = f.attach(root, tree=True, on_error="skip")
        assert {one.pid: one.outcome for one in group.results} == {root.pid: "filtered", strict: "skipped", idle: "filtered"}
        assert status_field(strict, "Seccomp") == "1"


@needs_suspension
@pytest.mark.parametrize("before", ["a live listener", "a closed listener", "no listener"])
def test_a_descendant_with_a_live_listener_keeps_all_from_being_filtered(before: str) -> None:
    with family() as root, ps.Filter(notify_getppid()) as f:
        member = a_member(root)
        unused = ps.Program.from_bytes(program_bytes(NOTIFY if before != "no listener" else errno_action(1), 400))
        with ps.Filter(unused) as other:
            other.attach(member)
            if before == "a closed listener":
                other.close()
            counts = tree_filters(root.pid)
            if before == "a live listener":
                with pytest.raises(ps.ListenerBusyError, match=f"{member}.*live listener"):
                    f.attach(root, tree=True)
                assert all(now == counts.get(pid, now) for pid, now in tree_filters(root.pid).items())
                assert ask(root)["probe"] == 0
            else:
                server = threading.Thread(target=f.serve, args=(ps.Responder(default=ps.deny(DENIED)),))
                group = f.attach(root, tree=True)
                server.start()
                check_all_filtered(root, DENIED, time.monotonic_ns())
                assert set(filter_counts(member).values()) == {2}
                assert member in {one.pid for one in group.attachments}
                f.stop()
                server.join()


@needs_suspension
def test_a_chain_that_would_be_too_long_keeps_all_from_being_filtered() -> None:
    long = ps.Program.from_bytes(bytes(ps.Program.from_bytes(b"\x06\0\0\0\0\0\xff\x7f")) * 4000)
    with family("2", "1", "1") as root:
        member = a_member(root)
        with ps.Filter(long) as other, ps.Filter(long) as f:
            with pytest.raises(ps.AttachError, match="32,768"):
                while True:
                    other.attach(member)
            carried = filter_counts(member)
            with pytest.raises(ps.AttachError, match=f"{member}.*32,768"):
                f.attach(root, tree=True)
        assert filter_counts(root.pid)[root.pid] == 0
        assert filter_counts(member) == carried
        assert ask(root)["bad"] == 0


def test_a_caller_that_is_in_the_tree_is_refused_and_nobody_is_changed() -> None:
    def attach_to_the_parent() -> str:
        with ps.Filter(deny_getppid()) as f:
            for target in (os.getppid(), None):
                with pytest.raises(ps.AttachError, match="this process") as caught:
                    f.attach(target, tree=True)
                assert caught.value.errno == errno.EDEADLK
            return status_field(os.getppid(), "Seccomp_filters") + status_field(os.getpid(), "Seccomp_filters")

    assert in_child(lambda: in_child(attach_to_the_parent)) == "00"


def test_a_root_that_has_ended_is_gone() -> None:
    with victim(build_victim("idle")) as root, ps.Filter(deny_getppid()) as f:
        group = f.attach(root.pid, tree=True, active=False)
        root.kill()
        root.wait()
        assert group.query().state == "dead"
        with pytest.raises(ps.TargetGoneError):
            group.activate()
        group.close()


def test_a_tree_that_does_not_stop_in_time_is_let_go_unchanged() -> None:
    with victim(build_victim("vforker")) as root, ps.Filter(deny_getppid()) as f:
        wait_until(lambda: is_waiting(root.pid, not_in=()) or status_field(root.pid, "State")[0] == "D", "vfork")
        with pytest.raises(ps.AttachTimeoutError, match="did not stop"):
            f.attach(root, tree=True, timeout=0.2)
        root.tell("go")
        assert root.line() == "child=5 probe=0"


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "gate"}, {"mode": "park", "active": False}, {"activate_on": "exec"}, {"activate_on": 1.0}, {"deadline": 1.0, "active": False},
        {"on_supervisor_death": "hold"}, {"threads": "one"}, {"on_deadline": "kill"}, {"on_error": "ignore"}, {"cgroup": "/sys/fs/cgroup"},
    ],
    ids=str,
)  # fmt: skip
def test_options_that_a_tree_does_not_have_are_refused(options: dict[str, object]) -> None:
    with victim(build_victim("idle")) as root, ps.Filter(deny_getppid()) as f:
        with pytest.raises((ps.UnsupportedError, ValueError), match="attach: "):
            f.attach(root, tree=True, **options)  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="many processes"):
            f.attach(root, on_error="skip")
        assert ask(root)["probe"] == 0


# ------------------------------------------------------------------ listeners


def test_each_process_has_a_listener_and_every_call_is_answered() -> None:
    with family() as root, ps.Filter(notify_getppid()) as f:
        server = threading.Thread(target=f.serve, args=(ps.Responder(default=ps.deny(DENIED)),))
        group = f.attach(root, tree=True)
        server.start()
        check_all_filtered(root, DENIED, time.monotonic_ns())
        assert len(group.listeners) == len(group.attachments) >= MEMBERS
        assert all(len(one.listeners) == 1 for one in group.attachments)
        assert listeners_in(root.pid) == []
        with pytest.raises(ps.AttachError, match="filter.fileno"):
            group.fileno()
        f.stop()
        server.join()


def test_a_tree_is_received_from_call_by_call() -> None:
    with family("2", "1", "0") as root, ps.Filter(notify_getppid()) as f:
        group = f.attach(root, tree=True)
        end, seen = time.monotonic() + 20, set()
        while len(seen & {one.pid for one in group.attachments}) < 3 and time.monotonic() < end:
            with contextlib.suppress(ps.NotificationGoneError):
                notification = f.receive(timeout=5)
                seen.add(notification.pid)
                notification.deny(DENIED)
        assert {one.pid for one in group.attachments if one.query().state == "active"} <= seen


# ------------------------------------------------------- the manager's death


def test_a_guardian_answers_for_all_when_the_manager_is_dead() -> None:
    def manage(done: int) -> None:
        with ps.Filter(notify_getppid()) as f:
            f.attach(root, tree=True, on_supervisor_death=ps.deny(DENIED))
            os.write(done, b"x")
            signal.pause()

    with family() as root, managing(manage) as manager:
        dies(manager)
        check_all_filtered(root, DENIED, time.monotonic_ns())


def test_a_tree_whose_calls_wait_is_reclaimed_by_the_next_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "tree"

    def manage(done: int) -> None:
        with ps.Filter(notify_getppid(), name=name) as f:
            f.attach(root, tree=True, on_supervisor_death="hold")
            os.write(done, b"x")
            signal.pause()

    with tempfile.TemporaryDirectory(prefix="psc") as names, family("2", "1", "1") as root:
        monkeypatch.setenv("XDG_RUNTIME_DIR", names)
        with managing(manage) as manager:
            dies(manager)
        with ps.reclaim(name) as f:
            assert len(f.attachments) >= 3
            server = threading.Thread(target=f.serve, args=(ps.Responder(default=ps.deny(DENIED)),))
            server.start()
            check_all_filtered(root, DENIED, time.monotonic_ns())
            f.stop()
            server.join()


def test_if_whoever_injects_is_killed_the_error_tells_who_is_filtered_for_sure() -> None:
    killed = 0
    for round_ in range(60):
        with family("3", "2", "0") as root, ps.Filter(deny_getppid()) as f:
            killer = threading.Thread(target=kill_the_tracer, args=(root.pid, round_ * 1e-4 % 5e-3))
            killer.start()
            try:
                f.attach(root, tree=True)
            except ps.AttachError as error:
                killed += 1
                assert "was killed" in str(error)
                assert {one.pid for one in f.attachments} == {one.pid for one in getattr(error, "results", ()) if one.outcome == "filtered"}
                for one in f.attachments:
                    assert set(filter_counts(one.pid).values()) <= {1}
            finally:
                killer.join()
            wait_until(lambda: status_field(root.pid, "TracerPid") == "0", "it is let go")  # noqa: B023
            assert ask(root)["bad"] == 0
        if killed >= 5:
            return
    pytest.fail("the injecting process was never killed")


def kill_the_tracer(pid: int, after: float) -> None:
    """SIGKILL whoever traces a process, so many seconds after that has begun; not this one."""
    end = time.monotonic() + 5
    while (tracer := int(status_field(pid, "TracerPid"))) == 0:
        if time.monotonic() > end:
            return
    time.sleep(after)
    if tracer != os.getpid():
        with contextlib.suppress(ProcessLookupError):
            os.kill(tracer, signal.SIGKILL)


def test_a_tree_that_is_active_can_be_checkpointed_and_one_that_is_bound_cannot() -> None:
    with victim(build_victim("idle")) as root, victim(build_victim("idle")) as other, ps.Filter(deny_getppid()) as f:
        f.attach(root, tree=True)
        assert f.checkpoint()
        group = f.attach(other, tree=True, active=False)
        with pytest.raises(ps.CheckpointError, match="who belongs"):
            f.checkpoint()
        group.close()


# ----------------------------------------------------------------------- tidy


@pytest.mark.parametrize("notify", [False, True], ids=["plain", "listener"])
def test_nothing_is_left_behind(notify: bool) -> None:
    with family("2", "1", "1") as root:
        def attach() -> None:
            with ps.Filter(notify_getppid() if notify else deny_getppid()) as f:
                f.attach(root, tree=True)

        before, children = descriptors(), Path(f"/proc/self/task/{os.getpid()}/children").read_text()
        attach()
        assert descriptors() == before
        assert Path(f"/proc/self/task/{os.getpid()}/children").read_text() == children
        for pid in {root.pid} | descendants(root.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # those that end just now
                assert status_field(pid, "TracerPid") == "0"
                assert listeners_in(pid) == []


def test_a_killed_member_is_gone_and_no_failure() -> None:
    with family("6", "1", "0") as root:
        stop = threading.Event()

        def kill_some() -> None:
            while not stop.is_set():
                for pid in sorted(descendants(root.pid))[:1]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                stop.wait(0.0003)

        killer = threading.Thread(target=kill_some)
        killer.start()
        try:
            with ps.Filter(deny_getppid()) as f:
                group = f.attach(root, tree=True)
                assert {one.outcome for one in group.results} <= {"filtered", "gone"}
        finally:
            stop.set()
            killer.join()
        assert ask(root)["probe"] == DENIED
