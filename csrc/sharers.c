/* sharers.c - processes outside the thread group that share a target's memory or descriptors.
 *
 * clone() with CLONE_VM or CLONE_FILES and without CLONE_THREAD makes them. They are not stopped with
 * the target: one that shares memory can rewrite the program before the kernel reads it, one
 * that shares descriptors can take a listener out of the table. kcmp(2) tells them by the
 * first thread of each process. One that this process may not trace is passed over.
 */
#define _GNU_SOURCE
#include "attach.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <string.h>

static bool shares(pid_t tid, pid_t other, int type)
{
	return psc_sys(SYS_kcmp, tid, other, type, 0, 0) == 0;
}

static int scan(const struct psc_job *job, long dir, pid_t tid, int type, pid_t *ret_found, size_t size)
{
	char buffer[8192] __attribute__((aligned(8)));
	pid_t self = (pid_t)psc_sys(SYS_getpid);
	size_t n = 0;
	long got = 0;

	while (n < size && (got = psc_sys(SYS_getdents64, dir, buffer, sizeof(buffer))) > 0) {
		const struct dirent64 *entry;

		for (long at = 0; at < got && n < size; at += entry->d_reclen) {
			pid_t pid;

			entry = (const struct dirent64 *)(buffer + at);
			pid = (pid_t)strtol(entry->d_name, NULL, 10);
			if (pid > 0 && pid != job->visit.tgid && pid != job->manager && pid != self && shares(tid, pid, type))
				ret_found[n++] = pid;
		}
	}
	return got < 0 ? (int)got : (int)n;
}

int psc_sharers_find(const struct psc_job *job, pid_t tid, int type, pid_t *ret_found, size_t size)
{
	pid_t self = (pid_t)psc_sys(SYS_gettid);
	long dir;
	int n;

	if (!shares(self, self, type))
		return -ENOSYS;
	dir = psc_sys(SYS_openat, AT_FDCWD, "/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return (int)dir;
	n = scan(job, dir, tid, type, ret_found, size);
	psc_sys(SYS_close, dir);
	return n;
}

/* A parent of one thread that waits in vfork() until its child executes or ends. */
static bool waits_in_vfork(pid_t pid)
{
	char text[1024], *pos;

	if (psc_read_proc(pid, "stat", text, sizeof(text)) <= 0)
		return false;
	pos = strrchr(text, ')');
	if (!pos || strncmp(pos, ") D ", 4) != 0)
		return false;
	for (int field = 2; pos && field < 20; field++)
		pos = strchr(pos + 1, ' ');
	return pos && strtol(pos, NULL, 10) == 1;
}

static int refuse_shared(struct psc_job *job, int type, pid_t pid)
{
	job->result->other_tracer = pid;
	return psc_job_refuse(job, PSC_REFUSED_SHARED, type == KCMP_VM ? -EBUSY : -EMLINK);
}

int psc_sharers_check(struct psc_job *job, pid_t tid, int type, const pid_t *found, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (!shares(tid, found[i], type) || waits_in_vfork(found[i]))
			continue;
		return refuse_shared(job, type, found[i]);
	}
	/* All of a full list wait in vfork() or share no more; the list may lack a process that still shares. */
	return n < PSC_MAX_SHARERS ? 0 : refuse_shared(job, type, found[n - 1]);
}
