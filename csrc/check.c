/* check.c - of a process of many: find out whether the commit will succeed, before the first is changed.
 *
 * What only seccomp(2) can tell is asked by a dry run: a temporary thread of the target loads
 * the program for itself alone, and ends.
 */
#define _GNU_SOURCE
#include "commit.h"

#include <fcntl.h>

#define MAX_PATH 32768 /* instructions of a chain of filters, by the kernel's count */

int psc_job_look(struct psc_job *job, pid_t tid, struct psc_task_state *ret_task)
{
	const struct psc_attach_options *options = job->options;
	uint64_t limit = psc_abi_of(&job->visit.tracees[0].regs)->wide ? UINT64_MAX : UINT32_MAX;
	char path[32];
	int r;

	snprintf(path, sizeof(path), "/proc/%d/status", tid);
	r = psc_job_read_status(AT_FDCWD, path, ret_task, &job->tight);
	if (r < 0)
		return psc_job_refuse(job, PSC_REFUSED_GONE, r);
	job->before.threads = ret_task;
	job->before.n_threads = 1;
	snprintf(path, sizeof(path), "/proc/%d/mem", tid);
	job->visit.mem = (int)psc_sys(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
	if (job->visit.mem < 0)
		return psc_job_refuse(job, PSC_REFUSED_PERMISSION, job->visit.mem);
	if (psc_cave_find(tid, job->visit.mem, psc_job_room_wanted(job), limit, true, &job->cave) < 0 &&
	    job->cave.size < PSC_SITE_SIZE)
		job->cave = (struct psc_cave){ 0 };
	job->visit.execed = job->cave.size == 0;
	job->verdicts[false] = psc_verdicts_judge(options->insns, options->len, &psc_abi_i386, job->cave.address);
	job->verdicts[true] = psc_verdicts_judge(options->insns, options->len, &psc_abi_x86_64, job->cave.address);
	return 0;
}

static int refuse_foreign(struct psc_job *job, pid_t tid, uint32_t audit_arch)
{
	job->result->tid = tid;
	job->result->audit_arch = audit_arch;
	return psc_job_refuse(job, PSC_REFUSED_FOREIGN, -ENOEXEC);
}

int psc_job_check_arch(struct psc_job *job)
{
	const struct psc_attach_options *options = job->options;
	uint32_t known = job->covered; /* to look takes time, while the target stands */

	for (size_t i = 0; !options->foreign_arch && i < job->visit.n; i++) {
		const struct psc_tracee *tracee = &job->visit.tracees[i];
		struct psc_calls calls;

		if (tracee->state != PSC_TRACEE_STOPPED)
			continue;
		calls = psc_calls_of_regs(&tracee->regs);
		if (calls.audit_arch == known)
			continue;
		if (psc_program_is_foreign(options->insns, options->len, calls.audit_arch, calls.first, calls.last))
			return refuse_foreign(job, tracee->tid, calls.audit_arch);
		known = calls.audit_arch;
	}
	return 0;
}

int psc_job_check_elf(struct psc_job *job)
{
	const struct psc_attach_options *options = job->options;
	struct psc_calls calls;

	/* Unknown where the caller may not read the file, or while the process executes another. */
	if (options->foreign_arch || psc_calls_of_elf(job->before.machine, job->before.elf_class, &calls) < 0)
		return 0;
	if (psc_program_is_foreign(options->insns, options->len, calls.audit_arch, calls.first, calls.last))
		return refuse_foreign(job, job->before.pid, calls.audit_arch);
	job->covered = calls.audit_arch;
	return 0;
}

/* TSYNC alone gives a worker a filter: an injected call would wait for ever. */
int psc_job_check_workers(struct psc_job *job)
{
	for (size_t i = 0; i < job->visit.n; i++)
		if (job->visit.tracees[i].state == PSC_TRACEE_WORKER && psc_visit_is_worker(job->visit.tracees[i].tid)) {
			job->result->tid = job->visit.tracees[i].tid;
			return psc_job_refuse(job, PSC_REFUSED_WORKER, -EOPNOTSUPP);
		}
	return 0;
}

/* Every thread's filters, and strict mode. */
static int check_threads(struct psc_job *job)
{
	bool differ = false;
	int first = -1;

	for (size_t i = 0; i < job->visit.n; i++) {
		struct psc_tracee *tracee = &job->visit.tracees[i];
		struct psc_task_state task = job->before.threads[0];
		char path[32];
		int r = 0;

		if (tracee->state != PSC_TRACEE_STOPPED)
			continue;
		snprintf(path, sizeof(path), "%d/status", tracee->tid);
		if (task.tid != tracee->tid)
			r = psc_job_read_status(job->visit.tasks, path, &task, NULL);
		if (r < 0)
			return psc_job_refuse(job, PSC_REFUSED_GONE, r);
		tracee->filters = psc_filters_carried(&task);
		if (task.seccomp == SECCOMP_MODE_STRICT) {
			job->result->tid = tracee->tid;
			return psc_job_refuse(job, PSC_REFUSED_STRICT, -EACCES);
		}
		differ |= first >= 0 && first != tracee->filters;
		first = tracee->filters;
	}
	return differ ? psc_job_check_workers(job) : 0;
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

/* The dry run. 1: no thread can be made, *ret_result says why. */
static int try_program(struct psc_commit *commit, uint64_t address, long *ret_result)
{
	struct psc_job *job = commit->job;
	const struct psc_script script = {
		.data = address,
		.fprog = address,
		.flags = psc_job_seccomp_flags(job, false),
		.no_new_privs = job->options->no_new_privs != PSC_NO_NEW_PRIVS_NEVER,
		.unmask = commit->earlier.unmask,
		.loader = true,
	};
	unsigned long options = psc_commit_loader_options(commit);
	struct psc_tracee loader;
	int r = psc_commit_write_program(commit, address), settled;

	if (r < 0)
		return r;
	r = psc_site_build(&job->visit, commit->tracee, &job->cave, &script, &commit->site);
	if (r < 0)
		return r;
	r = psc_loader_start(&job->visit, commit->tracee, &commit->site, options, &loader, ret_result);
	if (r == 0)
		r = psc_loader_run(&job->visit, &loader, &commit->site, ret_result);
	settled = psc_commit_end_loader(commit, &loader, r);
	return settled < 0 ? settled : r;
}

/* Most instructions that the kernel makes of a program, and counts for its limit. */
static size_t longest(size_t len)
{
	return 5 * len + 8;
}

/* Without a dry run: is it sure that seccomp() has nothing to refuse? */
static bool is_sure(struct psc_commit *commit)
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
static int foresee(struct psc_commit *commit, uint64_t address)
{
	struct psc_job *job = commit->job;
	long result = -EOPNOTSUPP;
	int r = 1;

	if (job->verdicts[commit->abi->wide].exit && commit->earlier.exit)
		r = try_program(commit, address, &result);
	if (r < 0)
		return psc_job_refuse(job, r == -ESRCH ? PSC_REFUSED_GONE : PSC_REFUSED_FAULT, r);
	if (r == 1) {
		commit->by_loader = false; /* the commit will not have one either */
		return is_sure(commit) ? psc_commit_check_listener(commit) : psc_job_refuse(job, PSC_REFUSED_NO_THREAD, (int)result);
	}
	return result < 0 ? psc_job_refuse(job, PSC_REFUSED_KERNEL, (int)result) : 0;
}

int psc_job_check(struct psc_job *job)
{
	struct psc_tracee *tracee = psc_job_choose(job);
	struct psc_commit commit = { .job = job, .tracee = tracee, .by_loader = job->may_use_loader && job->notifies };
	uint64_t address;
	bool trial;
	int r;

	if (!tracee)
		return psc_job_refuse(job, PSC_REFUSED_GONE, -ESRCH);
	commit.abi = psc_abi_of(&tracee->regs);
	r = check_threads(job);
	if (r == 0)
		r = psc_job_check_arch(job);
	if (r == 0)
		r = psc_restart_check_stopped(job);
	if (r == 0)
		r = check_rights(job);
	if (r == 0 && job->notifies)
		r = psc_job_check_fetch(job, tracee->tid);
	if (r == 0)
		r = psc_commit_make_ready(&commit);
	trial = tracee->filters > 0 || (job->notifies && job->tight);
	if (r == 0 && !trial && psc_job_fits_cave(job))
		return 0;
	if (r == 0)
		r = psc_commit_block_signals(&commit);
	if (r < 0)
		return r;
	r = psc_commit_place_program(&commit, &address);
	job->map = commit.map;
	if (r == 0 && trial)
		r = foresee(&commit, address);
	return psc_commit_leave(&commit, r);
}

void psc_job_give_up(struct psc_job *job)
{
	struct psc_script nothing = { 0 };
	struct psc_tracee *tracee = psc_job_choose(job);
	struct psc_commit commit = { .job = job, .tracee = tracee };

	if (!job->map)
		return;
	if (!tracee || job->stray) {
		job->result->residue += psc_job_map_size(job);
		return;
	}
	commit.abi = psc_abi_of(&tracee->regs);
	if (psc_commit_enter(&commit) < 0) {
		job->result->residue += psc_job_map_size(job);
		return;
	}
	nothing.unmask = commit.earlier.unmask;
	if (psc_site_build(&job->visit, tracee, &job->cave, &nothing, &commit.site) == 0)
		psc_commit_unmap_program(&commit, false);
	else
		job->result->residue += psc_job_map_size(job);
	(void)!psc_commit_leave(&commit, 0);
}
