/* Shared by the .c files of csrc/, never installed: clean-up attributes and
 * raw system calls. No domain types live here. */
#ifndef PSC_INTERNAL_H
#define PSC_INTERNAL_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#define psc_array_size(a) (sizeof(a) / sizeof((a)[0]))

static inline void psc_free_ptr(void *p)
{
	free(*(void **)p);
}

static inline void psc_close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void psc_close_file(FILE **f)
{
	if (*f)
		fclose(*f);
}

/* CLOCK_MONOTONIC, by the vDSO: no system call. */
static inline int64_t psc_monotonic_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* The same for sums with unsigned time-outs. */
static inline uint64_t psc_now_ns(void)
{
	return (uint64_t)psc_monotonic_ns();
}

/* Does an error say that the caller or the system is short of something, and nothing of the target? */
static inline int psc_is_shortage(long error)
{
	return error == -EMFILE || error == -ENFILE || error == -ENOMEM || error == -ENOBUFS;
}

/* A call as one word, never 0 for an AUDIT_ARCH_*; and spread for a table of them. */
static inline uint64_t psc_call_key(uint32_t arch, int nr)
{
	return (uint64_t)arch << 32 | (uint32_t)nr;
}

static inline uint32_t psc_call_hash(uint64_t key)
{
	return (uint32_t)((key * 0x9e3779b97f4a7c15ull) >> 32);
}

#define _cleanup_free_ __attribute__((cleanup(psc_free_ptr)))
#define _cleanup_close_ __attribute__((cleanup(psc_close_fd)))
#define _cleanup_fclose_ __attribute__((cleanup(psc_close_file)))

/* Hand an owned pointer or fd to the caller: the clean-up then does nothing. */
#define psc_take_ptr(p)                      \
	({                                   \
		__auto_type psc_taken = (p); \
		(p) = NULL;                  \
		psc_taken;                   \
	})
#define psc_take_fd(fd)              \
	({                           \
		int psc_taken = (fd); \
		(fd) = -1;           \
		psc_taken;           \
	})

/* syscall(2) with the project's error convention: -errno, errno left to nobody. */
#define psc_syscall(...)                                  \
	({                                                \
		long psc_ret = syscall(__VA_ARGS__);      \
		psc_ret < 0 ? -(long)errno : psc_ret;     \
	})

#endif
