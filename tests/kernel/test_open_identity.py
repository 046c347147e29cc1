"""The process that opens for a target is like the target in all that the kernel asks, and out of the target's reach."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fuse
import pytest

import pyseccomp as ps
from attaching import wait_until
from harness import in_child, status_field
from listening import libc, listening
from test_open import content, emulated, let_in, needs_root, one_call, openat, openers

USER, OTHER = 65534, 12345
NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWNET = 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x40000000
DAC_OVERRIDE = 1 << 1
FIELDS = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "NoNewPrivs", "Umask")
KINDS = ("user", "net", "ipc", "uts", "cgroup")


def become(uid: int = USER, groups: tuple[int, ...] = (), capabilities: int = 0) -> None:
    """A user, with no other capabilities than these."""
    os.setgroups(groups)
    os.setresgid(uid, uid, uid)
    libc.prctl(8, 1, 0, 0, 0)  # KEEPCAPS
    os.setresuid(uid, uid, uid)
    limit(capabilities)
    libc.prctl(4, 1, 0, 0, 0)  # dumpable again: seen by a supervisor without CAP_SYS_PTRACE too


def limit(capabilities: int) -> None:
    header, data = struct.pack("Ii", 0x20080522, 0), struct.pack("6I", capabilities, capabilities, 0, 0, 0, 0)
    assert libc.capset(ctypes.c_char_p(header), ctypes.c_char_p(data)) == 0


@pytest.fixture
def yard(tmp_path: Path) -> Path:
    let_in(tmp_path)
    tmp_path.chmod(0o777)
    if os.geteuid() == 0:
        for name, owner in (("root", 0), ("other", OTHER), ("user", USER)):
            (tmp_path / name).write_text(name)
            (tmp_path / name).chmod(0o600)
            os.chown(tmp_path / name, owner, owner)
    (tmp_path / "mount").mkdir()
    return tmp_path


def both(target: Callable[[], Any]) -> tuple[Any, Any]:
    """What the kernel gives the target itself, and what it gets when its opens are emulated."""
    return in_child(target), emulated(target)


# ------------------------------------------------------------------ all of the ids


@contextlib.contextmanager
def cgroup_of(parent: Path) -> Iterator[Path]:
    """A group that belongs to USER."""
    group = parent / f"psc-open-{os.getpid()}"
    group.mkdir()
    try:
        for path in (group, *(group / name for name in ("cgroup.procs", "tasks") if (group / name).exists())):
            os.chown(path, USER, USER)
        yield group
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
        group.rmdir()


def hierarchies() -> list[Path]:
    """A mounted hierarchy of v2 and one of v1, as far as there are such."""
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    kinds = {line[2]: Path(line[1]) for line in lines if line[2] in ("cgroup", "cgroup2") and "cpuset" not in line[3]}
    return list(kinds.values())


@needs_root
def test_a_user_moves_no_process_of_root_by_its_own_cgroup(yard: Path) -> None:
    """cgroup.procs of v1 asks the euid of who opened it: that was the supervisor's."""
    moved = []
    for parent in hierarchies():
        with contextlib.ExitStack() as stack:
            try:
                group = stack.enter_context(cgroup_of(parent))
            except OSError:
                continue
            victim = os.fork()
            if victim == 0:
                signal.pause()

            def target(group: Path = group, victim: int = victim) -> Any:
                become()
                fd = openat(bytes(group / "cgroup.procs"), os.O_WRONLY)
                try:
                    return os.write(fd, b"%d" % victim)
                except OSError as error:
                    return -(error.errno or 0)

            try:
                moved.append(both(target))
                inside = (group / "cgroup.procs").read_text()
            finally:
                os.kill(victim, signal.SIGKILL)
                os.waitpid(victim, 0)
            assert not inside
    if not moved:
        pytest.skip("privilege: to make a cgroup")
    assert set(moved) == {(-errno.EACCES, -errno.EACCES)}


@needs_root
def test_a_fuse_for_root_alone_is_not_read_by_others(yard: Path) -> None:
    """FUSE asks all of real, effective and saved ids."""
    path = bytes(yard / "mount/file")

    def half() -> Any:
        os.setresuid(USER, 0, 0)
        return content(openat(path))

    def user() -> Any:
        become()
        return content(openat(path))

    def group() -> Any:
        os.setresgid(0, 0, OTHER)
        return content(openat(path))

    with fuse.mounted(yard / "mount") as is_mounted:
        if not is_mounted:
            pytest.skip("kernel lacks fuse, or privilege: to mount it")
        assert both(user) == (-errno.EACCES, -errno.EACCES)
        assert both(half) == (-errno.EACCES, -errno.EACCES)
        assert both(group) == (-errno.EACCES, -errno.EACCES)
        assert both(lambda: content(openat(path))) == (fuse.CONTENT, fuse.CONTENT)


@needs_root
def test_a_users_own_fuse_is_opened_for_it_where_the_supervisor_may_not_look(yard: Path) -> None:
    """Not even root may ask a user's FUSE; it cannot tell whether such a file is within anything."""
    path = bytes(yard / "mount/file")

    def target() -> Any:
        become()
        return content(openat(path))

    with fuse.mounted(yard / "mount", user=USER) as is_mounted:
        if not is_mounted:
            pytest.skip("kernel lacks fuse, or privilege: to mount it")
        assert both(target) == (fuse.CONTENT, fuse.CONTENT)
        assert emulated(target, within=yard) == -errno.EACCES
        assert both(lambda: openat(path)) == (-errno.EACCES, -errno.EACCES)


@needs_root
def test_a_mount_without_links_has_none_for_emulated_opens(yard: Path) -> None:
    """The option nosymfollow guards against links that others planted; the walk followed them."""
    if libc.mount(b"test", bytes(yard / "mount"), b"tmpfs", 256, None):  # MS_NOSYMFOLLOW
        pytest.skip("kernel lacks nosymfollow, or privilege: to mount with it")
    try:
        (yard / "mount/plain").write_text("plain")
        (yard / "mount/link").symlink_to("plain")
        for name, expected in (("link", -errno.ELOOP), ("plain", b"plain")):
            path = bytes(yard / "mount" / name)
            assert both(lambda path=path: content(openat(path))) == (expected, expected)
    finally:
        libc.umount2(bytes(yard / "mount"), 2)


@needs_root
def test_a_sysctl_of_root_is_not_written_by_others(yard: Path) -> None:
    """/proc/sys asks the euid."""

    def target() -> Any:
        become()
        return openat(b"/proc/sys/kernel/hostname", os.O_WRONLY), openat(b"/proc/sys/kernel/hostname") >= 0

    assert both(target) == ((-errno.EACCES, True), (-errno.EACCES, True))


@needs_root
def test_the_file_system_uid_may_be_another(yard: Path) -> None:
    def target() -> Any:
        limit(0x1FF)
        libc.setfsgid(OTHER)
        libc.setfsuid(OTHER)
        made = os.fstat(openat(bytes(yard / "made"), os.O_CREAT | os.O_WRONLY, 0o600))
        os.unlink(yard / "made")
        return content(openat(bytes(yard / "other"))), openat(bytes(yard / "root")), made.st_uid, made.st_gid

    assert both(target) == ((b"other", -errno.EACCES, OTHER, OTHER),) * 2


@needs_root
@pytest.mark.parametrize("capabilities", [0, DAC_OVERRIDE])
def test_a_capability_counts_if_the_target_has_it(yard: Path, capabilities: int) -> None:
    def target() -> Any:
        become(capabilities=capabilities)
        return content(openat(bytes(yard / "root"))), content(openat(bytes(yard / "user")))

    wanted = (b"root" if capabilities else -errno.EACCES, b"user")
    assert both(target) == (wanted, wanted)


@needs_root
def test_a_capability_that_cannot_be_taken_on_refuses_instead_of_denying(yard: Path) -> None:
    """The kernel would have opened the file for the target: EACCES would be a lie."""

    def supervisor() -> Any:
        def target() -> Any:
            become(capabilities=DAC_OVERRIDE)
            return openat(bytes(yard / "root")), content(openat(bytes(yard / "user")))

        with listening(target, "openat") as (box, t):
            # Gone from the bounding set too: the opener is an execve of root.
            for capability in (1, 2):
                assert libc.prctl(24, capability, 0, 0, 0) == 0
            limit(1 << 5 | 1 << 6 | 1 << 7 | 1 << 19)  # KILL, SETGID, SETUID, SYS_PTRACE
            errors = []
            for n in box:
                try:
                    ps.emulate_open(n)
                except ps.SeccompError as error:
                    errors.append(type(error).__name__)
            return errors, t.result()

    assert in_child(supervisor) == (["NotPermittedError"], (-errno.EPERM, b"user"))


# ----------------------------------------------------------------- user namespaces


def in_user_namespace(function: Callable[[], Any], before: Callable[[], Any] = become, **options: Any) -> Any:
    """What function returns as root of a user namespace whose 0 is USER and whose 1 is OTHER, its opens emulated."""

    def target() -> Any:
        before()
        if libc.unshare(NEWUSER):
            return None
        openat(b"mapped")
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        libc.prctl(4, 1, 0, 0, 0)
        return function()

    with listening(target, "openat") as (box, t):
        n = box.receive(20)
        for kind in ("uid", "gid"):
            Path(f"/proc/{t.pid}/{kind}_map").write_text(f"0 {USER} 1\n1 {OTHER} 1\n")
        n.deny(errno.EPERM)
        for n in box:
            ps.emulate_open(n, **options)
        result = t.result()
    if result is None:
        pytest.skip("privilege: to make a user namespace")
    return result


@needs_root
def test_root_of_a_user_namespace_opens_what_its_ids_own_and_no_more(yard: Path) -> None:
    def function() -> Any:
        made = openat(bytes(yard / "made"), os.O_CREAT | os.O_WRONLY, 0o600)
        first = openat(bytes(yard / "root")), content(openat(bytes(yard / "other"))), content(openat(bytes(yard / "user"))), made >= 0
        sysctl = openat(b"/proc/sys/kernel/hostname", os.O_WRONLY)
        limit(0)
        return first, sysctl, openat(bytes(yard / "other")), content(openat(bytes(yard / "user")))

    wanted = ((-errno.EACCES, b"other", b"user", True), -errno.EACCES, -errno.EACCES, b"user")
    assert in_user_namespace(function) == wanted
    st = (yard / "made").stat()
    assert (st.st_uid, st.st_gid) == (USER, USER)


@needs_root
def test_links_in_sticky_directories_are_judged_by_owners_also_those_without_a_number(yard: Path) -> None:
    """Owners that are not mapped all look alike there."""
    sticky = yard / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    for name, owner in (("mine", USER), ("theirs", OTHER), ("unmapped", 4242)):
        (sticky / name).symlink_to(yard / "user")
        os.chown(sticky / name, owner, owner, follow_symlinks=False)
    os.chown(sticky, 4343, 4343)

    def function() -> Any:
        return [content(openat(bytes(sticky / name))) for name in ("mine", "theirs", "unmapped")]

    assert in_user_namespace(function) == [b"user", -errno.EACCES, -errno.EACCES]


@needs_root
def test_a_supervisor_without_privilege_opens_for_its_own_user_namespaces(yard: Path) -> None:
    def as_second() -> Any:
        os.setgroups([])
        os.setresgid(1, 1, 1)
        os.setresuid(1, 1, 1)
        libc.prctl(4, 1, 0, 0, 0)
        return content(openat(bytes(yard / "other"))), openat(bytes(yard / "user")), openat(bytes(yard / "root"))

    def supervisor() -> Any:
        def target() -> Any:
            libc.prctl(4, 1, 0, 0, 0)
            assert libc.unshare(NEWUSER | NEWUTS) == 0
            os.write(ready[1], b"x")
            openat(b"mapped")
            first = content(openat(bytes(yard / "user"))), openat(bytes(yard / "root")), content(openat(bytes(yard / "other")))
            return first, as_second()

        ready, go, pids = os.pipe(), os.pipe(), os.pipe()
        mapper = os.fork()
        if mapper == 0:  # stands for newuidmap
            pid = int(os.read(pids[0], 20))
            for kind in ("uid", "gid"):
                Path(f"/proc/{pid}/{kind}_map").write_text(f"0 {USER} 1\n1 {OTHER} 1\n")
            os.write(go[1], b"x")
            os._exit(0)
        become()
        with listening(target, "openat") as (box, t):
            n = box.receive(20)
            os.write(pids[1], b"%d" % t.pid)
            os.read(go[0], 1)
            n.deny(errno.EPERM)
            for n in box:
                ps.emulate_open(n)
            return t.result()

    wanted = ((b"user", -errno.EACCES, b"other"), (b"other", -errno.EACCES, -errno.EACCES))
    assert in_child(supervisor) == wanted


@needs_root
def test_a_supervisor_in_a_user_namespace_and_ids_that_it_cannot_tell(yard: Path) -> None:
    """As in a container of an ordinary user, whose own groups have no number there."""
    pids, go = os.pipe(), os.pipe()

    def target() -> Any:
        return content(openat(bytes(yard / "user"))), openat(bytes(yard / "root"))

    def as_nobody() -> Any:
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        libc.prctl(4, 1, 0, 0, 0)
        return openat(bytes(yard / "user"))

    def supervisor() -> Any:
        become(groups=(4242,))
        if libc.unshare(NEWUSER):
            return None
        os.write(pids[1], b"%d" % os.getpid())
        os.read(go[0], 1)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        assert os.getgroups() == [65534]
        first = emulated(target)
        with one_call(as_nobody) as (n, _):
            try:
                os.close(n.open())
            except ps.NotPermittedError:
                return first, "refused"
            return first, "opened"

    mapper = os.fork()
    if mapper == 0:
        pid = int(os.read(pids[0], 20))
        for kind in ("uid", "gid"):
            Path(f"/proc/{pid}/{kind}_map").write_text(f"0 {USER} 1\n{USER} {OTHER} 1\n")
        os.write(go[1], b"x")
        os._exit(0)
    got = in_child(supervisor)
    os.kill(mapper, signal.SIGKILL)
    os.waitpid(mapper, 0)
    if got is None:
        pytest.skip("privilege: to make a user namespace")
    assert got == ((b"user", -errno.EACCES), "refused")


# ----------------------------------------------------------------- seen from outside


def child_of_opener() -> int:
    """The one process that waits for this process's decision."""
    (opener,) = openers()
    (child,) = map(int, Path(f"/proc/{opener}/task/{opener}/children").read_text().split())
    return child


def no_child_is_left() -> None:
    (opener,) = openers()
    children = Path(f"/proc/{opener}/task/{opener}/children")
    wait_until(lambda: children.read_text() == "", "the opener's children have ended")


@needs_root
@pytest.mark.parametrize("kind", ["root", "user", "with groups and a capability", "in namespaces", "in a user namespace"])
def test_all_that_is_told_of_the_process_that_opens_is_the_targets(yard: Path, kind: str) -> None:
    def target() -> Any:
        os.umask(0o031)
        if kind != "root":
            become(groups=(4, 5) if "groups" in kind else (), capabilities=DAC_OVERRIDE if "groups" in kind else 0)
        if "user namespace" in kind:
            assert libc.unshare(NEWUSER | NEWNET | NEWIPC | NEWUTS | NEWCGROUP) == 0
        return content(openat(bytes(yard / "user")))

    def in_namespaces() -> Any:
        assert libc.unshare(NEWNET | NEWIPC | NEWUTS | NEWCGROUP) == 0
        return target()

    with one_call(in_namespaces if kind == "in namespaces" else target) as (n, t):
        with ps.begin_open(n) as opening:
            child = child_of_opener()
            assert {f: status_field(child, f) for f in FIELDS} == {f: status_field(t.pid, f) for f in FIELDS}
            links = [[os.readlink(f"/proc/{pid}/ns/{k}") for k in KINDS] for pid in (child, t.pid)]
            assert links[0] == links[1]
            descriptors = {os.readlink(f"/proc/{child}/fd/{fd}") for fd in os.listdir(f"/proc/{child}/fd")}
            assert {d for d in descriptors if not d.startswith("socket:")} <= {"/dev/null", "/", os.getcwd(), str(yard), str(yard / "user")}
            assert len([d for d in descriptors if d.startswith("socket:")]) == 1
            fd = opening.finish()
        n.add_fd(fd, send=True)
        os.close(fd)
        assert t.result() == b"user"
    no_child_is_left()


def as_user(function: Callable[[], Any]) -> Any:
    def child() -> Any:
        become()
        return function()

    return in_child(child)


def attempt(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except OSError as error:
        return -(error.errno or 0)


@contextlib.contextmanager
def opening_for_user(yard: Path) -> Iterator[tuple[ps.Notification, ps.Opening, int]]:
    def target() -> Any:
        become()
        return content(openat(bytes(yard / "user")))

    with one_call(target) as (n, _), ps.begin_open(n, timeout=0.3) as opening:
        yield n, opening, child_of_opener()


@needs_root
def test_a_target_cannot_trace_or_read_the_process_that_opens_for_it(yard: Path) -> None:
    def look(pid: int) -> list[Any]:
        libc.ptrace.argtypes = [ctypes.c_long] * 4
        ctypes.set_errno(0)
        return [
            (libc.ptrace(0x4206, pid, 0, 0), ctypes.get_errno()),
            attempt(lambda: os.open(f"/proc/{pid}/mem", os.O_RDWR)), attempt(lambda: os.listdir(f"/proc/{pid}/fd")),
            attempt(lambda: os.readlink(f"/proc/{pid}/root")), attempt(lambda: os.open(f"/proc/{pid}/environ", os.O_RDONLY)),
        ]  # fmt: skip

    with opening_for_user(yard) as (_, opening, child):
        assert as_user(lambda: look(child)) == [(-1, errno.EPERM)] + [-errno.EACCES] * 4
        os.close(opening.finish())
    # The same from a user namespace whose root is that user.
    with opening_for_user(yard) as (_, opening, child):
        got = as_user(lambda: (libc.unshare(NEWUSER), look(child)))
        assert got[1] == [(-1, errno.EPERM)] + [-errno.EACCES] * 4


@needs_root
def test_signals_of_the_target_end_its_own_request_at_most(yard: Path) -> None:
    with opening_for_user(yard) as (_, opening, child):
        deadly = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGIO, signal.SIGSEGV, signal.SIGRTMIN)
        as_user(lambda: [os.kill(child, s) for s in deadly])
        os.close(opening.finish())
    with opening_for_user(yard) as (_, opening, child):
        as_user(lambda: os.kill(child, signal.SIGKILL))
        with pytest.raises(ps.NotificationError, match="was killed") as caught:
            opening.finish()
        assert caught.value.errno == errno.ECANCELED


@needs_root
@pytest.mark.parametrize("end", ["finish", "close"])
def test_a_process_that_the_target_stops_is_not_left(yard: Path, end: str) -> None:
    with opening_for_user(yard) as (_, opening, child):
        as_user(lambda: os.kill(child, signal.SIGSTOP))
        pidfd = os.pidfd_open(child)
        if end == "finish":
            with pytest.raises(ps.NotificationError, match="did not answer"):
                opening.finish()
    assert select.select([pidfd], [], [], 20)[0]
    os.close(pidfd)
    no_child_is_left()


@needs_root
def test_the_processes_end_with_their_opener_also_if_they_are_stopped(yard: Path) -> None:
    with opening_for_user(yard) as (_, opening, child):
        os.kill(child, signal.SIGSTOP)
        pidfd = os.pidfd_open(child)
        os.kill(openers()[0], signal.SIGKILL)
        assert select.select([pidfd], [], [], 20)[0]
        os.close(pidfd)
        with pytest.raises(ps.NotificationError):
            opening.finish()


@needs_root
def test_where_the_kernel_makes_processes_dumpable_again_nothing_is_opened(yard: Path) -> None:
    sysctl = Path("/proc/sys/fs/suid_dumpable")
    before = sysctl.read_text()
    try:
        sysctl.write_text("1")
    except OSError:
        pytest.skip("privilege: to set fs.suid_dumpable")
    try:
        with one_call(lambda: openat(b"/")) as (n, _), pytest.raises(ps.NotPermittedError, match="suid_dumpable"):
            n.open()
    finally:
        sysctl.write_text(before)


# --------------------------------------------------------------- what else decides


@needs_root
def test_a_device_is_not_opened_around_the_policy_of_a_cgroup(yard: Path) -> None:
    """The kernel asks the cgroup of the process that opens."""
    parent = next((h for h in (Path("/sys/fs/cgroup/devices"), *hierarchies()) if h.is_dir()), None)
    if parent is None:
        pytest.skip("kernel lacks cgroups")
    os.mknod(yard / "kmsg", 0o600 | 0o020000, os.makedev(1, 11))
    os.mknod(yard / "null", 0o666 | 0o020000, os.makedev(1, 3))

    def target() -> Any:
        return openat(bytes(yard / "null"), os.O_WRONLY) >= 0, openat(bytes(yard / "kmsg"), os.O_WRONLY | os.O_NONBLOCK)

    same = emulated(target)
    try:
        stack = contextlib.ExitStack()
        group = stack.enter_context(cgroup_of(parent))
    except OSError:
        pytest.skip("privilege: to make a cgroup")
    with stack, listening(target, "openat") as (box, t):
        (group / "cgroup.procs").write_text(str(t.pid))
        errors = []
        for n in box:
            try:
                ps.emulate_open(n)
            except ps.NotPermittedError as error:
                errors.append(error.errno)
        result = t.result()
        t.reap()
    assert same[0] and same[1] >= 0
    assert (result, errors) == ((True, -errno.EPERM), [errno.ENODEV])


@needs_root
def test_a_user_with_too_many_descriptors_in_flight_is_told_so(yard: Path) -> None:
    """They are counted by user: by that of the process that opens, and so of the target."""

    def target() -> Any:
        become()
        kept: list[Any] = []
        with contextlib.suppress(OSError):
            for _ in range(100):
                kept.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
                socket.send_fds(kept[-1][0], [b"x"], [kept[-1][1].fileno()] * 253)
        return openat(bytes(yard / "user"))

    def supervisor() -> Any:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))
        with one_call(target) as (n, _):
            try:
                os.close(n.open())
            except ps.NotificationError as error:
                return error.errno, "in flight" in str(error), emulated(lambda: content(openat(bytes(yard / "user"))))

    assert in_child(supervisor) == (errno.ETOOMANYREFS, True, b"user")


@needs_root
@pytest.mark.parametrize("within", [False, True])
def test_a_file_system_that_never_answers_holds_only_its_own_target(yard: Path, within: bool) -> None:
    options = {"within": yard} if within else {}
    with fuse.mounted(yard / "mount", ",allow_other", silent=True) as is_mounted:
        if not is_mounted:
            pytest.skip("kernel lacks fuse, or privilege: to mount it")
        with one_call(lambda: openat(bytes(yard / "mount/file"))) as (n, _), pytest.raises(ps.NotificationError, match="did not answer"):
            n.open(timeout=0.2, **options)
        assert emulated(lambda: content(openat(bytes(yard / "user"))), **options) == b"user"
    # The kernel lets a killed process wait until the server has ended.
    no_child_is_left()


@needs_root
def test_a_fuse_that_this_process_sees_is_within(yard: Path) -> None:
    with fuse.mounted(yard / "mount", ",allow_other") as is_mounted:
        if not is_mounted:
            pytest.skip("kernel lacks fuse, or privilege: to mount it")
        assert emulated(lambda: content(openat(bytes(yard / "mount/file"))), within=yard) == fuse.CONTENT
        assert emulated(lambda: openat(bytes(yard / "mount/file")), within="/proc") == -errno.EACCES
