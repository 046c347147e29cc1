/* opener.c - the process that opens files for targets.
 *
 * It is a program of its own, small to clone; each request gets a child:
 *
 *	become like the target (identity.c)
 *	find the object or the place for it, without any effect on it (walk.c); show it
 *	wait for the supervisor's word
 *	open it; hand it over; exit
 *
 * So no thread of the supervisor ever has another's rights, a file system that does not
 * answer holds a child only, and nothing that the target can name leads to the
 * supervisor's memory: none of it is here.
 *
 * A child has the ids of its target, so the target may send it signals. All but
 * SIGKILL, SIGSTOP and SIGALRM are blocked. The first and the last end this one request.
 * Against SIGSTOP the supervisor has a pidfd from the opener: it kills the child when the
 * request is over, whatever state the child is in. The target cannot trace it or read its
 * memory: it is not dumpable from its first instruction to its last, which needs
 * fs.suid_dumpable not to be 1; and its memory belongs to the opener's user namespace.
 *
 * What was found is pinned by its descriptor and opened again through that, so that
 * what the supervisor approved is what is opened. What was to be made is made with
 * O_EXCL in the pinned directory: if another process was faster, EAGAIN says so.
 *
 * A child for PSC_OPEN_WITHIN keeps the opener's rights and opens nothing: it waits for
 * file systems in the supervisor's place.
 */
#define _GNU_SOURCE
#include "opener.h"

#include <fcntl.h>
#include <linux/keyctl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>

#define STACK_SIZE (1 << 18)
#define MAX_FDS (3 + PSC_NS_COUNT)

struct opener {
	int socket;
	int suid_dumpable; /* the sysctl, open */
	pid_t pid;
	uint8_t *stack;
	uint64_t namespaces[PSC_NS_COUNT];
};

struct job {
	const struct opener *opener;
	struct psc_open_request *request;
	const int *fds;
	int n;
};

/* --------------------------------------------------------------------- open */

static int without_nonblock(int fd, uint64_t flags)
{
	int now;

	if (flags & O_NONBLOCK)
		return 0;
	now = fcntl(fd, F_GETFL);
	return now < 0 || fcntl(fd, F_SETFL, now & ~O_NONBLOCK) < 0 ? errno : 0;
}

/* Returns 0 or the errno of the call; -EAGAIN: what was to be made is there now. */
static int open_found(const struct psc_open_request *q, struct psc_found *found, int *ret_fd)
{
	int flags = (int)q->flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, r;
	_cleanup_close_ int fd = -1;
	struct stat st;
	char link[32];

	if (found->creates) {
		fd = openat(found->fd, found->name, flags | O_EXCL | O_NOFOLLOW, q->mode);
		if (fd < 0 && errno == EEXIST && !(q->flags & O_EXCL))
			return -EAGAIN;
	} else if (q->flags & O_PATH) {
		if (q->flags & O_DIRECTORY && (fstat(found->fd, &st) < 0 || !S_ISDIR(st.st_mode)))
			return ENOTDIR;
		*ret_fd = psc_take_fd(found->fd);
		return 0;
	} else {
		if (flags & O_CREAT)
			flags &= ~(O_CREAT | O_EXCL);
		snprintf(link, sizeof(link), "/proc/self/fd/%d", found->fd);
		fd = open(link, flags & ~O_NOFOLLOW, q->mode);
	}
	if (fd < 0)
		return errno;
	r = without_nonblock(fd, q->flags);
	if (r == 0)
		*ret_fd = psc_take_fd(fd);
	return r;
}

/* ------------------------------------------------------------------ a request */

/* The default action of SIGALRM ends this process. */
static void limit_time(uint64_t ns)
{
	struct itimerval t = { .it_value = { (time_t)(ns / 1000000000), (suseconds_t)(ns % 1000000000 / 1000) } };

	if (ns && !t.it_value.tv_sec && !t.it_value.tv_usec)
		t.it_value.tv_usec = 1;
	setitimer(ITIMER_REAL, &t, NULL);
}

/* With 1 a change of credentials makes a process dumpable: a target of the same ids
 * could trace it between that change and the next prctl(). */
static int check_suid_dumpable(int fd)
{
	char value;

	return pread(fd, &value, 1, 0) == 1 && value != '1' ? 0 : -ECHILD;
}

/* The kernel would have said so to the target, had it the capabilities that the target has? Then it is not known. */
static int known(int error, bool lacks)
{
	return lacks && (error == EACCES || error == EPERM) ? -EPERM : error;
}

/* True: the descriptors are sent. Too many of that user in flight are a reason to be told, as an error is. */
static bool send_reply(int socket, struct psc_open_reply *reply, const int *fds, size_t n)
{
	int r = psc_packet_send(socket, reply, sizeof(*reply), fds, reply->error ? 0 : n);

	if (r == 0)
		return reply->error == 0;
	reply->error = r;
	/* If that fails too, the supervisor is gone. */
	(void)!psc_packet_send(socket, reply, sizeof(*reply), NULL, 0);
	return false;
}

static int find(const struct job *job, struct psc_found *ret_found, bool *ret_lacks)
{
	struct psc_open_request *q = job->request;
	int r = check_suid_dumpable(job->opener->suid_dumpable);

	close(job->opener->suid_dumpable);
	if (r == 0)
		r = psc_identity_take(q, job->opener->namespaces, job->fds + 3, ret_lacks);
	for (int i = 3; i < job->n; i++)
		close(job->fds[i]);
	if (r == 0 && getppid() != job->opener->pid)
		r = -ECANCELED;
	if (r < 0)
		return r;
	q->same_pid_namespace = q->namespaces[PSC_NS_PID] == job->opener->namespaces[PSC_NS_PID];
	return known(psc_walk(q, job->fds[0], job->fds[1], ret_found), *ret_lacks);
}

static void serve_find(const struct job *job)
{
	const struct psc_open_request *q = job->request;
	struct psc_open_reply reply = { .kind = PSC_OPEN_FOUND };
	struct psc_found found = { .fd = -1, .parent = -1 };
	int fd = -1, socket = job->fds[2];
	bool lacks = false;
	char go;

	limit_time(q->timeout_ns);
	reply.error = find(job, &found, &lacks);
	reply.creates = found.creates;
	reply.mode = found.mode;
	reply.device = found.device;
	memcpy(reply.name, found.name, sizeof(reply.name));
	if (!send_reply(socket, &reply, (int[]){ found.fd, found.parent }, found.parent < 0 ? 1 : 2))
		return;
	limit_time(0);
	if (psc_packet_receive(socket, &go, 1, NULL, 0) < 0)
		return;
	limit_time(q->timeout_ns);
	reply.kind = PSC_OPEN_DONE;
	reply.error = known(open_found(q, &found, &fd), lacks);
	send_reply(socket, &reply, &fd, 1);
}

static void serve_within(const struct job *job)
{
	const struct psc_open_request *q = job->request;
	struct psc_place place = { job->fds[0], job->n > 3 ? job->fds[3] : -1, q->path, q->flags };
	struct psc_open_reply reply = { .kind = PSC_OPEN_DONE };
	int r;

	limit_time(q->timeout_ns);
	r = psc_place_within(&place, job->fds[1], true);
	reply.error = r < 0 ? r : 0;
	reply.within = r > 0;
	(void)!psc_packet_send(job->fds[2], &reply, sizeof(reply), NULL, 0);
}

static int run_job(void *arg)
{
	const struct job *job = arg;
	sigset_t alarm;

	close(job->opener->socket);
	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	sigprocmask(SIG_UNBLOCK, &alarm, NULL);
	if (job->request->kind == PSC_OPEN_FIND)
		serve_find(job);
	else
		serve_within(job);
	_exit(0);
}

static bool sound(const struct psc_open_request *q, int n)
{
	if (!memchr(q->path, 0, sizeof(q->path)) || !memchr(q->label, 0, sizeof(q->label)))
		return false;
	if (q->outer.n_groups > PSC_OPEN_GROUPS || q->inner.n_groups > PSC_OPEN_GROUPS)
		return false;
	return q->kind == PSC_OPEN_FIND ? n == 3 + __builtin_popcount(q->enters) : n == 3 || n == 4;
}

/* The pidfd goes to the supervisor first: without it the child is not let live. */
static void start_job(const struct opener *o, struct psc_open_request *q, const int *fds, int n)
{
	struct psc_open_reply started = { .kind = PSC_OPEN_STARTED };
	struct job job = { o, q, fds, n };
	int pidfd = -1;

	/* Without CLONE_VM: the child runs on a copy of this memory, the stack included. */
	if (clone(run_job, o->stack + STACK_SIZE, CLONE_PIDFD | SIGCHLD, &job, &pidfd) < 0)
		started.error = -errno;
	if (!send_reply(fds[2], &started, &pidfd, 1) && pidfd >= 0)
		(void)!psc_syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
	if (pidfd >= 0)
		close(pidfd);
}

static int prepare(struct opener *o)
{
	sigset_t all;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	/* Children end without leaving zombies. */
	signal(SIGCHLD, SIG_IGN);
	/* No target looks into the children, not even one of the same user. */
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	/* The keys of the supervisor's session are not for targets. A container's policy may forbid the call. */
	(void)!psc_syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, NULL);
	o->pid = getpid();
	psc_identity_namespaces(o->namespaces);
	o->suid_dumpable = open("/proc/sys/fs/suid_dumpable", O_RDONLY | O_CLOEXEC);
	o->stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	return o->stack == MAP_FAILED ? -errno : 0;
}

int psc_opener_run(int socket)
{
	struct opener opener = { .socket = socket };
	struct psc_open_request q;
	int fds[MAX_FDS], n, r = prepare(&opener);

	if (r < 0)
		return r;
	for (;;) {
		n = psc_packet_receive(socket, &q, sizeof(q), fds, MAX_FDS);
		if (n == -EINTR || n == -EBADMSG)
			continue;
		if (n < 0)
			return n == -ECONNRESET ? 0 : n;
		if (sound(&q, n))
			start_job(&opener, &q, fds, n);
		for (int i = 0; i < n; i++)
			close(fds[i]);
	}
}
