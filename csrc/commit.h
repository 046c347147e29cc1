/* commit.h - private: one thread that is about to load a program, between ready.c (what that
 * needs), check.c (will it succeed?) and commit.c (the act). */
#ifndef PSC_COMMIT_H
#define PSC_COMMIT_H

#include "attach.h"

#include <linux/ptrace.h>

#define PSC_COMMIT_OPTIONS (PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC)

struct psc_commit {
	struct psc_job *job;
	struct psc_tracee *tracee;
	const struct psc_abi *abi;
	struct psc_verdicts earlier; /* of the filters that it has */
	int filters;	   /* in its chain; -1: not known */
	bool suspended;
	uint64_t map;
	struct psc_site site;
	bool by_loader;	   /* a temporary thread makes the call, not this one */
	bool refused;	   /* nothing was loaded, and the refusal says why */
	bool begun;	   /* the call may have been made, or may be made yet */
	bool loaded;	   /* the filter is in force */
	bool replaced;	   /* but it is another program than ours */
	int listener;	   /* or why there is none: -errno */
};

/* A status file below dir. ret_tight, unless NULL: may it have no descriptor free? */
PSC_MUST_CHECK int psc_job_read_status(int dir, const char *path, struct psc_task_state *ret_task, bool *ret_tight);
PSC_MUST_CHECK int psc_job_count_filters(struct psc_job *job, pid_t tid, int *ret_filters);
int psc_filters_carried(const struct psc_task_state *task);

/* The size of memory that the target maps for the program, where the cave has no room for it. */
size_t psc_job_map_size(const struct psc_job *job);
bool psc_job_fits_cave(const struct psc_job *job);

/* Flags of seccomp(). */
uint32_t psc_job_seccomp_flags(const struct psc_job *job, bool all_threads);

/* A listener must be closed in the target before it runs again, under the very program that has
 * just come into force, and no process outside the thread group may reach it before. */
PSC_MUST_CHECK int psc_commit_check_listener(struct psc_commit *commit);

/* Everything that can be refused without a call. */
PSC_MUST_CHECK int psc_commit_make_ready(struct psc_commit *commit);

/* Refuse because a request on the stopped thread failed. Returns r. */
int psc_commit_refuse_request(struct psc_commit *commit, int r);

PSC_MUST_CHECK int psc_commit_block_signals(struct psc_commit *commit);

/* From a stopped thread to one that can be made to call. */
PSC_MUST_CHECK int psc_commit_enter(struct psc_commit *commit);

/* And back: registers, signal mask, and the code wiped out if no thread can execute it. r: what
 * became of the calls, which is returned, or the error of this. A thread that did not come to
 * its stop in time executes the code still, and finishes by itself. */
PSC_MUST_CHECK int psc_commit_leave(struct psc_commit *commit, int r);

/* Where the program is to be read by the kernel: behind the code in the cave, or
 * in memory that the target maps for it. */
PSC_MUST_CHECK int psc_commit_place_program(struct psc_commit *commit, uint64_t *ret_address);
PSC_MUST_CHECK int psc_commit_write_program(struct psc_commit *commit, uint64_t address);
void psc_commit_unmap_program(struct psc_commit *commit, bool committed);

/* The PTRACE_O_* of a loader. */
unsigned long psc_commit_loader_options(const struct psc_commit *commit);

/* End a loader, or note that the code must stay; bring its maker to a stop where it can be
 * restored. r: what became of it before, which is returned, or the error of this. */
PSC_MUST_CHECK int psc_commit_end_loader(struct psc_commit *commit, struct psc_tracee *loader, int r);

#endif
