/* psc.h - the contract of libpsc, the C core of pyseccomp.
 *
 * Seccomp filters as objects: compile and check programs, keep them in file
 * descriptors, put them into other tasks, answer their notifications, ask the
 * kernel what is true.
 *
 * Conventions, for every function here:
 *   - int and ssize_t returns are >= 0 or -errno; errno itself means nothing.
 *   - Outputs come last, are named ret_*, and are written only on success
 *     (where a function also explains failures it says so).
 *   - File descriptors returned are CLOEXEC and owned by the caller.
 *   - Nothing here logs, exits, keeps process-global state or needs Python.
 *   - Functions that can wait say so; all others return at once.
 */
#ifndef PSC_H
#define PSC_H

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PSC_MUST_CHECK __attribute__((warn_unused_result))

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------ digest */

#define PSC_DIGEST_SIZE 32

/* SHA-256 of size bytes. Identifies a program; it is not a secret. */
void psc_digest(const void *data, size_t size, uint8_t ret_digest[PSC_DIGEST_SIZE]);

/* ---------------------------------------------------------------- validate */

/* Limits of the kernel: BPF_MAXINSNS for one program, and the path limit of
 * kernel/seccomp.c, which counts every filter of a chain as its length + 4. */
#define PSC_MAX_INSNS 4096
#define PSC_MAX_PATH_INSNS 32768

/* Why a program was refused, and where. index is SIZE_MAX for the whole
 * program (its length, say). reason is a static string. */
struct psc_program_fault {
	size_t index;
	const char *reason;
};

/* Check a program by every rule that the kernel has for seccomp's classic BPF
 * (net/core/filter.c bpf_check_classic, kernel/seccomp.c seccomp_check_filter).
 * 0: the kernel would load it. -EINVAL: it would not, and *ret_fault, unless
 * NULL, says why. */
PSC_MUST_CHECK int psc_program_check(const struct sock_filter *insns, size_t len,
				     struct psc_program_fault *ret_fault);

/* True if any return statement can answer SECCOMP_RET_USER_NOTIF: constants
 * are looked at, a "return A" counts as yes. */
bool psc_program_notifies(const struct sock_filter *insns, size_t len);

/* --------------------------------------------------------------- interpret */

/* What a program answers to one call. executed: instructions run, the return
 * included. */
struct psc_decision {
	uint32_t ret;
	uint32_t executed;
};

/* Run a program that psc_program_check() accepted, exactly as the kernel would.
 * -EINVAL: it was not such a program (ran off its end or past its length). */
PSC_MUST_CHECK int psc_program_run(const struct sock_filter *insns, size_t len,
				   const struct seccomp_data *data,
				   struct psc_decision *ret_decision);

/* The answer that the kernel takes out of two filters' answers: the one with
 * higher precedence by action; the first (newest) on a tie. */
uint32_t psc_decision_merge(uint32_t newer, uint32_t older);

/* ------------------------------------------------------------- equivalence */

/* Compare two programs over all inputs. 0: they answer every call alike, in what
 * the kernel makes of the answers. 1: they do not, and *ret_data is a call that
 * tells them apart. -EINVAL: one does not pass psc_program_check(). -E2BIG: too
 * hard to decide (arithmetic on arguments); compilers do not emit such. */
PSC_MUST_CHECK int psc_program_difference(const struct sock_filter *a, size_t a_len, const struct sock_filter *b,
					  size_t b_len, struct seccomp_data *ret_data);

/* ---------------------------------------------------------------- syscalls */

/* The ABIs a program can serve. x32 shares its AUDIT_ARCH token with x86_64
 * and is told apart by bit 30 of the number. The order is that of the
 * generated table; values are not stable between releases, names are. */
enum psc_arch {
	PSC_ARCH_X86_64, PSC_ARCH_X86, PSC_ARCH_X32, PSC_ARCH_ARM, PSC_ARCH_AARCH64, PSC_ARCH_LOONGARCH64,
	PSC_ARCH_M68K, PSC_ARCH_MIPS, PSC_ARCH_MIPSEL, PSC_ARCH_MIPS64, PSC_ARCH_MIPSEL64, PSC_ARCH_MIPS64N32,
	PSC_ARCH_MIPSEL64N32, PSC_ARCH_PARISC, PSC_ARCH_PARISC64, PSC_ARCH_PPC, PSC_ARCH_PPC64, PSC_ARCH_PPC64LE,
	PSC_ARCH_RISCV64, PSC_ARCH_S390, PSC_ARCH_S390X, PSC_ARCH_SH, PSC_ARCH_SHEB,
	PSC_ARCH_COUNT
};

#define PSC_X32_BIT 0x40000000U

/* The ABI this library was compiled for, -EOPNOTSUPP where it has no table. */
PSC_MUST_CHECK int psc_arch_native(void);
/* The ABI that a call with this seccomp_data.arch and number belongs to; -ENOENT. */
PSC_MUST_CHECK int psc_arch_of(uint32_t token, uint32_t nr);
/* By its own name ("x86_64") or libseccomp's ("X86_64" of SCMP_ARCH_X86_64); -ENOENT. */
PSC_MUST_CHECK int psc_arch_by_name(const char *name);
const char *psc_arch_name(enum psc_arch arch);
uint32_t psc_arch_token(enum psc_arch arch);
bool psc_arch_big_endian(enum psc_arch arch);
/* True if its registers, and so its arguments, have 64 bits. */
bool psc_arch_wide(enum psc_arch arch);

/* A name's index, common to all ABIs (0 .. psc_syscall_count() - 1); -ENOENT. */
PSC_MUST_CHECK int psc_syscall_id(const char *name);
int psc_syscall_count(void);
/* NULL if there is no such index. */
const char *psc_syscall_name_of_id(int id);
/* The number of a call on an ABI (x32's carry PSC_X32_BIT); -ENOENT if it has none there. */
PSC_MUST_CHECK int psc_syscall_number(enum psc_arch arch, int id);
/* The index of the call with this number on an ABI; -ENOENT. Of two names of one number: the first by alphabet. */
PSC_MUST_CHECK int psc_syscall_by_number(enum psc_arch arch, uint32_t nr);
/* The kernel whose calls the tables hold, and the releases of the headers they were made from. */
const char *psc_syscall_kernel(void);
const char *psc_syscall_headers(void);

/* ------------------------------------------------------------------ policy */

/* Comparisons of one argument; the numbers up to 7 are libseccomp's. */
enum psc_op {
	PSC_OP_NE = 1, PSC_OP_LT, PSC_OP_LE, PSC_OP_EQ, PSC_OP_GE, PSC_OP_GT,
	PSC_OP_MASKED_EQ, /* (arg & a) == b */
	PSC_OP_RANGE,     /* a <= arg <= b */
};

enum psc_term_kind { PSC_TERM_COMPARE, PSC_TERM_NOT, PSC_TERM_AND, PSC_TERM_OR };

/* Look at the low 32 bits only: what the kernel does with int arguments. */
#define PSC_COMPARE_32 1U
/* Order as signed numbers (of 64 bits, or of 32 with PSC_COMPARE_32). */
#define PSC_COMPARE_SIGNED 2U

/* One element of a condition in postfix order: a comparison, or an operator on
 * the one or two conditions before it. What is left in the end is ANDed. */
struct psc_term {
	uint8_t kind;
	uint8_t arg;
	uint8_t op;
	uint8_t flags;
	uint64_t a, b;
};

#define PSC_MAX_TERMS 4096

/* Which of several matching rules of one call decides. RESTRICTIVE: the action
 * that the kernel ranks highest, the later rule on a tie, just as if each
 * rule were a filter of its own, installed in this order. FIRST: the first. */
enum psc_priority { PSC_PRIORITY_RESTRICTIVE, PSC_PRIORITY_FIRST };

struct psc_policy;

/* actions are whole SECCOMP_RET words. bad_arch answers calls of ABIs not added
 * (x32 calls, too, unless x32 was added). */
PSC_MUST_CHECK int psc_policy_new(uint32_t default_action, uint32_t bad_arch, enum psc_priority priority,
				  struct psc_policy **ret_policy);
void psc_policy_free(struct psc_policy *policy);

/* -EEXIST: it is there. -EDOM: byte order differs from that of the others. */
PSC_MUST_CHECK int psc_policy_add_arch(struct psc_policy *policy, enum psc_arch arch);

/* On 32-bit ABIs compare only the low word of each argument, whose high word the
 * kernel leaves 0 there (x32, whose registers have 64 bits, counts as one of
 * them). As libseccomp does; without it all comparisons are of 64 bits. */
void psc_policy_compare_low_words(struct psc_policy *policy);

/* A rule for the call with this index (psc_syscall_id), on every ABI that has
 * it. -EINVAL: a term has an argument above 5, an unknown op, a value that does
 * not fit, or the postfix order is broken. */
PSC_MUST_CHECK int psc_policy_add(struct psc_policy *policy, uint32_t action, int syscall_id,
				  const struct psc_term *terms, size_t count);

/* The same by number, on one ABI; x32's numbers carry PSC_X32_BIT (-EINVAL). */
PSC_MUST_CHECK int psc_policy_add_number(struct psc_policy *policy, uint32_t action, enum psc_arch arch, uint32_t nr,
					 const struct psc_term *terms, size_t count);

enum psc_optimize { PSC_OPTIMIZE_SIZE, PSC_OPTIMIZE_DEPTH, PSC_OPTIMIZE_PROFILE };

/* How often a call is made: seccomp_data.arch, .nr. */
struct psc_weight {
	uint32_t token;
	uint32_t nr;
	double weight;
};

struct psc_compile_options {
	enum psc_optimize optimize;
	const struct psc_weight *weights; /* for PROFILE, sorted by token, then nr */
	size_t weight_count;
};

/* Compile into a program of the fewest instructions (SIZE), or of the fewest
 * executed instructions, averaged over numbers (DEPTH) or over weights (PROFILE).
 * The caller frees *ret_insns. options NULL: SIZE. -E2BIG: it would have more
 * than PSC_MAX_INSNS instructions (*ret_len says how many; 0 if the rules'
 * conditions together were too many to hold). Not for one policy in two threads
 * at a time. */
PSC_MUST_CHECK int psc_policy_compile(struct psc_policy *policy, const struct psc_compile_options *options,
				      struct sock_filter **ret_insns, size_t *ret_len);

#ifdef __cplusplus
}
#endif

#endif
