"""serve_async(): coroutines answer real calls, rules go on meanwhile; under asyncio and uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from harness import descriptors
from listening import ARCH, NR, call, listening

import pyseccomp as ps

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    return asyncio.run if request.param == "asyncio" else uvloop.run


def two_calls(count: int) -> Callable[[], list[int]]:
    return lambda: [call(name) for _ in range(count) for name in ("getppid", "getpgid")]


def test_coroutines_functions_and_rules_answer(run: Run) -> None:
    async def slowly(n: ps.Notification) -> ps.Answer:
        await asyncio.sleep(0.001)
        return ps.deny(errno.EBUSY)

    async def by_itself(n: ps.Notification) -> None:
        await asyncio.sleep(0)
        n.reply(-7)

    r = ps.Responder(ps.deny(errno.EPERM)).on(NR["getppid"], slowly, arch=ARCH).on(NR["umask"], by_itself, arch=ARCH)
    r.on(NR["mkdirat"], lambda n: ps.reply(-3), arch=ARCH)

    def target() -> list[int]:
        return [call("getppid"), call("umask", 0), call("mkdirat", -100, b"/x", 0), call("getpgid")]

    with listening(target, "getppid", "umask", "mkdirat", "getpgid") as (box, child):
        assert run(box.serve_async(r)) is False
        assert child.result() == [-errno.EBUSY, -7, -3, -errno.EPERM]
    assert r.stats().total == 4 and r.stats().pending == 0


def test_one_that_waits_holds_up_no_other(run: Run) -> None:
    async def main(end: float) -> int:
        free = asyncio.Event()

        async def wait(n: ps.Notification) -> ps.Answer:
            await free.wait()
            return ps.reply(0)

        r = ps.Responder().on(NR["getppid"], wait, arch=ARCH).on(NR["getpgid"], ps.deny(errno.EPERM), arch=ARCH)
        served = asyncio.ensure_future(box.serve_async(r))
        ticks = 0
        while time.monotonic() < end:
            ticks += 1
            await asyncio.sleep(0.001)
        free.set()
        assert await served is False
        return ticks

    with listening(lambda: call("getppid"), "getppid") as (box, slow), listening(lambda: [call("getpgid")] * 3, "getpgid") as (_, fast):
        box.add(fast.listener)

        ticks = run(main(time.monotonic() + 0.2))
        assert fast.result() == [-errno.EPERM] * 3 and slow.result() == 0
        assert ticks > 20  # the event loop ran meanwhile


def test_limit_holds_back_and_all_are_answered(run: Run) -> None:
    under_way = most = 0

    async def count(n: ps.Notification) -> ps.Answer:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.0005)
        under_way -= 1
        return ps.reply(0)

    def target() -> int:
        return sum(call("getppid") == 0 for _ in range(40))

    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(listening(target, "getppid")) for _ in range(6)]
        box = pairs[0][0]
        for _, child in pairs[1:]:
            box.add(child.listener)
        assert run(box.serve_async(ps.Responder(count), limit=2)) is False
        assert [child.result() for _, child in pairs] == [40] * 6
    assert 1 <= most <= 2


def test_errors_get_the_fallback_and_are_reported(run: Run) -> None:
    told: list[Exception] = []

    async def fail(n: ps.Notification) -> ps.Answer:
        await asyncio.sleep(0)
        raise RuntimeError("no")

    async def nothing(n: ps.Notification) -> None:
        await asyncio.sleep(0)

    r = ps.Responder(fail, fallback=ps.deny(errno.EIO), on_error=lambda error, n: told.append(error))
    r.on(NR["getpgid"], nothing, arch=ARCH)
    with listening(two_calls(2), "getppid", "getpgid") as (box, child):
        assert run(box.serve_async(r)) is False
        assert child.result() == [-errno.EIO] * 4
    assert [type(error) for error in told] == [RuntimeError, TypeError] * 2


def test_stop_and_cancel(run: Run) -> None:
    before = descriptors()

    async def stopped(box: Any) -> bool:
        served = asyncio.ensure_future(box.serve_async(ps.Responder(ps.reply(0))))
        while not box._inbox.stays:
            await asyncio.sleep(0.001)
        box.stop()
        return bool(await served)

    with listening(lambda: time.sleep(30), "getppid") as (box, _):
        assert run(stopped(box)) is True
    cancelled: list[bool] = []

    async def cancel(box: Any) -> None:
        begun = asyncio.Event()

        async def never(n: ps.Notification) -> ps.Answer:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(True)
            return ps.allow()

        served = asyncio.ensure_future(box.serve_async(ps.Responder(never, fallback=ps.deny(errno.EIO)), limit=1))
        await asyncio.wait_for(begun.wait(), 10)
        served.cancel()
        with pytest.raises(asyncio.CancelledError):
            await served

    with listening(lambda: call("getppid"), "getppid") as (box, child):
        run(cancel(box))
        assert child.result() == -errno.EIO
    assert cancelled == [True] and len(descriptors()) == len(before)


def test_a_limit_that_is_none() -> None:
    with listening(lambda: call("getppid"), "getppid") as (box, _), pytest.raises(ValueError, match="at least 1"):
        asyncio.run(box.serve_async(ps.Responder(), limit=0))
