"""activate_on= something that happens in the manager: a time, a readable descriptor, a function."""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import Any

import pytest
from attaching import DENIED, ask, deny_getppid
from harness import DEADLINE, build_victim, descriptors, victim

import pyseccomp as ps


@pytest.mark.parametrize("mode", ["inject", "gate"])
def test_each_event_activates(mode: Any) -> None:
    r, w = os.pipe()
    go = threading.Event()
    with os.fdopen(r) as readable, ps.Filter(deny_getppid()) as f:
        for event, fire in ((0.05, lambda: None), (readable, lambda: os.write(w, b"x")), (go.wait, go.set)):
            with victim(build_victim("idle")) as subject:
                a = f.attach(subject, mode=mode, activate_on=event)
                if event != 0.05:
                    assert a.query().state == "inactive"
                    assert ask(subject)["probe"] != DENIED
                    with pytest.raises(ps.AttachTimeoutError, match="did not come within"):
                        a.wait(0.01)
                fire()
                a.wait(DEADLINE)
                assert (ask(subject)["probe"], a.query().state) == (DENIED, "active")
    os.close(w)


def test_a_function_that_fails_activates_all_the_same() -> None:
    def fails() -> None:
        raise KeyError("lost")

    with victim(build_victim("idle")) as subject, ps.Filter(deny_getppid()) as f:
        a = f.attach(subject, activate_on=fails)
        with pytest.raises(KeyError, match="lost"):
            a.wait(DEADLINE)
        assert (ask(subject)["probe"], a.query().state) == (DENIED, "active")


def test_a_target_that_ends_before_is_told() -> None:
    with ps.Filter(deny_getppid()) as f:
        with victim(build_victim("idle")) as subject:
            a = f.attach(subject, activate_on=60.0)
            subject.kill()
            subject.wait()
            with pytest.raises(ps.TargetGoneError, match="before its event"):
                a.wait(DEADLINE)
        a.close()


def test_closing_and_leaving() -> None:
    threads = threading.active_count()
    fds = len(descriptors())
    with victim(build_victim("idle")) as subject:
        f = ps.Filter(deny_getppid())
        a = f.attach(subject, activate_on=60)
        a.close()
        assert ask(subject)["probe"] != DENIED
        f.close()
        with pytest.raises(ps.InactiveError), ps.Filter(deny_getppid()) as g:
            g.attach(subject, activate_on=60)
        assert ask(subject)["probe"] == DENIED
    end = time.monotonic() + DEADLINE
    while threading.active_count() > threads and time.monotonic() < end:
        time.sleep(0.001)
    assert threading.active_count() == threads
    assert len(descriptors()) <= fds


@pytest.mark.parametrize(("bad", "error"), [(-1, ValueError), (float("nan"), ValueError), (True, ps.UnsupportedError), ([], ps.UnsupportedError)])
def test_what_can_never_happen_is_refused(bad: Any, error: type[Exception]) -> None:
    with ps.Filter(deny_getppid()) as f:
        with pytest.raises(error):
            f.attach(os.getppid(), activate_on=bad)
        with pytest.raises(ValueError, match="leave active=False out"):
            f.attach(os.getppid(), activate_on=1.0, active=False)
        with victim(build_victim("idle")) as subject:
            a = f.attach(subject)
            with pytest.raises(ps.AttachError, match="no event") as caught:
                a.wait()
            assert caught.value.errno == errno.EINVAL
