/* guardian_guest.c - clients of a guardian's named socket.
 *
 * They are of the same user or root, and nothing else is believed of them. A client
 * has LIFE_NS from its connection on, one answer that waits at most, and its place;
 * where places are short, the process with most of them loses its oldest one. What
 * else a client may do:
 *
 *	sends nothing, half a message, garbage    its time ends; or it is dropped at once
 *	never reads                               no request is read while its answer waits
 *	sends descriptors                         they are never installed here; one whose
 *	                                          close waits (SO_LINGER) is interrupted
 *	connects without end                      a few are accepted at a time, then the
 *	                                          loop looks at deadlines and all others
 */
#define _GNU_SOURCE
#include "guardian.h"

#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif

#define LIFE_NS 5000000000
#define AT_ONCE 16

/* A close that waits for what was sent along is interrupted. */
static void close_briefly(int fd)
{
	psc_alarm_start();
	close(fd);
	psc_alarm_stop();
}

static void drop(struct psc_guardian *g, size_t i)
{
	psc_guardian_unwatch(g, g->guests[i].fd);
	close_briefly(g->guests[i].fd);
	memmove(g->guests + i, g->guests + i + 1, (--g->n_guests - i) * sizeof(*g->guests));
}

/* The oldest of the process that has most: a crowd of one process only drives out its own. */
static void make_place(struct psc_guardian *g)
{
	size_t most = 0, victim = 0;

	for (size_t i = 0; i < g->n_guests; i++) {
		size_t count = 0;

		for (size_t k = i; k < g->n_guests; k++)
			count += g->guests[k].pid == g->guests[i].pid;
		if (count > most) {
			most = count;
			victim = i;
		}
	}
	drop(g, victim);
}

static bool is_welcome(int fd, pid_t *ret_pid)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
		return false;
	*ret_pid = peer.pid;
	return peer.uid == geteuid() || peer.uid == 0;
}

static int admit_one(struct psc_guardian *g)
{
	struct psc_guest guest = { .until = psc_monotonic_ns() + LIFE_NS };

	guest.fd = accept4(g->named, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (guest.fd < 0)
		return -errno;
	if (!is_welcome(guest.fd, &guest.pid)) {
		close_briefly(guest.fd);
		return 0;
	}
	psc_guardian_watch(g, SOURCE_GUEST, guest.fd, EPOLLIN);
	if (g->n_guests == PSC_MAX_GUESTS)
		make_place(g);
	g->guests[g->n_guests++] = guest;
	return 0;
}

void psc_guests_admit(struct psc_guardian *g)
{
	int r = 0;

	for (int i = 0; r == 0 && i < AT_ONCE; i++)
		r = admit_one(g);
	if (r == 0 || r == -EAGAIN || r == -EINTR || r == -ECONNABORTED)
		return;
	/* No descriptor or no memory. A client that waits makes the socket readable all the time: look later. */
	if ((r == -EMFILE || r == -ENFILE) && g->n_guests)
		drop(g, 0);
	psc_guardian_unwatch(g, g->named);
	g->admitting = false;
	psc_guardian_again(g);
}

/* Only now is the answer's place free, and the next request is read. */
static void answer(struct psc_guardian *g, size_t i)
{
	struct psc_guest *guest = &g->guests[i];
	const struct psc_guardian_message m = {
		.kind = PSC_GUARDIAN_DONE,
		.serial = guest->answer.serial,
		.error = guest->answer.error,
		.manager = guest->answer.manager,
		.wards = guest->answer.wards,
	};
	int r = psc_guardian_send(guest->fd, &m, NULL, 0);

	if (r == -EPIPE || r == -ECONNRESET || r == -ENOTCONN) {
		drop(g, i);
	} else if (r < 0) {
		if (!guest->answering)
			psc_guardian_unwatch(g, guest->fd);
		guest->answering = true;
		psc_guardian_again(g);
	} else if (guest->answering) {
		guest->answering = false;
		psc_guardian_watch(g, SOURCE_GUEST, guest->fd, EPOLLIN);
	}
}

/* Without a place for descriptors: the kernel lets them go. Returns 1, 0 (nothing there), or -errno. */
static int receive(int fd, struct psc_guardian_message *ret_message)
{
	ssize_t got;
	int r;

	psc_alarm_start();
	got = recv(fd, ret_message, sizeof(*ret_message), MSG_TRUNC | MSG_DONTWAIT);
	r = errno;
	psc_alarm_stop();
	if (got < 0)
		return r == EAGAIN || r == EINTR ? 0 : -r;
	return got == sizeof(*ret_message) ? 1 : -EBADMSG;
}

void psc_guests_hear(struct psc_guardian *g, int fd)
{
	struct psc_guardian_message m;
	struct psc_guest *guest;
	size_t i = 0;
	int r;

	while (i < g->n_guests && g->guests[i].fd != fd)
		i++;
	if (i == g->n_guests || g->guests[i].answering)
		return;
	guest = &g->guests[i];
	r = receive(fd, &m);
	if (r < 0)
		drop(g, i);
	if (r <= 0)
		return;
	guest->answer = (struct psc_reply){
		.serial = m.serial,
		.manager = psc_guardian_manager_pid(g),
		.wards = (uint32_t)g->n,
		.error = m.kind == PSC_GUARDIAN_INFO || m.kind == PSC_GUARDIAN_RECLAIM ? 0 : -EINVAL,
	};
	if (m.kind == PSC_GUARDIAN_RECLAIM) {
		guest->answer.error = psc_guardian_hand_over(g, fd, &guest->answer);
		if (guest->answer.error == 0) {
			memmove(g->guests + i, g->guests + i + 1, (--g->n_guests - i) * sizeof(*g->guests));
			psc_guardian_send_all(g);
			return;
		}
	}
	answer(g, i);
}

void psc_guests_retry(struct psc_guardian *g)
{
	for (size_t i = g->n_guests; i-- > 0;)
		if (g->guests[i].answering)
			answer(g, i);
}

void psc_guests_expire(struct psc_guardian *g, int64_t now)
{
	for (size_t i = g->n_guests; i-- > 0;)
		if (g->guests[i].until <= now)
			drop(g, i);
}

int64_t psc_guests_next(const struct psc_guardian *g)
{
	return g->n_guests ? g->guests[0].until : -1; /* the oldest is the first */
}

void psc_guests_drop_all(struct psc_guardian *g)
{
	while (g->n_guests)
		drop(g, g->n_guests - 1);
}

/* ------------------------------------------------------------------- reclaim */

/* FIXME: drop the pid once Linux 6.5 is the baseline. It is the peer's own, and
 * the peer waits for our answer, so no other process can have it yet. */
static int peer_pidfd(int fd)
{
	struct ucred peer;
	socklen_t size = sizeof(int);
	int pidfd;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) == 0)
		return pidfd;
	size = sizeof(peer);
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
		return -errno;
	return (int)psc_syscall(SYS_pidfd_open, peer.pid, 0);
}

/* Its own death counts from now on. */
int psc_guardian_hand_over(struct psc_guardian *g, int fd, const struct psc_reply *reply)
{
	int pidfd;

	if (g->manager >= 0 || g->working || g->unsent)
		return -EBUSY;
	pidfd = peer_pidfd(fd);
	if (pidfd < 0)
		return pidfd == -EMFILE || pidfd == -ENFILE || pidfd == -ENOMEM ? pidfd : -ESRCH;
	psc_guardian_watch(g, SOURCE_DEATH, pidfd, EPOLLIN);
	psc_guardian_unwatch(g, fd);
	for (size_t i = 0; i < g->n; i++) {
		g->wards[i].settled = false;
		for (size_t k = 0; k < g->wards[i].n_listeners; k++)
			psc_guardian_unwatch(g, g->wards[i].listeners[k]);
	}
	psc_journal_free(psc_take_ptr(g->journal));
	g->manager_pidfd = pidfd;
	g->manager_pid = 0;
	g->manager = fd;
	g->hearing = g->deaf = g->paused = false;
	g->handing = true;
	g->handover_begun = false;
	g->handover = *reply;
	g->next_ward = g->next_listener = 0;
	return 0;
}

pid_t psc_guardian_manager_pid(struct psc_guardian *g)
{
	struct psc_process_state process;

	if (g->manager < 0)
		return 0;
	if (!g->manager_pid && psc_query_process(0, g->manager_pidfd, &process) == 0) {
		g->manager_pid = process.pid;
		psc_process_state_destroy(&process);
	}
	return g->manager_pid;
}
