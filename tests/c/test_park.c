/* An embedder that fills in options with zeros gets nothing that it did not ask for. */
#define _GNU_SOURCE
#include "check.h"
#include "psc.h"

#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void a_park_without_a_deadline_waits(void)
{
	struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct psc_park_options options = { .insns = &allow, .len = 1, .no_new_privs = -1 };
	struct psc_page *page = NULL;
	struct psc_park *park = NULL;
	int channel[2];

	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel) == 0);
	CHECK(psc_filterfd_create_owned(&allow, 1, 0, &options.fd, &page) == 0);
	options.channel = channel[1];
	CHECK(psc_park_start(&options, &park) == 0);
	CHECK(poll(&(struct pollfd){ 0 }, 0, 100) == 0);
	CHECK(psc_park_state_of(park) == PSC_PARK_WAITING);
	psc_park_end(park);
	psc_page_unmap(page);
	close(options.fd);
	close(channel[0]);
	close(channel[1]);
}

int main(void)
{
	a_park_without_a_deadline_waits();
	return 0;
}
