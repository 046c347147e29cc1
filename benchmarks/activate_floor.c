/* What bench_activate.py measures against, and the crowds that it measures on.
 *
 *   activate_floor store            for each line of input: ns of a store and a fence to a shared page
 *   activate_floor calls            for each line: median ns of one getppid(), of 25 batches
 *   activate_floor continued        the same, each call asked about and let run by a bare loop of RECV and SEND
 *   activate_floor crowd N T        after a line: N processes of T threads that wait; "ready", and their pids
 *   activate_floor wake N T FILE    N processes of T threads, each with one more that waits in a futex to call seccomp()
 *                                   with FILE's program and to end; "ready". After a line: a store, one wake-up of all, and
 *                                   the ns until the last of these threads has ended
 *   activate_floor denied FILE      one such process; the ns until the first getpgid() that it was denied
 *   activate_floor parked N T FD CHANNEL
 *                                   the same N processes, parked by psc_park_start(); after a line the moment
 *                                   (CLOCK_MONOTONIC) at which the last of the parked threads had ended
 *   activate_floor parked-denied FD CHANNEL   ... of the first getpgid() that was denied
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "psc.h"

#define BATCHES 25
#define MOST 4096
#define PIDFD_OF_THREAD O_EXCL

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS /* Linux 6.6 */
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP 1UL
#endif

static struct shared {
	_Atomic uint32_t go, over;
	_Atomic int failed, ready;
	_Atomic int64_t over_ns;
	_Atomic int listener;
	_Atomic uint32_t word;
	_Atomic pid_t tid[MOST];
} *shared;

static struct sock_filter insns[BPF_MAXINSNS];
static struct sock_fprog program = { .filter = insns };

static _Noreturn void die(const char *what)
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

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(void (*act)(int), int count)
{
	double taken[BATCHES];

	for (int i = 0; i < BATCHES; i++) {
		int64_t began = now_ns();

		act(count);
		taken[i] = (double)(now_ns() - began) / count;
	}
	qsort(taken, BATCHES, sizeof(double), by_value);
	return taken[BATCHES / 2];
}

static void store(int count)
{
	for (int i = 0; i < count; i++) {
		atomic_store(&shared->word, i);
		atomic_thread_fence(memory_order_seq_cst);
	}
}

static void call(int count)
{
	for (int i = 0; i < count; i++)
		syscall(SYS_getppid);
}

static bool hear(void)
{
	char line[64];

	return fgets(line, sizeof(line), stdin);
}

static void say(double ns)
{
	printf("%.1f\n", ns);
	fflush(stdout);
}

/* ---------------------------------------------------------------- continued */

static void let_run(void)
{
	struct seccomp_notif n;

	while (shared->listener == 0)
		usleep(100);
	ioctl(shared->listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
	for (;;) {
		struct seccomp_notif_resp answer = { .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE };

		memset(&n, 0, sizeof(n));
		if (ioctl(shared->listener, SECCOMP_IOCTL_NOTIF_RECV, &n) < 0)
			continue;
		answer.id = n.id;
		ioctl(shared->listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
	}
}

static void be_asked_about(void)
{
	struct sock_filter ask[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog asking = { sizeof(ask) / sizeof(ask[0]), ask };

	/* Another process, on the same descriptors. */
	if (syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0) == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		let_run();
	}
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	shared->listener = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &asking);
	if (shared->listener < 0)
		die("seccomp");
}

/* ------------------------------------------------------------------- crowds */

static void *idle(void *nothing)
{
	for (;;)
		pause();
	return nothing;
}

static void be_threads(int threads)
{
	pthread_attr_t small;
	pthread_t thread;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 65536);
	for (int i = 1; i < threads; i++)
		if (pthread_create(&thread, &small, idle, NULL) != 0)
			die("pthread_create");
}

static void crowd(int processes, int threads)
{
	pid_t pids[MOST];

	for (int i = 1; i < processes; i++) {
		pids[i] = fork();
		if (pids[i] < 0)
			die("fork");
		if (pids[i] == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			be_threads(threads);
			shared->ready++;
			idle(NULL);
		}
	}
	be_threads(threads);
	while (shared->ready < processes - 1)
		usleep(1000);
	printf("ready %d", getpid());
	for (int i = 1; i < processes; i++)
		printf(" %d", pids[i]);
	puts("");
	fflush(stdout);
}

/* ------------------------------------------------------------------ parking */

static void read_program(const char *path)
{
	FILE *file = fopen(path, "rb");

	if (!file)
		die(path);
	program.len = (unsigned short)fread(insns, sizeof(*insns), BPF_MAXINSNS, file);
}

static void *wait_and_filter(void *place)
{
	*(_Atomic pid_t *)place = (pid_t)syscall(SYS_gettid);
	while (!shared->go)
		syscall(SYS_futex, &shared->go, FUTEX_WAIT, 0, NULL, NULL, 0);
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_TSYNC_ESRCH, &program) != 0)
		shared->failed = 1;
	syscall(SYS_exit, 0);
	return NULL;
}

static void park_barely(int i)
{
	pthread_t thread;

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (pthread_create(&thread, NULL, wait_and_filter, &shared->tid[i]) != 0)
		die("pthread_create");
	while (shared->tid[i] == 0)
		usleep(50);
}

static int filter_fd, channel;

static void park_by_the_core(int i)
{
	struct psc_filter filter;
	struct psc_park *park;
	struct dirent *e;
	DIR *dir;

	if (psc_filterfd_read(filter_fd, &filter) < 0)
		die("filter");
	if (psc_park_start(&(struct psc_park_options){ .fd = filter_fd, .channel = channel, .insns = filter.insns,
						       .len = filter.len, .no_new_privs = -1 }, &park) < 0)
		die("park");
	dir = opendir("/proc/self/task");
	while (dir && (e = readdir(dir)))
		if (e->d_name[0] != '.' && atoi(e->d_name) != getpid())
			shared->tid[i] = atoi(e->d_name);
}

static void tell_over(void)
{
	shared->over_ns = now_ns();
	shared->over = 1;
	syscall(SYS_futex, &shared->over, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static int64_t await_over(void)
{
	while (!shared->over)
		syscall(SYS_futex, &shared->over, FUTEX_WAIT, 0, NULL, NULL, 0);
	return shared->over_ns;
}

static void start_parked(int processes, int threads, void (*park)(int), bool calling)
{
	for (int i = 0; i < processes; i++) {
		pid_t pid = fork();

		if (pid < 0)
			die("fork");
		if (pid > 0)
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		park(i);
		be_threads(threads);
		shared->ready++;
		if (!calling)
			idle(NULL);
		while (syscall(SYS_getpgid, 0) >= 0)
			;
		tell_over();
		idle(NULL);
	}
	while (shared->ready < processes)
		usleep(1000);
	usleep(20000);
}

/* A process that sees the ends of the parked threads; whatever else these wake does not delay it. */
static void start_watcher(int processes)
{
	static struct pollfd ends[MOST];
	pid_t pid;

	for (int i = 0; i < processes; i++) {
		ends[i] = (struct pollfd){ (int)syscall(SYS_pidfd_open, shared->tid[i], PIDFD_OF_THREAD), POLLIN, 0 };
		if (ends[i].fd < 0)
			die("pidfd_open of a thread");
	}
	pid = fork();
	if (pid < 0)
		die("fork");
	if (pid > 0)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){ .sched_priority = 1 });
	for (int i = 0; i < processes; i++)
		while (poll(&ends[i], 1, -1) < 1)
			;
	tell_over();
	_exit(0);
}

static void start(int processes, int threads, void (*park)(int), bool until_denied)
{
	start_parked(processes, threads, park, until_denied);
	if (!until_denied)
		start_watcher(processes);
	puts("ready");
	fflush(stdout);
}

static void wake(int processes, int threads, bool until_denied)
{
	int64_t began;

	start(processes, threads, park_barely, until_denied);
	if (!hear())
		return;
	began = now_ns();
	shared->go = 1;
	syscall(SYS_futex, &shared->go, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
	say((double)(await_over() - began));
	if (shared->failed)
		exit(1);
}

static void parked(int processes, int threads, bool until_denied)
{
	start(processes, threads, park_by_the_core, until_denied);
	say((double)await_over());
}

static void widen(void)
{
	struct rlimit limit;

	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	int processes = argc > 3 ? atoi(argv[2]) : 1, threads = argc > 3 ? atoi(argv[3]) : 1;

	if (processes < 1 || processes > MOST)
		return 2;
	widen();
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		die("mmap");
	if (strcmp(mode, "wake") == 0 && argc == 5) {
		read_program(argv[4]);
		wake(processes, threads, false);
	} else if (strcmp(mode, "denied") == 0 && argc == 3) {
		read_program(argv[2]);
		wake(1, 1, true);
	} else if (strcmp(mode, "parked") == 0 && argc == 6) {
		filter_fd = atoi(argv[4]);
		channel = atoi(argv[5]);
		parked(processes, threads, false);
	} else if (strcmp(mode, "parked-denied") == 0 && argc == 4) {
		filter_fd = atoi(argv[2]);
		channel = atoi(argv[3]);
		parked(1, 1, true);
	} else if (strcmp(mode, "crowd") == 0 && argc == 4) {
		if (hear())
			crowd(processes, threads);
	} else if (strcmp(mode, "store") == 0) {
		while (hear())
			say(median(store, 2000));
		return 0;
	} else {
		if (strcmp(mode, "continued") == 0)
			be_asked_about();
		puts("ready");
		fflush(stdout);
		while (hear())
			say(median(call, 400));
		return 0;
	}
	while (hear())
		;
	return 0;
}
