/* dump.c - the programs that a thread carries, from the kernel itself.
 *
 * PTRACE_SECCOMP_GET_FILTER gives a filter as it was loaded, if the thread is in
 * a ptrace-stop, the asker has CAP_SYS_ADMIN in the first user namespace and no
 * filter itself. The thread is stopped like one that is attached to (visit.c),
 * by an injector, for as long as it takes to copy: some 60 microseconds. A
 * notification that it waits for is sent again, as after any ptrace-stop. */
#define _GNU_SOURCE
#include "attach.h"

#include <fcntl.h>
#include <linux/ptrace.h>
#include <signal.h>
#include <string.h>

/* MAX_INSNS_PER_PATH of kernel/seccomp.c: it counts what it made of a program, which
 * is never shorter, and 4 more for each. */
#define MAX_INSNS 32768
#define MAX_FILTERS (MAX_INSNS / 4)

struct dump_job {
	struct psc_visit visit;
	struct psc_dump *dump;
	int outcome;
};

static long ask(long request, pid_t tid, long index, void *data)
{
	return psc_sys(SYS_ptrace, request, tid, index, data);
}

/* One filter, behind those that are there. -ENOENT: it was the last. */
static int copy_one(struct psc_dump *dump, pid_t tid)
{
	struct seccomp_metadata metadata = { .filter_off = dump->n };
	struct psc_dumped *one = &dump->filters[dump->n];
	long len = ask(PTRACE_SECCOMP_GET_FILTER, tid, (long)dump->n, NULL);

	if (len < 0)
		return (int)len;
	if (dump->n == MAX_FILTERS || (size_t)len > MAX_INSNS - dump->n_insns)
		return -E2BIG;
	one->insns = dump->insns + dump->n_insns;
	one->len = (size_t)len;
	/* It stands still, so the filter at this place is the same one. */
	len = ask(PTRACE_SECCOMP_GET_FILTER, tid, (long)dump->n, one->insns);
	if (len < 0)
		return (int)len;
	one->flags_known = ask(PTRACE_SECCOMP_GET_METADATA, tid, sizeof(metadata), &metadata) == sizeof(metadata);
	one->flags = one->flags_known ? (uint32_t)metadata.flags : 0;
	dump->n_insns += one->len;
	dump->n++;
	return 0;
}

static int copy_all(struct dump_job *job)
{
	int r = psc_visit_stop(&job->visit);

	if (r == 0 && (job->visit.n != 1 || job->visit.tracees[0].state != PSC_TRACEE_STOPPED))
		r = -ESRCH;
	while (r == 0)
		r = copy_one(job->dump, job->visit.only);
	return r == -ENOENT ? 0 : r;
}

static int dumper(void *arg)
{
	struct dump_job *job = arg;

	psc_sys(SYS_setsid);
	job->outcome = copy_all(job);
	psc_visit_release(&job->visit);
	return 0;
}

static int run(struct dump_job *job)
{
	sigset_t all, old;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = psc_injector_run(dumper, job, job->visit.deadline + PSC_INJECTOR_GRACE_NS);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return r < 0 ? r : job->outcome;
}

/* Open the directory of threads, and see that it is still the process that the pidfd
 * means. */
static int open_tasks(pid_t tgid, int pidfd)
{
	char path[32];
	int fd;
	long r;

	snprintf(path, sizeof(path), "/proc/%d/task", tgid);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	r = psc_syscall(SYS_pidfd_send_signal, pidfd, 0, NULL, 0);
	if (r == 0 || r == -EPERM)
		return fd;
	close(fd);
	return (int)r;
}

int psc_dump_thread(int pidfd, pid_t tgid, pid_t tid, uint64_t timeout_ns, struct psc_dump *ret_dump)
{
	struct dump_job job = {
		.visit = { .tgid = tgid, .only = tid, .mem = -1, .own_signals = true, .deadline = psc_now_ns() + timeout_ns },
		.dump = ret_dump,
		.outcome = -EINTR,
	};
	int r;

	*ret_dump = (struct psc_dump){ 0 };
	job.visit.tasks = open_tasks(tgid, pidfd);
	if (job.visit.tasks < 0)
		return job.visit.tasks;
	if (tid != tgid && psc_visit_is_worker(tid)) {
		psc_close_fd(&job.visit.tasks);
		return -EOPNOTSUPP;
	}
	ret_dump->insns = malloc(MAX_INSNS * sizeof(*ret_dump->insns));
	ret_dump->filters = calloc(MAX_FILTERS, sizeof(*ret_dump->filters));
	r = ret_dump->insns && ret_dump->filters ? run(&job) : -ENOMEM;
	ret_dump->other_tracer = job.visit.other_tracer;
	psc_visit_destroy(&job.visit);
	psc_close_fd(&job.visit.tasks);
	if (r < 0)
		psc_dump_destroy(ret_dump);
	return r;
}

void psc_dump_destroy(struct psc_dump *dump)
{
	free(dump->insns);
	free(dump->filters);
	dump->insns = NULL;
	dump->filters = NULL;
	dump->n = dump->n_insns = 0;
}
