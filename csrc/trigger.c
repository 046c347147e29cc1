/* trigger.c - attach when a process executes another program, or forks.
 *
 *   manager          host (a thread)     watcher (a process, as the injector)
 *   arm -----------> clone ------------> seize all threads, resume them
 *   <------------------------------------ armed
 *                    wait for it         sleep in ppoll; pass stops on
 *                                        exec: stop before the first instruction,
 *                                        commit, let go
 *   finish <-------- join <------------- exit
 *
 * The invariant: from "armed" on no new program runs an instruction without the
 * filter. Threads born later are traced from birth; whoever executes stops at
 * PTRACE_EVENT_EXEC. The watcher survives the manager (it then gives back all fds
 * but its own); should it be killed itself, PTRACE_O_EXITKILL kills the target; so
 * it ends only when nothing is traced any more. What cannot be filtered is killed.
 *
 * What a watcher does about forks is in trigger_fork.c.
 *
 * Without a pidfd the target is the next child of the thread that arms: this is
 * seized until it forks, and its child is traced from birth.
 *
 * The host keeps alive what the watcher uses of its thread (the C library's thread
 * area). No malloc, no errno in the watcher: the manager runs meanwhile.
 */
#define _GNU_SOURCE
#include "trigger.h"

#include <fcntl.h>
#include <linux/ptrace.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#define USUAL (PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC)
#define FORKS (PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK)
#define FIRED 1
#define WAIT_TRIES 3

int psc_trigger_resume(pid_t tid, int status, unsigned long options)
{
	bool group_stop = PSC_EVENT(status) == PTRACE_EVENT_STOP && WSTOPSIG(status) != SIGTRAP;
	enum psc_restart did;

	if (group_stop)
		return psc_tracee_go_on(PTRACE_LISTEN, tid, 0);
	did = psc_restart_step(tid, status, options);
	if (did == PSC_RESTART_LOST)
		return -EIO;
	return did == PSC_RESTART_NONE ? psc_tracee_go_on(PTRACE_CONT, tid, psc_stop_signal(status)) : 0;
}

static void on_child(int sig)
{
}

/* The manager is dead: its other fds are not ours to keep open. */
static void keep_only_own_fds(struct psc_trigger *trigger)
{
	const int own[] = { trigger->wake, trigger->job.visit.tasks, trigger->options.pidfd, trigger->job.reserve };
	unsigned int next = 0;

	psc_sys(SYS_unshare, CLONE_FILES);
	trigger->manager_fd = -1;
	for (;;) {
		unsigned int least = ~0U;

		for (size_t i = 0; i < psc_array_size(own); i++)
			if (own[i] >= 0 && (unsigned int)own[i] >= next && (unsigned int)own[i] < least)
				least = (unsigned int)own[i];
		if (least > next)
			psc_sys(SYS_close_range, next, least - 1, 0);
		if (least == ~0U)
			return;
		next = least + 1;
	}
}

int psc_trigger_next_stop(struct psc_trigger *trigger, pid_t tid, pid_t *ret_tid, int *ret_status)
{
	const uint64_t mask = ~(1ULL << (SIGCHLD - 1));
	int failures = 0;

	for (;;) {
		struct pollfd fds[2] = { { .fd = trigger->wake, .events = POLLIN },
					 { .fd = trigger->manager_fd, .events = POLLIN } };
		long r = psc_sys(SYS_wait4, tid, ret_status, __WALL | WNOHANG, 0);

		if (r > 0) {
			*ret_tid = (pid_t)r;
			return 0;
		}
		if (r == -EINTR)
			continue; /* the SIGCHLD of a stop may have been taken already: look before the sleep */
		if (r < 0 && ++failures < WAIT_TRIES)
			continue;
		if (r < 0)
			return r == -ECHILD ? -ESRCH : (int)r;
		failures = 0;
		psc_sys(SYS_ppoll, fds, 2, 0, &mask, sizeof(mask));
		if (fds[0].revents)
			return -ECANCELED;
		if (fds[1].revents)
			keep_only_own_fds(trigger);
	}
}

/* --------------------------------------------------------------------- arm */

static int open_tasks(struct psc_job *job)
{
	struct psc_visit *visit = &job->visit;
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/task", visit->tgid);
	visit->tasks = (int)psc_sys(SYS_openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (visit->tasks >= 0)
		return 0;
	return psc_job_refuse(job, PSC_REFUSED_GONE, visit->tasks == -ENOENT ? -ESRCH : visit->tasks);
}

static int set_options(struct psc_visit *visit, unsigned long options)
{
	long r = 0;

	visit->options = options;
	for (size_t i = 0; i < visit->n; i++) {
		if (visit->tracees[i].state != PSC_TRACEE_STOPPED)
			continue;
		r = psc_tracee_request(PTRACE_SETOPTIONS, visit->tracees[i].tid, 0, USUAL | options);
		if (r < 0 && r != -ESRCH) /* not killed meanwhile */
			return (int)r;
	}
	return 0;
}

/* Nothing may be traced any more when the watcher ends: what still is would be killed. */
static void let_go(struct psc_visit *visit, uint64_t deadline)
{
	int failures = 0;

	visit->deadline = deadline;
	psc_visit_interrupt(visit);
	while (psc_visit_stop(visit) < 0 && ++failures < WAIT_TRIES)
		psc_visit_stop_timer(visit);
	psc_visit_stop_timer(visit);
	(void)!set_options(visit, 0); /* a detach ends them, too */
	psc_visit_release(visit);
}

/* Refuse now what could only end in a kill when the event comes. */
static int check_suspension(struct psc_trigger *trigger)
{
	struct psc_job *job = &trigger->job;

	if (psc_restart_may_suspend())
		return 0;
	/* At its first fork its other threads may wait in calls that resume by restart_syscall. */
	if (trigger->event == ON_FORK_ALL && psc_restart_is_denied(job->options->insns, job->options->len, psc_abi_usual(true)))
		return psc_job_refuse(job, PSC_REFUSED_RESTART, -EACCES);
	return psc_restart_check(job, NULL);
}

static int seize_target(struct psc_trigger *trigger)
{
	static const unsigned long wanted[] = { [ON_FORK] = FORKS, [ON_FORK_ALL] = FORKS | PTRACE_O_TRACEVFORKDONE };
	struct psc_visit *visit = &trigger->job.visit;
	int r = open_tasks(&trigger->job);

	if (r < 0)
		return r;
	if (psc_sys(SYS_pidfd_send_signal, trigger->options.pidfd, 0, 0, 0) == -ESRCH)
		return psc_job_refuse(&trigger->job, PSC_REFUSED_GONE, -ESRCH);
	r = check_suspension(trigger);
	if (r < 0)
		return r;
	visit->deadline = psc_now_ns() + trigger->options.timeout_ns;
	r = psc_visit_stop(visit);
	psc_visit_stop_timer(visit);
	if (r == 0 && !psc_job_choose(&trigger->job))
		r = -ESRCH;
	r = r < 0 ? psc_job_stop_failed(&trigger->job, r) : trigger->event == ON_EXEC ? 0 : psc_job_check_arch(&trigger->job);
	if (r < 0) {
		psc_visit_release(visit);
		return r;
	}
	r = set_options(visit, PTRACE_O_EXITKILL | wanted[trigger->event]);
	if (r < 0)
		psc_visit_release(visit);
	else if ((r = psc_visit_resume(visit)) < 0)
		let_go(visit, visit->deadline);
	if (r < 0) {
		return psc_job_refuse(&trigger->job, PSC_REFUSED_INJECTOR, r);
	}
	return 0;
}

static int seize_spawner(struct psc_trigger *trigger)
{
	long r = psc_sys(SYS_ptrace, PTRACE_SEIZE, trigger->spawner, 0,
			 USUAL | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK);

	trigger->result.tid = trigger->spawner;
	return r < 0 ? psc_job_refuse(&trigger->job, PSC_REFUSED_PERMISSION, (int)r) : 0;
}

bool psc_trigger_is_thread(pid_t pid, pid_t tid)
{
	char path[48];

	snprintf(path, sizeof(path), "/proc/%d/task/%d", pid, tid);
	return psc_sys(SYS_faccessat, AT_FDCWD, path, F_OK) == 0;
}

/* The first stop of a task that is traced from birth. It comes: a wait that fails is repeated. */
static int wait_for_birth(pid_t pid, int *ret_status)
{
	int failures = 0;
	long r;

	while ((r = psc_sys(SYS_wait4, pid, ret_status, __WALL, 0)) < 0)
		if (r != -EINTR && ++failures == WAIT_TRIES)
			return (int)r;
	return WIFSTOPPED(*ret_status) ? 0 : -ESRCH;
}

/* The child is born and stands before its first instruction. */
static int take_child(struct psc_trigger *trigger, pid_t pid)
{
	struct psc_visit *visit = &trigger->job.visit;
	int status, r;

	visit->deadline = UINT64_MAX;
	visit->tgid = trigger->result.pid = pid;
	r = wait_for_birth(pid, &status);
	if (r < 0) {
		if (r != -ESRCH)
			psc_sys(SYS_kill, pid, SIGKILL);
		visit->tgid = 0; /* its number may be another's from now on */
		return psc_job_refuse(&trigger->job, PSC_REFUSED_GONE, -ESRCH);
	}
	visit->options = PTRACE_O_EXITKILL;
	r = (int)psc_tracee_request(PTRACE_SETOPTIONS, pid, 0, USUAL | PTRACE_O_EXITKILL);
	trigger->options.pidfd = (int)psc_sys(SYS_pidfd_open, pid, 0);
	if (r == 0)
		r = trigger->options.pidfd < 0 ? trigger->options.pidfd : open_tasks(&trigger->job);
	if (r == 0)
		r = psc_visit_add(visit, pid);
	if (r == 0)
		r = psc_trigger_resume(pid, status, USUAL | visit->options);
	if (r < 0)
		return psc_job_refuse(&trigger->job, r == -ESRCH ? PSC_REFUSED_GONE : PSC_REFUSED_INJECTOR, r);
	return 0;
}

static int follow_spawner(struct psc_trigger *trigger)
{
	const pid_t spawner = trigger->spawner;

	for (;;) {
		unsigned long born = 0;
		int status, event, r;
		pid_t tid;

		r = psc_trigger_next_stop(trigger, spawner, &tid, &status);
		if (r < 0)
			return r;
		if (!WIFSTOPPED(status))
			return psc_job_refuse(&trigger->job, PSC_REFUSED_GONE, -ESRCH);
		event = PSC_EVENT(status);
		if (event != PTRACE_EVENT_FORK && event != PTRACE_EVENT_VFORK && event != PTRACE_EVENT_CLONE) {
			r = psc_trigger_resume(spawner, status, USUAL | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK);
			if (r < 0)
				return psc_job_refuse(&trigger->job, PSC_REFUSED_INJECTOR, r);
			continue;
		}
		r = (int)psc_tracee_request(PTRACE_GETEVENTMSG, spawner, 0, (uint64_t)&born);
		if (r < 0) {
			psc_tracee_detach(spawner, 0);
			return psc_job_refuse(&trigger->job, PSC_REFUSED_INJECTOR, r);
		}
		if (event == PTRACE_EVENT_CLONE && psc_trigger_is_thread(trigger->job.manager, (pid_t)born)) {
			if (wait_for_birth((pid_t)born, &status) == 0)
				psc_tracee_detach((pid_t)born, 0);
			r = psc_tracee_go_on(PTRACE_CONT, spawner, 0);
			if (r < 0)
				return psc_job_refuse(&trigger->job, PSC_REFUSED_INJECTOR, r);
			continue;
		}
		r = take_child(trigger, (pid_t)born);
		psc_tracee_detach(spawner, 0);
		return r;
	}
}

/* ------------------------------------------------------------------- watch */

/* Stopped for the first time: a thread of the target, traced from birth, or a
 * process that clone() made, which is none of ours. */
static int welcome(struct psc_trigger *trigger, pid_t tid, int status)
{
	struct psc_visit *visit = &trigger->job.visit;
	int r;

	if (!psc_trigger_is_thread(visit->tgid, tid)) {
		psc_tracee_detach(tid, 0);
		return 0;
	}
	r = psc_trigger_resume(tid, status, USUAL | visit->options);
	return r < 0 ? r : psc_visit_add(visit, tid);
}

void psc_trigger_forget(struct psc_visit *visit, pid_t tid)
{
	struct psc_tracee *tracee = psc_visit_find(visit, tid);

	if (tracee)
		*tracee = visit->tracees[--visit->n];
}

static int wait_for_exec(struct psc_trigger *trigger)
{
	struct psc_visit *visit = &trigger->job.visit;

	for (;;) {
		int status, r;
		pid_t tid;

		r = psc_trigger_next_stop(trigger, -1, &tid, &status);
		if (r == -ESRCH)
			return psc_job_refuse(&trigger->job, PSC_REFUSED_GONE, r);
		if (r < 0)
			return r;
		if (!WIFSTOPPED(status))
			psc_trigger_forget(visit, tid);
		else if (PSC_EVENT(status) == PTRACE_EVENT_EXEC && tid == visit->tgid)
			return FIRED;
		else if (!psc_visit_find(visit, tid))
			r = welcome(trigger, tid, status);
		else
			r = psc_trigger_resume(tid, status, USUAL | visit->options);
		if (r < 0)
			return psc_job_refuse(&trigger->job, PSC_REFUSED_INJECTOR, r);
	}
}

/* -------------------------------------------------------------------- fire */

int psc_trigger_commit(struct psc_job *job, struct psc_task_state *ret_leader)
{
	int r = psc_job_look(job, job->visit.tgid, ret_leader);

	job->manager = 0;
	if (r == 0)
		r = psc_job_commit(job);
	psc_loader_reap(&job->visit);
	return r;
}

int psc_trigger_filter(struct psc_job *job, struct psc_task_state *ret_leader)
{
	struct psc_visit *visit = &job->visit;
	int r;

	visit->n = 1;
	visit->tracees[0] = (struct psc_tracee){ .tid = visit->tgid, .filters = -1 };
	visit->since = psc_now_ns();
	visit->deadline = visit->since + job->options->timeout_ns;
	psc_tracee_request(PTRACE_INTERRUPT, visit->tgid, 0, 0);
	r = psc_tracee_go_on(PTRACE_CONT, visit->tgid, 0);
	if (r == 0)
		r = psc_visit_stop(visit);
	r = r < 0 ? psc_job_stop_failed(job, r) : psc_trigger_commit(job, ret_leader);
	psc_visit_stop_timer(visit);
	return r;
}

static int watch_to_the_end(struct psc_trigger *trigger)
{
	struct psc_visit *visit = &trigger->job.visit;
	int r = trigger->spawner ? follow_spawner(trigger) : 0;

	if (r == 0)
		r = wait_for_exec(trigger);
	if (r == FIRED) {
		r = psc_trigger_filter(&trigger->job, &trigger->leader);
		trigger->result.stop_ns = psc_now_ns() - visit->since;
	}
	if (r == -ECANCELED && visit->tgid)
		let_go(visit, UINT64_MAX);
	else if (r < 0 && psc_sys(SYS_pidfd_send_signal, trigger->options.pidfd, SIGKILL, 0, 0) == -EBADF && visit->tgid)
		psc_sys(SYS_kill, visit->tgid, SIGKILL); /* a child without a pidfd; traced, so its number is its own */
	else if (r >= 0)
		psc_visit_release(visit);
	return r;
}

static int watcher(void *arg)
{
	struct psc_trigger *trigger = arg;
	struct sigaction action = { .sa_handler = on_child };
	const uint64_t one = 1;
	int r;

	psc_sys(SYS_setsid);
	sigaction(SIGCHLD, &action, NULL);
	r = trigger->spawner ? seize_spawner(trigger) : seize_target(trigger);
	trigger->outcome = r;
	psc_sys(SYS_write, trigger->armed, &one, sizeof(one));
	if (r == 0)
		trigger->outcome = trigger->event == ON_EXEC ? watch_to_the_end(trigger) : psc_trigger_wait_for_forks(trigger);
	trigger->done = true;
	return 0;
}

/* ------------------------------------------------------------- the manager */

static void *host(void *arg)
{
	struct psc_trigger *trigger = arg;
	const uint64_t one = 1;
	int r = psc_injector_run(watcher, trigger, 0);

	if (!trigger->done)
		trigger->outcome = psc_job_refuse(&trigger->job, PSC_REFUSED_INJECTOR, r < 0 ? r : -EINTR);
	(void)!write(trigger->armed, &one, sizeof(one));
	__atomic_store_n(&trigger->ended, true, __ATOMIC_RELEASE);
	(void)!write(trigger->news, &one, sizeof(one));
	return NULL;
}

/* What has been born since it was last asked for, the oldest first. */
static struct psc_newborn *next_born(struct psc_trigger *trigger)
{
	struct psc_newborn *newborn;

	if (!trigger->taken)
		for (newborn = __atomic_exchange_n(&trigger->born, NULL, __ATOMIC_ACQUIRE); newborn;) {
			struct psc_newborn *next = newborn->next;

			newborn->next = trigger->taken;
			trigger->taken = newborn;
			newborn = next;
		}
	newborn = trigger->taken;
	if (newborn)
		trigger->taken = newborn->next;
	return newborn;
}

static void drop(struct psc_newborn *newborn)
{
	psc_close_fd(&newborn->result.listener);
	psc_close_fd(&newborn->pidfd);
	if (newborn->result.threads)
		munmap(newborn->result.threads, sizeof(*newborn->result.threads));
	munmap(newborn, sizeof(*newborn));
}

static void destroy(struct psc_trigger *trigger)
{
	struct psc_newborn *newborn;

	while ((newborn = next_born(trigger)))
		drop(newborn);
	if (trigger->spare)
		munmap(trigger->spare, sizeof(*trigger->spare));
	psc_visit_destroy(&trigger->newborn.visit);
	psc_close_fd(&trigger->news);
	psc_visit_destroy(&trigger->job.visit);
	psc_close_fd(&trigger->job.visit.mem);
	psc_close_fd(&trigger->job.visit.tasks);
	psc_close_fd(&trigger->job.reserve);
	psc_close_fd(&trigger->options.pidfd);
	psc_close_fd(&trigger->manager_fd);
	psc_close_fd(&trigger->wake);
	psc_close_fd(&trigger->armed);
	free(trigger->job.image);
	free(trigger);
}

/* For the first child: one that is born when there is no memory would be killed. */
static int make_room(struct psc_trigger *trigger)
{
	struct psc_visit *visit = &trigger->newborn.visit;
	int r = psc_visit_add(visit, 0);

	visit->n = 0;
	trigger->spare = psc_trigger_make_newborn();
	return r < 0 || !trigger->spare ? -ENOMEM : 0;
}

static int make(const struct psc_attach_options *options, int event, struct psc_trigger **ret_trigger)
{
	struct psc_trigger *trigger = calloc(1, sizeof(*trigger));
	struct psc_job *job;

	if (!trigger)
		return -ENOMEM;
	trigger->options = *options;
	trigger->event = event;
	trigger->options.pidfd = options->pidfd < 0 ? -1 : fcntl(options->pidfd, F_DUPFD_CLOEXEC, 3);
	trigger->result.listener = -1;
	trigger->spawner = options->pidfd < 0 ? (pid_t)psc_sys(SYS_gettid) : 0;
	trigger->manager_fd = (int)psc_sys(SYS_pidfd_open, getpid(), 0);
	trigger->wake = eventfd(0, EFD_CLOEXEC);
	trigger->armed = eventfd(0, EFD_CLOEXEC);
	trigger->news = eventfd(0, EFD_CLOEXEC);
	job = &trigger->job;
	job->visit = (struct psc_visit){ .mem = -1, .tasks = -1, .own_signals = true, .workers = true };
	job->notifies = psc_program_notifies(options->insns, options->len);
	job->may_use_loader = psc_job_may_use_loader();
	job->reserve = job->notifies ? eventfd(0, EFD_CLOEXEC) : -1;
	job->image_size = sizeof(*job->image) + options->len * sizeof(*options->insns);
	job->image = malloc(job->image_size);
	*ret_trigger = trigger;
	if (!job->image)
		return -ENOMEM;
	memcpy(job->image->insns, options->insns, options->len * sizeof(*options->insns));
	trigger->options.insns = job->image->insns;
	job->options = &trigger->options;
	job->result = &trigger->result;
	if (trigger->manager_fd < 0 || trigger->wake < 0 || trigger->armed < 0 || trigger->news < 0 ||
	    (job->notifies && job->reserve < 0) ||
	    (options->pidfd >= 0 && trigger->options.pidfd < 0))
		return -EMFILE;
	return event == ON_EXEC ? 0 : make_room(trigger);
}

static int start(struct psc_trigger *trigger)
{
	sigset_t all, old;
	uint64_t count;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = -pthread_create(&trigger->host, NULL, host, trigger);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r < 0)
		return psc_job_refuse(&trigger->job, PSC_REFUSED_INJECTOR, r);
	while (read(trigger->armed, &count, sizeof(count)) < 0 && errno == EINTR)
		;
	r = __atomic_load_n(&trigger->outcome, __ATOMIC_ACQUIRE);
	if (r < 0)
		pthread_join(trigger->host, NULL);
	return r;
}

static int arm(const struct psc_attach_options *options, int event, struct psc_trigger **ret_trigger,
	       struct psc_attach_result *ret_result)
{
	struct psc_trigger *trigger = NULL;
	struct psc_process_state state;
	int r;

	*ret_result = (struct psc_attach_result){ .listener = -1, .refusal = PSC_REFUSED_INJECTOR };
	r = make(options, event, &trigger);
	if (r == 0 && !trigger->spawner) {
		r = psc_query_process(0, options->pidfd, &state);
		if (r < 0) {
			ret_result->refusal = psc_refusal_of(PSC_REFUSED_GONE, r);
		} else {
			trigger->job.visit.tgid = trigger->result.pid = state.pid;
			psc_process_state_destroy(&state);
		}
	}
	if (r == 0) {
		trigger->job.manager = getpid();
		r = start(trigger);
		*ret_result = trigger->result;
	}
	if (r < 0 && trigger)
		destroy(trigger);
	if (r == 0)
		*ret_trigger = trigger;
	return r;
}

static int try_to_arm(const struct psc_attach_options *options, int event, struct psc_trigger **ret_trigger,
		      struct psc_attach_result *ret_result)
{
	uint64_t deadline = psc_now_ns() + options->timeout_ns;
	int tries = 0, r;

	*ret_result = (struct psc_attach_result){ .listener = -1, .refusal = PSC_REFUSED_INJECTOR };
	if (options->leader_only || options->in_thread || psc_program_check(options->insns, options->len, NULL) < 0)
		return -EINVAL;
	do
		r = arm(options, event, ret_trigger, ret_result);
	while (r < 0 && options->pidfd >= 0 && ++tries < PSC_MAX_TRIES && psc_now_ns() < deadline &&
	       psc_attach_was_passing(options, ret_result, tries));
	return r;
}

int psc_trigger_arm(const struct psc_attach_options *options, struct psc_trigger **ret_trigger,
		    struct psc_attach_result *ret_result)
{
	return try_to_arm(options, ON_EXEC, ret_trigger, ret_result);
}

int psc_trigger_arm_fork(const struct psc_attach_options *options, bool process_too, struct psc_trigger **ret_trigger,
			 struct psc_attach_result *ret_result)
{
	*ret_result = (struct psc_attach_result){ .listener = -1, .refusal = PSC_REFUSED_INJECTOR };
	if (options->pidfd < 0)
		return -EINVAL;
	return try_to_arm(options, process_too ? ON_FORK_ALL : ON_FORK, ret_trigger, ret_result);
}

void psc_trigger_disarm(struct psc_trigger *trigger)
{
	const uint64_t one = 1;

	(void)!write(trigger->wake, &one, sizeof(one));
}

/* The list of threads moves to memory of the caller's kind. */
static void take_threads(struct psc_attach_result *result, const struct psc_task_state *leader, int pidfd)
{
	struct psc_thread_outcome *mapped = result->threads;
	size_t n = result->n_threads ? result->n_threads : 1;
	struct psc_process_state after;

	if (!mapped)
		return;
	result->threads = calloc(n, sizeof(*mapped));
	if (!result->threads)
		result->n_threads = 0;
	if (psc_query_process(0, pidfd, &after) < 0)
		after = (struct psc_process_state){ 0 };
	for (size_t i = 0; i < result->n_threads; i++) {
		struct psc_thread_outcome *outcome = &result->threads[i];

		*outcome = mapped[i];
		if (outcome->tid == result->pid && leader->filters >= 0)
			outcome->filters_before = leader->filters;
		for (size_t k = 0; k < after.n_threads; k++)
			if (after.threads[k].tid == outcome->tid)
				outcome->filters_after = after.threads[k].filters;
	}
	psc_process_state_destroy(&after);
	munmap(mapped, n * sizeof(*mapped));
}

int psc_trigger_next(struct psc_trigger *trigger, struct psc_attach_result *ret_result, int *ret_pidfd)
{
	struct psc_newborn *newborn;
	uint64_t count;
	bool ended;
	int r;

	for (;;) {
		ended = __atomic_load_n(&trigger->ended, __ATOMIC_ACQUIRE);
		newborn = next_born(trigger);
		if (newborn || ended)
			break;
		(void)!read(trigger->news, &count, sizeof(count));
	}
	*ret_result = newborn ? newborn->result : (struct psc_attach_result){ .listener = -1 };
	*ret_pidfd = newborn ? psc_take_fd(newborn->pidfd) : -1;
	if (!newborn)
		return 1;
	take_threads(ret_result, &newborn->leader, *ret_pidfd);
	r = newborn->outcome;
	munmap(newborn, sizeof(*newborn));
	return r;
}

int psc_trigger_finish(struct psc_trigger *trigger, struct psc_attach_result *ret_result, int *ret_pidfd)
{
	int r;

	pthread_join(trigger->host, NULL);
	r = trigger->outcome;
	*ret_result = trigger->result;
	take_threads(ret_result, &trigger->leader, trigger->options.pidfd);
	*ret_pidfd = psc_take_fd(trigger->options.pidfd);
	destroy(trigger);
	return r;
}
