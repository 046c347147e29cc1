/* guardian.c - what outlives the manager.
 *
 * One thread, one epoll set. While the manager lives it holds only the manager
 * (its pidfd and the connection), the named socket and the nearest deadline, so
 * nothing wakes it; listeners enter the set when the manager is dead.
 *
 *	manager lives      deadline of a ward: filter or kill it, tell the manager
 *	manager dies       every ward with a deadline: the same, at once
 *	                   guarded wards: answer what it left unanswered, and all that
 *	                   comes; or hold it all until the name is reclaimed
 *	all listeners end  exit
 *
 * Every filtering of a ward, the one that the manager asks for too, is done here:
 * so a filter is never in force without its listener being held by a process that
 * survives, and never put in twice.
 */
#define _GNU_SOURCE
#include "guardian.h"
#include "journal.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

#define MAX_WARD (1U << 28)
#define BURST 64 /* notifications of one listener before others are looked at */
#define RETRY_NS 10000000
#define MAX_RETRY_NS 320000000

/* A refusal (ENOMEM, ENOSPC) is no reason to miss anything: poll() needs no set. */
void psc_guardian_watch(struct psc_guardian *g, enum psc_source source, int fd, uint32_t events)
{
	struct epoll_event e = { .events = events, .data.u64 = (uint64_t)source << 32 | (uint32_t)fd };

	if (epoll_ctl(g->epoll, EPOLL_CTL_ADD, fd, &e) < 0 && errno != EEXIST)
		g->polling = true;
}

void psc_guardian_unwatch(struct psc_guardian *g, int fd)
{
	epoll_ctl(g->epoll, EPOLL_CTL_DEL, fd, NULL);
}

void psc_guardian_again(struct psc_guardian *g)
{
	if (g->retry_at < 0)
		g->retry_at = psc_monotonic_ns() + g->retry_ns;
}

struct psc_ward *psc_guardian_find(struct psc_guardian *g, uint32_t id)
{
	for (size_t i = 0; i < g->n; i++)
		if (g->wards[i].id == id)
			return &g->wards[i];
	return NULL;
}

static void remove_ward(struct psc_guardian *g, struct psc_ward *ward)
{
	psc_ward_destroy(ward);
	*ward = g->wards[--g->n];
}

/* ---------------------------------------------------- without the manager */

static void close_listeners(struct psc_ward *ward)
{
	for (size_t i = 0; i < ward->n_listeners; i++)
		psc_close_fd(&ward->listeners[i]);
	ward->n_listeners = 0;
}

/* An active ward without a manager. */
static void care_for(struct psc_guardian *g, struct psc_ward *ward)
{
	bool holds = ward->options.answer.kind == PSC_HOLD;

	ward->settled = true;
	if (!ward->options.guarded || !g->journal) {
		close_listeners(ward);
		return;
	}
	if (ward->options.answer.kind == PSC_KILL)
		(void)!psc_syscall(SYS_pidfd_send_signal, ward->pidfd, SIGKILL, NULL, 0);
	if (!holds)
		psc_ward_answer_orphans(ward, g->journal);
	for (size_t i = 0; i < ward->n_listeners; i++)
		psc_guardian_watch(g, SOURCE_LISTENER, ward->listeners[i], holds ? 0 : EPOLLIN); /* 0: its end only */
}

static void act(struct psc_guardian *g, struct psc_ward *ward);

static void settle(struct psc_guardian *g, struct psc_ward *ward)
{
	if (g->leave || ward->busy || ward->settled || psc_guardian_unsent(g, ward->id))
		return;
	if (ward->state == PSC_WARD_ACTIVE)
		care_for(g, ward);
	else if (ward->state == PSC_WARD_INACTIVE && ward->options.deadline >= 0)
		act(g, ward);
	else
		ward->settled = true;
}

/* Without a journal the calls that the manager had received would wait for ever, so their
 * listeners are closed then; not because memory or descriptors are short for a moment. */
static bool adopt_journal(struct psc_guardian *g)
{
	int r = g->journal || !g->greeted ? 0 : psc_journal_adopt(g->journal_fd, &g->journal);

	if (r != -ENOMEM && r != -EAGAIN && r != -EMFILE && r != -ENFILE)
		return true;
	psc_guardian_again(g);
	return false;
}

static void settle_all(struct psc_guardian *g)
{
	if (g->manager >= 0 || !adopt_journal(g))
		return;
	for (size_t i = 0; i < g->n; i++)
		settle(g, &g->wards[i]);
}

/* The connection is closed last: a manager that lives on and lets go waits for that. */
static void manager_died(struct psc_guardian *g)
{
	int connection = g->manager;

	if (g->manager < 0)
		return;
	psc_guardian_unwatch(g, connection);
	psc_close_fd(&g->manager_pidfd);
	g->manager = g->manager_pidfd = -1;
	g->hearing = false;
	psc_guardian_send_nothing(g);
	settle_all(g);
	close(connection);
}

static struct psc_ward *ward_of_listener(struct psc_guardian *g, int fd, size_t *ret_index)
{
	for (size_t i = 0; i < g->n; i++)
		for (size_t k = 0; k < g->wards[i].n_listeners; k++)
			if (g->wards[i].listeners[k] == fd) {
				*ret_index = k;
				return &g->wards[i];
			}
	return NULL;
}

/* ENOMEM and the like may pass; the listener is the promise, and is kept. */
static void pause_listener(struct psc_guardian *g, struct psc_ward *ward, int fd)
{
	psc_guardian_unwatch(g, fd);
	ward->settled = false;
	psc_guardian_again(g);
}

static void serve_listener(struct psc_guardian *g, int fd, uint32_t events)
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
	if (r == 0 || r == -ENOENT || r == -EINTR)
		return;
	if (r != -ESHUTDOWN && r != -EBADF && r != -EINVAL && r != -ENOTTY) {
		pause_listener(g, ward, fd);
		return;
	}
	close(fd);
	ward->listeners[index] = ward->listeners[--ward->n_listeners];
}

/* --------------------------------------------------------------------- work */

static void finish_work(struct psc_guardian *g, struct psc_work *work)
{
	struct psc_ward *ward = psc_guardian_find(g, work->ward);

	ward->busy = false;
	ward->state = work->state;
	psc_guardian_queue(g, work);
	if (g->manager >= 0)
		return;
	psc_guardian_send_nothing(g);
	if (adopt_journal(g))
		settle(g, ward);
}

/* A signal is sent at once, here; what waits for the target is done by a worker. */
static void start_work(struct psc_guardian *g, struct psc_ward *ward, struct psc_work *work, bool automatic, uint32_t serial)
{
	*work = (struct psc_work){
		.ward = ward->id,
		.serial = serial,
		.automatic = automatic,
		.pidfd = ward->pidfd,
		.options = ward->options,
		.filter = g->filter,
	};
	ward->busy = true;
	if (automatic && ward->options.kill) {
		psc_work_run(work);
		finish_work(g, work);
		return;
	}
	g->working++;
	psc_workers_add(&g->workers, work);
}

/* Do what the deadline promises: once, and never again. */
static void act(struct psc_guardian *g, struct psc_ward *ward)
{
	start_work(g, ward, psc_take_ptr(ward->spare), true, 0);
}

static void collect_work(struct psc_guardian *g)
{
	struct psc_work *done;
	uint64_t n;

	(void)!read(g->workers.bell, &n, sizeof(n));
	done = psc_workers_collect(&g->workers);
	while (done) {
		struct psc_work *work = done;

		done = work->next;
		g->working--;
		finish_work(g, work);
	}
}

/* ---------------------------------------------------------------- requests */

static int set_nonblocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
}

/* No accept may wait: the client that made the socket readable can be gone. */
static int listen_to(struct psc_guardian *g, int fd)
{
	int r = set_nonblocking(fd);

	g->admitting = r == 0;
	if (r == 0)
		psc_guardian_watch(g, SOURCE_NAMED, fd, EPOLLIN);
	return r;
}

static int hello(struct psc_guardian *g, int *fds, int n)
{
	int r;

	if (g->greeted || n < 3 || n > 4)
		return -EINVAL;
	if (g->start_error < 0)
		return g->start_error;
	r = psc_filterfd_read(fds[0], &g->filter);
	if (r == 0 && n == 4)
		r = listen_to(g, fds[3]);
	if (r < 0) {
		psc_filter_destroy(&g->filter);
		return r;
	}
	psc_guardian_watch(g, SOURCE_DEATH, fds[2], EPOLLIN);
	g->greeted = true;
	g->filter_fd = psc_take_fd(fds[0]);
	g->journal_fd = psc_take_fd(fds[1]);
	g->manager_pidfd = psc_take_fd(fds[2]);
	if (n == 4)
		g->named = psc_take_fd(fds[3]);
	return 0;
}

/* What this process will not be able to do is refused where it is promised. Without a promise it is told in *reply. */
static int check_ward(struct psc_guardian *g, const struct psc_ward *ward, struct psc_reply *reply)
{
	const struct psc_guardian_message *m = &ward->options;
	int r = psc_ward_foresee(ward, &g->filter, &reply->refusal, &reply->tid);

	reply->inject = psc_ward_can_inject(ward);
	if (m->inject && !m->kill) {
		if (r == -ESRCH || reply->inject)
			return r;
		reply->refusal = PSC_REFUSED_PERMISSION;
		return -EPERM;
	}
	if (m->deadline >= 0 && m->kill && psc_syscall(SYS_pidfd_send_signal, ward->pidfd, 0, NULL, 0) == -EPERM) {
		reply->refusal = PSC_REFUSED_PERMISSION;
		return -EPERM;
	}
	/* The manager itself may be allowed to suspend filters. */
	if (r < 0 && reply->refusal == PSC_REFUSED_FILTERED)
		reply->inject = false;
	return 0;
}

static int add_ward(struct psc_guardian *g, const struct psc_guardian_message *m, int *fds, int n, struct psc_reply *reply)
{
	struct psc_ward ward = { .id = m->ward, .pidfd = n == 1 ? fds[0] : -1, .options = *m };
	struct psc_ward *more;
	int r;

	if (!g->greeted || n != 1 || m->ward >= MAX_WARD || (unsigned int)m->answer.kind >= PSC_ADD_FD)
		return -EINVAL;
	if (psc_guardian_find(g, m->ward))
		return -EEXIST;
	ward.spare = malloc(sizeof(*ward.spare));
	if (!ward.spare)
		return -ENOMEM;
	if (g->n == g->size) {
		more = reallocarray(g->wards, g->size ? g->size * 2 : 16, sizeof(*more));
		if (!more) {
			free(ward.spare);
			return -ENOMEM;
		}
		g->wards = more;
		g->size = g->size ? g->size * 2 : 16;
	}
	r = check_ward(g, &ward, reply);
	if (r < 0) {
		free(ward.spare);
		return r;
	}
	g->wards[g->n++] = ward;
	fds[0] = -1;
	return 0;
}

static int listen_for(struct psc_guardian *g, const struct psc_guardian_message *m, int *fds, int n)
{
	struct psc_ward *ward = psc_guardian_find(g, m->ward);
	int r;

	if (!ward)
		return -ENOENT;
	ward->state = PSC_WARD_ACTIVE;
	if (!ward->options.guarded || n == 0)
		return 0;
	r = psc_ward_add_listeners(ward, fds, (size_t)n);
	for (int i = 0; r == 0 && i < n; i++)
		fds[i] = -1;
	return r;
}

static int activate(struct psc_guardian *g, const struct psc_guardian_message *m)
{
	struct psc_ward *ward = psc_guardian_find(g, m->ward);
	struct psc_work *work;

	if (!ward)
		return -ENOENT;
	if (ward->busy)
		return -EINPROGRESS;
	if (ward->state != PSC_WARD_INACTIVE)
		return -EALREADY;
	work = malloc(sizeof(*work));
	if (!work)
		return -ENOMEM;
	ward->options.timeout_ns = m->timeout_ns;
	start_work(g, ward, work, false, m->serial);
	return 1;
}

static int release(struct psc_guardian *g, const struct psc_guardian_message *m)
{
	struct psc_ward *ward = psc_guardian_find(g, m->ward);

	if (!ward)
		return -ENOENT;
	if (ward->busy)
		return -EBUSY;
	psc_guardian_forget_unsent(g, ward->id);
	remove_ward(g, ward);
	return 0;
}

static void handle(struct psc_guardian *g, const struct psc_guardian_message *m, int *fds, int n)
{
	struct psc_reply reply = { .serial = m->serial, .ward = m->ward };

	switch (n < 0 && m->kind != PSC_GUARDIAN_BYE ? 0 : m->kind) {
	case 0: reply.error = n < 0 ? n : -EINVAL; break; /* its descriptors found no room here */
	case PSC_GUARDIAN_HELLO: reply.error = hello(g, fds, n); break;
	case PSC_GUARDIAN_WATCH: reply.error = add_ward(g, m, fds, n, &reply); break;
	case PSC_GUARDIAN_ACTIVATE: reply.error = activate(g, m); break;
	case PSC_GUARDIAN_LISTEN: reply.error = listen_for(g, m, fds, n); break;
	case PSC_GUARDIAN_RELEASE: reply.error = release(g, m); break;
	case PSC_GUARDIAN_BYE: g->leave = true; return;
	default: reply.error = -EINVAL;
	}
	if (reply.error <= 0) /* else the answer comes later */
		psc_guardian_reply(g, reply);
}

static void close_rest(int *fds, int n)
{
	for (int i = 0; i < n; i++)
		psc_close_fd(&fds[i]);
}

/* Anything but its end, and what is no message, may pass. */
static bool may_pass(int error)
{
	return error != -ECONNRESET && error != -EBADMSG && error != -EBADF && error != -ENOTSOCK;
}

static void hear_manager(struct psc_guardian *g)
{
	struct psc_guardian_message m;
	int fds[PSC_GUARDIAN_FDS], n;

	n = psc_guardian_receive(g->manager, &m, fds);
	if (n == -EMFILE)
		psc_guardian_drop(g->manager);
	if (n >= 0 || n == -EMFILE) {
		handle(g, &m, fds, n);
		close_rest(fds, n);
	} else if (!may_pass(n)) {
		manager_died(g);
	} else if (n != -EINTR && n != -EAGAIN) {
		g->paused = true;
		psc_guardian_again(g);
	}
}

/* Requests are read while there is room for their answers. */
static void listen_to_manager(struct psc_guardian *g)
{
	bool can = g->manager >= 0 && !g->paused && !g->handing && psc_guardian_has_room(g);

	if (can == g->hearing)
		return;
	if (g->hearing && g->manager >= 0)
		psc_guardian_unwatch(g, g->manager);
	g->hearing = can;
	if (can)
		psc_guardian_watch(g, SOURCE_MANAGER, g->manager, EPOLLIN);
	else if (g->manager >= 0)
		psc_guardian_again(g);
}

/* --------------------------------------------------------------------- loop */

/* The nearest deadline of a ward that waits for its own; -1: none. */
static int64_t next_deadline(struct psc_guardian *g)
{
	int64_t next = -1;

	for (size_t i = 0; !g->leave && i < g->n; i++) {
		int64_t deadline = g->wards[i].options.deadline;

		if (g->wards[i].state == PSC_WARD_INACTIVE && !g->wards[i].busy && deadline >= 0 &&
		    (next < 0 || deadline < next))
			next = deadline;
	}
	return next;
}

static void act_on_deadlines(struct psc_guardian *g, int64_t now)
{
	for (size_t i = 0; !g->leave && i < g->n; i++) {
		struct psc_ward *ward = &g->wards[i];

		if (ward->state == PSC_WARD_INACTIVE && !ward->busy && ward->options.deadline >= 0 &&
		    ward->options.deadline <= now)
			act(g, ward);
	}
}

static bool needed(struct psc_guardian *g)
{
	if (g->leave) /* in order: nothing that was promised for a death is done any more */
		return g->working > 0;
	if (g->manager >= 0 || g->working || g->unsent)
		return true;
	for (size_t i = 0; i < g->n; i++)
		if (g->wards[i].n_listeners || !g->wards[i].settled)
			return true;
	return false;
}

/* Whatever was refused is tried again, later and later while it goes on. */
static void retry(struct psc_guardian *g)
{
	g->retry_at = -1;
	g->paused = false;
	if (!g->admitting && g->named >= 0) {
		g->admitting = true;
		psc_guardian_watch(g, SOURCE_NAMED, g->named, EPOLLIN);
	}
	psc_guests_retry(g);
	if (g->manager < 0)
		psc_guardian_send_nothing(g);
	settle_all(g);
	psc_guardian_send_all(g);
	listen_to_manager(g);
	if (g->retry_at < 0)
		g->retry_ns = RETRY_NS;
	else if (g->retry_ns < MAX_RETRY_NS)
		g->retry_ns *= 2;
}

static void dispatch(struct psc_guardian *g, enum psc_source source, int fd, uint32_t events)
{
	switch (source) {
	case SOURCE_MANAGER:
		if (fd == g->manager)
			hear_manager(g);
		break;
	case SOURCE_DEATH:
		if (fd == g->manager_pidfd)
			manager_died(g);
		break;
	case SOURCE_NAMED: psc_guests_admit(g); break;
	case SOURCE_GUEST: psc_guests_hear(g, fd); break;
	case SOURCE_WORK: collect_work(g); break;
	case SOURCE_LISTENER: serve_listener(g, fd, events); break;
	}
}

/* Where epoll is refused: what its set would hold, by poll(). Returns 0, or -errno. */
static int poll_once(struct psc_guardian *g, int timeout)
{
	size_t n = 3 + g->n_guests, at = 0, listeners = 0;
	_cleanup_free_ struct pollfd *fds = NULL;
	_cleanup_free_ enum psc_source *sources = NULL;

	for (size_t i = 0; g->manager < 0 && i < g->n; i++)
		listeners += g->wards[i].n_listeners;
	fds = calloc(n + 1 + listeners, sizeof(*fds));
	sources = calloc(n + 1 + listeners, sizeof(*sources));
	if (!fds || !sources)
		return -ENOMEM;
	/* poll() leaves negative descriptors out. */
	fds[at++] = (struct pollfd){ g->hearing ? g->manager : -1, POLLIN, 0 };
	sources[at] = SOURCE_DEATH;
	fds[at++] = (struct pollfd){ g->manager_pidfd, POLLIN, 0 };
	sources[at] = SOURCE_NAMED;
	fds[at++] = (struct pollfd){ g->admitting ? g->named : -1, POLLIN, 0 };
	sources[at] = SOURCE_WORK;
	fds[at++] = (struct pollfd){ g->workers.bell, POLLIN, 0 };
	for (size_t i = 0; i < g->n_guests; i++) {
		sources[at] = SOURCE_GUEST;
		fds[at++] = (struct pollfd){ g->guests[i].answering ? -1 : g->guests[i].fd, POLLIN, 0 };
	}
	for (size_t i = 0; g->manager < 0 && i < g->n; i++)
		for (size_t k = 0; k < g->wards[i].n_listeners; k++) {
			sources[at] = SOURCE_LISTENER;
			fds[at++] = (struct pollfd){ g->wards[i].listeners[k],
						     g->wards[i].options.answer.kind == PSC_HOLD ? 0 : POLLIN, 0 };
		}
	if (poll(fds, at, timeout) < 0)
		return errno == EINTR ? 0 : -errno;
	for (size_t i = 0; i < at; i++) {
		size_t here = (g->turn + i) % at;

		if (fds[here].fd >= 0 && fds[here].revents) {
			g->turn = here + 1;
			dispatch(g, sources[here], fds[here].fd, (uint32_t)fds[here].revents);
			break;
		}
	}
	return 0;
}

/* Milliseconds until something is due, rounded up; -1: nothing will be. */
static int time_left(struct psc_guardian *g, int64_t now)
{
	const int64_t times[] = { next_deadline(g), g->retry_at, psc_guests_next(g) };
	int64_t next = -1;

	for (size_t i = 0; i < psc_array_size(times); i++)
		if (times[i] >= 0 && (next < 0 || times[i] < next))
			next = times[i];
	if (next < 0)
		return -1;
	next = next <= now ? 0 : (next - now + 999999) / 1000000;
	return next < 1000000 ? (int)next : 1000000;
}

static void look_once(struct psc_guardian *g)
{
	const struct timespec nap = { 0, RETRY_NS };
	int64_t now = psc_monotonic_ns();
	struct epoll_event e;
	int r;

	act_on_deadlines(g, now);
	if (g->retry_at >= 0 && g->retry_at <= now)
		retry(g);
	psc_guests_expire(g, now);
	psc_guardian_send_all(g);
	listen_to_manager(g);
	if (!needed(g))
		return;
	/* One at a time: what it does may close what the next one names. */
	r = g->polling ? 0 : epoll_wait(g->epoll, &e, 1, time_left(g, now));
	if (r == 1)
		dispatch(g, (enum psc_source)(e.data.u64 >> 32), (int)(uint32_t)e.data.u64, e.events);
	if (r < 0 && errno != EINTR)
		g->polling = true;
	if (g->polling && poll_once(g, time_left(g, now)) < 0)
		nanosleep(&nap, NULL);
}

static void destroy(struct psc_guardian *g)
{
	struct sockaddr_un address = { 0 };
	socklen_t size = sizeof(address);

	if (g->named >= 0 && getsockname(g->named, (struct sockaddr *)&address, &size) == 0 && address.sun_path[0])
		unlink(address.sun_path);
	while (g->n) {
		psc_guardian_forget_unsent(g, g->wards[0].id);
		remove_ward(g, &g->wards[0]);
	}
	psc_guests_drop_all(g);
	free(g->wards);
	psc_filter_destroy(&g->filter);
	psc_journal_free(g->journal);
	psc_close_fd(&g->manager);
	psc_close_fd(&g->manager_pidfd);
	psc_close_fd(&g->named);
	psc_close_fd(&g->filter_fd);
	psc_close_fd(&g->journal_fd);
	psc_close_fd(&g->epoll);
	psc_workers_stop(&g->workers);
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

/* Its listeners are no other process's to fetch, not even a target's of the same user. */
static int hide(void)
{
	return prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 ? -errno : 0;
}

/* A listener for each thread of each target: as many as may be. */
static void raise_descriptor_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	(void)!setrlimit(RLIMIT_NOFILE, &limit);
}

/* What fails here is told in answer to HELLO: then nothing relies on this guardian. */
static int prepare(struct psc_guardian *g)
{
	int r = set_signals();

	raise_descriptor_limit();
	if (r == 0)
		r = hide();
	if (r == 0)
		r = set_nonblocking(g->manager);
	if (r == 0)
		r = psc_workers_start(&g->workers);
	if (r == 0)
		psc_guardian_watch(g, SOURCE_WORK, g->workers.bell, EPOLLIN);
	return r;
}

int psc_guardian_run(int socket)
{
	struct psc_guardian g = {
		.manager = socket, .manager_pidfd = -1, .named = -1, .filter_fd = -1, .journal_fd = -1,
		.epoll = epoll_create1(EPOLL_CLOEXEC),
		.retry_at = -1,
		.retry_ns = RETRY_NS,
	};

	g.polling = g.epoll < 0;
	g.last_unsent = &g.unsent;
	psc_workers_init(&g.workers);
	g.start_error = prepare(&g);
	while (needed(&g))
		look_once(&g);
	destroy(&g);
	return g.start_error;
}
