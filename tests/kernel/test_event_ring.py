"""The event ring: a record of each answer, read in bulk while targets run."""

from __future__ import annotations

import collections
import errno
import gc
import threading
import time

import pytest
from harness import in_child
from listening import ARCH, NR, call, listening

import pyseccomp as ps


def rules(ring: ps.EventRing, *strings: str) -> ps.Responder:
    r = ps.Responder(ps.deny(errno.ENOTTY), events=ring)
    r.on(NR["getppid"], ps.reply(-5), arch=ARCH)
    r.on(NR["openat"], ps.deny(errno.EACCES), ps.StringArg(1, prefix="/secret/"), arch=ARCH)
    return r


def test_each_answer_leaves_its_record() -> None:
    ring = ps.EventRing()

    def function() -> list[int]:
        return [call("getppid"), call("openat", -100, b"/secret/x", 7), call("openat", -100, b"/dev/null", 0), call("getpgid", 1, 2, 3)]

    before = time.monotonic_ns()
    with listening(function, "getppid", "openat", "getpgid") as (box, target):
        r = rules(ring)
        box.serve(r)
        assert target.result() == [-5, -errno.EACCES, -errno.ENOTTY, -errno.ENOTTY]
        pid = target.pid
    found = list(ring)
    assert [(e.nr, e.kind, e.error, e.value) for e in found] == [
        (NR["getppid"], "reply", 0, -5),
        (NR["openat"], "deny", errno.EACCES, 0),
        (NR["openat"], "deny", errno.ENOTTY, 0),
        (NR["getpgid"], "deny", errno.ENOTTY, 0),
    ]
    assert all((e.arch, e.pid, e.gone) == (ARCH, pid, False) for e in found)
    assert len({e.id for e in found}) == 4
    times = [e.time_ns for e in found]
    assert times == sorted(times) and before < times[0] <= times[-1] < time.monotonic_ns()
    assert all(0 < e.latency_ns < 10**10 for e in found)
    assert found[1].args[2] == 7 and found[3].args[:3] == (1, 2, 3)
    assert found[1].text.startswith(b"/secret/") and found[2].text.startswith(b"/") and found[0].text == b""
    assert ring.waiting == ring.dropped == r.stats().pending == 0


def test_functions_answers_are_there_too_and_count_as_pending_meanwhile() -> None:
    ring = ps.EventRing(2)
    pending: list[int] = []

    def judge(n: ps.Notification) -> ps.Answer | None:
        pending.append(r.stats().pending)
        if len(pending) == 1:
            n.deny(errno.EPERM)
            return None
        return ps.allow()

    r = ps.Responder(events=ring).on(NR["getppid"], judge, arch=ARCH)
    with listening(lambda: [call("getppid") for _ in range(5)], "getppid") as (box, target):
        box.serve(r)
        assert target.result()[0] == -errno.EPERM
    assert pending == [1] * 5
    stats = r.stats()
    assert (stats.pending, stats.dropped, stats.total) == (0, 3, 5)
    assert [e.kind for e in ring] == ["deny", "allow"] and ring.dropped == 3


def test_held_calls_are_pending_until_they_are_answered() -> None:
    held: list[ps.Notification] = []
    r = ps.Responder()

    def hold(n: ps.Notification) -> ps.Answer:
        held.append(n)
        return ps.hold()

    r.on(NR["getppid"], hold, arch=ARCH)
    with listening(lambda: call("getppid"), "getppid") as (box, target):
        loop = threading.Thread(target=box.serve, args=(r,))
        loop.start()
        end = time.monotonic() + 10
        while not held and time.monotonic() < end:
            time.sleep(0.001)
        assert r.stats().pending == 1
        held.pop().deny(errno.EBUSY)
        assert target.result() == -errno.EBUSY
        loop.join(10)
    assert r.stats().pending == 0


def test_buffers_hold_what_objects_do() -> None:
    ring = ps.EventRing(64)
    with listening(lambda: [call("getppid") for _ in range(50)], "getppid") as (box, target):
        box.serve(rules(ring))
        target.result()
    assert ring.waiting == 50
    first = ring.read(10)
    view = memoryview(first)
    assert len(first) == len(view) == 10 and view.itemsize == ps.RECORD.size == 168 and view.format.startswith("T{Q:id:")
    del first
    gc.collect()
    records = list(ps.RECORD.iter_unpack(view.tobytes()))
    assert len(records) == 10 and {record[11] for record in records} == {NR["getppid"]}
    buffer = bytearray(168 * 15 + 100)
    assert ring.read_into(buffer) == 15
    assert ps.RECORD.unpack_from(buffer, 168 * 14)[11] == NR["getppid"] and not any(buffer[168 * 15 :])
    assert ring.read_into(bytearray(167)) == 0
    assert len(ring.read()) == 25 and len(ring.read()) == 0 and list(ring) == []


def test_a_full_ring_keeps_nobody_waiting() -> None:
    ring = ps.EventRing(4)
    with listening(lambda: [call("getppid") for _ in range(2000)], "getppid") as (box, target):
        r = rules(ring)
        box.serve(r)
        assert target.result() == [-5] * 2000
    assert (len(ring.read()), ring.dropped, r.stats().dropped, r.stats().total) == (4, 1996, 1996, 2000)


def test_reading_while_several_loops_write() -> None:
    ring = ps.EventRing(256)
    count = 3000

    def function() -> int:
        return sum(call("getppid") == -5 for _ in range(count))

    seen: collections.Counter[int] = collections.Counter()
    with listening(function, "getppid") as (one, a), listening(function, "getppid") as (two, b):
        r = rules(ring)
        loops = [threading.Thread(target=box.serve, args=(r,)) for box in (one, two)]
        for loop in loops:
            loop.start()
        while any(loop.is_alive() for loop in loops):
            seen.update(e.pid for e in ring)
        seen.update(e.pid for e in ring)
        assert a.result() == b.result() == count
        pids = {a.pid, b.pid}
    assert set(seen) == pids and sum(seen.values()) + ring.dropped == 2 * count


def test_capacities_that_are_none() -> None:
    for capacity in (0, -1, (4 << 20) + 1):
        with pytest.raises(ValueError, match="1 to 4194304"):
            ps.EventRing(capacity)


def test_a_ring_lives_as_long_as_its_responder() -> None:
    def child() -> int:
        r = rules(ps.EventRing(8))
        r.events = None
        gc.collect()
        with listening(lambda: [call("getppid") for _ in range(100)], "getppid") as (box, target):
            box.serve(r)
            return len(target.result())

    assert in_child(child) == 100
