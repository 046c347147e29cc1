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
 *   - Nothing here logs, exits or needs Python. The state of the process that it keeps: the handler of
 *     psc_wake_signal_install(), the list of parked threads, and that a filter was loaded here.
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

/* Does the program have no rules for an architecture, of the calls numbered first to last: all get
 * the one answer for unknown architectures, which is not to allow, while others get others? */
bool psc_program_is_foreign(const struct sock_filter *insns, size_t len, uint32_t audit_arch, uint32_t first, uint32_t last);

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

/* Whether a program that psc_program_check() accepted answers this call by its number
 * and architecture alone, whatever the arguments and the instruction pointer are. True:
 * *ret_ret is that answer. False: it looks at more, or was not such a program. */
bool psc_program_decides(const struct sock_filter *insns, size_t len, uint32_t arch, uint32_t nr, uint32_t *ret_ret);

/* The answer that the kernel takes out of two filters' answers: the one with
 * higher precedence by action; the first (newest) on a tie. */
uint32_t psc_decision_merge(uint32_t newer, uint32_t older);

/* ------------------------------------------------------------------- query
 *
 * What a task carries, from /proc at the time of the call. Needs no right over
 * the target but to see it in /proc (the option hidepid of the mount). */

#define PSC_TASK_NAME_SIZE 128

/* One thread. pid is its process (thread group). */
struct psc_task_state {
	pid_t pid;
	pid_t tid;
	pid_t tracer;	    /* 0: nobody traces it */
	uid_t uid;	    /* real */
	uid_t euid;	    /* effective */
	int seccomp;	    /* SECCOMP_MODE_*; -1: the kernel has no seccomp */
	int filters;	    /* filters in its chain; -1: not told (before Linux 5.10) */
	int no_new_privs;   /* -1: not told (before Linux 4.10) */
	uint64_t cap_effective; /* bits of CAP_*, in its own user namespace */
	char state;	    /* letter of proc(5): R S D T t Z X I P */
	char name[PSC_TASK_NAME_SIZE]; /* any bytes but NUL */
};

/* True unless the thread is a zombie or dead: nothing runs in it any more. */
bool psc_task_alive(const struct psc_task_state *task);

/* Parse the text of a /proc/.../status file, len bytes of anything. -EBADMSG:
 * not such a text. For callers that have read the file themselves. */
PSC_MUST_CHECK int psc_query_parse_status(const char *text, size_t len,
					  struct psc_task_state *ret_task);

/* Parse the text of a /proc/PID/stat file: start time in clock ticks since boot
 * and the kernel's PF_* flags. -EBADMSG: not such a text. */
PSC_MUST_CHECK int psc_query_parse_stat(const char *text, size_t len, uint64_t *ret_start_time,
					uint64_t *ret_flags);

/* Read one thread of a process; pid may itself be the number of any of its
 * threads. -ESRCH: no such thread (any more). -EACCES: it exists, but /proc is
 * mounted with hidepid. -EOPNOTSUPP: no procfs on /proc. -EXDEV: the one there
 * belongs to another pid namespace, its numbers mean other tasks. -EBADMSG: the
 * kernel's text was not understood. */
PSC_MUST_CHECK int psc_query_thread(pid_t pid, pid_t tid, struct psc_task_state *ret_task);

/* A process with its threads, the leader first (a dead leader too). */
struct psc_process_state {
	pid_t pid;
	uint64_t start_time; /* clock ticks since boot; with pid it names the process for ever */
	uint32_t machine;    /* e_machine of its executable, 0: not readable by us */
	uint8_t elf_class;   /* ELFCLASS32 or 64 of the same; EM_X86_64 with 32 is x32 */
	bool kernel_thread;
	bool alive;	     /* one thread at least is */
	size_t n_threads;
	struct psc_task_state *threads;
};

/* Read a process: by pid, or if pidfd >= 0 by that (pid is then ignored). All is
 * read below one /proc/PID directory handle, which stays with its process: a
 * number used again is never taken for the old one. Threads born during the
 * reading are included as far as a bounded number of scans finds them; threads
 * that end meanwhile may be missing. Free with psc_process_state_destroy().
 * Errors as above, and -EINVAL: pid is a thread that leads no process; -EBADF:
 * pidfd is none; -ESRCH: it has been reaped. */
PSC_MUST_CHECK int psc_query_process(pid_t pid, int pidfd, struct psc_process_state *ret_process);

/* Frees what psc_query_process() gave. NULL and zeroed are fine. */
void psc_process_state_destroy(struct psc_process_state *process);
/* --------------------------------------------------------------- filter fd
 *
 * A filter that is attached nowhere: a memfd, sealed against writing, growing
 * and shrinking. Page 0 has the header and the gate word, the program follows.
 *
 *        0  magic "PSCFILT", version, instructions, flags, 0, SHA-256 of the program
 *     2048  gate words of delayed activation (see gate), 0 while there is none
 *     4096  struct sock_filter[len]
 *
 * Whoever has the fd can read and attach; nobody can write. */

#define PSC_FILTERFD_LOG (1u << 0)	     /* SECCOMP_FILTER_FLAG_LOG */
#define PSC_FILTERFD_WAIT_KILLABLE (1u << 1) /* SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, if it notifies */
#define PSC_FILTERFD_SPEC_ALLOW (1u << 2)    /* SECCOMP_FILTER_FLAG_SPEC_ALLOW */

struct psc_filter {
	struct sock_filter *insns;
	size_t len;
	uint32_t flags; /* PSC_FILTERFD_* */
	uint8_t digest[PSC_DIGEST_SIZE];
};

/* Free what psc_filterfd_read() gave. NULL and zeroed are fine. */
void psc_filter_destroy(struct psc_filter *filter);

/* Make a filter fd of a checked program. -EINVAL: the kernel would refuse the
 * program, or flags are unknown. -EOPNOTSUPP: no F_SEAL_FUTURE_WRITE (before
 * Linux 5.1). */
PSC_MUST_CHECK int psc_filterfd_create(const struct sock_filter *insns, size_t len, uint32_t flags, int *ret_fd);

/* Copy a filter out of an fd from anywhere. Nothing is believed: the seals, the
 * size, the header, the digest and the program are checked, on the copy.
 * -EBADF, -EMEDIUMTYPE: not a filter fd (no memfd, wrong magic or version).
 * -EPERM: a seal is missing, so it could change. -EBADMSG: size, header or
 * digest are damaged. -EINVAL: the kernel would refuse the program. -ENOMEM. */
PSC_MUST_CHECK int psc_filterfd_read(int fd, struct psc_filter *ret_filter);

/* ----------------------------------------------------------------- install */

/* Put a program in force for the calling thread, or with SECCOMP_FILTER_FLAG_TSYNC
 * for all threads of the process. flags: SECCOMP_FILTER_FLAG_*; with NEW_LISTENER
 * the return value is the listener, CLOEXEC. no_new_privs: 1 set it first, 0 do
 * not, -1 only if the kernel asks for it. Never blocks; errors as seccomp(2) has
 * them: -EACCES (no_new_privs or CAP_SYS_ADMIN needed), -EBUSY (a live listener
 * is in the chain), -ESRCH (a thread has other filters), -ENOMEM (the chain is
 * too long). */
PSC_MUST_CHECK int psc_install(const struct sock_filter *insns, size_t len, uint32_t flags, int no_new_privs);

/* True if this kernel knows the SECCOMP_FILTER_FLAG_* given. */
bool psc_install_knows_flags(uint32_t flags);

/* -------------------------------------------------------------------- dump
 *
 * The programs of a thread, as they were loaded. */
struct psc_dumped {
	struct sock_filter *insns; /* within psc_dump's */
	size_t len;
	uint32_t flags;	  /* SECCOMP_FILTER_FLAG_LOG or 0 */
	bool flags_known; /* Linux 4.16 tells */
};

struct psc_dump {
	struct psc_dumped *filters; /* the oldest first */
	size_t n;
	struct sock_filter *insns;
	size_t n_insns;
	pid_t other_tracer; /* of -EBUSY */
};

/* Stop one thread of a process for a moment and copy. Release *ret_dump with
 * psc_dump_destroy(). -EACCES: that takes CAP_SYS_ADMIN in the first user namespace and
 * a caller without filters. -EPERM: not permitted to trace it. -EBUSY: other_tracer holds
 * it. -ESRCH. -ETIMEDOUT: it did not stop. -EMEDIUMTYPE: a filter that is no classic BPF.
 * -EIO: a kernel without CONFIG_CHECKPOINT_RESTORE. -E2BIG. */
PSC_MUST_CHECK int psc_dump_thread(int pidfd, pid_t tgid, pid_t tid, uint64_t timeout_ns, struct psc_dump *ret_dump);

/* NULLs are fine. */
void psc_dump_destroy(struct psc_dump *dump);

/* ----------------------------------------------------------------- holders
 *
 * A listener that another process has open. */

/* What poll(2) says of it now, its own events only: POLLIN a notification that nobody
 * received, POLLOUT one that nobody answered, POLLHUP no task is under it. -EPERM: we may not
 * look (the right to trace). -EBADF, -ESRCH. */
PSC_MUST_CHECK int psc_holder_events(pid_t pid, int fd);

/* 1: both are the same open file. 0: they are not. -EPERM, -ENOSYS (no kcmp(2)). */
PSC_MUST_CHECK int psc_holder_same(pid_t pid, int fd, pid_t other_pid, int other_fd);

/* ------------------------------------------------------------------ attach
 *
 * Put a program into another process, which knows nothing of it: all threads
 * are stopped, one of them makes the seccomp() call, all go on as if nothing had
 * been. Either every thread is filtered or, when the kernel or a check refuses,
 * none and nothing is changed (but see PSC_REFUSED_PARTIAL). */

enum psc_refusal {
	PSC_REFUSED_KERNEL,	     /* seccomp() itself said no: see the errno */
	PSC_REFUSED_GONE,	     /* no such process, a zombie, or died meanwhile */
	PSC_REFUSED_KERNEL_THREAD,
	PSC_REFUSED_PERMISSION,	     /* ptrace or pidfd_getfd not permitted */
	PSC_REFUSED_TRACED,	     /* other_tracer holds thread tid */
	PSC_REFUSED_UNSTOPPABLE,     /* thread tid did not stop in time */
	PSC_REFUSED_STRICT,	     /* in strict mode: no more calls but four */
	PSC_REFUSED_FILTERED,	     /* has filters, and they cannot be suspended */
	PSC_REFUSED_PRIVILEGE,	     /* no_new_privs is needed and not allowed */
	PSC_REFUSED_NO_ROOM,	     /* no unused executable memory for the code */
	PSC_REFUSED_LISTENER_STUCK,  /* the program lets nobody close the listener */
	PSC_REFUSED_FAULT,	     /* the injected call could not be executed */
	PSC_REFUSED_INJECTOR,	     /* the injector was killed, or could not be made */
	PSC_REFUSED_PARTIAL,	     /* some threads have it: see the outcomes */
	PSC_REFUSED_NO_LISTENER,     /* in force, but its listener could not be fetched */
	/* Of many at once, see psc_attach_group(): */
	PSC_REFUSED_CALLER,	     /* the calling process is one of them */
	PSC_REFUSED_OUTSIDE,	     /* one belongs to another pid namespace, and has no number here */
	PSC_REFUSED_CGROUP,	     /* the directory is none of a cgroup, or cannot be read */
	PSC_REFUSED_DESCRIPTORS,     /* the caller or the system is short of something: see the errno (-EMFILE of the
					caller's own RLIMIT_NOFILE, -ENFILE, -ENOMEM, -ENOBUFS); of one process, too */
	/* Of one or many: */
	PSC_REFUSED_FROZEN,	     /* in a frozen cgroup of v2, where no injected call is made */
	PSC_REFUSED_LEADER_ENDED,    /* before Linux 6.9 no other thread's listener can be fetched */
	PSC_REFUSED_NO_THREAD,	     /* what the kernel will say takes a dry run, and no thread can be made for it there */
	PSC_REFUSED_RESTART,	     /* thread tid resumes its call by restart_syscall, which the program forbids:
					filters cannot be suspended (-EACCES), or it is in a group-stop (-EAGAIN) */
	PSC_REFUSED_WORKER,	     /* threads differ in filters, and tid is an io_uring worker, where nothing can be injected */
	PSC_REFUSED_FOREIGN,	     /* the program has no rules for thread tid's architecture, see audit_arch */
	PSC_REFUSED_UNKNOWN,	     /* the call was begun, and its end not seen: the filter may be in force, or come into force */
	PSC_REFUSED_REPLACED,	     /* a filter is in force, but another program: the target's memory was written meanwhile */
	PSC_REFUSED_SHARED,	     /* process other_tracer shares its memory (-EBUSY) or descriptors (-EMLINK), and is not
					stopped with it; -ENOSYS: where the listener would be in its table, this cannot be excluded */
};

enum psc_no_new_privs { PSC_NO_NEW_PRIVS_NEVER, PSC_NO_NEW_PRIVS_ALWAYS, PSC_NO_NEW_PRIVS_AUTO };

struct psc_attach_options {
	int pidfd;		/* the process */
	const struct sock_filter *insns;
	size_t len;
	uint32_t flags;		/* SECCOMP_FILTER_FLAG_LOG, _WAIT_KILLABLE_RECV */
	enum psc_no_new_privs no_new_privs;
	bool leader_only;	/* the main thread alone, not the others */
	bool foreign_arch;	/* attach though the program has no rules for the target's architecture */
	bool break_calls;	/* attach even where PSC_REFUSED_RESTART would refuse: the call fails, or kills, as the program says */
	bool in_thread;		/* inject from a thread of ours, not a process (YAMA scope 1) */
	uint64_t timeout_ns;	/* for all of it; an injection that has begun is given a second at least */
};

struct psc_thread_outcome {
	pid_t tid;
	int filters_before, filters_after; /* -1: not known (born since, gone, or before 5.10) */
	int listener;			   /* its own, if threads could not share one; else -1 */
};

struct psc_attach_result {
	int listener;		/* of all threads; -1: none (yours to close) */
	pid_t pid;
	uint32_t audit_arch;	/* ABI of the injected calls */
	bool no_new_privs_set;	/* by us; it stays, on failure too */
	bool suspended;		/* earlier filters were suspended for it */
	uint64_t stop_ns;	/* from the first interrupt to the last release */
	size_t residue;		/* bytes that had to stay: of anonymous memory, of code in unused room. On failure too */
	size_t n_threads;
	struct psc_thread_outcome *threads;

	/* On failure, and only these: */
	enum psc_refusal refusal;
	pid_t tid, other_tracer;
};

/* Attach. Blocks for the injection, at most timeout_ns; or two seconds from the first injected
 * call on, if that is later: each of the two halves of a commit is given one.
 * *ret_result is written on failure too: refusal, tid and other_tracer, and for
 * PSC_REFUSED_PARTIAL all of it. Release it with psc_attach_result_destroy(). */
PSC_MUST_CHECK int psc_attach(const struct psc_attach_options *options, struct psc_attach_result *ret_result);

/* Frees the list of threads; the listeners are the caller's. */
void psc_attach_result_destroy(struct psc_attach_result *result);

/* Attach to many: a process and its descendants, or all processes of a cgroup (v1 or v2)
 * and of those below it. All are stopped, until a look at all of them finds nobody new; all
 * are checked, those with filters of their own by a trial that the kernel answers; then
 * all get it, each its own listener. On a refusal none does, unless skip is set. */
struct psc_group_options {
	struct psc_attach_options attach; /* pidfd: the root of the tree; -1 with cgroup. leader_only must be false */
	int cgroup;			  /* its directory, or -1 */
	bool skip;			  /* leave processes that refuse as they are */
	bool by_parent;			  /* look for children in all of /proc, as where the kernel lists none */
};

enum psc_became {
	PSC_BECAME_NOTHING,  /* nothing was done to it, because another refused */
	PSC_BECAME_FILTERED,
	PSC_BECAME_GONE,     /* it died meanwhile */
	PSC_BECAME_REFUSED,  /* it was left as it was */
	PSC_BECAME_FAILED,   /* it has it in part, or without its listener, or will when it runs: see the refusal */
};

struct psc_group_member {
	pid_t pid;
	int pidfd;   /* yours to close; -1: it was let go before there was one */
	enum psc_became became;
	int error;   /* 0 or -errno, with result.refusal */
	struct psc_attach_result result;
};

struct psc_group_result {
	size_t n, filtered;
	struct psc_group_member *members; /* in the order they were found */
	ssize_t blamed;	   /* on failure: the member that refused, -1: none in particular */
	enum psc_refusal refusal;
	uint64_t stop_ns;  /* from the first interrupt to the last release */
};

/* Blocks as psc_attach() does; timeout_ns is for all to stop. 0: all that did not die
 * (skip: nor refuse) have it, one at least. On failure *ret_result is written too;
 * filtered is 0 then, unless one failed in the commit itself, whom nothing had refused before. With cgroup,
 * /proc must be that of the caller's pid namespace: psc_query_process() of itself tells. */
PSC_MUST_CHECK int psc_attach_group(const struct psc_group_options *options, struct psc_group_result *ret_result);

/* Frees the lists; pidfds and listeners are the caller's. */
void psc_group_result_destroy(struct psc_group_result *result);

/* Watches which processes enter a cgroup (v1 or v2) or one below it. */
struct psc_cgroup_watch;

/* dir: its directory; stop: becomes readable to end a wait. Both are duplicated. */
PSC_MUST_CHECK int psc_cgroup_watch_new(int dir, int stop, struct psc_cgroup_watch **ret_watch);
void psc_cgroup_watch_free(struct psc_cgroup_watch *watch);

/* The processes that the last look did not show, all of them the first time; valid until the next call.
 * wait: look every two milliseconds, and when inotify tells a write to cgroup.procs, until there are some, or a
 * second has passed (none then: time to look for numbers that were used again). -ECANCELED: stop is readable.
 * -ENODEV: the cgroup was removed. Other errors: its files cannot be read. */
PSC_MUST_CHECK int psc_cgroup_watch_next(struct psc_cgroup_watch *watch, bool wait, const pid_t **ret_pids, size_t *ret_n);
/* ---------------------------------------------------------------- trigger
 *
 * Attach when a process executes another program: in force from the first
 * instruction of that; or when it forks. Until then nothing is changed; the process is
 * seized by a watcher, a process of its own that sleeps until a thread is born, a signal
 * comes or an execve or fork succeeds. The watcher outlives us. If it is killed itself, and when
 * the filter cannot be put into the new program, the process is killed. */

struct psc_trigger;

/* Arm. options->pidfd: the process, or -1: the next process that the calling thread
 * forks, until psc_trigger_finish(). leader_only and in_thread must be false. Waits
 * for all threads to be seized, at most timeout_ns. On failure nothing is changed,
 * and *ret_result says why as in psc_attach(). */
PSC_MUST_CHECK int psc_trigger_arm(const struct psc_attach_options *options, struct psc_trigger **ret_trigger,
				   struct psc_attach_result *ret_result);

/* Arm for forks: the children that the process makes from now on, by whichever of its
 * threads and calls, get the filter before their first instruction. process_too: at the
 * first of them the process itself gets it too, before that call returns there, and the
 * trigger ends. A child that cannot be filtered is killed. Else as psc_trigger_arm(). */
PSC_MUST_CHECK int psc_trigger_arm_fork(const struct psc_attach_options *options, bool process_too,
					struct psc_trigger **ret_trigger, struct psc_attach_result *ret_result);

/* Of psc_trigger_arm_fork(): wait for the next child, one thread at a time. 0: it is filtered, *ret_result as of
 * psc_attach(), *ret_pidfd (reaped or not) is yours to close. 1: the trigger has ended, there is none. Else:
 * it was killed (PSC_REFUSED_GONE: died by itself), *ret_result says why; *ret_pidfd is -1 if it is not known. */
PSC_MUST_CHECK int psc_trigger_next(struct psc_trigger *trigger, struct psc_attach_result *ret_result, int *ret_pidfd);

/* Let the process go untouched, unless it has executed by now. Does not wait. Any thread may call it. */
void psc_trigger_disarm(struct psc_trigger *trigger);

/* Wait for the end, free the trigger. 0: attached, as psc_attach(). -ECANCELED:
 * disarmed. -ESRCH with PSC_REFUSED_GONE: it ended before. Else: it was killed, and
 * *ret_result says why. *ret_pidfd, yours to close, is the process, reaped or not; -1
 * if none was forked. Both are written in any case. */
PSC_MUST_CHECK int psc_trigger_finish(struct psc_trigger *trigger, struct psc_attach_result *ret_result,
				      int *ret_pidfd);

/* ------------------------------------------------------------- equivalence */

/* A long analysis calls check(arg) from time to time, some milliseconds apart at most. A result
 * other than 0 ends the analysis with -EINTR. */
struct psc_interrupt {
	int (*check)(void *arg);
	void *arg;
};

/* Compare two programs over all inputs. 0: they answer every call alike, in what
 * the kernel makes of the answers. 1: they do not, and *ret_data is a call that
 * tells them apart. -EINVAL: one does not pass psc_program_check(). -E2BIG: too
 * hard to decide (arithmetic on arguments); compilers do not emit such. The work and
 * the memory are bounded: some ten seconds and 100 MiB at most. */
PSC_MUST_CHECK int psc_program_difference(const struct sock_filter *a, size_t a_len, const struct sock_filter *b,
					  size_t b_len, struct seccomp_data *ret_data);

/* The same for two stacks of filters, the oldest first: the kernel asks all and
 * takes the strictest action, of equal ones the newest (psc_decision_merge).
 * interrupt may be NULL. */
PSC_MUST_CHECK int psc_stack_difference(const struct sock_fprog *a, size_t a_count, const struct sock_fprog *b,
					size_t b_count, const struct psc_interrupt *interrupt,
					struct seccomp_data *ret_data);

/* ---------------------------------------------------------------- syscalls */

/* The ABIs a program can serve. x32 shares its AUDIT_ARCH token with x86_64
 * and is told apart by bit 30 of the number. The order is that of the
 * generated table; values are not stable between releases, names are. */
enum psc_arch {
	PSC_ARCH_X86_64, PSC_ARCH_X86, PSC_ARCH_X32, PSC_ARCH_ARM, PSC_ARCH_AARCH64, PSC_ARCH_LOONGARCH64,
	PSC_ARCH_M68K, PSC_ARCH_MIPS, PSC_ARCH_MIPSEL, PSC_ARCH_MIPS64, PSC_ARCH_MIPSEL64, PSC_ARCH_MIPS64N32,
	PSC_ARCH_MIPSEL64N32, PSC_ARCH_PARISC, PSC_ARCH_PARISC64, PSC_ARCH_PPC, PSC_ARCH_PPC64, PSC_ARCH_PPC64LE,
	PSC_ARCH_RISCV64, PSC_ARCH_S390, PSC_ARCH_S390X, PSC_ARCH_SH, PSC_ARCH_SHEB,
	PSC_ARCH_COUNT
};

#define PSC_X32_BIT 0x40000000U

/* The ABI this library was compiled for, -EOPNOTSUPP where it has no table. */
PSC_MUST_CHECK int psc_arch_native(void);
/* The ABI that a call with this seccomp_data.arch and number belongs to; -ENOENT. */
PSC_MUST_CHECK int psc_arch_of(uint32_t token, uint32_t nr);
/* By its own name ("x86_64") or libseccomp's ("X86_64" of SCMP_ARCH_X86_64); -ENOENT. */
PSC_MUST_CHECK int psc_arch_by_name(const char *name);
const char *psc_arch_name(enum psc_arch arch);
uint32_t psc_arch_token(enum psc_arch arch);
bool psc_arch_big_endian(enum psc_arch arch);
/* True if its registers, and so its arguments, have 64 bits. */
bool psc_arch_wide(enum psc_arch arch);

/* A name's index, common to all ABIs (0 .. psc_syscall_count() - 1); -ENOENT. */
PSC_MUST_CHECK int psc_syscall_id(const char *name);
int psc_syscall_count(void);
/* NULL if there is no such index. */
const char *psc_syscall_name_of_id(int id);
/* The number of a call on an ABI (x32's carry PSC_X32_BIT); -ENOENT if it has none there. */
PSC_MUST_CHECK int psc_syscall_number(enum psc_arch arch, int id);
/* The index of the call with this number on an ABI; -ENOENT. Of two names of one number: the first by alphabet. */
PSC_MUST_CHECK int psc_syscall_by_number(enum psc_arch arch, uint32_t nr);
/* A call that an ABI can also make through socketcall(2) or ipc(2): number nr, with
 * a first argument of which the kernel looks at these bits of the low word only. */
struct psc_multiplexed {
	uint32_t nr;
	uint32_t mask;
	uint32_t call;
};
/* How an ABI multiplexes the call with this index; -ENOENT if it does not. */
PSC_MUST_CHECK int psc_syscall_multiplexed(enum psc_arch arch, int id, struct psc_multiplexed *ret);
/* The kernel whose calls the tables hold, and the releases of the headers they were made from. */
const char *psc_syscall_kernel(void);
const char *psc_syscall_headers(void);

/* ------------------------------------------------------------------ policy */

/* Comparisons of one argument; the numbers up to 7 are libseccomp's. */
enum psc_op {
	PSC_OP_NE = 1, PSC_OP_LT, PSC_OP_LE, PSC_OP_EQ, PSC_OP_GE, PSC_OP_GT,
	PSC_OP_MASKED_EQ, /* (arg & a) == b */
	PSC_OP_RANGE,     /* a <= arg <= b */
};

enum psc_term_kind { PSC_TERM_COMPARE, PSC_TERM_NOT, PSC_TERM_AND, PSC_TERM_OR };

/* Look at the low 32 bits only: what the kernel does with int arguments. */
#define PSC_COMPARE_32 1U
/* Order as signed numbers (of 64 bits, or of 32 with PSC_COMPARE_32). */
#define PSC_COMPARE_SIGNED 2U

/* One element of a condition in postfix order: a comparison, or an operator on
 * the one or two conditions before it. What is left in the end is ANDed. */
struct psc_term {
	uint8_t kind;
	uint8_t arg;
	uint8_t op;
	uint8_t flags;
	uint64_t a, b;
};

#define PSC_MAX_TERMS 4096

/* Which of several matching rules of one call decides. RESTRICTIVE: the action
 * that the kernel ranks highest, the later rule on a tie, just as if each
 * rule were a filter of its own, installed in this order. FIRST: the first. */
enum psc_priority { PSC_PRIORITY_RESTRICTIVE, PSC_PRIORITY_FIRST };

struct psc_policy;

/* actions are whole SECCOMP_RET words. bad_arch answers calls of ABIs not added
 * (x32 calls, too, unless x32 was added). */
PSC_MUST_CHECK int psc_policy_new(uint32_t default_action, uint32_t bad_arch, enum psc_priority priority,
				  struct psc_policy **ret_policy);
void psc_policy_free(struct psc_policy *policy);

/* -EEXIST: it is there. -EDOM: byte order differs from that of the others. */
PSC_MUST_CHECK int psc_policy_add_arch(struct psc_policy *policy, enum psc_arch arch);

/* On 32-bit ABIs compare only the low word of each argument, whose high word the
 * kernel leaves 0 there (x32, whose registers have 64 bits, counts as one of
 * them). As libseccomp does; without it all comparisons are of 64 bits. */
void psc_policy_compare_low_words(struct psc_policy *policy);

/* Rules that name a call (not: a number) hold where an ABI makes it through
 * socketcall(2) or ipc(2), too. The arguments are in memory there, so a rule with
 * conditions may match or not: such a call then gets the strictest action of all
 * that could come out. This switches that off: one number, one call. */
void psc_policy_separate_multiplexed(struct psc_policy *policy);

/* A rule for the call with this index (psc_syscall_id), on every ABI that has
 * it. -EINVAL: a term has an argument above 5, an unknown op, a value that does
 * not fit, or the postfix order is broken. */
PSC_MUST_CHECK int psc_policy_add(struct psc_policy *policy, uint32_t action, int syscall_id,
				  const struct psc_term *terms, size_t count);

/* The same on one ABI. */
PSC_MUST_CHECK int psc_policy_add_on(struct psc_policy *policy, uint32_t action, enum psc_arch arch, int syscall_id,
				     const struct psc_term *terms, size_t count);

/* The same by number, on one ABI; x32's numbers carry PSC_X32_BIT (-EINVAL). Number -1
 * (UINT32_MAX), with which a tracer skips a call, is x86_64's. */
PSC_MUST_CHECK int psc_policy_add_number(struct psc_policy *policy, uint32_t action, enum psc_arch arch, uint32_t nr,
					 const struct psc_term *terms, size_t count);

enum psc_optimize { PSC_OPTIMIZE_SIZE, PSC_OPTIMIZE_DEPTH, PSC_OPTIMIZE_PROFILE };

/* How often a call is made: seccomp_data.arch, .nr. */
struct psc_weight {
	uint32_t token;
	uint32_t nr;
	double weight;
};

/* Calls from first to last (inclusive) of an ABI's token, all of them or (arg >= 0)
 * those whose argument, or its low word, is lo to hi. */
struct psc_span {
	uint32_t token, first, last;
	int arg;
	bool low;
	uint64_t lo, hi;
};

struct psc_compile_options {
	enum psc_optimize optimize;
	const struct psc_weight *weights; /* for PROFILE, sorted by token, then nr */
	size_t weight_count;

	/* For one program of a stack (part): it decides the calls in spans, or with
	 * others all that are not in them, and allows the rest. */
	bool part;
	bool others;
	const struct psc_span *spans;
	size_t span_count;
};

/* Compile into a program of the fewest instructions (SIZE), or of the fewest
 * executed instructions, averaged over numbers (DEPTH) or over weights (PROFILE).
 * The caller frees *ret_insns. options NULL: SIZE. -E2BIG: it would have more
 * than PSC_MAX_INSNS instructions (*ret_len says how many; 0 if the rules'
 * conditions together were too many to hold). -EINVAL: a span is empty or has no
 * such argument. Not for one policy in two threads at a time. */
PSC_MUST_CHECK int psc_policy_compile(struct psc_policy *policy, const struct psc_compile_options *options,
				      struct sock_filter **ret_insns, size_t *ret_len);
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

/* Answer with the kernel's own fields (struct seccomp_notif_resp). -EINVAL: flags
 * that it does not know, or error or value beside FLAG_CONTINUE. */
PSC_MUST_CHECK int psc_notify_respond(int fd, uint64_t id, int64_t value, int error, uint32_t flags);

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
 * -EINTR: signal; nothing was added. With PSC_ADDFD_SEND signals wait. -EMFILE, -EBADF: target's limit, source.
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
	PSC_ADD_FD,   /* returns the number of a copy of fd; if that fails it fails with that errno */
	PSC_ANSWER_KINDS,
};

struct psc_answer {
	enum psc_answer_kind kind;
	int error;
	int64_t value; /* with PSC_HOLD: whatever the caller wants to find there */

	/* PSC_ADD_FD. fd must stay open as long as the answer may be given. */
	int fd;
	int at; /* the number in the target, -1: the lowest free one */
	bool cloexec;
};

/* One notification as an inbox gives it. listener and key say where it came from:
 * answers to a listener that was removed meanwhile are -ENOENT. */
struct psc_event {
	union psc_notif notif;
	uint64_t key;
	uint32_t listener;
	uint32_t ticket;
	int64_t received_ns; /* CLOCK_MONOTONIC, 0: not timed */
	struct psc_answer answer;
	bool due; /* answer is to be sent by the next psc_serve() */
	pid_t foreign; /* the task that was last seen to be of another process, and when */
	uint64_t foreign_ticks;
	uint64_t refused; /* calls that psc_table_refuse_own() made be answered; the last one. Who tells of it sets it to 0 */
	struct seccomp_notif refused_last;
	uint32_t slot; /* of the journal, 0: none */
	uint8_t untimed; /* so many more need no received_ns: see psc_stats_latencies() */
	uint8_t bucket;	 /* of latencies, the last one that was timed */
	bool pending;	 /* counted as such by the statistics */
	uint16_t text_len;
	char text[64]; /* what a rule read of the target, its first text_len bytes */
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

/* Take the area of restartable sequences, rseq(2), that the C library registered from the
 * calling thread, for as long as it serves: to keep it current costs 1.5 % of a notified
 * call. suspend returns what resume, on the same thread, is to be given; 0: there is none. */
PSC_MUST_CHECK unsigned int psc_rseq_suspend(void);
void psc_rseq_resume(unsigned int size);

/* Turns: to receive without a time-out but, a thread of the core sees to that, not for
 * longer than ns after psc_turn_begin(). For one receiver in an event loop. The inbox
 * must outlive it. free ends the thread; it may be called in a child made by fork(). */
struct psc_turn;

PSC_MUST_CHECK int psc_turn_new(struct psc_inbox *inbox, int64_t ns, struct psc_turn **ret_turn);
void psc_turn_free(struct psc_turn *turn);
void psc_turn_begin(struct psc_turn *turn);

/* psc_inbox_receive() within the turn. 1: the event, and the turn is over. -ETIMEDOUT:
 * it is over, or other threads receive with a deadline. */
PSC_MUST_CHECK int psc_turn_receive(struct psc_turn *turn, struct psc_event *event);

struct psc_stats;

/* Answer an event now; answers are not PSC_HOLD. stats may be NULL. The errors of
 * the psc_notify_ functions. */
PSC_MUST_CHECK int psc_event_answer(struct psc_inbox *inbox, struct psc_event *event,
				    const struct psc_answer *answer, struct psc_stats *stats);

/* psc_notify_valid, _addfd, _read and _read_string for an event. With PSC_ADDFD_SEND
 * the number counts as a value answered. */
PSC_MUST_CHECK int psc_event_valid(struct psc_inbox *inbox, const struct psc_event *event);
PSC_MUST_CHECK int psc_event_addfd(struct psc_inbox *inbox, struct psc_event *event, int source, int at,
				   unsigned int flags, struct psc_stats *stats);
PSC_MUST_CHECK ssize_t psc_event_read(struct psc_inbox *inbox, const struct psc_event *event, uint64_t addr,
				      void *ret_data, size_t size);
PSC_MUST_CHECK ssize_t psc_event_read_string(struct psc_inbox *inbox, const struct psc_event *event,
					     uint64_t addr, char *ret_data, size_t size);

/* ------------------------------------------------------------------- rules */

/* What answers calls without asking anybody. Its rules are immutable, so any number of
 * loops may share one. */
struct psc_table;

enum psc_string_kind { PSC_STRING_EXACT, PSC_STRING_PREFIX, PSC_STRING_GLOB };

/* The longest string that is read, its NUL included: the kernel's PATH_MAX. */
#define PSC_STRING_MAX 4096

/* Something asked of a string in the target's memory; length excludes the NUL, and
 * text has none. */
struct psc_string {
	enum psc_string_kind kind;
	const char *text;
	size_t length;
};

/* A kind of psc_term for rules alone: argument arg points to a string that fulfils
 * number a of the rule's strings. */
#define PSC_TERM_STRING 4

/* The answer to a call of an ABI that fulfils all terms, made by a thread of one of
 * the processes (their pids as this process sees them; none: of any). unreadable is
 * the answer if the terms cannot be decided because a string could not be read:
 * no memory there, no permission, or no end within PSC_STRING_MAX bytes. No more of
 * a string is read than the decision takes. */
struct psc_rule {
	uint32_t arch; /* AUDIT_ARCH_* */
	int nr;
	struct psc_answer answer;
	const struct psc_term *terms;
	size_t n_terms;
	const struct psc_string *strings;
	size_t n_strings;
	const pid_t *processes;
	size_t n_processes;
	struct psc_answer unreadable; /* not looked at without terms and processes */
};

/* Of several rules for a call the last one that matches wins. All is copied. -EINVAL:
 * an error out of 1..4095, an unknown kind, terms that are not in order, a string too
 * long. -E2BIG: more than PSC_MAX_TERMS terms in one rule. */
PSC_MUST_CHECK int psc_table_new(const struct psc_rule *rules, size_t n, const struct psc_answer *otherwise,
				 struct psc_table **ret_table);
void psc_table_free(struct psc_table *table);

/* From now on hold is no answer for threads of the calling process: psc_serve() gives
 * them this answer, counts it in event->refused and goes on. For callers that would
 * need a lock of such a thread to answer it. */
void psc_table_refuse_own(struct psc_table *table, const struct psc_answer *answer);

/* True if any of its answers is to hold. */
bool psc_table_holds(const struct psc_table *table);

/* From now on psc_serve() keeps the memory of tasks open whose strings it reads again and
 * again, 64 at most, which makes such a read a quarter cheaper; before loops use the table,
 * and not across a fork(). It must be told of every exec and exit on the machine: -EPERM:
 * that takes CAP_BPF and CAP_PERFMON, and a thread without a filter. -EOPNOTSUPP: the
 * kernel has no such tracepoints, or /proc is another pid namespace's. What bpf(2) says otherwise. All is as before then. */
PSC_MUST_CHECK int psc_table_keep_memory(struct psc_table *table);

/* The answer of the table. Where rules ask for strings it reads memory of the task,
 * which can wait for a page of the target; otherwise it never waits. What was read, and
 * the process that the task was found in, are believable only if the call still waits
 * afterwards: every way to answer checks that. */
struct psc_answer psc_table_decide(const struct psc_table *table, const struct seccomp_notif *n);

/* Match all of text by a pattern: * stands for any bytes, ? for one, [a-z] and [!a-z]
 * for one that is listed or not. A slash is a byte like others, a [ without ] stands
 * for itself. Takes at most a step for each byte of text times each of pattern. */
bool psc_glob_match(const char *pattern, size_t pattern_length, const char *text, size_t length);

/* ------------------------------------------------------------------- serve */

/* Counters that loops fill and anybody reads at any time, without locks. An effect that
 * is seen is counted: an answer counts from just before it is sent, and no more if it
 * turns out to reach nobody. (Its record comes into the ring just afterwards.) */
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
	uint64_t pending;   /* held for the caller of psc_serve(), and not answered yet */
};

PSC_MUST_CHECK int psc_stats_new(struct psc_stats **ret_stats);
void psc_stats_free(struct psc_stats *stats);
void psc_stats_sum(const struct psc_stats *stats, struct psc_stats_totals *ret_totals);

/* At most size rows, in no order; returns how many there are. */
size_t psc_stats_rows(const struct psc_stats *stats, struct psc_stats_row *ret_rows, size_t size);

/* Times from receiving to sending the answer. Bucket i counts those in
 * [psc_latency_floor(i), psc_latency_floor(i + 1)) ns; four buckets an octave. While
 * a loop answers in less than 10 us it times one call in eight (a look at the clock
 * costs 2 % of a call), and the others count like the last one timed. */
void psc_stats_latencies(const struct psc_stats *stats, uint64_t ret_counts[PSC_LATENCY_BUCKETS]);
uint64_t psc_latency_floor(unsigned int bucket);

/* A ring of records, one for each call that was answered and counted, for a reader that
 * comes now and then. */
struct psc_record {
	uint64_t id;
	int64_t time_ns; /* CLOCK_MONOTONIC, received */
	uint64_t args[6];
	int64_t value; /* if kind is PSC_VALUE */
	uint64_t latency_ns; /* until it was answered */
	uint32_t pid; /* the thread's */
	int32_t nr;
	uint32_t arch;
	int32_t error; /* if kind is PSC_ERROR */
	uint16_t kind; /* psc_answer_kind */
	uint16_t gone; /* 1: the call was over before its answer */
	uint16_t text_len;
	uint16_t reserved;
	char text[64]; /* as in psc_event */
};

struct psc_ring;

/* capacity, 1 to 4194304, is rounded up to a power of two of at least 2. -EINVAL. */
PSC_MUST_CHECK int psc_ring_new(size_t capacity, struct psc_ring **ret_ring);
void psc_ring_free(struct psc_ring *ring);
size_t psc_ring_capacity(const struct psc_ring *ring);

/* By any number of threads, without ever waiting. False: no room; it was counted. */
bool psc_ring_write(struct psc_ring *ring, const struct psc_record *record);

/* The oldest records, at most size, in the order of writing; they leave the ring. One
 * thread at a time. Returns how many. */
size_t psc_ring_read(struct psc_ring *ring, struct psc_record *ret_records, size_t size);

/* How many are in it, at most; how many found no room. */
size_t psc_ring_waiting(const struct psc_ring *ring);
uint64_t psc_ring_dropped(const struct psc_ring *ring);

/* From now on what is counted in stats goes into the ring too. The ring must live as long
 * as the stats. Every call is timed then. */
void psc_stats_keep_records(struct psc_stats *stats, struct psc_ring *ring);

/* Receive and answer by the table until something needs the caller:
 *   1            the table says hold: *event is the caller's. Put the answer into
 *                event->answer and set event->due, and the next psc_serve() sends it
 *                on its way to the next notification; or answer it otherwise.
 *   -ECANCELED   stopped.  -ESHUTDOWN  no task is left.  -EINTR  signal, call again.
 * event was prepared by psc_inbox_begin(). Waits; needs no lock and no Python, so
 * that it may answer a thread of its own process that holds any lock. */
PSC_MUST_CHECK int psc_serve(struct psc_inbox *inbox, const struct psc_table *table, struct psc_stats *stats,
			     struct psc_event *event);

/* ----------------------------------------------------------------- journal
 *
 * The notifications that were received and not answered yet, in a memfd that
 * outlives their receiver: whoever else holds the listeners can answer them. */
struct psc_journal;

/* Make an empty one. The fd maps it elsewhere; the journal does not own it. */
PSC_MUST_CHECK int psc_journal_new(int *ret_fd, struct psc_journal **ret_journal);

/* Take a journal over from a process that is dead: what it has received and not
 * answered are orphans. -EMEDIUMTYPE: fd is no journal. Not while anybody uses it. */
PSC_MUST_CHECK int psc_journal_adopt(int fd, struct psc_journal **ret_journal);
void psc_journal_free(struct psc_journal *journal);

/* How many orphans there are, at most: calls that are over meanwhile count. */
size_t psc_journal_orphans(const struct psc_journal *journal);

/* Keep a journal of what the inbox receives from now on; it must live as long as
 * the inbox. Its orphans are received first, under the listeners that are in. With
 * 4096 unanswered ones psc_inbox_receive() says -ENOBUFS: answer some. -EEXIST: it has one.
 * -ETIMEDOUT: a receiver has the wake signal blocked. Waits (shortly) for receivers to look up. */
PSC_MUST_CHECK int psc_inbox_keep_journal(struct psc_inbox *inbox, struct psc_journal *journal);

/* ---------------------------------------------------------------- guardian
 *
 * A process that outlives the manager of one filter. It holds what must not be
 * lost with the manager (targets' pidfds, listeners, the filter, the journal),
 * sleeps while the manager lives, and acts when that dies, or at a deadline.
 *
 * Manager and guardian talk by struct psc_guardian_message over a seqpacket
 * socket, file descriptors beside it. Every request is answered, in order, by
 * PSC_GUARDIAN_DONE with its serial. The manager's death is the end of its process,
 * or of the connection without PSC_GUARDIAN_BYE. */

enum psc_guardian_kind {
	/* requests                fds */
	PSC_GUARDIAN_HELLO = 1, /* filter fd, journal, the manager's pidfd; a bound listening socket if named */
	PSC_GUARDIAN_WATCH,	/* pidfd: a ward, not filtered yet. Its options */
	PSC_GUARDIAN_ACTIVATE,	/* put the filter into the ward; DONE brings the result and the listeners */
	PSC_GUARDIAN_LISTEN,	/* listeners: of a ward that was filtered otherwise, which is active now */
	PSC_GUARDIAN_RELEASE,	/* forget the ward, its listeners are closed */
	PSC_GUARDIAN_BYE,	/* orderly end: forget everything and exit (no answer) */
	/* requests of anybody of the same user, through the named socket */
	PSC_GUARDIAN_INFO,	/* DONE with manager, wards */
	PSC_GUARDIAN_RECLAIM,	/* DONE with the fds of HELLO but the manager's, then a WARD for each; the connection is the
				 * manager's from then on. -EBUSY: the manager lives */
	/* from the guardian */
	PSC_GUARDIAN_DONE,
	PSC_GUARDIAN_ACTED,	/* at the deadline: what became of the ward, as for DONE of ACTIVATE */
	PSC_GUARDIAN_WARD,	/* pidfd, listeners */
};

enum psc_ward_state {
	PSC_WARD_INACTIVE,
	PSC_WARD_ACTIVE,
	PSC_WARD_KILLED,    /* by the guardian */
	PSC_WARD_GONE,	    /* the target ended before the filter was in it */
	PSC_WARD_FAILED,    /* could be neither filtered nor killed */
};

#define PSC_GUARDIAN_FDS 64

struct psc_guardian_outcome {
	int32_t tid, filters_before, filters_after;
	bool listener; /* one of its own */
};

struct psc_guardian_message {
	uint32_t kind;
	uint32_t serial;
	uint32_t ward;	 /* the manager's number for it, below 2^28 */
	int32_t error;	 /* DONE: 0 or -errno; ACTIVATE, ACTED: with refusal */
	uint32_t state;	 /* enum psc_ward_state */

	/* WATCH */
	bool guarded;		  /* answer is what the death of the manager means to its listeners */
	bool kill;		  /* at the deadline: kill, not activate */
	bool inject;		  /* WATCH: it must be possible to inject. DONE of WATCH: whether it is */
	bool leader_only;
	bool foreign_arch;	  /* as of struct psc_attach_options */
	struct psc_answer answer; /* PSC_HOLD: wait for PSC_GUARDIAN_RECLAIM */
	int64_t deadline;	  /* CLOCK_MONOTONIC ns, -1: none. The manager's death is one too, if there is any */
	uint64_t timeout_ns;
	uint32_t flags;		  /* SECCOMP_FILTER_FLAG_* */
	uint32_t no_new_privs;	  /* enum psc_no_new_privs */

	/* DONE of ACTIVATE, ACTED: struct psc_attach_result in parts, while more is set. Listeners are the fds:
	 * the common one first, if there is one, then those of the outcomes that have one. */
	uint32_t refusal;
	int32_t pid, tid, other_tracer;
	uint64_t stop_ns, residue;
	bool no_new_privs_set, suspended, common_listener, more;
	uint32_t n_outcomes;
	struct psc_guardian_outcome outcomes[PSC_GUARDIAN_FDS - 1];

	/* DONE of INFO, RECLAIM */
	int32_t manager; /* 0: dead */
	uint32_t wards;
};

/* Start the guardian program at path, with its socket as fd 3: as a child of
 * nobody (its end is reported to none but init), in a session of its own, without
 * any other descriptor. Safe with threads. Returns our end, CLOEXEC. Errors of
 * clone and exec. Waits for the exec. */
PSC_MUST_CHECK int psc_guardian_start(const char *path, int *ret_socket);

/* Send a message with its fds, which stay the caller's. Waits for room. -EPIPE, -ECONNRESET: it is dead. */
PSC_MUST_CHECK int psc_guardian_send(int socket, const struct psc_guardian_message *message, const int *fds, size_t n);

/* Receive a message; fds are the caller's, CLOEXEC. Returns how many. -EINTR.
 * -ECONNRESET: the other side has ended. -EBADMSG: not such a message. Waits.
 * -EMFILE: its fds find no room in this process. *ret_message is filled, and the message stays the
 * next one in the socket: try again when there is room, or psc_guardian_drop() it. */
PSC_MUST_CHECK int psc_guardian_receive(int socket, struct psc_guardian_message *ret_message,
					int ret_fds[PSC_GUARDIAN_FDS]);
void psc_guardian_drop(int socket);

/* The life of a guardian, over a connection whose other end is the manager's.
 * Returns when nobody needs it any more: 0, or the error that kept it from
 * beginning. Changes the signal mask of its process and uses SIGALRM. */
PSC_MUST_CHECK int psc_guardian_run(int socket);

/* ---------------------------------------------------------------- features
 *
 * What this kernel, this user and this container allow, tried for real. */

enum psc_feature {
	PSC_FEATURE_FILTER,	     /* load a filter under no_new_privs */
	PSC_FEATURE_UNPRIVILEGED,    /* the same with every capability dropped */
	PSC_FEATURE_FILTER_COUNT,    /* /proc tells the number of filters */
	PSC_FEATURE_LOG,	     /* the action LOG and the flag LOG */
	PSC_FEATURE_TSYNC,
	PSC_FEATURE_TSYNC_ESRCH,     /* TSYNC and NEW_LISTENER together */
	PSC_FEATURE_NOTIFY,	     /* a call notified and answered */
	PSC_FEATURE_CONTINUE,
	PSC_FEATURE_ADDFD,
	PSC_FEATURE_ADDFD_SEND,
	PSC_FEATURE_WAIT_KILLABLE,
	PSC_FEATURE_SYNC_WAKE_UP,
	PSC_FEATURE_LISTENER_ENDS,   /* POLLHUP as soon as the last target exited, not reaped */
	PSC_FEATURE_PIDFD_OPEN,
	PSC_FEATURE_PIDFD_GETFD,
	PSC_FEATURE_PIDFD_THREAD,
	PSC_FEATURE_PTRACE_CHILD,    /* seize, interrupt and see it stop */
	PSC_FEATURE_PTRACE_OTHER,    /* the same user's process, not a descendant */
	PSC_FEATURE_CAP_SYS_ADMIN,   /* effective, in the caller's user namespace */
	PSC_FEATURE_CAP_SYS_PTRACE,
	PSC_FEATURE_SUSPEND_SECCOMP,
	PSC_FEATURE_GET_FILTER,
	PSC_FEATURE_PROC_MEM,	     /* write to executable pages; value 1: always, 2: only while tracing */
	PSC_FEATURE_MEMFD_SEALS,     /* FUTURE_WRITE with an older writable mapping, futex on a read-only one */
	PSC_FEATURE_I386,
	PSC_FEATURE_X32,
	PSC_FEATURE_COUNT,
};

/* How a probe ended. error 0 and signal 0: it works. error: the errno that the
 * kernel answered. signal: what killed the probe (SIGSYS: a filter above us). */
struct psc_probe {
	int error;
	int signal;
	int64_t value;
};

/* Try one feature in a child of its own, that no wait() of the program sees and
 * that changes nothing in the caller. Waits: a few milliseconds, 5 seconds at
 * most (*ret_probe then says ETIMEDOUT). Returns an error only if the trial
 * itself could not be made: -EINVAL: no such feature; or that of pipe or clone. */
PSC_MUST_CHECK int psc_feature_probe(enum psc_feature feature, struct psc_probe *ret_probe);

/* -------------------------------------------------------------------- gate
 *
 * Delayed activation in the kernel: the gate program asks a listener wherever the
 * policy does not allow. While inactive the answer is always "continue"; once
 * active it is what the policy's program says. One store in page 0 of the filter
 * fd turns it, for every task under it at once; whoever holds the fd can read it.
 *
 * Word 0 is the filter's, the others belong to one attachment each; the word that
 * was written last holds. Only the creator, who has the writable mapping, writes. */

#define PSC_GATE_SLOTS 511

enum psc_gate_state {
	PSC_GATE_NONE,
	PSC_GATE_INACTIVE, /* since it was made: a trigger may still turn it */
	PSC_GATE_ACTIVE,
	PSC_GATE_PAUSED,   /* inactive, by hand: no trigger turns it */
};

/* Page 0 of a filter fd, mapped. */
struct psc_page;

/* As psc_filterfd_create(), and keep the page writable, here alone: fork passes on
 * a mapping to read by, no fd lets anybody make another to write by. */
PSC_MUST_CHECK int psc_filterfd_create_owned(const struct sock_filter *insns, size_t len, uint32_t flags, int *ret_fd,
					     struct psc_page **ret_page);

/* Map the page of a filter fd that psc_filterfd_read() accepted, to read it. */
PSC_MUST_CHECK int psc_page_map(int fd, struct psc_page **ret_page);
void psc_page_unmap(struct psc_page *page);

/* True in the process that may write: the creator. */
bool psc_page_writable(const struct psc_page *page);

/* What holds for a slot (0: the filter's own word); for all of them: ACTIVE if any is. */
enum psc_gate_state psc_page_state(const struct psc_page *page, unsigned int slot);
enum psc_gate_state psc_page_summary(const struct psc_page *page);

/* Write a word: one atomic store. -EPERM: not the creator. -EINVAL. */
PSC_MUST_CHECK int psc_page_set(struct psc_page *page, unsigned int slot, enum psc_gate_state state);
/* The same, for who knows that the page is writable and the arguments are sound. */
void psc_page_store(struct psc_page *page, unsigned int slot, enum psc_gate_state state);

/* A slot that is free, set to state; set it to PSC_GATE_NONE to free it. -ENOSPC. */
PSC_MUST_CHECK int psc_page_take_slot(struct psc_page *page, enum psc_gate_state state);

/* A call that turns an INACTIVE gate once it has been let run. */
struct psc_gate_trigger {
	uint32_t arch;
	int nr;
};

#define PSC_MAX_GATE_TRIGGERS 4

/* Make the gate program: every answer of the program but ALLOW and LOG becomes
 * USER_NOTIF, and so do the triggers. ret_insns has room for PSC_MAX_INSNS.
 * -EOPNOTSUPP: a leaf cannot be emulated, *ret_fault says which. -ENODATA: nothing
 * is denied, so there is nothing to turn. -E2BIG: too long with the triggers. */
PSC_MUST_CHECK int psc_gate_program(const struct sock_filter *insns, size_t len, const struct psc_gate_trigger *triggers,
				    size_t n_triggers, struct sock_filter *ret_insns, size_t *ret_len,
				    struct psc_program_fault *ret_fault);

/* The program to harden with: USER_NOTIF, which the gate asks for already, becomes
 * ALLOW. Returns how many answers stay for the kernel to give. */
size_t psc_gate_hard_program(const struct sock_filter *insns, size_t len, struct sock_filter *ret_insns);

/* Serves gates: a process of ours that shares memory and descriptors but is in no
 * thread group with us, so that a filter on ourselves does not reach it; it ends
 * with us. Needs no lock of Python's. Notifications that the program wants answered by the
 * user go to inbox. */
struct psc_gate;

/* insns are copied. page and inbox must outlive it. -EAGAIN: no process could be made. Waits (shortly). */
PSC_MUST_CHECK int psc_gate_new(struct psc_page *page, const struct sock_filter *insns, size_t len,
				struct psc_inbox *inbox, struct psc_gate **ret_gate);
void psc_gate_free(struct psc_gate *gate);

/* Let go although we live on: the standby process does now what was promised for our death
 * (see psc_gate_care), and the gate is not ours any more, whatever is returned. On return its
 * listeners may be closed here; the page must stay mapped for ever. -ESRCH: there is no
 * standby. Other errors: it could not part from our descriptors, so they must stay open. Waits (shortly). */
PSC_MUST_CHECK int psc_gate_leave(struct psc_gate *gate);

/* What is promised of a gate. */
struct psc_gate_care {
	bool guarded;	  /* when we die it is activated and goes on; else it ends, its calls fail with ENOSYS */
	struct psc_answer answer; /* then: to what the program notifies. PSC_HOLD: ENOSYS. PSC_KILL: the target too, at once */
	int64_t deadline; /* CLOCK_MONOTONIC ns, 0 or less: none. If it is not active then it is activated, */
	bool kill;	  /* or the target killed, at our death too */
	int pidfd;	  /* the target; must stay open as long as the listener */
};

/* Serve a listener of the gate program until it is removed; it stays the caller's.
 * care: NULL for none. Waits (shortly) for the server. -ENOSPC: it has PSC_GATE_SLOTS. */
PSC_MUST_CHECK int psc_gate_add(struct psc_gate *gate, int listener, unsigned int slot,
				const struct psc_gate_trigger *triggers, size_t n_triggers,
				const struct psc_gate_care *care);

/* Install the gate program for ourselves (flags as psc_install(), NEW_LISTENER is
 * added); the server has the listener before any call of ours can be gated. care: as
 * above, for those that we fork and for the program that we execute: that too ends us. */
PSC_MUST_CHECK int psc_gate_install(struct psc_gate *gate, const struct sock_filter *insns, size_t len, uint32_t flags,
				    int no_new_privs, unsigned int slot, const struct psc_gate_trigger *triggers,
				    size_t n_triggers, const struct psc_gate_care *care);

/* -ENOENT: it is not in. Afterwards its number is not used any more. */
PSC_MUST_CHECK int psc_gate_remove(struct psc_gate *gate, int listener);

/* -------------------------------------------------------------------- park
 *
 * Delayed activation without ptrace: a thread of the caller waits for the gate word
 * and then puts the program into its whole process. It and a helper process, which
 * shares its descriptors (not the caller's), report over a seqpacket socket.
 *
 * It survives neither exec nor the process, and says so; a fork() by the C library
 * parks the child again (or kills it, if that fails: it would be lost in silence). */

enum psc_park_kind {
	PSC_PARK_HELLO = 1, /* fd: a pidfd of the process */
	PSC_PARK_DONE,	    /* result; fd: the listener, if the program notifies */
	PSC_PARK_GONE,	    /* the thread ended before: exec, death, psc_park_end() */
};

struct psc_park_message {
	char magic[8]; /* "PSCPARK" */
	uint32_t kind;
	int32_t result; /* 0 or -errno of seccomp() */
	uint64_t token; /* the same in all messages of one parking */
	uint32_t slot;
	uint32_t reserved;
};

struct psc_park_options {
	int fd;	     /* the filter: its page holds the word */
	int channel; /* stays the caller's */
	unsigned int slot;
	const struct sock_filter *insns;
	size_t len;
	uint32_t flags;	  /* SECCOMP_FILTER_FLAG_*, besides TSYNC */
	int no_new_privs; /* as psc_install() */
	int64_t deadline; /* CLOCK_MONOTONIC, ns, kept by the parked thread itself; 0 or less: none */
	bool kill;	  /* at the deadline: the process, instead of the filter */
};

struct psc_park;

enum psc_park_state { PSC_PARK_WAITING, PSC_PARK_APPLIED, PSC_PARK_LOST };

/* Park a thread. The program must let it end (exit). Errors of clone, of the page
 * and of the channel. -EACCES: an earlier filter of the process kills or denies a call
 * that the parked thread makes, found out by a child that made them. */
PSC_MUST_CHECK int psc_park_start(const struct psc_park_options *options, struct psc_park **ret_park);
enum psc_park_state psc_park_state_of(const struct psc_park *park);

/* What seccomp() said; -EAGAIN: nothing yet. */
int psc_park_result(const struct psc_park *park);

/* Give up what waits, and free. Waits (shortly) for the thread and its helper. */
void psc_park_end(struct psc_park *park);

/* After words were stored: wake who waits for them. */
void psc_page_ring(const struct psc_page *page);

/* The same, and wait in the same breath for a message in the channel, or for the
 * end of a process (pidfd, or -1): who was woken often needs the processor that the
 * caller holds. 1 if something came, 0 if nothing within timeout_ms, -EINTR. */
PSC_MUST_CHECK int psc_park_wake(const struct psc_page *page, int channel, int pidfd, int timeout_ms);
/* ----------------------------------------------------------------- opening
 *
 * Open a file for a task that is trapped in open, openat, openat2 or creat: as the task
 * would itself, by its root, directories and identity, and hand the descriptor over with
 * psc_event_addfd(PSC_ADDFD_SEND). Unlike a look at the path followed by
 * psc_notify_continue() that is a decision: what is approved is what is opened.
 *
 *	begin    finds the object, or the directory to make it in, with no effect on it
 *	         (look at opening.object: psc_opening_within(), fstat, ...)
 *	finish   opens exactly that
 *
 * (An O_PATH descriptor is found and opened as well, but the kernel does not hand one
 * over: psc_event_addfd() says -EBADF.)
 *
 * begin and finish return 0; a positive errno that the task's call is to fail with
 * (psc_notify_error); or a negative one, if it could not be tried.
 *
 * The process that opens takes on of the task: user, network, ipc, uts and cgroup
 * namespace; real, effective, saved and file system ids; supplementary groups; effective,
 * permitted and inheritable capabilities; no_new_privs; the label of a security module;
 * umask. It does not have the task's pid, mount and time namespace, bounding set (it
 * executes nothing), resource limits (RLIMIT_NOFILE holds when the descriptor is handed
 * over), keyrings and Landlock domains, and is none of its threads.
 *
 * Unlike the kernel: magic links of procfs (/proc/self/fd/N, so /dev/stdin too) are
 * ELOOP; /dev/tty is ENXIO; a FIFO without O_NONBLOCK is EOPNOTSUPP; a file with another
 * process's lease is EAGAIN; RESOLVE_CACHED is EAGAIN; what procfs shows by pid namespace
 * (/proc/sys, ...) is EPERM where the task's differs from the caller's; files of
 * /proc/self that ask for a tracer's rights are denied to a task that is not dumpable;
 * fs.protected_symlinks, _regular and _fifos are as if set. */

/* Start the process that opens (as psc_guardian_start(), the same program at path).
 * It ends when our end of the socket is closed. One serves any number of threads. */
PSC_MUST_CHECK int psc_opener_start(const char *path, int *ret_socket);

#define PSC_NAME_SIZE 256

struct psc_opening {
	int object;	/* O_PATH: what was found, or the directory in which name is to be made */
	int parent;	/* O_PATH: where the object was found, unless it is a directory: then -1 */
	int socket;
	int process;	/* a pidfd */
	bool creates;
	uint64_t flags; /* as asked for; O_CLOEXEC is for PSC_ADDFD_CLOEXEC */
	uint64_t timeout_ns;
	char name[PSC_NAME_SIZE];
};

/* -ENOENT: the call is over. -EOPNOTSUPP: it is none of the four. -EPERM: this process
 * may not look into the task (ptrace), or the opener cannot take its ids, groups or
 * capabilities on (another user: CAP_SETUID, CAP_SETGID), or the kernel denied the open
 * for want of a capability that the task has and the opener has not. -EXDEV: the opener
 * cannot enter one of its namespaces (CAP_SYS_ADMIN). -EACCES: it cannot take on its
 * label. -ENODEV: it is a device, and the task's cgroup may have a device policy that the
 * opener's has not. -ECHILD: fs.suid_dumpable is 1 or unknown, so the task could trace the
 * process that opens. -ESRCH: the task cannot be seen from this pid namespace. -E2BIG: it
 * has more than 1024 groups. -ETIMEDOUT: a file system did not answer within timeout_ns.
 * -ECANCELED: the process that opens was killed, which the task can do. -ETOOMANYREFS: the
 * task's user has too many descriptors in flight. -EPIPE: the opener is dead. -EAGAIN,
 * -ENOMEM: it cannot make a process. Waits. */
PSC_MUST_CHECK int psc_open_begin(int opener, struct psc_inbox *inbox, const struct psc_event *event,
				  uint64_t timeout_ns, struct psc_opening *ret_opening);

/* Is the object (or the directory in which it is to be made) directory itself or below it, in the
 * mounts of that descriptor? The path of the object decides nothing: it is one of the target's
 * mounts. Here a directory on the way up from the object must be directory by device and inode,
 * and the names from there must lead to the same object again below the descriptor, without links.
 * The target's mount must not be laxer (read-only, noexec, nodev, nosuid) than that one is. For a
 * target with other mounts the caller passes what the target sees as directory, by any name.
 * 1 or 0; 0 too if this process may not look at the object, or if the tree is being renamed all
 * the time. -ENOTDIR: directory is none. -ETIMEDOUT, -ECANCELED, -EPIPE, ...: it cannot be told.
 * Waits. */
PSC_MUST_CHECK int psc_opening_within(int opener, const struct psc_opening *opening, int directory);

/* Open a directory for psc_opening_within(): O_PATH, and no component of path is a link
 * (-ELOOP): a target that may write beside it could make one. */
PSC_MUST_CHECK int psc_directory_open(const char *path, int *ret_fd);

/* Open it; *ret_fd is yours, CLOEXEC. -EAGAIN: what was to be made is there meanwhile: begin again.
 * The opening is over in any case. Waits, as begin. */
PSC_MUST_CHECK int psc_open_finish(struct psc_opening *opening, int *ret_fd);

/* Give it up; nothing was done. NULL, and a second time, are fine. */
void psc_opening_destroy(struct psc_opening *opening);
/* ------------------------------------------------------------------- trace
 *
 * Let notified calls run and keep account of them: counts by call and by thread, the
 * values of chosen arguments, and, if wanted, a record of each call with the memory that
 * its arguments point to. Results of calls are never seen: a notification comes at the
 * entry of a call. One thread runs the loop; anybody reads.
 */

#define PSC_TRACE_VALUES 16

enum psc_trace_capture {
	PSC_CAPTURE_NONE,
	PSC_CAPTURE_STRING,
	PSC_CAPTURE_VECTOR,	/* a NULL-terminated array of strings */
	PSC_CAPTURE_BUFFER = 8, /* + the index of the argument that tells its length */
};

struct psc_trace_spec {
	uint32_t arch; /* AUDIT_ARCH_* */
	int nr;
	bool begins;	/* nothing counts before the first call that has this in its spec */
	bool ends;	/* the thread makes no further call */
	bool silent;	/* counted, but not recorded */
	int8_t watch;	/* the argument whose values (the low 32 bits) are kept; -1: none */
	uint8_t capture[6]; /* enum psc_trace_capture, by argument */
};

/* A recorded call. Behind it, within size (a multiple of 8), the captures: PSC_CAPTURED | argument (u8), enum
 * psc_captured (u8), length (u16), bytes; zeros fill up. */
struct psc_trace_record {
	uint32_t size;
	int32_t tid;
	int64_t ns; /* CLOCK_MONOTONIC, of its receipt */
	uint32_t arch;
	int32_t nr;
	uint64_t args[6];
};

#define PSC_CAPTURED 0x80

enum psc_captured {
	PSC_CAPTURED_WHOLE,
	PSC_CAPTURED_CUT, /* there is more in the target */
	PSC_CAPTURED_NOT, /* not readable */
};

/* until_next_ns and longest_ns: from letting it run to the same thread's next notified call, which is no less
 * than the call took; timed of them ended so. arch 0: calls beyond the 1024 that are told apart. */
struct psc_trace_row {
	uint32_t arch;
	int32_t nr;
	uint64_t count, timed, until_next_ns, longest_ns;
};

/* arch, nr: its last call, arch 0 if it has ended; since_ns: when that was let run. tid 0: those that our pid
 * namespace does not show, and those beyond 32768. */
struct psc_trace_thread {
	int32_t tid;
	uint32_t arch;
	int32_t nr;
	uint64_t count;
	int64_t since_ns;
};

struct psc_trace;

/* snap: bytes captured of one argument, at most 4096. ring: bytes for records, a power of two up to 2^28; 0: count
 * only. -EINVAL: one of these, or a spec, is not sound. -EMFILE, -ENOMEM. */
PSC_MUST_CHECK int psc_trace_new(const struct psc_trace_spec *specs, size_t n, uint32_t snap, size_t ring,
				 struct psc_trace **ret_trace);
/* Not while it runs. NULL is fine. */
void psc_trace_free(struct psc_trace *trace);

/* Threads that help psc_serve(), as many as are found to pay while it runs, and where there
 * is a single listener: for few targets none does. n counts the caller's own. They are made
 * when they are needed, or by new if some thread of the process has a filter: a trapped
 * thread may hold a lock that this takes. free ends them; the inbox, the table and stats must outlive them. While helpers
 * serve, the caller's thread keeps to one processor; afterwards it may run where it could
 * before. -EINVAL: n is not 1..PSC_MAX_CREW, or some answer of the table is to hold, which
 * a helper can ask nobody about. */
#define PSC_MAX_CREW 16
struct psc_crew;

PSC_MUST_CHECK int psc_crew_new(struct psc_inbox *inbox, const struct psc_table *table, struct psc_stats *stats,
				unsigned int n, struct psc_crew **ret_crew);
void psc_crew_free(struct psc_crew *crew);

/* psc_serve() with the crew's inbox, table and stats; never 1. By one thread at a time, which
 * also frees the crew. */
PSC_MUST_CHECK int psc_serve_with(struct psc_crew *crew, struct psc_event *event);

/* How many threads of the crew serve now. */
unsigned int psc_crew_serving(const struct psc_crew *crew);

/* Receive, note, let run. Returns as psc_serve() does, never 1. Waits; also for room in the ring, in which case the
 * targets wait. -EBUSY: another thread runs it. */
PSC_MUST_CHECK int psc_trace_run(struct psc_trace *trace, struct psc_inbox *inbox, struct psc_event *event);

/* Bytes of records that wait, whole records always; and take exactly that many. For one thread at a time. */
size_t psc_trace_pending(const struct psc_trace *trace);
void psc_trace_take(struct psc_trace *trace, void *ret_records, size_t size);
/* Wait for records, or for the end of the loop: 1 if records wait, 0, -EINTR. */
PSC_MUST_CHECK int psc_trace_wait(struct psc_trace *trace, int timeout_ms);
/* No more records: nobody will take them. */
void psc_trace_deaf(struct psc_trace *trace);

/* At most size of them, in no order; how many there are. */
size_t psc_trace_rows(const struct psc_trace *trace, struct psc_trace_row *ret_rows, size_t size);
size_t psc_trace_threads(const struct psc_trace *trace, struct psc_trace_thread *ret_threads, size_t size);
/* The values seen of a call's watched argument: how many. -E2BIG: more than PSC_TRACE_VALUES. */
PSC_MUST_CHECK int psc_trace_values(const struct psc_trace *trace, uint32_t arch, int nr,
				    uint32_t ret_values[PSC_TRACE_VALUES]);

/* ----------------------------------------------------------------- results
 *
 * Calls that failed, of some threads and all that descends from them. */
struct psc_result {
	pid_t tid;
	int32_t nr;
	int32_t error; /* 1 to 511; EINTR for a signal's sake is not among them */
};

struct psc_results;

/* tracepoint: the id of raw_syscalls:sys_exit in tracefs. -EACCES, -EPERM: takes CAP_PERFMON.
 * -ENOENT, -EINVAL, -ENOSYS: no such tracepoint, no perf_event_open(2). */
PSC_MUST_CHECK int psc_results_open(uint64_t tracepoint, const pid_t *tids, size_t n, struct psc_results **ret_results);

/* What has come, at most size; returns how many. One thread at a time. */
size_t psc_results_drain(struct psc_results *results, struct psc_result *ret_results, size_t size);

/* How many found no room so far. */
uint64_t psc_results_lost(const struct psc_results *results);
void psc_results_free(struct psc_results *results);

#ifdef __cplusplus
}
#endif

#endif
