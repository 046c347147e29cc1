/* Before Linux 6.11 a listener ends when its tasks are reaped, not when they exit: so somebody must, meanwhile. */
#ifndef PSC_TEST_REAPER_H
#define PSC_TEST_REAPER_H

#include "check.h"

#include <errno.h>
#include <pthread.h>
#include <sys/wait.h>

struct reaper {
	pid_t pid;
	int status;
	pthread_t thread;
};

static void *reap_all(void *argument)
{
	struct reaper *reaper = argument;
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, __WALL)) > 0 || errno == EINTR)
		if (pid == reaper->pid)
			reaper->status = status;
	return NULL;
}

/* Reaps all children until there are none, and remembers how this one ended. */
static inline void reaper_start(struct reaper *reaper, pid_t pid)
{
	*reaper = (struct reaper){ .pid = pid, .status = -1 };
	CHECK(pthread_create(&reaper->thread, NULL, reap_all, reaper) == 0);
}

static inline int reaper_end(struct reaper *reaper)
{
	CHECK(pthread_join(reaper->thread, NULL) == 0);
	return reaper->status;
}

#endif
