/* features.c - what works here, found by doing it.
 *
 * Version numbers lie (back-ports, containers, LSMs, sysctls), so each feature is
 * tried. A trial can leave a filter behind, or die of one that a container has
 * put above us; hence each runs in a child:
 *
 *	caller --clone(0)--> probe child --clone(0 or CLONE_FILES)--> target
 *	   \___ pipe, 5 s ______/
 *
 * Both are cloned without an exit signal: no SIGCHLD, invisible to every wait()
 * of the program but one with __WALL; and they die with their parent. After such
 * a clone only raw system calls and code without locks may run. A target that
 * shares the probe's fd table hands over its listener by its mere number.
 */
#define _GNU_SOURCE 1
#include "psc.h"
#include "internal.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/futex.h>
#include <linux/ptrace.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS /* Linux 6.6 */
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif
#define SYNC_WAKE_UP 1ul
#define PIDFD_THREAD_FLAG O_EXCL /* Linux 6.9 */
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

#define DEADLINE_MS 5000
#define DIED_OF(signal) (-(4096 + (signal))) /* returned by a probe whose target was killed */
#define ANSWER 12345 /* what a notified getpgid(0) is told */

/* Exit codes of a notified target. */
enum { TARGET_ANSWERED = 10, TARGET_CONTINUED, TARGET_OTHER };

/* ----------------------------------------------------------------- children */

static void leave(int code)
{
	for (;;)
		syscall(SYS_exit_group, code);
}

/* Clone; in the child see to it that it dies with its parent. */
static pid_t spawn(unsigned long flags)
{
	pid_t parent = syscall(SYS_getpid);
	pid_t pid = psc_syscall(SYS_clone, flags, NULL, NULL, NULL, NULL);

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			leave(1);
	}
	return pid;
}

/* The exit code, or -signal. */
static int reap(pid_t pid)
{
	siginfo_t info;

	while (waitid(P_PID, pid, &info, WEXITED | __WALL) < 0)
		if (errno != EINTR)
			return TARGET_OTHER;
	return info.si_code == CLD_EXITED ? info.si_status : -info.si_status;
}

static void kill_and_reap(pid_t pid)
{
	kill(pid, SIGKILL);
	reap(pid);
}

/* A target that does nothing until it is killed. */
static pid_t spawn_sleeper(void)
{
	pid_t pid = spawn(0);

	while (pid == 0)
		poll(NULL, 0, -1);
	return pid;
}

/* ------------------------------------------------------------------ filters */

static long load(unsigned int flags, struct sock_filter *insns, unsigned short len)
{
	struct sock_fprog program = { .len = len, .filter = insns };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	return psc_syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

static long load_allow(unsigned int flags)
{
	struct sock_filter insns[] = { BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };

	return load(flags, insns, psc_array_size(insns));
}

static long load_notify_getpgid(unsigned int flags)
{
	struct sock_filter insns[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpgid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};

	return load(SECCOMP_FILTER_FLAG_NEW_LISTENER | flags, insns, psc_array_size(insns));
}

static int probe_filter(int64_t *ret_value)
{
	return load_allow(0);
}

static int probe_unprivileged(int64_t *ret_value)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[2] = { 0 };

	if (syscall(SYS_capset, &header, none) < 0)
		return -errno;
	return load_allow(0);
}

static int probe_filter_count(int64_t *ret_value)
{
	struct psc_task_state task;
	int r = load_allow(0);

	if (r < 0)
		return r;
	r = psc_query_thread(getpid(), getpid(), &task);
	if (r < 0)
		return r;
	*ret_value = task.filters;
	return task.filters > 0 ? 0 : -EOPNOTSUPP;
}

static int probe_log(int64_t *ret_value)
{
	uint32_t action = SECCOMP_RET_LOG;
	long r = psc_syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action);

	return r < 0 ? r : load_allow(SECCOMP_FILTER_FLAG_LOG);
}

static int probe_tsync(int64_t *ret_value)
{
	return load_allow(SECCOMP_FILTER_FLAG_TSYNC);
}

static int probe_tsync_esrch(int64_t *ret_value)
{
	long r = load_notify_getpgid(SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_TSYNC_ESRCH);

	return r < 0 ? r : 0;
}

static int probe_wait_killable(int64_t *ret_value)
{
	long r = load_notify_getpgid(SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV);

	return r < 0 ? r : 0;
}

/* ------------------------------------------------------------ notifications */

/* A target with a listener in our fd table, about to make the notified call. */
struct watched {
	pid_t target;
	int listener;
};

static void be_watched(int report)
{
	long own = syscall(SYS_getpgid, 0);
	int listener = load_notify_getpgid(0);
	long answer;

	if (write(report, &listener, sizeof(listener)) != sizeof(listener) || listener < 0)
		leave(TARGET_OTHER);
	answer = syscall(SYS_getpgid, 0);
	leave(answer == ANSWER ? TARGET_ANSWERED : answer == own ? TARGET_CONTINUED : TARGET_OTHER);
}

/* Wait for the target's report or its end: the shared fd table keeps the pipe's
 * writing end open here, so the end of the target is no end of file. */
static bool has_report(pid_t pid, int report)
{
	struct pollfd p = { .fd = report, .events = POLLIN };
	siginfo_t info = { 0 };

	while (poll(&p, 1, 1) == 0 && info.si_pid == 0)
		if (waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT | __WALL) < 0)
			break;
	return poll(&p, 1, 0) == 1;
}

static int watch(struct watched *ret)
{
	int report[2], listener = -EIO;
	pid_t pid;

	if (pipe2(report, O_CLOEXEC) < 0)
		return -errno;
	pid = spawn(CLONE_FILES);
	if (pid == 0)
		be_watched(report[1]);
	if (pid < 0)
		return pid;
	if (!has_report(pid, report[0])) {
		int end = reap(pid);

		return end < 0 ? DIED_OF(-end) : -EIO;
	}
	if (read(report[0], &listener, sizeof(listener)) != sizeof(listener) || listener < 0) {
		reap(pid);
		return listener;
	}
	ret->target = pid;
	ret->listener = listener;
	return 0;
}

/* The kernel's structures may be larger than those of our headers. */
union notification {
	struct seccomp_notif n;
	char room[512];
};
union response {
	struct seccomp_notif_resp r;
	char room[512];
};

static int receive(int listener, union notification *ret)
{
	memset(ret, 0, sizeof(*ret));
	return ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, ret) < 0 ? -errno : 0;
}

static int answer(int listener, uint64_t id, int64_t value, uint32_t flags)
{
	union response response = { .r = { .id = id, .val = value, .flags = flags } };

	return ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response) < 0 ? -errno : 0;
}

/* Receive the one call, answer it with value and flags, see how the target fared. */
static int serve_one(int64_t value, uint32_t flags, int expected)
{
	union notification got;
	struct watched w;
	int r = watch(&w);

	if (r < 0)
		return r;
	r = receive(w.listener, &got);
	if (r == 0)
		r = answer(w.listener, got.n.id, value, flags);
	if (r < 0) {
		kill_and_reap(w.target);
		return r;
	}
	return reap(w.target) == expected ? 0 : -EPROTO;
}

static int probe_notify(int64_t *ret_value)
{
	return serve_one(ANSWER, 0, TARGET_ANSWERED);
}

static int probe_continue(int64_t *ret_value)
{
	return serve_one(0, SECCOMP_USER_NOTIF_FLAG_CONTINUE, TARGET_CONTINUED);
}

static int add_fd(uint32_t flags)
{
	union notification got;
	struct watched w;
	int r = watch(&w);

	if (r < 0)
		return r;
	r = receive(w.listener, &got);
	if (r == 0) {
		struct seccomp_notif_addfd add = {
			.id = got.n.id,
			.flags = flags,
			.srcfd = w.listener,
			.newfd_flags = O_CLOEXEC,
		};

		r = ioctl(w.listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add) < 0 ? -errno : 0;
	}
	kill_and_reap(w.target);
	return r;
}

static int probe_addfd(int64_t *ret_value)
{
	return add_fd(0);
}

static int probe_addfd_send(int64_t *ret_value)
{
	return add_fd(SECCOMP_ADDFD_FLAG_SEND);
}

static int probe_sync_wake_up(int64_t *ret_value)
{
	long listener = load_notify_getpgid(0);

	if (listener < 0)
		return listener;
	return ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP) < 0 ? -errno : 0;
}

static int probe_listener_ends(int64_t *ret_value)
{
	struct watched w;
	struct pollfd p;
	siginfo_t info;
	int r = watch(&w);

	if (r < 0)
		return r;
	kill(w.target, SIGKILL);
	if (waitid(P_PID, w.target, &info, WEXITED | WNOWAIT | __WALL) < 0)
		return -errno;
	p = (struct pollfd){ .fd = w.listener, .events = POLLIN };
	r = poll(&p, 1, 0);
	reap(w.target);
	return r > 0 && (p.revents & POLLHUP) ? 0 : -EOPNOTSUPP;
}

/* ------------------------------------------------------------------- pidfds */

static int probe_pidfd_open(int64_t *ret_value)
{
	long fd = psc_syscall(SYS_pidfd_open, getpid(), 0);

	return fd < 0 ? fd : 0;
}

static int probe_pidfd_thread(int64_t *ret_value)
{
	long fd = psc_syscall(SYS_pidfd_open, gettid(), PIDFD_THREAD_FLAG);

	return fd < 0 ? fd : 0;
}

static int probe_pidfd_getfd(int64_t *ret_value)
{
	int own[2];
	pid_t target;
	long r;

	if (pipe2(own, O_CLOEXEC) < 0)
		return -errno;
	target = spawn_sleeper();
	if (target < 0)
		return target;
	r = psc_syscall(SYS_pidfd_open, target, 0);
	if (r >= 0)
		r = psc_syscall(SYS_pidfd_getfd, r, own[0], 0);
	kill_and_reap(target);
	return r < 0 ? r : 0;
}

/* ------------------------------------------------------------------- ptrace */

static long trace(long request, pid_t pid, long address, long data)
{
	return psc_syscall(SYS_ptrace, request, pid, address, data);
}

static int seize_and_stop(pid_t pid, long options)
{
	siginfo_t info;
	long r = trace(PTRACE_SEIZE, pid, 0, options);

	if (r == 0)
		r = trace(PTRACE_INTERRUPT, pid, 0, 0);
	if (r < 0)
		return r;
	if (waitid(P_PID, pid, &info, WSTOPPED | __WALL) < 0)
		return -errno;
	return info.si_code == CLD_TRAPPED && info.si_status >> 8 == PTRACE_EVENT_STOP ? 0 : -EPROTO;
}

static int probe_ptrace(long options)
{
	pid_t target = spawn_sleeper();
	int r;

	if (target < 0)
		return target;
	r = seize_and_stop(target, options);
	if (r == 0)
		r = trace(PTRACE_DETACH, target, 0, 0);
	kill_and_reap(target);
	return r;
}

static int probe_ptrace_child(int64_t *ret_value)
{
	return probe_ptrace(0);
}

static int probe_suspend_seccomp(int64_t *ret_value)
{
	return probe_ptrace(PTRACE_O_SUSPEND_SECCOMP);
}

/* YAMA lets a descendant be traced in its mode 1: ask a sibling to do it. */
static int probe_ptrace_other(int64_t *ret_value)
{
	pid_t target = spawn_sleeper(), sibling;
	int code;

	if (target < 0)
		return target;
	sibling = spawn(0);
	if (sibling == 0)
		leave(-seize_and_stop(target, 0));
	code = sibling < 0 ? -sibling : reap(sibling);
	kill_and_reap(target);
	return code < 0 ? DIED_OF(-code) : -code;
}

static int probe_get_filter(int64_t *ret_value)
{
	struct watched w;
	long r = watch(&w);

	if (r < 0)
		return r;
	r = seize_and_stop(w.target, 0);
	if (r == 0)
		r = trace(PTRACE_SECCOMP_GET_FILTER, w.target, 0, 0);
	kill_and_reap(w.target);
	if (r < 0)
		return r;
	*ret_value = r;
	return 0;
}

/* Write to an executable page of ours in the target the byte that is there. */
static int touch_text(pid_t target)
{
	const uint8_t *text = (const uint8_t *)(uintptr_t)touch_text;
	_cleanup_close_ int fd = -1;
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/mem", target);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	return pwrite(fd, text, 1, (off_t)(uintptr_t)text) == 1 ? 0 : -errno;
}

static int probe_proc_mem(int64_t *ret_value)
{
	pid_t target = spawn_sleeper();
	int r;

	if (target < 0)
		return target;
	r = touch_text(target);
	*ret_value = 1;
	if (r < 0) {
		r = seize_and_stop(target, 0);
		if (r == 0)
			r = touch_text(target);
		*ret_value = 2;
	}
	kill_and_reap(target);
	return r;
}

/* --------------------------------------------------------------- other ones */

static int probe_capability(unsigned int capability)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = { 0 };

	if (syscall(SYS_capget, &header, data) < 0)
		return -errno;
	return data[capability / 32].effective & (1u << capability % 32) ? 0 : -EPERM;
}

static int probe_cap_sys_admin(int64_t *ret_value)
{
	return probe_capability(CAP_SYS_ADMIN);
}

static int probe_cap_sys_ptrace(int64_t *ret_value)
{
	return probe_capability(CAP_SYS_PTRACE);
}

static int probe_memfd_seals(int64_t *ret_value)
{
	const int seals = F_SEAL_FUTURE_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL;
	long page = sysconf(_SC_PAGESIZE);
	int fd = memfd_create("psc-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	volatile uint32_t *writable, *readable;

	if (fd < 0 || ftruncate(fd, page) < 0)
		return -errno;
	writable = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (writable == MAP_FAILED || fcntl(fd, F_ADD_SEALS, seals) < 0)
		return -errno;
	if (mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED)
		return -EPROTO;
	readable = mmap(NULL, page, PROT_READ, MAP_SHARED, fd, 0);
	if (readable == MAP_FAILED)
		return -errno;
	*writable = 1;
	/* EAGAIN, "the word is not 0", shows that a futex may wait on that page. */
	if (*readable != 1 || psc_syscall(SYS_futex, readable, FUTEX_WAIT, 0, NULL, NULL, 0) != -EAGAIN)
		return -EPROTO;
	return 0;
}

static int probe_i386(int64_t *ret_value)
{
#ifdef __x86_64__
	long r = 20; /* getpid of i386 */

	__asm__ volatile("int $0x80" : "+a"(r) : : "r8", "r9", "r10", "r11", "memory");
	return r == getpid() ? 0 : -ENOSYS;
#else
	return -EOPNOTSUPP;
#endif
}

static int probe_x32(int64_t *ret_value)
{
#ifdef __x86_64__
	long r = psc_syscall(0x40000000 + SYS_getpid);

	return r == getpid() ? 0 : r < 0 ? r : -ENOSYS;
#else
	return -EOPNOTSUPP;
#endif
}

static int (*const probes[PSC_FEATURE_COUNT])(int64_t *ret_value) = {
	[PSC_FEATURE_FILTER] = probe_filter,
	[PSC_FEATURE_UNPRIVILEGED] = probe_unprivileged,
	[PSC_FEATURE_FILTER_COUNT] = probe_filter_count,
	[PSC_FEATURE_LOG] = probe_log,
	[PSC_FEATURE_TSYNC] = probe_tsync,
	[PSC_FEATURE_TSYNC_ESRCH] = probe_tsync_esrch,
	[PSC_FEATURE_NOTIFY] = probe_notify,
	[PSC_FEATURE_CONTINUE] = probe_continue,
	[PSC_FEATURE_ADDFD] = probe_addfd,
	[PSC_FEATURE_ADDFD_SEND] = probe_addfd_send,
	[PSC_FEATURE_WAIT_KILLABLE] = probe_wait_killable,
	[PSC_FEATURE_SYNC_WAKE_UP] = probe_sync_wake_up,
	[PSC_FEATURE_LISTENER_ENDS] = probe_listener_ends,
	[PSC_FEATURE_PIDFD_OPEN] = probe_pidfd_open,
	[PSC_FEATURE_PIDFD_GETFD] = probe_pidfd_getfd,
	[PSC_FEATURE_PIDFD_THREAD] = probe_pidfd_thread,
	[PSC_FEATURE_PTRACE_CHILD] = probe_ptrace_child,
	[PSC_FEATURE_PTRACE_OTHER] = probe_ptrace_other,
	[PSC_FEATURE_CAP_SYS_ADMIN] = probe_cap_sys_admin,
	[PSC_FEATURE_CAP_SYS_PTRACE] = probe_cap_sys_ptrace,
	[PSC_FEATURE_SUSPEND_SECCOMP] = probe_suspend_seccomp,
	[PSC_FEATURE_GET_FILTER] = probe_get_filter,
	[PSC_FEATURE_PROC_MEM] = probe_proc_mem,
	[PSC_FEATURE_MEMFD_SEALS] = probe_memfd_seals,
	[PSC_FEATURE_I386] = probe_i386,
	[PSC_FEATURE_X32] = probe_x32,
};

/* ------------------------------------------------------------------- runner */

static void be_probe(enum psc_feature feature, int report)
{
	struct psc_probe result = { 0 };
	int r = probes[feature](&result.value);

	if (r <= DIED_OF(0))
		result.signal = DIED_OF(0) - r;
	else
		result.error = r < 0 ? -r : 0;
	leave(write(report, &result, sizeof(result)) != sizeof(result));
}

/* The probe's own word, or else what ended it. */
static void collect(pid_t pid, int report, struct psc_probe *ret_probe)
{
	struct psc_probe result = { 0 };
	struct pollfd p = { .fd = report, .events = POLLIN };
	bool late = poll(&p, 1, DEADLINE_MS) == 0;
	ssize_t n = late ? 0 : read(report, &result, sizeof(result));
	int end;

	if (late)
		kill(pid, SIGKILL);
	end = reap(pid);
	if (n != sizeof(result))
		result = (struct psc_probe){
			.error = late ? ETIMEDOUT : end >= 0 ? EIO : 0,
			.signal = late || end >= 0 ? 0 : -end,
		};
	*ret_probe = result;
}

int psc_feature_probe(enum psc_feature feature, struct psc_probe *ret_probe)
{
	int report[2];
	sigset_t all, before;
	pid_t pid;

	if ((unsigned int)feature >= PSC_FEATURE_COUNT)
		return -EINVAL;
	if (pipe2(report, O_CLOEXEC) < 0)
		return -errno;
	/* The child must not run the program's handlers, nor a poll here end early. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pid = spawn(0);
	if (pid == 0)
		be_probe(feature, report[1]);
	close(report[1]);
	if (pid > 0)
		collect(pid, report[0], ret_probe);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	close(report[0]);
	return pid < 0 ? pid : 0;
}
