/* Between rules.c and memory.c: reads of targets' memory that a loop repeats. */
#ifndef PSC_MEMORY_H
#define PSC_MEMORY_H

#include "psc.h"

#include <sys/types.h>

struct psc_memory;

/* -EPERM: takes CAP_BPF and CAP_PERFMON, and a caller without a filter of its own.
 * -EOPNOTSUPP: no such tracepoint, or a /proc that does not show tasks by this process's
 * numbers. Others: what bpf(2) said. */
PSC_MUST_CHECK int psc_memory_new(struct psc_memory **ret_memory);
void psc_memory_free(struct psc_memory *memory);

/* As psc_notify_peek(), and as little to be believed before the call was found to wait
 * still. memory may be NULL. listener: where n came from. */
PSC_MUST_CHECK ssize_t psc_memory_peek(struct psc_memory *memory, int listener, const struct seccomp_notif *n,
				       uint64_t addr, void *ret_data, size_t size);

/* True if the task's memory is kept open. */
bool psc_memory_keeps(const struct psc_memory *memory, pid_t tid);

#endif
