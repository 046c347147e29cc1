/* rseq.c - a loop without restartable sequences.
 *
 * The C library registers an area with the kernel for every thread (rseq(2), Linux 4.18;
 * glibc 2.35). Each time the thread comes back to user space from a switch, which is twice
 * a notified call on one processor, the kernel checks it and writes the processor's number
 * there. Nothing in a loop of ours looks at that. Without, a call costs 1.5 % less, and one
 * whose string is read 3 %.
 *
 * Whoever uses such sequences asks the area first, and finds itself not registered there,
 * as on a kernel that has none. A child that is forked meanwhile stays without.
 */
#define _GNU_SOURCE
#include "internal.h"
#include "psc.h"

#include <linux/rseq.h>
#include <stddef.h>
#include <sys/auxv.h>

#ifdef __x86_64__
#define SIGNATURE 0x53053053
#else
#define SIGNATURE 0xd428bc00 /* aarch64 */
#endif
#define FIRST_SIZE 32
#ifndef AT_RSEQ_FEATURE_SIZE
#define AT_RSEQ_FEATURE_SIZE 27
#endif

/* Absent before glibc 2.35. */
extern const ptrdiff_t __rseq_offset __attribute__((weak));

static int change(unsigned int size, int flags)
{
	char *area = (char *)__builtin_thread_pointer() + __rseq_offset;

	return (int)psc_syscall(SYS_rseq, area, size, flags, SIGNATURE);
}

/* What was registered is not told: that much, or as much as the kernel knows. */
unsigned int psc_rseq_suspend(void)
{
	unsigned int sizes[] = { FIRST_SIZE, (unsigned int)(getauxval(AT_RSEQ_FEATURE_SIZE) + 31) / 32 * 32 };

	if (!&__rseq_offset)
		return 0;
	for (size_t i = 0; i < psc_array_size(sizes); i++)
		if (sizes[i] && change(sizes[i], RSEQ_FLAG_UNREGISTER) == 0)
			return sizes[i];
	return 0;
}

void psc_rseq_resume(unsigned int size)
{
	if (size)
		(void)change(size, 0); /* fails if somebody registered another area meanwhile: that stays */
}
