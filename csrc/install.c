/* install.c - put a program in force for oneself. */
#define _GNU_SOURCE
#include "internal.h"
#include "psc.h"
#include "signal_tick.h"

#include <sys/prctl.h>

static int load(const struct sock_filter *insns, size_t len, uint32_t flags)
{
	struct sock_fprog fprog = { .len = (unsigned short)len, .filter = (struct sock_filter *)insns };

	int r = (int)psc_syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &fprog);

	if (r >= 0)
		psc_signal_tick_forbid();
	return r;
}

int psc_install(const struct sock_filter *insns, size_t len, uint32_t flags, int no_new_privs)
{
	int r;

	if (len == 0 || len > PSC_MAX_INSNS)
		return -EINVAL;
	if (flags & SECCOMP_FILTER_FLAG_TSYNC)
		flags |= SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
	if (no_new_privs > 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	r = load(insns, len, flags);
	if (r != -EACCES || no_new_privs >= 0)
		return r;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	return load(insns, len, flags);
}

/* The flags are looked at before the program is: EFAULT means "known". */
bool psc_install_knows_flags(uint32_t flags)
{
	return psc_syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, NULL) == -EFAULT;
}
