/* packet.c - messages with file descriptors beside them, as guardian and opener speak. */
#define _GNU_SOURCE
#include "packet.h"
#include "internal.h"

#include <string.h>
#include <sys/socket.h>

#define TAKE_TRIES 3

/* Room for an even number of fds is exact: none comes that is not counted. */
union control {
	struct cmsghdr header;
	uint8_t room[CMSG_SPACE(PSC_PACKET_FDS * sizeof(int))];
};

int psc_packet_send(int socket, const void *data, size_t size, const int *fds, size_t n)
{
	struct iovec iov = { (void *)data, size };
	union control control = { 0 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t sent;

	if (n > PSC_PACKET_FDS)
		return -EINVAL;
	if (n) {
		m.msg_control = &control;
		m.msg_controllen = CMSG_SPACE(n * sizeof(int));
		control.header.cmsg_level = SOL_SOCKET;
		control.header.cmsg_type = SCM_RIGHTS;
		control.header.cmsg_len = CMSG_LEN(n * sizeof(int));
		memcpy(CMSG_DATA(&control.header), fds, n * sizeof(int));
	}
	do
		sent = sendmsg(socket, &m, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	return sent < 0 ? -errno : 0;
}

static size_t take_fds(struct msghdr *m, int ret_fds[PSC_PACKET_FDS])
{
	size_t n = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		memcpy(ret_fds + n, CMSG_DATA(c), count * sizeof(int));
		n += count;
	}
	return n;
}

/* Returns the length, and what came beside it; -errno. */
static ssize_t receive(int socket, void *ret_data, size_t size, int flags, int ret_fds[PSC_PACKET_FDS], size_t *ret_have,
		       int *ret_flags)
{
	struct iovec iov = { ret_data, size };
	union control control;
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	ssize_t got = recvmsg(socket, &m, MSG_CMSG_CLOEXEC | flags);

	if (got < 0)
		return -errno;
	*ret_have = take_fds(&m, ret_fds);
	*ret_flags = m.msg_flags;
	return got;
}

static void close_all(const int *fds, size_t n)
{
	for (size_t i = 0; i < n; i++)
		close(fds[i]);
}

int psc_packet_receive(int socket, void *ret_data, size_t size, int *ret_fds, size_t n)
{
	int fds[PSC_PACKET_FDS], flags;
	size_t have;
	ssize_t got = receive(socket, ret_data, size, 0, fds, &have, &flags);

	if (got < 0)
		return (int)got;
	if (got == (ssize_t)size && have <= n && !(flags & (MSG_TRUNC | MSG_CTRUNC))) {
		if (have)
			memcpy(ret_fds, fds, have * sizeof(int));
		return (int)have;
	}
	close_all(fds, have);
	return got == 0 ? -ECONNRESET : -EBADMSG;
}

/* It is there, so no refusal is meant for ever. Returns 0, or -EAGAIN: it is still there. */
static int take(int socket)
{
	uint8_t byte;

	for (int tries = 0; tries < TAKE_TRIES; tries++)
		if (recv(socket, &byte, sizeof(byte), MSG_DONTWAIT) >= 0)
			return 0;
	return -EAGAIN;
}

void psc_packet_drop(int socket)
{
	(void)!take(socket);
}

/* A look with MSG_PEEK installs copies; the packet is taken from the queue afterwards, without its own. */
int psc_packet_receive_kept(int socket, void *ret_data, size_t size, int *ret_fds, size_t n)
{
	int fds[PSC_PACKET_FDS], flags;
	size_t have;
	ssize_t got = receive(socket, ret_data, size, MSG_PEEK, fds, &have, &flags);
	bool sound;

	if (got < 0)
		return (int)got;
	sound = got == (ssize_t)size && have <= n && !(flags & MSG_TRUNC);
	if (sound && flags & MSG_CTRUNC && have < PSC_PACKET_FDS) {
		close_all(fds, have);
		return -EMFILE;
	}
	/* A packet that stays in the queue is received once more: then this copy must not be. */
	if (got > 0 && take(socket) < 0) {
		close_all(fds, have);
		return -EAGAIN;
	}
	if (sound && !(flags & MSG_CTRUNC)) {
		if (have)
			memcpy(ret_fds, fds, have * sizeof(int));
		return (int)have;
	}
	close_all(fds, have);
	return got == 0 ? -ECONNRESET : -EBADMSG;
}
