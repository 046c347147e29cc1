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

#ifdef __cplusplus
}
#endif

#endif
