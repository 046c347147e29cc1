"""attach(cgroup=): every process of a cgroup and of those below it, in v1 and v2, gets the filter; or, on a refusal, nobody does."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyseccomp as ps
from attaching import DENIED, ask, deny_getppid, filter_counts, notify_getppid, rounds, wait_until
from harness import SLOW, Victim, build_victim, descriptors, in_child, status_field, victim

PROBES = 40
NOBODY = 65534


def mounted(kind: str) -> Path | None:
    """A hierarchy of that type in which this process can make a cgroup."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        where, what = line.split()[1:3]
        # cpuset wants to be set up before it takes anybody, and memory may be the sandbox's own.
        if what == kind and not Path(where, "cpuset.cpus").exists() and os.access(where, os.W_OK):
            return Path(where)
    return None


@pytest.fixture(params=["cgroup2", "cgroup"])
def cgroup(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A new cgroup, of v2 and of v1; removed with those below it."""
    root, mine = mounted(request.param), None
    if root is None and os.geteuid() == 0:
        mine = tmp_path / "mount"
        mine.mkdir()
        options = ["-o", "none,name=pyseccomp"] if request.param == "cgroup" else []
        if subprocess.run(["mount", "-t", request.param, *options, "none", str(mine)], capture_output=True).returncode == 0:
            root = mine
    if root is None:
        pytest.skip(f"privilege: to make a cgroup in a hierarchy of type {request.param}")
    path = root / f"pyseccomp-{os.getpid()}-{time.monotonic_ns()}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"privilege: to make a cgroup in {root}: {error.strerror}")
    try:
        yield path
    finally:
        for below in [*sorted(path.rglob("*/"), reverse=True), path]:
            if below.is_dir():
                wait_until(lambda: not processes(below), f"{below} is empty")  # noqa: B023
                below.rmdir()
        if mine is not None:
            subprocess.run(["umount", str(mine)], check=True)


v2_alone = pytest.mark.parametrize("cgroup", ["cgroup2"], indirect=True)


def processes(cgroup: Path) -> list[int]:
    """Who is in a cgroup, zombies left out; not in those below it. A threaded one has none of its own."""
    found: list[int] = []
    try:
        words = (cgroup / "cgroup.procs").read_text().split()
    except OSError:
        return found
    for word in words:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if status_field(int(word), "State")[0] not in "ZX":
                found.append(int(word))
    return found


def move(pid: int, cgroup: Path) -> None:
    """Put a process into a cgroup."""
    (cgroup / "cgroup.procs").write_text(str(pid))


@contextlib.contextmanager
def within(cgroup: Path, name: str, *arguments: str) -> Iterator[Victim]:
    """A victim that was in the cgroup before it began."""
    script = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
    with victim("/bin/sh", "-c", script, str(cgroup), build_victim(name), *arguments) as subject:
        yield subject


def check_filtered(root: Victim, since: int) -> None:
    """The answer of all has changed, and no probe that began after that moment was free."""
    denied = ask(root)["denied"]
    wait_until(lambda: ask(root)["denied"] > denied + PROBES, "the family goes on")
    facts = ask(root)
    assert facts["bad"] == 0
    assert facts["last"] < since, f"free {(facts['last'] - since) / 1e6} ms after the attach"


@pytest.mark.parametrize("arguments", [("2", "2", "1"), ("2", "2", "0", "daemons")], ids=" ".join)
def test_every_process_of_a_cgroup_that_forks_all_the_while_is_filtered(cgroup: Path, arguments: tuple[str, ...]) -> None:
    with within(cgroup, "family", *arguments) as root, ps.Filter(deny_getppid()) as f:
        group = f.attach(cgroup=cgroup)
        check_filtered(root, time.monotonic_ns())
        assert len(group.attachments) >= 7
        assert group.cgroup == str(cgroup)
        assert group.query().state == "active"
        for pid in processes(cgroup):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                assert all(filter_counts(pid).values())


def test_chains_of_processes_that_fork_execute_and_end_are_caught(cgroup: Path) -> None:
    """Each link of a chain lives for some milliseconds, and its child belongs to nobody of the cgroup any more."""
    with within(cgroup, "gatetree", "20") as root, ps.Filter(deny_getppid()) as f:
        wait_until(lambda: ask(root)["execs"] > 60, "the chains run")
        f.attach(cgroup=cgroup)
        since = time.monotonic_ns()
        wait_until(lambda: ask(root)["least_denied"] > 2 * PROBES, "the chains go on")
        facts = ask(root)
        assert facts["least_free"] > 0 and facts["last"] < since


def test_processes_of_the_cgroups_below_are_filtered_too(cgroup: Path) -> None:
    below = cgroup / "a" / "b"
    below.mkdir(parents=True)
    (cgroup / "c").mkdir()
    with contextlib.ExitStack() as stack:
        subjects = [stack.enter_context(within(where, "idle", "3")) for where in (cgroup, cgroup / "a", below, cgroup / "c")]
        outside = stack.enter_context(victim(build_victim("idle")))
        f = stack.enter_context(ps.Filter(deny_getppid()))
        group = f.attach(cgroup=str(cgroup))
        assert {one.pid: one.outcome for one in group.results} == {one.pid: "filtered" for one in subjects}
        assert [ask(one)["probe"] for one in subjects] == [DENIED] * 4
        assert ask(outside)["probe"] == 0


def test_each_process_of_a_cgroup_has_a_listener(cgroup: Path) -> None:
    with within(cgroup, "family", "2", "1", "1") as root, ps.Filter(notify_getppid()) as f:
        server = threading.Thread(target=f.serve, args=(ps.Responder(default=ps.deny(DENIED)),))
        group = f.attach(cgroup=cgroup)
        server.start()
        check_filtered(root, time.monotonic_ns())
        assert len(group.listeners) == len(group.attachments)
        f.stop()
        server.join()


def test_a_process_in_vfork_is_filtered_when_its_child_lets_it_go(cgroup: Path) -> None:
    with within(cgroup, "vforker") as root, ps.Filter(deny_getppid()) as f:
        threading.Timer(0.3, lambda: root.tell("go")).start()
        group = f.attach(cgroup=cgroup)
        assert [one.pid for one in group.attachments] == [root.pid]
        root.line()
        root.tell("again")
        assert root.line() == f"child=5 probe={DENIED}"


def test_who_is_moved_in_meanwhile_is_filtered_or_not_but_who_was_there_is(cgroup: Path) -> None:
    with contextlib.ExitStack() as stack:
        there = [stack.enter_context(within(cgroup, "idle")) for _ in range(4)]
        others = [stack.enter_context(victim(build_victim("idle"))) for _ in range(8)]
        (cgroup / "below").mkdir()
        mover = threading.Thread(target=lambda: [move(one.pid, cgroup / "below" if i % 2 else cgroup) for i, one in enumerate(others)])
        f = stack.enter_context(ps.Filter(deny_getppid()))
        mover.start()
        group = f.attach(cgroup=cgroup)
        mover.join()
        filtered = {one.pid for one in group.attachments}
        assert {one.pid for one in there} <= filtered <= {one.pid for one in there + others}
        assert {one.pid for one in there + others if ask(one)["probe"] == DENIED} == filtered
        again = f.attach(cgroup=cgroup, on_error="skip")
        assert {one.pid for one in again.results} == {one.pid for one in there + others}


@v2_alone
def test_a_frozen_cgroup_is_refused_at_once_and_unchanged(cgroup: Path) -> None:
    """An injected call would not be made before it is thawed, with everybody held until then."""
    with within(cgroup, "family", "2", "1", "1") as root, ps.Filter(deny_getppid()) as f:
        (cgroup / "cgroup.freeze").write_text("1")
        try:
            wait_until(lambda: "frozen 1" in (cgroup / "cgroup.events").read_text(), "frozen")
            for how in ({"target": root}, {"target": root, "tree": True}, {"cgroup": cgroup}):
                began = time.monotonic()
                with pytest.raises(ps.TargetBusyError, match="thaw"):
                    f.attach(**how)  # type: ignore[call-overload]
                assert time.monotonic() - began < 3
            wait_until(lambda: "frozen 1" in (cgroup / "cgroup.events").read_text(), "frozen as it was")
        finally:
            (cgroup / "cgroup.freeze").write_text("0")
        facts = ask(root)
        assert facts["denied"] == facts["bad"] == 0


@v2_alone
def test_a_freeze_in_the_middle_of_an_attach_holds_nobody_beyond_the_timeout_and_leaves_the_target_whole(cgroup: Path) -> None:
    """The injected call waits for the thaw, so the attach gives up. The thread then ends the call and restores itself."""
    freeze = cgroup / "cgroup.freeze"
    for attempt in range(rounds(60)):
        with within(cgroup, "busy", "2") as subject, ps.Filter(deny_getppid()) as f:
            freezer = threading.Timer(0.0001 * (attempt % 20), freeze.write_text, ("1",))
            freezer.start()
            error, began = "", time.monotonic()
            try:
                f.attach(subject, timeout=0.2)
            except ps.AttachError as caught:
                error = str(caught)
            assert time.monotonic() - began < 0.2 + 1 + SLOW
            freezer.join()
            freeze.write_text("0")
            if "did not come to its end" in error:
                wait_until(lambda: len(set(filter_counts(subject.pid).values())) == 1, "it runs on")  # noqa: B023
            answer = ask(subject)
            assert (answer["bad"], answer["word"]) == (0, 0)
            if "did not come to its end" in error:
                return
            assert answer["probe"] == (DENIED if not error else 0)
    pytest.skip("kernel lacks a freeze that comes in the middle: none of those tried did")


def test_a_member_that_is_traced_by_another_keeps_all_from_being_filtered(cgroup: Path) -> None:
    with contextlib.ExitStack() as stack:
        subjects = [stack.enter_context(within(cgroup, "idle")) for _ in range(3)]
        tracer = stack.enter_context(victim(build_victim("tracer"), str(subjects[1].pid)))
        f = stack.enter_context(ps.Filter(deny_getppid()))
        with pytest.raises(ps.TargetBusyError, match=f"{subjects[1].pid}.*{tracer.pid}") as caught:
            f.attach(cgroup=cgroup)
        assert "nothing was changed" in caught.value.__notes__[0]
        assert [ask(one)["probe"] for one in subjects] == [0, 0, 0]
        group = f.attach(cgroup=cgroup, on_error="skip")
        assert {one.pid: one.outcome for one in group.results} == {
            subjects[0].pid: "filtered", subjects[1].pid: "skipped", subjects[2].pid: "filtered"
        }  # fmt: skip
        assert [ask(one)["probe"] for one in subjects] == [DENIED, 0, DENIED]


def test_a_cgroup_that_the_caller_is_in_is_refused_and_nobody_is_changed(cgroup: Path) -> None:
    def attach_from_within() -> str:
        move(os.getpid(), cgroup)
        for on_error in ("abort", "skip"):
            with ps.Filter(deny_getppid()) as f, pytest.raises(ps.AttachError, match="this process") as caught:
                f.attach(cgroup=cgroup, on_error=on_error)  # type: ignore[call-overload]
        assert caught.value.errno == errno.EDEADLK
        return status_field(os.getpid(), "Seccomp_filters")

    with within(cgroup, "idle") as subject:
        assert in_child(attach_from_within) == "0"
        assert ask(subject)["probe"] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="privilege: root, to put processes of another user into a cgroup")
def test_an_ordinary_user_filters_his_processes_and_is_told_of_those_that_are_not_his(cgroup: Path) -> None:
    def attach_as_nobody(on_error: str) -> tuple[dict[int, str], str, str]:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        with ps.Filter(deny_getppid()) as f:
            try:
                group = f.attach(cgroup=cgroup, on_error=on_error)  # type: ignore[call-overload]
            except ps.NotPermittedError as error:
                return {}, str(error), ""
            assert group.result is not None and group.result.no_new_privs_set
            return {one.pid: one.outcome for one in group.results}, "", group.results[-1].reason

    with victim(build_victim("idle"), user=NOBODY, group=NOBODY, extra_groups=[]) as his, victim(build_victim("idle")) as another:
        move(his.pid, cgroup)
        move(another.pid, cgroup)
        outcomes, error, _ = in_child(attach_as_nobody, "abort")
        assert outcomes == {} and f"{another.pid}" in error and "user 0" in error
        assert ask(his)["probe"] == ask(another)["probe"] == 0
        outcomes, _, reason = in_child(attach_as_nobody, "skip")
        assert outcomes == {his.pid: "filtered", another.pid: "skipped"} and "user 0" in reason
        assert (ask(his)["probe"], ask(another)["probe"]) == (DENIED, 0)


def test_an_inactive_cgroup_is_whoever_is_in_it_when_it_is_activated(cgroup: Path) -> None:
    with ps.Filter(deny_getppid()) as f:
        group = f.attach(cgroup=cgroup, active=False)
        assert group.query().state == f.query().state == "inactive"
        with pytest.raises(ps.TargetGoneError, match="no process"):
            group.activate()
        with within(cgroup, "idle") as subject:
            assert ask(subject)["probe"] == 0
            f.activate()
            assert ask(subject)["probe"] == DENIED
            assert [one.pid for one in group.attachments] == [subject.pid]
            with pytest.raises(ps.AttachError, match="each of its attachments"):
                group.pidfd  # noqa: B018


def test_an_empty_cgroup_and_one_that_was_removed_are_refused(cgroup: Path) -> None:
    before = descriptors()
    with ps.Filter(deny_getppid()) as f:
        with pytest.raises(ps.TargetGoneError, match="no process is left"):
            f.attach(cgroup=cgroup)
        (cgroup / "gone").mkdir()
        group = f.attach(cgroup=cgroup / "gone", active=False)
        (cgroup / "gone").rmdir()
        with pytest.raises(ps.AttachError, match="removed"):
            group.activate()
        group.close()
    assert descriptors() == before


@v2_alone
def test_a_threaded_cgroup_is_reached_by_the_domain_above_it(cgroup: Path) -> None:
    (cgroup / "threaded").mkdir()
    (cgroup / "threaded" / "cgroup.type").write_text("threaded")
    with within(cgroup, "idle", "2") as subject, ps.Filter(deny_getppid()) as f:
        tid = max(int(t) for t in os.listdir(f"/proc/{subject.pid}/task"))
        (cgroup / "threaded" / "cgroup.threads").write_text(str(tid))
        with pytest.raises(ps.AttachError, match="threaded"):
            f.attach(cgroup=cgroup / "threaded")
        assert ask(subject)["probe"] == 0
        assert [one.pid for one in f.attach(cgroup=cgroup).attachments] == [subject.pid]
        assert set(filter_counts(subject.pid).values()) == {1}


def attach_in_new_pid_namespace(cgroup: Path, own_proc: bool) -> str:
    """What an attach says there, with the old /proc or with its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_pid, new_mounts, private, recursive = 0x20000000, 0x00020000, 1 << 18, 1 << 14
    assert libc.unshare(new_pid | new_mounts) == 0, os.strerror(ctypes.get_errno())
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:  # the first process of the new namespace
        try:
            if own_proc:
                assert libc.mount(b"none", b"/", None, recursive | private, None) == 0
                assert libc.mount(b"proc", b"/proc", b"proc", 0, None) == 0
            with ps.Filter(deny_getppid()) as f, pytest.raises((ps.UnsupportedError, ps.TargetGoneError)) as caught:
                f.attach(cgroup=cgroup)
            os.write(writer, str(caught.value).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    return os.read(reader, 4096).decode()


@pytest.mark.skipif(os.geteuid() != 0, reason="privilege: root, to make a pid namespace")
def test_processes_of_another_pid_namespace_are_refused(cgroup: Path) -> None:
    """v1 does not even list them."""
    second = "has no number here" if (cgroup / "cgroup.controllers").exists() else "no process is left"
    with within(cgroup, "idle") as subject:
        assert "another pid namespace" in in_child(attach_in_new_pid_namespace, cgroup, False)
        assert second in in_child(attach_in_new_pid_namespace, cgroup, True)
        assert ask(subject)["probe"] == 0


@pytest.mark.parametrize(
    ("path", "what"), [("/", "no directory of a cgroup"), ("/nowhere", "No such file"), ("/dev/null", "Not a directory")]
)
def test_what_is_no_cgroup_is_refused(path: str, what: str) -> None:
    before = descriptors()
    with ps.Filter(deny_getppid()) as f, pytest.raises(ps.AttachError, match=what) as caught:
        f.attach(cgroup=path)
    assert not isinstance(caught.value, FileNotFoundError)
    assert descriptors() == before


def test_a_target_and_a_cgroup_are_one_too_many() -> None:
    with ps.Filter(deny_getppid()) as f:
        with pytest.raises(TypeError, match="several"):
            f.attach(1, cgroup="/sys/fs/cgroup")  # type: ignore[call-overload]
        with pytest.raises(ValueError, match="one of them"):
            f.attach(1, cgroup="/sys/fs/cgroup", tree=True)  # type: ignore[call-overload]
