/* walk.c - find what a path means to a target.
 *
 * The kernel resolves a path for the task that calls: from its root, its directory, with
 * its /proc/self. Here a path is resolved for another task, so step by step, with
 * O_PATH descriptors that have no effect on what they name:
 *
 *	at = root or start
 *	component of the path     a directory: at = it     a link: its text goes before the rest
 *
 * Invariant: no step follows a link inside the kernel. So no step leads to our root, or
 * through the "magic" links of procfs, which are no text. The links of procfs that
 * depend on the reader (self, thread-self, mounts, net) get the target's text. Our own
 * entry there does not exist: it would give us, and then the target, what only we may
 * see. ".." stops at the target's root. With RESOLVE_BENEATH or RESOLVE_IN_ROOT it must
 * lead to where the walk came from, else the tree was changed meanwhile: EAGAIN, as
 * openat2(2) has it.
 */
#define _GNU_SOURCE
#include "opener.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#ifndef ST_NOSYMFOLLOW
#define ST_NOSYMFOLLOW 0x2000 /* linux/statfs.h, which the C library does not repeat */
#endif

#define MAX_LINKS 40
#define MAX_DEPTH (PATH_MAX / 2)
#define PROC_ROOT_INO 1
#define OVERFLOW_UID 65534

struct identity {
	uint64_t mount, inode;
	uint32_t major, minor;
};

struct walk {
	const struct psc_open_request *request;
	int root;
	int at; /* owned */
	int links;
	uid_t fsuid; /* as this process's user namespace numbers it */
	bool sees_all_owners;
	size_t depth;			     /* below start, of a scoped walk */
	struct identity above[MAX_DEPTH + 1]; /* the directories that led to at */
	char rest[2 * PATH_MAX];
};

/* One component, cut off the front of what is left. */
struct component {
	char name[NAME_MAX + 1];
	bool last, slash; /* a slash follows */
};

static bool scoped(const struct walk *w)
{
	return w->request->resolve & (RESOLVE_BENEATH | RESOLVE_IN_ROOT);
}

static int identify(int fd, struct identity *ret)
{
	struct statx s;

	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO | STATX_MNT_ID, &s) < 0)
		return errno;
	*ret = (struct identity){ s.stx_mnt_id, s.stx_ino, s.stx_dev_major, s.stx_dev_minor };
	return 0;
}

static bool same(const struct identity *a, const struct identity *b)
{
	return a->mount == b->mount && a->inode == b->inode && a->major == b->major && a->minor == b->minor;
}

static int move(struct walk *w, int fd)
{
	struct identity from = { 0 }, to = { 0 };
	int r = identify(w->at, &from);

	if (r == 0)
		r = identify(fd, &to);
	if (r == 0 && w->request->resolve & RESOLVE_NO_XDEV && from.mount != to.mount)
		r = EXDEV;
	if (r) {
		close(fd);
		return r;
	}
	close(w->at);
	w->at = fd;
	return 0;
}

static int restart(struct walk *w, int from)
{
	int fd = fcntl(from, F_DUPFD_CLOEXEC, 0);

	if (fd < 0)
		return errno;
	w->depth = 0;
	return move(w, fd);
}

static int go_down(struct walk *w, int fd)
{
	int r = 0;

	if (scoped(w)) {
		if (w->depth == MAX_DEPTH)
			r = ENAMETOOLONG;
		else
			r = identify(w->at, &w->above[w->depth++]);
	}
	if (r) {
		close(fd);
		return r;
	}
	return move(w, fd);
}

static int go_up(struct walk *w)
{
	struct identity here = { 0 }, root = { 0 }, there = { 0 };
	int r, fd;

	if (scoped(w) && w->depth == 0)
		return w->request->resolve & RESOLVE_BENEATH ? EXDEV : 0;
	r = identify(w->at, &here);
	if (r == 0)
		r = identify(w->root, &root);
	if (r)
		return r;
	if (!scoped(w) && same(&here, &root))
		return 0;
	fd = openat(w->at, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return errno;
	if (scoped(w)) {
		r = identify(fd, &there);
		if (r == 0 && !same(&there, &w->above[--w->depth]))
			r = EAGAIN;
		if (r) {
			close(fd);
			return r;
		}
	}
	return move(w, fd);
}

/* ------------------------------------------------------------------- procfs */

static bool in_proc(int fd)
{
	struct statfs fs;

	return fstatfs(fd, &fs) == 0 && fs.f_type == PROC_SUPER_MAGIC;
}

static bool at_proc_root(const struct walk *w, struct stat *ret_st)
{
	return in_proc(w->at) && fstat(w->at, ret_st) == 0 && ret_st->st_ino == PROC_ROOT_INO;
}

/* Where the entries depend on the pid namespace of the process that opens them: this process is not in the target's. */
static bool differs_by_namespace(const char *name)
{
	static const char *const names[] = { "sys", "sysvipc", "keys", "key-users" };

	for (size_t i = 0; i < psc_array_size(names); i++)
		if (strcmp(name, names[i]) == 0)
			return true;
	return false;
}

static int check_proc(const struct walk *w, const char *name)
{
	char self[16];
	struct stat st;
	ssize_t n;

	if (!at_proc_root(w, &st))
		return 0;
	n = readlinkat(w->at, "self", self, sizeof(self) - 1);
	self[n < 0 ? 0 : n] = 0;
	if (strcmp(name, self) == 0)
		return ENOENT;
	return !w->request->same_pid_namespace && differs_by_namespace(name) ? EPERM : 0;
}

/* The text of a link of procfs, as the target would see it. */
static int read_proc_link(const struct walk *w, const char *name, char *ret_text, size_t size)
{
	struct open_how how = { .flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_NO_MAGICLINKS };
	const struct psc_open_request *q = w->request;
	struct stat st;
	ssize_t n;
	long fd;
	bool outer;

	if (at_proc_root(w, &st)) {
		outer = st.st_dev == q->proc_dev;
		if (strcmp(name, "thread-self") == 0)
			return snprintf(ret_text, size, "%d/task/%d", q->pid[!outer], q->tid[!outer]);
		if (strcmp(name, "self") == 0)
			return snprintf(ret_text, size, "%d", q->pid[!outer]);
		if (strcmp(name, "mounts") == 0 || strcmp(name, "net") == 0)
			return snprintf(ret_text, size, "%d/%s", q->pid[!outer], name);
	}
	fd = psc_syscall(SYS_openat2, w->at, name, &how, sizeof(how));
	if (fd >= 0)
		close((int)fd);
	if (fd == -ELOOP)
		return -ELOOP;
	n = readlinkat(w->at, name, ret_text, size);
	return n < 0 ? -errno : (int)n;
}

/* -------------------------------------------------------------------- links */

/* Two owners as stat() shows them to this process: in a user namespace all that are not
 * mapped there are shown as one number, and may be different. */
static bool same_owner(const struct walk *w, uid_t a, uid_t b)
{
	return a == b && (w->sees_all_owners || a != OVERFLOW_UID);
}

/* fs.protected_symlinks, whether it is set or not: a link in a sticky directory where all
 * may write is followed if the target owns the link, or the directory's owner does. */
static bool may_follow(const struct walk *w, const struct stat *link)
{
	struct stat dir;

	if (same_owner(w, link->st_uid, w->fsuid))
		return true;
	if (fstat(w->at, &dir) < 0)
		return false;
	return (dir.st_mode & (S_ISVTX | S_IWOTH)) != (S_ISVTX | S_IWOTH) || same_owner(w, dir.st_uid, link->st_uid);
}

/* fd: the link itself, so that what was looked at is what is read. */
static int read_link(const struct walk *w, const char *name, int fd, char *ret_text, size_t size)
{
	ssize_t n;

	if (in_proc(w->at))
		return read_proc_link(w, name, ret_text, size);
	n = readlinkat(fd, "", ret_text, size);
	return n < 0 ? -errno : (int)n;
}

/* The mount option nosymfollow, since Linux 5.10. */
static bool mount_forbids_links(int fd)
{
	struct statfs fs;

	return fstatfs(fd, &fs) == 0 && (fs.f_flags & ST_NOSYMFOLLOW);
}

static int follow(struct walk *w, const struct component *c, int fd, const struct stat *link)
{
	char text[PATH_MAX + 1], rest[sizeof(w->rest)];
	int n;

	if (w->request->resolve & RESOLVE_NO_SYMLINKS || ++w->links > MAX_LINKS || mount_forbids_links(fd))
		return ELOOP;
	if (c->last && !may_follow(w, link))
		return EACCES;
	n = read_link(w, c->name, fd, text, sizeof(text) - 1);
	if (n < 0)
		return -n;
	if (n == 0)
		return ENOENT;
	text[n] = 0;
	if ((size_t)snprintf(rest, sizeof(rest), "%s%s%s", text, c->slash ? "/" : "", w->rest) >= sizeof(rest))
		return ENAMETOOLONG;
	memcpy(w->rest, rest, sizeof(rest));
	if (w->rest[0] != '/')
		return 0;
	/* The kernel does not know its root yet, if the path was relative: it says EXDEV in any case. */
	if (w->request->resolve & RESOLVE_BENEATH ||
	    (w->request->resolve & RESOLVE_NO_XDEV && !scoped(w) && w->request->path[0] != '/'))
		return EXDEV;
	return restart(w, w->root);
}

/* --------------------------------------------------------------- components */

/* 1: taken. 0: nothing is left. */
static int take_component(struct walk *w, struct component *ret)
{
	const char *from = w->rest + strspn(w->rest, "/"), *after;
	size_t n = strcspn(from, "/");

	if (n == 0)
		return 0;
	if (n > NAME_MAX)
		return -ENAMETOOLONG;
	memcpy(ret->name, from, n);
	ret->name[n] = 0;
	after = from + n + strspn(from + n, "/");
	ret->slash = from[n] == '/';
	ret->last = *after == 0;
	memmove(w->rest, after, strlen(after) + 1);
	return 1;
}

/* A directory on the way: 0, at is it now; or a link: its text is before the rest. */
static int pass(struct walk *w, const struct component *c)
{
	int fd = openat(w->at, c->name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), r;
	struct stat st;

	if (fd >= 0)
		return go_down(w, fd);
	if (errno != ENOTDIR)
		return errno;
	/* O_DIRECTORY came first: only with it the kernel mounts what is mounted on demand. */
	fd = openat(w->at, c->name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return errno;
	if (fstat(fd, &st) < 0)
		r = errno;
	else if (S_ISDIR(st.st_mode))
		return go_down(w, fd);
	else
		r = S_ISLNK(st.st_mode) ? follow(w, c, fd, &st) : ENOTDIR;
	close(fd);
	return r;
}

/* What the open must not be, or not here. */
static int judge(const struct walk *w, const struct component *c, int fd, const struct stat *st)
{
	uint64_t flags = w->request->flags;
	struct identity here = { 0 }, there = { 0 };
	struct stat dir;

	if (flags & O_CREAT && flags & O_EXCL)
		return EEXIST;
	if (c->slash && !S_ISDIR(st->st_mode))
		return ENOTDIR;
	if (flags & O_CREAT && S_ISDIR(st->st_mode))
		return EISDIR;
	if (w->request->resolve & RESOLVE_NO_XDEV &&
	    (identify(w->at, &here) || identify(fd, &there) || here.mount != there.mount))
		return EXDEV;
	if (flags & O_PATH)
		return 0;
	if (S_ISFIFO(st->st_mode) && !(flags & O_NONBLOCK))
		return EOPNOTSUPP;
	if (S_ISCHR(st->st_mode) && st->st_rdev == makedev(5, 0)) /* /dev/tty: it would be ours */
		return ENXIO;
	if (!(flags & O_CREAT) || !(S_ISREG(st->st_mode) || S_ISFIFO(st->st_mode)))
		return 0;
	/* fs.protected_regular and _fifos, whether they are set or not. */
	if (fstat(w->at, &dir) < 0)
		return errno;
	if (dir.st_mode & S_ISVTX && dir.st_mode & (S_IWOTH | S_IWGRP) && !same_owner(w, st->st_uid, dir.st_uid) &&
	    !same_owner(w, st->st_uid, w->fsuid))
		return EACCES;
	return 0;
}

static int arrive_at_directory(struct walk *w, struct psc_found *ret)
{
	if (w->request->flags & O_CREAT)
		return w->request->flags & O_EXCL ? EEXIST : EISDIR;
	ret->fd = psc_take_fd(w->at);
	ret->mode = S_IFDIR;
	return 0;
}

static int to_be_made(struct walk *w, const struct component *c, struct psc_found *ret)
{
	if (!(w->request->flags & O_CREAT))
		return ENOENT;
	ret->fd = psc_take_fd(w->at);
	ret->creates = true;
	ret->mode = S_IFDIR;
	memcpy(ret->name, c->name, sizeof(ret->name));
	return 0;
}

/* The last component: 0 with ret->fd >= 0: found; with -1: it was a link, go on. */
static int arrive(struct walk *w, const struct component *c, struct psc_found *ret)
{
	_cleanup_close_ int fd = -1;
	uint64_t flags = w->request->flags;
	struct stat st;
	int r;

	if (c->slash && flags & O_CREAT)
		return EISDIR;
	fd = openat(w->at, c->name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? to_be_made(w, c, ret) : errno;
	if (fstat(fd, &st) < 0)
		return errno;
	if (S_ISLNK(st.st_mode)) {
		if (flags & O_CREAT && flags & O_EXCL)
			return EEXIST;
		if (c->slash || !(flags & O_NOFOLLOW))
			return follow(w, c, fd, &st);
		if (flags & O_DIRECTORY)
			return ENOTDIR;
		if (!(flags & O_PATH))
			return ELOOP;
	}
	r = judge(w, c, fd, &st);
	if (r)
		return r;
	ret->fd = psc_take_fd(fd);
	ret->mode = st.st_mode;
	ret->device = st.st_rdev;
	if (!S_ISDIR(st.st_mode)) {
		ret->parent = psc_take_fd(w->at);
		memcpy(ret->name, c->name, sizeof(ret->name));
	}
	return 0;
}

static int step(struct walk *w, const struct component *c, struct psc_found *ret)
{
	int r = check_proc(w, c->name);

	if (r)
		return r;
	if (strcmp(c->name, ".") == 0)
		return 0;
	if (strcmp(c->name, "..") == 0)
		return go_up(w);
	return c->last ? arrive(w, c, ret) : pass(w, c);
}

static int begin(struct walk *w, int root, int start)
{
	const struct psc_open_request *q = w->request;

	w->root = q->resolve & RESOLVE_IN_ROOT ? start : root;
	w->at = fcntl(start, F_DUPFD_CLOEXEC, 0);
	if (w->at < 0)
		return errno;
	memcpy(w->rest, q->path, sizeof(q->path));
	if (q->path[0] != '/')
		/* Inside procfs no name tells any more what depends on the namespace. */
		return in_proc(start) && !q->same_pid_namespace ? EPERM : 0;
	return q->resolve & RESOLVE_BENEATH ? EXDEV : restart(w, w->root);
}

int psc_walk(const struct psc_open_request *request, int root, int start, struct psc_found *ret_found)
{
	_cleanup_free_ struct walk *w = calloc(1, sizeof(*w));
	struct psc_found found = { .fd = -1, .parent = -1 };
	struct component c;
	int r;

	if (!w)
		return ENOMEM;
	w->request = request;
	w->at = -1;
	w->fsuid = (uid_t)setfsuid((uid_t)-1);
	w->sees_all_owners = !(request->enters & 1u << PSC_NS_USER);
	r = begin(w, root, start);
	while (r == 0 && found.fd < 0) {
		r = take_component(w, &c);
		if (r == 1)
			r = step(w, &c, &found);
		else
			r = r < 0 ? -r : arrive_at_directory(w, &found);
	}
	psc_close_fd(&w->at);
	if (r == 0)
		*ret_found = found;
	return r;
}
