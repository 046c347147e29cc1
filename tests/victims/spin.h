/* spin.h - hold a known value in everything that user space can see of a task,
 * for a while, and look whether it is still there.
 *
 * spin_hold() loads all general registers (but rsp), the flags, the 128 bytes
 * below rsp, the vector registers, mxcsr and one x87 register, loops with lea
 * and jrcxz, which touch no flag, and stores everything again. rcx counts down
 * while r15 counts up, so a changed counter is seen as well.
 */
#ifndef SPIN_H
#define SPIN_H

#include <stddef.h>
#include "victim.h"

struct spin_state {
	uint64_t gpr[13];     /* rax rbx rdx rsi rdi rbp r8..r14 */
	uint64_t flags;       /* 104 */
	uint64_t count;       /* 112: r15 */
	uint64_t mxcsr;       /* 120 */
	uint64_t redzone[16]; /* 128 */
	uint64_t x87;         /* 256: an integer, kept in st(0) */
	uint64_t spare[3];
	uint64_t ymm[16][4];  /* 288 */
};

_Static_assert(offsetof(struct spin_state, x87) == 256, "the assembler below knows");
_Static_assert(offsetof(struct spin_state, ymm) == 288, "the assembler below knows");

/* CF PF AF ZF SF TF DF OF: TF is never set by us, but must not appear. */
#define SPIN_FLAGS 0xdd5
#define SPIN_SETTABLE_FLAGS 0xcd5

void spin_hold(const struct spin_state *in, struct spin_state *out, uint64_t spins, uint64_t avx);

__asm__(
	".text\n"
	".globl spin_hold\n"
	".type spin_hold, @function\n"
	"spin_hold:\n"
	"	push %rbx\n	push %rbp\n	push %r12\n	push %r13\n	push %r14\n	push %r15\n"
	"	sub $72, %rsp\n"
	"	mov %rsi, 0(%rsp)\n"
	"	mov %rdx, 16(%rsp)\n"
	"	mov %rcx, 24(%rsp)\n"
	"	stmxcsr 32(%rsp)\n"
	"	ldmxcsr 120(%rdi)\n"
	"	fildq 256(%rdi)\n"
	"	test %rcx, %rcx\n"
	"	jz 1f\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"	vmovdqu 288+32*\\n(%rdi), %ymm\\n\n"
	".endr\n"
	"	jmp 2f\n"
	"1:\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"	movdqu 288+32*\\n(%rdi), %xmm\\n\n"
	".endr\n"
	"2:	pushq 104(%rdi)\n"
	"	popfq\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"	mov 128+8*\\n(%rdi), %rax\n"
	"	mov %rax, -128+8*\\n(%rsp)\n"
	".endr\n"
	"	mov 16(%rsp), %rcx\n"
	"	mov $0, %r15\n"
	"	mov 0(%rdi), %rax\n	mov 8(%rdi), %rbx\n	mov 16(%rdi), %rdx\n	mov 24(%rdi), %rsi\n"
	"	mov 40(%rdi), %rbp\n	mov 48(%rdi), %r8\n	mov 56(%rdi), %r9\n	mov 64(%rdi), %r10\n"
	"	mov 72(%rdi), %r11\n	mov 80(%rdi), %r12\n	mov 88(%rdi), %r13\n	mov 96(%rdi), %r14\n"
	"	mov 32(%rdi), %rdi\n"
	"3:	lea 1(%r15), %r15\n"
	"	lea -1(%rcx), %rcx\n"
	"	jrcxz 4f\n"
	"	jmp 3b\n"
	"4:	mov %rax, 8(%rsp)\n"
	"	mov 0(%rsp), %rax\n"
	"	mov %rbx, 8(%rax)\n	mov %rdx, 16(%rax)\n	mov %rsi, 24(%rax)\n	mov %rdi, 32(%rax)\n"
	"	mov %rbp, 40(%rax)\n	mov %r8, 48(%rax)\n	mov %r9, 56(%rax)\n	mov %r10, 64(%rax)\n"
	"	mov %r11, 72(%rax)\n	mov %r12, 80(%rax)\n	mov %r13, 88(%rax)\n	mov %r14, 96(%rax)\n"
	"	mov %r15, 112(%rax)\n"
	"	mov 8(%rsp), %rbx\n"
	"	mov %rbx, 0(%rax)\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"	mov -128+8*\\n(%rsp), %rbx\n"
	"	mov %rbx, 128+8*\\n(%rax)\n"
	".endr\n"
	"	pushfq\n"
	"	popq 104(%rax)\n"
	"	cld\n"
	"	fistpq 256(%rax)\n"
	"	stmxcsr 120(%rax)\n"
	"	ldmxcsr 32(%rsp)\n"
	"	cmpq $0, 24(%rsp)\n"
	"	je 5f\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"	vmovdqu %ymm\\n, 288+32*\\n(%rax)\n"
	".endr\n"
	"	vzeroupper\n"
	"	jmp 6f\n"
	"5:\n"
	".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
	"	movdqu %xmm\\n, 288+32*\\n(%rax)\n"
	".endr\n"
	"6:	add $72, %rsp\n"
	"	pop %r15\n	pop %r14\n	pop %r13\n	pop %r12\n	pop %rbp\n	pop %rbx\n"
	"	ret\n"
	".size spin_hold, . - spin_hold\n");

/* One round with new values: 0, or the number of the first word that changed, from 1. */
static inline int spin_round(uint64_t *seed, uint64_t spins)
{
	struct spin_state in, out = { 0 };
	bool avx = __builtin_cpu_supports("avx");

	for (size_t i = 0; i < sizeof(in) / 8; i++) {
		*seed = *seed * 6364136223846793005ULL + 1442695040888963407ULL;
		((uint64_t *)&in)[i] = *seed ^ *seed >> 29;
	}
	in.flags = 0x202 | (in.flags & SPIN_SETTABLE_FLAGS);
	in.count = spins;
	in.mxcsr = 0x1f80 | (in.mxcsr & 0x6000); /* any rounding */
	in.x87 &= UINT64_MAX >> 1;
	memset(in.spare, 0, sizeof(in.spare));
	for (int i = 0; !avx && i < 16; i++)
		in.ymm[i][2] = in.ymm[i][3] = 0;
	spin_hold(&in, &out, spins, avx);
	in.flags &= SPIN_FLAGS;
	out.flags &= SPIN_FLAGS;
	out.mxcsr &= 0xffff;
	for (size_t i = 0; i < sizeof(in) / 8; i++)
		if (((uint64_t *)&in)[i] != ((uint64_t *)&out)[i])
			return i + 1;
	return 0;
}

#endif
