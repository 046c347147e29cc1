/* turn.c - to receive without a time-out, but not for longer than a turn.
 *
 * Who receives in an event loop must give the loop its turn. A time-out for each
 * wait would do, but to set and cancel a timer, and to poll before RECV, costs more
 * than the notification. So the receiver waits in RECV as if for ever, and a thread
 * beside it sleeps through the turn, says that it is over and makes every receiver
 * look up (psc_inbox_kick), which touches nobody outside the inbox:
 *
 *   receiver     begin: RUNNING         receive: OVER? RECV. OVER?
 *   timekeeper   RUNNING: sleep; RUNNING -> OVER, kick
 */
#define _GNU_SOURCE
#include "inbox.h"
#include "thread.h"

#include <linux/futex.h>
#include <time.h>

enum { IDLE, RUNNING, OVER, ENDED };

struct psc_turn {
	struct psc_inbox *inbox;
	_Atomic uint32_t state;
	struct timespec length;
	pthread_t timekeeper;
	pid_t owner;
};

static void wait_while(struct psc_turn *turn, uint32_t state, const struct timespec *timeout)
{
	syscall(SYS_futex, &turn->state, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, state, timeout, NULL, 0);
}

static void *keep_time(void *argument)
{
	struct psc_turn *turn = argument;
	uint32_t state;

	while ((state = turn->state) != ENDED) {
		wait_while(turn, state, state == RUNNING ? &turn->length : NULL);
		if (state == RUNNING && atomic_compare_exchange_strong(&turn->state, &state, OVER))
			(void)psc_inbox_kick(turn->inbox);
	}
	return NULL;
}

static void set(struct psc_turn *turn, uint32_t state)
{
	turn->state = state;
	syscall(SYS_futex, &turn->state, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1);
}

int psc_turn_new(struct psc_inbox *inbox, int64_t ns, struct psc_turn **ret_turn)
{
	_cleanup_free_ struct psc_turn *turn = NULL;
	int r;

	if (ns < 1)
		return -EINVAL;
	turn = calloc(1, sizeof(*turn));
	if (!turn)
		return -ENOMEM;
	turn->inbox = inbox;
	turn->length = (struct timespec){ ns / 1000000000, ns % 1000000000 };
	turn->owner = getpid();
	r = psc_thread_start(&turn->timekeeper, 0, keep_time, turn);
	if (r < 0)
		return r;
	*ret_turn = psc_take_ptr(turn);
	return 0;
}

void psc_turn_free(struct psc_turn *turn)
{
	if (!turn)
		return;
	/* A child made by fork() has no such thread. */
	if (turn->owner == getpid()) {
		set(turn, ENDED);
		pthread_join(turn->timekeeper, NULL);
	}
	free(turn);
}

void psc_turn_begin(struct psc_turn *turn)
{
	set(turn, RUNNING);
}

int psc_turn_receive(struct psc_turn *turn, struct psc_event *event)
{
	int r = psc_inbox_receive_unless(turn->inbox, &turn->state, OVER, event);

	if (r == 0)
		return turn->state == OVER;
	return r == -EINTR && turn->state == OVER ? -ETIMEDOUT : r;
}
