/* group.c - put a program into many processes: all or none.
 *
 *   stop     look who belongs, stop them, look again: until two looks, with all standing
 *            still, find nobody new
 *   check    everything that can be refused, for each, and what its commit needs is taken
 *   commit   one after the other; after the first nothing is left that could refuse
 *   release
 *
 * The invariant: before the first commit nothing is changed, and all can be let go as they
 * were. After it the injector goes on to the end, whether the manager lives or not; who
 * was killed meanwhile is gone, and no failure. Should the injector itself be killed, each
 * process is whole (inject.c), but only those whose turn had come are filtered.
 *
 * Parents are stopped before their children. Who waits in vfork() cannot be stopped before
 * its child has executed, so that child must not stand: if a process does not stop at once,
 * its children are let go until it has.
 */
#define _GNU_SOURCE
#include "group.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/vfs.h>
#include <sys/wait.h>

#define SLICE_NS 20000000	/* for one to stop before others get their turn */
#define CLEAN_SCANS 2
#define SCANS_BESIDE_OTHERS 10	/* that may find somebody new while one who is left out makes them */
#define DEATH_TRIES 50
#define CHECK_NS 200000000	/* for the calls of a check, where the stop has used up all the time */
#define SPARE_FDS 32		/* that the caller's limit must leave it */

int psc_group_refuse(struct psc_group *group, struct psc_member *member, enum psc_refusal why, int error)
{
	group->blamed = member;
	group->refusal = psc_refusal_of(why, error);
	group->refused = true;
	group->outcome = error;
	if (member)
		member->outcome = error;
	return error;
}

/* ------------------------------------------------------------------- members */

/* It has no number in the group any more: whoever gets that number is somebody else. */
static void forget(struct psc_group *group, struct psc_member *member)
{
	psc_visit_release(&member->job.visit);
	if (group->by_pid[member->pid] == member)
		group->by_pid[member->pid] = NULL;
	member->state = PSC_MEMBER_FORGOTTEN;
}

static bool stands(const struct psc_tracee *tracee)
{
	struct psc_regs regs;

	return tracee->state == PSC_TRACEE_STOPPED && psc_regs_get(tracee->tid, &regs) == 0;
}

/* Was it killed? Who was does not stand, for a moment is no zombie either, and ends when
 * its threads have been reaped. */
static bool has_died(struct psc_member *member)
{
	const struct timespec nap = { 0, 200000 };
	struct psc_visit *visit = &member->job.visit;
	size_t dead = 0;

	for (int tries = 0; visit->n && dead < visit->n && tries < DEATH_TRIES; tries++) {
		dead = 0;
		for (size_t i = 0; i < visit->n; i++) {
			struct psc_tracee *tracee = &visit->tracees[i];
			int status;

			if (stands(tracee))
				return false;
			if (tracee->state != PSC_TRACEE_DEAD &&
			    psc_sys(SYS_wait4, tracee->tid, &status, __WALL | WNOHANG, 0) == tracee->tid && !WIFSTOPPED(status))
				tracee->state = PSC_TRACEE_DEAD;
			dead += tracee->state == PSC_TRACEE_DEAD || tracee->state == PSC_TRACEE_WORKER;
		}
		if (dead < visit->n)
			psc_sys(SYS_nanosleep, &nap, 0);
	}
	return visit->n && dead == visit->n;
}

/* The job of this member failed before anything was changed. 0: go on with the others. */
static int failed(struct psc_group *group, struct psc_member *member, int error)
{
	bool died = member->result.refusal == PSC_REFUSED_GONE || has_died(member);

	if (died)
		member->result.refusal = PSC_REFUSED_GONE;
	else if (error == -EMFILE || error == -ENFILE)
		return psc_group_refuse(group, member, PSC_REFUSED_DESCRIPTORS, error);
	member->outcome = died ? -ESRCH : error;
	if (!died && !group->options->skip)
		return psc_group_refuse(group, member, member->result.refusal, error);
	psc_job_give_up(&member->job);
	psc_visit_release(&member->job.visit);
	member->state = PSC_MEMBER_OUT;
	group->left_out |= !died;
	return 0;
}

/* ---------------------------------------------------------------------- stop */

static int open_tasks(struct psc_member *member)
{
	char path[32];

	if (member->job.visit.tasks >= 0)
		return 0;
	snprintf(path, sizeof(path), "/proc/%d/task", member->pid);
	member->job.visit.tasks = (int)psc_sys(SYS_openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return member->job.visit.tasks < 0 ? member->job.visit.tasks : 0;
}

/* It stands: who is it? Its number is its own until it is released. */
static int welcome(struct psc_group *group, struct psc_member *member)
{
	int belongs = group->options->cgroup < 0 ? psc_group_is_descendant(group, member) : 1;

	if (belongs < 0)
		return psc_group_refuse(group, member, PSC_REFUSED_INJECTOR, belongs);
	if (!psc_job_choose(&member->job) || !belongs) {
		forget(group, member);
		return 0;
	}
	member->state = PSC_MEMBER_STOPPED;
	if (member->pidfd < 0)
		member->pidfd = (int)psc_sys(SYS_pidfd_open, member->pid, 0);
	if (member->pidfd < 0)
		return psc_group_refuse(group, member, PSC_REFUSED_DESCRIPTORS, member->pidfd);
	member->options.pidfd = member->pidfd;
	return 0;
}

/* Before it is waited for, so that all who can be stopped now are on their way at once. */
static int begin_stop(struct psc_group *group, struct psc_member *member)
{
	struct psc_visit *visit = &member->job.visit;
	int r = open_tasks(member);

	if (r == -ENOENT || r == -ESRCH) {
		forget(group, member);
		return 0;
	}
	if (r < 0)
		return psc_group_refuse(group, member, PSC_REFUSED_DESCRIPTORS, r);
	if (psc_visit_is_frozen(member->pid))
		return failed(group, member, psc_job_refuse(&member->job, PSC_REFUSED_FROZEN, -EAGAIN));
	if (!group->may_suspend && psc_restart_check(&member->job, group->denies_restart) < 0)
		return failed(group, member, -EACCES);
	visit->deadline = group->deadline;
	r = psc_visit_begin_stop(visit);
	return r < 0 ? failed(group, member, psc_job_stop_failed(&member->job, r)) : 0;
}

/* -ETIMEDOUT: not yet. */
static int stop_member(struct psc_group *group, struct psc_member *member)
{
	struct psc_visit *visit = &member->job.visit;
	uint64_t now = psc_now_ns();
	int r;

	/* Past the deadline too: who comes then because another was left out must have a chance. */
	visit->deadline = now < group->deadline && now + SLICE_NS > group->deadline ? group->deadline : now + SLICE_NS;
	r = psc_visit_stop(visit);
	psc_visit_stop_timer(visit);
	visit->deadline = group->deadline;
	if (r == 0)
		return welcome(group, member);
	if (r == -ETIMEDOUT && psc_now_ns() < group->deadline)
		return r;
	r = psc_job_stop_failed(&member->job, r);
	return failed(group, member, r);
}

/* Let go whoever may be what a parent that does not stop waits for. */
static void free_children(struct psc_group *group)
{
	for (struct psc_member *member = group->first; member; member = member->next) {
		const struct psc_member *parent = psc_group_find(group, member->parent);
		struct psc_visit *visit = &member->job.visit;

		if (member->state != PSC_MEMBER_STOPPED || !parent || parent->state != PSC_MEMBER_NEW)
			continue;
		psc_visit_release(visit);
		visit->n = 0;
		visit->stop_signal = false;
		psc_sys(SYS_close, member->pidfd);
		member->pidfd = -1;
		member->state = PSC_MEMBER_NEW;
	}
}

/* May it be stopped now, or does its parent come first? */
static bool has_its_turn(struct psc_group *group, const struct psc_member *member)
{
	const struct psc_member *parent = psc_group_find(group, member->parent);

	return !parent || parent == member || parent->state != PSC_MEMBER_NEW;
}

/* Stop all who are known. 1: some do not stop yet. */
static int stop_known(struct psc_group *group)
{
	bool waiting = false, progress = true;

	while (progress) {
		waiting = progress = false;
		for (struct psc_member *member = group->first; member; member = member->next) {
			int r;

			if (member->state != PSC_MEMBER_NEW || member->job.visit.n || !has_its_turn(group, member))
				continue;
			r = begin_stop(group, member);
			if (r < 0)
				return r;
		}
		for (struct psc_member *member = group->first; member; member = member->next) {
			int r;

			if (member->state != PSC_MEMBER_NEW)
				continue;
			/* One whose parent has stopped just now begins with the next pass. */
			r = has_its_turn(group, member) && member->job.visit.tasks >= 0 ? stop_member(group, member) : -ETIMEDOUT;
			if (r < 0 && group->refused)
				return r;
			waiting |= r < 0;
			progress |= r == 0;
		}
	}
	return waiting;
}

static int out_of_time(struct psc_group *group)
{
	struct psc_member *member;

	for (member = group->first; member; member = member->next)
		if (member->state == PSC_MEMBER_NEW)
			break;
	if (member)
		member->result.tid = member->job.visit.blamed;
	return psc_group_refuse(group, member ? member : group->last, PSC_REFUSED_UNSTOPPABLE, -ETIMEDOUT);
}

/* A cgroup's process that the last looks did not show has left it. */
static void forget_who_left(struct psc_group *group)
{
	for (struct psc_member *member = group->first; member; member = member->next)
		if (group->options->cgroup >= 0 && member->state == PSC_MEMBER_STOPPED && member->seen + CLEAN_SCANS <= group->scans)
			forget(group, member);
}

static int stop_all(struct psc_group *group)
{
	int clean = 0, beside = 0;

	while (clean < CLEAN_SCANS && beside < SCANS_BESIDE_OTHERS) {
		int r = psc_group_scan(group);

		if (r == 0)
			r = stop_known(group);
		if (r < 0)
			return r;
		if (r == 1 && psc_now_ns() >= group->deadline) {
			r = group->options->skip ? stop_known(group) : out_of_time(group);
			if (r < 0)
				return r;
		} else if (r == 1) {
			free_children(group);
		}
		clean = r == 1 || group->found ? 0 : clean + 1;
		beside += group->left_out && group->found;
		if (clean == 0 && psc_now_ns() >= group->deadline && !group->left_out)
			return out_of_time(group);
	}
	forget_who_left(group);
	return 0;
}

/* --------------------------------------------------------------------- check */

/* What the caller keeps must fit under its limit, whatever ours is. */
static int check_descriptors(struct psc_group *group, uint64_t limit)
{
	uint64_t wanted = SPARE_FDS;

	for (struct psc_member *member = group->first; member; member = member->next)
		if (member->state == PSC_MEMBER_STOPPED)
			wanted += group->common.notifies ? 2 : 1;
	return wanted <= limit ? 0 : psc_group_refuse(group, NULL, PSC_REFUSED_DESCRIPTORS, -EMFILE);
}

static int check_all(struct psc_group *group)
{
	for (struct psc_member *member = group->first; member; member = member->next) {
		struct psc_tracee *tracee;
		uint64_t deadline;
		int r = -ESRCH;

		if (member->state != PSC_MEMBER_STOPPED)
			continue;
		deadline = psc_now_ns() + CHECK_NS;
		member->job.visit.deadline = deadline > group->deadline ? deadline : group->deadline;
		tracee = psc_job_choose(&member->job);
		if (tracee)
			r = psc_job_look(&member->job, tracee->tid, &member->leader);
		if (r == 0)
			r = psc_job_check(&member->job);
		r = r < 0 ? failed(group, member, r) : 0;
		if (r < 0)
			return r;
	}
	return 0;
}

static void give_up(struct psc_group *group)
{
	for (struct psc_member *member = group->first; member; member = member->next)
		if (member->state == PSC_MEMBER_STOPPED)
			psc_job_give_up(&member->job);
}

/* -------------------------------------------------------------------- commit */

/* Because of the first that was left alone, or since all are dead. */
static void refuse_all(struct psc_group *group)
{
	struct psc_member *member;

	for (member = group->first; member; member = member->next)
		if (member->state == PSC_MEMBER_OUT && member->result.refusal != PSC_REFUSED_GONE)
			break;
	if (member)
		psc_group_refuse(group, member, member->result.refusal, member->outcome);
	else
		psc_group_refuse(group, group->first, PSC_REFUSED_GONE, -ESRCH);
}

/* Has its filter come into force, or may it? */
static bool past_return(const struct psc_member *member)
{
	switch (member->result.refusal) {
	case PSC_REFUSED_PARTIAL:
	case PSC_REFUSED_NO_LISTENER:
	case PSC_REFUSED_REPLACED:
	case PSC_REFUSED_UNKNOWN:
		return true;
	default:
		return false;
	}
}

/* Once one process is filtered, the others are as well. */
static void commit_all(struct psc_group *group)
{
	bool committed = false;

	for (struct psc_member *member = group->first; member; member = member->next) {
		int r;

		if (member->state != PSC_MEMBER_STOPPED)
			continue;
		member->job.manager = committed ? 0 : group->common.manager;
		r = psc_job_commit(&member->job);
		member->filtered = r == 0;
		committed |= r == 0 || (r < 0 && past_return(member));
		member->outcome = r;
		if (r < 0 && !committed && failed(group, member, r) < 0) {
			give_up(group);
			return;
		}
		if (r < 0 && committed && (member->result.refusal == PSC_REFUSED_GONE || has_died(member))) {
			member->result.refusal = PSC_REFUSED_GONE;
			member->outcome = -ESRCH;
		} else if (r < 0 && committed) {
			member->failed = true;
			if (!group->refused)
				psc_group_refuse(group, member, member->result.refusal, r);
		}
	}
	if (!committed)
		refuse_all(group);
}

static void release_all(struct psc_group *group)
{
	uint64_t since = UINT64_MAX, end;

	for (struct psc_member *member = group->first; member; member = member->next) {
		struct psc_visit *visit = &member->job.visit;

		psc_visit_release(visit);
		end = psc_now_ns();
		if (visit->since) {
			member->result.stop_ns = end - visit->since;
			since = visit->since < since ? visit->since : since;
			group->stop_ns = end - since;
		}
	}
	for (struct psc_member *member = group->first; member; member = member->next)
		psc_loader_reap(&member->job.visit);
}

/* ------------------------------------------------------------------ injector */

static int work(void *arg)
{
	struct psc_group *group = arg;
	struct psc_visit clock = { .own_signals = group->common.visit.own_signals };
	struct rlimit limit, most;
	int r;

	if (clock.own_signals) {
		psc_sys(SYS_setsid);
		/* Hundreds of busy processes would have it wait among them, with some of them held. If it may. */
		psc_sys(SYS_setpriority, PRIO_PROCESS, 0, -20);
	}
	group->injector = (pid_t)psc_sys(SYS_getpid);
	group->may_suspend = psc_restart_may_suspend();
	if (psc_restart_is_denied(group->options->attach.insns, group->options->attach.len, psc_abi_usual(true)))
		group->denies_restart = psc_abi_usual(true);
	psc_sys(SYS_prlimit64, 0, RLIMIT_NOFILE, 0, &limit);
	most = (struct rlimit){ limit.rlim_max, limit.rlim_max };
	psc_sys(SYS_prlimit64, 0, RLIMIT_NOFILE, &most, 0);
	r = stop_all(group);
	if (r == 0)
		r = check_descriptors(group, limit.rlim_cur);
	if (r == 0)
		r = psc_visit_start_timer(&clock);
	if (r == 0) {
		r = check_all(group);
		if (r < 0)
			give_up(group);
		else
			commit_all(group);
		psc_visit_stop_timer(&clock);
	}
	release_all(group);
	psc_sys(SYS_prlimit64, 0, RLIMIT_NOFILE, &limit, 0);
	if (!group->refused)
		group->outcome = r;
	return 0;
}

/* ------------------------------------------------------------------- manager */

static enum psc_became became(const struct psc_member *member)
{
	if (member->filtered)
		return PSC_BECAME_FILTERED;
	if (member->failed)
		return PSC_BECAME_FAILED;
	if (member->outcome == 0)
		return PSC_BECAME_NOTHING;
	return member->result.refusal == PSC_REFUSED_GONE ? PSC_BECAME_GONE : PSC_BECAME_REFUSED;
}

static void report_member(const struct psc_member *member, struct psc_group_member *ret)
{
	*ret = (struct psc_group_member){ member->pid, member->pidfd, became(member), member->outcome, member->result };
	if (!member->result.threads)
		return;
	ret->result.threads = psc_outcomes_report(member->result.threads, member->result.n_threads, member->pidfd);
	if (!ret->result.threads)
		ret->result.n_threads = 0;
}

static int report(struct psc_group *group, struct psc_group_result *ret)
{
	size_t n = 0;

	for (const struct psc_member *member = group->first; member; member = member->next)
		n += member->state != PSC_MEMBER_FORGOTTEN;
	*ret = (struct psc_group_result){ .blamed = -1, .refusal = group->refusal, .stop_ns = group->stop_ns };
	ret->members = calloc(n + 1, sizeof(*ret->members));
	if (!ret->members)
		return -ENOMEM;
	for (struct psc_member *member = group->first; member; member = member->next) {
		if (member->state == PSC_MEMBER_FORGOTTEN)
			continue;
		if (member == group->blamed)
			ret->blamed = (ssize_t)ret->n;
		ret->filtered += member->filtered;
		report_member(member, &ret->members[ret->n++]);
		member->pidfd = -1;
	}
	return 0;
}

static void destroy(struct psc_group *group)
{
	struct psc_member *next;

	for (struct psc_member *member = group->first; member; member = next) {
		next = member->next;
		if (member->result.threads)
			munmap(member->result.threads, member->job.visit.n * sizeof(*member->result.threads));
		psc_visit_destroy(&member->job.visit);
		psc_close_fd(&member->job.visit.mem);
		psc_close_fd(&member->job.visit.tasks);
		psc_close_fd(&member->job.reserve);
		psc_close_fd(&member->pidfd);
		munmap(member, sizeof(*member));
	}
	if (group->by_pid)
		munmap(group->by_pid, PSC_PID_LIMIT * sizeof(*group->by_pid));
	free(group->common.image);
}

static int check_cgroup(struct psc_group *group)
{
	struct statfs fs;

	if (fstatfs(group->options->cgroup, &fs) == 0 && (fs.f_type == CGROUP2_SUPER_MAGIC || fs.f_type == CGROUP_SUPER_MAGIC))
		return 0;
	return psc_group_refuse(group, NULL, PSC_REFUSED_CGROUP, -EMEDIUMTYPE);
}

static int prepare(struct psc_group *group)
{
	const struct psc_attach_options *options = &group->options->attach;
	struct psc_job *common = &group->common;
	struct psc_process_state root;
	void *map;
	int r;

	common->options = options;
	common->visit = (struct psc_visit){ .mem = -1, .tasks = -1, .own_signals = !options->in_thread, .workers = true };
	common->notifies = psc_program_notifies(options->insns, options->len);
	if (!psc_program_is_foreign(options->insns, options->len, psc_abi_usual(true)->audit_arch, 0, UINT32_MAX))
		common->covered = psc_abi_usual(true)->audit_arch;
	common->may_use_loader = psc_job_may_use_loader();
	common->reserve = -1;
	common->manager = getpid();
	common->image_size = sizeof(*common->image) + options->len * sizeof(*options->insns);
	common->image = malloc(common->image_size);
	map = mmap(NULL, PSC_PID_LIMIT * sizeof(*group->by_pid), PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	group->by_pid = map == MAP_FAILED ? NULL : map;
	if (!common->image || !group->by_pid)
		return -ENOMEM;
	memcpy(common->image->insns, options->insns, options->len * sizeof(*options->insns));
	if (group->options->cgroup >= 0)
		return check_cgroup(group);
	r = psc_query_process(0, options->pidfd, &root);
	if (r < 0)
		return psc_group_refuse(group, NULL, r == -EACCES ? PSC_REFUSED_PERMISSION : PSC_REFUSED_GONE, r);
	common->visit.tgid = root.pid;
	r = root.kernel_thread ? psc_group_refuse(group, NULL, PSC_REFUSED_KERNEL_THREAD, -EPERM) : 0;
	psc_process_state_destroy(&root);
	return r;
}

static int attempt(const struct psc_group_options *options, uint64_t deadline, struct psc_group_result *ret)
{
	struct psc_group group = { .options = options, .deadline = deadline, .outcome = -EINTR };
	int r = prepare(&group), reported;

	if (r == 0)
		r = psc_injector_do(options->attach.in_thread, work, &group, 0);
	if (r < 0 && !group.refused)
		psc_group_refuse(&group, NULL, PSC_REFUSED_INJECTOR, r);
	reported = report(&group, ret);
	destroy(&group);
	return reported < 0 ? reported : group.outcome;
}

int psc_attach_group(const struct psc_group_options *options, struct psc_group_result *ret_result)
{
	const struct psc_attach_options *attach = &options->attach;
	uint64_t deadline = psc_now_ns() + attach->timeout_ns;

	*ret_result = (struct psc_group_result){ .blamed = -1, .refusal = PSC_REFUSED_INJECTOR };
	if (attach->leader_only || (attach->pidfd >= 0) == (options->cgroup >= 0) ||
	    psc_program_check(attach->insns, attach->len, NULL) < 0)
		return -EINVAL;
	return attempt(options, deadline, ret_result);
}

void psc_group_result_destroy(struct psc_group_result *result)
{
	if (!result)
		return;
	for (size_t i = 0; i < result->n; i++)
		psc_attach_result_destroy(&result->members[i].result);
	free(result->members);
	result->members = NULL;
	result->n = 0;
}
