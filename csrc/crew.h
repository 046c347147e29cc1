/* Between serve.c and crew.c: a loop as one of several. */
#ifndef PSC_CREW_H
#define PSC_CREW_H

#include "psc.h"

#include <pthread.h>
#include <stdatomic.h>

enum { PSC_CREW_LOOK = 64 }; /* calls between two looks at the load */

/* calls is written by its own thread alone. */
struct psc_member {
	_Alignas(64) struct psc_crew *crew;
	unsigned int index; /* 0: the thread that called psc_serve_with() */
	_Atomic uint64_t calls;
	uint32_t last_task, turns; /* how often another task called than before */
	int processor;
	pthread_t thread;
	bool made;
};

/* How many of the members serve, the first ones. */
const _Atomic uint32_t *psc_crew_active(const struct psc_crew *crew);

/* For the first member: it does not receive from a single listener, where alone helpers help. */
void psc_crew_rest(struct psc_crew *crew);

/* For the first member: look at the load, and call up another or stand one down. */
void psc_crew_look(struct psc_crew *crew);

/* Before each answer. False: it is to stand down after that. */
static inline bool psc_member_goes_on(struct psc_member *member, uint32_t task)
{
	uint64_t calls = atomic_load_explicit(&member->calls, memory_order_relaxed) + 1;

	atomic_store_explicit(&member->calls, calls, memory_order_relaxed);
	if (member->index)
		return atomic_load_explicit(psc_crew_active(member->crew), memory_order_relaxed) > member->index;
	member->turns += task != member->last_task;
	member->last_task = task;
	if (calls % PSC_CREW_LOOK == 0)
		psc_crew_look(member->crew);
	return true;
}

/* psc_serve() for a member, or NULL. -ESTALE: a helper is to stand down. */
PSC_MUST_CHECK int psc_serve_as(struct psc_inbox *inbox, const struct psc_table *table, struct psc_stats *stats,
				struct psc_member *member, struct psc_event *event);

#endif
