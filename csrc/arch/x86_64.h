/* x86_64.h - what attaching needs to know of x86_64 and its i386 tasks.
 *
 *            number  arguments                    result  instruction  clobbers
 *   x86_64   rax     rdi rsi rdx r10 r8 r9        rax     syscall      rcx r11
 *   i386     eax     ebx ecx edx esi edi ebp      eax     int $0x80
 *
 * Every arch header defines the same names: struct psc_regs and psc_regs_*(),
 * psc_abi_of(), psc_emit_*(), psc_raw_syscall(). Code that is emitted here runs
 * in the target without a stack (its stack may be a 4 KiB goroutine's, its red
 * zone is in use) and without touching vector registers.
 */
#ifndef PSC_ARCH_X86_64_H
#define PSC_ARCH_X86_64_H

#include <errno.h>
#include <linux/audit.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>

/* A system call that leaves errno and all other thread-local state alone. */
static inline long psc_raw_syscall(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

/* The numbers that the engine injects or recognises, one set per ABI. */
struct psc_abi {
	uint32_t audit_arch;
	bool wide; /* 64-bit words, pointers and struct sock_fprog */
	int mmap, munmap, close, prctl, rt_sigprocmask, seccomp, restart_syscall;
	int epoll_wait, epoll_pwait, rt_sigtimedwait, semop, semtimedop;
	int clone, exit;
	int nanosleep, clock_nanosleep, clock_nanosleep_time64, poll, futex, futex_time64;
};

static const struct psc_abi psc_abi_x86_64 = {
	AUDIT_ARCH_X86_64, true, 9, 11, 3, 157, 14, 317, 219, 232, 281, 128, 65, 220, 56, 60, 35, 230, -1, 7, 202, -1,
};
static const struct psc_abi psc_abi_i386 = {
	AUDIT_ARCH_I386, false, 192, 91, 6, 172, 175, 354, 0, 256, 319, 177, -1, -1, 120, 1, 162, 267, 407, 168, 240, 422,
};

/* What a task calls: its token, and the range of its numbers, which x32 tasks have for themselves. */
struct psc_calls {
	uint32_t audit_arch, first, last;
};

/* Of a program file. -ENOEXEC: it cannot run here. */
static inline int psc_calls_of_elf(unsigned int machine, unsigned int elf_class, struct psc_calls *ret_calls)
{
	if (machine == 62 /* EM_X86_64 */)
		*ret_calls = elf_class == 1 /* ELFCLASS32 */ ? (struct psc_calls){ AUDIT_ARCH_X86_64, 0x40000000, 0x7fffffff } :
							       (struct psc_calls){ AUDIT_ARCH_X86_64, 0, 0x3fffffff };
	else if (machine == 3 /* EM_386 */)
		*ret_calls = (struct psc_calls){ AUDIT_ARCH_I386, 0, UINT32_MAX };
	else
		return -ENOEXEC;
	return 0;
}

/* Would a ptrace-stop interrupt this call with ERESTART_RESTARTBLOCK? Sleeps until an absolute
 * time and futex waits without a timeout are simply made again. */
static inline bool psc_abi_restarts(const struct psc_abi *abi, long nr, const uint64_t args[6])
{
	if (abi->wide)
		nr &= ~0x40000000L; /* x32 */
	if (nr == abi->clock_nanosleep || nr == abi->clock_nanosleep_time64)
		return !(args[1] & 1 /* TIMER_ABSTIME */);
	if (nr == abi->futex || nr == abi->futex_time64)
		return ((args[1] & 0x7f) == 0 /* FUTEX_WAIT */ || (args[1] & 0x7f) == 9 /* _BITSET */) && args[3] != 0;
	return nr == abi->nanosleep || nr == abi->poll || nr == abi->restart_syscall;
}

/* The ABI of most tasks: of 64-bit programs, or of 32-bit ones. */
static inline const struct psc_abi *psc_abi_usual(bool wide)
{
	return wide ? &psc_abi_x86_64 : &psc_abi_i386;
}

struct psc_regs {
	struct user_regs_struct r;
};

/* The code segment tells what the thread runs now; a 64-bit program may hold
 * 32-bit threads (Wine does). */
static inline const struct psc_abi *psc_abi_of(const struct psc_regs *regs)
{
	return regs->r.cs == 0x23 ? &psc_abi_i386 : &psc_abi_x86_64;
}

/* Of a thread, by the mode that it runs in now. x32 tasks do not differ there from others. */
static inline struct psc_calls psc_calls_of_regs(const struct psc_regs *regs)
{
	return psc_abi_of(regs)->wide ? (struct psc_calls){ AUDIT_ARCH_X86_64, 0, UINT32_MAX } :
					(struct psc_calls){ AUDIT_ARCH_I386, 0, UINT32_MAX };
}

static inline long psc_regs_get(pid_t tid, struct psc_regs *ret)
{
	return psc_raw_syscall(101 /* ptrace */, PTRACE_GETREGS, tid, 0, (long)&ret->r, 0, 0);
}

static inline long psc_regs_set(pid_t tid, const struct psc_regs *regs)
{
	return psc_raw_syscall(101 /* ptrace */, PTRACE_SETREGS, tid, 0, (long)&regs->r, 0, 0);
}

static inline uint64_t psc_regs_ip(const struct psc_regs *regs)
{
	return regs->r.rip;
}

static inline long psc_regs_result(const struct psc_regs *regs)
{
	return psc_abi_of(regs)->wide ? (long)regs->r.rax : (long)(int32_t)regs->r.rax;
}

/* The call a stopped thread was in, or -1 when it was in user code. */
static inline long psc_regs_syscall(const struct psc_regs *regs)
{
	return (int32_t)regs->r.orig_rax;
}

static inline uint64_t psc_regs_arg(const struct psc_regs *regs, int i)
{
	const unsigned long long wide[6] = { regs->r.rdi, regs->r.rsi, regs->r.rdx, regs->r.r10, regs->r.r8, regs->r.r9 };
	const unsigned long long narrow[6] = { regs->r.rbx, regs->r.rcx, regs->r.rdx, regs->r.rsi, regs->r.rdi, regs->r.rbp };

	return psc_abi_of(regs)->wide ? wide[i] : (uint32_t)narrow[i];
}

/* The number by which the kernel resumes an interrupted call: x32 keeps its bit. */
static inline long psc_regs_restart_nr(const struct psc_regs *regs)
{
	const struct psc_abi *abi = psc_abi_of(regs);

	return abi->restart_syscall | (abi->wide ? psc_regs_syscall(regs) & 0x40000000 : 0);
}

/* Have the kernel make the interrupted call again on the way to user mode, unless
 * a signal with a handler comes first: then it is EINTR, as it should be. */
static inline void psc_regs_restart(struct psc_regs *regs)
{
	regs->r.rax = (unsigned long long)-514LL; /* -ERESTARTNOHAND */
}

/* As the kernel has it for SECCOMP_RET_TRAP: the call's number where its result
 * would be, and nothing left to restart. */
static inline void psc_regs_roll_back(struct psc_regs *regs)
{
	regs->r.rax = (unsigned long long)psc_regs_syscall(regs);
	regs->r.orig_rax = (unsigned long long)-1LL;
}

/* Resume at ip, outside any system call: orig_rax = -1 keeps the kernel from
 * applying its restart rules to registers that are ours. */
static inline void psc_regs_enter(struct psc_regs *regs, uint64_t ip)
{
	regs->r.rip = ip;
	regs->r.orig_rax = (unsigned long long)-1LL;
	regs->r.eflags &= ~0x100ULL; /* TF */
}

static inline void psc_regs_call(struct psc_regs *regs, uint64_t ip, long nr, const uint64_t args[6])
{
	psc_regs_enter(regs, ip);
	regs->r.rax = (unsigned long long)nr;
	if (psc_abi_of(regs)->wide) {
		regs->r.rdi = args[0];
		regs->r.rsi = args[1];
		regs->r.rdx = args[2];
		regs->r.r10 = args[3];
		regs->r.r8 = args[4];
		regs->r.r9 = args[5];
	} else {
		regs->r.rbx = args[0];
		regs->r.rcx = args[1];
		regs->r.rdx = args[2];
		regs->r.rsi = args[3];
		regs->r.rdi = args[4];
		regs->r.rbp = args[5];
	}
}

/* At the entry of a call: have the kernel make this call, with these first n arguments, whatever the
 * code there says. True: the registers were others, and are changed. */
static inline bool psc_regs_pin(struct psc_regs *regs, long nr, int n, const uint64_t *args)
{
	bool wide = psc_abi_of(regs)->wide;
	unsigned long long *places[6] = {
		wide ? &regs->r.rdi : &regs->r.rbx, wide ? &regs->r.rsi : &regs->r.rcx, &regs->r.rdx,
		wide ? &regs->r.r10 : &regs->r.rsi, wide ? &regs->r.r8 : &regs->r.rdi, wide ? &regs->r.r9 : &regs->r.rbp,
	};
	bool changed = psc_regs_syscall(regs) != nr;

	regs->r.orig_rax = (unsigned long long)nr;
	for (int i = 0; i < n; i++) {
		changed |= psc_regs_arg(regs, i) != (wide ? args[i] : (uint32_t)args[i]);
		*places[i] = args[i];
	}
	return changed;
}

/* What the kernel itself would make of an interrupted call's registers
 * (arch/x86/kernel/signal.c arch_do_signal_or_restart): only for code that has
 * to do so in its place. */
static inline void psc_regs_apply_restart(struct psc_regs *regs)
{
	if (psc_regs_syscall(regs) < 0)
		return;
	switch (psc_regs_result(regs)) {
	case -512: /* ERESTARTSYS */
	case -513: /* ERESTARTNOINTR */
	case -514: /* ERESTARTNOHAND */
		regs->r.rax = (uint32_t)regs->r.orig_rax;
		regs->r.rip -= 2;
		break;
	case -516: /* ERESTART_RESTARTBLOCK */
		regs->r.rax = (unsigned long long)psc_abi_of(regs)->restart_syscall;
		regs->r.rip -= 2;
		break;
	}
}

/* Code being written for a given address in the target. Writing past size only
 * counts, so that one check at the end is enough. */
struct psc_code {
	uint8_t *bytes;
	size_t size, len;
	uint64_t address;
};

static inline void psc_emit(struct psc_code *code, const void *bytes, size_t n)
{
	if (code->len + n <= code->size)
		memcpy(code->bytes + code->len, bytes, n);
	code->len += n;
}

#define psc_emit_bytes(code, ...)                               \
	do {                                                    \
		static const uint8_t psc_bytes[] = { __VA_ARGS__ }; \
		psc_emit(code, psc_bytes, sizeof(psc_bytes));   \
	} while (0)

/* reg: the hardware's number (0 ax, 1 cx, 2 dx, 3 bx, 5 bp, 6 si, 7 di, 8-15). */
static inline void psc_emit_load(struct psc_code *code, bool wide, int reg, uint64_t value)
{
	uint8_t op = 0xb8 | (reg & 7);

	if (value > UINT32_MAX) { /* movabs $imm64, %reg */
		uint8_t rex = reg >= 8 ? 0x49 : 0x48;

		psc_emit(code, &rex, 1);
		psc_emit(code, &op, 1);
		psc_emit(code, &value, 8);
		return;
	}
	if (reg >= 8 && wide) /* mov $imm32, %regd: clears the high half */
		psc_emit_bytes(code, 0x41);
	psc_emit(code, &op, 1);
	psc_emit(code, &value, 4);
}

static inline void psc_emit_syscall(struct psc_code *code, const struct psc_abi *abi)
{
	if (abi->wide)
		psc_emit_bytes(code, 0x0f, 0x05);
	else
		psc_emit_bytes(code, 0xcd, 0x80);
}

/* One whole call with constant arguments. from_result: the first argument is
 * what the call before returned. */
static inline void psc_emit_call(struct psc_code *code, const struct psc_abi *abi, long nr, int n_args,
				 const uint64_t *args, bool from_result)
{
	static const int wide_regs[6] = { 7, 6, 2, 10, 8, 9 }, narrow_regs[6] = { 3, 1, 2, 6, 7, 5 };
	const int *regs = abi->wide ? wide_regs : narrow_regs;

	if (from_result) { /* mov %eax, %edi or %ebx */
		if (abi->wide)
			psc_emit_bytes(code, 0x89, 0xc7);
		else
			psc_emit_bytes(code, 0x89, 0xc3);
	}
	for (int i = from_result ? 1 : 0; i < n_args; i++)
		psc_emit_load(code, abi->wide, regs[i], args[i]);
	psc_emit_load(code, abi->wide, 0, (uint64_t)nr);
	psc_emit_syscall(code, abi);
}

/* test %eax,%eax; js target. The target is patched in by psc_emit_land(). */
static inline size_t psc_emit_jump_if_error(struct psc_code *code)
{
	psc_emit_bytes(code, 0x85, 0xc0, 0x0f, 0x88, 0, 0, 0, 0);
	return code->len;
}

/* test %eax,%eax; jnz target. */
static inline size_t psc_emit_jump_if_not_zero(struct psc_code *code)
{
	psc_emit_bytes(code, 0x85, 0xc0, 0x0f, 0x85, 0, 0, 0, 0);
	return code->len;
}

static inline size_t psc_emit_jump(struct psc_code *code)
{
	psc_emit_bytes(code, 0xe9, 0, 0, 0, 0);
	return code->len;
}

/* Let a jump, named by what its emission returned, land at the current end. */
static inline void psc_emit_land(struct psc_code *code, size_t jump)
{
	int32_t distance = (int32_t)(code->len - jump);

	if (jump <= code->size)
		memcpy(code->bytes + jump - 4, &distance, 4);
}

/* Put back every register that emitted code can change, flags included, and go
 * on where regs say. No stack: flags come back through sahf and one overflow. */
static inline void psc_emit_restore(struct psc_code *code, const struct psc_abi *abi, const struct psc_regs *regs)
{
	const unsigned long long wide[][2] = {
		{ 0, regs->r.rax }, { 1, regs->r.rcx }, { 2, regs->r.rdx }, { 3, regs->r.rbx },	{ 6, regs->r.rsi },
		{ 7, regs->r.rdi }, { 8, regs->r.r8 },	{ 9, regs->r.r9 },  { 10, regs->r.r10 }, { 11, regs->r.r11 },
	};
	const unsigned long long narrow[][2] = {
		{ 0, regs->r.rax }, { 1, regs->r.rcx }, { 2, regs->r.rdx }, { 3, regs->r.rbx },
		{ 6, regs->r.rsi }, { 7, regs->r.rdi }, { 5, regs->r.rbp },
	};
	uint8_t overflow = regs->r.eflags >> 11 & 1, low = (uint8_t)regs->r.eflags;

	if (regs->r.eflags & 0x400)
		psc_emit_bytes(code, 0xfd); /* std */
	else
		psc_emit_bytes(code, 0xfc); /* cld */
	psc_emit_bytes(code, 0xb0); /* mov $overflow, %al; add $0x7f, %al */
	psc_emit(code, &overflow, 1);
	psc_emit_bytes(code, 0x04, 0x7f, 0xb4); /* mov $low, %ah; sahf */
	psc_emit(code, &low, 1);
	psc_emit_bytes(code, 0x9e);
	if (abi->wide) {
		for (size_t i = 0; i < sizeof(wide) / sizeof(wide[0]); i++)
			psc_emit_load(code, true, (int)wide[i][0], wide[i][1]);
		psc_emit_bytes(code, 0xff, 0x25, 0, 0, 0, 0); /* jmp *0(%rip) */
		psc_emit(code, &regs->r.rip, 8);
	} else {
		int32_t distance;

		for (size_t i = 0; i < sizeof(narrow) / sizeof(narrow[0]); i++)
			psc_emit_load(code, false, (int)narrow[i][0], (uint32_t)narrow[i][1]);
		distance = (int32_t)((uint32_t)regs->r.rip - (uint32_t)(code->address + code->len + 5));
		psc_emit_bytes(code, 0xe9); /* jmp rip */
		psc_emit(code, &distance, 4);
	}
}

#endif
