/* gate.c - the inactive listener: a program in the kernel that asks, and who answers.
 *
 * The invariant: from the first gated call on somebody answers. The server is a
 * process that shares our memory and descriptors (clone without CLONE_THREAD), on
 * the thread-local storage of a thread of ours that only waits for it:
 *   - TSYNC on our own threads does not reach it, so it can answer ourselves;
 *   - it needs no lock that a trapped thread can hold: it neither allocates nor
 *     uses stdio, and what is changed for it, it changes itself, by command;
 *   - it ends with us (PDEATHSIG), the listener is closed with it, and the kernel
 *     answers ENOSYS to what is gated: closed, not open.
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
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#define STACK_SIZE (256 * 1024)
#define MAX_ERRNO 4095
#define MAX_HANDED 1024
#define COMMANDS UINT32_MAX /* in epoll */
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
	struct psc_gate_care care;
	struct psc_event route; /* to the user's inbox */
	size_t n_triggers;
	struct psc_gate_trigger triggers[PSC_MAX_GATE_TRIGGERS];
};

/* A notification that somebody has to answer, and whose it is. */
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

/* For the heir. Full: what was answered is forgotten, or is waited for. */
static void remember(struct judge *judge, const struct gated *gated, const union psc_notif *notif)
{
	const struct timespec nap = { 0, 100000 };

	while (judge->n_handed == MAX_HANDED) {
		size_t kept = 0;

		for (size_t i = 0; i < MAX_HANDED; i++)
			if (psc_notify_valid(judge->handed[i].fd, judge->handed[i].notif.n.id) == 0)
				judge->handed[kept++] = judge->handed[i];
		judge->n_handed = kept;
		if (kept == MAX_HANDED)
			nanosleep(&nap, NULL);
	}
	judge->handed[judge->n_handed] = (struct taken){ gated->fd, gated->care.answer, *notif };
	judge->n_handed++;
}

static int hand_on(struct judge *judge, const struct gated *gated, const union psc_notif *notif)
{
	const struct timespec nap = { 0, 100000 };

	if (!judge->inbox)
		return answer_for_user(gated->fd, &gated->care.answer, notif);
	if (gated->care.guarded && judge->handed)
		remember(judge, gated, notif);
	while (psc_inbox_feed(judge->inbox, &gated->route, notif) < 0)
		nanosleep(&nap, NULL); /* the user does not keep up: nor do the callers */
	return 0;
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

static void answer(struct judge *judge, const struct gated *gated, const union psc_notif *notif)
{
	enum psc_gate_state state = psc_page_state(judge->page, gated->slot);

	if (state == PSC_GATE_ACTIVE)
		(void)!answer_as_program(judge, gated, notif);
	else if (psc_notify_continue(gated->fd, notif->n.id) == 0 && state == PSC_GATE_INACTIVE &&
		 triggers(gated, &notif->n.data))
		psc_page_store(judge->page, gated->slot, PSC_GATE_ACTIVE);
}

/* What poll says is there is taken and answered. False: no task is left. */
static bool serve_one(struct judge *judge, const struct gated *gated, bool pending)
{
	if (!pending)
		return false;
	judge->now->notif.n.id = 0;
	judge->now->fd = gated->fd;
	judge->now->answer = gated->care.answer;
	if (psc_notify_receive(gated->fd, &judge->now->notif) == 0)
		answer(judge, gated, &judge->now->notif);
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
	_Atomic pid_t keeper_tid, server_pid;
	_Atomic bool has_heir;
	char *stack; /* the server's, then the heir's */
	struct taken now, handed[MAX_HANDED];
	int epoll, bell;

	pthread_mutex_t lock; /* of those who give orders */
	_Atomic uint32_t given, done;
	enum order order;
	struct gated *subject;
	bool added; /* the last one; it may have ended since */
	_Atomic int installed;
	_Atomic bool stopping;
	_Atomic bool leaving;	  /* we live on, but the standby is to act as at our death */
	_Atomic int left; /* NOT_YET; then 0, or why it could not */

	struct gated *gated[PSC_GATE_SLOTS];
};

/* In the server, when it has taken the order to await a listener: whoever installs
 * may not be able to make another call until it is answered. */
static void await_listener(struct psc_gate *gate)
{
	const struct timespec nap = { 0, 20000 };

	while (gate->installed == NOT_YET)
		nanosleep(&nap, NULL);
}

static void watch(struct psc_gate *gate, struct gated *gated)
{
	for (uint32_t i = 0; i < PSC_GATE_SLOTS; i++)
		if (gate->gated[i] == gated) {
			struct epoll_event e = { .events = EPOLLIN, .data.u32 = i };

			(void)!psc_notify_sync_wakeup(gated->fd, true);
			psc_inbox_bind(gate->judge.inbox, &gated->route, gated->fd);
			gated->served = epoll_ctl(gate->epoll, EPOLL_CTL_ADD, gated->fd, &e) == 0;
		}
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
		watch(gate, subject);
		gate->added = subject->served;
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
		watch(gate, subject);
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

static void serve(struct psc_gate *gate)
{
	struct epoll_event events[16];

	while (!gate->stopping) {
		int n = epoll_wait(gate->epoll, events, psc_array_size(events), keep_deadlines(gate));

		for (int i = 0; i < n; i++) {
			struct gated *gated = events[i].data.u32 == COMMANDS ? NULL : gate->gated[events[i].data.u32];

			if (gated && gated->served && !serve_one(&gate->judge, gated, events[i].events & EPOLLIN))
				unwatch(gate, gated);
		}
		if (gate->done != gate->given)
			obey(gate);
	}
}

static int server(void *arg)
{
	struct psc_gate *gate = arg;

	gate->server_pid = getpid();
	prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
	if (getppid() == gate->owner) {
		setsid();
		serve(gate);
	}
	_exit(0);
}

/* -------------------------------------------------------------------- heir */

/* An exec of ours ends the keeper as well. */
static bool manager_lives(const struct psc_gate *gate)
{
	return psc_sys(SYS_getppid) == gate->owner && psc_sys(SYS_tgkill, gate->owner, gate->keeper_tid, 0) == 0;
}

static void await_end_of_server(const struct psc_gate *gate)
{
	struct pollfd p = { .events = POLLIN };

	p.fd = (int)psc_sys(SYS_pidfd_open, gate->server_pid, 0);
	if (p.fd < 0)
		return;
	psc_sys(SYS_poll, &p, 1, -1);
	psc_sys(SYS_close, p.fd);
}

/* An exec of the manager ends its threads before it parts from the table of descriptors: until
 * then what is closed in it is closed in the new program. */
static int keep_only(struct pollfd *fds, size_t n)
{
	long r = psc_sys(SYS_unshare, CLONE_FILES);
	unsigned int from = 0;

	if (r < 0)
		return (int)r;
	for (;;) {
		unsigned int next = UINT32_MAX;

		for (size_t i = 0; i < n; i++)
			if ((unsigned int)fds[i].fd >= from && (unsigned int)fds[i].fd < next)
				next = (unsigned int)fds[i].fd;
		if (next > from)
			(void)!psc_sys(SYS_close_range, from, next - 1, 0);
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
		if (judge->now->notif.n.id && judge->now->fd == guarded[i]->fd &&
		    psc_notify_valid(guarded[i]->fd, judge->now->notif.n.id) == 0)
			answer(judge, guarded[i], &judge->now->notif);
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
	gate->left = keep_only(fds, n);
	if (!gate->leaving) /* else the memory is that of a process that lives */
		prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	answer_orphans(gate, guarded, n);
	while (n > 0) {
		if (poll(fds, n, -1) < 0)
			continue;
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

	psc_sys(SYS_prctl, PR_SET_PDEATHSIG, SIGHUP);
	psc_sys(SYS_prctl, PR_SET_NAME, "psc-gate");
	psc_sys(SYS_setsid);
	while (!gate->leaving && manager_lives(gate))
		psc_sys(SYS_rt_sigtimedwait, &hangup, 0, 0, sizeof(hangup));
	if (!gate->leaving)
		await_end_of_server(gate);
	inherit(gate);
	_exit(0);
}

/* Its thread-local storage is the server's, and the heir's when both are dead. Should
 * one of them be killed, another takes over. */
static void *keep_server(void *arg)
{
	const int flags = CLONE_VM | CLONE_FILES;
	struct psc_gate *gate = arg;
	pid_t server_pid = 0, heir_pid = 0, ended;

	gate->keeper_tid = gettid();
	while (!gate->stopping) {
		if (heir_pid <= 0)
			heir_pid = clone(heir, gate->stack + 2 * STACK_SIZE, flags, gate);
		gate->has_heir = heir_pid > 0;
		if (server_pid == 0)
			server_pid = clone(server, gate->stack + STACK_SIZE, flags, gate);
		if (server_pid < 0)
			break;
		ended = waitpid(-1, NULL, __WALL | __WNOTHREAD);
		server_pid = ended == server_pid ? 0 : server_pid;
		heir_pid = ended == heir_pid ? 0 : heir_pid;
	}
	gate->stopping = true;
	if (heir_pid > 0) {
		kill(heir_pid, gate->leaving ? SIGHUP : SIGKILL);
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
	struct psc_gate *gate;
	int r;

	if (!psc_page_writable(page))
		return -EPERM;
	r = psc_program_check(insns, len, NULL);
	if (r < 0)
		return r;
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
		psc_gate_free(gate);
		return -EAGAIN;
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
		if (r == 0 && !gate->added)
			r = -ENOTTY;
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
