/* A loop with helpers: called up where they pay, and every call answered once, whatever ends it. */
#define _GNU_SOURCE
#include "check.h"
#include "notifying.h"
#include "psc.h"
#include "reaper.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TARGETS = 8, VALUE = 1234, STACK = 65536 };

struct shared {
	_Atomic int listener;
	_Atomic bool enough;
	_Atomic uint64_t calls;
};

static struct shared *shared;

static int load(void)
{
	return load_notifying((const char *const[]){ "getpgid", NULL });
}

static _Noreturn void call_until_enough(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (!shared->enough) {
		if (syscall(SYS_getpgid, 0) != VALUE)
			_exit(1);
		shared->calls++;
	}
	_exit(0);
}

/* In our table of descriptors: the listener that it makes is ours. */
static int run_targets(void *targets)
{
	int status;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	shared->listener = load();
	for (long i = 1; i < (long)targets; i++)
		if (fork() == 0)
			call_until_enough();
	if (fork() == 0)
		call_until_enough();
	while (wait(&status) > 0)
		if (status)
			_exit(1);
	_exit(0);
}

static pid_t start(long targets)
{
	char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pid_t pid;

	CHECK(stack != MAP_FAILED);
	shared->listener = -1;
	shared->enough = false;
	shared->calls = 0;
	pid = clone(run_targets, stack + STACK, CLONE_FILES | SIGCHLD, (void *)targets);
	CHECK(pid > 0);
	while (shared->listener < 0)
		CHECK(sched_yield() == 0 && kill(pid, 0) == 0);
	return pid;
}

struct watch {
	struct psc_crew *crew;
	struct psc_inbox *inbox;
	bool stop;
	bool helped;
};

/* Until a helper serves, or for a second; then the targets end, or the loop is stopped. */
static void *watch(void *argument)
{
	struct watch *w = argument;

	for (int i = 0; i < 1000 && !w->helped; i++) {
		w->helped = psc_crew_serving(w->crew) > 1;
		usleep(1000);
	}
	usleep(5000);
	if (w->stop)
		CHECK(psc_inbox_stop(w->inbox) == 0);
	else
		shared->enough = true;
	return NULL;
}

static void serve(long targets, bool stop, bool *ret_helped)
{
	struct psc_answer answer = { .kind = PSC_VALUE, .value = VALUE };
	cpu_set_t before, after;
	struct psc_stats_totals totals;
	struct psc_table *table;
	struct psc_stats *stats;
	struct psc_event event;
	struct watch w = { .stop = stop };
	pid_t pid = start(targets);
	struct reaper reaper;
	pthread_t thread;
	int r, status, signal = psc_wake_signal_install();

	CHECK(signal > 0 && sched_getaffinity(0, sizeof(before), &before) == 0);
	CHECK(psc_inbox_new(signal, &w.inbox) == 0 && psc_inbox_add(w.inbox, shared->listener) == 0);
	CHECK(psc_table_new(NULL, 0, &answer, &table) == 0 && psc_stats_new(&stats) == 0);
	CHECK(psc_crew_new(w.inbox, table, stats, 2, &w.crew) == 0);
	psc_inbox_begin(w.inbox, &event);
	CHECK(pthread_create(&thread, NULL, watch, &w) == 0);
	reaper_start(&reaper, pid);
	while ((r = psc_serve_with(w.crew, &event)) == -EINTR)
		;
	CHECK(r == (stop ? -ECANCELED : -ESHUTDOWN));
	pthread_join(thread, NULL);
	psc_crew_free(w.crew);
	psc_inbox_end(w.inbox);
	CHECK(sched_getaffinity(0, sizeof(after), &after) == 0 && CPU_EQUAL(&before, &after));
	psc_stats_sum(stats, &totals);
	if (stop)
		CHECK(kill(pid, SIGKILL) == 0);
	close(shared->listener);
	status = reaper_end(&reaper);
	CHECK(stop || status == 0);
	if (!stop)
		CHECK(totals.answered[PSC_VALUE] == shared->calls && totals.gone == 0);
	*ret_helped = w.helped;
	psc_inbox_free(w.inbox);
	psc_table_free(table);
	psc_stats_free(stats);
}

static void a_table_that_holds_gets_no_helpers(void)
{
	struct psc_answer hold = { .kind = PSC_HOLD }, allow = { .kind = PSC_CONTINUE };
	struct psc_rule rule = { .arch = psc_arch_token((enum psc_arch)psc_arch_native()), .nr = 1, .answer = hold };
	struct psc_table *tables[2];
	struct psc_inbox *inbox;
	struct psc_crew *crew;

	CHECK(psc_inbox_new(psc_wake_signal_install(), &inbox) == 0);
	CHECK(psc_table_new(NULL, 0, &hold, &tables[0]) == 0 && psc_table_new(&rule, 1, &allow, &tables[1]) == 0);
	for (int i = 0; i < 2; i++) {
		CHECK(psc_crew_new(inbox, tables[i], NULL, 2, &crew) == -EINVAL);
		psc_table_free(tables[i]);
	}
	psc_inbox_free(inbox);
}

int main(void)
{
	cpu_set_t allowed;
	bool helped;

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(shared != MAP_FAILED && sched_getaffinity(0, sizeof(allowed), &allowed) == 0);
	CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
	a_table_that_holds_gets_no_helpers();
	serve(1, false, &helped);
	CHECK(!helped);
	serve(TARGETS, false, &helped);
	/* Where 64 calls take longer than two slices, as on an emulated machine, nothing is tried. */
	CHECK(helped || CPU_COUNT(&allowed) == 1 || shared->calls < 20000);
	serve(TARGETS, true, &helped);
	return 0;
}
