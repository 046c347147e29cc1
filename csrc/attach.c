/* attach.c - put a program into another process.
 *
 *   manager                        injector
 *   look at the target in /proc
 *   find room, try our rights
 *   clone ------------------------ seize and stop all threads
 *                                  check what only holds while they are stopped
 *                                  write code and program, run main     <- commit
 *                                  fetch the listener, close it there
 *                                  restore, release
 *   wait, verify in /proc <------- exit
 *
 * The injector is a process of its own that shares our memory and our fds:
 *   - the SIGKILL of the manager, or of its process group, does not reach it: it
 *     finishes, or lets go if it has not committed. Should it be killed itself,
 *     the target finishes alone (inject.c). The rest of risk is one instruction
 *     wide and needs three things at once: earlier filters that kill the injected
 *     call, suspended for us, and the injector killed in between.
 *   - stops of the target are reported to it and to nobody else: no other thread
 *     of the manager that waits for children can steal them.
 *   - it may have timers and signal handlers, which the manager must not lose.
 * Under YAMA's scope 1 only an ancestor may trace; there a thread of the manager
 * does the same work, without its first protection.
 */
#define _GNU_SOURCE
#include "tracee.h"

#include <elf.h>
#include <fcntl.h>
#include <linux/ptrace.h>

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL /* Linux 6.9 */
#endif
#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif

#define STACK_SIZE (256 * 1024)
#define PAGE 4096
#define PTRACE_OPTIONS (PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC)
#define MAX_TRIES 100
#define MAX_TRIES_PERMISSION 10
#define COMMIT_NS 60000000000 /* for some thousand instructions, on a machine that is drowning */
#define MAX_SUSPENDED 64 /* earlier filters that are looked into */

/* What a program answers to the calls that follow the commit. */
struct verdicts {
	bool close, unmap, unmask;
	bool close_notifies;
};

/* struct sock_fprog as the target's ABI has it, then the instructions. */
struct image {
	union {
		struct { uint16_t len; uint64_t insns; } wide;
		struct { uint16_t len; uint32_t insns; } narrow;
		uint8_t bytes[16];
	} fprog;
	struct sock_filter insns[];
};

struct job {
	const struct psc_attach_options *options;
	struct psc_attach_result *result;
	struct psc_process_state before;
	struct psc_visit visit;
	struct psc_cave cave;
	struct image *image;
	size_t image_size;
	struct verdicts verdicts[2]; /* of the program alone: by abi->wide */
	bool notifies;
	int reserve;		     /* an fd kept free for the listener */
	pid_t manager;
	int outcome;		     /* 0 or -errno, with result->refusal */
};

static int refuse(struct job *job, enum psc_refusal why, int error)
{
	job->result->refusal = why;
	return error;
}

static bool allows(uint32_t ret)
{
	uint32_t action = ret & SECCOMP_RET_ACTION_FULL;

	return action == SECCOMP_RET_ALLOW || action == SECCOMP_RET_LOG;
}

static uint32_t answer(const struct sock_filter *insns, size_t len, const struct psc_abi *abi, uint64_t ip, int nr,
		       uint64_t arg0, uint64_t arg1)
{
	struct seccomp_data data = { nr, abi->audit_arch, ip, { arg0, arg1 } };
	struct psc_decision decision;

	if (nr == abi->rt_sigprocmask) {
		data.args[0] = SIG_SETMASK;
		data.args[1] = ip;
		data.args[3] = 8;
	}
	return psc_program_run(insns, len, &data, &decision) < 0 ? SECCOMP_RET_KILL_PROCESS : decision.ret;
}

static struct verdicts judge(const struct sock_filter *insns, size_t len, const struct psc_abi *abi, uint64_t ip)
{
	uint32_t close_low = answer(insns, len, abi, ip, abi->close, 3, 0);
	uint32_t close_high = answer(insns, len, abi, ip, abi->close, 1023, 0);

	return (struct verdicts){
		.close = allows(close_low) && allows(close_high),
		.close_notifies = (close_low & SECCOMP_RET_ACTION_FULL) == SECCOMP_RET_USER_NOTIF &&
				  (close_high & SECCOMP_RET_ACTION_FULL) == SECCOMP_RET_USER_NOTIF,
		.unmap = allows(answer(insns, len, abi, ip, abi->munmap, 0x10000, PAGE)),
		.unmask = allows(answer(insns, len, abi, ip, abi->rt_sigprocmask, 0, 0)),
	};
}

/* ------------------------------------------------- in the stopped target */

/* One thread, about to make the call. */
struct commit {
	struct job *job;
	struct psc_tracee *tracee;
	const struct psc_abi *abi;
	struct verdicts verdicts;
	bool suspended;
	uint64_t map;
	struct psc_site site;
};

static int number_of_filters(struct job *job, pid_t tid, int *ret_filters)
{
	struct psc_task_state task;
	char text[8192], path[32];
	long fd, n;
	int r;

	snprintf(path, sizeof(path), "%d/status", tid);
	fd = psc_sys(SYS_openat, job->visit.tasks, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return (int)fd;
	n = psc_sys(SYS_read, fd, text, sizeof(text));
	psc_sys(SYS_close, fd);
	r = n <= 0 ? -ESRCH : psc_query_parse_status(text, (size_t)n, &task);
	if (r < 0)
		return r;
	*ret_filters = task.seccomp == SECCOMP_MODE_DISABLED ? 0 : task.filters > 0 ? task.filters : 1;
	return 0;
}

/* Earlier filters, suspended for us, answer again when the injector is killed:
 * what they would not allow is left out of the code that runs then. */
static int narrow_by_earlier(struct commit *commit)
{
	pid_t tid = commit->tracee->tid;
	long map = psc_sys(SYS_mmap, 0, PSC_MAX_INSNS * sizeof(struct sock_filter), PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1);

	if (map < 0 && map > -4096)
		return -ENOMEM;
	for (long i = 0; i < MAX_SUSPENDED; i++) {
		struct verdicts earlier;
		long len = psc_sys(SYS_ptrace, PTRACE_SECCOMP_GET_FILTER, tid, i, map);

		if (len <= 0)
			break;
		earlier = judge((struct sock_filter *)map, (size_t)len, commit->abi, commit->job->cave.address);
		commit->verdicts.close &= earlier.close;
		commit->verdicts.unmap &= earlier.unmap;
		commit->verdicts.unmask &= earlier.unmask;
	}
	psc_sys(SYS_munmap, map, PSC_MAX_INSNS * sizeof(struct sock_filter));
	return 0;
}

/* Suspend the thread's earlier filters, or be sure that it has none. */
static int suspend_filters(struct commit *commit)
{
	struct job *job = commit->job;
	int filters = 0, r;

	commit->suspended = psc_sys(SYS_ptrace, PTRACE_SETOPTIONS, commit->tracee->tid, 0,
				    PTRACE_OPTIONS | PTRACE_O_SUSPEND_SECCOMP) == 0;
	if (commit->suspended && job->before.threads[0].seccomp == SECCOMP_MODE_DISABLED)
		return 0;
	r = number_of_filters(job, commit->tracee->tid, &filters);
	if (r < 0)
		return refuse(job, PSC_REFUSED_GONE, r);
	if (filters == 0)
		return 0;
	if (!commit->suspended) {
		job->result->tid = commit->tracee->tid;
		return refuse(job, PSC_REFUSED_FILTERED, -EACCES);
	}
	job->result->suspended = true;
	return narrow_by_earlier(commit);
}

/* A listener must be closed in the target before it runs again, under the very
 * program that has just come into force. */
static int check_listener(struct commit *commit)
{
	const struct verdicts *own = &commit->job->verdicts[commit->abi->wide];

	if (!commit->job->notifies || commit->suspended || own->close || own->close_notifies)
		return 0;
	return refuse(commit->job, PSC_REFUSED_LISTENER_STUCK, -EDEADLK);
}

/* Another program has been executed: another memory. */
static int reopen_memory(struct job *job, pid_t tid)
{
	char path[32];
	long mem;

	snprintf(path, sizeof(path), "/proc/%d/mem", tid);
	mem = psc_sys(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
	if (mem < 0)
		return (int)mem;
	psc_sys(SYS_dup3, mem, job->visit.mem, O_CLOEXEC);
	psc_sys(SYS_close, mem);
	return 0;
}

static size_t room_wanted(const struct job *job)
{
	return PSC_SITE_SIZE + (job->image_size <= PAGE ? job->image_size : 0);
}

/* The cave that was found before the stop, if it holds; else another. */
static int find_room(struct commit *commit)
{
	struct job *job = commit->job;
	pid_t tid = commit->tracee->tid;
	uint64_t limit = commit->abi->wide ? UINT64_MAX : UINT32_MAX;
	int r;

	if (!job->visit.execed && job->cave.size >= PSC_SITE_SIZE && job->cave.address + job->cave.size <= limit &&
	    psc_cave_check(tid, job->visit.mem, &job->cave) == 0)
		return 0;
	r = reopen_memory(job, tid);
	if (r < 0)
		return refuse(job, PSC_REFUSED_PERMISSION, r);
	job->visit.execed = false;
	r = psc_cave_find(tid, job->visit.mem, room_wanted(job), limit, &job->cave);
	if (r == -ENOSPC && job->cave.size >= PSC_SITE_SIZE)
		r = 0;
	return r < 0 ? refuse(job, PSC_REFUSED_NO_ROOM, r) : 0;
}

static size_t map_size(const struct job *job)
{
	return (job->image_size + PAGE - 1) & ~(size_t)(PAGE - 1);
}

/* Where the program is to be read by the kernel: behind the code in the cave, or
 * in memory that the target maps for it. */
static int place_program(struct commit *commit, uint64_t *ret_address)
{
	struct job *job = commit->job;
	const struct psc_script nothing = { 0 };
	const uint64_t args[6] = { 0, map_size(job), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1ULL, 0 };
	long map;
	int r;

	if (job->cave.size >= PSC_SITE_SIZE + job->image_size) {
		*ret_address = job->cave.address + PSC_SITE_SIZE;
		return 0;
	}
	r = psc_site_build(&job->visit, commit->tracee, &job->cave, &nothing, &commit->site);
	if (r == 0)
		r = psc_tracee_call(&job->visit, commit->tracee, &commit->site, -1, commit->abi->mmap, args, &map);
	if (r < 0)
		return refuse(job, PSC_REFUSED_FAULT, r);
	if (map < 0 && map > -4096)
		return refuse(job, PSC_REFUSED_NO_ROOM, (int)map);
	commit->map = commit->abi->wide ? (uint64_t)map : (uint32_t)map;
	*ret_address = commit->map;
	return 0;
}

static int write_program(struct commit *commit, uint64_t address)
{
	struct job *job = commit->job;
	struct image *image = job->image;

	memset(image->fprog.bytes, 0, sizeof(image->fprog.bytes));
	if (commit->abi->wide) {
		image->fprog.wide.len = (uint16_t)job->options->len;
		image->fprog.wide.insns = address + sizeof(image->fprog);
	} else {
		image->fprog.narrow.len = (uint16_t)job->options->len;
		image->fprog.narrow.insns = (uint32_t)(address + sizeof(image->fprog));
	}
	return psc_tracee_write(&job->visit, commit->tracee, address, image, job->image_size);
}

static bool manager_died(const struct job *job)
{
	return job->visit.own_signals && psc_sys(SYS_getppid) != job->manager;
}

/* The commit. *ret_result: what seccomp() returned. */
static int run_main(struct commit *commit, uint64_t address, uint32_t flags, bool no_new_privs, long *ret_result)
{
	struct job *job = commit->job;
	const struct psc_script script = {
		.data = address,
		.fprog = address,
		.flags = flags,
		.no_new_privs = no_new_privs,
		.close_listener = job->notifies && commit->verdicts.close,
		.unmap = commit->map && commit->verdicts.unmap,
		.unmask = commit->verdicts.unmask,
		.map = commit->map,
		.map_size = map_size(job),
	};
	int r = psc_site_build(&job->visit, commit->tracee, &job->cave, &script, &commit->site);

	if (r < 0)
		return refuse(job, PSC_REFUSED_NO_ROOM, r);
	if (manager_died(job))
		return refuse(job, PSC_REFUSED_INJECTOR, -ECANCELED);
	job->visit.deadline = psc_now_ns() + COMMIT_NS;
	r = psc_tracee_run_main(&job->visit, commit->tracee, &commit->site, no_new_privs, ret_result);
	if (r < 0)
		return refuse(job, r == -ESRCH ? PSC_REFUSED_GONE : PSC_REFUSED_FAULT, r);
	job->result->no_new_privs_set |= no_new_privs;
	return 0;
}

/* Take the listener out of the target, which must not keep it. */
static int fetch_listener(struct commit *commit, long remote, int *ret_listener)
{
	struct job *job = commit->job;
	const uint64_t close_args[6] = { (uint64_t)remote };
	const struct verdicts *own = &job->verdicts[commit->abi->wide];
	int pidfd = job->options->pidfd, fd, r;
	long result;

	if (commit->tracee->tid != job->visit.tgid)
		pidfd = (int)psc_sys(SYS_pidfd_open, commit->tracee->tid, PIDFD_THREAD);
	fd = (int)psc_sys(SYS_pidfd_getfd, pidfd, remote, 0);
	if (fd == -EMFILE && job->reserve >= 0) {
		psc_sys(SYS_close, job->reserve);
		job->reserve = -1;
		fd = (int)psc_sys(SYS_pidfd_getfd, pidfd, remote, 0);
	}
	if (pidfd >= 0 && pidfd != job->options->pidfd)
		psc_sys(SYS_close, pidfd);
	r = psc_tracee_call(&job->visit, commit->tracee, &commit->site,
			    own->close_notifies && !commit->suspended ? fd : -1, commit->abi->close, close_args, &result);
	if (fd < 0)
		return refuse(job, PSC_REFUSED_NO_LISTENER, fd);
	*ret_listener = fd;
	return r == -ESRCH ? 0 : r;
}

static void unmap_program(struct commit *commit, bool committed)
{
	struct job *job = commit->job;
	const uint64_t args[6] = { commit->map, map_size(job) };
	long result = -EACCES;

	if (!commit->map)
		return;
	if (commit->suspended || !committed || job->verdicts[commit->abi->wide].unmap)
		if (psc_tracee_call(&job->visit, commit->tracee, &commit->site, -1, commit->abi->munmap, args, &result) < 0)
			return;
	if (result < 0)
		job->result->residue += map_size(job);
}

static void wipe_cave(struct commit *commit)
{
	static const uint8_t zeros[PSC_SITE_SIZE + sizeof(struct image) + PAGE];
	struct job *job = commit->job;
	size_t used = PSC_SITE_SIZE + (commit->map ? 0 : job->image_size);

	if (commit->tracee->state == PSC_TRACEE_STOPPED)
		(void)!psc_tracee_write(&job->visit, commit->tracee, job->cave.address, zeros,
					used < job->cave.size ? used : job->cave.size);
}

static bool wants_no_new_privs(const struct job *job)
{
	if (job->options->no_new_privs != PSC_NO_NEW_PRIVS_AUTO)
		return job->options->no_new_privs == PSC_NO_NEW_PRIVS_ALWAYS;
	return job->before.threads[0].no_new_privs == 0 && !(job->before.threads[0].cap_effective >> 21 & 1);
}

/* Load, and once more with no_new_privs if only that was missing. */
static int load(struct commit *commit, uint64_t address, uint32_t flags, long *ret_result)
{
	struct job *job = commit->job;
	bool no_new_privs = wants_no_new_privs(job);
	int r = run_main(commit, address, flags, no_new_privs, ret_result);

	if (r == 0 && *ret_result == -EACCES && !no_new_privs && job->options->no_new_privs == PSC_NO_NEW_PRIVS_AUTO)
		r = run_main(commit, address, flags, true, ret_result);
	return r;
}

static int load_and_fetch(struct commit *commit, uint32_t flags, int *ret_listener)
{
	struct job *job = commit->job;
	uint64_t address;
	long result = 0;
	int r;

	r = place_program(commit, &address);
	if (r == 0)
		r = write_program(commit, address);
	if (r == 0)
		r = load(commit, address, flags, &result);
	if (r < 0)
		return r;
	if (result < 0) {
		unmap_program(commit, false);
		return refuse(job, result == -EACCES ? PSC_REFUSED_PRIVILEGE : PSC_REFUSED_KERNEL, (int)result);
	}
	if (job->notifies)
		r = fetch_listener(commit, result, ret_listener);
	unmap_program(commit, true);
	return r;
}

/* Everything for one thread: afterwards it stands as it stood. */
static int apply(struct job *job, struct psc_tracee *tracee, uint32_t flags, int *ret_listener)
{
	struct commit commit = { .job = job, .tracee = tracee, .abi = psc_abi_of(&tracee->regs) };
	int r, restored;

	commit.verdicts = job->verdicts[commit.abi->wide];
	job->result->audit_arch = commit.abi->audit_arch;
	psc_tracee_abort_rseq(&job->visit, tracee);
	r = suspend_filters(&commit);
	if (r == 0)
		r = check_listener(&commit);
	if (r == 0)
		r = find_room(&commit);
	if (r == 0)
		r = psc_tracee_block_signals(tracee);
	if (r < 0)
		return r;
	r = load_and_fetch(&commit, flags, ret_listener);
	if (r == -ETIMEDOUT) /* it still runs our code, and will finish by itself */
		return r;
	restored = psc_tracee_restore(&job->visit, tracee);
	wipe_cave(&commit);
	return r < 0 ? r : restored;
}

static uint32_t seccomp_flags(const struct job *job, bool all_threads)
{
	uint32_t flags = job->options->flags;

	if (all_threads)
		flags |= SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
	if (job->notifies)
		flags |= SECCOMP_FILTER_FLAG_NEW_LISTENER;
	else
		flags &= ~(uint32_t)SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
	return flags;
}

/* Threads whose filters differ cannot share one: each gets its own. */
static int apply_one_by_one(struct job *job)
{
	struct psc_attach_result *result = job->result;
	size_t done = 0;

	for (size_t i = 0; i < job->visit.n; i++) {
		struct psc_tracee *tracee = &job->visit.tracees[i];
		int listener = -1, r;

		if (tracee->state != PSC_TRACEE_STOPPED)
			continue;
		r = apply(job, tracee, seccomp_flags(job, false), &listener);
		if (r < 0) {
			result->tid = tracee->tid;
			return done ? refuse(job, PSC_REFUSED_PARTIAL, r) : r;
		}
		result->threads[done++] = (struct psc_thread_outcome){ tracee->tid, -1, -1, listener };
		result->n_threads = done;
	}
	return done ? 0 : refuse(job, PSC_REFUSED_GONE, -ESRCH);
}

/* Which thread makes the call: the leader, whose fd table a pidfd reaches on
 * every kernel; any other if that one has exited. */
static struct psc_tracee *choose(struct job *job)
{
	struct psc_tracee *leader = psc_visit_find(&job->visit, job->visit.tgid);

	if (leader && leader->state == PSC_TRACEE_STOPPED)
		return leader;
	for (size_t i = 0; i < job->visit.n; i++)
		if (job->visit.tracees[i].state == PSC_TRACEE_STOPPED)
			return &job->visit.tracees[i];
	return NULL;
}

static int make_outcomes(struct job *job)
{
	size_t size = job->visit.n * sizeof(struct psc_thread_outcome);
	long map = psc_sys(SYS_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	if (map < 0 && map > -4096)
		return refuse(job, PSC_REFUSED_KERNEL, -ENOMEM);
	job->result->threads = (struct psc_thread_outcome *)map;
	return 0;
}

static int apply_to_all(struct job *job)
{
	struct psc_attach_result *result = job->result;
	struct psc_tracee *tracee = choose(job);
	int r;

	if (!tracee)
		return refuse(job, PSC_REFUSED_GONE, -ESRCH);
	r = make_outcomes(job);
	if (r < 0)
		return r;
	r = apply(job, tracee, seccomp_flags(job, !job->options->leader_only), &result->listener);
	if (r == -ESRCH && result->refusal == PSC_REFUSED_KERNEL)
		return apply_one_by_one(job);
	if (r < 0 && result->refusal != PSC_REFUSED_NO_LISTENER)
		return r;
	for (size_t i = 0; i < job->visit.n; i++)
		if (job->visit.tracees[i].state == PSC_TRACEE_STOPPED)
			result->threads[result->n_threads++] =
				(struct psc_thread_outcome){ job->visit.tracees[i].tid, -1, -1, -1 };
	return r;
}

static int stop_failed(struct job *job, int error)
{
	job->result->tid = job->visit.blamed;
	job->result->other_tracer = job->visit.other_tracer;
	switch (error) {
	case -EBUSY: return refuse(job, PSC_REFUSED_TRACED, error);
	case -ETIMEDOUT: return refuse(job, PSC_REFUSED_UNSTOPPABLE, error);
	case -ESRCH: return refuse(job, PSC_REFUSED_GONE, error);
	case -EPERM:
	case -EACCES: return refuse(job, PSC_REFUSED_PERMISSION, error);
	default: return refuse(job, PSC_REFUSED_INJECTOR, error);
	}
}

static void inject(struct job *job)
{
	int r;

	r = psc_visit_stop(&job->visit);
	if (r < 0)
		r = stop_failed(job, r);
	else
		r = apply_to_all(job);
	psc_visit_release(&job->visit);
	job->result->stop_ns = job->visit.since ? psc_now_ns() - job->visit.since : 0;
	job->outcome = r;
}

/* ------------------------------------------------------------ the injector */

/* The processor that a thread ran on last: field 39 of proc(5)'s stat. */
static int last_cpu(pid_t tid)
{
	char text[1024], path[32], *pos;
	long fd, n;

	snprintf(path, sizeof(path), "/proc/%d/stat", tid);
	fd = psc_sys(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return (int)fd;
	n = psc_sys(SYS_read, fd, text, sizeof(text) - 1);
	psc_sys(SYS_close, fd);
	text[n > 0 ? n : 0] = '\0';
	pos = strrchr(text, ')');
	for (int field = 2; pos && field < 39; field++)
		pos = strchr(pos + 1, ' ');
	return pos ? (int)strtol(pos, NULL, 10) : -EBADMSG;
}

/* A stop and the wake-up of who waits for it take turns: on one processor that
 * is a switch, on two it is an interrupt to an idle one, which costs a virtual
 * machine 2 to 3 times as much of the target's time. */
static void go_to(pid_t tid)
{
	cpu_set_t set;
	int cpu = last_cpu(tid);

	if (cpu < 0 || cpu >= CPU_SETSIZE)
		return;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	psc_sys(SYS_sched_setaffinity, 0, sizeof(set), &set);
}

static int injector(void *arg)
{
	struct job *job = arg;

	psc_sys(SYS_setsid);
	if (job->before.n_threads == 1)
		go_to(job->visit.tgid);
	inject(job);
	return 0;
}

static void *injector_thread(void *arg)
{
	inject(arg);
	return NULL;
}

static int run_process(struct job *job)
{
	const int flags = CLONE_VM | CLONE_FILES;
	char *stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	int status = 0;
	pid_t pid;

	if (stack == MAP_FAILED)
		return -ENOMEM;
	(void)!mprotect(stack, PAGE, PROT_NONE);
	job->outcome = -EINTR;
	pid = clone(injector, stack + STACK_SIZE, flags, job);
	if (pid < 0) {
		status = -errno;
	} else {
		while (waitpid(pid, &status, __WALL) < 0 && errno == EINTR)
			;
		status = WIFEXITED(status) ? 0 : -EINTR;
	}
	munmap(stack, STACK_SIZE);
	return status;
}

static int run_thread(struct job *job)
{
	pthread_t thread;
	int r = pthread_create(&thread, NULL, injector_thread, job);

	if (r == 0)
		r = pthread_join(thread, NULL);
	return -r;
}

/* All signals wait: the injector inherits the mask, and a handler must not run
 * on memory that it shares with us. */
static int run_injector(struct job *job)
{
	sigset_t all, old;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = job->visit.own_signals ? run_process(job) : run_thread(job);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r < 0)
		return refuse(job, PSC_REFUSED_INJECTOR, r);
	return job->outcome;
}

/* ------------------------------------------------------------- the manager */

static int look(struct job *job)
{
	int r = psc_query_process(0, job->options->pidfd, &job->before);

	if (r < 0)
		return refuse(job, r == -EACCES ? PSC_REFUSED_PERMISSION : PSC_REFUSED_GONE, r);
	job->result->pid = job->visit.tgid = job->before.pid;
	job->visit.only = job->options->leader_only ? job->visit.tgid : 0;
	if (job->before.kernel_thread)
		return refuse(job, PSC_REFUSED_KERNEL_THREAD, -EPERM);
	if (!job->before.alive)
		return refuse(job, PSC_REFUSED_GONE, -ESRCH);
	for (size_t i = 0; i < job->before.n_threads; i++) {
		const struct psc_task_state *task = &job->before.threads[i];

		job->result->tid = task->tid;
		if (task->tracer) {
			job->result->other_tracer = task->tracer;
			return refuse(job, PSC_REFUSED_TRACED, -EBUSY);
		}
		if (task->seccomp == SECCOMP_MODE_STRICT)
			return refuse(job, PSC_REFUSED_STRICT, -EACCES);
	}
	job->result->tid = 0;
	return 0;
}

static pid_t live_thread(const struct job *job)
{
	for (size_t i = 0; i < job->before.n_threads; i++)
		if (psc_task_alive(&job->before.threads[i]))
			return job->before.threads[i].tid;
	return job->visit.tgid;
}

/* Open what the injector needs, and find out now whether we may. */
static int try_rights(struct job *job)
{
	char path[32];
	int r;

	snprintf(path, sizeof(path), "/proc/%d/task", job->visit.tgid);
	job->visit.tasks = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (job->visit.tasks < 0)
		return refuse(job, PSC_REFUSED_GONE, -ESRCH);
	snprintf(path, sizeof(path), "/proc/%d/mem", live_thread(job));
	job->visit.mem = open(path, O_RDWR | O_CLOEXEC);
	if (job->visit.mem < 0)
		return refuse(job, errno == ENOENT || errno == ESRCH ? PSC_REFUSED_GONE : PSC_REFUSED_PERMISSION,
			      -errno);
	/* The numbers in the paths: still this process's? */
	r = (int)psc_syscall(SYS_pidfd_send_signal, job->options->pidfd, 0, NULL, 0);
	if (r == -ESRCH)
		return refuse(job, PSC_REFUSED_GONE, r);
	if (!job->notifies)
		return 0;
	job->reserve = fcntl(job->options->pidfd, F_DUPFD_CLOEXEC, 3);
	if (job->reserve < 0)
		return refuse(job, PSC_REFUSED_NO_LISTENER, -errno);
	r = (int)psc_syscall(SYS_pidfd_getfd, job->options->pidfd, -1, 0);
	return r == -EPERM || r == -ENOSYS ? refuse(job, PSC_REFUSED_PERMISSION, r) : 0;
}

static int prepare(struct job *job)
{
	const struct psc_attach_options *options = job->options;

	job->image_size = sizeof(*job->image) + options->len * sizeof(*options->insns);
	job->image = malloc(job->image_size);
	if (!job->image)
		return refuse(job, PSC_REFUSED_KERNEL, -ENOMEM);
	memcpy(job->image->insns, options->insns, options->len * sizeof(*options->insns));
	/* Not found or not to be read now, in the middle of an exec perhaps: the
	 * injector looks again when everybody stands still. */
	if (psc_cave_find(live_thread(job), job->visit.mem, room_wanted(job),
			  job->before.elf_class == ELFCLASS32 ? UINT32_MAX : UINT64_MAX, &job->cave) < 0 &&
	    job->cave.size < PSC_SITE_SIZE)
		job->cave = (struct psc_cave){ 0 };
	job->verdicts[false] = judge(options->insns, options->len, &psc_abi_i386, job->cave.address);
	job->verdicts[true] = judge(options->insns, options->len, &psc_abi_x86_64, job->cave.address);
	return 0;
}

static int filters_of(const struct psc_process_state *process, pid_t tid)
{
	for (size_t i = 0; i < process->n_threads; i++)
		if (process->threads[i].tid == tid)
			return process->threads[i].filters;
	return -1;
}

/* What the kernel says now, thread by thread. The list moves from the injector's
 * mapping to memory of the caller's kind. */
static int report(struct job *job)
{
	struct psc_attach_result *result = job->result;
	struct psc_thread_outcome *mapped = result->threads;
	struct psc_process_state after = { 0 };

	result->threads = calloc(job->visit.n, sizeof(*mapped));
	if (psc_query_process(0, job->options->pidfd, &after) < 0)
		after = (struct psc_process_state){ 0 };
	for (size_t i = 0; result->threads && i < result->n_threads; i++) {
		result->threads[i] = mapped[i];
		result->threads[i].filters_before = filters_of(&job->before, mapped[i].tid);
		result->threads[i].filters_after = filters_of(&after, mapped[i].tid);
	}
	psc_process_state_destroy(&after);
	munmap(mapped, job->visit.n * sizeof(*mapped));
	if (result->threads)
		return 0;
	result->n_threads = 0;
	return -ENOMEM;
}

static void clean_up(struct job *job)
{
	psc_process_state_destroy(&job->before);
	psc_visit_destroy(&job->visit);
	psc_close_fd(&job->visit.mem);
	psc_close_fd(&job->visit.tasks);
	psc_close_fd(&job->reserve);
	free(job->image);
}

static int attach(struct job *job)
{
	int r = look(job);

	if (r == 0)
		r = try_rights(job);
	if (r == 0)
		r = prepare(job);
	if (r < 0)
		return r;
	r = run_injector(job);
	if (job->result->threads && report(job) < 0 && r == 0)
		r = refuse(job, PSC_REFUSED_KERNEL, -ENOMEM);
	return r;
}

/* A process that is executing another program shows itself without memory, not
 * to be traced, or its leader as dead, for a moment: what lives is asked again. */
static bool was_passing(const struct psc_attach_options *options, const struct psc_attach_result *result, int tries)
{
	struct pollfd exited = { .fd = options->pidfd, .events = POLLIN };
	const struct timespec nap = { 0, 200000 };

	if (result->refusal != PSC_REFUSED_GONE && result->refusal != PSC_REFUSED_NO_ROOM &&
	    (result->refusal != PSC_REFUSED_PERMISSION || tries > MAX_TRIES_PERMISSION))
		return false;
	if (poll(&exited, 1, 0) != 0)
		return false;
	nanosleep(&nap, NULL);
	return true;
}

static int attempt(const struct psc_attach_options *options, uint64_t deadline, struct psc_attach_result *ret_result)
{
	struct job job = {
		.options = options,
		.result = ret_result,
		.visit = { .mem = -1, .tasks = -1, .own_signals = !options->in_thread, .deadline = deadline },
		.notifies = psc_program_notifies(options->insns, options->len),
		.reserve = -1,
		.manager = getpid(),
	};
	int r;

	*ret_result = (struct psc_attach_result){ .listener = -1 };
	r = attach(&job);
	clean_up(&job);
	return r;
}

int psc_attach(const struct psc_attach_options *options, struct psc_attach_result *ret_result)
{
	uint64_t deadline = psc_now_ns() + options->timeout_ns;
	int tries = 0, r;

	*ret_result = (struct psc_attach_result){ .listener = -1 };
	if (psc_program_check(options->insns, options->len, NULL) < 0)
		return -EINVAL;
	do
		r = attempt(options, deadline, ret_result);
	while (r < 0 && ++tries < MAX_TRIES && psc_now_ns() < deadline && was_passing(options, ret_result, tries));
	return r;
}

void psc_attach_result_destroy(struct psc_attach_result *result)
{
	if (!result)
		return;
	free(result->threads);
	result->threads = NULL;
	result->n_threads = 0;
}
