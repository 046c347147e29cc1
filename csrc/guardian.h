/* guardian.h - private: between guardian.c (what the guardian does, and when) and
 * ward.c (one target: filter it, kill it, answer for it). */
#ifndef PSC_GUARDIAN_H
#define PSC_GUARDIAN_H

#include "internal.h"
#include "psc.h"

/* One target. Owns its descriptors. */
struct psc_ward {
	uint32_t id;
	int pidfd;
	enum psc_ward_state state;
	bool busy; /* a worker filters it now */
	bool settled; /* after the manager's death: nothing is left to be done at once */
	struct psc_guardian_message options;
	int *listeners;
	size_t n_listeners;
};

void psc_ward_destroy(struct psc_ward *ward);

/* Take over descriptors. -ENOMEM: they are closed. */
PSC_MUST_CHECK int psc_ward_add_listeners(struct psc_ward *ward, const int *fds, size_t n);

/* True if this process may filter the target, as far as can be known before. */
bool psc_ward_can_inject(const struct psc_ward *ward);

/* An attempt to filter a ward, made in a thread of its own. */
struct psc_work {
	struct psc_work *next;
	uint32_t ward, serial;
	bool automatic; /* nobody asked: try for timeout_ns, then kill */
	int pidfd;	/* the ward's; it is kept open while the ward is busy */
	struct psc_guardian_message options;
	struct psc_filter filter; /* the guardian's, which outlives it */
	enum psc_ward_state state;
	int r;
	struct psc_attach_result result;
};

/* Do it. Waits. */
void psc_work_run(struct psc_work *work);

/* Receive one notification without waiting longer than some milliseconds, and
 * answer it. -ENOENT: none is there any more. -ESHUTDOWN: no task is left under the listener. */
PSC_MUST_CHECK int psc_ward_answer_one(int listener, const struct psc_answer *answer);

/* Answer what the dead manager received under these listeners and left unanswered. */
void psc_ward_answer_orphans(const struct psc_ward *ward, struct psc_journal *journal);

#endif
