/* journal.h - private: the record of received, unanswered notifications, between
 * journal.c, the inbox that fills it and the guardian that reads it afterwards. */
#ifndef PSC_JOURNAL_H
#define PSC_JOURNAL_H

#include "internal.h"
#include "psc.h"

/* psc_notify_receive() into the journal and from there into *event; without a
 * journal straight into *event. -ENOBUFS: the journal is full of unanswered ones. */
PSC_MUST_CHECK int psc_journal_receive(struct psc_journal *journal, int fd, struct psc_event *event);

/* True if there are orphans. NULL is fine. */
bool psc_journal_waits(const struct psc_journal *journal);

/* The event has been answered, or is over. NULL, and a second time, are fine. */
void psc_journal_done(struct psc_journal *journal, const struct psc_event *event);

/* The next orphan at or after *index: 1 and *ret_n, with *index behind it; 0: none is left. */
int psc_journal_next(struct psc_journal *journal, size_t *index, union psc_notif *ret_n);

/* Take the first orphan that still waits under one of the listeners, whose index
 * goes into *ret_listener: 1; those that are over are dropped. 0: none is left. */
int psc_journal_take(struct psc_journal *journal, const int *fds, size_t n, struct psc_event *event,
		     size_t *ret_listener);

#endif
