"""Rules by argument, string and process, on real targets; rules inside the program; threads of one's own process."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import mmap
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from harness import DEADLINE, descriptors, in_child
from listening import ARCH, NR, Box, call, install, libc, listening, notifying

import pyseccomp as ps
from pyseccomp.features import features


def on(name: str, answer: Any, *conditions: ps.Condition, default: Any = None, **options: Any) -> ps.Responder:
    return ps.Responder(ps.allow() if default is None else default).on(NR[name], answer, *conditions, arch=ARCH, **options)


def test_argument_rules_choose_among_answers() -> None:
    r = on("getpgid", ps.reply(1), default=ps.reply(9))
    r.on(NR["getpgid"], ps.reply(2), ps.Arg(0, ps.RANGE, 10, 20), arch=ARCH)
    r.on(NR["getpgid"], ps.deny(errno.EACCES), ps.Arg(0, ps.MASKED_EQ, 3, 1, bits=32), arch=ARCH)
    with listening(lambda: [call("getpgid", k) for k in (0, 10, 13, 20, -3)], "getpgid") as (box, target):
        assert box.serve(r) is False
        assert target.result() == [1, 2, -errno.EACCES, 2, -errno.EACCES]
    assert r.stats().answered == {"reply": 3, "deny": 2}


# -------------------------------------------------------------------- strings


def opening(*paths: Any) -> Callable[[], list[int]]:
    """A target that makes openat with each path (bytes, or an address), and closes what it opened."""

    def function() -> list[int]:
        found = []
        for path in paths:
            fd = call("openat", -100, path, 0)
            if fd >= 0:
                os.close(fd)
            found.append(min(fd, 0))
        return found

    return function


def test_prefix_denies_what_begins_so() -> None:
    r = on("openat", ps.deny(errno.EACCES), ps.StringArg(1, prefix="/etc/pass"))
    with listening(opening(b"/etc/passwd", b"/etc/hostname-is-not-there", b"/dev/null"), "openat") as (box, target):
        box.serve(r)
        assert target.result() == [-errno.EACCES, -errno.ENOENT, 0]


def test_exact_and_glob_and_what_is_not() -> None:
    r = on("openat", ps.deny(errno.EPERM), ~ps.StringArg(1, glob="/dev/[a-z]*"))
    r.on(NR["openat"], ps.deny(errno.EBUSY), ps.StringArg(1, exact="/dev/zero"), arch=ARCH)
    with listening(opening(b"/dev/null", b"/etc/passwd", b"/dev/zero", b"/dev/zerox"), "openat") as (box, target):
        box.serve(r)
        assert target.result() == [0, -errno.EPERM, -errno.EBUSY, -errno.ENOENT]


def test_strings_at_page_ends_and_beyond_the_limit() -> None:
    """A string across two pages, one that runs into nothing, one of 4095 bytes, one of 4096, none at all."""

    def function() -> list[int]:
        area = mmap.mmap(-1, 3 * mmap.PAGESIZE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(area))
        libc.mprotect(ctypes.c_void_p(base + 2 * mmap.PAGESIZE), mmap.PAGESIZE, 0)
        edge = mmap.PAGESIZE
        area[edge - 3 : edge + 9] = b"/secret/one\0"
        area[2 * edge - 7 : 2 * edge] = b"/secret"
        found = [call("openat", -100, base + edge - 3), call("openat", -100, base + 2 * edge - 7), call("openat", -100, 0)]
        area[0:4095] = b"/" + b"x" * 4094
        area[4095:4096] = b"\0"
        found.append(call("openat", -100, base))
        area[4095:4096] = b"x"
        found.append(call("openat", -100, base))
        return found

    r = on("openat", ps.reply(1), ps.StringArg(1, glob="/secret/*"), default=ps.reply(0))
    r.on(NR["openat"], ps.reply(2), ps.StringArg(1, exact="/" + "x" * 4094), unreadable=ps.deny(errno.ENOTTY), arch=ARCH)
    with listening(function, "openat") as (box, target):
        box.serve(r)
        # The second rule finds a difference before it needs what cannot be read.
        assert target.result() == [1, -errno.EFAULT, -errno.ENOTTY, 2, -errno.EFAULT]


def test_function_is_asked_only_about_its_strings() -> None:
    seen: list[bytes] = []

    def judge(n: ps.Notification) -> ps.Answer:
        seen.append(n.read_string(n.args[1]))
        return ps.deny(errno.EMFILE)

    r = on("openat", judge, ps.StringArg(1, prefix="/tmp/"))
    with listening(opening(b"/dev/null", b"/tmp/asked", b"/dev/null"), "openat") as (box, target):
        box.serve(r)
        assert target.result() == [0, -errno.EMFILE, 0]
    assert seen == [b"/tmp/asked"]


def test_memory_that_is_kept_is_not_inherited_and_closed_with_the_loop() -> None:
    if not next(f for f in features() if f.name == "kept-memory").available:
        pytest.skip("privilege: CAP_BPF and CAP_PERFMON, to keep memory open")
    kept: list[tuple[str, bool]] = []

    def look(n: ps.Notification) -> ps.Answer:
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if (link := os.readlink(f"/proc/self/fd/{fd}")).endswith("/mem"):
                    kept.append((link, os.get_inheritable(int(fd))))
        return ps.reply(len(kept))

    def function() -> tuple[list[int], int]:
        return [call("openat", -100, b"/tmp/kept") for _ in range(5000)], call("getppid")

    before = descriptors()
    r = on("openat", ps.reply(5), ps.StringArg(1, prefix="/tmp/k"), default=ps.deny(errno.EPERM)).on(NR["getppid"], look, arch=ARCH)
    with listening(function, "openat", "getppid") as (box, target):
        box.serve(r)
        assert target.result() == ([5] * 5000, 1)
        assert kept == [(f"/proc/{target.pid}/mem", False)]
    del box, r
    gc.collect()
    assert descriptors() == before


def test_kill_by_string_hits_the_caller_alone() -> None:
    r = on("openat", ps.kill(), ps.StringArg(1, exact="/tmp/bad"))
    with listening(opening(b"/dev/null", b"/tmp/bad"), "openat") as (box, target), listening(opening(b"/dev/null"), "openat") as (_, other):
        box.add(other.listener)
        box.serve(r)
        assert target.reap() == -signal.SIGKILL and other.result() == [0]
        box.remove(other.listener)


# ---------------------------------------------------------------- processes


def test_rule_for_one_process_leaves_the_others_alone() -> None:
    def function() -> list[int]:
        found = [call("getppid")]
        thread = threading.Thread(target=lambda: found.append(call("getppid")))
        thread.start()
        thread.join()
        return found

    with listening(function, "getppid", count=3) as (box, one, two, three):
        r = on("getppid", ps.reply(1), tgid=one.pid, default=ps.reply(0))
        r.on(NR["getppid"], ps.reply(2), tgid=[two.pid, os.getpid()], arch=ARCH)
        box.serve(r)
        assert [t.result() for t in (one, two, three)] == [[1, 1], [2, 2], [0, 0]]


# ------------------------------------------------------------------- add_fd


def send_something(fd: int) -> tuple[int, bytes, bool]:
    data = os.read(fd, 100) if fd >= 0 else b""
    return fd, data, fd >= 0 and os.get_inheritable(fd)


@pytest.mark.parametrize(("at", "cloexec"), [(None, True), (77, False)])
def test_descriptor_is_the_answer(at: int | None, cloexec: bool) -> None:
    def function() -> tuple[int, bytes, bool]:
        return send_something(call("openat", -100, b"/nowhere", 0))

    reader, writer = socket.socketpair()
    with reader, writer:
        writer.send(b"hello")
        r = on("openat", ps.add_fd(reader, at=at, cloexec=cloexec), ps.StringArg(1, exact="/nowhere"))
        with listening(function, "openat") as (box, target):
            box.serve(r)
            fd, data, inheritable = target.result()
    assert data == b"hello" and inheritable is not cloexec and (fd == at if at else fd > 2)
    assert r.stats().answered == {"add_fd": 1}


def test_function_may_close_the_descriptor_that_it_answers_with() -> None:
    def judge(n: ps.Notification) -> ps.Answer:
        reader, writer = os.pipe()
        os.write(writer, b"piped")
        try:
            return ps.add_fd(reader)
        finally:
            os.close(reader)
            os.close(writer)

    before = len(descriptors())
    with listening(lambda: [send_something(call("openat", -100, b"/x", 0))[1] for _ in range(5)], "openat") as (box, target):
        box.serve(on("openat", judge))
        assert target.result() == [b"piped"] * 5
    gc.collect()
    assert len(descriptors()) == before


def test_target_at_its_limit_of_descriptors_is_told_so() -> None:
    def function() -> list[int]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        return [call("openat", -100, b"/x", 0), call("getppid")]

    r = on("openat", ps.add_fd(0))
    r.on(NR["getppid"], ps.reply(5), arch=ARCH)
    with listening(function, "openat", "getppid") as (box, target):
        box.serve(r)
        assert target.result() == [-errno.EMFILE, 5], "the loop lives"


# ------------------------------------------------------------------ offload


def notifying_policy(*names: str) -> ps.Policy:
    policy = ps.Policy()
    for name in names:
        policy.add(ps.NOTIFY, name)
    return policy


def probe() -> list[int]:
    return [call("getpgid", k) for k in range(6)] + [call("getppid"), call("umask", 0)]


@pytest.mark.parametrize("inside", [True, False])
def test_answers_are_the_same_inside_the_program_and_outside(inside: bool) -> None:
    def serve_child() -> tuple[list[int], int]:
        r = ps.Responder(ps.deny(errno.ENOSYS))
        r.on("getpgid", ps.reply(0)).on("getpgid", ps.deny(91), ps.Arg(0, ps.GT, 1))
        r.on("getpgid", ps.reply(40), ps.Arg(0, ps.EQ, 3)).on("getpgid", ps.deny(92), ps.Arg(0, ps.GE, 5))
        r.on("umask", lambda n: ps.reply(12))
        reader, writer = os.pipe()
        go, gone = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(gone)
            os.read(go, 1)
            os.write(writer, repr(probe()).encode())
            os._exit(0)
        with ps.Filter(notifying_policy("getpgid", "getppid", "umask"), responder=r if inside else None) as f:
            f.attach(pid)
            os.close(gone)
            assert f.serve(r) is False
            found = [int(word) for word in os.read(reader, 1000).decode().strip("[]").split(",")]
        os.waitpid(pid, 0)
        return found, r.stats().total

    found, asked = in_child(serve_child)
    assert found == [0, 0, -91, 40, -91, -92, -errno.ENOSYS, 12]
    assert asked == (2 if inside else 8)


# -------------------------------------------------------------- own threads


def supervise_own_thread(responder: Callable[[list[Exception]], ps.Responder], holding: bool) -> tuple[list[int], list[int], int]:
    """A thread of this process calls getppid 100 times, with the interpreter's lock or without; who serves is another.

    Returns what it got, the errnos that were reported, and how many calls were answered.
    """
    library = ctypes.PyDLL(None) if holding else ctypes.CDLL(None)
    library.syscall.restype = ctypes.c_long
    listeners: list[int] = []
    box, installed = Box(), threading.Event()
    answers: list[int] = []
    errors: list[Exception] = []

    def trapped() -> None:
        listeners.append(install(notifying("getppid")))
        installed.set()
        while not box._inbox.stays:
            os.sched_yield()
        answers.extend(library.syscall(NR["getppid"]) for _ in range(100))

    thread = threading.Thread(target=trapped)
    thread.start()
    installed.wait(DEADLINE)
    box.add(listeners[0])
    r = responder(errors)
    box.serve(r)
    thread.join(DEADLINE)
    return answers, [getattr(error, "errno", 0) for error in errors], r.stats().total


def test_own_thread_that_holds_the_interpreter_is_answered_by_rules() -> None:
    def responder(errors: list[Exception]) -> ps.Responder:
        r = ps.Responder(lambda n: ps.reply(0), on_error=lambda error, n: errors.append(error))
        return r.on(NR["getppid"], ps.reply(21), ps.Arg(5, ps.GE, 0), tgid=os.getpid(), arch=ARCH)

    assert in_child(supervise_own_thread, responder, True) == ([21] * 100, [], 100)


@pytest.mark.parametrize("holding", [True, False])
@pytest.mark.parametrize("answer", ["function", "hold"])
def test_own_thread_is_refused_what_would_need_python(holding: bool, answer: str) -> None:
    """It would wait for itself: it gets the fallback, and on_error the reason."""

    def responder(errors: list[Exception]) -> ps.Responder:
        r = ps.Responder(fallback=ps.reply(33), on_error=lambda error, n: errors.append(error))
        return r.on(NR["getppid"], ps.hold() if answer == "hold" else lambda n: ps.reply(1), arch=ARCH)

    assert in_child(supervise_own_thread, responder, holding) == ([33] * 100, [errno.EDEADLK], 100)


def test_refusal_says_which_call_and_why() -> None:
    def refuse() -> list[str]:
        said: list[str] = []

        def responder(errors: list[Exception]) -> ps.Responder:
            r = ps.Responder(on_error=lambda error, n: said.append(f"{error} {n.answered} {n.nr}"))
            return r.on(NR["getppid"], lambda n: ps.reply(1), arch=ARCH)

        supervise_own_thread(responder, False)
        return said

    said = in_child(refuse)
    assert len(said) == 1 and "a thread of this process" in said[0] and "100 times it got deny(EPERM)" in said[0]
    assert said[0].endswith(f"True {NR['getppid']}")


def test_other_processes_are_asked_about_as_before() -> None:
    with listening(lambda: [call("getppid") for _ in range(500)], "getppid") as (box, target):
        errors: list[Exception] = []
        r = ps.Responder(lambda n: ps.reply(4), on_error=lambda error, n: errors.append(error))
        box.serve(r)
        assert target.result() == [4] * 500 and not errors


def test_table_answers_strings_at_full_speed_beside_a_busy_python_thread() -> None:
    done = threading.Event()

    def burn() -> None:
        while not done.is_set():
            sum(range(1000))

    r = on("openat", ps.reply(3), ps.StringArg(1, prefix="/some/"), default=ps.reply(-1))
    with listening(lambda: {call("openat", -100, b"/some/path", 0) for _ in range(10000)}, "openat") as (box, target):
        burner = threading.Thread(target=burn)
        burner.start()
        try:
            box.serve(r)
        finally:
            done.set()
            burner.join()
        assert target.result() == {3}
    assert sys.getswitchinterval() > 0.001, "or the loop could have taken the interpreter every time"
