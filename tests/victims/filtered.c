/* Loads the raw BPF programs of the files named, in order, and from then on only reads and writes: whatever the
 * filters do to other calls happens to who makes them. First argument: "nnp" sets no_new_privs, "keep" does not;
 * "listen" also keeps a listener for the last program. */
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include "victim.h"

static void load(const char *path, unsigned int flags)
{
	static struct sock_filter insns[4096];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, insns, sizeof(insns));
	struct sock_fprog program = { .len = n / sizeof(insns[0]), .filter = insns };

	if (n <= 0)
		die(path);
	close(fd);
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program) < 0)
		die("seccomp");
}

int main(int argc, char **argv)
{
	if (argc < 2)
		die("arguments");
	if (strcmp(argv[1], "keep") && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		die("prctl");
	for (int i = 2; i < argc; i++)
		load(argv[i], i == argc - 1 && !strcmp(argv[1], "listen") ? SECCOMP_FILTER_FLAG_NEW_LISTENER : 0);
	say("ready");
	for (;;) {
		hear();
		say("alive=1 probe=%d", probe());
	}
}
