"""Targets that have filters already: injected calls pass them, or the attach is refused before they can do harm."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyseccomp as ps
from attaching import (
    DENIED,
    KILL_PROCESS,
    NOTIFY,
    ask,
    deny_getppid,
    errno_action,
    filter_counts,
    may_suspend,
    notify_getppid,
    program_bytes,
    visible,
)
from harness import build_victim, in_child, status_field, victim

SECCOMP, PRCTL, MMAP, MUNMAP, CLOSE = 317, 157, 9, 11, 3
NOBODY = 65534
PR_SET_DUMPABLE = 4
HOSTILE = {
    "kills_on_seccomp": (KILL_PROCESS, SECCOMP),
    "kills_on_prctl_and_seccomp": (KILL_PROCESS, PRCTL, SECCOMP),
    "refuses_seccomp": (errno_action(1), SECCOMP),
    "pretends_that_seccomp_succeeds": (errno_action(0), SECCOMP),
    "kills_on_mmap": (KILL_PROCESS, MMAP),
    "kills_on_munmap": (KILL_PROCESS, MUNMAP),
    "kills_on_close": (KILL_PROCESS, CLOSE),
    "traps_on_mmap": (0x00030000, MMAP),
}
root_only = pytest.mark.skipif(
    not may_suspend(), reason="privilege: CAP_SYS_ADMIN in an unfiltered caller, to suspend filters"
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Files with the hostile programs, readable by everybody."""
    folder = tmp_path_factory.mktemp("hostile")
    files = {}
    for name, (action, *numbers) in HOSTILE.items():
        files[name] = folder / name
        files[name].write_bytes(program_bytes(action, *numbers))
    yield files


def become_nobody() -> None:
    """Drop every privilege of the calling process, if it has any."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # as any process of an ordinary user is


def attach_unprivileged(program: Path, filter_bytes: bytes) -> tuple[str, dict[str, int], bool]:
    """As an ordinary user: filter a victim of one's own with that program, attach, say what came of it.

    The class of the error ("" for none), the facts of the victim after, and whether all /proc says stayed as it was.
    """
    become_nobody()
    fd = os.memfd_create("program", 0)
    os.write(fd, filter_bytes)
    with victim(program, "nnp", f"/proc/self/fd/{fd}", pass_fds=(fd,)) as subject, ps.Filter(deny_getppid()) as f:
        before = visible(subject.pid), filter_counts(subject.pid)
        error = ""
        try:
            f.attach(subject.pid)
        except ps.SeccompError as e:
            error = type(e).__name__
        unchanged = (visible(subject.pid), filter_counts(subject.pid)) == before
        return error, ask(subject), unchanged


@pytest.mark.parametrize("name", [n for n in HOSTILE if "seccomp" in n])
def test_an_ordinary_user_is_refused_where_filters_would_deny_seccomp_and_the_target_lives(name: str) -> None:
    action, *numbers = HOSTILE[name]
    program = build_victim("filtered")
    error, answer, unchanged = in_child(attach_unprivileged, program, program_bytes(action, *numbers))
    assert error == "TargetFilteredError"
    assert answer == {"alive": 1, "probe": 0}
    assert unchanged


@pytest.mark.parametrize("name", [n for n in HOSTILE if "seccomp" not in n])
def test_an_ordinary_user_never_harms_a_target_whose_filters_deny_other_injected_calls(name: str) -> None:
    action, *numbers = HOSTILE[name]
    program = build_victim("filtered")
    error, answer, unchanged = in_child(attach_unprivileged, program, program_bytes(action, *numbers))
    assert (error, answer, unchanged) in (
        ("TargetFilteredError", {"alive": 1, "probe": 0}, True),
        ("", {"alive": 1, "probe": DENIED}, False),
    )


@root_only
@pytest.mark.parametrize("name", HOSTILE)
def test_root_attaches_past_filters_that_would_deny_the_injected_calls(name: str, hostile: dict[str, Path]) -> None:
    with victim(build_victim("filtered"), "nnp", hostile[name]) as subject, ps.Filter(deny_getppid()) as f:
        before = visible(subject.pid)
        f.attach(subject.pid)
        assert visible(subject.pid) == before
        assert ask(subject) == {"alive": 1, "probe": DENIED}


@root_only
@pytest.mark.parametrize("name", ["kills_on_seccomp", "kills_on_close", "pretends_that_seccomp_succeeds"])
def test_root_takes_a_listener_past_filters_that_would_deny_it(name: str, hostile: dict[str, Path]) -> None:
    with victim(build_victim("filtered"), "nnp", hostile[name]) as subject, ps.Filter(notify_getppid()) as f:
        before = visible(subject.pid)
        f.attach(subject.pid)
        assert visible(subject.pid) == before
        subject.tell("report")
        f.receive(timeout=10).deny(DENIED)
        assert subject.line() == f"alive=1 probe={DENIED}"


@root_only
def test_suspending_filters_ends_with_the_attach(hostile: dict[str, Path]) -> None:
    first = ps.Program.from_bytes(program_bytes(errno_action(DENIED - 1), 110))
    with victim(build_victim("filtered"), "nnp", hostile["kills_on_seccomp"]) as subject:
        for program in (first, deny_getppid()):
            with ps.Filter(program) as f:
                f.attach(subject.pid)
        assert ask(subject)["probe"] == DENIED
        assert status_field(subject.pid, "Seccomp") == "2"


def docker_default() -> bytes:
    """Docker's default policy, as this package compiles it. It is read in place: PYSECCOMP_POLICIES, or beside the clone."""
    beside = Path(__file__).parents[2].parent / "shared" / "policies"
    file = Path(os.environ.get("PYSECCOMP_POLICIES", beside)) / "docker-default.json"
    if not file.exists():
        pytest.skip(f"material lacks {file.name}: PYSECCOMP_POLICIES can name a folder of container engines' policies")
    return bytes(ps.Policy.from_oci(file).compile())


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with Docker's default policy as raw BPF."""
    file = tmp_path_factory.mktemp("docker") / "docker-default.bpf"
    file.write_bytes(docker_default())
    return file


@root_only
def test_root_attaches_to_a_process_under_dockers_default_policy(docker: Path) -> None:
    with victim(build_victim("filtered"), "nnp", docker) as subject, ps.Filter(deny_getppid()) as f:
        before = visible(subject.pid)
        f.attach(subject.pid)
        assert visible(subject.pid) == before
        assert ask(subject) == {"alive": 1, "probe": DENIED}


def test_a_process_under_dockers_default_policy_is_attached_to_or_refused_for_an_ordinary_user() -> None:
    error, answer, unchanged = in_child(attach_unprivileged, build_victim("filtered"), docker_default())
    assert (error, answer, unchanged) in (
        ("TargetFilteredError", {"alive": 1, "probe": 0}, True),
        ("", {"alive": 1, "probe": DENIED}, False),
    )


def test_a_process_in_strict_mode_is_refused_and_lives() -> None:
    with victim(build_victim("strict")) as subject, ps.Filter(deny_getppid()) as f:
        before = visible(subject.pid)
        with pytest.raises(ps.AttachError, match="strict"):
            f.attach(subject.pid)
        assert visible(subject.pid) == before
        assert ask(subject) == {"alive": 1}
        assert status_field(subject.pid, "Seccomp") == "1"


@root_only
def test_a_second_listener_is_refused_while_the_first_lives_and_taken_when_it_is_closed() -> None:
    with victim(build_victim("busy")) as subject, ps.Filter(notify_getppid()) as second:
        with ps.Filter(notify_getppid()) as first:
            first.attach(subject.pid)
            before = visible(subject.pid), filter_counts(subject.pid)
            with pytest.raises(ps.ListenerBusyError):
                second.attach(subject.pid)
            assert (visible(subject.pid), filter_counts(subject.pid)) == before
        second.attach(subject.pid)
        subject.tell("report")
        second.receive(timeout=10).deny(DENIED)
        assert subject.line().endswith(f"probe={DENIED}")


@root_only
def test_a_listener_that_the_target_made_itself_is_busy_too(tmp_path: Path) -> None:
    file = tmp_path / "own"
    file.write_bytes(program_bytes(NOTIFY, 108))
    with victim(build_victim("filtered"), "listen", file) as subject, ps.Filter(notify_getppid()) as f:
        with pytest.raises(ps.ListenerBusyError):
            f.attach(subject.pid)
        assert ask(subject) == {"alive": 1, "probe": 0}


@root_only
def test_a_filter_without_a_listener_can_be_attached_twice() -> None:
    with victim(build_victim("busy")) as subject, ps.Filter(deny_getppid()) as f:
        first, second = f.attach(subject.pid), f.attach(subject.pid)
        assert second.result.threads[0].filters_before == first.result.threads[0].filters_after
        assert ask(subject)["probe"] == DENIED


@root_only
def test_a_chain_that_would_pass_the_kernels_limit_is_refused_and_nothing_changes() -> None:
    longest = struct.pack("HBBI", 0x20, 0, 0, 0) * 4095 + struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
    with victim(build_victim("busy")) as subject, ps.Filter(ps.Program.from_bytes(longest)) as f:
        for _ in range(7):
            f.attach(subject.pid)
        before = visible(subject.pid), filter_counts(subject.pid)
        with pytest.raises(ps.AttachError):
            f.attach(subject.pid)
        assert (visible(subject.pid), filter_counts(subject.pid)) == before
        assert ask(subject)["bad"] == 0
