"""Checkpoint, the manager's death, restore: in another process, on real targets."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import signal
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attaching import DENIED, ask, deny_getppid, may_suspend, notify_getppid
from harness import Victim, build_victim, descriptors, in_child, victim

import pyseccomp as ps

HEAD = 56


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="psc") as path:
        monkeypatch.setenv("XDG_RUNTIME_DIR", path)
        yield Path(path)


def from_manager(work: Callable[[Callable[[bytes], None]], None]) -> bytes:
    """What work() hands over; the process that ran it was killed by SIGKILL after that."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)

            def hand_over(data: bytes) -> None:
                with os.fdopen(writer, "wb") as out:
                    out.write(data)

            work(hand_over)
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        data = file.read()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert data, "the manager died before it handed anything over"
    return data


def resealed(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The same with another body and the right digest."""
    body = json.loads(data[HEAD:])
    change(body)
    text = json.dumps(body).encode()
    head = data[:16] + struct.pack("<Q", len(text))
    return head + hashlib.sha256(head + text).digest() + text


@contextlib.contextmanager
def serving(f: ps.Filter, responder: ps.Responder) -> Iterator[None]:
    thread = threading.Thread(target=f.serve, args=(responder,))
    thread.start()
    try:
        yield
    finally:
        f.stop()
        thread.join(30)


def test_an_inactive_filter_stays_inactive_and_activates() -> None:
    with victim(build_victim("idle")) as subject:

        def manage(hand_over: Callable[[bytes], None]) -> None:
            f = ps.Filter(deny_getppid(), log=True, wait_killable=False)
            f.attach(subject, active=False, no_new_privs=True, timeout=3.5)
            hand_over(f.checkpoint())

        data = from_manager(manage)
        assert ask(subject)["probe"] != DENIED
        before = descriptors()
        with ps.Filter.restore(data) as f:
            (one,) = f.attachments
            assert (f.program, f.log, f.wait_killable) == (deny_getppid(), True, False)
            assert (one.pid, one.no_new_privs, one.timeout, one.activated) == (subject.pid, True, 3.5, False)
            assert f.query().state == "inactive" and ask(subject)["probe"] != DENIED
            f.activate()
            assert f.query().state == "active" and ask(subject)["probe"] == DENIED
        assert descriptors() == before


def test_an_active_filter_is_known_to_be_active() -> None:
    with victim(build_victim("idle")) as subject:

        def manage(hand_over: Callable[[bytes], None]) -> None:
            f = ps.Filter(deny_getppid())
            f.attach(subject)
            hand_over(f.checkpoint())

        data = from_manager(manage)
        with ps.Filter.restore(data) as f:
            assert f.query().state == "active" and f.attachments[0].activated
            f.activate()  # a no-op
            assert ps.query(subject).threads[0].filters == 1
            with ps.Filter.restore(f.checkpoint()) as second:
                assert second.query().state == "active"


def judged(_: ps.Notification) -> ps.Answer:
    return ps.deny(92)


def test_notified_calls_are_answered_on_in_another_process() -> None:
    """One received and unanswered, one waiting, and all that come: each once, by the restored rules."""
    with victim(build_victim("idle")) as subject:

        def manage(hand_over: Callable[[bytes], None]) -> None:
            f = ps.Filter(notify_getppid())
            f.attach(subject)
            with serving(f, ps.Responder(ps.deny(DENIED)).on("mkdir", judged, ps.Arg(1, ps.EQ, 5) & ~ps.StringArg(0, prefix="/x"))):
                assert ask(subject)["probe"] == DENIED
                data = f.checkpoint()
                assert ask(subject)["probe"] == DENIED  # this object goes on
            subject.tell("report")
            n = f.receive(20)
            hand_over(data)
            signal.pause()
            n.allow()

        data = from_manager(manage)
        name = f"{judged.__module__}.judged"
        with pytest.raises(ps.CheckpointError, match=rf"functions=.*{name}"):
            ps.Filter.restore(data)
        with ps.Filter.restore(data, functions={name: judged}) as f:
            assert f.responder is not None and f.query().state == "active"
            assert f.responder.simulate("mkdir", (0, 6)) == ps.deny(DENIED)
            with serving(f, f.responder):
                assert f"probe={DENIED}" in subject.line()
                assert ask(subject)["probe"] == DENIED
            again = f.checkpoint()
            with pytest.raises(ps.ReclaimError, match="lives"):
                ps.Filter.restore(again, functions={name: judged})


def test_the_manager_dies_twice() -> None:
    with victim(build_victim("idle")) as a, victim(build_victim("idle")) as b:

        def first(hand_over: Callable[[bytes], None]) -> None:
            f = ps.Filter(notify_getppid(), name="mine")
            f.attach(a)
            f.attach(b, active=False)
            hand_over(f.checkpoint())

        data = from_manager(first)

        def second(hand_over: Callable[[bytes], None]) -> None:
            f = ps.Filter.restore(data)
            f.activate()
            hand_over(f.checkpoint())

        a.tell("report")
        again = from_manager(second)
        with ps.Filter.restore(again) as f, serving(f, ps.Responder(ps.deny(DENIED))):
            assert f"probe={DENIED}" in a.line()
            assert ask(a)["probe"] == DENIED and ask(b)["probe"] == DENIED
            assert {x.pid for x in f.attachments} == {a.pid, b.pid}


def example(subject: Victim) -> bytes:
    with ps.Filter(deny_getppid()) as f:
        attachment = f.attach(subject, active=False)
        f._responder = ps.Responder(ps.deny(5)).on("mkdir", ps.reply(-3), ps.Arg(0, ps.GE, 7), tgid=9)
        data = f.checkpoint()
        attachment.close()
    return data


def test_damage_is_refused_wherever_it_is() -> None:
    with victim(build_victim("idle")) as subject:
        data = example(subject)
        before = descriptors()
        chance = random.Random(1)
        for at in range(len(data)):
            flipped = bytearray(data)
            flipped[at] ^= 1 << chance.randrange(8)
            with pytest.raises(ps.CheckpointError):
                ps.Filter.restore(flipped)
        for length in {*range(0, len(data), 7), len(data) - 1}:
            with pytest.raises(ps.CheckpointError):
                ps.Filter.restore(data[:length])
        with pytest.raises(ps.CheckpointError, match="length"):
            ps.Filter.restore(data + b"x")
        with pytest.raises(ps.CheckpointError, match="version 2, and this release reads version 1"):
            ps.Filter.restore(data[:8] + b"\2" + data[9:])
        assert descriptors() == before


def test_bodies_that_make_no_sense_are_errors_and_nothing_else() -> None:
    """Every value of the body replaced by others, with the right digest."""
    strange: list[Any] = [None, True, -1, 0, 1 << 70, 1.5, "", "x", [], {}, [[]], ["x"], [1, 2, 3], {"x": 1}]

    def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        yield path
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in items:
            yield from paths(inner, (*path, key))

    with victim(build_victim("idle")) as subject:
        data = example(subject)
        before = descriptors()
        refused = restored = 0
        for path in list(paths(json.loads(data[HEAD:])))[1:]:
            for value in strange:

                def change(body: dict[str, Any], path: tuple[Any, ...] = path, value: Any = value) -> None:
                    at: Any = body
                    for key in path[:-1]:
                        at = at[key]
                    at[path[-1]] = value

                try:
                    f = ps.Filter.restore(resealed(data, change))
                except (ps.CheckpointError, ps.ReclaimError):
                    refused += 1
                else:
                    restored += 1
                    for attachment in f.attachments:
                        assert attachment.pid == subject.pid and not attachment.activated
                        attachment.close()
                    f.close()
        assert refused > 300 and restored
        assert ask(subject)["probe"] != DENIED and descriptors() == before


def test_a_pid_that_belongs_to_another_process_is_refused() -> None:
    with victim(build_victim("idle")) as subject:
        data = example(subject)
    with pytest.raises(ps.CheckpointError, match="has ended"):
        ps.Filter.restore(data)
    with ps.Filter.restore(data, missing="skip") as f:
        assert f.attachments == () and len(f.unrestored) == 1 and "has ended" in f.unrestored[0]
    with victim(build_victim("idle")) as other:
        reused = resealed(data, lambda body: body["attachments"][0].update(pid=other.pid))
        with pytest.raises(ps.CheckpointError, match="belongs to another process now"):
            ps.Filter.restore(reused)
        with ps.Filter.restore(reused, missing="skip") as f:
            assert f.attachments == ()
        assert ask(other)["probe"] != DENIED


def test_a_number_really_used_again() -> None:
    last = Path("/proc/sys/kernel/ns_last_pid")
    if os.geteuid() != 0 or not os.access(last, os.W_OK):
        pytest.skip("privilege: root, to choose the next pid")
    for _ in range(50):  # another process of this machine may get the number first, and keep it
        with victim(build_victim("idle")) as subject:
            data, wanted = example(subject), subject.pid
        last.write_text(str(wanted - 1))
        pid = os.fork()
        if pid == 0:
            signal.pause()
        try:
            if pid == wanted:
                with pytest.raises(ps.CheckpointError, match="belongs to another process now"):
                    ps.Filter.restore(data)
                assert ps.query(pid).state == "detached"
                return
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    raise AssertionError("the number was never given again")


def test_another_boot_and_another_namespace_are_refused() -> None:
    with victim(build_victim("idle")) as subject:
        data = example(subject)
        with pytest.raises(ps.CheckpointError, match="another boot"):
            ps.Filter.restore(resealed(data, lambda body: body.update(boot="x")))
        with pytest.raises(ps.CheckpointError, match="another pid namespace"):
            ps.Filter.restore(resealed(data, lambda body: body.update(pid_namespace=1)))


def test_what_a_task_does_not_carry_is_not_called_active() -> None:
    with victim(build_victim("idle")) as subject:
        data = example(subject)
        active = resealed(data, lambda body: body["attachments"][0].update(active=True, filters=1))
        with pytest.raises(ps.CheckpointError, match="does not carry the filter"):
            ps.Filter.restore(active)
        with ps.Filter(deny_getppid(92)) as other:
            other.attach(subject)
        if may_suspend():
            with pytest.raises(ps.CheckpointError, match="carries other filters, and not this one"):
                ps.Filter.restore(active)
        listening = resealed(data, lambda body: body["attachments"][0].update(active=True, listening=True))
        with pytest.raises(ps.CheckpointError, match="no process kept its listener"):
            ps.Filter.restore(listening)


def test_what_cannot_be_saved_is_refused_and_lives_on() -> None:
    def own() -> str:
        with ps.Filter(deny_getppid()) as f:
            f.attach()
            with pytest.raises(ps.CheckpointError) as caught:
                f.checkpoint()
        return str(caught.value)

    assert "it is this process" in in_child(own)
    with victim(build_victim("idle")) as subject, ps.Filter(deny_getppid()) as f:
        gate = f.attach(subject, mode="gate", active=False)
        with pytest.raises(ps.CheckpointError, match="mode='gate'"):
            f.checkpoint()
        gate.close()
    with victim(build_victim("idle")) as subject, ps.Filter(deny_getppid()) as f:
        late = f.attach(subject, active=False, deadline=60)
        with pytest.raises(ps.CheckpointError, match="deadline= or activate_on="):
            f.checkpoint()
        late.close()
        with pytest.raises(ps.CheckpointError, match=r"add_fd\(\)"):
            f._responder = ps.Responder().on("openat", ps.add_fd(0))
            f.checkpoint()
    with victim(build_victim("idle")) as subject, ps.Filter(notify_getppid()) as f:
        f.attach(subject, on_supervisor_death=ps.deny(DENIED))
        with pytest.raises(ps.CheckpointError, match="attach with 'hold'"):
            f.checkpoint()
    with victim(build_victim("idle")) as subject, ps.Filter(notify_getppid()) as f:
        f.attach(subject)
        subject.tell("report")
        n = f.receive(20)
        with pytest.raises(ps.CheckpointError, match="received and not answered") as caught:
            f.checkpoint()
        assert caught.value.errno == errno.EBUSY
        n.deny(DENIED)
        assert f"probe={DENIED}" in subject.line()
        assert f.checkpoint()
