/* trap.c - the SIGSYS of SECCOMP_RET_TRAP, given from outside.
 *
 *	helper                            thread, waiting in its notified call
 *	seize, is the call still there?
 *	tgkill(SIGSYS)                    leaves the call at once, unless only a kill can end its wait
 *	answer the call with an error     leaves it now
 *	                                  on its way to user mode: stops to be given SIGSYS
 *	registers as before the call,
 *	siginfo as the kernel's
 *	detach, with SIGSYS               handler, or death
 *
 * The signal is pending before the call can return, so not one instruction of the
 * program runs in between. The helper is a process of its own: its end lets the
 * thread go whatever happens, and it survives the death of who asked for it. Then,
 * too, the call is not made: it fails, or is asked again.
 */
#define _GNU_SOURCE
#include "trap.h"
#include "attach.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#ifndef SYS_SECCOMP
#define SYS_SECCOMP 1 /* si_code; glibc has it since 2.41 */
#endif

#define PATIENCE_NS 2000000000ull

struct trap {
	int listener;
	const struct seccomp_notif *n;
	uint32_t data;
	pid_t tid, tgid;
	int outcome;
};

/* A mask of signals in /proc/TID/status. */
static bool has_sigsys(const char *status, const char *name)
{
	const char *at = strstr(status, name);

	return at && strtoull(at + strlen(name), NULL, 16) >> (SIGSYS - 1) & 1;
}

static int look(struct trap *trap)
{
	char text[8192], path[32];
	const char *tgid;
	long fd, n;

	snprintf(path, sizeof(path), "/proc/%d/status", trap->tid);
	fd = psc_sys(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -ESRCH;
	n = psc_sys(SYS_read, fd, text, sizeof(text) - 1);
	psc_sys(SYS_close, fd);
	text[n > 0 ? n : 0] = '\0';
	tgid = strstr(text, "\nTgid:");
	if (!tgid)
		return -ESRCH;
	trap->tgid = (pid_t)strtol(tgid + strlen("\nTgid:"), NULL, 10);
	return has_sigsys(text, "\nSigBlk:") || has_sigsys(text, "\nSigIgn:") ? -EADDRINUSE : 0;
}

static int wait_for_stop(const struct trap *trap, uint64_t deadline, int *ret_status)
{
	const struct timespec nap = { 0, 20000 };
	long r;

	while ((r = psc_sys(SYS_wait4, trap->tid, ret_status, __WALL | WNOHANG, 0)) == 0 || r == -EINTR) {
		if (psc_now_ns() > deadline)
			return -ETIMEDOUT;
		psc_sys(SYS_nanosleep, &nap, 0);
	}
	return r > 0 && WIFSTOPPED(*ret_status) ? 0 : -ESRCH;
}

static int give(const struct trap *trap)
{
	siginfo_t info = { .si_signo = SIGSYS, .si_errno = (int)trap->data, .si_code = SYS_SECCOMP };
	struct psc_regs regs;
	long r = psc_regs_get(trap->tid, &regs);

	if (r < 0)
		return (int)r;
	psc_regs_roll_back(&regs);
	info.si_call_addr = (void *)trap->n->data.instruction_pointer;
	info.si_syscall = trap->n->data.nr;
	info.si_arch = trap->n->data.arch;
	r = psc_regs_set(trap->tid, &regs);
	if (r == 0)
		r = psc_tracee_request(PTRACE_SETSIGINFO, trap->tid, 0, (uint64_t)&info);
	if (r == 0)
		r = psc_tracee_request(PTRACE_DETACH, trap->tid, 0, SIGSYS);
	return (int)r;
}

/* SIGSYS is taken before other signals of the thread but the few that the processor
 * raises; those are given as they come. A stop of the whole process stays one. */
static int deliver(const struct trap *trap)
{
	uint64_t deadline = psc_now_ns() + PATIENCE_NS;
	int status, r;

	for (;;) {
		int signal;

		r = wait_for_stop(trap, deadline, &status);
		if (r < 0)
			return r;
		signal = status >> 16 ? 0 : WSTOPSIG(status);
		if (signal == SIGSYS)
			return give(trap);
		r = psc_tracee_go_on(PTRACE_CONT, trap->tid, signal);
		if (r < 0)
			return r;
	}
}

static int work(struct trap *trap)
{
	int r = look(trap);

	if (r < 0)
		return r;
	r = (int)psc_sys(SYS_ptrace, PTRACE_SEIZE, trap->tid, 0, 0);
	if (r == 0)
		r = psc_notify_valid(trap->listener, trap->n->id);
	if (r == 0)
		r = (int)psc_sys(SYS_tgkill, trap->tgid, trap->tid, SIGSYS);
	if (r < 0)
		return r;
	(void)!psc_notify_error(trap->listener, trap->n->id, EINTR);
	return deliver(trap);
}

static int helper(void *arg)
{
	struct trap *trap = arg;

	trap->outcome = work(trap);
	return 0;
}

int psc_trap(int listener, const struct seccomp_notif *n, uint32_t data)
{
	struct trap trap = { .listener = listener, .n = n, .data = data, .tid = (pid_t)n->pid, .outcome = -EINTR };
	int r;

	if (!n->pid)
		return -EPERM;
	r = psc_injector_run(helper, &trap, 0);
	return r < 0 ? r : trap.outcome;
}
