/* Never waits: spins with known values in every register and sees any that changes (spin.h).
 * Argument: how many threads spin beside the first one. */
#include <pthread.h>
#include <stdatomic.h>
#include "spin.h"

static atomic_long rounds, bad, worst;

static void spin_once(uint64_t *seed)
{
	int word = spin_round(seed, 300000);

	if (word) {
		atomic_fetch_add(&bad, 1);
		atomic_store(&worst, word);
	}
	atomic_fetch_add(&rounds, 1);
}

static void *spinner(void *arg)
{
	uint64_t seed = (uintptr_t)arg;

	for (;;)
		spin_once(&seed);
	return NULL;
}

int main(int argc, char **argv)
{
	uint64_t seed = 1;
	pthread_t t;

	for (int i = 0; i < (argc > 1 ? atoi(argv[1]) : 0); i++)
		if (pthread_create(&t, NULL, spinner, (void *)(uintptr_t)(i + 2)))
			die("pthread_create");
	say("ready");
	for (;;) {
		spin_once(&seed);
		if (heard())
			say("rounds=%ld bad=%ld word=%ld probe=%d", rounds, bad, worst, probe());
	}
}
