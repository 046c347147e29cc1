/* Random policies against the plainest reading of their rules, over the inputs
 * where answers change. Every stage is on the way: rules, diagram, search, emission,
 * checker, interpreter, and the equivalence of what they make. */
#include "psc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                          \
	do {                                                                                      \
		if (!(condition)) {                                                               \
			fprintf(stderr, "%s:%d: seed %u: %s\n", __FILE__, __LINE__, seed, #condition); \
			exit(1);                                                                  \
		}                                                                                 \
	} while (0)

#define POLICIES 250
#define MAX_RULES 160
#define INPUTS 300

struct rule {
	uint32_t action;
	int nr;
	size_t count;
	struct psc_term terms[2];
};

static unsigned int seed;
static uint32_t state;
static struct rule rules[MAX_RULES];
static size_t rule_count;
static uint32_t default_action;

static const uint32_t actions[] = { SECCOMP_RET_ALLOW,	      SECCOMP_RET_ERRNO | 1, SECCOMP_RET_ERRNO | 2, SECCOMP_RET_LOG,
				    SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_TRAP,	     SECCOMP_RET_USER_NOTIF };

static uint32_t random_below(uint32_t limit)
{
	state ^= state << 13;
	state ^= state >> 17;
	state ^= state << 5;
	return state % limit;
}

/* Few enough values that rules meet, on both sides of the words' ends. */
static uint64_t random_value(void)
{
	static const uint64_t bases[] = { 0, 5, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x8000000000000000, UINT64_MAX };

	return bases[random_below(8)] + random_below(3) - 1;
}

static uint32_t random_action(void)
{
	return actions[random_below(sizeof(actions) / sizeof(actions[0]))];
}

static struct psc_term random_term(bool wide)
{
	struct psc_term term = { .kind = PSC_TERM_COMPARE, .arg = random_below(2), .op = 1 + random_below(8) };

	term.a = wide ? random_below(1 << 20) : random_value();
	term.b = random_value();
	if (term.op == PSC_OP_MASKED_EQ)
		term.b &= term.a;
	else if (term.op == PSC_OP_RANGE && term.b < term.a)
		term.b = term.a;
	else if (term.op != PSC_OP_RANGE)
		term.b = 0;
	return term;
}

static bool term_holds(const struct psc_term *term, const uint64_t *args)
{
	uint64_t arg = args[term->arg];

	switch (term->op) {
	case PSC_OP_NE: return arg != term->a;
	case PSC_OP_LT: return arg < term->a;
	case PSC_OP_LE: return arg <= term->a;
	case PSC_OP_EQ: return arg == term->a;
	case PSC_OP_GE: return arg >= term->a;
	case PSC_OP_GT: return arg > term->a;
	case PSC_OP_MASKED_EQ: return (arg & term->a) == term->b;
	default: return term->a <= arg && arg <= term->b;
	}
}

static uint32_t naive(const struct seccomp_data *data)
{
	bool found = false;
	uint32_t answer = 0;

	if (data->arch != psc_arch_token(PSC_ARCH_X86_64))
		return SECCOMP_RET_KILL_THREAD;
	if (data->nr != -1 && (uint32_t)data->nr & PSC_X32_BIT)
		return SECCOMP_RET_KILL_THREAD;
	for (size_t i = 0; i < rule_count; i++) {
		bool holds = rules[i].nr == data->nr;

		for (size_t t = 0; t < rules[i].count; t++)
			holds = holds && term_holds(&rules[i].terms[t], (const uint64_t *)data->args);
		if (holds && (!found || (int32_t)(rules[i].action & SECCOMP_RET_ACTION_FULL) <=
						(int32_t)(answer & SECCOMP_RET_ACTION_FULL)))
			answer = rules[i].action;
		found |= holds;
	}
	return found ? answer : default_action;
}

static struct psc_policy *random_policy(void)
{
	bool large = seed % 10 == 0;
	struct psc_policy *policy;

	default_action = random_action();
	rule_count = large ? MAX_RULES : 1 + random_below(30);
	CHECK(psc_policy_new(default_action, SECCOMP_RET_KILL_THREAD, PSC_PRIORITY_RESTRICTIVE, &policy) == 0);
	CHECK(psc_policy_add_arch(policy, PSC_ARCH_X86_64) == 0);
	for (size_t i = 0; i < rule_count; i++) {
		struct rule *rule = &rules[i];

		*rule = (struct rule){ random_action(), (int)random_below(12) * 97, large ? 1 : random_below(3), { { 0 } } };
		for (size_t t = 0; t < rule->count; t++)
			rule->terms[t] = random_term(large);
		CHECK(psc_policy_add_number(policy, rule->action, PSC_ARCH_X86_64, (uint32_t)rule->nr, rule->terms, rule->count) == 0);
	}
	return policy;
}

static struct seccomp_data random_input(void)
{
	const struct rule *rule = &rules[random_below((uint32_t)rule_count)];
	struct seccomp_data data = { .nr = rule->nr, .arch = psc_arch_token(PSC_ARCH_X86_64) };

	for (int i = 0; i < 2; i++)
		data.args[i] = random_value();
	if (rule->count > 0 && random_below(4))
		data.args[rule->terms[0].arg] = (random_below(2) ? rule->terms[0].a : rule->terms[0].b) + random_below(3) - 1;
	switch (random_below(16)) {
	case 0: data.nr = random_below(2) ? data.nr + 1 : (int)random_below(20) - 2; break;
	case 1: data.nr |= PSC_X32_BIT; break;
	case 2: data.arch = psc_arch_token(PSC_ARCH_X86); break;
	}
	return data;
}

static uint32_t run(const struct sock_filter *insns, size_t len, const struct seccomp_data *data)
{
	struct psc_decision decision;

	CHECK(psc_program_run(insns, len, data, &decision) == 0);
	CHECK(decision.executed > 0 && decision.executed <= len);
	return decision.ret;
}

/* One constant changed: where the answers differ the checker must see it, and what it shows must differ. */
static void damage(const struct sock_filter *insns, size_t len)
{
	struct sock_filter *bad = malloc(len * sizeof(*bad));
	size_t at = random_below((uint32_t)len);
	struct seccomp_data data;
	bool differs = false;
	int r;

	CHECK(bad != NULL);
	memcpy(bad, insns, len * sizeof(*bad));
	while (BPF_CLASS(bad[at].code) != BPF_JMP && BPF_CLASS(bad[at].code) != BPF_RET)
		at = (at + 1) % len;
	if (bad[at].code == (BPF_JMP | BPF_JGE | BPF_K))
		bad[at].code = BPF_JMP | BPF_JGT | BPF_K;
	else if (BPF_CLASS(bad[at].code) == BPF_RET)
		bad[at].k = SECCOMP_RET_ERRNO | 3;
	else if (BPF_OP(bad[at].code) != BPF_JA)
		bad[at].k++;
	for (int i = 0; i < INPUTS; i++) {
		data = random_input();
		differs |= run(insns, len, &data) != run(bad, len, &data);
	}
	r = psc_program_difference(insns, len, bad, len, &data);
	CHECK(r == 0 || r == 1);
	CHECK(r == 1 || !differs);
	CHECK(r == 0 || run(insns, len, &data) != run(bad, len, &data));
	free(bad);
}

static void try_policy(void)
{
	struct psc_policy *policy = random_policy();
	struct sock_filter *insns[2];
	struct seccomp_data data;
	size_t len[2];

	for (int i = 0; i < 2; i++) {
		const struct psc_compile_options options = { .optimize = i ? PSC_OPTIMIZE_DEPTH : PSC_OPTIMIZE_SIZE };

		CHECK(psc_policy_compile(policy, &options, &insns[i], &len[i]) == 0);
		CHECK(psc_program_check(insns[i], len[i], NULL) == 0);
		for (int k = 0; k < INPUTS; k++) {
			data = random_input();
			CHECK(run(insns[i], len[i], &data) == naive(&data));
		}
	}
	CHECK(len[0] <= len[1]);
	CHECK(psc_program_difference(insns[0], len[0], insns[1], len[1], &data) == 0);
	for (int i = 0; i < 4; i++)
		damage(insns[i % 2], len[i % 2]);
	free(insns[0]);
	free(insns[1]);
	psc_policy_free(policy);
}

/* Where the checker must draw its lines. */
static void test_checker(void)
{
	const struct sock_filter ret = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	const struct sock_filter near[] = { BPF_STMT(BPF_JMP | BPF_JA, 0), ret };
	const struct sock_filter far[] = { BPF_STMT(BPF_JMP | BPF_JA, 1), ret };
	const struct sock_filter branch[] = { BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1), ret };
	const struct sock_filter last[] = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 60), ret };
	const struct sock_filter beyond[] = { BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 64), ret };

	CHECK(psc_program_check(near, 2, NULL) == 0);
	CHECK(psc_program_check(far, 2, NULL) < 0);
	CHECK(psc_program_check(branch, 2, NULL) < 0);
	CHECK(psc_program_check(last, 2, NULL) == 0);
	CHECK(psc_program_check(beyond, 2, NULL) < 0);
}

int main(void)
{
	test_checker();
	for (seed = 1; seed <= POLICIES; seed++) {
		state = seed * 2654435761U + 1;
		try_policy();
	}
	return 0;
}
