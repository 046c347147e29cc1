/* The target of the matrix: several threads and a child that sleep, write and check without end, and tell of each round.
 *
 * It works in its current directory alone, which is its root in a container: ./state is the memory that it shares with the
 * test, ./work the file that it keeps right, ./filter.N the programs that it loads on itself, ./target this program.
 * Descriptor 1 carries one letter for each finished round of a thread, in capitals if something went wrong there;
 * struct state then says what. Built with -static, so that it needs nothing in a chroot. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include "victim.h"

enum { MAIN, NANOSLEEP, POLL, FUTEX, READER, CHILD, FORKED, ROLES };
enum { IDLE, PROBE, EXEC, FORK, OPEN, LEAVE };
enum wrong { WRONG_STATUS = 1, WRONG_EARLY, WRONG_LATE, WRONG_FILE, WRONG_WAKE };

static const char letters[ROLES] = "mnpfrck";

/* tests/matrix/target.py reads this: int32 each. */
struct state {
	int32_t request, answered, result;
	int32_t wrongs, wrong_role, wrong_kind, wrong_value;
	int32_t probe[ROLES], rounds[ROLES];
};

static struct state *state;
static int work, nothing[2];
static bool no_futex, no_poll, diverge;
static int late_ms = 8000;

static void wrong(int role, enum wrong kind, long value)
{
	if (__atomic_fetch_add(&state->wrongs, 1, __ATOMIC_SEQ_CST) == 0) {
		state->wrong_role = role;
		state->wrong_kind = kind;
		state->wrong_value = value;
	}
}

static void load(const char *path)
{
	struct sock_filter insns[4096];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, insns, sizeof(insns));
	struct sock_fprog program = { .len = n / sizeof(insns[0]), .filter = insns };

	if (n <= 0)
		die(path);
	close(fd);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
		die("seccomp");
}

/* What a sleep answered is judged: its status, and how long it took. */
static void judge(int role, long status, int64_t start, int ms)
{
	int64_t took = (now_ns() - start) / 1000000;

	if (status)
		wrong(role, WRONG_STATUS, status);
	else if (took < ms - 1)
		wrong(role, WRONG_EARLY, took);
	else if (took > ms + late_ms)
		wrong(role, WRONG_LATE, took);
}

static void finish_round(int role, int wrongs)
{
	char letter = letters[role] - (state->wrongs != wrongs ? 'a' - 'A' : 0);

	state->probe[role] = probe();
	state->rounds[role]++;
	(void)!write(1, &letter, 1); /* the socket does not block: it may be full */
}

static void sleep_for(int role, int ms)
{
	struct timespec t = { .tv_nsec = ms * 1000000L };
	int64_t start = now_ns();
	int wrongs = state->wrongs;

	judge(role, nanosleep(&t, NULL) ? errno : 0, start, ms);
	finish_round(role, wrongs);
}

static void *sleeper(void *)
{
	if (diverge)
		load("filter.d");
	for (;;)
		sleep_for(NANOSLEEP, 80);
	return NULL;
}

static void *poller(void *)
{
	for (;;) {
		struct pollfd p = { .fd = nothing[0], .events = POLLIN };
		int64_t start = now_ns();
		int wrongs = state->wrongs, r = poll(&p, 1, 80);

		judge(POLL, r < 0 ? errno : r, start, 80);
		finish_round(POLL, wrongs);
	}
	return NULL;
}

static void *waiter(void *)
{
	static uint32_t word;

	if (diverge)
		load("filter.d");
	for (;;) {
		struct timespec t = { .tv_nsec = 80000000L };
		int64_t start = now_ns();
		int wrongs = state->wrongs;
		long r = syscall(SYS_futex, &word, 0, 0, &t, NULL, 0); /* FUTEX_WAIT */

		judge(FUTEX, r < 0 && errno == ETIMEDOUT ? 0 : r < 0 ? errno : 1, start, 80);
		finish_round(FUTEX, wrongs);
	}
	return NULL;
}

/* Waits in a read that nothing ever ends. */
static void *reader(void *)
{
	char c;
	long r;

	(void)!write(1, &letters[READER], 1); /* it is there: its birth is over */
	r = read(nothing[0], &c, 1);
	wrong(READER, WRONG_WAKE, r < 0 ? errno : r);
	return NULL;
}

__attribute__((noreturn)) static int child(void *)
{
	for (;;)
		sleep_for(CHILD, 60);
}

/* The file holds the number of rounds: what was written is read back, and nothing else is there. */
static void check_file(void)
{
	static int64_t last;
	int64_t seen = -1;

	if (last && (pread(work, &seen, sizeof(seen), 0) != sizeof(seen) || seen != last))
		wrong(MAIN, WRONG_FILE, seen);
	last++;
	if (pwrite(work, &last, sizeof(last), 0) != sizeof(last))
		wrong(MAIN, WRONG_FILE, errno);
}

static int open_work(void)
{
	char head[5] = "";
	int fd = syscall(SYS_openat, AT_FDCWD, "hello", O_RDONLY | O_CLOEXEC), error = errno;

	if (fd < 0)
		return error;
	error = read(fd, head, sizeof(head)) == sizeof(head) && memcmp(head, "hello", 5) == 0 ? 0 : 1000;
	close(fd);
	return error;
}

static void obey(int request, char **argv)
{
	char *again[] = { argv[0], "--again", NULL };
	pid_t pid;

	switch (request) {
	case PROBE:
		state->result = syscall(SYS_getpgid, 0) < 0 ? errno : 0;
		break;
	case EXEC:
		state->request = IDLE;
		execve("./target", again, NULL);
		state->result = errno;
		break;
	case FORK:
		pid = fork();
		while (pid == 0)
			sleep_for(FORKED, 60);
		state->result = pid < 0 ? -errno : pid;
		break;
	case OPEN:
		state->result = open_work();
		break;
	case LEAVE:
		exit(0);
	}
	state->request = IDLE;
	state->answered++;
}

/* An io_uring with a worker of its own, which waits in a read as long as the process lives. */
static void use_io_uring(void)
{
	struct io_uring_params p = { 0 };
	int fd = syscall(SYS_io_uring_setup, 4, &p);
	char *rings;
	struct io_uring_sqe *sqe;
	static char c;

	if (fd < 0)
		die("io_uring_setup");
	rings = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, IORING_OFF_SQ_RING);
	sqe = mmap(NULL, 4 * sizeof(*sqe), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, IORING_OFF_SQES);
	if (rings == MAP_FAILED || sqe == MAP_FAILED)
		die("io_uring mmap");
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = IORING_OP_READ;
	sqe->flags = IOSQE_ASYNC;
	sqe->fd = nothing[0];
	sqe->addr = (uintptr_t)&c;
	sqe->len = 1;
	((uint32_t *)(rings + p.sq_off.array))[0] = 0;
	__atomic_store_n((uint32_t *)(rings + p.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, fd, 1, 0, 0, NULL, 0) != 1)
		die("io_uring_enter");
}

static void map_state(void)
{
	int fd = open("state", O_RDWR | O_CLOEXEC);

	state = mmap(NULL, sizeof(*state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	work = open("work", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || state == MAP_FAILED || work < 0 || pipe2(nothing, O_CLOEXEC))
		die("state");
}

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		die(path);
	close(fd);
}

/* Be in those namespaces, as the first process of a new pid namespace. */
static void enter_namespaces(int flags, bool mount_proc)
{
	char map[64];
	int uid = geteuid(), gid = getegid(), status;
	pid_t pid;

	if (unshare(flags))
		die("unshare");
	if (flags & CLONE_NEWUSER) {
		write_text("/proc/self/setgroups", "deny");
		snprintf(map, sizeof(map), "0 %d 1", uid);
		write_text("/proc/self/uid_map", map);
		snprintf(map, sizeof(map), "0 %d 1", gid);
		write_text("/proc/self/gid_map", map);
	}
	if (flags & CLONE_NEWPID) {
		pid = fork();
		if (pid < 0)
			die("fork");
		if (pid > 0) {
			close(1);
			waitpid(pid, &status, 0);
			_exit(0);
		}
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	}
	if (mount_proc && (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount("proc", "/proc", "proc", 0, NULL)))
		die("mount /proc");
}

/* Take the place that the options name, then become the plain program there: an exec makes the process an ordinary one of its
 * user again, and others of that user may read its memory. */
static void take_place(int argc, char **argv)
{
	int flags = 0, uid = -1, n = 0;
	bool chrooted = false, mount_proc = false, enters = false;
	char *rest[32];

	rest[n++] = argv[0];
	for (int i = 1; i < argc && n < 30; i++) {
		const char *a = argv[i];

		if (strcmp(a, "--pid") == 0)
			flags |= CLONE_NEWPID;
		else if (strcmp(a, "--mnt") == 0)
			flags |= CLONE_NEWNS, mount_proc = true;
		else if (strcmp(a, "--user") == 0)
			flags |= CLONE_NEWUSER;
		else if (strcmp(a, "--chroot") == 0)
			chrooted = true;
		else if (strncmp(a, "--uid=", 6) == 0)
			uid = atoi(a + 6);
		else {
			rest[n++] = argv[i];
			continue;
		}
		enters = true;
	}
	rest[n] = NULL;
	if (!enters)
		return;
	if (uid >= 0 && (flags & CLONE_NEWUSER) &&
	    (setresgid(uid, uid, uid) || setresuid(uid, uid, uid) || prctl(PR_SET_DUMPABLE, 1)))
		die("user");
	if (flags)
		enter_namespaces(flags, mount_proc);
	if (chrooted && (chroot(".") || chdir("/")))
		die("chroot");
	if (uid >= 0 && !(flags & CLONE_NEWUSER) && (setresgid(uid, uid, uid) || setresuid(uid, uid, uid)))
		die("user");
	execve("./target", rest, environ);
	die("exec");
}

static void start_thread(void *(*function)(void *))
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, function, NULL))
		die("pthread_create");
}

static void start_child(int sharing)
{
	static char stack[1 << 16] __attribute__((aligned(64)));

	if (sharing ? clone(child, stack + sizeof(stack), sharing | SIGCHLD, NULL) < 0 : 0)
		die("clone");
	if (!sharing) {
		pid_t pid = fork();

		if (pid < 0)
			die("fork");
		if (pid == 0)
			child(NULL);
	}
}

int main(int argc, char **argv)
{
	int filters = 0, sharing = 0;
	bool again = false, io_uring = false, reads = true;
	char path[32];

	take_place(argc, argv);
	for (int i = 1; i < argc; i++) {
		const char *a = argv[i];

		if (strncmp(a, "--filters=", 10) == 0)
			filters = atoi(a + 10);
		else if (strcmp(a, "--diverge") == 0)
			diverge = true;
		else if (strcmp(a, "--no-futex") == 0)
			no_futex = true;
		else if (strcmp(a, "--no-poll") == 0)
			no_poll = true;
		else if (strcmp(a, "--io-uring") == 0)
			io_uring = true;
		else if (strcmp(a, "--share-memory") == 0)
			sharing |= CLONE_VM;
		else if (strcmp(a, "--share-files") == 0)
			sharing |= CLONE_FILES;
		else if (strcmp(a, "--again") == 0)
			again = true;
		else
			die(a);
	}
	map_state();
	if (io_uring)
		use_io_uring();
	for (int i = 0; i < filters; i++) {
		snprintf(path, sizeof(path), "filter.%d", i);
		load(path);
	}
	if (!again) {
		start_thread(sleeper);
		if (!no_poll)
			start_thread(poller);
		if (!no_futex)
			start_thread(waiter);
		if (reads)
			start_thread(reader);
		start_child(sharing);
	}
	for (;;) {
		int request = __atomic_load_n(&state->request, __ATOMIC_SEQ_CST);

		check_file();
		if (request)
			obey(request, argv);
		sleep_for(MAIN, 10);
	}
}
