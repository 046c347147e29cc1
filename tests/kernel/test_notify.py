"""Receiving and answering notifications of real targets."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import mmap
import os
import select
import signal
import tempfile
import threading
import time
from typing import Any

import pytest
from harness import DEADLINE, descriptors, in_child
from listening import ARCH, NR, WAIT_KILLABLE, Box, Target, call, listening

from pyseccomp import _core
from pyseccomp.errors import (
    NotificationError,
    NotificationGoneError,
    ReceiveStoppedError,
    ReceiveTimeoutError,
    TargetsGoneError,
)
from pyseccomp.notify import Notification, Receiver

AT_FDCWD = -100


def three_calls() -> list[int]:
    return [call("getppid") for _ in range(3)]


def one_call() -> int:
    return call("getppid")


def calls_until_killed() -> None:
    while True:
        call("getppid")


def pages_with_a_hole() -> tuple[int, int]:
    """Map two pages and take the second away; the address of the first, and of a string that ends with it."""
    page = mmap.PAGESIZE
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    start = libc.mmap(None, 2 * page, 3, 0x22, -1, 0)
    libc.munmap(start + page, page)
    ctypes.memset(start, ord("x"), page)
    return start, start + page - 8


# ----------------------------------------------------------------- answering


def test_reply_deny_and_allow_are_what_the_target_sees() -> None:
    with listening(three_calls, "getppid") as (box, target):
        box.receive(DEADLINE).reply(7)
        box.receive(DEADLINE).deny(errno.EACCES)
        box.receive(DEADLINE).allow()
        assert target.result() == [7, -errno.EACCES, os.getpid()]


def test_notification_tells_the_call() -> None:
    def function() -> int:
        return call("getpgid", 0x1_2345_6789, 2, 3, 4, 5, 6)

    with listening(function, "getpgid") as (box, target):
        n = box.receive(DEADLINE)
        assert (n.pid, n.nr, n.arch) == (target.pid, NR["getpgid"], ARCH)
        assert n.args[1:] == (2, 3, 4, 5, 6)
        assert n.ip > 0 and n.id > 0 and n.valid() and not n.answered
        n.reply(0)


def test_reply_of_64_bits_arrives_whole() -> None:
    with listening(one_call, "getppid") as (box, target):
        box.receive(DEADLINE).reply(-(1 << 62))
        assert target.result() == -(1 << 62)


def test_answering_twice_is_an_error_and_the_first_answer_stays() -> None:
    with listening(one_call, "getppid") as (box, target):
        n = box.receive(DEADLINE)
        n.reply(1)
        with pytest.raises(NotificationError, match="answered before") as caught:
            n.deny(errno.EPERM)
        assert caught.value.errno == errno.EINPROGRESS
        assert target.result() == 1
        assert not n.valid()


def test_two_threads_answering_one_notification_give_one_answer() -> None:
    with listening(three_calls, "getppid") as (box, target):
        for _ in range(3):
            n = box.receive(DEADLINE)
            refused: list[NotificationError] = []

            def answer(n: Notification = n, refused: list[NotificationError] = refused) -> None:
                try:
                    n.reply(5)
                except NotificationError as error:
                    refused.append(error)

            threads = [threading.Thread(target=answer) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(refused) == 3
        assert target.result() == [5, 5, 5]


def test_dropped_notification_fails_with_eperm_and_warns() -> None:
    with listening(one_call, "getppid") as (box, target):
        n = box.receive(DEADLINE)
        with pytest.warns(ResourceWarning, match="dropped unanswered"):
            del n
        assert target.result() == -errno.EPERM


def test_forked_child_that_drops_a_notification_does_not_answer_it() -> None:
    with listening(one_call, "getppid") as (box, target):
        held = [box.receive(DEADLINE)]
        in_child(held.clear)
        assert held[0].valid()
        held[0].reply(3)
        assert target.result() == 3


@pytest.mark.parametrize("error", [0, -1, 4096])
def test_deny_with_no_errno_is_refused_and_leaves_the_call_waiting(error: int) -> None:
    with listening(one_call, "getppid") as (box, target):
        n = box.receive(DEADLINE)
        with pytest.raises(ValueError, match="an errno is 1 to 4095"):
            n.deny(error)
        assert n.valid()
        n.reply(2)
        assert target.result() == 2


def test_notification_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError, match="come from"):
        Notification()
    bare = Notification.__new__(Notification)
    assert not bare.valid()
    with pytest.raises(TypeError, match="come from"):
        bare.read(0, 1)
    with pytest.raises(TypeError, match="come from"):
        bare.allow()


# -------------------------------------------------------------------- memory


def test_read_returns_the_targets_bytes() -> None:
    text = b"some bytes\0and more"

    def function() -> int:
        buffer = ctypes.create_string_buffer(text)
        return call("getpgid", ctypes.byref(buffer))

    with listening(function, "getpgid") as (box, target):
        n = box.receive(DEADLINE)
        assert n.read(n.args[0], len(text)) == text
        assert n.read_string(n.args[0]) == b"some bytes"
        assert n.read(n.args[0], 0) == b""
        n.reply(0)


def test_read_stops_where_the_mapping_ends() -> None:
    def function() -> int:
        start, tail = pages_with_a_hole()
        return call("getpgid", ctypes.c_ulong(start), ctypes.c_ulong(tail))

    with listening(function, "getpgid") as (box, target):
        n = box.receive(DEADLINE)
        start, tail = n.args[:2]
        assert n.read(tail, 100) == b"x" * 8
        with pytest.raises(NotificationError, match="no readable memory") as caught:
            n.read(start + mmap.PAGESIZE, 1)
        assert caught.value.errno == errno.EFAULT
        with pytest.raises(NotificationError) as caught:
            n.read_string(tail)
        assert caught.value.errno == errno.EFAULT
        n.reply(0)


def test_read_string_crosses_pages_and_keeps_its_limit() -> None:
    text = b"y" * (2 * mmap.PAGESIZE)

    def function() -> int:
        buffer = ctypes.create_string_buffer(text)
        return call("getpgid", ctypes.byref(buffer))

    with listening(function, "getpgid") as (box, target):
        n = box.receive(DEADLINE)
        assert n.read_string(n.args[0], len(text)) == text
        with pytest.raises(NotificationError, match="no end of string") as caught:
            n.read_string(n.args[0], len(text) - 1)
        assert caught.value.errno == errno.ENAMETOOLONG
        n.reply(0)


@pytest.mark.parametrize(("addr", "size"), [(-1, 1), (1 << 64, 1), (0, -1), (0, (1 << 20) + 1)])
def test_read_of_nonsense_is_refused(addr: int, size: int) -> None:
    with listening(one_call, "getppid") as (box, target):
        n = box.receive(DEADLINE)
        with pytest.raises(ValueError):
            n.read(addr, size)
        n.reply(0)


# ----------------------------------------------------------- file descriptors


def read_what_is_given() -> tuple[int, str, bool]:
    fd = call("openat", AT_FDCWD, b"/nowhere", 0)
    return fd, os.read(fd, 100).decode(), os.get_inheritable(fd)


@pytest.mark.parametrize("cloexec", [True, False])
def test_add_fd_and_answer_in_one_step(cloexec: bool) -> None:
    with tempfile.TemporaryFile() as f, listening(read_what_is_given, "openat") as (box, target):
        f.write(b"contents")
        f.seek(0)
        n = box.receive(DEADLINE)
        number = n.add_fd(f, send=True, cloexec=cloexec)
        assert target.result() == (number, "contents", not cloexec)
        with pytest.raises(NotificationError, match="answered before"):
            n.reply(0)


def test_add_fd_at_a_number_then_answer() -> None:
    with tempfile.TemporaryFile() as f, listening(read_what_is_given, "openat") as (box, target):
        f.write(b"contents")
        f.seek(0)
        n = box.receive(DEADLINE)
        assert n.add_fd(f.fileno(), target_fd=77) == 77
        n.reply(77)
        assert target.result() == (77, "contents", False)


def test_add_fd_of_a_closed_descriptor_leaves_the_call_waiting() -> None:
    with listening(one_call, "getppid") as (box, target):
        n = box.receive(DEADLINE)
        reader, writer = os.pipe()
        os.close(reader)
        os.close(writer)
        with pytest.raises(NotificationError) as caught:
            n.add_fd(writer, send=True)
        assert caught.value.errno == errno.EBADF
        assert n.valid()
        n.reply(9)
        assert target.result() == 9


# ---------------------------------------------------------------------- kill


def test_kill_ends_the_process_and_the_call_is_never_made() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "made")

        def function() -> int:
            return call("mkdirat", AT_FDCWD, path.encode(), 0o700)

        with listening(function, "mkdirat") as (box, target):
            box.receive(DEADLINE).kill()
            assert target.reap() == -signal.SIGKILL
            assert not os.path.exists(path)


def test_kill_of_a_call_by_a_thread_ends_its_whole_process() -> None:
    def function() -> None:
        thread = threading.Thread(target=call, args=("getppid",))
        thread.start()
        thread.join()

    with listening(function, "getppid") as (box, target):
        n = box.receive(DEADLINE)
        assert n.pid != target.pid
        n.kill()
        assert target.reap() == -signal.SIGKILL


# -------------------------------------------------------------- targets that go


def test_answer_after_target_was_killed_says_gone() -> None:
    with listening(one_call, "getppid") as (box, target):
        n = box.receive(DEADLINE)
        os.kill(target.pid, signal.SIGKILL)
        target.wait_dead()
        assert not n.valid()
        with pytest.raises(NotificationGoneError):
            n.read(0x1000, 1)
        with pytest.raises(NotificationGoneError, match="nothing is left to answer"):
            n.reply(0)


def test_kill_after_target_is_gone_kills_nobody() -> None:
    with listening(one_call, "getppid") as (box, target):
        n = box.receive(DEADLINE)
        os.kill(target.pid, signal.SIGKILL)
        target.reap()
        with pytest.raises(NotificationGoneError):
            n.kill()


def interrupted_call(restart: bool) -> int:
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.siginterrupt(signal.SIGUSR1, not restart)
    return call("getppid")


def test_call_interrupted_without_restart_is_gone() -> None:
    with listening(lambda: interrupted_call(False), "getppid") as (box, target):
        n = box.receive(DEADLINE)
        os.kill(target.pid, signal.SIGUSR1)
        assert target.result() == -errno.EINTR
        with pytest.raises(NotificationGoneError):
            n.allow()


def test_call_interrupted_with_restart_comes_again_under_a_new_id() -> None:
    with listening(lambda: interrupted_call(True), "getppid") as (box, target):
        first = box.receive(DEADLINE)
        os.kill(target.pid, signal.SIGUSR1)
        second = box.receive(DEADLINE)
        assert second.id != first.id and second.args == first.args
        with pytest.raises(NotificationGoneError):
            first.reply(1)
        second.reply(2)
        assert target.result() == 2


def test_call_under_wait_killable_is_not_interrupted_once_received() -> None:
    with listening(lambda: interrupted_call(False), "getppid", flags=WAIT_KILLABLE) as (box, target):
        n = box.receive(DEADLINE)
        os.kill(target.pid, signal.SIGUSR1)
        assert n.valid()
        n.reply(2)
        assert target.result() == 2


def test_iteration_ends_with_the_last_task() -> None:
    with listening(three_calls, "getppid") as (box, target):
        for n in box:
            n.reply(4)
        assert target.result() == [4, 4, 4]
        assert box._inbox.listeners() == []
        with pytest.raises(TargetsGoneError):
            box.receive()


def test_timed_receive_notices_the_end_of_the_last_task() -> None:
    with listening(one_call, "getppid") as (box, target):
        box.receive(DEADLINE).reply(0)
        target.reap()
        with pytest.raises(TargetsGoneError):
            box.receive(DEADLINE)


def test_receive_without_any_listener_says_so() -> None:
    with pytest.raises(NotificationError, match="no listener was ever added") as caught:
        Box().receive()
    assert caught.value.errno == errno.ENOTCONN


# ------------------------------------------------------------------- waiting


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_receive_times_out(timeout: float) -> None:
    with listening(lambda: select.select([], [], []), "getppid") as (box, target):
        begin = time.monotonic()
        with pytest.raises(ReceiveTimeoutError):
            box.receive(timeout)
        assert time.monotonic() - begin >= timeout


def test_receive_timeout_holds_with_several_listeners() -> None:
    with listening(lambda: select.select([], [], []), "getppid", count=2) as (box, *_):
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            box.receive(0.05)
        assert time.monotonic() - begin >= 0.05


@pytest.mark.parametrize("timeout", [-1, float("nan"), 1e10])
def test_receive_refuses_nonsense_timeouts(timeout: float) -> None:
    with pytest.raises(ValueError, match="a timeout is"):
        Box().receive(timeout)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("timeout", [None, DEADLINE])
def test_ctrl_c_interrupts_receive(count: int, timeout: float | None) -> None:
    def wait() -> str:
        with listening(lambda: select.select([], [], []), "getppid", count=count) as (box, *_):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            threading.Thread(target=interrupt_when_asleep, args=(box, threading.get_native_id())).start()
            try:
                box.receive(timeout)
            except KeyboardInterrupt:
                return "interrupted"
        return "received"

    assert in_child(wait) == "interrupted"


def interrupt_when_asleep(box: Box, tid: int) -> None:
    """Send SIGINT to this process once the thread sleeps in receive()."""
    while True:
        with open(f"/proc/self/task/{tid}/stat") as f:
            if f.read().rpartition(")")[2].split()[0] == "S" and box._inbox.stays:
                break
        os.sched_yield()
    os.kill(os.getpid(), signal.SIGINT)


def in_thread(box: Box, function: Any, *args: Any) -> tuple[threading.Thread, list[Any]]:
    """Run function in a thread that has begun to receive when this returns; its result or error comes in the list."""
    others = box._inbox.stays
    out: list[Any] = []

    def run() -> None:
        try:
            out.append(function(*args))
        except Exception as error:
            out.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive() and box._inbox.stays == others:
        os.sched_yield()
    return thread, out


@pytest.mark.parametrize("count", [1, 2])
def test_timed_receive_beside_one_without_deadline_keeps_its_time(count: int) -> None:
    with listening(lambda: select.select([], [], []), "getppid", count=count) as (box, *_):
        thread, out = in_thread(box, box.receive)
        with pytest.raises(ReceiveTimeoutError):
            box.receive(0.05)
        box.stop()
        thread.join(DEADLINE)
        assert isinstance(out[0], ReceiveStoppedError)


def test_receive_without_deadline_beside_a_timed_one_gets_its_notification() -> None:
    with listening(lambda: [select.select([], [], [], 0.05), three_calls()][1], "getppid") as (box, target):
        timed, _ = in_thread(box, lambda: box.receive(DEADLINE).reply(5))
        endless, _ = in_thread(box, lambda: box.receive().reply(5))
        box.receive(DEADLINE).reply(5)
        timed.join(DEADLINE)
        endless.join(DEADLINE)
        assert target.result() == [5, 5, 5]


@pytest.mark.parametrize("count", [1, 3])
def test_stop_ends_receive_in_every_thread(count: int) -> None:
    with listening(lambda: select.select([], [], []), "getppid", count=count) as (box, *_):
        waiting = [in_thread(box, box.receive) for _ in range(4)]
        box.stop()
        for thread, out in waiting:
            thread.join(DEADLINE)
            assert isinstance(out[0], ReceiveStoppedError)


def test_stop_with_nobody_waiting_ends_the_next_receive_only() -> None:
    with listening(one_call, "getppid") as (box, target):
        box.stop()
        with pytest.raises(ReceiveStoppedError):
            box.receive()
        box.receive(DEADLINE).reply(1)
        assert target.result() == 1


def test_stop_ends_iteration_between_notifications() -> None:
    with listening(three_calls, "getppid") as (box, target):
        seen = 0
        for n in box:
            n.reply(0)
            seen += 1
            box.stop()
        assert seen == 1


def test_receiving_leaves_other_python_threads_running() -> None:
    """The answer needs the GIL while the first thread waits: no progress without its release."""
    with listening(three_calls, "getppid") as (box, target):
        thread, out = in_thread(box, lambda: [box.receive().reply(k) for k in range(3)])
        assert target.result() == [0, 1, 2]
        thread.join(DEADLINE)


# ------------------------------------------------------------- many listeners


def test_fan_in_receives_from_all_and_ends_with_the_last() -> None:
    with listening(three_calls, "getppid", count=3) as (box, *targets):
        seen: dict[int, int] = {}
        for n in box:
            seen[n.pid] = seen.get(n.pid, 0) + 1
            n.reply(seen[n.pid])
        assert seen == {t.pid: 3 for t in targets}
        assert [t.result() for t in targets] == [[1, 2, 3]] * 3


def test_fan_in_goes_on_when_one_target_is_killed() -> None:
    with listening(three_calls, "getppid", count=3) as (box, first, *others):
        held = box.receive(DEADLINE)
        while held.pid != first.pid:
            held.reply(0)
            held = box.receive(DEADLINE)
        os.kill(first.pid, signal.SIGKILL)
        first.reap()
        for n in box:
            n.reply(0)
        assert [t.result() for t in others] == [[0, 0, 0]] * 2
        with pytest.raises(NotificationGoneError):
            held.allow()


def test_epoll_fd_is_readable_exactly_while_something_waits() -> None:
    with listening(one_call, "getppid", count=2) as (box, *targets):
        fd = box._inbox.epoll_fd
        for _ in targets:
            assert select.select([fd], [], [], DEADLINE)[0]
            n = box.receive(DEADLINE)
            n.reply(0)
        for target in targets:
            target.reap()
        with pytest.raises(TargetsGoneError):
            box.receive(DEADLINE)
        assert not select.select([fd], [], [], 0)[0]
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_listener_added_while_a_thread_waits_is_heard() -> None:
    with listening(lambda: select.select([], [], []), "getppid") as (box, quiet):
        thread, out = in_thread(box, box.receive)
        loud = Target(one_call, "getppid")
        try:
            box.add(loud.listener)
            thread.join(DEADLINE)
            assert out[0].pid == loud.pid
            out[0].reply(1)
            assert loud.result() == 1
        finally:
            loud.close()


def test_removed_listener_is_left_by_its_receivers_and_its_notifications_are_gone() -> None:
    with listening(three_calls, "getppid") as (box, target):
        held = box.receive(DEADLINE)
        thread, out = in_thread(box, box.receive)
        assert box.remove(target.listener)
        thread.join(DEADLINE)
        assert isinstance(out[0], TargetsGoneError)
        with pytest.raises(NotificationGoneError):
            held.reply(0)
        assert not box.remove(target.listener)


@pytest.mark.parametrize("what", ["file", "closed", "twice"])
def test_add_refuses_what_is_no_new_listener(what: str) -> None:
    with listening(lambda: select.select([], [], []), "getppid") as (box, target), tempfile.TemporaryFile() as f:
        fd, code = {"file": (f.fileno(), errno.ENOTTY), "closed": (9999, errno.EBADF), "twice": (target.listener, errno.EEXIST)}[what]
        with pytest.raises(NotificationError) as caught:
            box.add(fd)
        assert caught.value.errno == code
        assert box._inbox.listeners() == [target.listener]


def test_an_inbox_leaks_no_file_descriptor() -> None:
    before = descriptors()
    with listening(one_call, "getppid", count=2) as (box, *_):
        assert box._inbox.epoll_fd >= 0
        for n in box:
            n.reply(0)
        del box, n
    assert descriptors() == before


def test_probe_agrees_with_the_kernel() -> None:
    """The probe decides whether RECV may wait unpolled: here RECV is made to show it."""
    target = Target(one_call, "getppid")
    try:
        os.kill(target.pid, signal.SIGKILL)
        target.wait_dead()
        hung_up = select.poll()
        hung_up.register(target.listener, select.POLLIN)
        assert _core.probe_receive_ends() == bool([e for _, e in hung_up.poll(0) if e & select.POLLHUP])
    finally:
        target.close()


# ------------------------------------------------------------------- asyncio


def run_async(main: Any) -> Any:
    return asyncio.run(asyncio.wait_for(main, DEADLINE))


@pytest.mark.parametrize("count", [1, 3])
def test_async_iteration_answers_and_ends_with_the_last_task(count: int) -> None:
    async def main(box: Receiver) -> int:
        seen = 0
        async for n in box:
            n.reply(6)
            seen += 1
        return seen

    with listening(three_calls, "getppid", count=count) as (box, *targets):
        assert run_async(main(box)) == 3 * count
        assert [t.result() for t in targets] == [[6, 6, 6]] * count


def test_async_iteration_leaves_the_loop_to_others() -> None:
    async def main(box: Receiver) -> bool:
        ticked = asyncio.Event()

        async def tick() -> None:
            for _ in range(10):
                await asyncio.sleep(0)
            ticked.set()

        ticker = asyncio.create_task(tick())
        async for n in box:
            n.reply(0)
            if ticked.is_set():
                break
        await ticker
        return True

    with listening(calls_until_killed, "getppid") as (box, target):
        assert run_async(main(box))


def test_async_iteration_can_be_cancelled_and_taken_up_again() -> None:
    async def main(box: Receiver) -> int:
        async def first() -> Notification:
            async for n in box:
                return n
            raise AssertionError("ended")

        waiting = asyncio.create_task(first())
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        os.write(writer, b"go")
        n = await first()
        n.reply(11)
        return n.nr

    reader, writer = os.pipe()
    with listening(lambda: (os.read(reader, 2), call("getppid"))[1], "getppid") as (box, target):
        assert run_async(main(box)) == NR["getppid"]
        assert target.result() == 11
    os.close(reader)
    os.close(writer)


def test_two_tasks_of_one_loop_iterate_until_the_last_target_is_gone() -> None:
    async def main(box: Receiver) -> int:
        async def work() -> int:
            seen = 0
            async for n in box:
                n.reply(6)
                seen += 1
                await asyncio.sleep(0)
            return seen

        return sum(await asyncio.gather(work(), work()))

    with listening(three_calls, "getppid", count=4) as (box, *targets):
        assert run_async(main(box)) == 12
        assert [t.result() for t in targets] == [[6, 6, 6]] * 4


def test_async_iteration_that_is_left_keeps_no_descriptor_and_no_hook() -> None:
    async def main(box: Receiver) -> None:
        async for n in box:
            n.reply(6)
            break

    with listening(three_calls, "getppid") as (box, target):
        assert box._inbox.epoll_fd >= 0
        run_async(main(box))
        before = descriptors()
        run_async(main(box))
        assert descriptors() == before
        assert box._stop_hooks == () and box._inbox.stays == 0
        box.receive(DEADLINE).reply(6)


def test_stop_by_a_thread_ends_async_iteration() -> None:
    async def main(box: Receiver) -> int:
        stopper = threading.Timer(0.02, box.stop)
        stopper.start()
        seen = [n async for n in box]
        stopper.join()
        return len(seen)

    with listening(lambda: select.select([], [], []), "getppid") as (box, target):
        assert run_async(main(box)) == 0


def test_a_notification_names_its_call() -> None:
    with listening(lambda: call("getppid"), "getppid") as (box, target):
        n = box.receive(DEADLINE)
        assert n.syscall == "getppid"
        n.allow()
        assert target.result() == os.getpid()
