"""An orderly end of the manager counts as its death: what on_supervisor_death= promised holds, unless the filter was closed."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyseccomp as ps
from attaching import DENIED, ask, facts, notify_getppid, wait_until
from harness import DEADLINE, Victim, build_victim, descriptors, in_child, victim
from test_guardian import guardians

HEAD = """
import asyncio, atexit, contextlib, gc, os, signal, sys, threading
sys.path[:0] = {path!r}
import pyseccomp as ps
from attaching import notify_getppid, DENIED
pid, promise, name, mode = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
answer = {{"deny": ps.deny(DENIED)}}.get(promise, promise)
def made():
    return ps.Filter(notify_getppid(), name=name)
def attached(f):
    a = f.attach(pid, on_supervisor_death=answer, mode=mode)
    return a
def ready():
    print("ready", flush=True)
def wait():
    sys.stdin.readline()
"""

ENDS = {
    "the script's end": "f = made(); a = attached(f); ready(); wait()",
    "sys.exit": "f = made(); a = attached(f); ready(); wait(); sys.exit(0)",
    "an unhandled exception": "f = made(); a = attached(f); ready(); wait(); 1 / 0",
    "an exception out of a with block": "with made() as f, attached(f) as a:\n ready(); wait(); 1 / 0",
    "an exception out of the attachment's with block alone": "f = made()\nwith attached(f) as a:\n ready(); wait(); 1 / 0",
    "sys.exit in a with block": "with made() as f:\n a = attached(f); ready(); wait(); sys.exit(3)",
    "SIGTERM": "f = made(); a = attached(f); ready(); os.kill(os.getpid(), signal.SIGTERM); wait()",
    "SIGHUP in a with block": "with made() as f:\n a = attached(f); ready(); os.kill(os.getpid(), signal.SIGHUP); wait()",
    "SIGTERM that raises SystemExit": (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\nwith made() as f:\n a = attached(f); ready(); wait(); "
        "os.kill(os.getpid(), signal.SIGTERM); signal.pause()"
    ),
    "SIGINT in a with block": "with made() as f:\n a = attached(f); ready(); wait(); os.kill(os.getpid(), signal.SIGINT); signal.pause()",
    "the end while a thread serves": (
        "f = made(); a = attached(f); r = ps.Responder(lambda n: threading.Event().wait())\n"
        "threading.Thread(target=f.serve, args=(r,), daemon=True).start(); ready(); wait()"
    ),
    "an atexit function": "f = made(); a = attached(f); atexit.register(gc.collect); g = f; f.me = f; del f, g; ready(); wait(); a = None",
    "an exec": "f = made(); a = attached(f); ready(); wait(); os.execv('/bin/cat', ['cat'])",
    "asyncio's cancellation": (
        "async def main():\n with made() as f:\n  a = attached(f); ready(); wait(); asyncio.current_task().cancel(); await asyncio.sleep(9)\n"
        "asyncio.run(main())"
    ),
    "os._exit": "f = made(); a = attached(f); ready(); wait(); os._exit(0)",
}
LIVES = {
    "garbage": "f = made(); a = attached(f); ready(); wait(); del f, a; gc.collect(); ready(); wait(); wait()",
    "leave": "f = made(); a = attached(f); ready(); wait(); f.leave(); assert f.closed and a.closed; f.leave(); ready(); wait(); wait()",
    "a handled exception": (
        "with contextlib.suppress(ZeroDivisionError), made() as f:\n a = attached(f); ready(); wait(); 1 / 0\n"
        "assert f.closed and a.closed; ready(); wait(); wait()"
    ),
    "a generator that is dropped": (
        "def g():\n with made() as f:\n  attached(f); yield\n"
        "i = g(); next(i); ready(); wait(); del i; gc.collect(); ready(); wait(); wait()"
    ),
}
"""Ends of the object, not of the process, which goes on until its second line."""
CLOSED = {
    "close": "f = made(); a = attached(f); ready(); wait(); f.close()",
    "the attachment's close": "f = made(); a = attached(f); ready(); wait(); a.close()",
    "a with block's end": "with made() as f:\n attached(f); ready(); wait()",
    "the attachment's with block's end": "f = made()\nwith attached(f):\n ready(); wait()",
}


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Names of these tests alone; short, for a socket's path is."""
    with tempfile.TemporaryDirectory(prefix="psc") as path:
        monkeypatch.setenv("XDG_RUNTIME_DIR", path)
        yield Path(path, "pyseccomp")


@contextlib.contextmanager
def manager(code: str, target: Victim, promise: str, name: str = "none", mode: str = "inject") -> Iterator[Victim]:
    script = HEAD.format(path=[p for p in sys.path if p]) + code
    with victim(sys.executable, "-c", script, str(target.pid), promise, name, mode, stderr=subprocess.DEVNULL) as process:
        yield process


def end(process: Victim) -> None:
    """Let the script go on to its end, and wait for that."""
    with contextlib.suppress(BrokenPipeError):
        process.tell("")
        assert process.stdin is not None
        process.stdin.close()
    process.wait(DEADLINE)


def unique(text: str) -> str:
    return f"end-{os.getpid()}-{abs(hash(text)) % 10**6}"


@pytest.mark.parametrize("code", ENDS.values(), ids=ENDS)
def test_promised_answer_is_given_after_an_orderly_end(code: str) -> None:
    with victim(build_victim("idle")) as target:
        with manager(code, target, "deny") as process:
            end(process)
            assert ask(target)["probe"] == DENIED
            assert ask(target)["probe"] == DENIED


def _reclaim(name: str, answer: int) -> int:
    with ps.reclaim(name) as f:
        f.receive(10).deny(answer)
        return len(f.attachments)


@pytest.mark.parametrize("code", ENDS.values(), ids=ENDS)
def test_hold_is_kept_after_an_orderly_end(code: str) -> None:
    name = unique(code)
    with victim(build_victim("idle")) as target:
        with manager(code, target, "hold", name) as process:
            end(process)
            target.tell("report")
            assert in_child(_reclaim, name, DENIED) == 1
            assert facts(target.line())["probe"] == DENIED


@pytest.mark.parametrize("promise", ["deny", "hold"])
@pytest.mark.parametrize("code", LIVES.values(), ids=LIVES)
def test_promise_holds_when_the_process_lets_go_and_lives_on(code: str, promise: str) -> None:
    name = unique(code + promise)
    with victim(build_victim("idle")) as target:
        with manager(code, target, promise, name) as process:
            process.tell("")
            assert process.line() == "ready"
            if promise == "deny":
                assert ask(target)["probe"] == DENIED
            else:
                target.tell("report")
                assert in_child(_reclaim, name, DENIED) == 1
                assert facts(target.line())["probe"] == DENIED
            assert process.poll() is None


@pytest.mark.parametrize("code", CLOSED.values(), ids=CLOSED)
def test_explicit_close_ends_the_promise(code: str) -> None:
    with victim(build_victim("idle")) as target:
        with manager(code, target, "deny") as process:
            end(process)
            assert ask(target)["probe"] == errno.ENOSYS


@pytest.mark.parametrize("code", [ENDS["sys.exit in a with block"], ENDS["the script's end"], LIVES["leave"]], ids=["with", "end", "leave"])
def test_kill_and_allow_are_kept_too(code: str) -> None:
    for promise in ("allow", "kill"):
        with victim(build_victim("idle")) as target:
            with manager(code, target, promise) as process:
                if code == LIVES["leave"]:
                    process.tell("")
                    assert process.line() == "ready"
                else:
                    end(process)
                if promise == "kill":
                    assert target.wait(DEADLINE) == -signal.SIGKILL
                else:
                    assert ask(target)["probe"] == 0


GATE_ENDS = {name: {**ENDS, **LIVES}[name] for name in (
    "the script's end", "sys.exit in a with block", "an exception out of a with block", "SIGTERM that raises SystemExit", "garbage", "leave",
    "a handled exception", "an exec",
)}


@pytest.mark.parametrize("code", GATE_ENDS.values(), ids=GATE_ENDS)
def test_gates_keep_their_promise_after_an_orderly_end(code: str) -> None:
    with victim(build_victim("idle")) as target:
        with manager(code, target, "deny", mode="gate") as process:
            if code in LIVES.values():
                process.tell("")
                assert process.line() == "ready"
            else:
                end(process)
            assert ask(target)["probe"] == DENIED
            assert ask(target)["probe"] == DENIED
            if code in LIVES.values():
                assert process.poll() is None
                end(process)
                assert ask(target)["probe"] == DENIED


@pytest.mark.parametrize("code", CLOSED.values(), ids=CLOSED)
def test_explicit_close_of_a_gate_ends_the_promise(code: str) -> None:
    with victim(build_victim("idle")) as target:
        with manager(code, target, "deny", mode="gate") as process:
            end(process)
            assert ask(target)["probe"] == errno.ENOSYS


def _leaves_a_call_received(pid: int) -> list[int]:
    """Of a target whose call was received and not answered: what it got, and our descriptors before and after."""
    before = len(descriptors())
    f = ps.Filter(notify_getppid())
    f.attach(pid, on_supervisor_death=ps.deny(DENIED))
    os.kill(os.getppid(), signal.SIGUSR1)
    held = f.receive(10)
    changes: list[str] = []
    f.on_state_change = lambda one, state, why: changes.append(why)
    f.leave()
    assert changes == ["left: what was promised for this process's death holds"]
    with pytest.raises(ps.NotificationGoneError):
        held.deny(1)
    del held, f
    return [before, len(descriptors())]


def test_call_that_was_received_gets_the_promised_answer_when_left() -> None:
    previous = signal.signal(signal.SIGUSR1, lambda *_: target.tell("report"))
    try:
        with victim(build_victim("idle")) as target:
            before, after = in_child(_leaves_a_call_received, target.pid)
            assert facts(target.line())["probe"] == DENIED
            assert after == before
    finally:
        signal.signal(signal.SIGUSR1, previous)


def _leaves_and_reclaims(pid: int, name: str) -> tuple[int, str]:
    with ps.Filter(notify_getppid(), name=name) as f:
        f.attach(pid, on_supervisor_death="hold")
        f.leave()
    with ps.reclaim(name) as again:
        return len(again.attachments), again.query().state


def test_what_was_left_can_be_reclaimed_by_the_same_process() -> None:
    with victim(build_victim("idle")) as target:
        assert in_child(_leaves_and_reclaims, target.pid, unique("same")) == (1, "active")
        assert ask(target)["probe"] == errno.ENOSYS, "the second one was closed"


def _forks_and_leaves(pid: int, mode: str) -> int:
    """A forked copy lets go; the manager serves as before."""
    f = ps.Filter(notify_getppid())
    f.attach(pid, on_supervisor_death=ps.deny(1), mode=mode)  # type: ignore[call-overload]
    child = os.fork()
    if child == 0:
        f.leave()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    os.kill(os.getppid(), signal.SIGUSR1)
    f.receive(10).deny(DENIED)
    f.close()
    return 0


@pytest.mark.parametrize("mode", ["inject", "gate"])
def test_forked_copy_that_leaves_leaves_nothing_of_its_parent(mode: str) -> None:
    previous = signal.signal(signal.SIGUSR1, lambda *_: target.tell("report"))
    try:
        with victim(build_victim("idle")) as target:
            in_child(_forks_and_leaves, target.pid, mode)
            assert facts(target.line())["probe"] == DENIED
    finally:
        signal.signal(signal.SIGUSR1, previous)


@pytest.mark.parametrize("mode", ["inject", "gate"])
def test_without_a_promise_an_exception_closes(mode: str) -> None:
    code = "with made() as f:\n f.attach(pid, mode=mode); ready(); wait(); 1 / 0"
    with victim(build_victim("idle")) as target:
        with manager(code, target, "deny", mode=mode) as process:
            end(process)
            assert ask(target)["probe"] == errno.ENOSYS


def test_inactive_attachment_with_a_deadline_is_activated_when_left() -> None:
    code = "f = made(); f.attach(pid, active=False, deadline=600, on_supervisor_death=answer); ready(); wait(); f.leave(); ready(); wait(); wait()"
    with victim(build_victim("idle")) as target:
        with manager(code, target, "deny") as process:
            assert ask(target)["probe"] == 0
            process.tell("")
            assert process.line() == "ready"
            wait_until(lambda: ask(target)["probe"] == DENIED, "the guardian activates")


def guardians_of(pid: int) -> set[int]:
    """The guardians that hold a pidfd of a process."""
    found = set()
    for one in guardians():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if any(f"\nPid:\t{pid}\n" in path.read_text() for path in Path(f"/proc/{one}/fdinfo").iterdir()):
                found.add(one)
    return found


def test_guardian_ends_with_the_targets_that_were_left() -> None:
    if os.geteuid():
        pytest.skip("privilege: to look at a guardian's descriptors")
    with victim(build_victim("idle")) as target:
        with manager(ENDS["the script's end"], target, "deny") as process:
            end(process)
            (guardian,) = guardians_of(target.pid)
            pidfd = os.pidfd_open(guardian)
    assert select.select([pidfd], [], [], DEADLINE)[0], "the guardian lives on"
    os.close(pidfd)
