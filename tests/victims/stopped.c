/* Spins and waits to be stopped by the test; counts how often it was continued (SIGCONT has a handler). */
#include <signal.h>
#include <stdatomic.h>
#include "spin.h"

static volatile sig_atomic_t continued;

static void on_continue(int signal)
{
	(void)signal;
	continued++;
}

int main(void)
{
	struct sigaction action = { .sa_handler = on_continue, .sa_flags = SA_RESTART };
	uint64_t seed = 1;
	long bad = 0;

	sigaction(SIGCONT, &action, NULL);
	say("ready");
	for (;;) {
		if (spin_round(&seed, 100000))
			bad++;
		if (heard())
			say("continued=%d bad=%ld probe=%d", continued, bad, probe());
	}
}
