/* Decision diagrams into two-way tests: the search for the best tree.
 *
 * A node of the diagram is a sequence of runs of numbers, each with a target.
 * BPF divides it with JGE k (one instruction for one boundary between runs) or
 * JEQ k (one instruction that takes a single number out of a run, so for two
 * boundaries). A JEQ can be moved below any JGE at no cost, so some tree of
 * fewest instructions is JGE splits over segments, each of one base target
 * with single numbers taken out by JEQ. Where the cuts between segments go is
 * a shortest path over the sequence (cut(), linear for real tables); any
 * tree over the segments has the same size, so the one of least expected depth
 * is taken (Knuth's search for alphabetic trees). For depth instead of size
 * the same choices go through one search over all intervals (search_depth()).
 *
 * x32 shares the token of x86_64 and most of its numbers, but for one bit. When
 * that is smaller, calls with the bit first pass a tree of what differs, then lose
 * the bit (AND) and go through the tree of x86_64. There a run may have two
 * right targets, its own and "the shared tree": hence run.other. */
#include "compile.h"
#include "internal.h"

#include <string.h>

#define NO_TEST UINT32_MAX
#define NUMBERS 470       /* an average table's span, what "averaged over numbers" means */
#define UNIFIED 424       /* calls from here on have one number on (nearly) all ABIs */
#define MAX_SEARCH 512    /* runs for the searches that are not linear */
#define SIZE_WEIGHT 1e-4  /* what an instruction costs against an executed one, in search_depth() */

struct run {
	uint32_t start;
	uint32_t target; /* what its numbers do */
	uint32_t other;  /* does the same for them, or NO_TEST */
	double weight;
};

/* One sequence: runs[count] cover 0 .. UINT32_MAX of a word under a mask. */
struct sequence {
	enum psc_word word;
	uint32_t mask;
	struct run *runs;
	size_t count;
};

struct optimizer {
	const struct dd *dd;
	const struct psc_compile_options *options;
	struct tests *tests;
	uint32_t *lowered; /* by diagram node: its test, or NO_TEST */
	uint32_t token;    /* of the number node being lowered */
	uint32_t mask;     /* under which the numbers of all ABIs are tested, see share_x32() */
	bool several;      /* ABIs of more than one token */
	int error;
};

/* ---- tests are unique, too */

int psc_tests_init(struct tests *tests)
{
	*tests = (struct tests){ .room = 256, .slot_count = 1024 };
	tests->nodes = malloc(tests->room * sizeof(*tests->nodes));
	tests->slots = calloc(tests->slot_count, sizeof(*tests->slots));
	if (tests->nodes && tests->slots)
		return 0;
	psc_tests_done(tests);
	return -ENOMEM;
}

void psc_tests_done(struct tests *tests)
{
	free(tests->nodes);
	free(tests->slots);
	*tests = (struct tests){ 0 };
}

static uint32_t hash_test(const struct test *t)
{
	uint32_t hash = t->kind | (uint32_t)t->op << 8 | (uint32_t)t->word << 16;

	hash = (hash ^ t->mask) * 0x9e3779b1;
	hash = (hash ^ hash >> 15 ^ t->k) * 0x85ebca6b;
	hash = (hash ^ hash >> 13 ^ t->t) * 0xc2b2ae35;
	hash = (hash ^ hash >> 16 ^ t->f) * 0x9e3779b1;
	return hash ^ hash >> 15;
}

static bool same_test(const struct test *a, const struct test *b)
{
	return a->kind == b->kind && a->op == b->op && a->word == b->word && a->mask == b->mask && a->k == b->k &&
	       a->t == b->t && a->f == b->f;
}

static int rehash_tests(struct tests *tests)
{
	size_t count = tests->slot_count * 2;
	uint32_t *slots = calloc(count, sizeof(*slots));

	if (!slots)
		return -ENOMEM;
	for (uint32_t i = 0; i < tests->count; i++) {
		size_t at = hash_test(&tests->nodes[i]) & (count - 1);

		while (slots[at])
			at = (at + 1) & (count - 1);
		slots[at] = i + 1;
	}
	free(tests->slots);
	tests->slots = slots;
	tests->slot_count = count;
	return 0;
}

uint32_t psc_tests_add(struct tests *tests, struct test test)
{
	size_t at = hash_test(&test) & (tests->slot_count - 1);

	if (tests->error)
		return NO_TEST;
	if (test.kind == TEST_BRANCH && test.t == test.f)
		return test.t;
	for (; tests->slots[at]; at = (at + 1) & (tests->slot_count - 1))
		if (same_test(&tests->nodes[tests->slots[at] - 1], &test))
			return tests->slots[at] - 1;
	if (tests->count == tests->room) {
		struct test *bigger = realloc(tests->nodes, 2 * tests->room * sizeof(*bigger));

		if (!bigger) {
			tests->error = -ENOMEM;
			return NO_TEST;
		}
		tests->nodes = bigger;
		tests->room *= 2;
	}
	tests->nodes[tests->count++] = test;
	tests->slots[at] = (uint32_t)tests->count;
	if (tests->count * 2 > tests->slot_count && rehash_tests(tests) < 0)
		tests->error = -ENOMEM;
	return tests->error ? NO_TEST : (uint32_t)tests->count - 1;
}

static uint32_t branch(struct optimizer *o, const struct sequence *s, int op, uint32_t k, uint32_t t, uint32_t f)
{
	return psc_tests_add(o->tests, (struct test){ .kind = TEST_BRANCH, .op = (uint8_t)op, .word = (uint8_t)s->word,
						      .mask = s->mask, .k = k, .t = t, .f = f });
}

/* ---- segments */

static bool may_be(const struct run *run, uint32_t target)
{
	return run->target == target || run->other == target;
}

static bool is_single(const struct sequence *s, size_t i)
{
	return i + 1 < s->count && s->runs[i + 1].start - s->runs[i].start == 1;
}

/* Runs first..end-1: all of them base, but for single numbers. */
struct segment {
	size_t first, end;
	uint32_t base;
	double weight;
};

/* Take the exceptions of runs first..end-1 out with JEQ, the heaviest first. */
static uint32_t chain(struct optimizer *o, const struct sequence *s, size_t first, size_t end, uint32_t base)
{
	size_t order[UINT8_MAX], count = 0;
	uint32_t node = base;

	for (size_t i = first; i < end; i++) {
		size_t at = count;

		if (may_be(&s->runs[i], base))
			continue;
		if (count == UINT8_MAX) { /* too many to sort on the stack: these come last */
			node = branch(o, s, BPF_JEQ, s->runs[i].start, s->runs[i].target, node);
			continue;
		}
		for (; at > 0 && s->runs[order[at - 1]].weight < s->runs[i].weight; at--)
			order[at] = order[at - 1];
		order[at] = i;
		count++;
	}
	while (count-- > 0)
		node = branch(o, s, BPF_JEQ, s->runs[order[count]].start, s->runs[order[count]].target, node);
	return node;
}

/* The cheapest way to cover the first i runs. */
struct cut {
	uint32_t size;
	double depth; /* breaks ties: what the JEQs cost when executed */
	uint32_t from;
	uint32_t base;
};

/* Try all segments that start at run i with this base. */
static void extend(const struct sequence *s, struct cut *cuts, size_t i, uint32_t base)
{
	uint32_t exceptions = 0;
	double weight = 0;

	for (size_t j = i; j < s->count; j++) {
		const struct run *run = &s->runs[j];
		uint32_t size = cuts[i].size + exceptions + (i > 0);
		double depth = cuts[i].depth + exceptions * (weight + run->weight);

		weight += run->weight;
		if (!may_be(run, base)) {
			if (!is_single(s, j))
				return;
			exceptions++;
			continue;
		}
		if (size < cuts[j + 1].size || (size == cuts[j + 1].size && depth < cuts[j + 1].depth))
			cuts[j + 1] = (struct cut){ size, depth, (uint32_t)i, base };
	}
}

/* The fewest comparisons for a sequence, segment by segment; their number. */
static int cut(const struct sequence *s, struct segment *ret_segments, size_t *ret_count, uint32_t *ret_size)
{
	_cleanup_free_ struct cut *cuts = malloc((s->count + 1) * sizeof(*cuts));
	size_t count = 0;

	if (!cuts)
		return -ENOMEM;
	for (size_t i = 0; i <= s->count; i++)
		cuts[i] = (struct cut){ i == 0 ? 0 : UINT32_MAX, 0, 0, 0 };
	for (size_t i = 0; i < s->count; i++) {
		extend(s, cuts, i, s->runs[i].target);
		if (s->runs[i].other != NO_TEST)
			extend(s, cuts, i, s->runs[i].other);
	}
	for (size_t end = s->count; end > 0; end = cuts[end].from)
		count++;
	*ret_count = count;
	*ret_size = cuts[s->count].size;
	for (size_t end = s->count; end > 0; end = cuts[end].from) {
		struct segment *segment = &ret_segments[--count];

		*segment = (struct segment){ cuts[end].from, end, cuts[end].base, 0 };
		for (size_t i = segment->first; i < end; i++)
			segment->weight += s->runs[i].weight;
	}
	return 0;
}

static int sequence_size(const struct sequence *s, uint32_t *ret_size)
{
	_cleanup_free_ struct segment *segments = malloc(s->count * sizeof(*segments));
	size_t count;

	return segments ? cut(s, segments, &count, ret_size) : -ENOMEM;
}

static void push_run(struct sequence *s, struct run run)
{
	struct run *last = s->count ? &s->runs[s->count - 1] : NULL;

	if (last && last->target == run.target && last->other == run.other)
		last->weight += run.weight;
	else
		s->runs[s->count++] = run;
}

/* ---- the tree over segments */

struct tree {
	struct optimizer *o;
	const struct sequence *s;
	const struct segment *segments;
	size_t count;
	double *sums;    /* weight of the segments before i */
	uint16_t *roots; /* roots[i * count + j]: first segment of the right half of i..j */
};

/* Knuth: the best root of i..j lies between those of i..j-1 and i+1..j. */
static int search_roots(struct tree *tree)
{
	size_t n = tree->count;
	_cleanup_free_ double *cost = malloc(n * n * sizeof(*cost));

	if (!cost)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		cost[i * n + i] = 0;
		tree->roots[i * n + i] = (uint16_t)i;
	}
	for (size_t length = 1; length < n; length++) {
		for (size_t i = 0; i + length < n; i++) {
			size_t j = i + length, lo = tree->roots[i * n + j - 1], hi = tree->roots[(i + 1) * n + j];
			double best = -1;

			if (lo <= i)
				lo = i + 1;
			if (hi < lo)
				hi = lo;
			for (size_t m = lo; m <= hi && m <= j; m++) {
				double c = cost[i * n + m - 1] + cost[m * n + j];

				if (best < 0 || c < best) {
					best = c;
					tree->roots[i * n + j] = (uint16_t)m;
				}
			}
			cost[i * n + j] = best + tree->sums[j + 1] - tree->sums[i];
		}
	}
	return 0;
}

/* Where the weight is halved, for sequences too long to search. */
static size_t middle(const struct tree *tree, size_t i, size_t j)
{
	double half = (tree->sums[i] + tree->sums[j + 1]) / 2;
	size_t lo = i + 1, hi = j;

	while (lo < hi) {
		size_t m = (lo + hi) / 2;

		if (tree->sums[m] < half)
			lo = m + 1;
		else
			hi = m;
	}
	return lo;
}

static uint32_t build_tree(const struct tree *tree, size_t i, size_t j)
{
	const struct segment *segment = &tree->segments[i];
	size_t m;
	uint32_t left, right;

	if (i == j)
		return chain(tree->o, tree->s, segment->first, segment->end, segment->base);
	m = tree->roots ? tree->roots[i * tree->count + j] : middle(tree, i, j);
	right = build_tree(tree, m, j);
	left = build_tree(tree, i, m - 1);
	return branch(tree->o, tree->s, BPF_JGE, tree->s->runs[tree->segments[m].first].start, right, left);
}

/* The first segment of the numbers that all tables have in common. A tree of
 * several ABIs is divided there first: what is beyond then is one shared subtree. */
static size_t unified_segment(const struct optimizer *o, const struct sequence *s, const struct segment *segments,
			      size_t count)
{
	size_t i = 0;

	if (s->word != WORD_NR || !o->several)
		return 0;
	while (i < count && s->runs[segments[i].first].start < UNIFIED)
		i++;
	return i < count ? i : 0;
}

static int search_size(struct optimizer *o, const struct sequence *s, uint32_t *ret_test)
{
	_cleanup_free_ struct segment *segments = malloc(s->count * sizeof(*segments));
	_cleanup_free_ double *sums = malloc((s->count + 1) * sizeof(*sums));
	_cleanup_free_ uint16_t *roots = NULL;
	struct tree tree = { .o = o, .s = s, .segments = segments, .sums = sums };
	uint32_t size, above;
	size_t unified;
	int r;

	if (!segments || !sums)
		return -ENOMEM;
	r = cut(s, segments, &tree.count, &size);
	if (r < 0)
		return r;
	sums[0] = 0;
	for (size_t i = 0; i < tree.count; i++)
		sums[i + 1] = sums[i] + segments[i].weight;
	if (tree.count > 2 && tree.count <= MAX_SEARCH) {
		tree.roots = roots = malloc(tree.count * tree.count * sizeof(*roots));
		if (!roots)
			return -ENOMEM;
		r = search_roots(&tree);
		if (r < 0)
			return r;
	}
	unified = unified_segment(o, s, segments, tree.count);
	if (unified == 0) {
		*ret_test = build_tree(&tree, 0, tree.count - 1);
		return 0;
	}
	above = build_tree(&tree, unified, tree.count - 1);
	*ret_test = branch(o, s, BPF_JGE, s->runs[segments[unified].first].start, above,
			   build_tree(&tree, 0, unified - 1));
	return 0;
}

/* ---- the tree of least expected depth */

struct depth_search {
	struct optimizer *o;
	const struct sequence *s;
	double *cost;  /* of runs i..j */
	int16_t *root; /* first run of the right half, or -1: a chain on run i's target */
};

/* What a chain over runs i..j costs when executed, exceptions heaviest first;
 * negative if it cannot be one. */
static double chain_cost(const struct sequence *s, size_t i, size_t j, double instruction)
{
	double weights[16], base = 0, cost = 0;
	size_t count = 0;

	if (s->runs[i].target != s->runs[j].target)
		return -1;
	for (size_t k = i; k <= j; k++) {
		size_t at = count;

		if (s->runs[k].target == s->runs[i].target) {
			base += s->runs[k].weight;
			continue;
		}
		if (!is_single(s, k) || count == psc_array_size(weights))
			return -1;
		for (; at > 0 && weights[at - 1] < s->runs[k].weight; at--)
			weights[at] = weights[at - 1];
		weights[at] = s->runs[k].weight;
		count++;
	}
	for (size_t k = 0; k < count; k++)
		cost += weights[k] * (double)(k + 1);
	return cost + (base + instruction) * (double)count;
}

static uint32_t build_depth(const struct depth_search *d, size_t i, size_t j)
{
	int m = d->root[i * d->s->count + j];
	uint32_t left, right;

	if (m < 0)
		return chain(d->o, d->s, i, j + 1, d->s->runs[i].target);
	right = build_depth(d, (size_t)m, j);
	left = build_depth(d, i, (size_t)m - 1);
	return branch(d->o, d->s, BPF_JGE, d->s->runs[m].start, right, left);
}

static int search_depth(struct optimizer *o, const struct sequence *s, uint32_t *ret_test)
{
	size_t n = s->count;
	_cleanup_free_ double *cost = malloc(n * n * sizeof(*cost));
	_cleanup_free_ int16_t *root = malloc(n * n * sizeof(*root));
	struct depth_search d = { o, s, cost, root };
	double total = 0, instruction;

	if (!cost || !root)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		total += s->runs[i].weight;
	instruction = total * SIZE_WEIGHT;
	for (size_t i = n; i-- > 0;) {
		double weight = s->runs[i].weight;

		cost[i * n + i] = 0;
		root[i * n + i] = -1;
		for (size_t j = i + 1; j < n; j++) {
			double best = chain_cost(s, i, j, instruction);
			int best_root = -1;

			weight += s->runs[j].weight;
			for (size_t m = i + 1; m <= j; m++) {
				double c = cost[i * n + m - 1] + cost[m * n + j] + weight + instruction;

				if (best < 0 || c < best) {
					best = c;
					best_root = (int)m;
				}
			}
			cost[i * n + j] = best;
			root[i * n + j] = (int16_t)best_root;
		}
	}
	*ret_test = build_depth(&d, 0, n - 1);
	return 0;
}

/* ---- nodes */

/* A word under a mask that is asked only whether it is 0: JSET on the raw word. */
static bool is_bit_test(const struct sequence *s)
{
	return s->word >= WORD_ARG0_HIGH && s->mask != RAW && s->count == 2 && s->runs[1].start <= (s->mask & -s->mask);
}

static bool has_single(const struct sequence *s, uint32_t number, uint32_t target)
{
	size_t lo = 0, hi = s->count;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (s->runs[mid].start < number)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < s->count && s->runs[lo].start == number && s->runs[lo].target == target &&
	       (is_single(s, lo) || number == UINT32_MAX);
}

/* Bits such that 0 and every sum of them are single numbers of one target: all
 * those numbers are what JSET ~bits does not take. 0 if there are none. */
static uint32_t find_cube(const struct sequence *s)
{
	uint32_t target = s->runs[0].target, bits = 0;

	for (int bit = 0; bit < 32 && __builtin_popcount(bits) < 12; bit++) {
		uint32_t more = 1U << bit, sum = bits;
		bool all = has_single(s, 0, target);

		for (; all; sum = (sum - 1) & bits) {
			all = has_single(s, sum | more, target);
			if (sum == 0)
				break;
		}
		if (all)
			bits |= more;
	}
	return bits;
}

/* A sequence without the numbers of a cube: they go with their neighbours. */
static void without_cube(const struct sequence *s, uint32_t bits, struct sequence *ret)
{
	for (size_t i = 0; i < s->count; i++) {
		struct run run = s->runs[i];
		bool gone = !(run.start & ~bits) && run.target == s->runs[0].target;

		if (gone && ret->count == 0)
			run.target = s->runs[1].target;
		else if (gone)
			run.target = ret->runs[ret->count - 1].target;
		push_run(ret, run);
	}
}

/* Take a cube of numbers out by one JSET where that makes it smaller. */
static uint32_t search_cube(struct optimizer *o, const struct sequence *s)
{
	uint32_t bits = s->word >= WORD_ARG0_HIGH && s->mask == RAW && s->count > 2 ? find_cube(s) : 0;
	_cleanup_free_ struct run *runs = NULL;
	struct sequence rest = { s->word, s->mask, NULL, 0 };
	uint32_t with, without, test = NO_TEST;
	int r;

	if (!bits)
		return NO_TEST;
	rest.runs = runs = malloc(s->count * sizeof(*runs));
	if (!runs)
		return NO_TEST;
	without_cube(s, bits, &rest);
	r = sequence_size(s, &without);
	if (r >= 0)
		r = sequence_size(&rest, &with);
	if (r >= 0 && with + 1 < without)
		r = search_size(o, &rest, &test);
	return r < 0 || test == NO_TEST ? NO_TEST : branch(o, s, BPF_JSET, ~bits, test, s->runs[0].target);
}

static uint32_t search(struct optimizer *o, const struct sequence *s)
{
	uint32_t test = NO_TEST;
	int r;

	if (o->error)
		return NO_TEST;
	if (is_bit_test(s)) {
		struct sequence raw = *s;

		raw.mask = RAW;
		return branch(o, &raw, BPF_JSET, s->mask, s->runs[1].target, s->runs[0].target);
	}
	if (o->options->optimize == PSC_OPTIMIZE_SIZE) {
		test = search_cube(o, s);
		if (test != NO_TEST)
			return test;
	}
	if (o->options->optimize == PSC_OPTIMIZE_SIZE || s->count > MAX_SEARCH)
		r = search_size(o, s, &test);
	else
		r = search_depth(o, s, &test);
	if (r < 0)
		o->error = r;
	return test;
}

/* Where an ABI's numbers start. */
static uint32_t first_number(uint32_t token)
{
	if ((token & 0xffff) != 8)
		return 0;
	for (int arch = 0; arch < PSC_ARCH_COUNT; arch++)
		if (psc_arch_token(arch) == token) /* EM_MIPS: 4000, 5000 or 6000 */
			return (uint32_t)psc_syscall_number(arch, psc_syscall_id("read")) / 1000 * 1000;
	return 0;
}

/* How many of the NUMBERS from base on lie in first..last. */
static double overlap(uint32_t base, uint32_t first, uint32_t last)
{
	uint32_t from = first > base ? first : base;
	uint32_t to = last < base + NUMBERS - 1 ? last : base + NUMBERS - 1;

	return from <= to ? to - from + 1 : 0;
}

/* What the numbers first..last (inclusive) weigh. */
static double number_weight(const struct optimizer *o, uint32_t token, uint32_t first, uint32_t last)
{
	const struct psc_compile_options *options = o->options;
	double weight = 1e-6 + overlap(first_number(token), first, last);
	size_t lo = 0, hi = options->weight_count;

	if (token == psc_arch_token(PSC_ARCH_X86_64))
		weight += 1e-3 * overlap(PSC_X32_BIT, first, last);
	if (options->optimize != PSC_OPTIMIZE_PROFILE)
		return weight;
	weight *= 1e-6; /* what was never seen still is to be found */
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		const struct psc_weight *w = &options->weights[mid];

		if (w->token < token || (w->token == token && w->nr < first))
			lo = mid + 1;
		else
			hi = mid;
	}
	for (; lo < options->weight_count; lo++) {
		const struct psc_weight *w = &options->weights[lo];

		if (w->token != token || w->nr > last)
			break;
		weight += w->weight;
	}
	return weight;
}

static uint32_t lower(struct optimizer *o, uint32_t node);

/* Number nodes of the ABIs: x86_64 first, for it decides on the mask. */
static void open_arches(struct optimizer *o, const struct dd_node *node, const struct dd_edge *edges)
{
	const uint32_t first = psc_arch_token(PSC_ARCH_X86_64);

	o->several = node->count > 3;
	for (uint32_t i = 0; i < node->count; i++) {
		if (edges[i].start != first)
			continue;
		o->token = first;
		lower(o, edges[i].child);
	}
}

/* An ABI's share: a profile's, or all of it for the native one. */
static double arch_weight(const struct optimizer *o, uint32_t token)
{
	int native = psc_arch_native();

	if (o->options->optimize == PSC_OPTIMIZE_PROFILE)
		return number_weight(o, token, 0, UINT32_MAX);
	return native >= 0 && psc_arch_token(native) == token ? 1000 : 1;
}

/* Lower the children of a node and join neighbours that came out equal. */
static int open_sequence(struct optimizer *o, const struct dd_node *node, struct sequence *ret)
{
	const struct dd_edge *edges = &o->dd->edges[node->first];
	struct run *runs = malloc(node->count * sizeof(*runs));
	size_t count = 0;

	if (!runs)
		return -ENOMEM;
	if (psc_var_word(node->var) == WORD_ARCH)
		open_arches(o, node, edges);
	for (uint32_t i = 0; i < node->count; i++) {
		uint32_t last = i + 1 < node->count ? edges[i + 1].start - 1 : UINT32_MAX;
		double weight = 1;
		uint32_t target;

		if (psc_var_word(node->var) == WORD_ARCH)
			o->token = edges[i].start;
		target = lower(o, edges[i].child);
		if (psc_var_word(node->var) == WORD_NR)
			weight = number_weight(o, o->token, edges[i].start, last);
		if (psc_var_word(node->var) == WORD_ARCH)
			weight = arch_weight(o, edges[i].start);
		if (count > 0 && runs[count - 1].target == target)
			runs[count - 1].weight += weight;
		else
			runs[count++] = (struct run){ edges[i].start, target, NO_TEST, weight };
	}
	*ret = (struct sequence){ psc_var_word(node->var), psc_var_mask(node->var), runs, count };
	return o->error;
}

/* The first run of a number sequence that is x32's, split off if one goes across. */
static size_t x32_begins(const struct sequence *s)
{
	size_t i = 0;

	while (i < s->count && s->runs[i].start < PSC_X32_BIT)
		i++;
	return i;
}

/* Runs of x32 (bit set, from 0x40000000) beside those of x86_64: where both do
 * the same, the shared tree is right as well. */
static void pair_runs(const struct sequence *s, size_t split, uint32_t shared, struct sequence *ret)
{
	size_t low = 0, high = split - (s->runs[split < s->count ? split : 0].start != PSC_X32_BIT || split == s->count);
	uint32_t start = 0;

	for (;;) {
		uint32_t target = s->runs[high].target, next_low, next_high, next;

		push_run(ret, (struct run){ start + PSC_X32_BIT, target, target == s->runs[low].target ? shared : NO_TEST, 1 });
		next_low = low + 1 < split ? s->runs[low + 1].start : UINT32_MAX;
		next_high = high + 1 < s->count ? s->runs[high + 1].start - PSC_X32_BIT : UINT32_MAX;
		next = next_low < next_high ? next_low : next_high;
		if (next == UINT32_MAX)
			return;
		low += next_low == next;
		high += next_high == next;
		start = next;
	}
}

/* Lower numbers of x86_64 and x32 with a shared tree; NO_TEST if that is not smaller. */
static uint32_t share_x32(struct optimizer *o, const struct sequence *s)
{
	size_t split = x32_begins(s);
	_cleanup_free_ struct run *runs = malloc((2 * s->count + 2) * sizeof(*runs));
	struct sequence low = { WORD_NR, ~PSC_X32_BIT, s->runs, split }, high = { WORD_NR, RAW, runs, 0 };
	uint32_t whole, below, beside, tree;
	struct sequence bit = { WORD_NR, RAW, NULL, 0 };
	int r;

	if (!runs) {
		o->error = -ENOMEM;
		return NO_TEST;
	}
	/* Numbers beyond both tables must do the same on either way. */
	if (s->runs[split - 1].target != s->runs[s->count - 1].target || s->runs[s->count - 1].start > INT32_MAX)
		return NO_TEST;
	pair_runs(s, split, NO_TEST - 1, &high);
	r = sequence_size(s, &whole);
	if (r >= 0)
		r = sequence_size(&low, &below);
	if (r >= 0)
		r = sequence_size(&high, &beside);
	if (r < 0) {
		o->error = r;
		return NO_TEST;
	}
	if (below + beside + 2 >= whole)
		return NO_TEST;
	o->mask = low.mask;
	tree = search(o, &low);
	for (size_t i = 0; i < high.count; i++)
		if (high.runs[i].other == NO_TEST - 1)
			high.runs[i].other = tree;
	return branch(o, &bit, BPF_JSET, PSC_X32_BIT, search(o, &high),
		      psc_tests_add(o->tests, (struct test){ .kind = TEST_ASSUME, .word = WORD_NR, .mask = ~PSC_X32_BIT,
							     .t = tree }));
}

/* Numbers of another ABI beside those of x86_64 under the mask: tested under its
 * name, too, so that equal subtrees are one. The number itself is not masked;
 * tests ask for what the accumulator holds, whatever it is called. */
static uint32_t search_alike(struct optimizer *o, const struct sequence *s)
{
	struct sequence named = *s;
	struct test root;
	uint32_t test;

	named.mask = o->mask;
	test = search(o, &named);
	if (test == NO_TEST)
		return NO_TEST;
	root = o->tests->nodes[test];
	if (root.kind != TEST_BRANCH || root.word != WORD_NR)
		return test;
	root.mask = RAW;
	root.t = psc_tests_add(o->tests, (struct test){ .kind = TEST_ASSUME, .word = WORD_NR, .mask = o->mask, .t = root.t });
	root.f = psc_tests_add(o->tests, (struct test){ .kind = TEST_ASSUME, .word = WORD_NR, .mask = o->mask, .t = root.f });
	return psc_tests_add(o->tests, root);
}

static uint32_t lower_node(struct optimizer *o, const struct dd_node *node)
{
	struct sequence s = { 0 };
	uint32_t test = NO_TEST;
	int r = open_sequence(o, node, &s);

	if (r < 0) {
		o->error = r;
	} else if (s.count == 1) {
		test = s.runs[0].target;
	} else {
		if (s.word == WORD_NR && o->options->optimize == PSC_OPTIMIZE_SIZE &&
		    o->token == psc_arch_token(PSC_ARCH_X86_64) && s.runs[s.count - 1].start > PSC_X32_BIT)
			test = share_x32(o, &s);
		if (test == NO_TEST)
			test = s.word == WORD_NR && o->mask != RAW ? search_alike(o, &s) : search(o, &s);
	}
	free(s.runs);
	return test;
}

static uint32_t lower(struct optimizer *o, uint32_t index)
{
	const struct dd_node *node = &o->dd->nodes[index];

	if (o->error)
		return NO_TEST;
	if (node->var == DD_LEAF)
		return psc_tests_add(o->tests, (struct test){ .kind = TEST_RETURN, .k = node->first });
	if (o->lowered[index] == NO_TEST)
		o->lowered[index] = lower_node(o, node);
	return o->lowered[index];
}

int psc_optimize(const struct dd *dd, uint32_t root, const struct psc_compile_options *options, struct tests *tests,
		 uint32_t *ret_root)
{
	_cleanup_free_ uint32_t *lowered = malloc(dd->count * sizeof(*lowered));
	struct optimizer o = { .dd = dd, .options = options, .tests = tests, .lowered = lowered, .mask = RAW };
	uint32_t test;

	if (!lowered)
		return -ENOMEM;
	memset(lowered, 0xff, dd->count * sizeof(*lowered));
	test = lower(&o, root);
	if (o.error || tests->error)
		return o.error ? o.error : tests->error;
	*ret_root = test;
	return 0;
}
