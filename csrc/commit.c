/* commit.c - filter the stopped threads of another process.
 *
 * Nothing here is believed that was found out before the stop: room, filters and
 * ABI are looked at again. Every check comes before the one call that cannot be
 * taken back; what follows it only tidies up, and is made so that it does no harm
 * if the new filter, which judges our calls too, does not allow it.
 */
#define _GNU_SOURCE
#include "attach.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/ptrace.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL /* Linux 6.9 */
#endif
#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif

#define PTRACE_OPTIONS (PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC)
#define COMMIT_NS 60000000000 /* for some thousand instructions, on a machine that is drowning */
#define SETTLE_NS 200000000   /* for a thread to leave our code after a failure */
#define MAX_SUSPENDED 64      /* earlier filters that are looked into */
#define MAX_PATH 32768	      /* instructions of a chain of filters, by the kernel's count */

static bool allows(uint32_t ret)
{
	uint32_t action = ret & SECCOMP_RET_ACTION_FULL;

	return action == SECCOMP_RET_ALLOW || action == SECCOMP_RET_LOG;
}

static uint32_t answer(const struct sock_filter *insns, size_t len, const struct psc_abi *abi, uint64_t ip,
		       int nr, uint64_t arg0, uint64_t arg1)
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

struct psc_verdicts psc_verdicts_judge(const struct sock_filter *insns, size_t len, const struct psc_abi *abi, uint64_t ip)
{
	uint32_t close_low = answer(insns, len, abi, ip, abi->close, 3, 0);
	uint32_t close_high = answer(insns, len, abi, ip, abi->close, 1023, 0);

	return (struct psc_verdicts){
		.close = allows(close_low) && allows(close_high),
		.close_notifies = (close_low & SECCOMP_RET_ACTION_FULL) == SECCOMP_RET_USER_NOTIF &&
				  (close_high & SECCOMP_RET_ACTION_FULL) == SECCOMP_RET_USER_NOTIF,
		.unmap = allows(answer(insns, len, abi, ip, abi->munmap, 0x10000, PSC_PAGE)),
		.unmask = allows(answer(insns, len, abi, ip, abi->rt_sigprocmask, 0, 0)),
		.exit = allows(answer(insns, len, abi, ip, abi->exit, 0, 0)),
	};
}

/* One thread, about to make the call. */
struct commit {
	struct psc_job *job;
	struct psc_tracee *tracee;
	const struct psc_abi *abi;
	struct psc_verdicts earlier; /* of the filters that it has */
	bool suspended;
	uint64_t map;
	struct psc_site site;
};

/* RLIMIT_NOFILE of another user's process, which prlimit(2) tells only to CAP_SYS_RESOURCE. */
static rlim_t shown_descriptor_limit(pid_t pid)
{
	static const char name[] = "\nMax open files";
	char text[4096], *line;

	if (psc_read_proc(pid, "limits", text, sizeof(text)) <= 0)
		return RLIM_INFINITY;
	line = strstr(text, name);
	return line ? strtoul(line + sizeof(name) - 1, NULL, 10) : RLIM_INFINITY; /* "unlimited" is no number: 0 */
}

static int read_status(int dir, const char *path, struct psc_task_state *ret_task, bool *ret_tight)
{
	char text[8192], *fds;
	long fd = psc_sys(SYS_openat, dir, path, O_RDONLY | O_CLOEXEC), n;
	struct rlimit limit = { 0 };
	int r;

	if (fd < 0)
		return (int)fd;
	n = psc_sys(SYS_read, fd, text, sizeof(text) - 1);
	psc_sys(SYS_close, fd);
	if (n <= 0)
		return -ESRCH;
	text[n] = '\0';
	r = psc_query_parse_status(text, (size_t)n, ret_task);
	if (r < 0 || !ret_tight)
		return r;
	fds = strstr(text, "\nFDSize:");
	r = (int)psc_sys(SYS_prlimit64, ret_task->pid, RLIMIT_NOFILE, 0, &limit);
	if (r < 0)
		limit.rlim_cur = shown_descriptor_limit(ret_task->pid);
	*ret_tight = fds && strtoul(fds + 8, NULL, 10) >= limit.rlim_cur;
	return 0;
}

static int carried(const struct psc_task_state *task)
{
	return task->seccomp == SECCOMP_MODE_DISABLED ? 0 : task->filters > 0 ? task->filters : 1;
}

static int number_of_filters(struct psc_job *job, pid_t tid, int *ret_filters)
{
	struct psc_task_state task;
	char path[32];
	int r;

	snprintf(path, sizeof(path), "%d/status", tid);
	r = read_status(job->visit.tasks, path, &task, NULL);
	if (r == 0)
		*ret_filters = carried(&task);
	return r;
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
		struct psc_verdicts earlier;
		long len = psc_sys(SYS_ptrace, PTRACE_SECCOMP_GET_FILTER, tid, i, map);

		if (len <= 0)
			break;
		earlier = psc_verdicts_judge((struct sock_filter *)map, (size_t)len, commit->abi, commit->job->cave.address);
		commit->earlier.close &= earlier.close;
		commit->earlier.unmap &= earlier.unmap;
		commit->earlier.unmask &= earlier.unmask;
		commit->earlier.exit &= earlier.exit;
	}
	psc_sys(SYS_munmap, map, PSC_MAX_INSNS * sizeof(struct sock_filter));
	return 0;
}

/* Suspend the thread's earlier filters, or be sure that it has none. */
static int suspend_filters(struct commit *commit)
{
	struct psc_job *job = commit->job;
	int filters = 0, r;

	commit->suspended = psc_sys(SYS_ptrace, PTRACE_SETOPTIONS, commit->tracee->tid, 0,
				    job->visit.options | PTRACE_OPTIONS | PTRACE_O_SUSPEND_SECCOMP) == 0;
	if (commit->suspended && job->before.threads[0].seccomp == SECCOMP_MODE_DISABLED)
		return 0;
	r = number_of_filters(job, commit->tracee->tid, &filters);
	if (r < 0)
		return psc_job_refuse(job, PSC_REFUSED_GONE, r);
	if (filters == 0)
		return 0;
	if (!commit->suspended) {
		job->result->tid = commit->tracee->tid;
		return psc_job_refuse(job, PSC_REFUSED_FILTERED, -EACCES);
	}
	job->result->suspended = true;
	return narrow_by_earlier(commit);
}

/* A listener must be closed in the target before it runs again, under the very
 * program that has just come into force. */
static int check_listener(struct commit *commit)
{
	const struct psc_verdicts *own = &commit->job->verdicts[commit->abi->wide];

	if (!commit->job->notifies || commit->suspended || own->close || own->close_notifies)
		return 0;
	return psc_job_refuse(commit->job, PSC_REFUSED_LISTENER_STUCK, -EDEADLK);
}

/* Another program has been executed: another memory. */
static int reopen_memory(struct psc_job *job, pid_t tid)
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

size_t psc_job_room_wanted(const struct psc_job *job)
{
	return PSC_SITE_SIZE + (job->image_size <= PSC_PAGE ? job->image_size : 0);
}

/* The cave that was found before the stop, if it holds; else another. */
static int find_room(struct commit *commit)
{
	struct psc_job *job = commit->job;
	pid_t tid = commit->tracee->tid;
	uint64_t limit = commit->abi->wide ? UINT64_MAX : UINT32_MAX;
	int r;

	if (!job->visit.execed && job->cave.size >= PSC_SITE_SIZE && job->cave.address + job->cave.size <= limit &&
	    psc_cave_check(tid, job->visit.mem, &job->cave) == 0)
		return 0;
	r = reopen_memory(job, tid);
	if (r < 0)
		return psc_job_refuse(job, PSC_REFUSED_PERMISSION, r);
	job->visit.execed = false;
	r = psc_cave_find(tid, job->visit.mem, psc_job_room_wanted(job), limit, &job->cave);
	if (r == -ENOSPC && job->cave.size >= PSC_SITE_SIZE)
		r = 0;
	return r < 0 ? psc_job_refuse(job, PSC_REFUSED_NO_ROOM, r) : 0;
}

static size_t map_size(const struct psc_job *job)
{
	return (job->image_size + PSC_PAGE - 1) & ~(size_t)(PSC_PAGE - 1);
}

static bool fits_cave(const struct psc_job *job)
{
	return job->cave.size >= PSC_SITE_SIZE + job->image_size;
}

/* Where the program is to be read by the kernel: behind the code in the cave, or
 * in memory that the target maps for it. */
static int place_program(struct commit *commit, uint64_t *ret_address)
{
	struct psc_job *job = commit->job;
	const struct psc_script nothing = { .unmask = commit->earlier.unmask };
	const uint64_t args[6] = { 0, map_size(job), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1ULL, 0 };
	long map;
	int r;

	if (commit->map) {
		*ret_address = commit->map;
		return 0;
	}
	if (fits_cave(job)) {
		*ret_address = job->cave.address + PSC_SITE_SIZE;
		return 0;
	}
	r = psc_site_build(&job->visit, commit->tracee, &job->cave, &nothing, &commit->site);
	if (r == 0)
		r = psc_tracee_call(&job->visit, commit->tracee, &commit->site, -1, commit->abi->mmap, args, &map);
	if (r < 0)
		return psc_job_refuse(job, PSC_REFUSED_FAULT, r);
	if (map < 0 && map > -4096)
		return psc_job_refuse(job, PSC_REFUSED_NO_ROOM, (int)map);
	commit->map = commit->abi->wide ? (uint64_t)map : (uint32_t)map;
	*ret_address = commit->map;
	return 0;
}

static int write_program(struct commit *commit, uint64_t address)
{
	struct psc_job *job = commit->job;
	struct psc_image *image = job->image;

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

static bool manager_died(const struct psc_job *job)
{
	return job->manager && job->visit.own_signals && psc_sys(SYS_getppid) != job->manager;
}

/* The commit. *ret_result: what seccomp() returned. */
static int run_main(struct commit *commit, uint64_t address, uint32_t flags, bool no_new_privs, long *ret_result)
{
	struct psc_job *job = commit->job;
	const struct psc_verdicts *own = &job->verdicts[commit->abi->wide];
	const struct psc_script script = {
		.data = address,
		.fprog = address,
		.flags = flags,
		.no_new_privs = no_new_privs,
		.close_listener = job->notifies && own->close && commit->earlier.close,
		.unmap = commit->map && own->unmap && commit->earlier.unmap,
		.unmask = own->unmask && commit->earlier.unmask,
		.map = commit->map,
		.map_size = map_size(job),
	};
	int r = psc_site_build(&job->visit, commit->tracee, &job->cave, &script, &commit->site);

	if (r < 0)
		return psc_job_refuse(job, PSC_REFUSED_NO_ROOM, r);
	if (manager_died(job))
		return psc_job_refuse(job, PSC_REFUSED_INJECTOR, -ECANCELED);
	job->visit.deadline = psc_now_ns() + COMMIT_NS;
	r = psc_tracee_run_main(&job->visit, commit->tracee, &commit->site, no_new_privs, ret_result);
	if (r < 0)
		return psc_job_refuse(job, r == -ESRCH ? PSC_REFUSED_GONE : PSC_REFUSED_FAULT, r);
	job->result->no_new_privs_set |= no_new_privs && job->before.threads[0].no_new_privs == 0;
	return 0;
}

/* Whose descriptors are those of a thread? Before Linux 6.9 only a leader can be asked;
 * a sibling's are mostly the same, but not those of a leader that has ended. */
static int pidfd_for_files(const struct psc_job *job, pid_t tid)
{
	pid_t tgid = job->visit.tgid;
	long pidfd;

	if (tid == tgid)
		return job->options->pidfd;
	pidfd = psc_sys(SYS_pidfd_open, tid, PIDFD_THREAD);
	if (pidfd == -EINVAL && psc_sys(SYS_kcmp, tgid, tid, KCMP_FILES, 0, 0) == 0)
		return job->options->pidfd;
	return (int)pidfd;
}

int psc_job_check_fetch(struct psc_job *job, pid_t tid)
{
	int pidfd;
	long r;

	job->reserve = (int)psc_sys(SYS_fcntl, job->options->pidfd, F_DUPFD_CLOEXEC, 3);
	if (job->reserve < 0)
		return psc_job_refuse(job, PSC_REFUSED_DESCRIPTORS, job->reserve);
	pidfd = pidfd_for_files(job, tid);
	if (pidfd == -ESRCH)
		return 0; /* another thread will do it */
	if (pidfd < 0)
		return psc_job_refuse(job, pidfd == -EINVAL ? PSC_REFUSED_LEADER_ENDED : PSC_REFUSED_PERMISSION, pidfd);
	r = psc_sys(SYS_pidfd_getfd, pidfd, -1, 0);
	if (pidfd != job->options->pidfd)
		psc_sys(SYS_close, pidfd);
	return r == -EPERM || r == -ENOSYS ? psc_job_refuse(job, PSC_REFUSED_PERMISSION, (int)r) : 0;
}

/* Take the listener out of the target, which must not keep it. */
static int fetch_listener(struct commit *commit, long remote, int *ret_listener)
{
	struct psc_job *job = commit->job;
	const uint64_t close_args[6] = { (uint64_t)remote };
	const struct psc_verdicts *own = &job->verdicts[commit->abi->wide];
	int pidfd = pidfd_for_files(job, commit->tracee->tid), fd, r;
	long result;

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
		return psc_job_refuse(job, PSC_REFUSED_NO_LISTENER, fd);
	*ret_listener = fd;
	return r == -ESRCH ? 0 : r;
}

static void unmap_program(struct commit *commit, bool committed)
{
	struct psc_job *job = commit->job;
	const uint64_t args[6] = { commit->map, map_size(job) };
	long result = -EACCES;

	if (!commit->map)
		return;
	job->map = 0;
	if (commit->suspended || !committed || job->verdicts[commit->abi->wide].unmap)
		if (psc_tracee_call(&job->visit, commit->tracee, &commit->site, -1, commit->abi->munmap, args, &result) < 0)
			return;
	if (result < 0)
		job->result->residue += map_size(job);
}

/* Code that a thread may still execute stays. */
static void wipe_cave(struct commit *commit)
{
	static const uint8_t zeros[PSC_SITE_SIZE + sizeof(struct psc_image) + PSC_PAGE];
	struct psc_job *job = commit->job;
	size_t used = PSC_SITE_SIZE + (commit->map ? 0 : job->image_size);

	job->stray |= commit->tracee->injected;
	if (job->stray)
		job->result->residue += used;
	else if (commit->tracee->state == PSC_TRACEE_STOPPED)
		(void)!psc_tracee_write(&job->visit, commit->tracee, job->cave.address, zeros,
					used < job->cave.size ? used : job->cave.size);
}

static bool wants_no_new_privs(const struct psc_job *job)
{
	if (job->options->no_new_privs != PSC_NO_NEW_PRIVS_AUTO)
		return job->options->no_new_privs == PSC_NO_NEW_PRIVS_ALWAYS;
	return job->before.threads[0].no_new_privs == 0 && !(job->before.threads[0].cap_effective >> 21 & 1);
}

/* Load, and once more with no_new_privs if only that was missing. */
static int load(struct commit *commit, uint64_t address, uint32_t flags, long *ret_result)
{
	struct psc_job *job = commit->job;
	bool no_new_privs = wants_no_new_privs(job);
	int r = run_main(commit, address, flags, no_new_privs, ret_result);

	if (r == 0 && *ret_result == -EACCES && !no_new_privs && job->options->no_new_privs == PSC_NO_NEW_PRIVS_AUTO)
		r = run_main(commit, address, flags, true, ret_result);
	return r;
}

static int load_and_fetch(struct commit *commit, uint32_t flags, int *ret_listener)
{
	struct psc_job *job = commit->job;
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
		return psc_job_refuse(job, result == -EACCES ? PSC_REFUSED_PRIVILEGE : PSC_REFUSED_KERNEL, (int)result);
	}
	if (job->notifies)
		r = fetch_listener(commit, result, ret_listener);
	unmap_program(commit, true);
	return r;
}

/* Whatever can be refused without a call. */
static int make_ready(struct commit *commit)
{
	int r;

	commit->earlier = (struct psc_verdicts){ .close = true, .unmap = true, .unmask = true, .exit = true };
	commit->map = commit->job->map;
	psc_tracee_abort_rseq(&commit->job->visit, commit->tracee);
	r = suspend_filters(commit);
	if (r == 0)
		r = check_listener(commit);
	return r < 0 ? r : find_room(commit);
}

/* From a stopped thread to one that can be made to call. */
static int enter(struct commit *commit)
{
	int r = make_ready(commit);

	return r < 0 ? r : psc_tracee_block_signals(commit->tracee);
}

/* And back. r: what became of the calls. A thread that did not come to its stop in time
 * executes our code still, and finishes by itself. */
static int leave(struct commit *commit, int r)
{
	int restored = psc_tracee_restore(&commit->job->visit, commit->tracee);

	wipe_cave(commit);
	return r < 0 ? r : restored;
}

/* Everything for one thread: afterwards it stands as it stood. */
static int apply(struct psc_job *job, struct psc_tracee *tracee, uint32_t flags, int *ret_listener)
{
	struct commit commit = { .job = job, .tracee = tracee, .abi = psc_abi_of(&tracee->regs) };
	int r;

	job->result->audit_arch = commit.abi->audit_arch;
	r = enter(&commit);
	return r < 0 ? r : leave(&commit, load_and_fetch(&commit, flags, ret_listener));
}

static uint32_t seccomp_flags(const struct psc_job *job, bool all_threads)
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
static int apply_one_by_one(struct psc_job *job)
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
			return done ? psc_job_refuse(job, PSC_REFUSED_PARTIAL, r) : r;
		}
		result->threads[done++] = (struct psc_thread_outcome){ tracee->tid, tracee->filters, -1, listener };
		result->n_threads = done;
	}
	return done ? 0 : psc_job_refuse(job, PSC_REFUSED_GONE, -ESRCH);
}

struct psc_tracee *psc_job_choose(struct psc_job *job)
{
	struct psc_tracee *leader = psc_visit_find(&job->visit, job->visit.tgid);

	if (leader && leader->state == PSC_TRACEE_STOPPED)
		return leader;
	for (size_t i = 0; i < job->visit.n; i++)
		if (job->visit.tracees[i].state == PSC_TRACEE_STOPPED)
			return &job->visit.tracees[i];
	return NULL;
}

static int make_outcomes(struct psc_job *job)
{
	size_t size = job->visit.n * sizeof(struct psc_thread_outcome);
	long map = psc_sys(SYS_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	if (map < 0 && map > -4096)
		return psc_job_refuse(job, PSC_REFUSED_KERNEL, -ENOMEM);
	job->result->threads = (struct psc_thread_outcome *)map;
	return 0;
}

int psc_job_commit(struct psc_job *job)
{
	struct psc_attach_result *result = job->result;
	struct psc_tracee *tracee = psc_job_choose(job);
	int r;

	if (!tracee)
		return psc_job_refuse(job, PSC_REFUSED_GONE, -ESRCH);
	r = job->manager ? psc_restart_check_stopped(job) : 0;
	if (r == 0)
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
				(struct psc_thread_outcome){ job->visit.tracees[i].tid, job->visit.tracees[i].filters, -1, -1 };
	return r;
}

/* ------------------------------------------------------------ beforehand */

int psc_job_look(struct psc_job *job, pid_t tid, struct psc_task_state *ret_task)
{
	const struct psc_attach_options *options = job->options;
	uint64_t limit = psc_abi_of(&job->visit.tracees[0].regs)->wide ? UINT64_MAX : UINT32_MAX;
	char path[32];
	int r;

	snprintf(path, sizeof(path), "/proc/%d/status", tid);
	r = read_status(AT_FDCWD, path, ret_task, &job->tight);
	if (r < 0)
		return psc_job_refuse(job, PSC_REFUSED_GONE, r);
	job->before.threads = ret_task;
	job->before.n_threads = 1;
	snprintf(path, sizeof(path), "/proc/%d/mem", tid);
	job->visit.mem = (int)psc_sys(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
	if (job->visit.mem < 0)
		return psc_job_refuse(job, PSC_REFUSED_PERMISSION, job->visit.mem);
	if (psc_cave_find(tid, job->visit.mem, psc_job_room_wanted(job), limit, &job->cave) < 0 &&
	    job->cave.size < PSC_SITE_SIZE)
		job->cave = (struct psc_cave){ 0 };
	job->visit.execed = job->cave.size == 0;
	job->verdicts[false] = psc_verdicts_judge(options->insns, options->len, &psc_abi_i386, job->cave.address);
	job->verdicts[true] = psc_verdicts_judge(options->insns, options->len, &psc_abi_x86_64, job->cave.address);
	return 0;
}

/* Every thread's filters, and strict mode. */
static int check_threads(struct psc_job *job)
{
	for (size_t i = 0; i < job->visit.n; i++) {
		struct psc_tracee *tracee = &job->visit.tracees[i];
		struct psc_task_state task = job->before.threads[0];
		char path[32];
		int r = 0;

		if (tracee->state != PSC_TRACEE_STOPPED)
			continue;
		snprintf(path, sizeof(path), "%d/status", tracee->tid);
		if (task.tid != tracee->tid)
			r = read_status(job->visit.tasks, path, &task, NULL);
		if (r < 0)
			return psc_job_refuse(job, PSC_REFUSED_GONE, r);
		tracee->filters = carried(&task);
		if (task.seccomp == SECCOMP_MODE_STRICT) {
			job->result->tid = tracee->tid;
			return psc_job_refuse(job, PSC_REFUSED_STRICT, -EACCES);
		}
	}
	return 0;
}

/* What the kernel asks for: no_new_privs, or CAP_SYS_ADMIN there. */
static int check_rights(struct psc_job *job)
{
	const struct psc_task_state *task = &job->before.threads[0];

	if (job->options->no_new_privs == PSC_NO_NEW_PRIVS_NEVER && task->no_new_privs == 0 &&
	    !(task->cap_effective >> 21 & 1))
		return psc_job_refuse(job, PSC_REFUSED_PRIVILEGE, -EACCES);
	return 0;
}

/* The temporary thread is gone, or the code stays; its maker stands where it can be restored. */
static int end_loader(struct commit *commit, struct psc_tracee *loader, int r)
{
	struct psc_job *job = commit->job;
	uint64_t deadline = job->visit.deadline;
	int ended, stopped = 0;

	job->visit.deadline = psc_now_ns() + SETTLE_NS;
	ended = psc_loader_end(&job->visit, loader, &commit->site);
	job->stray |= loader->injected;
	if (commit->tracee->injected && commit->tracee->state == PSC_TRACEE_STOPPED)
		stopped = psc_tracee_resume(&job->visit, commit->tracee, &commit->site, PSC_STOP_TRAP);
	job->visit.deadline = deadline;
	return r < 0 ? r : ended < 0 ? ended : stopped;
}

/* The dry run. 1: no thread can be made, *ret_result says why. */
static int try_program(struct commit *commit, uint64_t address, long *ret_result)
{
	struct psc_job *job = commit->job;
	const struct psc_script script = {
		.data = address,
		.fprog = address,
		.flags = seccomp_flags(job, false),
		.no_new_privs = job->options->no_new_privs != PSC_NO_NEW_PRIVS_NEVER,
		.unmask = commit->earlier.unmask,
		.loader = true,
	};
	unsigned long options = job->visit.options | PTRACE_OPTIONS | (commit->suspended ? PTRACE_O_SUSPEND_SECCOMP : 0);
	struct psc_tracee loader;
	int r = write_program(commit, address), settled;

	if (r == 0)
		r = psc_site_build(&job->visit, commit->tracee, &job->cave, &script, &commit->site);
	if (r < 0)
		return r;
	r = psc_loader_start(&job->visit, commit->tracee, &commit->site, options, &loader, ret_result);
	if (r == 0)
		r = psc_loader_run(&job->visit, &loader, &commit->site, ret_result);
	settled = end_loader(commit, &loader, r);
	return settled < 0 ? settled : r;
}

/* Most instructions that the kernel makes of a program, and counts for its limit. */
static size_t longest(size_t len)
{
	return 5 * len + 8;
}

/* Without a dry run: is it sure that seccomp() has nothing to refuse? */
static bool is_sure(struct commit *commit)
{
	struct psc_job *job = commit->job;
	size_t size = PSC_MAX_INSNS * sizeof(struct sock_filter), total = longest(job->options->len);
	long map = psc_sys(SYS_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	bool sure = !(job->notifies && job->tight) && !(map < 0 && map > -4096);

	for (int i = 0; sure && i < commit->tracee->filters; i++) {
		long len = psc_sys(SYS_ptrace, PTRACE_SECCOMP_GET_FILTER, commit->tracee->tid, i, map);

		sure = len > 0 && !(job->notifies && psc_program_notifies((struct sock_filter *)map, (size_t)len));
		total += sure ? longest((size_t)len) : 0;
		sure &= total <= MAX_PATH;
	}
	if (!(map < 0 && map > -4096))
		psc_sys(SYS_munmap, map, size);
	return sure;
}

/* Ask the kernel by a dry run what seccomp() will say, if that can end: the program itself judges
 * the temporary thread's exit. */
static int foresee(struct commit *commit, uint64_t address)
{
	struct psc_job *job = commit->job;
	long result = -EOPNOTSUPP;
	int r = 1;

	if (job->verdicts[commit->abi->wide].exit && commit->earlier.exit)
		r = try_program(commit, address, &result);
	if (r < 0)
		return psc_job_refuse(job, r == -ESRCH ? PSC_REFUSED_GONE : PSC_REFUSED_FAULT, r);
	if (r == 1)
		return is_sure(commit) ? 0 : psc_job_refuse(job, PSC_REFUSED_NO_THREAD, (int)result);
	return result < 0 ? psc_job_refuse(job, PSC_REFUSED_KERNEL, (int)result) : 0;
}

int psc_job_check(struct psc_job *job)
{
	struct psc_tracee *tracee = psc_job_choose(job);
	struct commit commit = { .job = job, .tracee = tracee };
	uint64_t address;
	bool trial;
	int r;

	if (!tracee)
		return psc_job_refuse(job, PSC_REFUSED_GONE, -ESRCH);
	commit.abi = psc_abi_of(&tracee->regs);
	r = check_threads(job);
	if (r == 0)
		r = psc_restart_check_stopped(job);
	if (r == 0)
		r = check_rights(job);
	if (r == 0 && job->notifies)
		r = psc_job_check_fetch(job, tracee->tid);
	if (r == 0)
		r = make_ready(&commit);
	trial = tracee->filters > 0 || (job->notifies && job->tight);
	if (r == 0 && !trial && fits_cave(job))
		return 0;
	if (r == 0)
		r = psc_tracee_block_signals(tracee);
	if (r < 0)
		return r;
	r = place_program(&commit, &address);
	job->map = commit.map;
	if (r == 0 && trial)
		r = foresee(&commit, address);
	return leave(&commit, r);
}

void psc_job_give_up(struct psc_job *job)
{
	struct psc_script nothing = { 0 };
	struct psc_tracee *tracee = psc_job_choose(job);
	struct commit commit = { .job = job, .tracee = tracee };

	if (!job->map)
		return;
	if (!tracee || job->stray) {
		job->result->residue += map_size(job);
		return;
	}
	commit.abi = psc_abi_of(&tracee->regs);
	if (enter(&commit) < 0)
		return;
	nothing.unmask = commit.earlier.unmask;
	if (psc_site_build(&job->visit, tracee, &job->cave, &nothing, &commit.site) == 0)
		unmap_program(&commit, false);
	(void)!leave(&commit, 0);
}
