/* openat.c - open a file for a trapped task, which asked for it.
 *
 * Here, in the supervisor: read what is asked and who asks, hold what its path begins
 * at (root, cwd, dirfd) by descriptors from /proc, and only then ask the listener
 * whether the call still waits: if so, all of it was the target's. The rest is done by
 * opener.c, in a process that has the target's rights.
 */
#define _GNU_SOURCE
#include "opener.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

/* The kernel's values; libc hides O_LARGEFILE on 64-bit machines and lacks FASYNC's name. */
#define KERNEL_O_LARGEFILE 0100000
#define KNOWN_FLAGS                                                                                        \
	(O_ACCMODE | O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_APPEND | O_NONBLOCK | O_SYNC | O_DSYNC |     \
	 O_ASYNC | O_DIRECT | KERNEL_O_LARGEFILE | O_DIRECTORY | O_NOFOLLOW | O_NOATIME | O_CLOEXEC |       \
	 O_PATH | O_TMPFILE)
#define PATH_FLAGS (O_DIRECTORY | O_NOFOLLOW | O_PATH | O_CLOEXEC)
#define KNOWN_RESOLVE \
	(RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH | RESOLVE_IN_ROOT | RESOLVE_CACHED)
#define ONLY_TMPFILE (O_TMPFILE & ~O_DIRECTORY)
#define MODES 07777
#define MAX_PROC_TEXT 16384
#define OVERFLOW_UID 65534

/* ------------------------------------------------------------- what is asked */

enum call { OPEN, OPENAT, OPENAT2, CREAT, OTHER };

static enum call call_of(const struct seccomp_data *data)
{
	static const char *const names[] = { "open", "openat", "openat2", "creat" };
	int arch = psc_arch_of(data->arch, (uint32_t)data->nr);
	int id = arch < 0 ? -1 : psc_syscall_by_number((enum psc_arch)arch, (uint32_t)data->nr);
	const char *name = psc_syscall_name_of_id(id);

	for (size_t i = 0; name && i < psc_array_size(names); i++)
		if (strcmp(name, names[i]) == 0)
			return (enum call)i;
	return OTHER;
}

/* As the kernel takes the flags of open, openat and creat: what it does not know it ignores. */
static void set_plain(struct psc_open_request *q, uint32_t flags, uint32_t mode)
{
	q->flags = flags & KNOWN_FLAGS;
	if (q->flags & O_PATH)
		q->flags &= PATH_FLAGS;
	if (q->flags & (O_CREAT | ONLY_TMPFILE))
		q->mode = mode & MODES;
}

static int check_flags(const struct psc_open_request *q)
{
	if (q->flags & ONLY_TMPFILE &&
	    (!(q->flags & O_DIRECTORY) || q->flags & O_CREAT || !(q->flags & (O_WRONLY | O_RDWR))))
		return EINVAL;
	/* Since Linux 6.4; before it made a file, which nobody wants. */
	if ((q->flags & (O_DIRECTORY | O_CREAT)) == (O_DIRECTORY | O_CREAT))
		return EINVAL;
	return 0;
}

static int check_how(const struct open_how *how)
{
	if (how->flags & ~(uint64_t)KNOWN_FLAGS || how->resolve & ~(uint64_t)KNOWN_RESOLVE)
		return EINVAL;
	if ((how->resolve & (RESOLVE_BENEATH | RESOLVE_IN_ROOT)) == (RESOLVE_BENEATH | RESOLVE_IN_ROOT))
		return EINVAL;
	if (how->flags & (O_CREAT | ONLY_TMPFILE) ? how->mode & ~(uint64_t)MODES : how->mode != 0)
		return EINVAL;
	if (how->flags & O_PATH && how->flags & ~(uint64_t)PATH_FLAGS)
		return EINVAL;
	/* Whether it is cached for the target, nobody else can tell. */
	return how->resolve & RESOLVE_CACHED ? EAGAIN : 0;
}

/* struct open_how may be of a later kernel: what is behind ours must be 0. */
static int read_how(struct psc_inbox *inbox, const struct psc_event *event, struct psc_open_request *q)
{
	const struct seccomp_data *data = &event->notif.n.data;
	uint64_t size = data->args[3];
	union {
		struct open_how how;
		uint8_t bytes[4096];
	} u = { 0 };
	ssize_t got;
	int r;

	if (size < sizeof(u.how))
		return EINVAL;
	if (size > sizeof(u))
		return E2BIG;
	got = psc_event_read(inbox, event, data->args[2], &u, size);
	if (got < 0)
		return got == -EFAULT ? EFAULT : (int)got;
	if ((uint64_t)got < size)
		return EFAULT;
	for (size_t i = sizeof(u.how); i < size; i++)
		if (u.bytes[i])
			return E2BIG;
	r = check_how(&u.how);
	if (r)
		return r;
	q->flags = u.how.flags;
	q->mode = (uint32_t)u.how.mode;
	q->resolve = u.how.resolve;
	return 0;
}

/* > 0: what the call is to fail with. *ret_dirfd may be AT_FDCWD. */
static int read_call(struct psc_inbox *inbox, const struct psc_event *event, struct psc_open_request *q, int *ret_dirfd)
{
	const struct seccomp_data *data = &event->notif.n.data;
	const __u64 *a = data->args;
	enum call call = call_of(data);
	uint64_t path = call == OPENAT || call == OPENAT2 ? a[1] : a[0];
	ssize_t got;
	int r = 0;

	if (call == OPEN)
		set_plain(q, (uint32_t)a[1], (uint32_t)a[2]);
	else if (call == OPENAT)
		set_plain(q, (uint32_t)a[2], (uint32_t)a[3]);
	else if (call == CREAT)
		set_plain(q, O_CREAT | O_WRONLY | O_TRUNC, (uint32_t)a[1]);
	else if (call == OPENAT2)
		r = read_how(inbox, event, q);
	else
		return -EOPNOTSUPP;
	if (r == 0)
		r = check_flags(q);
	if (r)
		return r;
	got = psc_event_read_string(inbox, event, path, q->path, sizeof(q->path));
	if (got < 0)
		return got == -EFAULT || got == -ENAMETOOLONG ? (int)-got : (int)got;
	*ret_dirfd = call == OPENAT || call == OPENAT2 ? (int)a[0] : AT_FDCWD;
	return got == 0 ? ENOENT : 0;
}

/* ---------------------------------------------------------------- who asks */

/* Not to be seen: a target that we may not ptrace (read). */
static int unseen(int error)
{
	return error == ENOENT || error == ESRCH ? -ESRCH : -EPERM;
}

static int open_of(pid_t tid, const char *what, int *ret_fd)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", tid, what);
	fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return unseen(errno);
	*ret_fd = fd;
	return 0;
}

/* > 0: what the call is to fail with. */
static int open_start(pid_t tid, int dirfd, int *ret_fd)
{
	char path[64];
	struct stat st;
	int fd;

	if (dirfd == AT_FDCWD)
		return open_of(tid, "cwd", ret_fd);
	if (dirfd < 0)
		return EBADF;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", tid, dirfd);
	if (lstat(path, &st) < 0)
		return errno == ENOENT ? EBADF : -EPERM;
	fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOTDIR ? ENOTDIR : errno == ENOENT ? EBADF : -EPERM;
	*ret_fd = fd;
	return 0;
}

static int read_proc_text(const char *path, char *ret_text, size_t size)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
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

static int take_numbers(struct psc_open_request *q, const char *text)
{
	uint64_t n[PSC_OPEN_GROUPS];
	size_t count;

	if (numbers(field(text, "Uid"), 10, n, 4) != 4)
		return -EBADMSG;
	q->fsuid = (uint32_t)n[3];
	if (numbers(field(text, "Gid"), 10, n, 4) != 4)
		return -EBADMSG;
	q->fsgid = (uint32_t)n[3];
	if (numbers(field(text, "CapEff"), 16, &q->caps, 1) != 1 || numbers(field(text, "Umask"), 8, n, 1) != 1)
		return -EBADMSG;
	q->umask = (uint32_t)n[0];
	count = numbers(field(text, "Groups"), 10, n, PSC_OPEN_GROUPS);
	if (count > PSC_OPEN_GROUPS)
		return -E2BIG;
	for (size_t i = 0; i < count; i++)
		q->groups[i] = (uint32_t)n[i];
	q->n_groups = (uint32_t)count;
	count = numbers(field(text, "NStgid"), 10, n, 32);
	if (count < 1 || count > 32)
		return -EBADMSG;
	q->pid[0] = (int32_t)n[0];
	q->pid[1] = (int32_t)n[count - 1];
	count = numbers(field(text, "NSpid"), 10, n, 32);
	if (count < 1 || count > 32)
		return -EBADMSG;
	q->tid[0] = (int32_t)n[0];
	q->tid[1] = (int32_t)n[count - 1];
	return 0;
}

static int same_namespace(pid_t tid, const char *kind, bool *ret_same)
{
	char theirs[64], ours[64];
	struct stat a, b;

	snprintf(theirs, sizeof(theirs), "/proc/%d/ns/%s", tid, kind);
	snprintf(ours, sizeof(ours), "/proc/self/ns/%s", kind);
	if (stat(ours, &b) < 0) { /* the kernel has no such namespaces */
		*ret_same = true;
		return 0;
	}
	if (stat(theirs, &a) < 0)
		return unseen(errno);
	*ret_same = a.st_dev == b.st_dev && a.st_ino == b.st_ino;
	return 0;
}

static int compare_namespaces(struct psc_open_request *q, pid_t tid)
{
	static const char *const kinds[] = { "user", "net", "ipc", "uts", "pid" };
	bool is_same;

	q->same_namespaces = true;
	for (size_t i = 0; i < psc_array_size(kinds); i++) {
		int r = same_namespace(tid, kinds[i], &is_same);

		if (r < 0)
			return r;
		q->same_namespaces &= is_same;
		if (i == 0 && !is_same) {
			/* What it may there is nothing here; and who it is must be known here. */
			q->caps = 0;
			if (q->fsuid == OVERFLOW_UID || q->fsgid == OVERFLOW_UID)
				return -EPERM;
		}
	}
	return 0;
}

static int read_caller(struct psc_open_request *q, pid_t tid)
{
	char path[64], text[MAX_PROC_TEXT];
	struct stat proc;
	int r;

	snprintf(path, sizeof(path), "/proc/%d/status", tid);
	r = read_proc_text(path, text, sizeof(text));
	if (r == 0)
		r = take_numbers(q, text);
	if (r == 0)
		r = compare_namespaces(q, tid);
	if (r < 0)
		return r;
	if (stat("/proc", &proc) < 0)
		return -errno;
	q->proc_dev = proc.st_dev;
	return 0;
}

/* ------------------------------------------------------------ the conversation */

int psc_opener_start(const char *path, int *ret_socket)
{
	return psc_role_start(path, "open", ret_socket);
}

static int wait_for(int socket, int64_t deadline)
{
	struct pollfd p = { .fd = socket, .events = POLLIN };
	int r;

	do {
		int64_t left = deadline - psc_monotonic_ns();
		struct timespec t = { left / 1000000000, left % 1000000000 };

		if (left <= 0)
			return -ETIMEDOUT;
		r = ppoll(&p, 1, &t, NULL);
	} while (r == 0 || (r < 0 && errno == EINTR));
	return r < 0 ? -errno : 0;
}

static int hear(int socket, uint64_t timeout_ns, struct psc_open_reply *ret_reply, int *ret_fd)
{
	int r = wait_for(socket, psc_monotonic_ns() + (int64_t)timeout_ns), fd = -1;

	if (r < 0)
		return r;
	r = psc_packet_receive(socket, ret_reply, sizeof(*ret_reply), &fd, 1);
	if (r < 0)
		/* Its alarm, or somebody, has ended it. */
		return r == -ECONNRESET ? -ETIMEDOUT : r;
	if (ret_reply->error || r != 1) {
		psc_close_fd(&fd);
		return ret_reply->error ? ret_reply->error : -EBADMSG;
	}
	*ret_fd = fd;
	return 0;
}

static int ask(int opener, const struct psc_open_request *q, int root, int start, struct psc_opening *ret_opening)
{
	_cleanup_close_ int ours = -1, theirs = -1;
	struct psc_open_reply reply;
	int pair[2], r;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	ours = pair[0];
	theirs = pair[1];
	r = psc_packet_send(opener, q, sizeof(*q), (int[]){ root, start, theirs }, 3);
	if (r < 0)
		return r == -ECONNRESET ? -EPIPE : r;
	close(psc_take_fd(theirs));
	r = hear(ours, q->timeout_ns, &reply, &ret_opening->object);
	if (r)
		return r;
	ret_opening->socket = psc_take_fd(ours);
	ret_opening->creates = reply.creates;
	memcpy(ret_opening->name, reply.name, sizeof(ret_opening->name));
	ret_opening->name[NAME_MAX] = 0;
	return 0;
}

int psc_open_begin(int opener, struct psc_inbox *inbox, const struct psc_event *event, uint64_t timeout_ns,
		   struct psc_opening *ret_opening)
{
	struct psc_opening opening = { .object = -1, .socket = -1, .timeout_ns = timeout_ns };
	struct psc_open_request q = { .timeout_ns = timeout_ns };
	_cleanup_close_ int root = -1, start = -1;
	pid_t tid = (pid_t)event->notif.n.pid;
	int dirfd = AT_FDCWD, r, valid;

	if (tid == 0)
		return -ESRCH;
	r = read_call(inbox, event, &q, &dirfd);
	if (r == 0)
		r = open_of(tid, "root", &root);
	/* An absolute path needs no dirfd, but the scope of openat2 is it. */
	if (r == 0 && q.path[0] == '/' && !(q.resolve & (RESOLVE_BENEATH | RESOLVE_IN_ROOT)))
		r = open_of(tid, "root", &start);
	else if (r == 0)
		r = open_start(tid, dirfd, &start);
	if (r == 0)
		r = read_caller(&q, tid);
	valid = psc_event_valid(inbox, event);
	if (valid < 0)
		return valid;
	if (r)
		return r;
	opening.flags = q.flags;
	q.flags &= ~(uint64_t)O_CLOEXEC;
	r = ask(opener, &q, root, start, &opening);
	if (r == 0)
		*ret_opening = opening;
	return r;
}

int psc_open_finish(struct psc_opening *opening, int *ret_fd)
{
	struct psc_open_reply reply;
	int r = psc_packet_send(opening->socket, "", 1, NULL, 0);

	if (r == 0)
		r = hear(opening->socket, opening->timeout_ns, &reply, ret_fd);
	psc_opening_destroy(opening);
	return r;
}

void psc_opening_destroy(struct psc_opening *opening)
{
	if (!opening)
		return;
	psc_close_fd(&opening->object);
	psc_close_fd(&opening->socket);
	opening->object = opening->socket = -1;
}
