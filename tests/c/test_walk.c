/* psc_walk() in this process: what only the opener itself could reach. */
#define _GNU_SOURCE
#include "opener.h"

#include <assert.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>

static struct psc_open_request q;

static int walk(int start, const char *path, struct psc_found *ret)
{
	int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC), r;

	assert(root >= 0 && strlen(path) < sizeof(q.path));
	strcpy(q.path, path);
	*ret = (struct psc_found){ .fd = -1, .parent = -1 };
	r = psc_walk(&q, root, start < 0 ? root : start, ret);
	assert((r == 0) == (ret->fd >= 0));
	close(root);
	return r;
}

/* The errno, or 0 and nothing is left open. */
static int outcome(int start, const char *path)
{
	struct psc_found found;
	int r = walk(start, path, &found);

	psc_close_fd(&found.fd);
	psc_close_fd(&found.parent);
	return r;
}

static void own_entry_does_not_exist(void)
{
	char path[64];

	for (const char *const *what = (const char *const[]){ "", "/", "/mem", "/status", "/root", "/task", "/..", "/../self", NULL };
	     *what; what++) {
		snprintf(path, sizeof(path), "/proc/%d%s", getpid(), *what);
		assert(outcome(-1, path) == ENOENT);
	}
}

static void self_is_the_target(void)
{
	struct psc_found found;
	char link[32], name[64], wanted[64];
	ssize_t n;

	q.pid[0] = q.tid[0] = getppid();
	assert(walk(-1, "/proc/self/../thread-self/status", &found) == 0);
	snprintf(link, sizeof(link), "/proc/self/fd/%d", found.fd);
	n = readlink(link, name, sizeof(name) - 1);
	assert(n > 0);
	name[n] = 0;
	snprintf(wanted, sizeof(wanted), "/proc/%d/task/%d/status", getppid(), getppid());
	assert(strcmp(name, wanted) == 0);
	close(found.fd);
	psc_close_fd(&found.parent);
	assert(outcome(-1, "/proc/self/exe") == ELOOP);
	/* Ourselves by our number or by self: not there. */
	q.pid[0] = q.tid[0] = getpid();
	assert(outcome(-1, "/proc/self/status") == ENOENT && outcome(-1, "/proc/net/dev") == ENOENT);
}

static void what_depends_on_namespaces_is_denied_from_others(void)
{
	int proc_sys = open("/proc/sys", O_PATH | O_DIRECTORY | O_CLOEXEC);

	assert(proc_sys >= 0);
	assert(outcome(-1, "/proc/sys/kernel/hostname") == 0 && outcome(proc_sys, "kernel") == 0);
	q.same_pid_namespace = false;
	assert(outcome(-1, "/proc/sys/kernel/hostname") == EPERM && outcome(proc_sys, "kernel") == EPERM);
	assert(outcome(-1, "/proc/version") == 0);
	q.same_pid_namespace = true;
	close(proc_sys);
}

/* The kernel says the same of ".." and of absolute paths there. */
static void scoped_walks_end_below_their_start(void)
{
	char base[] = "/tmp/psc-walk.XXXXXX", path[128];
	int start;

	assert(mkdtemp(base));
	snprintf(path, sizeof(path), "%s/a", base);
	assert(mkdir(path, 0700) == 0);
	start = open(base, O_PATH | O_DIRECTORY | O_CLOEXEC);
	assert(start >= 0);
	q.resolve = RESOLVE_BENEATH;
	assert(outcome(start, "a/..") == 0 && outcome(start, "a/../..") == EXDEV && outcome(start, "/") == EXDEV);
	q.resolve = RESOLVE_IN_ROOT;
	assert(outcome(start, "/a/../../../../../a") == 0 && outcome(start, "/tmp") == ENOENT);
	q.resolve = 0;
	close(start);
	assert(rmdir(path) == 0 && rmdir(base) == 0);
}

static void what_is_to_be_made_is_a_name_in_a_directory(void)
{
	struct psc_found found;

	q.flags = O_CREAT | O_WRONLY;
	assert(walk(-1, "/tmp/../tmp/psc-no-such-file", &found) == 0);
	assert(found.creates && strcmp(found.name, "psc-no-such-file") == 0);
	close(found.fd);
	psc_close_fd(&found.parent);
	assert(outcome(-1, "/tmp/psc-no-such-dir/x") == ENOENT && outcome(-1, "/tmp/psc-no-such-file/") == EISDIR);
	assert(outcome(-1, "/tmp") == EISDIR && outcome(-1, "/") == EISDIR);
	q.flags = 0;
}

int main(void)
{
	struct stat proc;

	if (stat("/proc/self", &proc) < 0)
		return 77;
	q.proc_dev = proc.st_dev;
	q.same_pid_namespace = true;
	own_entry_does_not_exist();
	self_is_the_target();
	what_depends_on_namespaces_is_denied_from_others();
	scoped_walks_end_below_their_start();
	what_is_to_be_made_is_a_name_in_a_directory();
	return 0;
}
