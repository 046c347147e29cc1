/* monitor.c - run a program under a policy and answer its calls, in plain C.
 *
 *	monitor PROGRAM [ARGUMENT...]
 *
 * The program may make no directories: a table says so, without asking anybody.
 * What it opens is told on standard error: those calls are held for this file's own
 * code, which looks at the path and lets them run. (To look and let run is to
 * observe: the path can change in between. To decide by it, open the file for the
 * program: psc_open_begin().) In the end it prints what was counted.
 *
 * README.md, "Embedding", has the commands that compile it.
 */
#define _GNU_SOURCE
#include <psc.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static const char *const no_directories[] = { "mkdir", "mkdirat" };
static const char *const told[] = { "open", "openat", "openat2" };

static void give_up(const char *doing, int error)
{
	fprintf(stderr, "monitor: %s: %s\n", doing, strerror(-error));
	exit(125);
}

/* ------------------------------------------------------------- what is asked */

static void notify_of(struct psc_policy *policy, const char *const *names, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		int r = psc_policy_add(policy, SECCOMP_RET_USER_NOTIF, psc_syscall_id(names[i]), NULL, 0);

		if (r < 0)
			give_up(names[i], r);
	}
}

static void make_program(struct sock_filter **ret_insns, size_t *ret_len)
{
	struct psc_policy *policy;
	int r = psc_policy_new(SECCOMP_RET_ALLOW, SECCOMP_RET_KILL_PROCESS, PSC_PRIORITY_RESTRICTIVE, &policy);

	if (r == 0)
		r = psc_policy_add_arch(policy, (enum psc_arch)psc_arch_native());
	if (r < 0)
		give_up("make a policy", r);
	notify_of(policy, no_directories, COUNT(no_directories));
	notify_of(policy, told, COUNT(told));
	r = psc_policy_compile(policy, NULL, ret_insns, ret_len);
	if (r < 0)
		give_up("compile the policy", r);
	psc_policy_free(policy);
}

/* ------------------------------------------------------- what is answered how */

static struct psc_table *make_table(void)
{
	const struct psc_answer held = { .kind = PSC_HOLD }, denied = { .kind = PSC_ERROR, .error = EACCES };
	enum psc_arch arch = (enum psc_arch)psc_arch_native();
	struct psc_rule rules[COUNT(no_directories)];
	struct psc_table *table;
	size_t n = 0;
	int r;

	for (size_t i = 0; i < COUNT(no_directories); i++) {
		int nr = psc_syscall_number(arch, psc_syscall_id(no_directories[i]));

		if (nr >= 0) /* not every architecture has both */
			rules[n++] = (struct psc_rule){ .arch = psc_arch_token(arch), .nr = nr, .answer = denied };
	}
	r = psc_table_new(rules, n, &held, &table);
	if (r < 0)
		give_up("make the table", r);
	return table;
}

static void tell(struct psc_inbox *inbox, struct psc_event *event)
{
	const struct seccomp_notif *n = &event->notif.n;
	int id = psc_syscall_by_number((enum psc_arch)psc_arch_native(), (uint32_t)n->data.nr);
	const char *name = psc_syscall_name_of_id(id);
	char path[4096];
	ssize_t r = psc_event_read_string(inbox, event, n->data.args[name && strcmp(name, "open") != 0], path,
					  sizeof(path));

	if (r >= 0)
		fprintf(stderr, "monitor: %d opens %s\n", (int)n->pid, path);
	event->answer = (struct psc_answer){ .kind = PSC_CONTINUE };
	event->due = true;
}

static void serve(struct psc_inbox *inbox, struct psc_stats *stats)
{
	struct psc_table *table = make_table();
	struct psc_event event;
	int r;

	psc_inbox_begin(inbox, &event);
	while ((r = psc_serve(inbox, table, stats, &event)) == 1 || r == -EINTR)
		if (r == 1)
			tell(inbox, &event);
	psc_inbox_end(inbox);
	psc_table_free(table);
	if (r != -ESHUTDOWN) /* the ordinary end: no task is left */
		give_up("serve", r);
}

/* ------------------------------------------------------------------ the child */

/* A child that executes the program once it is told to. */
static pid_t start(char **argv, int *ret_go)
{
	int go[2];
	pid_t pid;
	char byte;

	if (pipe(go) < 0 || (pid = fork()) < 0)
		give_up("fork", -errno);
	if (pid > 0) {
		close(go[0]);
		*ret_go = go[1];
		return pid;
	}
	close(go[1]);
	if (read(go[0], &byte, 1) != 1)
		_exit(125);
	close(go[0]);
	execvp(argv[0], argv);
	fprintf(stderr, "monitor: %s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

/* Put the filter into the child, which knows nothing of it; returns the listener. */
static int attach(pid_t pid)
{
	struct psc_attach_options options = {
		.pidfd = (int)syscall(SYS_pidfd_open, pid, 0),
		.no_new_privs = PSC_NO_NEW_PRIVS_AUTO,
		.in_thread = true, /* the child of ours is not one of an injecting process: YAMA */
		.timeout_ns = 5000000000,
	};
	struct psc_attach_result result;
	struct sock_filter *insns;
	int r;

	make_program(&insns, &options.len);
	options.insns = insns;
	r = psc_attach(&options, &result);
	if (r < 0)
		give_up("attach to the child", r);
	psc_attach_result_destroy(&result);
	free(insns);
	close(options.pidfd);
	return result.listener;
}

static void *reap(void *child)
{
	int status;

	waitpid(*(pid_t *)child, &status, 0);
	*(int *)child = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	return NULL;
}

int main(int argc, char **argv)
{
	struct psc_inbox *inbox;
	struct psc_stats *stats;
	struct psc_stats_totals totals;
	pthread_t reaper;
	int child, go, listener, r;

	if (argc < 2) {
		fprintf(stderr, "usage: monitor PROGRAM [ARGUMENT...]\n");
		return 125;
	}
	child = start(argv + 1, &go);
	listener = attach(child);
	r = psc_wake_signal_install();
	if (r >= 0)
		r = psc_inbox_new(r, &inbox);
	if (r >= 0)
		r = psc_inbox_add(inbox, listener);
	if (r >= 0)
		r = psc_stats_new(&stats);
	if (r < 0)
		give_up("receive notifications", r);
	/* Only now: nobody else may wait for the child while it is attached to. */
	if (pthread_create(&reaper, NULL, reap, &child) != 0 || write(go, "g", 1) != 1)
		give_up("start the program", -errno);
	close(go);
	serve(inbox, stats);
	pthread_join(reaper, NULL);
	psc_stats_sum(stats, &totals);
	fprintf(stderr, "monitor: let run %llu, denied %llu, gone %llu\n",
		(unsigned long long)totals.answered[PSC_CONTINUE], (unsigned long long)totals.answered[PSC_ERROR],
		(unsigned long long)totals.gone);
	psc_inbox_free(inbox);
	psc_stats_free(stats);
	close(listener);
	return child;
}
