/* Between inbox.c and serve.c: what the loop needs of the set of listeners. */
#ifndef PSC_INBOX_H
#define PSC_INBOX_H

#include "internal.h"
#include "psc.h"

#include <stdatomic.h>

/* gettid() without the system call, which costs as much as a callback's way through
 * Python. Not for signal handlers. */
pid_t psc_tid(void);

/* Inside a slot a listener that psc_event_alive() says is there stays there.
 * Returns the slot, -EAGAIN if 256 threads are inside. */
PSC_MUST_CHECK int psc_slot_enter(struct psc_inbox *inbox, pid_t tid);
void psc_slot_leave(struct psc_inbox *inbox, int slot);

/* Make every receiver look again, and wait until it does. Async-signal-safe. */
int psc_inbox_kick(struct psc_inbox *inbox);

/* psc_inbox_receive() without a deadline, -ETIMEDOUT when *word is value, also where
 * another thread polls. Who changes the word calls psc_inbox_kick(). */
PSC_MUST_CHECK int psc_inbox_receive_unless(struct psc_inbox *inbox, const _Atomic uint32_t *word, uint32_t value,
					    struct psc_event *event);

/* A receiver that stays inside while it answers and receives from the only listener,
 * as long as nobody changes anything: see the head of inbox.c. */
struct psc_stretch {
	const _Atomic uint32_t *epoch, *waiters;
	struct psc_journal *journal;
	uint64_t key;
	uint32_t listener, entered;
	int fd, slot;
};

/* False: receive otherwise; there is more than one listener, say. */
bool psc_stretch_begin(struct psc_inbox *inbox, pid_t tid, const struct psc_event *event,
		       struct psc_stretch *ret_stretch);
void psc_stretch_end(struct psc_inbox *inbox, const struct psc_stretch *stretch);

static inline bool psc_stretch_goes_on(const struct psc_stretch *stretch)
{
	return atomic_load_explicit(stretch->epoch, memory_order_relaxed) == stretch->entered &&
	       atomic_load_explicit(stretch->waiters, memory_order_relaxed) == 0;
}

/* RECV said -ENOENT: the call is over, or all tasks are gone and the listener leaves. */
int psc_stretch_missed(struct psc_inbox *inbox, const struct psc_stretch *stretch);

/* True while the listener that the event came from has not been removed. */
bool psc_event_alive(struct psc_inbox *inbox, const struct psc_event *event);

/* For a gate, which receives from its listeners itself and hands on what is meant for
 * the user. reserve: a place for a listener that does not exist yet. bind: its number
 * (takes no lock). feed: queue one notification; -EAGAIN: 1024 are queued. unreserve:
 * no task is left, or it never came to be. A place alone makes receivers wait for
 * listeners that are still to come. */
PSC_MUST_CHECK int psc_inbox_reserve(struct psc_inbox *inbox, struct psc_event *ret_route);
void psc_inbox_bind(struct psc_inbox *inbox, struct psc_event *route, int fd);
PSC_MUST_CHECK int psc_inbox_feed(struct psc_inbox *inbox, const struct psc_event *route, const union psc_notif *notif);
void psc_inbox_unreserve(struct psc_inbox *inbox, const struct psc_event *route);

int psc_inbox_wake_signal(const struct psc_inbox *inbox);

/* What journal it keeps, or NULL. */
struct psc_journal *psc_inbox_journal(struct psc_inbox *inbox);

/* psc_inbox_receive() for a caller that knows its thread id. */
PSC_MUST_CHECK int psc_inbox_receive_as(struct psc_inbox *inbox, pid_t tid, int64_t deadline,
					struct psc_event *event);

/* Send an answer, not PSC_HOLD. */
PSC_MUST_CHECK int psc_notify_answer(int fd, const struct seccomp_notif *n, const struct psc_answer *answer);

/* Answer PSC_ADD_FD. */
PSC_MUST_CHECK int psc_notify_give(int fd, const struct seccomp_notif *n, const struct psc_answer *answer);

/* The thread group of a task; -ESRCH if there is no such task to be seen. */
PSC_MUST_CHECK pid_t psc_thread_group(pid_t tid);

/* The reads of notify.c before their check: worthless until the id was found valid. */
PSC_MUST_CHECK ssize_t psc_notify_peek(const struct seccomp_notif *n, uint64_t addr, void *ret_data, size_t size);
PSC_MUST_CHECK ssize_t psc_notify_peek_string(const struct seccomp_notif *n, uint64_t addr, char *ret_data,
					      size_t size);

#endif
