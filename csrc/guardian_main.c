/* guardian_main.c - the guardian as a program, and the opener: psc_guardian_start()
 * and psc_opener_start() execute it. */
#define _GNU_SOURCE
#include "opener.h"

#include <string.h>
#include <sys/prctl.h>

#define SOCKET 3

int main(int argc, char **argv)
{
	bool opener = argc == 2 && strcmp(argv[1], "open") == 0;

	prctl(PR_SET_NAME, opener ? "psc-opener" : "psc-guardian");
	if (chdir("/") < 0)
		return 1;
	if (opener)
		return psc_opener_run(SOCKET) < 0;
	return psc_guardian_run(SOCKET) < 0;
}
