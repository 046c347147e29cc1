/* results.c: refusals, and failures of a real child where the kernel lets us see them. */
#include "check.h"
#include "psc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t tracepoint(void)
{
	FILE *file = fopen("/sys/kernel/tracing/events/raw_syscalls/sys_exit/id", "r");
	unsigned long id = 0;

	if (!file)
		return 0;
	if (fscanf(file, "%lu", &id) != 1)
		id = 0;
	fclose(file);
	return id;
}

static void refuses_what_is_none(void)
{
	struct psc_results *results = NULL;
	pid_t self = getpid();

	CHECK(psc_results_open(UINT32_MAX, &self, 1, &results) < 0);
	CHECK(!results);
	psc_results_free(NULL);
}

static void counts_failures(uint64_t id)
{
	struct psc_results *results = NULL;
	struct psc_result found[64];
	int pipes[2], status;
	size_t n, opens = 0;
	pid_t child;
	char c;

	CHECK(pipe(pipes) == 0);
	child = fork();
	if (child == 0) {
		if (read(pipes[0], &c, 1) != 1)
			_exit(1);
		for (int i = 0; i < 7; i++)
			(void)!syscall(SYS_openat, AT_FDCWD, "/none", O_RDONLY);
		close(open("/", O_RDONLY | O_DIRECTORY));
		_exit(0);
	}
	CHECK(child > 0);
	if (psc_results_open(id, &child, 1, &results) < 0)
		results = NULL; /* no privilege: the child ends all the same */
	CHECK(write(pipes[1], "x", 1) == 1);
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	if (!results)
		return;
	n = psc_results_drain(results, found, 3);
	CHECK(n == 3);
	n += psc_results_drain(results, found + 3, 61);
	for (size_t i = 0; i < n; i++)
		opens += found[i].tid == child && found[i].nr == SYS_openat && found[i].error == ENOENT;
	CHECK(opens == 7);
	CHECK(psc_results_lost(results) == 0);
	CHECK(psc_results_drain(results, found, 64) == 0);
	psc_results_free(results);
}

int main(void)
{
	uint64_t id = tracepoint();

	refuses_what_is_none();
	if (id)
		counts_failures(id);
	return 0;
}
