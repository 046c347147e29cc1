"""Programs that judge the injector's own tidying up: close, munmap and rt_sigprocmask after the filter is in force."""

from __future__ import annotations

import os
import struct
import threading
from contextlib import AbstractContextManager

import pytest
from attaching import may_suspend
from harness import Victim, victim

import pyseccomp as ps

PONG = "import os\nprint('ready', flush=True)\nwhile os.read(0, 100): os.write(1, b'pong\\n')"
READ, WRITE = 0, 1


def pong() -> AbstractContextManager[Victim]:
    """A process that makes no calls but read and write."""
    return victim("/usr/bin/env", "python3", "-c", PONG)


def answers(target: Victim) -> bool:
    target.tell("x")
    return target.line() == "pong"


def strict(padding: int = 0) -> ps.Program:
    """Kill at every call but read and write; padding makes it too long for the unused room of any page."""
    insns = [
        (0x05, 0, 0, padding),
        *[(0x06, 0, 0, ps.KILL_PROCESS)] * padding,
        (0x20, 0, 0, 0),
        (0x15, 2, 0, READ),
        (0x15, 1, 0, WRITE),
        (0x06, 0, 0, ps.KILL_PROCESS),
        (0x06, 0, 0, ps.ALLOW),
    ]
    return ps.Program.from_bytes(b"".join(struct.pack("<HBBI", *map(int, insn)) for insn in insns))


@pytest.mark.parametrize("notified", [["close"], ["close", "munmap", "rt_sigprocmask"], None])
def test_a_program_that_notifies_the_tidying_up_is_attached_and_hangs_nobody(notified: list[str] | None) -> None:
    policy = ps.Policy(default=ps.NOTIFY if notified is None else ps.ALLOW)
    for name in notified or ():
        policy.add(ps.NOTIFY, name)
    with pong() as target, ps.Filter(policy) as f:
        attachment = f.attach(target)
        assert attachment.query().state == "active"
        for fd in os.listdir(f"/proc/{target.pid}/fd"):
            assert "seccomp" not in os.readlink(f"/proc/{target.pid}/fd/{fd}")
        server = threading.Thread(target=f.serve, args=(ps.Responder(default=ps.allow()),))
        server.start()
        try:
            assert answers(target)
        finally:
            f.stop()
            server.join()


@pytest.mark.parametrize("padding", [0, 2000])
def test_a_program_that_kills_the_tidying_up_leaves_the_target_alive(padding: int) -> None:
    with pong() as target, ps.Filter(strict(padding)) as f:
        attachment = f.attach(target)
        assert attachment.result is not None
        must_stay = padding and not may_suspend()
        assert attachment.result.residue == (-(-(len(f.program) * 8 + 16) // 4096) * 4096 if must_stay else 0)
        assert answers(target)
        assert attachment.query().state == "active"


@pytest.mark.skipif(may_suspend(), reason="privilege: to have too little, filters can be suspended here")
def test_a_program_that_notifies_and_denies_close_and_exit_is_refused_without_the_right_to_suspend() -> None:
    """With exit allowed a temporary thread loads it, whose descriptors end with it (from Linux 6.9)."""
    policy = ps.Policy()
    policy.add(ps.NOTIFY, "mkdir")
    policy.add(ps.ERRNO(1), "close")
    policy.add(ps.ERRNO(1), "exit")
    with pong() as target, ps.Filter(policy) as f:
        with pytest.raises(ps.AttachError, match="forbids close"):
            f.attach(target)
        assert ps.query(target).state == "detached"
        assert answers(target)
