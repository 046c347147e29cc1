"""The only crossing between Python and libpsc: each line here either converts or calls C."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from pyseccomp cimport cpsc

import errno
import os

from pyseccomp.errors import PolicyError, ProgramError


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


# ----------------------------------------------------------------- filter fd

def filterfd_create(const uint8_t[::1] program, uint32_t flags) -> int:
    cdef size_t n = 0
    cdef int fd = -1
    cdef const cpsc.sock_filter *insns = _insns(program, &n)
    r = cpsc.psc_filterfd_create(insns, n, flags, &fd)
    if r < 0:
        raise OSError(-r, os.strerror(-r))
    return fd


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

def install(const uint8_t[::1] program, uint32_t flags, int no_new_privs) -> int:
    cdef size_t n = 0
    cdef const cpsc.sock_filter *insns = _insns(program, &n)
    r = cpsc.psc_install(insns, n, flags, no_new_privs)
    if r < 0:
        raise OSError(-r, os.strerror(-r))
    return r


def install_knows_flags(uint32_t flags) -> bool:
    return cpsc.psc_install_knows_flags(flags)


def attach(int pidfd, const uint8_t[::1] program, uint32_t flags, int no_new_privs, bint leader_only, bint in_thread,
           uint64_t timeout_ns) -> tuple:
    cdef size_t n = 0, i
    cdef cpsc.psc_attach_options options
    cdef cpsc.psc_attach_result result
    cdef int r
    memset(&options, 0, sizeof(options))
    options.pidfd = pidfd
    options.insns = _insns(program, &n)
    options.len = n
    options.flags = flags
    options.no_new_privs = <cpsc.psc_no_new_privs>no_new_privs
    options.leader_only = leader_only
    options.in_thread = in_thread
    options.timeout_ns = timeout_ns
    with nogil:
        r = cpsc.psc_attach(&options, &result)
    try:
        threads = [
            (result.threads[i].tid, result.threads[i].filters_before, result.threads[i].filters_after, result.threads[i].listener)
            for i in range(result.n_threads)
        ]
        return (
            r, <int>result.refusal, result.tid, result.other_tracer, result.pid, result.listener, result.audit_arch,
            result.no_new_privs_set, result.suspended, result.stop_ns, result.residue, threads,
        )
    finally:
        cpsc.psc_attach_result_destroy(&result)
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


def syscall_kernel() -> tuple[str, str]:
    return cpsc.psc_syscall_kernel().decode(), cpsc.psc_syscall_headers().decode()


# ------------------------------------------------------------------ policies

cdef int _add_rule(cpsc.psc_policy *policy, tuple rule, cpsc.psc_term *terms) except? -1:
    """Convert (action, syscall index or number, arch or -1, terms) and add it; -errno."""
    cdef uint32_t action = rule[0]
    cdef int64_t call = rule[1]
    cdef int arch = rule[2]
    cdef size_t count = len(rule[3])
    if count > cpsc.PSC_MAX_TERMS:
        return -errno.E2BIG
    for i, (kind, arg, op, flags, a, b) in enumerate(rule[3]):
        terms[i] = cpsc.psc_term(kind, arg, op, flags, a, b)
    if arch < 0:
        return cpsc.psc_policy_add(policy, action, <int>call, terms, count)
    return cpsc.psc_policy_add_number(policy, action, <cpsc.psc_arch>arch, <uint32_t>call, terms, count)


cdef bytes _compile(cpsc.psc_policy *policy, int optimize, list weights):
    cdef cpsc.psc_compile_options options
    cdef cpsc.psc_weight *table = <cpsc.psc_weight *>malloc((len(weights) + 1) * sizeof(cpsc.psc_weight))
    cdef cpsc.sock_filter *insns = NULL
    cdef size_t n = 0
    cdef int r
    if table is NULL:
        raise MemoryError
    try:
        for i, (token, nr, weight) in enumerate(weights):
            table[i] = cpsc.psc_weight(token, nr, weight)
        options = cpsc.psc_compile_options(<cpsc.psc_optimize>optimize, table, len(weights))
        with nogil:
            r = cpsc.psc_policy_compile(policy, &options, &insns, &n)
        if r == -errno.E2BIG and n == 0:
            raise PolicyError("the policy cannot be compiled: the conditions of one syscall are too many together")
        if r == -errno.E2BIG:
            raise PolicyError(f"the program would have {n} instructions, and the kernel takes {cpsc.PSC_MAX_INSNS}")
        if r < 0:
            raise MemoryError if r == -errno.ENOMEM else PolicyError(f"the policy cannot be compiled: {os.strerror(-r)}")
        return (<const char *>insns)[:n * sizeof(cpsc.sock_filter)]
    finally:
        free(table)
        free(insns)


def compile_policy(
    uint32_t default, uint32_t bad_arch, int priority, bint low_words, arches, list rules, int optimize, list weights
) -> bytes:
    cdef cpsc.psc_policy *policy = NULL
    cdef cpsc.psc_term *terms = <cpsc.psc_term *>malloc(cpsc.PSC_MAX_TERMS * sizeof(cpsc.psc_term))
    try:
        if terms is NULL or cpsc.psc_policy_new(default, bad_arch, <cpsc.psc_priority>priority, &policy) < 0:
            raise MemoryError
        if low_words:
            cpsc.psc_policy_compare_low_words(policy)
        for arch in arches:
            if cpsc.psc_policy_add_arch(policy, <cpsc.psc_arch><int>arch) < 0:
                raise PolicyError(f"architecture {arch} cannot be added to the policy")
        for rule in rules:
            r = _add_rule(policy, rule, terms)
            if r < 0:
                raise MemoryError if r == -errno.ENOMEM else PolicyError(f"a rule is not valid: {rule!r}: {os.strerror(-r)}")
        return _compile(policy, optimize, weights)
    finally:
        cpsc.psc_policy_free(policy)
        free(terms)
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
