/* Tests into classic BPF.
 *
 * Jumps go forward only, so the program is made from its end: a test is emitted
 * when both its targets are, and finds them at known distances. What the
 * accumulator holds on each edge is known (the word and mask of the test before),
 * so a test has up to three entrances:
 *
 *        LOAD:  ld [word]        from anywhere
 *        MASK:  and mask         from a test of the same raw word
 *        TEST:  jeq k, t, f      from a test of the same word and mask
 *
 * of which only those that some edge uses are emitted. Conditional jumps reach 255
 * instructions; beyond that a return is repeated, or a JA put, right behind the
 * jump, and serves whoever can reach it from then on. */
#include "compile.h"
#include "internal.h"

#include <string.h>

enum entrance { ENTER_TEST, ENTER_MASK, ENTER_LOAD, ENTRANCES };

#define FAR_OUT (1U << 20) /* where emission stops counting */
#define NOWHERE UINT32_MAX

struct emitter {
	const struct tests *tests;
	bool big_endian;
	uint8_t *uses;          /* by test: which entrances, as bits */
	uint32_t *nearest;      /* by test and entrance: the last index in out that leads there */
	struct sock_filter *out; /* the last instruction first */
	size_t len, room;
};

/* The state of the accumulator: a word under a mask, or nothing known. */
struct held {
	uint32_t word;
	uint32_t mask;
};

static const struct held held_nothing = { WORD_COUNT, 0 };

static uint32_t word_offset(enum psc_word word, bool big_endian)
{
	uint32_t argument = (word - WORD_ARG0_HIGH) / 2, low = (word - WORD_ARG0_HIGH) % 2;

	if (word == WORD_ARCH)
		return offsetof(struct seccomp_data, arch);
	if (word == WORD_NR)
		return offsetof(struct seccomp_data, nr);
	return offsetof(struct seccomp_data, args) + 8 * argument + 4 * (low == big_endian);
}

static int put(struct emitter *e, struct sock_filter insn)
{
	if (e->len == e->room) {
		size_t room = e->room ? e->room * 2 : 256;
		void *bigger = realloc(e->out, room * sizeof(*e->out));

		if (!bigger)
			return -ENOMEM;
		e->out = bigger;
		e->room = room;
	}
	if (e->len >= FAR_OUT)
		return -E2BIG;
	e->out[e->len++] = insn;
	return 0;
}

/* Skip assumptions: they change what is held, nothing else. */
static uint32_t resolve(const struct emitter *e, uint32_t target, struct held *held)
{
	while (e->tests->nodes[target].kind == TEST_ASSUME) {
		*held = (struct held){ e->tests->nodes[target].word, e->tests->nodes[target].mask };
		target = e->tests->nodes[target].t;
	}
	return target;
}

static enum entrance entrance_for(const struct test *test, struct held held)
{
	if (test->kind == TEST_RETURN || (held.word == test->word && held.mask == test->mask))
		return ENTER_TEST;
	return held.word == test->word && held.mask == RAW ? ENTER_MASK : ENTER_LOAD;
}

static size_t slot_of(uint32_t target, enum entrance entrance)
{
	return (size_t)target * ENTRANCES + entrance;
}

/* The slot of one side of a branch. */
static size_t side(const struct emitter *e, const struct test *test, uint32_t target)
{
	struct held held = { test->word, test->mask };

	target = resolve(e, target, &held);
	return slot_of(target, entrance_for(&e->tests->nodes[target], held));
}

/* Every test under root, targets before those who go there; their number. */
static int sort(struct emitter *e, uint32_t root, uint32_t *order, size_t *ret_count)
{
	_cleanup_free_ uint32_t *stack = malloc((2 * e->tests->count + 2) * sizeof(*stack));
	_cleanup_free_ uint8_t *seen = calloc(e->tests->count, 1); /* 1: open, 2: sorted */
	size_t depth = 0, count = 0;

	if (!stack || !seen)
		return -ENOMEM;
	stack[depth++] = root;
	while (depth > 0) {
		uint32_t node = stack[depth - 1];
		const struct test *test = &e->tests->nodes[node];
		struct held held = held_nothing;

		if (seen[node] != 0 || test->kind == TEST_RETURN) {
			depth--;
			if (seen[node] != 2)
				order[count++] = node;
			seen[node] = 2;
			continue;
		}
		seen[node] = 1;
		for (int i = 0; i < 2; i++) {
			uint32_t target = resolve(e, i ? test->f : test->t, &held);

			if (seen[target] == 0)
				stack[depth++] = target;
		}
	}
	*ret_count = count;
	return 0;
}

/* Make sure a conditional jump put next can reach the slot's target. */
static int bring_near(struct emitter *e, size_t slot)
{
	uint32_t at = e->nearest[slot];
	const struct sock_filter *insn = &e->out[at];
	struct sock_filter island = BPF_STMT(BPF_JMP | BPF_JA, (uint32_t)(e->len - at - 1));

	if (BPF_CLASS(insn->code) == BPF_RET)
		island = *insn;
	e->nearest[slot] = (uint32_t)e->len;
	return put(e, island);
}

static int emit_branch(struct emitter *e, uint32_t node)
{
	const struct test *test = &e->tests->nodes[node];
	size_t t = side(e, test, test->t), f = side(e, test, test->f);
	int r = 0;

	while (r >= 0 && (e->len - e->nearest[t] > 256 || e->len - e->nearest[f] > 256))
		r = bring_near(e, e->nearest[t] < e->nearest[f] ? t : f);
	if (r < 0)
		return r;
	e->nearest[slot_of(node, ENTER_TEST)] = (uint32_t)e->len;
	r = put(e, (struct sock_filter)BPF_JUMP(BPF_JMP | test->op | BPF_K, test->k,
						(uint8_t)(e->len - e->nearest[t] - 1),
						(uint8_t)(e->len - e->nearest[f] - 1)));
	if (r >= 0 && test->mask != RAW && e->uses[node] & (1 << ENTER_MASK | 1 << ENTER_LOAD)) {
		e->nearest[slot_of(node, ENTER_MASK)] = (uint32_t)e->len;
		r = put(e, (struct sock_filter)BPF_STMT(BPF_ALU | BPF_AND | BPF_K, test->mask));
	}
	if (r >= 0 && e->uses[node] & 1 << ENTER_LOAD) {
		e->nearest[slot_of(node, ENTER_LOAD)] = (uint32_t)e->len;
		r = put(e, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
							word_offset(test->word, e->big_endian)));
	}
	return r;
}

static void note_uses(struct emitter *e, const uint32_t *order, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		const struct test *test = &e->tests->nodes[order[i]];
		size_t slots[2];

		if (test->kind != TEST_BRANCH)
			continue;
		slots[0] = side(e, test, test->t);
		slots[1] = side(e, test, test->f);
		for (int j = 0; j < 2; j++)
			e->uses[slots[j] / ENTRANCES] |= (uint8_t)(1 << slots[j] % ENTRANCES);
	}
}

static int emit_all(struct emitter *e, uint32_t root)
{
	_cleanup_free_ uint32_t *order = malloc(e->tests->count * sizeof(*order));
	struct held held = held_nothing;
	size_t count;
	int r;

	if (!order)
		return -ENOMEM;
	root = resolve(e, root, &held);
	r = sort(e, root, order, &count);
	if (r < 0)
		return r;
	e->uses[root] |= 1 << ENTER_LOAD;
	note_uses(e, order, count);
	for (size_t i = 0; i < count && r >= 0; i++) {
		const struct test *test = &e->tests->nodes[order[i]];

		if (test->kind == TEST_BRANCH) {
			r = emit_branch(e, order[i]);
			continue;
		}
		e->nearest[slot_of(order[i], ENTER_TEST)] = (uint32_t)e->len;
		r = put(e, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, test->k));
	}
	return r;
}

int psc_emit(const struct tests *tests, uint32_t root, bool big_endian, struct sock_filter **ret_insns, size_t *ret_len)
{
	_cleanup_free_ uint8_t *uses = calloc(tests->count, 1);
	_cleanup_free_ uint32_t *nearest = malloc(tests->count * ENTRANCES * sizeof(*nearest));
	struct emitter e = { .tests = tests, .big_endian = big_endian, .uses = uses, .nearest = nearest };
	int r = -ENOMEM;

	if (uses && nearest)
		r = emit_all(&e, root);
	if (r >= 0 && e.len > PSC_MAX_INSNS)
		r = -E2BIG;
	if (r >= 0 || r == -E2BIG)
		*ret_len = e.len;
	if (r < 0) {
		free(e.out);
		return r;
	}
	for (size_t i = 0; i < e.len / 2; i++) {
		struct sock_filter swap = e.out[i];

		e.out[i] = e.out[e.len - 1 - i];
		e.out[e.len - 1 - i] = swap;
	}
	*ret_insns = e.out;
	return 0;
}
