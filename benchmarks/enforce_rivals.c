// What programs cost once they are in force: the time of the seccomp() that loads one (the second of its process), and
// of calls under it.
//
//	enforce_rivals ROUNDS CALLS PROGRAM... -- CALL...
//
// PROGRAM: a file of struct sock_filter[], or "none". CALL: NUMBER[:ARG[:ARG...]] by the syscall instruction, or
// i386:NUMBER[:...] by int $0x80. Every round takes every program once, in turns, each in a fresh child. All CALLs must be
// harmless whether they are allowed or denied. JSON: for each program its load times, and for each call the nanoseconds.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_CALLS 32
#define MAX_PROGRAMS 16

struct call {
	int i386;
	unsigned long nr, args[6];
};

struct sample {
	double load_ns, call_ns[MAX_CALLS];
};

static struct call calls[MAX_CALLS];
static int call_count;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static inline long call_64(const struct call *c)
{
	long result;
	register long r10 __asm__("r10") = c->args[3];
	register long r8 __asm__("r8") = c->args[4];
	register long r9 __asm__("r9") = c->args[5];

	__asm__ volatile("syscall" : "=a"(result) : "a"(c->nr), "D"(c->args[0]), "S"(c->args[1]), "d"(c->args[2]), "r"(r10),
			 "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return result;
}

static inline long call_32(const struct call *c)
{
	long result;

	__asm__ volatile("int $0x80" : "=a"(result) : "a"(c->nr), "b"(c->args[0]), "c"(c->args[1]), "d"(c->args[2])
			 : "r8", "r9", "r10", "r11", "memory");
	return result;
}

static double time_call(const struct call *c, long count)
{
	long start = now();

	if (c->i386)
		for (long i = 0; i < count; i++)
			call_32(c);
	else
		for (long i = 0; i < count; i++)
			call_64(c);
	return (double)(now() - start) / (double)count;
}

/* A first program that allows everything: it brings the kernel's code into the caches, for all alike. */
static void warm(void)
{
	struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = { .len = 1, .filter = &allow };

	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
		die("seccomp");
}

static double load(const char *path)
{
	static struct sock_filter insns[BPF_MAXINSNS];
	struct sock_fprog program = { .filter = insns };
	FILE *file = fopen(path, "re");
	long start;

	if (!file)
		die(path);
	program.len = fread(insns, sizeof(*insns), BPF_MAXINSNS, file);
	fclose(file);
	start = now();
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
		die("seccomp");
	return (double)(now() - start);
}

static void child(const char *path, long count, int to)
{
	struct sample sample = { 0 };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		die("no_new_privs");
	warm();
	if (strcmp(path, "none"))
		sample.load_ns = load(path);
	for (int i = 0; i < call_count; i++) {
		time_call(&calls[i], count / 10 + 1);
		sample.call_ns[i] = time_call(&calls[i], count);
	}
	if (write(to, &sample, sizeof(sample)) != sizeof(sample))
		_exit(2);
	_exit(0);
}

static struct sample run(const char *path, long count)
{
	struct sample sample;
	int pipe_fds[2], status;
	pid_t pid;

	if (pipe2(pipe_fds, O_CLOEXEC) || (pid = fork()) < 0)
		die("a child");
	if (!pid)
		child(path, count, pipe_fds[1]);
	close(pipe_fds[1]);
	if (waitpid(pid, &status, 0) < 0 || status || read(pipe_fds[0], &sample, sizeof(sample)) != sizeof(sample)) {
		fprintf(stderr, "enforce_rivals: the child under %s ended with %#x\n", path, status);
		exit(1);
	}
	close(pipe_fds[0]);
	return sample;
}

static void read_call(const char *text)
{
	struct call *c = &calls[call_count++];
	char *end;

	c->i386 = !strncmp(text, "i386:", 5);
	c->nr = strtoul(text + 5 * c->i386, &end, 0);
	for (int i = 0; *end == ':' && i < 6; i++)
		c->args[i] = strtoul(end + 1, &end, 0);
}

int main(int argc, char **argv)
{
	const char *programs[MAX_PROGRAMS];
	int program_count = 0, i = 3;

	for (; i < argc && strcmp(argv[i], "--") && program_count < MAX_PROGRAMS; i++)
		programs[program_count++] = argv[i];
	for (i++; i < argc && call_count < MAX_CALLS; i++)
		read_call(argv[i]);
	if (!program_count || argc < 4) {
		fprintf(stderr, "usage: enforce_rivals ROUNDS CALLS PROGRAM... -- CALL...\n");
		return 2;
	}
	printf("[");
	for (int round = 0; round < atoi(argv[1]); round++)
		for (int p = 0; p < program_count; p++) {
			struct sample sample = run(programs[p], atol(argv[2]));

			printf("%s{\"program\": %d, \"load_ns\": %.0f, \"call_ns\": [", round || p ? ",\n" : "", p, sample.load_ns);
			for (int c = 0; c < call_count; c++)
				printf("%s%.2f", c ? ", " : "", sample.call_ns[c]);
			printf("]}");
		}
	printf("]\n");
	return 0;
}
