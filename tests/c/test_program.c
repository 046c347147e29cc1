/* The checker and the interpreter: what each instruction does, what is refused where. */
#include "check.h"
#include "psc.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct seccomp_data sample = {
	.nr = 7, .arch = 0xc000003e, .instruction_pointer = 0x1122334455667788, .args = { 0xaabbccdd00000011, 5 },
};

/* What a program of these instructions leaves in A. */
static uint32_t run(const struct sock_filter *body, size_t count)
{
	struct sock_filter insns[32];
	struct psc_decision decision;

	memcpy(insns, body, count * sizeof(*body));
	insns[count] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_A, 0);
	CHECK(psc_program_check(insns, count + 1, NULL) == 0);
	CHECK(psc_program_run(insns, count + 1, &sample, &decision) == 0);
	return decision.ret;
}
#define RUN(...) run((const struct sock_filter[]){ __VA_ARGS__ }, COUNT(((const struct sock_filter[]){ __VA_ARGS__ })))
#define LD_IMM(k) BPF_STMT(BPF_LD | BPF_IMM, k)
#define LDX_IMM(k) BPF_STMT(BPF_LDX | BPF_IMM, k)
#define ALU_K(op, k) BPF_STMT(BPF_ALU | (op) | BPF_K, k)
#define ALU_X(op) BPF_STMT(BPF_ALU | (op) | BPF_X, 0)

static void test_arithmetic_is_the_kernel_s(void)
{
	CHECK(RUN(LD_IMM(7), ALU_K(BPF_ADD, 0xffffffff)) == 6);
	CHECK(RUN(LD_IMM(7), ALU_K(BPF_SUB, 8)) == 0xffffffff);
	CHECK(RUN(LD_IMM(0x10001), ALU_K(BPF_MUL, 0x10001)) == 0x20001);
	CHECK(RUN(LD_IMM(0xffffffff), ALU_K(BPF_DIV, 2)) == 0x7fffffff);
	CHECK(RUN(LD_IMM(6), ALU_K(BPF_AND, 3)) == 2);
	CHECK(RUN(LD_IMM(6), ALU_K(BPF_OR, 3)) == 7);
	CHECK(RUN(LD_IMM(6), ALU_K(BPF_XOR, 3)) == 5);
	CHECK(RUN(LD_IMM(1), ALU_K(BPF_LSH, 31)) == 0x80000000);
	CHECK(RUN(LD_IMM(0x80000000), ALU_K(BPF_RSH, 31)) == 1);
	CHECK(RUN(LD_IMM(1), BPF_STMT(BPF_ALU | BPF_NEG, 0)) == 0xffffffff);
	CHECK(RUN(LD_IMM(1), LDX_IMM(33), ALU_X(BPF_LSH)) == 2);
	CHECK(RUN(LD_IMM(9), LDX_IMM(0), ALU_X(BPF_DIV)) == 0);
	CHECK(RUN(LD_IMM(9), ALU_X(BPF_ADD)) == 9);
}

static void test_loads_and_scratch(void)
{
	CHECK(RUN(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0)) == 7);
	CHECK(RUN(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 60)) == 0);
	CHECK(RUN(BPF_STMT(BPF_LD | BPF_W | BPF_LEN, 0)) == 64);
	CHECK(RUN(LD_IMM(5), BPF_STMT(BPF_ST, 15), LD_IMM(0), BPF_STMT(BPF_LD | BPF_MEM, 15)) == 5);
	CHECK(RUN(LDX_IMM(4), BPF_STMT(BPF_STX, 0), BPF_STMT(BPF_LD | BPF_MEM, 0)) == 4);
	CHECK(RUN(LD_IMM(3), BPF_STMT(BPF_MISC | BPF_TAX, 0), LD_IMM(0), BPF_STMT(BPF_MISC | BPF_TXA, 0)) == 3);
}

static void test_jumps_compare_unsigned(void)
{
	static const struct { uint16_t op; uint32_t a, k; bool taken; } cases[] = {
		{ BPF_JEQ, 5, 5, true }, { BPF_JEQ, 5, 6, false }, { BPF_JGT, 0x80000000, 1, true }, { BPF_JGT, 5, 5, false },
		{ BPF_JGE, 5, 5, true }, { BPF_JGE, 4, 5, false }, { BPF_JSET, 6, 2, true }, { BPF_JSET, 6, 1, false },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		CHECK((RUN(LD_IMM(cases[i].a), BPF_JUMP(BPF_JMP | cases[i].op | BPF_K, cases[i].k, 1, 0), LD_IMM(99)) != 99) ==
		      cases[i].taken);
		CHECK((RUN(LD_IMM(cases[i].a), LDX_IMM(cases[i].k), BPF_JUMP(BPF_JMP | cases[i].op | BPF_X, 0, 1, 0),
			   LD_IMM(99)) != 99) == cases[i].taken);
	}
	CHECK(RUN(LD_IMM(1), BPF_STMT(BPF_JMP | BPF_JA, 1), LD_IMM(2), ALU_K(BPF_ADD, 1)) == 2);
}

static void test_refusals_name_the_instruction(void)
{
	const struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	const struct sock_filter bad[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 2), BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 64), BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 0),
		BPF_STMT(BPF_LD | BPF_W | BPF_IND, 0), ALU_K(BPF_DIV, 0), ALU_K(BPF_LSH, 32), ALU_K(BPF_MOD, 3), BPF_STMT(BPF_ST, 16),
		BPF_STMT(BPF_LD | BPF_MEM, 0), BPF_STMT(BPF_JMP | BPF_JA, 1), BPF_STMT(BPF_JMP | BPF_JA, 0xffffffff),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1), BPF_STMT(BPF_RET | BPF_X, 0), BPF_STMT(0x8000 | BPF_RET, 0),
	};
	struct psc_program_fault fault;
	struct psc_decision decision;

	for (size_t i = 0; i < COUNT(bad); i++) {
		const struct sock_filter insns[] = { LD_IMM(0), bad[i], allow };

		CHECK(psc_program_check(insns, 3, &fault) == -EINVAL && fault.index == 1 && fault.reason);
		CHECK(psc_program_run(insns, 3, &sample, &decision) == -EINVAL);
	}
	CHECK(psc_program_check(&allow, 0, &fault) == -EINVAL && fault.index == SIZE_MAX);
	CHECK(psc_program_check(bad, 1, NULL) == -EINVAL);
	CHECK(psc_program_check(&allow, 1, NULL) == 0);
}

static void test_precedence_of_two_filters(void)
{
	static const uint32_t ranked[] = {
		SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_KILL_THREAD, SECCOMP_RET_TRAP, SECCOMP_RET_ERRNO,
		SECCOMP_RET_USER_NOTIF, SECCOMP_RET_TRACE, SECCOMP_RET_LOG, SECCOMP_RET_ALLOW,
	};

	for (size_t i = 0; i < COUNT(ranked); i++)
		for (size_t j = 0; j < COUNT(ranked); j++)
			CHECK(psc_decision_merge(ranked[i], ranked[j]) == ranked[i < j ? i : j]);
	CHECK(psc_decision_merge(SECCOMP_RET_ERRNO | 1, SECCOMP_RET_ERRNO | 2) == (SECCOMP_RET_ERRNO | 1));
}

int main(void)
{
	test_arithmetic_is_the_kernel_s();
	test_loads_and_scratch();
	test_jumps_compare_unsigned();
	test_refusals_name_the_instruction();
	test_precedence_of_two_filters();
	return 0;
}
