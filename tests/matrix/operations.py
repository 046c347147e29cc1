"""What is done to a target. Each function runs in the asker, raises what pyseccomp raises, and asserts what must then be true."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyseccomp as ps
from matrix.places import Place
from matrix.programs import ANSWERED, ARCHES, DENIED, denying, forgetting, notifying
from matrix.target import EXEC, FORK, OPEN, PATIENCE, PROBE, State
from pyseccomp import profile
from pyseccomp.trace import Tracer

ENOSYS = 38


class Refusal(Exception):
    """A refusal that is told in another way than by an error of pyseccomp's."""


@dataclass
class Scene:
    """What an operation works on, and what it says that it did."""

    pid: int
    child: int
    state: State
    folder: Path
    place: Place
    roles: set[str]
    cgroup: Path | None
    again: tuple[str, ...] = ()
    start: Callable[..., object] | None = None
    become_target: Callable[[socket.socket], None] | None = None
    limit: Callable[[], None] = lambda: None
    """Takes from the asker what it lacks."""
    added: dict[str, int] = field(default_factory=lambda: {"target": 0, "child": 0})
    """Filters put in force so far."""
    probe: int | None = None
    """The errno that getppid has for the target's threads in the end; None: as before."""
    facts: dict[str, bool] = field(default_factory=dict)
    """armed: a trigger stays in the target; executed: it has executed another program; killed: as its deadline promised."""

    def wake(self) -> None:
        """Let a stopped or frozen target go on, where something is wanted of it."""
        if self.place.condition == "stopped":
            os.kill(self.pid, signal.SIGCONT)
        if self.place.condition == "frozen" and self.cgroup is not None:
            (self.cgroup / "cgroup.freeze").write_text("0")

    def settle(self, probe: int, roles: set[str] | None = None) -> None:
        """Wait until getppid fails with that errno for every thread, twice in a row."""
        end = time.monotonic() + PATIENCE
        for role in sorted(self.roles - {"c"} if roles is None else roles):
            start = self.state.rounds(role)
            while self.state.rounds(role) < start + 2 or self.state.probe(role) != probe:
                assert time.monotonic() < end, f"thread {role!r}: getppid fails with {self.state.probe(role)}, not {probe}"
                time.sleep(0.002)  # shared memory is all that there is to look at


def attach(s: Scene) -> None:
    with ps.Filter(denying()) as f:
        a = f.attach(s.pid)
        s.added["target"], s.probe = 1, DENIED
        assert a.query().state == "active", a.query()


def listen(s: Scene) -> None:
    with ps.Filter(notifying("getpgid")) as f:
        f.attach(s.pid)
        s.added["target"], s.probe = 1, DENIED
        _answer_one(s, f)


def _answer_one(s: Scene, f: ps.Filter) -> None:
    s.wake()
    before = s.state.answered
    s.state.request(PROBE)
    n = f.receive(timeout=PATIENCE)
    assert n.syscall == "getpgid", n
    n.deny(ANSWERED)
    answer = s.state.wait_answer(before)
    assert answer == ANSWERED, f"the notified call ended with {answer}"


def serve(s: Scene) -> None:
    responder = ps.Responder()
    for arch in ARCHES:
        responder.on("getpgid", ps.deny(ANSWERED), arch=arch.token)
    with ps.Filter(notifying("getpgid")) as f:
        f.attach(s.pid)
        s.added["target"], s.probe = 1, DENIED
        s.wake()
        failures: list[BaseException] = []

        def loop() -> None:
            try:
                f.serve(responder)
            except BaseException as error:
                failures.append(error)
                f.close()

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            answer = s.state.ask(PROBE)
        finally:
            if not f.closed:
                f.stop()
            thread.join(PATIENCE)
        assert not thread.is_alive(), "serve() did not stop"
        if failures:
            raise failures[0]
        assert answer == ANSWERED, f"the served call ended with {answer}"


def several(s: Scene) -> None:
    for _ in range(3):
        with ps.Filter(denying()) as f:
            f.attach(s.pid)
            s.added["target"] += 1
            s.probe = DENIED


def tree(s: Scene) -> None:
    with ps.Filter(denying()) as f:
        a = f.attach(s.pid, tree=True)
        s.added.update(target=1, child=1)
        s.probe = DENIED
        assert a.query().state == "active", a.query()


def tree_listen(s: Scene) -> None:
    with ps.Filter(notifying("getpgid")) as f:
        f.attach(s.pid, tree=True)
        s.added.update(target=1, child=1)
        s.probe = DENIED
        _answer_one(s, f)


def cgroup(s: Scene) -> None:
    assert s.cgroup is not None
    with ps.Filter(denying()) as f:
        a = f.attach(cgroup=s.cgroup)
        s.added.update(target=1, child=1)
        s.probe = DENIED
        assert a.query().state == "active", a.query()


def gate(s: Scene) -> None:
    with ps.Filter(denying()) as f:
        a = f.attach(s.pid, mode="gate", active=False)
        s.added["target"], s.probe = 1, ENOSYS
        assert a.query().state == "inactive", a.query()
        s.wake()
        s.settle(0)
        a.activate()
        assert a.query().state == "active", a.query()
        s.settle(DENIED)
        a.pause()
        s.settle(0)
        a.resume()


def on_exec(s: Scene) -> None:
    with ps.Filter(denying()) as f:
        a = f.attach(s.pid, activate_on="exec")
        s.facts["armed"] = True
        assert isinstance(a, ps.TriggeredAttachment)
        if a.query().state != "inactive":
            a.wait(PATIENCE)
        s.wake()
        s.facts["executed"] = True
        s.roles.intersection_update("mc")
        s.state.request(EXEC)
        try:
            a.wait(PATIENCE)
        except ps.AttachError:
            s.facts["killed"] = a.query().state == "dead"
            raise
        s.added["target"], s.probe = 1, DENIED
        assert a.query().state == "active", a.query()


def on_fork(s: Scene) -> None:
    with ps.Filter(denying()) as f:
        a = f.attach(s.pid, activate_on="fork")
        s.facts["armed"] = True
        try:
            s.wake()
            pid = s.state.ask(FORK)
            assert pid > 0, f"fork failed: {pid}"
            s.settle(DENIED, {"k"})
        finally:
            a.close()


def query(s: Scene) -> None:
    found = ps.query(s.pid, programs=True, timeout=5)
    assert found.pid == s.pid
    assert {t.name for t in found.threads} >= {"target"}, found
    if found.unknown:
        raise Refusal("; ".join(found.unknown))
    for thread in found.threads:
        assert len(thread.programs or ()) == (thread.filters or 0), thread


def dump(s: Scene) -> None:
    chain = ps.dump(s.pid)
    counts = {t.filters for t in ps.query(s.pid).threads}
    assert len(chain) in counts, f"{len(chain)} programs of {counts} filters"


def explain(s: Scene) -> None:
    ps.explain(s.pid, "getppid", arch=ARCHES[-1] if s.place.machine else None)


def trace(s: Scene) -> None:
    with _traced(s) as tracer:
        names = {count.name for count in tracer.counts() if count.count}
        assert {"getppid", "write"} <= names, names


def profile_(s: Scene) -> None:
    with _traced(s, watched=profile.WATCHED) as tracer:
        calls, arches = profile.learnt(tracer)
        policy = profile.make_policy(calls, arches)
        where = ARCHES[-1] if s.place.machine else None
        assert policy.compile().simulate("getppid", arch=where).action == ps.ALLOW


@contextlib.contextmanager
def _traced(s: Scene, watched: dict[str, int] | None = None) -> Iterator[Tracer]:
    with Tracer(watched=watched) as tracer:
        tracer.attach(s.pid)
        s.added["target"] = 1
        s.wake()
        end = time.monotonic() + PATIENCE
        goal = {role: s.state.rounds(role) + 2 for role in s.roles - {"c"}}

        def tick() -> None:
            if all(s.state.rounds(role) >= n for role, n in goal.items()):
                raise KeyboardInterrupt
            assert time.monotonic() < end, "the traced target does not go on"

        with contextlib.suppress(KeyboardInterrupt):
            tracer.follow(on_tick=tick, interval=0.02)
        yield tracer


def checkpoint(s: Scene) -> None:
    reader, writer = os.pipe()
    try:
        pid = os.fork()
    except OSError as error:
        os.close(reader)
        os.close(writer)
        raise Refusal(f"{type(error).__name__}: {error}") from None
    if pid == 0:
        try:
            s.limit()
            _manage(s, writer)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        data = file.read()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if data[:1] == b"A":
        s.added["target"], s.probe = 1, DENIED
        data = data[1:]
    if data[:1] == b"R":
        raise Refusal(data[1:].decode())
    if data[:1] != b"C":
        raise RuntimeError(f"the first manager failed: {data.decode()}")
    s.limit()
    with ps.Filter.restore(data[1:]) as f:
        assert f.query().state == "active"
        _answer_one(s, f)


def _manage(s: Scene, writer: int) -> None:
    """Be the manager that is killed once its checkpoint is taken."""
    try:
        f = ps.Filter(notifying("getpgid"), name=f"matrix{os.getpid()}")
        f.attach(s.pid, on_supervisor_death="hold")
        os.write(writer, b"A")
        os.write(writer, b"C" + f.checkpoint())
    except ps.SeccompError as error:
        os.write(writer, f"R{type(error).__name__}: {error}".encode())
    except BaseException as error:
        os.write(writer, f"{type(error).__name__}: {error}".encode())
    os.close(writer)
    signal.pause()


def emulate_open(s: Scene) -> None:
    with ps.Filter(notifying("openat")) as f:
        f.attach(s.pid)
        s.added["target"], s.probe = 1, DENIED
        s.wake()
        before = s.state.answered
        s.state.request(OPEN)
        n = f.receive(timeout=PATIENCE)
        assert n.syscall == "openat", n
        ps.emulate_open(n)
        result = s.state.wait_answer(before)
        assert result == 0, f"the emulated open ended with {result}"


def popen(s: Scene) -> None:
    assert s.start is not None
    with ps.Filter(denying()) as f:
        try:
            process = s.start(filter=f)
        except ps.SeccompError:
            raise
        except OSError as error:  # as subprocess itself raises them
            raise Refusal(f"{type(error).__name__}: {error}") from None
        s.added.update(target=1, child=1)
        s.probe = DENIED
        assert isinstance(process, ps.Popen) and process.attachment is not None
        process.returncode = 0  # it is not ours to wait for


def park(s: Scene) -> None:
    assert s.become_target is not None
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        s.become_target(theirs)
    theirs.close()
    s.roles.intersection_update("m")
    s.limit()
    with ours, ps.Filter(notifying("getpgid")) as f:
        f.send(ours)
        ours.settimeout(PATIENCE)
        reply = ours.recv(4096)
        if reply[:1] != b"P":
            raise Refusal(reply[1:].decode() or "the target ended")
        (a,) = f.wait_parked(1, PATIENCE)
        if a.query().state != "inactive":
            raise Refusal(f"parked, but {a.query()}")
        s.settle(0)
        f.activate()
        s.settle(DENIED)
        s.added["target"], s.probe = 1, DENIED
        assert a.query().state == "active", a.query()
        _answer_one(s, f)
        ours.send(b"K")


def deadline(s: Scene) -> None:
    with ps.Filter(denying()) as f:
        a = f.attach(s.pid, active=False, deadline=0.2)
        try:
            assert a.query().state == "inactive", a.query()
        except ps.SeccompError:
            s.added["target"], s.probe = 1, DENIED  # an inactive attachment does not leave the block as it is
            raise
        s.wake()
        try:
            s.settle(DENIED)
        except AssertionError:
            if a.query().state != "dead":
                raise
            s.facts["killed"] = True
            raise Refusal("killed at its deadline, because it could not be filtered") from None
        s.added["target"], s.probe = 1, DENIED
        end = time.monotonic() + PATIENCE
        while not a.activated:  # the guardian's report comes by a thread
            assert time.monotonic() < end, a.query()
            time.sleep(0.002)
        assert a.query().state == "active", a.query()


def foreign(s: Scene) -> None:
    policy = ps.Policy(arches=ARCHES[:1])  # says nothing of the target's calls
    policy.add(ps.ERRNO(DENIED), "getppid")
    with ps.Filter(policy) as f:
        f.attach(s.pid)
        s.added["target"], s.probe = 1, DENIED


def forgets_restart(s: Scene) -> None:
    with ps.Filter(forgetting("restart_syscall")) as f:
        f.attach(s.pid)
        s.added["target"], s.probe = 1, DENIED


def forgets_close(s: Scene) -> None:
    with ps.Filter(forgetting("close", notify=True)) as f:
        f.attach(s.pid)
        s.added["target"], s.probe = 1, DENIED
        _answer_one(s, f)


@dataclass(frozen=True)
class Operation:
    """An operation, and what it needs."""

    name: str
    run: Callable[[Scene], None]
    cgroup: bool = False
    starts: bool = False
    """It starts its target itself."""
    stays: bool = False
    """Something of ours answers the target for as long as that lives."""
    holds: bool = False
    """A guardian keeps its listener until the second manager has come."""
    limits: bool = False
    """It calls :attr:`Scene.limit` itself."""
    traces: bool = False
    """That is its tracer: the trigger stays armed, as its documentation says."""


OPERATIONS = {
    one.name: one
    for one in (
        Operation("attach", attach),
        Operation("listen", listen),
        Operation("serve", serve),
        Operation("several", several),
        Operation("tree", tree),
        Operation("tree-listen", tree_listen),
        Operation("cgroup", cgroup, cgroup=True),
        Operation("gate", gate),
        Operation("exec", on_exec),
        Operation("fork", on_fork, stays=True, traces=True),
        Operation("query", query),
        Operation("dump", dump),
        Operation("explain", explain),
        Operation("park", park, starts=True, limits=True),
        Operation("deadline", deadline),
        Operation("trace", trace, stays=True),
        Operation("profile", profile_, stays=True),
        Operation("checkpoint", checkpoint, holds=True, limits=True),
        Operation("emulate-open", emulate_open),
        Operation("popen", popen, starts=True),
        Operation("foreign", foreign),
        Operation("forgets-restart", forgets_restart),
        Operation("forgets-close", forgets_close),
    )
}
