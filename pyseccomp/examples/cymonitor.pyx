# cython: language_level=3
# distutils: libraries = psc
"""A monitor in Cython over the C core: ``run(argv)`` forbids a program to make directories and tells what it opens.

The loop is C without the GIL; Python runs for the calls that are held, once each. README.md, "Embedding", has the command
that compiles it.
"""

import os
import threading

from libc.errno cimport EACCES, EINTR, ESHUTDOWN
from libc.stdlib cimport free
from libc.string cimport memset

from pyseccomp cimport cpsc


cdef int check(int r, what) except -1:
    if r < 0:
        raise OSError(-r, f"{what}: {os.strerror(-r)}")
    return r


cdef int attach(int pid) except -1:
    """Put the filter into a child, which knows nothing of it; the listener."""
    cdef cpsc.psc_policy *policy = NULL
    cdef cpsc.sock_filter *insns = NULL
    cdef cpsc.psc_attach_options options
    cdef cpsc.psc_attach_result result
    cdef int r
    memset(&options, 0, sizeof(options))
    options.no_new_privs = cpsc.PSC_NO_NEW_PRIVS_AUTO
    options.in_thread = True  # the child of ours is not one of an injecting process: YAMA
    options.timeout_ns = 5_000_000_000
    options.pidfd = os.pidfd_open(pid)
    try:
        r = cpsc.psc_policy_new(
            cpsc.SECCOMP_RET_ALLOW, cpsc.SECCOMP_RET_KILL_PROCESS, cpsc.PSC_PRIORITY_RESTRICTIVE, &policy
        )
        check(r, "make a policy")
        check(cpsc.psc_policy_add_arch(policy, <cpsc.psc_arch>cpsc.psc_arch_native()), "name the architecture")
        for name in (b"mkdir", b"mkdirat", b"openat"):
            check(cpsc.psc_policy_add(policy, cpsc.SECCOMP_RET_USER_NOTIF, cpsc.psc_syscall_id(name), NULL, 0), name.decode())
        check(cpsc.psc_policy_compile(policy, NULL, &insns, &options.len), "compile the policy")
        options.insns = insns
        with nogil:
            r = cpsc.psc_attach(&options, &result)
        check(r, "attach to the child")
        cpsc.psc_attach_result_destroy(&result)
        return result.listener
    finally:
        cpsc.psc_policy_free(policy)
        free(insns)
        os.close(options.pidfd)


cdef cpsc.psc_table *make_table() except NULL:
    """mkdir fails with EACCES, the rest is held."""
    cdef cpsc.psc_table *table = NULL
    cdef cpsc.psc_rule rules[2]
    cdef cpsc.psc_answer held
    cdef cpsc.psc_arch arch = <cpsc.psc_arch>cpsc.psc_arch_native()
    cdef size_t n = 0
    memset(rules, 0, sizeof(rules))
    memset(&held, 0, sizeof(held))
    held.kind = cpsc.PSC_HOLD
    for name in (b"mkdir", b"mkdirat"):
        nr = cpsc.psc_syscall_number(arch, cpsc.psc_syscall_id(name))
        if nr >= 0:
            rules[n].arch = cpsc.psc_arch_token(arch)
            rules[n].nr = nr
            rules[n].answer.kind = cpsc.PSC_ERROR
            rules[n].answer.error = EACCES
            n += 1
    check(cpsc.psc_table_new(rules, n, &held, &table), "make the table")
    return table


cdef class Monitor:
    cdef cpsc.psc_inbox *inbox
    cdef cpsc.psc_stats *stats
    cdef int listener

    def __cinit__(self, int pid):
        self.listener = -1
        self.listener = attach(pid)
        check(cpsc.psc_inbox_new(check(cpsc.psc_wake_signal_install(), "find a signal"), &self.inbox), "make an inbox")
        check(cpsc.psc_inbox_add(self.inbox, self.listener), "receive from the listener")
        check(cpsc.psc_stats_new(&self.stats), "make counters")

    def __dealloc__(self):
        cpsc.psc_inbox_free(self.inbox)
        cpsc.psc_stats_free(self.stats)
        if self.listener >= 0:
            os.close(self.listener)

    def serve(self):
        """Answer until no task is left; the paths that were opened."""
        cdef cpsc.psc_event event
        cdef char path[4096]
        cdef int r
        cdef ssize_t length
        cdef cpsc.psc_table *table = make_table()
        opened = []
        cpsc.psc_inbox_begin(self.inbox, &event)
        try:
            while True:
                with nogil:
                    r = cpsc.psc_serve(self.inbox, table, self.stats, &event)
                    length = -1
                    if r == 1:
                        length = cpsc.psc_event_read_string(self.inbox, &event, event.notif.n.data.args[1], path, 4096)
                        event.answer.kind = cpsc.PSC_CONTINUE
                        event.due = True
                if r == -ESHUTDOWN:
                    return opened
                if r != -EINTR:
                    check(r, "serve")
                if length >= 0:
                    opened.append(os.fsdecode(path[:length]))
        finally:
            cpsc.psc_inbox_end(self.inbox)
            cpsc.psc_table_free(table)

    def counts(self):
        """How many calls were let run and how many denied."""
        cdef cpsc.psc_stats_totals totals
        cpsc.psc_stats_sum(self.stats, &totals)
        return {"let run": totals.answered[<int>cpsc.PSC_CONTINUE], "denied": totals.answered[<int>cpsc.PSC_ERROR]}


def run(argv):
    """Run a program; (its exit status, the paths that it opened, counts)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.read(reader, 1)
            os.execvp(argv[0], argv)
        finally:
            os._exit(127)
    os.close(reader)
    try:
        monitor = Monitor(pid)
        os.write(writer, b"g")
    finally:
        os.close(writer)
    status = []
    # Older kernels end a listener only when the child is waited for.
    reaper = threading.Thread(target=lambda: status.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
    reaper.start()
    opened = monitor.serve()
    reaper.join()
    return status[0], opened, monitor.counts()
