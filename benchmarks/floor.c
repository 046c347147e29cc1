/* The floor of a notification loop: targets that make one notified call again and again, and the barest monitor.
 *
 *   floor target TARGETS CALLS sync|plain   filter itself, send the listener through the socket fd 0, wait for a byte
 *                                           there, have some calls answered, let TARGETS children make CALLS calls
 *                                           each; prints the nanoseconds
 *   floor serve                             take listeners from the socket fd 0, one after the other: RECV and SEND
 *                                           until no task is left, then answer with a byte
 *   floor pingpong TURNS                    nanoseconds that two processes take to wake each other TURNS times by futex
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif

static _Noreturn void die(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void send_fd(int fd)
{
	char byte = 'L', room[CMSG_SPACE(sizeof(int))] = {};
	struct iovec data = { &byte, 1 };
	struct msghdr m = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	if (sendmsg(0, &m, 0) != 1)
		die("sendmsg");
}

/* -1: the other side has closed. */
static int receive_fd(void)
{
	char byte, room[CMSG_SPACE(sizeof(int))] = {};
	struct iovec data = { &byte, 1 };
	struct msghdr m = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room) };
	int fd;

	if (recvmsg(0, &m, MSG_CMSG_CLOEXEC) != 1 || !CMSG_FIRSTHDR(&m))
		return -1;
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(fd));
	return fd;
}

static int install(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpgid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { 4, code };
	int fd;

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	fd = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
	if (fd < 0)
		die("seccomp");
	return fd;
}

/* Ends when the other end of the pipe is closed; writes down when its calls were done. */
static void calls(int gate, long count, int64_t *ret_end)
{
	char byte;

	if (read(gate, &byte, 1) != 0)
		_exit(1);
	for (long i = 0; i < count; i++)
		if (syscall(SYS_getpgid, 0, "/tmp/path/of/a/file") != 0) /* the path is for rules to read */
			_exit(2);
	*ret_end = now_ns();
	_exit(0);
}

/* Until the monitor has answered once it may still be on its way to its loop. */
static void warm_up(void)
{
	int status;
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (pid == 0) {
		for (int i = 0; i < 3; i++)
			syscall(SYS_getpgid, 0, "/tmp/path/of/a/file");
		_exit(0);
	}
	if (waitpid(pid, &status, 0) < 0 || status)
		die("warm_up");
}

static void target(int targets, long count, int sync)
{
	int64_t *ends = mmap(NULL, sizeof(*ends) * (size_t)targets, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int64_t begin, last = 0;
	int listener = install(), gate[2], status;
	char byte;

	if (ends == MAP_FAILED || pipe(gate) < 0)
		die("mmap, pipe");
	if (sync && ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, 1UL) < 0)
		die("SYNC_WAKE_UP");
	send_fd(listener);
	close(listener);
	for (int i = 0; i < targets; i++) {
		pid_t pid = fork();

		if (pid < 0)
			die("fork");
		if (pid == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			close(gate[1]);
			calls(gate[0], count, &ends[i]);
		}
	}
	if (read(0, &byte, 1) != 1)
		die("go");
	warm_up();
	begin = now_ns();
	close(gate[1]);
	while (wait(&status) > 0)
		if (status) {
			fprintf(stderr, "a target ended with status %#x\n", status);
			exit(1);
		}
	for (int i = 0; i < targets; i++)
		last = ends[i] > last ? ends[i] : last;
	printf("%lld\n", (long long)(last - begin));
}

static void serve_one(int fd)
{
	struct seccomp_notif_sizes sizes;
	struct seccomp_notif *n;
	struct seccomp_notif_resp *answer;
	struct pollfd p = { .fd = fd, .events = POLLIN };

	if (syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes) < 0)
		die("sizes");
	n = malloc(sizes.seccomp_notif);
	answer = calloc(1, sizes.seccomp_notif_resp);
	if (!n || !answer)
		die("malloc");
	for (;;) {
		memset(n, 0, sizes.seccomp_notif);
		if (ioctl(fd, SECCOMP_IOCTL_NOTIF_RECV, n) < 0) {
			if (errno == ENOENT && poll(&p, 1, 0) == 1 && p.revents & POLLHUP)
				break;
			continue;
		}
		answer->id = n->id;
		ioctl(fd, SECCOMP_IOCTL_NOTIF_SEND, answer);
	}
	free(n);
	free(answer);
}

static void serve(void)
{
	int fd;

	while ((fd = receive_fd()) >= 0) {
		serve_one(fd);
		close(fd);
		if (write(0, "d", 1) != 1)
			die("done");
	}
}

static void turn(_Atomic int *word, int mine, long turns)
{
	for (long i = 0; i < turns; i++) {
		while (*word != mine)
			syscall(SYS_futex, word, FUTEX_WAIT, !mine, NULL, NULL, 0);
		*word = !mine;
		syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
	}
}

static void pingpong(long turns)
{
	_Atomic int *word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int64_t begin = now_ns();
	pid_t pid;

	if (word == MAP_FAILED || (pid = fork()) < 0)
		die("pingpong");
	turn(word, pid == 0, turns);
	if (pid == 0)
		_exit(0);
	waitpid(pid, NULL, 0);
	printf("%lld\n", (long long)(now_ns() - begin));
}

int main(int argc, char **argv)
{
	if (argc == 5 && !strcmp(argv[1], "target"))
		target(atoi(argv[2]), atol(argv[3]), !strcmp(argv[4], "sync"));
	else if (argc == 2 && !strcmp(argv[1], "serve"))
		serve();
	else if (argc == 3 && !strcmp(argv[1], "pingpong"))
		pingpong(atol(argv[2]));
	else
		return 2;
	return 0;
}
