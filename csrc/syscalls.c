/* Names and numbers of system calls, from the generated tables.
 *
 * A name has one index for all ABIs, found by one hash; numbers[] of an ABI is
 * indexed by it, so that a rule for several ABIs costs one look-up of its name.
 * The other way is a binary search in order[], which is sorted by number. */
#include "psc.h"

#include <errno.h>
#include <string.h>

struct arch_table {
	const char *name;
	const char *scmp;
	uint32_t token;
	bool big_endian;
	bool wide;
	const int32_t *numbers;
	const uint16_t *order;
	size_t count;
};

#include "syscalls/table.h"

_Static_assert(sizeof(tables) / sizeof(tables[0]) == PSC_ARCH_COUNT, "enum psc_arch lists the generated tables");

int psc_arch_native(void)
{
#if defined(__x86_64__) && defined(__ILP32__)
	return PSC_ARCH_X32;
#elif defined(__x86_64__)
	return PSC_ARCH_X86_64;
#elif defined(__i386__)
	return PSC_ARCH_X86;
#elif defined(__aarch64__)
	return PSC_ARCH_AARCH64;
#elif defined(__arm__)
	return PSC_ARCH_ARM;
#elif defined(__riscv) && __riscv_xlen == 64
	return PSC_ARCH_RISCV64;
#elif defined(__loongarch64)
	return PSC_ARCH_LOONGARCH64;
#elif defined(__powerpc64__) && defined(__LITTLE_ENDIAN__)
	return PSC_ARCH_PPC64LE;
#elif defined(__powerpc64__)
	return PSC_ARCH_PPC64;
#elif defined(__powerpc__)
	return PSC_ARCH_PPC;
#elif defined(__s390x__)
	return PSC_ARCH_S390X;
#elif defined(__s390__)
	return PSC_ARCH_S390;
#elif defined(__mips__) && _MIPS_SIM == _ABIO32
	return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? PSC_ARCH_MIPS : PSC_ARCH_MIPSEL;
#elif defined(__mips__) && _MIPS_SIM == _ABIN32
	return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? PSC_ARCH_MIPS64N32 : PSC_ARCH_MIPSEL64N32;
#elif defined(__mips__)
	return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? PSC_ARCH_MIPS64 : PSC_ARCH_MIPSEL64;
#elif defined(__hppa__)
	return PSC_ARCH_PARISC;
#elif defined(__m68k__)
	return PSC_ARCH_M68K;
#elif defined(__sh__)
	return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? PSC_ARCH_SHEB : PSC_ARCH_SH;
#else
	return -EOPNOTSUPP;
#endif
}

int psc_arch_of(uint32_t token, uint32_t nr)
{
	if (token == tables[PSC_ARCH_X86_64].token)
		return nr != UINT32_MAX && (nr & PSC_X32_BIT) ? PSC_ARCH_X32 : PSC_ARCH_X86_64;
	for (int i = 0; i < PSC_ARCH_COUNT; i++)
		if (tables[i].token == token)
			return i;
	return -ENOENT;
}

int psc_arch_by_name(const char *name)
{
	for (int i = 0; i < PSC_ARCH_COUNT; i++)
		if (strcmp(tables[i].name, name) == 0 || strcmp(tables[i].scmp, name) == 0)
			return i;
	return -ENOENT;
}

const char *psc_arch_name(enum psc_arch arch)
{
	return tables[arch].name;
}

uint32_t psc_arch_token(enum psc_arch arch)
{
	return tables[arch].token;
}

bool psc_arch_big_endian(enum psc_arch arch)
{
	return tables[arch].big_endian;
}

bool psc_arch_wide(enum psc_arch arch)
{
	return tables[arch].wide;
}

int psc_syscall_id(const char *name)
{
	uint32_t hash = 0x811c9dc5;

	for (const char *p = name; *p; p++)
		hash = (hash ^ (uint8_t)*p) * 0x01000193;
	hash ^= hash >> 15;
	for (uint32_t at = hash % SLOT_COUNT; slots[at]; at = (at + 1) % SLOT_COUNT)
		if (strcmp(names[slots[at] - 1], name) == 0)
			return slots[at] - 1;
	return -ENOENT;
}

int psc_syscall_count(void)
{
	return NAME_COUNT;
}

const char *psc_syscall_name_of_id(int id)
{
	return id >= 0 && id < NAME_COUNT ? names[id] : NULL;
}

int psc_syscall_number(enum psc_arch arch, int id)
{
	int nr = id >= 0 && id < NAME_COUNT ? tables[arch].numbers[id] : -1;

	return nr < 0 ? -ENOENT : nr;
}

int psc_syscall_multiplexed(enum psc_arch arch, int id, struct psc_multiplexed *ret)
{
	int call = id >= 0 && id < NAME_COUNT ? multiplexed[id] : 0;
	int nr = call ? tables[arch].numbers[call & 0x80 ? ID_IPC : ID_SOCKETCALL] : -1;

	if (nr < 0)
		return -ENOENT;
	*ret = (struct psc_multiplexed){ (uint32_t)nr, call & 0x80 ? 0xffff : UINT32_MAX, call & 0x7f };
	return 0;
}

int psc_syscall_by_number(enum psc_arch arch, uint32_t nr)
{
	const struct arch_table *table = &tables[arch];
	size_t lo = 0, hi = table->count;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if ((uint32_t)table->numbers[table->order[mid]] < nr)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (lo < table->count && (uint32_t)table->numbers[table->order[lo]] == nr)
		return table->order[lo];
	return -ENOENT;
}

const char *psc_syscall_kernel(void)
{
	return PSC_TABLE_KERNEL;
}

const char *psc_syscall_headers(void)
{
	return PSC_TABLE_HEADERS;
}
