/* guardian_main.c - the guardian as a program: psc_guardian_start() executes it. */
#define _GNU_SOURCE
#include "psc.h"

#include <sys/prctl.h>
#include <unistd.h>

#define SOCKET 3

int main(void)
{
	prctl(PR_SET_NAME, "psc-guardian");
	if (chdir("/") < 0)
		return 1;
	return psc_guardian_run(SOCKET) < 0;
}
