/* The parsers of query.c on real, hostile and mutated texts, and the readers on
 * this process: with ASan and UBSan when built so. */
#define _GNU_SOURCE 1
#include "check.h"
#include "psc.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const char status[] =
	"Name:\ta\\nSeccomp:\\\\ b\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t100\nNgid:\t0\nPid:\t101\n"
	"PPid:\t1\nTracerPid:\t7\nUid:\t1000\t1001\t1002\t1003\nGid:\t0\t0\t0\t0\nGroups:\t1 2 3 \n"
	"CapEff:\t000001fffeffffff\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\nThreads:\t1\n";

static const char stat_line[] = "101 (x) R 1 (y) S 1 2 3 4 -1 2097152 6 7 8 9 10 11 12 13 20 0 1 0 4242 1 2\n";

static int parse(const char *text, struct psc_task_state *ret)
{
	return psc_query_parse_status(text, strlen(text), ret);
}

static void reads_every_field(void)
{
	struct psc_task_state t;

	CHECK(parse(status, &t) == 0);
	CHECK(!strcmp(t.name, "a\nSeccomp:\\ b"));
	CHECK(t.state == 'S' && t.pid == 100 && t.tid == 101 && t.tracer == 7);
	CHECK(t.uid == 1000 && t.euid == 1001 && t.no_new_privs == 1 && t.seccomp == 2 && t.filters == 3);
}

static void old_kernel_leaves_fields_unknown(void)
{
	struct psc_task_state t;

	CHECK(parse("Name:\tx\nState:\tR (running)\nTgid:\t1\nPid:\t1\nTracerPid:\t0\nUid:\t0\t0\t0\t0\n", &t) == 0);
	CHECK(t.seccomp == -1 && t.filters == -1 && t.no_new_privs == -1);
}

static void refuses_what_the_kernel_never_writes(void)
{
	static const char *const bad[] = {
		"", "\n", ":", "Name:\tx\n",
		"Name:\tx\nState:\tR\nTgid:\t1\nPid:\t1\nTracerPid:\t0\nUid:\t0\n",			/* one uid */
		"Name:\tx\nState:\t\nTgid:\t1\nPid:\t1\nTracerPid:\t0\nUid:\t0\t0\n",			/* no letter */
		"Name:\tx\nState:\tR\nTgid:\t0\nPid:\t1\nTracerPid:\t0\nUid:\t0\t0\n",			/* pid 0 */
		"Name:\tx\nState:\tR\nTgid:\t-1\nPid:\t1\nTracerPid:\t0\nUid:\t0\t0\n",			/* negative */
		"Name:\tx\nState:\tR\nTgid:\t99999999999999999999\nPid:\t1\nTracerPid:\t0\nUid:\t0\t0\n", /* 2^64 */
		"Name:\tx\nState:\tR\nTgid:\t2147483648\nPid:\t1\nTracerPid:\t0\nUid:\t0\t0\n",		/* 2^31 */
		"Name:\tx\nState:\tR\nTgid:\t1x\nPid:\t1\nTracerPid:\t0\nUid:\t0\t0\n",			/* a tail */
		"Name:\tx\nState:\tR\nTgid:\t1\nPid:\t1\nTracerPid:\t0\nUid:\t0\t0\nSeccomp:\t4\n",	/* no such mode */
		"Name:\tx\nState:\tR\nTgid:\t1\nPid:\t1\nTracerPid:\t0\nUid:\t0\t0\nNoNewPrivs:\t5\n",	/* not a bool */
		"Name:\tx\nState:\tR\nTgid:\t1\nPid:\t1\nTracerPid:\t0\nUid:\t0\t0\nSeccomp:\t2\nSeccomp:\t0\n", /* twice */
	};
	struct psc_task_state t = { .pid = 77 };

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		CHECK(parse(bad[i], &t) == -EBADMSG);
		CHECK(t.pid == 77); /* outputs only on success */
	}
}

static void a_long_name_is_cut(void)
{
	char text[4096] = "Name:\t";
	struct psc_task_state t;

	memset(text + 6, 'n', 2000);
	strcpy(text + 2006, "\nState:\tR\nTgid:\t1\nPid:\t1\nTracerPid:\t0\nUid:\t0\t0\n");
	CHECK(parse(text, &t) == 0);
	CHECK(strlen(t.name) == PSC_TASK_NAME_SIZE - 1);
}

static void a_name_with_parentheses_does_not_shift_stat(void)
{
	uint64_t start, flags;

	CHECK(psc_query_parse_stat(stat_line, strlen(stat_line), &start, &flags) == 0);
	CHECK(start == 4242 && flags == 2097152);
	for (size_t n = 0; n < strlen(stat_line) - 9; n++) /* up to the digits of field 22 */
		CHECK(psc_query_parse_stat(stat_line, n, &start, &flags) == -EBADMSG);
}

/* Mutants on the heap, exactly as long as they are: a read past the end shows. */
static void mutants_never_break_the_parsers(void)
{
	static const char *const seeds[] = { status, stat_line };
	unsigned int random = 1;
	size_t accepted = 0;

	for (int round = 0; round < 200000; round++) {
		const char *seed = seeds[round % 2];
		size_t len = strlen(seed);
		struct psc_task_state t;
		uint64_t start, flags;
		char *text;

		random = random * 1103515245 + 12345;
		if (random >> 30 == 0)
			len = (random >> 8) % (len + 1);
		text = malloc(len ? len : 1);
		CHECK(text);
		memcpy(text, seed, len);
		for (int edits = (random >> 16) % 6; edits && len; edits--) {
			random = random * 1103515245 + 12345;
			text[(random >> 8) % len] = random & 0x80 ? "\n\t:\\)0-\xff"[random >> 29] : (char)(random >> 16);
		}
		if (psc_query_parse_status(text, len, &t) == 0) {
			accepted++;
			CHECK(t.pid > 0 && t.tid > 0 && t.tracer >= 0);
			CHECK(t.seccomp >= -1 && t.seccomp <= 2 && t.filters >= -1);
			CHECK(memchr(t.name, '\0', sizeof(t.name)));
		}
		if (psc_query_parse_stat(text, len, &start, &flags) == 0)
			accepted++;
		free(text);
	}
	CHECK(accepted > 1000 && accepted < 200000);
}

static void reads_itself(void)
{
	struct psc_task_state t;
	struct psc_process_state p;

	CHECK(psc_query_thread(getpid(), getpid(), &t) == 0);
	CHECK(t.pid == getpid() && t.uid == getuid() && t.state == 'R' && psc_task_alive(&t));
	CHECK(psc_query_process(getpid(), -1, &p) == 0);
	CHECK(p.pid == getpid() && p.n_threads == 1 && p.alive && !p.kernel_thread && p.start_time > 0);
	CHECK(p.machine && p.elf_class == (sizeof(void *) == 8 ? 2 : 1));
	psc_process_state_destroy(&p);
	psc_process_state_destroy(&p);
	psc_process_state_destroy(NULL);
}

static void dead_ones_are_told_apart(void)
{
	struct psc_process_state p;
	struct psc_task_state t;
	siginfo_t info;
	int pidfd;
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	CHECK(pid > 0);
	pidfd = syscall(SYS_pidfd_open, pid, 0);
	CHECK(pidfd >= 0);
	CHECK(waitid(P_PID, pid, &info, WEXITED | WNOWAIT) == 0);
	CHECK(psc_query_process(0, pidfd, &p) == 0);
	CHECK(!p.alive && p.pid == pid && p.threads[0].state == 'Z');
	psc_process_state_destroy(&p);
	CHECK(waitpid(pid, NULL, 0) == pid);
	CHECK(psc_query_process(0, pidfd, &p) == -ESRCH);
	CHECK(psc_query_process(pid, -1, &p) == -ESRCH);
	CHECK(psc_query_thread(pid, pid, &t) == -ESRCH);
	close(pidfd);
	CHECK(psc_query_process(0, 0, &p) == -EBADF);
	CHECK(psc_query_process(0, pidfd, &p) == -EBADF);
	CHECK(psc_query_process(0, -1, &p) == -ESRCH);
	CHECK(psc_query_process(-5, -1, &p) == -ESRCH);
}

int main(void)
{
	reads_every_field();
	old_kernel_leaves_fields_unknown();
	refuses_what_the_kernel_never_writes();
	a_long_name_is_cut();
	a_name_with_parentheses_does_not_shift_stat();
	mutants_never_break_the_parsers();
	reads_itself();
	dead_ones_are_told_apart();
	return 0;
}
