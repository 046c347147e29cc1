/* Forks all the time. A child that is born after its parent was filtered must be filtered, and every child must
 * end as it meant to: anything else counts as bad. */
#include <sys/wait.h>
#include "spin.h"

int main(void)
{
	long forks = 0, bad = 0, denied = 0;
	uint64_t seed = 1;
	int before, status;
	pid_t child;

	say("ready");
	for (;;) {
		before = probe();
		child = fork();
		if (child == 0)
			_exit(spin_round(&seed, 3000) ? 99 : probe());
		forks++;
		if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) {
			bad++;
			continue;
		}
		status = WEXITSTATUS(status);
		if (status == 99 || (before && status != before))
			bad++;
		if (status)
			denied++;
		spin_round(&seed, 1);
		if (heard())
			say("forks=%ld bad=%ld denied=%ld probe=%d", forks, bad, denied, probe());
	}
}
