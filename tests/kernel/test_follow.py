"""attach(cgroup=, follow=True): what enters the cgroup later is filtered too; and query() names what is not."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import warnings
from pathlib import Path

import pytest

import pyseccomp as ps
from attaching import DENIED, ask, deny_getppid, filter_counts, may_suspend, notify_getppid, wait_until
from harness import SLOW, build_victim, descriptors, in_child, victim
from test_cgroup import cgroup, move, v2_alone, within
from test_cli import PROGRAM
from test_guardian import dies, managing

__all__ = ["cgroup"]

Said = list[tuple[int, str, str]]


def listening(f: ps.Filter) -> Said:
    """What on_state_change is told."""
    said: Said = []
    f.on_state_change = lambda one, state, why: said.append((one.pid, state, why))
    return said


def denied(subject: object) -> None:
    wait_until(lambda: ask(subject)["probe"] == DENIED, "the filter is in force")  # type: ignore[arg-type]


def test_what_is_moved_in_is_named_and_the_cgroup_is_not_active(cgroup: Path) -> None:
    """query() said "active"."""
    with within(cgroup, "idle"), victim(build_victim("idle"), "3") as late, ps.Filter(deny_getppid()) as f:
        group = f.attach(cgroup=cgroup)
        assert (group.query().state, group.query().strays) == ("active", ())
        move(late.pid, cgroup)
        found = group.query()
        assert (found.state, [one.pid for one in found.strays]) == ("detached", [late.pid])
        assert found.strays[0].reason == "carries no filter"
        assert f.query().strays == found.strays
        assert ask(late)["probe"] == 0
        late.kill()
        late.wait()
        assert (group.query().state, group.query().strays) == ("active", ())


def test_forks_of_members_are_no_strays(cgroup: Path) -> None:
    with within(cgroup, "family", "2", "2", "1") as root, ps.Filter(deny_getppid()) as f:
        group = f.attach(cgroup=cgroup)
        for _ in range(40):
            assert group.query().strays == ()
            ask(root)


def test_orphan_of_a_member_is_no_stray(cgroup: Path) -> None:
    """Its parent has ended, so that only its filters tell."""
    if not may_suspend():
        pytest.skip("privilege: CAP_SYS_ADMIN, to read a target's filters")
    script = "echo ready; read x; (sleep 60 & echo born)"
    start = 'echo $$ > "$0/cgroup.procs"; ' + script
    with victim("/bin/sh", "-c", start, str(cgroup)) as shell, ps.Filter(deny_getppid()) as f:
        group = f.attach(cgroup=cgroup)
        shell.tell("go")
        assert shell.line() == "born"
        assert shell.wait(20) == 0
        assert group.query().strays == ()
        (orphan,) = [int(word) for word in (cgroup / "cgroup.procs").read_text().split()]
        os.kill(orphan, signal.SIGKILL)


@pytest.mark.parametrize("how", ["move", "clone"])
@v2_alone
def test_what_enters_is_filtered(cgroup: Path, how: str) -> None:
    with within(cgroup, "idle") as member, ps.Filter(deny_getppid()) as f:
        group = f.attach_cgroup(cgroup, follow=True)
        assert group.following and ask(member)["probe"] == DENIED
        with victim(build_victim("entrant"), str(cgroup), how, "5") as outside:
            outside.tell("go")
            windows = [int(outside.line().removeprefix("window=")) for _ in range(5)]
            assert all(0 <= window < 2e9 * SLOW for window in windows), windows
            assert outside.wait(20) == 0
        assert group.query().state == "active"


def test_what_enters_a_new_cgroup_below_is_filtered(cgroup: Path) -> None:
    with within(cgroup, "idle"), victim(build_victim("idle"), "3") as late, ps.Filter(deny_getppid()) as f:
        group = f.attach(cgroup=cgroup, follow=True)
        said = listening(f)
        (cgroup / "new" / "er").mkdir(parents=True)
        move(late.pid, cgroup / "new" / "er")
        denied(late)
        wait_until(lambda: (late.pid, "active", f"it entered cgroup {cgroup}") in said, "it is told")
        assert set(filter_counts(late.pid).values()) == {1} and len(filter_counts(late.pid)) == 3
        assert late.pid in {one.pid for one in group.attachments}
        assert [one.outcome for one in group.results if one.pid == late.pid] == ["filtered"]
        assert (group.query().state, group.query().strays) == ("active", ())


@v2_alone
def test_listeners_of_what_enters_are_served_by_the_same_filter(cgroup: Path) -> None:
    with within(cgroup, "idle") as member, victim(build_victim("idle")) as late, ps.Filter(notify_getppid()) as f:
        f.attach(cgroup=cgroup, follow=True)
        server = threading.Thread(target=f.serve, args=(ps.Responder(ps.deny(DENIED)),), daemon=True)
        server.start()
        assert ask(member)["probe"] == DENIED
        move(late.pid, cgroup)
        denied(late)
        f.stop()
        server.join()


@v2_alone
def test_promise_for_the_managers_death_is_for_what_enters_too(cgroup: Path) -> None:
    def manage(pipe: int) -> None:
        f = ps.Filter(notify_getppid())
        f.on_state_change = lambda one, state, why: os.write(pipe, b"x") if "entered" in why else None
        f.attach(cgroup=cgroup, follow=True, on_supervisor_death=ps.deny(DENIED))
        os.write(pipe, b"x")
        signal.pause()

    with within(cgroup, "idle") as member, victim(build_victim("idle")) as late:
        with managing(manage) as manager:
            move(late.pid, cgroup)
            wait_until(lambda: filter_counts(late.pid) == {late.pid: 1}, "it is filtered")
            # The guardian has its listener as soon as a call is answered by it.
            dies(manager)
            assert ask(member)["probe"] == DENIED


@v2_alone
def test_each_fork_of_what_enters_is_filtered(cgroup: Path) -> None:
    """What was forked between the entry and the filter is a newcomer itself."""
    with within(cgroup, "idle"), victim(build_victim("family"), "2", "2", "1") as late, ps.Filter(deny_getppid()) as f:
        group = f.attach(cgroup=cgroup, follow=True)
        for pid in [late.pid, *(int(w) for w in Path(f"/proc/{late.pid}/task/{late.pid}/children").read_text().split())]:
            with contextlib.suppress(ProcessLookupError):
                move(pid, cgroup)
        wait_until(lambda: late.pid in {one.pid for one in group.attachments}, "it is filtered")
        wait_until(lambda: group.query().strays == (), "none is left")


@v2_alone
def test_what_cannot_be_filtered_is_told_and_filtered_when_it_can(cgroup: Path) -> None:
    with within(cgroup, "idle"), victim(build_victim("idle")) as late, ps.Filter(deny_getppid()) as f:
        group = f.attach(cgroup=cgroup, follow=True)
        said = listening(f)
        with victim(build_victim("tracer"), str(late.pid)) as tracer:
            move(late.pid, cgroup)
            wait_until(lambda: any(state == "detached" for _, state, _ in said), "the refusal is told")
            (why,) = [why for _, state, why in said if state == "detached"]
            assert f"process {late.pid} entered" in why and f"traced by process {tracer.pid}" in why
            found = group.query()
            assert (found.state, [one.pid for one in found.strays]) == ("detached", [late.pid])
            assert "traced" in found.strays[0].reason
            assert [one.outcome for one in group.results if one.pid == late.pid] == ["skipped"]
        denied(late)
        assert (group.query().state, group.query().strays) == ("active", ())
        assert [one.outcome for one in group.results if one.pid == late.pid] == ["filtered"]


@v2_alone
def test_following_ends_with_the_attachment(cgroup: Path) -> None:
    def follow() -> list[int]:
        with ps.Filter(deny_getppid()) as first:
            first.attach(cgroup=cgroup, follow=True).close()  # what is made once, is made
        before = len(descriptors())
        for end in ("group", "filter", "garbage"):
            f = ps.Filter(deny_getppid())
            group = f.attach(cgroup=cgroup, follow=True)
            thread = next(one for one in threading.enumerate() if one.name == "pyseccomp-follow")
            if end == "group":
                group.close()
                f.close()
            elif end == "filter":
                f.close()
            else:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ResourceWarning)
                    del f, group
                    after = len(descriptors())
            thread.join(10)
            assert not thread.is_alive(), end
            if end != "garbage":
                del f, group
        after = len(descriptors())
        return [before, after]

    with within(cgroup, "idle"), victim(build_victim("idle")) as late:
        before, after = in_child(follow)
        assert after == before
        move(late.pid, cgroup)
        assert ask(late)["probe"] == 0


@v2_alone
def test_cgroup_that_is_removed_ends_following(cgroup: Path) -> None:
    with ps.Filter(deny_getppid()) as f:
        with within(cgroup, "idle") as member:
            group = f.attach(cgroup=cgroup, follow=True)
            said = listening(f)
            member.kill()
        wait_until(lambda: _removed(cgroup), "the cgroup is removed")
        wait_until(lambda: not group.following, "following ends")
        assert any("not followed any more: the cgroup was removed" in why for _, _, why in said)
        assert group.query().state == "dead"
        cgroup.mkdir()  # for the fixture


def _removed(path: Path) -> bool:
    with contextlib.suppress(OSError):
        path.rmdir()
    return not path.exists()


@v2_alone
def test_newcomers_that_have_ended_are_let_go(cgroup: Path) -> None:
    with within(cgroup, "idle"), ps.Filter(deny_getppid()) as f:
        group = f.attach(cgroup=cgroup, follow=True)
        with victim(build_victim("idle")) as late:
            move(late.pid, cgroup)
            denied(late)
            wait_until(lambda: len(group.attachments) == 2, "it is an attachment")
        wait_until(lambda: len(group.attachments) == 1 and len(f.attachments) == 1, "it is let go")


@v2_alone
def test_command_line_follows_a_cgroup(cgroup: Path) -> None:
    command = [*PROGRAM, "attach", "--cgroup", str(cgroup), "--follow", "--deny", f"getppid={DENIED}"]
    with within(cgroup, "idle"), victim(build_victim("idle")) as late, victim(*command, ready=None, stderr=subprocess.PIPE) as process:
        while not process.line().startswith("active"):
            pass
        move(late.pid, cgroup)
        assert process.line() == f"active: process {late.pid}: it entered cgroup {cgroup}"
        assert ask(late)["probe"] == DENIED
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
        assert process.stderr is not None
        assert "not filtered any more" in process.stderr.read()
        process.stderr.close()


def test_follow_is_for_cgroups_alone() -> None:
    with ps.Filter(deny_getppid()) as f, pytest.raises(ValueError, match="follow=True is for cgroup="):
        f.attach(os.getppid(), tree=True, follow=True)  # type: ignore[call-overload]


def test_verbs_do_what_the_options_do(cgroup: Path) -> None:
    with within(cgroup, "idle") as member, ps.Filter(deny_getppid()) as f:
        assert f.attach_tree(member).what == f"the tree of {member.pid}"
        assert ask(member)["probe"] == DENIED
        if may_suspend():
            assert f.attach_cgroup(str(cgroup), on_error="skip").cgroup == str(cgroup)
