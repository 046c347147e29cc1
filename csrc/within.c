/* within.c - is what a target opens below a directory of the supervisor?
 *
 * Names decide nothing: a target with mounts of its own gives any object any path. So
 * the object is looked for where the supervisor sees it, and compared:
 *
 *	climb   from the object by ".." to a directory that is `directory` by device and
 *	        inode. That takes the target's mounts; it only tells how many names to take.
 *	descend from the supervisor's descriptor of `directory` by these names, below it
 *	        and without links, in the supervisor's mounts.
 *	compare what is there with the object: device, inode, type, and file handle.
 *
 * Both descriptors are open meanwhile, so an inode number cannot be another file's. If
 * they are the same, the kernel has just led from `directory` down to the very object,
 * over mounts that the supervisor sees: that is what "below" means here. Whatever the
 * climb went over, wrong names only lead to another object, and to no.
 *
 *  - Hard links: the name by which the target reached the object is what is judged.
 *  - Mounts below `directory` that the supervisor sees belong to it; mounts that only
 *    the target sees do not, and neither does a detached tree of other objects.
 *  - The object is opened by the target's mount. That must not allow more than the
 *    supervisor's does: neither writing, nor devices, programs or setuid.
 *  - A rename between climb and descent is another name: it is tried again some times.
 *    A rename after it changes nothing: the object was below when it was judged, and
 *    exactly that is opened.
 *  - Unlinked objects have no name below `directory`.
 *
 * All uses descriptors by O_PATH, so nothing is opened. The first try asks no file
 * system (RESOLVE_CACHED): the target's walk has just brought the names into the cache.
 */
#define _GNU_SOURCE
#include "opener.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>

#define MAX_CLIMB (PATH_MAX / 2)
#define TRIES 8
#define HANDLE_SIZE 128 /* MAX_HANDLE_SZ, larger than any file system's */

struct object {
	uint64_t mount, inode;
	uint32_t major, minor, type;
};

static int identify(int fd, struct object *ret)
{
	struct statx s;

	/* AT_STATX_DONT_SYNC: from what the kernel knows, without asking a server. */
	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO | STATX_TYPE | STATX_MNT_ID, &s) < 0)
		return -errno;
	*ret = (struct object){ s.stx_mnt_id, s.stx_ino, s.stx_dev_major, s.stx_dev_minor, s.stx_mode & S_IFMT };
	return 0;
}

static bool same_inode(const struct object *a, const struct object *b)
{
	return a->inode == b->inode && a->major == b->major && a->minor == b->minor && a->type == b->type;
}

union handle {
	struct file_handle header;
	uint8_t bytes[sizeof(struct file_handle) + HANDLE_SIZE];
};

static bool get_handle(int fd, union handle *ret)
{
	int mount;

	*ret = (union handle){ .header.handle_bytes = HANDLE_SIZE };
	return name_to_handle_at(fd, "", &ret->header, &mount, AT_EMPTY_PATH) == 0;
}

/* Inode numbers that servers make up need not be unique; file handles are. Not every file system has them. */
static bool same_handle(int a, int b)
{
	union handle h, i;
	bool has = get_handle(a, &h);

	if (has != get_handle(b, &i))
		return false;
	return !has || (h.header.handle_bytes == i.header.handle_bytes &&
			memcmp(h.bytes, i.bytes, sizeof(h.header) + h.header.handle_bytes) == 0);
}

bool psc_same_object(int a, int b)
{
	struct object x = { 0 }, y = { 0 };

	return identify(a, &x) == 0 && identify(b, &y) == 0 && same_inode(&x, &y) && same_handle(a, b);
}

static int open_at(int at, const char *path, uint64_t flags, uint64_t resolve, bool may_wait)
{
	struct open_how how = { .flags = O_PATH | O_CLOEXEC | flags, .resolve = resolve | (may_wait ? 0 : RESOLVE_CACHED) };

	return (int)psc_syscall(SYS_openat2, at, path, &how, sizeof(how));
}

/* How many names lead from directory to at; -ENOENT: none. Takes at. */
static int climb(int at, const struct object *directory, bool may_wait)
{
	_cleanup_close_ int here = at;
	struct object now, above;
	int r = identify(here, &now);

	for (int depth = 0; r == 0 && depth <= MAX_CLIMB; depth++) {
		int up;

		if (same_inode(&now, directory))
			return depth;
		up = open_at(here, "..", O_DIRECTORY, 0, may_wait);
		if (up < 0)
			return up;
		close(here);
		here = up;
		r = identify(here, &above);
		if (r == 0 && same_inode(&now, &above) && now.mount == above.mount)
			return -ENOENT; /* the root of the namespace, or of a detached tree */
		now = above;
	}
	return r < 0 ? r : -ENOENT;
}

/* The last names of the path that the kernel shows of at; they are a guess. */
static int guess_names(int at, int depth, const char *last, char ret_path[2 * PATH_MAX])
{
	char link[32], text[PATH_MAX];
	const char *from;
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/thread-self/fd/%d", at);
	n = readlink(link, text, sizeof(text));
	if (n < 0 || n == sizeof(text))
		return n < 0 ? -errno : -ENAMETOOLONG;
	text[n] = 0;
	from = text + n;
	for (int i = 0; i < depth; i++) {
		do
			if (from == text)
				return -ENOENT;
		while (*--from != '/');
	}
	snprintf(ret_path, 2 * PATH_MAX, "%s%s%s", depth ? from + 1 : "", depth && *last ? "/" : "", last);
	return 0;
}

/* 1: the object's mount allows no more than the other. fstatvfs() asks the file system. */
static int mount_allows_no_more(int object, int theirs, bool writes, bool may_wait)
{
	struct object a, b;
	struct statvfs x, y;
	unsigned long held;

	if (identify(object, &a) < 0 || identify(theirs, &b) < 0)
		return 0;
	if (a.mount == b.mount)
		return 1;
	if (!may_wait)
		return -EAGAIN;
	if (fstatvfs(object, &x) < 0 || fstatvfs(theirs, &y) < 0)
		return 0;
	held = y.f_flag & (ST_NOSUID | ST_NODEV | ST_NOEXEC | (writes ? ST_RDONLY : 0));
	return (held & ~x.f_flag) == 0;
}

/* -ESTALE: the names have led to something else. */
static int descend(const struct psc_place *place, int directory, const char *path, bool may_wait)
{
	_cleanup_close_ int fd = *path ? open_at(directory, path, O_NOFOLLOW,
						 RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS, may_wait) :
					 fcntl(directory, F_DUPFD_CLOEXEC, 0);

	if (fd < 0)
		return fd == -EAGAIN && !may_wait ? -EAGAIN : -ESTALE;
	if (!psc_same_object(place->object, fd))
		return -ESTALE;
	return mount_allows_no_more(place->object, fd, place->writes, may_wait);
}

static int try_once(const struct psc_place *place, int directory, const struct object *identity, bool may_wait)
{
	int base = place->parent < 0 ? place->object : place->parent, at = fcntl(base, F_DUPFD_CLOEXEC, 0), depth, r;
	char path[2 * PATH_MAX];

	if (at < 0)
		return -errno;
	depth = climb(at, identity, may_wait);
	if (depth < 0)
		return depth == -EAGAIN && !may_wait ? -EAGAIN : 0;
	r = guess_names(base, depth, place->parent < 0 ? "" : place->name, path);
	return r < 0 ? -ESTALE : descend(place, directory, path, may_wait);
}

int psc_place_within(const struct psc_place *place, int directory, bool may_wait)
{
	struct object identity;
	int r = identify(directory, &identity);

	if (r < 0)
		return r;
	if (identity.type != S_IFDIR)
		return -ENOTDIR;
	r = -ESTALE;
	for (int i = 0; i < TRIES && r == -ESTALE; i++)
		r = try_once(place, directory, &identity, may_wait);
	return r == -ESTALE ? 0 : r;
}
