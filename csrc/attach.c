/* attach.c - put a program into another process.
 *
 *   manager                        injector
 *   look at the target in /proc
 *   find room, try our rights
 *   clone ------------------------ seize and stop all threads
 *                                  check what only holds while they are stopped
 *                                  write code and program, run main     <- commit
 *                                  fetch the listener, close it there
 *                                  restore, release
 *   wait, verify in /proc <------- exit
 *
 * The injector is a process of its own that shares our memory and our fds:
 *   - the SIGKILL of the manager, or of its process group, does not reach it: it
 *     finishes, or lets go if it has not committed. Should it be killed itself,
 *     the target finishes alone (inject.c). The rest of risk is one instruction
 *     wide and needs three things at once: earlier filters that kill the injected
 *     call, suspended for us, and the injector killed in between.
 *   - stops of the target are reported to it alone: no other thread
 *     of the manager that waits for children can steal them.
 *   - it may have timers and signal handlers, which the manager must not lose.
 * Under YAMA's scope 1 only an ancestor may trace; there a thread of the manager
 * does the same work, without its first protection.
 */
#define _GNU_SOURCE
#include "attach.h"

#include <elf.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#define STACK_SIZE (256 * 1024)
#define MAX_TRIES_PERMISSION 20
#define MAX_EXIT_NAPS 1000
/* Tries; after them a process that executes has lost its processor. */
#define SOON 100
#define SOON_PERMISSION 10

int psc_job_stop_failed(struct psc_job *job, int error)
{
	job->result->tid = job->visit.blamed;
	job->result->other_tracer = job->visit.other_tracer;
	switch (error) {
	case -EBUSY: return psc_job_refuse(job, PSC_REFUSED_TRACED, error);
	case -ETIMEDOUT: return psc_job_refuse(job, PSC_REFUSED_UNSTOPPABLE, error);
	case -ESRCH: return psc_job_refuse(job, PSC_REFUSED_GONE, error);
	case -EPERM:
	case -EACCES: return psc_job_refuse(job, PSC_REFUSED_PERMISSION, error);
	default: return psc_job_refuse(job, PSC_REFUSED_INJECTOR, error);
	}
}

static void inject(struct psc_job *job)
{
	int r;

	r = psc_visit_stop(&job->visit);
	if (r < 0)
		r = psc_job_stop_failed(job, r);
	else
		r = psc_job_commit(job);
	psc_visit_release(&job->visit);
	job->result->stop_ns = job->visit.since ? psc_now_ns() - job->visit.since : 0;
	psc_loader_reap(&job->visit);
	job->outcome = r;
}

/* ------------------------------------------------------------ the injector */

/* The processor that a thread ran on last: field 39 of proc(5)'s stat. */
static int last_cpu(pid_t tid)
{
	char text[1024], *pos;
	long n = psc_read_proc(tid, "stat", text, sizeof(text));

	if (n < 0)
		return (int)n;
	pos = strrchr(text, ')');
	for (int field = 2; pos && field < 39; field++)
		pos = strchr(pos + 1, ' ');
	return pos ? (int)strtol(pos, NULL, 10) : -EBADMSG;
}

/* A stop and the wake-up of its waiter take turns: on one processor that
 * is a switch, on two it is an interrupt to an idle one, which costs a virtual
 * machine 2 to 3 times as much of the target's time. */
static void go_to(pid_t tid)
{
	cpu_set_t set;
	int cpu = last_cpu(tid);

	if (cpu < 0 || cpu >= CPU_SETSIZE)
		return;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	psc_sys(SYS_sched_setaffinity, 0, sizeof(set), &set);
}

static int injector(void *arg)
{
	struct psc_job *job = arg;

	if (job->visit.own_signals)
		psc_sys(SYS_setsid);
	if (job->visit.own_signals && job->before.n_threads == 1)
		go_to(job->visit.tgid);
	inject(job);
	return 0;
}

/* Poll takes milliseconds. */
static void kill_at(pid_t pid, uint64_t deadline)
{
	struct pollfd ended = { .fd = (int)psc_syscall(SYS_pidfd_open, pid, 0), .events = POLLIN };
	uint64_t now;

	if (ended.fd < 0)
		return;
	while ((now = psc_now_ns()) < deadline)
		if (poll(&ended, 1, (int)((deadline - now) / 1000000 < 1000000 ? (deadline - now) / 1000000 + 1 : 1000000)) > 0)
			break;
	if (now >= deadline)
		(void)psc_syscall(SYS_pidfd_send_signal, ended.fd, SIGKILL, NULL, 0);
	close(ended.fd);
}

int psc_injector_run(int (*work)(void *), void *arg, uint64_t deadline)
{
	const int flags = CLONE_VM | CLONE_FILES | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
	const struct timespec nap = { 0, 100000 };
	_Atomic pid_t alive = 0; /* the kernel clears it when the process gives our memory back */
	char *stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	int status = 0;
	pid_t pid;

	if (stack == MAP_FAILED)
		return -ENOMEM;
	(void)!mprotect(stack, PSC_PAGE, PROT_NONE);
	pid = clone(work, stack + STACK_SIZE, flags, arg, &alive, NULL, &alive);
	if (pid < 0) {
		status = -errno;
	} else {
		if (deadline)
			kill_at(pid, deadline);
		/* Another wait of this process may have reaped it. Its stack is in use until then. */
		while (waitpid(pid, &status, __WALL) < 0 && (errno == EINTR || alive))
			if (errno != EINTR)
				nanosleep(&nap, NULL);
		status = WIFEXITED(status) ? 0 : -EINTR;
	}
	munmap(stack, STACK_SIZE);
	return status;
}

struct errand {
	int (*work)(void *);
	void *arg;
	pid_t tid;
};

static void *in_thread(void *arg)
{
	struct errand *errand = arg;

	errand->tid = (pid_t)psc_sys(SYS_gettid);
	errand->work(errand->arg);
	return NULL;
}

/* What the thread left traced is detached by its exit, which is over after the join. */
static int run_thread(struct errand *errand)
{
	const struct timespec nap = { 0, 20000 };
	pthread_t thread;
	int r = pthread_create(&thread, NULL, in_thread, errand);

	if (r == 0)
		r = pthread_join(thread, NULL);
	for (int naps = 0; r == 0 && naps < MAX_EXIT_NAPS && psc_sys(SYS_tgkill, getpid(), errand->tid, 0) == 0; naps++)
		nanosleep(&nap, NULL);
	return -r;
}

/* All signals wait: the injector inherits the mask, and a handler must not run
 * on memory that it shares with us. */
int psc_injector_do(bool as_thread, int (*work)(void *), void *arg, uint64_t deadline)
{
	struct errand errand = { work, arg, 0 };
	sigset_t all, old;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = as_thread ? run_thread(&errand) : psc_injector_run(work, arg, deadline);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return r;
}

static int run_injector(struct psc_job *job)
{
	int r;

	job->outcome = -EINTR;
	r = psc_injector_do(!job->visit.own_signals, injector, job, job->visit.deadline + PSC_INJECTOR_GRACE_NS);
	if (r < 0)
		return psc_job_refuse(job, PSC_REFUSED_INJECTOR, r);
	return job->outcome;
}

/* ------------------------------------------------------------- the manager */

static int look(struct psc_job *job)
{
	int r = psc_query_process(0, job->options->pidfd, &job->before);

	if (r < 0)
		return psc_job_refuse(job, r == -EACCES ? PSC_REFUSED_PERMISSION : PSC_REFUSED_GONE, r);
	job->result->pid = job->visit.tgid = job->before.pid;
	/* Its other threads share its descriptors: they stop too where there is a listener to be taken. */
	job->visit.only = job->options->leader_only && !job->notifies ? job->visit.tgid : 0;
	if (job->before.kernel_thread)
		return psc_job_refuse(job, PSC_REFUSED_KERNEL_THREAD, -EPERM);
	if (!job->before.alive)
		return psc_job_refuse(job, PSC_REFUSED_GONE, -ESRCH);
	if (psc_visit_is_frozen(job->visit.tgid))
		return psc_job_refuse(job, PSC_REFUSED_FROZEN, -EAGAIN);
	for (size_t i = 0; i < job->before.n_threads; i++) {
		const struct psc_task_state *task = &job->before.threads[i];

		job->result->tid = task->tid;
		if (task->tracer) {
			job->result->other_tracer = task->tracer;
			return psc_job_refuse(job, PSC_REFUSED_TRACED, -EBUSY);
		}
		if (task->seccomp == SECCOMP_MODE_STRICT)
			return psc_job_refuse(job, PSC_REFUSED_STRICT, -EACCES);
	}
	for (size_t i = 0; i < job->before.n_threads && !job->visit.workers; i++)
		job->visit.workers = job->before.threads[i].tid != job->before.pid && psc_visit_is_worker(job->before.threads[i].tid);
	job->result->tid = 0;
	return 0;
}

static pid_t live_thread(const struct psc_job *job)
{
	for (size_t i = 0; i < job->before.n_threads; i++)
		if (psc_task_alive(&job->before.threads[i]))
			return job->before.threads[i].tid;
	return job->visit.tgid;
}

/* Before the stop, so that it takes no longer; what is found is asked again in the stop. */
static int find_sharers(struct psc_job *job)
{
	int n = psc_sharers_find(job, live_thread(job), KCMP_VM, job->sharers, PSC_MAX_SHARERS);

	if (n < 0)
		return n == -ENOSYS ? 0 : psc_job_refuse(job, PSC_REFUSED_INJECTOR, n);
	job->n_sharers = (size_t)n;
	return 0;
}

/* Open what the injector needs, and find out now whether we may. */
static int try_rights(struct psc_job *job)
{
	char path[32];
	int r;

	snprintf(path, sizeof(path), "/proc/%d/task", job->visit.tgid);
	job->visit.tasks = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (job->visit.tasks < 0)
		return psc_job_refuse(job, PSC_REFUSED_GONE, errno == ENOENT ? -ESRCH : -errno);
	snprintf(path, sizeof(path), "/proc/%d/mem", live_thread(job));
	job->visit.mem = open(path, O_RDWR | O_CLOEXEC);
	if (job->visit.mem < 0)
		return psc_job_refuse(job, errno == ENOENT || errno == ESRCH ? PSC_REFUSED_GONE : PSC_REFUSED_PERMISSION,
			      -errno);
	/* The numbers in the paths: still this process's? */
	r = (int)psc_syscall(SYS_pidfd_send_signal, job->options->pidfd, 0, NULL, 0);
	if (r == -ESRCH)
		return psc_job_refuse(job, PSC_REFUSED_GONE, r);
	return job->notifies ? psc_job_check_fetch(job, live_thread(job)) : 0;
}

static int prepare(struct psc_job *job)
{
	const struct psc_attach_options *options = job->options;

	job->image_size = sizeof(*job->image) + options->len * sizeof(*options->insns);
	job->image = malloc(job->image_size);
	if (!job->image)
		return psc_job_refuse(job, PSC_REFUSED_INJECTOR, -ENOMEM);
	memcpy(job->image->insns, options->insns, options->len * sizeof(*options->insns));
	/* Not found or not to be read now, in the middle of an exec perhaps: the
	 * injector looks again when all threads are stopped. */
	if (psc_cave_find(live_thread(job), job->visit.mem, psc_job_room_wanted(job),
			  job->before.elf_class == ELFCLASS32 ? UINT32_MAX : UINT64_MAX, false, &job->cave) < 0 &&
	    job->cave.size < PSC_SITE_SIZE)
		job->cave = (struct psc_cave){ 0 };
	job->verdicts[false] = psc_verdicts_judge(options->insns, options->len, &psc_abi_i386, job->cave.address);
	job->verdicts[true] = psc_verdicts_judge(options->insns, options->len, &psc_abi_x86_64, job->cave.address);
	return 0;
}

static int filters_of(const struct psc_process_state *process, pid_t tid)
{
	for (size_t i = 0; i < process->n_threads; i++)
		if (process->threads[i].tid == tid)
			return process->threads[i].filters;
	return -1;
}

struct psc_thread_outcome *psc_outcomes_report(const struct psc_thread_outcome *mapped, size_t n, int pidfd)
{
	struct psc_thread_outcome *outcomes = calloc(n + 1, sizeof(*outcomes));
	struct psc_process_state after = { 0 };

	if (psc_query_process(0, pidfd, &after) < 0)
		after = (struct psc_process_state){ 0 };
	for (size_t i = 0; outcomes && i < n; i++) {
		outcomes[i] = mapped[i];
		outcomes[i].filters_after = filters_of(&after, mapped[i].tid);
	}
	for (size_t i = 0; !outcomes && i < n; i++)
		if (mapped[i].listener >= 0)
			close(mapped[i].listener);
	psc_process_state_destroy(&after);
	return outcomes;
}

/* The filter is in force by now. -ENOMEM: the listeners of single threads are lost. */
static int report(struct psc_job *job)
{
	struct psc_attach_result *result = job->result;
	struct psc_thread_outcome *mapped = result->threads;
	bool each_listens = result->n_threads > 0 && mapped[0].listener >= 0;

	result->threads = psc_outcomes_report(mapped, result->n_threads, job->options->pidfd);
	munmap(mapped, job->visit.n * sizeof(*mapped));
	if (!result->threads) {
		result->n_threads = 0;
		return each_listens ? -ENOMEM : 0;
	}
	for (size_t i = 0; i < result->n_threads; i++)
		result->threads[i].filters_before = filters_of(&job->before, result->threads[i].tid);
	return 0;
}

static void clean_up(struct psc_job *job)
{
	psc_process_state_destroy(&job->before);
	psc_visit_destroy(&job->visit);
	psc_close_fd(&job->visit.mem);
	psc_close_fd(&job->visit.tasks);
	psc_close_fd(&job->reserve);
	free(job->image);
}

/* What the stop itself would break, where filters cannot be suspended. */
static int check_interruption(struct psc_job *job)
{
	const struct psc_abi *abi = psc_abi_usual(job->before.elf_class != ELFCLASS32);
	bool denied = !job->options->break_calls && psc_restart_is_denied(job->options->insns, job->options->len, abi), filtered = false;

	for (size_t i = 0; i < job->before.n_threads; i++)
		filtered |= job->before.threads[i].seccomp == SECCOMP_MODE_FILTER;
	if (!filtered && !denied)
		return 0;
	return psc_restart_may_suspend() ? 0 : psc_restart_check(job, denied ? abi : NULL);
}

static int attach(struct psc_job *job)
{
	int r = look(job);

	if (r == 0)
		r = psc_job_check_elf(job);
	if (r == 0)
		r = try_rights(job);
	if (r == 0)
		r = prepare(job);
	if (r == 0)
		r = check_interruption(job);
	if (r == 0)
		r = find_sharers(job);
	if (r < 0)
		return r;
	r = run_injector(job);
	if (job->result->threads && report(job) < 0 && r == 0)
		r = psc_job_refuse(job, PSC_REFUSED_NO_LISTENER, -ENOMEM);
	return r;
}

/* A process that is executing another program shows itself without memory, not
 * to be traced, or its leader as dead, for a moment: what lives is asked again. */
bool psc_attach_was_passing(const struct psc_attach_options *options, const struct psc_attach_result *result, int tries)
{
	bool forbidden = result->refusal == PSC_REFUSED_PERMISSION;
	struct pollfd exited = { .fd = options->pidfd, .events = POLLIN };
	const struct timespec nap = { 0, tries < (forbidden ? SOON_PERMISSION : SOON) ? 200000 : 5000000 };

	if (forbidden ? tries > MAX_TRIES_PERMISSION
		      : result->refusal != PSC_REFUSED_GONE && result->refusal != PSC_REFUSED_NO_ROOM)
		return false;
	if (poll(&exited, 1, 0) != 0)
		return false;
	nanosleep(&nap, NULL);
	return true;
}

static int attempt(const struct psc_attach_options *options, uint64_t deadline, struct psc_attach_result *ret_result)
{
	struct psc_job job = {
		.options = options,
		.result = ret_result,
		.visit = { .mem = -1, .tasks = -1, .own_signals = !options->in_thread, .deadline = deadline },
		.notifies = psc_program_notifies(options->insns, options->len),
		.may_use_loader = psc_job_may_use_loader(),
		.reserve = -1,
		.manager = getpid(),
	};
	int r;

	psc_attach_result_destroy(ret_result); /* of the attempt before */
	*ret_result = (struct psc_attach_result){ .listener = -1 };
	r = attach(&job);
	clean_up(&job);
	return r;
}

int psc_attach(const struct psc_attach_options *options, struct psc_attach_result *ret_result)
{
	uint64_t deadline = psc_now_ns() + options->timeout_ns;
	int tries = 0, r;

	*ret_result = (struct psc_attach_result){ .listener = -1 };
	if (psc_program_check(options->insns, options->len, NULL) < 0)
		return -EINVAL;
	do
		r = attempt(options, deadline, ret_result);
	while (r < 0 && ++tries < PSC_MAX_TRIES && psc_now_ns() < deadline && psc_attach_was_passing(options, ret_result, tries));
	return r;
}

void psc_attach_result_destroy(struct psc_attach_result *result)
{
	if (!result)
		return;
	free(result->threads);
	result->threads = NULL;
	result->n_threads = 0;
}
