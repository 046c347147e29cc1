/* A set of listeners, and the threads that receive from it.
 *
 * Listeners sit in a fixed array, so that a receiver may look at it without a
 * lock: an entry is one word, key = serial << 32 | fd, 0 when free. An event keeps
 * the key; whoever finds another in its place knows that the listener was removed.
 *
 * A receiver that may wait or use a listener's number is inside a slot:
 *
 *   receiver                           stop, add, remove
 *     slot.tid = me                      change stops / single / an entry
 *     slot.epoch = inbox.epoch           inbox.epoch += 1
 *     look at stops, single, entry       for each slot with an older epoch:
 *     RECV, poll, SEND, ...                signal slot.tid until it has left
 *     slot.tid = 0
 *
 * Everything there is sequentially consistent, hence: either the receiver sees the
 * change, or the changer sees the receiver and waits for it. The signal can come
 * just before the receiver enters the kernel, so it is repeated.
 *
 * A loop that answers and receives again need not leave in between (a stretch): one
 * look at inbox.epoch tells it whether anything changed, and if it looks too early
 * there are still the changer's signals.
 *
 * Only one thread at a time may poll and then RECV (the turn): between the two
 * another could take the notification and RECV would wait for the next. A
 * notification that vanishes by itself does not matter, RECV then says ENOENT.
 */
#define _GNU_SOURCE
#include "inbox.h"
#include "journal.h"
#include "signal_tick.h"

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>

#define MAX_LISTENERS 16384
#define MAX_RECEIVERS 256
#define NONE UINT32_MAX
#define FED (NONE - 1) /* in epoll: the queue of what a gate hands on */
#define FEED_SIZE 1024
/* Tried again by the loop of psc_inbox_receive_as(). */
#define AGAIN (-EAGAIN)
#define STOPPED_EARLY (1u << 31) /* while nobody stayed */

enum {
	KICK_PAUSE_NS = 20000,
	KICK_LIMIT = 25000, /* pauses: half a second at least */
};

struct slot {
	_Alignas(64) _Atomic pid_t tid;
	_Atomic uint32_t epoch;
};

/* What a gate hands on: it receives from its listeners itself. ready counts what is
 * queued, and nudges. No call is made with the lock held: whoever holds it may be
 * trapped in its next call, and the gate must not wait for that. */
struct feed {
	pthread_mutex_t lock;
	int ready;
	uint32_t head, count;
	struct psc_event events[FEED_SIZE];
};

struct psc_inbox {
	_Atomic uint32_t epoch;
	_Atomic uint32_t single; /* index of the only listener, NONE: there are more or none */
	_Atomic uint32_t live;   /* how many */
	_Atomic uint64_t stays;  /* stops << 32 | STOPPED_EARLY | how many stay */
	_Atomic int epoll;
	_Atomic(struct psc_journal *) journal;
	_Atomic uint32_t turn_waiters;
	bool ends_itself;
	int wake_signal;

	_Alignas(64) _Atomic int32_t turn; /* -1: one polls; n: n are in RECV */

	pthread_mutex_t lock; /* changes to the set */
	_Atomic uint32_t serial;
	uint32_t used; /* entries that were ever used */
	struct slot slots[MAX_RECEIVERS];
	struct feed *_Atomic feed;
	_Atomic uint64_t keys[MAX_LISTENERS];
	_Atomic bool fed[MAX_LISTENERS]; /* a gate receives from it */
};

static int key_fd(uint64_t key)
{
	return (int)(uint32_t)key;
}

/* ------------------------------------------------------------------- slots */

/* Static TLS: what is allocated on first use would take malloc's lock. */
static __thread pid_t own_tid __attribute__((tls_model("initial-exec")));

static void forget_tid(void)
{
	own_tid = 0;
	psc_signal_tick_forget();
}

static void forget_tid_in_children(void)
{
	(void)pthread_atfork(NULL, NULL, forget_tid);
}

pid_t psc_tid(void)
{
	if (own_tid == 0)
		own_tid = gettid();
	return own_tid;
}

int psc_slot_enter(struct psc_inbox *inbox, pid_t tid)
{
	for (int i = 0; i < MAX_RECEIVERS; i++) {
		struct slot *slot = &inbox->slots[i];
		pid_t free_slot = 0;

		if (atomic_load_explicit(&slot->tid, memory_order_relaxed) == 0 &&
		    atomic_compare_exchange_strong(&slot->tid, &free_slot, tid)) {
			/* Seen late it is only older: the changer waits longer. */
			atomic_store_explicit(&slot->epoch, inbox->epoch, memory_order_relaxed);
			return i;
		}
	}
	return -EAGAIN;
}

void psc_slot_leave(struct psc_inbox *inbox, int slot)
{
	atomic_store_explicit(&inbox->slots[slot].tid, 0, memory_order_release);
}

static bool outdated(struct slot *slot, uint32_t epoch)
{
	return (int32_t)(slot->epoch - epoch) < 0;
}

int psc_inbox_kick(struct psc_inbox *inbox)
{
	uint32_t epoch = atomic_fetch_add(&inbox->epoch, 1) + 1;
	pid_t self = gettid(), process = getpid();
	struct timespec pause = { 0, KICK_PAUSE_NS };
	int r = 0, saved = errno;

	for (int i = 0; i < MAX_RECEIVERS; i++) {
		struct slot *slot = &inbox->slots[i];
		pid_t tid;

		for (int n = 0; (tid = slot->tid) != 0 && tid != self && outdated(slot, epoch); n++) {
			if (n == KICK_LIMIT) {
				r = -ETIMEDOUT;
				break;
			}
			syscall(SYS_tgkill, process, tid, inbox->wake_signal);
			nanosleep(&pause, NULL);
		}
	}
	errno = saved;
	return r;
}

bool psc_event_alive(struct psc_inbox *inbox, const struct psc_event *event)
{
	return inbox->keys[event->listener] == event->key;
}

/* -------------------------------------------------------------------- turn */

static int turn_wait(struct psc_inbox *inbox, int32_t seen, int64_t deadline)
{
	struct timespec until = { deadline / 1000000000, deadline % 1000000000 };
	long r;

	inbox->turn_waiters++;
	r = psc_syscall(SYS_futex, &inbox->turn, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, seen,
			deadline < 0 ? NULL : &until, NULL, FUTEX_BITSET_MATCH_ANY);
	inbox->turn_waiters--;
	return r == -EAGAIN ? 0 : (int)r;
}

static int turn_take(struct psc_inbox *inbox, bool alone, int64_t deadline)
{
	int32_t seen = inbox->turn;

	for (;;) {
		if (alone ? seen == 0 : seen >= 0) {
			if (atomic_compare_exchange_weak(&inbox->turn, &seen, alone ? -1 : seen + 1))
				return 0;
		} else {
			int r = turn_wait(inbox, seen, deadline);

			if (r < 0)
				return r;
			seen = inbox->turn;
		}
	}
}

static void turn_give(struct psc_inbox *inbox, bool alone)
{
	if (atomic_fetch_add(&inbox->turn, alone ? 1 : -1) != (alone ? -1 : 1))
		return;
	if (inbox->turn_waiters)
		syscall(SYS_futex, &inbox->turn, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT32_MAX);
}

/* ----------------------------------------------------------------- the set */

/* With the lock: recompute what receivers go by. */
static void recount(struct psc_inbox *inbox)
{
	uint32_t live = 0, last = NONE;

	for (uint32_t i = 0; i < inbox->used; i++)
		if (inbox->keys[i]) {
			live++;
			last = i;
		}
	inbox->single = live == 1 && !inbox->fed[last] ? last : NONE;
	inbox->live = live;
}

static int watch(int epoll, uint32_t index, int fd)
{
	struct epoll_event e = { .events = EPOLLIN, .data.u32 = index };

	return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e) < 0 ? -errno : 0;
}

static int64_t find(struct psc_inbox *inbox, int fd)
{
	for (uint32_t i = 0; i < inbox->used; i++)
		if (inbox->keys[i] && key_fd(inbox->keys[i]) == fd)
			return i;
	return -ENOENT;
}

/* With the lock. */
static int make_epoll(struct psc_inbox *inbox)
{
	_cleanup_close_ int epoll = -1;

	if (inbox->epoll >= 0)
		return 0;
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0)
		return -errno;
	for (uint32_t i = 0; i < inbox->used; i++)
		if (inbox->keys[i] && !inbox->fed[i]) {
			int r = watch(epoll, i, key_fd(inbox->keys[i]));

			if (r < 0)
				return r;
		}
	inbox->epoll = psc_take_fd(epoll);
	return 0;
}

/* With the lock. */
static int make_feed(struct psc_inbox *inbox)
{
	struct feed *feed;
	int r = make_epoll(inbox);

	if (r < 0 || inbox->feed)
		return r;
	feed = calloc(1, sizeof(*feed));
	if (!feed)
		return -ENOMEM;
	feed->ready = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);
	r = feed->ready < 0 ? -errno : watch(inbox->epoll, FED, feed->ready);
	if (r < 0) {
		psc_close_fd(&feed->ready);
		free(feed);
		return r;
	}
	pthread_mutex_init(&feed->lock, NULL);
	inbox->feed = feed;
	return 0;
}

/* With the lock. */
static int put(struct psc_inbox *inbox, int fd)
{
	uint32_t i = 0;
	int r;

	while (i < inbox->used && inbox->keys[i])
		i++;
	if (i == MAX_LISTENERS)
		return -ENOSPC;
	if (inbox->live) {
		r = make_epoll(inbox);
		if (r < 0)
			return r;
	}
	if (inbox->epoll >= 0) {
		r = watch(inbox->epoll, i, fd);
		if (r < 0)
			return r;
	}
	if (i == inbox->used)
		inbox->used++;
	inbox->fed[i] = false;
	inbox->keys[i] = (uint64_t)++inbox->serial << 32 | (uint32_t)fd;
	recount(inbox);
	return 0;
}

/* With the lock. */
static void take_out(struct psc_inbox *inbox, uint32_t i)
{
	if (inbox->epoll >= 0)
		epoll_ctl(inbox->epoll, EPOLL_CTL_DEL, key_fd(inbox->keys[i]), NULL);
	inbox->keys[i] = 0;
	recount(inbox);
}

/* Its last task is gone. Whoever waits on another listener need not know. */
static void drop(struct psc_inbox *inbox, uint32_t index, uint64_t key)
{
	pthread_mutex_lock(&inbox->lock);
	if (inbox->keys[index] == key)
		take_out(inbox, index);
	pthread_mutex_unlock(&inbox->lock);
}

int psc_inbox_add(struct psc_inbox *inbox, int fd)
{
	int r;

	do
		r = psc_notify_valid(fd, 0);
	while (r == -EINTR);

	if (r != -ENOENT) /* what every listener answers to an id that never was */
		return r == -EINVAL || r >= 0 ? -ENOTTY : r;
	do
		r = psc_notify_sync_wakeup(fd, true);
	while (r == -EINTR); /* without it answers are slower, no more */
	pthread_mutex_lock(&inbox->lock);
	r = find(inbox, fd) >= 0 ? -EEXIST : put(inbox, fd);
	pthread_mutex_unlock(&inbox->lock);
	if (r == 0)
		/* Those in RECV on what was the only listener; late is no harm. */
		(void)psc_inbox_kick(inbox);
	return r;
}

/* --------------------------------------------------------------------- fed */

int psc_inbox_reserve(struct psc_inbox *inbox, struct psc_event *ret_route)
{
	uint32_t i = 0;
	int r;

	pthread_mutex_lock(&inbox->lock);
	r = make_feed(inbox);
	while (r == 0 && i < inbox->used && inbox->keys[i])
		i++;
	if (i == MAX_LISTENERS)
		r = -ENOSPC;
	if (r == 0) {
		if (i == inbox->used)
			inbox->used++;
		inbox->fed[i] = true;
		inbox->keys[i] = (uint64_t)++inbox->serial << 32 | INT32_MAX;
		recount(inbox);
		*ret_route = (struct psc_event){ .listener = i, .key = inbox->keys[i] };
	}
	pthread_mutex_unlock(&inbox->lock);
	if (r == 0)
		(void)psc_inbox_kick(inbox);
	return r;
}

void psc_inbox_bind(struct psc_inbox *inbox, struct psc_event *route, int fd)
{
	route->key = (route->key & ~(uint64_t)UINT32_MAX) | (uint32_t)fd;
	inbox->keys[route->listener] = route->key;
}

static void count_ready(struct feed *feed)
{
	const uint64_t one = 1;

	(void)!write(feed->ready, &one, sizeof(one));
}

int psc_inbox_feed(struct psc_inbox *inbox, const struct psc_event *route, const union psc_notif *notif)
{
	struct feed *feed = inbox->feed;
	int r = -EAGAIN;

	pthread_mutex_lock(&feed->lock);
	if (feed->count < FEED_SIZE) {
		struct psc_event *event = &feed->events[(feed->head + feed->count++) % FEED_SIZE];

		*event = *route;
		event->untimed = 0;
		event->notif = *notif;
		event->received_ns = psc_monotonic_ns();
		r = 0;
	}
	pthread_mutex_unlock(&feed->lock);
	if (r == 0)
		count_ready(feed);
	return r;
}

void psc_inbox_unreserve(struct psc_inbox *inbox, const struct psc_event *route)
{
	drop(inbox, route->listener, route->key);
	count_ready(inbox->feed); /* whoever waits looks whether anybody is left */
}

static int take_fed(struct psc_inbox *inbox, struct psc_event *event)
{
	struct feed *feed = inbox->feed;
	uint32_t ticket = event->ticket;
	uint64_t count;
	int r = AGAIN;

	(void)!read(feed->ready, &count, sizeof(count));
	pthread_mutex_lock(&feed->lock);
	if (feed->count) {
		*event = feed->events[feed->head++ % FEED_SIZE];
		feed->count--;
		event->ticket = ticket;
		r = inbox->keys[event->listener] == event->key ? 0 : AGAIN;
	}
	pthread_mutex_unlock(&feed->lock);
	return r;
}

int psc_inbox_remove(struct psc_inbox *inbox, int fd)
{
	int64_t i;
	int r;

	pthread_mutex_lock(&inbox->lock);
	i = find(inbox, fd);
	if (i >= 0)
		take_out(inbox, (uint32_t)i);
	pthread_mutex_unlock(&inbox->lock);
	/* One that went by itself may still be looked at. */
	r = psc_inbox_kick(inbox);
	return i < 0 ? (int)i : r;
}

size_t psc_inbox_listeners(struct psc_inbox *inbox, int *ret_fds, size_t size)
{
	size_t n = 0;

	pthread_mutex_lock(&inbox->lock);
	for (uint32_t i = 0; i < inbox->used; i++)
		if (inbox->keys[i]) {
			if (n < size)
				ret_fds[n] = key_fd(inbox->keys[i]);
			n++;
		}
	pthread_mutex_unlock(&inbox->lock);
	return n;
}

int psc_inbox_epoll(struct psc_inbox *inbox)
{
	int r;

	pthread_mutex_lock(&inbox->lock);
	r = make_epoll(inbox);
	pthread_mutex_unlock(&inbox->lock);
	return r < 0 ? r : inbox->epoll;
}

int psc_inbox_new(int wake_signal, struct psc_inbox **ret_inbox)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct psc_inbox *inbox;
	int r = psc_notify_check_sizes();

	if (r < 0)
		return r;
	pthread_once(&once, forget_tid_in_children);
	inbox = aligned_alloc(64, sizeof(*inbox));
	if (!inbox)
		return -ENOMEM;
	memset(inbox, 0, sizeof(*inbox));
	inbox->single = NONE;
	inbox->epoll = -1;
	inbox->wake_signal = wake_signal;
	/* Where the probe is denied, poll first: right everywhere, only slower.
	 * FIXME: drop the probe once kernel 6.11 is the baseline. */
	inbox->ends_itself = psc_notify_probe_ends() == 1;
	pthread_mutex_init(&inbox->lock, NULL);
	*ret_inbox = inbox;
	return 0;
}

int psc_inbox_wake_signal(const struct psc_inbox *inbox)
{
	return inbox->wake_signal;
}

void psc_inbox_free(struct psc_inbox *inbox)
{
	if (!inbox)
		return;
	if (inbox->epoll >= 0)
		close(inbox->epoll);
	if (inbox->feed) {
		close(inbox->feed->ready);
		pthread_mutex_destroy(&inbox->feed->lock);
		free(inbox->feed);
	}
	pthread_mutex_destroy(&inbox->lock);
	free(inbox);
}

static void note_wake(int signal_number)
{
	psc_signal_tick_came();
}

int psc_wake_signal_install(void)
{
	struct sigaction wake = { .sa_handler = note_wake }, now;

	for (int n = SIGRTMAX; n >= SIGRTMIN; n--) {
		if (sigaction(n, NULL, &now) < 0 || (now.sa_flags & SA_SIGINFO) || now.sa_handler != SIG_DFL)
			continue;
		return sigaction(n, &wake, NULL) < 0 ? -errno : n;
	}
	return -EBUSY;
}

/* ------------------------------------------------------------------- stays */

static uint32_t stops(uint64_t stays)
{
	return stays >> 32;
}

void psc_inbox_begin(struct psc_inbox *inbox, struct psc_event *ret_event)
{
	uint64_t was = inbox->stays;

	while (!atomic_compare_exchange_weak(&inbox->stays, &was, (was & ~(uint64_t)STOPPED_EARLY) + 1))
		;
	memset(ret_event, 0, sizeof(*ret_event));
	ret_event->ticket = stops(was) - (was & STOPPED_EARLY ? 1 : 0);
}

void psc_inbox_end(struct psc_inbox *inbox)
{
	inbox->stays--;
}

uint32_t psc_inbox_stays(struct psc_inbox *inbox)
{
	return (uint32_t)inbox->stays & ~STOPPED_EARLY;
}

int psc_inbox_stop(struct psc_inbox *inbox)
{
	uint64_t was = inbox->stays, now;

	do
		now = (was + (1ull << 32)) | ((uint32_t)was == 0 ? STOPPED_EARLY : 0);
	while (!atomic_compare_exchange_weak(&inbox->stays, &was, now));
	return psc_inbox_kick(inbox);
}

/* ----------------------------------------------------------------- receive */

/* How long to wait: see psc_inbox_receive() and, if word is there, psc_inbox_receive_unless(). */
struct until {
	int64_t deadline;
	const _Atomic uint32_t *word;
	uint32_t value;
};

/* After RECV said -ENOENT: drop the listener if no task is left. */
static int missed(struct psc_inbox *inbox, uint32_t index, uint64_t key)
{
	int r = psc_notify_poll(key_fd(key), 0);

	if (r >= 0 && (r & PSC_POLL_GONE) && !(r & PSC_POLL_PENDING))
		drop(inbox, index, key);
	return r < 0 ? r : AGAIN;
}

static int take(struct psc_inbox *inbox, uint32_t index, uint64_t key, struct psc_event *event)
{
	int r = psc_journal_receive(inbox->journal, key_fd(key), event);

	if (r == 0) {
		event->listener = index;
		event->key = key;
		event->text_len = 0;
		event->pending = false;
		event->received_ns = event->untimed ? 0 : psc_monotonic_ns();
		return 0;
	}
	return r == -ENOENT ? missed(inbox, index, key) : r;
}

/* With the turn alone: wait for what poll or epoll says about one listener. */
static int take_polled(struct psc_inbox *inbox, uint32_t index, int bits, struct psc_event *event)
{
	uint64_t key = inbox->keys[index];

	if (key == 0)
		return AGAIN;
	if (bits & PSC_POLL_PENDING)
		return take(inbox, index, key, event);
	drop(inbox, index, key);
	return AGAIN;
}

static int wait_single(struct psc_inbox *inbox, uint32_t index, int64_t deadline, struct psc_event *event)
{
	uint64_t key = inbox->keys[index];
	int r;

	if (key == 0)
		return AGAIN;
	r = psc_notify_poll(key_fd(key), deadline);
	if (r == 0)
		return -ETIMEDOUT;
	return r < 0 ? r : take_polled(inbox, index, r, event);
}

static int wait_many(struct psc_inbox *inbox, int64_t deadline, struct psc_event *event)
{
	int64_t left = deadline <= 0 ? 0 : deadline - psc_monotonic_ns();
	struct timespec timeout = {};
	struct epoll_event e;
	int r;

	if (left > 0)
		timeout = (struct timespec){ left / 1000000000, left % 1000000000 };
	r = epoll_pwait2(inbox->epoll, &e, 1, deadline < 0 ? NULL : &timeout, NULL);
	if (r < 0 && (errno == ENOSYS || errno == EPERM)) { /* by a container's policy; epoll_wait() counts milliseconds */
		int64_t ms = (left > 0 ? left : 0) / 1000000 + (left % 1000000 > 0);

		r = epoll_wait(inbox->epoll, &e, 1, deadline < 0 ? -1 : ms < INT32_MAX ? (int)ms : INT32_MAX);
	}
	if (r < 0)
		return -errno;
	if (r == 0)
		return -ETIMEDOUT;
	if (e.data.u32 == FED)
		return take_fed(inbox, event);
	return take_polled(inbox, e.data.u32, e.events & EPOLLIN ? PSC_POLL_PENDING : PSC_POLL_GONE, event);
}

/* What the journal's last owner had received, if the listener is in here. */
static int take_orphan(struct psc_inbox *inbox, struct psc_journal *journal, struct psc_event *event)
{
	size_t n = 0, which;
	_cleanup_free_ int *fds = NULL;
	int64_t i = -ENOENT;

	pthread_mutex_lock(&inbox->lock);
	fds = calloc(inbox->used, sizeof(*fds));
	for (uint32_t k = 0; fds && k < inbox->used; k++)
		if (inbox->keys[k])
			fds[n++] = key_fd(inbox->keys[k]);
	if (psc_journal_take(journal, fds, n, event, &which))
		i = find(inbox, fds[which]);
	if (i >= 0) {
		event->listener = (uint32_t)i;
		event->key = inbox->keys[i];
		event->text_len = 0;
		event->pending = false;
		event->received_ns = psc_monotonic_ns();
	}
	pthread_mutex_unlock(&inbox->lock);
	return i >= 0 ? 0 : AGAIN;
}

int psc_inbox_keep_journal(struct psc_inbox *inbox, struct psc_journal *journal)
{
	struct psc_journal *none = NULL;

	if (!atomic_compare_exchange_strong(&inbox->journal, &none, journal))
		return -EEXIST;
	return psc_inbox_kick(inbox);
}

struct psc_journal *psc_inbox_journal(struct psc_inbox *inbox)
{
	return inbox->journal;
}

static int receive_once(struct psc_inbox *inbox, struct until until, struct psc_event *event)
{
	struct psc_journal *journal = inbox->journal;
	uint32_t single = inbox->single;
	bool alone = single == NONE || until.deadline >= 0 || !inbox->ends_itself;
	uint64_t key;
	int r;

	if (stops(inbox->stays) != event->ticket)
		return -ECANCELED;
	if (until.word && *until.word == until.value)
		return -ETIMEDOUT;
	if (inbox->live == 0)
		return inbox->serial ? -ESHUTDOWN : -ENOTCONN;
	if (psc_journal_waits(journal))
		return take_orphan(inbox, journal, event);
	r = turn_take(inbox, alone, until.word ? 0 : until.deadline);
	if (r < 0)
		return r;
	if (single == NONE) {
		/* All but one may have gone while waiting for the turn. */
		r = inbox->live == 0 ? AGAIN : wait_many(inbox, until.deadline, event);
	} else if (alone) {
		r = wait_single(inbox, single, until.deadline, event);
	} else {
		key = inbox->keys[single];
		r = key ? take(inbox, single, key, event) : AGAIN;
	}
	turn_give(inbox, alone);
	return r;
}

static int receive_until(struct psc_inbox *inbox, pid_t tid, struct until until, struct psc_event *event)
{
	int r, slot;

	event->due = false;
	do {
		slot = psc_slot_enter(inbox, tid);
		if (slot < 0)
			return -EUSERS;
		r = receive_once(inbox, until, event);
		psc_slot_leave(inbox, slot);
	} while (r == AGAIN);
	return r;
}

int psc_inbox_receive_as(struct psc_inbox *inbox, pid_t tid, int64_t deadline, struct psc_event *event)
{
	return receive_until(inbox, tid, (struct until){ .deadline = deadline }, event);
}

int psc_inbox_receive_unless(struct psc_inbox *inbox, const _Atomic uint32_t *word, uint32_t value,
			     struct psc_event *event)
{
	return receive_until(inbox, psc_tid(), (struct until){ -1, word, value }, event);
}

bool psc_stretch_begin(struct psc_inbox *inbox, pid_t tid, const struct psc_event *event,
		       struct psc_stretch *ret_stretch)
{
	struct psc_stretch stretch = { .epoch = &inbox->epoch, .waiters = &inbox->turn_waiters };
	int32_t turn = inbox->turn;

	if (inbox->single == NONE || !inbox->ends_itself)
		return false;
	stretch.slot = psc_slot_enter(inbox, tid);
	if (stretch.slot < 0)
		return false;
	stretch.entered = inbox->slots[stretch.slot].epoch;
	stretch.listener = inbox->single;
	stretch.key = stretch.listener == NONE ? 0 : inbox->keys[stretch.listener];
	stretch.fd = key_fd(stretch.key);
	stretch.journal = inbox->journal;
	while (turn >= 0 && !atomic_compare_exchange_weak(&inbox->turn, &turn, turn + 1))
		;
	if (turn >= 0 && stretch.key && stops(inbox->stays) == event->ticket && !psc_journal_waits(stretch.journal)) {
		*ret_stretch = stretch;
		return true;
	}
	if (turn >= 0)
		turn_give(inbox, false);
	psc_slot_leave(inbox, stretch.slot);
	return false;
}

void psc_stretch_end(struct psc_inbox *inbox, const struct psc_stretch *stretch)
{
	turn_give(inbox, false);
	psc_slot_leave(inbox, stretch->slot);
}

int psc_stretch_missed(struct psc_inbox *inbox, const struct psc_stretch *stretch)
{
	return missed(inbox, stretch->listener, stretch->key);
}

int psc_inbox_receive(struct psc_inbox *inbox, int64_t deadline, struct psc_event *event)
{
	return psc_inbox_receive_as(inbox, psc_tid(), deadline, event);
}
