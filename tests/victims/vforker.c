/* The parent of a vfork: it sleeps, uninterruptibly for anything but a fatal signal, until its child ends. The child
 * says "ready" once the parent must be there, and ends at the first line; the parent then answers the lines. */
#include <sys/wait.h>
#include "victim.h"

int main(void)
{
	int status;
	pid_t child = vfork();

	if (child == 0) {
		say("ready");
		hear();
		_exit(5);
	}
	if (waitpid(child, &status, 0) != child || WEXITSTATUS(status) != 5)
		die("waitpid");
	say("child=5 probe=%d", probe());
	for (;;) {
		hear();
		say("child=5 probe=%d", probe());
	}
}
