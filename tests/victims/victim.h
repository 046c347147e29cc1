/* victim.h - what all victims share.
 *
 * A victim prints "ready" once it is in position. From then on it answers each
 * line on its input with one line of facts, key=value separated by blanks, and
 * ends at the end of its input. The fact "probe" is the errno that getppid(),
 * which cannot fail, fails with: 0 says that no filter denies it.
 */
#ifndef VICTIM_H
#define VICTIM_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static inline int probe(void)
{
	return syscall(SYS_getppid) < 0 ? errno : 0;
}

static inline int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* One line, in one write: lines of several threads do not mix. */
__attribute__((format(printf, 1, 2))) static inline void say(const char *format, ...)
{
	char text[512];
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(text, sizeof(text) - 1, format, args);
	va_end(args);
	text[n++] = '\n';
	if (write(1, text, n) != n)
		_exit(70);
}

/* Report the errno of what failed, and end. */
__attribute__((noreturn)) static inline void die(const char *what)
{
	say("failed=%s errno=%d", what, errno);
	exit(71);
}

/* Wait for a line; ends the victim at the end of input. */
static inline void hear(void)
{
	char c = 0;
	ssize_t n;

	do {
		n = read(0, &c, 1);
		if (n == 0)
			exit(0);
		if (n < 0)
			die("read");
	} while (c != '\n');
}

/* True if a line was there, without waiting. */
static inline bool heard(void)
{
	struct pollfd p = { .fd = 0, .events = POLLIN };

	if (poll(&p, 1, 0) <= 0)
		return false;
	hear();
	return true;
}

#endif
