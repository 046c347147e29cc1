/* Threads that make the probe call so many times each, under signals, and count what their handler of SIGSYS did not answer. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/time.h>
#include <ucontext.h>
#include "victim.h"

static atomic_int handled, wrong;
static int calls;

static void on_sigsys(int number, siginfo_t *info, void *context)
{
	handled++;
	if (info->si_code != 1 || info->si_syscall != SYS_getppid)
		wrong++;
	((ucontext_t *)context)->uc_mcontext.gregs[REG_RAX] = 4711;
}

static void on_alarm(int number)
{
}

static void *call(void *arg)
{
	for (int i = 0; i < calls; i++)
		if (syscall(SYS_getppid) != 4711)
			wrong++;
	return arg;
}

int main(int argc, char **argv)
{
	struct sigaction trap = { .sa_sigaction = on_sigsys, .sa_flags = SA_SIGINFO }, tick = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
	const struct itimerval often = { { 0, 500 }, { 0, 500 } }, never = { 0 };
	int n = atoi(argv[1]);
	pthread_t threads[16];

	calls = atoi(argv[2]);
	sigaction(SIGSYS, &trap, NULL);
	sigaction(SIGALRM, &tick, NULL);
	say("ready");
	hear();
	setitimer(ITIMER_REAL, &often, NULL);
	for (int i = 0; i < n; i++)
		if (pthread_create(&threads[i], NULL, call, NULL))
			die("pthread_create");
	for (int i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	setitimer(ITIMER_REAL, &never, NULL);
	say("handled=%d wrong=%d", handled, wrong);
	hear();
}
