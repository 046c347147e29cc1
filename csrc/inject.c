/* inject.c - make a stopped thread of another process make system calls.
 *
 * The invariant: from the moment a thread's registers are set to our code until
 * they are put back, everything it would need to finish without us is already in
 * its memory. A tracer that dies lets its tracees run from wherever they stand;
 * ours then complete the call, restore their registers and go on.
 *
 *        main:  prctl(no_new_privs)      only if wanted
 *               seccomp(...)             an error skips the next
 *               close(listener)          only if there is one
 *               munmap(program)          only if it was mapped
 *               jump to restore
 *        call:  syscall                  arguments in registers
 *     restore:  rt_sigprocmask(as it was)
 *               flags, registers, jump back
 *
 * For the same reason no thread is ever single-stepped: the kernel leaves the
 * trap flag behind when the tracer dies (exit_ptrace() does not do what
 * ptrace_detach() does), and the next instruction is the target's death. A call
 * is bracketed by a syscall-entry stop instead; there an interrupt is made
 * pending, so that the next stop comes after the call and inside get_signal(),
 * which is where the kernel restarts interrupted calls from restored registers.
 *
 * Signals: the thread's are blocked before it runs, and come when its mask does.
 * Not those that an instruction raises: forcing one that is blocked would make
 * the kernel forget its handler. One of these that a process sent goes back into
 * the queue (ptrace_signal() requeues what is blocked by then).
 */
#define _GNU_SOURCE
#include "tracee.h"

#include <linux/ptrace.h>
#include <linux/rseq.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#ifndef PTRACE_GET_RSEQ_CONFIGURATION
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f
#endif

#define SYSCALL_STOP (SIGTRAP | 0x80)
#define REQUEST_TRIES 3

/* /proc/PID/mem writes through write protection, unless the administrator has
 * forbidden that (proc_mem.force_override); PTRACE_POKEDATA still does. */
int psc_tracee_write(struct psc_visit *visit, struct psc_tracee *tracee, uint64_t address, const void *data,
		     size_t size)
{
	const char *bytes = data;

	if (psc_sys(SYS_pwrite64, visit->mem, data, size, address) == (long)size)
		return 0;
	for (size_t at = 0; at < size; at += sizeof(long)) {
		size_t n = size - at < sizeof(long) ? size - at : sizeof(long);
		long word = 0, r = 0;

		if (n < sizeof(long))
			r = psc_sys(SYS_ptrace, PTRACE_PEEKDATA, tracee->tid, address + at, &word);
		memcpy(&word, bytes + at, n);
		if (r == 0)
			r = psc_sys(SYS_ptrace, PTRACE_POKEDATA, tracee->tid, address + at, word);
		if (r < 0)
			return (int)r;
	}
	return 0;
}

/* -------------------------------------------------------------------- site */

static void emit_main(struct psc_code *code, const struct psc_abi *abi, const struct psc_script *script,
		      size_t *ret_done)
{
	const uint64_t prctl_args[5] = { PR_SET_NO_NEW_PRIVS, 1 };
	const uint64_t seccomp_args[3] = { SECCOMP_SET_MODE_FILTER, script->flags, script->fprog };
	const uint64_t unmap_args[2] = { script->map, script->map_size };
	size_t failed[2], n_failed = 0;

	if (script->no_new_privs) {
		psc_emit_call(code, abi, abi->prctl, 5, prctl_args, false);
		failed[n_failed++] = psc_emit_jump_if_error(code);
	}
	psc_emit_call(code, abi, abi->seccomp, 3, seccomp_args, false);
	failed[n_failed++] = psc_emit_jump_if_error(code);
	if (script->close_listener)
		psc_emit_call(code, abi, abi->close, 1, seccomp_args, true);
	for (size_t i = 0; i < n_failed; i++)
		psc_emit_land(code, failed[i]);
	if (script->unmap)
		psc_emit_call(code, abi, abi->munmap, 2, unmap_args, false);
	*ret_done = psc_emit_jump(code);
}

/* The loader runs on its maker's stack pointer, without a stack, with descriptors of its
 * own, and ends by itself whatever happens to the injector. */
static void emit_loader(struct psc_code *code, const struct psc_abi *abi, const struct psc_script *script, size_t *ret_done)
{
	const uint64_t clone_args[2] = { PSC_LOADER_CLONE_FLAGS };
	const uint64_t prctl_args[5] = { PR_SET_NO_NEW_PRIVS, 1 };
	const uint64_t seccomp_args[3] = { SECCOMP_SET_MODE_FILTER, script->flags, script->fprog };
	const uint64_t unmap_args[2] = { script->map, script->map_size };
	const uint64_t exit_args[1] = { 0 };
	size_t maker, failed;

	psc_emit_call(code, abi, abi->clone, 2, clone_args, false);
	maker = psc_emit_jump_if_not_zero(code);
	if (script->no_new_privs)
		psc_emit_call(code, abi, abi->prctl, 5, prctl_args, false);
	psc_emit_call(code, abi, abi->seccomp, 3, seccomp_args, false);
	failed = psc_emit_jump_if_error(code);
	if (script->unmap)
		psc_emit_call(code, abi, abi->munmap, 2, unmap_args, false);
	psc_emit_land(code, failed);
	psc_emit_call(code, abi, abi->exit, 1, exit_args, false);
	psc_emit_land(code, maker);
	*ret_done = psc_emit_jump(code);
}

int psc_site_build(struct psc_visit *visit, struct psc_tracee *tracee, const struct psc_cave *cave,
		   const struct psc_script *script, struct psc_site *ret_site)
{
	const struct psc_abi *abi = psc_abi_of(&tracee->regs);
	uint8_t bytes[PSC_SITE_SIZE];
	struct psc_code code = { bytes, sizeof(bytes), 0, cave->address };
	struct psc_regs resume = tracee->regs;
	struct psc_site site = {
		.main = cave->address + sizeof(tracee->sigmask),
		.fprog = script->fprog,
		.flags = script->flags,
		.no_new_privs = script->no_new_privs,
	};
	const uint64_t mask_args[4] = { SIG_SETMASK, cave->address, 0, 8 };
	size_t done = 0;
	int r;

	psc_regs_apply_restart(&resume);
	psc_emit(&code, &tracee->sigmask, sizeof(tracee->sigmask));
	if (script->loader)
		emit_loader(&code, abi, script, &done);
	else if (script->data)
		emit_main(&code, abi, script, &done);
	site.call = cave->address + code.len;
	psc_emit_syscall(&code, abi);
	if (script->data)
		psc_emit_land(&code, done);
	if (script->unmask)
		psc_emit_call(&code, abi, abi->rt_sigprocmask, 4, mask_args, false);
	psc_emit_restore(&code, abi, &resume);
	if (code.len > sizeof(bytes) || code.len > cave->size)
		return -ENOSPC;
	site.end = cave->address + code.len;
	r = psc_tracee_write(visit, tracee, cave->address, bytes, code.len);
	if (r < 0)
		return r;
	*ret_site = site;
	return 0;
}

void psc_tracee_abort_rseq(struct psc_visit *visit, struct psc_tracee *tracee)
{
	struct { uint64_t area; uint32_t size, signature, flags, pad; } config;
	struct rseq_cs section;
	uint64_t address;

	if (psc_regs_syscall(&tracee->regs) >= 0)
		return;
	if (psc_sys(SYS_ptrace, PTRACE_GET_RSEQ_CONFIGURATION, tracee->tid, sizeof(config), &config) < 0 || !config.area)
		return;
	address = config.area + offsetof(struct rseq, rseq_cs);
	if (!psc_memory_is_present(tracee->tid, address, 8) || psc_sys(SYS_pread64, visit->mem, &address, 8, address) != 8 ||
	    !address || !psc_memory_is_present(tracee->tid, address, sizeof(section)))
		return;
	if (psc_sys(SYS_pread64, visit->mem, &section, sizeof(section), address) != sizeof(section))
		return;
	if (psc_regs_ip(&tracee->regs) - section.start_ip < section.post_commit_offset)
		psc_regs_enter(&tracee->regs, section.abort_ip);
}

/* ------------------------------------------------------------------- calls */

long psc_tracee_request(long what, pid_t tid, uint64_t address, uint64_t data)
{
	long r = -EIO;

	for (int tries = 0; r < 0 && tries < REQUEST_TRIES; tries++)
		r = psc_sys(SYS_ptrace, what, tid, address, data);
	return r;
}

static bool is_in_ptrace_stop(pid_t tid)
{
	return psc_task_letter(tid) == 't';
}

int psc_tracee_go_on(long how, pid_t tid, int signal)
{
	long r = psc_tracee_request(how, tid, 0, (uint64_t)signal);

	if (r >= 0)
		return 0;
	if (psc_tracee_request(PTRACE_DETACH, tid, 0, (uint64_t)signal) < 0 && !is_in_ptrace_stop(tid))
		return 0; /* it was killed */
	return (int)r;
}

void psc_tracee_detach(pid_t tid, int signal)
{
	if (psc_tracee_request(PTRACE_DETACH, tid, 0, (uint64_t)signal) >= 0 || !is_in_ptrace_stop(tid))
		return;
	psc_tracee_request(PTRACE_SETOPTIONS, tid, 0, 0);
	psc_tracee_request(PTRACE_CONT, tid, 0, (uint64_t)signal);
}

static bool is_fault(int signal)
{
	return signal == SIGSEGV || signal == SIGBUS || signal == SIGILL || signal == SIGFPE || signal == SIGTRAP ||
	       signal == SIGSYS;
}

/* Did this signal-delivery-stop come from an instruction of ours? */
static bool caused_by_us(pid_t tid, int signal, const struct psc_site *site)
{
	siginfo_t info;
	struct psc_regs regs;

	if (!is_fault(signal) || psc_sys(SYS_ptrace, PTRACE_GETSIGINFO, tid, 0, &info) < 0 || info.si_code <= 0)
		return false;
	return psc_regs_get(tid, &regs) == 0 && psc_regs_ip(&regs) >= site->main && psc_regs_ip(&regs) < site->end;
}

int psc_tracee_block_signals(struct psc_tracee *tracee)
{
	uint64_t most = ~0ULL;
	int r = (int)psc_tracee_request(PTRACE_GETSIGMASK, tracee->tid, 8, (uint64_t)&tracee->sigmask);

	for (int signal = 1; signal < 32; signal++)
		if (is_fault(signal))
			most &= ~(1ULL << (signal - 1));
	if (r == 0)
		r = (int)psc_tracee_request(PTRACE_SETSIGMASK, tracee->tid, 8, (uint64_t)&most);
	tracee->masked = r == 0;
	return r;
}

/* So that what is resumed with next goes back into the queue. */
static int block_all_signals(struct psc_tracee *tracee)
{
	const uint64_t all = ~0ULL;

	return (int)psc_tracee_request(PTRACE_SETSIGMASK, tracee->tid, 8, (uint64_t)&all);
}

int psc_tracee_get_regs(const struct psc_tracee *tracee, struct psc_regs *ret_regs)
{
	int r = -EIO;

	for (int tries = 0; r < 0 && tries < REQUEST_TRIES; tries++)
		r = (int)psc_regs_get(tracee->tid, ret_regs);
	return r;
}

static int set_regs(const struct psc_tracee *tracee, const struct psc_regs *regs)
{
	int r = -EIO;

	for (int tries = 0; r < 0 && tries < REQUEST_TRIES; tries++)
		r = (int)psc_regs_set(tracee->tid, regs);
	return r;
}

int psc_tracee_set_regs(struct psc_tracee *tracee, const struct psc_regs *regs)
{
	int r = set_regs(tracee, regs);

	tracee->injected |= r == 0;
	return r;
}

/* Is it the wanted stop? 1: the birth of a thread. -EAGAIN: it is another. */
static int is_wanted(int status, enum psc_stop wanted)
{
	int event = status >> 16;

	switch (wanted) {
	case PSC_STOP_TRAP:
		return event == PTRACE_EVENT_STOP ? 0 : -EAGAIN;
	case PSC_STOP_CLONE:
		if (event == PTRACE_EVENT_CLONE)
			return 1;
		break;
	case PSC_STOP_SYSCALL:
		break;
	}
	return event == 0 && WSTOPSIG(status) == SYSCALL_STOP ? 0 : -EAGAIN;
}

/* A signal that comes in the middle. *ret_signal: what to resume with. */
static int take_signal(struct psc_visit *visit, struct psc_tracee *tracee, const struct psc_site *site, int *ret_signal)
{
	if (caused_by_us(tracee->tid, *ret_signal, site))
		return -EFAULT;
	if (*ret_signal != SIGSTOP)
		return block_all_signals(tracee);
	visit->stop_signal = true; /* cannot be blocked: again, later */
	*ret_signal = 0;
	return 0;
}

static int start(const struct psc_tracee *tracee, enum psc_stop wanted, int signal)
{
	bool until_call = wanted == PSC_STOP_SYSCALL || wanted == PSC_STOP_CLONE;
	int r = 0;

	if (wanted == PSC_STOP_TRAP)
		r = (int)psc_tracee_request(PTRACE_INTERRUPT, tracee->tid, 0, 0);
	if (r == 0)
		r = (int)psc_tracee_request(until_call ? PTRACE_SYSCALL : PTRACE_CONT, tracee->tid, 0, (uint64_t)signal);
	return r;
}

int psc_tracee_start(struct psc_tracee *tracee, enum psc_stop wanted)
{
	int r = start(tracee, wanted, 0);

	if (r == 0)
		tracee->state = PSC_TRACEE_RUNNING;
	return r;
}

int psc_tracee_await(struct psc_visit *visit, struct psc_tracee *tracee, const struct psc_site *site, enum psc_stop wanted)
{
	int signal = 0, status = 0, r;

	for (;;) {
		r = psc_visit_wait(visit, tracee->tid, &status);
		if (r < 0 && r != -ECHILD && r != -ESRCH)
			return r;
		if (r < 0 || !WIFSTOPPED(status)) {
			tracee->state = PSC_TRACEE_DEAD;
			return -ESRCH;
		}
		tracee->state = PSC_TRACEE_STOPPED;
		r = is_wanted(status, wanted);
		if (r >= 0)
			return r;
		signal = status >> 16 == 0 && WSTOPSIG(status) != SYSCALL_STOP ? WSTOPSIG(status) : 0;
		r = signal ? take_signal(visit, tracee, site, &signal) : 0;
		if (r == 0)
			r = start(tracee, wanted, signal);
		if (r < 0)
			return r;
		tracee->state = PSC_TRACEE_RUNNING;
	}
}

int psc_tracee_resume(struct psc_visit *visit, struct psc_tracee *tracee, const struct psc_site *site, enum psc_stop wanted)
{
	int r = psc_tracee_start(tracee, wanted);

	return r < 0 ? r : psc_tracee_await(visit, tracee, site, wanted);
}

/* From the entry of a call to its end, when the filter that has just been put in
 * force asks its listener about it: answer "continue" ourselves. */
static int continue_notified(struct psc_visit *visit, struct psc_tracee *tracee, const struct psc_site *site,
			     int listener)
{
	struct seccomp_notif notif;
	struct seccomp_notif_resp resp = { .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE };
	struct pollfd readable = { .fd = listener, .events = POLLIN };
	int r = (int)psc_tracee_request(PTRACE_SYSCALL, tracee->tid, 0, 0);
	int status;

	if (r < 0)
		return r;
	do {
		r = (int)psc_sys(SYS_poll, &readable, 1, 5);
		if (r > 0) {
			memset(&notif, 0, sizeof(notif));
			r = (int)psc_sys(SYS_ioctl, listener, SECCOMP_IOCTL_NOTIF_RECV, &notif);
			if (r == 0) {
				resp.id = notif.id;
				r = (int)psc_sys(SYS_ioctl, listener, SECCOMP_IOCTL_NOTIF_SEND, &resp);
				break;
			}
		}
	} while (psc_now_ns() < visit->deadline);
	r = psc_visit_wait(visit, tracee->tid, &status);
	if (r < 0 || !WIFSTOPPED(status))
		return r < 0 ? r : -ESRCH;
	return psc_tracee_resume(visit, tracee, site, PSC_STOP_TRAP);
}

int psc_tracee_enter_call(struct psc_visit *visit, struct psc_tracee *tracee, const struct psc_site *site, long nr, int n,
			  const uint64_t *args)
{
	struct psc_regs regs;
	int r = psc_tracee_resume(visit, tracee, site, PSC_STOP_SYSCALL);

	if (r == 0)
		r = psc_tracee_get_regs(tracee, &regs);
	return r == 0 && psc_regs_pin(&regs, nr, n, args) ? psc_tracee_set_regs(tracee, &regs) : r;
}

int psc_tracee_enter_seccomp(struct psc_visit *visit, struct psc_tracee *tracee, const struct psc_site *site)
{
	const struct psc_abi *abi = psc_abi_of(&tracee->regs);
	const uint64_t prctl_args[2] = { PR_SET_NO_NEW_PRIVS, 1 };
	const uint64_t seccomp_args[3] = { SECCOMP_SET_MODE_FILTER, site->flags, site->fprog };
	int r = 0;

	if (site->no_new_privs) {
		r = psc_tracee_enter_call(visit, tracee, site, abi->prctl, 2, prctl_args);
		if (r == 0)
			r = psc_tracee_resume(visit, tracee, site, PSC_STOP_SYSCALL);
	}
	return r < 0 ? r : psc_tracee_enter_call(visit, tracee, site, abi->seccomp, 3, seccomp_args);
}

/* From the entry of a call. */
static int run_to_end_of_call(struct psc_visit *visit, struct psc_tracee *tracee, const struct psc_site *site,
			      int listener, long *ret_result)
{
	struct psc_regs regs;
	int r;

	if (listener >= 0)
		r = continue_notified(visit, tracee, site, listener);
	else
		r = psc_tracee_resume(visit, tracee, site, PSC_STOP_TRAP);
	if (r < 0)
		return r;
	r = psc_tracee_get_regs(tracee, &regs);
	if (r < 0)
		return r;
	*ret_result = psc_regs_result(&regs);
	return 0;
}

int psc_tracee_call(struct psc_visit *visit, struct psc_tracee *tracee, const struct psc_site *site, int listener,
		    long nr, const uint64_t args[6], long *ret_result)
{
	struct psc_regs regs = tracee->regs;
	int r;

	psc_regs_call(&regs, site->call, nr, args);
	r = psc_tracee_set_regs(tracee, &regs);
	if (r == 0)
		r = psc_tracee_enter_call(visit, tracee, site, nr, 6, args);
	return r < 0 ? r : run_to_end_of_call(visit, tracee, site, listener, ret_result);
}

int psc_tracee_run_main(struct psc_visit *visit, struct psc_tracee *tracee, const struct psc_site *site, long *ret_result)
{
	struct psc_regs regs = tracee->regs;
	int r;

	psc_regs_enter(&regs, site->main);
	r = psc_tracee_set_regs(tracee, &regs);
	if (r == 0)
		r = psc_tracee_enter_seccomp(visit, tracee, site);
	return r < 0 ? r : run_to_end_of_call(visit, tracee, site, -1, ret_result);
}

int psc_tracee_restore(struct psc_visit *visit, struct psc_tracee *tracee)
{
	int r = 0, masked = 0;

	if (tracee->state != PSC_TRACEE_STOPPED)
		return 0;
	if (tracee->masked) {
		masked = (int)psc_tracee_request(PTRACE_SETSIGMASK, tracee->tid, 8, (uint64_t)&tracee->sigmask);
		tracee->masked = masked < 0;
	}
	if (tracee->injected)
		r = set_regs(tracee, &tracee->regs);
	tracee->injected &= r < 0;
	return masked < 0 ? masked : r;
}
