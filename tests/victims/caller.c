/* caller.c [restart|interrupt] - calls without a pause, and checks every answer.
 *
 * getppid(tag, n) is to return n ^ 0x5a5a, getpgid(tag, n) is to return 77. SIGUSR1 is
 * handled, with SA_RESTART or without; then a call may fail with EINTR instead. Now and
 * then it forks a child that does the same for a while, or executes itself again. It ends
 * with status 0 at the end of its input; a wrong answer is told, and status 3. */
#include "victim.h"

#include <signal.h>
#include <sys/wait.h>

enum { LOOK = 64, FORK = 2000, EXEC = 9000, CHILD = 300 };

static void handle(int number)
{
	(void)number;
}

static void check(const char *what, long got, long wanted, bool restart)
{
	if (got == wanted || (got < 0 && errno == EINTR && !restart))
		return;
	say("wrong=%s got=%ld wanted=%ld errno=%d", what, got, wanted, errno);
	_exit(3);
}

static void call(uint32_t n, bool restart)
{
	check("getppid", syscall(SYS_getppid, 1, n), n ^ 0x5a5a, restart);
	check("getpgid", syscall(SYS_getpgid, 1, n), 77, restart);
}

static void have_child(uint32_t n, bool restart)
{
	int status;
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (pid == 0) {
		for (uint32_t i = 0; i < CHILD; i++)
			call(n + i, restart);
		_exit(0);
	}
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			die("waitpid");
	/* Killed is not its fault. */
	if (WIFEXITED(status) && WEXITSTATUS(status))
		_exit(WEXITSTATUS(status));
}

int main(int argc, char **argv)
{
	bool restart = argc < 2 || strcmp(argv[1], "interrupt") != 0;
	struct sigaction action = { .sa_handler = handle, .sa_flags = restart ? SA_RESTART : 0 };
	struct pollfd input = { .events = POLLIN };
	uint32_t n = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 0;
	sigset_t usr1;
	char text[16], c;

	sigemptyset(&usr1);
	sigaddset(&usr1, SIGUSR1);
	sigaction(SIGUSR1, &action, NULL);
	sigprocmask(SIG_UNBLOCK, &usr1, NULL);
	if (n == 0) {
		say("ready");
		/* A byte: the filter is there. */
		while (read(0, &c, 1) != 1)
			if (errno != EINTR)
				return 4;
	}
	for (;;) {
		call(++n, restart);
		if (n % LOOK == 0 && poll(&input, 1, 0) > 0 && read(0, &c, 1) == 0)
			return 0;
		if (n % FORK == 0)
			have_child(n, restart);
		if (n % EXEC == 0) {
			/* The new program has no handler at first. */
			sigprocmask(SIG_BLOCK, &usr1, NULL);
			snprintf(text, sizeof(text), "%u", n);
			execl("/proc/self/exe", argv[0], restart ? "restart" : "interrupt", text, NULL);
			die("execl");
		}
	}
}
