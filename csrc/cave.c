/* cave.c - find unused room in a target's executable memory.
 *
 * The last page of an executable mapping is padded with zeros behind the end of
 * its code; nothing jumps there and nothing reads it. The vDSO, which every
 * process has, leaves some 1.5 KiB, a shared library 2 KiB on the average. Code
 * that is written there and wiped out afterwards needs no mmap in the target,
 * takes nothing away from it, and can be left by a killed injector without harm.
 * A write makes a private copy of the page, as a debugger's breakpoint does.
 *
 * The beginning of the zeros may belong to the last instruction's operand or to
 * a table: a margin stays untouched.
 */
#define _GNU_SOURCE
#include "tracee.h"

#include <elf.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>

#define PAGE 4096
#define MARGIN 64

/* Zero bytes at the end of [start, end), as far as its last page goes. */
static size_t zero_tail(int mem, uint64_t start, uint64_t end)
{
	uint8_t page[PAGE];
	size_t size = end - start < PAGE ? end - start : PAGE, zeros = 0;

	if (psc_sys(SYS_pread64, mem, page, size, end - size) != (long)size)
		return 0;
	while (zeros < size && page[size - 1 - zeros] == 0)
		zeros++;
	return zeros;
}

/* One line of /proc/PID/maps: "start-end perms offset dev inode path". Only
 * private executable mappings of a file, and the vDSO, are taken. */
static bool parse_mapping(const char *line, uint64_t *ret_start, uint64_t *ret_end, bool *ret_vdso)
{
	char *pos;

	*ret_start = strtoull(line, &pos, 16);
	if (*pos != '-')
		return false;
	*ret_end = strtoull(pos + 1, &pos, 16);
	if (strncmp(pos, " r-xp ", 6) != 0 || *ret_end <= *ret_start)
		return false;
	*ret_vdso = strstr(pos, "[vdso]") != NULL;
	return *ret_vdso || strchr(pos, '/');
}

/* Bit 63 of an entry of /proc/PID/pagemap: the page is in memory. To read one that is not makes the
 * kernel ask the file system for it, and a FUSE server of the target's own need never answer. */
#define PAGEMAP_PRESENT (1ULL << 63)

static bool is_present(int pagemap, uint64_t address)
{
	uint64_t entry = 0;

	return pagemap >= 0 &&
	       psc_sys(SYS_pread64, pagemap, &entry, sizeof(entry), address / PAGE * sizeof(entry)) == sizeof(entry) &&
	       (entry & PAGEMAP_PRESENT);
}

struct search {
	int mem;
	int pagemap; /* or negative: mappings of files are not looked into */
	size_t wanted;
	uint64_t limit;
	struct psc_cave best;
};

/* Prefer the vDSO if it is large enough, then the first that is, then the
 * largest. */
static void consider(struct search *search, const char *line)
{
	uint64_t start, end;
	bool vdso;
	size_t zeros;

	if (!parse_mapping(line, &start, &end, &vdso) || end > search->limit)
		return;
	if (!vdso && (search->best.size >= search->wanted || !is_present(search->pagemap, end - 1)))
		return;
	zeros = zero_tail(search->mem, start, end);
	if (zeros < MARGIN + 16)
		return;
	zeros = (zeros - MARGIN) & ~(size_t)15;
	if (zeros >= search->wanted ? vdso || search->best.size < search->wanted : zeros > search->best.size)
		search->best = (struct psc_cave){ end - zeros, zeros, vdso };
}

static int read_maps(pid_t tid, void (*line_fn)(struct search *, const char *), struct search *search)
{
	char buffer[8192], path[32];
	size_t have = 0;
	long fd, n;

	snprintf(path, sizeof(path), "/proc/%d/maps", tid);
	fd = psc_sys(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return (int)fd;
	while ((n = psc_sys(SYS_read, fd, buffer + have, sizeof(buffer) - 1 - have)) > 0) {
		char *line = buffer, *newline;

		have += (size_t)n;
		buffer[have] = '\0';
		while ((newline = strchr(line, '\n'))) {
			*newline = '\0';
			line_fn(search, line);
			line = newline + 1;
		}
		have -= (size_t)(line - buffer);
		if (have == sizeof(buffer) - 1)
			have = 0; /* a path beyond all bounds: skip it */
		memmove(buffer, line, have);
	}
	psc_sys(SYS_close, fd);
	return (int)n;
}

/* ---------------------------------------------------------------- the vDSO */

/* linux/fs.h, 6.11: one mapping by its address. */
struct map_query {
	uint64_t size, flags, address;
	uint64_t start, end, map_flags, page_size, offset, inode;
	uint32_t major, minor, name_size, build_id_size;
	uint64_t name, build_id;
};

#define QUERY_MAP _IOWR('f', 17, struct map_query)
#define MAP_IS_READABLE 1 /* writable 2, shared 8 */
#define MAP_IS_EXECUTABLE 4
#define AUXV_MAX 2048

static long open_proc(pid_t tid, const char *name)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/%s", tid, name);
	return psc_sys(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
}

/* AT_SYSINFO_EHDR of its auxiliary vector, pairs of 4-byte words for an i386 task. */
static uint64_t vdso_of(pid_t tid, bool wide)
{
	uint8_t auxv[AUXV_MAX];
	size_t word = wide ? 8 : 4;
	long fd = open_proc(tid, "auxv"), n;

	if (fd < 0)
		return 0;
	n = psc_sys(SYS_read, fd, auxv, sizeof(auxv));
	psc_sys(SYS_close, fd);
	for (long at = 0; at + 2 * (long)word <= n; at += 2 * (long)word) {
		uint64_t type = 0, value = 0;

		memcpy(&type, auxv + at, word);
		memcpy(&value, auxv + at + word, word);
		if (type == AT_SYSINFO_EHDR)
			return value;
	}
	return 0;
}

/* A process may have hundreds of mappings, whose listing takes longer than all the rest
 * of an attach; one can be asked for since 6.11. The vector may be out of date: what is
 * mapped there now must be the vDSO by name. FIXME: drop the condition once 6.11 is the baseline. */
static bool find_vdso(pid_t tid, uint64_t limit, struct search *search)
{
	char name[16] = "";
	struct map_query query = {
		.size = sizeof(query),
		.address = vdso_of(tid, limit > UINT32_MAX),
		.name_size = sizeof(name),
		.name = (uint64_t)(uintptr_t)name,
	};
	long fd, r;
	size_t zeros;

	fd = query.address ? open_proc(tid, "maps") : -ENOENT;
	if (fd < 0)
		return false;
	r = psc_sys(SYS_ioctl, fd, QUERY_MAP, &query);
	psc_sys(SYS_close, fd);
	if (r < 0 || strcmp(name, "[vdso]") != 0 || query.map_flags != (MAP_IS_READABLE | MAP_IS_EXECUTABLE) || query.end > limit)
		return false;
	zeros = zero_tail(search->mem, query.start, query.end);
	if (zeros < MARGIN + search->wanted + 16)
		return false;
	zeros = (zeros - MARGIN) & ~(size_t)15;
	search->best = (struct psc_cave){ query.end - zeros, zeros, true };
	return true;
}

bool psc_memory_is_present(pid_t tid, uint64_t address, size_t size)
{
	int pagemap = (int)open_proc(tid, "pagemap");
	bool present = is_present(pagemap, address) && is_present(pagemap, address + size - 1);

	if (pagemap >= 0)
		psc_sys(SYS_close, pagemap);
	return present;
}

int psc_cave_find(pid_t tid, int mem, size_t size, uint64_t limit, bool stopped, struct psc_cave *ret_cave)
{
	struct search search = { .mem = mem, .pagemap = -1, .wanted = size, .limit = limit };
	int r = 0;

	if (!find_vdso(tid, limit, &search)) {
		search.pagemap = stopped ? (int)open_proc(tid, "pagemap") : -1;
		r = read_maps(tid, consider, &search);
		if (search.pagemap >= 0)
			psc_sys(SYS_close, search.pagemap);
	}
	if (r < 0)
		return r;
	*ret_cave = search.best;
	return search.best.size >= size ? 0 : -ENOSPC;
}

static void look_for(struct search *search, const char *line)
{
	uint64_t start, end;
	bool vdso;

	if (parse_mapping(line, &start, &end, &vdso) && end == search->best.address + search->best.size)
		search->wanted = 1;
}

int psc_cave_check(pid_t tid, int mem, const struct psc_cave *cave)
{
	struct search search = { .mem = mem, .pagemap = -1, .best = *cave };

	if (zero_tail(mem, cave->address, cave->address + cave->size) != cave->size)
		return -ENOSPC;
	if (cave->vdso)
		return 0; /* it moves only with an exec, which a visit notices */
	if (read_maps(tid, look_for, &search) < 0 || !search.wanted)
		return -ENOSPC;
	return 0;
}
