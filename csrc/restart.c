/* restart.c - let a stopped thread go on with a call that resumes by restart_syscall(2).
 *
 * A ptrace-stop interrupts nanosleep, clock_nanosleep, poll and timed futex waits with
 * -ERESTART_RESTARTBLOCK. The kernel then has the thread call restart_syscall, which passes
 * all filters of the thread, and many filters forget that call. The interruption is ours, so
 * the thread must not pay for it:
 *
 *   EVENT_STOP     PTRACE_SYSCALL, up to the entry of restart_syscall
 *   syscall-entry  PTRACE_O_SUSPEND_SECCOMP, then PTRACE_SYSCALL: the thread sleeps again
 *   asleep         the tracer ends. Its exit detaches without a stop (PTRACE_DETACH needs
 *                  one) and ends the suspension (exit_ptrace() in kernel/ptrace.c)
 *   syscall-exit   the call ended before the tracer did: end the suspension, detach
 *
 * The invariant: filters are suspended from the entry of restart_syscall to its exit only.
 * The thread executes no instruction of its own meanwhile, and a signal is delivered after
 * the exit-stop, without suspension.
 *
 * Not covered: an ignored signal (SIGCHLD, SIGWINCH by default) wakes a traced thread. One that
 * comes between the last look at the sleeping thread and the tracer's exit, some 20
 * microseconds, has the thread call restart_syscall under its filters. The same happens if the
 * injector is killed between the first stop of such a thread and its second sleep (some 100
 * microseconds, plus the injection), because the kernel detaches then.
 */
#define _GNU_SOURCE
#include "attach.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/ptrace.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define SYSCALL_STOP (SIGTRAP | 0x80)
#define MAX_FILTERS (32768 / 4) /* each counts 4 instructions of the path's limit */
#define LET_GO_NS 1000000000	/* for a thread to sleep again */
#define FIRST_USER_NAMESPACE 0xEFFFFFFDU /* PROC_USER_INIT_INO of linux/proc_ns.h */

bool psc_restart_is_pending(const struct psc_regs *regs)
{
	return psc_regs_syscall(regs) >= 0 && psc_regs_result(regs) == -PSC_ERESTART_RESTARTBLOCK;
}

static uint32_t action_of(const struct sock_filter *insns, size_t len, const struct seccomp_data *data)
{
	struct psc_decision decision;

	return psc_program_run(insns, len, data, &decision) < 0 ? SECCOMP_RET_KILL_PROCESS :
								  decision.ret & SECCOMP_RET_ACTION_FULL;
}

/* A call that is notified is not broken by the filter: the supervisor may continue it. */
static bool breaks(uint32_t action)
{
	return action != SECCOMP_RET_ALLOW && action != SECCOMP_RET_LOG && action != SECCOMP_RET_USER_NOTIF;
}

static uint32_t restart_action(const struct sock_filter *insns, size_t len, const struct psc_regs *regs)
{
	const struct psc_abi *abi = psc_abi_of(regs);
	struct seccomp_data data = { (int)psc_regs_restart_nr(regs), abi->audit_arch, psc_regs_ip(regs), { 0 } };

	for (int i = 0; i < 6; i++)
		data.args[i] = psc_regs_arg(regs, i);
	return action_of(insns, len, &data);
}

/* Does a filter of the thread forbid or notify the call? A single filter that cannot be read is taken
 * for one that forbids it. Reading takes the same rights as suspending. */
static bool is_forbidden(pid_t tid, const struct psc_regs *regs)
{
	const size_t size = PSC_MAX_INSNS * sizeof(struct sock_filter);
	long map = psc_sys(SYS_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	uint32_t action = SECCOMP_RET_ALLOW;
	bool forbidden = false;

	if (map < 0 && map > -4096)
		return true;
	for (long i = 0; i < MAX_FILTERS && !forbidden; i++) {
		long len = psc_sys(SYS_ptrace, PTRACE_SECCOMP_GET_FILTER, tid, i, map);

		/* The last one, a thread without any, or nothing that this process may read or suspend. */
		if (len == -ENOENT || len == -EINVAL || len == -EACCES || len == -EIO)
			break;
		if (len > 0)
			action = restart_action((const struct sock_filter *)map, (size_t)len, regs);
		forbidden = len <= 0 || (action != SECCOMP_RET_ALLOW && action != SECCOMP_RET_LOG);
	}
	psc_sys(SYS_munmap, map, size);
	return forbidden;
}

int psc_stop_signal(int status)
{
	return status >> 16 == 0 && WSTOPSIG(status) != SYSCALL_STOP ? WSTOPSIG(status) : 0;
}

static bool is_group_stop(int status)
{
	return status >> 16 == PTRACE_EVENT_STOP && WSTOPSIG(status) != SIGTRAP;
}

static enum psc_restart go_on(pid_t tid, long how, int signal, enum psc_restart as)
{
	return psc_tracee_go_on(how, tid, signal) < 0 ? PSC_RESTART_LOST : as;
}

static enum psc_restart step_at_syscall(pid_t tid, const struct psc_regs *regs, unsigned long options)
{
	struct ptrace_syscall_info info = { .op = PTRACE_SYSCALL_INFO_NONE };

	psc_tracee_request(PTRACE_GET_SYSCALL_INFO, tid, sizeof(info), (uint64_t)&info);
	if (info.op == PTRACE_SYSCALL_INFO_EXIT) {
		/* Its filters must not stay suspended: a detach ends that, too. */
		if (psc_tracee_request(PTRACE_SETOPTIONS, tid, 0, options) < 0) {
			psc_tracee_detach(tid, 0);
			return PSC_RESTART_LOST;
		}
		return psc_restart_is_pending(regs) ? go_on(tid, PTRACE_SYSCALL, 0, PSC_RESTART_UNDER_WAY) : PSC_RESTART_NONE;
	}
	if (info.op != PTRACE_SYSCALL_INFO_ENTRY || psc_regs_syscall(regs) != psc_regs_restart_nr(regs) ||
	    psc_tracee_request(PTRACE_SETOPTIONS, tid, 0, options | PTRACE_O_SUSPEND_SECCOMP) < 0)
		return PSC_RESTART_NONE;
	return go_on(tid, PTRACE_SYSCALL, 0, PSC_RESTART_ENTERED);
}

enum psc_restart psc_restart_step(pid_t tid, int status, unsigned long options)
{
	const struct psc_tracee tracee = { .tid = tid };
	int signal = psc_stop_signal(status);
	struct psc_regs regs;

	if (is_group_stop(status) || psc_tracee_get_regs(&tracee, &regs) < 0)
		return PSC_RESTART_NONE;
	if (status >> 16 == 0 && WSTOPSIG(status) == SYSCALL_STOP)
		return step_at_syscall(tid, &regs, options);
	if (!psc_restart_is_pending(&regs) || !is_forbidden(tid, &regs))
		return PSC_RESTART_NONE;
	psc_tracee_request(PTRACE_SETOPTIONS, tid, 0, options);
	if (!signal)
		return go_on(tid, PTRACE_SYSCALL, 0, PSC_RESTART_UNDER_WAY);
	/* If it is ignored, the thread restarts the call; if a handler runs, the call ends with
	 * EINTR. The interrupt stops the thread again before it is in user mode. */
	psc_tracee_request(PTRACE_INTERRUPT, tid, 0, 0);
	return go_on(tid, PTRACE_CONT, signal, PSC_RESTART_UNDER_WAY);
}

/* After its entry-stop the thread sleeps interruptibly only inside the call: behind the
 * check of filters. */
static bool is_asleep(pid_t tid)
{
	return psc_task_letter(tid) == 'S';
}

/* The next stop or death of the thread; with asleep_too, or that it sleeps. 0: *ret_status
 * has it. 1: it sleeps. -ETIMEDOUT, or -errno of wait4(). */
static int wait_for(pid_t tid, bool asleep_too, uint64_t deadline, int *ret_status)
{
	const struct timespec nap = { 0, 20000 };

	for (unsigned int tries = 0;; tries++) {
		long r = psc_sys(SYS_wait4, tid, ret_status, __WALL | __WNOTHREAD | WNOHANG, 0);

		if (r == tid)
			return 0;
		if (r < 0 && r != -EINTR)
			return (int)r;
		if (asleep_too && is_asleep(tid))
			return 1;
		if (psc_now_ns() > deadline)
			return -ETIMEDOUT;
		if (tries < 8)
			psc_sys(SYS_sched_yield);
		else
			psc_sys(SYS_nanosleep, &nap, 0);
	}
}

void psc_restart_let_go_from(struct psc_tracee *tracee, int status)
{
	uint64_t deadline = psc_now_ns() + LET_GO_NS;

	for (;;) {
		enum psc_restart did = psc_restart_step(tracee->tid, status, PSC_SEIZE_OPTIONS);
		int r;

		if (did == PSC_RESTART_NONE) {
			psc_tracee_detach(tracee->tid, psc_stop_signal(status));
			return;
		}
		if (did == PSC_RESTART_LOST)
			return;
		r = wait_for(tracee->tid, did == PSC_RESTART_ENTERED, deadline, &status);
		if (r == 0 && !WIFSTOPPED(status)) {
			tracee->state = PSC_TRACEE_DEAD;
			return;
		}
		if (r != 0) {
			tracee->state = PSC_TRACEE_LEFT;
			return;
		}
	}
}

void psc_restart_let_go(struct psc_visit *visit)
{
	const int interrupted = PTRACE_EVENT_STOP << 16 | SIGTRAP << 8 | 0x7f;

	for (size_t i = 0; i < visit->n; i++)
		if (visit->tracees[i].state == PSC_TRACEE_STOPPED && !visit->tracees[i].group_stop &&
		    psc_restart_is_pending(&visit->tracees[i].regs))
			psc_restart_let_go_from(&visit->tracees[i], interrupted);
}

/* ---------------------------------------------------------- before the stop */

/* ptrace(2): CAP_SYS_ADMIN in the first user namespace and no filter of one's own. The
 * kernel tells only a tracer, so the conditions are looked at one by one. */
bool psc_restart_may_suspend(void)
{
	pid_t tid = (pid_t)psc_sys(SYS_gettid);
	struct psc_task_state self;
	struct stat ns;
	char text[8192];
	long n = psc_read_proc(tid, "status", text, sizeof(text));

	return n > 0 && psc_query_parse_status(text, (size_t)n, &self) == 0 && self.seccomp == SECCOMP_MODE_DISABLED &&
	       (self.cap_effective >> 21 & 1) &&
	       psc_sys(SYS_newfstatat, AT_FDCWD, "/proc/thread-self/ns/user", &ns, 0) == 0 && ns.st_ino == FIRST_USER_NAMESPACE &&
	       /* -EINVAL without CONFIG_CHECKPOINT_RESTORE; a thread cannot seize itself in any case */
	       psc_sys(SYS_ptrace, PTRACE_SEIZE, tid, 0, PTRACE_O_SUSPEND_SECCOMP) != -EINVAL;
}

/* Is a thread that runs in a call that a ptrace-stop makes resume by restart_syscall?
 * "number arguments stack instruction" of proc_pid_syscall(5), or "running". */
static bool would_restart(pid_t tid, const struct psc_abi *abi)
{
	char text[256], *pos;
	uint64_t args[6];
	long nr;

	if (psc_read_proc(tid, "syscall", text, sizeof(text)) <= 0 || text[0] < '0' || text[0] > '9')
		return false;
	nr = strtol(text, &pos, 10);
	for (int i = 0; i < 6; i++)
		args[i] = strtoull(pos, &pos, 16);
	return psc_abi_restarts(abi, nr, args);
}

bool psc_restart_is_denied(const struct sock_filter *insns, size_t len, const struct psc_abi *abi)
{
	struct seccomp_data data = { abi->restart_syscall, abi->audit_arch, 0, { 0 } };

	return breaks(action_of(insns, len, &data));
}

static int check_thread(struct psc_job *job, pid_t tid, const struct psc_abi *denied)
{
	struct psc_task_state task;
	char text[8192];
	long n = psc_read_proc(tid, "status", text, sizeof(text));

	if (n < 0 && n != -ESRCH && n != -ENOENT)
		return psc_job_refuse(job, PSC_REFUSED_INJECTOR, (int)n);
	if (n <= 0 || psc_query_parse_status(text, (size_t)n, &task) < 0 || !psc_task_alive(&task))
		return 0;
	job->result->tid = tid;
	if (task.seccomp == SECCOMP_MODE_FILTER)
		return psc_job_refuse(job, PSC_REFUSED_FILTERED, -EACCES);
	if (denied && would_restart(tid, denied))
		return psc_job_refuse(job, PSC_REFUSED_RESTART, -EACCES);
	job->result->tid = 0;
	return 0;
}

int psc_restart_check(struct psc_job *job, const struct psc_abi *denied)
{
	char buffer[8192] __attribute__((aligned(8)));
	int r = 0;
	long n;

	if (job->visit.only)
		return check_thread(job, job->visit.only, denied);
	psc_sys(SYS_lseek, job->visit.tasks, 0, SEEK_SET);
	while (r == 0 && (n = psc_sys(SYS_getdents64, job->visit.tasks, buffer, sizeof(buffer))) > 0) {
		const struct dirent64 *entry;

		for (long at = 0; r == 0 && at < n; at += entry->d_reclen) {
			pid_t tid;

			entry = (const struct dirent64 *)(buffer + at);
			tid = (pid_t)strtol(entry->d_name, NULL, 10);
			if (tid > 0)
				r = check_thread(job, tid, denied);
		}
	}
	return r;
}

int psc_restart_check_stopped(struct psc_job *job)
{
	for (size_t i = 0; !job->options->break_calls && i < job->visit.n; i++) {
		const struct psc_tracee *tracee = &job->visit.tracees[i];

		if (tracee->state != PSC_TRACEE_STOPPED || !psc_restart_is_pending(&tracee->regs) ||
		    !breaks(restart_action(job->options->insns, job->options->len, &tracee->regs)))
			continue;
		job->result->tid = tracee->tid;
		/* In a group-stop it cannot go on now: SIGCONT has it call restart_syscall later. */
		if (tracee->group_stop)
			return psc_job_refuse(job, PSC_REFUSED_RESTART, -EAGAIN);
		if (psc_sys(SYS_ptrace, PTRACE_SETOPTIONS, tracee->tid, 0,
			    PSC_SEIZE_OPTIONS | job->visit.options | PTRACE_O_SUSPEND_SECCOMP) < 0)
			return psc_job_refuse(job, PSC_REFUSED_RESTART, -EACCES);
		job->result->tid = 0;
	}
	return 0;
}
