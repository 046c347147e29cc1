/* memory.c - the memory of tasks that call again and again, kept open.
 *
 * process_vm_readv() finds the task, asks whether it may be read and takes hold of its
 * memory, each time: a third of a read. A kept /proc/TID/mem is spared that, but it is
 * tied to the memory, not to the task, and so may go on to give what is not the task's:
 *
 *	exec:	the task has other memory. The old one, if another process shares it
 *		(CLONE_VM; vfork), can be read as before.
 *	exit:	the number may be given to a task with other memory. The old one, if
 *		threads of the dead task are left, can be read as before.
 *
 * Nothing else gives a task, or a number, other memory. So execs and exits are counted, of
 * all tasks of the machine, by a BPF program on the two tracepoints, in a word that is
 * mapped here:
 *
 *	count = word			a call of TID has been received, TID waits in it
 *	open /proc/TID/mem
 *	ID_VALID			TID waited all the time: this is its memory
 *	...
 *	word == count			a later call of TID has been received. No task has
 *					ended nor begun a program since: it is the same task,
 *					and has the same memory
 *
 * The kernel counts an exec before the new program's first instruction, and an exit before
 * the number is free; and between each of these and our RECV of a call made afterwards
 * there are the listener's and the scheduler's locks. Counting everybody's is coarse, but
 * asks for nothing that a namespace or a reused number could get wrong. (An event of
 * perf_event_open(2) on the task itself would tell the same, and costs 0.3 of a call
 * whenever the task is switched.)
 *
 * To open takes as long as some eight reads save. So a task's memory is opened only once it
 * was read so often in vain: where tasks begin and end all the time, nothing is opened.
 *
 * What cannot be read in the kept memory is tried by process_vm_readv(), which has the
 * last word. There is one difference: /proc/TID/mem also gives what the task itself may
 * not read (PROT_NONE), where the kernel would find no string.
 */
#define _GNU_SOURCE
#include "memory.h"
#include "inbox.h"

#include "arch/x86_64.h"

#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/vfs.h>

enum {
	SLOTS = 64,
	WORTH = 8, /* reads that an open() costs */
	PAGE = 4096,
};

struct slot {
	pid_t tid;
	int fd;
	unsigned int reads; /* by the long way */
	uint64_t count;
};

struct psc_memory {
	const _Atomic uint64_t *events;
	int exec, exit; /* the program on its tracepoints */
	int proc;
	atomic_flag busy; /* who finds another thread here goes the long way */
	struct slot slots[SLOTS];
};

/* --------------------------------------------------------------- the counter */

static int bpf(enum bpf_cmd command, union bpf_attr *attr)
{
	return (int)psc_syscall(SYS_bpf, command, attr, sizeof(*attr));
}

static int make_map(void)
{
	union bpf_attr attr = {};

	attr.map_type = BPF_MAP_TYPE_ARRAY;
	attr.key_size = sizeof(uint32_t);
	attr.value_size = sizeof(uint64_t);
	attr.max_entries = 1;
	attr.map_flags = BPF_F_MMAPABLE;
	return bpf(BPF_MAP_CREATE, &attr);
}

/* "*word += 1; return 0" */
static int load_program(int map)
{
	const struct bpf_insn code[] = {
		{ .code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_VALUE, .imm = map },
		{ .code = 0 },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 2, .imm = 1 },
		{ .code = BPF_STX | BPF_XADD | BPF_DW, .dst_reg = 1, .src_reg = 2 },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 0 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr attr = {};

	attr.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT;
	attr.insns = (uintptr_t)code;
	attr.insn_cnt = psc_array_size(code);
	attr.license = (uintptr_t) "";
	return bpf(BPF_PROG_LOAD, &attr);
}

/* Lasts until the descriptor is closed, by the end of the process at the latest. */
static int hang_on(int program, const char *tracepoint)
{
	union bpf_attr attr = {};
	int r;

	attr.raw_tracepoint.name = (uintptr_t)tracepoint;
	attr.raw_tracepoint.prog_fd = (uint32_t)program;
	r = bpf(BPF_RAW_TRACEPOINT_OPEN, &attr);
	return r == -ENOENT ? -EOPNOTSUPP : r;
}

static int start_counting(struct psc_memory *memory)
{
	_cleanup_close_ int map = make_map();
	_cleanup_close_ int program = map < 0 ? map : load_program(map);
	void *word;

	if (program < 0)
		return program;
	word = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, map, 0);
	if (word == MAP_FAILED)
		return -errno;
	memory->events = word;
	memory->exec = hang_on(program, "sched_process_exec");
	memory->exit = memory->exec < 0 ? memory->exec : hang_on(program, "sched_process_exit");
	return memory->exit < 0 ? memory->exit : 0;
}

/* --------------------------------------------------------------------- /proc */

static uint64_t field(const char *status, const char *name, int base)
{
	const char *line = strstr(status, name);

	return line ? strtoull(line + strlen(name), NULL, base) : UINT64_MAX;
}

/* Of another pid namespace's /proc the status of ourselves has more numbers than our own,
 * or there is none of us at all. */
static bool ours_alone(const char *status)
{
	const char *line = strstr(status, "\nNSpid:");
	int n = 0, pid;

	return line && sscanf(line, "\nNSpid: %d%n", &pid, &n) == 1 && pid == gettid() && line[n] == '\n';
}

/* What a filter on ourselves makes of bpf(2) could be our end. */
static int check_ourselves(int proc)
{
	const uint64_t all = 1ULL << CAP_SYS_ADMIN, some = 1ULL << CAP_BPF | 1ULL << CAP_PERFMON;
	_cleanup_close_ int fd = openat(proc, "thread-self/status", O_RDONLY | O_CLOEXEC);
	struct statfs fs;
	char text[4096];
	uint64_t held;
	ssize_t got;

	if (fd < 0 || fstatfs(fd, &fs) < 0 || fs.f_type != PROC_SUPER_MAGIC)
		return -EOPNOTSUPP;
	got = read(fd, text, sizeof(text) - 1);
	if (got <= 0)
		return -EOPNOTSUPP;
	text[got] = 0;
	held = field(text, "\nCapEff:", 16);
	if (held == UINT64_MAX || !((held & all) || (held & some) == some) || field(text, "\nSeccomp:", 10) != 0)
		return -EPERM;
	return ours_alone(text) ? 0 : -EOPNOTSUPP;
}

int psc_memory_new(struct psc_memory **ret_memory)
{
	struct psc_memory *memory = calloc(1, sizeof(*memory));
	int r;

	if (!memory)
		return -ENOMEM;
	memory->exec = memory->exit = -1;
	atomic_flag_clear(&memory->busy);
	for (int i = 0; i < SLOTS; i++)
		memory->slots[i].fd = -1;
	memory->proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	r = memory->proc < 0 ? -EOPNOTSUPP : check_ourselves(memory->proc);
	if (r == 0)
		r = start_counting(memory);
	if (r < 0) {
		psc_memory_free(memory);
		return r;
	}
	*ret_memory = memory;
	return 0;
}

void psc_memory_free(struct psc_memory *memory)
{
	if (!memory)
		return;
	for (int i = 0; i < SLOTS; i++)
		psc_close_fd(&memory->slots[i].fd);
	psc_close_fd(&memory->exec);
	psc_close_fd(&memory->exit);
	psc_close_fd(&memory->proc);
	if (memory->events)
		munmap((void *)(uintptr_t)memory->events, PAGE);
	free(memory);
}

/* ------------------------------------------------------------------- reading */

/* Without stdio, which may allocate. */
static void name_memory(pid_t tid, char name[32])
{
	char digits[16];
	int n = 0;

	do
		digits[n++] = (char)('0' + tid % 10);
	while (tid /= 10);
	while (n)
		*name++ = digits[--n];
	strcpy(name, "/mem");
}

static int open_memory(const struct psc_memory *memory, int listener, const struct seccomp_notif *n)
{
	_cleanup_close_ int fd = -1;
	char name[32];

	name_memory((pid_t)n->pid, name);
	fd = openat(memory->proc, name, O_RDONLY | O_CLOEXEC);
	return fd >= 0 && psc_notify_valid(listener, n->id) == 0 ? psc_take_fd(fd) : -1;
}

static void forget(struct slot *slot, pid_t tid, uint64_t count)
{
	psc_close_fd(&slot->fd);
	*slot = (struct slot){ .tid = tid, .fd = -1, .count = count };
}

/* The count is looked at after RECV and before the open(). */
static ssize_t read_kept(struct psc_memory *memory, int listener, const struct seccomp_notif *n, uint64_t addr,
			 void *ret_data, size_t size)
{
	pid_t tid = (pid_t)n->pid;
	struct slot *slot = &memory->slots[(uint32_t)tid % SLOTS];
	uint64_t count = atomic_load_explicit(memory->events, memory_order_acquire);
	long got;

	if (slot->tid != tid || slot->count != count)
		forget(slot, tid, count);
	if (slot->fd < 0 && ++slot->reads > WORTH) {
		slot->reads = 0;
		slot->fd = open_memory(memory, listener, n);
	}
	if (slot->fd < 0)
		return -1;
	got = psc_raw_syscall(SYS_pread64, slot->fd, (long)ret_data, (long)size, (long)addr, 0, 0);
	if (got <= 0)
		forget(slot, tid, count);
	return got;
}

ssize_t psc_memory_peek(struct psc_memory *memory, int listener, const struct seccomp_notif *n, uint64_t addr,
			void *ret_data, size_t size)
{
	ssize_t got = -1;

	if (memory && n->pid != 0 && !atomic_flag_test_and_set_explicit(&memory->busy, memory_order_acquire)) {
		got = read_kept(memory, listener, n, addr, ret_data, size);
		atomic_flag_clear_explicit(&memory->busy, memory_order_release);
	}
	return got > 0 ? got : psc_notify_peek(n, addr, ret_data, size);
}

bool psc_memory_keeps(const struct psc_memory *memory, pid_t tid)
{
	const struct slot *slot = &memory->slots[(uint32_t)tid % SLOTS];

	return slot->tid == tid && slot->fd >= 0;
}
