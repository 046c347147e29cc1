/* Lives for a few milliseconds: spins, sleeps, starts a thread, and ends with 7, or with 9 if anything went wrong.
 * Prints nothing. Argument: how many rounds. */
#include <pthread.h>
#include "spin.h"

static void *other(void *arg)
{
	uint64_t seed = 3;
	struct timespec t = { .tv_nsec = 300000 };

	return (void *)(uintptr_t)(spin_round(&seed, 50000) || nanosleep(&t, NULL) || arg);
}

int main(int argc, char **argv)
{
	struct timespec t = { .tv_nsec = 200000 };
	void *wrong = NULL;
	uint64_t seed = 1;
	pthread_t thread;

	for (int i = argc > 1 ? atoi(argv[1]) : 3; i > 0; i--) {
		if (pthread_create(&thread, NULL, other, NULL))
			return 9;
		if (spin_round(&seed, 50000) || nanosleep(&t, NULL))
			return 9;
		if (pthread_join(thread, &wrong) || wrong)
			return 9;
	}
	return 7;
}
