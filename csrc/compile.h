/* Shared by the stages of the compiler, never installed.
 *
 *   policy.c    rules            -> decision diagram
 *   diagram.c   the diagrams: unique nodes, if-then-else
 *   optimize.c  decision diagram -> tests (a DAG of two-way branches)
 *   emit.c      tests            -> classic BPF
 *
 * A word is four bytes of struct seccomp_data; a variable is a word under a
 * mask. Variables are ordered by word, so that a diagram asks for the ABI, then
 * the number, then the arguments, each high half before its low half. */
#ifndef PSC_COMPILE_H
#define PSC_COMPILE_H

#include "psc.h"

/* ---- words */

enum psc_word { WORD_ARCH, WORD_NR, WORD_ARG0_HIGH, WORD_ARG0_LOW, WORD_COUNT = WORD_ARG0_HIGH + 12 };

#define RAW UINT32_MAX

/* A raw word sorts before the same word under a mask. */
static inline uint64_t psc_var(enum psc_word word, uint32_t mask)
{
	return (uint64_t)word << 32 | (uint32_t)~mask;
}

static inline enum psc_word psc_var_word(uint64_t var)
{
	return (enum psc_word)(var >> 32);
}

static inline uint32_t psc_var_mask(uint64_t var)
{
	return ~(uint32_t)var;
}

/* ---- decision diagrams */

#define DD_FALSE 0U
#define DD_TRUE 1U
#define DD_NONE UINT32_MAX
#define DD_LEAF UINT64_MAX

/* Numbers from start up to the next edge's start decide as child does. */
struct dd_edge {
	uint32_t start;
	uint32_t child;
};

/* count edges at edges[first], the first of which starts at 0; neighbours have
 * different children. For a leaf var is DD_LEAF and first is its action. */
struct dd_node {
	uint64_t var;
	uint32_t first;
	uint32_t count;
};

struct dd_memo {
	uint32_t c, t, e, result;
};

struct dd {
	struct dd_node *nodes;
	size_t count, room;
	struct dd_edge *edges;
	size_t edge_count, edge_room;
	struct dd_edge *stack; /* edges of nodes being made */
	size_t depth, stack_room;
	uint32_t *slots; /* node + 1 by hash */
	size_t slot_count;
	struct dd_memo *memo;
	size_t memo_used, memo_count;
	int error; /* -ENOMEM or -E2BIG: every later result is DD_NONE */
};

PSC_MUST_CHECK int psc_dd_init(struct dd *dd);
void psc_dd_done(struct dd *dd);
uint32_t psc_dd_leaf(struct dd *dd, uint32_t action);
/* Make a node edge by edge: mark, push..., node. Equal neighbours are joined; an
 * edge with the start of the one before takes its place. */
size_t psc_dd_mark(struct dd *dd);
void psc_dd_push(struct dd *dd, size_t mark, uint32_t start, uint32_t child);
uint32_t psc_dd_node(struct dd *dd, size_t mark, uint64_t var);
/* c is a diagram of truth values. */
uint32_t psc_dd_ite(struct dd *dd, uint32_t c, uint32_t t, uint32_t e);
/* The diagram of actions with those that are weaker than action replaced by it. */
uint32_t psc_dd_cap(struct dd *dd, uint32_t node, uint32_t action);

/* ---- tests */

enum test_kind { TEST_RETURN, TEST_BRANCH, TEST_ASSUME };

/* TEST_RETURN answers k. TEST_BRANCH compares the word under the mask with k
 * (op is a BPF_J* code) and goes on at t or f. TEST_ASSUME costs nothing: it says
 * that the accumulator, holding the raw word, also holds it under the mask. */
struct test {
	uint8_t kind;
	uint8_t op;
	uint8_t word;
	uint32_t mask;
	uint32_t k;
	uint32_t t, f;
};

struct tests {
	struct test *nodes;
	size_t count, room;
	uint32_t *slots;
	size_t slot_count;
	int error;
};

PSC_MUST_CHECK int psc_tests_init(struct tests *tests);
void psc_tests_done(struct tests *tests);
uint32_t psc_tests_add(struct tests *tests, struct test test);

/* Turn the diagram under root into tests; the root test, or -errno. */
PSC_MUST_CHECK int psc_optimize(const struct dd *dd, uint32_t root, const struct psc_compile_options *options,
				struct tests *tests, uint32_t *ret_root);

/* Emit the tests under root. -E2BIG: more than PSC_MAX_INSNS, *ret_len says how many. */
PSC_MUST_CHECK int psc_emit(const struct tests *tests, uint32_t root, bool big_endian, struct sock_filter **ret_insns,
			    size_t *ret_len);

#endif
