"""emulate_open(within=): what is below a directory is judged by identity, never by a path that the target can make."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pyseccomp as ps
from attaching import rounds
from harness import descriptors, in_child
from listening import libc
from test_open import content, emulated, let_in, needs_root, one_call, openat

NEWNS, NEWUSER = 0x20000, 0x10000000
BIND, REC, REMOUNT, RDONLY, PRIVATE = 4096, 16384, 32, 1, 1 << 18
DENIED = -errno.EACCES


@pytest.fixture
def yard(tmp_path: Path) -> Path:
    """allowed/ with files in it, and secret/ beside it."""
    for name in ("allowed/sub/deep", "allowed/mount", "secret/sub"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("allowed/file", "allowed/sub/file", "allowed/sub/deep/file", "secret/file", "secret/sub/file"):
        (tmp_path / name).write_text(name)
    (tmp_path / "allowed/empty").touch()
    (tmp_path / "allowed/out").symlink_to("../secret/file")
    (tmp_path / "allowed/in").symlink_to("sub/file")
    let_in(tmp_path / "allowed")
    return tmp_path


def unshare_mounts() -> None:
    """As any user may: a user namespace and mounts of its own."""
    if libc.unshare(NEWUSER | NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")


def bind(what: Path, at: Path, flags: int = 0) -> None:
    if libc.mount(bytes(what), bytes(at), None, BIND | flags, None):
        raise OSError(ctypes.get_errno(), f"bind {what} at {at}")


def may_unshare() -> bool:
    return bool(in_child(lambda: libc.unshare(NEWUSER | NEWNS) == 0))


needs_namespaces = pytest.mark.skipif(not may_unshare(), reason="privilege: to make user namespaces")


def opens(*paths: Path | str, flags: int = os.O_RDONLY, prepare: Callable[[], Any] = lambda: None) -> Callable[[], list[Any]]:
    """A target that makes its mounts and then opens each path: the content or -errno."""

    def target() -> list[Any]:
        prepare()
        results = [openat(os.fsencode(path), flags, 0o600) for path in paths]
        return [r if r < 0 else True if flags & (os.O_CREAT | os.O_DIRECTORY) else os.read(r, 100).decode() for r in results]

    return target


# ------------------------------------------------------------- one's own mounts


@needs_namespaces
def test_a_directory_that_the_target_mounts_below_is_not_within(yard: Path) -> None:
    """The path was compared as a text: a target that can mount binds what it likes below the directory."""
    mount = yard / "allowed/mount"

    def prepare() -> None:
        unshare_mounts()
        bind(yard / "secret", mount)

    target = opens(mount / "file", mount / "sub/file", mount, yard / "allowed/file", prepare=prepare)
    assert emulated(target, within=yard / "allowed") == [DENIED, DENIED, DENIED, "allowed/file"]
    assert in_child(opens(mount / "file", prepare=prepare)) == ["secret/file"]


@needs_namespaces
def test_a_file_that_the_target_mounts_over_one_is_not_within(yard: Path) -> None:
    def prepare() -> None:
        unshare_mounts()
        bind(yard / "secret/file", yard / "allowed/file")
        bind(yard / "secret", yard / "allowed/sub")

    target = opens(yard / "allowed/file", yard / "allowed/sub/file", yard / "allowed/in", prepare=prepare)
    assert emulated(target, within=yard / "allowed") == [DENIED] * 3


@needs_namespaces
def test_nothing_is_made_in_a_directory_that_the_target_mounts_below(yard: Path) -> None:
    def prepare() -> None:
        unshare_mounts()
        bind(yard / "secret", yard / "allowed/mount")

    flags = os.O_CREAT | os.O_WRONLY
    made = [yard / "allowed/mount/new", yard / "allowed/new"]
    assert emulated(opens(*made, flags=flags, prepare=prepare), within=yard / "allowed") == [DENIED, True]
    assert not (yard / "secret/new").exists() and (yard / "allowed/new").exists()
    assert emulated(opens(made[0].parent, flags=os.O_TMPFILE | os.O_RDWR, prepare=prepare), within=yard / "allowed") == [DENIED]


@needs_namespaces
def test_a_file_system_of_the_target_is_not_within_and_the_directory_shown_again_is(yard: Path) -> None:
    def prepare() -> None:
        unshare_mounts()
        assert libc.mount(b"t", bytes(yard / "allowed/mount"), b"tmpfs", 0, None) == 0
        bind(yard / "allowed", yard / "allowed/sub")

    def target() -> Any:
        prepare()
        return openat(bytes(yard / "allowed/mount"), os.O_DIRECTORY), content(openat(bytes(yard / "allowed/sub/file")))

    assert emulated(target, within=yard / "allowed") == (DENIED, b"allowed/file")


@needs_namespaces
def test_a_detached_tree_is_judged_by_its_objects(yard: Path) -> None:
    """Its paths begin at its own root, so that /a/b in it is whatever directory was cloned."""
    root = yard / "secret"
    fake = root / str(yard / "allowed").lstrip("/")
    fake.mkdir(parents=True)
    (fake / "file").write_text("faked")
    clone, recursive = 1, 0x8000

    def target() -> Any:
        unshare_mounts()
        fd = libc.syscall(428, -100, bytes(root), clone | recursive)  # open_tree
        real = libc.syscall(428, -100, bytes(yard / "allowed"), clone | recursive)
        assert fd >= 0 and real >= 0
        path = bytes(fake / "file")[len(bytes(root)) + 1 :]
        return openat(path, dirfd=fd), openat(b"file", dirfd=fd), content(openat(b"sub/file", dirfd=real)), openat(b"../secret/file", dirfd=real)

    assert emulated(target, within=yard / "allowed") == (DENIED, DENIED, b"allowed/sub/file", -errno.ENOENT)


@needs_namespaces
def test_the_directory_is_this_process_s_by_whatever_name_the_target_has_for_it(yard: Path) -> None:
    """As in a container: the host's directory is shown under another name, and that name's own directory is not meant."""

    def prepare() -> None:
        unshare_mounts()
        bind(yard / "allowed", yard / "secret/sub")
        bind(yard / "secret", yard / "allowed")

    paths = (yard / "secret/sub/sub/deep/file", yard / "secret/sub/in", yard / "allowed/file", yard / "allowed/sub/file")
    assert emulated(opens(*paths, prepare=prepare), within=yard / "allowed")[:3] == ["allowed/sub/deep/file", "allowed/sub/file", DENIED]
    assert emulated(opens(yard / "secret/file"), within=yard / "allowed") == [DENIED]


@needs_root
def test_a_chrooted_target_is_judged_by_this_process_s_directory(yard: Path) -> None:
    def prepare() -> None:
        os.chroot(yard / "allowed")
        os.chdir("/sub")

    target = opens("/file", "deep/file", "/../file", "/in", "/out", prepare=prepare)
    wanted = ["allowed/file", "allowed/sub/deep/file", "allowed/file", "allowed/sub/file", -errno.ENOENT]
    assert emulated(target, within=yard / "allowed") == wanted
    assert emulated(target, within=yard / "allowed/sub") == [DENIED, wanted[1], DENIED, wanted[3], -errno.ENOENT]


# --------------------------------------------------- mounts of the administrator


@pytest.fixture
def mounts() -> Iterator[Callable[..., None]]:
    made: list[Path] = []

    def mount(what: Path | None, at: Path, flags: int = 0) -> None:
        kind = b"tmpfs" if what is None else None
        assert libc.mount(b"none" if what is None else bytes(what), bytes(at), kind, 0 if what is None else BIND, None) == 0
        made.append(at)
        if flags:
            assert libc.mount(None, bytes(at), None, BIND | REMOUNT | flags, None) == 0

    yield mount
    for at in reversed(made):
        libc.umount2(bytes(at), 2)


@needs_root
def test_mounts_that_this_process_sees_below_are_within(yard: Path, mounts: Callable[..., None]) -> None:
    mounts(yard / "secret", yard / "allowed/mount")
    mounts(None, yard / "allowed/sub/deep")
    (yard / "allowed/sub/deep/file").write_text("of the tmpfs")
    paths = [yard / "allowed/mount/sub/file", yard / "allowed/sub/deep/file", yard / "secret/sub/file"]
    assert emulated(opens(*paths), within=yard / "allowed") == ["secret/sub/file", "of the tmpfs", DENIED]


@needs_root
def test_a_mount_that_covers_what_the_target_still_sees_is_not_within(yard: Path, mounts: Callable[..., None]) -> None:
    """The target unshared its mounts before: it sees what is below the new mount."""

    def prepare() -> None:
        assert libc.unshare(NEWNS) == 0 and libc.mount(None, b"/", None, PRIVATE | REC, None) == 0

    with one_call(opens(yard / "allowed/sub/file", prepare=prepare)) as (n, target):
        mounts(None, yard / "allowed/sub")
        (yard / "allowed/sub/file").write_text("new")
        ps.emulate_open(n, within=yard / "allowed")
        assert target.result() == [DENIED]


@needs_root
def test_a_laxer_mount_of_the_target_is_not_within(yard: Path, mounts: Callable[..., None]) -> None:
    """The same file over a mount that may be written: only the way that this process sees counts."""
    (yard / "view").mkdir()
    mounts(yard / "allowed", yard / "view", RDONLY)
    reading = opens(yard / "allowed/file", yard / "view/file")
    writing = opens(yard / "allowed/empty", yard / "view/empty", flags=os.O_WRONLY | os.O_CREAT)
    assert emulated(reading, within=yard / "view") == ["allowed/file"] * 2
    assert emulated(writing, within=yard / "view") == [DENIED, -errno.EROFS]
    assert emulated(opens(yard / "view/file"), within=yard / "allowed") == ["allowed/file"]


@needs_root
def test_files_of_an_overlay_are_its_own_also_when_they_are_copied_up(yard: Path) -> None:
    base, merged = yard / "base", yard / "merged"
    for path in (base, merged):
        path.mkdir()
    assert libc.mount(b"t", bytes(base), b"tmpfs", 0, None) == 0  # an upper layer elsewhere than the lower one
    try:
        for name in ("upper", "work"):
            (base / name).mkdir()
        layers = f"lowerdir={yard / 'allowed'},upperdir={base / 'upper'},workdir={base / 'work'}"
        if libc.mount(b"o", bytes(merged), b"overlay", 0, layers.encode()):
            pytest.skip("kernel lacks overlayfs, or privilege: to mount it here")

        def prepare() -> None:
            assert libc.unshare(NEWNS) == 0

        try:
            paths = [merged / "file", merged / "sub/file", yard / "allowed/file", base / "upper"]
            assert emulated(opens(*paths, prepare=prepare), within=merged) == ["allowed/file", "allowed/sub/file", DENIED, DENIED]
            assert emulated(opens(merged / "file"), within=yard / "allowed") == [DENIED]
            writing = opens(merged / "file", merged / "sub/file", flags=os.O_RDWR | os.O_CREAT, prepare=prepare)
            assert emulated(writing, within=merged) == [True, True]
            assert (base / "upper/sub/file").exists()
            assert emulated(opens(*paths), within=merged) == ["allowed/file", "allowed/sub/file", DENIED, DENIED]
        finally:
            libc.umount2(bytes(merged), 2)
    finally:
        libc.umount2(bytes(base), 2)


# ------------------------------------------------------------ names and objects


def test_every_way_of_naming_is_judged_by_what_it_leads_to(yard: Path) -> None:
    os.link(yard / "allowed/file", yard / "secret/link")
    os.link(yard / "secret/file", yard / "allowed/link")
    a = yard / "allowed"
    cases: dict[str | Path, Any] = {
        a / "file": "allowed/file", a / "in": "allowed/sub/file", a / "out": DENIED, a / "sub/../file": "allowed/file",
        a / "../allowed/sub/deep/../../file": "allowed/file", a / "../secret/file": DENIED, a / "nothing": -errno.ENOENT,
        f"/proc/self/root{a}/file": -errno.ELOOP,
        # A hard link is judged by the name that was used.
        a / "link": "secret/file", yard / "secret/link": DENIED,
    }  # fmt: skip
    assert emulated(opens(*cases), within=a) == list(cases.values())


def test_directories_and_new_files_are_judged_too(yard: Path) -> None:
    a = yard / "allowed"
    assert emulated(opens(a, a / "sub", yard, yard / "secret", flags=os.O_DIRECTORY), within=a) == [True, True, DENIED, DENIED]
    made = opens(a / "new", a / "sub/new", yard / "new", a / "../secret/new", flags=os.O_CREAT | os.O_WRONLY)
    assert emulated(made, within=a) == [True, True, DENIED, DENIED]
    assert not (yard / "new").exists() and not (yard / "secret/new").exists()
    temporary = opens(a, a / "sub", yard / "secret", flags=os.O_TMPFILE | os.O_RDWR)
    assert emulated(temporary, within=a) == [True, True, DENIED]


def test_a_dirfd_is_judged_by_the_directory_that_it_is(yard: Path) -> None:
    outside, inside = os.open(yard / "secret", os.O_PATH), os.open(yard / "allowed/sub", os.O_PATH)

    def target() -> Any:
        return openat(b"file", dirfd=outside), content(openat(b"file", dirfd=inside)), openat(b"../../secret/file", dirfd=inside)

    got = emulated(target, within=yard / "allowed")
    os.close(outside)
    os.close(inside)
    assert got == (DENIED, b"allowed/sub/file", DENIED)


def test_what_is_unlinked_is_nowhere_below(yard: Path) -> None:
    (yard / "allowed/gone").mkdir()
    fd = os.open(yard / "allowed/gone", os.O_PATH)
    (yard / "allowed/gone").rmdir()
    (yard / "allowed/gone (deleted)").mkdir()
    assert emulated(lambda: openat(b".", os.O_DIRECTORY, dirfd=fd), within=yard / "allowed") == DENIED
    os.close(fd)
    # The kernel's own mark in a name is a name like others.
    (yard / "allowed/gone (deleted)/file").write_text("named so")
    assert emulated(opens(yard / "allowed/gone (deleted)/file"), within=yard / "allowed") == ["named so"]


def test_the_whole_tree_and_a_descriptor_may_be_meant(yard: Path) -> None:
    assert emulated(opens(yard / "secret/file"), within="/") == ["secret/file"]
    fd = os.open(yard / "allowed", os.O_RDONLY | os.O_DIRECTORY)
    moved = yard / "moved"
    (yard / "allowed").rename(moved)
    (yard / "allowed").mkdir()
    (yard / "allowed/file").write_text("another")
    assert emulated(opens(moved / "file", yard / "allowed/file"), within=fd) == ["allowed/file", DENIED]
    os.close(fd)


def test_a_directory_that_cannot_be_told_denies_and_says_why(yard: Path) -> None:
    (yard / "to_allowed").symlink_to("allowed")
    for within, error in ((yard / "to_allowed", "without links"), (yard / "none", "No such file"), (yard / "allowed/file", "Not a directory")):
        with one_call(lambda: openat(bytes(yard / "allowed/file"))) as (n, target):
            with pytest.raises(ps.SeccompError, match=error):
                ps.emulate_open(n, within=within)
            assert target.result() == -errno.EPERM
    with one_call(lambda: openat(bytes(yard / "allowed/file"))) as (n, _):
        for nonsense in ("relative", b"rel", "/a\0b", -1):
            with pytest.raises(ValueError):
                n.open(within=nonsense)
        with ps.begin_open(n) as opening:
            assert opening.is_within(yard) and opening.is_within(yard / "allowed") and not opening.is_within(yard / "secret")
        with pytest.raises(ValueError):
            opening.is_within(yard)


def test_very_deep_and_very_long_paths(yard: Path) -> None:
    """Deeper than a path has room: what cannot be named is not within."""
    fd = os.open(yard / "allowed", os.O_PATH)
    name = "d" * 200
    for _ in range(25):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd))
    assert emulated(lambda: openat(b"file", dirfd=fd), within=yard / "allowed") == DENIED
    assert emulated(lambda: openat(b"file", dirfd=fd) >= 0) is True
    os.close(fd)
    many = "/".join(["m"] * 300)
    (yard / "allowed" / many).mkdir(parents=True)
    (yard / "allowed" / many / "file").write_text("deep")
    assert emulated(opens(yard / "allowed" / many / "file"), within=yard / "allowed") == ["deep"]


# ----------------------------------------------------------------------- races


def exchange(a: Path, b: Path) -> int:
    return int(libc.syscall(316 if os.uname().machine == "x86_64" else 276, -100, bytes(a), -100, bytes(b), 2))


def renaming(*pairs: tuple[Path, Path]) -> int:
    """Start a process that exchanges each pair all the time."""
    pid = os.fork()
    if pid == 0:
        try:
            libc.prctl(1, signal.SIGKILL, 0, 0, 0)
            end = time.monotonic() + 60
            while time.monotonic() < end:
                for pair in pairs:
                    exchange(*pair)
        finally:
            os._exit(0)
    return pid


def test_directories_that_are_renamed_all_the_time_never_lead_outside(yard: Path) -> None:
    """What is in secret/ never is in allowed/; directories on the way are exchanged with links, others, and moved out and in."""
    a, outside = yard / "allowed", yard / "outside"
    outside.mkdir()
    (a / "link").symlink_to("../secret")
    (a / "x/y/z").mkdir(parents=True)
    (a / "x/y/z/file").write_text("allowed/z")
    (outside / "x2/y/z").mkdir(parents=True)
    (yard / "file").write_text("secret: above")
    (outside / "file").write_text("secret: outside")
    count = rounds(150)

    def target() -> dict[Any, int]:
        seen: dict[Any, int] = {}
        pid = renaming((a / "sub", a / "link"), (a / "x/y", outside / "x2/y"))
        paths = [a / "sub/file", a / "link/file", a / "x/y/z/file", a / "x/y/../../file", a / "x/y/../../../file", a / "x/y/../file"]
        try:
            for i in range(count):
                fd = openat(bytes(paths[i % len(paths)]))
                got = os.read(fd, 100).decode() if fd >= 0 else fd
                seen[got] = seen.get(got, 0) + 1
                os.close(fd) if fd >= 0 else None
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return seen

    seen = emulated(target, within=a)
    texts = {got for got in seen if isinstance(got, str)}
    assert texts <= {"allowed/sub/file", "allowed/z", "allowed/file"} and texts, seen
    assert {got for got in seen if isinstance(got, int)} <= {DENIED, -errno.ENOENT}, seen


def test_what_was_judged_is_what_is_opened_whatever_is_renamed_after(yard: Path) -> None:
    with one_call(lambda: content(openat(bytes(yard / "allowed/sub/file")))) as (n, target):
        with ps.begin_open(n) as opening:
            assert opening.is_within(yard / "allowed")
            (yard / "allowed/sub").rename(yard / "moved")
            (yard / "secret/sub").rename(yard / "allowed/sub")
            assert not opening.is_within(yard / "allowed")
            fd = opening.finish()
        n.add_fd(fd, send=True)
        os.close(fd)
        assert target.result() == b"allowed/sub/file"


def test_judging_leaks_nothing(yard: Path) -> None:
    count = rounds(100)
    may = may_unshare()

    def target() -> int:
        if may:
            unshare_mounts()
            bind(yard / "secret", yard / "allowed/mount")
        made = 0
        for i in range(count):
            for path in ("file", "sub/file", "mount/file", "out", "sub/"):
                fd = openat(bytes(yard / "allowed" / path))
                made += fd >= 0
                os.close(fd) if fd >= 0 else None
        return made

    emulated(opens(yard / "allowed/file"), within=yard / "allowed")
    before = descriptors()
    assert emulated(target, within=yard / "allowed") == 3 * count
    assert len(descriptors()) == len(before)
