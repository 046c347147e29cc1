/* guardian.c - what outlives the manager.
 *
 * One thread, one epoll set. While the manager lives it holds only the manager
 * (its pidfd and the connection), the named socket and the nearest deadline, so
 * nothing wakes it; listeners enter the set when there is nobody else to answer.
 *
 *	manager lives      deadline of a ward: filter or kill it, tell the manager
 *	manager dies       every ward with a deadline: the same, at once
 *	                   guarded wards: answer what it left unanswered, and all that
 *	                   comes; or hold it all for who reclaims the name
 *	all listeners end  exit
 *
 * Every filtering of a ward, the one that the manager asks for too, is done here:
 * so a filter is never in force without its listener being held by who survives,
 * and never put in twice. It is done by a thread, for a target that cannot be
 * stopped must not delay the others.
 */
#define _GNU_SOURCE
#include "guardian.h"
#include "journal.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif

#define MAX_WARD (1U << 28)
#define MAX_GUESTS 8
#define WORKER_STACK (512 * 1024)
#define BURST 64 /* notifications of one listener before others are looked at */

enum source { SOURCE_MANAGER, SOURCE_DEATH, SOURCE_NAMED, SOURCE_GUEST, SOURCE_WORK, SOURCE_LISTENER };

/* A message that waits for room in the socket. */
struct parcel {
	struct parcel *next;
	struct psc_guardian_message message;
	int fds[PSC_GUARDIAN_FDS];
	size_t n;
};

struct guardian {
	int epoll, work_done;
	int manager; /* connection, -1: dead */
	int manager_pidfd;
	int named;
	int filter_fd, journal_fd;
	struct psc_filter filter;
	struct psc_journal *journal; /* only while the manager is dead */
	bool greeted, leave;
	struct psc_ward *wards;
	size_t n, size;
	int guests[MAX_GUESTS];
	size_t n_guests;
	struct parcel *parcels, **last_parcel;
	size_t working;
	pthread_mutex_t lock;
	struct psc_work *done;
};

static int watch(struct guardian *g, enum source source, int fd, uint32_t events)
{
	struct epoll_event e = { .events = events, .data.u64 = (uint64_t)source << 32 | (uint32_t)fd };

	return epoll_ctl(g->epoll, EPOLL_CTL_ADD, fd, &e) < 0 ? -errno : 0;
}

static struct psc_ward *find(struct guardian *g, uint32_t id)
{
	for (size_t i = 0; i < g->n; i++)
		if (g->wards[i].id == id)
			return &g->wards[i];
	return NULL;
}

static void remove_ward(struct guardian *g, struct psc_ward *ward)
{
	psc_ward_destroy(ward);
	*ward = g->wards[--g->n];
}

/* ------------------------------------------------------------------ sending */

/* True if it has gone, or has nowhere to go. */
static bool send_now(struct guardian *g, const struct psc_guardian_message *message, const int *fds, size_t n)
{
	struct pollfd p = { .fd = g->manager, .events = POLLOUT };

	if (g->manager < 0)
		return true;
	if (poll(&p, 1, 0) == 1 && !(p.revents & (POLLOUT | POLLHUP | POLLERR)))
		return false;
	return p.revents && psc_guardian_send(g->manager, message, fds, n) != -EAGAIN;
}

static void watch_for_room(struct guardian *g, bool on)
{
	struct epoll_event e = { .events = EPOLLIN | (on ? EPOLLOUT : 0),
				 .data.u64 = (uint64_t)SOURCE_MANAGER << 32 | (uint32_t)g->manager };

	epoll_ctl(g->epoll, EPOLL_CTL_MOD, g->manager, &e);
}

/* In order, and without ever waiting for a manager that does not read. */
static void send_or_keep(struct guardian *g, const struct psc_guardian_message *message, const int *fds, size_t n)
{
	struct parcel *parcel;

	if (!g->parcels && send_now(g, message, fds, n))
		return;
	parcel = calloc(1, sizeof(*parcel));
	if (!parcel)
		return;
	parcel->message = *message;
	for (; parcel->n < n; parcel->n++)
		parcel->fds[parcel->n] = fcntl(fds[parcel->n], F_DUPFD_CLOEXEC, 3);
	*g->last_parcel = parcel;
	g->last_parcel = &parcel->next;
	watch_for_room(g, true);
}

static void drop_parcel(struct guardian *g)
{
	struct parcel *parcel = g->parcels;

	g->parcels = parcel->next;
	if (!g->parcels)
		g->last_parcel = &g->parcels;
	for (size_t i = 0; i < parcel->n; i++)
		psc_close_fd(&parcel->fds[i]);
	free(parcel);
}

static void send_kept(struct guardian *g)
{
	while (g->parcels && send_now(g, &g->parcels->message, g->parcels->fds, g->parcels->n))
		drop_parcel(g);
	if (!g->parcels && g->manager >= 0)
		watch_for_room(g, false);
}

/* ------------------------------------------------------------------- results */

/* One part: outcomes from *at on, as many as their listeners leave room for. */
static void send_part(struct guardian *g, const struct psc_work *work, struct psc_guardian_message *m, size_t *at)
{
	const struct psc_attach_result *result = &work->result;
	int fds[PSC_GUARDIAN_FDS];
	size_t n = 0;

	m->common_listener = *at == 0 && result->listener >= 0;
	if (m->common_listener)
		fds[n++] = result->listener;
	for (m->n_outcomes = 0; *at < result->n_threads && m->n_outcomes < psc_array_size(m->outcomes); (*at)++) {
		const struct psc_thread_outcome *from = &result->threads[*at];

		m->outcomes[m->n_outcomes].tid = from->tid;
		m->outcomes[m->n_outcomes].filters_before = from->filters_before;
		m->outcomes[m->n_outcomes].filters_after = from->filters_after;
		m->outcomes[m->n_outcomes].listener = from->listener >= 0;
		if (from->listener >= 0)
			fds[n++] = from->listener;
		m->n_outcomes++;
	}
	m->more = *at < result->n_threads;
	send_or_keep(g, m, fds, n);
}

static void send_result(struct guardian *g, const struct psc_work *work)
{
	const struct psc_attach_result *result = &work->result;
	struct psc_guardian_message m = {
		.kind = work->automatic ? PSC_GUARDIAN_ACTED : PSC_GUARDIAN_DONE,
		.serial = work->serial,
		.ward = work->ward,
		.error = work->r,
		.state = work->state,
		.refusal = result->refusal,
		.pid = result->pid,
		.tid = result->tid,
		.other_tracer = result->other_tracer,
		.stop_ns = result->stop_ns,
		.residue = result->residue,
		.no_new_privs_set = result->no_new_privs_set,
		.suspended = result->suspended,
	};
	size_t at = 0;

	do
		send_part(g, work, &m, &at);
	while (m.more);
}

static int collect_listeners(struct psc_ward *ward, struct psc_work *work)
{
	int r = 0;

	if (work->result.listener >= 0)
		r = psc_ward_add_listeners(ward, &work->result.listener, 1);
	for (size_t i = 0; i < work->result.n_threads; i++)
		if (work->result.threads[i].listener >= 0 &&
		    psc_ward_add_listeners(ward, &work->result.threads[i].listener, 1) < 0)
			r = -ENOMEM;
	psc_attach_result_destroy(&work->result);
	return r;
}

/* ---------------------------------------------------- without the manager */

static void close_listeners(struct psc_ward *ward)
{
	for (size_t i = 0; i < ward->n_listeners; i++)
		psc_close_fd(&ward->listeners[i]);
	ward->n_listeners = 0;
}

static void answer_listeners(struct guardian *g, struct psc_ward *ward)
{
	if (ward->options.answer.kind == PSC_KILL)
		(void)!psc_syscall(SYS_pidfd_send_signal, ward->pidfd, SIGKILL, NULL, 0);
	psc_ward_answer_orphans(ward, g->journal);
	for (size_t i = 0; i < ward->n_listeners; i++)
		/* Not to be watched: better closed, the calls then fail, than hanging. */
		if (watch(g, SOURCE_LISTENER, ward->listeners[i], EPOLLIN) < 0)
			psc_close_fd(&ward->listeners[i]);
}

/* An active ward, nobody to serve it. */
static void care_for(struct guardian *g, struct psc_ward *ward)
{
	ward->settled = true;
	if (!ward->options.guarded || !g->journal)
		close_listeners(ward);
	else if (ward->options.answer.kind != PSC_HOLD)
		answer_listeners(g, ward);
	else
		for (size_t i = 0; i < ward->n_listeners; i++) /* its end only */
			if (watch(g, SOURCE_LISTENER, ward->listeners[i], 0) < 0)
				psc_close_fd(&ward->listeners[i]);
}

static void start_work(struct guardian *g, struct psc_ward *ward, bool automatic, uint32_t serial);

static void settle(struct guardian *g, struct psc_ward *ward)
{
	if (ward->busy || ward->settled)
		return;
	if (ward->state == PSC_WARD_ACTIVE)
		care_for(g, ward);
	else if (ward->state == PSC_WARD_INACTIVE && ward->options.deadline >= 0)
		start_work(g, ward, true, 0);
	else
		ward->settled = true;
}

/* The connection is closed last: a manager that lives on and lets go waits for that. */
static void manager_died(struct guardian *g)
{
	int connection = g->manager;

	if (g->manager < 0)
		return;
	while (g->parcels)
		drop_parcel(g);
	epoll_ctl(g->epoll, EPOLL_CTL_DEL, connection, NULL);
	psc_close_fd(&g->manager_pidfd);
	g->manager = g->manager_pidfd = -1;
	if (psc_journal_adopt(g->journal_fd, &g->journal) < 0)
		g->journal = NULL;
	for (size_t i = 0; i < g->n; i++)
		settle(g, &g->wards[i]);
	close(connection);
}

static struct psc_ward *ward_of_listener(struct guardian *g, int fd, size_t *ret_index)
{
	for (size_t i = 0; i < g->n; i++)
		for (size_t k = 0; k < g->wards[i].n_listeners; k++)
			if (g->wards[i].listeners[k] == fd) {
				*ret_index = k;
				return &g->wards[i];
			}
	return NULL;
}

static void serve_listener(struct guardian *g, int fd, uint32_t events)
{
	size_t index;
	struct psc_ward *ward = ward_of_listener(g, fd, &index);
	int r = 0;

	if (!ward)
		return;
	if (ward->options.answer.kind != PSC_HOLD)
		for (int i = 0; r == 0 && i < BURST; i++)
			r = psc_ward_answer_one(fd, &ward->options.answer);
	else if (events & EPOLLHUP)
		r = -ESHUTDOWN;
	if (r == 0 || r == -ENOENT)
		return;
	close(fd);
	ward->listeners[index] = ward->listeners[--ward->n_listeners];
}

/* --------------------------------------------------------------------- work */

static void *worker(void *arg)
{
	struct psc_work *work = ((void **)arg)[0];
	struct guardian *g = ((void **)arg)[1];
	uint64_t one = 1;

	free(arg);
	psc_work_run(work);
	pthread_mutex_lock(&g->lock);
	work->next = g->done;
	g->done = work;
	pthread_mutex_unlock(&g->lock);
	(void)!write(g->work_done, &one, sizeof(one));
	return NULL;
}

/* Returns false if no thread could be made. */
static bool run_in_thread(struct guardian *g, struct psc_work *work)
{
	void **arg = malloc(2 * sizeof(*arg));
	pthread_attr_t attr;
	pthread_t thread;
	int r;

	if (!arg)
		return false;
	arg[0] = work;
	arg[1] = g;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, WORKER_STACK);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	r = pthread_create(&thread, &attr, worker, arg);
	pthread_attr_destroy(&attr);
	if (r)
		free(arg);
	return r == 0;
}

static void finish_work(struct guardian *g, struct psc_work *work)
{
	struct psc_ward *ward = find(g, work->ward);

	ward->busy = false;
	ward->state = work->state;
	send_result(g, work);
	if (collect_listeners(ward, work) < 0)
		close_listeners(ward);
	if (g->manager >= 0 && !ward->options.guarded)
		close_listeners(ward);
	if (g->manager < 0)
		settle(g, ward);
}

static void start_work(struct guardian *g, struct psc_ward *ward, bool automatic, uint32_t serial)
{
	struct psc_work *work = malloc(sizeof(*work)), here;

	here = (struct psc_work){
		.ward = ward->id,
		.serial = serial,
		.automatic = automatic,
		.pidfd = ward->pidfd,
		.options = ward->options,
		.filter = g->filter,
	};
	ward->busy = true;
	if (work) {
		*work = here;
		if (run_in_thread(g, work)) {
			g->working++;
			return;
		}
		free(work);
	}
	psc_work_run(&here); /* late for others, but done */
	finish_work(g, &here);
}

static void collect_work(struct guardian *g)
{
	struct psc_work *done;
	uint64_t n;

	(void)!read(g->work_done, &n, sizeof(n));
	pthread_mutex_lock(&g->lock);
	done = g->done;
	g->done = NULL;
	pthread_mutex_unlock(&g->lock);
	while (done) {
		struct psc_work *work = done;

		done = work->next;
		g->working--;
		finish_work(g, work);
		free(work);
	}
}

/* ---------------------------------------------------------------- requests */

static int hello(struct guardian *g, int *fds, int n)
{
	int r;

	if (g->greeted || n < 3 || n > 4)
		return -EINVAL;
	r = psc_filterfd_read(fds[0], &g->filter);
	if (r == 0)
		r = watch(g, SOURCE_DEATH, fds[2], EPOLLIN);
	if (r == 0 && n == 4)
		r = watch(g, SOURCE_NAMED, fds[3], EPOLLIN);
	if (r < 0)
		return r;
	g->greeted = true;
	g->filter_fd = psc_take_fd(fds[0]);
	g->journal_fd = psc_take_fd(fds[1]);
	g->manager_pidfd = psc_take_fd(fds[2]);
	if (n == 4)
		g->named = psc_take_fd(fds[3]);
	return 0;
}

static int add_ward(struct guardian *g, const struct psc_guardian_message *m, int *fds, int n, bool *ret_inject)
{
	struct psc_ward ward = { .id = m->ward, .pidfd = n == 1 ? fds[0] : -1, .options = *m };
	struct psc_ward *more;

	if (!g->greeted || n != 1 || m->ward >= MAX_WARD || (unsigned int)m->answer.kind >= PSC_ADD_FD)
		return -EINVAL;
	if (find(g, m->ward))
		return -EEXIST;
	*ret_inject = psc_ward_can_inject(&ward);
	if (m->inject && !m->kill && !*ret_inject)
		return -EPERM;
	if (m->deadline >= 0 && m->kill && psc_syscall(SYS_pidfd_send_signal, ward.pidfd, 0, NULL, 0) == -EPERM)
		return -EPERM;
	if (g->n == g->size) {
		more = reallocarray(g->wards, g->size ? g->size * 2 : 16, sizeof(*more));
		if (!more)
			return -ENOMEM;
		g->wards = more;
		g->size = g->size ? g->size * 2 : 16;
	}
	g->wards[g->n++] = ward;
	fds[0] = -1;
	return 0;
}

static int listen_for(struct guardian *g, const struct psc_guardian_message *m, int *fds, int n)
{
	struct psc_ward *ward = find(g, m->ward);
	int r;

	if (!ward)
		return -ENOENT;
	ward->state = PSC_WARD_ACTIVE;
	if (!ward->options.guarded || n == 0)
		return 0;
	r = psc_ward_add_listeners(ward, fds, (size_t)n);
	for (int i = 0; i < n; i++)
		fds[i] = -1;
	return r;
}

static int activate(struct guardian *g, const struct psc_guardian_message *m)
{
	struct psc_ward *ward = find(g, m->ward);

	if (!ward)
		return -ENOENT;
	if (ward->busy)
		return -EINPROGRESS;
	if (ward->state != PSC_WARD_INACTIVE)
		return -EALREADY;
	ward->options.timeout_ns = m->timeout_ns;
	start_work(g, ward, false, m->serial);
	return 1;
}

static int release(struct guardian *g, const struct psc_guardian_message *m)
{
	struct psc_ward *ward = find(g, m->ward);

	if (!ward)
		return -ENOENT;
	if (ward->busy)
		return -EBUSY;
	remove_ward(g, ward);
	return 0;
}

static void handle(struct guardian *g, const struct psc_guardian_message *m, int *fds, int n)
{
	struct psc_guardian_message done = { .kind = PSC_GUARDIAN_DONE, .serial = m->serial, .ward = m->ward };

	switch (m->kind) {
	case PSC_GUARDIAN_HELLO: done.error = hello(g, fds, n); break;
	case PSC_GUARDIAN_WATCH: done.error = add_ward(g, m, fds, n, &done.inject); break;
	case PSC_GUARDIAN_ACTIVATE: done.error = activate(g, m); break;
	case PSC_GUARDIAN_LISTEN: done.error = listen_for(g, m, fds, n); break;
	case PSC_GUARDIAN_RELEASE: done.error = release(g, m); break;
	case PSC_GUARDIAN_BYE: g->leave = true; return;
	default: done.error = -EINVAL;
	}
	if (done.error <= 0) /* else the answer comes later */
		send_or_keep(g, &done, NULL, 0);
}

static void close_rest(int *fds, int n)
{
	for (int i = 0; i < n; i++)
		psc_close_fd(&fds[i]);
}

static void hear_manager(struct guardian *g, uint32_t events)
{
	struct psc_guardian_message m;
	int fds[PSC_GUARDIAN_FDS], n;

	if (events & EPOLLOUT)
		send_kept(g);
	if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
		return;
	n = psc_guardian_receive(g->manager, &m, fds);
	if (n >= 0) {
		handle(g, &m, fds, n);
		close_rest(fds, n);
	} else if (n != -EINTR && n != -EAGAIN) {
		manager_died(g);
	}
}

/* ------------------------------------------------------------------- guests */

static void drop_guest(struct guardian *g, size_t i)
{
	close(g->guests[i]);
	memmove(g->guests + i, g->guests + i + 1, (--g->n_guests - i) * sizeof(*g->guests));
}

static void admit(struct guardian *g)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);
	int fd = accept4(g->named, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0)
		return;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || (peer.uid != geteuid() && peer.uid != 0) ||
	    watch(g, SOURCE_GUEST, fd, EPOLLIN) < 0) {
		close(fd);
		return;
	}
	if (g->n_guests == MAX_GUESTS)
		drop_guest(g, 0);
	g->guests[g->n_guests++] = fd;
}

/* FIXME: drop the pid once Linux 6.5 is the baseline. It is the peer's own, and
 * the peer waits for our answer, so it is no other's yet. */
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

static void send_wards(struct guardian *g)
{
	for (size_t i = 0; i < g->n; i++) {
		struct psc_ward *ward = &g->wards[i];
		struct psc_guardian_message m = ward->options;
		int fds[PSC_GUARDIAN_FDS] = { ward->pidfd };
		size_t sent = 0;

		m.kind = PSC_GUARDIAN_WARD;
		m.ward = ward->id;
		m.state = ward->state;
		m.n_outcomes = 0;
		do {
			size_t n = ward->n_listeners - sent;

			n = n < PSC_GUARDIAN_FDS - 1 ? n : PSC_GUARDIAN_FDS - 1;
			memcpy(fds + 1, ward->listeners + sent, n * sizeof(*fds));
			sent += n;
			m.more = sent < ward->n_listeners;
			send_or_keep(g, &m, fds, n + 1);
		} while (m.more);
	}
}

/* The guest becomes the manager, and gets everything. Its own death counts from now on. */
static int hand_over(struct guardian *g, size_t guest, struct psc_guardian_message *done)
{
	int fds[] = { g->filter_fd, g->journal_fd }, pidfd, fd = g->guests[guest];

	if (g->manager >= 0 || g->working)
		return -EBUSY;
	pidfd = peer_pidfd(fd);
	if (pidfd < 0 || watch(g, SOURCE_DEATH, pidfd, EPOLLIN) < 0) {
		psc_close_fd(&pidfd);
		return -ESRCH;
	}
	epoll_ctl(g->epoll, EPOLL_CTL_DEL, fd, NULL);
	memmove(g->guests + guest, g->guests + guest + 1, (--g->n_guests - guest) * sizeof(*g->guests));
	for (size_t i = 0; i < g->n; i++) {
		g->wards[i].settled = false;
		for (size_t k = 0; k < g->wards[i].n_listeners; k++)
			epoll_ctl(g->epoll, EPOLL_CTL_DEL, g->wards[i].listeners[k], NULL);
	}
	psc_journal_free(psc_take_ptr(g->journal));
	g->manager_pidfd = pidfd;
	g->manager = fd;
	if (watch(g, SOURCE_MANAGER, fd, EPOLLIN) < 0) {
		manager_died(g);
		return 0;
	}
	send_or_keep(g, done, fds, 2);
	send_wards(g);
	return 0;
}

static pid_t manager_pid(struct guardian *g)
{
	struct psc_process_state process;
	pid_t pid;

	if (g->manager < 0 || psc_query_process(0, g->manager_pidfd, &process) < 0)
		return 0;
	pid = process.pid;
	psc_process_state_destroy(&process);
	return pid;
}

static void hear_guest(struct guardian *g, int fd)
{
	struct psc_guardian_message m, done = { .kind = PSC_GUARDIAN_DONE };
	int fds[PSC_GUARDIAN_FDS], n;
	size_t guest = 0;

	while (guest < g->n_guests && g->guests[guest] != fd)
		guest++;
	if (guest == g->n_guests)
		return;
	n = psc_guardian_receive(fd, &m, fds);
	if (n < 0) {
		if (n != -EINTR)
			drop_guest(g, guest);
		return;
	}
	close_rest(fds, n);
	done.serial = m.serial;
	done.manager = manager_pid(g);
	done.wards = (uint32_t)g->n;
	done.error = m.kind == PSC_GUARDIAN_INFO || m.kind == PSC_GUARDIAN_RECLAIM ? 0 : -EINVAL;
	if (m.kind == PSC_GUARDIAN_RECLAIM) {
		done.error = hand_over(g, guest, &done);
		if (done.error == 0)
			return;
	}
	if (psc_guardian_send(fd, &done, NULL, 0) < 0)
		drop_guest(g, guest);
}

/* --------------------------------------------------------------------- loop */

/* The nearest deadline of a ward that waits for its own; -1: none. */
static int64_t next_deadline(struct guardian *g)
{
	int64_t next = -1;

	for (size_t i = 0; i < g->n; i++) {
		int64_t deadline = g->wards[i].options.deadline;

		if (g->wards[i].state == PSC_WARD_INACTIVE && !g->wards[i].busy && deadline >= 0 &&
		    (next < 0 || deadline < next))
			next = deadline;
	}
	return next;
}

static void act_on_deadlines(struct guardian *g)
{
	int64_t now = psc_monotonic_ns();

	for (size_t i = 0; i < g->n; i++) {
		struct psc_ward *ward = &g->wards[i];

		if (ward->state == PSC_WARD_INACTIVE && !ward->busy && ward->options.deadline >= 0 &&
		    ward->options.deadline <= now)
			start_work(g, ward, true, 0);
	}
}

static bool needed(struct guardian *g)
{
	if (g->leave)
		return g->working > 0;
	if (g->manager >= 0 || g->working)
		return true;
	for (size_t i = 0; i < g->n; i++)
		if (g->wards[i].n_listeners || !g->wards[i].settled)
			return true;
	return false;
}

static void dispatch(struct guardian *g, const struct epoll_event *e)
{
	int fd = (int)(uint32_t)e->data.u64;

	switch ((enum source)(e->data.u64 >> 32)) {
	case SOURCE_MANAGER:
		if (fd == g->manager)
			hear_manager(g, e->events);
		break;
	case SOURCE_DEATH:
		if (fd == g->manager_pidfd)
			manager_died(g);
		break;
	case SOURCE_NAMED: admit(g); break;
	case SOURCE_GUEST: hear_guest(g, fd); break;
	case SOURCE_WORK: collect_work(g); break;
	case SOURCE_LISTENER: serve_listener(g, fd, e->events); break;
	}
}

static void look_once(struct guardian *g)
{
	int64_t deadline = next_deadline(g), left = deadline < 0 ? -1 : deadline - psc_monotonic_ns();
	struct timespec timeout = { left / 1000000000, left % 1000000000 };
	struct epoll_event e;

	if (deadline >= 0 && left <= 0) {
		act_on_deadlines(g);
		return;
	}
	/* One at a time: what it does may close what the next one names. */
	if (epoll_pwait2(g->epoll, &e, 1, left < 0 ? NULL : &timeout, NULL) == 1)
		dispatch(g, &e);
}

static void destroy(struct guardian *g)
{
	struct sockaddr_un address = { 0 };
	socklen_t size = sizeof(address);

	if (g->named >= 0 && getsockname(g->named, (struct sockaddr *)&address, &size) == 0 && address.sun_path[0])
		unlink(address.sun_path);
	while (g->parcels)
		drop_parcel(g);
	while (g->n)
		remove_ward(g, &g->wards[0]);
	while (g->n_guests)
		drop_guest(g, 0);
	free(g->wards);
	psc_filter_destroy(&g->filter);
	psc_journal_free(g->journal);
	psc_close_fd(&g->manager);
	psc_close_fd(&g->manager_pidfd);
	psc_close_fd(&g->named);
	psc_close_fd(&g->filter_fd);
	psc_close_fd(&g->journal_fd);
	psc_close_fd(&g->work_done);
	psc_close_fd(&g->epoll);
	pthread_mutex_destroy(&g->lock);
}

static void interrupt(int signal_number)
{
}

/* Nothing but SIGKILL is to end it; SIGALRM interrupts a RECV. */
static int set_signals(void)
{
	struct sigaction wake = { .sa_handler = interrupt };
	sigset_t mask;

	sigfillset(&mask);
	sigdelset(&mask, SIGALRM);
	if (sigaction(SIGALRM, &wake, NULL) < 0)
		return -errno;
	return -pthread_sigmask(SIG_SETMASK, &mask, NULL);
}

int psc_guardian_run(int socket)
{
	struct guardian g = {
		.manager = socket, .manager_pidfd = -1, .named = -1, .filter_fd = -1, .journal_fd = -1,
		.epoll = epoll_create1(EPOLL_CLOEXEC),
		.work_done = eventfd(0, EFD_CLOEXEC),
	};
	int r = set_signals();

	g.last_parcel = &g.parcels;
	pthread_mutex_init(&g.lock, NULL);
	/* Its listeners are nobody's to fetch, not even of a target of the same user. */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	if (r == 0)
		r = watch(&g, SOURCE_MANAGER, g.manager, EPOLLIN);
	if (r == 0)
		r = watch(&g, SOURCE_WORK, g.work_done, EPOLLIN);
	while (r == 0 && needed(&g))
		look_once(&g);
	destroy(&g);
	return r;
}
