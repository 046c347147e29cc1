"""What can happen to the messages of parked processes on their way: refused, without room, or from a target that means harm."""

from __future__ import annotations

import array
import contextlib
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attaching import wait_until
from harness import in_child, status_field
from test_park import denying, parked

import pyseccomp as ps
from pyseccomp.park import Parked

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="privilege: root, to trace a helper of a parked process")


def notifying() -> ps.Policy:
    return denying(action=ps.NOTIFY)


def helper_of(pid: int) -> int:
    """The helper of a parked process: another process of the same memory."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and int(entry) != pid and Path(f"/proc/{entry}/maps").read_text() == maps:
                return int(entry)
    raise AssertionError("no helper")


@contextlib.contextmanager
def refused(pid: int, rule: str) -> Iterator[None]:
    with tempfile.TemporaryDirectory() as path:
        out = Path(path, "strace")
        command = ["strace", "-qq", "-p", str(pid), "-o", str(out), "-e", f"trace={rule.partition(':')[0]}", "-e", f"inject={rule}"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as tracer:
            try:
                wait_until(lambda: status_field(pid, "TracerPid") == str(tracer.pid), "it is traced")
                yield
                wait_until(lambda: "(INJECTED)" in out.read_text(), "a call was refused")
            finally:
                tracer.terminate()


@as_root
@pytest.mark.parametrize("error", ["ETOOMANYREFS", "ENOBUFS", "ENOMEM", "EAGAIN"])
def test_a_listener_that_cannot_be_sent_at_first_comes_later(error: str) -> None:
    with parked(notifying()) as (f, target, attachment):
        with refused(helper_of(target.pid), f"sendmsg:error={error}:when=1..4"):
            attachment.activate()
        assert (attachment.query().state, len(attachment.listeners)) == ("active", 1)
        target.sock.send(b"call")
        f.receive(20).deny(77)
        assert target.sock.recv(20) == b"77"


@as_root
def test_a_listener_that_cannot_be_sent_at_all_is_told_and_kept() -> None:
    with parked(notifying()) as (f, target, attachment):
        attachment.timeout = 0.5
        with refused(helper_of(target.pid), "sendmsg:error=ETOOMANYREFS"):
            with pytest.raises(ps.AttachTimeoutError, match="the filter is in force; its listener cannot be sent yet"):
                attachment.activate()
            assert (attachment.query().state, attachment.listeners) == ("active", ())
        wait_until(lambda: attachment.activated, "it comes when it can be sent")
        target.sock.send(b"call")
        f.receive(20).deny(77)
        assert target.sock.recv(20) == b"77"


def test_a_listener_that_finds_no_room_waits_and_is_not_lost() -> None:
    def create() -> tuple[str, int, int]:
        with parked(notifying()) as (f, target, attachment):
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(fd) for fd in os.listdir("/proc/self/fd")) + 1, hard))
            with contextlib.suppress(OSError):
                while True:
                    os.dup(0)
            attachment.timeout = 0.3
            with pytest.raises(ps.AttachTimeoutError, match="cannot be received here .*and waits"):
                attachment.activate()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            attachment.activate()
            target.sock.send(b"call")
            f.receive(20).deny(77)
            return attachment.query().state, len(attachment.listeners), int(target.sock.recv(20))

    assert in_child(create) == ("active", 1, 77)


def flood(attachment: ps.Attachment, sock: socket.socket) -> None:
    """Send everything that is no message into the channel, for as long as this lives."""
    ticket = attachment.filter._ticket
    assert ticket is not None
    with socket.socket(fileno=os.dup(ticket.channel.fileno())) as channel, socket.create_server(("127.0.0.1", 0)) as server:
        stuck = socket.create_connection(server.getsockname())
        kept = server.accept()[0]
        stuck.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                stuck.send(bytes(1 << 16))
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1000))
        threading.Thread(target=sock.send, args=(b"flooding",)).start()
        message = struct.pack("=8sIiQII", b"PSCPARK\0", 1, 0, 5, 0, 0)
        while True:
            fds = [stuck.fileno()] + [0] * 240
            for data, n in ((message, 1), (message, 241), (b"", 3), (b"x" * 1000, 241), (b"x", 0)):
                with contextlib.suppress(OSError):
                    channel.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds[:n]))] if n else [])
        del kept


def test_a_target_that_floods_the_channel_neither_stops_its_creator_nor_costs_it_descriptors() -> None:
    with parked(notifying(), flood) as (f, target, attachment):
        assert target.sock.recv(20) == b"flooding"
        before = len(os.listdir("/proc/self/fd"))
        end = time.monotonic() + 1
        while time.monotonic() < end:
            assert [one for one in f.attachments if isinstance(one, Parked)] == [attachment]
            assert select.select([attachment.pidfd], [], [], 0.01)[0] == []
        assert len(os.listdir("/proc/self/fd")) == before
        attachment.activate()
        assert (attachment.query().state, len(attachment.listeners)) == ("active", 1)
        os.kill(target.pid, signal.SIGKILL)
