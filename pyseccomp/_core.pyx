"""The only crossing between Python and libpsc: each line here either converts or calls C."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from pyseccomp cimport cpsc

import os

from pyseccomp.errors import ProgramError


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
