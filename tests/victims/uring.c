/* A process with an io_uring worker, which waits in open() of a FIFO. First argument: where to make that. Second argument
 * "diverged": the thread that made the ring, and so its worker, carry a filter that the main thread lacks. Answers lines
 * with the probe of both threads; at "end" the FIFO is opened, and reported whether the open of the worker succeeded. */
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include "victim.h"

static const char *fifo;
static int ring_fd;
static struct io_uring_params params;
static uint8_t *sq_ring, *cq_ring;
static struct io_uring_sqe *sqes;
static volatile int asked, answered;

static void make_ring(void)
{
	ring_fd = syscall(SYS_io_uring_setup, 4, &params);
	if (ring_fd < 0)
		die("io_uring_setup");
	sq_ring = mmap(NULL, params.sq_off.array + params.sq_entries * sizeof(uint32_t), PROT_READ | PROT_WRITE, MAP_SHARED,
		       ring_fd, IORING_OFF_SQ_RING);
	cq_ring = mmap(NULL, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE,
		       MAP_SHARED, ring_fd, IORING_OFF_CQ_RING);
	sqes = mmap(NULL, params.sq_entries * sizeof(*sqes), PROT_READ | PROT_WRITE, MAP_SHARED, ring_fd, IORING_OFF_SQES);
	if (sq_ring == MAP_FAILED || cq_ring == MAP_FAILED || sqes == MAP_FAILED)
		die("mmap");
}

static void submit_open(void)
{
	uint32_t *tail = (uint32_t *)(sq_ring + params.sq_off.tail), *array = (uint32_t *)(sq_ring + params.sq_off.array);

	sqes[0] = (struct io_uring_sqe){
		.opcode = IORING_OP_OPENAT, .flags = IOSQE_ASYNC, .fd = AT_FDCWD, .addr = (uint64_t)(uintptr_t)fifo, .open_flags = O_RDONLY,
	};
	array[*tail & *(uint32_t *)(sq_ring + params.sq_off.ring_mask)] = 0;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring_fd, 1, 0, 0, NULL, 0) != 1)
		die("io_uring_enter");
}

static int result(void)
{
	uint32_t *head = (uint32_t *)(cq_ring + params.cq_off.head);
	struct io_uring_cqe *cqes = (struct io_uring_cqe *)(cq_ring + params.cq_off.cqes);

	while (syscall(SYS_io_uring_enter, ring_fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0 && errno == EINTR)
		;
	return cqes[*head & *(uint32_t *)(cq_ring + params.cq_off.ring_mask)].res;
}

static void load(void)
{
	static struct sock_filter allow[] = { { BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW } };
	static struct sock_fprog program = { 1, allow };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
		die("seccomp");
}

static void *run(void *diverged)
{
	if (diverged)
		load();
	prctl(PR_SET_NAME, "iou-thread", 0, 0, 0);
	make_ring();
	submit_open();
	say("ready");
	while (true) {
		while (!asked)
			usleep(1000);
		asked = 0;
		answered = 1 + probe();
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	char line[16];
	ssize_t n;

	fifo = argv[1];
	if (argc < 2 || mkfifo(fifo, 0600) || pthread_create(&thread, NULL, run, argc > 2 ? argv : NULL))
		die("prepare");
	while ((n = read(0, line, sizeof(line))) > 0) {
		int res = -1;

		if (n >= 3 && memcmp(line, "end", 3) == 0) {
			if (open(fifo, O_WRONLY | O_NONBLOCK) < 0 && errno != ENXIO) /* ENXIO: the worker's open has failed */
				die("open");
			res = result();
		}
		answered = 0;
		asked = 1;
		while (!answered)
			usleep(1000);
		say("alive=1 opened=%d probe=%d sibling=%d", res, probe(), answered - 1);
	}
}
