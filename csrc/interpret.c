/* A classic BPF machine that answers as the kernel does for seccomp.
 *
 * What "as the kernel" means where BPF itself is silent (net/core/filter.c
 * bpf_convert_filter, kernel/bpf/core.c): A and X start as 0; a division by
 * X = 0 returns 0 (KILL_THREAD); a shift by X uses its low five bits; LEN is
 * sizeof(struct seccomp_data). */
#include "psc.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

static bool alu(uint16_t op, uint32_t operand, uint32_t *acc)
{
	switch (op) {
	case BPF_ADD: *acc += operand; break;
	case BPF_SUB: *acc -= operand; break;
	case BPF_MUL: *acc *= operand; break;
	case BPF_AND: *acc &= operand; break;
	case BPF_OR:  *acc |= operand; break;
	case BPF_XOR: *acc ^= operand; break;
	case BPF_LSH: *acc <<= operand & 31; break;
	case BPF_RSH: *acc >>= operand & 31; break;
	case BPF_NEG: *acc = -*acc; break;
	case BPF_DIV:
		if (operand == 0)
			return false;
		*acc /= operand;
		break;
	}
	return true;
}

static bool compare(uint16_t op, uint32_t acc, uint32_t operand)
{
	switch (op) {
	case BPF_JEQ: return acc == operand;
	case BPF_JGT: return acc > operand;
	case BPF_JGE: return acc >= operand;
	default:      return acc & operand; /* BPF_JSET */
	}
}

static uint32_t load(uint16_t code, uint32_t k, const struct seccomp_data *data, const uint32_t *scratch)
{
	uint32_t word;

	switch (BPF_MODE(code)) {
	case BPF_ABS:
		memcpy(&word, (const char *)data + k, sizeof(word));
		return word;
	case BPF_MEM: return scratch[k];
	case BPF_LEN: return sizeof(*data);
	default:      return k; /* BPF_IMM */
	}
}

/* Run one instruction and advance *pc. True: the program has answered. */
static inline bool step(const struct sock_filter *insns, size_t *pc, const struct seccomp_data *data, uint32_t *acc, uint32_t *x,
		 uint32_t *scratch, struct psc_decision *decision)
{
	const struct sock_filter *insn = &insns[(*pc)++];
	uint32_t operand = BPF_SRC(insn->code) == BPF_X ? *x : insn->k;

	decision->executed++;
	switch (BPF_CLASS(insn->code)) {
	case BPF_LD:
		*acc = load(insn->code, insn->k, data, scratch);
		break;
	case BPF_LDX:
		*x = load(insn->code, insn->k, data, scratch);
		break;
	case BPF_ST:
		scratch[insn->k] = *acc;
		break;
	case BPF_STX:
		scratch[insn->k] = *x;
		break;
	case BPF_ALU:
		decision->ret = 0;
		return !alu(BPF_OP(insn->code), operand, acc);
	case BPF_JMP:
		if (BPF_OP(insn->code) == BPF_JA)
			*pc += insn->k;
		else
			*pc += compare(BPF_OP(insn->code), *acc, operand) ? insn->jt : insn->jf;
		break;
	case BPF_RET:
		decision->ret = BPF_RVAL(insn->code) == BPF_A ? *acc : insn->k;
		return true;
	case BPF_MISC:
		if (BPF_MISCOP(insn->code) == BPF_TAX)
			*x = *acc;
		else
			*acc = *x;
		break;
	}
	return false;
}

int psc_program_run(const struct sock_filter *insns, size_t len, const struct seccomp_data *data,
		    struct psc_decision *ret_decision)
{
	struct psc_decision decision = { 0 };
	uint32_t acc = 0, x = 0, scratch[BPF_MEMWORDS] = { 0 };

	if (psc_program_check(insns, len, NULL) < 0)
		return -EINVAL;
	for (size_t pc = 0; pc < len;) {
		if (step(insns, &pc, data, &acc, &x, scratch, &decision)) {
			*ret_decision = decision;
			return 0;
		}
	}
	return -EINVAL;
}

static bool is_constant(const struct sock_filter *insn)
{
	if (insn->code == (BPF_LD | BPF_W | BPF_ABS))
		return insn->k == offsetof(struct seccomp_data, nr) || insn->k == offsetof(struct seccomp_data, arch);
	return true;
}

/* The first load of an argument or of the instruction pointer ends the run. */
bool psc_program_decides(const struct sock_filter *insns, size_t len, uint32_t arch, uint32_t nr, uint32_t *ret_ret)
{
	struct seccomp_data data = { .nr = (int)nr, .arch = arch };
	uint32_t acc = 0, x = 0, scratch[BPF_MEMWORDS] = { 0 };

	if (psc_program_check(insns, len, NULL) < 0)
		return false;
	for (size_t pc = 0; pc < len;) {
		struct psc_decision decision = { 0 };

		if (!is_constant(&insns[pc]))
			return false;
		if (step(insns, &pc, &data, &acc, &x, scratch, &decision)) {
			*ret_ret = decision.ret;
			return true;
		}
	}
	return false;
}

uint32_t psc_decision_merge(uint32_t newer, uint32_t older)
{
	int32_t a = (int32_t)(newer & SECCOMP_RET_ACTION_FULL);
	int32_t b = (int32_t)(older & SECCOMP_RET_ACTION_FULL);

	return b < a ? older : newer;
}
