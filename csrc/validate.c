/* The kernel's checker of classic BPF for seccomp, rule by rule, so that a bad
 * program is refused where it is made, with its index and the reason, and not
 * by a bare EINVAL in the middle of an attach.
 *
 * Three passes, as there: bpf_check_classic() (codes, constants, jumps, the
 * last instruction), check_load_and_stores() (scratch memory is written before
 * it is read, on every path), seccomp_check_filter() (the subset of codes and
 * loads that seccomp takes). The order among them decides only which reason is
 * told, so they are folded into two here. */
#include "psc.h"

#include <errno.h>
#include <string.h>

static int fault(struct psc_program_fault *ret, size_t index, const char *reason)
{
	if (ret)
		*ret = (struct psc_program_fault){ index, reason };
	return -EINVAL;
}

static bool is_conditional(uint16_t code)
{
	switch (code) {
	case BPF_JMP | BPF_JEQ | BPF_K:
	case BPF_JMP | BPF_JEQ | BPF_X:
	case BPF_JMP | BPF_JGE | BPF_K:
	case BPF_JMP | BPF_JGE | BPF_X:
	case BPF_JMP | BPF_JGT | BPF_K:
	case BPF_JMP | BPF_JGT | BPF_X:
	case BPF_JMP | BPF_JSET | BPF_K:
	case BPF_JMP | BPF_JSET | BPF_X:
		return true;
	default:
		return false;
	}
}

/* The reason why one instruction is refused, or NULL. left: instructions after it. */
static const char *check_insn(const struct sock_filter *insn, size_t left)
{
	switch (insn->code) {
	case BPF_LD | BPF_W | BPF_ABS:
		if (insn->k & 3)
			return "load offset is not a multiple of 4";
		return insn->k >= sizeof(struct seccomp_data) ? "load beyond struct seccomp_data (64 bytes)" : NULL;
	case BPF_ALU | BPF_DIV | BPF_K:
		return insn->k == 0 ? "division by the constant 0" : NULL;
	case BPF_ALU | BPF_LSH | BPF_K:
	case BPF_ALU | BPF_RSH | BPF_K:
		return insn->k >= 32 ? "shift by 32 bits or more" : NULL;
	case BPF_LD | BPF_MEM:
	case BPF_LDX | BPF_MEM:
	case BPF_ST:
	case BPF_STX:
		return insn->k >= BPF_MEMWORDS ? "scratch memory has 16 words (0-15)" : NULL;
	case BPF_JMP | BPF_JA:
		return insn->k >= left ? "jump past the end" : NULL;
	case BPF_LD | BPF_W | BPF_LEN:
	case BPF_LDX | BPF_W | BPF_LEN:
	case BPF_RET | BPF_K:
	case BPF_RET | BPF_A:
	case BPF_ALU | BPF_ADD | BPF_K:
	case BPF_ALU | BPF_ADD | BPF_X:
	case BPF_ALU | BPF_SUB | BPF_K:
	case BPF_ALU | BPF_SUB | BPF_X:
	case BPF_ALU | BPF_MUL | BPF_K:
	case BPF_ALU | BPF_MUL | BPF_X:
	case BPF_ALU | BPF_DIV | BPF_X:
	case BPF_ALU | BPF_AND | BPF_K:
	case BPF_ALU | BPF_AND | BPF_X:
	case BPF_ALU | BPF_OR | BPF_K:
	case BPF_ALU | BPF_OR | BPF_X:
	case BPF_ALU | BPF_XOR | BPF_K:
	case BPF_ALU | BPF_XOR | BPF_X:
	case BPF_ALU | BPF_LSH | BPF_X:
	case BPF_ALU | BPF_RSH | BPF_X:
	case BPF_ALU | BPF_NEG:
	case BPF_LD | BPF_IMM:
	case BPF_LDX | BPF_IMM:
	case BPF_MISC | BPF_TAX:
	case BPF_MISC | BPF_TXA:
		return NULL;
	}
	if (is_conditional(insn->code))
		return insn->jt >= left || insn->jf >= left ? "jump past the end" : NULL;
	return "not an instruction that seccomp accepts";
}

/* On every path a scratch word is stored before it is loaded. One mask of
 * surely stored words per instruction; jumps go forward only, so one pass. */
static int check_scratch(const struct sock_filter *insns, size_t len, struct psc_program_fault *ret_fault)
{
	uint16_t stored[PSC_MAX_INSNS], valid = 0;

	memset(stored, 0xff, sizeof(stored));
	for (size_t pc = 0; pc < len; pc++) {
		const struct sock_filter *insn = &insns[pc];

		valid &= stored[pc];
		if (insn->code == BPF_ST || insn->code == BPF_STX) {
			valid |= 1U << insn->k;
		} else if (insn->code == (BPF_LD | BPF_MEM) || insn->code == (BPF_LDX | BPF_MEM)) {
			if (!(valid & 1U << insn->k))
				return fault(ret_fault, pc, "loads a scratch word that some path has not stored");
		} else if (insn->code == (BPF_JMP | BPF_JA)) {
			stored[pc + 1 + insn->k] &= valid;
			valid = 0xffff;
		} else if (is_conditional(insn->code)) {
			stored[pc + 1 + insn->jt] &= valid;
			stored[pc + 1 + insn->jf] &= valid;
			valid = 0xffff;
		}
	}
	return 0;
}

int psc_program_check(const struct sock_filter *insns, size_t len, struct psc_program_fault *ret_fault)
{
	if (len == 0)
		return fault(ret_fault, SIZE_MAX, "it has no instructions");
	if (len > PSC_MAX_INSNS)
		return fault(ret_fault, SIZE_MAX, "it has more than 4096 instructions");
	for (size_t pc = 0; pc < len; pc++) {
		const char *reason = check_insn(&insns[pc], len - 1 - pc);

		if (reason)
			return fault(ret_fault, pc, reason);
	}
	if (BPF_CLASS(insns[len - 1].code) != BPF_RET)
		return fault(ret_fault, len - 1, "the last instruction is not a return");
	return check_scratch(insns, len, ret_fault);
}

bool psc_program_notifies(const struct sock_filter *insns, size_t len)
{
	for (size_t pc = 0; pc < len; pc++) {
		if (insns[pc].code == (BPF_RET | BPF_A))
			return true;
		if (insns[pc].code == (BPF_RET | BPF_K) &&
		    (insns[pc].k & SECCOMP_RET_ACTION_FULL) == SECCOMP_RET_USER_NOTIF)
			return true;
	}
	return false;
}
