/* Makes a child in the way that its input names, and tells the errno of the child's first getppid() and of its own
 * one afterwards. "storm": four threads make a hundred each at once, by fork and vfork; tells how many were denied. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include "victim.h"

#define THREADS 4
#define EACH 100

extern char **environ;
static const char *myself;

static int status_of(pid_t child)
{
	int status;

	if (child < 0)
		die("birth");
	if (waitpid(child, &status, __WALL) != child)
		die("waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static int by_fork(void)
{
	pid_t child = fork();

	if (child == 0)
		_exit(probe());
	return status_of(child);
}

static int by_vfork(void)
{
	pid_t child = vfork();

	if (child == 0)
		_exit(probe());
	return status_of(child);
}

static int by_clone(void)
{
	pid_t child = (pid_t)syscall(SYS_clone, 0, 0, 0, 0, 0);

	if (child == 0)
		_exit(probe());
	return status_of(child);
}

static int answer(void *arg)
{
	return arg ? 99 : probe();
}

static int by_untidy_clone(void)
{
	static _Alignas(16) char stack[65536];

	return status_of(clone(answer, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL));
}

static int by_spawn(void)
{
	char *const argv[] = { (char *)myself, "probe", NULL };
	pid_t child;

	if (posix_spawn(&child, myself, NULL, NULL, argv, environ))
		die("posix_spawn");
	return status_of(child);
}

static void *fork_in_thread(void *ret)
{
	*(int *)ret = by_fork();
	return NULL;
}

static int by_thread(void)
{
	pthread_t thread;
	int status;

	if (pthread_create(&thread, NULL, fork_in_thread, &status))
		die("pthread_create");
	pthread_join(thread, NULL);
	return status;
}

static void *many(void *arg)
{
	long denied = arg ? 99 : 0;

	for (int i = 0; i < EACH; i++)
		denied += (i % 2 ? by_fork() : by_vfork()) != 0;
	return (void *)denied;
}

static int storm(void)
{
	pthread_t threads[THREADS];
	int denied = 0;
	void *count;

	for (int i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, many, NULL))
			die("pthread_create");
	for (int i = 0; i < THREADS; i++) {
		pthread_join(threads[i], &count);
		denied += (int)(long)count;
	}
	return denied;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*make)(void);
	} kinds[] = {
		{ "fork", by_fork },	{ "vfork", by_vfork }, { "clone", by_clone }, { "untidy", by_untidy_clone },
		{ "thread", by_thread }, { "spawn", by_spawn }, { "storm", storm },
	};
	char line[32];

	if (argc > 1 && strcmp(argv[1], "again") == 0)
		say("%d %d", probe(), probe()); /* another program, of which the first call is the probe's */
	else if (argc > 1)
		return probe();
	myself = argv[0];
	setvbuf(stdin, NULL, _IONBF, 0);
	if (argc == 1)
		say("ready");
	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = '\0';
		if (strcmp(line, "exec") == 0)
			execv("/proc/self/exe", (char *[]){ argv[0], "again", NULL });
		for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
			if (strcmp(line, kinds[i].name) == 0) {
				int child = kinds[i].make();

				say("%d %d", child, probe());
			}
	}
	return 0;
}
