/* Waits in as many threads as its argument says, all of them in futexes; the first thread reads its input. */
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include "victim.h"

static atomic_int in_position;
static atomic_int never;

static void *wait_for_ever(void *arg)
{
	in_position++;
	for (;;)
		syscall(SYS_futex, &never, FUTEX_WAIT, 0, NULL, NULL, 0);
	return arg;
}

int main(int argc, char **argv)
{
	int n = argc > 1 ? atoi(argv[1]) : 1;
	pthread_attr_t small;
	pthread_t t;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	for (int i = 1; i < n; i++)
		if (pthread_create(&t, &small, wait_for_ever, NULL))
			die("pthread_create");
	while (in_position < n - 1)
		usleep(500);
	say("ready");
	for (;;) {
		hear();
		say("threads=%d probe=%d", n, probe());
	}
}
