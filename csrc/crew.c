/* crew.c - threads that help a loop, as many as pay.
 *
 * One target and one loop take turns: a second loop only gets in between, and doubles the
 * cost of a call. Many targets keep two loops busy, which takes a third off, but only if
 * each has a processor of its own: the synchronous wake-up keeps a target where it was
 * answered, and so the targets divide themselves between the two. Left to the scheduler,
 * two loops gain next to nothing.
 *
 * How many calls are pending does not tell which it is: mostly none is, the others wait for
 * the processor to make theirs. So it is tried. The loop (member 0) looks at the clock every 64 calls:
 *
 *	alone:	did several tasks call in turns, for 4 ms? Note the rate, call up a helper.
 *	trial:	let it settle for 4 ms, take the rate for 4 ms; not better by a twentieth:
 *		stand the helper down, and try again after 50 ms, 100 ms, ... 3.2 s.
 *	two:	the same, again and again, twice in a row to stand down; and after a second,
 *		alone for 4 ms.
 *
 * A helper that is stood down may be in RECV still: it answers one call more. It is a
 * thread of ours that does nothing else. Member 0 is the caller's thread; it keeps to its
 * processor only while helpers serve, then gets back what it was allowed.
 *
 * A helper is made when it is first called up: a process of one thread pays 2 % of a call
 * less. To make a thread takes locks of the C library that a thread of ours, trapped under
 * the very listener, may hold (see serve.c); so this is only done when none of our threads
 * has a filter. None can come under the listener's then: its filter is inherited, no more.
 * Otherwise helpers are made beforehand.
 */
#define _GNU_SOURCE
#include "crew.h"
#include "inbox.h"
#include "rules.h"
#include "thread.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <string.h>

#define MS 1000000LL

enum {
	SLICE_NS = 4 * MS,
	SETTLE_NS = 4 * MS,
	FIRST_PAUSE_NS = 50 * MS,
};
#define LAST_PAUSE_NS (3200 * MS)
#define TRUST_NS (1000 * MS)

struct psc_crew {
	struct psc_inbox *inbox;
	const struct psc_table *table;
	struct psc_stats *stats;
	pid_t owner;
	uint32_t ticket;
	_Alignas(64) _Atomic uint32_t active;
	_Atomic bool ended;

	/* Of member 0 alone. */
	_Alignas(64) int64_t slice_begin, next_trial, pause, trusted;
	uint64_t slice_calls;
	uint32_t seen; /* what active was */
	uint32_t doubts; /* slices in a row that were no better */
	bool settled, pinned, made, proved; /* one slice was better */
	double before; /* calls in a nanosecond, with one member less */
	cpu_set_t allowed;

	unsigned int n;
	struct psc_member members[];
};

const _Atomic uint32_t *psc_crew_active(const struct psc_crew *crew)
{
	return &crew->active;
}

/* ------------------------------------------------------------------- helpers */

static void pin(int processor)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET((size_t)processor, &one);
	(void)sched_setaffinity(0, sizeof(one), &one); /* as well as can be */
}

/* Until it is wanted, or all is over. */
static void wait_call(struct psc_crew *crew, const struct psc_member *member)
{
	uint32_t active;

	while ((active = crew->active) <= member->index && !crew->ended)
		(void)psc_syscall(SYS_futex, &crew->active, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, active, NULL, NULL, 0);
}

/* It cannot serve: whoever looks finds that there are fewer. */
static void stand_down_itself(struct psc_crew *crew, const struct psc_member *member)
{
	uint32_t active = crew->active;

	while (active > member->index && !atomic_compare_exchange_weak(&crew->active, &active, member->index))
		;
}

static void *help(void *argument)
{
	struct psc_member *member = argument;
	struct psc_crew *crew = member->crew;
	struct psc_event event = {};

	(void)!psc_rseq_suspend();
	for (;;) {
		int r;

		wait_call(crew, member);
		if (crew->ended)
			return NULL;
		pin(member->processor);
		event.ticket = crew->ticket;
		do
			r = psc_serve_as(crew->inbox, crew->table, crew->stats, member, &event);
		while (r == -EINTR && crew->active > member->index && !crew->ended);
		if (r != -EINTR)
			stand_down_itself(crew, member);
	}
}

/* Without stdio and opendir(), which allocate. False if it cannot be told. */
static bool thread_has_no_filter(int tasks, const char *tid)
{
	_cleanup_close_ int task = openat(tasks, tid, O_PATH | O_DIRECTORY | O_CLOEXEC);
	_cleanup_close_ int fd = task < 0 ? -1 : openat(task, "status", O_RDONLY | O_CLOEXEC);
	const char *line;
	char text[4096];
	ssize_t got;

	if (fd < 0)
		return errno == ENOENT; /* it has ended */
	got = read(fd, text, sizeof(text) - 1);
	if (got <= 0)
		return errno == ESRCH;
	text[got] = 0;
	line = strstr(text, "\nSeccomp:\t");
	return line && line[10] == '0';
}

static bool no_thread_has_a_filter(void)
{
	_cleanup_close_ int tasks = open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_Alignas(8) char entries[2048];
	long size;

	if (tasks < 0)
		return false;
	while ((size = psc_syscall(SYS_getdents64, tasks, entries, sizeof(entries))) > 0)
		for (long at = 0; at < size;) {
			const struct dirent64 *entry = (const struct dirent64 *)&entries[at];

			if (entry->d_name[0] != '.' && !thread_has_no_filter(tasks, entry->d_name))
				return false;
			at += entry->d_reclen;
		}
	return size == 0;
}

static int make_helpers(struct psc_crew *crew)
{
	int r = 0;

	for (unsigned int i = 1; i < crew->n && r == 0; i++)
		if (!crew->members[i].made) {
			r = psc_thread_start(&crew->members[i].thread, psc_inbox_wake_signal(crew->inbox), help,
					     &crew->members[i]);
			crew->members[i].made = r == 0;
		}
	return r;
}

/* --------------------------------------------------------------------- load */

/* The next processor that no member before it has. */
static int free_processor(const struct psc_crew *crew, uint32_t n)
{
	for (int i = 1; i < CPU_SETSIZE; i++) {
		int processor = (crew->members[0].processor + i) % CPU_SETSIZE;
		bool taken = !CPU_ISSET((size_t)processor, &crew->allowed);

		for (uint32_t k = 0; k < n && !taken; k++)
			taken = crew->members[k].processor == processor;
		if (!taken)
			return processor;
	}
	return -1;
}

static bool pin_first(struct psc_crew *crew)
{
	int processor = crew->pinned ? crew->members[0].processor : sched_getcpu();

	if (crew->pinned)
		return true;
	if (processor < 0 || sched_getaffinity(0, sizeof(crew->allowed), &crew->allowed) < 0 ||
	    CPU_COUNT(&crew->allowed) < 2)
		return false;
	crew->members[0].processor = processor;
	pin(processor);
	return crew->pinned = true;
}

static void unpin_first(struct psc_crew *crew)
{
	if (crew->pinned)
		(void)sched_setaffinity(0, sizeof(crew->allowed), &crew->allowed);
	crew->pinned = false;
}

static uint64_t calls_of_all(const struct psc_crew *crew)
{
	uint64_t calls = 0;

	for (unsigned int i = 0; i < crew->n; i++)
		calls += atomic_load_explicit(&crew->members[i].calls, memory_order_relaxed);
	return calls;
}

static void begin_slice(struct psc_crew *crew, int64_t now)
{
	crew->slice_begin = now;
	crew->slice_calls = calls_of_all(crew);
	crew->members[0].turns = 0;
}

static void set_active(struct psc_crew *crew, uint32_t active)
{
	crew->active = crew->seen = active;
	(void)psc_syscall(SYS_futex, &crew->active, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT32_MAX);
}

/* False: there is no processor for one more. */
static bool call_up(struct psc_crew *crew, double rate)
{
	uint32_t n = crew->active;
	int processor;

	if (!crew->made) {
		if (!no_thread_has_a_filter() || make_helpers(crew) < 0)
			return false;
		crew->made = true;
	}
	if (n >= crew->n || !pin_first(crew))
		return false;
	processor = free_processor(crew, n);
	if (processor < 0) {
		if (n == 1)
			unpin_first(crew);
		return false;
	}
	crew->members[n].processor = processor;
	crew->before = rate;
	crew->settled = crew->proved = false;
	crew->doubts = 0;
	set_active(crew, n + 1);
	return true;
}

static void stand_down(struct psc_crew *crew, uint32_t active)
{
	set_active(crew, active);
	if (active == 1)
		unpin_first(crew);
}

static void try_later(struct psc_crew *crew, int64_t now)
{
	crew->next_trial = now + crew->pause;
	crew->pause = crew->pause * 2 < LAST_PAUSE_NS ? crew->pause * 2 : LAST_PAUSE_NS;
}

/* Alone: do several tasks call, and was there no pause, of which nothing can be told? */
static void look_for_more(struct psc_crew *crew, int64_t now)
{
	int64_t length = now - crew->slice_begin;
	uint64_t calls = calls_of_all(crew) - crew->slice_calls;

	if (length < SLICE_NS)
		return;
	if (length < 2 * SLICE_NS && crew->members[0].turns * 4 > calls &&
	    !call_up(crew, (double)calls / (double)length))
		try_later(crew, now);
	begin_slice(crew, now);
}

/* With helpers: does the last one pay? */
static void judge(struct psc_crew *crew, int64_t now)
{
	int64_t length = now - crew->slice_begin;
	double rate;

	if (!crew->settled) {
		if (length < SETTLE_NS)
			return;
		crew->settled = true;
		crew->trusted = now + TRUST_NS;
		begin_slice(crew, now);
		return;
	}
	if (length < SLICE_NS)
		return;
	rate = (double)(calls_of_all(crew) - crew->slice_calls) / (double)length;
	crew->doubts = rate < crew->before * 1.05 ? crew->doubts + 1 : 0;
	if (crew->doubts > crew->proved) {
		try_later(crew, now);
		stand_down(crew, crew->active - 1);
	} else if (now > crew->trusted) {
		crew->pause = FIRST_PAUSE_NS;
		crew->next_trial = now;
		stand_down(crew, 1);
	}
	crew->proved |= !crew->doubts;
	begin_slice(crew, now);
}

void psc_crew_look(struct psc_crew *crew)
{
	int64_t now = psc_monotonic_ns();

	if (crew->active != crew->seen) { /* a helper could not serve */
		stand_down(crew, crew->active);
		try_later(crew, now);
		begin_slice(crew, now);
	}
	if (crew->active > 1)
		judge(crew, now);
	else if (now < crew->next_trial)
		begin_slice(crew, now);
	else
		look_for_more(crew, now);
}

void psc_crew_rest(struct psc_crew *crew)
{
	if (crew->pinned)
		stand_down(crew, 1);
}

/* --------------------------------------------------------------------- life */

int psc_crew_new(struct psc_inbox *inbox, const struct psc_table *table, struct psc_stats *stats, unsigned int n,
		 struct psc_crew **ret_crew)
{
	struct psc_crew *crew;
	size_t size;
	int r = 0;

	if (n < 1 || n > PSC_MAX_CREW || psc_table_holds(table))
		return -EINVAL;
	size = (sizeof(*crew) + n * sizeof(crew->members[0]) + 63) & ~(size_t)63;
	crew = aligned_alloc(64, size);
	if (!crew)
		return -ENOMEM;
	memset(crew, 0, size);
	crew->inbox = inbox;
	crew->table = table;
	crew->stats = stats;
	crew->owner = getpid();
	crew->active = crew->seen = 1;
	crew->pause = FIRST_PAUSE_NS;
	crew->n = n;
	for (unsigned int i = 0; i < n; i++) {
		crew->members[i].crew = crew;
		crew->members[i].index = i;
	}
	if (!no_thread_has_a_filter()) {
		r = make_helpers(crew);
		crew->made = true;
	}
	if (r < 0) {
		psc_crew_free(crew);
		return r;
	}
	*ret_crew = crew;
	return 0;
}

/* Those in RECV are made to look up. */
void psc_crew_free(struct psc_crew *crew)
{
	if (!crew)
		return;
	unpin_first(crew);
	if (crew->owner == getpid()) { /* a child made by fork() has no helpers */
		crew->ended = true;
		set_active(crew, 0);
		(void)psc_inbox_kick(crew->inbox);
		for (unsigned int i = 1; i < crew->n; i++)
			if (crew->members[i].made)
				pthread_join(crew->members[i].thread, NULL);
	}
	free(crew);
}

unsigned int psc_crew_serving(const struct psc_crew *crew)
{
	return crew->active;
}

int psc_serve_with(struct psc_crew *crew, struct psc_event *event)
{
	crew->ticket = event->ticket;
	return psc_serve_as(crew->inbox, crew->table, crew->stats, &crew->members[0], event);
}
