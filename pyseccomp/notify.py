"""Notifications of trapped system calls, and what receives them."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from pyseccomp import _core, compat_notify, emulate, syscalls
from pyseccomp.emulate import Allowed, Directory
from pyseccomp.errors import ReceiveTimeoutError
from pyseccomp.responder import Responder

if TYPE_CHECKING:
    import asyncio

_READ_LIMIT = 1 << 20
_NS = 1_000_000_000
_TURN_NS = 1000_000


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


class _NotificationType(type):
    """Called as libseccomp's classes are, Notification(...) makes the plain value of :mod:`pyseccomp.compat_notify`."""

    def __call__(cls, *args: Any, **named: Any) -> Any:
        return compat_notify.Notification(*args, **named) if args or named else super().__call__()

    def __instancecheck__(cls, instance: object) -> bool:
        return type.__instancecheck__(cls, instance) or isinstance(instance, compat_notify.Notification)


class Notification(_core.Event, metaclass=_NotificationType):
    """One system call that waits for an answer.

    The task sleeps in the call until one of :meth:`allow`, :meth:`deny`, :meth:`reply`, :meth:`kill` or
    ``add_fd(send=True)`` is called, once; until a signal interrupts it; or until the listener is closed. One that is
    dropped unanswered fails with EPERM, and Python warns with ResourceWarning.

    ``pid`` is the *thread* id in this process's pid namespace, 0 when that namespace cannot see the task.
    """

    __slots__ = ()

    @property
    def syscall(self) -> str:
        """The name of the system call, or ``syscall_N`` where it has none."""
        return _syscall_name(self.nr, self.arch)

    def valid(self) -> bool:
        """Ask the kernel whether the call still waits for an answer; False once it was answered."""
        return self._valid()

    def read(self, addr: int, size: int) -> bytes:
        """Read memory of the task; at most 1 MiB, and fewer bytes than asked for where its mapping ends.

        The bytes were the task's: its id is checked after the read. They need not stay so: other threads of the target
        can write while the call waits.

        Raises:
            NotificationGoneError: the call is over; nothing that was read can be believed.
            NotificationError: nothing is readable there (EFAULT), or access is denied (EPERM).
        """
        if not 0 <= size <= _READ_LIMIT:
            raise ValueError(f"a read is 0 to {_READ_LIMIT} bytes, got {size}")
        return self._read(_address(addr), size)

    def read_string(self, addr: int, limit: int = 4096) -> bytes:
        """Read memory of the task up to a NUL, which is left out; checked like :meth:`read`.

        Raises:
            NotificationGoneError: the call is over.
            NotificationError: no NUL within ``limit`` bytes (ENAMETOOLONG), EFAULT, EPERM.
        """
        if not 0 <= limit < _READ_LIMIT:
            raise ValueError(f"a limit is 0 to {_READ_LIMIT - 1} bytes, got {limit}")
        return self._read_string(_address(addr), limit)

    def add_fd(
        self, fd: int | _HasFileno, *, target_fd: int | None = None, cloexec: bool = True, send: bool = False
    ) -> int:
        """Put a copy of fd into the target and return its number there.

        Args:
            target_fd: the number to use (what is open there is closed); None for the lowest free one.
            cloexec: whether the target's copy closes on exec.
            send: answer the call with that number in the same step, so that no fd is left behind when the call was
                interrupted in between (Linux 5.14).

        Raises:
            NotificationGoneError: the call is over.
            NotificationError: fd is not open (EBADF), the target's limit is reached (EMFILE), answered (EINPROGRESS).
            UnsupportedError: ``send`` before Linux 5.14.
        """
        number = fd if isinstance(fd, int) else fd.fileno()
        if target_fd is not None and not 0 <= target_fd < 1 << 31:
            raise ValueError(f"target_fd is a file descriptor number or None, got {target_fd}")
        return self._add_fd(number, -1 if target_fd is None else target_fd, cloexec, send)

    def open(self, *, allowed: Allowed | None = None, within: Directory | None = None, timeout: float = 5.0) -> int:
        """Open for the target what it asked for by open, openat, openat2 or creat; see :mod:`pyseccomp.emulate`.

        Returns a descriptor of this process, CLOEXEC and yours to close; ``add_fd(fd, send=True)`` hands it over.
        Raises as :func:`pyseccomp.emulate.open_for` does.
        """
        return emulate.open_for(self, allowed=allowed, within=within, timeout=timeout)

    def __repr__(self) -> str:
        state = "answered" if self.answered else "waiting"
        return f"<Notification {self.id:#x} {self.syscall}{self.args} by task {self.pid}: {state}>"


def _address(addr: int) -> int:
    if not 0 <= addr < 1 << 64:
        raise ValueError(f"an address is 0 to 2**64 - 1, got {addr}")
    return addr


def _syscall_name(nr: int, arch: int) -> str:
    return syscalls.name(nr, arch) or f"syscall_{nr}"


@functools.cache
def _wake_signal() -> int:
    return _core.install_wake_signal()


def new_inbox() -> _core.Inbox:
    """Make an inbox whose events are Notifications; the first one takes the process's highest free real-time signal."""
    return _core.Inbox(_wake_signal(), Notification)


class Receiver:
    """What receives from the listeners in ``_inbox``: base of the objects that own listeners.

    Any number of threads may receive at once; each notification goes to one of them. Listeners whose last task is gone
    leave the inbox by themselves.
    """

    _inbox: _core.Inbox
    _stop_hooks: tuple[Callable[[], object], ...] = ()

    def receive(self, timeout: float | None = None) -> Notification:
        """Wait for the next notification, at most timeout seconds (0: only look).

        Waits without the GIL; signal handlers run, so Ctrl-C works.

        Raises:
            ReceiveTimeoutError: none came in time (a TimeoutError).
            ReceiveStoppedError: :meth:`stop` was called meanwhile, or just before while nobody waited.
            TargetsGoneError: no task is left under any listener.
            NotificationError: there never was a listener (ENOTCONN).
        """
        event = self._inbox.receive(_nanoseconds(timeout))
        if event is None:
            raise ReceiveTimeoutError(errno.ETIMEDOUT, f"no notification came within {timeout} s")
        return cast(Notification, event)

    def __iter__(self) -> Iterator[Notification]:
        """Receive until no task is left or :meth:`stop` is called."""
        return cast(Iterator[Notification], self._inbox.stay())

    def __aiter__(self) -> AsyncIterator[Notification]:
        """Receive in an asyncio loop, until no task is left or :meth:`stop` is called.

        Notifications are taken one at a time, when asked for: those not yet taken wait in the kernel, and their tasks
        with them. That is the back-pressure.

        While targets call again at once, their calls are waited for on the spot: other work of the loop gets its turn
        after a millisecond.
        """
        return _AsyncStay(self._inbox, self)

    def serve(self, responder: Responder, *, workers: int | Literal["auto"] = "auto") -> bool:
        """Answer notifications by the responder; True if :meth:`stop` ended it, False if no task was left.

        What the responder answers without Python is answered without the GIL, whatever other Python threads do. Rules
        are those at the time of this call.

        ``workers`` is how many threads may answer, this one included. They are called up and stood down while it runs, by
        what calls then cost: for few targets one is best. Meanwhile each, this one too, keeps to a processor of its own.
        "auto" is 2 where there are as many processors and the responder has neither functions nor hold(); with these there is
        one. Helpers help with a single listener only.

        Raises: NotificationError: there never was a listener (ENOTCONN). ValueError: workers is not 1 to 16, or more than
        1 for a responder that asks Python.
        """
        table, stats, call = responder._compile()
        return self._inbox.serve(table, stats, call, responder.fallback, responder._report, _workers(workers, table.holds))

    async def serve_async(self, responder: Responder, *, limit: int = 1000) -> bool:
        """Answer notifications by the responder, whose functions may be coroutines, in the running asyncio loop.

        What the responder answers without Python is answered in C by a thread, whatever the event loop does. Each call that
        asks a function becomes a task; functions are as for :meth:`serve`, and what they return may be awaited. At most
        ``limit`` are under way: then the thread waits for one to end, and everything else waits in the kernel, rules too.
        That is the back-pressure. Works under uvloop.

        Returns True if :meth:`stop` ended it, False if no task was left, when the functions under way have ended. Cancelling it
        stops everything that receives here (as stop() does) and cancels them; their calls get ``fallback``.

        Raises: NotificationError: there never was a listener (ENOTCONN).
        """
        from pyseccomp import aserve  # asyncio loads OpenSSL, whose exit handler makes calls that a filter may forbid

        return await aserve.serve_async(self, responder, limit)

    def stop(self) -> None:
        """End every :meth:`serve`, iteration and :meth:`receive` under way; with none, the next one ends at once.

        May be called by any thread, by a callback and by a Python signal handler.

        Raises: NotificationError: a receiving thread has the wake-up signal blocked (ETIMEDOUT); it stops after its next
        notification.
        """
        try:
            self._inbox.stop()
        finally:
            for hook in self._stop_hooks:
                hook()


def _workers(wanted: int | Literal["auto"], holds: bool) -> int:
    if wanted == "auto":
        return 1 if holds else min(2, len(os.sched_getaffinity(0)))
    if not 1 <= wanted <= 16:
        raise ValueError(f"serve: workers is 1 to 16, or 'auto', got {wanted}")
    if wanted > 1 and holds:
        raise ValueError("serve: several workers can only answer by rules; this responder has functions, or hold()")
    return wanted


def _nanoseconds(timeout: float | None) -> int:
    if timeout is None:
        return -1
    if not 0 <= timeout <= 1e9:
        raise ValueError(f"a timeout is 0 to 1e9 seconds, or None, got {timeout}")
    return int(timeout * _NS)


class _AsyncStay(_core.AsyncStay):
    """Yield notifications in an event loop.

    The base waits on the spot while they flow. When none came in its turn, the event loop watches the inbox's epoll fd,
    and then the base has another turn of _TURN_NS.
    """

    def __init__(self, inbox: _core.Inbox, receiver: Receiver) -> None:
        self._receiver = receiver
        self._fd = _core.Fd()
        self._ready: asyncio.Event | None = None
        self._hook: Callable[[], object] | None = None

    async def _wait(self, turn_is_over: bool) -> Notification:
        import asyncio

        if turn_is_over:
            await asyncio.sleep(0)
        try:
            event = self.stay.receive(0)
            while event is None:
                await self._sleep()
                event = self.stay.receive(0)
        except StopIteration:
            self._close()
            for wake in self._receiver._stop_hooks:  # the others: the epoll fd has nothing more to tell them
                wake()
        else:
            self._begin_turn(_TURN_NS)
            return cast(Notification, event)
        raise StopAsyncIteration

    async def _sleep(self) -> None:
        """Let the loop run until the inbox may have something; at once the first time, to look again after the hook."""
        import asyncio

        loop = asyncio.get_running_loop()
        if self._ready is None:
            ready = self._ready = asyncio.Event()

            def wake() -> None:
                loop.call_soon_threadsafe(ready.set)

            # Its own: an event loop has one reader for a descriptor, and others may iterate too.
            self._fd = _core.duplicate(self._receiver._inbox.epoll_fd)
            self._hook = wake
            self._receiver._stop_hooks += (wake,)
            return
        loop.add_reader(self._fd, self._ready.set)
        try:
            await self._ready.wait()
        finally:
            loop.remove_reader(self._fd)
            self._ready.clear()

    def _close(self) -> None:
        self._end()
        if self._fd.number >= 0:
            self._fd.close()
            self._receiver._stop_hooks = tuple(hook for hook in self._receiver._stop_hooks if hook is not self._hook)

    async def aclose(self) -> None:
        """End the iteration."""
        self._close()

    def __del__(self) -> None:
        self._close()
