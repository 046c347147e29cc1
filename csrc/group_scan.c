/* group_scan.c - find the processes of a tree, or of a cgroup.
 *
 * The kernel keeps no list that could be read at one instant. So it is read again until
 * nobody new appears while all who are known stand still: who stands makes nobody.
 *
 *   tree     the children of every stopped thread, by /proc/PID/task/TID/children, which
 *            the kernel calls reliable for such; without it (CONFIG_PROC_CHILDREN) by the
 *            parent of every process
 *   cgroup   cgroup.procs of the directory and of those below it
 *
 * Runs in the injector: no malloc, no stdio streams, no errno.
 */
#define _GNU_SOURCE
#include "group.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>

#ifndef PF_KTHREAD
#define PF_KTHREAD 0x00200000
#endif

#define MAX_DEPTH 64 /* of cgroups below the one that is meant */

struct psc_member *psc_group_find(const struct psc_group *group, pid_t pid)
{
	return pid > 0 && pid < PSC_PID_LIMIT ? group->by_pid[pid] : NULL;
}

/* ---------------------------------------------------------------- a process */

struct identity {
	char state;
	pid_t parent;
	bool kernel_thread, alone; /* the leader has no other threads */
};

/* "pid (name) state ppid pgrp session tty tpgid flags ...": fields 3, 4, 9 and 20 of
 * proc(5). Only the last parenthesis ends the name. */
static int identify(pid_t pid, struct identity *ret)
{
	char text[1024], *pos;
	long fields[21] = { 0 }, n = psc_read_proc(pid, "stat", text, sizeof(text));

	if (n <= 0)
		return n < 0 ? (int)n : -ESRCH;
	pos = strrchr(text, ')');
	if (!pos || pos[1] != ' ' || !pos[2])
		return -EBADMSG;
	ret->state = pos[2];
	pos += 3;
	for (int field = 4; field <= 20; field++)
		fields[field] = strtol(pos, &pos, 10);
	ret->parent = (pid_t)fields[4];
	ret->kernel_thread = fields[9] & PF_KTHREAD;
	ret->alone = fields[20] <= 1;
	return 0;
}

/* Only these say that a process has ended. A scan that could not look at a process is not complete, and must not
 * pass for one: the process would stay without the filter. */
static bool is_gone(int error)
{
	return error == -ENOENT || error == -ESRCH;
}

/* 0 for the end of a process or thread; refuse for any other error. */
static int unless_gone(struct psc_group *group, int error)
{
	return error >= 0 || is_gone(error) ? 0 : psc_group_refuse(group, NULL, PSC_REFUSED_INJECTOR, error);
}

static struct psc_member *make_member(struct psc_group *group, pid_t pid, pid_t parent)
{
	long map = psc_sys(SYS_mmap, 0, sizeof(struct psc_member), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct psc_member *member = (struct psc_member *)map;

	if (map < 0 && map > -4096)
		return NULL;
	member->pid = pid;
	member->parent = parent;
	member->pidfd = -1;
	member->options = *group->common.options;
	member->options.pidfd = -1;
	member->result = (struct psc_attach_result){ .listener = -1, .pid = pid };
	member->job = group->common;
	member->job.options = &member->options;
	member->job.result = &member->result;
	member->job.visit.tgid = pid;
	if (group->last)
		group->last->next = member;
	else
		group->first = member;
	group->last = member;
	group->by_pid[pid] = member;
	return member;
}

/* Somebody belongs to the group. */
static int meet(struct psc_group *group, pid_t pid)
{
	struct psc_member *member;
	struct identity identity;
	int r;

	if (pid <= 0 || pid >= PSC_PID_LIMIT)
		return psc_group_refuse(group, NULL, PSC_REFUSED_OUTSIDE, -EXDEV);
	if (pid == group->common.manager || pid == group->injector)
		return psc_group_refuse(group, NULL, PSC_REFUSED_CALLER, -EDEADLK);
	member = group->by_pid[pid];
	if (!member) {
		r = identify(pid, &identity);
		if (r < 0)
			return unless_gone(group, r);
		if (identity.kernel_thread || (identity.alone && strchr("ZXx", identity.state)))
			return 0;
		member = make_member(group, pid, identity.parent);
		if (!member)
			return psc_group_refuse(group, NULL, PSC_REFUSED_INJECTOR, -ENOMEM);
		group->found++;
	}
	member->seen = group->scans;
	return 0;
}

/* Numbers, separated by whatever, one read after the other. */
static int meet_all(struct psc_group *group, int fd)
{
	char buffer[2048];
	long n, number = -1;
	int r = 0;

	while (r == 0 && (n = psc_sys(SYS_read, fd, buffer, sizeof(buffer))) > 0)
		for (long i = 0; r == 0 && i < n; i++) {
			if (buffer[i] >= '0' && buffer[i] <= '9') {
				number = (number < 0 ? 0 : number) * 10 + buffer[i] - '0';
				number = number < PSC_PID_LIMIT ? number : PSC_PID_LIMIT;
			} else if (number >= 0) {
				r = meet(group, (pid_t)number);
				number = -1;
			}
		}
	if (r == 0 && number >= 0)
		r = meet(group, (pid_t)number);
	return r < 0 ? r : n < 0 ? (int)n : 0;
}

/* ------------------------------------------------------------------- trees */

/* -EOPNOTSUPP: the kernel has no such file. A thread that is dead has none either. */
static int scan_thread(struct psc_group *group, struct psc_visit *visit, pid_t tid)
{
	char path[32];
	long fd;
	int r;

	snprintf(path, sizeof(path), "%d/children", tid);
	fd = psc_sys(SYS_openat, visit->tasks, path, O_RDONLY | O_CLOEXEC);
	if (fd == -ENOENT) {
		snprintf(path, sizeof(path), "%d/stat", tid);
		return psc_sys(SYS_faccessat, visit->tasks, path, F_OK) == 0 ? -EOPNOTSUPP : 0;
	}
	if (fd < 0)
		return fd == -ESRCH ? 0 : psc_group_refuse(group, NULL, PSC_REFUSED_INJECTOR, (int)fd);
	r = meet_all(group, (int)fd);
	psc_sys(SYS_close, fd);
	return group->refused ? r : unless_gone(group, r);
}

/* Of one that was left out not all threads are known. */
static int scan_all_threads(struct psc_group *group, struct psc_visit *visit)
{
	char buffer[2048] __attribute__((aligned(8)));
	int r = 0;
	long n = 0;

	psc_sys(SYS_lseek, visit->tasks, 0, SEEK_SET);
	while (r == 0 && (n = psc_sys(SYS_getdents64, visit->tasks, buffer, sizeof(buffer))) > 0) {
		const struct dirent64 *entry;

		for (long at = 0; r == 0 && at < n; at += entry->d_reclen) {
			pid_t tid;

			entry = (const struct dirent64 *)(buffer + at);
			tid = (pid_t)strtol(entry->d_name, NULL, 10);
			r = tid > 0 ? scan_thread(group, visit, tid) : 0;
		}
	}
	return r < 0 ? r : unless_gone(group, (int)n);
}

static int scan_children(struct psc_group *group, struct psc_member *member)
{
	struct psc_visit *visit = &member->job.visit;
	int r = 0;

	if (member->state == PSC_MEMBER_OUT)
		return scan_all_threads(group, visit);
	for (size_t i = 0; r == 0 && i < visit->n; i++)
		r = scan_thread(group, visit, visit->tracees[i].tid);
	return r;
}

/* What kind of member has children that belong to the group? One that stands, or one that is left out. */
static bool is_parent(const struct psc_member *member)
{
	return member && (member->state == PSC_MEMBER_STOPPED || member->state == PSC_MEMBER_OUT);
}

static int scan_by_parent(struct psc_group *group)
{
	char buffer[4096] __attribute__((aligned(8)));
	long fd = psc_sys(SYS_openat, AT_FDCWD, "/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC), n;
	int r = 0;

	if (fd < 0)
		return psc_group_refuse(group, NULL, PSC_REFUSED_INJECTOR, (int)fd);
	while (r == 0 && (n = psc_sys(SYS_getdents64, fd, buffer, sizeof(buffer))) > 0) {
		const struct dirent64 *entry;

		for (long at = 0; r == 0 && at < n; at += entry->d_reclen) {
			struct identity identity;
			pid_t pid;

			entry = (const struct dirent64 *)(buffer + at);
			pid = (pid_t)strtol(entry->d_name, NULL, 10);
			if (pid <= 0)
				continue;
			r = identify(pid, &identity);
			if (r == -EPERM || r == -EACCES)
				r = 0; /* hidden from this user (hidepid=1): most are others' */
			else if (r < 0)
				r = unless_gone(group, r);
			else if (is_parent(psc_group_find(group, identity.parent)))
				r = meet(group, pid);
		}
	}
	psc_sys(SYS_close, fd);
	return r < 0 ? r : unless_gone(group, (int)n);
}

static int scan_tree(struct psc_group *group)
{
	if (group->options->by_parent)
		return scan_by_parent(group);
	for (struct psc_member *member = group->first; member; member = member->next) {
		int r = is_parent(member) ? scan_children(group, member) : 0;

		if (r == -EOPNOTSUPP && !group->refused)
			return scan_by_parent(group);
		if (r < 0)
			return r;
	}
	return 0;
}

int psc_group_is_descendant(const struct psc_group *group, const struct psc_member *member)
{
	struct identity identity;
	int r;

	if (member == group->first)
		return 1;
	r = identify(member->pid, &identity);
	if (r < 0)
		return is_gone(r) ? 0 : r;
	return is_parent(psc_group_find(group, identity.parent));
}

/* ----------------------------------------------------------------- cgroups */

/* In a threaded cgroup below it cgroup.procs cannot be read (EOPNOTSUPP): the domain
 * above, which is read, has all its processes. */
static int scan_procs(struct psc_group *group, int dir, bool top)
{
	long fd = psc_sys(SYS_openat, dir, "cgroup.procs", O_RDONLY | O_CLOEXEC);
	int r;

	if (fd < 0) {
		if (!top && fd == -ENOENT)
			return 0; /* removed just now */
		return psc_group_refuse(group, NULL, PSC_REFUSED_CGROUP, (int)fd);
	}
	r = meet_all(group, (int)fd);
	psc_sys(SYS_close, fd);
	if (r == 0 || group->refused || (!top && (r == -EOPNOTSUPP || r == -ENODEV)))
		return group->refused ? r : 0;
	return psc_group_refuse(group, NULL, PSC_REFUSED_CGROUP, r);
}

static int scan_cgroup(struct psc_group *group, int dir, int depth)
{
	char buffer[1024] __attribute__((aligned(8)));
	int r = scan_procs(group, dir, depth == 0);
	long n = 0;

	if (r == 0 && depth == MAX_DEPTH)
		return psc_group_refuse(group, NULL, PSC_REFUSED_CGROUP, -ELOOP);
	if (r == 0)
		psc_sys(SYS_lseek, dir, 0, SEEK_SET);
	while (r == 0 && (n = psc_sys(SYS_getdents64, dir, buffer, sizeof(buffer))) > 0) {
		const struct dirent64 *entry;

		for (long at = 0; r == 0 && at < n; at += entry->d_reclen) {
			long fd;

			entry = (const struct dirent64 *)(buffer + at);
			if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
				continue;
			fd = psc_sys(SYS_openat, dir, entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
			if (fd == -ENOENT)
				continue;
			if (fd < 0)
				return psc_group_refuse(group, NULL, PSC_REFUSED_CGROUP, (int)fd);
			r = scan_cgroup(group, (int)fd, depth + 1);
			psc_sys(SYS_close, fd);
		}
	}
	return r < 0 ? r : n < 0 && depth == 0 ? psc_group_refuse(group, NULL, PSC_REFUSED_CGROUP, (int)n) : 0;
}

/* -------------------------------------------------------------------- scan */

int psc_group_scan(struct psc_group *group)
{
	group->scans++;
	group->found = 0;
	if (group->options->cgroup >= 0)
		return scan_cgroup(group, group->options->cgroup, 0);
	if (group->scans == 1)
		return meet(group, group->common.visit.tgid);
	return scan_tree(group);
}
