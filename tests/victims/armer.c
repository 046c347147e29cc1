/* A manager of one trigger, small enough to be run often under strace's fault injection: the process id of the target, then
 * "exec", "fork" or "fork-all". It arms, says so, and at the next line disarms and says what came of it. */
#include "victim.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <psc.h>
#include <stddef.h>

int main(int argc, char **argv)
{
	const bool forks = argc > 2 && strncmp(argv[2], "fork", 4) == 0, all = argc > 2 && strcmp(argv[2], "fork-all") == 0;
	struct sock_filter insns[] = {
		{ BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, nr) },
		{ BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_getppid },
		{ BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | 91 },
		{ BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW },
	};
	struct psc_attach_options options = {
		.insns = insns,
		.len = sizeof(insns) / sizeof(insns[0]),
		.no_new_privs = PSC_NO_NEW_PRIVS_AUTO,
		.timeout_ns = 2000000000,
	};
	struct psc_attach_result result;
	struct psc_trigger *trigger;
	char line[64];
	int r, pidfd, children = 0;

	options.pidfd = (int)syscall(SYS_pidfd_open, atoi(argv[1]), 0);
	r = forks ? psc_trigger_arm_fork(&options, all, &trigger, &result) : psc_trigger_arm(&options, &trigger, &result);
	say("armed=%d", r);
	if (r < 0)
		return 0;
	(void)!read(0, line, sizeof(line));
	psc_trigger_disarm(trigger);
	while (forks && psc_trigger_next(trigger, &result, &pidfd) <= 0) {
		psc_attach_result_destroy(&result);
		close(pidfd);
		children++;
	}
	r = psc_trigger_finish(trigger, &result, &pidfd);
	psc_attach_result_destroy(&result);
	say("r=%d children=%d", r, children);
	return 0;
}
