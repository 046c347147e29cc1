/* park.c - a thread of the target that waits with the filter in its hand.
 *
 *   target's threads      parked thread                     helper process
 *                         its own fd table: the channel --- the same table
 *                         waits for the gate word            waits for the thread's end
 *                         seccomp(TSYNC), end                sends the listener, ends
 *
 * No ptrace, and the listener is never in the target's table. Once the filter is in
 * force the parked thread makes one call, exit, because any other may be denied or
 * asked about; the helper, which no filter reaches because it is in no thread group
 * with the target, sends what it left. The thread's end, however it comes (exec,
 * death), wakes the helper, so nothing is lost in silence.
 *
 * Both run on the memory and (the thread) on the thread-local storage of who
 * parked: they make raw system calls and touch neither errno nor any lock. Until
 * activation the target is trusted: it could as well leave a child unfiltered.
 */
#define _GNU_SOURCE
#include "gate_words.h"
#include "psc.h"
#include "signal_tick.h"

#include "arch/x86_64.h"

#include <fcntl.h>

#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#define STACK_SIZE 16384
#define CHECK_SECONDS 2
#define FIRST_NAP_NS 1000000
#define LONGEST_NAP_NS 100000000
#define LAST_WORDS 50 /* naps for a creator that does not read, once the process has ended */

static const char magic[8] = "PSCPARK";

enum progress { STARTING, PARKED, FAILED };

struct psc_park {
	struct psc_park *next;
	struct psc_page *page;
	struct sock_filter *insns;
	struct sock_fprog program;
	uint32_t flags;
	int no_new_privs;
	int64_t deadline;
	bool kill;
	unsigned int slot;
	int channel; /* ours, and the same number in the private table */
	pid_t owner;

	_Atomic uint32_t progress;
	_Atomic int32_t error;
	_Atomic bool canceled, tried;
	_Atomic int32_t tid, helper; /* 0: has ended */

	struct psc_park_message message;
	struct iovec iov;
	struct msghdr m;
	union {
		struct cmsghdr header;
		uint8_t room[CMSG_SPACE(sizeof(int))];
	} control;

	_Alignas(16) uint8_t stacks[3][STACK_SIZE];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct psc_park *parks;

static long raw(long nr, long a, long b, long c, long d)
{
	return psc_raw_syscall(nr, a, b, c, d, 0, 0);
}

/* ------------------------------------------------------------------ helper */

static bool thread_lives(const struct psc_park *park, int32_t tid)
{
	return raw(SYS_tgkill, park->owner, tid, 0, 0) != -ESRCH;
}

static bool may_pass(long error)
{
	return error == -EINTR || error == -EAGAIN || error == -ENOBUFS || error == -ENOMEM || error == -ETOOMANYREFS;
}

/* The listener is in no other table: it is kept here until it could be sent. What the kernel refuses
 * for good (EPIPE: the creator has ended) ends it, and so does the end of the process after a while. */
static void send_last_words(struct psc_park *park)
{
	struct timespec nap = { 0, FIRST_NAP_NS };
	int left = LAST_WORDS;

	while (may_pass(raw(SYS_sendmsg, park->channel, (long)&park->m, MSG_NOSIGNAL | MSG_DONTWAIT, 0))) {
		if (raw(SYS_kill, park->owner, 0, 0, 0) == -ESRCH && left-- == 0)
			return;
		raw(SYS_nanosleep, (long)&nap, 0, 0, 0);
		if (nap.tv_nsec < LONGEST_NAP_NS)
			nap.tv_nsec *= 2;
	}
}

static int help(void *data)
{
	struct psc_park *park = data;
	struct timespec check = { CHECK_SECONDS, 0 };
	int32_t tid;

	while ((tid = park->tid) != 0)
		if (raw(SYS_futex, (long)&park->tid, FUTEX_WAIT, tid, (long)&check) == -ETIMEDOUT && !thread_lives(park, tid))
			break;
	/* The others that were woken with ours go first: nothing is in force there yet. */
	raw(SYS_sched_yield, 0, 0, 0, 0);
	park->message.kind = park->tried ? PSC_PARK_DONE : PSC_PARK_GONE;
	send_last_words(park);
	raw(SYS_exit, 0, 0, 0, 0);
	return 0;
}

/* So that the helper is a child of nobody here: no wait of the target sees it. */
static int go_between(void *data)
{
	struct psc_park *park = data;
	int flags = CLONE_VM | CLONE_FILES | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;

	if (clone(help, park->stacks[2] + STACK_SIZE, flags, park, &park->helper, NULL, &park->helper) < 0)
		park->error = -errno;
	raw(SYS_exit, 0, 0, 0, 0);
	return 0;
}

/* ----------------------------------------------------------- parked thread */

static long apply(struct psc_park *park)
{
	long r = -EACCES;

	if (park->no_new_privs > 0)
		raw(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0);
	r = raw(SYS_seccomp, SECCOMP_SET_MODE_FILTER, park->flags, (long)&park->program, 0);
	if (r != -EACCES || park->no_new_privs >= 0)
		return r;
	raw(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0);
	return raw(SYS_seccomp, SECCOMP_SET_MODE_FILTER, park->flags, (long)&park->program, 0);
}

static bool wait_for_turn(struct psc_park *park)
{
	const struct timespec due = { park->deadline / 1000000000, park->deadline % 1000000000 };
	const struct timespec *limit = park->deadline <= 0 ? NULL : &due;

	for (;;) {
		uint32_t stamp = psc_page_stamp(park->page);
		long r;

		if (park->canceled)
			return false;
		if (psc_page_state(park->page, park->slot) == PSC_GATE_ACTIVE)
			return true;
		r = psc_raw_syscall(SYS_futex, (long)psc_page_bell(park->page), FUTEX_WAIT_BITSET, stamp, (long)limit, 0,
				    (long)FUTEX_BITSET_MATCH_ANY);
		if (r != -ETIMEDOUT)
			continue;
		if (park->kill)
			raw(SYS_kill, park->owner, SIGKILL, 0, 0);
		return true;
	}
}

static void say(struct psc_park *park, uint32_t progress)
{
	park->progress = progress;
	raw(SYS_futex, (long)&park->progress, FUTEX_WAKE_PRIVATE, 1, 0);
}

static int be_parked(void *data)
{
	struct psc_park *park = data;
	int fd = park->channel;
	long pid, r;

	if (fd > 0)
		raw(SYS_close_range, 0, fd - 1, 0, 0);
	raw(SYS_close_range, fd + 1, ~0U, 0, 0);
	pid = clone(go_between, park->stacks[1] + STACK_SIZE, CLONE_VM | CLONE_VFORK | CLONE_FILES, park);
	if (pid < 0)
		park->error = -errno;
	while (pid > 0 && raw(SYS_wait4, pid, 0, __WALL, 0) == -EINTR)
		;
	if (park->error) {
		say(park, FAILED);
		raw(SYS_exit, 0, 0, 0, 0);
	}
	say(park, PARKED);
	if (wait_for_turn(park)) {
		r = apply(park);
		park->message.result = r < 0 ? (int32_t)r : 0;
		if (r >= 0 && park->flags & SECCOMP_FILTER_FLAG_NEW_LISTENER) {
			memcpy(CMSG_DATA(&park->control.header), &(int){ (int)r }, sizeof(int));
			park->m.msg_control = &park->control;
			park->m.msg_controllen = sizeof(park->control);
		}
		park->tried = true;
	}
	raw(SYS_exit, 0, 0, 0, 0);
	return 0;
}

/* --------------------------------------------------------------- rehearsal
 *
 * A filter that the process carries may kill a call that the parked thread makes; its exit() would
 * be the end of the process, at the activation. What the filter says can be seen only by making the
 * calls, in a child that dies in the place of the process. */

static void make_the_calls(void)
{
	struct msghdr nothing = { 0 };
	uint32_t word = 0;

	raw(SYS_close_range, ~0U, ~0U, 0, 0);
	raw(SYS_futex, (long)&word, FUTEX_WAKE_PRIVATE, 0, 0);
	raw(SYS_wait4, -1, 0, WNOHANG | __WALL, 0);
	raw(SYS_tgkill, 0, 0, 0, 0);
	raw(SYS_sched_yield, 0, 0, 0, 0);
	raw(SYS_sendmsg, -1, (long)&nothing, MSG_NOSIGNAL, 0);
	raw(SYS_exit, 0, 0, 0, 0);
	raw(SYS_exit_group, 1, 0, 0, 0); /* exit() was denied */
	__builtin_trap();
}

/* -EACCES: a filter kills one of the calls, or does not let a thread end. The child has no exit
 * signal, so that no other wait of the process sees it. */
static int rehearse(void)
{
	struct psc_task_state task;
	sigset_t all, before;
	int status = 0;
	long pid, r;

	if (psc_query_thread(getpid(), gettid(), &task) == 0 && task.seccomp != SECCOMP_MODE_FILTER)
		return 0;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pid = raw(SYS_clone, 0, 0, 0, 0);
	if (pid == 0)
		make_the_calls();
	while (pid > 0 && (r = raw(SYS_wait4, pid, (long)&status, __WALL, 0)) == -EINTR)
		;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (pid < 0)
		return (int)pid;
	if (r < 0)
		return (int)r;
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EACCES;
}

/* ------------------------------------------------------------------- start */

static void prepare(struct psc_park *park)
{
	park->progress = STARTING;
	park->error = 0;
	park->tried = park->canceled = false;
	park->tid = park->helper = 0;
	park->owner = getpid();
	memcpy(park->message.magic, magic, sizeof(magic));
	park->message.slot = park->slot;
	park->message.result = 0;
	park->iov = (struct iovec){ &park->message, sizeof(park->message) };
	park->m = (struct msghdr){ .msg_iov = &park->iov, .msg_iovlen = 1 };
	park->control.header.cmsg_level = SOL_SOCKET;
	park->control.header.cmsg_type = SCM_RIGHTS;
	park->control.header.cmsg_len = CMSG_LEN(sizeof(int));
}

/* Tell the other side who is parked, by a pidfd that cannot be mistaken. */
static int announce(struct psc_park *park)
{
	_cleanup_close_ int pidfd = (int)psc_syscall(SYS_pidfd_open, park->owner, 0);
	struct psc_park_message hello = park->message;
	struct iovec iov = { &hello, sizeof(hello) };
	union {
		struct cmsghdr header;
		uint8_t room[CMSG_SPACE(sizeof(int))];
	} control = { .header = { CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	const struct timespec nap = { 0, 10000000 };
	ssize_t r = -1;

	if (pidfd < 0)
		return pidfd;
	hello.kind = PSC_PARK_HELLO;
	memcpy(CMSG_DATA(&control.header), &pidfd, sizeof(int));
	for (int i = 0; i < 100; i++) {
		r = sendmsg(park->channel, &m, MSG_NOSIGNAL);
		if (r >= 0 || !may_pass(-errno))
			break;
		if (errno != EINTR)
			raw(SYS_nanosleep, (long)&nap, 0, 0, 0);
	}
	return r < 0 ? -errno : 0;
}

/* With all signals blocked, which the thread inherits: they are for others. */
static int start(struct psc_park *park)
{
	int flags = CLONE_VM | CLONE_FS | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
	sigset_t all, before;
	int r;

	prepare(park);
	if (getrandom(&park->message.token, sizeof(park->message.token), 0) != sizeof(park->message.token))
		return -EIO;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = clone(be_parked, park->stacks[0] + STACK_SIZE, flags, park, &park->tid, NULL, &park->tid) < 0 ? -errno : 0;
	while (r == 0 && park->progress == STARTING)
		raw(SYS_futex, (long)&park->progress, FUTEX_WAIT_PRIVATE, STARTING, 0);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return r < 0 ? r : park->error;
}

/* ----------------------------------------------------------------- fork, end */

static void before_fork(void)
{
	pthread_mutex_lock(&lock);
}

static void after_fork(void)
{
	pthread_mutex_unlock(&lock);
}

/* Threads are not inherited. A child that cannot park again would be unfiltered for
 * ever without anybody's knowledge: it ends. With a deadline it need not be announced. */
static void in_child(void)
{
	for (struct psc_park *park = parks; park; park = park->next) {
		bool was_parked = park->tid != 0 && !park->canceled;

		if (was_parked && (start(park) < 0 || (announce(park) < 0 && park->deadline <= 0)))
			raw(SYS_kill, getpid(), SIGKILL, 0, 0);
	}
	pthread_mutex_unlock(&lock);
}

static void watch_forks(void)
{
	pthread_atfork(before_fork, after_fork, in_child);
}

static void release(struct psc_park *park)
{
	psc_page_unmap(park->page);
	free(park->insns);
	if (park->channel >= 0)
		close(park->channel);
	munmap(park, sizeof(*park));
}

int psc_park_start(const struct psc_park_options *options, struct psc_park **ret_park)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct psc_park *park;
	int r;

	if (options->len == 0 || options->len > PSC_MAX_INSNS)
		return -EINVAL;
	pthread_once(&once, watch_forks);
	psc_signal_tick_forbid(); /* the filter can come into force at any moment from now on */
	park = mmap(NULL, sizeof(*park), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (park == MAP_FAILED)
		return -errno;
	park->channel = fcntl(options->channel, F_DUPFD_CLOEXEC, 3);
	r = park->channel < 0 ? -errno : psc_page_map(options->fd, &park->page);
	park->insns = malloc(options->len * sizeof(*park->insns));
	if (r == 0 && !park->insns)
		r = -ENOMEM;
	if (r < 0) {
		release(park);
		return r;
	}
	memcpy(park->insns, options->insns, options->len * sizeof(*park->insns));
	park->program = (struct sock_fprog){ (unsigned short)options->len, park->insns };
	park->flags = options->flags | SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
	park->no_new_privs = options->no_new_privs;
	park->deadline = options->deadline;
	park->kill = options->kill;
	park->slot = options->slot;
	pthread_mutex_lock(&lock);
	r = rehearse();
	if (r == 0)
		r = start(park);
	if (r == 0)
		r = announce(park);
	if (r == 0) {
		park->next = parks;
		parks = park;
	}
	pthread_mutex_unlock(&lock);
	if (r < 0) {
		psc_park_end(park);
		return r;
	}
	*ret_park = park;
	return 0;
}

/* It ends after the thread, whose end wakes one waiter: the helper. */
static void wait_for_helper(struct psc_park *park)
{
	int32_t seen;

	while ((seen = park->helper) != 0)
		raw(SYS_futex, (long)&park->helper, FUTEX_WAIT, seen, 0);
}

enum psc_park_state psc_park_state_of(const struct psc_park *park)
{
	if (park->tried)
		return PSC_PARK_APPLIED;
	return park->tid != 0 && park->owner == getpid() ? PSC_PARK_WAITING : PSC_PARK_LOST;
}

int psc_park_wake(const struct psc_page *page, int channel, int pidfd, int timeout_ms)
{
	struct pollfd fds[] = { { channel, POLLIN, 0 }, { pidfd, POLLIN, 0 } };
	int r;

	psc_page_ring(page);
	r = poll(fds, psc_array_size(fds), timeout_ms);
	return r < 0 ? -errno : r > 0;
}

int psc_park_result(const struct psc_park *park)
{
	return park->tried ? park->message.result : -EAGAIN;
}

void psc_park_end(struct psc_park *park)
{
	pthread_mutex_lock(&lock);
	for (struct psc_park **at = &parks; *at; at = &(*at)->next)
		if (*at == park) {
			*at = park->next;
			break;
		}
	pthread_mutex_unlock(&lock);
	park->canceled = true;
	raw(SYS_futex, (long)psc_page_bell(park->page), FUTEX_WAKE, INT32_MAX, 0);
	wait_for_helper(park);
	release(park);
}
