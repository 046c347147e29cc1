/* cgroup_watch.c - learn which processes enter a cgroup.
 *
 * The kernel tells no entries. A write to cgroup.procs is seen by inotify, as any write to a
 * file is; clone3(CLONE_INTO_CGROUP) writes nothing, nor does a task that another namespace's
 * mount moves. So cgroup.procs is read again at a bounded rate, and inotify only makes the next
 * look come at once. The list of cgroups below is made anew when a directory came or went, and
 * once a second.
 *
 * A number that was used again between two looks is not seen as new: the caller compares more
 * than numbers when psc_cgroup_watch_next() returns without any, once a second.
 */
#define _GNU_SOURCE
#include "internal.h"
#include "psc.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/inotify.h>

#define PERIOD_NS 2000000   /* between two looks */
#define SHARE 20	    /* a look takes no more than one part in so many of a processor */
#define TURN_NS 1000000000
#define MAX_DEPTH 64
#define MAX_CGROUPS 65536
#define MAX_NUMBERS (1U << 22)

struct list {
	pid_t *pids;
	size_t n, size;
};

struct psc_cgroup_watch {
	int dir, stop, inotify;
	char **paths; /* of cgroup.procs, below dir */
	size_t n, size;
	bool walk;
	int64_t walked, look_ns, told;
	struct list known, now, entered;
};

static int append(struct list *list, pid_t pid)
{
	pid_t *more;

	if (list->n == MAX_NUMBERS)
		return -E2BIG;
	if (list->n == list->size) {
		more = reallocarray(list->pids, list->size ? list->size * 2 : 256, sizeof(*more));
		if (!more)
			return -ENOMEM;
		list->pids = more;
		list->size = list->size ? list->size * 2 : 256;
	}
	list->pids[list->n++] = pid;
	return 0;
}

/* ----------------------------------------------------------------- cgroups */

static void forget_paths(struct psc_cgroup_watch *watch)
{
	while (watch->n)
		free(watch->paths[--watch->n]);
}

/* Without inotify the entry is found by the next look. */
static void notice(const struct psc_cgroup_watch *watch, const char *path, uint32_t events)
{
	_cleanup_free_ char *whole = NULL;

	if (watch->inotify >= 0 && asprintf(&whole, "/proc/self/fd/%d/%s", watch->dir, path) >= 0)
		(void)!inotify_add_watch(watch->inotify, whole, events);
}

static int keep_cgroup(struct psc_cgroup_watch *watch, const char *path)
{
	char **more, *procs;

	if (watch->n == MAX_CGROUPS)
		return -E2BIG;
	if (watch->n == watch->size) {
		more = reallocarray(watch->paths, watch->size ? watch->size * 2 : 16, sizeof(*more));
		if (!more)
			return -ENOMEM;
		watch->paths = more;
		watch->size = watch->size ? watch->size * 2 : 16;
	}
	if (asprintf(&procs, "%scgroup.procs", path) < 0)
		return -ENOMEM;
	watch->paths[watch->n++] = procs;
	notice(watch, procs, IN_MODIFY);
	notice(watch, *path ? path : ".", IN_CREATE | IN_DELETE | IN_MOVE | IN_ONLYDIR);
	return 0;
}

/* path: "" or with a slash at its end. */
static int walk(struct psc_cgroup_watch *watch, const char *path, int depth)
{
	int fd = openat(watch->dir, *path ? path : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW), r;
	const struct dirent *entry;
	DIR *dir;

	if (fd < 0)
		return depth && errno == ENOENT ? 0 : -errno;
	dir = fdopendir(fd);
	if (!dir) {
		r = -errno;
		close(fd);
		return r;
	}
	r = depth == MAX_DEPTH ? -ELOOP : keep_cgroup(watch, path);
	while (r == 0 && (entry = readdir(dir))) {
		_cleanup_free_ char *below = NULL;

		if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
			continue;
		r = asprintf(&below, "%s%s/", path, entry->d_name) < 0 ? -ENOMEM : walk(watch, below, depth + 1);
	}
	closedir(dir);
	return r;
}

/* --------------------------------------------------------------- processes */

static int read_procs(struct list *list, int fd)
{
	char buffer[4096];
	long number = -1;
	ssize_t n;
	int r = 0;

	while (r == 0 && (n = read(fd, buffer, sizeof(buffer))) > 0)
		for (ssize_t i = 0; r == 0 && i < n; i++) {
			if (buffer[i] >= '0' && buffer[i] <= '9') {
				number = (number < 0 ? 0 : number) * 10 + buffer[i] - '0';
				number = number < INT32_MAX / 16 ? number : INT32_MAX / 16;
			} else if (number >= 0) {
				r = append(list, (pid_t)number);
				number = -1;
			}
		}
	return r < 0 ? r : n < 0 ? -errno : 0;
}

/* In a threaded cgroup cgroup.procs cannot be read; the domain above has its processes. */
static int look_into(struct psc_cgroup_watch *watch, size_t i)
{
	_cleanup_close_ int fd = openat(watch->dir, watch->paths[i], O_RDONLY | O_CLOEXEC);
	int r = fd < 0 ? -errno : read_procs(&watch->now, fd);

	if (i > 0 && (r == -ENOENT || r == -ENODEV || r == -EOPNOTSUPP)) {
		watch->walk |= r != -EOPNOTSUPP;
		return 0;
	}
	return r == -ENOENT ? -ENODEV : r;
}

static int by_number(const void *a, const void *b)
{
	pid_t x = *(const pid_t *)a, y = *(const pid_t *)b;

	return (x > y) - (x < y);
}

static int compare(struct psc_cgroup_watch *watch)
{
	const struct list *now = &watch->now, *known = &watch->known;
	size_t k = 0;
	int r = 0;

	watch->entered.n = 0;
	for (size_t i = 0; r == 0 && i < now->n; i++) {
		while (k < known->n && known->pids[k] < now->pids[i])
			k++;
		if ((k == known->n || known->pids[k] != now->pids[i]) && (i == 0 || now->pids[i - 1] != now->pids[i]))
			r = append(&watch->entered, now->pids[i]);
	}
	return r;
}

static int look(struct psc_cgroup_watch *watch)
{
	int64_t begin = psc_monotonic_ns();
	struct list before;
	int r = 0;

	if (watch->walk || begin - watch->walked > TURN_NS) {
		forget_paths(watch);
		watch->walk = false;
		watch->walked = begin;
		r = walk(watch, "", 0);
	}
	watch->now.n = 0;
	for (size_t i = 0; r == 0 && i < watch->n; i++)
		r = look_into(watch, i);
	if (r < 0)
		return r;
	if (watch->now.n)
		qsort(watch->now.pids, watch->now.n, sizeof(pid_t), by_number);
	r = compare(watch);
	before = watch->known;
	watch->known = watch->now;
	watch->now = before;
	watch->look_ns = psc_monotonic_ns() - begin;
	return r;
}

/* True: the next look is to be at once. */
static bool drain(struct psc_cgroup_watch *watch)
{
	char buffer[4096] __attribute__((aligned(8)));
	bool any = false;
	ssize_t n;

	while ((n = read(watch->inotify, buffer, sizeof(buffer))) > 0)
		for (ssize_t at = 0; at < n;) {
			const struct inotify_event *event = (const struct inotify_event *)(buffer + at);

			watch->walk |= !(event->mask & IN_MODIFY);
			any = true;
			at += (ssize_t)(sizeof(*event) + event->len);
		}
	return any;
}

/* Wait until the next look is due. -ECANCELED: told to stop. */
static int await_turn(struct psc_cgroup_watch *watch)
{
	int64_t rest = watch->look_ns * (SHARE - 1), end = psc_monotonic_ns() + (rest > PERIOD_NS ? rest : PERIOD_NS);
	struct pollfd fds[] = { { .fd = watch->stop, .events = POLLIN }, { .fd = watch->inotify, .events = POLLIN } };

	for (;;) {
		int64_t left = end - psc_monotonic_ns();
		struct timespec timeout = { left / 1000000000, left % 1000000000 };
		int n;

		if (left <= 0)
			return 0;
		n = ppoll(fds, 2, &timeout, NULL);
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0 && fds[0].revents)
			return -ECANCELED;
		if (n > 0 && drain(watch))
			return 0;
	}
}

/* --------------------------------------------------------------------- API */

void psc_cgroup_watch_free(struct psc_cgroup_watch *watch)
{
	if (!watch)
		return;
	forget_paths(watch);
	free(watch->paths);
	free(watch->known.pids);
	free(watch->now.pids);
	free(watch->entered.pids);
	psc_close_fd(&watch->inotify);
	psc_close_fd(&watch->dir);
	psc_close_fd(&watch->stop);
	free(watch);
}

int psc_cgroup_watch_new(int dir, int stop, struct psc_cgroup_watch **ret_watch)
{
	struct psc_cgroup_watch *watch = calloc(1, sizeof(*watch));
	int r = 0;

	if (!watch)
		return -ENOMEM;
	watch->walk = true;
	watch->inotify = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	watch->dir = fcntl(dir, F_DUPFD_CLOEXEC, 3);
	watch->stop = watch->dir < 0 ? -1 : fcntl(stop, F_DUPFD_CLOEXEC, 3);
	if (watch->stop < 0)
		r = -errno;
	if (r < 0) {
		psc_cgroup_watch_free(watch);
		return r;
	}
	*ret_watch = watch;
	return 0;
}

int psc_cgroup_watch_next(struct psc_cgroup_watch *watch, bool wait, const pid_t **ret_pids, size_t *ret_n)
{
	int r = 0;

	do {
		if (wait)
			r = await_turn(watch);
		if (r == 0)
			r = look(watch);
		if (r < 0)
			return r;
	} while (wait && watch->entered.n == 0 && psc_monotonic_ns() - watch->told < TURN_NS);
	watch->told = psc_monotonic_ns();
	*ret_pids = watch->entered.pids;
	*ret_n = watch->entered.n;
	return 0;
}
