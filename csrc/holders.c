/* holders.c - listeners that other processes have open, looked at and not touched. */
#define _GNU_SOURCE
#include "internal.h"
#include "psc.h"

#include <linux/kcmp.h>
#include <poll.h>

int psc_holder_events(pid_t pid, int fd)
{
	struct pollfd look = { .events = POLLIN | POLLOUT };
	int pidfd, r;

	pidfd = (int)psc_syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0)
		return pidfd;
	look.fd = (int)psc_syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	close(pidfd);
	if (look.fd < 0)
		return look.fd;
	r = poll(&look, 1, 0) < 0 ? -errno : look.revents;
	close(look.fd);
	return r;
}

int psc_holder_same(pid_t pid, int fd, pid_t other_pid, int other_fd)
{
	long r = psc_syscall(SYS_kcmp, pid, other_pid, KCMP_FILE, fd, other_fd);

	return r < 0 ? (int)r : r == 0;
}
