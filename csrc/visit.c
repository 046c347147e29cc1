/* visit.c - stop every thread of a process, and let it go again.
 *
 * The invariant: while a visit is stopped, no thread of the process can run, so
 * none can be born. Threads are seized (no signal is sent, a group-stop stays
 * one) and interrupted; new ones are traced from birth through TRACECLONE; the
 * list is read again until a whole reading finds nobody unknown.
 *
 * What can stand between a seized thread and its stop:
 *   a signal    is delivered, as it would have been, and the thread interrupted
 *               again: every ptrace-stop clears a pending interrupt
 *   an exec     other threads die, the survivor takes the leader's number
 *   death       waits, reaps, forgets
 *   a sleep that nothing interrupts (D state)   the deadline passes, all go free
 */
#define _GNU_SOURCE
#include "tracee.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/ptrace.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#define PF_IO_WORKER 0x10 /* linux/sched.h: io_uring */
#define PF_USER_WORKER 0x4000 /* linux/sched.h: vhost too */
#define WAIT_TRIES 3
#define INTERRUPTED (PTRACE_EVENT_STOP << 16 | SIGTRAP << 8 | 0x7f) /* as wait(2) tells it */

struct psc_tracee *psc_visit_find(struct psc_visit *visit, pid_t tid)
{
	for (size_t i = 0; i < visit->n; i++)
		if (visit->tracees[i].tid == tid)
			return &visit->tracees[i];
	return NULL;
}

int psc_visit_add(struct psc_visit *visit, pid_t tid)
{
	if (visit->n == visit->size) {
		size_t size = visit->size ? visit->size * 4 : 64;
		long map;

		if (visit->size)
			map = psc_sys(SYS_mremap, visit->tracees, visit->size * sizeof(*visit->tracees),
				      size * sizeof(*visit->tracees), MREMAP_MAYMOVE);
		else
			map = psc_sys(SYS_mmap, 0, size * sizeof(*visit->tracees), PROT_READ | PROT_WRITE,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1);
		if (map < 0 && map > -4096)
			return -ENOMEM;
		visit->tracees = (struct psc_tracee *)map;
		visit->size = size;
	}
	visit->tracees[visit->n++] = (struct psc_tracee){ .tid = tid, .filters = -1 };
	return 0;
}

/* Reaps a thread if it is dead. The kernel tells a tracer of stops whatever it is
 * asked for (wait_task_stopped() in kernel/exit.c), and a stop that was told is
 * not told again: so look first, and take only a death. */
static bool reap_if_dead(pid_t tid)
{
	siginfo_t seen = { 0 };

	if (psc_sys(SYS_waitid, P_PID, tid, &seen, WEXITED | WNOHANG | WNOWAIT | __WALL, 0) < 0 || seen.si_pid != tid)
		return false;
	if (seen.si_code != CLD_EXITED && seen.si_code != CLD_KILLED && seen.si_code != CLD_DUMPED)
		return false;
	return psc_sys(SYS_waitid, P_PID, tid, &seen, WEXITED | WNOHANG | __WALL, 0) == 0;
}

/* A thread that executes another program waits for its siblings to be reaped, and whoever
 * is waited for here may wait for it: its first thread is told of by nobody before. */
static void reap_others(struct psc_visit *visit, pid_t tid)
{
	for (size_t i = 0; i < visit->n; i++) {
		struct psc_tracee *tracee = &visit->tracees[i];

		if (tracee->tid != tid && tracee->state != PSC_TRACEE_DEAD && reap_if_dead(tracee->tid))
			tracee->state = PSC_TRACEE_DEAD;
	}
}

int psc_visit_wait(struct psc_visit *visit, pid_t tid, int *ret_status)
{
	/* With timers of our own a blocking wait is woken every few milliseconds
	 * to look at the clock; without, look and nap. */
	int flags = __WALL | __WNOTHREAD | (visit->own_signals ? 0 : WNOHANG);
	const struct timespec nap = { 0, 50000 };
	int failures = 0;

	for (unsigned int naps = 1;; naps++) {
		long r = psc_sys(SYS_wait4, tid, ret_status, flags, 0);

		if (r == tid)
			return 0;
		/* A thread that is taken for dead by mistake would stay stopped, so the failure is confirmed. */
		if (r < 0 && r != -EINTR) {
			if (++failures == WAIT_TRIES)
				return (int)r;
			continue;
		}
		if (psc_now_ns() > visit->deadline) {
			visit->blamed = tid;
			return -ETIMEDOUT;
		}
		if (r == 0)
			psc_sys(SYS_nanosleep, &nap, 0);
		if (r < 0 || naps % 100 == 0)
			reap_others(visit, tid);
	}
}

/* ------------------------------------------------------------------ frozen */

long psc_read_proc(pid_t pid, const char *name, char *text, size_t size)
{
	char path[32];
	long fd, n;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	fd = psc_sys(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return fd;
	n = psc_sys(SYS_read, fd, text, size - 1);
	psc_sys(SYS_close, fd);
	text[n > 0 ? n : 0] = '\0';
	return n;
}

char psc_task_letter(pid_t tid)
{
	char text[512], *name_end;

	if (psc_read_proc(tid, "stat", text, sizeof(text)) <= 0)
		return 0;
	name_end = strrchr(text, ')');
	return name_end && name_end[1] == ' ' ? name_end[2] : 0;
}

/* No file tells this of a task itself. A frozen one sleeps interruptibly in a function where
 * otherwise only stopped ones are. Where the kernel names no functions none seems frozen. */
bool psc_visit_is_frozen(pid_t pid)
{
	char text[512];

	if (psc_read_proc(pid, "wchan", text, sizeof(text)) <= 0 ||
	    (strcmp(text, "get_signal") != 0 && strcmp(text, "do_freezer_trap") != 0))
		return false;
	return psc_task_letter(pid) == 'S';
}

/* The target chooses the name of a thread, but not its flags. Workers bear these names if
 * the target has not changed them; the flags take longer to read. */
bool psc_visit_is_worker(pid_t tid)
{
	uint64_t start_time, flags;
	char text[1024];
	long n = psc_read_proc(tid, "comm", text, sizeof(text));

	if (n <= 0 || (strncmp(text, "iou-", 4) != 0 && strncmp(text, "vhost-", 6) != 0))
		return false;
	n = psc_read_proc(tid, "stat", text, sizeof(text));
	return n > 0 && psc_query_parse_stat(text, (size_t)n, &start_time, &flags) == 0 &&
	       (flags & (PF_IO_WORKER | PF_USER_WORKER));
}

/* ------------------------------------------------------------------- seize */

/* Why the kernel would not let us seize a thread. */
static int seize_refused(struct psc_visit *visit, pid_t tid, int error)
{
	struct psc_task_state task;
	char text[8192], path[64];
	long fd, n;

	if (error == -ESRCH)
		return 0;
	snprintf(path, sizeof(path), "%d/status", tid);
	fd = psc_sys(SYS_openat, visit->tasks, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return fd == -ENOENT ? 0 : error;
	n = psc_sys(SYS_read, fd, text, sizeof(text));
	psc_sys(SYS_close, fd);
	if (n <= 0)
		return n == 0 || n == -ESRCH ? 0 : error;
	if (psc_query_parse_status(text, (size_t)n, &task) < 0)
		return error;
	if (!psc_task_alive(&task))
		return 0;
	if (task.tracer == psc_sys(SYS_gettid))
		return 1;
	visit->blamed = tid;
	visit->other_tracer = task.tracer;
	return task.tracer ? -EBUSY : error;
}

/* 1: it is ours now. 0: it is dead or dying. */
static int seize(struct psc_visit *visit, pid_t tid)
{
	long r;

	if (!visit->since)
		visit->since = psc_now_ns();
	__atomic_store_n(&visit->seizing, tid, __ATOMIC_RELAXED);
	r = psc_sys(SYS_ptrace, PTRACE_SEIZE, tid, 0, PSC_SEIZE_OPTIONS);
	__atomic_store_n(&visit->seizing, 0, __ATOMIC_RELAXED);
	return r == 0 ? 1 : seize_refused(visit, tid, (int)r);
}

static int add_worker(struct psc_visit *visit, pid_t tid, struct psc_tracee *known)
{
	int r = known ? 0 : psc_visit_add(visit, tid);

	if (r == 0)
		psc_visit_find(visit, tid)->state = PSC_TRACEE_WORKER;
	return r;
}

/* known: its number was that of a thread that is dead. A thread that executed another
 * program has the first one's number from then on. */
static int seize_new(struct psc_visit *visit, pid_t tid, struct psc_tracee *known)
{
	int r;

	if (visit->workers && tid != visit->tgid && psc_visit_is_worker(tid))
		return add_worker(visit, tid, known);
	r = seize(visit, tid);
	if (r <= 0)
		return r;
	if (known) {
		*known = (struct psc_tracee){ .tid = tid, .filters = -1 };
		visit->execed = true;
	} else {
		r = psc_visit_add(visit, tid);
	}
	if (r < 0) {
		visit->blamed = tid;
		return r;
	}
	psc_tracee_request(PTRACE_INTERRUPT, tid, 0, 0);
	return 1;
}

/* One reading of the process's threads: seizes who is unknown, returns how many
 * that were. Readings keep the order of threads, hence the cursor. */
static int seize_all_new(struct psc_visit *visit)
{
	char buffer[8192] __attribute__((aligned(8)));
	int found = 0;
	size_t cursor = 0;
	long n;

	if (visit->only)
		return psc_visit_find(visit, visit->only) ? 0 : seize_new(visit, visit->only, NULL);
	psc_sys(SYS_lseek, visit->tasks, 0, SEEK_SET);
	while ((n = psc_sys(SYS_getdents64, visit->tasks, buffer, sizeof(buffer))) > 0) {
		const struct dirent64 *entry;

		for (long at = 0; at < n; at += entry->d_reclen) {
			struct psc_tracee *known;
			pid_t tid;
			int r;

			entry = (const struct dirent64 *)(buffer + at);
			tid = (pid_t)strtol(entry->d_name, NULL, 10);
			if (tid <= 0)
				continue;
			if (cursor < visit->n && visit->tracees[cursor].tid == tid)
				known = &visit->tracees[cursor++];
			else
				known = psc_visit_find(visit, tid);
			if (known && known->state == PSC_TRACEE_WORKER ? psc_visit_is_worker(tid) :
									 known && known->state != PSC_TRACEE_DEAD)
				continue;
			r = seize_new(visit, tid, known);
			if (r < 0)
				return r;
			found += r;
			if (!known)
				cursor = visit->n;
		}
	}
	return n < 0 ? (int)n : found;
}

/* -------------------------------------------------------------------- stop */

/* EINTR from a call that handles no signal: man 7 signal lists those that a stop
 * breaks off. They took nothing, so they are made again; with a time-out behind a
 * pointer that would begin anew they are left as a stop leaves them. */
static void mend_interrupted(struct psc_tracee *tracee)
{
	const struct psc_abi *abi = psc_abi_of(&tracee->regs);
	long nr = psc_regs_syscall(&tracee->regs);
	bool mend;

	if (nr < 0 || psc_regs_result(&tracee->regs) != -EINTR)
		return;
	mend = nr == abi->epoll_wait || nr == abi->epoll_pwait || nr == abi->semop ||
	       (nr == abi->rt_sigtimedwait && psc_regs_arg(&tracee->regs, 2) == 0) ||
	       (nr == abi->semtimedop && psc_regs_arg(&tracee->regs, 3) == 0);
	if (!mend)
		return;
	psc_regs_restart(&tracee->regs);
	if (psc_tracee_set_regs(tracee, &tracee->regs) < 0)
		tracee->state = PSC_TRACEE_DEAD;
}

static void forget_exec_victim(struct psc_visit *visit, pid_t tid)
{
	unsigned long former = 0;
	struct psc_tracee *other;

	psc_tracee_request(PTRACE_GETEVENTMSG, tid, 0, (uint64_t)&former);
	other = (pid_t)former == tid ? NULL : psc_visit_find(visit, (pid_t)former);
	if (other)
		other->state = PSC_TRACEE_DEAD;
	visit->execed = true;
}

/* A thread was born: it is traced already. A process that clone() made with
 * another exit signal is none of our threads and goes free when it stops, unless
 * who visits watches forks. */
static int adopt_newborn(struct psc_visit *visit, pid_t parent)
{
	unsigned long tid = 0;
	char name[16];
	int status;

	psc_tracee_request(PTRACE_GETEVENTMSG, parent, 0, (uint64_t)&tid);
	if (tid == 0 || psc_visit_find(visit, (pid_t)tid))
		return 0;
	snprintf(name, sizeof(name), "%d", (int)tid);
	if (!visit->only && psc_sys(SYS_faccessat, visit->tasks, name, F_OK) == 0)
		return psc_visit_add(visit, (pid_t)tid);
	if (visit->options & PTRACE_O_TRACEFORK)
		return 0;
	if (psc_visit_wait(visit, (pid_t)tid, &status) == 0 && WIFSTOPPED(status))
		psc_tracee_detach((pid_t)tid, 0);
	return 0;
}

void psc_visit_stop_again(struct psc_visit *visit, pid_t tid, int status)
{
	int signal = psc_stop_signal(status);

	psc_tracee_request(PTRACE_INTERRUPT, tid, 0, 0);
	/* A syscall-stop: psc_restart_step() had the thread begin a call, which it must end so. */
	if (status >> 16 == 0 && !signal &&
	    psc_restart_step(tid, status, PSC_SEIZE_OPTIONS | visit->options) != PSC_RESTART_NONE)
		return;
	/* A thread that had to be detached is told as dead: no wait for it succeeds. */
	(void)!psc_tracee_go_on(PTRACE_CONT, tid, signal);
}

/* Wait until one thread is stopped by our interrupt or in a group-stop, or dead. */
static int stop_one(struct psc_visit *visit, size_t index)
{
	pid_t tid = visit->tracees[index].tid;

	while (visit->tracees[index].state == PSC_TRACEE_RUNNING) {
		struct psc_tracee *tracee;
		int status, event, r;

		r = psc_visit_wait(visit, tid, &status);
		if (r < 0 && r != -ECHILD)
			return r;
		tracee = &visit->tracees[index];
		if (r == -ECHILD || !WIFSTOPPED(status)) {
			tracee->state = PSC_TRACEE_DEAD;
			return 0;
		}
		event = status >> 16;
		if (event == PTRACE_EVENT_STOP) {
			tracee->group_stop = WSTOPSIG(status) != SIGTRAP;
			tracee->state = psc_tracee_get_regs(tracee, &tracee->regs) < 0 ? PSC_TRACEE_DEAD : PSC_TRACEE_STOPPED;
			if (tracee->state == PSC_TRACEE_STOPPED)
				mend_interrupted(tracee);
			return 0;
		}
		if (event == PTRACE_EVENT_EXEC)
			forget_exec_victim(visit, tid);
		else if (event == PTRACE_EVENT_CLONE)
			r = adopt_newborn(visit, tid);
		psc_visit_stop_again(visit, tid, status);
		if (r < 0)
			return r;
	}
	return 0;
}

/* A thread that executes another program holds the lock that PTRACE_SEIZE takes, too: who
 * waits in a seize of one thread must be able to reap another. So a timer's signal breaks
 * the wait and its handler reaps the dead. */
static void reap_while_seizing(int sig, siginfo_t *info, void *context)
{
	struct psc_visit *visit = info->si_value.sival_ptr;

	if (__atomic_load_n(&visit->seizing, __ATOMIC_RELAXED))
		reap_others(visit, 0);
}

/* Blocking waits are woken every 5 ms. */
int psc_visit_start_timer(struct psc_visit *visit)
{
	struct sigaction action = { .sa_sigaction = reap_while_seizing, .sa_flags = SA_SIGINFO };
	struct sigevent event = {
		.sigev_notify = SIGEV_SIGNAL,
		.sigev_signo = SIGALRM,
		.sigev_value.sival_ptr = visit,
	};
	const struct itimerspec every = { { 0, 5000000 }, { 0, 5000000 } };
	uint64_t mask = ~(1ULL << (SIGALRM - 1));
	long r;

	if (!visit->own_signals)
		return 0;
	if (sigaction(SIGALRM, &action, NULL) < 0)
		return -EINVAL;
	r = psc_sys(SYS_timer_create, CLOCK_MONOTONIC, &event, &visit->timer);
	if (r == 0)
		r = psc_sys(SYS_timer_settime, visit->timer, 0, &every, 0);
	if (r == 0)
		r = psc_sys(SYS_rt_sigprocmask, SIG_SETMASK, &mask, 0, sizeof(mask));
	return (int)r;
}

static int stop_all(struct psc_visit *visit)
{
	bool moving;

	do {
		int found = seize_all_new(visit);

		if (found < 0)
			return found;
		/* Whoever ran during that look may have been making a thread. */
		moving = found > 0;
		for (size_t i = 0; i < visit->n; i++) {
			int r;

			moving |= visit->tracees[i].state == PSC_TRACEE_RUNNING;
			r = stop_one(visit, i);
			if (r < 0)
				return r;
		}
		if (moving && psc_now_ns() > visit->deadline)
			return -ETIMEDOUT;
	} while (moving && !visit->only);
	return 0;
}

int psc_visit_begin_stop(struct psc_visit *visit)
{
	int r = psc_visit_start_timer(visit);

	if (r == 0)
		r = seize_all_new(visit);
	psc_visit_stop_timer(visit);
	return r < 0 ? r : 0;
}

int psc_visit_stop(struct psc_visit *visit)
{
	int r = psc_visit_start_timer(visit);

	return r < 0 ? r : stop_all(visit);
}

void psc_visit_stop_timer(struct psc_visit *visit)
{
	if (visit->own_signals)
		psc_sys(SYS_timer_delete, visit->timer);
}

void psc_visit_interrupt(struct psc_visit *visit)
{
	for (size_t i = 0; i < visit->n; i++)
		if (visit->tracees[i].state == PSC_TRACEE_RUNNING)
			psc_tracee_request(PTRACE_INTERRUPT, visit->tracees[i].tid, 0, 0);
}

int psc_visit_resume(struct psc_visit *visit)
{
	int r = 0;

	for (size_t i = 0; i < visit->n; i++) {
		struct psc_tracee *tracee = &visit->tracees[i];
		enum psc_restart did = PSC_RESTART_NONE;
		int failed;

		if (tracee->state != PSC_TRACEE_STOPPED)
			continue;
		tracee->state = PSC_TRACEE_RUNNING;
		if (!tracee->group_stop)
			did = psc_restart_step(tracee->tid, INTERRUPTED, PSC_SEIZE_OPTIONS | visit->options);
		failed = did == PSC_RESTART_LOST ? -EIO : 0;
		if (did == PSC_RESTART_NONE)
			failed = psc_tracee_go_on(tracee->group_stop ? PTRACE_LISTEN : PTRACE_CONT, tracee->tid, 0);
		if (failed < 0)
			r = failed;
	}
	return r;
}

/* ----------------------------------------------------------------- release */

/* Threads that never stopped cannot be detached; the injector's exit frees
 * them, and with it their pending interrupt. */
void psc_visit_release(struct psc_visit *visit)
{
	if (visit->stop_signal)
		psc_sys(SYS_kill, visit->tgid, SIGSTOP);
	for (size_t i = 0; i < visit->n; i++) {
		const struct psc_tracee *tracee = &visit->tracees[i];

		if (tracee->state == PSC_TRACEE_STOPPED && (tracee->group_stop || !psc_restart_is_pending(&tracee->regs)))
			psc_tracee_detach(tracee->tid, 0);
	}
	psc_restart_let_go(visit);
}

void psc_visit_destroy(struct psc_visit *visit)
{
	if (visit->tracees)
		psc_sys(SYS_munmap, visit->tracees, visit->size * sizeof(*visit->tracees));
	visit->tracees = NULL;
	visit->n = visit->size = 0;
}
