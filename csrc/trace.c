/* trace.c - let calls run and keep account of them: what an observer needs, nothing that a judge needs.
 *
 *     loop thread (C, no lock)                         any thread
 *     receive -> count -> record -> continue           rows, threads, values; take records
 *
 * One thread writes: so counters are plain stores of atomic words, and the records go
 * through a ring with one producer and one consumer. The invariant of the ring: the
 * head moves by whole records only, so what is pending always parses. When it is
 * full the loop waits for the consumer, and the targets with it: nothing is lost.
 *
 * A notification comes at the entry of a call; its result is never seen. What can be
 * known of its duration is an upper bound: the time until the same thread's next call.
 */
#define _GNU_SOURCE
#include "internal.h"
#include "psc.h"

#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>

#define ROWS 2048 /* powers of two, half used at most */
#define THREADS 65536
#define MAX_SNAP 4096
#define MAX_RING (1u << 28)
#define VECTOR_ITEMS 32
#define CAPTURE_HEAD 4
#define MAX_RECORD (sizeof(struct psc_trace_record) + 6 * (CAPTURE_HEAD + MAX_SNAP))

struct row {
	_Atomic uint64_t key; /* 0 while free: no arch is 0 */
	_Atomic uint64_t count, timed, until_next_ns, longest_ns;
	const struct psc_trace_spec *spec;
	_Atomic uint32_t n_values; /* above PSC_TRACE_VALUES: too many */
	uint32_t values[PSC_TRACE_VALUES];
};

struct thread {
	_Atomic int32_t tid; /* 0 while free */
	struct row *_Atomic last;
	_Atomic uint64_t count;
	_Atomic int64_t since_ns;
};

struct psc_trace {
	_Atomic bool running, deaf, waiting;
	bool begun;
	uint32_t snap;
	size_t n_specs, used_rows, used_threads;
	struct psc_trace_spec *specs;
	struct row *rows;
	struct thread *threads;
	struct row other_calls;
	struct thread other_threads;
	int wake; /* eventfd: records came for a consumer that waits */
	uint8_t *ring;
	uint64_t ring_size;
	_Atomic uint64_t head, tail;
	uint8_t record[MAX_RECORD] __attribute__((aligned(8)));
};

/* -------------------------------------------------------------------- life */

static bool sound(const struct psc_trace_spec *spec)
{
	if (!spec->arch || spec->watch > 5)
		return false;
	for (int i = 0; i < 6; i++)
		if (spec->capture[i] > PSC_CAPTURE_VECTOR &&
		    (spec->capture[i] < PSC_CAPTURE_BUFFER || spec->capture[i] > PSC_CAPTURE_BUFFER + 5))
			return false;
	return true;
}

int psc_trace_new(const struct psc_trace_spec *specs, size_t n, uint32_t snap, size_t ring, struct psc_trace **ret_trace)
{
	struct psc_trace *trace;

	if (snap > MAX_SNAP || ring > MAX_RING || (ring & (ring - 1)) || (ring && ring < 4 * MAX_RECORD))
		return -EINVAL;
	for (size_t i = 0; i < n; i++)
		if (!sound(&specs[i]))
			return -EINVAL;
	trace = calloc(1, sizeof(*trace));
	if (!trace)
		return -ENOMEM;
	trace->snap = snap;
	trace->ring_size = ring;
	trace->n_specs = n;
	trace->begun = true;
	trace->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	trace->specs = calloc(n + 1, sizeof(*specs));
	trace->rows = calloc(ROWS, sizeof(*trace->rows));
	trace->threads = calloc(THREADS, sizeof(*trace->threads));
	trace->ring = ring ? malloc(ring) : NULL;
	if (trace->wake < 0 || !trace->specs || !trace->rows || !trace->threads || (ring && !trace->ring)) {
		int r = trace->wake < 0 ? -EMFILE : -ENOMEM;

		psc_trace_free(trace);
		return r;
	}
	if (n)
		memcpy(trace->specs, specs, n * sizeof(*specs));
	for (size_t i = 0; i < n; i++)
		if (specs[i].begins)
			trace->begun = false;
	*ret_trace = trace;
	return 0;
}

void psc_trace_free(struct psc_trace *trace)
{
	if (!trace)
		return;
	psc_close_fd(&trace->wake);
	free(trace->specs);
	free(trace->rows);
	free(trace->threads);
	free(trace->ring);
	free(trace);
}

/* ---------------------------------------------------------------- counting */

static void bump(_Atomic uint64_t *counter, uint64_t by)
{
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + by, memory_order_relaxed);
}

static const struct psc_trace_spec *find_spec(const struct psc_trace *trace, uint32_t arch, int nr)
{
	for (size_t i = 0; i < trace->n_specs; i++)
		if (trace->specs[i].arch == arch && trace->specs[i].nr == nr)
			return &trace->specs[i];
	return NULL;
}

static struct row *find_row(struct psc_trace *trace, uint32_t arch, int nr)
{
	uint64_t key = psc_call_key(arch, nr);
	uint32_t at = psc_call_hash(key);
	struct row *row;

	for (;; at++) {
		row = &trace->rows[at % ROWS];
		if (row->key == key)
			return row;
		if (!row->key)
			break;
	}
	if (trace->used_rows >= ROWS / 2)
		return &trace->other_calls;
	trace->used_rows++;
	row->spec = find_spec(trace, arch, nr);
	row->key = key;
	return row;
}

static struct thread *find_thread(struct psc_trace *trace, int32_t tid)
{
	uint32_t at = (uint32_t)tid * 0x9e3779b1u >> 8;
	struct thread *thread;

	for (;; at++) {
		thread = &trace->threads[at % THREADS];
		if (thread->tid == tid && tid)
			return thread;
		if (!thread->tid)
			break;
	}
	if (!tid || trace->used_threads >= THREADS / 2)
		return &trace->other_threads;
	trace->used_threads++;
	thread->tid = tid;
	return thread;
}

static void keep_value(struct row *row, uint32_t value)
{
	uint32_t n = row->n_values;

	for (uint32_t i = 0; i < n && i < PSC_TRACE_VALUES; i++)
		if (row->values[i] == value)
			return;
	if (n < PSC_TRACE_VALUES)
		row->values[n] = value;
	if (n <= PSC_TRACE_VALUES)
		row->n_values = n + 1;
}

/* The thread's earlier call has ended by now. */
static void end_earlier(struct psc_trace *trace, struct thread *thread, int64_t now)
{
	struct row *last = thread->last;
	uint64_t ns = now > thread->since_ns ? (uint64_t)(now - thread->since_ns) : 0;

	if (!last || thread == &trace->other_threads)
		return;
	bump(&last->timed, 1);
	bump(&last->until_next_ns, ns);
	if (ns > last->longest_ns)
		last->longest_ns = ns;
}

/* --------------------------------------------------------------- recording */

struct room {
	struct psc_inbox *inbox;
	const struct psc_event *event;
	uint32_t snap;
	uint8_t *at;
};

static void put_capture(struct room *room, int arg, enum psc_captured what, size_t len)
{
	uint16_t size = (uint16_t)len;

	room->at[0] = (uint8_t)(PSC_CAPTURED | arg);
	room->at[1] = (uint8_t)what;
	memcpy(&room->at[2], &size, sizeof(size));
	room->at += CAPTURE_HEAD + len;
}

/* A string of at most snap bytes; one that is longer is cut there. */
static void capture_string(struct room *room, int arg, uint64_t addr)
{
	char text[MAX_SNAP + 1];
	ssize_t n = psc_event_read_string(room->inbox, room->event, addr, text, room->snap + 1);
	enum psc_captured what = n >= 0 ? PSC_CAPTURED_WHOLE : PSC_CAPTURED_CUT;

	if (n == -ENAMETOOLONG)
		n = psc_event_read(room->inbox, room->event, addr, text, room->snap);
	if (n < 0)
		put_capture(room, arg, PSC_CAPTURED_NOT, 0);
	else {
		memcpy(room->at + CAPTURE_HEAD, text, (size_t)n);
		put_capture(room, arg, what, (size_t)n);
	}
}

static void capture_buffer(struct room *room, int arg, uint64_t addr, uint64_t len)
{
	size_t want = len < room->snap ? (size_t)len : room->snap;
	ssize_t n = want ? psc_event_read(room->inbox, room->event, addr, room->at + CAPTURE_HEAD, want) : 0;

	if (n < 0)
		put_capture(room, arg, PSC_CAPTURED_NOT, 0);
	else
		put_capture(room, arg, (uint64_t)n < len ? PSC_CAPTURED_CUT : PSC_CAPTURED_WHOLE, (size_t)n);
}

/* The strings that a NULL-terminated array points to, each with its NUL, as far as snap bytes hold them. */
static void capture_vector(struct room *room, int arg, uint64_t addr, size_t width)
{
	uint8_t pointers[VECTOR_ITEMS * 8];
	char text[MAX_SNAP + 1];
	ssize_t got = psc_event_read(room->inbox, room->event, addr, pointers, VECTOR_ITEMS * width);
	size_t used = 0, items = got > 0 ? (size_t)got / width : 0;
	uint8_t *out = room->at + CAPTURE_HEAD;

	if (got < 0) {
		put_capture(room, arg, PSC_CAPTURED_NOT, 0);
		return;
	}
	for (size_t i = 0; i < items; i++) {
		uint64_t pointer = 0;
		ssize_t n;

		memcpy(&pointer, pointers + i * width, width);
		if (!pointer) {
			put_capture(room, arg, PSC_CAPTURED_WHOLE, used);
			return;
		}
		if (used + 1 >= room->snap)
			break;
		n = psc_event_read_string(room->inbox, room->event, pointer, text, room->snap - used);
		if (n < 0)
			break;
		memcpy(out + used, text, (size_t)n + 1);
		used += (size_t)n + 1;
	}
	put_capture(room, arg, PSC_CAPTURED_CUT, used);
}

static size_t pointer_width(const struct seccomp_data *data)
{
	return (data->arch & 0x80000000u) && !(data->arch == 0xC000003Eu && ((uint32_t)data->nr & PSC_X32_BIT)) ? 8 : 4;
}

static size_t write_record(struct psc_trace *trace, struct psc_inbox *inbox, const struct psc_event *event,
			   const struct psc_trace_spec *spec)
{
	const struct seccomp_data *data = &event->notif.n.data;
	struct psc_trace_record *record = (void *)trace->record;
	struct room room = { inbox, event, trace->snap, trace->record + sizeof(*record) };

	*record = (struct psc_trace_record){ .tid = (int32_t)event->notif.n.pid, .ns = event->received_ns,
					     .arch = data->arch, .nr = data->nr };
	memcpy(record->args, data->args, sizeof(record->args));
	for (int i = 0; spec && trace->snap && i < 6; i++) {
		if (spec->capture[i] == PSC_CAPTURE_NONE || !data->args[i])
			continue;
		if (spec->capture[i] == PSC_CAPTURE_STRING)
			capture_string(&room, i, data->args[i]);
		else if (spec->capture[i] == PSC_CAPTURE_VECTOR)
			capture_vector(&room, i, data->args[i], pointer_width(data));
		else
			capture_buffer(&room, i, data->args[i], data->args[spec->capture[i] - PSC_CAPTURE_BUFFER]);
	}
	record->size = (uint32_t)(((size_t)(room.at - trace->record) + 7) & ~(size_t)7);
	memset(room.at, 0, record->size - (size_t)(room.at - trace->record));
	return record->size;
}

static void wake_consumer(struct psc_trace *trace)
{
	const uint64_t one = 1;

	if (atomic_exchange(&trace->waiting, false))
		(void)!write(trace->wake, &one, sizeof(one));
}

/* Copy into the ring; false if nobody takes records any more. */
static bool publish(struct psc_trace *trace, size_t size)
{
	const struct timespec nap = { 0, 50000 };
	uint64_t head = trace->head, at = head & (trace->ring_size - 1);
	size_t first = size;

	while (trace->ring_size - (head - trace->tail) < size) {
		if (trace->deaf)
			return false;
		wake_consumer(trace);
		nanosleep(&nap, NULL);
	}
	if (first > trace->ring_size - at)
		first = trace->ring_size - at;
	memcpy(trace->ring + at, trace->record, first);
	memcpy(trace->ring, trace->record + first, size - first);
	atomic_store(&trace->head, head + size);
	wake_consumer(trace);
	return true;
}

size_t psc_trace_pending(const struct psc_trace *trace)
{
	return trace->head - trace->tail;
}

void psc_trace_take(struct psc_trace *trace, void *ret_records, size_t size)
{
	uint64_t at = trace->tail & (trace->ring_size - 1);
	size_t first = size;

	if (!size)
		return;
	if (first > trace->ring_size - at)
		first = trace->ring_size - at;
	memcpy(ret_records, trace->ring + at, first);
	memcpy((uint8_t *)ret_records + first, trace->ring, size - first);
	atomic_fetch_add(&trace->tail, size);
}

int psc_trace_wait(struct psc_trace *trace, int timeout_ms)
{
	struct pollfd p = { .fd = trace->wake, .events = POLLIN };
	uint64_t spent;
	int r = 0;

	atomic_store(&trace->waiting, true);
	if (!psc_trace_pending(trace))
		r = poll(&p, 1, timeout_ms) < 0 ? -errno : 0;
	atomic_store(&trace->waiting, false);
	(void)!read(trace->wake, &spent, sizeof(spent));
	return r < 0 ? r : psc_trace_pending(trace) > 0;
}

void psc_trace_deaf(struct psc_trace *trace)
{
	trace->deaf = true;
}

/* -------------------------------------------------------------------- loop */

static void note(struct psc_trace *trace, struct psc_inbox *inbox, const struct psc_event *event)
{
	const struct seccomp_data *data = &event->notif.n.data;
	struct row *row = find_row(trace, data->arch, data->nr);
	struct thread *thread;

	if (!trace->begun && !(row->spec && row->spec->begins))
		return;
	trace->begun = true;
	thread = find_thread(trace, (int32_t)event->notif.n.pid);
	end_earlier(trace, thread, event->received_ns);
	bump(&row->count, 1);
	bump(&thread->count, 1);
	if (row->spec && row->spec->watch >= 0)
		keep_value(row, (uint32_t)data->args[row->spec->watch]);
	if (trace->ring && !trace->deaf && !(row->spec && row->spec->silent))
		publish(trace, write_record(trace, inbox, event, row->spec));
	thread->last = row->spec && row->spec->ends ? NULL : row;
	thread->since_ns = psc_monotonic_ns();
}

int psc_trace_run(struct psc_trace *trace, struct psc_inbox *inbox, struct psc_event *event)
{
	const struct psc_answer run = { .kind = PSC_CONTINUE };
	int r;

	if (atomic_exchange(&trace->running, true))
		return -EBUSY;
	for (;;) {
		r = psc_inbox_receive(inbox, -1, event);
		if (r < 0)
			break;
		note(trace, inbox, event);
		r = psc_event_answer(inbox, event, &run, NULL);
		if (r < 0 && r != -ENOENT && r != -EINPROGRESS)
			break;
	}
	trace->running = false;
	if (r != -EINTR)
		wake_consumer(trace);
	return r;
}

/* ----------------------------------------------------------------- reading */

static struct psc_trace_row row_of(const struct row *row)
{
	uint64_t key = row->key;

	return (struct psc_trace_row){ .arch = (uint32_t)(key >> 32), .nr = (int32_t)(uint32_t)key, .count = row->count,
				       .timed = row->timed, .until_next_ns = row->until_next_ns,
				       .longest_ns = row->longest_ns };
}

size_t psc_trace_rows(const struct psc_trace *trace, struct psc_trace_row *ret_rows, size_t size)
{
	size_t n = 0;

	for (size_t i = 0; i < ROWS; i++) {
		if (!trace->rows[i].key || !trace->rows[i].count)
			continue;
		if (n < size)
			ret_rows[n] = row_of(&trace->rows[i]);
		n++;
	}
	if (trace->other_calls.count) {
		if (n < size)
			ret_rows[n] = row_of(&trace->other_calls);
		n++;
	}
	return n;
}

size_t psc_trace_threads(const struct psc_trace *trace, struct psc_trace_thread *ret_threads, size_t size)
{
	size_t n = 0;

	for (size_t i = 0; i <= THREADS; i++) {
		const struct thread *thread = i < THREADS ? &trace->threads[i] : &trace->other_threads;
		const struct row *last = thread->last;

		if (!thread->count)
			continue;
		if (n < size)
			ret_threads[n] = (struct psc_trace_thread){ .tid = thread->tid, .count = thread->count,
				.arch = last ? (uint32_t)(last->key >> 32) : 0, .nr = last ? (int32_t)(uint32_t)last->key : -1,
				.since_ns = thread->since_ns };
		n++;
	}
	return n;
}

int psc_trace_values(const struct psc_trace *trace, uint32_t arch, int nr, uint32_t ret_values[PSC_TRACE_VALUES])
{
	uint64_t key = psc_call_key(arch, nr);

	for (size_t i = 0; i < ROWS; i++) {
		const struct row *row = &trace->rows[i];
		uint32_t n = row->n_values;

		if (row->key != key)
			continue;
		if (n > PSC_TRACE_VALUES)
			return -E2BIG;
		memcpy(ret_values, row->values, n * sizeof(row->values[0]));
		return (int)n;
	}
	return 0;
}
