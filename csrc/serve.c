/* The loop that answers by a table, and what it counts.
 *
 * Nothing here takes a lock that another thread can hold while it waits: the task
 * that is being answered may be a thread of this process, trapped while it holds
 * any lock there is (the GIL, malloc's). So the loop neither allocates nor logs;
 * counters are atomic words.
 *
 * An answer is counted before it is sent, and taken back if it reached nobody: who sees
 * an effect finds it counted. (For a moment a count may hold one that reaches nobody.)
 * A record for the ring cannot be taken back and tells whether the target was gone, so
 * it is written afterwards.
 */
#define _GNU_SOURCE
#include "crew.h"
#include "inbox.h"
#include "journal.h"
#include "listener.h"
#include "rules.h"
#include "signal_tick.h"

#include <string.h>
#include <time.h>

#define STATS_ROWS 2048 /* a power of two, half of it used at most */
#define FAST_NS 10000
#define UNTIMED 7

/* ------------------------------------------------------------------- stats */

/* key is 0 while free: no arch is 0. */
struct row {
	_Alignas(64) _Atomic uint64_t key;
	_Atomic uint64_t answered[PSC_ANSWER_KINDS];
};

struct psc_stats {
	_Atomic uint64_t gone;
	_Atomic uint64_t uncounted[PSC_ANSWER_KINDS]; /* that have no row */
	_Atomic uint64_t pending;
	_Atomic(struct psc_ring *) ring;
	_Atomic uint32_t used;
	_Atomic uint64_t latencies[PSC_LATENCY_BUCKETS];
	struct row rows[STATS_ROWS];
};

static void count(_Atomic uint64_t *counter)
{
	atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

static void uncount(_Atomic uint64_t *counter)
{
	atomic_fetch_sub_explicit(counter, 1, memory_order_relaxed);
}

int psc_stats_new(struct psc_stats **ret_stats)
{
	struct psc_stats *stats = aligned_alloc(64, sizeof(*stats));

	if (!stats)
		return -ENOMEM;
	memset(stats, 0, sizeof(*stats));
	*ret_stats = stats;
	return 0;
}

void psc_stats_free(struct psc_stats *stats)
{
	free(stats);
}

/* The row of a call, made if there is none; NULL if half of all are used. */
static struct row *find_row(struct psc_stats *stats, uint64_t key)
{
	for (uint32_t i = psc_call_hash(key);; i++) {
		struct row *row = &stats->rows[i % STATS_ROWS];
		uint64_t seen = row->key;

		if (seen == key)
			return row;
		if (seen)
			continue;
		if (atomic_fetch_add(&stats->used, 1) >= STATS_ROWS / 2) {
			atomic_fetch_sub(&stats->used, 1);
			return NULL;
		}
		if (atomic_compare_exchange_strong(&row->key, &seen, key) || seen == key)
			return row;
		atomic_fetch_sub(&stats->used, 1);
	}
}

/* Values below 4 have a bucket each; above, four to an octave. */
static unsigned int latency_bucket(uint64_t ns)
{
	unsigned int octave;

	if (ns < 4)
		return (unsigned int)ns;
	octave = 63 - (unsigned int)__builtin_clzll(ns);
	return (octave - 1) * 4 + ((ns >> (octave - 2)) & 3);
}

uint64_t psc_latency_floor(unsigned int bucket)
{
	if (bucket < 4)
		return bucket;
	if (bucket >= PSC_LATENCY_BUCKETS)
		return UINT64_MAX;
	return (uint64_t)(4 + bucket % 4) << (bucket / 4 - 1);
}

/* Where an answer was counted. */
struct tally {
	_Atomic uint64_t *answered, *latency;
	bool pending;
};

/* answered_ns is 0 if the event was not timed. */
static struct tally tally_answer(struct psc_stats *stats, struct psc_event *event, enum psc_answer_kind kind,
				 int64_t answered_ns)
{
	struct tally tally = { .pending = event->pending };
	int64_t ns = answered_ns - event->received_ns;
	struct row *row;

	if (!stats)
		return tally;
	row = find_row(stats, psc_call_key(event->notif.n.data.arch, event->notif.n.data.nr));
	if (answered_ns == 0) {
		event->untimed -= event->untimed > 0;
	} else {
		event->bucket = (uint8_t)latency_bucket(ns > 0 ? (uint64_t)ns : 0);
		event->untimed = ns < FAST_NS && !stats->ring ? UNTIMED : 0;
	}
	tally.answered = row ? &row->answered[kind] : &stats->uncounted[kind];
	tally.latency = &stats->latencies[event->bucket];
	count(tally.answered);
	count(tally.latency);
	if (tally.pending)
		uncount(&stats->pending);
	event->pending = false;
	return tally;
}

void psc_stats_sum(const struct psc_stats *stats, struct psc_stats_totals *ret_totals)
{
	*ret_totals = (struct psc_stats_totals){ .gone = stats->gone, .pending = stats->pending };
	for (int kind = 0; kind < PSC_ANSWER_KINDS; kind++) {
		ret_totals->uncounted += stats->uncounted[kind];
		ret_totals->answered[kind] = stats->uncounted[kind];
		for (size_t i = 0; i < STATS_ROWS; i++)
			ret_totals->answered[kind] += stats->rows[i].answered[kind];
	}
}

size_t psc_stats_rows(const struct psc_stats *stats, struct psc_stats_row *ret_rows, size_t size)
{
	size_t n = 0;

	for (size_t i = 0; i < STATS_ROWS; i++) {
		const struct row *row = &stats->rows[i];
		uint64_t key = row->key;

		if (!key)
			continue;
		if (n < size) {
			ret_rows[n].arch = key >> 32;
			ret_rows[n].nr = (int)(uint32_t)key;
			for (int k = 0; k < PSC_ANSWER_KINDS; k++)
				ret_rows[n].answered[k] = row->answered[k];
		}
		n++;
	}
	return n;
}

void psc_stats_latencies(const struct psc_stats *stats, uint64_t ret_counts[PSC_LATENCY_BUCKETS])
{
	for (int i = 0; i < PSC_LATENCY_BUCKETS; i++)
		ret_counts[i] = stats->latencies[i];
}

/* ------------------------------------------------------------------ events */

static int event_fd(const struct psc_event *event)
{
	return (int)(uint32_t)event->key;
}

static int kill_or_deny(int fd, const struct seccomp_notif *n)
{
	int r = psc_notify_kill(fd, n);

	if (r < 0 && r != -ENOENT) {
		int denied = psc_notify_error(fd, n->id, EPERM);

		r = denied < 0 ? denied : r;
	}
	return r;
}

/* The answer is sound. */
static inline int respond(int fd, const struct seccomp_notif *n, const struct psc_answer *answer)
{
	switch (answer->kind) {
	case PSC_CONTINUE:
		return psc_listener_send(fd, n->id, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE);
	case PSC_ERROR:
		return psc_listener_send(fd, n->id, 0, -answer->error, 0);
	case PSC_VALUE:
		return psc_listener_send(fd, n->id, answer->value, 0, 0);
	case PSC_KILL:
		return kill_or_deny(fd, n);
	case PSC_ADD_FD:
		return psc_notify_give(fd, n, answer);
	default:
		return -EINVAL;
	}
}

/* What became of an answer that its caller cannot ask for: that the target is gone
 * is counted; that the kill was denied, too (the call then failed with EPERM). */
static bool goes_on(int r)
{
	return r >= 0 || r == -ENOENT || r == -EINPROGRESS || r == -EPERM || r == -ESRCH;
}

static void keep(struct psc_ring *ring, const struct psc_event *event, const struct psc_answer *answer,
		 int64_t answered_ns, bool gone)
{
	const struct seccomp_notif *n = &event->notif.n;
	struct psc_record one = {
		.id = n->id,
		.time_ns = event->received_ns ? event->received_ns : psc_monotonic_ns(),
		.value = answer->kind == PSC_VALUE ? answer->value : 0,
		.pid = n->pid,
		.nr = n->data.nr,
		.arch = n->data.arch,
		.error = answer->kind == PSC_ERROR ? answer->error : 0,
		.kind = (uint16_t)answer->kind,
		.gone = gone,
		.text_len = event->text_len,
	};

	if (answered_ns > one.time_ns)
		one.latency_ns = (uint64_t)(answered_ns - one.time_ns);
	memcpy(one.args, n->data.args, sizeof(one.args));
	memcpy(one.text, event->text, event->text_len);
	(void)psc_ring_write(ring, &one);
}

/* What became of an answer that was counted. */
static void settle(struct psc_stats *stats, struct psc_event *event, const struct psc_answer *answer,
		   struct tally tally, int64_t answered_ns, int r)
{
	struct psc_ring *ring;

	if (!stats)
		return;
	if (r < 0) {
		uncount(tally.answered);
		uncount(tally.latency);
		if (tally.pending && !goes_on(r)) {
			count(&stats->pending);
			event->pending = true;
		}
		if (r != -ENOENT)
			return;
		count(&stats->gone);
	}
	ring = atomic_load_explicit(&stats->ring, memory_order_acquire);
	if (ring)
		keep(ring, event, answer, answered_ns, r == -ENOENT);
}

void psc_stats_keep_records(struct psc_stats *stats, struct psc_ring *ring)
{
	atomic_store_explicit(&stats->ring, ring, memory_order_release);
}

static int64_t answer_time(const struct psc_stats *stats, const struct psc_event *event)
{
	return stats && event->received_ns ? psc_monotonic_ns() : 0;
}

int psc_notify_answer(int fd, const struct seccomp_notif *n, const struct psc_answer *answer)
{
	return psc_answer_sound(answer) ? respond(fd, n, answer) : -EINVAL;
}

/* Inside a slot, with a listener that is there. The answer is sound. */
static int send(struct psc_journal *journal, struct psc_event *event, const struct psc_answer *answer,
		struct psc_stats *stats)
{
	int64_t answered_ns = answer_time(stats, event);
	struct tally tally = tally_answer(stats, event, answer->kind, answered_ns);
	int r = respond(event_fd(event), &event->notif.n, answer);

	if (journal)
		psc_journal_done(journal, event);
	settle(stats, event, answer, tally, answered_ns, r);
	return r;
}

static int answer_as(struct psc_inbox *inbox, pid_t tid, struct psc_event *event, const struct psc_answer *answer,
		     struct psc_stats *stats)
{
	int slot, r;

	if (!psc_answer_sound(answer) || answer->kind == PSC_HOLD)
		return -EINVAL;
	slot = psc_slot_enter(inbox, tid);
	if (slot < 0)
		return -EUSERS;
	if (psc_event_alive(inbox, event)) {
		r = send(psc_inbox_journal(inbox), event, answer, stats);
	} else {
		r = -ENOENT;
		psc_journal_done(psc_inbox_journal(inbox), event);
		settle(stats, event, answer, tally_answer(stats, event, answer->kind, 0), 0, r);
	}
	psc_slot_leave(inbox, slot);
	return r;
}

int psc_event_answer(struct psc_inbox *inbox, struct psc_event *event, const struct psc_answer *answer,
		     struct psc_stats *stats)
{
	return answer_as(inbox, psc_tid(), event, answer, stats);
}

int psc_event_valid(struct psc_inbox *inbox, const struct psc_event *event)
{
	int slot = psc_slot_enter(inbox, psc_tid()), r;

	if (slot < 0)
		return -EUSERS;
	r = psc_event_alive(inbox, event) ? psc_notify_valid(event_fd(event), event->notif.n.id) : -ENOENT;
	psc_slot_leave(inbox, slot);
	return r;
}

int psc_event_addfd(struct psc_inbox *inbox, struct psc_event *event, int source, int at, unsigned int flags,
		    struct psc_stats *stats)
{
	struct psc_stats *counted = flags & PSC_ADDFD_SEND ? stats : NULL;
	int64_t answered_ns = answer_time(counted, event);
	int slot = psc_slot_enter(inbox, psc_tid()), r;
	struct tally tally;

	if (slot < 0)
		return -EUSERS;
	tally = tally_answer(counted, event, PSC_VALUE, answered_ns);
	r = psc_event_alive(inbox, event) ?
		    psc_notify_addfd(event_fd(event), event->notif.n.id, source, at, flags) :
		    -ENOENT;
	psc_slot_leave(inbox, slot);
	if (flags & PSC_ADDFD_SEND && (r >= 0 || r == -ENOENT))
		psc_journal_done(psc_inbox_journal(inbox), event);
	settle(counted, event, &(struct psc_answer){ .kind = PSC_VALUE, .value = r }, tally, answered_ns, r);
	return r;
}

/* Not in a slot while reading: that can wait for the target's memory. */
ssize_t psc_event_read(struct psc_inbox *inbox, const struct psc_event *event, uint64_t addr, void *ret_data,
		       size_t size)
{
	ssize_t got = psc_notify_peek(&event->notif.n, addr, ret_data, size);
	int r = psc_event_valid(inbox, event);

	return r < 0 ? r : got;
}

ssize_t psc_event_read_string(struct psc_inbox *inbox, const struct psc_event *event, uint64_t addr,
			      char *ret_data, size_t size)
{
	ssize_t got = psc_notify_peek_string(&event->notif.n, addr, ret_data, size);
	int r = psc_event_valid(inbox, event);

	return r < 0 ? r : got;
}

/* -------------------------------------------------------------------- loop */

/* 1 if the caller is to answer. What is refused is not told at once: to return could
 * already take what the thread holds, and it may be here again by then. */
static int decide(struct psc_event *event, const struct psc_table *table, struct psc_stats *stats)
{
	psc_table_decide_event(table, event);
	if (event->answer.kind != PSC_HOLD)
		return 0;
	if (!psc_table_refuses(table, event)) {
		if (stats) {
			count(&stats->pending);
			event->pending = true;
		}
		return 1;
	}
	event->refused++;
	event->refused_last = event->notif.n;
	return 0;
}

static int receive_stretch(struct psc_inbox *inbox, const struct psc_stretch *stretch, struct psc_event *event)
{
	int r = stretch->journal ? psc_journal_receive(stretch->journal, stretch->fd, event) :
				   psc_listener_receive(stretch->fd, &event->notif);

	if (r < 0)
		return r == -ENOENT ? psc_stretch_missed(inbox, stretch) : r;
	event->text_len = 0;
	event->pending = false;
	event->received_ns = event->untimed ? 0 : psc_monotonic_ns();
	return 0;
}

/* Answer without leaving the inbox between, first what is due. -EAGAIN: what comes
 * next is to be received otherwise, -ENODATA: even the first. */
static int serve_stretch(struct psc_inbox *inbox, const struct psc_table *table, struct psc_stats *stats,
			 struct psc_member *member, pid_t tid, struct psc_event *event)
{
	struct psc_stretch stretch;
	bool due = event->due;
	int r = -EAGAIN;

	if (!psc_stretch_begin(inbox, tid, event, &stretch))
		return -ENODATA;
	if (due && event->key != stretch.key)
		goto out;
	if (!due) {
		event->listener = stretch.listener;
		event->key = stretch.key;
		event->slot = 0;
	}
	for (;; due = true) {
		if (due) {
			bool wanted = !member || psc_member_goes_on(member, event->notif.n.pid);

			event->due = false;
			r = send(stretch.journal, event, &event->answer, stats);
			if (!goes_on(r))
				break;
			r = wanted ? -EAGAIN : -ESTALE;
			if (!wanted || !psc_stretch_goes_on(&stretch))
				break;
			if (psc_signal_ticked && !psc_signal_tick_only()) {
				r = -EINTR;
				break;
			}
		}
		r = receive_stretch(inbox, &stretch, event);
		if (r < 0)
			break;
		r = decide(event, table, stats);
		if (r == 1)
			break;
	}
out:
	psc_stretch_end(inbox, &stretch);
	return r;
}

int psc_serve(struct psc_inbox *inbox, const struct psc_table *table, struct psc_stats *stats,
	      struct psc_event *event)
{
	return psc_serve_as(inbox, table, stats, NULL, event);
}

int psc_serve_as(struct psc_inbox *inbox, const struct psc_table *table, struct psc_stats *stats,
		 struct psc_member *member, struct psc_event *event)
{
	pid_t tid = psc_tid();
	int r;

	if (event->due && !psc_answer_sound(&event->answer))
		return -EINVAL;
	for (;;) {
		r = serve_stretch(inbox, table, stats, member, tid, event);
		if (r == -ENODATA && member) {
			if (member->index)
				return -ESTALE;
			psc_crew_rest(member->crew);
		}
		if (r == -EINTR && psc_signal_tick_only())
			continue;
		if (r != -EAGAIN && r != -ENODATA)
			return r;
		if (event->due) {
			event->due = false;
			r = answer_as(inbox, tid, event, &event->answer, stats);
			if (!goes_on(r))
				return r;
		}
		if (psc_signal_ticked && !psc_signal_tick_only())
			return -EINTR;
		r = psc_inbox_receive_as(inbox, tid, -1, event);
		if (r == -EINTR && psc_signal_tick_only())
			continue;
		if (r < 0)
			return r;
		if (decide(event, table, stats))
			return 1;
		event->due = true;
	}
}
