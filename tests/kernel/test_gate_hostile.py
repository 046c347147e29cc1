"""What can be refused to the processes that serve a gate, and what a user that does not keep up holds up."""

from __future__ import annotations

import contextlib
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
from attaching import DENIED, ask, notify_getppid, wait_until
from harness import SLOW, build_victim, status_field, victim

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="privilege: root, to trace a manager")

MANAGER = """
import os, signal, sys
import pyseccomp as ps
from attaching import DENIED, deny_getppid
print("ready", flush=True)
sys.stdin.readline()
f = ps.Filter(deny_getppid())
options = {"on_supervisor_death": "allow"} if sys.argv[2] == "guarded" else {}
a = f.attach(int(sys.argv[1]), mode="gate", active=True, **options)
print("gated", flush=True)
sys.stdin.readline()
if sys.argv[3] == "exec":
    os.execv(sys.executable, [sys.executable, "-c", "print('executed', flush=True); import signal; signal.pause()"])
signal.pause()
"""

CROWD = """
import os, sys, threading
threading.stack_size(65536)
go = threading.Event()
for _ in range(1099):
    threading.Thread(target=lambda: (go.wait(), os.getppid()), daemon=True).start()
print("ready", flush=True)
sys.stdin.readline()
go.set()
sys.stdin.readline()
"""


@contextlib.contextmanager
def injecting(pid: int, *rules: str, follow: str = "-f") -> Iterator[None]:
    """Have the kernel refuse calls of a process and of all that it makes from now on."""
    calls = ",".join(rule.partition(":")[0] for rule in rules)
    options = [word for rule in rules for word in ("-e", f"inject={rule}")]
    with tempfile.TemporaryDirectory() as path:
        out = Path(path, "strace")
        command = ["strace", "-qq", follow, "-p", str(pid), "-o", str(out), "-e", f"trace={calls}", *options]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as tracer:
            try:
                wait_until(lambda: status_field(pid, "TracerPid") == str(tracer.pid), "it is traced")
                yield
                wait_until(lambda: "(INJECTED)" in out.read_text(), "a call was refused")
            finally:
                tracer.terminate()


@as_root
@pytest.mark.parametrize("care", ["unguarded", "guarded"])
@pytest.mark.parametrize("end", ["death", "exec"])
@pytest.mark.parametrize(
    "rules",
    [
        ("prctl:error=EPERM",),
        ("prctl:error=ENOSYS", "unshare:error=EPERM"),
        ("prctl:error=EPERM", "rt_sigtimedwait:error=EPERM"),
        ("epoll_wait:error=EPERM", "close_range:error=ENOSYS"),
    ],
)
def test_what_serves_a_gate_ends_or_takes_over_whatever_is_refused(rules: tuple[str, ...], end: str, care: str) -> None:
    """A pipe of the dead manager ends: no process keeps its descriptors. The gate is closed, or served on."""
    reader, writer = os.pipe()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with victim(build_victim("idle")) as target:
        command = (sys.executable, "-c", MANAGER, str(target.pid), care, end)
        with victim(*command, env=environment, pass_fds=[writer]) as manager:
            os.set_inheritable(writer, False)
            with injecting(manager.pid, *rules):
                manager.tell("go")
                assert manager.line() == "gated"
                assert [ask(target)["probe"] for _ in range(2)] == [DENIED] * 2
                manager.tell("end")
                if end == "exec":
                    assert manager.line() == "executed"
                else:
                    manager.kill()
                    manager.wait(20)
                    os.close(writer)
                    writer = -1
                    assert select.select([reader], [], [], 20 * SLOW)[0] and os.read(reader, 1) == b"", "the pipe is open"
                expected = 38 if care == "unguarded" else DENIED
                wait_until(lambda: ask(target)["probe"] == expected, "what was promised")
                assert [ask(target)["probe"] for _ in range(2)] == [expected] * 2
    for fd in {reader, writer} - {-1}:
        os.close(fd)


@as_root
def test_a_server_that_dies_is_replaced_even_where_that_is_refused_at_first() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with victim(build_victim("idle")) as target:
        with victim(sys.executable, "-c", MANAGER, str(target.pid), "guarded", "death", env=environment) as manager:
            manager.tell("go")
            assert manager.line() == "gated"
            with injecting(manager.pid, "clone:error=EAGAIN:when=1..5"):
                for child in children(manager.pid):
                    os.kill(child, signal.SIGKILL)
                assert ask(target)["probe"] == DENIED
                wait_until(lambda: len(children(manager.pid)) == 2, "the standby is there again")
            manager.kill()
            manager.wait(20)
            wait_until(lambda: ask(target)["probe"] == DENIED, "it takes over")


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        found += [int(word) for word in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    return found


@as_root
def test_a_server_without_epoll_serves_what_is_added_later() -> None:
    with victim(build_victim("idle")) as one, victim(build_victim("idle")) as two, ps.Filter(notify_getppid()) as f:
        before = set(children(os.getpid()))
        f.attach(one.pid, mode="gate", active=True)
        (server,) = (pid for pid in set(children(os.getpid())) - before if Path(f"/proc/{pid}/comm").read_text() != "psc-gate\n")
        rules = ("epoll_ctl:error=ENOMEM", "epoll_wait:error=ENOSYS", "epoll_pwait:error=ENOSYS")
        with injecting(server, *rules, follow="-y"):
            f.attach(two.pid, mode="gate", active=True)
            for target in (one, two):
                target.tell("report")
                f.receive(20).deny(DENIED)
                assert f"probe={DENIED}" in target.line()


@pytest.mark.parametrize("guarded", [False, True])
def test_callers_of_a_user_that_does_not_keep_up_hold_up_no_other_gate(guarded: bool) -> None:
    """1,099 notified calls wait and are not received: another gate answers, and a deadline comes on time."""
    options = {"on_supervisor_death": "allow"} if guarded else {}
    with victim(sys.executable, "-c", CROWD) as crowd, victim(build_victim("idle")) as one, victim(build_victim("idle")) as two:
        with ps.Filter(notify_getppid()) as f:
            f.attach(crowd.pid, mode="gate", active=True, **options)  # type: ignore[arg-type]
            a = f.attach(one.pid, mode="gate", active=False)
            b = f.attach(two.pid, mode="gate", active=False, deadline=1.0)
            crowd.tell("go")
            assert [ask(one)["probe"] for _ in range(3)] == [0] * 3
            wait_until(lambda: b.activated, "the deadline")
            assert (a.activated, b.query().state) == (False, "active")
            received = 0
            while received < 1099:
                f.receive(20).deny(DENIED)
                received += 1
            two.tell("report")
            f.receive(20).deny(DENIED)
            assert f"probe={DENIED}" in two.line()
            a.close()
