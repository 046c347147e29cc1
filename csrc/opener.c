/* opener.c - the process that opens files for targets.
 *
 * It is a program of its own, small to fork; each request gets a child:
 *
 *	become like the target: groups, fsuid, fsgid, capabilities, umask
 *	find the object or the place for it, without any effect on it (walk.c); show it
 *	wait for the supervisor's word
 *	open it; hand it over; exit
 *
 * So no thread of the supervisor ever has another's rights, a file system that does
 * not answer holds a child only, which an alarm ends, and nothing that the target can
 * name leads to the supervisor's memory: none of it is here.
 *
 * What was found is pinned by its descriptor and opened again through that, so that
 * what the supervisor approved is what is opened. What was to be made is made with
 * O_EXCL in the pinned directory: if somebody was faster, EAGAIN says so.
 */
#define _GNU_SOURCE
#include "opener.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>

/* --------------------------------------------------------------- credentials */

static int get_caps(struct __user_cap_data_struct ret[2])
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };

	return (int)psc_syscall(SYS_capget, &header, ret);
}

/* Never more than the target has, nor than we had. */
static int limit_caps(uint64_t wanted, const struct __user_cap_data_struct before[2])
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct caps[2];
	int r = get_caps(caps);

	for (int i = 0; r == 0 && i < 2; i++) {
		caps[i].effective = caps[i].permitted & before[i].effective & (uint32_t)(wanted >> 32 * i);
		caps[i].permitted = caps[i].effective;
		caps[i].inheritable = 0;
	}
	return r < 0 ? r : (int)psc_syscall(SYS_capset, &header, caps);
}

static int take_groups(const struct psc_open_request *q)
{
	gid_t groups[PSC_OPEN_GROUPS];
	int n = getgroups(PSC_OPEN_GROUPS, groups);

	if (n == (int)q->n_groups && memcmp(groups, q->groups, (size_t)n * sizeof(*groups)) == 0)
		return 0;
	return setgroups(q->n_groups, q->groups) < 0 ? -errno : 0;
}

static int become(const struct psc_open_request *q)
{
	struct __user_cap_data_struct before[2];
	int r = get_caps(before);

	if (r == 0)
		r = take_groups(q);
	if (r < 0)
		return -EPERM;
	/* These report no failure: a second call tells what is in force. */
	setfsgid(q->fsgid);
	setfsuid(q->fsuid);
	if (setfsgid((gid_t)-1) != (int)q->fsgid || setfsuid((uid_t)-1) != (int)q->fsuid)
		return -EPERM;
	umask(q->umask);
	return limit_caps(q->caps, before);
}

/* --------------------------------------------------------------------- open */

static int without_nonblock(int fd, uint64_t flags)
{
	int now;

	if (flags & O_NONBLOCK)
		return 0;
	now = fcntl(fd, F_GETFL);
	return now < 0 || fcntl(fd, F_SETFL, now & ~O_NONBLOCK) < 0 ? errno : 0;
}

/* Returns 0 or the errno of the call; -EAGAIN: what was to be made is there now. */
static int open_found(const struct psc_open_request *q, struct psc_found *found, int *ret_fd)
{
	int flags = (int)q->flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, r;
	_cleanup_close_ int fd = -1;
	struct stat st;
	char link[32];

	if (found->creates) {
		fd = openat(found->fd, found->name, flags | O_EXCL | O_NOFOLLOW, q->mode);
		if (fd < 0 && errno == EEXIST && !(q->flags & O_EXCL))
			return -EAGAIN;
	} else if (q->flags & O_PATH) {
		if (q->flags & O_DIRECTORY && (fstat(found->fd, &st) < 0 || !S_ISDIR(st.st_mode)))
			return ENOTDIR;
		*ret_fd = psc_take_fd(found->fd);
		return 0;
	} else {
		if (flags & O_CREAT)
			flags &= ~(O_CREAT | O_EXCL);
		snprintf(link, sizeof(link), "/proc/self/fd/%d", found->fd);
		fd = open(link, flags & ~O_NOFOLLOW, q->mode);
	}
	if (fd < 0)
		return errno;
	r = without_nonblock(fd, q->flags);
	if (r == 0)
		*ret_fd = psc_take_fd(fd);
	return r;
}

/* ------------------------------------------------------------------ a request */

/* The default action of SIGALRM ends this process. */
static void limit_time(uint64_t ns)
{
	struct itimerval t = { .it_value = { (time_t)(ns / 1000000000), (suseconds_t)(ns % 1000000000 / 1000) } };

	if (ns && !t.it_value.tv_sec && !t.it_value.tv_usec)
		t.it_value.tv_usec = 1;
	setitimer(ITIMER_REAL, &t, NULL);
}

static void serve_request(const struct psc_open_request *q, int root, int start, int socket)
{
	struct psc_open_reply reply = { 0 };
	struct psc_found found = { .fd = -1 };
	int fd = -1;
	char go;

	limit_time(q->timeout_ns);
	reply.error = become(q);
	if (reply.error == 0)
		reply.error = psc_walk(q, root, start, &found);
	reply.creates = found.creates;
	memcpy(reply.name, found.name, sizeof(reply.name));
	if (psc_packet_send(socket, &reply, sizeof(reply), &found.fd, reply.error == 0) < 0 || reply.error)
		return;
	limit_time(0);
	if (psc_packet_receive(socket, &go, 1, NULL, 0) < 0)
		return;
	limit_time(q->timeout_ns);
	reply.error = open_found(q, &found, &fd);
	/* Nobody is left to tell if it fails. */
	(void)!psc_packet_send(socket, &reply, sizeof(reply), &fd, reply.error == 0);
}

static bool sound(const struct psc_open_request *q)
{
	return q->n_groups <= PSC_OPEN_GROUPS && memchr(q->path, 0, sizeof(q->path));
}

int psc_opener_run(int socket)
{
	struct psc_open_request q;
	int fds[3], n;

	/* Its children are nobody's to look into, not even of a target of the same user. */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	/* Children that nobody waits for leave no zombies. */
	signal(SIGCHLD, SIG_IGN);
	for (;;) {
		n = psc_packet_receive(socket, &q, sizeof(q), fds, 3);
		if (n == -EINTR || n == -EBADMSG)
			continue;
		if (n < 0)
			return n == -ECONNRESET ? 0 : n;
		if (n == 3 && sound(&q) && fork() == 0) {
			close(socket);
			serve_request(&q, fds[0], fds[1], fds[2]);
			_exit(0);
		}
		for (int i = 0; i < n; i++)
			close(fds[i]);
	}
}
