/* A manager for one attach, small enough to be run hundreds of times under strace's fault injection: the process id of the
 * target, then "deny", "notify", or "tree" (to notify, and as a tree). One line says what came of it; its descriptors before and after are counted. */
#include "victim.h"
#include <dirent.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <psc.h>
#include <stddef.h>

static int descriptors(void)
{
	DIR *folder = opendir("/proc/self/fd");
	int n = 0;

	while (folder && readdir(folder))
		n++;
	if (folder)
		closedir(folder);
	return n;
}

/* How many listeners there are: of all threads, or one each where they could not share. */
static int listeners(const struct psc_attach_result *result)
{
	int n = result->listener >= 0;

	for (size_t i = 0; i < result->n_threads; i++)
		n += result->threads[i].listener >= 0;
	return n;
}

/* As psc_attach(), of a tree with one member. */
static int attach_tree(const struct psc_attach_options *options, struct psc_attach_result *ret_result, int *ret_listeners)
{
	const struct psc_group_options group = { .attach = *options, .cgroup = -1 };
	struct psc_group_result result;
	int r = psc_attach_group(&group, &result);

	*ret_result = (struct psc_attach_result){ .listener = -1, .refusal = result.refusal };
	*ret_listeners = 0;
	for (size_t i = 0; i < result.n; i++) {
		close(result.members[i].pidfd);
		*ret_listeners += listeners(&result.members[i].result);
		ret_result->residue = result.members[i].result.residue;
	}
	psc_group_result_destroy(&result);
	return r;
}

int main(int argc, char **argv)
{
	bool tree = argc > 2 && strcmp(argv[2], "tree") == 0, notify = tree || (argc > 2 && strcmp(argv[2], "notify") == 0);
	struct sock_filter insns[] = {
		{ BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, nr) },
		{ BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_getppid },
		{ BPF_RET | BPF_K, 0, 0, notify ? SECCOMP_RET_USER_NOTIF : SECCOMP_RET_ERRNO | 91 },
		{ BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW },
	};
	struct psc_attach_options options = {
		.insns = insns,
		.len = sizeof(insns) / sizeof(insns[0]),
		.no_new_privs = PSC_NO_NEW_PRIVS_AUTO,
		.timeout_ns = 300000000,
	};
	struct psc_attach_result result;
	int before, n, r;

	options.pidfd = (int)syscall(SYS_pidfd_open, atoi(argv[1]), 0);
	before = descriptors();
	r = tree ? attach_tree(&options, &result, &n) : psc_attach(&options, &result);
	n = tree ? n : listeners(&result);
	psc_attach_result_destroy(&result);
	say("r=%d refusal=%d listeners=%d leaked=%d residue=%d", r, r < 0 ? (int)result.refusal : -1, n,
	    descriptors() - before - n, (int)result.residue);
	return 0;
}
