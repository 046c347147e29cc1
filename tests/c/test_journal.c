/* A journal of nothing, adopted; and what is no journal is refused. Real notifications go through it in
 * tests/kernel/test_guardian.py. */
#define _GNU_SOURCE
#include "check.h"
#include "journal.h"

#include <fcntl.h>
#include <string.h>

int main(void)
{
	struct psc_journal *journal, *adopted;
	struct psc_event event;
	union psc_notif n;
	size_t at = 0, which;
	int fd, unsealed = memfd_create("x", MFD_CLOEXEC), null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	CHECK(psc_journal_new(&fd, &journal) == 0);
	CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	memset(&event, 0, sizeof(event));
	/* More failures than there are slots: each gives its slot back. */
	for (int i = 0; i < 5000; i++)
		CHECK(psc_journal_receive(journal, null, &event) == -ENOTTY && event.slot == 0);
	psc_journal_done(journal, &event);
	psc_journal_done(NULL, &event);
	CHECK(psc_journal_adopt(fd, &adopted) == 0);
	CHECK(psc_journal_orphans(adopted) == 0);
	CHECK(psc_journal_next(adopted, &at, &n) == 0);
	CHECK(psc_journal_take(adopted, &fd, 1, &event, &which) == 0);
	psc_journal_free(adopted);
	psc_journal_free(journal);
	psc_journal_free(NULL);
	CHECK(psc_journal_adopt(unsealed, &adopted) == -EMEDIUMTYPE);
	CHECK(psc_journal_adopt(null, &adopted) == -EMEDIUMTYPE);
	CHECK(psc_journal_adopt(-1, &adopted) == -EBADF);
	close(fd);
	close(unsealed);
	close(null);
	return 0;
}
