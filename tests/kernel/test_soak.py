"""Long runs of the loop: nothing leaks, nothing hangs, every call of a live target is answered, and rightly.

PYSECCOMP_CALLS: notifications of the leak test (10,000,000 is the promise). PYSECCOMP_SECONDS: of chaos (300 is).
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import resource
import signal
import threading
import time
from pathlib import Path

import pytest
from harness import DEADLINE, Victim, build_victim, descriptors, victim
from listening import ARCH, NR, call, listening

import pyseccomp as ps

CALLS = int(os.environ.get("PYSECCOMP_CALLS", "100000"))
SECONDS = float(os.environ.get("PYSECCOMP_SECONDS", "6"))
TARGETS = 6


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("kind", ["table", "string", "callback"])
def test_many_notifications_leak_nothing(kind: str) -> None:
    count = CALLS if kind == "table" else CALLS // 5

    def target() -> int:
        return sum(call("openat", -100, b"/tmp/x", 0) == 5 for _ in range(count))

    r = ps.Responder(ps.deny(1))
    if kind == "table":
        r.on(NR["openat"], ps.reply(5), arch=ARCH)
    elif kind == "string":
        r.on(NR["openat"], ps.reply(5), ps.StringArg(1, prefix="/tmp/"), arch=ARCH)
    else:
        r.on(NR["openat"], lambda n: ps.reply(5), arch=ARCH)
    with listening(target, "openat") as (box, child):
        before, fds = resident(), descriptors()
        loop = threading.Thread(target=box.serve, args=(r,))
        loop.start()
        loop.join(DEADLINE + count / 5000)
        assert not loop.is_alive()
        assert child.result() == count == r.stats().total
        assert resident() - before < 4 << 20 and descriptors() == fds


def answer(n: ps.Notification) -> ps.Answer:
    return ps.reply(n.args[1] ^ 0x5A5A)


@pytest.mark.parametrize("wait_killable", [False, True])
def test_chaos_harms_no_answer(wait_killable: bool) -> None:
    """Targets that are signalled, stopped, killed, that fork and exec, at random; live ones get each answer, and the right one."""
    chance = random.Random(11)
    policy = ps.Policy()
    for name in ("getppid", "getpgid"):
        policy.add(ps.NOTIFY, name)
    responder = ps.Responder(ps.deny(1)).on("getppid", answer).on("getpgid", ps.reply(77))
    killed = 0
    with contextlib.ExitStack() as stack:
        f = stack.enter_context(ps.Filter(policy, wait_killable=wait_killable))
        loop: threading.Thread | None = None
        own: dict[int, contextlib.ExitStack] = {}

        def start() -> Victim:
            nonlocal loop
            its = stack.enter_context(contextlib.ExitStack())
            one = its.enter_context(victim(build_victim("caller"), chance.choice(["restart", "interrupt"])))
            own[one.pid] = its
            f.attach(one)
            assert one.stdin is not None
            one.stdin.write("x")
            one.stdin.flush()
            if loop is None or not loop.is_alive():
                loop = threading.Thread(target=f.serve, args=(responder,))
                loop.start()
            return one

        targets = [start() for _ in range(TARGETS)]
        stopped: set[Victim] = set()
        end = time.monotonic() + SECONDS / 2
        while time.monotonic() < end:
            time.sleep(chance.uniform(0, 0.002))
            one = chance.choice(targets)
            what = chance.random()
            if what < 0.9:
                one.send_signal(signal.SIGUSR1)
            elif what < 0.96:
                one.send_signal(signal.SIGCONT if one in stopped else signal.SIGSTOP)
                stopped ^= {one}
            elif what < 0.97:
                os.killpg(one.pid, signal.SIGKILL)
                assert one.wait(DEADLINE) == -signal.SIGKILL
                killed += 1
                stopped.discard(one)
                for attachment in f.attachments:
                    if attachment.pid == one.pid:
                        attachment.close()
                own.pop(one.pid).close()
                targets.remove(one)
                targets.append(start())
            assert loop is not None and loop.is_alive()
        for one in targets:
            one.send_signal(signal.SIGCONT)
            assert one.stdin is not None
            one.stdin.close()
        ends = [(one.wait(DEADLINE), one.stdout.read() if one.stdout else "") for one in targets]
        assert ends == [(0, "")] * TARGETS
        assert loop is not None
        f.stop()
        loop.join(DEADLINE)
        assert not loop.is_alive()
        stats = responder.stats()
    assert stats.pending == 0 and stats.total > 100
    print(f"{stats.total} answered, {stats.gone} gone, {killed} killed")
