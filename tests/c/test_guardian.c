/* The guardian in a process of its own (sanitized, where this is): a manager and clients that send anything.
 * It answers what can be answered, ends when it should, and its memory is sound. */
#define _GNU_SOURCE
#include "check.h"
#include "internal.h"
#include "psc.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

static char path[64];

struct run {
	pid_t pid;
	int socket, filter, journal;
	struct psc_journal *mapped;
};

static int listen_here(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	strcpy(address.sun_path, path);
	unlink(path);
	CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(fd, 64) == 0);
	return fd;
}

static struct run begin(void)
{
	struct run run = { 0 };
	int pair[2];

	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
	run.pid = fork();
	CHECK(run.pid >= 0);
	if (run.pid == 0) {
		int r;

		close(pair[0]);
		r = psc_guardian_run(pair[1]);
		prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); /* for the leak checker */
		exit(r < 0);
	}
	close(pair[1]);
	run.socket = pair[0];
	return run;
}

static int32_t exchange(int socket, struct psc_guardian_message m, const int *fds, size_t n)
{
	struct psc_guardian_message answer;
	int got[PSC_GUARDIAN_FDS], r;

	CHECK(psc_guardian_send(socket, &m, fds, n) == 0);
	r = psc_guardian_receive(socket, &answer, got);
	CHECK(r >= 0);
	for (int i = 0; i < r; i++)
		close(got[i]);
	CHECK(answer.kind == PSC_GUARDIAN_DONE && answer.serial == m.serial);
	return answer.error;
}

static void greet(struct run *run)
{
	const struct sock_filter allow = { BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW };
	struct psc_guardian_message hello = { .kind = PSC_GUARDIAN_HELLO, .serial = 1 };
	int fds[4];

	CHECK(psc_filterfd_create(&allow, 1, 0, &run->filter) == 0);
	CHECK(psc_journal_new(&run->journal, &run->mapped) == 0);
	fds[0] = run->filter;
	fds[1] = run->journal;
	fds[2] = (int)syscall(SYS_pidfd_open, getpid(), 0);
	fds[3] = listen_here();
	CHECK(exchange(run->socket, hello, NULL, 0) == -EINVAL);
	CHECK(exchange(run->socket, hello, (int[]){ fds[1], fds[0], fds[2] }, 3) < 0); /* no filter */
	CHECK(exchange(run->socket, hello, fds, 4) == 0);
	CHECK(exchange(run->socket, hello, fds, 4) == -EINVAL);
	close(fds[2]);
	close(fds[3]);
}

static void end(struct run *run, bool in_order)
{
	struct psc_guardian_message bye = { .kind = PSC_GUARDIAN_BYE };
	int status;

	if (in_order)
		CHECK(psc_guardian_send(run->socket, &bye, NULL, 0) == 0);
	close(run->socket);
	CHECK(waitpid(run->pid, &status, 0) == run->pid);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	psc_journal_free(run->mapped);
	if (run->journal)
		close(run->journal);
	if (run->filter)
		close(run->filter);
}

static int connect_here(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	strcpy(address.sun_path, path);
	CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
	return fd;
}

static void fill(void *data, size_t size)
{
	for (size_t i = 0; i < size; i++)
		((uint8_t *)data)[i] = (uint8_t)rand();
}

/* Anything but what ends it (BYE), and no ward that has a target. */
static struct psc_guardian_message anything(void)
{
	struct psc_guardian_message m;

	fill(&m, sizeof(m));
	m.kind = rand() % 20;
	if (m.kind == PSC_GUARDIAN_BYE)
		m.kind = PSC_GUARDIAN_LISTEN;
	m.ward = (uint32_t)rand() % 4;
	m.n_outcomes = 0;
	m.deadline = -1;
	/* A bool that is none is no business of the guardian's, which never sees another program's. */
	m.guarded = m.kill = m.inject = m.leader_only = m.more = false;
	m.no_new_privs_set = m.suspended = m.common_listener = false;
	m.answer = (struct psc_answer){ .kind = rand() % 9 };
	return m;
}

static void test_a_manager_that_sends_anything(void)
{
	struct run run = begin();
	int pidfd = (int)syscall(SYS_pidfd_open, getppid(), 0), fds[PSC_GUARDIAN_FDS];

	greet(&run);
	for (size_t i = 0; i < COUNT(fds); i++)
		fds[i] = pidfd;
	for (int i = 0; i < 2000; i++) {
		struct psc_guardian_message m = anything();
		size_t n = (size_t)rand() % 5;

		if (m.kind == PSC_GUARDIAN_ACTIVATE) /* of no ward that is there */
			m.ward = 7;
		(void)exchange(run.socket, m, fds, rand() % 50 ? n : PSC_GUARDIAN_FDS);
	}
	close(pidfd);
	end(&run, true);
}

static void test_a_manager_that_never_reads(void)
{
	struct psc_guardian_message m = { .kind = PSC_GUARDIAN_RELEASE };
	struct run run = begin();
	struct pollfd p = { .fd = run.socket, .events = POLLOUT };
	int sent = 0;

	greet(&run);
	for (; poll(&p, 1, 200) == 1 && p.revents & POLLOUT && sent < 100000; sent++)
		CHECK(psc_guardian_send(run.socket, &m, NULL, 0) == 0);
	CHECK(sent < 100000);
	end(&run, false);
}

static void test_what_is_no_message_is_the_managers_end(void)
{
	for (size_t size = 1; size < 3000; size += 700) {
		uint8_t bytes[3000];
		struct run run = begin();

		greet(&run);
		fill(bytes, size);
		CHECK(send(run.socket, bytes, size, 0) == (ssize_t)size);
		end(&run, false);
	}
}

static void test_clients_that_send_anything(void)
{
	struct psc_guardian_message info = { .kind = PSC_GUARDIAN_INFO, .serial = 5 };
	struct run run = begin();
	int crowd[200];

	greet(&run);
	for (size_t i = 0; i < COUNT(crowd); i++) {
		uint8_t bytes[3000];
		struct psc_guardian_message m = anything();

		crowd[i] = connect_here();
		fill(bytes, sizeof(bytes));
		if (i % 3 == 0)
			(void)!send(crowd[i], bytes, (size_t)rand() % sizeof(bytes), MSG_NOSIGNAL);
		else if (i % 3 == 1)
			(void)!psc_guardian_send(crowd[i], &m, &run.socket, (size_t)rand() % 2);
		if (i % 10 == 0) {
			int honest = connect_here();

			CHECK(exchange(honest, info, NULL, 0) == 0);
			info.kind = PSC_GUARDIAN_RECLAIM;
			CHECK(exchange(honest, info, NULL, 0) == -EBUSY);
			info.kind = PSC_GUARDIAN_INFO;
			close(honest);
		}
	}
	for (size_t i = 0; i < COUNT(crowd); i++)
		close(crowd[i]);
	end(&run, true);
	CHECK(access(path, F_OK) < 0);
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	alarm(120);
	srand(6);
	snprintf(path, sizeof(path), "/tmp/psc-test-guardian-%d", getpid());
	test_a_manager_that_sends_anything();
	test_a_manager_that_never_reads();
	test_what_is_no_message_is_the_managers_end();
	test_clients_that_send_anything();
	return 0;
}
