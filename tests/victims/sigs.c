/* Under a rain of signals: SIGALRM from a timer, SIGUSR1 and numbered realtime signals from a child, each realtime
 * one with the next number. All realtime signals must arrive once: lost and doubled ones are counted, and those that
 * overtook another. Meanwhile the first thread reads a pipe into which another child writes counted bytes. Argument: "restart"
 * sets SA_RESTART, under which no read may fail; "norestart" does not, EINTR is then counted apart. */
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include "victim.h"

#define MAX_NUMBER 1000000

static struct shared {
	volatile long sent;
	volatile int stop;
} *shared;
static volatile long alarms, users, arrived, latest, overtaken;
static unsigned char seen[MAX_NUMBER];

static void on_alarm(int signal)
{
	(void)signal;
	alarms++;
}

static void on_user(int signal)
{
	(void)signal;
	users++;
}

static void on_numbered(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	arrived++;
	if (info->si_value.sival_int < latest)
		overtaken++;
	else
		latest = info->si_value.sival_int;
	if (info->si_value.sival_int < MAX_NUMBER && seen[info->si_value.sival_int] < 255)
		seen[info->si_value.sival_int]++;
}

static void send_numbered(pid_t target)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (long n = 1; !shared->stop && n < MAX_NUMBER; n++) {
		union sigval value = { .sival_int = n };

		while (sigqueue(target, SIGRTMIN, value))
			usleep(100);
		shared->sent = n;
		if (n % 8 == 0)
			kill(target, SIGUSR1);
		usleep(n % 16 ? 0 : 300);
	}
	_exit(0);
}

static void write_bytes(int fd)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (unsigned char n = 0;; n++) {
		if (write(fd, &n, 1) != 1)
			_exit(1);
		usleep(500);
	}
}

static void handle(int signal, int flags, void (*function)(int))
{
	struct sigaction action = { .sa_handler = function, .sa_flags = flags };

	sigaction(signal, &action, NULL);
}

int main(int argc, char **argv)
{
	int flags = argc > 1 && strcmp(argv[1], "restart") == 0 ? SA_RESTART : 0, pipe_fd[2];
	struct sigaction numbered = { .sa_sigaction = on_numbered, .sa_flags = flags | SA_SIGINFO };
	struct itimerval every = { { 0, 1000 }, { 0, 1000 } };
	long eintr = 0, bytes = 0, failed = 0, lost = 0, doubled = 0;
	unsigned char next = 0, got;
	pid_t sender, writer, self = getpid();

	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED || pipe(pipe_fd))
		die("start");
	handle(SIGALRM, flags, on_alarm);
	handle(SIGUSR1, flags, on_user);
	sigaction(SIGRTMIN, &numbered, NULL);
	if ((writer = fork()) == 0)
		write_bytes(pipe_fd[1]);
	if ((sender = fork()) == 0)
		send_numbered(self);
	setitimer(ITIMER_REAL, &every, NULL);
	say("ready");
	while (!heard()) {
		ssize_t n = read(pipe_fd[0], &got, 1);

		if (n < 0 && errno == EINTR)
			eintr++;
		else if (n != 1 || got != next++)
			failed++;
		else
			bytes++;
	}
	setitimer(ITIMER_REAL, &(struct itimerval){ 0 }, NULL);
	shared->stop = 1;
	while (waitpid(sender, NULL, 0) < 0 && errno == EINTR)
		;
	kill(writer, SIGKILL);
	for (long n = 1; n <= shared->sent; n++) {
		lost += seen[n] == 0;
		doubled += seen[n] > 1;
	}
	say("sent=%ld arrived=%ld lost=%ld doubled=%ld overtaken=%ld alarms=%ld users=%ld bytes=%ld failed=%ld eintr=%ld probe=%d",
	    shared->sent, arrived, lost, doubled, overtaken, alarms, users, bytes, failed, eintr, probe());
	hear();
}
