/* commit.c - filter the stopped threads of another process.
 *
 * Every check comes before the one call that cannot be taken back. What follows it only
 * tidies up, and does no harm if the new filter, which judges our calls too, does not allow
 * it. After that call nothing fails any more: whatever request fails then, the rest is done,
 * and the result says what is true of the target.
 *
 * A program that notifies is loaded by a temporary thread (loader.c): its descriptors are its
 * own, so no other task of the target can reach the listener, and they end with it. Where that
 * is not possible (before Linux 6.9, no thread can be made, its exit is forbidden, threads have
 * different filters) the thread itself loads it, and closes the listener again: then no
 * process outside the thread group may share its descriptors.
 */
#define _GNU_SOURCE
#include "commit.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL /* Linux 6.9 */
#endif
#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif

#define COMMIT_FLOOR_NS 1000000000 /* for some thousand instructions, where the stop has used up all the time */
#define DEATH_TRIES 50

static bool manager_died(const struct psc_job *job)
{
	return job->manager && job->visit.own_signals && psc_sys(SYS_getppid) != job->manager;
}

/* What has begun is given a second at least: to end it, and to put the thread back. */
static void extend_deadline(struct psc_job *job)
{
	uint64_t least = psc_now_ns() + COMMIT_FLOOR_NS;

	if (job->visit.deadline < least)
		job->visit.deadline = least;
}

/* A pidfd that reaches the descriptors of one thread. -EINVAL: not before Linux 6.9. */
static int open_thread(pid_t tid)
{
	return (int)psc_sys(SYS_pidfd_open, tid, PIDFD_THREAD);
}

bool psc_job_may_use_loader(void)
{
	int pidfd = open_thread((pid_t)psc_sys(SYS_gettid));

	if (pidfd < 0)
		return false;
	psc_sys(SYS_close, pidfd);
	return true;
}

/* Copy the descriptor that seccomp() returned, and prove that it is a listener. */
static int take_listener(struct psc_job *job, int pidfd, long remote)
{
	const uint64_t none = 0;
	int fd = (int)psc_sys(SYS_pidfd_getfd, pidfd, remote, 0);

	if (fd == -EMFILE && job->reserve >= 0) {
		psc_sys(SYS_close, job->reserve);
		job->reserve = -1;
		fd = (int)psc_sys(SYS_pidfd_getfd, pidfd, remote, 0);
	}
	if (fd >= 0 && psc_sys(SYS_ioctl, fd, SECCOMP_IOCTL_NOTIF_ID_VALID, &none) != -ENOENT) {
		psc_sys(SYS_close, fd);
		return -EBADF;
	}
	return fd;
}

/* Is the newest filter of the stopped thread our program? The kernel counts from the oldest. Only
 * a caller that may suspend filters can read it. */
static void read_back(struct psc_commit *commit, pid_t tid)
{
	const struct psc_job *job = commit->job;
	struct sock_filter insns[PSC_MAX_INSNS];
	long len;

	if (!commit->suspended)
		return;
	len = psc_sys(SYS_ptrace, PTRACE_SECCOMP_GET_FILTER, tid, commit->filters, insns);
	if (len == (long)job->options->len)
		commit->replaced = memcmp(insns, job->image->insns, (size_t)len * sizeof(*insns)) != 0;
	else
		commit->replaced = len > 0 || len == -ENOENT || len == -EINVAL; /* EINVAL: it has no filter at all */
}

/* The call by a temporary thread. 1: none can be made. */
static int run_loader(struct psc_commit *commit, long *ret_result)
{
	struct psc_job *job = commit->job;
	struct psc_tracee loader;
	int pidfd = -1, r, ended;

	r = psc_loader_start(&job->visit, commit->tracee, &commit->site, psc_commit_loader_options(commit), &loader, ret_result);
	if (r == 0) {
		pidfd = open_thread(loader.tid);
		if (pidfd < 0 && pidfd != -ESRCH) { /* before anything is loaded */
			commit->refused = true;
			r = psc_job_refuse(job, PSC_REFUSED_INJECTOR, pidfd);
		}
	}
	if (r == 0)
		r = psc_loader_run(&job->visit, &loader, &commit->site, ret_result);
	commit->loaded = r == 0 && *ret_result >= 0;
	if (commit->loaded) {
		commit->listener = take_listener(job, pidfd, *ret_result);
		read_back(commit, loader.tid);
	}
	if (pidfd >= 0)
		psc_sys(SYS_close, pidfd);
	ended = psc_commit_end_loader(commit, &loader, r);
	return commit->loaded ? 0 : r == 1 && ended == 0 ? 1 : ended;
}

/* The call by the thread itself. */
static int run_main(struct psc_commit *commit, long *ret_result)
{
	int r = psc_tracee_run_main(&commit->job->visit, commit->tracee, &commit->site, ret_result);

	commit->loaded = r == 0 && *ret_result >= 0;
	if (commit->loaded)
		read_back(commit, commit->tracee->tid);
	return r;
}

static int build_site(struct psc_commit *commit, uint64_t address, uint32_t flags, bool no_new_privs)
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
		.map_size = psc_job_map_size(job),
		.loader = commit->by_loader,
	};
	int r = psc_site_build(&job->visit, commit->tracee, &job->cave, &script, &commit->site);

	if (r == -ENOSPC)
		return psc_job_refuse(job, PSC_REFUSED_NO_ROOM, r);
	return r < 0 ? psc_commit_refuse_request(commit, r) : 0;
}

/* The commit. *ret_result: what seccomp() returned. 1: no temporary thread can be made. */
static int run(struct psc_commit *commit, uint64_t address, uint32_t flags, bool no_new_privs, long *ret_result)
{
	struct psc_job *job = commit->job;
	int r = build_site(commit, address, flags, no_new_privs);

	if (r < 0)
		return r;
	if (manager_died(job))
		return psc_job_refuse(job, PSC_REFUSED_INJECTOR, -ECANCELED);
	commit->begun = true;
	r = commit->by_loader ? run_loader(commit, ret_result) : run_main(commit, ret_result);
	commit->begun = !commit->refused && (r < 0 || commit->loaded);
	if (r == 0 && no_new_privs && (commit->loaded || !commit->by_loader))
		job->result->no_new_privs_set |= job->before.threads[0].no_new_privs == 0;
	if (r == 0)
		extend_deadline(job);
	return r;
}

/* The descriptors of a thread that loads by itself. Before Linux 6.9 only a leader can be asked;
 * a sibling's are mostly the same, but not those of a leader that has ended. */
static int pidfd_for_files(const struct psc_job *job, pid_t tid)
{
	pid_t tgid = job->visit.tgid;
	long pidfd;

	if (tid == tgid)
		return job->options->pidfd;
	pidfd = open_thread(tid);
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

/* Take the listener out of the table of the thread that has loaded by itself, and close it there. */
static void fetch_listener(struct psc_commit *commit, long remote)
{
	struct psc_job *job = commit->job;
	const uint64_t close_args[6] = { (uint64_t)remote };
	bool notified = job->verdicts[commit->abi->wide].close_notifies && !commit->suspended;
	int pidfd = pidfd_for_files(job, commit->tracee->tid);
	long result;

	commit->listener = pidfd < 0 ? pidfd : take_listener(job, pidfd, remote);
	if (pidfd >= 0 && pidfd != job->options->pidfd)
		psc_sys(SYS_close, pidfd);
	(void)!psc_tracee_call(&job->visit, commit->tracee, &commit->site, notified ? commit->listener : -1,
			       commit->abi->close, close_args, &result);
}

static bool wants_no_new_privs(const struct psc_job *job)
{
	if (job->options->no_new_privs != PSC_NO_NEW_PRIVS_AUTO)
		return job->options->no_new_privs == PSC_NO_NEW_PRIVS_ALWAYS;
	return job->before.threads[0].no_new_privs == 0 && !(job->before.threads[0].cap_effective >> 21 & 1);
}

/* Load, and once more with no_new_privs if only that was missing. */
static int load(struct psc_commit *commit, uint64_t address, uint32_t flags, long *ret_result)
{
	struct psc_job *job = commit->job;
	bool no_new_privs = wants_no_new_privs(job);
	int r = run(commit, address, flags, no_new_privs, ret_result);

	if (r == 1) {
		commit->by_loader = false;
		r = psc_commit_check_listener(commit);
		if (r == 0)
			r = run(commit, address, flags, no_new_privs, ret_result);
	}
	if (r == 0 && *ret_result == -EACCES && !no_new_privs && job->options->no_new_privs == PSC_NO_NEW_PRIVS_AUTO)
		r = run(commit, address, flags, true, ret_result);
	return r == 1 ? -EAGAIN : r;
}

/* After a failure: the memory for the program stays, unless psc_job_give_up() unmaps it. */
static void note_memory_left(struct psc_commit *commit)
{
	if (commit->map && !commit->job->map)
		commit->job->result->residue += psc_job_map_size(commit->job);
}

static int load_and_fetch(struct psc_commit *commit, uint32_t flags)
{
	struct psc_job *job = commit->job;
	uint64_t address;
	long result = 0;
	int r;

	r = psc_commit_place_program(commit, &address);
	if (r == 0)
		r = psc_commit_write_program(commit, address);
	if (r == 0)
		r = load(commit, address, flags, &result);
	if (r < 0) {
		note_memory_left(commit);
		return r;
	}
	if (result < 0)
		r = psc_job_refuse(job, result == -EACCES ? PSC_REFUSED_PRIVILEGE : PSC_REFUSED_KERNEL, (int)result);
	else if (job->notifies && !commit->by_loader)
		fetch_listener(commit, result);
	psc_commit_unmap_program(commit, commit->loaded);
	return r;
}

/* Is it dead, or about to be? A killed thread is no zombie at once. */
static bool is_gone(struct psc_job *job, pid_t tid)
{
	const struct timespec nap = { 0, 200000 };
	int filters, status;

	for (int tries = 0; tries < DEATH_TRIES; tries++) {
		if (psc_sys(SYS_wait4, tid, &status, __WALL | WNOHANG, 0) == tid && !WIFSTOPPED(status))
			return true;
		if (psc_job_count_filters(job, tid, &filters) < 0)
			return true;
		psc_sys(SYS_nanosleep, &nap, 0);
	}
	return false;
}

/* The call was begun, and its end not seen: has the filter come into force? */
static int judge_failure(struct psc_commit *commit, int r)
{
	struct psc_job *job = commit->job;
	pid_t tid = commit->tracee->tid;
	int filters = -1;

	if (r == -ESRCH && is_gone(job, tid))
		return psc_job_refuse(job, PSC_REFUSED_GONE, r);
	if (commit->filters >= 0 && psc_job_count_filters(job, tid, &filters) == 0 && filters > commit->filters) {
		commit->loaded = true;
		commit->listener = r;
		return 0;
	}
	if (job->stray)
		return psc_job_refuse(job, PSC_REFUSED_UNKNOWN, r == -ESRCH ? -EIO : r);
	return psc_job_refuse(job, PSC_REFUSED_FAULT, r == -ESRCH ? -EIO : r);
}

/* Whatever failed, say what is true. */
static int conclude(struct psc_commit *commit, int r, int *ret_listener)
{
	struct psc_job *job = commit->job;

	if (commit->begun && !commit->loaded)
		r = judge_failure(commit, r);
	if (!commit->loaded)
		return r;
	if (commit->replaced) {
		if (commit->listener >= 0)
			psc_sys(SYS_close, commit->listener);
		return psc_job_refuse(job, PSC_REFUSED_REPLACED, -EBADMSG);
	}
	if (job->notifies && commit->listener < 0)
		return psc_job_refuse(job, PSC_REFUSED_NO_LISTENER, commit->listener);
	*ret_listener = commit->listener;
	return 0;
}

/* Everything for one thread: afterwards it stands as it stood. */
static int apply(struct psc_job *job, struct psc_tracee *tracee, uint32_t flags, int *ret_listener)
{
	struct psc_commit commit = {
		.job = job,
		.tracee = tracee,
		.abi = psc_abi_of(&tracee->regs),
		.filters = -1,
		.listener = -1,
		.by_loader = job->may_use_loader && job->notifies && (flags & SECCOMP_FILTER_FLAG_TSYNC),
	};
	int r;

	job->result->audit_arch = commit.abi->audit_arch;
	r = psc_commit_enter(&commit);
	if (r == 0)
		r = psc_commit_leave(&commit, load_and_fetch(&commit, flags));
	return conclude(&commit, r, ret_listener);
}

uint32_t psc_job_seccomp_flags(const struct psc_job *job, bool all_threads)
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
	int checked = psc_job_check_workers(job);
	size_t done = 0;

	if (checked < 0)
		return checked;
	for (size_t i = 0; i < job->visit.n; i++) {
		struct psc_tracee *tracee = &job->visit.tracees[i];
		int listener = -1, r;

		if (tracee->state != PSC_TRACEE_STOPPED)
			continue;
		r = apply(job, tracee, psc_job_seccomp_flags(job, false), &listener);
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
	if (job->options->leader_only)
		return NULL;
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
		return psc_job_refuse(job, PSC_REFUSED_INJECTOR, -ENOMEM);
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
	r = job->manager ? psc_job_check_arch(job) : 0;
	if (r == 0 && job->manager)
		r = psc_restart_check_stopped(job);
	if (r == 0)
		r = make_outcomes(job);
	if (r < 0)
		return r;
	extend_deadline(job);
	r = apply(job, tracee, psc_job_seccomp_flags(job, !job->options->leader_only), &result->listener);
	if (r == -ESRCH && result->refusal == PSC_REFUSED_KERNEL)
		return apply_one_by_one(job);
	if (r < 0 && result->refusal != PSC_REFUSED_NO_LISTENER && result->refusal != PSC_REFUSED_REPLACED)
		return r;
	for (size_t i = 0; i < job->visit.n; i++) {
		const struct psc_tracee *one = &job->visit.tracees[i];

		if (one->state != PSC_TRACEE_DEAD && (one == tracee || !job->options->leader_only))
			result->threads[result->n_threads++] = (struct psc_thread_outcome){ one->tid, one->filters, -1, -1 };
	}
	return r;
}
