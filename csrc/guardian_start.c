/* guardian_start.c - start a guardian, and talk with it.
 *
 *	manager --clone--> go-between --clone--> guardian --exec-->
 *	     waits <--exits___/
 *
 * Both clones share the manager's memory and suspend who made them, as vfork does,
 * so nothing is copied, no lock of another thread can be held in a copy, and the
 * exec wipes out all. Neither has an exit signal and the go-between ends at once:
 * the manager sees no SIGCHLD, its wait()s see no stranger, and the guardian's end
 * is init's business.
 */
#define _GNU_SOURCE
#include "opener.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define STACK_SIZE 65536
#define GUARDIAN_SOCKET 3

struct start {
	const char *path, *role;
	int socket;
	uint8_t *stack; /* of the guardian until it has executed */
	int error;
};

static int execute(void *arg)
{
	struct start *start = arg;
	char *const argv[] = { "pyseccomp-guardian", (char *)start->role, NULL }, *const environment[] = { NULL };
	int null = open("/dev/null", O_RDWR | O_CLOEXEC), fd = fcntl(start->socket, F_DUPFD, GUARDIAN_SOCKET + 1);

	if (null < 0 || fd < 0)
		goto failed;
	for (int i = 0; i < 3; i++)
		if (dup2(null, i) < 0)
			goto failed;
	if (dup2(fd, GUARDIAN_SOCKET) < 0)
		goto failed;
	/* The fd table is a copy; the guardian gets nothing that somebody left inheritable.
	 * FIXME: drop the alternative once Linux 5.9 is the baseline: it closes them itself. */
	(void)!psc_syscall(SYS_close_range, GUARDIAN_SOCKET + 1, ~0U, 0);
	setsid();
	execve(start->path, argv, environment);
failed:
	start->error = errno == EINVAL && fd < 0 ? -EMFILE : -errno; /* EINVAL: RLIMIT_NOFILE is below the number wanted */
	_exit(127);
}

static int go_between(void *arg)
{
	struct start *start = arg;

	if (clone(execute, start->stack + STACK_SIZE, CLONE_VM | CLONE_VFORK, start) < 0)
		start->error = -errno;
	_exit(0);
}

/* With all signals blocked: no handler may run on memory that is shared. */
static int clone_twice(struct start *start)
{
	uint8_t *stacks = mmap(NULL, 2 * STACK_SIZE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	int status, r;
	pid_t pid;

	if (stacks == MAP_FAILED)
		return -errno;
	start->stack = stacks + STACK_SIZE;
	pid = clone(go_between, stacks + STACK_SIZE, CLONE_VM | CLONE_VFORK, start);
	r = pid < 0 ? -errno : 0;
	while (r == 0 && waitpid(pid, &status, __WALL) < 0 && errno == EINTR)
		;
	munmap(stacks, 2 * STACK_SIZE);
	return r < 0 ? r : start->error;
}

int psc_role_start(const char *path, const char *role, int *ret_socket)
{
	struct start start = { .path = path, .role = role };
	_cleanup_close_ int ours = -1, theirs = -1;
	sigset_t all, before;
	int pair[2], r;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	ours = pair[0];
	theirs = start.socket = pair[1];
	sigfillset(&all);
	r = -pthread_sigmask(SIG_SETMASK, &all, &before);
	if (r < 0)
		return r;
	r = clone_twice(&start);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (r < 0)
		return r;
	*ret_socket = psc_take_fd(ours);
	return 0;
}

int psc_guardian_start(const char *path, int *ret_socket)
{
	return psc_role_start(path, NULL, ret_socket);
}

/* ---------------------------------------------------------------- messages */

_Static_assert(PSC_GUARDIAN_FDS == PSC_PACKET_FDS, "a message fills a packet");

int psc_guardian_send(int socket, const struct psc_guardian_message *message, const int *fds, size_t n)
{
	return psc_packet_send(socket, message, sizeof(*message), fds, n);
}

int psc_guardian_receive(int socket, struct psc_guardian_message *ret_message, int ret_fds[PSC_GUARDIAN_FDS])
{
	struct psc_guardian_message message;
	int n = psc_packet_receive_kept(socket, &message, sizeof(message), ret_fds, PSC_GUARDIAN_FDS);

	if (n < 0 && n != -EMFILE)
		return n;
	if (message.n_outcomes <= psc_array_size(message.outcomes)) {
		*ret_message = message;
		return n;
	}
	if (n == -EMFILE)
		psc_packet_drop(socket);
	for (int i = 0; i < n; i++)
		close(ret_fds[i]);
	return -EBADMSG;
}

void psc_guardian_drop(int socket)
{
	psc_packet_drop(socket);
}
