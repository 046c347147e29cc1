/* filterfd.c - the sealed memfd that is a detached filter. psc.h has the layout.
 *
 * Seals make it safe to hand around (nobody can change or truncate it under a
 * reader) but say nothing about who made it: a receiver copies first and checks
 * the copy. F_SEAL_FUTURE_WRITE, not F_SEAL_WRITE: so that a creator may keep a
 * writable mapping of the first page, made before, for the gate word. */
#define _GNU_SOURCE
#include "internal.h"
#include "psc.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

#define PAGE 4096
#define SEALS (F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL)
#define KNOWN_FLAGS (PSC_FILTERFD_LOG | PSC_FILTERFD_WAIT_KILLABLE)

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

static int write_at(int fd, const void *data, size_t size, off_t offset)
{
	ssize_t n = pwrite(fd, data, size, offset);

	if (n < 0)
		return -errno;
	return (size_t)n == size ? 0 : -ENOSPC;
}

int psc_filterfd_create(const struct sock_filter *insns, size_t len, uint32_t flags, int *ret_fd)
{
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
	if (r < 0)
		return r;
	if (fcntl(fd, F_ADD_SEALS, SEALS) < 0)
		return errno == EINVAL ? -EOPNOTSUPP : -errno;
	*ret_fd = psc_take_fd(fd);
	return 0;
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
