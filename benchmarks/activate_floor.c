/* The floor of bench_activate.py.
 *   activate_floor store    median ns of a store and a fence to a shared page
 *   activate_floor calls    for each line of input: median ns of one getppid(), of 25 batches
 *   activate_floor crowd N  N processes that wait, then "ready"
 *   activate_floor park FILE  for each line of input: ns from a store and a futex wake to the first
 *                           denied getpgid() of a process whose thread waited to call seccomp() with FILE's program */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
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

static struct sock_filter program_insns[BPF_MAXINSNS];
static unsigned short program_len;

struct shared {
	_Atomic uint32_t go, parked;
	_Atomic double denied_ns;
};

static void *wait_and_filter(void *data)
{
	struct shared *shared = data;
	struct sock_fprog program = { program_len, program_insns };

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	shared->parked = 1;
	while (!shared->go)
		syscall(SYS_futex, &shared->go, FUTEX_WAIT, 0, NULL, NULL, 0);
	syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_TSYNC_ESRCH, &program);
	return NULL;
}

static void park(void)
{
	struct shared *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_t thread;
	double began;

	if (fork() == 0) {
		pthread_create(&thread, NULL, wait_and_filter, shared);
		while (syscall(SYS_getpgid, 0) >= 0)
			;
		shared->denied_ns = now_ns();
		_exit(0);
	}
	while (!shared->parked)
		usleep(100);
	usleep(20000);
	began = now_ns();
	shared->go = 1;
	syscall(SYS_futex, &shared->go, FUTEX_WAKE, 1, NULL, NULL, 0);
	wait(NULL);
	printf("%.1f\n", shared->denied_ns - began);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	char line[64];

	if (argc > 2 && strcmp(argv[1], "park") == 0) {
		FILE *file = fopen(argv[2], "rb");

		if (!file)
			return 1;
		program_len = (unsigned short)fread(program_insns, sizeof(*program_insns), BPF_MAXINSNS, file);
		while (fgets(line, sizeof(line), stdin))
			park();
		return 0;
	}

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
