/* ring.c - records of what a loop did, for a reader that comes now and then.
 *
 * A bounded queue of many writers and one reader. Each place has a sequence number:
 *
 *   place i, turn t:   t * size + i       free for the writer of that position
 *                      t * size + i + 1   written, for the reader
 *
 * A writer takes a position by moving head on, then writes, then sets the number. It
 * never waits: with no free place it gives up and the loss is counted. A writer that
 * is held up in between holds up the reader at its place, but no other writer.
 */
#define _GNU_SOURCE
#include "internal.h"
#include "psc.h"

#include <stdatomic.h>
#include <string.h>

enum { MAX_CAPACITY = 1 << 22 };

struct place {
	_Atomic uint64_t number;
	struct psc_record record;
};

struct psc_ring {
	size_t mask;
	_Atomic uint64_t dropped;
	_Alignas(64) _Atomic uint64_t head;
	_Alignas(64) _Atomic uint64_t tail;
	_Alignas(64) struct place places[];
};

int psc_ring_new(size_t capacity, struct psc_ring **ret_ring)
{
	struct psc_ring *ring;
	size_t size = 2, bytes;

	if (capacity < 1 || capacity > MAX_CAPACITY)
		return -EINVAL;
	while (size < capacity)
		size *= 2;
	bytes = (sizeof(*ring) + size * sizeof(*ring->places) + 63) & ~(size_t)63;
	ring = aligned_alloc(64, bytes);
	if (!ring)
		return -ENOMEM;
	memset(ring, 0, bytes);
	ring->mask = size - 1;
	for (uint64_t i = 0; i < size; i++)
		ring->places[i].number = i;
	*ret_ring = ring;
	return 0;
}

void psc_ring_free(struct psc_ring *ring)
{
	free(ring);
}

size_t psc_ring_capacity(const struct psc_ring *ring)
{
	return ring->mask + 1;
}

bool psc_ring_write(struct psc_ring *ring, const struct psc_record *record)
{
	uint64_t position = atomic_load_explicit(&ring->head, memory_order_relaxed);

	for (;;) {
		struct place *place = &ring->places[position & ring->mask];
		int64_t ahead = (int64_t)(atomic_load_explicit(&place->number, memory_order_acquire) - position);

		if (ahead < 0)
			break;
		if (ahead > 0) {
			position = atomic_load_explicit(&ring->head, memory_order_relaxed);
		} else if (atomic_compare_exchange_weak_explicit(&ring->head, &position, position + 1,
								 memory_order_relaxed, memory_order_relaxed)) {
			place->record = *record;
			atomic_store_explicit(&place->number, position + 1, memory_order_release);
			return true;
		}
	}
	atomic_fetch_add_explicit(&ring->dropped, 1, memory_order_relaxed);
	return false;
}

static bool take(struct psc_ring *ring, struct psc_record *ret_record)
{
	uint64_t position = atomic_load_explicit(&ring->tail, memory_order_relaxed);
	struct place *place = &ring->places[position & ring->mask];

	if (atomic_load_explicit(&place->number, memory_order_acquire) != position + 1)
		return false;
	*ret_record = place->record;
	atomic_store_explicit(&place->number, position + ring->mask + 1, memory_order_release);
	atomic_store_explicit(&ring->tail, position + 1, memory_order_relaxed);
	return true;
}

size_t psc_ring_read(struct psc_ring *ring, struct psc_record *ret_records, size_t size)
{
	size_t n = 0;

	while (n < size && take(ring, &ret_records[n]))
		n++;
	return n;
}

size_t psc_ring_waiting(const struct psc_ring *ring)
{
	uint64_t tail = ring->tail;

	return ring->head - tail;
}

uint64_t psc_ring_dropped(const struct psc_ring *ring)
{
	return ring->dropped;
}
