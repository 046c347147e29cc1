/* opener.h - private: between openat.c (in the supervisor: reads what the target
 * asks for and who it is), opener.c (the process that becomes like the target) and
 * walk.c (finds what a path means to the target). */
#ifndef PSC_OPENER_H
#define PSC_OPENER_H

#include "internal.h"
#include "packet.h"
#include "psc.h"

#include <limits.h>

#define PSC_OPEN_GROUPS 1024

/* What is asked for, checked as the kernel would, and by whom. The fds beside it: the
 * target's root, where its path begins, and the socket of this one request. */
struct psc_open_request {
	uint64_t flags;	  /* O_*, of openat2's kind; without O_CLOEXEC */
	uint64_t resolve; /* RESOLVE_* */
	uint32_t mode, umask;
	uint32_t fsuid, fsgid;
	uint64_t caps;	      /* effective, in the user namespace of the supervisor */
	bool same_namespaces; /* those by which procfs looks different */
	uint64_t proc_dev;    /* of the supervisor's /proc, where its numbers are pid[0] and tid[0] */
	int32_t pid[2], tid[2]; /* of the target: there, and in its own pid namespace */
	uint64_t timeout_ns;
	uint32_t n_groups;
	uint32_t groups[PSC_OPEN_GROUPS];
	char path[PATH_MAX];
};

/* First what was found (beside it an O_PATH descriptor), then what was opened. */
struct psc_open_reply {
	int32_t error; /* > 0: the call is to fail so. < 0: it could not be tried */
	bool creates;  /* the descriptor is the directory in which name is to be made */
	char name[NAME_MAX + 1];
};

struct psc_found {
	int fd; /* O_PATH; yours to close */
	bool creates;
	char name[NAME_MAX + 1];
};

/* Find what the path means to the target. The calling process has its rights. Returns
 * 0, or the positive errno that the call is to fail with. */
PSC_MUST_CHECK int psc_walk(const struct psc_open_request *request, int root, int start, struct psc_found *ret_found);

/* The life of the opener: a process for each request, until the supervisor's end of socket is closed. */
PSC_MUST_CHECK int psc_opener_run(int socket);

/* Start the program at path in the role (NULL: guardian), as psc_guardian_start(). */
PSC_MUST_CHECK int psc_role_start(const char *path, const char *role, int *ret_socket);

#endif
