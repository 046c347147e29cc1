/* ward.c - one target in the care of a guardian. */
#define _GNU_SOURCE
#include "guardian.h"
#include "inbox.h"
#include "journal.h"

#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

#define RETRY_NS 20000000
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

/* ------------------------------------------------------------------ filter */

static bool has_ended(int pidfd)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	return poll(&p, 1, 0) != 0;
}

/* At a deadline the filter comes into force though that breaks a call: else the target is killed. */
static void try_once(struct psc_work *work, bool break_calls)
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
		.timeout_ns = work->options.timeout_ns,
	};

	work->r = psc_attach(&options, &work->result);
	if (work->r == 0 || work->result.refusal == PSC_REFUSED_NO_LISTENER)
		work->state = PSC_WARD_ACTIVE;
	else if (work->result.refusal == PSC_REFUSED_GONE || has_ended(work->pidfd))
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

/* What may be different a moment later: a debugger, the injector of the manager
 * that has just died, a thread in the middle of vfork. */
static bool may_pass(enum psc_refusal refusal)
{
	return refusal == PSC_REFUSED_TRACED || refusal == PSC_REFUSED_UNSTOPPABLE || refusal == PSC_REFUSED_INJECTOR ||
	       refusal == PSC_REFUSED_FAULT;
}

static void kill_target(struct psc_work *work)
{
	long r = psc_syscall(SYS_pidfd_send_signal, work->pidfd, SIGKILL, NULL, 0);

	work->state = r == 0 ? PSC_WARD_KILLED : r == -ESRCH ? PSC_WARD_GONE : PSC_WARD_FAILED;
	if (r < 0)
		work->r = (int)r;
}

void psc_work_run(struct psc_work *work)
{
	const struct timespec nap = { 0, RETRY_NS };
	uint64_t end = psc_now_ns() + work->options.timeout_ns;

	work->result = (struct psc_attach_result){ .listener = -1 };
	work->state = PSC_WARD_INACTIVE;
	if (work->automatic && work->options.kill) {
		kill_target(work);
		return;
	}
	try_once(work, false);
	if (work->automatic && work->result.refusal == PSC_REFUSED_RESTART) {
		psc_work_close(work);
		try_once(work, true);
	}
	while (work->automatic && work->state == PSC_WARD_INACTIVE && may_pass(work->result.refusal) && psc_now_ns() < end) {
		nanosleep(&nap, NULL);
		psc_work_close(work);
		try_once(work, true);
	}
	/* The manager may be dead: no process would learn that the target runs on without its filter. */
	if (work->automatic && work->state == PSC_WARD_INACTIVE)
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
