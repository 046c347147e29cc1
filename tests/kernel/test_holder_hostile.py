"""What can be refused to a holder, and clients that want to stop it: it lives, and says why."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from attaching import DENIED, ask, wait_until
from harness import SLOW, build_victim, victim
from test_cli import cli, failed
from test_guardian_hostile import hostile, refused, says_half, says_nothing, sends_descriptors
from test_holder import RULE, held, ok, runtime, targets

__all__ = ["runtime"]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="privilege: root, to have the kernel refuse calls of another session's process")


@pytest.mark.parametrize("work", [says_nothing, says_half, sends_descriptors])
def test_a_hostile_client_neither_stops_nor_delays_a_holder(work: Callable[[Path, Callable[[], object]], None], runtime: Path) -> None:
    with victim(build_victim("idle")) as subject, victim(build_victim("idle")) as other:
        ok(cli("attach", subject.pid, *RULE, "--inactive", "--name", "web"))
        with hostile(work, runtime / "web@holder"):
            start = time.monotonic()
            ok(cli("attach", other.pid, "--inactive", "--name", "web"))
            assert targets() == [(subject.pid, "inactive"), (other.pid, "inactive")]
            ok(cli("activate", "web"))
            assert time.monotonic() - start < 10 * SLOW
            assert [ask(one)["probe"] for one in (subject, other)] == [DENIED] * 2


@as_root
def test_a_holder_that_gets_no_thread_lives_and_says_so() -> None:
    with victim(build_victim("idle")) as subject:
        ok(cli("attach", subject.pid, *RULE, "--inactive", "--name", "web"))
        pid = held()["pid"]
        with refused(pid, "clone3:error=EAGAIN"):
            failed(cli("activate", "web"), 1, "AttachError", "start new thread", "nothing was done")
            assert (held()["pid"], targets(), ask(subject)["probe"]) == (pid, [(subject.pid, "inactive")], 0)
        ok(cli("activate", "web"))
        assert (held()["pid"], ask(subject)["probe"]) == (pid, DENIED)


@as_root
def test_a_holder_that_gets_no_thread_answers_calls_when_it_does() -> None:
    with victim(build_victim("idle")) as subject:
        ok(cli("attach", subject.pid, "--notify", "getppid", "--answer", DENIED, "--inactive", "--name", "web"))
        pid = held()["pid"]
        # The first is the thread of the change; the second the one that answers.
        with refused(pid, "clone3:error=EAGAIN:when=2..4"):
            ok(cli("activate", "web"))
            assert ask(subject)["probe"] == DENIED
        assert held()["pid"] == pid


@as_root
@pytest.mark.parametrize("rule", ["accept4:error=EMFILE:when=1..3", "accept4:error=ENOMEM:when=1", "sendto:error=ENOBUFS:when=1..2"])
def test_a_client_that_is_refused_by_the_kernel_is_answered_later(rule: str) -> None:
    with victim(build_victim("idle")) as subject:
        ok(cli("attach", subject.pid, *RULE, "--inactive", "--name", "web"))
        pid = held()["pid"]
        with refused(pid, rule):
            wait_until(lambda: held()["pid"] == pid, "it is shown")
        assert targets() == [(subject.pid, "inactive")]
