/* Creates and joins threads all the time, from several threads at once. A thread that is born after its creator
 * was filtered must be filtered, and must keep its registers; anything else counts as bad. */
#include <pthread.h>
#include <stdatomic.h>
#include "spin.h"

#define CREATORS 4

static atomic_long born, bad, denied;

static void *newborn(void *arg)
{
	uint64_t seed = (uintptr_t)&arg;
	int expected = (intptr_t)arg, e;

	if (spin_round(&seed, 2000))
		bad++;
	e = probe();
	if (expected && e != expected)
		bad++;
	if (e)
		denied++;
	return NULL;
}

static void *creator(void *arg)
{
	pthread_t t;

	for (;;) {
		if (pthread_create(&t, NULL, newborn, (void *)(intptr_t)probe()))
			bad++;
		else
			pthread_join(t, NULL);
		born++;
	}
	return arg;
}

int main(void)
{
	pthread_t t;

	for (int i = 0; i < CREATORS; i++)
		if (pthread_create(&t, NULL, creator, NULL))
			die("pthread_create");
	say("ready");
	for (;;) {
		hear();
		say("born=%ld bad=%ld denied=%ld probe=%d", born, bad, denied, probe());
	}
}
