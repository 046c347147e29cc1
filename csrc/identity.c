/* identity.c - make this process like a target, before it opens anything.
 *
 * The kernel asks different parts of a task's identity, file system by file system:
 * ext4 the fsuid, cgroup v1 and /proc/sys the euid, FUSE all of real, effective and
 * saved ids, /dev/net/tun the network namespace, cgroup v2 the cgroup namespace. And the
 * opened file keeps the opener's credentials for later decisions. So all is taken on:
 *
 *	namespaces but user     while this process has its rights
 *	groups, gids, uids      numbered by this user namespace, or else by the target's
 *	user namespace          what capabilities are worth
 *	label                   of SELinux, AppArmor, Smack
 *	capabilities            the target's, and never more than this process had
 *	no_new_privs, not dumpable, dies with its parent
 *
 * The bounding and ambient sets decide what an execve gains; nothing is executed here.
 * Nothing of this can be undone by the process, and what fails refuses the call.
 */
#define _GNU_SOURCE
#include "opener.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#define LABEL_FILE "/proc/self/attr/current"

const char *const psc_open_namespaces[PSC_NS_COUNT] = { "user", "net", "ipc", "uts", "cgroup", "pid" };

void psc_identity_namespaces(uint64_t ret[PSC_NS_COUNT])
{
	char path[64];
	struct stat st;

	for (int i = 0; i < PSC_NS_COUNT; i++) {
		/* The first thread may have ended. */
		snprintf(path, sizeof(path), "/proc/thread-self/ns/%s", psc_open_namespaces[i]);
		ret[i] = stat(path, &st) < 0 ? 0 : st.st_ino;
	}
}

/* -------------------------------------------------------------- capabilities */

struct capabilities {
	uint64_t effective, permitted, inheritable;
};

static int get_capabilities(struct capabilities *ret)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct d[2];
	int r = (int)psc_syscall(SYS_capget, &header, d);

	if (r == 0)
		*ret = (struct capabilities){ d[0].effective | (uint64_t)d[1].effective << 32,
					      d[0].permitted | (uint64_t)d[1].permitted << 32,
					      d[0].inheritable | (uint64_t)d[1].inheritable << 32 };
	return r;
}

static int set_capabilities(const struct capabilities *c)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct d[2];

	for (int i = 0; i < 2; i++)
		d[i] = (struct __user_cap_data_struct){ (uint32_t)(c->effective >> 32 * i), (uint32_t)(c->permitted >> 32 * i),
							(uint32_t)(c->inheritable >> 32 * i) };
	return (int)psc_syscall(SYS_capset, &header, d);
}

/* A change of the uid from 0 lowers the effective set; PR_SET_KEEPCAPS keeps the permitted one. */
static int raise_capabilities(void)
{
	struct capabilities c;
	int r = get_capabilities(&c);

	if (r == 0 && c.effective != c.permitted) {
		c.effective = c.permitted;
		r = set_capabilities(&c);
	}
	return r;
}

static int limit_capabilities(const struct psc_open_request *q, bool *ret_lacks)
{
	struct capabilities c;
	int r = get_capabilities(&c);

	if (r < 0)
		return r;
	*ret_lacks = q->effective & ~c.permitted;
	c.inheritable = q->inheritable & (c.permitted | c.inheritable);
	c.effective = q->effective & c.permitted;
	c.permitted &= q->permitted;
	return set_capabilities(&c);
}

/* ----------------------------------------------------------------------- ids */

/* The kernel sorts both lists. */
static bool has_groups(const struct psc_open_ids *ids)
{
	gid_t groups[PSC_OPEN_GROUPS];
	int n = getgroups(PSC_OPEN_GROUPS, groups);

	return n == (int)ids->n_groups && memcmp(groups, ids->groups, (size_t)n * sizeof(*groups)) == 0;
}

static int take_ids(const struct psc_open_ids *ids, bool groups_too)
{
	const uint32_t *u = ids->uid, *g = ids->gid;

	if (groups_too && setgroups(ids->n_groups, ids->groups) < 0)
		return -EPERM;
	if (setresgid(g[PSC_ID_REAL], g[PSC_ID_EFFECTIVE], g[PSC_ID_SAVED]) < 0)
		return -EPERM;
	/* setfsgid() and setfsuid() report no failure: a second call tells what is in force. */
	setfsgid(g[PSC_ID_FS]);
	/* What is locked against it shows in the end: the capabilities are missing. */
	prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0);
	if (setresuid(u[PSC_ID_REAL], u[PSC_ID_EFFECTIVE], u[PSC_ID_SAVED]) < 0 || raise_capabilities() < 0)
		return -EPERM;
	setfsuid(u[PSC_ID_FS]);
	if (setfsgid((gid_t)-1) != (int)g[PSC_ID_FS] || setfsuid((uid_t)-1) != (int)u[PSC_ID_FS])
		return -EPERM;
	return raise_capabilities();
}

/* ---------------------------------------------------------------- namespaces */

static bool differs(const struct psc_open_request *q, const uint64_t own[PSC_NS_COUNT], int kind)
{
	return q->namespaces[kind] != own[kind];
}

static int enter(const struct psc_open_request *q, const int *fds, int kind)
{
	if (!(q->enters & 1u << kind))
		return -EXDEV;
	return setns(fds[__builtin_popcount(q->enters & ((1u << kind) - 1))], 0) < 0 ? -EXDEV : 0;
}

/* Each of the kinds, a set of bits, in which this process differs; returns those that were not entered. */
static uint32_t enter_all(const struct psc_open_request *q, const uint64_t own[PSC_NS_COUNT], const int *fds, uint32_t kinds)
{
	uint32_t left = 0;

	for (int kind = PSC_NS_NET; kind <= PSC_NS_CGROUP; kind++)
		if (kinds & 1u << kind && differs(q, own, kind) && enter(q, fds, kind) < 0)
			left |= 1u << kind;
	return left;
}

static int take_ids_and_namespaces(const struct psc_open_request *q, const uint64_t own[PSC_NS_COUNT], const int *fds)
{
	bool enters_user = differs(q, own, PSC_NS_USER), groups_too = !has_groups(&q->outer);
	uint32_t left = enter_all(q, own, fds, ~0u);
	int r;

	if (groups_too && q->hides_groups)
		return -EPERM;
	r = take_ids(&q->outer, groups_too);

	if (!enters_user)
		return left ? -EXDEV : r;
	if (enter(q, fds, PSC_NS_USER) < 0)
		return -EXDEV;
	/* This process has all capabilities there now: a supervisor without privilege has
	 * them in the namespaces of its own user only. */
	if (enter_all(q, own, fds, left))
		return -EXDEV;
	if (r < 0)
		r = q->has_inner ? take_ids(&q->inner, groups_too) : -EPERM;
	return r;
}

/* --------------------------------------------------------------------- label */

static int own_label(char ret_label[PSC_OPEN_LABEL])
{
	_cleanup_close_ int fd = open(LABEL_FILE, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, ret_label, PSC_OPEN_LABEL - 1);

	if (n < 0)
		return -errno;
	ret_label[n] = 0;
	ret_label[strcspn(ret_label, "\n")] = 0;
	return 0;
}

/* AppArmor shows "name (mode)" or "unconfined" and takes a command; the others take what they show. */
static int write_label(const char *label)
{
	_cleanup_close_ int fd = open(LABEL_FILE, O_WRONLY | O_CLOEXEC);
	size_t n = strlen(label);
	char text[PSC_OPEN_LABEL + 32];
	const char *mode = n && label[n - 1] == ')' ? strrchr(label, '(') : NULL;

	if (fd < 0)
		return -errno;
	if (mode && mode > label + 1 && mode[-1] == ' ')
		snprintf(text, sizeof(text), "changeprofile %.*s", (int)(mode - 1 - label), label);
	else if (strcmp(label, "unconfined") == 0)
		snprintf(text, sizeof(text), "changeprofile unconfined");
	else
		snprintf(text, sizeof(text), "%s", label);
	return write(fd, text, strlen(text)) < 0 ? -errno : 0;
}

static int take_label(const char *label)
{
	char now[PSC_OPEN_LABEL];

	if (!*label)
		return 0;
	if (own_label(now) < 0)
		return -EACCES;
	if (strcmp(now, label) == 0)
		return 0;
	return write_label(label) < 0 || own_label(now) < 0 || strcmp(now, label) != 0 ? -EACCES : 0;
}

int psc_identity_take(const struct psc_open_request *q, const uint64_t own[PSC_NS_COUNT], const int *namespaces, bool *ret_lacks)
{
	bool lacks = false;
	int r = take_ids_and_namespaces(q, own, namespaces);

	if (r == 0)
		r = take_label(q->label);
	if (r == 0 && limit_capabilities(q, &lacks) < 0)
		r = -EPERM;
	/* Last: each change of credentials resets the signal of the parent's death, and
	 * makes a process dumpable again where fs.suid_dumpable says so. */
	if (r == 0 && ((q->no_new_privs && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 ||
		       prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0))
		r = -EPERM;
	if (r < 0)
		return r;
	umask(q->umask);
	*ret_lacks = lacks;
	return 0;
}
