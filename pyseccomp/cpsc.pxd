# Declarations of psc.h, one for one; nothing else declares C of ours.
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "psc.h" nogil:
    cdef struct sock_filter:
        uint16_t code
        uint8_t jt
        uint8_t jf
        uint32_t k

    cdef struct seccomp_data:
        int nr
        uint32_t arch
        uint64_t instruction_pointer
        uint64_t args[6]

    # digest
    enum: PSC_DIGEST_SIZE
    void psc_digest(const void *data, size_t size, uint8_t *ret_digest)

    # validate
    enum: PSC_MAX_INSNS
    cdef struct psc_program_fault:
        size_t index
        const char *reason
    int psc_program_check(const sock_filter *insns, size_t len, psc_program_fault *ret_fault)
    bint psc_program_notifies(const sock_filter *insns, size_t len)

    # interpret
    cdef struct psc_decision:
        uint32_t ret
        uint32_t executed
    int psc_program_run(const sock_filter *insns, size_t len, const seccomp_data *data, psc_decision *ret_decision)

    # ---- notify, inbox, serve
    cdef struct seccomp_notif:
        uint64_t id
        uint32_t pid
        uint32_t flags
        seccomp_data data

    cdef union psc_notif:
        seccomp_notif n

    enum psc_addfd_flags:
        PSC_ADDFD_CLOEXEC
        PSC_ADDFD_SEND

    enum psc_answer_kind:
        PSC_HOLD
        PSC_CONTINUE
        PSC_ERROR
        PSC_VALUE
        PSC_KILL
        PSC_ANSWER_KINDS

    cdef struct psc_answer:
        psc_answer_kind kind
        int error
        int64_t value

    cdef struct psc_event:
        psc_notif notif
        uint64_t key
        uint32_t listener
        uint32_t ticket
        int64_t received_ns
        psc_answer answer
        bint due

    cdef struct psc_inbox:
        pass
    cdef struct psc_stats:
        pass
    cdef struct psc_table:
        pass

    int psc_notify_probe_ends()
    int psc_wake_signal_install()
    int psc_inbox_new(int wake_signal, psc_inbox **ret_inbox)
    void psc_inbox_free(psc_inbox *inbox)
    int psc_inbox_add(psc_inbox *inbox, int fd)
    int psc_inbox_remove(psc_inbox *inbox, int fd)
    size_t psc_inbox_listeners(psc_inbox *inbox, int *ret_fds, size_t size)
    int psc_inbox_epoll(psc_inbox *inbox)
    void psc_inbox_begin(psc_inbox *inbox, psc_event *ret_event)
    void psc_inbox_end(psc_inbox *inbox)
    uint32_t psc_inbox_stays(psc_inbox *inbox)
    int psc_inbox_stop(psc_inbox *inbox)
    int psc_inbox_receive(psc_inbox *inbox, int64_t deadline, psc_event *event)
    int psc_event_answer(psc_inbox *inbox, psc_event *event, const psc_answer *answer, psc_stats *stats)
    int psc_event_valid(psc_inbox *inbox, const psc_event *event)
    int psc_event_addfd(psc_inbox *inbox, const psc_event *event, int source, int at, unsigned int flags,
                        psc_stats *stats)
    ssize_t psc_event_read(psc_inbox *inbox, const psc_event *event, uint64_t addr, void *ret_data, size_t size)
    ssize_t psc_event_read_string(psc_inbox *inbox, const psc_event *event, uint64_t addr, char *ret_data, size_t size)

    cdef struct psc_rule:
        uint32_t arch
        int nr
        psc_answer answer
    int psc_table_new(const psc_rule *rules, size_t n, const psc_answer *otherwise, psc_table **ret_table)
    void psc_table_free(psc_table *table)

    enum: PSC_LATENCY_BUCKETS
    cdef struct psc_stats_row:
        uint32_t arch
        int nr
        uint64_t answered[5]
    cdef struct psc_stats_totals:
        uint64_t answered[5]
        uint64_t gone
        uint64_t uncounted
    int psc_stats_new(psc_stats **ret_stats)
    void psc_stats_free(psc_stats *stats)
    void psc_stats_sum(const psc_stats *stats, psc_stats_totals *ret_totals)
    size_t psc_stats_rows(const psc_stats *stats, psc_stats_row *ret_rows, size_t size)
    void psc_stats_latencies(const psc_stats *stats, uint64_t *ret_counts)
    uint64_t psc_latency_floor(unsigned int bucket)
    int psc_serve(psc_inbox *inbox, const psc_table *table, psc_stats *stats, psc_event *event)

cdef extern from "errno.h" nogil:
    enum: ECANCELED  # libc.errno of Cython lacks it
