/* listener.h - private: RECV and SEND themselves, inline for the loop in serve.c. What
 * a loop executes between two sleeps it executes out of cold caches; compact code is
 * worth one in a hundred there. */
#ifndef PSC_LISTENER_H
#define PSC_LISTENER_H

#include "internal.h"
#include "psc.h"

#include "arch/x86_64.h"

#include <string.h>
#include <sys/ioctl.h>

/* As union psc_notif: the kernel copies its own size in. */
union psc_response {
	struct seccomp_notif_resp r;
	uint8_t room[64];
};

/* Not by the C library's function, which is cold as well, and on a page of its own. */
static inline int psc_listener_control(int fd, unsigned long request, void *argument)
{
	return (int)psc_raw_syscall(SYS_ioctl, fd, (long)request, (long)argument, 0, 0, 0);
}

static inline int psc_listener_receive(int fd, union psc_notif *ret_n)
{
	memset(ret_n, 0, sizeof(*ret_n));
	return psc_listener_control(fd, SECCOMP_IOCTL_NOTIF_RECV, ret_n);
}

static inline int psc_listener_send(int fd, uint64_t id, int64_t value, int error, uint32_t flags)
{
	union psc_response response = { .r = { .id = id, .val = value, .error = error, .flags = flags } };
	int r;

	/* The listener's lock is taken interruptibly: nothing was sent then. */
	do
		r = psc_listener_control(fd, SECCOMP_IOCTL_NOTIF_SEND, &response);
	while (r == -EINTR);
	return r;
}

#endif
