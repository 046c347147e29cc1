"""KeyboardInterrupt at every place where Python can raise it: nothing is lost, no target hangs.

A signal handler that raises does so between two bytecodes, also between the return of a C function and the assignment of its
result. The operation is run once to count those places (victims/interrupt.c), then once for each of them with SIGINT there.

PYSECCOMP_ROUNDS: how many rounds the test with a timer makes (10,000 is the promise).
"""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import importlib.util
import os
import random
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import VICTIMS, Victim, build_victim, in_child, status_field

import pyseccomp as ps

ROUNDS = int(os.environ.get("PYSECCOMP_ROUNDS", "150"))
EVERY = int(os.environ.get("PYSECCOMP_EVERY", "23"))
LOOKS = bytes(
    dis.opmap[name]
    for name in ("CALL", "CALL_FUNCTION_EX", "CALL_KW", "CALL_FUNCTION", "CALL_METHOD", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "RESUME")
    if name in dis.opmap
)  # fmt: skip
PROBE = "getppid"


def interrupter() -> Any:
    out = VICTIMS / "build" / f"interrupt-{sys.implementation.cache_tag}.so"
    source = VICTIMS / "interrupt.c"
    if not out.exists() or out.stat().st_mtime < source.stat().st_mtime:
        out.parent.mkdir(exist_ok=True)
        scratch = out.with_suffix(f".{os.getpid()}")
        include = sysconfig.get_paths()["include"]
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-Wall", f"-I{include}", "-o", str(scratch), str(source)], check=True)
        scratch.rename(out)
    spec = importlib.util.spec_from_file_location("interrupt", out)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def notifying() -> ps.Policy:
    policy = ps.Policy(ps.ALLOW)
    policy.add(ps.NOTIFY, PROBE)
    return policy


# ------------------------------------------------------------------ what stays


def descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found


def children() -> set[str]:
    found: set[str] = set()
    for tid in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended since
            found.update(Path(f"/proc/self/task/{tid}/children").read_text().split())
    return found


def state() -> tuple[int, int, int]:
    return len(descriptors()), len(os.listdir("/proc/self/task")), len(children())


def settled(before: tuple[int, int, int]) -> str:
    """What is there more than before, when all that ends by itself has ended; empty for nothing."""
    end = time.monotonic() + 5
    while True:
        gc.collect()
        now = state()
        if all(n <= m for n, m in zip(now, before, strict=True)):
            return ""
        if time.monotonic() > end:
            names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in children()]
            return f"descriptors, threads, children: {before} before, {now} now: {sorted(descriptors().values())} {names}"
        time.sleep(0.002)


# ------------------------------------------------------------------- a target


class Target:
    """A process that makes the notified call when it is told to, and another one that tells that it lives."""

    def __init__(self) -> None:
        self.process = Victim(
            [str(build_victim("idle")), "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, process_group=0
        )
        assert self.process.line() == "ready"
        self.pid = self.process.pid

    def answers(self, timeout: float = 1.0) -> bool:
        self.process.tell("x")
        assert self.process.stdout is not None
        return bool(select.select([self.process.stdout], [], [], timeout)[0]) and self.process.line().startswith("threads=")

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


Operation = Callable[[ps.Filter, Target], object]


def attach(f: ps.Filter, target: Target) -> object:
    return f.attach(target.pid)


def bind_and_activate(f: ps.Filter, target: Target) -> object:
    with f.attach(target.pid, active=False) as a:
        a.activate()
    return a


def gate(f: ps.Filter, target: Target) -> object:
    return f.attach(target.pid, mode="gate")


def tree(f: ps.Filter, target: Target) -> object:
    return f.attach(target.pid, tree=True)


def hold(f: ps.Filter, target: Target) -> object:
    return f.attach(target.pid, on_supervisor_death=ps.allow())


def deadline(f: ps.Filter, target: Target) -> object:
    a = f.attach(target.pid, active=False, deadline=600)
    a.activate()
    return a


def on_exec(f: ps.Filter, target: Target) -> object:
    a = f.attach(target.pid, activate_on="exec")
    assert isinstance(a, ps.TriggeredAttachment)
    a.disarm()
    return a


def later(f: ps.Filter, target: Target) -> object:
    return f.attach(target.pid, activate_on=600.0)


@functools.cache
def pair() -> tuple[socket.socket, socket.socket]:
    """Made before the interrupts: socket.socketpair() itself loses descriptors to one."""
    return socket.socketpair()


def passed_on(f: ps.Filter, target: Target) -> object:
    ours, theirs = pair()
    f.send(ours)
    with ps.Filter.recv(theirs) as g, ps.Filter.from_fd(g.fileno()) as h:
        return h.query()


OPERATIONS: dict[str, Operation] = {
    "attach": attach,
    "bind and activate": bind_and_activate,
    "gate": gate,
    "tree": tree,
    "hold": hold,
    "deadline": deadline,
    "on exec": on_exec,
    "later": later,
    "passed on": passed_on,
}


def disarm(f: ps.Filter) -> None:
    """End what a close() leaves armed."""
    for one in f.attachments:
        if isinstance(one, ps.TriggeredAttachment):
            one.disarm()


def one_round(name: str, begin: Callable[[], object], end: Callable[[], int]) -> tuple[int, str]:
    """Run an operation between two calls. What the second returned, and what was wrong after it."""
    operate = OPERATIONS[name]
    target = Target()
    before = state()
    f: ps.Filter | None = None
    wrong = ""

    def run() -> None:
        nonlocal f
        f = ps.Filter(notifying())
        operate(f, target)
        f.close()

    places = 0
    try:
        begin()
        try:
            run()
        finally:
            places = end()
    except KeyboardInterrupt:
        pass
    in_force = status_field(target.pid, "Seccomp") == "2"
    if f is not None:
        if in_force and not f.closed and not f.attachments and name != "bind and activate":  # whose block closes it
            wrong += "in force, and no attachment of the filter; "
        disarm(f)
        f.close()
    f = None
    wrong += settled(before)
    if not target.answers():
        wrong += "the target hangs or died"
    target.end()
    return places, wrong


def sweep(name: str) -> list[str]:
    import warnings

    warnings.simplefilter("ignore", ResourceWarning)
    sys.unraisablehook = lambda _: None  # pytest's keeps what an interrupted __del__ refers to
    module = interrupter()
    pair()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for _ in range(2):  # caches fill
        places, wrong = one_round(name, lambda: module.arm(0, LOOKS), module.disarm)
    assert not wrong, wrong
    faults = []
    for at in range(1, places + 1, EVERY):
        _, wrong = one_round(name, functools.partial(module.arm, at, LOOKS), module.disarm)
        if wrong:
            faults.append(f"at {at} of {places}: {wrong}")
    print(f"{name}: {places} places")
    return faults


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_an_interrupt_at_any_place_loses_nothing(name: str) -> None:
    assert in_child(sweep, name, timeout=300) == []


def soak(rounds: int, seed: int) -> list[str]:
    """Run operations with SIGALRM at a random moment, and count what is wrong after each."""
    import warnings

    armed = False

    def interrupt(*_: object) -> None:
        if armed:  # another thread can take the signal, so that it is heard here after the end
            raise KeyboardInterrupt

    def begin(moment: float) -> None:
        nonlocal armed
        armed = True
        signal.setitimer(signal.ITIMER_REAL, moment)

    def over() -> int:
        nonlocal armed
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        return 0

    warnings.simplefilter("ignore", ResourceWarning)
    sys.unraisablehook = lambda _: None  # pytest's keeps what an interrupted __del__ refers to
    pair()
    rng = random.Random(seed)
    for name in OPERATIONS:  # caches fill
        one_round(name, lambda: None, lambda: 0)
    signal.signal(signal.SIGALRM, interrupt)
    faults = []
    for number in range(rounds):
        name = rng.choice(list(OPERATIONS))
        moment = rng.uniform(0.00005, 0.006)
        _, wrong = one_round(name, functools.partial(begin, moment), over)
        armed = False
        if wrong:
            faults.append(f"round {number}, {name}, after {moment:.6f} s: {wrong}")
    return faults


def test_interrupts_at_random_moments_lose_nothing() -> None:
    seed = random.randrange(1 << 32)
    assert in_child(soak, ROUNDS, seed, timeout=60 + ROUNDS / 10) == [], f"seed {seed}"
