"""Programs written for libseccomp's binding, and for the ctypes package, run unchanged but for the import."""

import ctypes
import errno
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
from harness import descriptors, in_child

import pyseccomp as ps

ALLOWLIST = """
    import os, sys, errno
    import pyseccomp as seccomp

    f = seccomp.SyscallFilter(defaction=seccomp.ERRNO(errno.EPERM))
    for name in ("exit_group", "rt_sigaction", "rt_sigreturn", "brk", "mmap", "munmap", "futex", "close", "fstat", "newfstatat", "lseek",
                 "read", "openat", "getdents64", "ioctl", "mprotect", "madvise", "rt_sigprocmask"):
        f.add_rule(seccomp.ALLOW, name)
    f.add_rule(seccomp.ALLOW, "write", seccomp.Arg(0, seccomp.EQ, sys.stdout.fileno()))
    f.add_rule(seccomp.ALLOW, "write", seccomp.Arg(0, seccomp.EQ, sys.stderr.fileno()))
    f.load()
    try:
        os.mkdir("/tmp/should-not-be")
    except PermissionError:
        print("denied", flush=True)
    r, w = os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_WRONLY)
    try:
        os.write(w, b"x")
    except PermissionError:
        print("only standard output", flush=True)
"""
NOTIFIER = """
    import os, errno
    from pyseccomp import *

    f = SyscallFilter(ALLOW)
    f.add_rule(NOTIFY, "mkdir")
    f.add_rule(NOTIFY, "rmdir")
    f.load()
    pid = os.fork()
    if pid == 0:
        os.mkdir("/nowhere/at/all")
        try:
            os.rmdir("/nowhere")
        except OSError as e:
            os._exit(e.errno)
        os._exit(0)
    fd = f.get_notify_fd()
    n = f.receive_notify()
    assert (n.pid, n.syscall) == (pid, resolve_syscall(Arch.NATIVE, "mkdir")), n
    assert n.syscall_arch == system_arch()
    assert len(n.syscall_args) == 6
    f.respond_notify(NotificationResponse(n, 0, 0, 0))
    n = f.receive_notify(fd)
    assert resolve_syscall(n.syscall_arch, n.syscall) == b"rmdir"
    f.respond_notify(NotificationResponse(n, error=-errno.EBUSY), fd)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.EBUSY)
"""
CTYPES = """
    import os, errno, tempfile
    import pyseccomp

    filt = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    filt.set_attr(pyseccomp.Attr.CTL_NNP, 1)
    try:
        filt.add_arch(pyseccomp.system_arch())
    except OSError as ex:
        assert ex.errno == errno.EEXIST
    filt.add_rule(pyseccomp.NOTIFY, pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, "chdir"))
    filt.add_rule_exactly(pyseccomp.ERRNO(errno.ENOTTY), "fchdir")
    with tempfile.TemporaryFile() as f:
        filt.export_bpf(f)
        size = f.seek(0, os.SEEK_END)
    assert size and size % 8 == 0
    filt.load()
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir("/")
        except OSError as ex:
            os._exit(ex.errno)
        os._exit(0)
    n = filt.receive_notify()
    filt.respond_notify(pyseccomp.NotificationResponse(error=-errno.EXDEV, flags=0, id=n.id, val=0))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == errno.EXDEV)
    try:
        os.fchdir(0)
    except OSError as ex:
        print(ex.errno == errno.ENOTTY)
"""


@pytest.mark.parametrize(
    ("program", "says"),
    [(ALLOWLIST, "denied\nonly standard output\n"), (NOTIFIER, "True\n"), (CTYPES, "True\nTrue\n")],
    ids=["allowlist", "notify", "ctypes"],
)
def test_program_runs_as_it_is(program, says):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == (says, "", 0)


def _status(tid):
    with open(f"/proc/self/task/{tid}/status") as file:
        return next(line.split()[1] for line in file if line.startswith("Seccomp:"))


def test_tsync_reaches_all_threads():
    def child():
        done = threading.Event()
        threads = [threading.Thread(target=done.wait) for _ in range(3)]
        for thread in threads:
            thread.start()
        f = ps.SyscallFilter(ps.ALLOW)
        f.set_attr(ps.Attr.CTL_TSYNC, 1)
        f.add_rule(ps.ERRNO(errno.EXDEV), "chdir")
        f.load()
        modes = {_status(tid) for tid in os.listdir("/proc/self/task")}
        done.set()
        return modes

    assert in_child(child) == {"2"}


def test_load_says_why_not():
    def child():
        f = ps.SyscallFilter(ps.ALLOW)
        f.set_attr(ps.Attr.CTL_NNP, 0)
        f.add_rule(ps.NOTIFY, "chdir")
        if os.geteuid() and not ps.query(os.getpid()).threads[0].no_new_privs:
            with pytest.raises(OSError, match=r"errno = -13\): load\(\)"):
                f.load()
            f.set_attr(ps.Attr.CTL_NNP, 1)
        f.load()
        with pytest.raises(RuntimeError, match="errno = -16"):
            f.load()
        other = ps.SyscallFilter(ps.ALLOW)
        other.add_rule(ps.NOTIFY, "chdir")
        with pytest.raises(OSError, match="busy") as caught:
            other.load()
        return caught.value.errno

    assert in_child(child) == errno.EBUSY


def test_receiving_lets_other_threads_run_and_signals_through():
    def child():
        f = ps.SyscallFilter(ps.ALLOW)
        f.add_rule(ps.NOTIFY, "chdir")
        f.load()
        ran = threading.Event()

        def target():
            ran.set()
            os.chdir("/nowhere")

        thread = threading.Thread(target=target)
        thread.start()
        n = f.receive_notify()
        assert ran.is_set()
        f.respond_notify(ps.NotificationResponse(n))
        thread.join(10)
        assert not thread.is_alive()
        def alarm(*_):
            raise InterruptedError

        signal.signal(signal.SIGALRM, alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InterruptedError):
            f.receive_notify()
        with pytest.raises(OSError, match="respond") as caught:
            f.respond_notify(ps.NotificationResponse(n))
        return caught.value.errno

    assert in_child(child) == errno.ENOENT


def test_addfd():
    def child():
        f = ps.SyscallFilter(ps.ALLOW)
        f.add_rule(ps.NOTIFY, "chdir")
        f.load()
        pid = os.fork()
        if pid == 0:
            try:
                os.chdir("/")
            finally:
                os._exit(0 if os.read(77, 5) == b"hello" else 1)
        r, w = os.pipe()
        os.write(w, b"hello")
        n = f.receive_notify()
        assert f.notify_addfd(ps.NotificationAddfd(n, 1, r, 77, os.O_CLOEXEC)) == 77
        for bad, number in ((ps.NotificationAddfd(n, 8, r), errno.EINVAL), (ps.NotificationAddfd(n, 0, 999), errno.EBADF)):
            with pytest.raises(OSError, match=rf"errno = -{number}\): notify_addfd"):
                f.notify_addfd(bad)
        f.respond_notify(ps.NotificationResponse(n))
        assert os.waitpid(pid, 0)[1] == 0
        fds = len(descriptors())
        del f
        gc.collect()
        return fds - len(descriptors())

    assert in_child(child) == 1


def test_the_last_target_s_end_is_told():
    def child():
        r, w = os.pipe()
        never = os.pipe()[0]
        pid = os.fork()
        if pid == 0:
            f = ps.SyscallFilter(ps.ALLOW)
            f.add_rule(ps.NOTIFY, "chdir")
            f.load()
            os.write(w, b"%d" % f.get_notify_fd())
            os.read(never, 1)
        os.close(w)
        listener_there = int(os.read(r, 9))
        pidfd = os.pidfd_open(pid)
        fd = ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, listener_there, 0)
        assert fd >= 0
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        with pytest.raises(OSError, match="receive_notify") as caught:
            ps.SyscallFilter(ps.ALLOW).receive_notify(fd)
        return caught.value.errno

    assert in_child(child) == errno.ENOENT
