/* query.c - what a task carries, from /proc.
 *
 * The idea: a handle of the directory /proc/PID belongs to one process, not to
 * a number. Whatever is opened below it after that process is gone fails, even
 * if the number was given to another process meanwhile. So one openat() decides
 * who is meant and everything else follows; a pidfd is tied to the handle by
 * reading its number before the directory is opened and again afterwards: a
 * number that still belongs to the pidfd then belonged to it in between.
 *
 * The texts come from the kernel but hold names chosen by the target, so they
 * are parsed as untrusted: bounded in size, no field believed without a check.
 */
#define _GNU_SOURCE 1
#include "psc.h"
#include "internal.h"

#include <dirent.h>
#include <elf.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <signal.h>
#include <string.h>
#include <sys/vfs.h>

/* 65,536 supplementary groups of ten digits make the line Groups; the rest of
 * the file is under 2 KiB. */
#define STATUS_MAX (1u << 20)
#define PF_KTHREAD 0x00200000u
/* A scan that finds no new thread ends the reading; a process that creates
 * threads faster than they can be listed must not hold us. */
#define SCANS_MAX 4

/* ------------------------------------------------------------------ parsing */

static bool is_blank(char c)
{
	return c == ' ' || c == '\t';
}

/* Take a decimal number off the front of [*pos, end): blanks before it are
 * skipped, a blank or the end must follow. */
static bool take_number(const char **pos, const char *end, uint64_t max, uint64_t *ret)
{
	const char *p = *pos;
	uint64_t value = 0;

	while (p < end && is_blank(*p))
		p++;
	if (p == end || *p < '0' || *p > '9')
		return false;
	for (; p < end && *p >= '0' && *p <= '9'; p++) {
		unsigned int digit = *p - '0';

		if (digit > max || value > (max - digit) / 10)
			return false;
		value = value * 10 + digit;
	}
	if (p < end && !is_blank(*p) && *p != '\n')
		return false;
	*pos = p;
	*ret = value;
	return true;
}

static bool number_field(const char *pos, const char *end, uint64_t max, uint64_t *ret)
{
	return take_number(&pos, end, max, ret);
}

/* Sixteen digits at most, all of [pos, end). */
static bool hexadecimal_field(const char *pos, const char *end, uint64_t *ret)
{
	uint64_t value = 0;

	if (pos == end || end - pos > 16)
		return false;
	for (; pos < end; pos++) {
		const char *digits = "0123456789abcdef", *digit = *pos ? strchr(digits, *pos) : NULL;

		if (!digit)
			return false;
		value = value << 4 | (uint64_t)(digit - digits);
	}
	*ret = value;
	return true;
}

/* The kernel escapes newline and backslash in names, so that no name can begin
 * a line of its own; undo it. */
static void copy_name(const char *pos, const char *end, char ret_name[PSC_TASK_NAME_SIZE])
{
	size_t n = 0;

	while (pos < end && n < PSC_TASK_NAME_SIZE - 1) {
		char c = *pos++;

		if (c == '\\' && pos < end && (*pos == 'n' || *pos == '\\'))
			c = *pos++ == 'n' ? '\n' : '\\';
		if (c == '\0')
			break;
		ret_name[n++] = c;
	}
	ret_name[n] = '\0';
}

/* The mode of a task that its filter killed, since Linux 5.17 (SECCOMP_MODE_DEAD; no uapi header has it). */
#define MODE_DEAD 3

enum field {
	FIELD_NAME,
	FIELD_STATE,
	FIELD_TGID,
	FIELD_PID,
	FIELD_TRACER,
	FIELD_UID,
	FIELD_REQUIRED_COUNT, /* the kernel always writes those above */
	FIELD_NO_NEW_PRIVS = FIELD_REQUIRED_COUNT,
	FIELD_SECCOMP,
	FIELD_FILTERS,
	FIELD_CAP_EFFECTIVE,
	FIELD_COUNT,
};

static const char *const field_names[FIELD_COUNT] = {
	[FIELD_NAME] = "Name",
	[FIELD_STATE] = "State",
	[FIELD_TGID] = "Tgid",
	[FIELD_PID] = "Pid",
	[FIELD_TRACER] = "TracerPid",
	[FIELD_UID] = "Uid",
	[FIELD_NO_NEW_PRIVS] = "NoNewPrivs",
	[FIELD_SECCOMP] = "Seccomp",
	[FIELD_FILTERS] = "Seccomp_filters",
	[FIELD_CAP_EFFECTIVE] = "CapEff",
};

static enum field field_of(const char *key, size_t len)
{
	enum field f = 0;

	while (f < FIELD_COUNT && (strlen(field_names[f]) != len || memcmp(field_names[f], key, len)))
		f++;
	return f;
}

static bool parse_field(enum field field, const char *pos, const char *end, struct psc_task_state *task)
{
	uint64_t value = 0, effective = 0;

	switch (field) {
	case FIELD_NAME:
		copy_name(pos, end, task->name);
		return true;
	case FIELD_STATE:
		if (pos == end || *pos < 'A' || *pos > 'z')
			return false;
		task->state = *pos;
		return true;
	case FIELD_TGID:
		return number_field(pos, end, INT_MAX, &value) && (task->pid = value) > 0;
	case FIELD_PID:
		return number_field(pos, end, INT_MAX, &value) && (task->tid = value) > 0;
	case FIELD_TRACER:
		if (!number_field(pos, end, INT_MAX, &value))
			return false;
		task->tracer = value;
		return true;
	case FIELD_UID:
		if (!take_number(&pos, end, UINT32_MAX, &value) ||
		    !take_number(&pos, end, UINT32_MAX, &effective))
			return false;
		task->uid = value;
		task->euid = effective;
		return true;
	case FIELD_NO_NEW_PRIVS:
		if (!number_field(pos, end, 1, &value))
			return false;
		task->no_new_privs = value;
		return true;
	case FIELD_SECCOMP:
		if (!number_field(pos, end, MODE_DEAD, &value))
			return false;
		task->seccomp = value == MODE_DEAD ? SECCOMP_MODE_FILTER : (int)value;
		return true;
	case FIELD_FILTERS:
		if (!number_field(pos, end, INT_MAX, &value))
			return false;
		task->filters = value;
		return true;
	case FIELD_CAP_EFFECTIVE:
		return hexadecimal_field(pos, end, &task->cap_effective);
	default:
		return true;
	}
}

int psc_query_parse_status(const char *text, size_t len, struct psc_task_state *ret_task)
{
	struct psc_task_state task = { .seccomp = -1, .filters = -1, .no_new_privs = -1 };
	const char *pos = text, *end = text + len;
	unsigned int seen = 0;

	while (pos < end) {
		const char *newline = memchr(pos, '\n', end - pos);
		const char *line_end = newline ? newline : end;
		const char *colon = memchr(pos, ':', line_end - pos);
		enum field field = colon ? field_of(pos, colon - pos) : FIELD_COUNT;

		if (field < FIELD_COUNT) {
			const char *value = colon + 1;

			while (value < line_end && is_blank(*value))
				value++;
			if ((seen & (1u << field)) || !parse_field(field, value, line_end, &task))
				return -EBADMSG;
			seen |= 1u << field;
		}
		pos = newline ? newline + 1 : end;
	}
	if (~seen & ((1u << FIELD_REQUIRED_COUNT) - 1))
		return -EBADMSG;
	*ret_task = task;
	return 0;
}

/* pid (name) state ppid pgrp session tty tpgid flags ... starttime: fields 9 and
 * 22 of proc(5). The name is raw and may hold anything, ") R 1" too: only the
 * last parenthesis ends it. */
int psc_query_parse_stat(const char *text, size_t len, uint64_t *ret_start_time, uint64_t *ret_flags)
{
	const char *end = text + len;
	const char *pos = memrchr(text, ')', len);
	uint64_t flags = 0, start_time = 0, ignored;

	if (!pos || end - pos < 4 || pos[1] != ' ' || pos[3] != ' ')
		return -EBADMSG;
	pos += 3;
	for (int field = 4; field <= 22; field++) {
		while (pos < end && is_blank(*pos))
			pos++;
		if (pos < end && *pos == '-')
			pos++;
		if (!take_number(&pos, end, UINT64_MAX,
				 field == 9 ? &flags : field == 22 ? &start_time : &ignored))
			return -EBADMSG;
	}
	*ret_start_time = start_time;
	*ret_flags = flags;
	return 0;
}

/* ------------------------------------------------------------------ reading */

/* Read a whole file of procfs. -EBADMSG: more than STATUS_MAX bytes. */
static int read_text(int dir, const char *path, char **ret_text, size_t *ret_len)
{
	_cleanup_close_ int fd = openat(dir, path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	_cleanup_free_ char *text = NULL;
	size_t len = 0, size = 0;

	if (fd < 0)
		return -errno;
	for (;;) {
		ssize_t n;

		if (len == size) {
			char *larger;

			if (size >= STATUS_MAX)
				return -EBADMSG;
			size = size ? size * 4 : 4096;
			larger = realloc(text, size);
			if (!larger)
				return -ENOMEM;
			text = larger;
		}
		n = read(fd, text + len, size - len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		len += n;
	}
	*ret_text = psc_take_ptr(text);
	*ret_len = len;
	return 0;
}

/* Open /proc, sure that it is procfs and counts pids as this process does. */
static int open_proc(int *ret_fd)
{
	_cleanup_close_ int fd = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct statfs fs;
	char self[16];
	ssize_t n;

	if (fd < 0 && psc_is_shortage(-errno))
		return -errno;
	if (fd < 0 || fstatfs(fd, &fs) < 0 || fs.f_type != PROC_SUPER_MAGIC)
		return -EOPNOTSUPP;
	n = readlinkat(fd, "self", self, sizeof(self) - 1);
	if (n < 0)
		return -EXDEV;
	self[n] = '\0';
	if (atoi(self) != getpid())
		return -EXDEV;
	*ret_fd = psc_take_fd(fd);
	return 0;
}

/* What a missing /proc/PID means: nobody there, or somebody we may not see. */
static int missing_means(pid_t pid)
{
	return kill(pid, 0) == 0 || errno == EPERM ? -EACCES : -ESRCH;
}

static int open_process(pid_t pid, int *ret_dir)
{
	_cleanup_close_ int proc = -1;
	char name[16];
	int dir, r = open_proc(&proc);

	if (r < 0)
		return r;
	if (pid <= 0)
		return -ESRCH;
	snprintf(name, sizeof(name), "%d", pid);
	dir = openat(proc, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return errno == ENOENT ? missing_means(pid) : -errno;
	*ret_dir = dir;
	return 0;
}

/* procfs says ENOENT for a task that was gone at open(), ESRCH later. */
static int gone(int r)
{
	return r == -ENOENT ? -ESRCH : r;
}

static int read_task(int dir, pid_t tid, struct psc_task_state *ret_task)
{
	_cleanup_free_ char *text = NULL;
	size_t len;
	char path[32];
	int r;

	snprintf(path, sizeof(path), "task/%d/status", tid);
	r = read_text(dir, path, &text, &len);
	if (r < 0)
		return gone(r);
	/* A task that is reaped between open and read can leave an empty text. */
	return len ? psc_query_parse_status(text, len, ret_task) : -ESRCH;
}

bool psc_task_alive(const struct psc_task_state *task)
{
	return task->state != 'Z' && task->state != 'X' && task->state != 'x';
}

int psc_query_thread(pid_t pid, pid_t tid, struct psc_task_state *ret_task)
{
	_cleanup_close_ int dir = -1;
	int r = open_process(pid, &dir);

	return r < 0 ? r : read_task(dir, tid, ret_task);
}

/* -------------------------------------------------------------- processes */

/* The number that a pidfd has now. -ESRCH: its process was reaped. */
static int pidfd_pid(int pidfd, pid_t *ret_pid)
{
	_cleanup_close_ int proc = -1;
	_cleanup_free_ char *text = NULL;
	char path[40];
	size_t len;
	int r = open_proc(&proc);

	if (r < 0)
		return r;
	snprintf(path, sizeof(path), "self/fdinfo/%d", pidfd);
	r = read_text(proc, path, &text, &len);
	if (r < 0)
		return r == -ENOENT ? -EBADF : r;
	for (const char *pos = text, *end = text + len; pos < end;) {
		const char *newline = memchr(pos, '\n', end - pos);
		const char *line_end = newline ? newline : end;
		uint64_t pid;

		if (line_end - pos > 4 && !memcmp(pos, "Pid:", 4)) {
			if (!number_field(pos + 4, line_end, INT_MAX, &pid))
				return -ESRCH; /* the kernel says -1 */
			*ret_pid = pid;
			return pid ? 0 : -EXDEV;
		}
		pos = newline ? newline + 1 : end;
	}
	return -EBADF;
}

static int open_by_pidfd(int pidfd, pid_t *ret_pid, int *ret_dir)
{
	_cleanup_close_ int dir = -1;
	pid_t pid, again;
	int r;

	r = pidfd_pid(pidfd, &pid);
	if (r < 0)
		return r;
	r = open_process(pid, &dir);
	if (r < 0)
		return r;
	r = pidfd_pid(pidfd, &again);
	if (r < 0)
		return r;
	if (again != pid)
		return -ESRCH;
	*ret_pid = pid;
	*ret_dir = psc_take_fd(dir);
	return 0;
}

/* Is tid among the first n threads? Scans list threads in the same order, so the
 * search starts where the last one ended: one step each, not n. */
static bool knows(const struct psc_process_state *process, size_t n, pid_t tid, size_t *cursor)
{
	for (size_t i = 0; i < n; i++) {
		size_t at = (*cursor + i) % n;

		if (process->threads[at].tid == tid) {
			*cursor = at + 1;
			return true;
		}
	}
	return false;
}

static int add_thread(struct psc_process_state *process, size_t *size, const struct psc_task_state *task)
{
	if (process->n_threads == *size) {
		size_t larger = *size ? *size * 2 : 8;
		void *threads = reallocarray(process->threads, larger, sizeof(*process->threads));

		if (!threads)
			return -ENOMEM;
		process->threads = threads;
		*size = larger;
	}
	process->threads[process->n_threads++] = *task;
	return 0;
}

/* One pass over task/: adds the threads not known yet, returns how many. */
static int scan_threads(int dir, DIR *tasks, struct psc_process_state *process, size_t *size)
{
	size_t before = process->n_threads, cursor = 0;
	struct dirent *entry;

	rewinddir(tasks);
	while ((errno = 0, entry = readdir(tasks))) {
		struct psc_task_state task;
		pid_t tid = atoi(entry->d_name);
		int r;

		if (tid <= 0 || knows(process, before, tid, &cursor))
			continue;
		r = read_task(dir, tid, &task);
		if (r == -ESRCH)
			continue;
		if (r == 0)
			r = add_thread(process, size, &task);
		if (r < 0)
			return r;
	}
	return errno ? gone(-errno) : (int)(process->n_threads - before);
}

static int read_threads(int dir, struct psc_process_state *process)
{
	size_t size = 0;
	DIR *tasks;
	int fd, r = 1;

	fd = openat(dir, "task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return gone(-errno);
	tasks = fdopendir(fd);
	if (!tasks) {
		r = -errno;
		close(fd);
		return r;
	}
	for (int scan = 0; r > 0 && scan < SCANS_MAX; scan++)
		r = scan_threads(dir, tasks, process, &size);
	closedir(tasks);
	if (r < 0)
		return r;
	return process->n_threads ? 0 : -ESRCH;
}

/* The ELF header of the executable, if we may read it: the right to ptrace is
 * needed, so for strangers this stays unknown. */
static void read_machine(int dir, struct psc_process_state *process)
{
	_cleanup_close_ int fd = openat(dir, "exe", O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	unsigned char head[EI_NIDENT + 4];

	if (fd < 0 || pread(fd, head, sizeof(head), 0) != sizeof(head) || memcmp(head, ELFMAG, SELFMAG))
		return;
	process->elf_class = head[EI_CLASS];
	process->machine = head[EI_DATA] == ELFDATA2MSB ? head[EI_NIDENT + 2] << 8 | head[EI_NIDENT + 3] :
							  head[EI_NIDENT + 3] << 8 | head[EI_NIDENT + 2];
}

static int read_identity(int dir, struct psc_process_state *process)
{
	_cleanup_free_ char *text = NULL;
	uint64_t flags;
	size_t len;
	int r = read_text(dir, "stat", &text, &len);

	if (r < 0)
		return gone(r);
	if (!len)
		return -ESRCH;
	r = psc_query_parse_stat(text, len, &process->start_time, &flags);
	if (r < 0)
		return r;
	process->kernel_thread = flags & PF_KTHREAD;
	return 0;
}

int psc_query_process(pid_t pid, int pidfd, struct psc_process_state *ret_process)
{
	struct psc_process_state process = { .pid = pid };
	_cleanup_close_ int dir = -1;
	int r;

	if (pidfd >= 0)
		r = open_by_pidfd(pidfd, &process.pid, &dir);
	else
		r = open_process(pid, &dir);
	if (r < 0)
		return r;
	r = read_identity(dir, &process);
	if (r == 0)
		r = read_threads(dir, &process);
	if (r == 0 && process.threads[0].pid != process.pid)
		r = -EINVAL;
	if (r < 0) {
		psc_process_state_destroy(&process);
		return r;
	}
	read_machine(dir, &process);
	for (size_t i = 0; i < process.n_threads; i++)
		process.alive |= psc_task_alive(&process.threads[i]);
	*ret_process = process;
	return 0;
}

void psc_process_state_destroy(struct psc_process_state *process)
{
	if (!process)
		return;
	free(process->threads);
	process->threads = NULL;
	process->n_threads = 0;
}
