/* Waits in one system call, and reports how that ended.
 *
 * Argument: the name of the call, from the table below. A call with a due time
 * ends by itself after SLEEP_MS; any other is ended by a child, the waker, as
 * soon as a line comes in. Facts: ret and errno of the call, how late it came
 * back (timed calls only) and the probe. "ready" is printed just before the
 * call: the test looks in /proc for the moment when it waits.
 */
#include "victim.h"
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#define SLEEP_MS 400
#define SLEEP_NS (SLEEP_MS * 1000000LL)

/* What sleeper and waker share: memory, a pipe, a pair of sockets, a listening one. */
static struct shared {
	uint32_t futex;
	sem_t sem;
	bool woken;
} *shared;
static int pipe_fd[2], pair[2], listener, lock_fd;
static char lock_path[32];
static struct sockaddr_un address;
static socklen_t address_size;
static pid_t sleeper, waker;

static const struct timespec relative = { .tv_nsec = SLEEP_NS };
static const struct timeval relative_us = { .tv_usec = SLEEP_MS * 1000 };

static long futex(int op, uint32_t value, const struct timespec *timeout)
{
	return syscall(SYS_futex, &shared->futex, op, value, timeout, NULL, FUTEX_BITSET_MATCH_ANY);
}

static struct timespec at(int64_t ns)
{
	return (struct timespec){ ns / 1000000000, ns % 1000000000 };
}

static long do_nanosleep(int64_t)
{
	struct timespec left;

	return syscall(SYS_nanosleep, &relative, &left);
}

static long do_clock_nanosleep(int64_t)
{
	return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &relative, NULL);
}

static long do_clock_nanosleep_abs(int64_t due)
{
	struct timespec t = at(due);

	return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static long do_futex_timeout(int64_t)
{
	return futex(FUTEX_WAIT, 0, &relative);
}

static long do_futex_abs(int64_t due)
{
	struct timespec t = at(due);

	return futex(FUTEX_WAIT_BITSET, 0, &t);
}

static long do_poll_timeout(int64_t)
{
	struct pollfd p = { .fd = pipe_fd[0], .events = POLLIN };

	return poll(&p, 1, SLEEP_MS);
}

static long do_ppoll_timeout(int64_t)
{
	struct pollfd p = { .fd = pipe_fd[0], .events = POLLIN };

	return ppoll(&p, 1, &relative, NULL);
}

static long do_select_timeout(int64_t)
{
	struct timeval t = relative_us;
	fd_set set;

	FD_ZERO(&set);
	FD_SET(pipe_fd[0], &set);
	return select(pipe_fd[0] + 1, &set, NULL, NULL, &t);
}

static long watch_pipe(int timeout)
{
	struct epoll_event e = { .events = EPOLLIN };
	int fd = epoll_create1(EPOLL_CLOEXEC);

	if (fd < 0 || epoll_ctl(fd, EPOLL_CTL_ADD, pipe_fd[0], &e))
		die("epoll");
	return epoll_wait(fd, &e, 1, timeout);
}

static long do_epoll_timeout(int64_t)
{
	return watch_pipe(SLEEP_MS);
}

static long do_recv_timeout(int64_t)
{
	char c;

	if (setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &relative_us, sizeof(relative_us)))
		die("setsockopt");
	return recv(pair[0], &c, 1, 0);
}

static long do_sigtimedwait_timeout(int64_t)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	return sigtimedwait(&set, NULL, &relative);
}

static long do_semtimedop(int64_t)
{
	int id = semget(IPC_PRIVATE, 1, 0600), saved;
	struct sembuf down = { .sem_op = -1 };
	long r;

	r = semtimedop(id, &down, 1, &relative);
	saved = errno;
	semctl(id, 0, IPC_RMID);
	errno = saved;
	return r;
}

static long do_read(int64_t)
{
	char c;

	return read(pipe_fd[0], &c, 1);
}

/* The pipe is filled first: one more byte waits, with nothing written yet. */
static long do_write(int64_t)
{
	static char block[4096];

	fcntl(pipe_fd[1], F_SETFL, O_NONBLOCK);
	while (write(pipe_fd[1], block, sizeof(block)) > 0)
		;
	fcntl(pipe_fd[1], F_SETFL, 0);
	return write(pipe_fd[1], block, 1);
}

static long do_futex(int64_t)
{
	return futex(FUTEX_WAIT, 0, NULL);
}

static long do_epoll(int64_t)
{
	return watch_pipe(-1);
}

static long do_accept(int64_t)
{
	return accept(listener, NULL, NULL) >= 0 ? 1 : -1;
}

/* The queue of the listener is filled first: one more connect waits. */
static long do_connect(int64_t)
{
	int fd, r;

	do {
		fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
		r = connect(fd, (struct sockaddr *)&address, address_size);
	} while (r == 0);
	fcntl(fd, F_SETFL, 0);
	return connect(fd, (struct sockaddr *)&address, address_size);
}

static long do_poll(int64_t)
{
	struct pollfd p = { .fd = pipe_fd[0], .events = POLLIN };

	return poll(&p, 1, -1);
}

static long do_select(int64_t)
{
	fd_set set;

	FD_ZERO(&set);
	FD_SET(pipe_fd[0], &set);
	return select(pipe_fd[0] + 1, &set, NULL, NULL, NULL);
}

static long do_waitpid(int64_t)
{
	int status;

	return waitpid(waker, &status, 0) == waker && status == 0 ? 1 : -1;
}

static long do_waitid(int64_t)
{
	siginfo_t info;

	return waitid(P_PID, waker, &info, WEXITED | WNOWAIT);
}

static long do_recvfrom(int64_t)
{
	char c;

	return recvfrom(pair[0], &c, 1, 0, NULL, NULL);
}

static long do_recvmsg(int64_t)
{
	char c;
	struct iovec v = { &c, 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 };

	return recvmsg(pair[0], &m, 0);
}

static long do_sem_wait(int64_t)
{
	return sem_wait(&shared->sem);
}

static long do_sigwaitinfo(int64_t)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	return sigwaitinfo(&set, NULL) == SIGUSR1 ? 1 : -1;
}

static long do_flock(int64_t)
{
	return flock(open(lock_path, O_RDWR | O_CLOEXEC), LOCK_EX);
}

static void handler(int signal)
{
	(void)signal;
	shared->woken = true;
}

/* pause() can only end with EINTR, after a handler: that one is counted as success. */
static long do_pause(int64_t)
{
	if (pause() == -1 && errno == EINTR && shared->woken) {
		errno = 0;
		return 1;
	}
	return -1;
}

static void wake_pipe(void)
{
	(void)!write(pipe_fd[1], "x", 1);
}

static void wake_drain(void)
{
	static char block[4096];

	(void)!read(pipe_fd[0], block, sizeof(block));
}

static void wake_futex(void)
{
	/* The word does not change, so a wake-up before the waiter is back in its call would be lost. */
	while (futex(FUTEX_WAKE, 1, NULL) == 0)
		sched_yield();
}

static void wake_connect(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	if (connect(fd, (struct sockaddr *)&address, address_size))
		_exit(1);
}

static void wake_accept(void)
{
	accept(listener, NULL, NULL);
}

static void wake_socket(void)
{
	(void)!write(pair[1], "x", 1);
}

static void wake_sem(void)
{
	sem_post(&shared->sem);
}

static void wake_signal(void)
{
	kill(sleeper, SIGUSR1);
}

static void wake_exit(void)
{
	_exit(0);
}

static void wake_unlock(void)
{
	flock(lock_fd, LOCK_UN);
}

static const struct call {
	const char *name;
	long (*wait)(int64_t due);
	void (*wake)(void); /* NULL: ends at its due time */
} calls[] = {
	{ "nanosleep", do_nanosleep, NULL },
	{ "clock_nanosleep", do_clock_nanosleep, NULL },
	{ "clock_nanosleep_abs", do_clock_nanosleep_abs, NULL },
	{ "futex_timeout", do_futex_timeout, NULL },
	{ "futex_abs", do_futex_abs, NULL },
	{ "poll_timeout", do_poll_timeout, NULL },
	{ "ppoll_timeout", do_ppoll_timeout, NULL },
	{ "select_timeout", do_select_timeout, NULL },
	{ "epoll_timeout", do_epoll_timeout, NULL },
	{ "recv_timeout", do_recv_timeout, NULL },
	{ "sigtimedwait_timeout", do_sigtimedwait_timeout, NULL },
	{ "semtimedop", do_semtimedop, NULL },
	{ "read", do_read, wake_pipe },
	{ "write", do_write, wake_drain },
	{ "futex", do_futex, wake_futex },
	{ "epoll", do_epoll, wake_pipe },
	{ "accept", do_accept, wake_connect },
	{ "connect", do_connect, wake_accept },
	{ "poll", do_poll, wake_pipe },
	{ "select", do_select, wake_pipe },
	{ "waitpid", do_waitpid, wake_exit },
	{ "waitid", do_waitid, wake_exit },
	{ "recvfrom", do_recvfrom, wake_socket },
	{ "recvmsg", do_recvmsg, wake_socket },
	{ "sem_wait", do_sem_wait, wake_sem },
	{ "sigwaitinfo", do_sigwaitinfo, wake_signal },
	{ "pause", do_pause, wake_signal },
	{ "flock", do_flock, wake_unlock },
};

static const struct call *find_call(const char *name)
{
	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
		if (strcmp(calls[i].name, name) == 0)
			return &calls[i];
	die(name);
}

static void prepare(void)
{
	struct sigaction action = { .sa_handler = handler };

	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED || sem_init(&shared->sem, 1, 0) || pipe(pipe_fd) ||
	    socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		die("prepare");
	address.sun_family = AF_UNIX;
	address_size = sizeof(sa_family_t); /* the kernel picks an abstract name */
	listener = socket(AF_UNIX, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&address, address_size) || listen(listener, 2))
		die("listen");
	address_size = sizeof(address);
	getsockname(listener, (struct sockaddr *)&address, &address_size);
	lock_fd = memfd_create("lock", MFD_CLOEXEC);
	snprintf(lock_path, sizeof(lock_path), "/proc/%d/fd/%d", getpid(), lock_fd);
	sigaction(SIGUSR1, &action, NULL);
	sleeper = getpid();
}

static void run_waker(const struct call *call)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	hear();
	call->wake();
	_exit(0);
}

int main(int argc, char **argv)
{
	const struct call *call = find_call(argc > 1 ? argv[1] : "");
	int64_t start, late;
	long r;
	int error;

	prepare();
	if (strncmp(call->name, "sig", 3) == 0) {
		sigset_t set;

		sigemptyset(&set);
		sigaddset(&set, SIGUSR1);
		sigprocmask(SIG_BLOCK, &set, NULL);
	}
	if (strcmp(call->name, "flock") == 0 && flock(lock_fd, LOCK_EX))
		die("flock");
	if (call->wake) {
		waker = fork();
		if (waker == 0)
			run_waker(call);
	}
	say("ready");
	start = now_ns();
	r = call->wait(start + SLEEP_NS);
	error = r < 0 ? errno : 0;
	late = now_ns() - start - SLEEP_NS;
	say("call=%s ret=%ld errno=%d late_us=%ld probe=%d", call->name, r, error,
	    call->wake ? 0 : (long)(late / 1000), probe());
	for (;;)
		pause();
}
