/* Makes the probe call in the way its argument says, and tells all that its handler of SIGSYS was given.
 *
 *   handle    in the first thread       thread   in another one
 *   block     SIGSYS blocked            ignore   SIGSYS ignored        default   nothing of that
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <ucontext.h>
#include "victim.h"

#if defined(__x86_64__)
#define RESULT REG_RAX
#define IP REG_RIP
#define GENERAL 17
#else
#define RESULT REG_EAX
#define IP REG_EIP
#define GENERAL 12
#endif

static volatile int handled;
static char told[512];

static void on_sigsys(int number, siginfo_t *info, void *context)
{
	ucontext_t *u = context;
	long others = 0;

	for (int i = 0; i < GENERAL; i++)
		if (i != RESULT && i != IP)
			others = others * 31 + (long)u->uc_mcontext.gregs[i];
	handled++;
	snprintf(told, sizeof(told), "signo=%d code=%d errno=%d at=%d syscall=%d arch=%u rax=%ld others=%lx mask=%lx count=%d", number,
		 info->si_code, info->si_errno, info->si_call_addr == (void *)u->uc_mcontext.gregs[IP], info->si_syscall,
		 info->si_arch, (long)u->uc_mcontext.gregs[RESULT], others, *(unsigned long *)&u->uc_sigmask, handled);
	u->uc_mcontext.gregs[RESULT] = 4711;
}

static long result;

/* The same registers each time: no library between. */
static void *call(void *arg)
{
#if defined(__x86_64__)
	long r;

	__asm__ volatile("xor %%r8d, %%r8d\n\txor %%r9d, %%r9d\n\txor %%r10d, %%r10d\n\tsyscall"
			 : "=a"(r) : "a"(SYS_getppid), "D"(1), "S"(2), "d"(3) : "rcx", "r11", "r8", "r9", "r10", "memory");
	result = r;
#else
	long r;

	__asm__ volatile("int $0x80" : "=a"(r) : "a"(SYS_getppid), "c"(2), "d"(3) : "memory");
	result = r;
#endif
	return arg;
}

int main(int argc, char **argv)
{
	const char *how = argc > 1 ? argv[1] : "handle";
	struct sigaction action = { .sa_sigaction = on_sigsys, .sa_flags = SA_SIGINFO };
	sigset_t sigsys;
	pthread_t t;

	sigemptyset(&sigsys);
	sigaddset(&sigsys, SIGSYS);
	if (strcmp(how, "ignore") == 0)
		signal(SIGSYS, SIG_IGN);
	else if (strcmp(how, "default") != 0)
		sigaction(SIGSYS, &action, NULL);
	if (strcmp(how, "block") == 0)
		sigprocmask(SIG_BLOCK, &sigsys, NULL);
	say("ready");
	for (;;) {
		hear();
		told[0] = 0;
		if (strcmp(how, "thread") == 0) {
			if (pthread_create(&t, NULL, call, NULL) || pthread_join(t, NULL))
				die("thread");
		} else {
			call(NULL);
		}
		say("%s result=%ld", told, result == 4711 ? 4711L : 0L);
	}
}
