/* gate.c - the inactive listener: a program in the kernel that asks, and who answers.
 *
 * The invariant: from the first gated call on somebody answers. The server is a
 * process that shares our memory and descriptors (clone without CLONE_THREAD), on
 * the thread-local storage of a thread of ours that only waits for it:
 *   - TSYNC on our own threads does not reach it, so it can answer ourselves;
 *   - it needs no lock that a trapped thread can hold: it neither allocates nor
 *     uses stdio, and what is changed for it, it changes itself, by command;
 *   - it ends with us (PDEATHSIG; where that is refused it looks every TICK_MS), the
 *     listener is closed with it, and the kernel answers ENOSYS to what is gated:
 *     closed, not open.
 *
 * Its twin, the heir, only sleeps. When we are dead it closes all descriptors but
 * those of guarded gates, activates these and serves them on, the notification that
 * the server had just taken first: both know it by memory that outlives us. It takes
 * no lock, for its owner may have died with it.
 *
 * One server answers one notification after the other, and looks at the gate word
 * for each. A call whose answer was decided before the store is the one in flight;
 * all that are decided later get the program's answer. A trigger is stored after
 * its call was let run, by the server itself, hence every call that is received
 * after the trigger finds the gate active.
 */
#define _GNU_SOURCE
#include "inbox.h"
#include "tracee.h"
#include "trap.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#define STACK_SIZE (256 * 1024)
#define MAX_ERRNO 4095
#define MAX_HANDED 1024
#define COMMANDS UINT32_MAX /* in epoll */
#define TICK_MS 50
#define IDLE_S 1 /* the standby looks at least so often */
#define MAX_CLOSED (1U << 20)
#define FULL_MS 1 /* the user does not keep up: look again */
#define NOT_YET INT32_MIN
#define TAKEN (INT32_MIN + 1)

/* ---------------------------------------------------------------- programs */

static bool is_return(const struct sock_filter *insn)
{
	return BPF_CLASS(insn->code) == BPF_RET;
}

static const char *not_to_be_gated(const struct sock_filter *insn)
{
	if (insn->code != (BPF_RET | BPF_K))
		return "it returns a computed answer, which cannot be turned into a question";
	switch (insn->k & SECCOMP_RET_ACTION_FULL) {
	case SECCOMP_RET_TRACE:
		return "it answers TRACE, which only a tracer of the task can give";
	default:
		return NULL;
	}
}

static size_t emit_triggers(const struct psc_gate_trigger *triggers, size_t n, struct sock_filter *out)
{
	size_t at = 0;

	if (n == 0)
		return 0;
	for (size_t i = 0; i < n; i++) {
		out[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
		out[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, triggers[i].arch, 0, 3);
		out[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
		out[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)triggers[i].nr, 0, 1);
		out[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
	}
	/* A program begins with a zero accumulator. */
	out[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_IMM, 0);
	return at;
}

int psc_gate_program(const struct sock_filter *insns, size_t len, const struct psc_gate_trigger *triggers,
		     size_t n_triggers, struct sock_filter *ret_insns, size_t *ret_len, struct psc_program_fault *ret_fault)
{
	size_t before, gated = 0;

	if (n_triggers > PSC_MAX_GATE_TRIGGERS || len + n_triggers * 5 + 1 > PSC_MAX_INSNS)
		return -E2BIG;
	before = emit_triggers(triggers, n_triggers, ret_insns);
	for (size_t i = 0; i < len; i++) {
		uint32_t action = insns[i].k & SECCOMP_RET_ACTION_FULL;
		struct sock_filter *out = &ret_insns[before + i];
		const char *reason;

		*out = insns[i];
		if (!is_return(out))
			continue;
		reason = not_to_be_gated(out);
		if (reason) {
			if (ret_fault)
				*ret_fault = (struct psc_program_fault){ i, reason };
			return -EOPNOTSUPP;
		}
		if (action == SECCOMP_RET_ALLOW || action == SECCOMP_RET_LOG)
			continue;
		out->k = SECCOMP_RET_USER_NOTIF;
		gated++;
	}
	if (gated == 0)
		return -ENODATA;
	*ret_len = before + len;
	return 0;
}

size_t psc_gate_hard_program(const struct sock_filter *insns, size_t len, struct sock_filter *ret_insns)
{
	size_t kept = 0;

	for (size_t i = 0; i < len; i++) {
		uint32_t action = insns[i].k & SECCOMP_RET_ACTION_FULL;

		ret_insns[i] = insns[i];
		if (!is_return(&insns[i]))
			continue;
		if (action == SECCOMP_RET_USER_NOTIF)
			ret_insns[i].k = SECCOMP_RET_ALLOW;
		else if (action != SECCOMP_RET_ALLOW)
			kept++;
	}
	return kept;
}

/* ----------------------------------------------------------------- answers */

struct gated {
	int fd;
	unsigned int slot;
	bool served;
	bool stuck; /* its last notification waits for room in the user's inbox, and its callers behind it */
	union psc_notif kept;
	struct psc_gate_care care;
	struct psc_event route; /* to the user's inbox */
	size_t n_triggers;
	struct psc_gate_trigger triggers[PSC_MAX_GATE_TRIGGERS];
};

/* A notification that is still to be answered, and its listener. */
struct taken {
	int fd;
	struct psc_answer answer;
	union psc_notif notif;
};

struct judge {
	struct psc_page *page;
	const struct sock_filter *insns;
	size_t len;
	struct psc_inbox *inbox; /* NULL: the user's calls fail with ENOSYS */
	struct taken *now;    /* what is being answered */
	struct taken *handed; /* what guarded gates handed to the user, some of it answered meanwhile; or NULL */
	size_t n_handed;
};

/* The thread group of a task, without stdio: see the head of the file. */
static pid_t thread_group(pid_t tid)
{
	struct psc_task_state task;
	char text[8192], path[32];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/status", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -ESRCH;
	n = read(fd, text, sizeof(text));
	close(fd);
	return n <= 0 || psc_query_parse_status(text, (size_t)n, &task) < 0 ? -ESRCH : task.pid;
}

/* SIGKILL to the whole process; who may not be killed is denied. */
static int kill_caller(int fd, const struct seccomp_notif *n)
{
	pid_t tgid = n->pid ? thread_group((pid_t)n->pid) : -ESRCH;
	int pidfd = tgid > 0 ? (int)psc_syscall(SYS_pidfd_open, tgid, 0) : -ESRCH;
	int r = psc_notify_valid(fd, n->id); /* only now is the pidfd proved to be its */

	if (r == 0)
		r = pidfd < 0 ? pidfd : (int)psc_syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
	psc_close_fd(&pidfd);
	return r < 0 && r != -ENOENT ? psc_notify_error(fd, n->id, EPERM) : r;
}

static int answer_for_user(int fd, const struct psc_answer *answer, const union psc_notif *notif)
{
	return answer->kind == PSC_HOLD ? psc_notify_error(fd, notif->n.id, ENOSYS) : psc_notify_answer(fd, &notif->n, answer);
}

/* For the standby. Full: what was answered is forgotten. -EAGAIN: nothing was. */
static int remember(struct judge *judge, const struct gated *gated, const union psc_notif *notif)
{
	size_t kept = 0;

	if (judge->n_handed == MAX_HANDED) {
		for (size_t i = 0; i < MAX_HANDED; i++)
			if (psc_notify_valid(judge->handed[i].fd, judge->handed[i].notif.n.id) == 0)
				judge->handed[kept++] = judge->handed[i];
		judge->n_handed = kept;
		if (kept == MAX_HANDED)
			return -EAGAIN;
	}
	judge->handed[judge->n_handed] = (struct taken){ gated->fd, gated->care.answer, *notif };
	judge->n_handed++;
	return 0;
}

/* -EAGAIN: the user does not keep up, so its callers wait. Callers of other gates do not. */
static int hand_on(struct judge *judge, const struct gated *gated, const union psc_notif *notif)
{
	bool guarded = gated->care.guarded && judge->handed;
	int r = 0;

	if (!judge->inbox)
		return answer_for_user(gated->fd, &gated->care.answer, notif);
	if (guarded)
		r = remember(judge, gated, notif);
	if (r == 0)
		r = psc_inbox_feed(judge->inbox, &gated->route, notif) < 0 ? -EAGAIN : 0;
	if (r < 0 && guarded && judge->n_handed && judge->handed[judge->n_handed - 1].notif.n.id == notif->n.id)
		judge->n_handed--;
	return r;
}

/* Where SIGSYS cannot be handled the kernel kills. Who cannot be traced is denied. */
static int trap_caller(int fd, const struct seccomp_notif *n, uint32_t data)
{
	int r = psc_trap(fd, n, data);

	if (r == -EADDRINUSE)
		return kill_caller(fd, n);
	return r < 0 ? psc_notify_error(fd, n->id, EPERM) : r;
}

static int answer_as_program(struct judge *judge, const struct gated *gated, const union psc_notif *notif)
{
	uint32_t ret = SECCOMP_RET_KILL_PROCESS, data;
	struct psc_decision decision;

	if (psc_program_run(judge->insns, judge->len, &notif->n.data, &decision) == 0)
		ret = decision.ret;
	data = ret & SECCOMP_RET_DATA;
	switch (ret & SECCOMP_RET_ACTION_FULL) {
	case SECCOMP_RET_ALLOW:
	case SECCOMP_RET_LOG:
		return psc_notify_continue(gated->fd, notif->n.id);
	case SECCOMP_RET_ERRNO:
		if (data == 0)
			return psc_notify_value(gated->fd, notif->n.id, 0);
		return psc_notify_error(gated->fd, notif->n.id, data > MAX_ERRNO ? MAX_ERRNO : (int)data);
	case SECCOMP_RET_TRAP:
		return trap_caller(gated->fd, &notif->n, data);
	case SECCOMP_RET_USER_NOTIF:
		return hand_on(judge, gated, notif);
	default:
		return kill_caller(gated->fd, &notif->n);
	}
}

static bool triggers(const struct gated *gated, const struct seccomp_data *data)
{
	for (size_t i = 0; i < gated->n_triggers; i++)
		if (gated->triggers[i].arch == data->arch && gated->triggers[i].nr == data->nr)
			return true;
	return false;
}

/* -EAGAIN: not yet, see hand_on(). All else that fails is a call that is over. */
static int answer(struct judge *judge, const struct gated *gated, const union psc_notif *notif)
{
	enum psc_gate_state state = psc_page_state(judge->page, gated->slot);

	if (state == PSC_GATE_ACTIVE)
		return answer_as_program(judge, gated, notif);
	if (psc_notify_continue(gated->fd, notif->n.id) == 0 && state == PSC_GATE_INACTIVE &&
		 triggers(gated, &notif->n.data))
		psc_page_store(judge->page, gated->slot, PSC_GATE_ACTIVE);
	return 0;
}

/* What poll says is there is taken and answered. False: no task is left. */
static bool serve_one(struct judge *judge, struct gated *gated, bool pending)
{
	if (!pending)
		return false;
	judge->now->notif.n.id = 0;
	judge->now->fd = gated->fd;
	judge->now->answer = gated->care.answer;
	if (psc_notify_receive(gated->fd, &judge->now->notif) == 0 &&
	    answer(judge, gated, &judge->now->notif) == -EAGAIN && judge->inbox) {
		gated->kept = judge->now->notif;
		gated->stuck = true;
	}
	judge->now->notif.n.id = 0;
	return true;
}

static int set_triggers(struct gated *gated, const struct psc_gate_trigger *list, size_t n)
{
	if (n > PSC_MAX_GATE_TRIGGERS)
		return -EINVAL;
	gated->n_triggers = n;
	if (n)
		memcpy(gated->triggers, list, n * sizeof(*list));
	return 0;
}

/* ------------------------------------------------------------------ server */

enum order { ORDER_NOTHING, ORDER_STOP, ORDER_ADD, ORDER_INSTALL, ORDER_REMOVE };

struct psc_gate {
	struct judge judge;
	struct sock_filter *insns;
	pid_t owner;
	pthread_t keeper;
	_Atomic pid_t keeper_tid;
	_Atomic pid_t server_tid; /* the kernel clears it, and wakes, at the end of the server */
	_Atomic bool has_heir;
	_Atomic int start_error;
	bool looks;   /* the server: no signal tells it of our death */
	bool polling; /* epoll was refused */
	char *stack; /* the server's, then the heir's */
	struct taken now, handed[MAX_HANDED];
	int epoll, bell;

	pthread_mutex_t lock; /* of those who give orders */
	_Atomic uint32_t given, done;
	enum order order;
	struct gated *subject;
	int added; /* 0 or -errno of the last one, which may have ended since */
	_Atomic int installed;
	_Atomic bool stopping;
	_Atomic bool ending;	  /* the standby, too: all that is served is closed */
	_Atomic bool leaving;	  /* we live on, but the standby is to act as at our death */
	_Atomic int left; /* NOT_YET; then 0, or why it could not */

	struct gated *gated[PSC_GATE_SLOTS];
	struct pollfd polled[PSC_GATE_SLOTS + 1];
};

static void nap_ms(int ms)
{
	const struct timespec nap = { 0, ms * 1000000L };

	psc_sys(SYS_nanosleep, &nap, 0);
}

/* An exec of the manager ends the keeper as well. */
static bool manager_lives(const struct psc_gate *gate)
{
	return psc_sys(SYS_getppid) == gate->owner && psc_sys(SYS_tgkill, gate->owner, gate->keeper_tid, 0) == 0;
}

/* In the server, when it has taken the order to await a listener: whoever installs
 * may not be able to make another call until it is answered. */
static void await_listener(struct psc_gate *gate)
{
	const struct timespec nap = { 0, 20000 };

	while (gate->installed == NOT_YET) {
		nanosleep(&nap, NULL);
		if (gate->looks && !manager_lives(gate))
			_exit(0);
	}
}

/* What epoll refuses for want of memory is served all the same, by poll(). */
static int watch(struct psc_gate *gate, struct gated *gated)
{
	struct epoll_event e = { .events = EPOLLIN };
	int r;

	while ((r = psc_notify_valid(gated->fd, 0)) == -EINTR)
		;
	if (r != -ENOENT) /* no listener */
		return r < 0 ? r : -ENOTTY;
	while (e.data.u32 < PSC_GATE_SLOTS && gate->gated[e.data.u32] != gated)
		e.data.u32++;
	(void)!psc_notify_sync_wakeup(gated->fd, true);
	psc_inbox_bind(gate->judge.inbox, &gated->route, gated->fd);
	if (epoll_ctl(gate->epoll, EPOLL_CTL_ADD, gated->fd, &e) < 0) {
		if (errno == EEXIST || errno == EBADF)
			return -errno;
		gate->polling = true;
	}
	gated->served = true;
	return 0;
}

static void unwatch(struct psc_gate *gate, struct gated *gated)
{
	if (!gated->served)
		return;
	gated->served = false;
	epoll_ctl(gate->epoll, EPOLL_CTL_DEL, gated->fd, NULL);
	psc_inbox_unreserve(gate->judge.inbox, &gated->route);
}

static void obey(struct psc_gate *gate)
{
	struct gated *subject = gate->subject;
	enum order order = gate->order;
	uint64_t count;

	(void)!read(gate->bell, &count, sizeof(count));
	if (gate->done == gate->given)
		return;
	if (order == ORDER_ADD) {
		gate->added = watch(gate, subject);
	} else if (order == ORDER_REMOVE) {
		unwatch(gate, subject);
	} else if (order == ORDER_STOP) {
		gate->stopping = true;
	}
	gate->done = gate->given;
	if (order != ORDER_INSTALL)
		return;
	await_listener(gate);
	if (gate->installed >= 0) {
		subject->fd = gate->installed;
		(void)!watch(gate, subject); /* a new listener: nothing that is left can fail */
	}
	gate->installed = TAKEN;
}

static void kill_target(const struct gated *gated)
{
	(void)!psc_sys(SYS_pidfd_send_signal, gated->care.pidfd, SIGKILL, 0, 0);
}

static void enforce(struct psc_gate *gate, struct gated *gated)
{
	gated->care.deadline = -1;
	if (psc_page_state(gate->judge.page, gated->slot) == PSC_GATE_ACTIVE)
		return;
	if (gated->care.kill)
		kill_target(gated);
	psc_page_store(gate->judge.page, gated->slot, PSC_GATE_ACTIVE);
}

/* Do what is due; milliseconds until the next is, -1: nothing will be. */
static int keep_deadlines(struct psc_gate *gate)
{
	int64_t now = psc_monotonic_ns(), next = -1;

	for (size_t i = 0; i < PSC_GATE_SLOTS; i++) {
		struct gated *gated = gate->gated[i];

		if (!gated || !gated->served || gated->care.deadline < 0)
			continue;
		if (gated->care.deadline <= now)
			enforce(gate, gated);
		else if (next < 0 || gated->care.deadline < next)
			next = gated->care.deadline;
	}
	if (next < 0)
		return -1;
	next = (next - now) / 1000000 + 1;
	return next < 1000000 ? (int)next : 1000000;
}

/* What a user that does not keep up left here goes on when there is room. Returns true while one waits. */
static bool retry_stuck(struct psc_gate *gate)
{
	bool waits = false;

	for (uint32_t i = 0; i < PSC_GATE_SLOTS; i++) {
		struct epoll_event e = { .events = EPOLLIN, .data.u32 = i };
		struct gated *gated = gate->gated[i];

		if (!gated || !gated->served || !gated->stuck)
			continue;
		if (answer(&gate->judge, gated, &gated->kept) == -EAGAIN) {
			waits = true;
			continue;
		}
		gated->stuck = false;
		epoll_ctl(gate->epoll, EPOLL_CTL_MOD, gated->fd, &e);
	}
	return waits;
}

static int poll_all(struct psc_gate *gate, struct epoll_event *ret_events, int size, int timeout)
{
	int n = 0;

	for (uint32_t i = 0; i < PSC_GATE_SLOTS; i++) {
		const struct gated *gated = gate->gated[i];

		gate->polled[i] = (struct pollfd){ gated && gated->served && !gated->stuck ? gated->fd : -1, POLLIN, 0 };
	}
	gate->polled[PSC_GATE_SLOTS] = (struct pollfd){ gate->bell, POLLIN, 0 };
	if (poll(gate->polled, psc_array_size(gate->polled), timeout) < 0) {
		if (errno != EINTR)
			nap_ms(1);
		return 0;
	}
	/* An order may be waiting, so the bell is not reported: the caller looks by itself. */
	for (uint32_t i = 0; i < PSC_GATE_SLOTS && n < size; i++)
		if (gate->polled[i].fd >= 0 && gate->polled[i].revents)
			ret_events[n++] = (struct epoll_event){ (uint32_t)gate->polled[i].revents, { .u32 = i } };
	return n;
}

static int wait_for_events(struct psc_gate *gate, struct epoll_event *ret_events, int size, int timeout)
{
	int n = gate->polling ? -1 : epoll_wait(gate->epoll, ret_events, size, timeout);

	if (n >= 0 || (!gate->polling && errno == EINTR))
		return n < 0 ? 0 : n;
	gate->polling = true;
	return poll_all(gate, ret_events, size, timeout);
}

static void serve_event(struct psc_gate *gate, const struct epoll_event *event)
{
	struct gated *gated = event->data.u32 == COMMANDS ? NULL : gate->gated[event->data.u32];
	struct epoll_event end = { .events = 0, .data = event->data };

	if (!gated || !gated->served || (gated->stuck && !(event->events & EPOLLHUP)))
		return;
	if (gated->stuck || !serve_one(&gate->judge, gated, event->events & EPOLLIN)) {
		gated->stuck = false;
		unwatch(gate, gated);
	} else if (gated->stuck) {
		epoll_ctl(gate->epoll, EPOLL_CTL_MOD, gated->fd, &end);
	}
}

static int sooner(int a, int b)
{
	return a < 0 || b < a ? b : a;
}

static void serve(struct psc_gate *gate)
{
	struct epoll_event events[16];

	while (!gate->stopping) {
		int timeout = keep_deadlines(gate), n;

		if (retry_stuck(gate))
			timeout = sooner(timeout, FULL_MS);
		if (gate->looks)
			timeout = sooner(timeout, TICK_MS);
		n = wait_for_events(gate, events, psc_array_size(events), timeout);
		if (gate->looks && !manager_lives(gate))
			return;
		for (int i = 0; i < n; i++)
			serve_event(gate, &events[i]);
		if (gate->done != gate->given)
			obey(gate);
	}
}

/* The server before this one was killed: what it had taken is answered. */
static void answer_unfinished(struct psc_gate *gate)
{
	struct judge *judge = &gate->judge;

	for (size_t i = 0; judge->now->notif.n.id && i < PSC_GATE_SLOTS; i++) {
		struct gated *gated = gate->gated[i];

		if (!gated || !gated->served || gated->stuck || gated->fd != judge->now->fd ||
		    psc_notify_valid(gated->fd, judge->now->notif.n.id) < 0)
			continue;
		gated->kept = judge->now->notif;
		gated->stuck = true; /* the loop does it first */
	}
	judge->now->notif.n.id = 0;
}

static int server(void *arg)
{
	struct psc_gate *gate = arg;

	gate->looks = prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0;
	if (manager_lives(gate)) {
		setsid();
		answer_unfinished(gate);
		serve(gate);
	}
	_exit(0);
}

/* -------------------------------------------------------------------- heir */

/* Without a descriptor, of which there may be none. The number only tells that it is over. */
static void await_end_of_server(struct psc_gate *gate)
{
	const struct timespec look = { 1, 0 };
	pid_t tid;

	while ((tid = gate->server_tid) != 0)
		if (psc_sys(SYS_futex, &gate->server_tid, FUTEX_WAIT, tid, &look) == -ETIMEDOUT &&
		    psc_sys(SYS_tgkill, tid, tid, 0) == -ESRCH)
			return;
}

/* An exec of the manager ends its threads before it parts from the table of descriptors: until
 * then what is closed in it is closed in the new program. Where a policy refuses unshare(), the
 * table of a manager that is dead is ours alone, and that of one that executes soon is. */
static int part_from_manager(struct psc_gate *gate)
{
	long r = psc_sys(SYS_unshare, CLONE_FILES), own = psc_sys(SYS_getpid);

	for (int i = 0; r == -ENOMEM && i < 100; i++) {
		nap_ms(10);
		r = psc_sys(SYS_unshare, CLONE_FILES);
	}
	if (r == 0 || gate->leaving)
		return (int)r;
	for (int i = 0; i < 100 && psc_sys(SYS_getppid) == gate->owner; i++) {
		if (psc_sys(SYS_kcmp, gate->owner, own, KCMP_FILES, 0, 0) > 0)
			return 0;
		nap_ms(TICK_MS);
	}
	return psc_sys(SYS_getppid) == gate->owner ? (int)r : 0;
}

static void close_between(unsigned int first, unsigned int last)
{
	struct rlimit limit = { 0 };

	if (psc_sys(SYS_close_range, first, last, 0) == 0)
		return;
	psc_sys(SYS_prlimit64, 0, RLIMIT_NOFILE, 0, &limit);
	for (unsigned int fd = first; fd <= last && fd < limit.rlim_max && fd < MAX_CLOSED; fd++)
		psc_sys(SYS_close, fd);
}

static int keep_only(struct psc_gate *gate, struct pollfd *fds, size_t n)
{
	unsigned int from = 0;
	int r = part_from_manager(gate);

	if (r < 0)
		return r;
	for (;;) {
		unsigned int next = UINT32_MAX;

		for (size_t i = 0; i < n; i++)
			if ((unsigned int)fds[i].fd >= from && (unsigned int)fds[i].fd < next)
				next = (unsigned int)fds[i].fd;
		if (next > from)
			close_between(from, next - 1);
		if (next == UINT32_MAX)
			return 0;
		from = next + 1;
	}
}

/* What the dead had taken and not answered. */
static void answer_orphans(struct psc_gate *gate, struct gated **guarded, size_t n)
{
	struct judge *judge = &gate->judge;

	for (size_t i = 0; i < judge->n_handed; i++)
		if (psc_notify_valid(judge->handed[i].fd, judge->handed[i].notif.n.id) == 0)
			(void)!answer_for_user(judge->handed[i].fd, &judge->handed[i].answer, &judge->handed[i].notif);
	for (size_t i = 0; i < n; i++)
		if (guarded[i]->stuck && psc_notify_valid(guarded[i]->fd, guarded[i]->kept.n.id) == 0)
			(void)!answer(judge, guarded[i], &guarded[i]->kept);
	for (size_t i = 0; i < n; i++)
		if (judge->now->notif.n.id && judge->now->fd == guarded[i]->fd &&
		    psc_notify_valid(guarded[i]->fd, judge->now->notif.n.id) == 0)
			(void)!answer(judge, guarded[i], &judge->now->notif);
}

static void inherit(struct psc_gate *gate)
{
	struct pollfd fds[PSC_GATE_SLOTS];
	struct gated *guarded[PSC_GATE_SLOTS];
	size_t n = 0;

	for (size_t i = 0; i < PSC_GATE_SLOTS; i++) {
		struct gated *gated = gate->gated[i];

		if (!gated || !gated->care.guarded || gated->fd < 0)
			continue;
		if (gated->care.answer.kind == PSC_KILL)
			kill_target(gated);
		enforce(gate, gated);
		guarded[n] = gated;
		fds[n++] = (struct pollfd){ .fd = gated->fd, .events = POLLIN };
	}
	gate->judge.inbox = NULL;
	gate->left = keep_only(gate, fds, n);
	if (!gate->leaving) /* else the memory is that of a process that lives */
		prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	answer_orphans(gate, guarded, n);
	while (n > 0) {
		if (poll(fds, n, -1) < 0) {
			if (errno != EINTR)
				nap_ms(TICK_MS);
			continue;
		}
		for (size_t i = n; i-- > 0;)
			if (fds[i].revents && !serve_one(&gate->judge, guarded[i], fds[i].revents & POLLIN)) {
				close(fds[i].fd);
				fds[i] = fds[--n];
				guarded[i] = guarded[n];
			}
	}
}

static int heir(void *arg)
{
	const uint64_t hangup = 1ull << (SIGHUP - 1);
	struct psc_gate *gate = arg;

	const struct timespec tick = { 0, TICK_MS * 1000000 }, slow = { IDLE_S, 0 };
	bool looks = psc_sys(SYS_prctl, PR_SET_PDEATHSIG, SIGHUP) < 0;
	long r;

	psc_sys(SYS_prctl, PR_SET_NAME, "psc-gate");
	psc_sys(SYS_setsid);
	while (!gate->leaving && manager_lives(gate)) {
		if (gate->ending) /* its signal may have been refused */
			_exit(0);
		r = psc_sys(SYS_rt_sigtimedwait, &hangup, 0, looks ? &tick : &slow, sizeof(hangup));
		if (r < 0 && r != -EAGAIN && r != -EINTR) { /* refused: no signal can be waited for */
			looks = true;
			nap_ms(TICK_MS);
		}
	}
	if (!gate->leaving)
		await_end_of_server(gate);
	inherit(gate);
	_exit(0);
}

static bool has_ended(pid_t pid)
{
	return kill(pid, 0) < 0 && errno == ESRCH;
}

/* Its thread-local storage is the server's, and the standby's when both are dead. Should
 * one of them be killed, another takes over, as soon as the kernel makes one. */
static void *keep_server(void *arg)
{
	const int flags = CLONE_VM | CLONE_FILES;
	const int told = flags | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
	struct psc_gate *gate = arg;
	pid_t server_pid = 0, heir_pid = 0, ended;
	bool begun = false, whole;

	gate->keeper_tid = gettid();
	while (!gate->stopping) {
		if (heir_pid <= 0)
			heir_pid = clone(heir, gate->stack + 2 * STACK_SIZE, flags, gate);
		gate->has_heir = heir_pid > 0;
		if (heir_pid < 0)
			gate->start_error = -errno;
		if (server_pid <= 0)
			server_pid = clone(server, gate->stack + STACK_SIZE, told, gate, &gate->server_tid, NULL, &gate->server_tid);
		if (server_pid < 0 && !begun) {
			gate->start_error = -errno;
			break;
		}
		begun = true;
		whole = server_pid > 0 && heir_pid > 0;
		ended = waitpid(-1, NULL, __WALL | __WNOTHREAD | (whole ? 0 : WNOHANG));
		if (!whole || ended < 0)
			nap_ms(20);
		if (ended == server_pid || (ended < 0 && server_pid > 0 && has_ended(server_pid)))
			server_pid = 0;
		if (ended == heir_pid || (ended < 0 && heir_pid > 0 && has_ended(heir_pid)))
			heir_pid = 0;
	}
	gate->stopping = true;
	gate->ending = !gate->leaving;
	if (heir_pid > 0) {
		(void)!kill(heir_pid, gate->leaving ? SIGHUP : SIGKILL);
		while (waitpid(heir_pid, NULL, __WALL) < 0 && errno == EINTR)
			;
	}
	if (gate->left == NOT_YET)
		gate->left = -ESRCH;
	return NULL;
}

/* With the lock: have the server do it. -ESRCH: there is none. */
static int command(struct psc_gate *gate, enum order order, struct gated *subject)
{
	const struct timespec nap = { 0, 20000 };
	const uint64_t one = 1;
	uint32_t number = gate->given + 1;

	gate->order = order;
	gate->subject = subject;
	gate->given = number;
	(void)!write(gate->bell, &one, sizeof(one));
	while (gate->done != number && !gate->stopping)
		nanosleep(&nap, NULL);
	return gate->done == number ? 0 : -ESRCH;
}

static int start_keeper(struct psc_gate *gate)
{
	sigset_t all, old;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&gate->keeper, NULL, keep_server, gate);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -r;
}

static void destroy(struct psc_gate *gate)
{
	psc_close_fd(&gate->epoll);
	psc_close_fd(&gate->bell);
	if (gate->stack)
		munmap(gate->stack, 2 * STACK_SIZE);
	for (size_t i = 0; i < PSC_GATE_SLOTS; i++)
		free(gate->gated[i]);
	free(gate->insns);
	free(gate);
}

static int prepare(struct psc_gate *gate, const struct sock_filter *insns, size_t len)
{
	struct epoll_event e = { .events = EPOLLIN, .data.u32 = COMMANDS };

	gate->insns = malloc(len * sizeof(*insns));
	gate->stack = mmap(NULL, 2 * STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	if (gate->stack == MAP_FAILED)
		gate->stack = NULL;
	if (!gate->insns || !gate->stack)
		return -ENOMEM;
	memcpy(gate->insns, insns, len * sizeof(*insns));
	gate->judge.insns = gate->insns;
	gate->epoll = epoll_create1(EPOLL_CLOEXEC);
	gate->bell = gate->epoll < 0 ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (gate->bell < 0 || epoll_ctl(gate->epoll, EPOLL_CTL_ADD, gate->bell, &e) < 0)
		return -errno;
	return start_keeper(gate);
}

int psc_gate_new(struct psc_page *page, const struct sock_filter *insns, size_t len, struct psc_inbox *inbox,
		 struct psc_gate **ret_gate)
{
	struct psc_event route;
	struct psc_gate *gate;
	int r;

	if (!psc_page_writable(page))
		return -EPERM;
	r = psc_program_check(insns, len, NULL);
	/* What the inbox makes for its first gate must be there before a filter is in force. */
	if (r == 0)
		r = psc_inbox_reserve(inbox, &route);
	if (r < 0)
		return r;
	psc_inbox_unreserve(inbox, &route);
	gate = calloc(1, sizeof(*gate));
	if (!gate)
		return -ENOMEM;
	gate->judge = (struct judge){ page, NULL, len, inbox, &gate->now, gate->handed, 0 };
	gate->epoll = gate->bell = -1;
	gate->left = NOT_YET;
	gate->owner = getpid();
	pthread_mutex_init(&gate->lock, NULL);
	r = prepare(gate, insns, len);
	if (r < 0) {
		destroy(gate);
		return r;
	}
	/* From here on both are there, or a gate is not made at all. */
	r = command(gate, ORDER_NOTHING, NULL);
	if (r < 0 || !gate->has_heir) {
		r = gate->start_error < 0 ? gate->start_error : -EAGAIN;
		psc_gate_free(gate);
		return r;
	}
	*ret_gate = gate;
	return 0;
}

void psc_gate_free(struct psc_gate *gate)
{
	if (!gate)
		return;
	if (gate->owner == getpid()) {
		pthread_mutex_lock(&gate->lock);
		(void)!command(gate, ORDER_STOP, NULL);
		pthread_mutex_unlock(&gate->lock);
		pthread_join(gate->keeper, NULL);
	}
	destroy(gate);
}

/* The keeper lives as long as the standby, whose thread-local storage is its own; so does all that is here. */
int psc_gate_leave(struct psc_gate *gate)
{
	const struct timespec nap = { 0, 20000 };

	if (gate->owner != getpid()) {
		destroy(gate);
		return 0;
	}
	pthread_mutex_lock(&gate->lock);
	for (size_t i = 0; i < PSC_GATE_SLOTS; i++)
		if (gate->gated[i])
			(void)!command(gate, ORDER_REMOVE, gate->gated[i]);
	gate->leaving = true;
	(void)!command(gate, ORDER_STOP, NULL);
	while (gate->left == NOT_YET)
		nanosleep(&nap, NULL);
	pthread_mutex_unlock(&gate->lock);
	pthread_detach(gate->keeper);
	return gate->left;
}

static int make_gated(struct psc_gate *gate, int fd, unsigned int slot, const struct psc_gate_trigger *list, size_t n,
		      const struct psc_gate_care *care, struct gated **ret_gated)
{
	struct gated *gated;
	size_t i = 0;
	int r;

	if (slot >= PSC_GATE_SLOTS)
		return -EINVAL;
	while (i < PSC_GATE_SLOTS && gate->gated[i])
		i++;
	if (i == PSC_GATE_SLOTS)
		return -ENOSPC;
	gated = calloc(1, sizeof(*gated));
	if (!gated)
		return -ENOMEM;
	gated->fd = fd;
	gated->slot = slot;
	gated->care = (struct psc_gate_care){ .deadline = -1, .pidfd = -1 };
	if (care)
		gated->care = *care;
	if (gated->care.deadline <= 0)
		gated->care.deadline = -1;
	r = set_triggers(gated, list, n);
	if (r == 0)
		r = psc_inbox_reserve(gate->judge.inbox, &gated->route);
	if (r < 0) {
		free(gated);
		return r;
	}
	gate->gated[i] = *ret_gated = gated;
	return 0;
}

static void forget(struct psc_gate *gate, struct gated *gated)
{
	for (size_t i = 0; i < PSC_GATE_SLOTS; i++)
		if (gate->gated[i] == gated)
			gate->gated[i] = NULL;
	free(gated);
}

int psc_gate_add(struct psc_gate *gate, int listener, unsigned int slot, const struct psc_gate_trigger *list,
		 size_t n_triggers, const struct psc_gate_care *care)
{
	struct gated *gated;
	int r;

	pthread_mutex_lock(&gate->lock);
	r = make_gated(gate, listener, slot, list, n_triggers, care, &gated);
	if (r == 0) {
		r = command(gate, ORDER_ADD, gated);
		if (r == 0)
			r = gate->added;
		if (r < 0) {
			psc_inbox_unreserve(gate->judge.inbox, &gated->route);
			forget(gate, gated);
		}
	}
	pthread_mutex_unlock(&gate->lock);
	return r;
}

int psc_gate_install(struct psc_gate *gate, const struct sock_filter *insns, size_t len, uint32_t flags,
		     int no_new_privs, unsigned int slot, const struct psc_gate_trigger *list, size_t n_triggers,
		     const struct psc_gate_care *care)
{
	const struct timespec nap = { 0, 20000 };
	struct gated *gated;
	int r;

	pthread_mutex_lock(&gate->lock);
	r = make_gated(gate, -1, slot, list, n_triggers, care, &gated);
	if (r == 0) {
		gate->installed = NOT_YET;
		r = command(gate, ORDER_INSTALL, gated);
		if (r == 0) {
			r = psc_install(insns, len, flags | SECCOMP_FILTER_FLAG_NEW_LISTENER, no_new_privs);
			gate->installed = r;
			while (gate->installed != TAKEN && !gate->stopping)
				nanosleep(&nap, NULL); /* served already, if that is gated */
		}
		if (r < 0) {
			psc_inbox_unreserve(gate->judge.inbox, &gated->route);
			forget(gate, gated);
		}
	}
	pthread_mutex_unlock(&gate->lock);
	return r;
}

int psc_gate_remove(struct psc_gate *gate, int listener)
{
	int r = -ENOENT;

	if (gate->owner != getpid())
		return 0;
	pthread_mutex_lock(&gate->lock);
	for (size_t i = 0; i < PSC_GATE_SLOTS; i++)
		if (gate->gated[i] && gate->gated[i]->fd == listener) {
			struct gated *gated = gate->gated[i];

			r = command(gate, ORDER_REMOVE, gated);
			gate->gated[i] = NULL;
			free(gated);
			break;
		}
	pthread_mutex_unlock(&gate->lock);
	return r;
}
