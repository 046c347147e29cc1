/* attach.h - private: one attach, between attach.c (manager and injector) and
 * commit.c (what is done in the stopped target). */
#ifndef PSC_ATTACH_H
#define PSC_ATTACH_H

#include "tracee.h"

#define PSC_PAGE 4096
#define PSC_MAX_TRIES 400
#define PSC_MAX_SHARERS 64

/* What a program answers to the calls that follow the commit. */
struct psc_verdicts {
	bool close, unmap, unmask, exit;
	bool close_notifies;
};

/* struct sock_fprog as the target's ABI has it, then the instructions. */
struct psc_image {
	union {
		struct { uint16_t len; uint64_t insns; } wide;
		struct { uint16_t len; uint32_t insns; } narrow;
		uint8_t bytes[16];
	} fprog;
	struct sock_filter insns[];
};

struct psc_job {
	const struct psc_attach_options *options;
	struct psc_attach_result *result;
	struct psc_process_state before;
	struct psc_visit visit;
	struct psc_cave cave;
	struct psc_image *image;
	size_t image_size;
	struct psc_verdicts verdicts[2]; /* of the program alone: by abi->wide */
	bool notifies;
	uint32_t covered;	     /* an architecture that the program is known to have rules for, 0: none */
	bool may_use_loader;	     /* psc_job_may_use_loader() */
	bool tight;		     /* perhaps it has no descriptor free */
	bool stray;		     /* a thread may still execute the code in the cave, which must stay */
	pid_t sharers[PSC_MAX_SHARERS]; /* of its memory, before the stop */
	size_t n_sharers;
	int reserve;		     /* an fd kept free for the listener */
	uint64_t map;		     /* where the target has room for the program, made by psc_job_check() */
	pid_t manager;		     /* nothing is committed after its death; 0: commit all the same */
	int outcome;		     /* 0 or -errno, with result->refusal */
};

/* A failure for want of descriptors, memory or processes says nothing about the target. Only
 * ESRCH and ENOENT say that it is gone: of many processes, one that has ended is left out of the attach. */
static inline enum psc_refusal psc_refusal_of(enum psc_refusal why, int error)
{
	bool about_target = why == PSC_REFUSED_GONE || why == PSC_REFUSED_PERMISSION || why == PSC_REFUSED_CGROUP ||
			    why == PSC_REFUSED_INJECTOR;

	if (why == PSC_REFUSED_GONE && error != -ESRCH && error != -ENOENT)
		why = PSC_REFUSED_INJECTOR;
	return about_target && psc_is_shortage(error) ? PSC_REFUSED_DESCRIPTORS : why;
}

static inline int psc_job_refuse(struct psc_job *job, enum psc_refusal why, int error)
{
	job->result->refusal = psc_refusal_of(why, error);
	return error;
}

/* What the program, or one of the target's, answers to the calls that an attach
 * makes after the commit. ip: where they are made. */
struct psc_verdicts psc_verdicts_judge(const struct sock_filter *insns, size_t len, const struct psc_abi *abi,
				       uint64_t ip);

/* Room that is asked of a cave: for the program too, if a page has room for it. */
size_t psc_job_room_wanted(const struct psc_job *job);

/* What psc_attach() finds out before the stop, of a process that stands already: its
 * thread tid as *ret_task, which job->before then shows; its memory, a cave, the verdicts. */
PSC_MUST_CHECK int psc_job_look(struct psc_job *job, pid_t tid, struct psc_task_state *ret_task);

/* The processes outside the thread group that share with its thread tid (KCMP_VM, KCMP_FILES). How
 * many, at most size. -ENOSYS: kcmp(2) is not to be had. Else -errno: /proc could not be read. */
PSC_MUST_CHECK int psc_sharers_find(const struct psc_job *job, pid_t tid, int type, pid_t *ret_found, size_t size);

/* With the target stopped: refuse if one of these shares still, and does not just wait in vfork().
 * PSC_MAX_SHARERS of them are refused too, since there may be more. */
PSC_MUST_CHECK int psc_sharers_check(struct psc_job *job, pid_t tid, int type, const pid_t *found, size_t n);

/* Of stopped threads, after psc_job_look(): find out whether psc_job_commit() will succeed,
 * and take what it needs. A process with filters, or short of descriptors, makes a dry run:
 * a temporary thread loads the program for itself alone. Nothing is changed but memory
 * that psc_job_give_up() gives back. Errors as psc_job_commit(). */
PSC_MUST_CHECK int psc_job_check(struct psc_job *job);

/* Can a listener be taken from one thread alone? Since Linux 6.9.
 * FIXME: drop, with what it decides, once 6.9 is the baseline. */
bool psc_job_may_use_loader(void);

/* Will the listener of this thread come to us, and will there be a descriptor for it? */
PSC_MUST_CHECK int psc_job_check_fetch(struct psc_job *job, pid_t tid);
void psc_job_give_up(struct psc_job *job);

/* In the manager: the injector's list of threads, in memory of the caller's kind, with
 * what the kernel says of each now. NULL: no memory, and listeners in the list are closed. */
struct psc_thread_outcome *psc_outcomes_report(const struct psc_thread_outcome *mapped, size_t n, int pidfd);

/* Of the stopped threads, before the first is changed: refuse if the program has no rules for
 * the architecture of one, unless options->foreign_arch. */
PSC_MUST_CHECK int psc_job_check_arch(struct psc_job *job);

/* The same by its program file, before the first stop. */
PSC_MUST_CHECK int psc_job_check_elf(struct psc_job *job);

/* Of threads whose filters differ, before the first is changed: refuse if one is a worker. */
PSC_MUST_CHECK int psc_job_check_workers(struct psc_job *job);

/* Before the first thread is stopped, with job->visit.tasks open, where filters cannot be
 * suspended: refuse if a thread carries filters, or waits in a call that the stop would make
 * resume by restart_syscall. denied: the ABI for which the program forbids that, or NULL. */
PSC_MUST_CHECK int psc_restart_check(struct psc_job *job, const struct psc_abi *denied);

/* The same of stopped threads, by their registers. */
PSC_MUST_CHECK int psc_restart_check_stopped(struct psc_job *job);

/* Which thread makes the call: the leader, whose fd table a pidfd reaches on every
 * kernel; any other if that one has exited. NULL: none is left. */
struct psc_tracee *psc_job_choose(struct psc_job *job);

/* Filter the stopped threads of job->visit: all or, unless it says
 * PSC_REFUSED_PARTIAL, none. They stand as they stood then, to be released.
 * 0 or -errno, with job->result->refusal. */
PSC_MUST_CHECK int psc_job_commit(struct psc_job *job);

/* Is it worth another try? If so it has napped. tries: how many were made. */
bool psc_attach_was_passing(const struct psc_attach_options *options, const struct psc_attach_result *result, int tries);

/* Say why psc_visit_stop() failed. */
int psc_job_stop_failed(struct psc_job *job, int error);

/* What an injector may take beyond the caller's time-out: the two halves of a commit, and some more. */
#define PSC_INJECTOR_GRACE_NS 5000000000

/* Run work(arg) in a process that shares our memory and files, and wait for its
 * end. Call it with all signals blocked. An injector that still runs at the deadline (CLOCK_MONOTONIC,
 * ns; 0: none) waits for something that the target has made, and is killed. -EINTR: it was killed. */
PSC_MUST_CHECK int psc_injector_run(int (*work)(void *), void *arg, uint64_t deadline);

/* The same with signals blocked meanwhile; in_thread: in a thread of ours. */
PSC_MUST_CHECK int psc_injector_do(bool in_thread, int (*work)(void *), void *arg, uint64_t deadline);

#endif
