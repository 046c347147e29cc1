/* filterfd.c - the sealed memfd that is a detached filter. psc.h has the layout.
 *
 * Seals make it safe to hand around (nobody can change or truncate it under a
 * reader) but say nothing about who made it: a receiver copies first and checks
 * the copy. F_SEAL_FUTURE_WRITE, not F_SEAL_WRITE: so that a creator may keep a
 * writable mapping of the first page, made before, for the gate word. */
#define _GNU_SOURCE
#include "gate_words.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

#define PAGE 4096
#define SEALS (F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL)
#define KNOWN_FLAGS (PSC_FILTERFD_LOG | PSC_FILTERFD_WAIT_KILLABLE | PSC_FILTERFD_SPEC_ALLOW)

static const char magic[8] = "PSCFILT";

struct header {
	char magic[8];
	uint32_t version;
	uint32_t len; /* instructions */
	uint32_t flags;
	uint32_t reserved; /* 0 */
	uint8_t digest[PSC_DIGEST_SIZE];
};

void psc_filter_destroy(struct psc_filter *filter)
{
	if (!filter)
		return;
	free(filter->insns);
	filter->insns = NULL;
	filter->len = 0;
}

/* -------------------------------------------------------------- gate words
 *
 * A word is a stamp and a state: of two words the one with the later stamp holds.
 * So one store to the filter's word overrules every attachment's, and one store
 * to an attachment's overrules the filter's. Reads go through a mapping that fork
 * passes on; the writable one stays with its maker. */

#define WORDS_OFFSET 2048
#define STAMP_UNIT 4u

struct words {
	_Atomic uint32_t word[PSC_GATE_SLOTS];
	_Atomic uint32_t stamp;
};
_Static_assert(WORDS_OFFSET + sizeof(struct words) == PAGE, "the words end the page");

struct psc_page {
	char *read_only, *writable;
	pid_t owner;
};

static struct words *words_of(char *mapping)
{
	return (struct words *)(mapping + WORDS_OFFSET);
}

static int map_page(int fd, bool writable, struct psc_page **ret_page)
{
	struct psc_page *page = calloc(1, sizeof(*page));
	char *map;
	int r;

	if (!page)
		return -ENOMEM;
	map = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED) {
		r = -errno;
		free(page);
		return r;
	}
	page->read_only = map;
	if (writable) {
		map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		r = map == MAP_FAILED || madvise(map, PAGE, MADV_DONTFORK) < 0 ? -errno : 0;
		page->writable = map == MAP_FAILED ? NULL : map;
		page->owner = getpid();
		if (r < 0) {
			psc_page_unmap(page);
			return r;
		}
	}
	*ret_page = page;
	return 0;
}

int psc_page_map(int fd, struct psc_page **ret_page)
{
	return map_page(fd, false, ret_page);
}

void psc_page_unmap(struct psc_page *page)
{
	if (!page)
		return;
	munmap(page->read_only, PAGE);
	if (page->writable && page->owner == getpid())
		munmap(page->writable, PAGE);
	free(page);
}

bool psc_page_writable(const struct psc_page *page)
{
	return page->writable && page->owner == getpid();
}

static uint32_t effective(const struct words *words, unsigned int slot)
{
	uint32_t all = words->word[0], own = slot ? words->word[slot] : all;

	if (own % STAMP_UNIT == PSC_GATE_NONE)
		return all;
	return (int32_t)((own & ~(STAMP_UNIT - 1)) - (all & ~(STAMP_UNIT - 1))) >= 0 ? own : all;
}

enum psc_gate_state psc_page_state(const struct psc_page *page, unsigned int slot)
{
	return effective(words_of(page->read_only), slot) % STAMP_UNIT;
}

enum psc_gate_state psc_page_summary(const struct psc_page *page)
{
	const struct words *words = words_of(page->read_only);
	enum psc_gate_state found = words->word[0] % STAMP_UNIT;

	for (unsigned int slot = 1; slot < PSC_GATE_SLOTS && found != PSC_GATE_ACTIVE; slot++)
		if (words->word[slot] % STAMP_UNIT != PSC_GATE_NONE)
			found = effective(words, slot) % STAMP_UNIT;
	return found;
}

void psc_page_store(struct psc_page *page, unsigned int slot, enum psc_gate_state state)
{
	struct words *words = words_of(page->writable);

	words->word[slot] = (atomic_fetch_add(&words->stamp, 1) + 1) * STAMP_UNIT + state;
}

uint32_t psc_page_stamp(const struct psc_page *page)
{
	return words_of(page->read_only)->stamp;
}

const void *psc_page_bell(const struct psc_page *page)
{
	return (const void *)&words_of(page->read_only)->stamp;
}

/* By the writable mapping if there is one: for a read-only one the kernel first tries, at
 * some cost, to make the page writable. */
void psc_page_ring(const struct psc_page *page)
{
	const struct words *words = words_of(psc_page_writable(page) ? page->writable : page->read_only);

	psc_syscall(SYS_futex, &words->stamp, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

int psc_page_set(struct psc_page *page, unsigned int slot, enum psc_gate_state state)
{
	if (slot >= PSC_GATE_SLOTS || (unsigned int)state > PSC_GATE_PAUSED)
		return -EINVAL;
	if (!psc_page_writable(page))
		return -EPERM;
	psc_page_store(page, slot, state);
	return 0;
}

int psc_page_take_slot(struct psc_page *page, enum psc_gate_state state)
{
	if (!psc_page_writable(page))
		return -EPERM;
	for (unsigned int slot = 1; slot < PSC_GATE_SLOTS; slot++)
		if (words_of(page->writable)->word[slot] % STAMP_UNIT == PSC_GATE_NONE) {
			psc_page_store(page, slot, state);
			return (int)slot;
		}
	return -ENOSPC;
}

/* -------------------------------------------------------------------- file */

static int write_at(int fd, const void *data, size_t size, off_t offset)
{
	ssize_t n = pwrite(fd, data, size, offset);

	if (n < 0)
		return -errno;
	return (size_t)n == size ? 0 : -ENOSPC;
}

static int create(const struct sock_filter *insns, size_t len, uint32_t flags, struct psc_page **ret_page, int *ret_fd)
{
	struct psc_page *page = NULL;
	struct header header = { .version = 1, .len = (uint32_t)len, .flags = flags };
	_cleanup_close_ int fd = -1;
	int r;

	if (flags & ~KNOWN_FLAGS)
		return -EINVAL;
	r = psc_program_check(insns, len, NULL);
	if (r < 0)
		return r;
	memcpy(header.magic, magic, sizeof(magic));
	psc_digest(insns, len * sizeof(*insns), header.digest);
	fd = memfd_create("seccomp-filter", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
	if (fd < 0 && errno == EINVAL) /* FIXME: drop once Linux 6.3 is the baseline */
		fd = memfd_create("seccomp-filter", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)(PAGE + len * sizeof(*insns))) < 0)
		return -errno;
	r = write_at(fd, &header, sizeof(header), 0);
	if (r == 0)
		r = write_at(fd, insns, len * sizeof(*insns), PAGE);
	if (r == 0 && ret_page)
		r = map_page(fd, true, &page);
	if (r < 0)
		return r;
	if (fcntl(fd, F_ADD_SEALS, SEALS) < 0) {
		r = errno == EINVAL ? -EOPNOTSUPP : -errno;
		psc_page_unmap(page);
		return r;
	}
	if (ret_page)
		*ret_page = page;
	*ret_fd = psc_take_fd(fd);
	return 0;
}

int psc_filterfd_create(const struct sock_filter *insns, size_t len, uint32_t flags, int *ret_fd)
{
	return create(insns, len, flags, NULL, ret_fd);
}

int psc_filterfd_create_owned(const struct sock_filter *insns, size_t len, uint32_t flags, int *ret_fd,
			      struct psc_page **ret_page)
{
	return create(insns, len, flags, ret_page, ret_fd);
}

static int read_at(int fd, void *data, size_t size, off_t offset)
{
	ssize_t n = pread(fd, data, size, offset);

	if (n < 0)
		return -errno;
	return (size_t)n == size ? 0 : -EBADMSG;
}

/* Seals are asked for first: only they make what follows true for good. */
static int check_file(int fd, struct header *ret_header)
{
	struct stat st;
	int seals = fcntl(fd, F_GET_SEALS);

	if (seals < 0)
		return errno == EBADF ? -EBADF : -EMEDIUMTYPE;
	if ((seals & SEALS) != SEALS)
		return -EPERM;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode) || st.st_size < PAGE || read_at(fd, ret_header, sizeof(*ret_header), 0) < 0 ||
	    memcmp(ret_header->magic, magic, sizeof(magic)) != 0 || ret_header->version != 1)
		return -EMEDIUMTYPE;
	if (ret_header->len == 0 || ret_header->len > PSC_MAX_INSNS || ret_header->reserved != 0 ||
	    ret_header->flags & ~KNOWN_FLAGS ||
	    (uint64_t)st.st_size != PAGE + (uint64_t)ret_header->len * sizeof(struct sock_filter))
		return -EBADMSG;
	return 0;
}

int psc_filterfd_read(int fd, struct psc_filter *ret_filter)
{
	_cleanup_free_ struct sock_filter *insns = NULL;
	struct header header;
	struct psc_filter filter;
	size_t size;
	int r = check_file(fd, &header);

	if (r < 0)
		return r;
	size = header.len * sizeof(*insns);
	insns = malloc(size);
	if (!insns)
		return -ENOMEM;
	r = read_at(fd, insns, size, PAGE);
	if (r < 0)
		return r;
	psc_digest(insns, size, filter.digest);
	if (memcmp(filter.digest, header.digest, sizeof(filter.digest)) != 0)
		return -EBADMSG;
	r = psc_program_check(insns, header.len, NULL);
	if (r < 0)
		return r;
	filter.insns = psc_take_ptr(insns);
	filter.len = header.len;
	filter.flags = header.flags;
	*ret_filter = filter;
	return 0;
}
