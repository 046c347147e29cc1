/* Do two programs answer every call alike?
 *
 * Every bit of struct seccomp_data is a variable. A program is run once with all
 * inputs together: registers and scratch words are vectors of 32 functions of
 * those variables, kept as binary decision diagrams, and the program's answer is
 * such a function, too, with actions as its leaves. Diagrams are unique for the
 * function they stand for (same variable order, nodes never made twice), so two
 * programs are equivalent if and only if their answers are the same node; if
 * not, a way down on which the two differ is a call that tells them apart.
 *
 * Jumps go forward, so one pass over the instructions finds every machine state
 * that can occur at each (few: registers whose value nobody will read are
 * forgotten), and one pass backwards puts the answers together. What is too
 * large for that (multiplying arguments) ends in -E2BIG, never in a wrong answer:
 * nodes and states are bounded, and so are the steps, because a diagram of few
 * nodes can still take very many visits to build.
 *
 * A stack of filters answers what the kernel takes out of all their answers; that
 * is one more function of them (strictest()). */
#include "psc.h"
#include "internal.h"

#include <string.h>

#define MAX_NODES (1U << 21)
#define MAX_STATES (1U << 17)
#define MAX_STEPS (1U << 27) /* visits of nodes: some ten seconds, where Docker's policies take some 10,000 visits */
#define STEPS_BETWEEN_CHECKS (1U << 16)
#define LEAF UINT32_MAX
#define NONE UINT32_MAX
#define REGISTERS (2 + BPF_MEMWORDS)

enum { FALSE_NODE, TRUE_NODE };
enum { REG_A, REG_X, REG_MEM };

/* var LEAF: low is the value, high is 1 for an action and 0 for a truth value. */
struct node {
	uint32_t var, low, high;
};

struct vector {
	uint32_t bits[32];
};

/* Before an instruction: the vectors of A, X and scratch memory. */
struct state {
	uint32_t registers[REGISTERS];
};

/* A state at an instruction, and where it goes: to yes if cond, to no otherwise,
 * or (yes == NONE) to an answer. */
struct item {
	uint32_t state, cond, yes, no, answer;
	uint32_t next; /* of the same instruction */
};

struct cached {
	uint32_t c, t, e, result;
};

/* Elements of one size that are never made twice. */
struct pool {
	void *data;
	size_t size, count, room;
	uint32_t *slots;
	size_t slot_count;
};

struct machine {
	struct pool nodes, vectors, states;
	struct cached *cache;
	size_t cache_count;
	struct item *items;
	size_t item_count, item_room;
	const struct psc_interrupt *interrupt;
	uint32_t steps;
	int error;
};

/* Count one visit of a node. False: the analysis is over, and m->error says why. */
static bool take_step(struct machine *m)
{
	if (m->error)
		return false;
	if (++m->steps >= MAX_STEPS)
		m->error = -E2BIG;
	else if (m->steps % STEPS_BETWEEN_CHECKS == 0 && m->interrupt && m->interrupt->check(m->interrupt->arg) != 0)
		m->error = -EINTR;
	return m->error == 0;
}

/* ---- pools */

static uint32_t hash_bytes(const void *data, size_t size)
{
	uint32_t hash = 0x811c9dc5, word;

	for (size_t i = 0; i < size; i += 4) {
		memcpy(&word, (const char *)data + i, 4);
		hash = (hash ^ word) * 0x9e3779b1;
		hash ^= hash >> 15;
	}
	return hash;
}

static int pool_init(struct pool *pool, size_t size)
{
	*pool = (struct pool){ .size = size, .slot_count = 1024 };
	pool->slots = calloc(pool->slot_count, sizeof(*pool->slots));
	return pool->slots ? 0 : -ENOMEM;
}

static void pool_done(struct pool *pool)
{
	free(pool->data);
	free(pool->slots);
}

static void *pool_at(const struct pool *pool, uint32_t index)
{
	return (char *)pool->data + (size_t)index * pool->size;
}

static int pool_rehash(struct pool *pool)
{
	size_t count = pool->slot_count * 2;
	uint32_t *slots = calloc(count, sizeof(*slots));

	if (!slots)
		return -ENOMEM;
	for (uint32_t i = 0; i < pool->count; i++) {
		size_t at = hash_bytes(pool_at(pool, i), pool->size) & (count - 1);

		while (slots[at])
			at = (at + 1) & (count - 1);
		slots[at] = i + 1;
	}
	free(pool->slots);
	pool->slots = slots;
	pool->slot_count = count;
	return 0;
}

/* The index of an element, made now if it is new. */
static uint32_t pool_add(struct machine *m, struct pool *pool, const void *element, size_t limit)
{
	size_t at = hash_bytes(element, pool->size) & (pool->slot_count - 1);

	if (m->error)
		return 0;
	for (; pool->slots[at]; at = (at + 1) & (pool->slot_count - 1))
		if (memcmp(pool_at(pool, pool->slots[at] - 1), element, pool->size) == 0)
			return pool->slots[at] - 1;
	if (pool->count >= limit) {
		m->error = -E2BIG;
		return 0;
	}
	if (pool->count == pool->room) {
		size_t room = pool->room ? pool->room * 2 : 256;
		void *bigger = realloc(pool->data, room * pool->size);

		if (!bigger) {
			m->error = -ENOMEM;
			return 0;
		}
		pool->data = bigger;
		pool->room = room;
	}
	memcpy((char *)pool->data + pool->count * pool->size, element, pool->size);
	pool->slots[at] = (uint32_t)++pool->count;
	if (pool->count * 2 > pool->slot_count && pool_rehash(pool) < 0)
		m->error = -ENOMEM;
	return (uint32_t)pool->count - 1;
}

/* ---- functions of the input's bits */

static const struct node *node_at(const struct machine *m, uint32_t index)
{
	return pool_at(&m->nodes, index);
}

static uint32_t make(struct machine *m, uint32_t var, uint32_t low, uint32_t high)
{
	const struct node node = { var, low, high };

	return var != LEAF && low == high ? low : pool_add(m, &m->nodes, &node, MAX_NODES);
}

static uint32_t side(const struct machine *m, uint32_t index, uint32_t var, bool high)
{
	const struct node *node = node_at(m, index);

	if (node->var != var)
		return index;
	return high ? node->high : node->low;
}

static int grow_cache(struct machine *m)
{
	size_t count = m->cache_count ? m->cache_count * 4 : 4096;
	struct cached *cache = calloc(count, sizeof(*cache));

	if (!cache)
		return -ENOMEM;
	free(m->cache); /* what it knew is found again when needed */
	m->cache = cache;
	m->cache_count = count;
	return 0;
}

/* if c then t else e */
static uint32_t ite(struct machine *m, uint32_t c, uint32_t t, uint32_t e)
{
	const uint32_t key[3] = { c, t, e };
	struct cached *cached;
	uint32_t var, low, high, result;

	if (!take_step(m))
		return 0;
	if (c == TRUE_NODE || t == e)
		return t;
	if (c == FALSE_NODE)
		return e;
	if (t == TRUE_NODE && e == FALSE_NODE)
		return c;
	cached = &m->cache[hash_bytes(key, sizeof(key)) & (m->cache_count - 1)];
	if (cached->c == c && cached->t == t && cached->e == e)
		return cached->result;
	var = node_at(m, c)->var;
	if (node_at(m, t)->var < var)
		var = node_at(m, t)->var;
	if (node_at(m, e)->var < var)
		var = node_at(m, e)->var;
	low = ite(m, side(m, c, var, false), side(m, t, var, false), side(m, e, var, false));
	high = ite(m, side(m, c, var, true), side(m, t, var, true), side(m, e, var, true));
	result = make(m, var, low, high);
	if (m->nodes.count > m->cache_count && m->cache_count < MAX_NODES && grow_cache(m) < 0)
		m->error = -ENOMEM;
	cached = &m->cache[hash_bytes(key, sizeof(key)) & (m->cache_count - 1)];
	if (!m->error)
		*cached = (struct cached){ c, t, e, result };
	return result;
}

static uint32_t not(struct machine *m, uint32_t a)
{
	return ite(m, a, FALSE_NODE, TRUE_NODE);
}

static uint32_t and(struct machine *m, uint32_t a, uint32_t b)
{
	return ite(m, a, b, FALSE_NODE);
}

static uint32_t or(struct machine *m, uint32_t a, uint32_t b)
{
	return ite(m, a, TRUE_NODE, b);
}

static uint32_t xor(struct machine *m, uint32_t a, uint32_t b)
{
	return ite(m, a, not(m, b), b);
}

/* ---- vectors */

static struct vector constant(uint32_t value)
{
	struct vector v;

	for (int i = 0; i < 32; i++)
		v.bits[i] = value >> i & 1 ? TRUE_NODE : FALSE_NODE;
	return v;
}

/* A word of seccomp_data. Its variables: arch first, the number, the rest as it
 * lies; within a word the highest bit first, which keeps comparisons small. */
static struct vector input(struct machine *m, uint32_t offset)
{
	uint32_t word = offset / 4, place = word == 0 ? 1 : word == 1 ? 0 : word;
	struct vector v;

	for (uint32_t i = 0; i < 32; i++)
		v.bits[i] = make(m, place * 32 + 31 - i, FALSE_NODE, TRUE_NODE);
	return v;
}

static struct vector add(struct machine *m, const struct vector *a, const struct vector *b, uint32_t carry)
{
	struct vector v;

	for (int i = 0; i < 32; i++) {
		uint32_t half = xor(m, a->bits[i], b->bits[i]);

		v.bits[i] = xor(m, half, carry);
		carry = ite(m, half, carry, a->bits[i]);
	}
	return v;
}

static struct vector complement(struct machine *m, const struct vector *a)
{
	struct vector v;

	for (int i = 0; i < 32; i++)
		v.bits[i] = not(m, a->bits[i]);
	return v;
}

static struct vector subtract(struct machine *m, const struct vector *a, const struct vector *b)
{
	struct vector negative = complement(m, b);

	return add(m, a, &negative, TRUE_NODE);
}

static struct vector choose(struct machine *m, uint32_t c, const struct vector *t, const struct vector *e)
{
	struct vector v;

	for (int i = 0; i < 32; i++)
		v.bits[i] = ite(m, c, t->bits[i], e->bits[i]);
	return v;
}

/* a >= b (or a > b): the lowest bit decides least. */
static uint32_t above(struct machine *m, const struct vector *a, const struct vector *b, bool or_equal)
{
	uint32_t result = or_equal ? TRUE_NODE : FALSE_NODE;

	for (int i = 0; i < 32; i++)
		result = ite(m, xor(m, a->bits[i], b->bits[i]), a->bits[i], result);
	return result;
}

static uint32_t equal(struct machine *m, const struct vector *a, const struct vector *b)
{
	uint32_t result = TRUE_NODE;

	for (int i = 0; i < 32; i++)
		result = and(m, not(m, xor(m, a->bits[i], b->bits[i])), result);
	return result;
}

static uint32_t share_bits(struct machine *m, const struct vector *a, const struct vector *b)
{
	uint32_t result = FALSE_NODE;

	for (int i = 0; i < 32; i++)
		result = or(m, and(m, a->bits[i], b->bits[i]), result);
	return result;
}

static struct vector shift(struct machine *m, const struct vector *a, const struct vector *b, bool left)
{
	struct vector v = *a;

	for (int step = 0; step < 5; step++) {
		struct vector moved = constant(0);

		for (int i = 0; i + (1 << step) < 32; i++) {
			int high = i + (1 << step);

			moved.bits[left ? high : i] = v.bits[left ? i : high];
		}
		v = choose(m, b->bits[step], &moved, &v);
	}
	return v;
}

static struct vector multiply(struct machine *m, const struct vector *a, const struct vector *b)
{
	struct vector sum = constant(0), part = *a;

	for (int i = 0; i < 32 && !m->error; i++) {
		struct vector more = add(m, &sum, &part, FALSE_NODE);

		sum = choose(m, b->bits[i], &more, &sum);
		for (int j = 31; j > 0; j--)
			part.bits[j] = part.bits[j - 1];
		part.bits[0] = FALSE_NODE;
	}
	return sum;
}

/* Long division. A remainder shifted out of 32 bits is above any divisor. */
static struct vector divide(struct machine *m, const struct vector *a, const struct vector *b)
{
	struct vector quotient = constant(0), rest = constant(0);

	for (int i = 31; i >= 0 && !m->error; i--) {
		uint32_t out = rest.bits[31], fits;
		struct vector less;

		for (int j = 31; j > 0; j--)
			rest.bits[j] = rest.bits[j - 1];
		rest.bits[0] = a->bits[i];
		fits = or(m, out, above(m, &rest, b, true));
		less = subtract(m, &rest, b);
		rest = choose(m, fits, &less, &rest);
		quotient.bits[i] = fits;
	}
	return quotient;
}

static struct vector alu(struct machine *m, uint16_t op, const struct vector *a, const struct vector *b)
{
	struct vector v, zero = constant(0);

	switch (op) {
	case BPF_ADD: return add(m, a, b, FALSE_NODE);
	case BPF_SUB: return subtract(m, a, b);
	case BPF_MUL: return multiply(m, a, b);
	case BPF_DIV: return divide(m, a, b);
	case BPF_LSH: return shift(m, a, b, true);
	case BPF_RSH: return shift(m, a, b, false);
	case BPF_NEG: return subtract(m, &zero, a);
	}
	for (int i = 0; i < 32; i++) {
		if (op == BPF_AND)
			v.bits[i] = and(m, a->bits[i], b->bits[i]);
		else if (op == BPF_OR)
			v.bits[i] = or(m, a->bits[i], b->bits[i]);
		else
			v.bits[i] = xor(m, a->bits[i], b->bits[i]);
	}
	return v;
}

static uint32_t compare(struct machine *m, uint16_t op, const struct vector *a, const struct vector *b)
{
	switch (op) {
	case BPF_JEQ: return equal(m, a, b);
	case BPF_JGT: return above(m, a, b, false);
	case BPF_JGE: return above(m, a, b, true);
	default:      return share_bits(m, a, b);
	}
}

/* ---- answers */

/* Two words that the kernel acts on alike are one answer. */
static uint32_t normal(uint32_t word)
{
	uint32_t action = word & SECCOMP_RET_ACTION_FULL, data = word & SECCOMP_RET_DATA;

	switch (action) {
	case SECCOMP_RET_ERRNO: return action | (data > 4095 ? 4095 : data);
	case SECCOMP_RET_TRAP:
	case SECCOMP_RET_TRACE: return word;
	case SECCOMP_RET_KILL_THREAD:
	case SECCOMP_RET_USER_NOTIF:
	case SECCOMP_RET_LOG:
	case SECCOMP_RET_ALLOW: return action;
	default:                return SECCOMP_RET_KILL_PROCESS;
	}
}

/* Do the bits below number bit make no difference to what the kernel does with word? */
static bool is_decided(uint32_t word, int bit)
{
	return bit <= 15 && normal(word) == normal(word | ((2U << bit) - 1));
}

/* The answer whose bits from number bit downwards are those of v. */
static uint32_t answer(struct machine *m, const struct vector *v, int bit, uint32_t word)
{
	if (!take_step(m))
		return 0;
	if (bit < 0 || is_decided(word, bit))
		return make(m, LEAF, normal(word), 1);
	if (v->bits[bit] == FALSE_NODE)
		return answer(m, v, bit - 1, word);
	if (v->bits[bit] == TRUE_NODE)
		return answer(m, v, bit - 1, word | 1U << bit);
	return ite(m, v->bits[bit], answer(m, v, bit - 1, word | 1U << bit), answer(m, v, bit - 1, word));
}

/* ---- a program */

/* The registers that will be read before they are written, from each instruction on. */
static void find_live(const struct sock_filter *insns, size_t len, uint32_t *live)
{
	for (size_t pc = len; pc-- > 0;) {
		const struct sock_filter *insn = &insns[pc];
		uint32_t after = pc + 1 < len ? live[pc + 1] : 0, operand = BPF_SRC(insn->code) == BPF_X ? 1U << REG_X : 0;
		uint32_t cell = insn->k < BPF_MEMWORDS ? 1U << (REG_MEM + insn->k) : 0;

		switch (BPF_CLASS(insn->code)) {
		case BPF_LD:
			live[pc] = (after & ~(1U << REG_A)) | (BPF_MODE(insn->code) == BPF_MEM ? cell : 0);
			break;
		case BPF_LDX:
			live[pc] = (after & ~(1U << REG_X)) | (BPF_MODE(insn->code) == BPF_MEM ? cell : 0);
			break;
		case BPF_ST:
			live[pc] = (after & ~cell) | 1U << REG_A;
			break;
		case BPF_STX:
			live[pc] = (after & ~cell) | 1U << REG_X;
			break;
		case BPF_ALU:
			live[pc] = after | 1U << REG_A | operand;
			break;
		case BPF_JMP:
			if (BPF_OP(insn->code) == BPF_JA)
				live[pc] = live[pc + 1 + insn->k];
			else
				live[pc] = live[pc + 1 + insn->jt] | live[pc + 1 + insn->jf] | 1U << REG_A | operand;
			break;
		case BPF_RET:
			live[pc] = BPF_RVAL(insn->code) == BPF_A ? 1U << REG_A : 0;
			break;
		default: /* BPF_MISC */
			live[pc] = BPF_MISCOP(insn->code) == BPF_TAX ? (after & ~(1U << REG_X)) | 1U << REG_A :
								       (after & ~(1U << REG_A)) | 1U << REG_X;
		}
	}
}

static uint32_t vector_index(struct machine *m, const struct vector *v)
{
	return pool_add(m, &m->vectors, v, MAX_STATES);
}

/* The item of a state at an instruction; heads[pc] is the first of its list. */
static uint32_t arrive(struct machine *m, uint32_t *heads, const uint32_t *live, size_t pc, struct state state)
{
	uint32_t index;

	for (int i = 0; i < REGISTERS; i++)
		if (!(live[pc] & 1U << i))
			state.registers[i] = 0;
	index = pool_add(m, &m->states, &state, MAX_STATES);
	for (uint32_t i = heads[pc]; i != NONE; i = m->items[i].next)
		if (m->items[i].state == index)
			return i;
	if (m->item_count == m->item_room) {
		size_t room = m->item_room ? m->item_room * 2 : 256;
		struct item *bigger = room <= MAX_STATES ? realloc(m->items, room * sizeof(*bigger)) : NULL;

		if (!bigger) {
			if (!m->error)
				m->error = room <= MAX_STATES ? -ENOMEM : -E2BIG;
			return 0;
		}
		m->items = bigger;
		m->item_room = room;
	}
	m->items[m->item_count] = (struct item){ .state = index, .yes = NONE, .next = heads[pc] };
	heads[pc] = (uint32_t)m->item_count;
	return (uint32_t)m->item_count++;
}

/* What a load puts into its register. */
static uint32_t loaded(struct machine *m, const struct sock_filter *insn, const struct state *state)
{
	struct vector v;

	if (BPF_MODE(insn->code) == BPF_MEM)
		return state->registers[REG_MEM + insn->k];
	if (BPF_MODE(insn->code) == BPF_ABS)
		v = input(m, insn->k);
	else
		v = constant(BPF_MODE(insn->code) == BPF_LEN ? sizeof(struct seccomp_data) : insn->k);
	return vector_index(m, &v);
}

/* Run one instruction on one state. */
static void step(struct machine *m, const struct sock_filter *insn, size_t pc, uint32_t item, uint32_t *heads,
		 const uint32_t *live)
{
	struct state state = *(struct state *)pool_at(&m->states, m->items[item].state);
	struct vector a = *(struct vector *)pool_at(&m->vectors, state.registers[REG_A]);
	struct vector operand = BPF_SRC(insn->code) == BPF_X ?
					*(struct vector *)pool_at(&m->vectors, state.registers[REG_X]) :
					constant(insn->k);
	uint32_t cond = TRUE_NODE, yes, no = NONE;
	struct vector zero = constant(0), v;
	size_t next = pc + 1;

	switch (BPF_CLASS(insn->code)) {
	case BPF_LD:
		state.registers[REG_A] = loaded(m, insn, &state);
		break;
	case BPF_LDX:
		state.registers[REG_X] = loaded(m, insn, &state);
		break;
	case BPF_ST:
		state.registers[REG_MEM + insn->k] = state.registers[REG_A];
		break;
	case BPF_STX:
		state.registers[REG_MEM + insn->k] = state.registers[REG_X];
		break;
	case BPF_ALU:
		if (BPF_OP(insn->code) == BPF_DIV) /* by zero: the answer is 0, told by no == NONE */
			cond = not(m, equal(m, &operand, &zero));
		v = alu(m, BPF_OP(insn->code), &a, &operand);
		state.registers[REG_A] = vector_index(m, &v);
		break;
	case BPF_JMP:
		if (BPF_OP(insn->code) == BPF_JA) {
			next += insn->k;
			break;
		}
		cond = compare(m, BPF_OP(insn->code), &a, &operand);
		if (cond != TRUE_NODE)
			no = arrive(m, heads, live, next + insn->jf, state);
		next += cond == FALSE_NODE ? insn->jf : insn->jt;
		break;
	case BPF_RET:
		if (BPF_RVAL(insn->code) != BPF_A)
			a = constant(insn->k);
		m->items[item].answer = answer(m, &a, 31, 0);
		return;
	default: /* BPF_MISC */
		if (BPF_MISCOP(insn->code) == BPF_TAX)
			state.registers[REG_X] = state.registers[REG_A];
		else
			state.registers[REG_A] = state.registers[REG_X];
	}
	yes = arrive(m, heads, live, next, state);
	m->items[item].cond = cond;
	m->items[item].yes = yes;
	m->items[item].no = no;
}

/* The function that a program computes, as a node. */
static int understand(struct machine *m, const struct sock_filter *insns, size_t len, uint32_t *ret_node)
{
	_cleanup_free_ uint32_t *heads = malloc(len * sizeof(*heads));
	_cleanup_free_ uint32_t *live = malloc(len * sizeof(*live));
	struct vector zero = constant(0);
	struct state start;
	uint32_t first;

	if (!heads || !live)
		return -ENOMEM;
	memset(heads, 0xff, len * sizeof(*heads));
	find_live(insns, len, live);
	m->item_count = 0;
	for (int i = 0; i < REGISTERS; i++)
		start.registers[i] = vector_index(m, &zero);
	first = arrive(m, heads, live, 0, start);
	for (size_t pc = 0; pc < len; pc++)
		for (uint32_t i = heads[pc]; i != NONE && !m->error; i = m->items[i].next)
			step(m, &insns[pc], pc, i, heads, live);
	/* An item goes only to later instructions' items; their answers are known first. */
	for (size_t pc = len; pc-- > 0;)
		for (uint32_t i = heads[pc]; i != NONE && !m->error; i = m->items[i].next) {
			struct item *item = &m->items[i];

			if (item->yes == NONE)
				continue;
			item->answer = ite(m, item->cond, m->items[item->yes].answer,
					   item->no == NONE ? make(m, LEAF, 0, 1) : m->items[item->no].answer);
		}
	*ret_node = m->error ? 0 : m->items[first].answer;
	return m->error;
}

/* Inputs on which two different functions differ: where one side is equal, the other is not. */
static void tell_apart(const struct machine *m, uint32_t a, uint32_t b, struct seccomp_data *ret_data)
{
	uint32_t words[sizeof(struct seccomp_data) / 4] = { 0 };

	while (node_at(m, a)->var != LEAF || node_at(m, b)->var != LEAF) {
		uint32_t var = node_at(m, a)->var < node_at(m, b)->var ? node_at(m, a)->var : node_at(m, b)->var;
		bool high = side(m, a, var, false) == side(m, b, var, false);
		uint32_t place = var / 32, word = place == 0 ? 1 : place == 1 ? 0 : place;

		if (high)
			words[word] |= 1U << (31 - var % 32);
		a = side(m, a, var, high);
		b = side(m, b, var, high);
	}
	memcpy(ret_data, words, sizeof(words));
}

static int machine_init(struct machine *m, const struct psc_interrupt *interrupt)
{
	*m = (struct machine){ .interrupt = interrupt };
	if (pool_init(&m->nodes, sizeof(struct node)) < 0 || pool_init(&m->vectors, sizeof(struct vector)) < 0 ||
	    pool_init(&m->states, sizeof(struct state)) < 0 || grow_cache(m) < 0)
		return -ENOMEM;
	make(m, LEAF, 0, 0); /* FALSE_NODE */
	make(m, LEAF, 1, 0); /* TRUE_NODE */
	return m->error;
}

static void machine_done(struct machine *m)
{
	pool_done(&m->nodes);
	pool_done(&m->vectors);
	pool_done(&m->states);
	free(m->cache);
	free(m->items);
}

/* What the kernel makes of two filters' answers. */
static uint32_t strictest(struct machine *m, uint32_t newer, uint32_t older)
{
	const uint32_t key[3] = { NONE, newer, older };
	struct cached *cached;
	uint32_t var, low, high, result;

	if (!take_step(m) || newer == older)
		return newer;
	var = node_at(m, newer)->var < node_at(m, older)->var ? node_at(m, newer)->var : node_at(m, older)->var;
	if (var == LEAF)
		return psc_decision_merge(node_at(m, newer)->low, node_at(m, older)->low) == node_at(m, newer)->low ? newer :
															older;
	cached = &m->cache[hash_bytes(key, sizeof(key)) & (m->cache_count - 1)];
	if (cached->c == NONE && cached->t == newer && cached->e == older)
		return cached->result;
	low = strictest(m, side(m, newer, var, false), side(m, older, var, false));
	high = strictest(m, side(m, newer, var, true), side(m, older, var, true));
	result = make(m, var, low, high);
	if (m->nodes.count > m->cache_count && m->cache_count < MAX_NODES && grow_cache(m) < 0)
		m->error = -ENOMEM;
	if (!m->error)
		m->cache[hash_bytes(key, sizeof(key)) & (m->cache_count - 1)] =
			(struct cached){ NONE, newer, older, result };
	return result;
}

/* The function that a stack computes. */
static int understand_all(struct machine *m, const struct sock_fprog *programs, size_t count, uint32_t *ret_node)
{
	uint32_t node = 0;

	for (size_t i = 0; i < count; i++) {
		uint32_t next;
		int r = understand(m, programs[i].filter, programs[i].len, &next);

		if (r < 0)
			return r;
		node = i == 0 ? next : strictest(m, next, node);
	}
	*ret_node = node;
	return m->error;
}

static bool all_valid(const struct sock_fprog *programs, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (psc_program_check(programs[i].filter, programs[i].len, NULL) < 0)
			return false;
	return count > 0;
}

int psc_stack_difference(const struct sock_fprog *a, size_t a_count, const struct sock_fprog *b, size_t b_count,
			 const struct psc_interrupt *interrupt, struct seccomp_data *ret_data)
{
	struct machine m;
	uint32_t first, second;
	int r;

	if (!all_valid(a, a_count) || !all_valid(b, b_count))
		return -EINVAL;
	r = machine_init(&m, interrupt);
	if (r >= 0)
		r = understand_all(&m, a, a_count, &first);
	if (r >= 0)
		r = understand_all(&m, b, b_count, &second);
	if (r >= 0 && first != second) {
		tell_apart(&m, first, second, ret_data);
		r = 1;
	}
	machine_done(&m);
	return r;
}

int psc_program_difference(const struct sock_filter *a, size_t a_len, const struct sock_filter *b, size_t b_len,
			   struct seccomp_data *ret_data)
{
	const struct sock_fprog first = { (unsigned short)a_len, (struct sock_filter *)(uintptr_t)a };
	const struct sock_fprog second = { (unsigned short)b_len, (struct sock_filter *)(uintptr_t)b };

	if (a_len > PSC_MAX_INSNS || b_len > PSC_MAX_INSNS)
		return -EINVAL;
	return psc_stack_difference(&first, 1, &second, 1, NULL, ret_data);
}
