"""The loops that bench_notify.py compares, each in a process of its own: python _loops.py NAME idle|busy

Takes listeners from the Unix socket on fd 0, one after the other, answers every call with 0 until no task is left, and
says so with a byte. Runs under any Python that has what the loop needs; busy adds a thread that computes all the time.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

Serve = Callable[[int], None]


def ended(fd: int) -> bool:
    """True if no task is left under the listener."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return any(bits & select.POLLHUP for _, bits in poll.poll(0))


def _box(fd: int) -> Any:
    from pyseccomp.notify import Receiver, new_inbox

    class Box(Receiver):
        def __init__(self) -> None:
            self._inbox = new_inbox()
            self._inbox.add(fd)

    return Box()


def table() -> Serve:
    """Ours: the decision table in C, threads by load."""
    import pyseccomp as ps

    return lambda fd: _box(fd).serve(ps.Responder(default=ps.reply(0)))


def one() -> Serve:
    """Ours: the table, by one thread."""
    import pyseccomp as ps

    return lambda fd: _box(fd).serve(ps.Responder(default=ps.reply(0)), workers=1)


def two() -> Serve:
    """Ours: the table, by two threads that the scheduler places."""
    import pyseccomp as ps

    def serve(fd: int) -> None:
        box, responder = _box(fd), ps.Responder(default=ps.reply(0))
        other = threading.Thread(target=box.serve, args=(responder,), kwargs={"workers": 1})
        other.start()
        box.serve(responder, workers=1)
        other.join()

    return serve


def string() -> Serve:
    """Ours: the table, by the first eight bytes of a string in the target."""
    import pyseccomp as ps

    r = ps.Responder(default=ps.deny(1)).on("getpgid", ps.reply(0), ps.StringArg(1, prefix=b"/tmp/pat"))
    return lambda fd: _box(fd).serve(r)


def callback() -> Serve:
    """Ours: a Python function for each call."""
    import pyseccomp as ps

    answer = ps.reply(0)
    return lambda fd: _box(fd).serve(ps.Responder(default=lambda n: answer))


def loop() -> Serve:
    """Ours: for n in f."""

    def serve(fd: int) -> None:
        for n in _box(fd):
            n.reply(0)

    return serve


async def _answer_async(fd: int) -> None:
    async for n in _box(fd):
        n.reply(0)


def asyncio_loop() -> Serve:
    """Ours: async for n in f."""
    return lambda fd: asyncio.run(_answer_async(fd))


def uvloop_loop() -> Serve:
    """Ours: async for n in f, under uvloop."""
    import uvloop

    return lambda fd: uvloop.run(_answer_async(fd))


def _through_libseccomp(
    seccomp: Any, notify_fd: Callable[[Any], int], respond: Callable[[Any, Any], None]
) -> Serve:
    """Both bindings keep one listener for the process: it is made by a filter on a call that nobody makes, and every
    listener to be measured is put at its number."""
    f = seccomp.SyscallFilter(seccomp.ALLOW)
    f.add_rule(seccomp.NOTIFY, "uselib")
    f.load()
    number = notify_fd(f)

    def serve(fd: int) -> None:
        os.dup2(fd, number, inheritable=False)
        while True:
            try:
                n = f.receive_notify()
            except (RuntimeError, OSError):
                if ended(fd):
                    break
                continue
            respond(f, n)
        # A listener that stays open is never hung up; a number that is closed is lost.
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), number, inheritable=False)

    return serve


def libseccomp() -> Serve:
    """libseccomp's own Python binding, as Debian packages it."""
    import seccomp

    def respond(f: Any, n: Any) -> None:
        f.respond_notify(seccomp.NotificationResponse(n, 0, 0, 0))

    return _through_libseccomp(seccomp, lambda f: f.get_notify_fd(), respond)


def ctypes_pyseccomp() -> Serve:
    """PyPI pyseccomp 0.1.2: libseccomp through ctypes."""
    import pyseccomp as seccomp

    def respond(f: Any, n: Any) -> None:
        f.respond_notify(seccomp.NotificationResponse(error=0, flags=0, id=n.id, val=0))

    # It keeps the number to itself.
    return _through_libseccomp(seccomp, lambda f: seccomp._libseccomp.seccomp_notify_fd(f._filter), respond)


def seccompy() -> Serve:
    """PyPI seccompy."""
    from seccompy.errors import SeccompError
    from seccompy.notify import Listener

    def serve(fd: int) -> None:
        with Listener(os.dup(fd)) as listener:
            while True:
                try:
                    n = listener.recv()
                except SeccompError:
                    if ended(fd):
                        return
                    continue
                listener.respond(n.id, val=0)

    return serve


LOOPS = {
    "table": table,
    "one": one,
    "two": two,
    "string": string,
    "callback": callback,
    "loop": loop,
    "asyncio": asyncio_loop,
    "uvloop": uvloop_loop,
    "libseccomp": libseccomp,
    "ctypes": ctypes_pyseccomp,
    "seccompy": seccompy,
}


def _compute() -> None:
    while True:
        sum(range(1000))


def main() -> None:
    serve = LOOPS[sys.argv[1]]()
    if "PYSECCOMP_SWITCH_INTERVAL" in os.environ:
        sys.setswitchinterval(float(os.environ["PYSECCOMP_SWITCH_INTERVAL"]))
    if sys.argv[2] == "busy":
        threading.Thread(target=_compute, daemon=True).start()
    sock = socket.socket(fileno=0)
    sock.send(b"r")
    while True:
        _, fds, _, _ = socket.recv_fds(sock, 1, 1)
        if not fds:
            os._exit(0)
        serve(fds[0])
        os.close(fds[0])
        sock.send(b"d")


if __name__ == "__main__":
    main()
