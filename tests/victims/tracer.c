/* Another tracer: seizes the process whose id is its argument, says "ready", and holds it until the end of input. */
#include <sys/ptrace.h>
#include "victim.h"

int main(int argc, char **argv)
{
	if (argc < 2 || ptrace(PTRACE_SEIZE, atoi(argv[1]), 0, 0))
		die("seize");
	say("ready");
	for (;;) {
		hear();
		say("tracing=%s", argv[1]);
	}
}
