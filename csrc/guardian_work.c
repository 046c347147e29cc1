/* guardian_work.c - the threads in which a guardian filters targets.
 *
 * A target that cannot be stopped holds its attempt for the whole time-out, and must
 * delay no other target and no deadline: so each attempt has a thread. Where the
 * kernel makes no more threads (RLIMIT_NPROC, pids.max) an attempt waits for one that
 * is there; the first is made before the guardian promises anything.
 */
#define _GNU_SOURCE
#include "guardian.h"

#include <signal.h>
#include <sys/eventfd.h>

#define WORKER_STACK (512 * 1024)
#define MAX_WORKERS 64

static struct psc_work *next_work(struct psc_workers *workers, bool permanent)
{
	struct psc_work *work;

	while (!workers->waiting && permanent && !workers->stopping) {
		workers->idle++;
		pthread_cond_wait(&workers->changed, &workers->lock);
		workers->idle--;
	}
	work = workers->waiting;
	if (work) {
		workers->waiting = work->next;
		workers->n_waiting--;
		if (!workers->waiting)
			workers->last = &workers->waiting;
	}
	return work;
}

static void live(struct psc_workers *workers, bool permanent)
{
	const uint64_t one = 1;
	struct psc_work *work;

	pthread_mutex_lock(&workers->lock);
	while ((work = next_work(workers, permanent))) {
		pthread_mutex_unlock(&workers->lock);
		psc_work_run(work);
		pthread_mutex_lock(&workers->lock);
		work->next = workers->done;
		workers->done = work;
		(void)!write(workers->bell, &one, sizeof(one));
	}
	workers->threads--;
	pthread_cond_broadcast(&workers->changed);
	pthread_mutex_unlock(&workers->lock);
}

static void *permanent_worker(void *workers)
{
	live(workers, true);
	return NULL;
}

static void *extra_worker(void *workers)
{
	live(workers, false);
	return NULL;
}

/* SIGALRM is for the main thread. */
static int make_thread(struct psc_workers *workers, void *(*function)(void *))
{
	pthread_attr_t attr;
	sigset_t all, before;
	pthread_t thread;
	int r;

	sigfillset(&all);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, WORKER_STACK);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(&thread, &attr, function, workers);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	return -r;
}

void psc_workers_init(struct psc_workers *workers)
{
	*workers = (struct psc_workers){ .bell = -1, .last = &workers->waiting };
	pthread_mutex_init(&workers->lock, NULL);
	pthread_cond_init(&workers->changed, NULL);
}

int psc_workers_start(struct psc_workers *workers)
{
	int r;

	workers->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (workers->bell < 0)
		return -errno;
	workers->threads = 1;
	r = make_thread(workers, permanent_worker);
	if (r < 0)
		workers->threads = 0;
	return r;
}

void psc_workers_add(struct psc_workers *workers, struct psc_work *work)
{
	bool more;

	work->next = NULL;
	pthread_mutex_lock(&workers->lock);
	*workers->last = work;
	workers->last = &work->next;
	workers->n_waiting++;
	more = workers->n_waiting > workers->idle && workers->threads < MAX_WORKERS;
	workers->threads += more;
	pthread_cond_broadcast(&workers->changed);
	pthread_mutex_unlock(&workers->lock);
	if (!more || make_thread(workers, extra_worker) == 0)
		return;
	pthread_mutex_lock(&workers->lock);
	workers->threads--;
	pthread_mutex_unlock(&workers->lock);
}

struct psc_work *psc_workers_collect(struct psc_workers *workers)
{
	struct psc_work *done;

	pthread_mutex_lock(&workers->lock);
	done = psc_take_ptr(workers->done);
	pthread_mutex_unlock(&workers->lock);
	return done;
}

void psc_workers_stop(struct psc_workers *workers)
{
	pthread_mutex_lock(&workers->lock);
	workers->stopping = true;
	pthread_cond_broadcast(&workers->changed);
	while (workers->threads)
		pthread_cond_wait(&workers->changed, &workers->lock);
	pthread_mutex_unlock(&workers->lock);
	pthread_cond_destroy(&workers->changed);
	pthread_mutex_destroy(&workers->lock);
	psc_close_fd(&workers->bell);
}
