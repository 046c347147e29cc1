/* Enters seccomp's strict mode, in which only read, write, _exit and sigreturn do not kill; answers lines. */
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include "victim.h"

int main(void)
{
	static const char ready[] = "ready\n", alive[] = "alive=1\n";
	char c;

	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0))
		die("prctl");
	(void)!write(1, ready, sizeof(ready) - 1);
	while (read(0, &c, 1) == 1)
		if (c == '\n')
			(void)!write(1, alive, sizeof(alive) - 1);
	syscall(SYS_exit, 0);
}
