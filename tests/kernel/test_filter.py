"""The filter as a file descriptor: what it holds, where it goes, what a receiver refuses, what its number means."""

from __future__ import annotations

import array
import errno
import fcntl
import gc
import hashlib
import multiprocessing
import os
import select
import socket
import struct
import warnings
from collections.abc import Iterator

import pytest
from harness import Victim, descriptors, in_child, victim

import pyseccomp as ps

PAGE = 4096
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | 0x10  # F_SEAL_FUTURE_WRITE
MAKE_DIRECTORIES = """
import os
print("ready", flush=True)
while True:
    input()
    try:
        os.mkdir("/nonexistent/directory")
    except OSError as error:
        print(error.errno, flush=True)
"""


def policy(action: ps.Action, syscall: str = "mkdir") -> ps.Policy:
    result = ps.Policy()
    result.add(action, syscall)
    return result


@pytest.fixture
def detached() -> Iterator[ps.Filter]:
    with ps.Filter(policy(ps.ERRNO(77))) as f:
        yield f


def image(header: bytes = b"", program: bytes = b"", size: int | None = None) -> bytes:
    """What the memfd of a filter holds; by default a well-formed one."""
    program = program or bytes(policy(ps.ERRNO(77)).compile())
    header = header or struct.pack("<8sIIII32s", b"PSCFILT", 1, len(program) // 8, 0, 0, hashlib.sha256(program).digest())
    data = header.ljust(PAGE, b"\0") + program
    return data[:size]


def memfd(data: bytes, seals: int = SEALS) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def test_a_filter_is_a_sealed_memfd_that_closes_on_exec(detached: ps.Filter) -> None:
    assert os.readlink(f"/proc/self/fd/{detached.fileno()}").startswith("/memfd:seccomp-filter")
    assert fcntl.fcntl(detached, fcntl.F_GET_SEALS) & SEALS == SEALS
    assert not os.get_inheritable(detached.fileno())


def test_a_filter_cannot_be_written_truncated_or_grown(detached: ps.Filter) -> None:
    for act in (lambda fd: os.pwrite(fd, b"x", PAGE), lambda fd: os.truncate(fd, PAGE), lambda fd: os.truncate(fd, 1 << 20)):
        with pytest.raises(PermissionError):
            act(detached.fileno())


def test_making_a_filter_changes_nothing_in_its_maker(detached: ps.Filter) -> None:
    assert ps.query(os.getpid()).threads[0].filters in (0, None)
    assert detached.query().state == "detached"


def test_the_image_is_the_documented_one(detached: ps.Filter) -> None:
    size = os.fstat(detached.fileno()).st_size
    written = os.pread(detached.fileno(), size, 0)
    flags = struct.pack("<I", 2)  # wait_killable
    assert written == image()[:16] + flags + image()[20:]


def test_from_fd_gives_an_equal_filter_and_leaves_the_fd_to_its_owner(detached: ps.Filter) -> None:
    with ps.Filter.from_fd(detached.fileno()) as copy:
        assert copy.program == detached.program
        assert copy.fileno() != detached.fileno()
    assert os.fstat(detached.fileno())


def test_flags_travel_with_the_fd() -> None:
    with ps.Filter(policy(ps.NOTIFY), log=True, wait_killable=False) as f, ps.Filter.from_fd(f.fileno()) as copy:
        assert (copy.log, copy.wait_killable) == (True, False)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: memfd(image(), seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW), "lacks seals"),
        (lambda: memfd(image(), seals=SEALS & ~fcntl.F_SEAL_SEAL), "lacks seals"),
        (lambda: memfd(image(size=PAGE)), "damaged"),
        (lambda: memfd(image(size=PAGE + 12)), "damaged"),
        (lambda: memfd(image(size=100)), "not a filter"),
        (lambda: memfd(b""), "not a filter"),
        (lambda: memfd(image() + b"\0" * 8), "damaged"),
        (lambda: memfd(image(header=b"PSCFILT\0\2")), "not a filter"),
        (lambda: memfd(image(program=struct.pack("<HBBI", 5, 0, 0, 9))), "the kernel would refuse"),
        (lambda: os.open("/dev/null", os.O_RDONLY), "not a filter"),
        (lambda: os.open("/etc/passwd", os.O_RDONLY), "not a filter"),
        (lambda: os.eventfd(0), "not a filter"),
        (lambda: os.pidfd_open(os.getpid()), "not a filter"),
    ],
)
def test_what_is_no_trustworthy_filter_is_refused_and_nothing_leaks(make: object, reason: str) -> None:
    fd = make()  # type: ignore[operator]
    before = len(descriptors())
    try:
        with pytest.raises(ps.FilterFdError, match=reason):
            ps.Filter.from_fd(fd)
        assert len(descriptors()) == before
    finally:
        os.close(fd)


def test_a_closed_fd_is_refused() -> None:
    with pytest.raises(ps.FilterFdError, match="Bad file descriptor"):
        ps.Filter.from_fd(1 << 20)


def test_every_flipped_bit_of_header_or_program_is_noticed() -> None:
    good = image()
    known_flags = {(16, 0), (16, 1), (16, 2)}
    for at, bit in ((at, bit) for at in (*range(56), *range(PAGE, len(good))) for bit in range(8)):
        if (at, bit) in known_flags:
            continue
        bad = bytearray(good)
        bad[at] ^= 1 << bit
        fd = memfd(bytes(bad))
        try:
            with pytest.raises(ps.FilterFdError):
                ps.Filter.from_fd(fd)
        finally:
            os.close(fd)


def test_a_filter_goes_through_a_socket_to_another_process() -> None:
    def receive(sock: socket.socket) -> bytes:
        with ps.Filter.recv(sock) as f:
            f.attach()
            try:
                os.mkdir("/nonexistent/directory")
            except OSError as error:
                return bytes([error.errno or 0]) + f.program.digest
        return b""

    here, there = socket.socketpair()
    with here, there, ps.Filter(policy(ps.ERRNO(77))) as f:
        f.send(here)
        assert in_child(receive, there) == bytes([77]) + f.program.digest
    assert ps.query(os.getpid()).threads[0].filters in (0, None)


@pytest.mark.parametrize("count", [0, 2, 5])
def test_receiving_anything_but_one_descriptor_is_refused_and_closes_what_came(count: int) -> None:
    here, there = socket.socketpair()
    with here, there, open("/dev/null") as null:
        before = len(descriptors())
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null.fileno()] * count))] if count else []
        here.sendmsg([b"F"], ancillary)
        with pytest.raises(ps.FilterFdError, match="expected one descriptor"):
            ps.Filter.recv(there)
        assert len(descriptors()) == before


def test_receiving_from_a_closed_connection_says_so() -> None:
    here, there = socket.socketpair()
    here.close()
    with there, pytest.raises(ps.FilterFdError, match="closed the connection"):
        ps.Filter.recv(there)


def _in_other_process(f: ps.Filter, connection: object) -> None:
    with f:
        connection.send((f.program.digest, len(f.attachments)))  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_filter_passes_through_multiprocessing(detached: ps.Filter, method: str) -> None:
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    process = context.Process(target=_in_other_process, args=(detached, there))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads
        process.start()
    assert here.poll(30)
    assert here.recv() == (detached.program.digest, 0)
    process.join(30)
    assert process.exitcode == 0
    assert detached.query().state == "detached"


def test_a_filter_dropped_open_warns_and_closes() -> None:
    gc.collect()
    before = len(descriptors())
    f = ps.Filter(policy(ps.ERRNO(1)))
    with pytest.warns(ResourceWarning, match="unclosed <Filter"):
        del f
        gc.collect()
    assert len(descriptors()) == before


def test_a_closed_filter_refuses_everything_but_close() -> None:
    f = ps.Filter(policy(ps.ERRNO(1)))
    f.close()
    f.close()
    here, there = socket.socketpair()
    with here, there:
        for call in (f.fileno, f.query, f.attach, f.__enter__, lambda: f.send(here)):
            with pytest.raises(ps.FilterClosedError):
                call()


@pytest.mark.parametrize("bad", [None, b"\6\0\0\0\0\0\0\0", "policy", 5])
def test_a_filter_is_made_of_a_policy_or_a_program_only(bad: object) -> None:
    with pytest.raises(TypeError):
        ps.Filter(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"mode": "magic"}, ValueError),
        ({"threads": "some"}, ValueError),
        ({"no_new_privs": "maybe"}, ValueError),
        ({"timeout": 0}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"on_deadline": "hope"}, ValueError),
        ({"mode": "park"}, ValueError),
        ({"tree": True}, ps.AttachError),
        ({"cgroup": "/"}, ps.AttachError),
        ({"cgroup": "/sys/fs/cgroup", "tree": True}, ValueError),
        ({"deadline": 1.0}, ValueError),
        ({"activate_on": "exec"}, ps.UnsupportedError),
        ({"active": False}, ps.NotPermittedError),
    ],
)
def test_options_that_cannot_be_honoured_are_refused_before_anything_is_done(
    detached: ps.Filter, options: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        detached.attach(**options)  # type: ignore[arg-type]
    assert ps.query(os.getpid()).threads[0].filters in (0, None)
    assert detached.attachments == ()


def test_a_program_that_never_notifies_leaves_no_listener() -> None:
    with victim("/usr/bin/env", "python3", "-c", MAKE_DIRECTORIES) as target, ps.Filter(policy(ps.ERRNO(77))) as f:
        attachment = f.attach(target)
        assert attachment.listeners == ()
        with pytest.raises(ps.AttachError, match="never notifies"):
            attachment.fileno()
        assert os.readlink(f"/proc/self/fd/{f.fileno()}").startswith("/memfd:")


def test_fileno_keeps_its_number_and_becomes_the_listener_then_a_fan_in() -> None:
    python = ("/usr/bin/env", "python3", "-c", MAKE_DIRECTORIES)
    with victim(*python) as one, victim(*python) as two, ps.Filter(policy(ps.NOTIFY)) as f:
        number = f.fileno()
        first = f.attach(one)
        assert f.fileno() == number
        assert os.readlink(f"/proc/self/fd/{number}") == "anon_inode:seccomp notify"
        _answer_by_raw_ioctl(number, one)
        f.attach(two)
        assert f.fileno() == number
        assert os.readlink(f"/proc/self/fd/{number}") == "anon_inode:[eventpoll]"
        assert not os.get_inheritable(number)
        _answer_by_raw_ioctl(first.fileno(), one, number)
        with ps.Filter.from_fd(f._memfd) as again:
            assert again.program == f.program


def _answer_by_raw_ioctl(listener: int, target: Victim, pollable: int | None = None) -> None:
    """RECV and SEND as any C program would, on the number alone."""
    target.tell("")
    poll = select.poll()
    poll.register(listener if pollable is None else pollable, select.POLLIN)
    assert [events for _, events in poll.poll(30_000)] == [select.POLLIN]
    notification = bytearray(80)
    fcntl.ioctl(listener, 0xC0502100, notification)
    (identity,) = struct.unpack_from("Q", notification)
    fcntl.ioctl(listener, 0xC0182101, struct.pack("QqiI", identity, 0, -errno.EXDEV, 0))
    assert target.line() == str(errno.EXDEV)


def test_ten_thousand_filters_leak_no_descriptor() -> None:
    program = policy(ps.NOTIFY).compile()
    before = len(descriptors())
    for _ in range(10_000):
        ps.Filter(program).close()
    assert len(descriptors()) == before
