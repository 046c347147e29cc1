/* Two hundred threads: a few that spin (spin.h), the others waiting in nanosleep, a futex, a pipe and a condition.
 * Told to report, every thread makes the probe and the facts are summed up. An EINTR anywhere, an early
 * end of a wait, or a changed register counts as bad. Argument: the number of threads. */
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include "spin.h"

#define MAX_THREADS 1000

static atomic_int stop, in_position, denied, bad;
static atomic_int an_errno;
static int gate_pipe[2];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t all = PTHREAD_COND_INITIALIZER;

static void wait_spin(long n)
{
	uint64_t seed = n;

	while (!stop)
		if (spin_round(&seed, 100000))
			bad++;
}

static void wait_sleep(void)
{
	struct timespec t = { .tv_nsec = 20000000 };
	int64_t start;

	while (!stop) {
		start = now_ns();
		if (nanosleep(&t, NULL) || now_ns() - start < t.tv_nsec)
			bad++;
	}
}

static void wait_futex(void)
{
	if (syscall(SYS_futex, &stop, FUTEX_WAIT, 0, NULL, NULL, 0) && errno != EAGAIN)
		bad++;
	if (!stop)
		bad++;
}

static void wait_pipe(void)
{
	char c;

	if (read(gate_pipe[0], &c, 1) != 0)
		bad++;
}

static void wait_condition(void)
{
	pthread_mutex_lock(&lock);
	while (!stop)
		pthread_cond_wait(&all, &lock);
	pthread_mutex_unlock(&lock);
}

static void *waiter(void *arg)
{
	long n = (long)arg;
	int e;

	in_position++;
	if (n < 3)
		wait_spin(n);
	else if (n % 4 == 0)
		wait_sleep();
	else if (n % 4 == 1)
		wait_futex();
	else if (n % 4 == 2)
		wait_pipe();
	else
		wait_condition();
	e = probe();
	if (e) {
		denied++;
		an_errno = e;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	long n = argc > 1 ? atol(argv[1]) : 200;
	pthread_t threads[MAX_THREADS];
	pthread_attr_t attributes;

	if (n > MAX_THREADS || pipe(gate_pipe))
		die("start");
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 65536);
	for (long i = 0; i < n; i++)
		if (pthread_create(&threads[i], &attributes, waiter, (void *)i))
			die("pthread_create");
	while (in_position < n)
		usleep(1000);
	say("ready");
	hear();
	pthread_mutex_lock(&lock);
	stop = 1;
	pthread_mutex_unlock(&lock);
	pthread_cond_broadcast(&all);
	close(gate_pipe[1]);
	syscall(SYS_futex, &stop, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
	for (long i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	say("threads=%ld denied=%d errno=%d bad=%d probe=%d", n, denied, an_errno, bad, probe());
	hear();
}
