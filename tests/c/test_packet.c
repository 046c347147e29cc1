/* Packets of other sizes, with more descriptors than there is room for, and with a full table of them:
 * nothing leaks, and what can be kept is not lost. */
#define _GNU_SOURCE
#include "check.h"
#include "packet.h"
#include "internal.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#define SCM_MAX_FD 253

static int ours, theirs;

static int count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = -1; /* the directory's own */

	CHECK(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static void send_many(const void *data, size_t size, size_t n)
{
	struct iovec iov = { (void *)data, size };
	union {
		struct cmsghdr header;
		uint8_t room[CMSG_SPACE(SCM_MAX_FD * sizeof(int))];
	} control = { .header = { CMSG_LEN(n * sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = CMSG_SPACE(n * sizeof(int)) };
	int fds[SCM_MAX_FD];

	for (size_t i = 0; i < n; i++)
		fds[i] = theirs;
	memcpy(CMSG_DATA(&control.header), fds, n * sizeof(int));
	CHECK(sendmsg(ours, &m, 0) == (ssize_t)size);
}

static void test_what_is_no_packet_is_refused(void)
{
	static const size_t counts[] = { 0, 1, 2, 3, 63, 64, 65, 200, SCM_MAX_FD }, sizes[] = { 1, 15, 16, 17, 4096 };
	int before = count_fds(), fds[PSC_PACKET_FDS];
	char data[4096] = "", got[16];

	for (size_t i = 0; i < COUNT(counts); i++)
		for (size_t k = 0; k < COUNT(sizes); k++)
			for (int kept = 0; kept < 2; kept++)
				for (size_t room = 0; room <= 2; room++) {
					bool sound = sizes[k] == sizeof(got) && counts[i] <= room;
					int r;

					send_many(data, sizes[k], counts[i]);
					r = kept ? psc_packet_receive_kept(theirs, got, sizeof(got), fds, room) :
						   psc_packet_receive(theirs, got, sizeof(got), fds, room);
					CHECK(r == (sound ? (int)counts[i] : -EBADMSG));
					for (int at = 0; at < r; at++)
						close(fds[at]);
					CHECK(count_fds() == before);
				}
}

static void test_a_full_table_keeps_the_packet(void)
{
	struct rlimit limit, full;
	int before = count_fds(), first = dup(0), fds[PSC_PACKET_FDS];
	char got[4];

	close(first);
	CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	send_many("one", 4, 5);
	send_many("two", 4, 0);
	full = limit;
	for (int room = 0; room < 5; room++) {
		full.rlim_cur = (rlim_t)(first + room);
		CHECK(setrlimit(RLIMIT_NOFILE, &full) == 0);
		memset(got, 0, sizeof(got));
		CHECK(psc_packet_receive_kept(theirs, got, sizeof(got), fds, 64) == -EMFILE);
		CHECK(strcmp(got, "one") == 0);
	}
	CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
	CHECK(count_fds() == before);
	CHECK(psc_packet_receive_kept(theirs, got, sizeof(got), fds, 64) == 5);
	for (int i = 0; i < 5; i++) {
		CHECK(fcntl(fds[i], F_GETFD) == FD_CLOEXEC);
		close(fds[i]);
	}
	CHECK(psc_packet_receive_kept(theirs, got, sizeof(got), fds, 64) == 0 && strcmp(got, "two") == 0);
	send_many("one", 4, 5);
	send_many("two", 4, 0);
	psc_packet_drop(theirs);
	CHECK(psc_packet_receive_kept(theirs, got, sizeof(got), fds, 64) == 0 && strcmp(got, "two") == 0);
	CHECK(count_fds() == before);
}

int main(void)
{
	int pair[2];
	char got[4];

	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
	ours = pair[0];
	theirs = pair[1];
	test_what_is_no_packet_is_refused();
	test_a_full_table_keeps_the_packet();
	close(ours);
	CHECK(psc_packet_receive(theirs, got, sizeof(got), NULL, 0) == -ECONNRESET);
	CHECK(psc_packet_receive_kept(theirs, got, sizeof(got), NULL, 0) == -ECONNRESET);
	close(theirs);
	return 0;
}
