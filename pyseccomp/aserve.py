"""Serving with coroutines: rules are answered in C by a thread, functions are called in an asyncio loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

from pyseccomp.errors import NotificationGoneError
from pyseccomp.responder import Answer, Responder, hold

if TYPE_CHECKING:
    from pyseccomp.notify import Notification, Receiver


class _AsyncServer:
    """One serve_async(): a thread in serve(), which hands what needs a function over to the event loop."""

    def __init__(self, receiver: Receiver, responder: Responder, limit: int) -> None:
        self._receiver, self._responder = receiver, responder
        self._table, self._stats, self._call = responder._compile()
        self._loop = asyncio.get_running_loop()
        self._room = threading.Semaphore(limit)
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[bool] = self._loop.create_future()
        self._closing = False

    async def run(self) -> bool:
        thread = threading.Thread(target=self._serve, name="pyseccomp-serve", daemon=True)
        thread.start()
        try:
            stopped = await asyncio.shield(self._ended)
            while self._tasks:
                await asyncio.gather(*self._tasks, return_exceptions=True)
            return stopped
        except asyncio.CancelledError:
            await self._give_up()
            raise
        finally:
            thread.join()

    async def _give_up(self) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self._receiver.stop()
        while not self._ended.done():
            self._room.release()  # it may wait for room
            await asyncio.wait([self._ended], timeout=0.01)
        await asyncio.sleep(0)  # what it handed over last
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------- in the thread

    def _serve(self) -> None:
        try:
            found = self._receiver._inbox.serve(
                self._table, self._stats, self._hand_over, self._responder.fallback, self._responder._report
            )
        except BaseException as error:
            self._tell(functools.partial(self._ended.set_exception, error))
        else:
            self._tell(functools.partial(self._ended.set_result, found))

    def _tell(self, what: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop was closed under us
            self._loop.call_soon_threadsafe(what)

    def _hand_over(self, notification: Any) -> Answer:
        self._room.acquire()
        if self._closing:
            return self._responder.fallback
        self._loop.call_soon_threadsafe(self._start, notification)
        return hold()

    # --------------------------------------------------- in the event loop

    def _start(self, notification: Notification) -> None:
        task = self._loop.create_task(self._answer(notification))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, notification: Notification) -> None:
        try:
            result = self._call(notification)
            if inspect.isawaitable(result):
                result = await cast(Awaitable[object], result)
            self._check(notification, result)
            if isinstance(result, Answer) and not notification.answered:
                notification._answer(result)
        except NotificationGoneError:
            pass  # nothing is left to answer
        except Exception as error:
            self._fall_back(notification)
            self._responder._report(error, notification)
        except BaseException:
            self._fall_back(notification)
            raise
        finally:
            self._room.release()

    @staticmethod
    def _check(notification: Notification, result: object) -> None:
        if notification.answered:
            if result is not None and not (isinstance(result, Answer) and result.kind == 0):
                raise TypeError(f"the callback answered and then returned {result!r} too")
        elif not isinstance(result, Answer):
            raise TypeError(f"the callback neither answered nor returned an answer (use hold() to answer later), but {result!r}")

    def _fall_back(self, notification: Notification) -> None:
        with contextlib.suppress(OSError):
            if not notification.answered:
                notification._answer(self._responder.fallback)


async def serve_async(receiver: Receiver, responder: Responder, limit: int) -> bool:
    """See :meth:`Receiver.serve_async`."""
    if limit < 1:
        raise ValueError(f"serve_async: limit is at least 1, got {limit}")
    return await _AsyncServer(receiver, responder, limit).run()
