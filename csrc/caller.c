/* caller.c - the identity of the task that a file is opened for, as /proc tells it.
 *
 * All is read below one descriptor of /proc/TID, so of one task, while it waits in its
 * call: only the task itself could change its credentials and namespaces. What is not
 * understood, or is longer than there is room for, refuses the call.
 */
#define _GNU_SOURCE
#include "opener.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_TEXT 16384 /* more than 1,024 groups, or the 340 lines of a map, take */
#define OVERFLOW_ID 65534
#define ALL_IDS 4294967295u

static int unseen(int error)
{
	if (psc_is_shortage(-error))
		return -error;
	return error == ENOENT || error == ESRCH ? -ESRCH : -EPERM;
}

static int read_text(int at, const char *path, char *ret_text, size_t size)
{
	_cleanup_close_ int fd = openat(at, path, O_RDONLY | O_CLOEXEC);
	size_t have = 0;

	if (fd < 0)
		return unseen(errno);
	while (have < size - 1) {
		ssize_t n = read(fd, ret_text + have, size - 1 - have);

		if (n < 0)
			return unseen(errno);
		if (n == 0) {
			ret_text[have] = 0;
			return 0;
		}
		have += (size_t)n;
	}
	return -E2BIG;
}

/* Behind "\nname:"; NULL: there is no such line. */
static const char *field(const char *text, const char *name)
{
	char key[32];
	int n = snprintf(key, sizeof(key), "\n%s:", name);
	const char *line = strstr(text, key);

	return line ? line + n : NULL;
}

/* The numbers of one line; returns how many there are, at most size are written. */
static size_t numbers(const char *at, int base, uint64_t *ret, size_t size)
{
	size_t n = 0;

	while (at) {
		char *end;
		uint64_t value;

		at += strspn(at, " \t");
		if (*at == '\n') /* strtoull would go on there */
			break;
		value = strtoull(at, &end, base);
		if (end == at)
			break;
		if (n < size)
			ret[n] = value;
		n++;
		at = end;
	}
	return n;
}

/* ---------------------------------------------------------------- credentials */

static int read_ids(const char *text, struct psc_open_ids *ret)
{
	uint64_t n[PSC_OPEN_GROUPS];
	size_t count;

	if (numbers(field(text, "Uid"), 10, n, PSC_ID_COUNT) != PSC_ID_COUNT)
		return -EBADMSG;
	for (size_t i = 0; i < PSC_ID_COUNT; i++)
		ret->uid[i] = (uint32_t)n[i];
	if (numbers(field(text, "Gid"), 10, n, PSC_ID_COUNT) != PSC_ID_COUNT)
		return -EBADMSG;
	for (size_t i = 0; i < PSC_ID_COUNT; i++)
		ret->gid[i] = (uint32_t)n[i];
	count = numbers(field(text, "Groups"), 10, n, PSC_OPEN_GROUPS);
	if (count > PSC_OPEN_GROUPS)
		return -E2BIG;
	for (size_t i = 0; i < count; i++)
		ret->groups[i] = (uint32_t)n[i];
	ret->n_groups = (uint32_t)count;
	return 0;
}

static int read_rights(const char *text, struct psc_open_request *q)
{
	uint64_t n[1];

	if (numbers(field(text, "CapEff"), 16, &q->effective, 1) != 1 || numbers(field(text, "CapPrm"), 16, &q->permitted, 1) != 1 ||
	    numbers(field(text, "CapInh"), 16, &q->inheritable, 1) != 1 || numbers(field(text, "Umask"), 8, n, 1) != 1)
		return -EBADMSG;
	q->umask = (uint32_t)n[0];
	if (numbers(field(text, "NoNewPrivs"), 10, n, 1) != 1)
		return -EBADMSG;
	q->no_new_privs = n[0];
	return 0;
}

/* In this pid namespace and in the target's own. */
static int read_pids(const char *text, const char *name, int32_t ret[2])
{
	uint64_t n[32];
	size_t count = numbers(field(text, name), 10, n, 32);

	if (count < 1 || count > 32)
		return -EBADMSG;
	ret[0] = (int32_t)n[0];
	ret[1] = (int32_t)n[count - 1];
	return 0;
}

static int read_status(int proc, struct psc_open_request *q)
{
	char text[MAX_TEXT];
	int r = read_text(proc, "status", text, sizeof(text));

	if (r == 0)
		r = read_ids(text, &q->outer);
	if (r == 0)
		r = read_rights(text, q);
	if (r == 0)
		r = read_pids(text, "NStgid", q->pid);
	if (r == 0)
		r = read_pids(text, "NSpid", q->tid);
	return r;
}

/* ---------------------------------------------------------------- namespaces */

static int open_namespace(int proc, const char *path, struct stat *ret_st)
{
	_cleanup_close_ int fd = openat(proc, path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fstat(fd, ret_st) < 0)
		return unseen(errno);
	return psc_take_fd(fd);
}

/* A descriptor for each that is not ours: the opener's are ours, or it refuses. */
static int read_namespaces(int proc, struct psc_open_request *q, int ret_fds[PSC_NS_COUNT])
{
	uint64_t ours[PSC_NS_COUNT];
	size_t n = 0;

	psc_identity_namespaces(ours);
	for (int kind = 0; kind < PSC_NS_COUNT; kind++) {
		char path[32];
		struct stat st;
		int fd;

		if (ours[kind] == 0) /* the kernel has no such namespaces */
			continue;
		snprintf(path, sizeof(path), "ns/%s", psc_open_namespaces[kind]);
		if (fstatat(proc, path, &st, 0) < 0)
			return unseen(errno);
		q->namespaces[kind] = st.st_ino;
		if (kind == PSC_NS_PID || st.st_ino == ours[kind])
			continue;
		fd = open_namespace(proc, path, &st);
		if (fd < 0)
			return fd;
		ret_fds[n++] = fd;
		q->namespaces[kind] = st.st_ino;
		q->enters |= 1u << kind;
	}
	return 0;
}

/* ------------------------------------------------------- ids of user namespaces */

struct range {
	uint64_t inner, outer, count;
};

static int read_map(int proc, const char *path, struct range ret[340], size_t *ret_n)
{
	char text[MAX_TEXT], *line = text, *end;
	size_t n = 0;
	int r = read_text(proc, path, text, sizeof(text));

	for (; r == 0 && (end = strchr(line, '\n')); line = end + 1) {
		uint64_t v[3];

		if (n == 340 || numbers(line, 10, v, 3) != 3)
			return -EBADMSG;
		ret[n++] = (struct range){ v[0], v[1], v[2] };
	}
	if (r == 0)
		*ret_n = n;
	return r;
}

static bool to_inner(const struct range *map, size_t n, uint32_t *id)
{
	for (size_t i = 0; i < n; i++)
		if (*id >= map[i].outer && *id - map[i].outer < map[i].count) {
			*id = (uint32_t)(map[i].inner + (*id - map[i].outer));
			return *id != UINT32_MAX; /* that means "as it is" to setresuid() */
		}
	return false;
}

/* The ids as the target's user namespace numbers them; false: not all have a number there. */
static int read_inner(int proc, struct psc_open_request *q)
{
	struct range map[340];
	size_t n = 0;
	bool all = true;
	int r;

	q->inner = q->outer;
	r = read_map(proc, "uid_map", map, &n);
	for (int i = 0; r == 0 && i < PSC_ID_COUNT; i++)
		all &= to_inner(map, n, &q->inner.uid[i]);
	if (r == 0)
		r = read_map(proc, "gid_map", map, &n);
	for (int i = 0; r == 0 && i < PSC_ID_COUNT; i++)
		all &= to_inner(map, n, &q->inner.gid[i]);
	for (uint32_t i = 0; r == 0 && i < q->inner.n_groups; i++)
		all &= to_inner(map, n, &q->inner.groups[i]);
	q->has_inner = r == 0 && all;
	return r;
}

/* Where ids are missing in our own user namespace, they are all shown as one number: which is meant cannot be told. */
static int check_shown(const char *path, const uint32_t *ids, size_t n)
{
	struct range map[340];
	size_t n_map = 0;
	int r;

	for (size_t i = 0; i < n; i++) {
		if (ids[i] != OVERFLOW_ID)
			continue;
		r = read_map(AT_FDCWD, path, map, &n_map);
		if (r < 0)
			return r;
		return n_map == 1 && map[0].outer == 0 && map[0].count == ALL_IDS ? 0 : -EPERM;
	}
	return 0;
}

/* ----------------------------------------------------------------------- label */

/* No security module answers: ENOENT, EINVAL. */
static int read_label(int proc, struct psc_open_request *q)
{
	_cleanup_close_ int fd = openat(proc, "attr/current", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, q->label, sizeof(q->label));

	if (n < 0) {
		memset(q->label, 0, sizeof(q->label));
		return errno == ENOENT || errno == EINVAL ? 0 : unseen(errno);
	}
	if (n == sizeof(q->label))
		return -E2BIG;
	memset(q->label + n, 0, sizeof(q->label) - (size_t)n);
	q->label[strcspn(q->label, "\n")] = 0;
	return 0;
}

int psc_caller_read(int proc, struct psc_open_request *q, int ret_fds[PSC_NS_COUNT])
{
	struct stat st;
	int r = read_status(proc, q);

	if (r == 0)
		r = read_namespaces(proc, q, ret_fds);
	if (r == 0 && q->enters & 1u << PSC_NS_USER)
		r = read_inner(proc, q);
	if (r == 0)
		r = check_shown("/proc/thread-self/uid_map", q->outer.uid, PSC_ID_COUNT);
	if (r == 0)
		r = check_shown("/proc/thread-self/gid_map", q->outer.gid, PSC_ID_COUNT);
	/* Here they are common: a user's groups in a container of that user. They matter only if the opener's list differs. */
	if (r == 0)
		q->hides_groups = check_shown("/proc/thread-self/gid_map", q->outer.groups, q->outer.n_groups) < 0;
	if (r == 0)
		r = read_label(proc, q);
	if (r < 0)
		return r;
	if (stat("/proc", &st) < 0)
		return -errno;
	q->proc_dev = st.st_dev;
	return 0;
}

/* --------------------------------------------------------------------- devices */

/* The line of a hierarchy of cgroups that can hold a device policy: v2, or v1's of devices. */
static bool decides_devices(const char *line)
{
	const char *names = strchr(line, ':'), *end = names ? strchr(names + 1, ':') : NULL;
	const char *found;

	if (!end)
		return false;
	if (strncmp(line, "0::", 3) == 0)
		return true;
	found = strstr(names, "devices");
	return found && found < end && (found[-1] == ':' || found[-1] == ',') && (found[7] == ':' || found[7] == ',');
}

static void keep_deciding(char *text)
{
	char *to = text, *line = text, *end;

	for (; (end = strchr(line, '\n')); line = end + 1)
		if (decides_devices(line)) {
			memmove(to, line, (size_t)(end + 1 - line));
			to += end + 1 - line;
		}
	*to = 0;
}

static int pid_of(int pidfd, pid_t *ret_pid)
{
	char path[64], text[1024];
	uint64_t pid;
	int r;

	snprintf(path, sizeof(path), "/proc/thread-self/fdinfo/%d", pidfd);
	r = read_text(AT_FDCWD, path, text, sizeof(text));
	if (r < 0)
		return r;
	if (numbers(field(text, "Pid"), 10, &pid, 1) != 1 || (int64_t)pid <= 0)
		return -ESRCH;
	*ret_pid = (pid_t)pid;
	return 0;
}

static int mount_and_inode(int fd, uint64_t ret[2])
{
	char path[64], text[1024];
	int r;

	snprintf(path, sizeof(path), "/proc/thread-self/fdinfo/%d", fd);
	r = read_text(AT_FDCWD, path, text, sizeof(text));
	if (r == 0 && (numbers(field(text, "mnt_id"), 10, &ret[0], 1) != 1 || numbers(field(text, "ino"), 10, &ret[1], 1) != 1))
		r = -EBADMSG;
	return r;
}

bool psc_same_by_fdinfo(int a, int b)
{
	uint64_t x[2], y[2];

	return mount_and_inode(a, x) == 0 && mount_and_inode(b, y) == 0 && x[0] == y[0] && x[1] == y[1];
}

int psc_caller_check_devices(int proc, int pidfd)
{
	char path[64], theirs[MAX_TEXT], ours[MAX_TEXT];
	pid_t pid;
	int r = pid_of(pidfd, &pid);

	if (r < 0)
		return r;
	snprintf(path, sizeof(path), "/proc/%d/cgroup", pid);
	r = read_text(proc, "cgroup", theirs, sizeof(theirs));
	if (r == 0)
		r = read_text(AT_FDCWD, path, ours, sizeof(ours));
	if (r < 0)
		return r;
	keep_deciding(theirs);
	keep_deciding(ours);
	return strcmp(theirs, ours) == 0 ? 0 : -ENODEV;
}
