# Declarations of psc.h, one for one. (_core.pyx itself declares a few private functions of inbox.h and others.)
from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

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
    bint psc_program_is_foreign(const sock_filter *insns, size_t len, uint32_t audit_arch, uint32_t first, uint32_t last)

    # interpret
    cdef struct psc_decision:
        uint32_t ret
        uint32_t executed
    int psc_program_run(const sock_filter *insns, size_t len, const seccomp_data *data, psc_decision *ret_decision)
    bint psc_program_decides(const sock_filter *insns, size_t len, uint32_t arch, uint32_t nr, uint32_t *ret_ret)

    # query
    cdef struct psc_task_state:
        int pid
        int tid
        int tracer
        uint32_t uid
        uint32_t euid
        int seccomp
        int filters
        int no_new_privs
        char state
        char name[128]
    cdef struct psc_process_state:
        int pid
        uint64_t start_time
        uint32_t machine
        uint8_t elf_class
        bint kernel_thread
        bint alive
        size_t n_threads
        psc_task_state *threads
    bint psc_task_alive(const psc_task_state *task)
    int psc_query_thread(int pid, int tid, psc_task_state *ret_task)
    int psc_query_process(int pid, int pidfd, psc_process_state *ret_process)
    void psc_process_state_destroy(psc_process_state *process)

    # filter fd
    enum: PSC_FILTERFD_LOG
    enum: PSC_FILTERFD_WAIT_KILLABLE
    cdef struct psc_filter:
        sock_filter *insns
        size_t len
        uint32_t flags
        uint8_t digest[32]
    void psc_filter_destroy(psc_filter *filter)
    int psc_filterfd_create(const sock_filter *insns, size_t len, uint32_t flags, int *ret_fd)
    int psc_filterfd_read(int fd, psc_filter *ret_filter)

    # install
    cdef struct psc_dumped:
        sock_filter *insns
        size_t len
        uint32_t flags
        bint flags_known

    cdef struct psc_dump:
        psc_dumped *filters
        size_t n
        sock_filter *insns
        size_t n_insns
        int other_tracer

    int psc_dump_thread(int pidfd, int tgid, int tid, uint64_t timeout_ns, psc_dump *ret_dump)
    void psc_dump_destroy(psc_dump *dump)
    int psc_holder_events(int pid, int fd)
    int psc_holder_same(int pid, int fd, int other_pid, int other_fd)

    int psc_install(const sock_filter *insns, size_t len, uint32_t flags, int no_new_privs)
    bint psc_install_knows_flags(uint32_t flags)

    # attach
    cdef enum psc_refusal:
        PSC_REFUSED_KERNEL, PSC_REFUSED_GONE, PSC_REFUSED_KERNEL_THREAD, PSC_REFUSED_PERMISSION
        PSC_REFUSED_TRACED, PSC_REFUSED_UNSTOPPABLE, PSC_REFUSED_STRICT, PSC_REFUSED_FILTERED
        PSC_REFUSED_PRIVILEGE, PSC_REFUSED_NO_ROOM, PSC_REFUSED_LISTENER_STUCK, PSC_REFUSED_FAULT
        PSC_REFUSED_INJECTOR, PSC_REFUSED_PARTIAL, PSC_REFUSED_NO_LISTENER
        PSC_REFUSED_CALLER, PSC_REFUSED_OUTSIDE, PSC_REFUSED_CGROUP, PSC_REFUSED_DESCRIPTORS, PSC_REFUSED_FROZEN, PSC_REFUSED_LEADER_ENDED
    cdef enum psc_no_new_privs:
        PSC_NO_NEW_PRIVS_NEVER, PSC_NO_NEW_PRIVS_ALWAYS, PSC_NO_NEW_PRIVS_AUTO
    cdef struct psc_attach_options:
        int pidfd
        const sock_filter *insns
        size_t len
        uint32_t flags
        psc_no_new_privs no_new_privs
        bint leader_only
        bint foreign_arch
        bint break_calls
        bint in_thread
        uint64_t timeout_ns
    cdef struct psc_thread_outcome:
        int tid
        int filters_before
        int filters_after
        int listener
    cdef struct psc_attach_result:
        int listener
        int pid
        uint32_t audit_arch
        bint no_new_privs_set
        bint suspended
        uint64_t stop_ns
        size_t residue
        size_t n_threads
        psc_thread_outcome *threads
        psc_refusal refusal
        int tid
        int other_tracer
    int psc_attach(const psc_attach_options *options, psc_attach_result *ret_result)
    void psc_attach_result_destroy(psc_attach_result *result)
    cdef struct psc_group_options:
        psc_attach_options attach
        int cgroup
        bint skip
        bint by_parent
    cdef struct psc_group_member:
        int pid
        int pidfd
        int became
        int error
        psc_attach_result result
    cdef struct psc_group_result:
        size_t n
        size_t filtered
        psc_group_member *members
        Py_ssize_t blamed
        psc_refusal refusal
        uint64_t stop_ns
    int psc_attach_group(const psc_group_options *options, psc_group_result *ret_result)
    void psc_group_result_destroy(psc_group_result *result)
    struct psc_cgroup_watch:
        pass
    int psc_cgroup_watch_new(int dir, int stop, psc_cgroup_watch **ret_watch)
    void psc_cgroup_watch_free(psc_cgroup_watch *watch)
    int psc_cgroup_watch_next(psc_cgroup_watch *watch, bint wait, const int **ret_pids, size_t *ret_n)
    struct psc_trigger:
        pass
    int psc_trigger_arm(const psc_attach_options *options, psc_trigger **ret_trigger, psc_attach_result *ret_result)
    int psc_trigger_arm_fork(const psc_attach_options *options, bint process_too, psc_trigger **ret_trigger,
                             psc_attach_result *ret_result)
    int psc_trigger_next(psc_trigger *trigger, psc_attach_result *ret_result, int *ret_pidfd)
    void psc_trigger_disarm(psc_trigger *trigger)
    int psc_trigger_finish(psc_trigger *trigger, psc_attach_result *ret_result, int *ret_pidfd)
    # equivalence
    int psc_program_difference(const sock_filter *a, size_t a_len, const sock_filter *b, size_t b_len,
                               seccomp_data *ret_data)
    cdef struct sock_fprog:
        unsigned short len
        sock_filter *filter
    struct psc_interrupt:
        int (*check)(void *arg) noexcept nogil
        void *arg
    int psc_stack_difference(const sock_fprog *a, size_t a_count, const sock_fprog *b, size_t b_count,
                             const psc_interrupt *interrupt, seccomp_data *ret_data)

    # syscalls
    enum psc_arch:
        PSC_ARCH_X86_64, PSC_ARCH_X86, PSC_ARCH_X32, PSC_ARCH_ARM, PSC_ARCH_AARCH64, PSC_ARCH_LOONGARCH64
        PSC_ARCH_M68K, PSC_ARCH_MIPS, PSC_ARCH_MIPSEL, PSC_ARCH_MIPS64, PSC_ARCH_MIPSEL64, PSC_ARCH_MIPS64N32
        PSC_ARCH_MIPSEL64N32, PSC_ARCH_PARISC, PSC_ARCH_PARISC64, PSC_ARCH_PPC, PSC_ARCH_PPC64
        PSC_ARCH_PPC64LE, PSC_ARCH_RISCV64, PSC_ARCH_S390, PSC_ARCH_S390X, PSC_ARCH_SH, PSC_ARCH_SHEB
        PSC_ARCH_COUNT
    int psc_arch_native()
    int psc_arch_of(uint32_t token, uint32_t nr)
    int psc_arch_by_name(const char *name)
    const char *psc_arch_name(psc_arch arch)
    uint32_t psc_arch_token(psc_arch arch)
    bint psc_arch_big_endian(psc_arch arch)
    bint psc_arch_wide(psc_arch arch)
    int psc_syscall_id(const char *name)
    int psc_syscall_count()
    const char *psc_syscall_name_of_id(int id)
    int psc_syscall_number(psc_arch arch, int id)
    int psc_syscall_by_number(psc_arch arch, uint32_t nr)
    cdef struct psc_multiplexed:
        uint32_t nr
        uint32_t mask
        uint32_t call
    int psc_syscall_multiplexed(psc_arch arch, int id, psc_multiplexed *ret)
    const char *psc_syscall_kernel()
    const char *psc_syscall_headers()

    # policy
    enum: PSC_MAX_TERMS
    cdef struct psc_term:
        uint8_t kind
        uint8_t arg
        uint8_t op
        uint8_t flags
        uint64_t a
        uint64_t b
    enum psc_priority:
        PSC_PRIORITY_RESTRICTIVE, PSC_PRIORITY_FIRST
    enum psc_optimize:
        PSC_OPTIMIZE_SIZE, PSC_OPTIMIZE_DEPTH, PSC_OPTIMIZE_PROFILE
    cdef struct psc_weight:
        uint32_t token
        uint32_t nr
        double weight
    cdef struct psc_span:
        uint32_t token, first, last
        int arg
        bint low
        uint64_t lo, hi
    cdef struct psc_compile_options:
        psc_optimize optimize
        const psc_weight *weights
        size_t weight_count
        bint part
        bint others
        const psc_span *spans
        size_t span_count
    cdef struct psc_policy:
        pass
    int psc_policy_new(uint32_t default_action, uint32_t bad_arch, psc_priority priority, psc_policy **ret_policy)
    void psc_policy_free(psc_policy *policy)
    int psc_policy_add_arch(psc_policy *policy, psc_arch arch)
    void psc_policy_compare_low_words(psc_policy *policy)
    int psc_policy_add(psc_policy *policy, uint32_t action, int syscall_id, const psc_term *terms, size_t count)
    void psc_policy_separate_multiplexed(psc_policy *policy)
    int psc_policy_add_on(psc_policy *policy, uint32_t action, psc_arch arch, int syscall_id, const psc_term *terms, size_t count)
    int psc_policy_add_number(psc_policy *policy, uint32_t action, psc_arch arch, uint32_t nr, const psc_term *terms,
                              size_t count)
    int psc_policy_compile(psc_policy *policy, const psc_compile_options *options, sock_filter **ret_insns,
                           size_t *ret_len)
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
        PSC_ADD_FD
        PSC_ANSWER_KINDS

    cdef struct psc_answer:
        psc_answer_kind kind
        int error
        int64_t value
        int fd
        int at
        bint cloexec

    cdef struct psc_event:
        psc_notif notif
        uint64_t key
        uint32_t listener
        uint32_t ticket
        int64_t received_ns
        psc_answer answer
        bint due
        uint64_t refused
        seccomp_notif refused_last

    cdef struct psc_inbox:
        pass
    cdef struct psc_stats:
        pass
    cdef struct psc_table:
        pass

    int psc_notify_probe_ends()
    enum:
        PSC_POLL_PENDING
        PSC_POLL_GONE

    int psc_notify_poll(int fd, int64_t deadline)
    int psc_notify_receive(int fd, psc_notif *ret_n)
    int psc_notify_respond(int fd, uint64_t id, int64_t value, int error, uint32_t flags)
    int psc_notify_addfd(int fd, uint64_t id, int source, int at, unsigned int flags)
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
    cdef struct psc_turn:
        pass
    unsigned int psc_rseq_suspend()
    void psc_rseq_resume(unsigned int size)
    int psc_turn_new(psc_inbox *inbox, int64_t ns, psc_turn **ret_turn)
    void psc_turn_free(psc_turn *turn)
    void psc_turn_begin(psc_turn *turn)
    int psc_turn_receive(psc_turn *turn, psc_event *event)
    int psc_event_answer(psc_inbox *inbox, psc_event *event, const psc_answer *answer, psc_stats *stats)
    int psc_event_valid(psc_inbox *inbox, const psc_event *event)
    int psc_event_addfd(psc_inbox *inbox, psc_event *event, int source, int at, unsigned int flags,
                        psc_stats *stats)
    ssize_t psc_event_read(psc_inbox *inbox, const psc_event *event, uint64_t addr, void *ret_data, size_t size)
    ssize_t psc_event_read_string(psc_inbox *inbox, const psc_event *event, uint64_t addr, char *ret_data, size_t size)

    # rules
    enum psc_string_kind:
        PSC_STRING_EXACT
    cdef struct psc_string:
        psc_string_kind kind
        const char *text
        size_t length
    cdef struct psc_rule:
        uint32_t arch
        int nr
        psc_answer answer
        const psc_term *terms
        size_t n_terms
        const psc_string *strings
        size_t n_strings
        const int *processes
        size_t n_processes
        psc_answer unreadable
    int psc_table_new(const psc_rule *rules, size_t n, const psc_answer *otherwise, psc_table **ret_table)
    void psc_table_refuse_own(psc_table *table, const psc_answer *answer)
    bint psc_table_holds(const psc_table *table)
    int psc_table_keep_memory(psc_table *table)
    psc_answer psc_table_decide(const psc_table *table, const seccomp_notif *n)
    bint psc_glob_match(const char *pattern, size_t pattern_length, const char *text, size_t length)
    void psc_table_free(psc_table *table)

    enum: PSC_LATENCY_BUCKETS
    cdef struct psc_stats_row:
        uint32_t arch
        int nr
        uint64_t answered[6]
    cdef struct psc_stats_totals:
        uint64_t answered[6]
        uint64_t gone
        uint64_t uncounted
        uint64_t pending
    int psc_stats_new(psc_stats **ret_stats)
    void psc_stats_free(psc_stats *stats)
    void psc_stats_sum(const psc_stats *stats, psc_stats_totals *ret_totals)
    size_t psc_stats_rows(const psc_stats *stats, psc_stats_row *ret_rows, size_t size)
    void psc_stats_latencies(const psc_stats *stats, uint64_t *ret_counts)
    uint64_t psc_latency_floor(unsigned int bucket)
    cdef struct psc_record:
        pass
    cdef struct psc_ring:
        pass
    int psc_ring_new(size_t capacity, psc_ring **ret_ring)
    void psc_ring_free(psc_ring *ring)
    size_t psc_ring_capacity(const psc_ring *ring)
    bint psc_ring_write(psc_ring *ring, const psc_record *record)
    size_t psc_ring_read(psc_ring *ring, psc_record *ret_records, size_t size)
    size_t psc_ring_waiting(const psc_ring *ring)
    uint64_t psc_ring_dropped(const psc_ring *ring)
    void psc_stats_keep_records(psc_stats *stats, psc_ring *ring)
    int psc_serve(psc_inbox *inbox, const psc_table *table, psc_stats *stats, psc_event *event)

    cdef struct psc_crew:
        pass
    int psc_crew_new(psc_inbox *inbox, const psc_table *table, psc_stats *stats, unsigned int n, psc_crew **ret_crew)
    void psc_crew_free(psc_crew *crew)
    int psc_serve_with(psc_crew *crew, psc_event *event)
    unsigned int psc_crew_serving(const psc_crew *crew)

    # gate
    enum psc_gate_state:
        PSC_GATE_NONE, PSC_GATE_INACTIVE, PSC_GATE_ACTIVE, PSC_GATE_PAUSED
    cdef struct psc_page:
        pass
    int psc_filterfd_create_owned(const sock_filter *insns, size_t len, uint32_t flags, int *ret_fd, psc_page **ret_page)
    int psc_page_map(int fd, psc_page **ret_page)
    void psc_page_unmap(psc_page *page)
    bint psc_page_writable(const psc_page *page)
    psc_gate_state psc_page_state(const psc_page *page, unsigned int slot)
    psc_gate_state psc_page_summary(const psc_page *page)
    int psc_page_set(psc_page *page, unsigned int slot, psc_gate_state state)
    int psc_page_take_slot(psc_page *page, psc_gate_state state)
    void psc_page_ring(const psc_page *page)
    int psc_park_wake(const psc_page *page, int channel, int pidfd, int timeout_ms)
    cdef struct psc_park:
        pass
    cdef struct psc_park_options:
        int fd
        int channel
        unsigned int slot
        const sock_filter *insns
        size_t len
        uint32_t flags
        int no_new_privs
        int64_t deadline
        bint kill
    int psc_park_start(const psc_park_options *options, psc_park **ret_park)
    int psc_park_state_of(const psc_park *park)
    int psc_park_result(const psc_park *park)
    void psc_park_end(psc_park *park)
    enum: PSC_MAX_GATE_TRIGGERS
    cdef struct psc_gate_trigger:
        uint32_t arch
        int nr
    int psc_gate_program(const sock_filter *insns, size_t len, const psc_gate_trigger *triggers, size_t n_triggers,
                         sock_filter *ret_insns, size_t *ret_len, psc_program_fault *ret_fault)
    size_t psc_gate_hard_program(const sock_filter *insns, size_t len, sock_filter *ret_insns)
    cdef struct psc_gate:
        pass
    int psc_gate_new(psc_page *page, const sock_filter *insns, size_t len, psc_inbox *inbox, psc_gate **ret_gate)
    void psc_gate_free(psc_gate *gate)
    int psc_gate_leave(psc_gate *gate)
    cdef struct psc_gate_care:
        bint guarded
        psc_answer answer
        int64_t deadline
        bint kill
        int pidfd
    int psc_gate_add(psc_gate *gate, int listener, unsigned int slot, const psc_gate_trigger *triggers, size_t n_triggers,
                     const psc_gate_care *care)
    int psc_gate_install(psc_gate *gate, const sock_filter *insns, size_t len, uint32_t flags, int no_new_privs,
                         unsigned int slot, const psc_gate_trigger *triggers, size_t n_triggers, const psc_gate_care *care)
    int psc_gate_remove(psc_gate *gate, int listener)
    # journal, guardian
    cdef struct psc_journal:
        pass
    int psc_journal_new(int *ret_fd, psc_journal **ret_journal)
    void psc_journal_free(psc_journal *journal)
    int psc_inbox_keep_journal(psc_inbox *inbox, psc_journal *journal)
    enum: PSC_GUARDIAN_FDS
    cdef struct psc_guardian_outcome:
        int tid
        int filters_before
        int filters_after
        bint listener
    cdef struct psc_guardian_message:
        uint32_t kind
        uint32_t serial
        uint32_t ward
        int error
        uint32_t state
        bint guarded
        bint kill
        bint inject
        bint leader_only
        bint foreign_arch
        psc_answer answer
        int64_t deadline
        uint64_t timeout_ns
        uint32_t flags
        uint32_t no_new_privs
        uint32_t refusal
        int pid
        int tid
        int other_tracer
        uint64_t stop_ns
        uint64_t residue
        bint no_new_privs_set
        bint suspended
        bint common_listener
        bint more
        uint32_t n_outcomes
        psc_guardian_outcome outcomes[63]
        int manager
        uint32_t wards
    int psc_guardian_start(const char *path, int *ret_socket)
    int psc_guardian_send(int socket, const psc_guardian_message *message, const int *fds, size_t n)
    int psc_guardian_receive(int socket, psc_guardian_message *ret_message, int *ret_fds)
    void psc_guardian_drop(int socket)

    # trace
    enum: PSC_TRACE_VALUES
    cdef struct psc_trace_spec:
        uint32_t arch
        int nr
        bint begins
        bint ends
        bint silent
        int8_t watch
        uint8_t capture[6]
    cdef struct psc_trace_row:
        uint32_t arch
        int32_t nr
        uint64_t count
        uint64_t timed
        uint64_t until_next_ns
        uint64_t longest_ns
    cdef struct psc_trace_thread:
        int32_t tid
        uint32_t arch
        int32_t nr
        uint64_t count
        int64_t since_ns
    cdef struct psc_trace:
        pass
    int psc_trace_new(const psc_trace_spec *specs, size_t n, uint32_t snap, size_t ring, psc_trace **ret_trace)
    void psc_trace_free(psc_trace *trace)
    int psc_trace_run(psc_trace *trace, psc_inbox *inbox, psc_event *event)
    size_t psc_trace_pending(const psc_trace *trace)
    void psc_trace_take(psc_trace *trace, void *ret_records, size_t size)
    int psc_trace_wait(psc_trace *trace, int timeout_ms)
    void psc_trace_deaf(psc_trace *trace)
    size_t psc_trace_rows(const psc_trace *trace, psc_trace_row *ret_rows, size_t size)
    size_t psc_trace_threads(const psc_trace *trace, psc_trace_thread *ret_threads, size_t size)
    int psc_trace_values(const psc_trace *trace, uint32_t arch, int nr, uint32_t *ret_values)

cdef extern from "errno.h" nogil:
    enum: ECANCELED  # libc.errno of Cython lacks it
    # features
    cdef enum psc_feature:
        PSC_FEATURE_FILTER, PSC_FEATURE_UNPRIVILEGED, PSC_FEATURE_FILTER_COUNT, PSC_FEATURE_LOG
        PSC_FEATURE_TSYNC, PSC_FEATURE_TSYNC_ESRCH, PSC_FEATURE_NOTIFY, PSC_FEATURE_CONTINUE
        PSC_FEATURE_ADDFD, PSC_FEATURE_ADDFD_SEND, PSC_FEATURE_WAIT_KILLABLE, PSC_FEATURE_SYNC_WAKE_UP
        PSC_FEATURE_LISTENER_ENDS, PSC_FEATURE_PIDFD_OPEN, PSC_FEATURE_PIDFD_GETFD, PSC_FEATURE_PIDFD_THREAD
        PSC_FEATURE_PTRACE_CHILD, PSC_FEATURE_PTRACE_OTHER, PSC_FEATURE_CAP_SYS_ADMIN
        PSC_FEATURE_CAP_SYS_PTRACE, PSC_FEATURE_SUSPEND_SECCOMP, PSC_FEATURE_GET_FILTER, PSC_FEATURE_PROC_MEM
        PSC_FEATURE_MEMFD_SEALS, PSC_FEATURE_I386, PSC_FEATURE_X32, PSC_FEATURE_COUNT
    cdef struct psc_probe:
        int error
        int signal
        int64_t value
    int psc_feature_probe(psc_feature feature, psc_probe *ret_probe)

# What this package itself does not use, for those who embed the core.
cdef extern from "psc.h" nogil:
    enum: PSC_MAX_PATH_INSNS
    enum: PSC_TASK_NAME_SIZE
    enum: PSC_X32_BIT
    enum: PSC_COMPARE_32
    enum: PSC_COMPARE_SIGNED
    enum: PSC_GATE_SLOTS
    enum psc_op:
        PSC_OP_NE
        PSC_OP_LT
        PSC_OP_LE
        PSC_OP_EQ
        PSC_OP_GE
        PSC_OP_GT
        PSC_OP_MASKED_EQ
        PSC_OP_RANGE
    enum psc_term_kind:
        PSC_TERM_COMPARE
        PSC_TERM_NOT
        PSC_TERM_AND
        PSC_TERM_OR
    enum psc_guardian_kind:
        PSC_GUARDIAN_HELLO
        PSC_GUARDIAN_WATCH
        PSC_GUARDIAN_ACTIVATE
        PSC_GUARDIAN_LISTEN
        PSC_GUARDIAN_RELEASE
        PSC_GUARDIAN_BYE
        PSC_GUARDIAN_INFO
        PSC_GUARDIAN_RECLAIM
        PSC_GUARDIAN_DONE
        PSC_GUARDIAN_ACTED
        PSC_GUARDIAN_WARD
    enum psc_ward_state:
        PSC_WARD_INACTIVE
        PSC_WARD_ACTIVE
        PSC_WARD_KILLED
        PSC_WARD_GONE
        PSC_WARD_FAILED
    uint32_t psc_decision_merge(uint32_t newer, uint32_t older)
    int psc_query_parse_status(const char *text, size_t len, psc_task_state *ret_task)
    int psc_query_parse_stat(const char *text, size_t len, uint64_t *ret_start_time, uint64_t *ret_flags)
    int psc_notify_check_sizes()
    int psc_notify_continue(int fd, uint64_t id)
    int psc_notify_error(int fd, uint64_t id, int error)
    int psc_notify_value(int fd, uint64_t id, int64_t value)
    int psc_notify_valid(int fd, uint64_t id)
    int psc_notify_sync_wakeup(int fd, bint on)
    ssize_t psc_notify_read(int fd, const seccomp_notif *n, uint64_t addr, void *ret_data, size_t size)
    ssize_t psc_notify_read_string(int fd, const seccomp_notif *n, uint64_t addr, char *ret_data, size_t size)
    int psc_notify_kill(int fd, const seccomp_notif *n)
    int psc_journal_adopt(int fd, psc_journal **ret_journal)
    size_t psc_journal_orphans(const psc_journal *journal)
    int psc_guardian_run(int socket)
    void psc_page_store(psc_page *page, unsigned int slot, psc_gate_state state)

cdef extern from "linux/seccomp.h" nogil:
    enum: SECCOMP_RET_KILL_PROCESS
    enum: SECCOMP_RET_KILL_THREAD
    enum: SECCOMP_RET_TRAP
    enum: SECCOMP_RET_ERRNO
    enum: SECCOMP_RET_USER_NOTIF
    enum: SECCOMP_RET_TRACE
    enum: SECCOMP_RET_LOG
    enum: SECCOMP_RET_ALLOW

# opening
cdef extern from "psc.h" nogil:
    cdef struct psc_opening:
        int object
        int parent
        int socket
        int process
        bint creates
        uint64_t flags
        uint64_t timeout_ns
        char name[256]
    int psc_opener_start(const char *path, int *ret_socket)
    int psc_open_begin(int opener, psc_inbox *inbox, const psc_event *event, uint64_t timeout_ns, psc_opening *ret_opening)
    int psc_opening_within(int opener, const psc_opening *opening, int directory)
    int psc_directory_open(const char *path, int *ret_fd)
    int psc_open_finish(psc_opening *opening, int *ret_fd)
    void psc_opening_destroy(psc_opening *opening)

    # results
    cdef struct psc_result:
        int tid
        int32_t nr
        int32_t error
    cdef struct psc_results:
        pass
    int psc_results_open(uint64_t tracepoint, const int *tids, size_t n, psc_results **ret_results)
    size_t psc_results_drain(psc_results *results, psc_result *ret_results, size_t size)
    uint64_t psc_results_lost(const psc_results *results)
    void psc_results_free(psc_results *results)
