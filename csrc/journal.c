/* journal.c - the notifications that somebody has received and not answered yet.
 *
 * The kernel gives a notification out once. If its receiver dies, whoever else
 * holds the listener may still answer it, but must know its id; so received ones
 * are kept in a memfd that outlives the receiver:
 *
 *        0  magic, number of slots
 *     4096  slot[0]: taken, listener's number; the notification as the kernel has it
 *           slot[1]: ...
 *
 * There is no moment in which a notification is received and not recorded: the
 * slot is the very buffer that RECV writes to, and the kernel takes a notification
 * whose delivery failed back. An id of 0 means that nothing came. A stale entry
 * does no harm: ids are never used twice, and start at a random number for each
 * listener, so the kernel calls it invalid, under any listener.
 *
 * A loop that answers before it receives again always finds the slot that it freed
 * last: the same few cache lines, whatever the size of the table.
 */
#define _GNU_SOURCE
#include "journal.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>

#define SLOTS 4096
#define PAGE 4096
#define SEALS (F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL)

enum { FREE, TAKEN, ORPHAN };

struct slot {
	_Alignas(64) _Atomic uint32_t taken;
	int32_t fd;
	_Alignas(64) union psc_notif n;
};

struct map {
	char magic[8];
	uint32_t slots;
	_Alignas(PAGE) struct slot slot[SLOTS];
};

struct psc_journal {
	struct map *map;
	_Atomic uint32_t hint;	  /* the slot that was freed last */
	_Atomic uint32_t orphans; /* may be too high, never too low */
};

static const char magic[8] = "PSCJRNL";

static int map_journal(int fd, struct psc_journal **ret_journal)
{
	struct psc_journal *journal = calloc(1, sizeof(*journal));
	void *map;

	if (!journal)
		return -ENOMEM;
	map = mmap(NULL, sizeof(struct map), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED) {
		free(journal);
		return -errno;
	}
	journal->map = map;
	*ret_journal = journal;
	return 0;
}

int psc_journal_new(int *ret_fd, struct psc_journal **ret_journal)
{
	_cleanup_close_ int fd = memfd_create("seccomp-journal", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int r;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, sizeof(struct map)) < 0 || fcntl(fd, F_ADD_SEALS, SEALS) < 0)
		return -errno;
	r = map_journal(fd, ret_journal);
	if (r < 0)
		return r;
	(*ret_journal)->map->slots = SLOTS;
	memcpy((*ret_journal)->map->magic, magic, sizeof(magic));
	*ret_fd = psc_take_fd(fd);
	return 0;
}

int psc_journal_adopt(int fd, struct psc_journal **ret_journal)
{
	struct psc_journal *journal;
	struct stat st;
	int seals = fcntl(fd, F_GET_SEALS), r;

	if (seals < 0)
		return errno == EBADF ? -EBADF : -EMEDIUMTYPE;
	if ((seals & SEALS) != SEALS || fstat(fd, &st) < 0 || st.st_size != sizeof(struct map))
		return -EMEDIUMTYPE;
	r = map_journal(fd, &journal);
	if (r < 0)
		return r;
	if (memcmp(journal->map->magic, magic, sizeof(magic)) != 0 || journal->map->slots != SLOTS) {
		psc_journal_free(journal);
		return -EMEDIUMTYPE;
	}
	for (size_t i = 0; i < SLOTS; i++) {
		struct slot *slot = &journal->map->slot[i];

		if (slot->taken == FREE)
			continue;
		slot->taken = slot->n.n.id ? ORPHAN : FREE;
		journal->orphans += slot->taken == ORPHAN;
	}
	*ret_journal = journal;
	return 0;
}

void psc_journal_free(struct psc_journal *journal)
{
	if (!journal)
		return;
	munmap(journal->map, sizeof(struct map));
	free(journal);
}

size_t psc_journal_orphans(const struct psc_journal *journal)
{
	return journal->orphans;
}

bool psc_journal_waits(const struct psc_journal *journal)
{
	return journal && journal->orphans;
}

/* ----------------------------------------------------------------- receive */

static bool claim(struct slot *slot)
{
	uint32_t seen = FREE;

	return slot->taken == FREE && atomic_compare_exchange_strong(&slot->taken, &seen, TAKEN);
}

/* Free the slots whose calls are over without an answer of ours. */
static void sweep(struct psc_journal *journal)
{
	for (size_t i = 0; i < SLOTS; i++) {
		struct slot *slot = &journal->map->slot[i];
		uint64_t id = slot->n.n.id;
		uint32_t seen = TAKEN;

		if (slot->taken == TAKEN && id && psc_notify_valid(slot->fd, id) < 0 && slot->n.n.id == id) {
			slot->n.n.id = 0;
			atomic_compare_exchange_strong(&slot->taken, &seen, FREE);
		}
	}
}

static struct slot *find_free(struct psc_journal *journal)
{
	uint32_t hint = journal->hint;

	for (uint32_t i = 0; i < SLOTS; i++) {
		struct slot *slot = &journal->map->slot[(hint + i) % SLOTS];

		if (claim(slot))
			return slot;
	}
	return NULL;
}

int psc_journal_receive(struct psc_journal *journal, int fd, struct psc_event *event)
{
	struct slot *slot;
	int r;

	event->slot = 0;
	if (!journal)
		return psc_notify_receive(fd, &event->notif);
	slot = find_free(journal);
	if (!slot) {
		sweep(journal);
		slot = find_free(journal);
	}
	if (!slot)
		return -ENOBUFS;
	slot->fd = fd;
	r = psc_notify_receive(fd, &slot->n);
	if (r < 0) {
		slot->n.n.id = 0;
		slot->taken = FREE;
		return r;
	}
	event->notif = slot->n;
	event->slot = (uint32_t)(slot - journal->map->slot) + 1;
	return 0;
}

void psc_journal_done(struct psc_journal *journal, const struct psc_event *event)
{
	struct slot *slot;

	if (!journal || event->slot == 0)
		return;
	slot = &journal->map->slot[event->slot - 1];
	if (slot->n.n.id != event->notif.n.id || slot->taken != TAKEN)
		return;
	slot->n.n.id = 0;
	slot->taken = FREE;
	journal->hint = event->slot - 1;
}

/* --------------------------------------------------------------- take over */

int psc_journal_next(struct psc_journal *journal, size_t *index, union psc_notif *ret_n)
{
	while (*index < SLOTS) {
		struct slot *slot = &journal->map->slot[(*index)++];

		if (slot->taken != ORPHAN)
			continue;
		*ret_n = slot->n;
		return 1;
	}
	return 0;
}

static bool waits_under(const int *fds, size_t n, uint64_t id, size_t *ret_listener)
{
	for (size_t i = 0; i < n; i++)
		if (psc_notify_valid(fds[i], id) == 0) {
			*ret_listener = i;
			return true;
		}
	return false;
}

int psc_journal_take(struct psc_journal *journal, const int *fds, size_t n, struct psc_event *event,
		     size_t *ret_listener)
{
	for (uint32_t i = 0; journal->orphans && i < SLOTS; i++) {
		struct slot *slot = &journal->map->slot[i];
		uint32_t seen = ORPHAN;

		if (slot->taken != ORPHAN || !atomic_compare_exchange_strong(&slot->taken, &seen, TAKEN))
			continue;
		journal->orphans--;
		if (waits_under(fds, n, slot->n.n.id, ret_listener)) {
			slot->fd = fds[*ret_listener];
			event->notif = slot->n;
			event->slot = i + 1;
			return 1;
		}
		slot->n.n.id = 0;
		slot->taken = FREE;
	}
	return 0;
}
