/* Threads on 4 KiB stacks, aligned to 64 bytes, with no space left.
 *
 *	| canary 64 | 128 in use below rsp | rsp ... pattern ... frames | canary 64 |
 *
 * Each thread moves rsp down until exactly the red zone is left, fills that, and then
 * spins, or waits in nanosleep, before it looks at all of it again. Whoever writes
 * below rsp - 128, or into the 128 bytes, or above, is seen. The threads are made by a
 * bare clone and have no thread-local storage: nothing of libc is used in them.
 */
#include <linux/sched.h>
#include <stdatomic.h>
#include "victim.h"

#define STACK 4096
#define LOW 192 /* rsp during the wait, from the start of the stack: 64 for the call, 128 red zone */
#define USED 1024
#define PATTERN 0x5aa55aa5c33cc33cULL
#define THREADS 8

struct tiny {
	uint64_t canary_below[8];
	uint8_t stack[STACK];
	uint64_t canary_above[8];
	uint64_t sleeps;
	_Atomic uint64_t rounds, bad;
	_Atomic int64_t probe;
} __attribute__((aligned(64)));

static struct tiny tinies[THREADS] __attribute__((aligned(64)));
static atomic_int in_position;

/* Wait with rsp == low and the red zone filled; the number of words that changed.
 * request: a timespec to sleep for, or NULL to spin. */
uint64_t dip(void *low, uint64_t pattern, const struct timespec *request);

__asm__(
	".text\n"
	".type dip, @function\n"
	"dip:\n"
	"	push %rbx\n	push %rbp\n"
	"	mov %rsp, %rbx\n"
	"	mov %rsi, %rbp\n"
	"	mov %rdi, %rsp\n"
	".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16\n"
	"	mov %rsi, -8*\\n(%rsp)\n"
	".endr\n"
	"	test %rdx, %rdx\n"
	"	jz 1f\n"
	"	mov %rdx, %rdi\n"
	"	xor %esi, %esi\n"
	"	mov $35, %eax\n" /* nanosleep */
	"	syscall\n"
	"	jmp 3f\n"
	"1:	mov $200000, %ecx\n"
	"2:	lea -1(%rcx), %rcx\n"
	"	jrcxz 4f\n"
	"	jmp 2b\n"
	"4:	xor %eax, %eax\n"
	"3:	neg %rax\n" /* an errno counts as changed words */
	".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16\n"
	"	cmp %rbp, -8*\\n(%rsp)\n"
	"	je 5f\n"
	"	inc %rax\n"
	"5:\n"
	".endr\n"
	"	mov %rbx, %rsp\n"
	"	pop %rbp\n	pop %rbx\n"
	"	ret\n"
	".size dip, . - dip\n");

static inline long raw_getppid(void)
{
	long r;

	__asm__ volatile("syscall" : "=a"(r) : "0"(SYS_getppid) : "rcx", "r11", "memory");
	return r;
}

static uint64_t wrong_words(const struct tiny *t)
{
	uint64_t wrong = 0;

	for (int i = 0; i < 8; i++)
		wrong += (t->canary_below[i] != PATTERN) + (t->canary_above[i] != PATTERN);
	for (int i = 0; i < (STACK - USED) / 8; i++)
		wrong += ((const volatile uint64_t *)t->stack)[i] != PATTERN;
	return wrong;
}

__attribute__((noinline, noreturn, used)) static void live(struct tiny *t)
{
	struct timespec nap = { .tv_nsec = 3000000 };

	in_position++;
	for (;;) {
		long r;

		t->bad += dip(t->stack + LOW, PATTERN, t->sleeps ? &nap : NULL);
		t->bad += wrong_words(t);
		r = raw_getppid();
		t->probe = r < 0 ? -r : 0;
		t->rounds++;
	}
}

/* clone() with the stack given; the child calls live(t) and never returns. */
static long spawn(struct tiny *t)
{
	register long ctid __asm__("r10") = 0;
	register long tls __asm__("r8") = 0;
	register struct tiny *self __asm__("r12") = t;
	long r;

	__asm__ volatile("syscall\n"
			 "	test %%rax, %%rax\n"
			 "	jnz 1f\n"
			 "	xor %%ebp, %%ebp\n"
			 "	mov %%r12, %%rdi\n"
			 "	call live\n"
			 "1:"
			 : "=a"(r)
			 : "0"(SYS_clone),
			   "D"(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM),
			   "S"(t->stack + STACK), "d"(0), "r"(ctid), "r"(tls), "r"(self)
			 : "rcx", "r11", "memory");
	return r;
}

int main(void)
{
	uint64_t rounds, bad, denied;

	for (int i = 0; i < THREADS; i++) {
		for (int w = 0; w < 8; w++)
			tinies[i].canary_below[w] = tinies[i].canary_above[w] = PATTERN;
		for (int w = 0; w < STACK / 8; w++)
			((uint64_t *)tinies[i].stack)[w] = PATTERN;
		tinies[i].sleeps = i % 2;
		if (spawn(&tinies[i]) < 0)
			die("clone");
	}
	while (in_position < THREADS)
		usleep(1000);
	say("ready");
	for (;;) {
		hear();
		rounds = bad = denied = 0;
		for (int i = 0; i < THREADS; i++) {
			uint64_t then = tinies[i].rounds;

			while (tinies[i].rounds < then + 2)
				usleep(1000);
			rounds += tinies[i].rounds;
			bad += tinies[i].bad;
			denied += tinies[i].probe != 0;
		}
		say("threads=%d rounds=%lu bad=%lu denied=%lu probe=%d", THREADS, rounds, bad, denied, probe());
	}
}
