/* Kept memory: what is read is the calling program's, whatever becomes of tasks, numbers and shared memory. */
#define _GNU_SOURCE
#include "check.h"
#include "memory.h"
#include "notifying.h"
#include "psc.h"
#include "reaper.h"

#include <errno.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* All programs and processes of a test have their string here, each its own. */
#define PLACE ((char *)0x10000000)
#define SKIP 77
enum { GO_ON = 7, STACK = 65536, LIMIT = 200000 };

static struct psc_memory *memory;

/* ----------------------------------------------------------------- the target */

static void put(const char *text)
{
	char *place = mmap(PLACE, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	CHECK(place == PLACE);
	strcpy(place, text);
}

/* Call until told to go on. A monitor that is no more answers with an error. */
static void ask(void)
{
	long answer;

	do
		answer = syscall(SYS_getpgid, 0, PLACE);
	while (answer == 0);
	if (answer != GO_ON)
		_exit(1);
}

static _Noreturn void become_second(void)
{
	execl("/proc/self/exe", "test_memory", "second", NULL);
	_exit(1);
}

static int second(void)
{
	put("/new");
	ask();
	return 0;
}

static void wait_for(pid_t pid)
{
	int status;

	CHECK(waitpid(pid, &status, __WALL) == pid && status == 0);
}

static char *stack(void)
{
	char *room = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(room != MAP_FAILED);
	return room + STACK;
}

static int run_and_exec(void *unused)
{
	ask();
	become_second();
	return 0;
}

/* Keeps the memory alive, in a process of its own, as long as its parent lives. */
static int sit(void *parent)
{
	while (getppid() == *(volatile pid_t *)parent)
		usleep(1000);
	return 0;
}

static void keep_alive(void)
{
	static pid_t parent;

	parent = getpid();
	CHECK(clone(sit, stack(), CLONE_VM | SIGCHLD, &parent) > 0);
}

/* A child in its parent's memory, as by vfork(): its next program has other memory. */
static void child_execs(void)
{
	pid_t pid = clone(run_and_exec, stack(), CLONE_VM | SIGCHLD, NULL);

	CHECK(pid > 0);
	wait_for(pid);
}

static void parent_execs(void)
{
	ask();
	keep_alive();
	become_second();
}

/* The thread's next program has the number of the process's first thread. */
static void thread_execs(void)
{
	ask();
	keep_alive();
	CHECK(clone(run_and_exec, stack(), CLONE_VM | CLONE_SIGHAND | CLONE_THREAD, NULL) > 0);
	for (;;)
		pause();
}

static int run_and_end(void *unused)
{
	ask();
	syscall(SYS_exit, 0);
	return 0;
}

/* A process with the number of a thread of another, which lives on. */
static void number_is_used_again(void)
{
	pid_t tid = clone(run_and_end, stack(), CLONE_VM | CLONE_SIGHAND | CLONE_THREAD, NULL), pid;
	struct clone_args again = { .exit_signal = SIGCHLD, .set_tid = (uintptr_t)&tid, .set_tid_size = 1 };

	CHECK(tid > 0);
	do
		pid = (pid_t)syscall(SYS_clone3, &again, sizeof(again));
	while (pid < 0 && errno == EEXIST && sched_yield() == 0); /* the thread has not quite ended */
	CHECK(pid >= 0);
	if (pid == 0) {
		CHECK(gettid() == tid);
		strcpy(PLACE, "/new");
		ask();
		_exit(0);
	}
	wait_for(pid);
}

/* --------------------------------------------------------------- the monitor */

static int load(void)
{
	return load_notifying((const char *const[]){ "getpgid", NULL });
}

/* The listener is in the child's table of descriptors, which is ours as well. */
static int run_target(void *scenario)
{
	static int listener;

	listener = load();
	*(volatile int *)((void **)scenario)[1] = listener;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	put("/old");
	((void (*)(void))((void **)scenario)[0])();
	_exit(0);
}

static pid_t start(void (*scenario)(void), int *ret_listener)
{
	volatile int *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	void *arguments[] = { (void *)scenario, (void *)shared };
	pid_t pid;

	CHECK(shared != MAP_FAILED);
	*shared = -1;
	pid = clone(run_target, stack(), CLONE_FILES | SIGCHLD, arguments);
	CHECK(pid > 0);
	while (*shared < 0)
		CHECK(sched_yield() == 0 && kill(pid, 0) == 0);
	*ret_listener = *shared;
	return pid;
}

/* Read the string of every call. A task is told to go on once its memory is kept; a new
 * program, or task, must from its first call on be seen to have its own string. */
static void watch(void (*scenario)(void), int old_tasks)
{
	union psc_notif n;
	int listener, tasks = 0, news = 0;
	struct reaper reaper;
	long calls = 0;

	reaper_start(&reaper, start(scenario, &listener));
	while (psc_notify_receive(listener, &n) == 0) {
		char text[8] = "";
		bool told = false, is_new;

		CHECK(psc_memory_peek(memory, listener, &n.n, n.n.data.args[1], text, 5) == 5);
		is_new = !strcmp(text, "/new");
		CHECK(is_new || !strcmp(text, "/old"));
		CHECK(is_new == (tasks >= old_tasks));
		CHECK(calls++ < LIMIT);
		if (psc_memory_keeps(memory, (pid_t)n.n.pid)) {
			told = true;
			tasks += !is_new;
			news += is_new;
		}
		CHECK(psc_notify_value(listener, n.n.id, told ? GO_ON : 0) == 0);
	}
	CHECK(tasks == old_tasks && news == 1);
	(void)reaper_end(&reaper); /* of what its death left to us, too */
	close(listener);
}

int main(int argc, char **argv)
{
	int r;

	if (argc == 2)
		return second();
	CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
	r = psc_memory_new(&memory);
	if (r == -EPERM || r == -EOPNOTSUPP || r == -ENOSYS || r == -EACCES)
		return SKIP;
	CHECK(r == 0);
	watch(child_execs, 1);
	watch(parent_execs, 1);
	watch(thread_execs, 2);
	watch(number_is_used_again, 1);
	psc_memory_free(memory);
	return 0;
}
