"""Files opened for targets: what the kernel would have opened for them, with their rights, and nothing of ours."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import platform
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pyseccomp as ps
from attaching import rounds, state, wait_until
from harness import descriptors, in_child, status_field
from listening import NR, call, libc, listening
from pyseccomp import emulate
from pyseccomp.embed import get_guardian

NR["openat2"] = 437
if platform.machine() == "x86_64":
    NR.update(open=2, creat=85)
CWD = -100
O_TMPFILE, O_LARGEFILE = os.O_TMPFILE, 0o100000
NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH, IN_ROOT, CACHED = (1 << i for i in range(6))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="privilege: to be root, for targets of other users and roots")


def openat(path: bytes | int, flags: int = os.O_RDONLY, mode: int = 0, dirfd: int = CWD) -> int:
    return call("openat", dirfd, path, flags, mode)


def openat2(path: bytes | int, how: bytes | int, size: int | None = None, dirfd: int = CWD) -> int:
    return call("openat2", dirfd, path, how, len(how) if size is None and isinstance(how, bytes) else size)


def how(flags: int = 0, mode: int = 0, resolve: int = 0, rest: bytes = b"") -> bytes:
    return struct.pack("QQQ", flags, mode, resolve) + rest


def let_in(path: Path) -> None:
    """Let other users come as far as path: pytest's own directories are the user's alone."""
    for parent in path.parents:
        st = parent.stat()
        if st.st_uid == os.geteuid() and not st.st_mode & 0o001:
            parent.chmod(st.st_mode & 0o7777 | 0o055)


def content(fd: int) -> bytes | int:
    return fd if fd < 0 else os.read(fd, 100)


def emulated(function: Callable[[], Any], *names: str, **options: Any) -> Any:
    """What function returns in a target whose opens (or those calls) are all made for it."""
    with listening(function, *(names or ("openat",))) as (box, target):
        for n in box:
            ps.emulate_open(n, **options)
        return target.result()


@contextlib.contextmanager
def one_call(function: Callable[[], Any], *names: str) -> Iterator[tuple[ps.Notification, Any]]:
    with listening(function, *(names or ("openat",))) as (box, target):
        n = box.receive(20)
        yield n, target
        if not n.answered:
            n.deny(errno.EPERM)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Of everything that paths can lead over."""
    (tmp_path / "dir/sub").mkdir(parents=True)
    (tmp_path / "file").write_text("of the tree")
    (tmp_path / "dir/file").write_text("of dir")
    (tmp_path / "empty").touch()
    links = {
        "link": "file", "to_dir": "dir", "dangling": "nowhere", "loop": "loop", "a": "b", "b": "a", "slash": "dir/",
        "absolute": str(tmp_path / "file"), "dir/up": "../file", "dir/out": "../../../../../../../../etc/passwd", "dot": ".",
        "chain": "to_dir/up", "to_none": "dir/new_by_link", "through_file": "file/x", "long": "dir/../" * 40 + "file",
    }
    for name, text in links.items():
        (tmp_path / name).symlink_to(text)
    os.mkfifo(tmp_path / "fifo")
    for i in range(41):
        (tmp_path / f"n{i}").symlink_to(f"n{i + 1}" if i < 40 else "file")
    return tmp_path


# ------------------------------------------------------- as the kernel has it

PATHS = [
    b"file", b"./file", b"dir/../file", b"link", b"to_dir", b"to_dir/file", b"to_dir/", b"dangling", b"loop", b"a", b"slash",
    b"slash/file", b"absolute", b"dir/up", b"dot/dot/file", b"chain", b"to_none", b"through_file", b"file/", b"file/.", b"file/..",
    b"dir", b"dir/", b"dir/.", b"dir/..", b"/", b".", b"..", b"", b"none", b"none/", b"none/x", b"//", b"/../..", b"long", b"n1",
    b"n0", b"x" * 255, b"x" * 256, b"dir/" + b"y" * 256 + b"/z", b"./" * 2047, b"dev/null", b"/dev/null", b"/proc/version",
    b"/proc/self", b"/proc/self/", b"link/", b"dangling/", b"empty", b"dir//file", b"///proc//self//status",
]  # fmt: skip
FLAGS = [
    os.O_RDONLY, os.O_WRONLY, os.O_RDWR, 3, os.O_RDONLY | os.O_NOFOLLOW, os.O_DIRECTORY, os.O_DIRECTORY | os.O_NOFOLLOW,
    os.O_PATH, os.O_PATH | os.O_NOFOLLOW, os.O_PATH | os.O_DIRECTORY, os.O_PATH | os.O_RDWR | os.O_CREAT,
    os.O_CREAT | os.O_EXCL | os.O_RDWR, os.O_CREAT | os.O_WRONLY, os.O_CREAT | os.O_NOFOLLOW | os.O_RDWR,
    os.O_CREAT | os.O_DIRECTORY, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC, os.O_APPEND | os.O_WRONLY,
    os.O_NONBLOCK | os.O_RDONLY, O_TMPFILE | os.O_RDWR, O_TMPFILE | os.O_RDONLY, O_TMPFILE | os.O_RDWR | os.O_EXCL,
    os.O_CLOEXEC | os.O_NOCTTY | os.O_SYNC, os.O_RDONLY | 1 << 30, os.O_EXCL | os.O_RDONLY, O_LARGEFILE, os.O_NOATIME,
]  # fmt: skip
RESOLVE = [0, NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH, IN_ROOT, BENEATH | NO_SYMLINKS, IN_ROOT | NO_XDEV, BENEATH | IN_ROOT, 64]


def seen(fd: int) -> Any:
    """What can be told of an open: the errno, or the file and how it is open."""
    if fd < 0:
        return errno.errorcode[-fd]
    st = os.fstat(fd)
    # Opened through its descriptor, so never with O_NOFOLLOW; no later call looks at that bit.
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NOFOLLOW, fcntl.fcntl(fd, fcntl.F_GETFD)
    os.close(fd)
    return (st.st_dev, st.st_ino if st.st_nlink else 0, oct(st.st_mode), st.st_size, *map(oct, flags))


def clean(tree: Path) -> None:
    for made in ("none", "nowhere", "dir/new_by_link", "x" * 255):
        with contextlib.suppress(FileNotFoundError):
            (tree / made).unlink()
    (tree / "file").write_text("of the tree")
    (tree / "dir/file").write_text("of dir")
    (tree / "empty").write_text("")


def try_all(tree: Path, make: Callable[[bytes, int], int], second: list[int]) -> list[Any]:
    os.chdir(tree)
    os.umask(0o027)
    results = []
    for path, flags in itertools.product(PATHS, second):
        kind = seen(make(path, flags))
        if second is FLAGS and flags & os.O_PATH and isinstance(kind, tuple):
            kind = errno.errorcode[errno.EOPNOTSUPP]  # the kernel lets nobody hand an O_PATH descriptor over
        if isinstance(kind, tuple) and path in (b"none", b"dangling", b"to_none", b"x" * 255, b"/proc/self", b"/proc/self/"):
            kind = kind[2:]  # a new file, or one's own directory: its number differs
        if isinstance(kind, tuple) and path == b"///proc//self//status":
            kind = kind[2:]
        results.append((path, flags, kind))
        clean(tree)
    return results


@pytest.mark.parametrize("kind", ["openat", "openat2"])
def test_every_path_and_flag_gives_what_the_kernel_gives(tree: Path, kind: str) -> None:
    """The same calls without a filter are the oracle: errors, the file, mode, size, status flags, close-on-exec."""

    def plain(path: bytes, flags: int) -> int:
        return openat(path, flags, 0o7666)

    def scoped(path: bytes, resolve: int) -> int:
        return openat2(path, how(os.O_RDONLY, 0, resolve))

    make, second = (plain, FLAGS) if kind == "openat" else (scoped, RESOLVE)
    wanted = in_child(try_all, tree, make, second)
    got = emulated(lambda: try_all(tree, make, second), kind)
    differences = [(w, g) for w, g in zip(wanted, got, strict=True) if w != g]
    assert len(wanted) > 400
    assert not differences, "\n".join(f"{w} by the kernel, {g[2]} here" for w, g in differences)


@pytest.mark.skipif("open" not in NR, reason="kernel lacks open and creat on this architecture")
def test_open_and_creat_are_openat(tree: Path) -> None:
    def target() -> Any:
        os.chdir(tree)
        os.umask(0o077)
        made = call("creat", b"by_creat", 0o666)
        return content(call("open", b"link", os.O_RDONLY)), os.fstat(made).st_mode & 0o777, os.write(made, b"x")

    assert emulated(target, "open", "creat") == (b"of the tree", 0o600, 1)
    assert (tree / "by_creat").read_text() == "x"


def test_a_dirfd_is_the_targets(tree: Path) -> None:
    fd = os.open(tree / "dir", os.O_PATH)
    other = os.open(tree / "file", os.O_RDONLY)

    def target() -> Any:
        return (
            content(openat(b"file", dirfd=fd)), content(openat(b"../file", dirfd=fd)), openat(b"file", dirfd=other),
            openat(b"file", dirfd=999), openat(b"file", dirfd=-1), content(openat(bytes(tree / "file"), dirfd=-5)),
        )  # fmt: skip

    got = emulated(target)
    os.close(fd)
    os.close(other)
    assert got == (b"of dir", b"of the tree", -errno.ENOTDIR, -errno.EBADF, -errno.EBADF, b"of the tree")


def test_bad_pointers_and_structures_fail_as_in_the_kernel(tree: Path) -> None:
    def target() -> Any:
        os.chdir(tree)
        return [
            openat2(b"file", how()) >= 0, openat2(b"file", how(rest=b"\0" * 40)) >= 0, openat2(b"file", how(rest=b"\0" * 39 + b"x")),
            openat2(b"file", how(), 23), openat2(b"file", how(), 0), openat2(b"file", how(rest=bytes(4073))),
            openat2(b"file", 1, 24), openat2(1, how()), openat2(b"file", how(mode=1)), openat2(b"file", how(1 << 40)),
            openat2(b"file", how(1 << 30)), openat2(b"file", how(os.O_PATH | os.O_RDWR)), openat2(b"file", how(resolve=CACHED)) in
            (-errno.EAGAIN,), openat2(b"n", how(os.O_CREAT, 0o10000)), openat2(b"a" * 4096, how()), openat2(b"a" * 5000, how()),
        ]  # fmt: skip

    e = errno
    wanted = [True, True, -e.E2BIG, -e.EINVAL, -e.EINVAL, -e.E2BIG, -e.EFAULT, -e.EFAULT]
    wanted += [-e.EINVAL] * 4 + [True, -e.EINVAL, -e.ENAMETOOLONG, -e.ENAMETOOLONG]
    assert emulated(target, "openat2") == wanted
    native = in_child(target)
    assert native[:12] + native[13:] == wanted[:12] + wanted[13:]


def test_signals_of_the_supervisor_lose_no_descriptor(tree: Path) -> None:
    """An interrupted ADDFD that answers as well had answered by 0: the target took its standard input for the file."""
    count = rounds(300)

    def target() -> list[int]:
        path, wrong = bytes(tree / "file"), []
        for _ in range(count):
            fd = openat(path)
            if fd <= 2 or os.read(fd, 20) != b"of the tree":
                wrong.append(fd)
            os.close(fd) if fd > 2 else None
        return wrong

    def supervisor() -> Any:
        came: list[int] = []
        signal.signal(signal.SIGALRM, lambda *_: came.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
        wrong = emulated(target)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return wrong, len(came) > 10

    assert in_child(supervisor) == ([], True)


def test_the_descriptor_closes_on_exec_if_the_call_says_so(tree: Path) -> None:
    def target() -> list[bool]:
        path = bytes(tree / "file")
        return [os.get_inheritable(openat(path, flags)) for flags in (0, os.O_CLOEXEC)]

    assert emulated(target) == [True, False]


def test_a_target_without_free_numbers_gets_emfile(tree: Path) -> None:
    import resource

    def target() -> int:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        return openat(bytes(tree / "file"))

    assert emulated(target) == -errno.EMFILE


# ------------------------------------------------- what would be ours, not theirs


def test_proc_self_is_the_target(tree: Path) -> None:
    def target() -> Any:
        names = (b"/proc/self/status", b"/proc/thread-self/status", b"/proc/self/task/../status")
        return os.getpid(), [os.read(openat(n), 4000).decode() for n in names], os.read(openat(b"/proc/mounts"), 20)

    pid, texts, mounts = emulated(target)
    assert all(f"\nPid:\t{pid}\n" in text for text in texts) and len(texts) == 3 and mounts


@pytest.mark.parametrize("path", [b"/proc/self/exe", b"/proc/self/fd/0", b"/proc/self/root/etc", b"/proc/self/cwd", b"/proc/thread-self/ns/mnt"])
def test_magic_links_are_refused(path: bytes) -> None:
    assert emulated(lambda: openat(path)) == -errno.ELOOP


def test_dev_tty_is_not_the_supervisors() -> None:
    assert emulated(lambda: openat(b"/dev/tty")) in (-errno.ENXIO, -errno.ENOENT)


def test_the_opener_itself_cannot_be_opened(tree: Path) -> None:
    """Nothing of the process that opens for it may be a target's: it could look anywhere from there."""
    pid = in_child(os.getpid)

    met: list[str] = []

    def allowed(opening: ps.Opening) -> bool:
        entry = Path(opening.path).parts[2]
        with contextlib.suppress(OSError):
            # The opener's child waits for this decision. Root may look into the opener itself, which leads a session.
            if is_opener(entry) and (os.geteuid() or os.getsid(int(entry)) != int(entry)):
                met.append(opening.path)
        return False

    def guess() -> set[int]:
        # The numbers that the opener's children get.
        return {openat(b"/proc/%d/mem" % (pid + i), os.O_RDWR) for i in range(300)} | {
            openat(b"/proc/%d/root/etc/passwd" % (pid + i)) for i in range(300)
        }

    got = emulated(guess, allowed=allowed)
    assert met == [] and -errno.ENOENT in got and not {fd for fd in got if fd >= 0}


# ------------------------------------------------------------- special files


def test_a_fifo_cannot_hold_the_supervisor(tree: Path) -> None:
    def target() -> Any:
        os.chdir(tree)
        reading = openat(b"fifo", os.O_RDONLY | os.O_NONBLOCK)
        return (
            openat(b"fifo", os.O_RDONLY), openat(b"fifo", os.O_WRONLY), bool(fcntl.fcntl(reading, fcntl.F_GETFL) & os.O_NONBLOCK),
            openat(b"fifo", os.O_PATH), openat(b"fifo", os.O_WRONLY | os.O_NONBLOCK) >= 0,
        )  # fmt: skip

    assert emulated(target) == (-errno.EOPNOTSUPP, -errno.EOPNOTSUPP, True, -errno.EOPNOTSUPP, True)


def test_a_socket_is_no_file(tree: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tree / "socket"))
        assert emulated(lambda: openat(bytes(tree / "socket"))) == -errno.ENXIO


def test_a_file_system_that_does_not_answer_times_out(tree: Path) -> None:
    """Stands for it: the opener itself is stopped."""
    emulated(lambda: openat(b"/"))
    (opener,) = openers()
    with one_call(lambda: openat(bytes(tree / "file"))) as (n, _):
        os.kill(opener, signal.SIGSTOP)
        try:
            with pytest.raises(ps.NotificationError, match="did not answer") as caught:
                n.open(timeout=0.1)
            assert caught.value.errno == errno.ETIMEDOUT
        finally:
            os.kill(opener, signal.SIGCONT)
        os.close(n.open())


def is_opener(entry: str) -> bool:
    """By name, and by program as far as that may be seen: other trees of this project may be tested at the same time."""
    if Path(f"/proc/{entry}/comm").read_text() != "psc-opener\n":
        return False
    return os.geteuid() != 0 or os.readlink(f"/proc/{entry}/exe") == os.path.realpath(get_guardian())


def openers() -> list[int]:
    """The processes that open for this one: every one whose socket's peer is ours; here, by name and session."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and is_opener(entry) and state(int(entry)) != "Z":
                if os.getsid(int(entry)) == int(entry) and int(entry) not in _foreign:
                    found.append(int(entry))
    return found


_foreign: set[int] = set()
_foreign.update(openers())  # before this process has one


def test_a_dead_opener_is_replaced(tree: Path) -> None:
    emulated(lambda: openat(b"/"))
    (opener,) = openers()
    pidfd = os.pidfd_open(opener)
    os.kill(opener, signal.SIGKILL)
    import select

    assert select.select([pidfd], [], [], 20)[0]
    os.close(pidfd)
    assert emulated(lambda: content(openat(bytes(tree / "file")))) == b"of the tree"


def test_the_opener_ends_with_its_supervisor() -> None:
    def supervisor() -> list[int]:
        before = set(openers())
        emulated(lambda: openat(b"/"))
        return list(set(openers()) - before)

    (opener,) = in_child(supervisor)
    wait_until(lambda: not Path(f"/proc/{opener}").exists() or state(opener) == "Z", "the opener ends")


# --------------------------------------------------------------- the decision


def test_allowed_sees_the_object_and_a_denied_call_changes_nothing(tree: Path) -> None:
    seen_paths: list[tuple[str, bool, bool]] = []

    def allowed(opening: ps.Opening) -> bool:
        seen_paths.append((opening.path, opening.creates, opening.writes))
        return False

    def target() -> list[int]:
        os.chdir(tree)
        return [
            openat(b"chain", os.O_RDWR | os.O_TRUNC), openat(b"to_none", os.O_CREAT | os.O_WRONLY, 0o600), openat(b"none"),
            openat(b"dir", O_TMPFILE | os.O_RDWR),
        ]  # fmt: skip

    assert emulated(target, allowed=allowed) == [-errno.EACCES, -errno.EACCES, -errno.ENOENT, -errno.EACCES]
    assert seen_paths == [
        (str(tree / "file"), False, True), (str(tree / "dir/new_by_link"), True, True), (str(tree / "dir"), False, True),
    ]  # fmt: skip
    assert (tree / "file").read_text() == "of the tree" and not (tree / "dir/new_by_link").exists()


def test_within_holds_for_what_is_opened_not_for_what_is_written(tree: Path) -> None:
    def target() -> list[int]:
        os.chdir(tree / "dir")
        return [openat(b"file") >= 0, openat(b"sub") >= 0, openat(b".") >= 0, openat(b"up"), openat(b"../file"), openat(b"out")]

    assert emulated(target, within=tree / "dir") == [True, True, True, -errno.EACCES, -errno.EACCES, -errno.EACCES]


def test_a_path_that_is_changed_after_the_decision_changes_nothing(tree: Path) -> None:
    def target() -> bytes | int:
        os.chdir(tree)
        return content(openat(b"to_dir/file"))

    with one_call(target) as (n, t):
        opening = ps.begin_open(n)
        assert opening.path == str(tree / "dir/file")
        (tree / "to_dir").unlink()
        (tree / "to_dir").symlink_to("/etc")
        (tree / "dir/file").rename(tree / "elsewhere")
        (tree / "dir/file").write_text("another")
        fd = opening.finish()
        assert opening.closed
        n.add_fd(fd, send=True)
        os.close(fd)
        assert t.result() == b"of dir"


def test_a_file_made_meanwhile_is_decided_anew(tree: Path) -> None:
    looked: list[bool] = []

    def allowed(opening: ps.Opening) -> bool:
        looked.append(opening.creates)
        if opening.creates:
            (tree / "none").write_text("by another")
        return True

    assert emulated(lambda: content(openat(bytes(tree / "none"), os.O_CREAT | os.O_RDWR, 0o600)), allowed=allowed) == b"by another"
    assert looked == [True, False]


def test_an_o_path_descriptor_is_found_for_us_and_cannot_be_handed_over(tree: Path) -> None:
    with one_call(lambda: openat(bytes(tree / "link"), os.O_PATH | os.O_NOFOLLOW)) as (n, target):
        fd = n.open()
        assert os.readlink(b"", dir_fd=fd) == b"file"
        with pytest.raises(ps.NotificationError) as caught:
            n.add_fd(fd, send=True)
        os.close(fd)
        assert caught.value.errno == errno.EBADF
        ps.emulate_open(n)
        assert target.result() == -errno.EOPNOTSUPP


def test_a_call_that_is_over_says_so(tree: Path) -> None:
    with listening(lambda: openat(bytes(tree / "file")), "openat") as (box, target):
        n = box.receive(20)
        os.kill(target.pid, signal.SIGKILL)
        target.wait_dead()
        with pytest.raises(ps.NotificationGoneError):
            n.open()
        ps.emulate_open(n)
        assert n.answered


def test_other_calls_are_refused() -> None:
    with one_call(lambda: call("getppid"), "getppid") as (n, target):
        with pytest.raises(ps.UnsupportedError, match="openat2"):
            n.open()
        with pytest.raises(ps.UnsupportedError):
            ps.emulate_open(n)
        assert target.result() == -errno.EPERM


@pytest.mark.parametrize("wrong", [0, -1, 1e9, float("nan")])
def test_nonsense_is_refused(wrong: float) -> None:
    with one_call(lambda: openat(b"/")) as (n, _):
        with pytest.raises(ValueError, match="timeout"):
            n.open(timeout=wrong)
        with pytest.raises(ValueError, match="absolute"):
            n.open(within="relative")


def test_a_responder_opens_for_real_programs(tree: Path) -> None:
    def target() -> None:
        os.chdir(tree)
        os.execv("/bin/sh", ["sh", "-c", "cat link dir/file > copied; ls /proc/self/status >> copied; echo done >> copied"])

    with listening(target, "openat") as (box, t):
        errors: list[Exception] = []
        box.serve(ps.Responder(ps.emulate_open, on_error=lambda error, n: errors.append(error)))
        assert errors == []
        t.wait_dead()
    assert (tree / "copied").read_text() == "of the treeof dir/proc/self/status\ndone\n"


# ------------------------------------------------------------------ whose rights


def test_a_new_file_has_the_targets_umask_and_ours_stays(tree: Path) -> None:
    before = os.umask(0o077)
    try:
        def target() -> list[int]:
            os.umask(0o002)
            return [os.fstat(openat(bytes(tree / "made"), os.O_CREAT | os.O_RDWR, 0o6777)).st_mode & 0o7777]

        assert emulated(target) == [0o6775]
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)


@needs_root
def test_another_users_rights_and_ownership(tree: Path) -> None:
    tree.chmod(0o777)
    let_in(tree)
    (tree / "secret").write_text("root's")
    (tree / "secret").chmod(0o600)
    (tree / "grouped").write_text("the group's")
    os.chown(tree / "grouped", 0, 4242)
    (tree / "grouped").chmod(0o640)

    def target() -> Any:
        os.chdir(tree)
        os.setgroups([4242, 4243])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        fd = openat(b"theirs", os.O_CREAT | os.O_RDWR, 0o600)
        st = os.fstat(fd)
        return openat(b"secret"), content(openat(b"grouped")), openat(b"grouped", os.O_RDWR), st.st_uid, st.st_gid, openat(b"/proc/1/mem")

    assert emulated(target) == (-errno.EACCES, b"the group's", -errno.EACCES, 65534, 65534, -errno.EACCES)
    assert openat_creds_unchanged()


def openat_creds_unchanged() -> bool:
    return status_field(os.getpid(), "Uid").split() == ["0"] * 4 and libc.prctl(3, 0, 0, 0, 0) == 1


@needs_root
def test_root_without_capabilities_is_held_to_permissions(tree: Path) -> None:
    (tree / "secret").write_text("another's")
    os.chown(tree / "secret", 12345, 12345)
    (tree / "secret").chmod(0o600)

    def target() -> int:
        header, data = struct.pack("Ii", 0x20080522, 0), bytes(24)
        assert libc.capset(ctypes.c_char_p(header), ctypes.c_char_p(data)) == 0
        return openat(bytes(tree / "secret"))

    assert emulated(target) == -errno.EACCES


@needs_root
def test_a_chrooted_target_stays_in_its_root(tree: Path) -> None:
    (tree / "etc").mkdir()
    (tree / "etc/passwd").write_text("of the jail")
    (tree / "rooted").symlink_to("/etc/passwd")
    (tree / "climbing").symlink_to("../../../../../../etc/passwd")

    def target() -> Any:
        os.chroot(tree)
        os.chdir("/dir")
        paths = [b"/etc/passwd", b"/rooted", b"/climbing", b"../../../../../etc/passwd", b"/../../etc/passwd", b"out", b"/dir/out"]
        return [content(openat(p)) for p in paths], openat(bytes(tree) + b"/file")

    assert emulated(target) == ([b"of the jail"] * 7, -errno.ENOENT)


@needs_root
def test_a_target_in_other_namespaces_is_not_shown_ours(tree: Path) -> None:
    name = b"/proc/sys/net/ipv4/ip_local_port_range"

    def target() -> Any:
        if libc.unshare(0x40000000):  # CLONE_NEWNET
            return None
        os.write(openat(name, os.O_WRONLY), b"20000 20100")
        devices = [os.read(openat(path), 4000).decode().split("\n") for path in (b"/proc/self/net/dev", b"/proc/net/dev")]
        return content(openat(name)), [[line.split(":")[0].strip() for line in lines[2:-1]] for lines in devices]

    before = Path(os.fsdecode(name)).read_text()
    got = emulated(target)
    if got is None:
        pytest.skip("privilege: to make a network namespace")
    assert got == (b"20000\t20100\n", [["lo"]] * 2)
    assert Path(os.fsdecode(name)).read_text() == before


@needs_root
def test_what_procfs_shows_by_pid_namespace_is_denied_from_another(tree: Path) -> None:
    def target() -> Any:
        if libc.unshare(0x20000000):  # CLONE_NEWPID: of the children
            return None
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.write(writer, b"%d" % openat(b"/proc/sys/kernel/hostname"))
            os._exit(0)
        os.wait()
        return int(os.read(reader, 10))

    got = emulated(target)
    if got is None:
        pytest.skip("privilege: to make a pid namespace")
    assert got == -errno.EPERM


@needs_root
def test_a_supervisor_without_rights_over_the_target_is_refused(tree: Path) -> None:
    def supervisor() -> tuple[str, Any]:
        with one_call(lambda: openat(bytes(tree / "file"))) as (n, target):
            os.setresuid(0, 65534, 0)
            try:
                n.open()
            except ps.SeccompError as error:
                return type(error).__name__, error.errno  # type: ignore[attr-defined]
            finally:
                os.setresuid(0, 0, 0)
        return "opened", 0

    assert in_child(supervisor) == ("NotPermittedError", errno.EPERM)


# ----------------------------------------------------------------------- leaks


def test_many_opens_and_added_descriptors_leak_nothing(tree: Path) -> None:
    count = rounds(300)

    def target() -> int:
        os.chdir(tree)
        made = 0
        for i in range(count):
            for path, flags in ((b"link", 0), (b"none", 0), (b"new", os.O_CREAT | os.O_RDWR), (b"fifo", 0), (b"dir", os.O_PATH)):
                fd = openat(path, flags, 0o600)
                made += fd >= 0
                if fd >= 0:
                    os.close(fd)
            os.unlink("new")
        return made

    emulated(lambda: openat(b"/"))
    before, (opener,) = descriptors(), openers()
    had = set(os.listdir(f"/proc/{opener}/fd")) if os.geteuid() == 0 else set()
    assert emulated(target) == 2 * count
    assert len(descriptors()) == len(before)
    if os.geteuid() == 0:
        assert set(os.listdir(f"/proc/{opener}/fd")) == had
    children = Path(f"/proc/{opener}/task/{opener}/children")
    wait_until(lambda: children.read_text() == "", "the opener's children have ended")


def test_the_openers_socket_is_closed_in_a_forked_child_that_opens(tree: Path) -> None:
    emulated(lambda: openat(b"/"))
    ours = emulate._opener._socket
    assert ours is not None and not os.get_inheritable(ours.fileno())
    assert in_child(lambda: emulated(lambda: content(openat(bytes(tree / "file"))))) == b"of the tree"
    assert emulate._opener._socket is ours and ours.number >= 0
