/* psc.h - the contract of libpsc, the C core of pyseccomp.
 *
 * Seccomp filters as objects: compile and check programs, keep them in file
 * descriptors, put them into other tasks, answer their notifications, ask the
 * kernel what is true.
 *
 * Conventions, for every function here:
 *   - int and ssize_t returns are >= 0 or -errno; errno itself means nothing.
 *   - Outputs come last, are named ret_*, and are written only on success
 *     (where a function also explains failures it says so).
 *   - File descriptors returned are CLOEXEC and owned by the caller.
 *   - Nothing here logs, exits, keeps process-global state or needs Python.
 *   - Functions that can wait say so; all others return at once.
 */
#ifndef PSC_H
#define PSC_H

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PSC_MUST_CHECK __attribute__((warn_unused_result))

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------ digest */

#define PSC_DIGEST_SIZE 32

/* SHA-256 of size bytes. Identifies a program; it is not a secret. */
void psc_digest(const void *data, size_t size, uint8_t ret_digest[PSC_DIGEST_SIZE]);

/* ---------------------------------------------------------------- validate */

/* Limits of the kernel: BPF_MAXINSNS for one program, and the path limit of
 * kernel/seccomp.c, which counts every filter of a chain as its length + 4. */
#define PSC_MAX_INSNS 4096
#define PSC_MAX_PATH_INSNS 32768

/* Why a program was refused, and where. index is SIZE_MAX for the whole
 * program (its length, say). reason is a static string. */
struct psc_program_fault {
	size_t index;
	const char *reason;
};

/* Check a program by every rule that the kernel has for seccomp's classic BPF
 * (net/core/filter.c bpf_check_classic, kernel/seccomp.c seccomp_check_filter).
 * 0: the kernel would load it. -EINVAL: it would not, and *ret_fault, unless
 * NULL, says why. */
PSC_MUST_CHECK int psc_program_check(const struct sock_filter *insns, size_t len,
				     struct psc_program_fault *ret_fault);

/* True if any return statement can answer SECCOMP_RET_USER_NOTIF: constants
 * are looked at, a "return A" counts as yes. */
bool psc_program_notifies(const struct sock_filter *insns, size_t len);

/* --------------------------------------------------------------- interpret */

/* What a program answers to one call. executed: instructions run, the return
 * included. */
struct psc_decision {
	uint32_t ret;
	uint32_t executed;
};

/* Run a program that psc_program_check() accepted, exactly as the kernel would.
 * -EINVAL: it was not such a program (ran off its end or past its length). */
PSC_MUST_CHECK int psc_program_run(const struct sock_filter *insns, size_t len,
				   const struct seccomp_data *data,
				   struct psc_decision *ret_decision);

/* The answer that the kernel takes out of two filters' answers: the one with
 * higher precedence by action; the first (newest) on a tie. */
uint32_t psc_decision_merge(uint32_t newer, uint32_t older);

/* ------------------------------------------------------------------ notify */

/* The ioctls of one listener, thin: fd is any listener. For all of them:
 *   -ENOENT       the call that was notified is over (its task was killed, or a
 *                 signal interrupted it); a normal race, nothing to answer.
 *   -ENOTTY, -EBADF   fd is not a listener. */

/* Check that this kernel's notifications fit the structures here. -EOPNOTSUPP:
 * they are larger (rebuild with newer headers), or there are none (before 5.0). */
PSC_MUST_CHECK int psc_notify_check_sizes(void);

/* Room for a notification; larger than the kernel's, which may grow. */
union psc_notif {
	struct seccomp_notif n;
	uint8_t room[128];
};

/* Wait for one notification of the listener. Zeroes *ret_n first: the kernel
 * answers EINVAL to a dirty buffer. -EINTR: signal, call again. -ENOENT: the
 * task died or was signalled in between, or no task is left: ask
 * psc_notify_poll() which. Waits, with no way to say how long. */
PSC_MUST_CHECK int psc_notify_receive(int fd, union psc_notif *ret_n);

/* Let the call run in the target. Not a policy decision: the target's memory
 * can change after it was looked at (seccomp_unotify(2)). -EINPROGRESS: already
 * answered. */
PSC_MUST_CHECK int psc_notify_continue(int fd, uint64_t id);

/* Make the call fail with error (1..4095), or return value. -EINPROGRESS: already
 * answered. -EINVAL: error is out of range. */
PSC_MUST_CHECK int psc_notify_error(int fd, uint64_t id, int error);
PSC_MUST_CHECK int psc_notify_value(int fd, uint64_t id, int64_t value);

/* 0: the notified call still waits. It is the only proof that target memory
 * read before, or a pidfd opened before, belonged to it. */
PSC_MUST_CHECK int psc_notify_valid(int fd, uint64_t id);

enum psc_addfd_flags {
	PSC_ADDFD_CLOEXEC = 1, /* the target's copy closes on exec */
	PSC_ADDFD_SEND = 2,    /* the number is the call's result, in the same step (5.14) */
};

/* Put a copy of source into the target's table, at number at, or at the lowest
 * free one if at is -1. Returns the number. Waits until the target has taken it.
 * -EINTR: signal; nothing was added. -EMFILE, -EBADF: target's limit, source.
 * -EINPROGRESS: already answered. */
PSC_MUST_CHECK int psc_notify_addfd(int fd, uint64_t id, int source, int at, unsigned int flags);

/* Wake supervisor and target on one CPU (6.6): without it a round trip costs
 * 1.4 to 11 times as much. -EOPNOTSUPP: older kernel. */
PSC_MUST_CHECK int psc_notify_sync_wakeup(int fd, bool on);

enum psc_notify_poll {
	PSC_POLL_PENDING = 1,
	PSC_POLL_GONE = 2, /* no task is left under the listener */
};

/* Ask what a listener has, until deadline (CLOCK_MONOTONIC ns; -1: for ever;
 * 0: at once). Returns psc_notify_poll bits, 0 at the deadline, -EINTR. */
PSC_MUST_CHECK int psc_notify_poll(int fd, int64_t deadline);

/* 1 if psc_notify_receive() returns when the last task exits (6.11), 0 if it
 * would wait for ever and one must poll before. Probes with a short-lived child
 * that nobody else can wait for; -errno if that child cannot be made. */
PSC_MUST_CHECK int psc_notify_probe_ends(void);

/* Read size bytes at addr of the task that made the call, then check that it was
 * still the one waiting. Returns the bytes read: fewer than size where the
 * target's mapping ends. -EFAULT: addr is not readable. -EPERM: ptrace access is
 * denied. -ESRCH: the task is in a pid namespace that this one cannot see. Can
 * wait for a page of the target. */
PSC_MUST_CHECK ssize_t psc_notify_read(int fd, const struct seccomp_notif *n, uint64_t addr,
				       void *ret_data, size_t size);

/* The same up to a NUL, which is not counted: ret_data then holds length bytes and
 * the NUL. -ENAMETOOLONG: none within size bytes. */
PSC_MUST_CHECK ssize_t psc_notify_read_string(int fd, const struct seccomp_notif *n, uint64_t addr,
					      char *ret_data, size_t size);

/* SIGKILL the process of the task that made the call, through a pidfd that is
 * proved to be its. Nothing else is ever signalled. -EPERM: may not;
 * -ESRCH: see psc_notify_read(). */
PSC_MUST_CHECK int psc_notify_kill(int fd, const struct seccomp_notif *n);

/* ------------------------------------------------------------------- inbox */

/* A set of listeners and the threads that receive from it.
 *
 * It does not own the listeners: remove one before closing it. Any function may
 * be called by any thread; psc_inbox_stop() by a signal handler too. A child made
 * by fork() must not use its parent's inbox. */
struct psc_inbox;

enum psc_answer_kind {
	PSC_HOLD,     /* not answered here: the caller of the loop gets it */
	PSC_CONTINUE, /* let it run (see psc_notify_continue) */
	PSC_ERROR,    /* fails with error */
	PSC_VALUE,    /* returns value */
	PSC_KILL,     /* its process gets SIGKILL; if that is denied, EPERM */
	PSC_ANSWER_KINDS,
};

struct psc_answer {
	enum psc_answer_kind kind;
	int error;
	int64_t value;
};

/* One notification as an inbox gives it. listener and key say where it came from:
 * answers to a listener that was removed meanwhile are -ENOENT. */
struct psc_event {
	union psc_notif notif;
	uint64_t key;
	uint32_t listener;
	uint32_t ticket;
	int64_t received_ns; /* CLOCK_MONOTONIC */
	struct psc_answer answer;
	bool due; /* answer is to be sent by the next psc_serve() */
};

/* Install an empty handler for a real-time signal that the process does not use,
 * the one process-wide thing an inbox needs: it interrupts receivers. Returns the
 * signal's number; -EBUSY: all are taken. Threads must not block it. */
PSC_MUST_CHECK int psc_wake_signal_install(void);

/* wake_signal: its handler must be without SA_RESTART. -EOPNOTSUPP: see
 * psc_notify_check_sizes(). */
PSC_MUST_CHECK int psc_inbox_new(int wake_signal, struct psc_inbox **ret_inbox);
void psc_inbox_free(struct psc_inbox *inbox);

/* Add a listener, and set its synchronous wake-up where the kernel has it.
 * -EEXIST: it is in already. -ENOTTY, -EBADF: not a listener. -ENOSPC: 16384 are in. */
PSC_MUST_CHECK int psc_inbox_add(struct psc_inbox *inbox, int fd);

/* Take a listener out. On return no thread uses its number any more. -ENOENT: it
 * is not in. -ETIMEDOUT: a receiver has the wake signal blocked. Waits (shortly)
 * for receivers to look up. */
PSC_MUST_CHECK int psc_inbox_remove(struct psc_inbox *inbox, int fd);

/* The numbers of live listeners, at most size of them; returns how many there are. */
size_t psc_inbox_listeners(struct psc_inbox *inbox, int *ret_fds, size_t size);

/* The epoll fd that all listeners are in (kept by the inbox; made on first use). */
PSC_MUST_CHECK int psc_inbox_epoll(struct psc_inbox *inbox);

/* Begin and end a stay: what psc_inbox_stop() ends. begin prepares *ret_event. */
void psc_inbox_begin(struct psc_inbox *inbox, struct psc_event *ret_event);
void psc_inbox_end(struct psc_inbox *inbox);

/* How many stays are under way. */
uint32_t psc_inbox_stays(struct psc_inbox *inbox);

/* End every stay under way: their receives answer -ECANCELED. With none under way
 * the next one ends at once. -ETIMEDOUT: a receiver has the wake signal blocked; it
 * will see the stop after its next notification. Waits (shortly) for receivers to
 * look up, but never for one that it interrupted itself as a signal handler. */
int psc_inbox_stop(struct psc_inbox *inbox);

/* Wait until deadline (as in psc_notify_poll) for the next notification.
 * -EINTR: signal, call again. -ETIMEDOUT. -ECANCELED: stopped. -ESHUTDOWN: no task
 * is left under any listener (they were taken out). -ENOTCONN: there never was one.
 *
 * One listener and no deadline: a single RECV. Otherwise it polls first; then only
 * one thread at a time waits, the others wait for their turn, because RECV would
 * block past a deadline if another took what poll saw. */
PSC_MUST_CHECK int psc_inbox_receive(struct psc_inbox *inbox, int64_t deadline, struct psc_event *event);

struct psc_stats;

/* Answer an event now; answers are not PSC_HOLD. stats may be NULL. The errors of
 * the psc_notify_ functions. */
PSC_MUST_CHECK int psc_event_answer(struct psc_inbox *inbox, struct psc_event *event,
				    const struct psc_answer *answer, struct psc_stats *stats);

/* psc_notify_valid, _addfd, _read and _read_string for an event. With PSC_ADDFD_SEND
 * the number counts as a value answered. */
PSC_MUST_CHECK int psc_event_valid(struct psc_inbox *inbox, const struct psc_event *event);
PSC_MUST_CHECK int psc_event_addfd(struct psc_inbox *inbox, const struct psc_event *event, int source, int at,
				   unsigned int flags, struct psc_stats *stats);
PSC_MUST_CHECK ssize_t psc_event_read(struct psc_inbox *inbox, const struct psc_event *event, uint64_t addr,
				      void *ret_data, size_t size);
PSC_MUST_CHECK ssize_t psc_event_read_string(struct psc_inbox *inbox, const struct psc_event *event,
					     uint64_t addr, char *ret_data, size_t size);

/* ------------------------------------------------------------------- serve */

/* What answers calls without asking anybody: (arch, syscall) to answer. Immutable,
 * so any number of loops may share one. */
struct psc_table;

struct psc_rule {
	uint32_t arch; /* AUDIT_ARCH_* */
	int nr;
	struct psc_answer answer;
};

/* The last rule for a syscall wins. -EINVAL: an error out of 1..4095 or an unknown
 * kind. */
PSC_MUST_CHECK int psc_table_new(const struct psc_rule *rules, size_t n, const struct psc_answer *otherwise,
				 struct psc_table **ret_table);
void psc_table_free(struct psc_table *table);

/* The answer of the table; never waits. */
struct psc_answer psc_table_decide(const struct psc_table *table, const struct seccomp_data *data);

/* Counters that loops fill and anybody reads at any time, without locks. */
#define PSC_LATENCY_BUCKETS 252

struct psc_stats_row {
	uint32_t arch;
	int nr;
	uint64_t answered[PSC_ANSWER_KINDS];
};

struct psc_stats_totals {
	uint64_t answered[PSC_ANSWER_KINDS];
	uint64_t gone;     /* targets that were gone before their answer */
	uint64_t uncounted; /* answers to syscalls beyond the 1024 that have a row */
};

PSC_MUST_CHECK int psc_stats_new(struct psc_stats **ret_stats);
void psc_stats_free(struct psc_stats *stats);
void psc_stats_sum(const struct psc_stats *stats, struct psc_stats_totals *ret_totals);

/* At most size rows, in no order; returns how many there are. */
size_t psc_stats_rows(const struct psc_stats *stats, struct psc_stats_row *ret_rows, size_t size);

/* Times from receiving to sending the answer. Bucket i counts those in
 * [psc_latency_floor(i), psc_latency_floor(i + 1)) ns; four buckets an octave. */
void psc_stats_latencies(const struct psc_stats *stats, uint64_t ret_counts[PSC_LATENCY_BUCKETS]);
uint64_t psc_latency_floor(unsigned int bucket);

/* Receive and answer by the table until something needs the caller:
 *   1            the table says hold: *event is the caller's. Put the answer into
 *                event->answer and set event->due, and the next psc_serve() sends it
 *                on its way to the next notification; or answer it otherwise.
 *   -ECANCELED   stopped.  -ESHUTDOWN  no task is left.  -EINTR  signal, call again.
 * event was prepared by psc_inbox_begin(). Waits; needs no lock and no Python, so
 * that it may answer a thread of its own process that holds any lock. */
PSC_MUST_CHECK int psc_serve(struct psc_inbox *inbox, const struct psc_table *table, struct psc_stats *stats,
			     struct psc_event *event);

#ifdef __cplusplus
}
#endif

#endif
