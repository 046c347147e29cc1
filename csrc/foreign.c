/* foreign.c - does a program know an architecture at all?
 *
 * A program without rules for an architecture gives one answer to all calls of it, the one
 * for unknown architectures: mostly a kill. The program is walked with the architecture
 * fixed and all else unknown, which shows the answers that are possible. Jumps only go
 * forward, so one pass meets every instruction after all that jump to it. */
#include "psc.h"

#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>

#define UNKNOWN_ARCH 1 /* no AUDIT_ARCH_* */

enum content { UNREACHED, ARCH, NR, ANYTHING }; /* of the accumulator */

struct calls {
	bool arch_known;
	uint32_t arch, first, last; /* the numbers of its calls */
};

struct answers {
	bool any, several;
	uint32_t ret;
};

static void reach(uint8_t *at, enum content content)
{
	*at = *at == UNREACHED || *at == content ? content : ANYTHING;
}

/* Which of a jump's ways are possible: 1 the true one, 2 the false one, 3 both. */
static int ways(const struct sock_filter *insn, enum content content, const struct calls *calls)
{
	uint32_t low = content == ARCH ? calls->arch : calls->first, high = content == ARCH ? calls->arch : calls->last;

	if (content == ANYTHING)
		return 3;
	switch (insn->code) {
	case BPF_JMP | BPF_JEQ | BPF_K:
		return insn->k < low || insn->k > high ? 2 : low == high ? 1 : 3;
	case BPF_JMP | BPF_JGE | BPF_K:
		return low >= insn->k ? 1 : high < insn->k ? 2 : 3;
	case BPF_JMP | BPF_JGT | BPF_K:
		return low > insn->k ? 1 : high <= insn->k ? 2 : 3;
	case BPF_JMP | BPF_JSET | BPF_K:
		if (low == high)
			return low & insn->k ? 1 : 2;
		/* The bits that all numbers of the range share are those above the highest that differs. */
		for (uint32_t differ = low ^ high, bit = 1u << 31; bit && !(differ & bit); bit >>= 1)
			if (low & insn->k & bit)
				return 1;
		return 3;
	default:
		return 3;
	}
}

static enum content load(const struct sock_filter *insn, const struct calls *calls)
{
	if (insn->code != (BPF_LD | BPF_W | BPF_ABS))
		return ANYTHING;
	if (insn->k == offsetof(struct seccomp_data, arch))
		return calls->arch_known ? ARCH : ANYTHING;
	return insn->k == offsetof(struct seccomp_data, nr) ? NR : ANYTHING;
}

static void add_answer(struct answers *answers, const struct sock_filter *insn)
{
	answers->several |= insn->code != (BPF_RET | BPF_K) || (answers->any && answers->ret != insn->k);
	answers->ret = insn->k;
	answers->any = true;
}

static struct answers walk(const struct sock_filter *insns, size_t len, const struct calls *calls)
{
	uint8_t reached[PSC_MAX_INSNS + 1] = { ANYTHING };
	struct answers answers = { 0 };

	for (size_t i = 0; i < len; i++) {
		const struct sock_filter *insn = &insns[i];
		enum content content = reached[i];
		int possible;

		if (content == UNREACHED)
			continue;
		switch (BPF_CLASS(insn->code)) {
		case BPF_RET:
			add_answer(&answers, insn);
			break;
		case BPF_JMP:
			if (BPF_OP(insn->code) == BPF_JA) {
				reach(&reached[i + 1 + insn->k], content);
				break;
			}
			possible = ways(insn, content, calls);
			if (possible & 1)
				reach(&reached[i + 1 + insn->jt], content);
			if (possible & 2)
				reach(&reached[i + 1 + insn->jf], content);
			break;
		case BPF_LD:
			reach(&reached[i + 1], load(insn, calls));
			break;
		case BPF_ALU:
			reach(&reached[i + 1], ANYTHING);
			break;
		default: /* LDX, ST, STX, TAX leave the accumulator as it is, TXA does not */
			reach(&reached[i + 1], insn->code == (BPF_MISC | BPF_TXA) ? ANYTHING : content);
		}
	}
	return answers;
}

bool psc_program_is_foreign(const struct sock_filter *insns, size_t len, uint32_t audit_arch, uint32_t first, uint32_t last)
{
	const struct calls calls = { true, audit_arch, first, last }, unknown = { true, UNKNOWN_ARCH, 0, UINT32_MAX };
	const struct calls all = { false, 0, 0, UINT32_MAX };
	struct answers found, other;
	uint32_t action;

	if (psc_program_check(insns, len, NULL) < 0)
		return false;
	found = walk(insns, len, &calls);
	action = found.ret & SECCOMP_RET_ACTION_FULL;
	if (found.several || action == SECCOMP_RET_ALLOW || action == SECCOMP_RET_LOG)
		return false;
	other = walk(insns, len, &unknown);
	return !other.several && other.ret == found.ret && walk(insns, len, &all).several;
}
