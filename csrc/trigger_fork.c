/* trigger_fork.c - filter the children of a process before their first instruction.
 *
 * The threads of the target are seized with the fork events on, so a child is
 * traced from birth and stops before its first instruction: there it gets the
 * filter and is let go. What it starts inherits that. A system call of the target
 * costs nothing more; a fork costs an injection.
 *
 * A child of vfork() runs on its parent's memory while the calling thread waits:
 * the code lies where nobody's code runs, and only one child is in hand at a time.
 *
 * With ON_FORK_ALL the target itself is filtered before its first fork() returns
 * there (for vfork: when the child has given the memory back). Its other threads may
 * be in a vfork then, waiting for a child that waits for us: so children are served
 * in between.
 *
 * The watcher's end would kill who is traced (PTRACE_O_EXITKILL): it ends when the
 * kernel says that nobody is.
 */
#define _GNU_SOURCE
#include "trigger.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/ptrace.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#define FORKED 1
#define SLICE_NS 20000000

/* ---------------------------------------------------------------- a child */

static void give_back(struct psc_newborn *newborn)
{
	if (newborn->result.listener >= 0)
		psc_sys(SYS_close, newborn->result.listener);
	if (newborn->pidfd >= 0)
		psc_sys(SYS_close, newborn->pidfd);
	if (newborn->result.threads)
		psc_sys(SYS_munmap, newborn->result.threads, sizeof(*newborn->result.threads));
	psc_sys(SYS_munmap, newborn, sizeof(*newborn));
}

/* To the manager; without one the listener is nobody's, and is closed. */
static void post(struct psc_trigger *trigger, struct psc_newborn *newborn)
{
	const uint64_t one = 1;

	if (trigger->manager_fd < 0) {
		give_back(newborn);
		return;
	}
	newborn->next = __atomic_load_n(&trigger->born, __ATOMIC_RELAXED);
	while (!__atomic_compare_exchange_n(&trigger->born, &newborn->next, newborn, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
		;
	psc_sys(SYS_write, trigger->news, &one, sizeof(one));
}

static int filter_newborn(struct psc_trigger *trigger, struct psc_newborn *newborn)
{
	struct psc_job *job = &trigger->newborn;
	struct psc_visit *visit = &job->visit;
	char path[32];

	newborn->pidfd = (int)psc_sys(SYS_pidfd_open, newborn->result.pid, 0);
	if (newborn->pidfd < 0)
		return psc_job_refuse(job, newborn->pidfd == -ESRCH ? PSC_REFUSED_GONE : PSC_REFUSED_INJECTOR, newborn->pidfd);
	trigger->newborn_options.pidfd = newborn->pidfd;
	snprintf(path, sizeof(path), "/proc/%d/task", newborn->result.pid);
	visit->tasks = (int)psc_sys(SYS_openat, AT_FDCWD, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (visit->tasks < 0)
		return psc_job_refuse(job, visit->tasks == -ENOENT ? PSC_REFUSED_GONE : PSC_REFUSED_INJECTOR, visit->tasks);
	return psc_trigger_filter(job, &newborn->leader);
}

static void begin(struct psc_trigger *trigger, struct psc_newborn *newborn, pid_t pid)
{
	struct psc_job *job = &trigger->newborn;
	struct psc_tracee *tracees = job->visit.tracees;
	size_t size = job->visit.size;

	*newborn = (struct psc_newborn){ .result = { .listener = -1, .pid = pid }, .pidfd = -1 };
	trigger->newborn_options = trigger->options;
	*job = (struct psc_job){
		.options = &trigger->newborn_options,
		.result = &newborn->result,
		.visit = { .tgid = pid, .only = pid, .mem = -1, .tasks = -1, .own_signals = true, .options = PTRACE_O_EXITKILL,
			   .tracees = tracees, .size = size },
		.image = trigger->job.image,
		.image_size = trigger->job.image_size,
		.notifies = trigger->job.notifies,
		.may_use_loader = trigger->job.may_use_loader,
		.reserve = trigger->job.reserve,
	};
}

static void end(struct psc_trigger *trigger)
{
	struct psc_visit *visit = &trigger->newborn.visit;

	if (visit->mem >= 0)
		psc_sys(SYS_close, visit->mem);
	if (visit->tasks >= 0)
		psc_sys(SYS_close, visit->tasks);
	trigger->job.reserve = trigger->newborn.reserve;
	if (trigger->job.notifies && trigger->job.reserve < 0) {
		int fd = (int)psc_sys(SYS_eventfd2, 0, EFD_CLOEXEC);

		trigger->job.reserve = fd < 0 ? -1 : fd;
	}
}

struct psc_newborn *psc_trigger_make_newborn(void)
{
	long map = psc_sys(SYS_mmap, 0, sizeof(struct psc_newborn), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	return map < 0 && map > -4096 ? NULL : (struct psc_newborn *)map;
}

/* It stands before its first instruction. What cannot be filtered is killed there. */
static void welcome_child(struct psc_trigger *trigger, pid_t pid, int status)
{
	struct psc_visit *visit = &trigger->newborn.visit;
	struct psc_newborn *newborn = psc_trigger_make_newborn();

	if (!newborn) {
		newborn = trigger->spare;
		trigger->spare = NULL;
	} else if (!trigger->spare) {
		trigger->spare = psc_trigger_make_newborn();
	}
	if (!newborn) {
		psc_sys(SYS_kill, pid, SIGKILL);
		return;
	}
	begin(trigger, newborn, pid);
	newborn->outcome = visit->size ? 0 : psc_visit_add(visit, pid);
	if (newborn->outcome == 0)
		newborn->outcome = filter_newborn(trigger, newborn);
	if (newborn->outcome < 0)
		psc_sys(SYS_kill, pid, SIGKILL);
	newborn->result.stop_ns = visit->since ? psc_now_ns() - visit->since : 0;
	psc_visit_release(visit);
	end(trigger);
	post(trigger, newborn);
}

/* ------------------------------------------------------------ the process */

/* Has this thread made a process, and may return to its program from that? */
static bool has_forked(const struct psc_trigger *trigger, pid_t tid, int status)
{
	unsigned long born = 0;

	if (trigger->event != ON_FORK_ALL)
		return false;
	switch (PSC_EVENT(status)) {
	case PTRACE_EVENT_FORK:
	case PTRACE_EVENT_VFORK_DONE:
		return true;
	case PTRACE_EVENT_CLONE:
		psc_tracee_request(PTRACE_GETEVENTMSG, tid, 0, (uint64_t)&born);
		return !psc_trigger_is_thread(trigger->job.visit.tgid, (pid_t)born);
	default:
		return false;
	}
}

/* Let a thread go that stopped after the trigger's end. */
static void release_thread(struct psc_visit *visit, pid_t tid, int status)
{
	struct psc_tracee newborn = { .tid = tid }, *tracee = psc_visit_find(visit, tid);

	if (!tracee)
		tracee = &newborn;
	psc_restart_let_go_from(tracee, status);
	if (tracee != &newborn && tracee->state != PSC_TRACEE_LEFT)
		psc_trigger_forget(visit, tid);
}

static bool is_left(const struct psc_visit *visit, pid_t tid)
{
	for (size_t i = 0; i < visit->n; i++)
		if (visit->tracees[i].tid == tid)
			return visit->tracees[i].state == PSC_TRACEE_LEFT;
	return false;
}

/* Does a directory of tasks hold one that this watcher traces, apart from those that are left
 * to its exit? A directory that cannot be read may. */
static bool holds_tracee(const struct psc_visit *visit, int dir)
{
	const pid_t self = (pid_t)psc_sys(SYS_gettid);
	char buffer[8192] __attribute__((aligned(8))), text[8192];
	struct psc_task_state task;
	long n, size;

	psc_sys(SYS_lseek, dir, 0, SEEK_SET);
	while ((n = psc_sys(SYS_getdents64, dir, buffer, sizeof(buffer))) > 0) {
		const struct dirent64 *entry;

		for (long at = 0; at < n; at += entry->d_reclen) {
			pid_t tid;

			entry = (const struct dirent64 *)(buffer + at);
			tid = (pid_t)strtol(entry->d_name, NULL, 10);
			if (tid <= 0 || is_left(visit, tid) || (size = psc_read_proc(tid, "status", text, sizeof(text))) <= 0)
				continue;
			if (psc_query_parse_status(text, (size_t)size, &task) == 0 && task.tracer == self)
				return true;
		}
	}
	return n < 0;
}

/* Is nothing traced any more but sleeping threads that the exit of this watcher releases, see
 * restart.c? Its exit would kill any other (PTRACE_O_EXITKILL). */
static bool may_exit(const struct psc_trigger *trigger)
{
	const struct psc_visit *visit = &trigger->job.visit;
	bool left = false, traced;
	long proc;

	for (size_t i = 0; i < visit->n; i++) {
		if (visit->tracees[i].state == PSC_TRACEE_RUNNING)
			return false;
		left |= visit->tracees[i].state == PSC_TRACEE_LEFT;
	}
	proc = left ? psc_sys(SYS_openat, AT_FDCWD, "/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -ENOENT;
	if (proc < 0)
		return false;
	traced = holds_tracee(visit, visit->tasks) || holds_tracee(visit, (int)proc);
	psc_sys(SYS_close, proc);
	return !traced;
}

/* One stop or death. FORKED: the thread stands still. */
static int handle(struct psc_trigger *trigger, pid_t tid, int status)
{
	struct psc_visit *visit = &trigger->job.visit;
	bool known = psc_visit_find(visit, tid) != NULL;
	int r;

	if (!WIFSTOPPED(status)) {
		psc_trigger_forget(visit, tid);
		return 0;
	}
	if (!known && !psc_trigger_is_thread(visit->tgid, tid)) {
		welcome_child(trigger, tid, status);
		return 0;
	}
	if (trigger->leaving) {
		release_thread(visit, tid, status);
		return 0;
	}
	if (has_forked(trigger, tid, status))
		return FORKED;
	r = psc_trigger_resume(tid, status, PSC_SEIZE_OPTIONS | visit->options);
	return r < 0 || known ? r : psc_visit_add(visit, tid);
}

/* Threads are let go as they stop, so that none has to wait for another. */
static void leave(struct psc_trigger *trigger)
{
	uint64_t count;

	psc_sys(SYS_read, trigger->wake, &count, sizeof(count));
	trigger->leaving = true;
	psc_visit_interrupt(&trigger->job.visit);
}

/* Somebody of the target may wait for a child that waits for us. */
static void serve_children(struct psc_trigger *trigger)
{
	struct psc_visit *visit = &trigger->job.visit;
	int status;
	long tid;

	while ((tid = psc_sys(SYS_wait4, -1, &status, __WALL | WNOHANG, 0)) > 0) {
		if (!WIFSTOPPED(status)) {
			psc_trigger_forget(visit, (pid_t)tid);
		} else if (psc_visit_find(visit, (pid_t)tid) || psc_trigger_is_thread(visit->tgid, (pid_t)tid)) {
			/* It stops again, for psc_visit_stop(). */
			if (!psc_visit_find(visit, (pid_t)tid) && psc_visit_add(visit, (pid_t)tid) < 0)
				psc_sys(SYS_kill, visit->tgid, SIGKILL);
			psc_visit_stop_again(visit, (pid_t)tid, status);
		} else {
			welcome_child(trigger, (pid_t)tid, status);
		}
	}
}

static int stop_target(struct psc_trigger *trigger)
{
	struct psc_visit *visit = &trigger->job.visit;
	uint64_t deadline = psc_now_ns() + trigger->options.timeout_ns;
	int r;

	do {
		visit->deadline = psc_now_ns() + SLICE_NS;
		r = psc_visit_stop(visit);
		psc_visit_stop_timer(visit);
		if (r != -ETIMEDOUT)
			return r;
		serve_children(trigger);
	} while (psc_now_ns() < deadline);
	return r;
}

/* A thread of it stands after its fork. */
static int filter_target(struct psc_trigger *trigger, pid_t tid)
{
	struct psc_job *job = &trigger->job;
	struct psc_visit *visit = &job->visit;
	int r;

	visit->since = psc_now_ns();
	psc_visit_interrupt(visit);
	r = psc_tracee_go_on(PTRACE_CONT, tid, 0);
	if (r == 0)
		r = stop_target(trigger);
	if (r < 0)
		r = psc_job_stop_failed(job, r);
	else
		r = psc_trigger_commit(job, &trigger->leader);
	if (r < 0)
		psc_sys(SYS_pidfd_send_signal, trigger->options.pidfd, SIGKILL, 0, 0);
	psc_visit_release(visit);
	trigger->result.stop_ns = psc_now_ns() - visit->since;
	/* From now on those of it that were not stopped are let go when they are. */
	trigger->leaving = true;
	return r;
}

int psc_trigger_wait_for_forks(struct psc_trigger *trigger)
{
	int outcome = -ESRCH;

	trigger->result.refusal = PSC_REFUSED_GONE;
	for (;;) {
		int status, r;
		pid_t tid;

		if (trigger->leaving && may_exit(trigger))
			return outcome;
		r = psc_trigger_next_stop(trigger, -1, &tid, &status);
		if (r == -ESRCH)
			return outcome;
		if (r == -ECANCELED) {
			outcome = trigger->leaving ? outcome : r;
			leave(trigger);
			continue;
		}
		r = r < 0 ? r : handle(trigger, tid, status);
		if (r == FORKED) {
			outcome = filter_target(trigger, tid);
		} else if (r < 0) {
			outcome = psc_job_refuse(&trigger->job, PSC_REFUSED_INJECTOR, r);
			psc_sys(SYS_pidfd_send_signal, trigger->options.pidfd, SIGKILL, 0, 0);
		}
	}
}
