/* A tree of processes that all fork all the while. Arguments: children of each, generations below the root, more
 * threads of each, and "daemons" if the short-lived ones are to leave orphans behind. A child that is born after its
 * parent was filtered must be filtered: anything else counts as bad. All note when the last probe that no filter denied
 * began. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include "victim.h"

#define PAUSE_US 2000

static struct {
	_Atomic int64_t last_free, free, denied, forks, bad, members;
} *shared;
static int n_children, n_threads;
static bool daemons;

static int note(void)
{
	int64_t began = now_ns(), last = shared->last_free;
	int denied = probe();

	if (denied) {
		shared->denied++;
		return denied;
	}
	shared->free++;
	while (last < began && !atomic_compare_exchange_weak(&shared->last_free, &last, began))
		;
	return 0;
}

static void *probe_on(void *arg)
{
	for (;;) {
		note();
		usleep(PAUSE_US);
	}
	return arg;
}

/* One that ends at once, after a child of its own. */
static void short_life(int before)
{
	int status = 0;
	pid_t child = fork();

	if (child == 0 && daemons) {
		setsid();
		usleep(300);
	}
	if (child == 0)
		_exit(before && note() != before);
	if (!daemons && child > 0)
		waitpid(child, &status, 0);
	_exit(status || child < 0 || (before && note() != before));
}

static void one_round(int round)
{
	int before = note(), status = 0;
	pid_t child = round % 2 ? fork() : vfork();

	if (child == 0 && round % 2)
		short_life(before);
	if (child == 0)
		_exit(before && probe() != before);
	shared->forks++;
	if (child < 0 || waitpid(child, &status, 0) != child || status)
		shared->bad++;
	usleep(PAUSE_US);
}

static void begin(int generations)
{
	pthread_t thread;

	for (int i = 0; i < n_threads; i++)
		if (pthread_create(&thread, NULL, probe_on, NULL))
			die("thread");
	for (int i = 0; generations && i < n_children; i++)
		if (fork() == 0) {
			begin(generations - 1);
			for (int round = 0;; round++)
				one_round(round);
		}
	shared->members++;
}

int main(int argc, char **argv)
{
	int generations = atoi(argv[2]), expected = 1;

	n_children = atoi(argv[1]);
	n_threads = atoi(argv[3]);
	daemons = argc > 4 && strcmp(argv[4], "daemons") == 0;
	for (int i = 0, born = 1; i < generations; i++)
		expected += born *= n_children;
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		die("mmap");
	begin(generations);
	while (shared->members < expected)
		usleep(1000);
	say("ready");
	for (int round = 0;; round++) {
		one_round(round);
		if (heard())
			say("last=%ld free=%ld denied=%ld forks=%ld bad=%ld members=%ld probe=%d", (long)shared->last_free,
			    (long)shared->free, (long)shared->denied, (long)shared->forks, (long)shared->bad,
			    (long)shared->members, probe());
	}
}
