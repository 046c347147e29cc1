/* The ioctls of a listener, and what may be done to a trapped task.
 *
 * Invariant: target memory, and a pid turned into a pidfd, are believed only
 * after ID_VALID said afterwards that the same call still waits. Before that the
 * task may have died and its number gone to another. A task that waits in a
 * notified call cannot exec, exit or change its thread group, so what was true of
 * it between RECV and that check was true of it all the time.
 */
#define _GNU_SOURCE
#include "inbox.h"
#include "listener.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (1UL << 0)
#endif

#define MAX_ERRNO 4095

int psc_notify_check_sizes(void)
{
	struct seccomp_notif_sizes sizes = {};
	long r = psc_syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes);

	if (r < 0)
		return r == -EINVAL || r == -ENOSYS ? -EOPNOTSUPP : (int)r;
	if (sizes.seccomp_notif > sizeof(union psc_notif) || sizes.seccomp_notif_resp > sizeof(union psc_response))
		return -EOPNOTSUPP;
	return 0;
}

int psc_notify_receive(int fd, union psc_notif *ret_n)
{
	return psc_listener_receive(fd, ret_n);
}

int psc_notify_respond(int fd, uint64_t id, int64_t value, int error, uint32_t flags)
{
	return psc_listener_send(fd, id, value, error, flags);
}

int psc_notify_continue(int fd, uint64_t id)
{
	return psc_listener_send(fd, id, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE);
}

int psc_notify_error(int fd, uint64_t id, int error)
{
	if (error < 1 || error > MAX_ERRNO)
		return -EINVAL;
	return psc_listener_send(fd, id, 0, -error, 0);
}

int psc_notify_value(int fd, uint64_t id, int64_t value)
{
	return psc_listener_send(fd, id, value, 0, 0);
}

int psc_notify_valid(int fd, uint64_t id)
{
	int r;

	do
		r = psc_listener_control(fd, SECCOMP_IOCTL_NOTIF_ID_VALID, &id);
	while (r == -EINTR);
	return r;
}

/* A signal that interrupts ADDFD with FLAG_SEND is not undone by the kernel: the call is answered already, by 0 and
 * without a descriptor, and the caller hears of an interruption. So no signal is let through, those of libc included.
 * The target is in its call and takes the descriptor at once. */
static int addfd_undisturbed(int fd, struct seccomp_notif_addfd *add)
{
	sigset_t all, before;
	int r;

	memset(&all, 0xff, _NSIG / 8);
	r = (int)psc_syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, _NSIG / 8);
	if (r < 0)
		return r;
	r = psc_listener_control(fd, SECCOMP_IOCTL_NOTIF_ADDFD, add);
	(void)!psc_syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, _NSIG / 8);
	return r;
}

int psc_notify_addfd(int fd, uint64_t id, int source, int at, unsigned int flags)
{
	struct seccomp_notif_addfd add = {
		.id = id,
		.flags = (at >= 0 ? SECCOMP_ADDFD_FLAG_SETFD : 0) |
			 (flags & PSC_ADDFD_SEND ? SECCOMP_ADDFD_FLAG_SEND : 0),
		.srcfd = source,
		.newfd = at >= 0 ? at : 0,
		.newfd_flags = flags & PSC_ADDFD_CLOEXEC ? O_CLOEXEC : 0,
	};

	return flags & PSC_ADDFD_SEND ? addfd_undisturbed(fd, &add) :
					psc_listener_control(fd, SECCOMP_IOCTL_NOTIF_ADDFD, &add);
}

/* In one step where the kernel can (5.14), else in two.
 * FIXME: drop the second way once kernel 5.14 is the baseline. */
static int give(int fd, uint64_t id, const struct psc_answer *answer)
{
	unsigned int cloexec = answer->cloexec ? PSC_ADDFD_CLOEXEC : 0;
	int r;

	do
		r = psc_notify_addfd(fd, id, answer->fd, answer->at, cloexec | PSC_ADDFD_SEND);
	while (r == -EINTR);
	if (r != -EINVAL)
		return r;
	do
		r = psc_notify_addfd(fd, id, answer->fd, answer->at, cloexec);
	while (r == -EINTR);
	return r < 0 ? r : psc_notify_value(fd, id, r);
}

int psc_notify_give(int fd, const struct seccomp_notif *n, const struct psc_answer *answer)
{
	int r = give(fd, n->id, answer);

	return r < 0 && r != -ENOENT && r != -EINPROGRESS ? psc_notify_error(fd, n->id, -r) : r;
}

int psc_notify_sync_wakeup(int fd, bool on)
{
	/* The argument is the value itself, not a pointer to it. */
	unsigned long flags = on ? SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP : 0;
	int r = psc_listener_control(fd, SECCOMP_IOCTL_NOTIF_SET_FLAGS, (void *)flags);

	/* FIXME: drop once kernel 6.6 is the baseline. */
	return r == -EINVAL ? -EOPNOTSUPP : r;
}

int psc_notify_poll(int fd, int64_t deadline)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	struct timespec left = {}, now;
	int64_t ns;

	if (deadline > 0) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		ns = deadline - (now.tv_sec * 1000000000LL + now.tv_nsec);
		if (ns > 0)
			left = (struct timespec){ ns / 1000000000, ns % 1000000000 };
	}
	if (ppoll(&p, 1, deadline < 0 ? NULL : &left, NULL) < 0)
		return -errno;
	if (p.revents & POLLNVAL)
		return -EBADF;
	return (p.revents & POLLIN ? PSC_POLL_PENDING : 0) | (p.revents & (POLLHUP | POLLERR) ? PSC_POLL_GONE : 0);
}

/* ------------------------------------------------------------- end of life */

/* Runs on its own stack in the memory and fd table of the caller, which waits for
 * its end: the listener it makes is the caller's. */
static int short_lived(void *ret_listener)
{
	struct sock_filter allow = { BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW };
	struct sock_fprog program = { 1, &allow };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0)
		*(int *)ret_listener = (int)psc_syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
							SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
	_exit(0);
}

int psc_notify_probe_ends(void)
{
	_Alignas(16) uint8_t stack[16384];
	sigset_t all, before;
	int listener = -EPERM, r;
	pid_t pid;

	/* No handler may run in the child: it would run in our memory. */
	sigfillset(&all);
	r = pthread_sigmask(SIG_SETMASK, &all, &before);
	if (r)
		return -r;
	/* No exit signal: only a wait with __WALL sees it, so no other waiter takes it. */
	pid = clone(short_lived, stack + sizeof(stack), CLONE_VM | CLONE_VFORK | CLONE_FILES, &listener);
	r = pid < 0 ? -errno : 0;
	if (r == 0) {
		r = listener < 0 ? listener : psc_notify_poll(listener, 0);
		if (listener >= 0)
			close(listener);
		while (waitpid(pid, NULL, __WALL) < 0 && errno == EINTR)
			;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return r < 0 ? r : (r & PSC_POLL_GONE) != 0;
}

/* ------------------------------------------------------------------ memory */

ssize_t psc_notify_peek(const struct seccomp_notif *n, uint64_t addr, void *ret_data, size_t size)
{
	struct iovec local = { ret_data, size }, remote = { (void *)(uintptr_t)addr, size };
	ssize_t r;

	if (n->pid == 0)
		return -ESRCH;
	if (size == 0)
		return 0;
	r = process_vm_readv((pid_t)n->pid, &local, 1, &remote, 1, 0);
	return r < 0 ? -errno : r;
}

ssize_t psc_notify_read(int fd, const struct seccomp_notif *n, uint64_t addr, void *ret_data, size_t size)
{
	ssize_t got = psc_notify_peek(n, addr, ret_data, size);
	int r = psc_notify_valid(fd, n->id);

	/* Gone explains every failure to read, so it goes first. */
	return r < 0 ? r : got;
}

/* Bytes until a read would cross into another page, which may not be mapped. */
static size_t page_rest(uint64_t addr)
{
	return 4096 - addr % 4096;
}

ssize_t psc_notify_peek_string(const struct seccomp_notif *n, uint64_t addr, char *ret_data, size_t size)
{
	size_t have = 0;

	while (have < size) {
		size_t rest = page_rest(addr + have), chunk = size - have < rest ? size - have : rest;
		ssize_t got = psc_notify_peek(n, addr + have, ret_data + have, chunk);
		char *end;

		if (got <= 0)
			return got < 0 ? got : -EFAULT;
		end = memchr(ret_data + have, 0, (size_t)got);
		if (end)
			return end - ret_data;
		have += (size_t)got;
	}
	return -ENAMETOOLONG;
}

ssize_t psc_notify_read_string(int fd, const struct seccomp_notif *n, uint64_t addr, char *ret_data, size_t size)
{
	ssize_t got = psc_notify_peek_string(n, addr, ret_data, size);
	int r = psc_notify_valid(fd, n->id);

	return r < 0 ? r : got;
}

/* -------------------------------------------------------------------- kill */

/* The thread group of a task; -ESRCH if there is no such task to be seen. Without
 * stdio, which allocates: a trapped thread of this process may hold malloc's lock. */
pid_t psc_thread_group(pid_t tid)
{
	_cleanup_close_ int fd = -1;
	char path[64], text[1024];
	const char *line;
	ssize_t got;
	pid_t tgid;

	if (tid == 0)
		return -ESRCH;
	snprintf(path, sizeof(path), "/proc/%d/status", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	got = read(fd, text, sizeof(text) - 1);
	if (got < 0)
		return -errno;
	text[got] = 0;
	line = strstr(text, "\nTgid:");
	return line && sscanf(line, "\nTgid: %d", &tgid) == 1 ? tgid : -ESRCH;
}

int psc_notify_kill(int fd, const struct seccomp_notif *n)
{
	pid_t tgid = psc_thread_group((pid_t)n->pid);
	_cleanup_close_ int pidfd = tgid < 0 ? tgid : (int)psc_syscall(SYS_pidfd_open, tgid, 0);
	int r = psc_notify_valid(fd, n->id);

	if (r < 0)
		return r;
	if (pidfd < 0)
		return pidfd;
	return (int)psc_syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
}
