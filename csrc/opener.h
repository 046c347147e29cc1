/* opener.h - private: between openat.c (in the supervisor: asks and decides), caller.c
 * (in the supervisor: reads the target's identity), opener.c (the process that opens),
 * identity.c (makes it like the target), walk.c (finds what a path means to the
 * target) and within.c (tells whether an object is below a directory). */
#ifndef PSC_OPENER_H
#define PSC_OPENER_H

#include "internal.h"
#include "packet.h"
#include "psc.h"

#include <limits.h>

#define PSC_OPEN_GROUPS 1024
#define PSC_OPEN_LABEL 512

enum psc_open_kind {
	PSC_OPEN_FIND,	/* beside it: root, start, socket, and the namespaces to enter */
	PSC_OPEN_WITHIN /* beside it: object, directory, socket, and the parent if there is one */
};

/* The namespaces that decide what an open gives. PID is compared, never entered. */
enum psc_open_namespace {
	PSC_NS_USER,
	PSC_NS_NET,
	PSC_NS_IPC,
	PSC_NS_UTS,
	PSC_NS_CGROUP,
	PSC_NS_PID,
	PSC_NS_COUNT
};

extern const char *const psc_open_namespaces[PSC_NS_COUNT];

enum { PSC_ID_REAL, PSC_ID_EFFECTIVE, PSC_ID_SAVED, PSC_ID_FS, PSC_ID_COUNT };

struct psc_open_ids {
	uint32_t uid[PSC_ID_COUNT], gid[PSC_ID_COUNT];
	uint32_t n_groups;
	uint32_t groups[PSC_OPEN_GROUPS];
};

/* What is asked for, checked as the kernel would, and by which task. */
struct psc_open_request {
	uint32_t kind;	  /* enum psc_open_kind */
	uint64_t flags;	  /* O_*, of openat2's kind; without O_CLOEXEC */
	uint64_t resolve; /* RESOLVE_* */
	uint32_t mode, umask;
	uint64_t effective, permitted, inheritable; /* capabilities, in the target's user namespace */
	bool no_new_privs;
	bool has_inner;
	bool hides_groups; /* outer.groups holds some that our user namespace has no number for */
	bool same_pid_namespace;
	uint64_t namespaces[PSC_NS_COUNT]; /* inode numbers of nsfs; 0: the kernel has none of that kind */
	uint32_t enters;		   /* bits: the descriptor of that namespace is beside the request */
	uint64_t proc_dev;		   /* of the supervisor's /proc, where its numbers are pid[0] and tid[0] */
	int32_t pid[2], tid[2];		   /* of the target: there, and in its own pid namespace */
	uint64_t timeout_ns;
	struct psc_open_ids outer; /* as the supervisor's user namespace numbers them */
	struct psc_open_ids inner; /* as the target's own does, if has_inner */
	char label[PSC_OPEN_LABEL]; /* of /proc/PID/attr/current; empty: no security module gives one */
	char path[PATH_MAX];	    /* PSC_OPEN_WITHIN: the name in the parent, or empty */
};

enum psc_open_reply_kind {
	PSC_OPEN_STARTED, /* beside it: a pidfd of the process that serves the request */
	PSC_OPEN_FOUND,	  /* beside it: the object by O_PATH, and the parent if it is not a directory */
	PSC_OPEN_DONE	  /* beside it: what was opened */
};

struct psc_open_reply {
	uint32_t kind; /* enum psc_open_reply_kind */
	int32_t error; /* > 0: the call is to fail so. < 0: it could not be tried */
	bool creates;  /* the descriptor is the directory in which name is to be made */
	bool within;
	uint32_t mode; /* of the object, and its number if it is a device */
	uint64_t device;
	char name[NAME_MAX + 1];
};

struct psc_found {
	int fd;	    /* O_PATH; yours to close */
	int parent; /* where fd was found by name, if it is not a directory; else -1. Yours to close */
	bool creates;
	uint32_t mode;
	uint64_t device;
	char name[NAME_MAX + 1];
};

/* Find what the path means to the target. The calling process has its rights. Returns
 * 0, or the positive errno that the call is to fail with. */
PSC_MUST_CHECK int psc_walk(const struct psc_open_request *request, int root, int start, struct psc_found *ret_found);

/* What is judged: the object, an O_PATH descriptor of the target's mounts. parent and
 * name: where it was found if it is not a directory, else -1. */
struct psc_place {
	int object, parent;
	const char *name;
	bool writes;
};

/* Is the object below directory (or directory itself), in the mounts of directory? 1, 0,
 * or with may_wait false: -EAGAIN, if only a file system could tell. */
PSC_MUST_CHECK int psc_place_within(const struct psc_place *place, int directory, bool may_wait);

/* Both are the same object of the same file system. Does not wait. */
PSC_MUST_CHECK bool psc_same_object(int a, int b);

/* The same by mount and inode, as the kernel tells of any descriptor, also of a FUSE that this process may not ask. */
PSC_MUST_CHECK bool psc_same_by_fdinfo(int a, int b);

/* Read the identity of the task from its directory of /proc. ret_fds: the namespaces to enter, in
 * the order of the bits of enters; the caller closes them, also after a failure. Returns
 * 0 or -EPERM, -ESRCH, -E2BIG, -EBADMSG. */
PSC_MUST_CHECK int psc_caller_read(int proc, struct psc_open_request *ret_request, int ret_fds[PSC_NS_COUNT]);

/* May a device node be opened for the task by the process of that pidfd: does the same
 * device policy of cgroups hold for both? 0, -ENODEV, or as psc_caller_read(). */
PSC_MUST_CHECK int psc_caller_check_devices(int proc, int pidfd);

/* Become like the target. own: the namespaces of this process, which has one thread and
 * no further use for its rights. 0; or -EPERM, -EXDEV, -EACCES: its ids and groups, a
 * namespace, the label cannot be taken on. *ret_lacks: the target has effective
 * capabilities that this process could not take on. */
PSC_MUST_CHECK int psc_identity_take(const struct psc_open_request *request, const uint64_t own[PSC_NS_COUNT],
				     const int *namespaces, bool *ret_lacks);

/* The inode numbers of the namespaces of this process. */
void psc_identity_namespaces(uint64_t ret[PSC_NS_COUNT]);

/* The life of the opener: a process for each request, until the supervisor's end of socket is closed. */
PSC_MUST_CHECK int psc_opener_run(int socket);

/* Start the program at path in the role (NULL: guardian), as psc_guardian_start(). */
PSC_MUST_CHECK int psc_role_start(const char *path, const char *role, int *ret_socket);

#endif
