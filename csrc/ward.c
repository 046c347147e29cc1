/* ward.c - one target in the care of a guardian. */
#define _GNU_SOURCE
#include "guardian.h"
#include "inbox.h"
#include "journal.h"
#include "tracee.h"

#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

#define RETRY_NS 20000000
#define MAX_RETRY_NS 320000000
#define KILL_TRIES 3
#define BRIEF_US 20000

void psc_ward_destroy(struct psc_ward *ward)
{
	for (size_t i = 0; i < ward->n_listeners; i++)
		psc_close_fd(&ward->listeners[i]);
	free(ward->listeners);
	free(ward->spare);
	psc_close_fd(&ward->pidfd);
	*ward = (struct psc_ward){ .pidfd = -1 };
}

int psc_ward_add_listeners(struct psc_ward *ward, const int *fds, size_t n)
{
	int *more = reallocarray(ward->listeners, ward->n_listeners + n, sizeof(*more));

	if (!more)
		return -ENOMEM;
	memcpy(more + ward->n_listeners, fds, n * sizeof(*fds));
	ward->listeners = more;
	ward->n_listeners += n;
	return 0;
}

int psc_ward_take_result(struct psc_ward *ward, struct psc_work *work)
{
	struct psc_attach_result *result = &work->result;
	size_t room = ward->n_listeners + result->n_threads + 1;
	int *more = reallocarray(ward->listeners, room, sizeof(*more));

	if (!more)
		return -ENOMEM;
	ward->listeners = more;
	if (result->listener >= 0)
		more[ward->n_listeners++] = psc_take_fd(result->listener);
	for (size_t i = 0; i < result->n_threads; i++)
		if (result->threads[i].listener >= 0)
			more[ward->n_listeners++] = psc_take_fd(result->threads[i].listener);
	return 0;
}

/* pidfd_getfd asks for the same right as ptrace does, YAMA included. */
bool psc_ward_can_inject(const struct psc_ward *ward)
{
	return psc_syscall(SYS_pidfd_getfd, ward->pidfd, -1, 0) == -EBADF;
}

/* leader_only counts for a program without a listener: else the other threads are stopped too. */
static bool concerns(const struct psc_guardian_message *options, const struct psc_filter *filter,
		     const struct psc_process_state *process, const struct psc_task_state *task)
{
	return psc_task_alive(task) && (!options->leader_only || task->tid == process->pid ||
					psc_program_notifies(filter->insns, filter->len));
}

/* No-new-privileges is asked of the first thread, as the attachment does. */
static enum psc_refusal foresee(const struct psc_ward *ward, const struct psc_filter *filter,
				const struct psc_process_state *process, pid_t *ret_tid)
{
	const struct psc_task_state *first = process->threads;
	bool may_suspend = psc_restart_may_suspend(), differ = false;
	int filters = -1;

	*ret_tid = 0;
	for (size_t i = 0; i < process->n_threads; i++) {
		const struct psc_task_state *task = &process->threads[i];

		if (!concerns(&ward->options, filter, process, task))
			continue;
		*ret_tid = task->tid;
		if (task->seccomp == SECCOMP_MODE_STRICT)
			return PSC_REFUSED_STRICT;
		if (task->seccomp == SECCOMP_MODE_FILTER && !may_suspend)
			return PSC_REFUSED_FILTERED;
		if (task->tid != process->pid && psc_visit_is_worker(task->tid))
			continue;
		differ |= filters >= 0 && task->filters != filters;
		filters = task->filters;
	}
	for (size_t i = 0; differ && !ward->options.leader_only && i < process->n_threads; i++) {
		*ret_tid = process->threads[i].tid;
		if (*ret_tid != process->pid && psc_visit_is_worker(*ret_tid))
			return PSC_REFUSED_WORKER;
	}
	*ret_tid = 0;
	if (ward->options.no_new_privs == PSC_NO_NEW_PRIVS_NEVER && process->n_threads && first->no_new_privs == 0 &&
	    !(first->cap_effective >> 21 & 1))
		return PSC_REFUSED_PRIVILEGE;
	return PSC_REFUSED_KERNEL;
}

int psc_ward_foresee(const struct psc_ward *ward, const struct psc_filter *filter, enum psc_refusal *ret_refusal, pid_t *ret_tid)
{
	struct psc_process_state process = { 0 };
	int r = psc_query_process(0, ward->pidfd, &process);

	*ret_tid = 0;
	*ret_refusal = PSC_REFUSED_GONE;
	if (r < 0)
		return r;
	if (!process.alive)
		r = -ESRCH;
	else
		*ret_refusal = foresee(ward, filter, &process, ret_tid);
	psc_process_state_destroy(&process);
	switch (r < 0 ? PSC_REFUSED_KERNEL : *ret_refusal) {
	case PSC_REFUSED_KERNEL: return r;
	case PSC_REFUSED_WORKER: return -EOPNOTSUPP;
	default: return -EACCES;
	}
}

/* ------------------------------------------------------------------ filter */

static bool has_ended(int pidfd)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	return poll(&p, 1, 0) == 1 && (p.revents & POLLIN);
}

/* The filters of the thread that has fewest, or (most) of the one that has most; -1: not known. */
static int count_filters(const struct psc_work *work, bool most)
{
	struct psc_process_state process = { 0 };
	int found = -1;

	if (psc_query_process(0, work->pidfd, &process) < 0)
		return -1;
	for (size_t i = 0; i < process.n_threads; i++) {
		const struct psc_task_state *task = &process.threads[i];

		if (!concerns(&work->options, &work->filter, &process, task))
			continue;
		if (task->filters < 0) {
			found = -1;
			break;
		}
		if (found < 0 || (most ? task->filters > found : task->filters < found))
			found = task->filters;
	}
	psc_process_state_destroy(&process);
	return found;
}

/* The commit was begun and its end not seen, or seen of some threads only: the kernel shows what every thread has. */
static bool is_in_force(const struct psc_work *work, int before)
{
	return (work->result.refusal == PSC_REFUSED_UNKNOWN || work->result.refusal == PSC_REFUSED_PARTIAL) && before >= 0 &&
	       count_filters(work, false) > before;
}

/* At a deadline the filter comes into force though that breaks a call: else the target is killed. */
static void try_once(struct psc_work *work, bool break_calls, uint64_t timeout_ns)
{
	const struct psc_attach_options options = {
		.pidfd = work->pidfd,
		.insns = work->filter.insns,
		.len = work->filter.len,
		.flags = work->options.flags,
		.no_new_privs = (enum psc_no_new_privs)work->options.no_new_privs,
		.leader_only = work->options.leader_only,
		.foreign_arch = work->options.foreign_arch || work->automatic,
		.break_calls = break_calls,
		.timeout_ns = timeout_ns,
	};
	int before = work->automatic ? count_filters(work, true) : -1;

	work->r = psc_attach(&options, &work->result);
	if (work->r == 0 || work->result.refusal == PSC_REFUSED_NO_LISTENER || is_in_force(work, before))
		work->state = PSC_WARD_ACTIVE;
	else if (has_ended(work->pidfd)) /* its pidfd tells; another call that fails with ESRCH does not */
		work->state = PSC_WARD_GONE;
}

void psc_work_close(struct psc_work *work)
{
	psc_close_fd(&work->result.listener);
	for (size_t i = 0; i < work->result.n_threads; i++)
		psc_close_fd(&work->result.threads[i].listener);
	psc_attach_result_destroy(&work->result);
	work->result.listener = -1;
}

/* What ends by itself: a debugger, the injector of the manager that has just died, a
 * thread in the middle of vfork. The next attempt follows soon. */
static bool passes_soon(enum psc_refusal refusal)
{
	return refusal == PSC_REFUSED_TRACED || refusal == PSC_REFUSED_UNSTOPPABLE || refusal == PSC_REFUSED_INJECTOR ||
	       refusal == PSC_REFUSED_FAULT;
}

/* What no later attempt changes. A second copy of a program with a listener is refused where the first one is. */
static bool is_final(const struct psc_work *work)
{
	enum psc_refusal refusal = work->result.refusal;

	return refusal == PSC_REFUSED_STRICT || refusal == PSC_REFUSED_REPLACED ||
	       ((refusal == PSC_REFUSED_PARTIAL || refusal == PSC_REFUSED_UNKNOWN) &&
		psc_program_notifies(work->filter.insns, work->filter.len));
}

static void kill_target(struct psc_work *work)
{
	long r = -EPERM;

	for (int tries = 0; r < 0 && r != -ESRCH && tries < KILL_TRIES; tries++)
		r = psc_syscall(SYS_pidfd_send_signal, work->pidfd, SIGKILL, NULL, 0);
	work->state = r == 0 ? PSC_WARD_KILLED : r == -ESRCH ? PSC_WARD_GONE : PSC_WARD_FAILED;
	if (r < 0)
		work->r = (int)r;
}

/* Any refusal may be that of one call that failed once, so each is tried again. Where a thread does
 * not stop, the first attempt leaves time for another: the request to stop it may have failed. */
static void try_until(struct psc_work *work, uint64_t end)
{
	uint64_t part = work->options.timeout_ns / 4, limit = part, now;
	struct timespec nap = { 0, RETRY_NS };
	bool break_calls = false;

	for (;;) {
		try_once(work, break_calls, limit);
		now = psc_now_ns();
		limit = now + part < end ? end - now : part;
		if (work->state != PSC_WARD_INACTIVE || is_final(work))
			return;
		if (!break_calls && work->result.refusal == PSC_REFUSED_RESTART) {
			break_calls = true;
		} else {
			if (now >= end)
				return;
			nanosleep(&nap, NULL);
			if (!passes_soon(work->result.refusal) && nap.tv_nsec < MAX_RETRY_NS)
				nap.tv_nsec *= 2;
		}
		psc_work_close(work);
	}
}

void psc_work_run(struct psc_work *work)
{
	uint64_t end = psc_now_ns() + work->options.timeout_ns;

	work->result = (struct psc_attach_result){ .listener = -1 };
	work->state = PSC_WARD_INACTIVE;
	if (!work->automatic) {
		try_once(work, false, work->options.timeout_ns);
		return;
	}
	if (!work->options.kill)
		try_until(work, end);
	/* The manager may be dead: no process would learn that the target runs on without its filter. */
	if (work->state == PSC_WARD_INACTIVE)
		kill_target(work);
}

/* ------------------------------------------------------------------ answer */

void psc_alarm_start(void)
{
	const struct itimerval soon = { { 0, BRIEF_US }, { 0, BRIEF_US } };

	setitimer(ITIMER_REAL, &soon, NULL);
}

void psc_alarm_stop(void)
{
	const struct itimerval never = { 0 };

	setitimer(ITIMER_REAL, &never, NULL);
}

/* Another process that has the listener may take what poll() saw, and RECV would wait
 * for the next notification: the alarm interrupts it. */
static int receive_briefly(int listener, union psc_notif *ret_n)
{
	int r;

	psc_alarm_start();
	r = psc_notify_receive(listener, ret_n);
	psc_alarm_stop();
	return r == -EINTR ? -ENOENT : r;
}

int psc_ward_answer_one(int listener, const struct psc_answer *answer)
{
	union psc_notif n;
	int r = psc_notify_poll(listener, 0);

	if (r < 0)
		return r;
	if (!(r & PSC_POLL_PENDING))
		return r & PSC_POLL_GONE ? -ESHUTDOWN : -ENOENT;
	r = receive_briefly(listener, &n);
	if (r < 0)
		return r;
	/* What fails here is a target that is gone, or one that may not be killed
	 * and was denied instead. */
	(void)!psc_notify_answer(listener, &n.n, answer);
	return 0;
}

void psc_ward_answer_orphans(const struct psc_ward *ward, struct psc_journal *journal)
{
	union psc_notif n;
	size_t at = 0;

	while (psc_journal_next(journal, &at, &n))
		for (size_t i = 0; i < ward->n_listeners; i++)
			if (psc_notify_valid(ward->listeners[i], n.n.id) == 0)
				(void)!psc_notify_answer(ward->listeners[i], &n.n, &ward->options.answer);
}
