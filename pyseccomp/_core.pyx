"""The only crossing between Python and libpsc: each line here either converts or calls C."""

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetObject, PyErr_WriteUnraisable
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.ref cimport Py_INCREF, Py_REFCNT
from libc.errno cimport errno as c_errno
from libc.errno cimport EINPROGRESS, EINTR, EINVAL, ENOENT, EOPNOTSUPP, EPERM, ESHUTDOWN, ETIMEDOUT
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close, read

from pyseccomp cimport cpsc
from pyseccomp.cpsc cimport ECANCELED

import _thread
import contextlib
import errno
import fcntl
import os
import signal
import socket
import threading
import warnings
from typing import Any

from pyseccomp.errors import PolicyError, PolicyTooLargeError, ProgramError
from pyseccomp.errors import NotificationError, NotificationGoneError, ReceiveStoppedError, TargetsGoneError, UnsupportedError

cdef bint _ending = False


def leave_to_exit() -> None:
    """From now on objects that are dropped free nothing that the process's end frees: what is promised for that is done then."""
    global _ending
    _ending = True


# ------------------------------------------------------------------ programs

cdef const cpsc.sock_filter *_insns(const uint8_t[::1] program, size_t *ret_len) except NULL:
    """View bytes as instructions; ProgramError when they cannot be."""
    if program.shape[0] == 0 or program.shape[0] % sizeof(cpsc.sock_filter):
        raise ProgramError(f"a program is a whole number of 8-byte instructions, at least one: got {program.shape[0]} bytes")
    ret_len[0] = program.shape[0] // sizeof(cpsc.sock_filter)
    return <const cpsc.sock_filter *>&program[0]


def check_program(const uint8_t[::1] program) -> None:
    cdef size_t n = 0
    cdef cpsc.psc_program_fault fault
    cdef const cpsc.sock_filter *insns = _insns(program, &n)
    if cpsc.psc_program_check(insns, n, &fault) < 0:
        reason = fault.reason.decode()
        if fault.index == <size_t>-1:
            raise ProgramError(f"the kernel would refuse this program: {reason}")
        raise ProgramError(f"the kernel would refuse this program: instruction {fault.index}: {reason}", index=fault.index)


def program_notifies(const uint8_t[::1] program) -> bool:
    cdef size_t n = 0
    cdef const cpsc.sock_filter *insns = _insns(program, &n)
    return cpsc.psc_program_notifies(insns, n)


def program_is_foreign(const uint8_t[::1] program, uint32_t arch, uint32_t first, uint32_t last) -> bool:
    cdef size_t n = 0
    cdef const cpsc.sock_filter *insns = _insns(program, &n)
    return cpsc.psc_program_is_foreign(insns, n, arch, first, last)


def run_program(const uint8_t[::1] program, int nr, uint32_t arch, uint64_t ip, args) -> tuple[int, int]:
    cdef size_t n = 0
    cdef cpsc.seccomp_data data
    cdef cpsc.psc_decision decision
    cdef const cpsc.sock_filter *insns = _insns(program, &n)
    memset(&data, 0, sizeof(data))
    data.nr = nr
    data.arch = arch
    data.instruction_pointer = ip
    for i, arg in enumerate(args):
        data.args[i] = arg
    if cpsc.psc_program_run(insns, n, &data, &decision) < 0:
        raise ProgramError("the program does not pass the kernel's check; nothing was run")
    return decision.ret, decision.executed


def digest(const uint8_t[::1] data) -> bytes:
    cdef uint8_t out[cpsc.PSC_DIGEST_SIZE]
    cpsc.psc_digest(&data[0] if data.shape[0] else NULL, data.shape[0], out)
    return out[:cpsc.PSC_DIGEST_SIZE]


# ------------------------------------------- what our own filters let us end

# The system calls that an orderly end makes. A filter that this process loads on itself may kill the process for one of
# them, so each is looked up before it is made. What is skipped is left to the kernel, which frees it when the process ends.
cdef tuple _ENDING = (
    "close", "munmap", "futex", "epoll_ctl", "tgkill", "sendmsg", "recvmsg", "shutdown", "ioctl", "poll", "getpid", "openat", "write",
    "wait4", "exit", "clock_nanosleep", "rt_sigprocmask", "madvise", "brk",
)
cdef enum:
    PSC_NEW_LISTENER = 1 << 3  # SECCOMP_FILTER_FLAG_NEW_LISTENER
    END_CLOSE = 1 << 0
    END_MUNMAP = 1 << 1
    END_FUTEX = 1 << 2
    END_EPOLL_CTL = 1 << 3
    END_IOCTL = 1 << 8
    END_GETPID = 1 << 10
    END_WRITE = 1 << 12
    END_THREAD = 1 << 13 | 1 << 14 | 1 << 15 | 1 << 16 | 1 << 17 | END_FUTEX | END_MUNMAP
    END_BRK = 1 << 18
    END_GATE = END_CLOSE | END_WRITE | END_GETPID | END_THREAD
cdef uint32_t _forbidden = 0  # bits by the place in _ENDING; a C global outlives the module's dictionary


cdef extern from *:
    """
    #include <malloc.h>
    static void psc_keep_heap(void)
    {
    #ifdef M_TRIM_THRESHOLD
    	mallopt(M_TRIM_THRESHOLD, -1);
    #endif
    }
    """
    void psc_keep_heap()


cdef uint32_t _before_own(const cpsc.sock_filter *insns, size_t n, bint listens):
    """As _own_forbids(), for a program that this process is about to load on itself.

    The C library gives freed memory back by brk, the interpreter's at the end included; where that is forbidden it keeps it.
    """
    cdef uint32_t bits = _own_forbids(insns, n, listens)
    if bits & END_BRK:
        psc_keep_heap()
    return bits


cdef uint32_t _own_forbids(const cpsc.sock_filter *insns, size_t n, bint listens):
    """The bits of the calls that a program does not allow for every argument.

    A call that is notified counts as allowed unless this process has the listener: then nothing may be left to answer it.
    """
    cdef uint32_t bits = 0, token = cpsc.psc_arch_token(<cpsc.psc_arch>cpsc.psc_arch_native()), ret = 0
    cdef int nr, i
    for i, name in enumerate(_ENDING):
        nr = cpsc.psc_syscall_number(<cpsc.psc_arch>cpsc.psc_arch_native(), cpsc.psc_syscall_id((<str>name).encode()))
        if nr < 0:
            continue
        if cpsc.psc_program_decides(insns, n, token, <uint32_t>nr, &ret):
            ret &= 0xFFFF0000
            if ret == cpsc.SECCOMP_RET_ALLOW or ret == cpsc.SECCOMP_RET_LOG:
                continue
            if ret == cpsc.SECCOMP_RET_USER_NOTIF and not listens:
                continue
        bits |= <uint32_t>1 << i
    return bits


def may(*calls) -> bool:
    """Whether the filters that this process loaded on itself through this package allow these system calls, for every argument."""
    for call in calls:
        if _forbidden >> <int>_ENDING.index(call) & 1:
            return False
    return True


# ----------------------------------------------------------- owned descriptors

cdef extern from "<sys/socket.h>" nogil:
    enum: AF_UNIX
    enum: SOCK_CLOEXEC
    enum: SOL_SOCKET
    enum: SO_DOMAIN
    enum: SO_TYPE
    enum: SHUT_RDWR
    enum: SCM_RIGHTS
    enum: MSG_CMSG_CLOEXEC
    enum: MSG_DONTWAIT
    enum: MSG_PEEK
    enum: MSG_CTRUNC
    enum: SO_LINGER
    struct linger:
        int l_onoff
        int l_linger
    int setsockopt(int fd, int level, int name, const void *value, unsigned int size)
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    struct iovec:
        void *iov_base
        size_t iov_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    cmsghdr *CMSG_FIRSTHDR(msghdr *m)
    cmsghdr *CMSG_NXTHDR(msghdr *m, cmsghdr *c)
    unsigned char *CMSG_DATA(cmsghdr *c)
    size_t CMSG_LEN(size_t n)
    int socketpair(int domain, int type, int protocol, int *fds)
    int getsockopt(int fd, int level, int name, void *value, unsigned int *length)
    int shutdown(int fd, int how)
    ssize_t recvmsg(int fd, msghdr *m, int flags)

cdef enum:
    MAX_RECEIVED = 253  # SCM_MAX_FD


@cython.final
@cython.freelist(16)
cdef class Fd:
    """One descriptor of this process, closed with this object at the latest.

    A Python signal handler runs between bytecodes and can raise there: after a C function has returned, and before its result is
    assigned. A descriptor in an int is lost then. In an Fd it is closed, because the interpreter drops the object. So every
    descriptor is put into an Fd by the C code that gets it.
    """

    cdef int fd

    def __cinit__(self):
        self.fd = -1

    def __dealloc__(self):
        self._close()

    cdef void _close(self) noexcept:
        cdef int fd = self.fd
        self.fd = -1
        if fd >= 0 and not _ending and not _forbidden & END_CLOSE:
            close(fd)

    @property
    def number(self) -> int:
        """The descriptor; -1 when it is closed or was given away."""
        return self.fd

    def fileno(self) -> int:
        if self.fd < 0:
            raise ValueError("this descriptor is closed")
        return self.fd

    def close(self) -> None:
        """Close it, unless a filter that this process loaded on itself forbids that. Idempotent."""
        self._close()

    def detach(self) -> int:
        """Give the descriptor away: it is the caller's. Only for C code, or where no Python runs before it has its next owner."""
        cdef int fd = self.fd
        self.fd = -1
        return fd

    def shutdown(self, int how=SHUT_RDWR) -> None:
        """End one or both directions of a socket; no error when it has ended."""
        if self.fd >= 0:
            shutdown(self.fd, how)

    def __repr__(self):
        return f"<Fd {self.fd}>" if self.fd >= 0 else "<Fd closed>"


cdef Fd _own(int fd):
    cdef Fd owner = Fd.__new__(Fd)
    owner.fd = fd
    return owner


def own(function, *args) -> Fd:
    """Call a C function that returns a descriptor (os.open, os.dup, os.pidfd_open), and own that."""
    cdef Fd owner = Fd.__new__(Fd)
    owner.fd = function(*args)
    return owner


def own_pair(function, *args) -> tuple[Fd, Fd]:
    """Call a C function that returns two descriptors (os.pipe2), and own both."""
    cdef Fd first = Fd.__new__(Fd)
    cdef Fd second = Fd.__new__(Fd)
    first.fd, second.fd = function(*args)
    return first, second


def launch(list running, function) -> None:
    """Start a thread that calls function(), and append its number to a list: both have happened, or neither."""
    running.append(_thread.start_new_thread(function, ()))


def pass_through(lock, double timeout) -> bool:
    """Wait until a lock is free, at most timeout seconds (-1: for ever); it is free afterwards, whatever a signal handler raises."""
    if not lock.acquire(True, timeout):
        return False
    lock.release()
    return True


def duplicate(int fd) -> Fd:
    """Duplicate a descriptor, CLOEXEC, above the standard three."""
    return own(fcntl.fcntl, fd, fcntl.F_DUPFD_CLOEXEC, 3)


def socket_pair(int kind) -> tuple[Fd, Fd]:
    """Make two connected Unix sockets, CLOEXEC."""
    cdef int fds[2]
    cdef Fd first = Fd.__new__(Fd)
    cdef Fd second = Fd.__new__(Fd)
    if socketpair(AF_UNIX, kind | SOCK_CLOEXEC, 0, fds) < 0:
        raise OSError(c_errno, os.strerror(c_errno))
    first.fd, second.fd = fds[0], fds[1]
    return first, second


def socket_kind(int fd) -> tuple[int, int]:
    """The domain and type of a socket. Raises OSError for what is none."""
    cdef int domain = 0, kind = 0
    cdef unsigned int length = sizeof(int)
    if getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) < 0 or getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &length) < 0:
        raise OSError(c_errno, os.strerror(c_errno))
    return domain, kind


cdef extern from "fcntl.h" nogil:
    enum: F_DUPFD_CLOEXEC
    int c_dup_above "fcntl"(int fd, int command, ...)


def receive_now(Fd sock not None, size_t size, int spare=0) -> tuple[bytes, list[Fd], int]:
    """Receive one message that is there, with its descriptors, CLOEXEC, and the flags.

    Raises BlockingIOError when none is. OSError (EMFILE): its descriptors find no room in this process, or not so many are free
    besides; it stays the next one.
    """
    cdef bytes data = PyBytes_FromStringAndSize(NULL, size)
    cdef char control[2048]
    cdef iovec part
    cdef msghdr m
    cdef ssize_t r
    cdef list fds = []
    part.iov_base, part.iov_len = PyBytes_AS_STRING(data), size
    memset(&m, 0, sizeof(m))
    m.msg_iov, m.msg_iovlen, m.msg_control, m.msg_controllen = &part, 1, control, sizeof(control)
    for _ in range(3):
        # A look installs copies; the message leaves the queue when they have found room.
        m.msg_controllen = sizeof(control)
        r = recvmsg(sock.fd, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT | MSG_PEEK)
        if r < 0:
            raise OSError(c_errno, os.strerror(c_errno))
        fds = _received(&m)
        if not m.msg_flags & MSG_CTRUNC:
            if spare and _room(sock.fd, spare) < 0:
                close_foreign(fds)
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            break
        close_foreign(fds)
        fds = []
        _check_room(sock)
    # What was still cut is more than a message of ours has, or refused by a security module.
    recv(sock.fd, control, 1, MSG_DONTWAIT)
    return data[:r], fds, m.msg_flags


cdef int _room(int fd, int wanted) noexcept:
    """0 if so many descriptors (eight at most) are free, or -errno."""
    cdef int taken[8]
    cdef int n = 0, r = 0
    while n < min(wanted, 8) and r == 0:
        taken[n] = c_dup_above(fd, F_DUPFD_CLOEXEC, 0)
        if taken[n] < 0:
            r = -c_errno
        else:
            n += 1
    while n > 0:
        n -= 1
        close(taken[n])
    return r


cdef list _received(msghdr *m):
    """Own the descriptors that came with a message."""
    cdef list fds = []
    cdef cmsghdr *c = CMSG_FIRSTHDR(m)
    cdef size_t i
    while c != NULL:
        if c.cmsg_level == SOL_SOCKET and c.cmsg_type == SCM_RIGHTS:
            for i in range((c.cmsg_len - CMSG_LEN(0)) // sizeof(int)):
                fds.append(_own((<int *>CMSG_DATA(c))[i]))
        c = CMSG_NXTHDR(m, c)
    return fds


cdef int _check_room(Fd sock) except -1:
    """Raise OSError (EMFILE) if this process can have no descriptor more."""
    os.close(fcntl.fcntl(sock.fd, fcntl.F_DUPFD_CLOEXEC, 3))


def close_foreign(list fds) -> None:
    """Close what a peer sent: without SO_LINGER, for the close of the last copy of such a socket waits for its other end."""
    cdef linger now
    cdef Fd fd
    now.l_onoff, now.l_linger = 0, 0
    for fd in fds:
        setsockopt(fd.fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now))  # ENOTSOCK for all others
        fd.close()


def receive_fds(sock, size_t size, int most) -> tuple[bytes, list[Fd], int]:
    """Receive one message from a Python socket, which blocks as that does, with its descriptors, and the flags."""
    cdef list fds = []
    room = socket.CMSG_SPACE(most * sizeof(int))
    data, control, flags, _ = sock.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in control:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            fds += [_own(number) for number in memoryview(content[: len(content) - len(content) % sizeof(int)]).cast("i")]
    return data, fds, flags


# --------------------------------------------------------------------- query

cdef tuple _task(const cpsc.psc_task_state *t):
    name = (<bytes>t.name).decode("utf-8", "surrogateescape")
    return (t.pid, t.tid, name, chr(t.state), t.seccomp, t.filters, t.no_new_privs, t.tracer, t.uid, t.euid)


def query_thread(int pid, int tid) -> tuple:
    cdef cpsc.psc_task_state task
    cdef int r
    with nogil:
        r = cpsc.psc_query_thread(pid, tid, &task)
    if r < 0:
        raise OSError(-r, os.strerror(-r))
    return _task(&task)


def query_process(int pid, int pidfd) -> tuple:
    cdef cpsc.psc_process_state process
    cdef int r
    cdef size_t i
    with nogil:
        r = cpsc.psc_query_process(pid, pidfd, &process)
    if r < 0:
        raise OSError(-r, os.strerror(-r))
    try:
        threads = [_task(&process.threads[i]) for i in range(process.n_threads)]
        return (process.pid, process.start_time, process.machine, process.elf_class, process.kernel_thread, process.alive, threads)
    finally:
        cpsc.psc_process_state_destroy(&process)


def dump_thread(int pidfd, int tgid, int tid, uint64_t timeout_ns) -> list:
    """(program, flags or -1), the oldest first. An OSError's second argument is the other tracer for EBUSY."""
    cdef cpsc.psc_dump dump
    cdef int r
    cdef size_t i
    with nogil:
        r = cpsc.psc_dump_thread(pidfd, tgid, tid, timeout_ns, &dump)
    if r < 0:
        raise OSError(-r, dump.other_tracer if r == -errno.EBUSY else os.strerror(-r))
    try:
        return [
            (
                (<const char *>dump.filters[i].insns)[:dump.filters[i].len * sizeof(cpsc.sock_filter)],
                <int>dump.filters[i].flags if dump.filters[i].flags_known else -1,
            )
            for i in range(dump.n)
        ]
    finally:
        cpsc.psc_dump_destroy(&dump)


def holder_events(int pid, int fd) -> int:
    """poll(2)'s, or -errno."""
    return cpsc.psc_holder_events(pid, fd)


def holder_same(int pid, int fd, int other_pid, int other_fd) -> int:
    """1, 0 or -errno."""
    return cpsc.psc_holder_same(pid, fd, other_pid, other_fd)


# ----------------------------------------------------------------- filter fd

def filterfd_create(const uint8_t[::1] program, uint32_t flags) -> Fd:
    cdef size_t n = 0
    cdef int fd = -1
    cdef const cpsc.sock_filter *insns = _insns(program, &n)
    r = cpsc.psc_filterfd_create(insns, n, flags, &fd)
    if r < 0:
        raise OSError(-r, os.strerror(-r))
    return _own(fd)


def filterfd_read(int fd) -> tuple[bytes, int]:
    cdef cpsc.psc_filter filter
    r = cpsc.psc_filterfd_read(fd, &filter)
    if r < 0:
        raise OSError(-r, os.strerror(-r))
    try:
        return (<const char *>filter.insns)[:filter.len * sizeof(cpsc.sock_filter)], filter.flags
    finally:
        cpsc.psc_filter_destroy(&filter)


# ------------------------------------------------------------ install, attach

cdef class Outcome:
    """What became of an attach, made before it and filled in by the C code that attaches. Owns the listeners.

    So an exception that a signal handler raises at any moment finds the listeners with their owner, and the attachment that
    has this object tells what is true.
    """

    cdef public object raw  # of an attach that succeeded, as _attach_result() makes it
    cdef public object result
    cdef public object error  # why the listeners are not received from
    cdef readonly list fds

    def __cinit__(self):
        self.fds = []

    @property
    def listeners(self) -> tuple[int, ...]:
        return tuple([(<Fd>fd).fd for fd in self.fds if (<Fd>fd).fd >= 0])

    @property
    def done(self) -> bool:
        """True when the filter is in force."""
        return self.raw is not None or self.result is not None

    def keep(self, list fds) -> None:
        """Own descriptors from now on."""
        self.fds = self.fds + fds

    def close(self) -> None:
        for fd in self.fds:
            (<Fd>fd)._close()


def install(const uint8_t[::1] program, uint32_t flags, int no_new_privs, Outcome outcome=None, result=None, Face face=None) -> int:
    """Load a program on this process. With an outcome: that gets the result, and owns the listener if one was asked for."""
    cdef size_t n = 0
    cdef const cpsc.sock_filter *insns = _insns(program, &n)
    if face is not None and flags & PSC_NEW_LISTENER:
        face.prepare()
    cdef uint32_t forbids = _before_own(insns, n, flags & PSC_NEW_LISTENER)
    cdef int r = cpsc.psc_install(insns, n, flags, no_new_privs)
    if r < 0:
        raise OSError(-r, os.strerror(-r))
    global _forbidden
    _forbidden |= forbids
    if outcome is not None:
        outcome.result = result
        if flags & PSC_NEW_LISTENER:
            outcome.fds = [_own(r)]
            if face is not None and not forbids:
                face._receive_from(outcome)
        return 0
    return r


def install_knows_flags(uint32_t flags) -> bool:
    return cpsc.psc_install_knows_flags(flags)


def attach(Outcome outcome not None, Face face, int pidfd, const uint8_t[::1] program, uint32_t flags, int no_new_privs,
           bint leader_only, bint in_thread, uint64_t timeout_ns, bint foreign_arch, Gate gate=None, unsigned int slot=0, list triggers=None,
           dict care=None) -> tuple:
    """Attach. On success the outcome has everything; listeners go to the gate, if there is one, or are received from by the face."""
    cdef size_t n = 0
    cdef cpsc.psc_attach_options options
    cdef cpsc.psc_attach_result result
    cdef tuple raw
    cdef int r
    memset(&options, 0, sizeof(options))
    options.pidfd = pidfd
    options.insns = _insns(program, &n)
    options.len = n
    options.flags = flags
    options.no_new_privs = <cpsc.psc_no_new_privs>no_new_privs
    options.leader_only = leader_only
    options.foreign_arch = foreign_arch
    options.in_thread = in_thread
    options.timeout_ns = timeout_ns
    if face is not None and cpsc.psc_program_notifies(options.insns, n):
        face.prepare()
    with nogil:
        r = cpsc.psc_attach(&options, &result)
    raw = _attach_result(r, &result, outcome)
    if gate is not None and outcome.fds:
        try:
            for fd in outcome.fds:
                gate.add((<Fd>fd).fd, slot, triggers, **care)
        except OSError as error:
            outcome.error = error
        face._try_show(True)
    elif face is not None and outcome.fds:
        face._receive_from(outcome)
    return raw


def attach_group(Outcome outcome not None, Face face not None, int pidfd, int cgroup, const uint8_t[::1] program,
                 uint32_t flags, int no_new_privs, bint in_thread,
                 uint64_t timeout_ns, bint skip, bint foreign_arch, bint by_parent=False) -> tuple:
    """Attach to many. outcome.raw becomes (r, refusal, blamed, stop_ns, [(pidfd, enum psc_became, as of attach, Outcome)])."""
    cdef size_t n = 0, i
    cdef Outcome member
    cdef cpsc.psc_group_options options
    cdef cpsc.psc_group_result result
    cdef int r
    memset(&options, 0, sizeof(options))
    options.attach.pidfd = pidfd
    options.attach.insns = _insns(program, &n)
    options.attach.len = n
    options.attach.flags = flags
    options.attach.no_new_privs = <cpsc.psc_no_new_privs>no_new_privs
    options.attach.in_thread = in_thread
    options.attach.foreign_arch = foreign_arch
    options.attach.timeout_ns = timeout_ns
    options.cgroup = cgroup
    options.skip = skip
    options.by_parent = by_parent
    if cpsc.psc_program_notifies(options.attach.insns, n):
        face.prepare()
    with nogil:
        r = cpsc.psc_attach_group(&options, &result)
    members = []
    try:
        for i in range(result.n):
            member = Outcome()
            raw = _attach_result(result.members[i].error, &result.members[i].result, member)
            members.append((_own(result.members[i].pidfd), result.members[i].became, raw, member))
        outcome.raw = (r, <int>result.refusal, result.blamed, result.stop_ns, members)
        for _, became, _, member in members:
            if became == 1 and member.fds:
                face._receive_from(member)
        return outcome.raw
    finally:
        cpsc.psc_group_result_destroy(&result)


cdef class CgroupWatch:
    """Learn which processes enter a cgroup. For one thread at a time."""

    cdef cpsc.psc_cgroup_watch *watch

    def __cinit__(self, int dir, int stop):
        _os_check(cpsc.psc_cgroup_watch_new(dir, stop, &self.watch))

    def __dealloc__(self):
        cpsc.psc_cgroup_watch_free(self.watch)

    def next(self, bint wait) -> list[int]:
        """The processes that the last look did not show. OSError: ECANCELED: stopped; ENODEV: the cgroup was removed."""
        cdef const int *pids
        cdef size_t n, i
        cdef int r
        with nogil:
            r = cpsc.psc_cgroup_watch_next(self.watch, wait, &pids, &n)
        _os_check(r)
        return [pids[i] for i in range(n)]


cdef tuple _attach_result(int r, cpsc.psc_attach_result *result, Outcome outcome):
    """Convert and free. The outcome gets all of it if the filter is in force; listeners of a failure are closed."""
    cdef size_t i
    cdef list fds = []
    try:
        if result.listener >= 0:
            fds.append(_own(result.listener))
        for i in range(result.n_threads):
            if result.threads[i].listener >= 0:
                fds.append(_own(result.threads[i].listener))
        threads = [
            (result.threads[i].tid, result.threads[i].filters_before, result.threads[i].filters_after, result.threads[i].listener)
            for i in range(result.n_threads)
        ]
        raw = (
            r, <int>result.refusal, result.tid, result.other_tracer, result.pid, result.listener, result.audit_arch,
            result.no_new_privs_set, result.suspended, result.stop_ns, result.residue, threads,
        )
        if r >= 0:
            outcome.fds = fds
            outcome.raw = raw
        return raw
    finally:
        cpsc.psc_attach_result_destroy(result)


# ------------------------------------------------------------------- trigger

cdef class Trigger:
    """One trigger: arm() arms it, finish() ends it. Dropped before, it is disarmed: nothing would be left to follow it."""

    cdef cpsc.psc_trigger *_trigger
    cdef bint _followed
    cdef readonly tuple refused

    def __dealloc__(self):
        if self._trigger != NULL and not _ending:
            self.disarm()
            self.finish(Outcome())

    def follow(self) -> bool:
        """Claim it for the caller, which is to call finish(); True for the first."""
        if self._followed or self._trigger == NULL:
            return False
        self._followed = True
        return True

    def arm(
        self, int pidfd, const uint8_t[::1] program, uint32_t flags, int no_new_privs, uint64_t timeout_ns, bint foreign_arch,
        str event="exec"
    ):
        cdef size_t n = 0
        cdef bint forks = event != "exec", process_too = event == "fork-all"
        cdef cpsc.psc_attach_options options
        cdef cpsc.psc_attach_result result
        cdef int r
        memset(&options, 0, sizeof(options))
        options.pidfd = pidfd
        options.insns = _insns(program, &n)
        options.len = n
        options.flags = flags
        options.no_new_privs = <cpsc.psc_no_new_privs>no_new_privs
        options.timeout_ns = timeout_ns
        options.foreign_arch = foreign_arch
        with nogil:
            if forks:
                r = cpsc.psc_trigger_arm_fork(&options, process_too, &self._trigger, &result)
            else:
                r = cpsc.psc_trigger_arm(&options, &self._trigger, &result)
        self.refused = _attach_result(r, &result, None) if r < 0 else None

    def disarm(self) -> None:
        if self._trigger != NULL:
            cpsc.psc_trigger_disarm(self._trigger)

    def next(self, Outcome outcome not None) -> tuple[tuple, Fd] | None:
        cdef int pidfd
        cdef cpsc.psc_attach_result result
        cdef cpsc.psc_trigger *trigger = self._trigger
        cdef int r
        with nogil:
            r = cpsc.psc_trigger_next(trigger, &result, &pidfd)
        return None if r > 0 else (_attach_result(r, &result, outcome), _own(pidfd))

    def finish(self, Outcome outcome not None) -> tuple[tuple, Fd]:
        cdef int pidfd
        cdef cpsc.psc_attach_result result
        cdef cpsc.psc_trigger *trigger = self._trigger
        cdef int r
        with nogil:
            r = cpsc.psc_trigger_finish(trigger, &result, &pidfd)
        self._trigger = NULL
        return _attach_result(r, &result, outcome), _own(pidfd)

# --------------------------------------------------------------- equivalence

cdef cpsc.sock_fprog *_stack(list programs) except NULL:
    """View programs as an array; the caller frees it and keeps the programs."""
    cdef cpsc.sock_fprog *stack = <cpsc.sock_fprog *>malloc((len(programs) + 1) * sizeof(cpsc.sock_fprog))
    cdef size_t n = 0
    if stack is NULL:
        raise MemoryError
    try:
        for i, program in enumerate(programs):
            stack[i].filter = <cpsc.sock_filter *>_insns(program, &n)
            stack[i].len = <unsigned short>n
    except BaseException:
        free(stack)
        raise
    return stack


cdef int _check_signals(void *arg) noexcept nogil:
    """Run the handlers of signals that arrived: the check of a struct psc_interrupt, with a list for what a handler raises."""
    with gil:
        try:
            PyErr_CheckSignals()
        except BaseException as error:
            (<list>arg).append(error)
            return 1
    return 0


def difference(list a, list b) -> tuple[int, int, int, list[int]] | None:
    """(nr, arch, ip, arguments) of a call that tells two stacks of programs (the oldest first) apart, or None."""
    cdef size_t a_count = len(a), b_count = len(b)
    cdef cpsc.sock_fprog *first = _stack(a)
    cdef cpsc.sock_fprog *second = NULL
    cdef cpsc.seccomp_data data
    cdef list raised = []
    cdef cpsc.psc_interrupt interrupt = cpsc.psc_interrupt(check=_check_signals, arg=<void *>raised)
    cdef int r
    try:
        second = _stack(b)
        with nogil:
            r = cpsc.psc_stack_difference(first, a_count, second, b_count, &interrupt, &data)
    finally:
        free(first)
        free(second)
    if raised:
        raise raised[0]
    if r == 0:
        return None
    if r == 1:
        return data.nr & 0xFFFFFFFF, data.arch, data.instruction_pointer, [data.args[i] for i in range(6)]
    if r == -errno.ENOMEM:
        raise MemoryError
    if r == -errno.E2BIG:
        raise ProgramError("the programs cannot be compared: they calculate with their input in ways too many to follow")
    raise ProgramError("a program does not pass the kernel's check; nothing was compared")


# ------------------------------------------------------------------ syscalls

def arch_table() -> list[tuple[str, int, bool, bool]]:
    """(name, AUDIT_ARCH token, big-endian, 64-bit registers) by arch index."""
    return [
        (
            cpsc.psc_arch_name(<cpsc.psc_arch>i).decode(),
            cpsc.psc_arch_token(<cpsc.psc_arch>i),
            cpsc.psc_arch_big_endian(<cpsc.psc_arch>i),
            cpsc.psc_arch_wide(<cpsc.psc_arch>i),
        )
        for i in range(cpsc.PSC_ARCH_COUNT)
    ]


def native_arch() -> int:
    return cpsc.psc_arch_native()


def arch_of(uint32_t token, uint32_t nr) -> int:
    return cpsc.psc_arch_of(token, nr)


def syscall_names() -> list[str]:
    return [cpsc.psc_syscall_name_of_id(i).decode() for i in range(cpsc.psc_syscall_count())]


def syscall_id(str name) -> int:
    return cpsc.psc_syscall_id(name.encode())


def syscall_number(int arch, int syscall) -> int:
    return cpsc.psc_syscall_number(<cpsc.psc_arch>arch, syscall)


def syscall_by_number(int arch, uint32_t nr) -> int:
    return cpsc.psc_syscall_by_number(<cpsc.psc_arch>arch, nr)


def syscall_multiplexed(int arch, int syscall) -> tuple[int, int, int] | None:
    """(number, bits of the first argument's low word that count, their value), or None."""
    cdef cpsc.psc_multiplexed through
    if cpsc.psc_syscall_multiplexed(<cpsc.psc_arch>arch, syscall, &through) < 0:
        return None
    return through.nr, through.mask, through.call


def syscall_kernel() -> tuple[str, str]:
    return cpsc.psc_syscall_kernel().decode(), cpsc.psc_syscall_headers().decode()


# ------------------------------------------------------------------ policies

cdef int _add_rule(cpsc.psc_policy *policy, tuple rule, cpsc.psc_term *terms) except? -1:
    """Convert (action, call, arch, terms) and add it; -errno. call is an index or several if arch is -1, else a number or ~index."""
    cdef uint32_t action = rule[0]
    cdef int64_t call
    cdef int arch = rule[2]
    cdef size_t count = len(rule[3])
    cdef int r = 0
    if count > cpsc.PSC_MAX_TERMS:
        return -errno.E2BIG
    for i, (kind, arg, op, flags, a, b) in enumerate(rule[3]):
        terms[i] = cpsc.psc_term(kind, arg, op, flags, a, b)
    if isinstance(rule[1], tuple):
        for one in <tuple>rule[1]:
            r = cpsc.psc_policy_add(policy, action, one, terms, count)
            if r < 0:
                break
        return r
    call = rule[1]
    if arch < 0:
        return cpsc.psc_policy_add(policy, action, <int>call, terms, count)
    if call < 0:
        return cpsc.psc_policy_add_on(policy, action, <cpsc.psc_arch>arch, <int>~call, terms, count)
    return cpsc.psc_policy_add_number(policy, action, <cpsc.psc_arch>arch, <uint32_t>call, terms, count)


cdef bytes _compile(cpsc.psc_policy *policy, int optimize, list weights, list part, bint others):
    cdef cpsc.psc_compile_options options
    cdef cpsc.psc_weight *table = <cpsc.psc_weight *>malloc((len(weights) + 1) * sizeof(cpsc.psc_weight))
    cdef size_t span_count = len(part) if part is not None else 0
    cdef cpsc.psc_span *spans = <cpsc.psc_span *>malloc((span_count + 1) * sizeof(cpsc.psc_span))
    cdef cpsc.sock_filter *insns = NULL
    cdef size_t n = 0
    cdef int r
    try:
        if table is NULL or spans is NULL:
            raise MemoryError
        for i, (token, nr, weight) in enumerate(weights):
            table[i] = cpsc.psc_weight(token, nr, weight)
        for i, (token, first, last) in enumerate(part or ()):
            spans[i] = cpsc.psc_span(token, first, last, -1, False, 0, 0)
        memset(&options, 0, sizeof(options))
        options.optimize = <cpsc.psc_optimize>optimize
        options.weights = table
        options.weight_count = len(weights)
        options.part = part is not None
        options.others = others
        options.spans = spans
        options.span_count = span_count
        with nogil:
            r = cpsc.psc_policy_compile(policy, &options, &insns, &n)
        if r == -errno.E2BIG and n == 0:
            raise PolicyError("the policy cannot be compiled: the conditions of one syscall are too many together")
        if r == -errno.E2BIG:
            raise PolicyTooLargeError(
                f"the program would have {n} instructions, and the kernel takes {cpsc.PSC_MAX_INSNS}", instructions=n
            )
        if r < 0:
            raise MemoryError if r == -errno.ENOMEM else PolicyError(f"the policy cannot be compiled: {os.strerror(-r)}")
        return (<const char *>insns)[:n * sizeof(cpsc.sock_filter)]
    finally:
        free(table)
        free(spans)
        free(insns)


def compile_policy(
    uint32_t default, uint32_t bad_arch, int priority, bint low_words, arches, rules, int optimize, list weights,
    bint separate=False, list part=None, bint others=False
) -> bytes:
    cdef cpsc.psc_policy *policy = NULL
    cdef cpsc.psc_term *terms = <cpsc.psc_term *>malloc(cpsc.PSC_MAX_TERMS * sizeof(cpsc.psc_term))
    try:
        if terms is NULL or cpsc.psc_policy_new(default, bad_arch, <cpsc.psc_priority>priority, &policy) < 0:
            raise MemoryError
        if low_words:
            cpsc.psc_policy_compare_low_words(policy)
        if separate:
            cpsc.psc_policy_separate_multiplexed(policy)
        for arch in arches:
            if cpsc.psc_policy_add_arch(policy, <cpsc.psc_arch><int>arch) < 0:
                raise PolicyError(f"architecture {arch} cannot be added to the policy")
        for rule in rules:
            r = _add_rule(policy, rule, terms)
            if r < 0:
                raise MemoryError if r == -errno.ENOMEM else PolicyError(f"a rule is not valid: {rule!r:.200}: {os.strerror(-r)}")
        return _compile(policy, optimize, weights, part, others)
    finally:
        cpsc.psc_policy_free(policy)
        free(terms)
# ------------------------------------------------------------- notifications

cdef object _notify_error(int r, str doing):
    """The one place where the core's notification errors become exceptions; r is -errno."""
    code = -r
    if code == errno.ENOENT:
        return NotificationGoneError(code, f"{doing}: the call is over, its task was killed or interrupted; nothing is left to answer")
    if code == errno.ESHUTDOWN:
        return TargetsGoneError(code, f"{doing}: no task is left under any listener")
    if code == errno.ECANCELED:
        return ReceiveStoppedError(code, f"{doing}: ended by stop()")
    if code == errno.EOPNOTSUPP:
        return UnsupportedError(code, f"{doing}: this kernel cannot do it")
    why = {
        errno.EINPROGRESS: "it was answered before",
        errno.ENOTCONN: "no listener was ever added; attach a filter that notifies first",
        errno.EFAULT: "the target has no readable memory there",
        errno.ENAMETOOLONG: "no end of string within the limit",
        errno.EPERM: "not permitted; reading memory or killing takes ptrace access to the target",
        errno.ESRCH: "the task cannot be seen from this pid namespace",
        errno.ETIMEDOUT: "a receiving thread has the wake-up signal blocked; it will notice after its next notification",
        errno.EUSERS: "256 threads receive already",
        errno.ENOSPC: "too many listeners",
        errno.EEXIST: "the listener is in already",
        errno.ENOTTY: "the file descriptor is not a listener",
        errno.ENOBUFS: "4096 received notifications are unanswered; answer some first",
        errno.EBUSY: "every real-time signal is in use; one is needed to interrupt receivers",
    }.get(code, os.strerror(code))
    return NotificationError(code, f"{doing}: {why}")


cdef int _check(int r, str doing) except -1:
    if r < 0:
        raise _notify_error(r, doing)
    return r


cdef int64_t _deadline(int64_t timeout_ns):
    cdef timespec t
    if timeout_ns <= 0:
        return timeout_ns
    clock_gettime(CLOCK_MONOTONIC, &t)
    return t.tv_sec * 1_000_000_000 + t.tv_nsec + timeout_ns


def install_wake_signal() -> int:
    return _check(cpsc.psc_wake_signal_install(), "install the wake-up signal's handler")


def probe_receive_ends() -> bool:
    cdef int r
    with nogil:
        r = cpsc.psc_notify_probe_ends()
    return _check(r, "probe the end of listeners") == 1


def notify_receive(int fd) -> tuple | int:
    """(id, pid, flags, nr, arch, ip, arguments) of a listener's next notification (not of one that is over by then), or -errno."""
    cdef cpsc.psc_notif notif
    cdef int r
    while True:
        with nogil:
            r = cpsc.psc_notify_poll(fd, -1)
            if r == cpsc.PSC_POLL_GONE:
                r = -ENOENT
            elif r >= 0:
                r = cpsc.psc_notify_receive(fd, &notif)
                if r == -ENOENT:
                    r = -EINTR
        if r != -EINTR:
            break
        PyErr_CheckSignals()
    if r < 0:
        return r
    return (
        notif.n.id, notif.n.pid, notif.n.flags, notif.n.data.nr, notif.n.data.arch, notif.n.data.instruction_pointer,
        [notif.n.data.args[i] for i in range(6)],
    )


def notify_respond(int fd, uint64_t id, int64_t value, int error, uint32_t flags) -> int:
    cdef int r
    with nogil:
        r = cpsc.psc_notify_respond(fd, id, value, error, flags)
    return r


def notify_addfd(int fd, uint64_t id, int source, int at, bint cloexec, bint send) -> int:
    cdef unsigned int flags = (cpsc.PSC_ADDFD_CLOEXEC if cloexec else 0) | (cpsc.PSC_ADDFD_SEND if send else 0)
    cdef int r
    while True:
        with nogil:
            r = cpsc.psc_notify_addfd(fd, id, source, at, flags)
        if r != -EINTR:
            return r
        PyErr_CheckSignals()


def report(error, notification) -> None:
    """Give error to sys.unraisablehook."""
    PyErr_SetObject(type(error), error)
    PyErr_WriteUnraisable(notification)


cdef class Answer:
    cdef cpsc.psc_answer answer  # with PSC_ADD_FD its fd is this object's own

    def __cinit__(self, int kind, int error=0, int64_t value=0, int fd=-1, int at=-1, bint cloexec=True):
        self.answer.fd = -1
        if not 0 <= kind < cpsc.PSC_ANSWER_KINDS:
            raise ValueError(f"answer kind {kind} does not exist")
        if kind == cpsc.PSC_ERROR and not 1 <= error <= 4095:
            raise ValueError(f"an errno is 1 to 4095, got {error}")
        self.answer.kind = <cpsc.psc_answer_kind>kind
        self.answer.error = error
        self.answer.value = value
        self.answer.at = at
        self.answer.cloexec = cloexec
        if kind == cpsc.PSC_ADD_FD:
            self.answer.fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)

    def __dealloc__(self):
        if self.answer.fd >= 0 and not _forbidden & END_CLOSE:
            close(self.answer.fd)

    @property
    def kind(self) -> int:
        return self.answer.kind

    @property
    def error(self) -> int:
        return self.answer.error

    @property
    def value(self) -> int:
        return self.answer.value

    @property
    def fd(self) -> int:
        return self.answer.fd

    cdef tuple _fields(self):
        return self.answer.kind, self.answer.error, self.answer.value, self.answer.fd, self.answer.at, self.answer.cloexec

    def __eq__(self, other):
        if not isinstance(other, Answer):
            return NotImplemented
        return self._fields() == (<Answer>other)._fields()

    def __hash__(self):
        return hash(self._fields())

    def __reduce__(self):
        if self.answer.kind == cpsc.PSC_ADD_FD:
            raise TypeError("add_fd() holds a file descriptor of this process, which cannot be pickled")
        return Answer, (self.kind, self.error, self.value)

    def __repr__(self):
        return (
            "hold()", "allow()", f"deny({errno.errorcode.get(self.error, self.error)})", f"reply({self.value})", "kill()",
            f"add_fd({self.fd}, at={None if self.answer.at < 0 else self.answer.at}, cloexec={bool(self.answer.cloexec)})",
        )[self.kind]


# --------------------------------------------------------------------- rules

def glob_match(const uint8_t[::1] pattern, const uint8_t[::1] text) -> bool:
    return cpsc.psc_glob_match(
        <const char *>(&pattern[0] if pattern.shape[0] else NULL), pattern.shape[0],
        <const char *>(&text[0] if text.shape[0] else NULL), text.shape[0],
    )


cdef class _RuleArrays:
    """The arrays that rules point to while a table is made of them."""

    cdef cpsc.psc_rule *rules
    cdef cpsc.psc_term *terms
    cdef cpsc.psc_string *strings
    cdef int *processes
    cdef size_t n_terms, n_strings, n_processes

    def __cinit__(self, list rules):
        self.rules = <cpsc.psc_rule *>PyMem_Calloc(len(rules) + 1, sizeof(cpsc.psc_rule))
        self.terms = <cpsc.psc_term *>PyMem_Calloc(sum([len(rule[3]) for rule in rules]) + 1, sizeof(cpsc.psc_term))
        self.strings = <cpsc.psc_string *>PyMem_Calloc(sum([len(rule[4]) for rule in rules]) + 1, sizeof(cpsc.psc_string))
        self.processes = <int *>PyMem_Calloc(sum([len(rule[5]) for rule in rules]) + 1, sizeof(int))
        if self.rules == NULL or self.terms == NULL or self.strings == NULL or self.processes == NULL:
            raise MemoryError()
        for i, rule in enumerate(rules):
            self._convert(&self.rules[i], rule)

    cdef int _convert(self, cpsc.psc_rule *out, tuple rule) except -1:
        arch, nr, answer, terms, strings, processes, unreadable = rule
        out.arch = arch
        out.nr = nr
        out.answer = (<Answer?>answer).answer
        out.unreadable = (<Answer?>unreadable).answer
        out.terms, out.n_terms = &self.terms[self.n_terms], len(terms)
        out.strings, out.n_strings = &self.strings[self.n_strings], len(strings)
        out.processes, out.n_processes = &self.processes[self.n_processes], len(processes)
        for kind, arg, op, flags, a, b in terms:
            self.terms[self.n_terms] = cpsc.psc_term(kind, arg, op, flags, a, b)
            self.n_terms += 1
        for how, text in strings:
            self.strings[self.n_strings].kind = <cpsc.psc_string_kind><int>how
            self.strings[self.n_strings].text = PyBytes_AS_STRING(<bytes?>text)
            self.strings[self.n_strings].length = len(text)
            self.n_strings += 1
        for process in processes:
            self.processes[self.n_processes] = process
            self.n_processes += 1
        return 0

    def __dealloc__(self):
        PyMem_Free(self.rules)
        PyMem_Free(self.terms)
        PyMem_Free(self.strings)
        PyMem_Free(self.processes)


cdef class Table:
    """Rules are (arch, nr, answer, terms, strings, processes, unreadable); own is for held calls of this process's threads."""

    cdef cpsc.psc_table *table
    cdef object answers  # own the descriptors that the table gives

    def __cinit__(self, list rules, Answer otherwise not None, Answer own not None):
        cdef _RuleArrays arrays = _RuleArrays(rules)
        self.answers = (otherwise, [(rule[2], rule[6]) for rule in rules])
        cdef int r = cpsc.psc_table_new(arrays.rules, len(rules), &otherwise.answer, &self.table)
        if r == -errno.E2BIG:
            raise PolicyError(f"a rule has conditions of more than {cpsc.PSC_MAX_TERMS} terms")
        _check(r, "build the table of answers")
        cpsc.psc_table_refuse_own(self.table, &own.answer)

    @property
    def holds(self) -> bool:
        """True if some answer is to hold."""
        return cpsc.psc_table_holds(self.table)

    def keep_memory(self) -> int:
        """Where the kernel allows that, read strings through descriptors that are kept; 0, or the errno of why not."""
        cdef int r
        with nogil:
            r = cpsc.psc_table_keep_memory(self.table)
        return -r

    def __dealloc__(self):
        if not _forbidden & (END_CLOSE | END_MUNMAP | END_FUTEX):
            cpsc.psc_table_free(self.table)

    def decide(self, uint32_t arch, int nr, args, uint32_t pid) -> tuple[int, int, int, int]:
        cdef cpsc.seccomp_notif n
        cdef cpsc.psc_answer answer
        memset(&n, 0, sizeof(n))
        n.pid = pid
        n.data.arch = arch
        n.data.nr = nr
        for i, arg in enumerate(args):
            n.data.args[i] = arg
        with nogil:
            answer = cpsc.psc_table_decide(self.table, &n)
        return answer.kind, answer.error, answer.value, answer.fd


cdef class Records:
    """Records in a row; a buffer of them, for numpy and memoryview."""

    cdef cpsc.psc_record *records
    cdef Py_ssize_t n
    cdef Py_ssize_t stride

    def __dealloc__(self):
        PyMem_Free(self.records)

    def __len__(self):
        return self.n

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        self.stride = sizeof(cpsc.psc_record)
        buffer.buf = <void *>self.records
        buffer.format = b"T{Q:id:q:time_ns:(6)Q:args:q:value:Q:latency_ns:I:pid:i:nr:I:arch:i:error:H:kind:H:gone:H:text_len:H:reserved:64s:text:}"
        buffer.itemsize = self.stride
        buffer.len = self.n * self.stride
        buffer.ndim = 1
        buffer.shape = &self.n
        buffer.strides = &self.stride
        buffer.suboffsets = NULL
        buffer.readonly = 0
        buffer.internal = NULL
        buffer.obj = self


cdef class Ring:
    cdef cpsc.psc_ring *ring
    cdef object reading

    def __cinit__(self, size_t capacity):
        _check(cpsc.psc_ring_new(capacity, &self.ring), "make a ring of records")
        self.reading = threading.Lock()

    def __dealloc__(self):
        if not _forbidden & (END_CLOSE | END_MUNMAP | END_FUTEX):
            cpsc.psc_ring_free(self.ring)

    def read(self, size_t limit) -> Records:
        cdef Records found = Records()
        cdef size_t n
        with self.reading:
            n = min(limit, cpsc.psc_ring_waiting(self.ring))
            found.records = <cpsc.psc_record *>PyMem_Calloc(n + 1, sizeof(cpsc.psc_record))
            if found.records == NULL:
                raise MemoryError()
            with nogil:
                n = cpsc.psc_ring_read(self.ring, found.records, n)
            found.n = n
        return found

    def read_into(self, uint8_t[::1] buffer) -> int:
        cdef size_t n = <size_t>buffer.shape[0] // sizeof(cpsc.psc_record)
        if n == 0:
            return 0
        with self.reading, nogil:
            n = cpsc.psc_ring_read(self.ring, <cpsc.psc_record *>&buffer[0], n)
        return n

    @property
    def capacity(self) -> int:
        return cpsc.psc_ring_capacity(self.ring)

    @property
    def waiting(self) -> int:
        return cpsc.psc_ring_waiting(self.ring)

    @property
    def dropped(self) -> int:
        return cpsc.psc_ring_dropped(self.ring)


cdef class Stats:
    cdef cpsc.psc_stats *stats
    cdef Ring ring

    def __cinit__(self):
        _check(cpsc.psc_stats_new(&self.stats), "make statistics")

    def __dealloc__(self):
        if not _forbidden & (END_CLOSE | END_MUNMAP | END_FUTEX):
            cpsc.psc_stats_free(self.stats)

    def keep_records(self, Ring ring not None) -> None:
        self.ring = ring  # lives as long as the statistics do
        cpsc.psc_stats_keep_records(self.stats, ring.ring)

    def totals(self) -> tuple[tuple[int, ...], int, int, int]:
        cdef cpsc.psc_stats_totals totals
        cpsc.psc_stats_sum(self.stats, &totals)
        return tuple(totals.answered), totals.gone, totals.uncounted, totals.pending

    def rows(self) -> list[tuple[int, int, tuple[int, ...]]]:
        cdef size_t size = 1024, n
        cdef cpsc.psc_stats_row *rows = <cpsc.psc_stats_row *>PyMem_Calloc(size, sizeof(cpsc.psc_stats_row))
        if rows == NULL:
            raise MemoryError()
        try:
            n = min(cpsc.psc_stats_rows(self.stats, rows, size), size)
            return [(rows[i].arch, rows[i].nr, tuple(rows[i].answered)) for i in range(n)]
        finally:
            PyMem_Free(rows)

    def latencies(self) -> list[tuple[int, int]]:
        cdef uint64_t counts[cpsc.PSC_LATENCY_BUCKETS]
        cpsc.psc_stats_latencies(self.stats, counts)
        return [(cpsc.psc_latency_floor(i), counts[i]) for i in range(cpsc.PSC_LATENCY_BUCKETS) if counts[i]]


cdef class Event:
    """One notification; made by an Inbox only. ``open`` while it is this object's to answer."""

    cdef Inbox inbox
    cdef Stats stats
    cdef Stay stay  # that may use this object again once it is answered
    cdef bint open
    cdef cpsc.psc_event event

    def __init__(self):
        raise TypeError("notifications come from a filter's receive()")

    @property
    def id(self) -> int:
        return self.event.notif.n.id

    @property
    def pid(self) -> int:
        return self.event.notif.n.pid

    @property
    def nr(self) -> int:
        return self.event.notif.n.data.nr

    @property
    def arch(self) -> int:
        return self.event.notif.n.data.arch

    @property
    def ip(self) -> int:
        return self.event.notif.n.data.instruction_pointer

    @property
    def args(self) -> tuple[int, int, int, int, int, int]:
        return tuple([self.event.notif.n.data.args[i] for i in range(6)])

    @property
    def answered(self) -> bool:
        return not self.open

    @property
    def _rule(self) -> int:
        """What the table's hold() had for its value."""
        return self.event.answer.value

    cdef cpsc.psc_inbox *_inbox(self) except NULL:
        if self.inbox is None:
            raise TypeError("notifications come from a filter's receive()")
        return self.inbox.inbox

    cdef str _doing(self, str verb):
        return f"{verb} syscall {self.nr} of task {self.pid} (notification {self.id:#x})"

    cdef int _claim(self, str verb) except -1:
        """Make the answer this caller's: of two threads one gets it."""
        if not self.open:
            raise _notify_error(-EINPROGRESS, self._doing(verb))
        self.open = False
        return 0

    cdef int _send(self, cpsc.psc_answer_kind kind, int error, int64_t value, str verb) except -1:
        """Claim and answer. With the GIL: SEND never waits, and to get the GIL back costs more; only to kill takes long."""
        cdef int r
        cdef cpsc.psc_inbox *inbox = self._inbox()
        self._claim(verb)
        self.event.answer.kind = kind
        self.event.answer.error = error
        self.event.answer.value = value
        if kind == cpsc.PSC_KILL:
            with nogil:
                r = cpsc.psc_event_answer(inbox, &self.event, &self.event.answer, self.stats.stats)
        else:
            r = cpsc.psc_event_answer(inbox, &self.event, &self.event.answer, self.stats.stats)
        if self.stay is not None:
            self.stay._keep(self)
        if r < 0:
            raise _notify_error(r, self._doing(verb))
        return 0

    cdef int _give(self, Answer answer) except -1:
        """Claim and answer by PSC_ADD_FD, which waits for the target."""
        cdef int r
        cdef cpsc.psc_inbox *inbox = self._inbox()
        self._claim("add a file descriptor for")
        with nogil:
            r = cpsc.psc_event_answer(inbox, &self.event, &answer.answer, self.stats.stats)
        return 0 if r == -ENOENT else _check(r, self._doing("add a file descriptor for"))

    def _answer(self, Answer answer not None) -> None:
        """Answer by an answer; hold() is none yet."""
        if answer.answer.kind == cpsc.PSC_ADD_FD:
            self._give(answer)
        elif answer.answer.kind != cpsc.PSC_HOLD:
            self._send(answer.answer.kind, answer.answer.error, answer.answer.value, "answer")

    def allow(self) -> None:
        """Let the kernel carry the call out as if there were no filter.

        This is no security decision about anything behind a pointer: between a look at the target's memory and the
        kernel's own, another thread of the target (or anybody who shares the memory) can change it. Sound uses are calls
        that registers alone decide, calls that some other filter or the kernel's own permissions restrict as well, and
        observation.

        Raises:
            NotificationGoneError: the call is over.
            NotificationError: it was answered before (EINPROGRESS).
        """
        self._send(cpsc.PSC_CONTINUE, 0, 0, "allow")

    def deny(self, int error=EPERM) -> None:
        """Make the call fail with an errno; it is not carried out.

        Raises: as :meth:`allow`; ValueError for a number that is no errno.
        """
        if not 1 <= error <= 4095:
            raise ValueError(f"an errno is 1 to 4095, got {error}")
        self._send(cpsc.PSC_ERROR, error, 0, "deny")

    def reply(self, int64_t value) -> None:
        """Make the call return value; it is not carried out.

        A value of -4095 to -1 is what libc takes for an error. Raises: as :meth:`allow`.
        """
        self._send(cpsc.PSC_VALUE, 0, value, "reply to")

    def kill(self) -> None:
        """Kill the whole process of the task (SIGKILL); the call is never carried out.

        The process is reached through a pidfd, and the call is seen to wait still after that was opened, so no other
        process can be hit.

        Raises:
            NotificationGoneError: the call is over; nobody was killed.
            NotificationError: the kill was denied; the call was made to fail with EPERM instead.
        """
        self._send(cpsc.PSC_KILL, 0, 0, "kill the process of")

    def _valid(self) -> bool:
        cdef int r
        if not self.open:
            return False
        with nogil:
            r = cpsc.psc_event_valid(self.inbox.inbox, &self.event)
        if r == -ENOENT:
            return False
        if r < 0:
            raise _notify_error(r, self._doing("check"))
        return True

    def _read(self, uint64_t addr, size_t size) -> bytes:
        cdef ssize_t r
        cdef bytes data = PyBytes_FromStringAndSize(NULL, size)
        cdef char *out = PyBytes_AS_STRING(data)
        cdef cpsc.psc_inbox *inbox = self._inbox()
        with nogil:
            r = cpsc.psc_event_read(inbox, &self.event, addr, out, size)
        if r < 0:
            raise _notify_error(<int>r, self._doing(f"read {size} bytes at {addr:#x} for"))
        return data if <size_t>r == size else data[:r]

    def _read_string(self, uint64_t addr, size_t limit) -> bytes:
        cdef ssize_t r
        cdef bytes data = PyBytes_FromStringAndSize(NULL, limit + 1)
        cdef char *out = PyBytes_AS_STRING(data)
        cdef cpsc.psc_inbox *inbox = self._inbox()
        with nogil:
            r = cpsc.psc_event_read_string(inbox, &self.event, addr, out, limit + 1)
        if r < 0:
            raise _notify_error(<int>r, self._doing(f"read a string at {addr:#x} for"))
        return data[:r]

    def _add_fd(self, int fd, int at, bint cloexec, bint send) -> int:
        cdef int r
        cdef cpsc.psc_inbox *inbox = self._inbox()
        cdef unsigned int flags = (cpsc.PSC_ADDFD_CLOEXEC if cloexec else 0) | (cpsc.PSC_ADDFD_SEND if send else 0)
        if send:
            self._claim("answer with a file descriptor")
        while True:
            with nogil:
                r = cpsc.psc_event_addfd(inbox, &self.event, fd, at, flags, self.stats.stats)
            if r != -EINTR:
                break
            try:
                PyErr_CheckSignals()
            except BaseException:
                self.open = True
                raise
        if r < 0:
            # Nothing was sent: the answer is still to be given, unless the call is over.
            if send and r != -ENOENT and r != -EINPROGRESS:
                self.open = True
            if r == -EINVAL and send:
                r = -EOPNOTSUPP
            raise _notify_error(r, self._doing(f"add file descriptor {fd} for"))
        return r

    def _open_begin(self, int opener, uint64_t timeout_ns) -> tuple[int, Opening | None]:
        cdef int r
        cdef cpsc.psc_inbox *inbox = self._inbox()
        cdef Opening opening = Opening.__new__(Opening)
        with nogil:
            r = cpsc.psc_open_begin(opener, inbox, &self.event, timeout_ns, &opening.opening)
        if r == -ENOENT:
            raise _notify_error(r, self._doing("open a file for"))
        return r, opening if r == 0 else None

    def __del__(self):
        if not self.open or _forbidden & (END_IOCTL | END_GETPID):
            return
        message = f"{self!r} was dropped unanswered; its call fails with EPERM"
        self.open = False
        if os.getpid() != self.inbox.owner:
            return
        cdef cpsc.psc_answer answer
        answer.kind = cpsc.PSC_ERROR
        answer.error = EPERM
        answer.value = 0
        # Gone already is as good as denied.
        cdef int r = cpsc.psc_event_answer(self.inbox.inbox, &self.event, &answer, self.stats.stats)
        warnings.warn(message, ResourceWarning, source=self)


cdef extern from "inbox.h" nogil:
    int psc_inbox_reserve(cpsc.psc_inbox *inbox, cpsc.psc_event *ret_route)
    void psc_inbox_unreserve(cpsc.psc_inbox *inbox, const cpsc.psc_event *route)


cdef extern from "fcntl.h" nogil:
    enum:
        O_CLOEXEC
        O_NONBLOCK
    int pipe2(int fds[2], int flags)


cdef extern from "signal_tick.h" nogil:
    void psc_signal_tick_arm(int wake_signal, int64_t ns)
    void psc_signal_tick_disarm()
    void psc_signal_tick_begin(int wake_signal, int signals)
    void psc_signal_tick_end()
    bint psc_signal_tick_is_forbidden()


cdef extern from "inbox.h" nogil:
    int psc_tid()
    int psc_inbox_wake_signal(const cpsc.psc_inbox *inbox)


cdef class Inbox:
    cdef cpsc.psc_inbox *inbox
    cdef int main_thread
    cdef int signals_read, signals_write
    cdef Journal journal
    cdef readonly object owner
    cdef readonly Stats stats
    cdef object factory

    def __cinit__(self, int wake_signal, factory not None):
        cdef int r
        self.signals_read = self.signals_write = -1
        if not issubclass(factory, Event):
            raise TypeError("an inbox makes kinds of Event")
        self.factory = factory
        self.owner = self.main_thread = os.getpid()
        self.stats = Stats()
        with nogil:
            r = cpsc.psc_inbox_new(wake_signal, &self.inbox)
        _check(r, "make an inbox")

    def __dealloc__(self):
        if not _ending and not _forbidden & (END_CLOSE | END_MUNMAP | END_FUTEX):
            cpsc.psc_inbox_free(self.inbox)

    def add(self, int fd) -> None:
        cdef int r
        with nogil:
            r = cpsc.psc_inbox_add(self.inbox, fd)
        _check(r, f"add listener {fd}")

    def remove(self, int fd) -> bool:
        cdef int r
        with nogil:
            r = cpsc.psc_inbox_remove(self.inbox, fd)
        if r == -ENOENT:
            return False
        _check(r, f"remove listener {fd}")
        return True

    def expect(self) -> tuple[int, int]:
        cdef cpsc.psc_event route
        cdef int r
        with nogil:
            r = psc_inbox_reserve(self.inbox, &route)
        _check(r, "expect listeners")
        return route.listener, route.key

    def expect_no_more(self, tuple place) -> None:
        cdef cpsc.psc_event route
        memset(&route, 0, sizeof(route))
        route.listener, route.key = place
        with nogil:
            psc_inbox_unreserve(self.inbox, &route)

    def keep_journal(self, Journal journal not None) -> None:
        cdef int r
        self.journal = journal
        with nogil:
            r = cpsc.psc_inbox_keep_journal(self.inbox, journal.journal)
        _check(r, "keep a journal of what is received")

    def listeners(self) -> list[int]:
        cdef size_t n = cpsc.psc_inbox_listeners(self.inbox, NULL, 0)
        cdef int *fds = <int *>PyMem_Calloc(n + 1, sizeof(int))
        if fds == NULL:
            raise MemoryError()
        try:
            n = min(n, cpsc.psc_inbox_listeners(self.inbox, fds, n))
            return [fds[i] for i in range(n)]
        finally:
            PyMem_Free(fds)

    @property
    def epoll_fd(self) -> int:
        return _check(cpsc.psc_inbox_epoll(self.inbox), "make the listeners' epoll fd")

    @property
    def stays(self) -> int:
        return cpsc.psc_inbox_stays(self.inbox)

    def stop(self) -> None:
        cdef int r
        with nogil:
            r = cpsc.psc_inbox_stop(self.inbox)
        _check(r, "stop receiving")

    cdef Event _make(self, Stats stats):
        cdef Event event = self.factory.__new__(self.factory)
        event.inbox = self
        event.stats = stats
        return event

    cdef object _begin_hearing(self):
        """Let psc_serve() return when a Python signal handler is to run. Returns what set_wakeup_fd() had, or None.

        Only the main thread runs such handlers. Where the program has a wake-up fd of its own (asyncio), only a signal that
        interrupts a waiting loop is heard.
        """
        cdef int fds[2]
        if psc_tid() != self.main_thread or psc_signal_tick_is_forbidden() or threading.current_thread() is not threading.main_thread():
            return None
        if self.signals_read >= 0 or pipe2(fds, O_CLOEXEC | O_NONBLOCK) < 0:  # a callback serves again, or no descriptor is free
            return None
        self.signals_read, self.signals_write = fds[0], fds[1]
        before = signal.set_wakeup_fd(self.signals_write, warn_on_full_buffer=False)
        if before != -1:
            self._end_hearing(before)
            return None
        psc_signal_tick_begin(psc_inbox_wake_signal(self.inbox), self.signals_read)
        return before

    cdef int _end_hearing(self, before) except -1:
        if before is None:
            return 0
        psc_signal_tick_end()
        found = signal.set_wakeup_fd(before)
        if found not in (before, self.signals_write):  # a callback has set another one
            signal.set_wakeup_fd(found)
        close(self.signals_read)
        close(self.signals_write)
        self.signals_read = self.signals_write = -1
        return 0

    cdef void _forget_heard(self) noexcept nogil:
        cdef char heard[64]
        while self.signals_read >= 0 and read(self.signals_read, heard, sizeof(heard)) > 0:
            pass

    cdef void _hear_signals(self, int *quiet) noexcept nogil:
        """Have RECV return soon with -EINTR, once, so that PyErr_CheckSignals() can be called.

        Only the main thread runs Python's signal handlers. quiet counts calls since something happened: an idle monitor
        is woken every 0.8 s at most.
        """
        if psc_tid() == self.main_thread:
            psc_signal_tick_arm(psc_inbox_wake_signal(self.inbox), <int64_t>50000000 << min(quiet[0], 4))
            quiet[0] += 1

    cdef int _wait(self, int64_t deadline, cpsc.psc_turn *turn, cpsc.psc_event *event) except? -1:
        """psc_inbox_receive(), or psc_turn_receive() unless turn is NULL."""
        cdef int r, quiet = 0
        while True:
            if turn == NULL:
                self._hear_signals(&quiet)
            with nogil:
                if turn == NULL:
                    r = cpsc.psc_inbox_receive(self.inbox, deadline, event)
                else:
                    r = cpsc.psc_turn_receive(turn, event)
            if r != -EINTR:
                break
            try:
                PyErr_CheckSignals()
            except BaseException:
                psc_signal_tick_disarm()
                raise
        psc_signal_tick_disarm()
        return r

    def receive(self, int64_t timeout_ns) -> Event | None:
        cdef Event event = self._make(self.stats)
        cdef int r
        cpsc.psc_inbox_begin(self.inbox, &event.event)
        try:
            r = self._wait(_deadline(timeout_ns), NULL, &event.event)
        finally:
            cpsc.psc_inbox_end(self.inbox)
        if r == -ETIMEDOUT:
            return None
        _check(r, "receive a notification")
        event.open = True
        return event

    def stay(self) -> Stay:
        return Stay(self)

    def serve(self, Table table not None, Stats stats not None, call, Answer fallback not None, on_error, unsigned int workers=1) -> bool:
        """Answer by the table; what it holds goes to call(event). True: stopped; False: no task is left.

        Above one, workers takes a table that holds nothing.
        """
        cdef Event event = self._make(stats)
        cdef cpsc.psc_crew *crew = NULL
        cdef unsigned int rseq
        cdef int r
        if workers > 1:
            _check(cpsc.psc_crew_new(self.inbox, table.table, stats.stats, workers, &crew), f"start {workers - 1} helping threads")
        hearing = self._begin_hearing()
        try:
            PyErr_CheckSignals()
        except BaseException:
            self._end_hearing(hearing)
            cpsc.psc_crew_free(crew)
            raise
        # From here to the loop nothing gives up the GIL: a task that sees this stay may hold it for ever.
        cpsc.psc_inbox_begin(self.inbox, &event.event)
        rseq = cpsc.psc_rseq_suspend()
        try:
            while True:
                with nogil:
                    if crew == NULL:
                        r = cpsc.psc_serve(self.inbox, table.table, stats.stats, &event.event)
                    else:
                        r = cpsc.psc_serve_with(crew, &event.event)
                if event.event.refused:
                    self._tell_refused(event, fallback, on_error)
                if r == 1:
                    event = self._hand_over(event, call, fallback, on_error)
                elif r == -EINTR:
                    self._forget_heard()
                    PyErr_CheckSignals()
                elif r == -ECANCELED or r == -ESHUTDOWN:
                    return r == -ECANCELED
                else:
                    _check(r, "serve notifications")
        finally:
            self._end_hearing(hearing)
            cpsc.psc_rseq_resume(rseq)
            with nogil:
                cpsc.psc_crew_free(crew)
            cpsc.psc_inbox_end(self.inbox)

    cdef int _tell_refused(self, Event event, Answer fallback, on_error) except -1:
        """Tell of calls that threads of ours made and that were not handed over; they have their answer already."""
        cdef Event last = self._make(event.stats)
        cdef uint64_t calls = event.event.refused
        event.event.refused = 0
        last.event.notif.n = event.event.refused_last
        times = "once" if calls == 1 else f"{calls} times"
        why = "a thread of this process makes it and may hold the interpreter that a Python function takes to answer"
        text = last._doing("ask Python about") + f": {why}; {times} it got {fallback!r}. Answer it by a rule"
        on_error(NotificationError(errno.EDEADLK, text), last)
        return 0

    cdef int _answer_at_last(self, Event event, Answer fallback) except -1:
        """Before the loop is left: no call waits for an answer that cannot come."""
        if event.open:
            with contextlib.suppress(NotificationError):
                event._send(fallback.answer.kind, fallback.answer.error, fallback.answer.value, "deny")
        return 0

    cdef Event _hand_over(self, Event event, call, Answer fallback, on_error):
        """Ask Python for one answer; the event returned is the next psc_serve()'s, with the answer due if there is one."""
        cdef Event after
        event.open = True
        try:
            result = call(event)
            if not event.open:
                # It may have handed the notification on, and returned hold() after the answer.
                if result is not None and not (isinstance(result, Answer) and (<Answer>result).answer.kind == cpsc.PSC_HOLD):
                    raise TypeError(f"the callback answered and then returned {result!r} too")
            elif not isinstance(result, Answer):
                raise TypeError(f"the callback neither answered nor returned an answer (use hold() to answer later), but {result!r}")
            elif (<Answer>result).answer.kind == cpsc.PSC_ADD_FD:
                event._give(<Answer>result)  # now: its descriptor is closed with it
        except Exception as error:
            result = fallback
            try:
                on_error(error, event)
            except BaseException:
                self._answer_at_last(event, fallback)
                raise
        except BaseException:
            self._answer_at_last(event, fallback)
            raise
        if Py_REFCNT(event) == 1 and not (event.open and (<Answer>result).answer.kind == cpsc.PSC_HOLD):
            after = event
        else:
            after = self._make(event.stats)
            after.event = event.event
        if event.open and (<Answer>result).answer.kind != cpsc.PSC_HOLD:
            event.open = False
            after.event.answer = (<Answer>result).answer
            after.event.due = True
        return after


cdef class Stay:
    """Receive until stopped or until no task is left: an iterator that stop() ends.

    An answered event that nobody else holds is used again for the next notification; it comes back when it is answered,
    not before, so that one that is dropped unanswered is noticed at once.
    """

    cdef Inbox inbox
    cdef cpsc.psc_event stay
    cdef bint open
    cdef Event spare, older_spare

    def __cinit__(self, Inbox inbox not None):
        self.inbox = inbox
        cpsc.psc_inbox_begin(inbox.inbox, &self.stay)
        self.open = True

    cdef void _keep(self, Event event):
        event.stay = None
        if self.open:
            self.older_spare = self.spare
            self.spare = event

    cdef Event _make(self):
        cdef Event event = self.older_spare
        self.older_spare = None
        if event is None or Py_REFCNT(event) != 1:
            event = self.inbox._make(self.inbox.stats)
            event.event.ticket = self.stay.ticket
        return event

    def close(self) -> None:
        self.spare = self.older_spare = None
        if self.open:
            self.open = False
            cpsc.psc_inbox_end(self.inbox.inbox)

    def __del__(self):
        self.close()

    def __iter__(self):
        return self

    def __next__(self):
        return self._next(-1, NULL, NULL)

    def receive(self, int64_t timeout_ns) -> Event | None:
        """Wait as Inbox.receive() does; StopIteration ends it."""
        return self._next(_deadline(timeout_ns), NULL, NULL)

    cdef Event _next(self, int64_t deadline, cpsc.psc_turn *turn, bint *ret_over):
        """The next event; None when none came in time."""
        cdef Event event
        cdef int r
        if not self.open:
            raise StopIteration
        event = self._make()
        r = self.inbox._wait(deadline, turn, &event.event)
        if r >= 0:
            event.open = True
            event.stay = self
            if ret_over != NULL:
                ret_over[0] = r == 1
            return event
        if r == -ETIMEDOUT:
            return None
        self.close()
        if r == -ECANCELED or r == -ESHUTDOWN:
            raise StopIteration
        raise _notify_error(r, "receive a notification")


@cython.final
cdef class Ready:
    """Awaits to what it is given, at once."""

    cdef object result

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        result, self.result = self.result, None
        raise StopIteration(result)


cdef class AsyncStay:
    """The part of an asynchronous iteration that needs no event loop: what comes within the turn of the iteration.

    A target that was just answered mostly calls again within microseconds, less than a turn of the event loop takes. So
    the next notification is waited for on the spot, without the GIL, until the turn is over. Where that was in vain it
    is not tried for the next 1, 3, 7, ... 63 notifications. A subclass has _wait(turn_is_over), a coroutine.
    """

    cdef readonly Stay stay
    cdef Ready ready
    cdef cpsc.psc_turn *turn
    cdef bint on, over
    cdef int skip, vain

    def __cinit__(self, Inbox inbox not None, receiver):
        self.stay = inbox.stay()

    def __dealloc__(self):
        if not _forbidden & (END_GETPID | END_THREAD):
            cpsc.psc_turn_free(self.turn)

    def __aiter__(self):
        return self

    def __anext__(self):
        cdef Event event = None
        cdef bint over = self.over
        if self.on and not over:
            try:
                event = self.stay._next(-1, self.turn, &self.over)
            except StopIteration:
                pass  # _wait() finds the same
            if event is not None:
                self.vain = 0
                return self._now(event)
            self.vain = min(2 * self.vain + 1, 63)
            self.skip = self.vain
        self.on = self.over = False
        return self._wait(over)

    cdef Ready _now(self, Event event):
        cdef Ready ready = self.ready
        self.ready = None
        if ready is None or Py_REFCNT(ready) != 1:
            ready = Ready()
        ready.result = event
        self.ready = ready
        return ready

    def _begin_turn(self, int64_t ns) -> None:
        """From now on, until ns have gone by, wait on the spot; unless that is skipped."""
        if self.skip > 0:
            self.skip -= 1
            return
        if self.turn == NULL:
            _check(cpsc.psc_turn_new(self.stay.inbox.inbox, ns, &self.turn), "start a thread that ends turns")
        cpsc.psc_turn_begin(self.turn)
        self.on = True

    def _end(self) -> None:
        cdef cpsc.psc_turn *turn = self.turn
        self.on = False
        self.stay.close()
        self.turn = NULL
        with nogil:
            cpsc.psc_turn_free(turn)
# ------------------------------------------------------------------ guardian

cdef class Journal:
    """The received, unanswered notifications of one inbox, in a memfd that the guardian holds too."""

    cdef cpsc.psc_journal *journal
    cdef readonly int fd

    def __cinit__(self, Fd fd=None):
        """Make a journal, or adopt one whose keeper is dead; fd is then this object's."""
        self.fd = -1
        if fd is not None:
            _os_check(cpsc.psc_journal_adopt(fd.fd, &self.journal))
            self.fd = fd.fd
            fd.fd = -1
            return
        _check(cpsc.psc_journal_new(&self.fd, &self.journal), "make a journal of notifications")

    def __dealloc__(self):
        if not _forbidden & END_MUNMAP:
            cpsc.psc_journal_free(self.journal)
        if self.fd >= 0 and not _forbidden & END_CLOSE:
            close(self.fd)


def guardian_start(bytes path) -> Fd:
    cdef const char *c_path = path
    cdef int socket = -1, r
    with nogil:
        r = cpsc.psc_guardian_start(c_path, &socket)
    if r < 0:
        raise OSError(-r, os.strerror(-r))
    return _own(socket)


def guardian_send(int socket, fds, uint32_t kind, uint32_t serial, uint32_t ward=0, bint guarded=False, bint kill=False,
                  bint inject=False, bint leader_only=False, Answer answer=None, int64_t deadline=-1, uint64_t timeout_ns=0,
                  uint32_t flags=0, uint32_t no_new_privs=0, bint foreign_arch=False) -> None:
    cdef cpsc.psc_guardian_message m
    cdef int c_fds[cpsc.PSC_GUARDIAN_FDS]
    cdef size_t n = len(fds)
    cdef int r
    if n > cpsc.PSC_GUARDIAN_FDS:
        raise OSError(errno.EINVAL, "too many descriptors for one message")
    for i in range(n):
        c_fds[i] = fds[i]
    memset(&m, 0, sizeof(m))
    m.kind, m.serial, m.ward, m.guarded, m.kill = kind, serial, ward, guarded, kill
    m.inject, m.leader_only, m.deadline, m.timeout_ns = inject, leader_only, deadline, timeout_ns
    m.flags, m.no_new_privs, m.foreign_arch = flags, no_new_privs, foreign_arch
    if answer is not None:
        m.answer = answer.answer
    with nogil:
        r = cpsc.psc_guardian_send(socket, &m, c_fds, n)
    if r < 0:
        raise OSError(-r, os.strerror(-r))


def guardian_receive(int socket) -> tuple[dict[str, Any], list[Fd]]:
    cdef cpsc.psc_guardian_message m
    cdef int fds[cpsc.PSC_GUARDIAN_FDS]
    cdef int r = -EINTR
    while r == -EINTR:
        with nogil:
            r = cpsc.psc_guardian_receive(socket, &m, fds)
    if r < 0:
        raise OSError(-r, os.strerror(-r))
    outcomes = [
        (m.outcomes[i].tid, m.outcomes[i].filters_before, m.outcomes[i].filters_after, m.outcomes[i].listener)
        for i in range(m.n_outcomes)
    ]
    fields = {
        "kind": m.kind, "serial": m.serial, "ward": m.ward, "error": m.error, "state": m.state, "inject": m.inject,
        "refusal": m.refusal, "pid": m.pid, "tid": m.tid, "other_tracer": m.other_tracer, "stop_ns": m.stop_ns,
        "residue": m.residue, "no_new_privs_set": m.no_new_privs_set, "suspended": m.suspended, "more": m.more,
        "outcomes": outcomes, "manager": m.manager, "wards": m.wards, "leader_only": m.leader_only,
    }
    return fields, [_own(fds[i]) for i in range(r)]
# ------------------------------------------------------------------ features

FEATURE_COUNT = <int>cpsc.PSC_FEATURE_COUNT


def probe_feature(int feature) -> tuple[int, int, int]:
    cdef cpsc.psc_probe probe
    cdef int r
    with nogil:
        r = cpsc.psc_feature_probe(<cpsc.psc_feature>feature, &probe)
    if r < 0:
        raise OSError(-r, os.strerror(-r))
    return probe.error, probe.signal, probe.value


# ---------------------------------------------------------------------- gate

cimport cython


cdef int _os_check(int r) except -1:
    if r < 0:
        raise OSError(-r, os.strerror(-r))
    return r


cdef class Page:
    """Page 0 of a filter fd: the gate words."""

    cdef cpsc.psc_page *page

    def __cinit__(self, int fd=-1):
        if fd >= 0:
            _os_check(cpsc.psc_page_map(fd, &self.page))

    def __dealloc__(self):
        if not _ending and not _forbidden & (END_MUNMAP | END_GETPID):
            cpsc.psc_page_unmap(self.page)

    @property
    def writable(self) -> bool:
        return not _forbidden & END_GETPID and cpsc.psc_page_writable(self.page)

    def state(self, unsigned int slot) -> int:
        return cpsc.psc_page_state(self.page, slot)

    def summary(self) -> int:
        return cpsc.psc_page_summary(self.page)

    def set(self, unsigned int slot, int state) -> None:
        _os_check(cpsc.psc_page_set(self.page, slot, <cpsc.psc_gate_state>state))

    def take_slot(self, int state) -> Slot:
        cdef Slot slot = Slot.__new__(Slot)
        slot.number = _os_check(cpsc.psc_page_take_slot(self.page, <cpsc.psc_gate_state>state))
        slot.held = True
        slot.page = self
        return slot

    def ring(self) -> None:
        cpsc.psc_page_ring(self.page)

    def wake(self, unsigned int slot, int state, int channel, int pidfd, int timeout_ms) -> None:
        """Store, wake who is parked, and wait until one of them says something. Ends early at a signal."""
        cdef int r
        with nogil:
            r = cpsc.psc_page_set(self.page, slot, <cpsc.psc_gate_state>state)
            if r == 0:
                r = cpsc.psc_park_wake(self.page, channel, pidfd, timeout_ms)
        if r != -EINTR:
            _os_check(r)


cdef class Slot:
    """A word of a page that is taken; free again with this object at the latest, unless it was given away."""

    cdef readonly int number
    cdef bint held
    cdef Page page

    def __dealloc__(self):
        self.free()

    def free(self) -> None:
        """Give the word back. Idempotent."""
        if self.held and not _ending:
            self.held = False
            if self.page.writable:
                _ = cpsc.psc_page_set(self.page.page, self.number, <cpsc.psc_gate_state>0)

    def keep(self) -> int:
        """Leave the word taken, for as long as the page lives: it is another process's."""
        self.held = False
        return self.number


cdef extern from "<unistd.h>" nogil:
    int c_dup3 "dup3"(int old, int new, int flags)


_TRIES = 100  # of a dup3() that the kernel says to repeat (EINTR, EBUSY)


cdef class Face:
    """The descriptors of one filter: the memfd with its page, the number that shows what can be received, and the inbox."""

    cdef int fd, memfd
    cdef readonly Page page
    cdef readonly Inbox inbox
    cdef bint gated
    cdef readonly bint unshown

    def __cinit__(self, Inbox inbox not None):
        self.fd = self.memfd = -1
        self.inbox = inbox

    def __dealloc__(self):
        self._close()

    cdef void _close(self) noexcept:
        cdef int fd = self.fd, memfd = self.memfd
        self.fd = self.memfd = -1
        if _ending or _forbidden & END_CLOSE:
            return
        if memfd >= 0 and memfd != fd:
            close(memfd)
        if fd >= 0:
            close(fd)

    @staticmethod
    def create(Inbox inbox, const uint8_t[::1] program, uint32_t flags) -> Face:
        """Make a filter's descriptor with a page of which this process is the creator."""
        cdef size_t n = 0
        cdef Face self = Face(inbox)
        cdef const cpsc.sock_filter *insns = _insns(program, &n)
        self.page = Page()
        _os_check(cpsc.psc_filterfd_create_owned(insns, n, flags, &self.fd, &self.page.page))
        self.memfd = self.fd
        return self

    @staticmethod
    def adopt(Inbox inbox, Fd copy not None) -> Face:
        """Be of a filter's descriptor that came from elsewhere; it becomes this object's."""
        cdef Face self = Face(inbox)
        self.page = Page(copy.fd)
        self.fd = self.memfd = copy.fd
        copy.fd = -1
        return self

    @property
    def number(self) -> int:
        return self.fd

    @property
    def memory(self) -> int:
        return self.memfd

    cdef int _receive_from(self, Outcome outcome) except -1:
        """Receive from an outcome's listeners; why that cannot be is left in the outcome."""
        try:
            for fd in outcome.fds:
                self.inbox.add((<Fd>fd).fd)
        except Exception as error:
            outcome.error = error
            error.add_note("the filter is in force")
        self._try_show(self.gated)
        return 0

    cdef int _try_show(self, bint gated) except -1:
        """Show if that can be; what receives does not need the number, and current() tries again.

        No contextlib here, nor any other Python function: a signal handler can raise in one, and what an attach made is in no
        attachment yet.
        """
        try:
            self.show(gated)
        except OSError:
            pass
        return 0

    def prepare(self) -> None:
        """Before an attach that cannot be taken back: what show() takes a descriptor for."""
        if 0 <= self.fd == self.memfd:
            self.memfd = fcntl.fcntl(self.fd, fcntl.F_DUPFD_CLOEXEC, 3)

    def current(self) -> int:
        """The number, which shows what can be received. OSError: it cannot be made to."""
        if self.unshown:
            self.show(self.gated)
        return self.fd

    def show(self, bint gated=False) -> None:
        """Make the number what polls for all listeners: the only one, or an epoll fd. Through a gate it is always that."""
        cdef int r
        self.gated = self.gated or gated
        if self.fd < 0:
            return
        self.unshown = True
        self.prepare()
        fds = self.inbox.listeners()
        if fds:
            alone = len(fds) == 1 and not self.gated
            source = fds[0] if alone else self.inbox.epoll_fd
            for left in reversed(range(_TRIES)):
                r = c_dup3(source, self.fd, O_CLOEXEC)
                if r >= 0:
                    break
                if left == 0 or c_errno not in (errno.EINTR, errno.EBUSY):
                    raise OSError(c_errno, f"show listeners by descriptor {self.fd}: {os.strerror(c_errno)}")
        self.unshown = False

    def close(self) -> None:
        self._close()


cdef class Park:
    """A thread of this process that waits for a filter's word."""

    cdef cpsc.psc_park *park

    def __dealloc__(self):
        self.end()

    def __init__(
        self, int fd, int channel, unsigned int slot, const uint8_t[::1] program, uint32_t flags, int no_new_privs, int64_t deadline,
        bint kill
    ):
        cdef size_t n = 0
        cdef cpsc.psc_park_options options
        options.fd, options.channel, options.slot = fd, channel, slot
        options.insns = _insns(program, &n)
        options.len = n
        options.flags, options.no_new_privs = flags, no_new_privs
        options.deadline, options.kill = deadline, kill
        cdef uint32_t forbids = _before_own(options.insns, n, False)
        _os_check(cpsc.psc_park_start(&options, &self.park))
        # In force when its creator says so, at any moment: what it would forbid is left alone from now on.
        global _forbidden
        _forbidden |= forbids

    @property
    def state(self) -> int:
        return cpsc.psc_park_state_of(self.park) if self.park != NULL else 2

    @property
    def result(self) -> int:
        return cpsc.psc_park_result(self.park) if self.park != NULL else -errno.EAGAIN

    def end(self) -> None:
        cdef cpsc.psc_park *park = self.park
        if park != NULL and not _forbidden & (END_FUTEX | END_MUNMAP | END_CLOSE):
            self.park = NULL
            with nogil:
                cpsc.psc_park_end(park)


cdef size_t _triggers(list wanted, cpsc.psc_gate_trigger *out) except? 0:
    if len(wanted) > cpsc.PSC_MAX_GATE_TRIGGERS:
        raise OSError(errno.E2BIG, "too many triggers")
    for i, (arch, nr) in enumerate(wanted):
        out[i] = cpsc.psc_gate_trigger(arch, nr)
    return len(wanted)


def gate_program(const uint8_t[::1] program, list triggers) -> bytes:
    """The gate program; OSError with the reason when there is none."""
    cdef cpsc.psc_gate_trigger list_[cpsc.PSC_MAX_GATE_TRIGGERS]
    cdef cpsc.sock_filter out[cpsc.PSC_MAX_INSNS]
    cdef cpsc.psc_program_fault fault
    cdef size_t n = 0, len_out = 0
    cdef const cpsc.sock_filter *insns = _insns(program, &n)
    cdef size_t n_triggers = _triggers(triggers, list_)
    cdef int r = cpsc.psc_gate_program(insns, n, list_, n_triggers, out, &len_out, &fault)
    if r == -EOPNOTSUPP:
        raise OSError(-r, f"instruction {fault.index}: {fault.reason.decode()}")
    _os_check(r)
    return (<const char *>out)[:len_out * sizeof(cpsc.sock_filter)]


def gate_hard_program(const uint8_t[::1] program) -> tuple[int, bytes]:
    """How many answers the kernel will give, and the program."""
    cdef cpsc.sock_filter out[cpsc.PSC_MAX_INSNS]
    cdef size_t n = 0
    cdef const cpsc.sock_filter *insns = _insns(program, &n)
    kept = cpsc.psc_gate_hard_program(insns, n, out)
    return kept, (<const char *>out)[:n * sizeof(cpsc.sock_filter)]


cdef cpsc.psc_gate_care _care(dict wanted):
    cdef cpsc.psc_gate_care care
    cdef Answer answer = wanted.get("answer")
    memset(&care, 0, sizeof(care))
    care.guarded, care.kill = wanted.get("guarded", False), wanted.get("kill", False)
    care.deadline, care.pidfd = wanted.get("deadline", -1), wanted.get("pidfd", -1)
    if answer is not None:
        care.answer = answer.answer
    return care


@cython.no_gc_clear
cdef class Gate:
    """The server of a filter's gated listeners."""

    cdef cpsc.psc_gate *gate
    cdef Page page
    cdef Inbox inbox
    cdef uint32_t forbids  # what the policy's program does, once this process is gated itself

    def __cinit__(self, Page page not None, const uint8_t[::1] program, Inbox inbox not None):
        cdef size_t n = 0
        cdef int r
        cdef const cpsc.sock_filter *insns = _insns(program, &n)
        self.page = page
        self.inbox = inbox
        with nogil:
            r = cpsc.psc_gate_new(page.page, insns, n, inbox.inbox, &self.gate)
        self.forbids = _own_forbids(insns, n, True)
        _os_check(r)

    def close(self) -> None:
        cdef cpsc.psc_gate *gate = self.gate
        if _forbidden & END_GATE:
            return
        self.gate = NULL
        with nogil:
            cpsc.psc_gate_free(gate)

    def leave(self) -> None:
        """Let the standby process do what was promised for our death; the page stays mapped for it.

        OSError, but ESRCH: the listeners must stay open here.
        """
        cdef cpsc.psc_gate *gate = self.gate
        cdef int r
        if gate == NULL or _forbidden & END_GATE:
            return
        self.gate = NULL
        Py_INCREF(self.page)
        with nogil:
            r = cpsc.psc_gate_leave(gate)
        _os_check(r)

    def __dealloc__(self):
        if not _ending and not _forbidden & END_GATE:
            cpsc.psc_gate_free(self.gate)

    def add(self, int listener, unsigned int slot, list triggers, **care) -> None:
        cdef cpsc.psc_gate_care care_ = _care(care)
        cdef cpsc.psc_gate_trigger list_[cpsc.PSC_MAX_GATE_TRIGGERS]
        cdef size_t n = _triggers(triggers, list_)
        cdef int r
        with nogil:
            r = cpsc.psc_gate_add(self.gate, listener, slot, list_, n, &care_)
        _os_check(r)

    def install(self, Outcome outcome not None, result, Face face not None, const uint8_t[::1] program, uint32_t flags,
                int no_new_privs, unsigned int slot, list triggers, **care) -> None:
        cdef cpsc.psc_gate_care care_ = _care(care)
        cdef cpsc.psc_gate_trigger list_[cpsc.PSC_MAX_GATE_TRIGGERS]
        cdef size_t n = 0, n_triggers = _triggers(triggers, list_)
        cdef const cpsc.sock_filter *insns = _insns(program, &n)
        cdef int r
        with nogil:
            r = cpsc.psc_gate_install(self.gate, insns, n, flags, no_new_privs, slot, list_, n_triggers, &care_)
        _os_check(r)
        global _forbidden
        _forbidden |= self.forbids
        if self.forbids & END_BRK:
            psc_keep_heap()
        outcome.result = result
        outcome.fds = [_own(r)]
        face._try_show(True)

    def remove(self, int listener) -> None:
        cdef int r
        if self.gate == NULL:
            return
        with nogil:
            r = cpsc.psc_gate_remove(self.gate, listener)
        if r != -ENOENT:
            _os_check(r)


# ------------------------------------------------------------------- opening

def opener_start(bytes path) -> Fd:
    cdef const char *c_path = path
    cdef Fd socket = Fd.__new__(Fd)
    cdef int r
    with nogil:
        r = cpsc.psc_opener_start(c_path, &socket.fd)
    _os_check(r)
    return socket


cdef class Opening:
    """What a trapped open leads to, found and not yet opened; made by Event._open_begin only."""

    cdef cpsc.psc_opening opening

    def __cinit__(self):
        self.opening.object = self.opening.parent = self.opening.socket = self.opening.process = -1

    def __dealloc__(self):
        # Under a filter of one's own the process that opens ends with its opener, when this process does.
        if not _ending and not _forbidden:
            cpsc.psc_opening_destroy(&self.opening)

    @property
    def object(self) -> int:
        return self.opening.object

    @property
    def flags(self) -> int:
        return self.opening.flags

    @property
    def name(self) -> bytes | None:
        return <bytes>self.opening.name if self.opening.creates else None

    def within(self, int opener, int directory, bytes path) -> int:
        """1, 0 or -errno; with a path, of that directory, which is open for this call only."""
        cdef const char *c_path = NULL
        cdef int r = 0, opened = -1
        if path is not None:
            c_path = path
        if self.opening.socket < 0:
            raise ValueError("this opening is over")
        with nogil:
            if c_path != NULL:
                r = cpsc.psc_directory_open(c_path, &opened)
                directory = opened
            if r == 0:
                r = cpsc.psc_opening_within(opener, &self.opening, directory)
            if opened >= 0:
                close(opened)
        return r

    def finish(self) -> tuple[int, Fd]:
        cdef Fd opened = Fd.__new__(Fd)
        cdef int r
        if self.opening.socket < 0:
            raise ValueError("this opening is over")
        with nogil:
            r = cpsc.psc_open_finish(&self.opening, &opened.fd)
        return r, opened

    def close(self) -> None:
        cpsc.psc_opening_destroy(&self.opening)


# --------------------------------------------------------------------- trace

cdef class Trace:
    """The loop that lets calls run and counts them, and the records that it makes."""

    cdef cpsc.psc_trace *trace

    def __cinit__(self, specs, uint32_t snap, size_t ring):
        cdef size_t n = len(specs), i = 0, k
        cdef int r
        cdef cpsc.psc_trace_spec *list_
        list_ = <cpsc.psc_trace_spec *>PyMem_Calloc(n + 1, sizeof(cpsc.psc_trace_spec))
        if list_ == NULL:
            raise MemoryError()
        try:
            for arch, nr, begins, ends, silent, watch, capture in specs:
                list_[i].arch, list_[i].nr, list_[i].begins, list_[i].ends = arch, nr, begins, ends
                list_[i].silent, list_[i].watch = silent, watch
                for k in range(6):
                    list_[i].capture[k] = capture[k]
                i += 1
            r = cpsc.psc_trace_new(list_, n, snap, ring, &self.trace)
        finally:
            PyMem_Free(list_)
        _check(r, "make a trace")

    def __dealloc__(self):
        if not _forbidden & (END_CLOSE | END_MUNMAP | END_FUTEX):
            cpsc.psc_trace_free(self.trace)

    def run(self, Inbox inbox not None) -> bool:
        """Let every call run. True: stopped; False: no task is left."""
        cdef cpsc.psc_event event
        cdef int r
        cpsc.psc_inbox_begin(inbox.inbox, &event)
        try:
            while True:
                with nogil:
                    r = cpsc.psc_trace_run(self.trace, inbox.inbox, &event)
                if r == -EINTR:
                    PyErr_CheckSignals()
                elif r == -ECANCELED or r == -ESHUTDOWN:
                    return r == -ECANCELED
                else:
                    _check(r, "trace notifications")
        finally:
            cpsc.psc_inbox_end(inbox.inbox)

    def wait(self, int timeout_ms) -> bool:
        """Wait for records; True if there are any."""
        cdef int r
        with nogil:
            r = cpsc.psc_trace_wait(self.trace, timeout_ms)
        if r == -EINTR:
            PyErr_CheckSignals()
            return cpsc.psc_trace_pending(self.trace) > 0
        return _check(r, "wait for traced calls") > 0

    def take(self) -> bytes:
        cdef size_t size = cpsc.psc_trace_pending(self.trace)
        cdef bytes data = PyBytes_FromStringAndSize(NULL, size)
        cdef char *out = PyBytes_AS_STRING(data)
        with nogil:
            cpsc.psc_trace_take(self.trace, out, size)
        return data

    def deaf(self) -> None:
        cpsc.psc_trace_deaf(self.trace)

    def rows(self) -> list[tuple[int, int, int, int, int, int]]:
        cdef size_t n = cpsc.psc_trace_rows(self.trace, NULL, 0)
        cdef cpsc.psc_trace_row *rows = <cpsc.psc_trace_row *>PyMem_Calloc(n + 1, sizeof(cpsc.psc_trace_row))
        if rows == NULL:
            raise MemoryError()
        try:
            n = min(n, cpsc.psc_trace_rows(self.trace, rows, n))
            return [
                (rows[i].arch, rows[i].nr, rows[i].count, rows[i].timed, rows[i].until_next_ns, rows[i].longest_ns)
                for i in range(n)
            ]
        finally:
            PyMem_Free(rows)

    def threads(self) -> list[tuple[int, int, int, int, int]]:
        cdef size_t n = cpsc.psc_trace_threads(self.trace, NULL, 0)
        cdef cpsc.psc_trace_thread *threads = <cpsc.psc_trace_thread *>PyMem_Calloc(n + 1, sizeof(cpsc.psc_trace_thread))
        if threads == NULL:
            raise MemoryError()
        try:
            n = min(n, cpsc.psc_trace_threads(self.trace, threads, n))
            return [(threads[i].tid, threads[i].arch, threads[i].nr, threads[i].count, threads[i].since_ns) for i in range(n)]
        finally:
            PyMem_Free(threads)

    def values(self, uint32_t arch, int nr) -> list[int] | None:
        """The values of the watched argument; None for too many."""
        cdef uint32_t values[cpsc.PSC_TRACE_VALUES]
        cdef int n = cpsc.psc_trace_values(self.trace, arch, nr, values)
        return None if n < 0 else [values[i] for i in range(n)]


cdef class Results:
    """Failed calls of threads and what they fork."""

    cdef cpsc.psc_results *results

    def __cinit__(self, uint64_t tracepoint, tids):
        cdef size_t n = len(tids), i
        cdef int r
        cdef int *list_ = <int *>PyMem_Calloc(n + 1, sizeof(int))
        if list_ == NULL:
            raise MemoryError()
        try:
            for i in range(n):
                list_[i] = tids[i]
            with nogil:
                r = cpsc.psc_results_open(tracepoint, list_, n, &self.results)
        finally:
            PyMem_Free(list_)
        if r < 0:
            raise OSError(-r, os.strerror(-r))

    def __dealloc__(self):
        if not _forbidden & (END_CLOSE | END_MUNMAP | END_FUTEX):
            cpsc.psc_results_free(self.results)

    def drain(self):
        """(tid, nr, errno) of what has come since, in no order."""
        cdef cpsc.psc_result found[512]
        cdef size_t n = 512, i
        answer = []
        while n == 512:
            n = cpsc.psc_results_drain(self.results, found, 512)
            for i in range(n):
                answer.append((found[i].tid, found[i].nr, found[i].error))
        return answer

    @property
    def lost(self):
        return cpsc.psc_results_lost(self.results)
