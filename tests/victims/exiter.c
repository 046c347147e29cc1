/* Threads that end. "churn": detached threads come and go all the time. "leader": the first thread has ended, the
 * process lives on in two others (the first is a zombie until all end). */
#include <pthread.h>
#include <stdatomic.h>
#include "spin.h"

static atomic_long born, gone, bad;

static void *brief(void *arg)
{
	uint64_t seed = (uintptr_t)&arg;

	if (spin_round(&seed, 500))
		bad++;
	gone++;
	return arg;
}

static void *churn(void *arg)
{
	pthread_attr_t detached;
	pthread_t t;

	pthread_attr_init(&detached);
	pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
	for (;;) {
		while (born - gone > 20)
			usleep(50);
		if (pthread_create(&t, &detached, brief, NULL) == 0)
			born++;
	}
	return arg;
}

static void *spin(void *arg)
{
	uint64_t seed = (uintptr_t)arg;

	for (;;) {
		if (spin_round(&seed, 100000))
			bad++;
		gone++;
	}
	return arg;
}

static void *answer(void *arg)
{
	if (strcmp(arg, "leader") == 0)
		while (access("/proc/self/stat", R_OK) == 0) {
			char text[256] = "", *end;
			FILE *f = fopen("/proc/self/stat", "re");

			if (f && fgets(text, sizeof(text), f) && (end = strrchr(text, ')')) && end[2] == 'Z') {
				fclose(f);
				break;
			}
			if (f)
				fclose(f);
			usleep(500);
		}
	say("ready");
	for (;;) {
		hear();
		say("gone=%ld bad=%ld probe=%d", gone, bad, probe());
	}
	return NULL;
}

int main(int argc, char **argv)
{
	static char other[] = "churn";
	char *mode = argc > 1 ? argv[1] : other;
	pthread_t t;

	if (pthread_create(&t, NULL, answer, mode) ||
	    pthread_create(&t, NULL, strcmp(mode, "leader") == 0 ? spin : churn, (void *)1))
		die("pthread_create");
	if (strcmp(mode, "leader") == 0)
		pthread_exit(NULL);
	for (;;)
		pause();
}
