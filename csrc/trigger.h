/* trigger.h - private: one armed trigger, between trigger.c (arm, exec, the manager's
 * side) and trigger_fork.c (what the watcher does about forks). */
#ifndef PSC_TRIGGER_H
#define PSC_TRIGGER_H

#include "attach.h"

#include <pthread.h>

#define PSC_EVENT(status) ((status) >> 16)

/* A child that was born, on its way from the watcher to the manager. */
struct psc_newborn {
	struct psc_newborn *next;
	struct psc_attach_result result;
	struct psc_task_state leader;
	int pidfd;
	int outcome;
};

struct psc_trigger {
	struct psc_attach_options options;
	struct psc_attach_result result;
	struct psc_task_state leader;
	struct psc_job job;
	pid_t spawner;	/* the thread whose next child is meant; 0: the process is known */
	int manager_fd; /* -1: it has died */
	int wake, armed;
	int outcome;
	pthread_t host;

	enum { ON_EXEC, ON_FORK, ON_FORK_ALL } event;
	struct psc_job newborn; /* the child in hand */
	struct psc_attach_options newborn_options;
	bool leaving;		    /* disarmed: whoever stops is let go */
	int news;		    /* counts what was put on born, and the end */
	struct psc_newborn *born;   /* the newest first; the watcher pushes, the manager takes all */
	struct psc_newborn *spare;  /* for a child that is born when there is no memory */
	struct psc_newborn *taken;  /* the manager's, the oldest first */
	bool ended;
	bool done; /* outcome is what the watcher has come to */
};

/* Memory for what is told of one child; NULL: there is none. */
struct psc_newborn *psc_trigger_make_newborn(void);

/* Wait for a stop or death of tid (-1: any). -ECANCELED: disarmed. -ESRCH: nobody is traced. */
PSC_MUST_CHECK int psc_trigger_next_stop(struct psc_trigger *trigger, pid_t tid, pid_t *ret_tid, int *ret_status);

/* Let a stopped thread run on, seized still, with its signal if that is why it stopped, or
 * through restart_syscall. options: what psc_restart_step() takes. Errors as psc_tracee_go_on(). */
PSC_MUST_CHECK int psc_trigger_resume(pid_t tid, int status, unsigned long options);

bool psc_trigger_is_thread(pid_t pid, pid_t tid);

void psc_trigger_forget(struct psc_visit *visit, pid_t tid);

/* Filter a process of one thread that stands in an event's stop. It stands afterwards,
 * to be released. *ret_leader is what it was before. Errors as psc_job_commit(). */
PSC_MUST_CHECK int psc_trigger_filter(struct psc_job *job, struct psc_task_state *ret_leader);

/* Commit to a stopped process. */
PSC_MUST_CHECK int psc_trigger_commit(struct psc_job *job, struct psc_task_state *ret_leader);

/* Filter the children that are born, and with ON_FORK_ALL the process itself, to the end:
 * nobody is traced then. 0: the process has it. -ECANCELED: disarmed. Or as psc_job_commit(). */
PSC_MUST_CHECK int psc_trigger_wait_for_forks(struct psc_trigger *trigger);

#endif
