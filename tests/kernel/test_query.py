"""query() against processes in every condition that it must tell apart."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyseccomp as ps
from harness import descriptors, in_child, status_field, victim

from pyseccomp.errors import KernelError, NotPermittedError, TargetGoneError, UnsupportedError
from pyseccomp.query import query

libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NAME, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG = 15, 22, 38, 1
MODE_STRICT, MODE_FILTER = 1, 2
CLONE_NEWNS, CLONE_NEWPID, MS_PRIVATE_REC = 0x00020000, 0x20000000, 0x44000
NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="privilege: root, to become another user or mount")


def must(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def allow_everything() -> None:
    """Load a filter of one instruction, RET ALLOW, into the calling thread."""
    code = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 1, ctypes.addressof(code)))
    must(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    must(libc.prctl(PR_SET_SECCOMP, MODE_FILTER, program, 0, 0))


@contextlib.contextmanager
def forked(prepare: Callable[[], object]) -> Iterator[int]:
    """A child that has run prepare() and now blocks in read(); yields its pid."""
    up, down = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.close(down[1])
            prepare()
            os.write(up[1], b"+")
            os.read(down[0], 1)
        finally:
            os._exit(1)
    try:
        os.close(up[1])
        assert os.read(up[0], 1) == b"+", "the child died in its preparation"
        yield pid
    finally:
        for fd in (up[0], *down):
            os.close(fd)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_process_without_filter_is_detached() -> None:
    with forked(lambda: None) as pid:
        state = query(pid)
    assert (state.pid, state.state, state.uid, state.kernel_thread) == (pid, "detached", os.getuid(), False)
    (thread,) = state.threads
    assert (thread.tid, thread.seccomp, thread.filters, thread.tracer) == (pid, "disabled", 0, 0)


def test_a_filter_makes_it_active_and_is_counted() -> None:
    def twice() -> None:
        allow_everything()
        allow_everything()

    own = query(os.getpid()).threads[0].filters
    with forked(twice) as pid:
        state = query(pid)
    assert state.state == "active" and state.uniform
    assert (state.threads[0].seccomp, state.threads[0].no_new_privs) == ("filter", True)
    assert own is not None and state.threads[0].filters == own + 2


def test_strict_mode_is_active() -> None:
    with forked(lambda: must(libc.prctl(PR_SET_SECCOMP, MODE_STRICT, 0, 0, 0))) as pid:
        state = query(pid)
    assert (state.state, state.threads[0].seccomp) == ("active", "strict")


def test_one_filtered_thread_of_many_is_active_and_not_uniform() -> None:
    def one_thread() -> tuple[str, bool, list[str | None]]:
        ready, leave = threading.Event(), threading.Event()

        def work() -> None:
            allow_everything()
            ready.set()
            leave.wait()

        thread = threading.Thread(target=work)
        thread.start()
        ready.wait()
        state = query(os.getpid())
        leave.set()
        thread.join()
        return state.state, state.uniform, [t.seccomp for t in state.threads]

    assert in_child(one_thread) == ("active", False, ["disabled", "filter"])


def test_a_zombie_is_dead_and_a_reaped_one_is_never_another() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        assert (query(pid).state, query(pidfd=pidfd).state, query(pid).threads[0].state) == ("dead", "dead", "Z")
        os.waitpid(pid, 0)
        reaped = query(pidfd=pidfd)
        assert (reaped.state, reaped.pid, reaped.threads) == ("dead", -1, ())
        with pytest.raises(TargetGoneError, match=f"pid {pid}: no such process"):
            query(pid)
    finally:
        os.close(pidfd)


def test_a_filtered_zombie_is_dead_not_active() -> None:
    pid = os.fork()
    if pid == 0:
        allow_everything()
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        assert query(pid).state == "dead"
    finally:
        os.waitpid(pid, 0)


def test_a_zombie_leader_with_a_live_filtered_thread_is_active() -> None:
    program = """
import ctypes, os, struct, threading
def work():
    code = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
    libc.prctl(38, 1, 0, 0, 0)
    assert libc.prctl(22, 2, ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 1, ctypes.addressof(code))), 0, 0) == 0
    while open(f"/proc/self/task/{os.getpid()}/status").read().split("State:\\t")[1][0] != "Z": pass
    print("ready", flush=True)
    os.read(0, 1)
libc = ctypes.PyDLL(None)
threading.Thread(target=work).start()
libc.syscall(%d, 0)
"""
    with victim(sys.executable, "-c", program.replace("PyDLL", "CDLL") % 60) as process:
        state = query(process)
    assert [t.state for t in state.threads][0] == "Z" and len(state.threads) == 2
    assert state.state == "active"


def test_popen_that_was_waited_for_is_dead_whoever_has_its_number_now() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert query(process).state == "dead"


@needs_root
def test_pidfd_of_a_reused_number_stays_dead() -> None:
    def reuse() -> tuple[str, str] | None:
        old = os.fork()
        if old == 0:
            os._exit(0)
        pidfd = os.pidfd_open(old)
        os.waitpid(old, 0)
        for _ in range(200):
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(old - 1))
            new = os.fork()
            if new == 0:
                signal.pause()
            try:
                if new == old:
                    return query(pidfd=pidfd).state, query(new).state
            finally:
                os.kill(new, signal.SIGKILL)
                os.waitpid(new, 0)
        return None

    if not os.access("/proc/sys/kernel/ns_last_pid", os.W_OK):
        pytest.skip("kernel lacks ns_last_pid (CONFIG_CHECKPOINT_RESTORE)")
    assert in_child(reuse) == ("dead", "detached")


def test_a_thread_id_is_refused_naming_its_process() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with pytest.raises(KernelError, match=f"thread of process {os.getpid()}"):
            query(thread.native_id)
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("pid", [0, -1, -(2**31), 2**31, 2**64, 2**22 + 1])
def test_numbers_that_no_process_can_have_say_gone(pid: int) -> None:
    with pytest.raises(TargetGoneError):
        query(pid)


def test_exactly_one_target_is_taken() -> None:
    with pytest.raises(TypeError):
        query()
    with pytest.raises(TypeError):
        query(1, pidfd=0)
    with pytest.raises(ValueError):
        query(pidfd=-1)


def test_a_file_or_a_closed_fd_is_no_pidfd() -> None:
    with open("/dev/null") as file, pytest.raises(KernelError, match="not an open pidfd") as caught:
        query(pidfd=file.fileno())
    assert caught.value.errno == errno.EBADF
    with pytest.raises(KernelError, match="not an open pidfd"):
        query(pidfd=10**6)


def test_a_name_cannot_pretend_a_field() -> None:
    name = b"x\nSeccomp:\t2\\"
    with forked(lambda: must(libc.prctl(PR_SET_NAME, name, 0, 0, 0))) as pid:
        state = query(pid)
    assert (state.threads[0].name, state.state) == (name.decode(), "detached")


def test_a_name_that_is_not_text_survives() -> None:
    with forked(lambda: must(libc.prctl(PR_SET_NAME, b"\xff) Z 1", 0, 0, 0))) as pid:
        state = query(pid)
    assert (state.threads[0].name.encode("utf-8", "surrogateescape"), state.state) == (b"\xff) Z 1", "detached")


def test_start_time_tells_two_processes_apart() -> None:
    with forked(lambda: None) as pid:
        start = query(pid).start_time
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    assert start == ticks


def test_the_tracer_is_named() -> None:
    PTRACE_TRACEME = 0
    program = f"import ctypes, os; ctypes.CDLL(None).ptrace({PTRACE_TRACEME}, 0, 0, 0); os.kill(os.getpid(), 19)"
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        thread = query(process).threads[0]
        assert (thread.tracer, thread.state) == (os.getpid(), "t")
    finally:
        process.kill()
        process.wait()


def test_all_of_300_threads_are_listed_while_others_come_and_go() -> None:
    def crowd() -> tuple[int, int, int]:
        leave, stop = threading.Event(), threading.Event()
        threads = [threading.Thread(target=leave.wait) for _ in range(300)]
        for thread in threads:
            thread.start()

        def churn() -> None:
            while not stop.is_set():
                short = threading.Thread(target=lambda: None)
                short.start()
                short.join()

        churner = threading.Thread(target=churn)
        churner.start()
        seen = [{t.tid for t in query(os.getpid()).threads} for _ in range(20)]
        stop.set()
        churner.join()
        leave.set()
        wanted = {os.getpid(), *(t.native_id for t in threads)}
        for thread in threads:
            thread.join()
        return min(len(wanted & s) for s in seen), len(wanted), max(len(s) for s in seen)

    found, wanted, most = in_child(crowd)
    assert found == wanted == 301 and most < 400


def test_a_visible_kernel_thread_is_named_as_one() -> None:
    kthreadd = next(
        (int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and (p / "comm").read_text() == "kthreadd\n"),
        None,
    )
    if kthreadd is None:
        pytest.skip("privilege: no kernel thread is visible in this pid namespace")
    state = query(kthreadd)
    assert (state.kernel_thread, state.state, state.arch) == (True, "detached", None)


@needs_root
def test_a_foreign_users_process_shows_all_but_its_executable() -> None:
    def as_nobody(pid: int) -> tuple[str, int | None, str | None]:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        state = query(pid)
        return state.state, state.uid, state.arch

    with forked(allow_everything) as pid:
        assert query(pid).arch == os.uname().machine
        assert in_child(as_nobody, pid) == ("active", 0, None)


def test_an_i386_process_is_told_from_its_executable(tmp_path: Path) -> None:
    source = tmp_path / "pause.c"
    source.write_text(
        'void _start(void) { for (;;) { __asm__ volatile("int $0x80" :: "a"(4), "b"(1), "c"("ready\\n"), "d"(6));'
        ' __asm__ volatile("int $0x80" :: "a"(29)); } }'
    )
    if os.uname().machine != "x86_64":
        pytest.skip("kernel lacks i386 tasks on this architecture")
    program = tmp_path / "pause"
    subprocess.run(["cc", "-m32", "-nostdlib", "-static", "-o", program, source], check=True)
    try:
        with victim(program) as process:
            assert query(process).arch == "i386"
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        pytest.skip("kernel lacks i386 tasks (CONFIG_IA32_EMULATION)")


@needs_root
def test_a_proc_that_is_no_procfs_is_refused() -> None:
    def without_proc() -> str:
        must(libc.unshare(CLONE_NEWNS))
        must(libc.mount(b"none", b"/", None, MS_PRIVATE_REC, None))
        must(libc.mount(b"none", b"/proc", b"tmpfs", 0, None))
        with pytest.raises(UnsupportedError) as caught:
            query(os.getpid())
        return str(caught.value)

    assert "no procfs" in in_child(without_proc)


@needs_root
def test_the_proc_of_another_pid_namespace_is_refused() -> None:
    def with_foreign_proc() -> str:
        must(libc.unshare(CLONE_NEWPID))

        def inner() -> str:
            with pytest.raises(UnsupportedError) as caught:
                query(os.getpid())
            return str(caught.value)

        reader, writer = os.pipe()
        pid = os.fork()  # the first process of the new namespace
        if pid == 0:
            os.write(writer, inner().encode())
            os._exit(0)
        os.close(writer)
        text = os.read(reader, 4096).decode()
        os.waitpid(pid, 0)
        return text

    assert "another pid namespace" in in_child(with_foreign_proc)


@needs_root
def test_hidepid_is_named_as_the_reason() -> None:
    def hidden(pid: int) -> str:
        must(libc.unshare(CLONE_NEWNS))
        must(libc.mount(b"none", b"/", None, MS_PRIVATE_REC, None))
        must(libc.mount(b"proc", b"/proc", b"proc", 0, b"hidepid=2"))
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        with pytest.raises(NotPermittedError) as caught:
            query(pid)
        return str(caught.value)

    with forked(lambda: None) as pid:
        assert "hidepid" in in_child(hidden, pid)


def test_nothing_is_left_open() -> None:
    before = descriptors()
    pidfd = os.pidfd_open(os.getpid())
    for _ in range(300):
        query(os.getpid())
        query(pidfd=pidfd)
        for wrong in (-1, 2**22 + 1):
            with pytest.raises(TargetGoneError):
                query(wrong)
    os.close(pidfd)
    assert descriptors() == before


def test_query_equals_what_proc_says_of_this_very_process() -> None:
    (state,) = [t for t in query(os.getpid()).threads if t.tid == os.getpid()]
    assert state.no_new_privs == (status_field(os.getpid(), "NoNewPrivs") == "1")
    assert state.filters == int(status_field(os.getpid(), "Seccomp_filters"))


def test_a_zombie_that_its_filter_killed_is_dead() -> None:
    """Its mode reads 3 in /proc since Linux 5.17."""
    policy = ps.Policy(ps.ALLOW)
    policy.add(ps.KILL_PROCESS, "getpgid")
    child = os.fork()
    if child == 0:
        try:
            ps.Filter(policy).attach()
            os.getpgid(0)
        finally:
            os._exit(1)
    try:
        assert os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT).si_status == signal.SIGSYS
        assert ps.query(child).state == "dead"
    finally:
        os.waitpid(child, 0)
