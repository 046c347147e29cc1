/* loader.c - have a temporary thread of the target load a program.
 *
 *   maker    clone() .......... stops ............................. restored
 *   loader           stands at birth, [prctl] seccomp, stands, exit()
 *
 * The loader shares the memory of its maker and has its filters, but it has a copy of
 * its descriptors: a listener that it makes is in no table of the target. It is a thread
 * of the target that the tracer owns from its birth (PTRACE_O_TRACECLONE).
 *
 * The invariant: the loader executes code in the cave until it is seen in exit() or dead.
 * Until then loader->injected is set, and the code stays.
 *
 * A process that can write to the target's memory can rewrite the code. So what clone(),
 * seccomp() and exit() are called with is set in the registers, at their entry: without TSYNC
 * the loader alone would have the filter, with CLONE_FILES the target would keep the listener.
 *
 * clone() returns the loader's number in the target's pid namespace. The tracer takes it
 * from PTRACE_GETEVENTMSG, which translates it.
 */
#define _GNU_SOURCE
#include "tracee.h"

#include <linux/ptrace.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>

#define BIRTH_TRIES 10
#define MESSAGE_TRIES 3
#define REAP_NS 200000000 /* for a thread in exit() to end */

/* The thread that the maker, in the event of its birth, has made. It is traced already, and
 * stands or will. */
static int take_newborn(struct psc_visit *visit, struct psc_tracee *maker, struct psc_tracee *ret_loader)
{
	unsigned long tid = 0;
	int status, r = -EIO;

	for (int tries = 0; r < 0 && tries < MESSAGE_TRIES; tries++)
		r = (int)psc_sys(SYS_ptrace, PTRACE_GETEVENTMSG, maker->tid, 0, &tid);
	*ret_loader = (struct psc_tracee){ .tid = (pid_t)tid, .state = PSC_TRACEE_RUNNING, .injected = true };
	if (r == 0)
		r = psc_tracee_start(maker, PSC_STOP_TRAP);
	if (r == 0)
		r = psc_visit_wait(visit, (pid_t)tid, &status);
	if (r < 0)
		return r;
	if (!WIFSTOPPED(status)) {
		ret_loader->state = PSC_TRACEE_DEAD;
		ret_loader->injected = false;
		return -ESRCH;
	}
	ret_loader->state = PSC_TRACEE_STOPPED;
	return psc_tracee_get_regs(ret_loader, &ret_loader->regs);
}

/* clone() makes nothing while a signal is pending (ERESTARTNOINTR), and is made again. */
static int run_to_birth(struct psc_visit *visit, struct psc_tracee *tracee, const struct psc_site *site, long *ret_error)
{
	const uint64_t args[2] = { PSC_LOADER_CLONE_FLAGS };
	int r = 0;

	for (int tries = 0; r == 0 && tries < BIRTH_TRIES; tries++) {
		struct psc_regs regs;

		r = psc_tracee_enter_call(visit, tracee, site, psc_abi_of(&tracee->regs)->clone, 2, args);
		if (r == 0)
			r = psc_tracee_resume(visit, tracee, site, PSC_STOP_CLONE);
		if (r != 0)
			return r;
		r = psc_tracee_get_regs(tracee, &regs);
		*ret_error = psc_regs_result(&regs);
		if (r == 0 && *ret_error != -PSC_ERESTARTNOINTR)
			return 0;
	}
	return r < 0 ? r : -EAGAIN;
}

int psc_loader_start(struct psc_visit *visit, struct psc_tracee *tracee, const struct psc_site *site,
		     unsigned long options, struct psc_tracee *ret_loader, long *ret_error)
{
	struct psc_regs regs = tracee->regs;
	int r;

	*ret_loader = (struct psc_tracee){ .state = PSC_TRACEE_DEAD };
	psc_regs_enter(&regs, site->main);
	r = psc_tracee_set_regs(tracee, &regs);
	if (r == 0)
		r = run_to_birth(visit, tracee, site, ret_error);
	if (r == 0)
		return 1;
	ret_loader->injected = r < 0; /* there may be one that was not seen */
	if (r == 1)
		r = take_newborn(visit, tracee, ret_loader);
	if (r == 0)
		r = (int)psc_sys(SYS_ptrace, PTRACE_SETOPTIONS, ret_loader->tid, 0, options);
	if (r == 0)
		r = psc_tracee_block_signals(ret_loader);
	return r;
}

int psc_loader_run(struct psc_visit *visit, struct psc_tracee *loader, const struct psc_site *site, long *ret_result)
{
	struct psc_regs regs;
	int r = psc_tracee_enter_seccomp(visit, loader, site);

	if (r == 0)
		r = psc_tracee_resume(visit, loader, site, PSC_STOP_SYSCALL);
	if (r == 0)
		r = psc_tracee_get_regs(loader, &regs);
	if (r == 0)
		*ret_result = psc_regs_result(&regs);
	return r;
}

/* From wherever it stands into exit(). */
static int enter_exit(struct psc_visit *visit, struct psc_tracee *loader, const struct psc_site *site)
{
	const uint64_t args[6] = { 0 };
	struct psc_regs regs = loader->regs;
	long nr = psc_abi_of(&regs)->exit;
	int r;

	if (!loader->injected)
		return 0;
	psc_regs_call(&regs, site->call, nr, args);
	r = psc_tracee_set_regs(loader, &regs);
	if (r == 0)
		r = psc_tracee_enter_call(visit, loader, site, nr, 1, args);
	if (r == 0)
		loader->injected = false;
	return r;
}

int psc_loader_leave(struct psc_visit *visit, struct psc_tracee *loader, const struct psc_site *site)
{
	int r = enter_exit(visit, loader, site);

	if (r < 0)
		return r;
	psc_sys(SYS_ptrace, PTRACE_CONT, loader->tid, 0, 0);
	visit->dying = loader->tid;
	return 0;
}

void psc_loader_reap(struct psc_visit *visit)
{
	const struct timespec nap = { 0, 20000 };
	uint64_t end = psc_now_ns() + REAP_NS;
	int status;

	while (visit->dying && psc_now_ns() < end) {
		long r = psc_sys(SYS_wait4, visit->dying, &status, __WALL | WNOHANG, 0);

		if ((r < 0 && r != -EINTR) || (r > 0 && !WIFSTOPPED(status)))
			break;
		psc_sys(SYS_ptrace, PTRACE_CONT, visit->dying, 0, 0); /* if it stands still, or again */
		psc_sys(SYS_nanosleep, &nap, 0);
	}
	visit->dying = 0;
}

int psc_loader_end(struct psc_visit *visit, struct psc_tracee *loader, const struct psc_site *site)
{
	int r = 0, status;

	if (!loader->tid) /* not known: a wait for 0 would take the stops of other threads */
		return loader->injected ? -EIO : 0;
	while (r == 0 && loader->state != PSC_TRACEE_DEAD) {
		if (loader->state == PSC_TRACEE_STOPPED) {
			r = enter_exit(visit, loader, site);
			if (loader->state == PSC_TRACEE_DEAD)
				break;
			if (r < 0)
				return r;
			psc_sys(SYS_ptrace, PTRACE_CONT, loader->tid, 0, 0);
		}
		r = psc_visit_wait(visit, loader->tid, &status);
		if (r == -ECHILD || (r == 0 && !WIFSTOPPED(status))) {
			loader->state = PSC_TRACEE_DEAD;
			break;
		}
		if (r < 0)
			break;
		loader->state = PSC_TRACEE_STOPPED;
		visit->stop_signal |= status >> 16 == 0 && WSTOPSIG(status) == SIGSTOP;
	}
	if (loader->state != PSC_TRACEE_DEAD)
		return r;
	loader->injected = false;
	return 0;
}
