/* Between rules.c and the loops. */
#ifndef PSC_RULES_H
#define PSC_RULES_H

#include "psc.h"

/* True if the table refuses to hold the event; event->answer is then what it gets
 * instead. */
PSC_MUST_CHECK bool psc_table_refuses(const struct psc_table *table, struct psc_event *event);

/* psc_table_decide(), into event->answer; what was read of the first string goes into
 * event->text. */
void psc_table_decide_event(const struct psc_table *table, struct psc_event *event);

/* True if it can be given, or is PSC_HOLD. */
bool psc_answer_sound(const struct psc_answer *answer);

#endif
