/* The loop, without Python: a real child under a real filter, answered by a table, by the caller, and counted. */
#define _GNU_SOURCE
#include "check.h"
#include "notifying.h"
#include "psc.h"
#include "reaper.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CALLS = 200 };

static uint32_t arch;

/* Two calls that never fail, and openat. */
static int load(void)
{
	return load_notifying((const char *const[]){ "getppid", "getpgid", "openat", NULL });
}

static void give_fd(int sock, int fd)
{
	char byte = 'l', room[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room) };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);

	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(head), &fd, sizeof(fd));
	CHECK(sendmsg(sock, &message, 0) == 1);
}

static int take_fd(int sock)
{
	char byte, room[CMSG_SPACE(sizeof(int))];
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room) };
	int fd;

	CHECK(recvmsg(sock, &message, MSG_CMSG_CLOEXEC) == 1 && CMSG_FIRSTHDR(&message));
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
	return fd;
}

/* A child that loads the filter and then runs calls(); its exit status says whether all was right. */
static pid_t start(int (*calls)(void), int *ret_listener)
{
	int socks[2];
	pid_t pid;

	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, socks) == 0);
	pid = fork();
	if (pid == 0) {
		int fd = load();

		give_fd(socks[1], fd);
		close(fd);
		_exit(calls());
	}
	CHECK(pid > 0);
	*ret_listener = take_fd(socks[0]);
	close(socks[0]);
	close(socks[1]);
	return pid;
}

static struct psc_inbox *inbox_of(int listener)
{
	int signal = psc_wake_signal_install();
	struct psc_inbox *inbox;

	CHECK(signal > 0);
	CHECK(psc_inbox_new(signal, &inbox) == 0 && psc_inbox_add(inbox, listener) == 0);
	return inbox;
}

static int all_kinds(void)
{
	for (long i = 0; i < CALLS; i++) {
		if (syscall(SYS_getppid, i) != 7)
			return 1;
		if (syscall(SYS_getpgid, i) != i + 1)
			return 2;
		if (syscall(SYS_openat, AT_FDCWD, "/secret/file", O_RDONLY) != -1 || errno != EACCES)
			return 3;
	}
	return 0;
}

static struct psc_table *rules(void)
{
	const struct psc_string secret = { PSC_STRING_PREFIX, "/secret/", 8 };
	const struct psc_term string = { .kind = PSC_TERM_STRING, .arg = 1 };
	const struct psc_answer otherwise = { .kind = PSC_HOLD };
	const struct psc_rule list[] = {
		{ .arch = arch, .nr = SYS_getppid, .answer = { .kind = PSC_VALUE, .value = 7 } },
		{ .arch = arch, .nr = SYS_openat, .answer = { .kind = PSC_ERROR, .error = EACCES }, .terms = &string, .n_terms = 1,
		  .strings = &secret, .n_strings = 1, .unreadable = { .kind = PSC_ERROR, .error = EFAULT } },
	};
	struct psc_table *table;

	CHECK(psc_table_new(list, 2, &otherwise, &table) == 0);
	return table;
}

static void a_table_the_caller_and_a_ring(void)
{
	struct psc_stats_totals totals;
	struct psc_table *table = rules();
	static struct psc_record found[3 * CALLS + 1];
	struct psc_stats *stats;
	struct psc_ring *ring;
	struct psc_event event;
	struct psc_inbox *inbox;
	struct reaper reaper;
	int listener, r, held = 0;
	pid_t pid = start(all_kinds, &listener);

	inbox = inbox_of(listener);
	reaper_start(&reaper, pid);
	CHECK(psc_stats_new(&stats) == 0 && psc_ring_new(3 * CALLS, &ring) == 0);
	psc_stats_keep_records(stats, ring);
	psc_inbox_begin(inbox, &event);
	while ((r = psc_serve(inbox, table, stats, &event)) == 1 || r == -EINTR) {
		if (r != 1)
			continue;
		psc_stats_sum(stats, &totals);
		CHECK(totals.pending == 1 && event.notif.n.data.nr == SYS_getpgid);
		event.answer = (struct psc_answer){ .kind = PSC_VALUE, .value = (int64_t)event.notif.n.data.args[0] + 1 };
		if (held++ % 2)
			event.due = true;
		else
			CHECK(psc_event_answer(inbox, &event, &event.answer, stats) == 0);
	}
	CHECK(r == -ESHUTDOWN);
	psc_inbox_end(inbox);
	CHECK(reaper_end(&reaper) == 0 && held == CALLS);
	psc_stats_sum(stats, &totals);
	CHECK(totals.answered[PSC_VALUE] == 2 * CALLS && totals.answered[PSC_ERROR] == CALLS);
	CHECK(totals.pending == 0 && totals.gone == 0);
	CHECK(psc_ring_read(ring, found, 3 * CALLS + 1) == 3 * CALLS && psc_ring_dropped(ring) == 0);
	for (size_t i = 0; i < 3 * CALLS; i += 3) {
		CHECK(found[i].nr == SYS_getppid && found[i].value == 7 && found[i].text_len == 0);
		CHECK(found[i + 1].nr == SYS_getpgid && found[i + 1].value == (int64_t)found[i + 1].args[0] + 1);
		CHECK(found[i + 2].error == EACCES && found[i + 2].text_len >= 8 && !memcmp(found[i + 2].text, "/secret/", 8));
	}
	psc_inbox_free(inbox);
	psc_stats_free(stats);
	psc_ring_free(ring);
	psc_table_free(table);
	close(listener);
}

static int wait_for_ever(void)
{
	pause();
	return 0;
}

static void *stop_soon(void *inbox)
{
	usleep(20000);
	CHECK(psc_inbox_stop(inbox) == 0);
	return NULL;
}

static void a_stop_from_another_thread(void)
{
	struct psc_table *table = rules();
	struct psc_inbox *inbox;
	struct psc_event event;
	pthread_t thread;
	int listener, r;
	pid_t pid = start(wait_for_ever, &listener);

	inbox = inbox_of(listener);
	psc_inbox_begin(inbox, &event);
	CHECK(pthread_create(&thread, NULL, stop_soon, inbox) == 0);
	do
		r = psc_serve(inbox, table, NULL, &event);
	while (r == -EINTR);
	CHECK(r == -ECANCELED);
	psc_inbox_end(inbox);
	pthread_join(thread, NULL);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	psc_inbox_free(inbox);
	psc_table_free(table);
	close(listener);
}

struct witness {
	struct psc_stats *stats;
	int listener;
	_Atomic int wrong;
	pthread_barrier_t loaded;
};

/* A thread under the filter: whatever it sees of an answer must be counted by then. */
static void *be_answered(void *argument)
{
	struct witness *witness = argument;
	struct psc_stats_totals totals;

	witness->listener = load();
	pthread_barrier_wait(&witness->loaded);
	for (uint64_t i = 1; i <= 10 * CALLS; i++) {
		syscall(SYS_getppid);
		psc_stats_sum(witness->stats, &totals);
		witness->wrong += totals.answered[PSC_VALUE] != 2 * i - 1 || totals.pending != 0;
		syscall(SYS_getpgid, 0);
		psc_stats_sum(witness->stats, &totals);
		witness->wrong += totals.answered[PSC_VALUE] != 2 * i || totals.pending != 0;
	}
	return NULL;
}

/* The demo once saw a denied request before the denial was counted. */
static void an_effect_that_is_seen_is_counted(void)
{
	struct witness witness = { 0 };
	struct psc_table *table = rules();
	struct psc_inbox *inbox;
	struct psc_event event;
	pthread_t thread;
	int r;

	CHECK(psc_stats_new(&witness.stats) == 0);
	CHECK(pthread_barrier_init(&witness.loaded, NULL, 2) == 0);
	CHECK(pthread_create(&thread, NULL, be_answered, &witness) == 0);
	pthread_barrier_wait(&witness.loaded);
	inbox = inbox_of(witness.listener);
	psc_inbox_begin(inbox, &event);
	while ((r = psc_serve(inbox, table, witness.stats, &event)) == 1 || r == -EINTR) {
		event.answer = (struct psc_answer){ .kind = PSC_VALUE };
		event.due = r == 1;
	}
	CHECK(r == -ESHUTDOWN);
	psc_inbox_end(inbox);
	pthread_join(thread, NULL);
	CHECK(witness.wrong == 0);
	pthread_barrier_destroy(&witness.loaded);
	psc_inbox_free(inbox);
	psc_stats_free(witness.stats);
	psc_table_free(table);
	close(witness.listener);
}

extern const ptrdiff_t __rseq_offset __attribute__((weak));

static int32_t rseq_processor(void)
{
	struct { uint32_t start, processor; } *area = (void *)((char *)__builtin_thread_pointer() + __rseq_offset);

	return *(volatile int32_t *)&area->processor;
}

static void rseq_is_taken_away_and_given_back(void)
{
	unsigned int size;

	if (!&__rseq_offset || rseq_processor() < 0)
		return;
	size = psc_rseq_suspend();
	CHECK(size && rseq_processor() < 0);
	CHECK(psc_rseq_suspend() == 0);
	psc_rseq_resume(0);
	CHECK(rseq_processor() < 0);
	psc_rseq_resume(size);
	CHECK(rseq_processor() >= 0);
}

int main(void)
{
	arch = psc_arch_token((enum psc_arch)psc_arch_native());
	a_table_the_caller_and_a_ring();
	a_stop_from_another_thread();
	an_effect_that_is_seen_is_counted();
	rseq_is_taken_away_and_given_back();
	return 0;
}
