"""The loop: tables in C, callbacks in Python, stopping, statistics."""

from __future__ import annotations

import ctypes
import errno
import os
import queue
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE, descriptors, in_child
from listening import ARCH, NR, Box, call, install, listening, notifying

import pyseccomp as ps
from pyseccomp.errors import NotificationError

Answers = list[int]


def calls(count: int = 3) -> Answers:
    return [call("getppid") for _ in range(count)]


def on(name: str, answer: Any, **options: Any) -> ps.Responder:
    return ps.Responder(**options).on(NR[name], answer, arch=ARCH)


# --------------------------------------------------------------------- table


def test_table_answers_each_syscall_its_own_way() -> None:
    def function() -> tuple[int, ...]:
        return call("getppid"), call("getpgid", 0), call("umask", 0)

    r = ps.Responder(ps.allow())
    r.on(NR["getppid"], ps.deny(errno.EACCES), arch=ARCH).on(NR["getpgid"], ps.reply(1234), arch=ARCH)
    with listening(function, "getppid", "getpgid", "umask") as (box, target):
        assert box.serve(r) is False
        ppid, pgid, mask = target.result()
        assert (ppid, pgid) == (-errno.EACCES, 1234)
        assert mask == os.umask(mask), "umask was to be carried out"


def test_last_rule_for_a_syscall_wins() -> None:
    with listening(calls, "getppid") as (box, target):
        box.serve(on("getppid", ps.reply(1)).on(NR["getppid"], ps.reply(2), arch=ARCH))
        assert target.result() == [2, 2, 2]


@pytest.mark.parametrize("rules", ["none", "for another call", "for another architecture", "of another process"])
def test_responder_without_a_default_denies_what_no_rule_matches(rules: str) -> None:
    """It allowed, where the command line denies."""
    r = ps.Responder()
    if rules == "for another call":
        r.on(NR["getpgid"], ps.allow(), arch=ARCH)
    elif rules == "for another architecture":
        r.on(NR["getppid"], ps.allow(), arch=ARCH ^ 1)
    elif rules == "of another process":
        r.on(NR["getppid"], ps.allow(), arch=ARCH, tgid=os.getpid())
    with listening(calls, "getppid") as (box, target):
        assert box.serve(r) is False
        assert target.result() == [-errno.EPERM] * 3
    assert r.stats().answered == {"deny": 3}


def test_rule_for_another_architecture_does_not_match() -> None:
    with listening(calls, "getppid") as (box, target):
        box.serve(ps.Responder(ps.reply(1)).on(NR["getppid"], ps.reply(2), arch=ARCH ^ 1))
        assert target.result() == [1, 1, 1]


def test_table_with_many_rules_finds_every_one() -> None:
    r = ps.Responder(ps.deny(errno.ENOSYS))
    for nr in range(1000):
        r.on(nr, ps.reply(nr), arch=ARCH)
    with listening(lambda: [call("getppid"), call("getpgid", 0)], "getppid", "getpgid") as (box, target):
        box.serve(r)
        assert target.result() == [NR["getppid"], NR["getpgid"]]


def test_table_kills_the_process() -> None:
    with listening(calls, "getppid") as (box, target):
        r = on("getppid", ps.kill())
        box.serve(r)
        assert target.reap() == -signal.SIGKILL
        assert r.stats().answered == {"kill": 1}


def test_fan_in_is_served() -> None:
    with listening(calls, "getppid", count=3) as (box, *targets):
        r = on("getppid", ps.reply(8))
        assert box.serve(r) is False
        assert [t.result() for t in targets] == [[8, 8, 8]] * 3
        assert r.stats().total == 9


def test_two_threads_serve_one_box() -> None:
    with listening(lambda: calls(2000), "getppid", count=2) as (box, *targets):
        r = on("getppid", ps.reply(8))
        threads = [threading.Thread(target=box.serve, args=(r,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        assert [t.result() for t in targets] == [[8] * 2000] * 2
        assert r.stats().total == 4000


def test_table_answers_at_full_speed_beside_a_busy_python_thread() -> None:
    """A loop that took the GIL for each answer would need 5 ms of switch interval each: 20000 would take 100 s."""
    done = threading.Event()

    def burn() -> None:
        while not done.is_set():
            sum(range(1000))

    with listening(lambda: len(calls(20000)), "getppid") as (box, target):
        burner = threading.Thread(target=burn)
        burner.start()
        try:
            r = on("getppid", ps.reply(0))
            box.serve(r)
        finally:
            done.set()
            burner.join()
        assert target.result() == 20000
        assert r.stats().answered == {"reply": 20000}


def test_thread_of_ones_own_process_that_holds_the_gil_is_answered() -> None:
    """The GIL is held by the trapped thread: were it needed for the answer, nothing would ever run again."""

    def supervise_self() -> tuple[int, int]:
        holding = ctypes.PyDLL(None)
        holding.syscall.restype = ctypes.c_long
        listeners: list[int] = []
        box, installed = Box(), threading.Event()
        answers: Answers = []

        def trapped() -> None:
            listeners.append(install(notifying("getppid")))
            installed.set()
            while not box._inbox.stays:
                os.sched_yield()
            answers.extend(holding.syscall(NR["getppid"]) for _ in range(1000))

        thread = threading.Thread(target=trapped)
        thread.start()
        installed.wait(DEADLINE)
        box.add(listeners[0])
        r = on("getppid", ps.reply(21))
        box.serve(r)
        thread.join(DEADLINE)
        return sum(answers), r.stats().total

    assert in_child(supervise_self) == (21 * 1000, 1000)


# ----------------------------------------------------------------- callbacks


def test_callback_answers_by_returning() -> None:
    with listening(calls, "getppid") as (box, target):
        replies = iter([ps.reply(1), ps.deny(errno.EBUSY), ps.allow()])
        box.serve(on("getppid", lambda n: next(replies)))
        assert target.result() == [1, -errno.EBUSY, os.getpid()]


def test_callback_answers_by_methods() -> None:
    with listening(calls, "getppid") as (box, target):
        r = on("getppid", lambda n: n.reply(n.pid))
        box.serve(r)
        assert target.result() == [target.pid] * 3
        assert r.stats().answered == {"reply": 3}


def test_callback_as_default_gets_what_no_rule_answers() -> None:
    with listening(lambda: [call("getppid"), call("getpgid", 0)], "getppid", "getpgid") as (box, target):
        seen: list[int] = []

        def default(n: ps.Notification) -> ps.Answer:
            seen.append(n.nr)
            return ps.reply(2)

        box.serve(on("getppid", ps.reply(1), default=default))
        assert target.result() == [1, 2]
        assert seen == [NR["getpgid"]]


def test_raising_callback_denies_with_eperm_reports_and_the_loop_lives() -> None:
    errors: list[Exception] = []

    def callback(n: ps.Notification) -> ps.Answer:
        if len(errors) < 2:
            raise RuntimeError("broken")
        return ps.reply(3)

    with listening(calls, "getppid") as (box, target):
        box.serve(on("getppid", callback, on_error=lambda error, n: errors.append(error)))
        assert target.result() == [-errno.EPERM, -errno.EPERM, 3]
        assert [str(e) for e in errors] == ["broken", "broken"]


@pytest.mark.parametrize("result", [None, 0, "allow"])
def test_callback_that_returns_no_answer_denies(result: Any) -> None:
    errors: list[Exception] = []
    with listening(calls, "getppid") as (box, target):
        r = on("getppid", lambda n: result, fallback=ps.deny(errno.ENOSYS), on_error=lambda e, n: errors.append(e))
        box.serve(r)
        assert target.result() == [-errno.ENOSYS] * 3
        assert all(isinstance(e, TypeError) for e in errors) and len(errors) == 3


def test_callback_that_answers_twice_is_reported_and_its_first_answer_stays() -> None:
    errors: list[Exception] = []

    def callback(n: ps.Notification) -> ps.Answer:
        n.reply(1)
        return ps.deny(errno.EPERM)

    with listening(calls, "getppid") as (box, target):
        box.serve(on("getppid", callback, on_error=lambda e, n: errors.append(e)))
        assert target.result() == [1, 1, 1]
        assert len(errors) == 3


@pytest.mark.parametrize("on_error", [None, lambda error, n: 1 / 0])
def test_errors_reach_the_unraisable_hook(on_error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    caught: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: caught.append(args.exc_type))
    with listening(lambda: calls(1), "getppid") as (box, target):
        box.serve(on("getppid", lambda n: [][0], on_error=on_error))
        assert target.result() == [-errno.EPERM]
    assert caught == [IndexError if on_error is None else ZeroDivisionError]


def test_keyboard_interrupt_in_a_callback_denies_and_ends_the_loop() -> None:
    def callback(n: ps.Notification) -> ps.Answer:
        raise KeyboardInterrupt

    with listening(lambda: calls(1), "getppid") as (box, target):
        with pytest.raises(KeyboardInterrupt):
            box.serve(on("getppid", callback))
        assert target.result() == [-errno.EPERM]


def test_held_notification_is_answered_later_by_another_thread() -> None:
    threads: list[threading.Thread] = []

    def callback(n: ps.Notification) -> ps.Answer:
        thread = threading.Thread(target=n.reply, args=(17,))
        threads.append(thread)
        thread.start()
        return ps.hold()

    with listening(calls, "getppid") as (box, target):
        box.serve(on("getppid", callback))
        for thread in threads:
            thread.join(DEADLINE)
        assert target.result() == [17, 17, 17]


def test_notification_held_by_nobody_fails_with_eperm_and_warns() -> None:
    """The loop used such an object again for the next notification: the call was never answered."""
    with listening(calls, "getppid") as (box, target):
        with pytest.warns(ResourceWarning, match="dropped unanswered"):
            box.serve(on("getppid", lambda n: ps.hold()))
        assert target.result() == [-errno.EPERM] * 3


def test_kept_notifications_keep_their_own_call() -> None:
    """A notification object is used again only if nobody kept it."""
    kept: list[ps.Notification] = []

    def callback(n: ps.Notification) -> ps.Answer:
        kept.append(n)
        return ps.reply(n.args[0])

    with listening(lambda: [call("getpgid", k) for k in range(5)], "getpgid") as (box, target):
        box.serve(on("getpgid", callback))
        assert target.result() == list(range(5))
    assert [n.args[0] for n in kept] == list(range(5))
    assert len({n.id for n in kept}) == 5 and all(n.answered for n in kept)


def test_target_killed_during_its_callback_is_counted_as_gone() -> None:
    def callback(n: ps.Notification) -> ps.Answer:
        os.kill(n.pid, signal.SIGKILL)
        return ps.reply(0)

    with listening(calls, "getppid") as (box, target):
        r = on("getppid", callback)
        assert box.serve(r) is False
        assert target.reap() == -signal.SIGKILL
        assert r.stats().total + r.stats().gone == 1


# ------------------------------------------------------------------ stopping


@pytest.mark.parametrize("count", [1, 2])
def test_stop_by_another_thread(count: int) -> None:
    with listening(lambda: select.select([], [], []), "getppid", count=count) as (box, *_):
        stopper = threading.Timer(0.02, box.stop)
        stopper.start()
        assert box.serve(on("getppid", ps.allow())) is True
        stopper.join()


def test_stop_by_a_signal_handler() -> None:
    def serve() -> bool:
        with listening(lambda: select.select([], [], []), "getppid") as (box, target):
            signal.signal(signal.SIGALRM, lambda *_: box.stop())
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            stopped: bool = box.serve(on("getppid", ps.allow()))
            return stopped

    assert in_child(serve) is True


def test_stop_by_a_callback_still_sends_its_answer() -> None:
    def function() -> int:
        first = call("getppid")
        signal.pause() if first != 5 else None
        return first

    def callback(n: ps.Notification) -> ps.Answer:
        box.stop()
        return ps.reply(5)

    with listening(function, "getppid") as (box, target):
        assert box.serve(on("getppid", callback)) is True
        assert target.result() == 5


def test_stop_under_load_ends_every_loop_each_time() -> None:
    """The wake-up signal can come just before the receiver sleeps: many tries are to hit that."""

    def forever() -> None:
        while True:
            call("getppid")

    with listening(forever, "getppid") as (box, target):
        r = on("getppid", ps.reply(0))
        for _ in range(200):
            thread = threading.Thread(target=box.serve, args=(r,))
            thread.start()
            box.stop()
            thread.join(DEADLINE)
            assert not thread.is_alive()


def test_serve_without_any_listener_says_so() -> None:
    with pytest.raises(NotificationError, match="no listener"):
        Box().serve(ps.Responder())


def test_signal_handler_that_raises_ends_the_loop() -> None:
    def serve() -> str:
        with listening(lambda: select.select([], [], []), "getppid") as (box, target):
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            try:
                box.serve(on("getppid", ps.allow()))
            except KeyboardInterrupt:
                return "interrupted"
        return "ended"

    assert in_child(serve) == "interrupted"


# ---------------------------------------------------------------- statistics


def test_stats_count_by_syscall_and_answer() -> None:
    def function() -> int:
        return len([*calls(10), *(call("getpgid", 0) for _ in range(5))])

    r = on("getppid", ps.deny(errno.EPERM), default=lambda n: ps.reply(1))
    with listening(function, "getppid", "getpgid") as (box, target):
        box.serve(r)
        assert target.result() == 15
    stats = r.stats()
    assert stats.answered == {"deny": 10, "reply": 5}
    assert stats.by_syscall == {(ARCH, NR["getppid"]): {"deny": 10}, (ARCH, NR["getpgid"]): {"reply": 5}}
    assert sum(count for _, count in stats.latencies) == stats.total == 15
    assert (stats.gone, stats.uncounted) == (0, 0)
    assert 0 < stats.latency(0) <= stats.latency(0.5) <= stats.latency(1)


@pytest.mark.parametrize("wrong", [1, "deny", None, object()])
def test_rule_that_is_no_answer_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="a rule is an answer"):
        ps.Responder().on(1, wrong, arch=ARCH)


def test_hold_is_no_fallback() -> None:
    with pytest.raises(ValueError, match="a fallback is"):
        ps.Responder(fallback=ps.hold())


# ------------------------------------------------------------------- workers


def forked_calls(processes: int, count: int) -> bool:
    """True if every call of every child was answered with 7."""
    pids = []
    for _ in range(processes):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if calls(count) == [7] * count else 1)
        pids.append(pid)
    return all(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 for pid in pids)


@pytest.mark.parametrize("workers", ["auto", 1, 2, 3])
def test_workers_answer_every_call_once_and_leave_no_trace(workers: Any) -> None:
    r = ps.Responder(ps.reply(7))
    allowed, threads = os.sched_getaffinity(0), len(os.listdir("/proc/self/task"))
    with listening(lambda: forked_calls(8, 3000), "getppid") as (box, target):
        assert box.serve(r, workers=workers) is False
        assert target.result() is True
    assert r.stats().answered == {"reply": 24000} and r.stats().gone == 0
    assert os.sched_getaffinity(0) == allowed
    assert len(os.listdir("/proc/self/task")) == threads


def test_workers_are_refused_where_python_is_asked() -> None:
    for responder in (ps.Responder(lambda n: ps.allow()), ps.Responder(ps.hold()), on("getppid", lambda n: ps.reply(1))):
        with listening(lambda: calls(1), "getppid") as (box, _), pytest.raises(ValueError, match="only answer by rules"):
            box.serve(responder, workers=2)
    with listening(lambda: calls(1), "getppid") as (box, _):
        for wrong in (0, 17, -1):
            with pytest.raises(ValueError, match="1 to 16"):
                box.serve(ps.Responder(), workers=wrong)


def test_workers_end_when_another_thread_stops_them() -> None:
    with listening(lambda: forked_calls(6, 10**7), "getppid") as (box, _):
        timer = threading.Timer(0.3, box.stop)
        timer.start()
        assert box.serve(ps.Responder(ps.reply(7)), workers=2) is True
        timer.join()


def test_an_exception_that_ends_the_loop_from_on_error_comes_after_the_answer() -> None:
    """SystemExit out of on_error left the call without an answer for as long as the listener lived."""

    def fails(_: ps.Notification) -> ps.Answer:
        raise ValueError

    def leaves(*_: Any) -> None:
        raise SystemExit(3)

    with listening(lambda: calls(1), "getppid") as (box, target):
        with pytest.raises(SystemExit):
            box.serve(on("getppid", fails, on_error=leaves))
        assert target.result() == [-errno.EPERM]


# ------------------------------------------------------------------- signals


def interrupted(serve: Any, delay: float) -> float:
    """Seconds that serve() takes to raise what a signal handler raises; the signal comes after delay seconds."""

    class Interrupt(Exception):
        pass

    def handler(*_: Any) -> None:
        raise Interrupt

    signal.signal(signal.SIGALRM, handler)
    start = time.monotonic()
    with pytest.raises(Interrupt):
        signal.setitimer(signal.ITIMER_REAL, delay)
        serve()
    return time.monotonic() - start


@pytest.mark.parametrize("listeners", [1, 2])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_is_heard_while_calls_keep_coming(listeners: int, workers: int) -> None:
    """With two targets that call all the time RECV never waits; the handler ran only when they had ended."""

    def monitor() -> float:
        with listening(lambda: forked_calls(2, 10**7), "getppid", count=listeners) as (box, *_):
            return interrupted(lambda: box.serve(ps.Responder(ps.reply(7)), workers=workers), 0.2)

    assert in_child(monitor) < 5


def test_a_signal_just_before_the_wait_is_heard() -> None:
    """A handler that ran between the interpreter's last look and RECV was forgotten until the next notification."""

    def monitor() -> float:
        with listening(lambda: os.read(os.pipe()[0], 1), "getppid") as (box, _):
            served, received = ps.Responder(ps.reply(7)), []
            for n in range(int(os.environ.get("PYSECCOMP_ROUNDS", "200"))):
                received.append(interrupted(lambda: box.serve(served), 1e-6 + n % 100 * 2e-6))
                received.append(interrupted(lambda: box.receive(), 1e-6 + n % 100 * 2e-6))
            return max(received)

    assert in_child(monitor) < 10


def test_serve_leaves_the_wake_up_descriptor_and_the_timer_as_they_were() -> None:
    def monitor() -> tuple[int, int, set[str]]:
        first, own = descriptors(), os.pipe2(os.O_NONBLOCK)
        for fd in (own[1], -1):
            signal.set_wakeup_fd(fd)
            with listening(lambda: calls(1), "getppid") as (box, target):
                box.serve(ps.Responder(ps.reply(7)))
                assert target.result() == [7]
            assert signal.set_wakeup_fd(-1) == fd
        del box, target
        for fd in own:
            os.close(fd)
        return len(Path("/proc/self/timers").read_text().splitlines()), len(os.listdir("/proc/self/task")), descriptors() - first

    timers, threads, fds = in_child(monitor)
    assert timers <= 4 and threads == 1 and not fds  # a timer is shown by four lines


def test_a_thread_of_this_process_that_holds_the_interpreter_is_answered_while_ticks_come() -> None:
    """A loop that returns for its timer would need the lock that the trapped thread holds."""

    def monitor() -> bool:
        installed: queue.Queue[int] = queue.Queue()
        serving = threading.Event()

        def trapped() -> None:
            installed.put(install(notifying("getppid")))
            serving.wait()
            while not box._inbox.stays:
                time.sleep(0.001)
            time.sleep(0.05)
            holding = ctypes.PyDLL(None).syscall  # it keeps the interpreter's lock during the call
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                assert holding(NR["getppid"]) == 7
            box.stop()

        thread = threading.Thread(target=trapped)
        thread.start()
        box = Box(installed.get())
        serving.set()
        return box.serve(ps.Responder(ps.reply(7)))

    assert in_child(monitor) is True
