/* openat.c - open a file for a trapped task.
 *
 * Here, in the supervisor: read what the call asks for, once, and the task's identity
 * (caller.c); hold what its path begins at (root, cwd, dirfd) by descriptors from /proc;
 * and only then ask the listener whether the call still waits: if so, all of it was the
 * target's. The rest is done by opener.c, in a process that has the target's rights.
 *
 * The supervisor holds a pidfd of that process, and kills it when the request is over.
 */
#define _GNU_SOURCE
#include "opener.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
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
	/* Since Linux 6.4; before it made a file, which no caller wants. */
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
	/* Whether it is cached for the target, no other process can tell. */
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

/* ------------------------------------------------------------ where it begins */

/* What a file system of procfs says of a task that has ended, or that we may not ptrace (read). */
static int refusal(int error)
{
	if (psc_is_shortage(-error))
		return -error;
	return error == ENOENT || error == ESRCH ? -ESRCH : -EPERM;
}

static int open_task(pid_t tid, int *ret_proc)
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d", tid);
	fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return refusal(errno);
	*ret_proc = fd;
	return 0;
}

static int open_of(int proc, const char *what, int *ret_fd)
{
	int fd = openat(proc, what, O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return refusal(errno);
	*ret_fd = fd;
	return 0;
}

/* > 0: what the call is to fail with. */
static int open_start(int proc, int dirfd, int *ret_fd)
{
	char path[32];
	struct stat st;
	int fd;

	if (dirfd == AT_FDCWD)
		return open_of(proc, "cwd", ret_fd);
	if (dirfd < 0)
		return EBADF;
	snprintf(path, sizeof(path), "fd/%d", dirfd);
	if (fstatat(proc, path, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? EBADF : psc_is_shortage(-errno) ? -errno : -EPERM;
	fd = openat(proc, path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOTDIR ? ENOTDIR : errno == ENOENT ? EBADF : psc_is_shortage(-errno) ? -errno : -EPERM;
	*ret_fd = fd;
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

/* One reply and its descriptors, of which the first *ret_n of the two are the caller's. */
static int hear(int socket, int64_t deadline, struct psc_open_reply *ret_reply, int ret_fds[2])
{
	int r = wait_for(socket, deadline), n;

	if (r < 0)
		return r;
	n = psc_packet_receive(socket, ret_reply, sizeof(*ret_reply), ret_fds, 2);
	/* The opener died, or a signal of another process ended its child. */
	return n == -ECONNRESET ? -ECANCELED : n;
}

static void close_all(const int *fds, int n)
{
	for (int i = 0; i < n; i++)
		close(fds[i]);
}

/* Hear the reply of a kind, and how many descriptors are beside it; or its error, of either sign. The process of the
 * child is heard of before or after: both are waited for, so that no child is left that could not be ended. */
static int hear_kind(int socket, int64_t deadline, enum psc_open_reply_kind kind, int *process, struct psc_open_reply *ret_reply,
		     int ret_fds[2], int *ret_n)
{
	struct psc_open_reply reply;
	bool heard = false;
	int r = 0, kept[2], n_kept = 0;

	while (r == 0 && (!heard || *process < 0)) {
		int fds[2], n = hear(socket, deadline, &reply, fds);

		if (n < 0) {
			r = n;
		} else if (reply.kind == PSC_OPEN_STARTED && n == 1 && *process < 0) {
			*process = fds[0];
		} else if (reply.kind == (uint32_t)kind && !heard) {
			heard = true;
			*ret_reply = reply;
			memcpy(kept, fds, (size_t)n * sizeof(*fds));
			n_kept = n;
		} else {
			close_all(fds, n);
			r = reply.error ? reply.error : -EBADMSG;
		}
	}
	if (r == 0)
		r = ret_reply->error;
	if (r) {
		close_all(kept, n_kept);
		return r;
	}
	memcpy(ret_fds, kept, (size_t)n_kept * sizeof(*kept));
	*ret_n = n_kept;
	return 0;
}

/* Ends the process of a request, also if it is stopped or waits for a file system. */
static void end_process(int *process)
{
	if (*process < 0)
		return;
	(void)!psc_syscall(SYS_pidfd_send_signal, *process, SIGKILL, NULL, 0);
	close(*process);
	*process = -1;
}

/* Send a request. Descriptor 2, the socket of its answers, is made and closed here. */
static int send_request(int opener, const struct psc_open_request *q, int *fds, size_t n, int *ret_socket)
{
	_cleanup_close_ int ours = -1, theirs = -1;
	int pair[2], r;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	ours = pair[0];
	theirs = pair[1];
	fds[2] = theirs;
	r = psc_packet_send(opener, q, sizeof(*q), fds, n);
	fds[2] = -1;
	if (r < 0)
		return r == -ECONNRESET ? -EPIPE : r;
	*ret_socket = psc_take_fd(ours);
	return 0;
}

static int ask(int opener, const struct psc_open_request *q, int *fds, size_t n, struct psc_open_reply *ret_reply,
	       struct psc_opening *ret_opening)
{
	struct psc_opening o = *ret_opening;
	int found[2] = { -1, -1 }, n_found = 0, r = send_request(opener, q, fds, n, &o.socket);

	if (r < 0)
		return r;
	r = hear_kind(o.socket, psc_monotonic_ns() + (int64_t)o.timeout_ns, PSC_OPEN_FOUND, &o.process, ret_reply, found, &n_found);
	if (r == 0) {
		o.object = n_found > 0 ? found[0] : -1;
		o.parent = n_found > 1 ? found[1] : -1;
		o.creates = ret_reply->creates;
		memcpy(o.name, ret_reply->name, sizeof(o.name));
		o.name[NAME_MAX] = 0;
		if (o.object < 0)
			r = -EBADMSG;
	}
	if (r)
		psc_opening_destroy(&o);
	else
		*ret_opening = o;
	return r;
}

/* Nodes that a container's device policy lets everyone open: null, zero, full, random, urandom; ptmx; pseudo terminals. */
static bool is_common_device(const struct psc_open_reply *reply)
{
	unsigned int major = major(reply->device), minor = minor(reply->device);

	if (!S_ISCHR(reply->mode))
		return false;
	if (major == 1)
		return minor == 3 || minor == 5 || (minor >= 7 && minor <= 9);
	return (major == 5 && minor == 2) || (major >= 136 && major <= 143);
}

static int check_device(int proc, const struct psc_open_request *q, const struct psc_open_reply *reply,
			const struct psc_opening *opening)
{
	if (!(S_ISCHR(reply->mode) || S_ISBLK(reply->mode)) || q->flags & O_PATH || is_common_device(reply))
		return 0;
	return psc_caller_check_devices(proc, opening->process);
}

/* > 0: what the call is to fail with. */
static int read_start(int proc, const struct psc_open_request *q, int dirfd, int ret_fds[2])
{
	int r = open_of(proc, "root", &ret_fds[0]);

	/* An absolute path needs no dirfd, but the scope of openat2 is it. */
	if (r == 0 && q->path[0] == '/' && !(q->resolve & (RESOLVE_BENEATH | RESOLVE_IN_ROOT)))
		r = open_of(proc, "root", &ret_fds[1]);
	else if (r == 0)
		r = open_start(proc, dirfd, &ret_fds[1]);
	return r;
}

static int begin(int opener, struct psc_inbox *inbox, const struct psc_event *event, struct psc_open_request *q,
		 int fds[3 + PSC_NS_COUNT], struct psc_opening *opening)
{
	_cleanup_close_ int proc = -1;
	struct psc_open_reply reply;
	int dirfd = AT_FDCWD, r, valid;

	r = read_call(inbox, event, q, &dirfd);
	/* All is read through one descriptor, so of one task. */
	if (r == 0)
		r = open_task((pid_t)event->notif.n.pid, &proc);
	if (r == 0)
		r = read_start(proc, q, dirfd, fds);
	if (r == 0)
		r = psc_caller_read(proc, q, fds + 3);
	/* The call still waits: the memory was the caller's, and so was the number of the task. */
	valid = psc_event_valid(inbox, event);
	if (valid < 0)
		return valid;
	if (r)
		return r;
	opening->flags = q->flags;
	q->flags &= ~(uint64_t)O_CLOEXEC;
	r = ask(opener, q, fds, 3 + (size_t)__builtin_popcount(q->enters), &reply, opening);
	if (r == 0)
		r = check_device(proc, q, &reply, opening);
	return r;
}

int psc_open_begin(int opener, struct psc_inbox *inbox, const struct psc_event *event, uint64_t timeout_ns,
		   struct psc_opening *ret_opening)
{
	struct psc_opening opening = { .object = -1, .parent = -1, .socket = -1, .process = -1, .timeout_ns = timeout_ns };
	struct psc_open_request q;
	int fds[3 + PSC_NS_COUNT], r;

	if (event->notif.n.pid == 0)
		return -ESRCH;
	memset(&q, 0, sizeof(q));
	q.kind = PSC_OPEN_FIND;
	q.timeout_ns = timeout_ns;
	for (size_t i = 0; i < psc_array_size(fds); i++)
		fds[i] = -1;
	r = begin(opener, inbox, event, &q, fds, &opening);
	for (size_t i = 0; i < psc_array_size(fds); i++)
		psc_close_fd(&fds[i]);
	if (r)
		psc_opening_destroy(&opening);
	else
		*ret_opening = opening;
	return r;
}

/* What was opened is what was approved: a file to be made has no object yet, and a temporary one is another. */
static bool is_approved(const struct psc_opening *opening, int fd)
{
	return opening->creates || opening->flags & ONLY_TMPFILE || psc_same_object(opening->object, fd) ||
	       psc_same_by_fdinfo(opening->object, fd);
}

int psc_open_finish(struct psc_opening *opening, int *ret_fd)
{
	struct psc_open_reply reply;
	int r = psc_packet_send(opening->socket, "", 1, NULL, 0), fds[2] = { -1, -1 }, n = 0;

	/* A child that has ended cannot be told any more. */
	r = r == -EPIPE || r == -ECONNRESET ? -ECANCELED : r;
	if (r == 0)
		r = hear_kind(opening->socket, psc_monotonic_ns() + (int64_t)opening->timeout_ns, PSC_OPEN_DONE, &opening->process,
			      &reply, fds, &n);
	if (r == 0 && (n != 1 || !is_approved(opening, fds[0]))) {
		close_all(fds, n);
		r = -EBADMSG;
	}
	if (r == 0)
		*ret_fd = fds[0];
	psc_opening_destroy(opening);
	return r;
}

static bool opening_writes(const struct psc_opening *opening)
{
	return opening->creates || (opening->flags & (O_ACCMODE | O_TRUNC) && !(opening->flags & O_PATH));
}

/* A child of the opener asks the file systems: they may not answer. */
static int ask_within(int opener, const struct psc_opening *opening, const struct psc_place *place, int directory)
{
	struct psc_open_request q;
	struct psc_open_reply reply;
	_cleanup_close_ int socket = -1;
	int fds[4] = { place->object, directory, -1, place->parent }, process = -1, none[2], n = 0, r;

	memset(&q, 0, sizeof(q));
	q.kind = PSC_OPEN_WITHIN;
	q.flags = place->writes;
	q.timeout_ns = opening->timeout_ns;
	snprintf(q.path, sizeof(q.path), "%s", place->name);
	r = send_request(opener, &q, fds, place->parent < 0 ? 3 : 4, &socket);
	if (r == 0)
		r = hear_kind(socket, psc_monotonic_ns() + (int64_t)opening->timeout_ns, PSC_OPEN_DONE, &process, &reply, none, &n);
	end_process(&process);
	close_all(none, n);
	return r < 0 ? r : r > 0 ? -EBADMSG : reply.within;
}

int psc_opening_within(int opener, const struct psc_opening *opening, int directory)
{
	struct psc_place place = { opening->object, opening->parent, opening->creates ? "" : opening->name,
				   opening_writes(opening) };
	int r = psc_place_within(&place, directory, false);

	return r == -EAGAIN ? ask_within(opener, opening, &place, directory) : r;
}

int psc_directory_open(const char *path, int *ret_fd)
{
	struct open_how how = { .flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS };
	int fd = (int)psc_syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof(how));

	if (fd < 0)
		return fd;
	*ret_fd = fd;
	return 0;
}

void psc_opening_destroy(struct psc_opening *opening)
{
	if (!opening)
		return;
	end_process(&opening->process);
	psc_close_fd(&opening->object);
	psc_close_fd(&opening->parent);
	psc_close_fd(&opening->socket);
	opening->object = opening->parent = opening->socket = -1;
}
