/* results.c - which calls of some tasks failed, and how: what a notification, which comes
 * at a call's entry, cannot tell.
 *
 * The tracepoint raw_syscalls:sys_exit, by perf_event_open(2), for the given threads and
 * all that descends from them. The kernel's own filter lets errors alone through, so
 * calls that succeed cost no record. An inherited event must be bound to a processor to
 * have a buffer: there is one for each, which the events of all threads share. */
#define _GNU_SOURCE
#include "internal.h"
#include "psc.h"

#include <linux/perf_event.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define DATA_SIZE (64 * 4096) /* a power of two pages */
#define HEAD_SIZE 4096
/* From 512 on the kernel says to itself that a call is to be made again. */
#define FAILED "ret < 0 && ret > -512"

struct buffer {
	struct perf_event_mmap_page *page;
	int fd;
};

struct psc_results {
	struct buffer *buffers;
	size_t n_buffers;
	int *fds;
	size_t n_fds;
	uint64_t lost;
};

/* What the tracepoint writes behind the fields that all have. */
struct sample {
	struct perf_event_header header;
	uint32_t pid, tid;
	uint32_t raw_size;
	uint8_t common[8];
	int64_t nr, result;
} __attribute__((packed));

static int open_event(uint64_t tracepoint, pid_t tid, int cpu)
{
	struct perf_event_attr attr = {
		.type = PERF_TYPE_TRACEPOINT,
		.size = sizeof(attr),
		.config = tracepoint,
		.sample_period = 1,
		.sample_type = PERF_SAMPLE_TID | PERF_SAMPLE_RAW,
		.inherit = 1,
		.disabled = 1,
	};

	return (int)psc_syscall(SYS_perf_event_open, &attr, tid, cpu, -1, PERF_FLAG_FD_CLOEXEC);
}

/* 0: this processor is off. */
static int add_event(struct psc_results *results, uint64_t tracepoint, pid_t tid, int cpu, struct buffer *buffer)
{
	int fd = open_event(tracepoint, tid, cpu);

	if (fd == -ENODEV)
		return 0;
	if (fd < 0)
		return fd;
	results->fds[results->n_fds++] = fd;
	if (ioctl(fd, PERF_EVENT_IOC_SET_FILTER, FAILED) < 0)
		return -errno;
	if (!buffer->page) {
		void *map = mmap(NULL, HEAD_SIZE + DATA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

		if (map == MAP_FAILED)
			return -errno;
		buffer->page = map;
		buffer->fd = fd;
	} else if (ioctl(fd, PERF_EVENT_IOC_SET_OUTPUT, buffer->fd) < 0) {
		return -errno;
	}
	return ioctl(fd, PERF_EVENT_IOC_ENABLE, 0) < 0 ? -errno : 0;
}

int psc_results_open(uint64_t tracepoint, const pid_t *tids, size_t n, struct psc_results **ret_results)
{
	long cpus = sysconf(_SC_NPROCESSORS_CONF);
	struct psc_results *results;
	int r = 0;

	if (cpus < 1)
		return -EIO;
	results = calloc(1, sizeof(*results));
	if (!results)
		return -ENOMEM;
	results->n_buffers = (size_t)cpus;
	results->buffers = calloc((size_t)cpus, sizeof(*results->buffers));
	results->fds = calloc((size_t)cpus * n, sizeof(*results->fds));
	if (!results->buffers || !results->fds)
		r = -ENOMEM;
	for (size_t i = 0; r == 0 && i < n; i++)
		for (int cpu = 0; r == 0 && cpu < cpus; cpu++) {
			r = add_event(results, tracepoint, tids[i], cpu, &results->buffers[cpu]);
			if (r == -ESRCH) /* a thread that has ended */
				r = 0;
		}
	if (r < 0) {
		psc_results_free(results);
		return r;
	}
	*ret_results = results;
	return 0;
}

static void copy_out(const struct buffer *buffer, uint64_t from, void *data, size_t size)
{
	const uint8_t *ring = (const uint8_t *)buffer->page + HEAD_SIZE;
	size_t at = (size_t)(from % DATA_SIZE), first = size < DATA_SIZE - at ? size : DATA_SIZE - at;

	memcpy(data, ring + at, first);
	memcpy((uint8_t *)data + first, ring, size - first);
}

static size_t drain_one(struct psc_results *results, struct buffer *buffer, struct psc_result *found, size_t size)
{
	uint64_t head, tail = buffer->page->data_tail;
	size_t n = 0;

	head = __atomic_load_n(&buffer->page->data_head, __ATOMIC_ACQUIRE);
	while (tail < head && n < size) {
		struct perf_event_header header;
		struct sample sample;
		uint64_t lost[2]; /* id, how many */

		copy_out(buffer, tail, &header, sizeof(header));
		if (header.size < sizeof(header))
			break;
		if (header.type == PERF_RECORD_SAMPLE && header.size >= sizeof(sample)) {
			copy_out(buffer, tail, &sample, sizeof(sample));
			found[n++] = (struct psc_result){ (pid_t)sample.tid, (int32_t)sample.nr, (int32_t)-sample.result };
		} else if (header.type == PERF_RECORD_LOST && header.size >= sizeof(header) + sizeof(lost)) {
			copy_out(buffer, tail + sizeof(header), lost, sizeof(lost));
			results->lost += lost[1];
		}
		tail += header.size;
	}
	__atomic_store_n(&buffer->page->data_tail, tail, __ATOMIC_RELEASE);
	return n;
}

size_t psc_results_drain(struct psc_results *results, struct psc_result *ret_results, size_t size)
{
	size_t n = 0;

	for (size_t i = 0; i < results->n_buffers && n < size; i++)
		if (results->buffers[i].page)
			n += drain_one(results, &results->buffers[i], ret_results + n, size - n);
	return n;
}

uint64_t psc_results_lost(const struct psc_results *results)
{
	return results->lost;
}

void psc_results_free(struct psc_results *results)
{
	if (!results)
		return;
	for (size_t i = 0; results->buffers && i < results->n_buffers; i++)
		if (results->buffers[i].page)
			munmap(results->buffers[i].page, HEAD_SIZE + DATA_SIZE);
	for (size_t i = 0; i < results->n_fds; i++)
		close(results->fds[i]);
	free(results->buffers);
	free(results->fds);
	free(results);
}
