/* ring.c: order, loss and count, with several writers and a reader at once. */
#include "check.h"
#include "psc.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { WRITERS = 4, EACH = 50000 };

static struct psc_ring *ring;
static _Atomic unsigned int running;

static void *writer(void *arg)
{
	struct psc_record one = { .pid = (uint32_t)(uintptr_t)arg };

	for (one.id = 1; one.id <= EACH; one.id++) {
		memset(one.text, (int)(one.id & 0x7f), sizeof(one.text));
		one.args[5] = one.id;
		(void)psc_ring_write(ring, &one);
	}
	running--;
	return NULL;
}

static void many_writers_lose_and_mix_up_nothing(size_t capacity)
{
	static struct psc_record found[333];
	uint64_t last[WRITERS] = { 0 }, total = 0;
	pthread_t threads[WRITERS];
	bool more = true;

	CHECK(psc_ring_new(capacity, &ring) == 0);
	running = WRITERS;
	for (uintptr_t i = 0; i < WRITERS; i++)
		CHECK(pthread_create(&threads[i], NULL, writer, (void *)i) == 0);
	while (more) {
		size_t n;

		more = running > 0;
		while ((n = psc_ring_read(ring, found, 333)) > 0) {
			for (size_t i = 0; i < n; i++) {
				CHECK(found[i].pid < WRITERS);
				CHECK(found[i].id > last[found[i].pid] && found[i].args[5] == found[i].id);
				CHECK(found[i].text[0] == (char)(found[i].id & 0x7f) && found[i].text[63] == found[i].text[0]);
				last[found[i].pid] = found[i].id;
			}
			total += n;
		}
	}
	for (int i = 0; i < WRITERS; i++)
		pthread_join(threads[i], NULL);
	CHECK(total + psc_ring_dropped(ring) == (uint64_t)WRITERS * EACH);
	CHECK(psc_ring_waiting(ring) == 0);
	psc_ring_free(ring);
}

static void what_finds_no_room_is_counted(void)
{
	struct psc_record one = { 0 }, found[8];

	CHECK(psc_ring_new(3, &ring) == 0 && psc_ring_capacity(ring) == 4);
	for (one.id = 1; one.id <= 6; one.id++)
		CHECK(psc_ring_write(ring, &one) == (one.id <= 4));
	CHECK(psc_ring_waiting(ring) == 4 && psc_ring_dropped(ring) == 2);
	CHECK(psc_ring_read(ring, found, 3) == 3 && found[0].id == 1 && found[2].id == 3);
	CHECK(psc_ring_write(ring, &one));
	CHECK(psc_ring_read(ring, found, 8) == 2 && found[0].id == 4 && found[1].id == 7);
	CHECK(psc_ring_read(ring, found, 8) == 0);
	psc_ring_free(ring);
}

int main(void)
{
	CHECK(psc_ring_new(0, &ring) == -EINVAL && psc_ring_new((4 << 20) + 1, &ring) == -EINVAL);
	CHECK(sizeof(struct psc_record) == 168);
	what_finds_no_room_is_counted();
	many_writers_lose_and_mix_up_nothing(2);
	many_writers_lose_and_mix_up_nothing(1 << 12);
	return 0;
}
