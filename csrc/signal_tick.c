/* signal_tick.c - let an interpreter hear signals while a loop in C receives.
 *
 * An interpreter runs its signal handlers late: the handler that the kernel calls only sets a flag.
 * A loop in C has to return for that, with -EINTR, and it misses two moments. A signal that arrives
 * after the interpreter's last look at the flag and before RECV blocks interrupts nothing. And RECV
 * never blocks while calls are pending all the time.
 *
 * So the thread arms a timer before it receives. The timer sends the wake-up signal to this thread:
 * that interrupts RECV, and its handler sets a flag that the loop looks at after each answer. To arm a
 * timer that runs already costs no system call. A thread has one timer, until it ends.
 *
 * A loop that returns needs the interpreter's lock, and a task that it supervises may hold that. It
 * must not return for a tick alone: it looks into a pipe that the interpreter's handlers write to
 * (signal.set_wakeup_fd() of Python), and goes on where that is empty.
 */
#define _GNU_SOURCE
#include "signal_tick.h"
#include "internal.h"

#include <poll.h>
#include <stdatomic.h>
#include <time.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

#define FIRST_NS 50000000
#define LONGEST_NS 800000000 /* an idle loop is woken that seldom */

/* Static TLS: a signal handler must not allocate. */
#define THREAD_LOCAL __thread __attribute__((tls_model("initial-exec")))

enum { TIMER_NONE, TIMER_MADE, TIMER_IMPOSSIBLE };

static THREAD_LOCAL int timer_state;
static THREAD_LOCAL int timer, tick_signal, signal_pipe = -1;
static THREAD_LOCAL int64_t interval;
static THREAD_LOCAL volatile sig_atomic_t armed;
THREAD_LOCAL volatile sig_atomic_t psc_signal_ticked;
static atomic_bool forbidden;

void psc_signal_tick_came(void)
{
	if (!armed) /* psc_inbox_kick() interrupts threads without a timer, too */
		return;
	armed = 0;
	psc_signal_ticked = 1;
}

void psc_signal_tick_forget(void)
{
	armed = 0;
	psc_signal_ticked = 0;
	timer_state = TIMER_NONE;
}

void psc_signal_tick_forbid(void)
{
	forbidden = true;
}

bool psc_signal_tick_is_forbidden(void)
{
	return forbidden;
}

static void make_timer(int wake_signal)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = wake_signal };

	event.sigev_notify_thread_id = gettid();
	timer_state = psc_syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &timer) < 0 ? TIMER_IMPOSSIBLE : TIMER_MADE;
}

static int set_timer(int64_t ns)
{
	const struct itimerspec once = { .it_value = { ns / 1000000000, ns % 1000000000 } };

	return (int)psc_syscall(SYS_timer_settime, timer, 0, &once, NULL);
}

void psc_signal_tick_arm(int wake_signal, int64_t ns)
{
	psc_signal_ticked = 0;
	if (armed || forbidden)
		return;
	if (timer_state == TIMER_NONE)
		make_timer(wake_signal);
	if (timer_state != TIMER_MADE)
		return;
	armed = 1;
	if (set_timer(ns) < 0)
		armed = 0;
}

void psc_signal_tick_disarm(void)
{
	if (!armed || signal_pipe >= 0)
		return;
	if (!forbidden)
		(void)set_timer(0);
	armed = 0;
	psc_signal_ticked = 0;
}

void psc_signal_tick_begin(int wake_signal, int signals)
{
	signal_pipe = signals;
	tick_signal = wake_signal;
	interval = FIRST_NS;
	if (signals >= 0)
		psc_signal_tick_arm(tick_signal, interval);
}

void psc_signal_tick_end(void)
{
	signal_pipe = -1;
	psc_signal_ticked = 0;
	if (armed && !forbidden)
		(void)set_timer(0);
	armed = 0;
}

bool psc_signal_tick_only(void)
{
	struct pollfd heard = { .fd = signal_pipe, .events = POLLIN };

	if (!psc_signal_ticked || signal_pipe < 0 || poll(&heard, 1, 0) != 0)
		return false;
	if (interval < LONGEST_NS)
		interval *= 2;
	psc_signal_tick_arm(tick_signal, interval);
	return true;
}
