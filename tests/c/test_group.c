/* psc_attach_group() by itself: a tree of forked processes gets a program, all of it, and is seen to have it. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "check.h"
#include "psc.h"

#define CHILDREN 4
#define DENIED 91

/* getppid() fails with DENIED, everything else is allowed. */
static const struct sock_filter program[] = {
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
	BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | DENIED),
	BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
};

/* Tells its readiness, then the errno of its probe once a byte came. */
static void live(int ready, int go, int answer)
{
	char c = 'x';
	int denied;

	if (write(ready, &c, 1) != 1 || read(go, &c, 1) != 1)
		_exit(1);
	denied = syscall(SYS_getppid) < 0 ? errno : 0;
	_exit(write(answer, &denied, sizeof(denied)) == sizeof(denied) ? 0 : 1);
}

static pid_t plant(int ready, int go, int answer)
{
	pid_t root = fork();

	if (root == 0) {
		for (int i = 0; i < CHILDREN; i++)
			if (fork() == 0)
				live(ready, go, answer);
		live(ready, go, answer);
	}
	return root;
}

static void check_results(const struct psc_group_result *result, pid_t root)
{
	CHECK(result->n == CHILDREN + 1 && result->filtered == CHILDREN + 1 && result->blamed == -1);
	CHECK(result->members[0].pid == root);
	for (size_t i = 0; i < result->n; i++) {
		const struct psc_group_member *member = &result->members[i];

		CHECK(member->became == PSC_BECAME_FILTERED && member->error == 0);
		CHECK(member->result.n_threads == 1 && member->result.threads[0].tid == member->pid);
		CHECK(member->result.threads[0].filters_after == member->result.threads[0].filters_before + 1);
		close(member->pidfd);
	}
}

static void test_tree(bool by_parent)
{
	int ready[2], go[2], answer[2], denied;
	struct psc_group_options options = {
		.attach = { .insns = program, .len = COUNT(program), .no_new_privs = PSC_NO_NEW_PRIVS_AUTO,
			    .timeout_ns = 20000000000 },
		.cgroup = -1,
		.by_parent = by_parent,
	};
	struct psc_group_result result;
	char bytes[CHILDREN + 1] = { 0 };
	pid_t root;

	CHECK(pipe(ready) == 0 && pipe(go) == 0 && pipe(answer) == 0);
	root = plant(ready[1], go[0], answer[1]);
	for (int i = 0; i <= CHILDREN; i++)
		CHECK(read(ready[0], bytes, 1) == 1);
	options.attach.pidfd = (int)syscall(SYS_pidfd_open, root, 0);
	CHECK(psc_attach_group(&options, &result) == 0);
	check_results(&result, root);
	psc_group_result_destroy(&result);
	CHECK(write(go[1], bytes, sizeof(bytes)) == sizeof(bytes));
	for (int i = 0; i <= CHILDREN; i++)
		CHECK(read(answer[0], &denied, sizeof(denied)) == sizeof(denied) && denied == DENIED);
	CHECK(waitpid(root, NULL, 0) == root);
	CHECK(psc_attach_group(&options, &result) == -ESRCH && result.refusal == PSC_REFUSED_GONE && result.n == 0);
	psc_group_result_destroy(&result);
	close(options.attach.pidfd);
	for (int i = 0; i < 2; i++) {
		close(ready[i]);
		close(go[i]);
		close(answer[i]);
	}
}

static void test_refused(void)
{
	struct psc_group_options options = {
		.attach = { .insns = program, .len = COUNT(program), .timeout_ns = 1000000000 },
		.cgroup = -1,
	};
	struct psc_group_result result;

	options.attach.pidfd = -1;
	CHECK(psc_attach_group(&options, &result) == -EINVAL);
	options.attach.pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	CHECK(psc_attach_group(&options, &result) == -EDEADLK && result.refusal == PSC_REFUSED_CALLER && result.filtered == 0);
	psc_group_result_destroy(&result);
	options.cgroup = options.attach.pidfd;
	CHECK(psc_attach_group(&options, &result) == -EINVAL);
	options.attach.pidfd = -1;
	CHECK(psc_attach_group(&options, &result) == -EMEDIUMTYPE && result.refusal == PSC_REFUSED_CGROUP);
	psc_group_result_destroy(&result);
	close(options.cgroup);
}

int main(void)
{
	test_tree(false);
	test_tree(true);
	test_refused();
	return 0;
}
