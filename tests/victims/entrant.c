/* Enters a cgroup, and tells how long until a filter denied its getppid(), in nanoseconds (-1: not within 5 s).
 *	entrant CGROUP move|clone [ROUNDS]
 * move: a child writes its own number to cgroup.procs; clone: a child is born in it. Each round is a new child. */
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <sys/wait.h>
#include "victim.h"

static void measure(int64_t begin)
{
	int64_t end = begin + 5000000000LL;

	while (probe() == 0) {
		if (now_ns() > end) {
			say("window=-1");
			_exit(1);
		}
		usleep(50);
	}
	say("window=%lld", (long long)(now_ns() - begin));
	_exit(0);
}

int main(int argc, char **argv)
{
	bool born = argc > 2 && strcmp(argv[2], "clone") == 0;
	int dir = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC), procs = openat(dir, "cgroup.procs", O_WRONLY | O_CLOEXEC);
	int rounds = argc > 3 ? atoi(argv[3]) : 1, status = 0;

	if (procs < 0)
		die("open");
	say("ready");
	hear();
	for (int i = 0; i < rounds && status == 0; i++) {
		struct clone_args args = { .flags = born ? CLONE_INTO_CGROUP : 0, .exit_signal = SIGCHLD, .cgroup = (uint64_t)dir };
		pid_t child = (pid_t)syscall(SYS_clone3, &args, sizeof(args));
		char text[16];

		if (child < 0)
			die("clone3");
		if (child == 0) {
			int n = snprintf(text, sizeof(text), "%d", getpid());

			if (!born && write(procs, text, n) != n)
				die("cgroup.procs");
			measure(now_ns());
		}
		waitpid(child, &status, 0);
	}
	return 0;
}
