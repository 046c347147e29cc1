/* The floor of bench_activate.py.
 *   activate_floor store    median ns of a store and a fence to a shared page
 *   activate_floor calls    for each line of input: median ns of one getppid(), of 25 batches
 *   activate_floor crowd N  N processes that wait, then "ready" */
#define _GNU_SOURCE
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BATCHES 25

static double now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(void (*act)(int), int count)
{
	double taken[BATCHES];

	for (int i = 0; i < BATCHES; i++) {
		double began = now_ns();

		act(count);
		taken[i] = (now_ns() - began) / count;
	}
	qsort(taken, BATCHES, sizeof(double), by_value);
	return taken[BATCHES / 2];
}

static _Atomic uint32_t *word;

static void store(int count)
{
	for (int i = 0; i < count; i++) {
		atomic_store(word, i);
		atomic_thread_fence(memory_order_seq_cst);
	}
}

static void call(int count)
{
	for (int i = 0; i < count; i++)
		syscall(SYS_getppid);
}

int main(int argc, char **argv)
{
	char line[64];

	if (argc > 1 && strcmp(argv[1], "store") == 0) {
		word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		printf("%.1f\n", median(store, 100000));
		return 0;
	}
	if (argc > 2) {
		while (!fgets(line, sizeof(line), stdin))
			return 1;
		for (int i = 1; i < atoi(argv[2]); i++)
			if (fork() == 0) {
				prctl(PR_SET_PDEATHSIG, SIGKILL);
				for (;;)
					pause();
			}
	}
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		printf("%.1f\n", median(call, 400));
		fflush(stdout);
	}
	return 0;
}
