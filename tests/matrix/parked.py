"""A target that parks itself: a Python process in a place, which lives on as the victim in C does."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import time
from pathlib import Path

import pyseccomp as ps
from matrix import system
from matrix.places import Place, program
from matrix.target import PROBE, State

PLACES = (
    "host", "pidns", "rootless", "chroot", "filters-1", "filters-2", "container-policy", "pidns-filtered", "kills-restart",
    "denies-restart", "kills-exit",
)  # fmt: skip
"""Where Python itself can live."""


def become_target(place: Place, folder: Path, state: State, letters: socket.socket, sock: socket.socket) -> None:
    """In a forked child: be in the place, receive the filter, park, and live until killed. Never returns."""
    try:
        _enter(place, folder)
        for name in place.filters:
            system.load_filter(program(name))
        try:
            f = ps.Filter.recv(sock)
            attachment = f.attach(active=False)
        except ps.SeccompError as error:
            sock.send(b"R" + f"{type(error).__name__}: {error}".encode())
            os._exit(0)
        sock.send(b"P")
        _live(state, letters.fileno(), sock)
        attachment.close()  # is kept until here
    finally:
        os._exit(1)


def _enter(place: Place, folder: Path) -> None:
    os.chdir(folder)
    uid, gid = os.geteuid(), os.getegid()
    if "--user" in place.options:
        system.unshare(system.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    if "--pid" in place.options:
        system.unshare(system.CLONE_NEWPID | system.CLONE_NEWNS)
        if os.fork():
            os._exit(0)
        system.check(system.libc.mount(None, b"/", None, 0x44000, None), "mount")
        system.check(system.libc.mount(b"proc", b"/proc", b"proc", 0, None), "mount /proc")
    if "--chroot" in place.options:
        os.chroot(".")
        os.chdir("/")


def _live(state: State, letters: int, sock: socket.socket) -> None:
    """Sleep, write, check, and tell, as the main thread of the victim does; end with a creator that has not said to stay.

    Its own calls are those that fault injection leaves alone.
    """
    staying = False
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    sock.setblocking(False)
    work = os.open("work", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    rounds = 0
    while True:
        if not staying:
            with contextlib.suppress(BlockingIOError):
                if not os.readv(sock.fileno(), [bytearray(1)]):
                    os._exit(0)
                staying = True
                sock.close()
        seen = bytearray(8)
        wrong = rounds > 0 and (os.preadv(work, [seen], 0) != 8 or int.from_bytes(seen, "little") != rounds)
        rounds += 1
        os.pwritev(work, [rounds.to_bytes(8, "little")], 0)
        if state.requested == PROBE:
            state.answer(_errno(system.libc.getpgid(0)))
        start = time.monotonic()
        time.sleep(0.01)
        took = time.monotonic() - start
        state.finish_round("m", _errno(system.libc.syscall(_GETPPID)))
        with contextlib.suppress(BlockingIOError):
            os.write(letters, b"M" if wrong or not 0.009 < took < 8 else b"m")


_GETPPID = ps.syscalls.resolve("getppid", ps.Arch.native())


def _errno(result: int) -> int:
    return ctypes.get_errno() if result < 0 else 0
