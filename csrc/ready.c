/* ready.c - what a commit needs before it makes a thread call, and what it leaves.
 *
 * Nothing is believed that was found out before the stop: room, filters and ABI are
 * looked at again. Memory of the target that is used here is given back, and code in
 * it wiped out, unless a thread may still execute it.
 */
#define _GNU_SOURCE
#include "commit.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>

#define SETTLE_NS 200000000 /* for a thread to leave our code after a failure */
#define MAX_SUSPENDED 1024  /* earlier filters that are looked into; the kernel takes some 6,500 at most */

static bool allows(uint32_t ret)
{
	uint32_t action = ret & SECCOMP_RET_ACTION_FULL;

	return action == SECCOMP_RET_ALLOW || action == SECCOMP_RET_LOG;
}

static uint32_t answer(const struct sock_filter *insns, size_t len, const struct psc_abi *abi, uint64_t ip,
		       int nr, uint64_t arg0, uint64_t arg1)
{
	struct seccomp_data data = { nr, abi->audit_arch, ip, { arg0, arg1 } };
	struct psc_decision decision;

	if (nr == abi->rt_sigprocmask) {
		data.args[0] = SIG_SETMASK;
		data.args[1] = ip;
		data.args[3] = 8;
	}
	return psc_program_run(insns, len, &data, &decision) < 0 ? SECCOMP_RET_KILL_PROCESS : decision.ret;
}

struct psc_verdicts psc_verdicts_judge(const struct sock_filter *insns, size_t len, const struct psc_abi *abi, uint64_t ip)
{
	uint32_t close_low = answer(insns, len, abi, ip, abi->close, 3, 0);
	uint32_t close_high = answer(insns, len, abi, ip, abi->close, 1023, 0);

	return (struct psc_verdicts){
		.close = allows(close_low) && allows(close_high),
		.close_notifies = (close_low & SECCOMP_RET_ACTION_FULL) == SECCOMP_RET_USER_NOTIF &&
				  (close_high & SECCOMP_RET_ACTION_FULL) == SECCOMP_RET_USER_NOTIF,
		.unmap = allows(answer(insns, len, abi, ip, abi->munmap, 0x10000, PSC_PAGE)),
		.unmask = allows(answer(insns, len, abi, ip, abi->rt_sigprocmask, 0, 0)),
		.exit = allows(answer(insns, len, abi, ip, abi->exit, 0, 0)),
	};
}

/* RLIMIT_NOFILE of another user's process, which prlimit(2) tells only to CAP_SYS_RESOURCE. */
static rlim_t shown_descriptor_limit(pid_t pid)
{
	static const char name[] = "\nMax open files";
	char text[4096], *line;

	if (psc_read_proc(pid, "limits", text, sizeof(text)) <= 0)
		return RLIM_INFINITY;
	line = strstr(text, name);
	return line ? strtoul(line + sizeof(name) - 1, NULL, 10) : RLIM_INFINITY; /* "unlimited" is no number: 0 */
}

int psc_job_read_status(int dir, const char *path, struct psc_task_state *ret_task, bool *ret_tight)
{
	char text[8192], *fds;
	long fd = psc_sys(SYS_openat, dir, path, O_RDONLY | O_CLOEXEC), n;
	struct rlimit limit = { 0 };
	int r;

	if (fd < 0)
		return (int)fd;
	n = psc_sys(SYS_read, fd, text, sizeof(text) - 1);
	psc_sys(SYS_close, fd);
	if (n <= 0)
		return n < 0 ? (int)n : -ESRCH;
	text[n] = '\0';
	r = psc_query_parse_status(text, (size_t)n, ret_task);
	if (r < 0 || !ret_tight)
		return r;
	fds = strstr(text, "\nFDSize:");
	r = (int)psc_sys(SYS_prlimit64, ret_task->pid, RLIMIT_NOFILE, 0, &limit);
	if (r < 0)
		limit.rlim_cur = shown_descriptor_limit(ret_task->pid);
	*ret_tight = fds && strtoul(fds + 8, NULL, 10) >= limit.rlim_cur;
	return 0;
}

int psc_filters_carried(const struct psc_task_state *task)
{
	return task->seccomp == SECCOMP_MODE_DISABLED ? 0 : task->filters > 0 ? task->filters : 1;
}

int psc_job_count_filters(struct psc_job *job, pid_t tid, int *ret_filters)
{
	struct psc_task_state task;
	char path[32];
	int r;

	snprintf(path, sizeof(path), "%d/status", tid);
	r = psc_job_read_status(job->visit.tasks, path, &task, NULL);
	if (r == 0 && !psc_task_alive(&task))
		r = -ESRCH;
	if (r == 0)
		*ret_filters = psc_filters_carried(&task);
	return r;
}

/* Earlier filters, suspended for us, answer again when the injector is killed:
 * what they would not allow is left out of the code that runs then. */
static int narrow_by_earlier(struct psc_commit *commit)
{
	pid_t tid = commit->tracee->tid;
	long map = psc_sys(SYS_mmap, 0, PSC_MAX_INSNS * sizeof(struct sock_filter), PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1);

	if (map < 0 && map > -4096)
		return -ENOMEM;
	for (long i = 0;; i++) {
		struct psc_verdicts earlier;
		long len = psc_sys(SYS_ptrace, PTRACE_SECCOMP_GET_FILTER, tid, i, map);

		if (len == -ENOENT)
			break;
		if (len <= 0 || i == MAX_SUSPENDED) { /* a filter that is not read may forbid everything */
			commit->earlier = (struct psc_verdicts){ 0 };
			break;
		}
		earlier = psc_verdicts_judge((struct sock_filter *)map, (size_t)len, commit->abi, commit->job->cave.address);
		commit->earlier.close &= earlier.close;
		commit->earlier.unmap &= earlier.unmap;
		commit->earlier.unmask &= earlier.unmask;
		commit->earlier.exit &= earlier.exit;
	}
	psc_sys(SYS_munmap, map, PSC_MAX_INSNS * sizeof(struct sock_filter));
	return 0;
}

/* Suspend the thread's earlier filters, or be sure that it has none. */
static int suspend_filters(struct psc_commit *commit)
{
	struct psc_job *job = commit->job;
	int filters = 0, r;

	commit->suspended = psc_tracee_request(PTRACE_SETOPTIONS, commit->tracee->tid, 0,
					       job->visit.options | PSC_COMMIT_OPTIONS | PTRACE_O_SUSPEND_SECCOMP) == 0;
	if (commit->suspended && job->before.threads[0].seccomp == SECCOMP_MODE_DISABLED && commit->tracee->filters == 0) {
		commit->filters = 0;
		return 0;
	}
	r = psc_job_count_filters(job, commit->tracee->tid, &filters);
	if (r < 0)
		return psc_job_refuse(job, PSC_REFUSED_GONE, r);
	commit->filters = filters;
	if (filters == 0)
		return 0;
	if (!commit->suspended) {
		job->result->tid = commit->tracee->tid;
		return psc_job_refuse(job, PSC_REFUSED_FILTERED, -EACCES);
	}
	job->result->suspended = true;
	return narrow_by_earlier(commit);
}

int psc_commit_check_listener(struct psc_commit *commit)
{
	struct psc_job *job = commit->job;
	const struct psc_verdicts *own = &job->verdicts[commit->abi->wide];
	pid_t sharers[PSC_MAX_SHARERS];
	int n;

	if (!job->notifies || commit->by_loader)
		return 0;
	if (!commit->suspended && !own->close && !own->close_notifies)
		return psc_job_refuse(job, PSC_REFUSED_LISTENER_STUCK, -EDEADLK);
	n = psc_sharers_find(job, commit->tracee->tid, KCMP_FILES, sharers, PSC_MAX_SHARERS);
	if (n < 0)
		return psc_job_refuse(job, n == -ENOSYS ? PSC_REFUSED_SHARED : PSC_REFUSED_INJECTOR, n);
	return psc_sharers_check(job, commit->tracee->tid, KCMP_FILES, sharers, (size_t)n);
}

/* Another program has been executed: another memory. */
static int reopen_memory(struct psc_job *job, pid_t tid)
{
	char path[32];
	long mem;
	int r;

	snprintf(path, sizeof(path), "/proc/%d/mem", tid);
	mem = psc_sys(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
	if (mem < 0)
		return (int)mem;
	r = (int)psc_sys(SYS_dup3, mem, job->visit.mem, O_CLOEXEC);
	psc_sys(SYS_close, mem);
	return r < 0 ? r : 0; /* on failure the descriptor leads to the old memory */
}

size_t psc_job_room_wanted(const struct psc_job *job)
{
	return PSC_SITE_SIZE + (job->image_size <= PSC_PAGE ? job->image_size : 0);
}

/* The cave that was found before the stop, if it holds; else another. */
static int find_room(struct psc_commit *commit)
{
	struct psc_job *job = commit->job;
	pid_t tid = commit->tracee->tid;
	uint64_t limit = commit->abi->wide ? UINT64_MAX : UINT32_MAX;
	int r;

	if (!job->visit.execed && job->cave.size >= PSC_SITE_SIZE && job->cave.address + job->cave.size <= limit &&
	    psc_cave_check(tid, job->visit.mem, &job->cave) == 0)
		return 0;
	r = reopen_memory(job, tid);
	if (r < 0)
		return psc_job_refuse(job, PSC_REFUSED_PERMISSION, r);
	job->visit.execed = false;
	r = psc_cave_find(tid, job->visit.mem, psc_job_room_wanted(job), limit, true, &job->cave);
	if (r == -ENOSPC && job->cave.size >= PSC_SITE_SIZE)
		r = 0;
	return r < 0 ? psc_job_refuse(job, PSC_REFUSED_NO_ROOM, r) : 0;
}

size_t psc_job_map_size(const struct psc_job *job)
{
	return (job->image_size + PSC_PAGE - 1) & ~(size_t)(PSC_PAGE - 1);
}

bool psc_job_fits_cave(const struct psc_job *job)
{
	return job->cave.size >= PSC_SITE_SIZE + job->image_size;
}

int psc_commit_place_program(struct psc_commit *commit, uint64_t *ret_address)
{
	struct psc_job *job = commit->job;
	const struct psc_script nothing = { .unmask = commit->earlier.unmask };
	const uint64_t args[6] = { 0, psc_job_map_size(job), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1ULL, 0 };
	long map;
	int r;

	if (commit->map) {
		*ret_address = commit->map;
		return 0;
	}
	if (psc_job_fits_cave(job)) {
		*ret_address = job->cave.address + PSC_SITE_SIZE;
		return 0;
	}
	r = psc_site_build(&job->visit, commit->tracee, &job->cave, &nothing, &commit->site);
	if (r == 0)
		r = psc_tracee_call(&job->visit, commit->tracee, &commit->site, -1, commit->abi->mmap, args, &map);
	if (r < 0)
		return psc_commit_refuse_request(commit, r);
	if (map < 0 && map > -4096)
		return psc_job_refuse(job, PSC_REFUSED_NO_ROOM, (int)map);
	commit->map = commit->abi->wide ? (uint64_t)map : (uint32_t)map;
	*ret_address = commit->map;
	return 0;
}

int psc_commit_write_program(struct psc_commit *commit, uint64_t address)
{
	struct psc_job *job = commit->job;
	struct psc_image *image = job->image;
	int r;

	memset(image->fprog.bytes, 0, sizeof(image->fprog.bytes));
	if (commit->abi->wide) {
		image->fprog.wide.len = (uint16_t)job->options->len;
		image->fprog.wide.insns = address + sizeof(image->fprog);
	} else {
		image->fprog.narrow.len = (uint16_t)job->options->len;
		image->fprog.narrow.insns = (uint32_t)(address + sizeof(image->fprog));
	}
	r = psc_tracee_write(&job->visit, commit->tracee, address, image, job->image_size);
	return r < 0 ? psc_commit_refuse_request(commit, r) : 0;
}

void psc_commit_unmap_program(struct psc_commit *commit, bool committed)
{
	struct psc_job *job = commit->job;
	const uint64_t args[6] = { commit->map, psc_job_map_size(job) };
	long result = -EACCES;

	if (!commit->map)
		return;
	job->map = 0;
	if (job->stray) {
		job->result->residue += psc_job_map_size(job);
		return;
	}
	if (commit->suspended || !committed || job->verdicts[commit->abi->wide].unmap)
		if (psc_tracee_call(&job->visit, commit->tracee, &commit->site, -1, commit->abi->munmap, args, &result) < 0)
			result = -EIO;
	if (result < 0)
		job->result->residue += psc_job_map_size(job);
}

/* Code that a thread may still execute stays. */
static void wipe_cave(struct psc_commit *commit)
{
	static const uint8_t zeros[PSC_SITE_SIZE + sizeof(struct psc_image) + PSC_PAGE];
	struct psc_job *job = commit->job;
	size_t used = PSC_SITE_SIZE + (commit->map ? 0 : job->image_size);

	job->stray |= commit->tracee->injected;
	if (job->stray)
		job->result->residue += used;
	else if (commit->tracee->state == PSC_TRACEE_STOPPED)
		(void)!psc_tracee_write(&job->visit, commit->tracee, job->cave.address, zeros,
					used < job->cave.size ? used : job->cave.size);
}

int psc_commit_make_ready(struct psc_commit *commit)
{
	struct psc_job *job = commit->job;
	int r;

	commit->earlier = (struct psc_verdicts){ .close = true, .unmap = true, .unmask = true, .exit = true };
	commit->map = job->map;
	psc_tracee_abort_rseq(&job->visit, commit->tracee);
	r = psc_sharers_check(job, commit->tracee->tid, KCMP_VM, job->sharers, job->n_sharers);
	if (r == 0)
		r = suspend_filters(commit);
	/* Its exit is judged by the new filter, and if the injector is killed by the earlier ones. */
	commit->by_loader &= job->verdicts[commit->abi->wide].exit && commit->earlier.exit;
	if (r == 0)
		r = psc_commit_check_listener(commit);
	return r < 0 ? r : find_room(commit);
}

/* It was stopped, so what does not find it is a death. */
int psc_commit_refuse_request(struct psc_commit *commit, int r)
{
	return psc_job_refuse(commit->job, r == -ESRCH ? PSC_REFUSED_GONE : PSC_REFUSED_FAULT, r);
}

int psc_commit_block_signals(struct psc_commit *commit)
{
	int r = psc_tracee_block_signals(commit->tracee);

	return r < 0 ? psc_commit_refuse_request(commit, r) : 0;
}

int psc_commit_enter(struct psc_commit *commit)
{
	int r = psc_commit_make_ready(commit);

	return r < 0 ? r : psc_commit_block_signals(commit);
}

int psc_commit_leave(struct psc_commit *commit, int r)
{
	int restored = psc_tracee_restore(&commit->job->visit, commit->tracee);

	wipe_cave(commit);
	return r < 0 ? r : restored;
}

unsigned long psc_commit_loader_options(const struct psc_commit *commit)
{
	return commit->job->visit.options | PSC_COMMIT_OPTIONS | (commit->suspended ? PTRACE_O_SUSPEND_SECCOMP : 0);
}

int psc_commit_end_loader(struct psc_commit *commit, struct psc_tracee *loader, int r)
{
	struct psc_tracee *maker = commit->tracee;
	struct psc_job *job = commit->job;
	uint64_t deadline = job->visit.deadline;
	int ended = 0, stopped = 0;

	job->visit.deadline = psc_now_ns() + SETTLE_NS;
	if (!commit->loaded || psc_loader_leave(&job->visit, loader, &commit->site) < 0)
		ended = psc_loader_end(&job->visit, loader, &commit->site);
	job->stray |= loader->injected;
	if (maker->injected && maker->state == PSC_TRACEE_STOPPED)
		stopped = psc_tracee_start(maker, PSC_STOP_TRAP);
	if (stopped == 0 && maker->injected && maker->state == PSC_TRACEE_RUNNING)
		stopped = psc_tracee_await(&job->visit, maker, &commit->site, PSC_STOP_TRAP);
	job->visit.deadline = deadline;
	return r < 0 ? r : ended < 0 ? ended : stopped;
}
