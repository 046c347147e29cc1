/* thread.h - private: threads of the core that never run Python. */
#ifndef PSC_THREAD_H
#define PSC_THREAD_H

#include "internal.h"

#include <pthread.h>
#include <signal.h>

/* With a small stack and every signal blocked, except wake_signal unless that is 0. */
static inline int psc_thread_start(pthread_t *ret_thread, int wake_signal, void *(*run)(void *), void *argument)
{
	enum { STACK = 128 << 10 };
	pthread_attr_t attributes;
	sigset_t blocked, before;
	int r = pthread_attr_init(&attributes);

	if (r)
		return -r;
	sigfillset(&blocked);
	if (wake_signal)
		sigdelset(&blocked, wake_signal);
	r = pthread_attr_setstacksize(&attributes, STACK);
	if (r == 0)
		r = pthread_sigmask(SIG_SETMASK, &blocked, &before);
	if (r == 0) {
		r = pthread_create(ret_thread, &attributes, run, argument);
		pthread_sigmask(SIG_SETMASK, &before, NULL);
	}
	pthread_attr_destroy(&attributes);
	return -r;
}

#endif
