/* commit.c - filter the stopped threads of another process.
 *
 * Every check comes before the one call that cannot be
 * taken back; what follows it only tidies up, and is made so that it does no harm
 * if the new filter, which judges our calls too, does not allow it.
 */
#define _GNU_SOURCE
#include "commit.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/ptrace.h>

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL /* Linux 6.9 */
#endif
#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif

#define COMMIT_FLOOR_NS 1000000000 /* for some thousand instructions, where the stop has used up all the time */

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

/* The commit. *ret_result: what seccomp() returned. */
static int run_main(struct psc_commit *commit, uint64_t address, uint32_t flags, bool no_new_privs, long *ret_result)
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
	};
	int r = psc_site_build(&job->visit, commit->tracee, &job->cave, &script, &commit->site);

	if (r < 0)
		return psc_job_refuse(job, PSC_REFUSED_NO_ROOM, r);
	if (manager_died(job))
		return psc_job_refuse(job, PSC_REFUSED_INJECTOR, -ECANCELED);
	r = psc_tracee_run_main(&job->visit, commit->tracee, &commit->site, no_new_privs, ret_result);
	if (r < 0)
		return psc_job_refuse(job, r == -ESRCH ? PSC_REFUSED_GONE : PSC_REFUSED_FAULT, r);
	extend_deadline(job);
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
static int fetch_listener(struct psc_commit *commit, long remote, int *ret_listener)
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
	int r = run_main(commit, address, flags, no_new_privs, ret_result);

	if (r == 0 && *ret_result == -EACCES && !no_new_privs && job->options->no_new_privs == PSC_NO_NEW_PRIVS_AUTO)
		r = run_main(commit, address, flags, true, ret_result);
	return r;
}

static int load_and_fetch(struct psc_commit *commit, uint32_t flags, int *ret_listener)
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
	if (r < 0)
		return r;
	if (result < 0) {
		psc_commit_unmap_program(commit, false);
		return psc_job_refuse(job, result == -EACCES ? PSC_REFUSED_PRIVILEGE : PSC_REFUSED_KERNEL, (int)result);
	}
	if (job->notifies)
		r = fetch_listener(commit, result, ret_listener);
	psc_commit_unmap_program(commit, true);
	return r;
}

/* Everything for one thread: afterwards it stands as it stood. */
static int apply(struct psc_job *job, struct psc_tracee *tracee, uint32_t flags, int *ret_listener)
{
	struct psc_commit commit = { .job = job, .tracee = tracee, .abi = psc_abi_of(&tracee->regs) };
	int r;

	job->result->audit_arch = commit.abi->audit_arch;
	r = psc_commit_enter(&commit);
	return r < 0 ? r : psc_commit_leave(&commit, load_and_fetch(&commit, flags, ret_listener));
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
	if (r < 0 && result->refusal != PSC_REFUSED_NO_LISTENER)
		return r;
	for (size_t i = 0; i < job->visit.n; i++)
		if (job->visit.tracees[i].state == PSC_TRACEE_STOPPED || job->visit.tracees[i].state == PSC_TRACEE_WORKER)
			result->threads[result->n_threads++] =
				(struct psc_thread_outcome){ job->visit.tracees[i].tid, job->visit.tracees[i].filters, -1, -1 };
	return r;
}
