/* The compiler through its C interface: meaning, refusals, equivalence, limits. */
#include "check.h"
#include "psc.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct program {
	struct sock_filter *insns;
	size_t len;
};

static struct psc_policy *new_policy(uint32_t default_action)
{
	struct psc_policy *policy;

	CHECK(psc_policy_new(default_action, SECCOMP_RET_KILL_PROCESS, PSC_PRIORITY_RESTRICTIVE, &policy) == 0);
	CHECK(psc_policy_add_arch(policy, PSC_ARCH_X86_64) == 0);
	return policy;
}

static struct program compile(struct psc_policy *policy, enum psc_optimize optimize)
{
	const struct psc_compile_options options = { .optimize = optimize };
	struct program program;

	CHECK(psc_policy_compile(policy, &options, &program.insns, &program.len) == 0);
	CHECK(psc_program_check(program.insns, program.len, NULL) == 0);
	return program;
}

static uint32_t answer(const struct program *program, int nr, uint64_t arg)
{
	const struct seccomp_data data = { .nr = nr, .arch = psc_arch_token(PSC_ARCH_X86_64), .args = { arg } };
	struct psc_decision decision;

	CHECK(psc_program_run(program->insns, program->len, &data, &decision) == 0);
	return decision.ret;
}

static int number(const char *name)
{
	int id = psc_syscall_id(name);

	CHECK(id >= 0);
	return psc_syscall_number(PSC_ARCH_X86_64, id);
}

static void test_rules_mean_what_they_say(void)
{
	const struct psc_term equal = { PSC_TERM_COMPARE, 0, PSC_OP_EQ, 0, 0x100000005, 0 };
	struct psc_policy *policy = new_policy(SECCOMP_RET_ALLOW);
	struct program size, depth;
	struct seccomp_data data;

	CHECK(psc_policy_add(policy, SECCOMP_RET_ERRNO | 1, psc_syscall_id("read"), &equal, 1) == 0);
	CHECK(psc_policy_add_number(policy, SECCOMP_RET_LOG, PSC_ARCH_X86_64, 400, NULL, 0) == 0);
	size = compile(policy, PSC_OPTIMIZE_SIZE);
	depth = compile(policy, PSC_OPTIMIZE_DEPTH);
	CHECK(answer(&size, number("read"), 0x100000005) == (SECCOMP_RET_ERRNO | 1));
	CHECK(answer(&size, number("read"), 5) == SECCOMP_RET_ALLOW);
	CHECK(answer(&size, 400, 0) == SECCOMP_RET_LOG);
	CHECK(answer(&size, (int)(400 | PSC_X32_BIT), 0) == SECCOMP_RET_KILL_PROCESS);
	CHECK(psc_program_difference(size.insns, size.len, depth.insns, depth.len, &data) == 0);
	size.insns[size.len - 1].k ^= SECCOMP_RET_KILL_PROCESS ^ SECCOMP_RET_TRAP;
	CHECK(psc_program_difference(size.insns, size.len, depth.insns, depth.len, &data) == 1);
	free(size.insns);
	free(depth.insns);
	psc_policy_free(policy);
}

static void test_bad_terms_are_refused(void)
{
	const struct psc_term bad[] = {
		{ PSC_TERM_COMPARE, 6, PSC_OP_EQ, 0, 0, 0 },
		{ PSC_TERM_COMPARE, 0, 0, 0, 0, 0 },
		{ PSC_TERM_COMPARE, 0, PSC_OP_RANGE + 1, 0, 0, 0 },
		{ PSC_TERM_COMPARE, 0, PSC_OP_MASKED_EQ, 0, 1, 2 },
		{ PSC_TERM_COMPARE, 0, PSC_OP_EQ, PSC_COMPARE_32, 1ULL << 32, 0 },
		{ PSC_TERM_COMPARE, 0, PSC_OP_EQ, 4, 0, 0 },
		{ PSC_TERM_NOT, 0, 0, 0, 0, 0 },
		{ PSC_TERM_OR, 0, 0, 0, 0, 0 },
		{ 9, 0, 0, 0, 0, 0 },
	};
	struct psc_policy *policy = new_policy(SECCOMP_RET_ALLOW);

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		CHECK(psc_policy_add(policy, SECCOMP_RET_LOG, 0, &bad[i], 1) == -EINVAL);
	CHECK(psc_policy_add(policy, SECCOMP_RET_LOG, -1, NULL, 0) == -EINVAL);
	CHECK(psc_policy_add_number(policy, SECCOMP_RET_LOG, PSC_ARCH_X32, 3, NULL, 0) == -EINVAL);
	CHECK(psc_policy_add_number(policy, SECCOMP_RET_LOG, PSC_ARCH_X86_64, PSC_X32_BIT, NULL, 0) == -EINVAL);
	CHECK(psc_policy_add_arch(policy, PSC_ARCH_X86_64) == -EEXIST);
	CHECK(psc_policy_add_arch(policy, PSC_ARCH_S390X) == -EDOM);
	psc_policy_free(policy);
	psc_policy_free(NULL);
}

/* Every number has its own answer: jumps beyond 255 instructions need islands. */
static void test_far_jumps_have_islands(void)
{
	struct psc_policy *policy = new_policy(SECCOMP_RET_KILL_THREAD);

	for (uint32_t nr = 0; nr < 1200; nr++)
		CHECK(psc_policy_add_number(policy, SECCOMP_RET_ERRNO | (nr * 7 % 1201), PSC_ARCH_X86_64, nr, NULL, 0) == 0);
	for (int mode = PSC_OPTIMIZE_SIZE; mode <= PSC_OPTIMIZE_DEPTH; mode++) {
		struct program program = compile(policy, mode);

		for (int nr = 0; nr < 1200; nr++)
			CHECK(answer(&program, nr, 0) == (SECCOMP_RET_ERRNO | (uint32_t)(nr * 7 % 1201)));
		CHECK(answer(&program, 1200, 0) == SECCOMP_RET_KILL_THREAD);
		free(program.insns);
	}
	psc_policy_free(policy);
}

static void test_too_large_says_how_large(void)
{
	struct psc_policy *policy = new_policy(SECCOMP_RET_ALLOW);
	struct sock_filter *insns;
	size_t len = 0;

	for (uint32_t i = 0; i < 3000; i++)
		CHECK(psc_policy_add_number(policy, SECCOMP_RET_ERRNO | i, PSC_ARCH_X86_64, 2 * i, NULL, 0) == 0);
	CHECK(psc_policy_compile(policy, NULL, &insns, &len) == -E2BIG);
	CHECK(len > PSC_MAX_INSNS && len < 10000);
	psc_policy_free(policy);
}

static void test_tables_look_both_ways(void)
{
	for (int arch = 0; arch < PSC_ARCH_COUNT; arch++) {
		int found = 0;

		CHECK(psc_arch_by_name(psc_arch_name(arch)) == arch);
		for (int id = 0; id < psc_syscall_count(); id++) {
			int nr = psc_syscall_number(arch, id);

			CHECK(psc_syscall_id(psc_syscall_name_of_id(id)) == id);
			if (nr < 0)
				continue;
			found++;
			CHECK(psc_syscall_number(arch, psc_syscall_by_number(arch, (uint32_t)nr)) == nr);
		}
		CHECK(found > 300);
	}
	CHECK(psc_syscall_id("") == -ENOENT);
	CHECK(psc_syscall_id("no_such_call") == -ENOENT);
	CHECK(psc_syscall_name_of_id(-1) == NULL);
	CHECK(psc_arch_of(0x12345678, 0) == -ENOENT);
	CHECK(psc_arch_of(psc_arch_token(PSC_ARCH_X86_64), PSC_X32_BIT) == PSC_ARCH_X32);
}

/* A policy cut in three by number and by argument, and put together again. */
static void test_parts_of_a_policy_are_the_policy(void)
{
	const struct psc_term equal = { PSC_TERM_COMPARE, 0, PSC_OP_EQ, 0, 7, 0 };
	const uint32_t token = psc_arch_token(PSC_ARCH_X86_64);
	const struct psc_span spans[] = {
		{ .token = token, .first = 0, .last = 0, .arg = 0, .hi = 6 },
		{ .token = token, .first = 0, .last = 0, .arg = 0, .lo = 7, .hi = UINT64_MAX },
	};
	const struct psc_span bad[] = {
		{ .token = token, .first = 1, .last = 0, .arg = -1 },
		{ .token = token, .arg = 6 },
		{ .token = token, .arg = 0, .lo = 2, .hi = 1 },
		{ .token = token, .arg = 0, .low = true, .hi = 1ULL << 32 },
	};
	struct psc_policy *policy = new_policy(SECCOMP_RET_KILL_PROCESS);
	struct sock_fprog stack[3], whole;
	struct seccomp_data data;
	struct program program;
	size_t len;

	CHECK(psc_policy_add(policy, SECCOMP_RET_ALLOW, psc_syscall_id("read"), &equal, 1) == 0);
	CHECK(psc_policy_add(policy, SECCOMP_RET_ERRNO | 1, psc_syscall_id("write"), NULL, 0) == 0);
	program = compile(policy, PSC_OPTIMIZE_SIZE);
	whole = (struct sock_fprog){ (unsigned short)program.len, program.insns };
	for (int i = 0; i < 3; i++) {
		const struct psc_compile_options options = {
			.part = true, .others = i == 2, .spans = i == 1 ? spans + 1 : spans, .span_count = i == 2 ? 2 : 1,
		};

		CHECK(psc_policy_compile(policy, &options, &stack[i].filter, &len) == 0);
		stack[i].len = (unsigned short)len;
	}
	CHECK(psc_stack_difference(stack, 3, &whole, 1, NULL, &data) == 0);
	CHECK(psc_stack_difference(stack, 2, &whole, 1, NULL, &data) == 1);
	CHECK(psc_stack_difference(stack, 0, &whole, 1, NULL, &data) == -EINVAL);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		const struct psc_compile_options options = { .part = true, .spans = &bad[i], .span_count = 1 };

		CHECK(psc_policy_compile(policy, &options, &stack[0].filter, &len) == -EINVAL);
	}
	for (int i = 0; i < 3; i++)
		free(stack[i].filter);
	free(program.insns);
	psc_policy_free(policy);
}

int main(void)
{
	test_parts_of_a_policy_are_the_policy();
	test_rules_mean_what_they_say();
	test_bad_terms_are_refused();
	test_far_jumps_have_islands();
	test_too_large_says_how_large();
	test_tables_look_both_ways();
	return 0;
}
