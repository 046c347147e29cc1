/* A tree that forks and executes itself all the while, and probes in between.
 * Arguments: how many branches; "branch" and its number (given by itself), with a
 * shared memory as descriptor 9. Each branch notes when the last probe that no
 * filter denied began, and how many were denied. */
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include "victim.h"

#define MEMORY 9
#define PROBES 8

struct branch {
	volatile int64_t last_free;
	volatile int64_t free, denied, execs;
	char pad[32];
};

static struct branch *map_branches(int n)
{
	struct branch *all = mmap(NULL, n * sizeof(*all), PROT_READ | PROT_WRITE, MAP_SHARED, MEMORY, 0);

	if (all == MAP_FAILED)
		die("mmap");
	return all;
}

static void probe_for(struct branch *branch)
{
	for (int i = 0; i < PROBES; i++) {
		int64_t began = now_ns();

		if (probe()) {
			branch->denied++;
		} else {
			branch->free++;
			branch->last_free = began;
		}
		usleep(1000);
	}
}

static void run_branch(int n, int number, char **argv)
{
	struct branch *branch = &map_branches(n)[number];

	branch->execs++;
	probe_for(branch);
	/* The child goes on; the parent's place is free. */
	if (fork() > 0)
		_exit(0);
	probe_for(branch);
	execv("/proc/self/exe", argv);
	die("execv");
}

int main(int argc, char **argv)
{
	int n = atoi(argv[1]);
	struct branch *all;

	if (argc > 2)
		run_branch(n, atoi(argv[3]), argv);
	signal(SIGCHLD, SIG_IGN);
	if (dup2(memfd_create("branches", 0), MEMORY) != MEMORY || ftruncate(MEMORY, n * sizeof(*all)) < 0)
		die("memory");
	all = map_branches(n);
	for (int i = 0; i < n; i++) {
		char number[16];

		snprintf(number, sizeof(number), "%d", i);
		if (fork() == 0) {
			char *args[] = { argv[0], argv[1], "branch", number, NULL };

			execv("/proc/self/exe", args);
			_exit(72);
		}
	}
	say("ready");
	for (;;) {
		int64_t last = 0, least_denied = INT64_MAX, execs = 0, least_free = INT64_MAX;

		hear();
		for (int i = 0; i < n; i++) {
			last = all[i].last_free > last ? all[i].last_free : last;
			least_denied = all[i].denied < least_denied ? all[i].denied : least_denied;
			least_free = all[i].free < least_free ? all[i].free : least_free;
			execs += all[i].execs;
		}
		say("last=%ld least_denied=%ld least_free=%ld execs=%ld probe=%d", (long)last, (long)least_denied,
		    (long)least_free, (long)execs, probe());
	}
}
