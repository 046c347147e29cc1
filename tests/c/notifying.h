/* A filter on the calling thread that notifies of some calls and allows the rest. */
#ifndef PSC_TEST_NOTIFYING_H
#define PSC_TEST_NOTIFYING_H

#include "check.h"
#include "psc.h"

#include <linux/seccomp.h>

/* Returns its listener. names ends with NULL. */
static inline int load_notifying(const char *const names[])
{
	struct sock_filter *insns;
	struct psc_policy *policy;
	size_t len;
	int fd;

	CHECK(psc_policy_new(SECCOMP_RET_ALLOW, SECCOMP_RET_KILL_PROCESS, PSC_PRIORITY_RESTRICTIVE, &policy) == 0);
	CHECK(psc_policy_add_arch(policy, (enum psc_arch)psc_arch_native()) == 0);
	for (; *names; names++)
		CHECK(psc_policy_add(policy, SECCOMP_RET_USER_NOTIF, psc_syscall_id(*names), NULL, 0) == 0);
	CHECK(psc_policy_compile(policy, NULL, &insns, &len) == 0);
	psc_policy_free(policy);
	fd = psc_install(insns, len, SECCOMP_FILTER_FLAG_NEW_LISTENER, 1);
	CHECK(fd >= 0);
	free(insns);
	return fd;
}

#endif
