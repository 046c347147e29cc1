/* attach_floor.c - the least that an injection of a filter can cost: the bare ptrace operations and not one check.
 *
 * Seize and interrupt every thread, wait for each, then with the first one, by single steps over a system call
 * instruction that it has just executed: mmap, write the program, seccomp with TSYNC, (pidfd_getfd and close, with a
 * listener), munmap; registers back, detach all. It assumes that the first thread is blocked in a system call, that
 * no signal comes, that no thread is born, and that nobody kills it: if somebody does, the target dies. That is why
 * it is a floor and no implementation.
 *
 *	attach_floor PID... [listener]
 *
 * one process after the other; prints one JSON line: stop_ns from before the first INTERRUPT until after the last
 * DETACH (of all processes, summed), total_ns of all.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_THREADS 4096

static struct sock_filter program[] = {
	{ 0x20, 0, 0, offsetof(struct seccomp_data, arch) },
	{ 0x15, 1, 0, 0xc000003e },
	{ 0x06, 0, 0, SECCOMP_RET_ALLOW },
	{ 0x20, 0, 0, offsetof(struct seccomp_data, nr) },
	{ 0x15, 1, 0, SYS_getppid },
	{ 0x06, 0, 0, SECCOMP_RET_ALLOW },
	{ 0x06, 0, 0, SECCOMP_RET_ERRNO | 91 },
};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int list_threads(pid_t pid, pid_t *ret_tids)
{
	char path[32];
	struct dirent *e;
	int n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/task", pid);
	d = opendir(path);
	if (!d)
		die(path);
	while ((e = readdir(d)))
		if (e->d_name[0] != '.' && n < MAX_THREADS)
			ret_tids[n++] = atoi(e->d_name);
	closedir(d);
	return n;
}

static void await_stop(pid_t tid)
{
	int status;

	if (waitpid(tid, &status, __WALL) != tid || !WIFSTOPPED(status))
		die("waitpid");
}

/* One system call in a stopped thread that stands behind a syscall instruction. */
static long inject(pid_t tid, const struct user_regs_struct *at, long nr, long a, long b, long c, long d, long e)
{
	struct user_regs_struct r = *at;

	r.rip -= 2;
	r.rax = nr;
	r.orig_rax = -1;
	r.rdi = a;
	r.rsi = b;
	r.rdx = c;
	r.r10 = d;
	r.r8 = e;
	r.r9 = 0;
	if (ptrace(PTRACE_SETREGS, tid, 0, &r) || ptrace(PTRACE_SINGLESTEP, tid, 0, 0))
		die("step");
	await_stop(tid);
	if (ptrace(PTRACE_GETREGS, tid, 0, &r))
		die("getregs");
	return r.rax;
}

static void write_program(pid_t pid, unsigned long page)
{
	struct sock_fprog header = { .len = sizeof(program) / sizeof(program[0]),
				     .filter = (void *)(page + sizeof(header)) };
	struct iovec here[] = { { &header, sizeof(header) }, { program, sizeof(program) } };
	struct iovec there = { (void *)page, sizeof(header) + sizeof(program) };

	if (process_vm_writev(pid, here, 2, &there, 1, 0) != (ssize_t)there.iov_len)
		die("process_vm_writev");
}

static int take_listener(pid_t pid, long fd)
{
	int pidfd = syscall(SYS_pidfd_open, pid, 0), listener;

	listener = syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	if (listener < 0)
		die("pidfd_getfd");
	close(pidfd);
	return listener;
}

static void load(pid_t pid, bool listen)
{
	unsigned long flags = SECCOMP_FILTER_FLAG_TSYNC;
	struct user_regs_struct regs;
	long page, r;

	if (listen)
		flags |= SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
	if (ptrace(PTRACE_GETREGS, pid, 0, &regs))
		die("getregs");
	page = inject(pid, &regs, SYS_mmap, 0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	if (page < 0)
		die("mmap there");
	write_program(pid, page);
	if (geteuid() != 0)
		inject(pid, &regs, SYS_prctl, 38 /* PR_SET_NO_NEW_PRIVS */, 1, 0, 0, 0);
	r = inject(pid, &regs, SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, page, 0, 0);
	if (r < 0)
		die("seccomp there");
	if (listen) {
		take_listener(pid, r);
		inject(pid, &regs, SYS_close, r, 0, 0, 0, 0);
	}
	inject(pid, &regs, SYS_munmap, page, 4096, 0, 0, 0);
	if (ptrace(PTRACE_SETREGS, pid, 0, &regs))
		die("setregs");
}

/* How long it was stopped. */
static int64_t attach(pid_t pid, bool listen, int *ret_threads)
{
	static pid_t tids[MAX_THREADS];
	int n = list_threads(pid, tids);
	int64_t stop;

	for (int i = 0; i < n; i++)
		if (ptrace(PTRACE_SEIZE, tids[i], 0, PTRACE_O_TRACESYSGOOD))
			die("seize");
	stop = now_ns();
	for (int i = 0; i < n; i++)
		if (ptrace(PTRACE_INTERRUPT, tids[i], 0, 0))
			die("interrupt");
	for (int i = 0; i < n; i++)
		await_stop(tids[i]);
	load(pid, listen);
	for (int i = 0; i < n; i++)
		if (ptrace(PTRACE_DETACH, tids[i], 0, 0))
			die("detach");
	*ret_threads = n;
	return now_ns() - stop;
}

int main(int argc, char **argv)
{
	bool listen = argc > 2 && strcmp(argv[argc - 1], "listener") == 0;
	int64_t start = now_ns(), stopped = 0;
	int n = 0;

	if (listen)
		program[6].k = SECCOMP_RET_USER_NOTIF;
	for (int i = 1; i < argc - listen; i++)
		stopped += attach(atoi(argv[i]), listen, &n);
	printf("{\"threads\": %d, \"stop_ns\": %lld, \"total_ns\": %lld}\n", n, (long long)stopped,
	       (long long)(now_ns() - start));
	return 0;
}
