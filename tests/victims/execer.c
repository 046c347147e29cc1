/* Executes itself again and again, always from a thread that is not the first one, while other threads spin: the
 * kernel kills those and gives the caller the process id. Every second time the first thread has ended before. Counts pass through the arguments: executions, bad ones,
 * and the errno that the probe once failed with (it must keep failing with it). */
#include <pthread.h>
#include "spin.h"

static char **arguments;
static char numbers[3][24];

static void *spin(void *arg)
{
	uint64_t seed = (uintptr_t)arg;

	while (!spin_round(&seed, 20000))
		;
	_exit(72);
}

static void *execute(void *arg)
{
	execv(arguments[0], (char *[]){ arguments[0], numbers[0], numbers[1], numbers[2], NULL });
	die("execv");
	return arg;
}

int main(int argc, char **argv)
{
	long count = argc > 1 ? atol(argv[1]) : 0, bad = argc > 2 ? atol(argv[2]) : 0;
	int before = argc > 3 ? atoi(argv[3]) : 0, e = probe();
	pthread_t t;

	if (before && e != before)
		bad++;
	if (count == 0)
		say("ready");
	else if (heard())
		say("executions=%ld bad=%ld probe=%d", count, bad, e);
	arguments = argv;
	snprintf(numbers[0], sizeof(numbers[0]), "%ld", count + 1);
	snprintf(numbers[1], sizeof(numbers[1]), "%ld", bad);
	snprintf(numbers[2], sizeof(numbers[2]), "%d", e);
	for (long i = 1; i < 4; i++)
		if (pthread_create(&t, NULL, i == 3 ? execute : spin, (void *)i))
			die("pthread_create");
	if (count % 2)
		pthread_exit(NULL);
	for (;;)
		pause();
}
