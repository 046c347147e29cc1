/* Rules into one decision diagram.
 *
 * A condition becomes a diagram of truth values; the rules of one call are laid
 * over the default action from the weakest to the strongest, so the one that
 * decides is laid last; the numbers of an ABI become the edges of one node, and
 * the ABIs the edges of the root. Numbers that no rule names have the default
 * action, those of future kernels included.
 *
 * Where an ABI makes a call through socketcall() or ipc(), a rule that names it
 * is one for that number with that first argument as well. What the call itself
 * is given is in memory there, so a rule with conditions may match or not. Nothing
 * that could come out may be stricter than what is done: a rule that may match
 * makes what the others decide as strict as itself, and never weaker. */
#include "compile.h"
#include "internal.h"

#include <string.h>

struct rule {
	uint32_t action;
	int32_t id;   /* of the name, or -1: by number */
	int32_t arch; /* -1: all */
	uint32_t nr;
	uint32_t first, count; /* terms */
	uint32_t condition[2]; /* diagrams, made when needed: of 64-bit ABIs' words, of 32-bit ABIs' */
};

struct psc_policy {
	uint32_t default_action, bad_arch;
	enum psc_priority priority;
	bool archs[PSC_ARCH_COUNT];
	bool low_words;
	bool separate;
	struct rule *rules;
	size_t rule_count, rule_room;
	struct psc_term *terms;
	size_t term_count, term_room;
};

/* A rule on one ABI, for sorting. */
struct entry {
	uint32_t nr;
	uint32_t rule;
	uint8_t through; /* a multiplexer, whose first argument has so many bits; 0: none */
	uint8_t call;    /* and what they must be */
	bool maybe;      /* and the rule has conditions */
};

int psc_policy_new(uint32_t default_action, uint32_t bad_arch, enum psc_priority priority,
		   struct psc_policy **ret_policy)
{
	struct psc_policy *policy = calloc(1, sizeof(*policy));

	if (!policy)
		return -ENOMEM;
	policy->default_action = default_action;
	policy->bad_arch = bad_arch;
	policy->priority = priority;
	*ret_policy = policy;
	return 0;
}

void psc_policy_free(struct psc_policy *policy)
{
	if (!policy)
		return;
	free(policy->rules);
	free(policy->terms);
	free(policy);
}

void psc_policy_compare_low_words(struct psc_policy *policy)
{
	policy->low_words = true;
}

int psc_policy_add_arch(struct psc_policy *policy, enum psc_arch arch)
{
	if ((unsigned int)arch >= PSC_ARCH_COUNT)
		return -EINVAL;
	if (policy->archs[arch])
		return -EEXIST;
	for (int i = 0; i < PSC_ARCH_COUNT; i++)
		if (policy->archs[i] && psc_arch_big_endian(i) != psc_arch_big_endian(arch))
			return -EDOM;
	policy->archs[arch] = true;
	return 0;
}

void psc_policy_separate_multiplexed(struct psc_policy *policy)
{
	policy->separate = true;
}

static bool compare_is_valid(const struct psc_term *term)
{
	uint64_t limit = term->flags & PSC_COMPARE_32 ? UINT32_MAX : UINT64_MAX;

	if (term->arg > 5 || term->op < PSC_OP_NE || term->op > PSC_OP_RANGE || term->a > limit || term->b > limit)
		return false;
	if (term->flags & ~(PSC_COMPARE_32 | PSC_COMPARE_SIGNED))
		return false;
	return term->op != PSC_OP_MASKED_EQ || !(term->b & ~term->a);
}

/* Postfix order: every operator finds its operands. */
static int check_terms(const struct psc_term *terms, size_t count)
{
	size_t depth = 0;

	if (count > PSC_MAX_TERMS)
		return -E2BIG;
	for (size_t i = 0; i < count; i++) {
		switch (terms[i].kind) {
		case PSC_TERM_COMPARE:
			if (!compare_is_valid(&terms[i]))
				return -EINVAL;
			depth++;
			break;
		case PSC_TERM_NOT:
			if (depth < 1)
				return -EINVAL;
			break;
		case PSC_TERM_AND:
		case PSC_TERM_OR:
			if (depth < 2)
				return -EINVAL;
			depth--;
			break;
		default:
			return -EINVAL;
		}
	}
	return 0;
}

static int append_rule(struct psc_policy *policy, struct rule rule, const struct psc_term *terms, size_t count)
{
	int r = check_terms(terms, count);

	if (r < 0)
		return r;
	if (policy->rule_count == policy->rule_room) {
		size_t room = policy->rule_room ? policy->rule_room * 2 : 64;
		void *bigger = realloc(policy->rules, room * sizeof(*policy->rules));

		if (!bigger)
			return -ENOMEM;
		policy->rules = bigger;
		policy->rule_room = room;
	}
	while (policy->term_count + count > policy->term_room) {
		size_t room = policy->term_room ? policy->term_room * 2 : 64;
		void *bigger = realloc(policy->terms, room * sizeof(*policy->terms));

		if (!bigger)
			return -ENOMEM;
		policy->terms = bigger;
		policy->term_room = room;
	}
	if (count)
		memcpy(&policy->terms[policy->term_count], terms, count * sizeof(*terms));
	rule.first = (uint32_t)policy->term_count;
	rule.count = (uint32_t)count;
	policy->term_count += count;
	policy->rules[policy->rule_count++] = rule;
	return 0;
}

int psc_policy_add(struct psc_policy *policy, uint32_t action, int syscall_id, const struct psc_term *terms,
		   size_t count)
{
	if (!psc_syscall_name_of_id(syscall_id))
		return -EINVAL;
	return append_rule(policy, (struct rule){ .action = action, .id = syscall_id, .arch = -1 }, terms, count);
}

int psc_policy_add_on(struct psc_policy *policy, uint32_t action, enum psc_arch arch, int syscall_id,
		      const struct psc_term *terms, size_t count)
{
	if (!psc_syscall_name_of_id(syscall_id) || (unsigned int)arch >= PSC_ARCH_COUNT)
		return -EINVAL;
	return append_rule(policy, (struct rule){ .action = action, .id = syscall_id, .arch = (int32_t)arch }, terms, count);
}

int psc_policy_add_number(struct psc_policy *policy, uint32_t action, enum psc_arch arch, uint32_t nr,
			  const struct psc_term *terms, size_t count)
{
	if ((unsigned int)arch >= PSC_ARCH_COUNT)
		return -EINVAL;
	if (psc_arch_token(arch) == psc_arch_token(PSC_ARCH_X86_64) && !(nr == UINT32_MAX && arch == PSC_ARCH_X86_64) &&
	    (nr > INT32_MAX || !(nr & PSC_X32_BIT) != (arch == PSC_ARCH_X86_64)))
		return -EINVAL;
	return append_rule(policy, (struct rule){ .action = action, .id = -1, .arch = (int32_t)arch, .nr = nr }, terms, count);
}

/* ---- conditions */

static enum psc_word high_word(int arg)
{
	return WORD_ARG0_HIGH + 2 * arg;
}

/* lo <= word <= hi */
static uint32_t word_range(struct dd *dd, enum psc_word word, uint32_t lo, uint32_t hi)
{
	size_t mark = psc_dd_mark(dd);

	if (lo > 0)
		psc_dd_push(dd, mark, 0, DD_FALSE);
	psc_dd_push(dd, mark, lo, DD_TRUE);
	if (hi < UINT32_MAX)
		psc_dd_push(dd, mark, hi + 1, DD_FALSE);
	return psc_dd_node(dd, mark, psc_var(word, RAW));
}

/* lo <= argument <= hi, unsigned */
static uint32_t range(struct dd *dd, int arg, bool only_low, uint64_t lo, uint64_t hi)
{
	uint32_t top = (uint32_t)(lo >> 32), end = (uint32_t)(hi >> 32);
	enum psc_word word = high_word(arg);
	uint32_t first, last;
	size_t mark;

	if (only_low)
		return word_range(dd, word + 1, (uint32_t)lo, (uint32_t)hi);
	first = word_range(dd, word + 1, (uint32_t)lo, top == end ? (uint32_t)hi : UINT32_MAX);
	last = top == end ? first : word_range(dd, word + 1, 0, (uint32_t)hi);
	mark = psc_dd_mark(dd);
	if (top > 0)
		psc_dd_push(dd, mark, 0, DD_FALSE);
	psc_dd_push(dd, mark, top, first);
	if (end - top > 1)
		psc_dd_push(dd, mark, top + 1, DD_TRUE);
	if (end > top)
		psc_dd_push(dd, mark, end, last);
	if (end < UINT32_MAX)
		psc_dd_push(dd, mark, end + 1, DD_FALSE);
	return psc_dd_node(dd, mark, psc_var(word, RAW));
}

/* (word & mask) == value */
static uint32_t word_masked(struct dd *dd, enum psc_word word, uint32_t mask, uint32_t value)
{
	size_t mark;

	if (mask == 0)
		return DD_TRUE;
	if ((~mask & (~mask + 1)) == 0) /* a prefix of ones: an interval */
		return word_range(dd, word, value, value | ~mask);
	mark = psc_dd_mark(dd);
	if (value > 0)
		psc_dd_push(dd, mark, 0, DD_FALSE);
	psc_dd_push(dd, mark, value, DD_TRUE);
	if (value < mask)
		psc_dd_push(dd, mark, value + 1, DD_FALSE);
	return psc_dd_node(dd, mark, psc_var(word, mask));
}

static uint32_t masked(struct dd *dd, int arg, bool only_low, uint64_t mask, uint64_t value)
{
	enum psc_word word = high_word(arg);
	uint32_t low = word_masked(dd, word + 1, (uint32_t)mask, (uint32_t)value);

	if (only_low)
		return low;
	return psc_dd_ite(dd, word_masked(dd, word, (uint32_t)(mask >> 32), (uint32_t)(value >> 32)), low, DD_FALSE);
}

static uint32_t negate(struct dd *dd, uint32_t condition)
{
	return psc_dd_ite(dd, condition, DD_FALSE, DD_TRUE);
}

/* lo <= argument <= hi in the order of the term: with the sign bit flipped,
 * signed order is unsigned order, and a range across 0 comes out as two. */
static uint32_t ordered(struct dd *dd, const struct psc_term *term, bool only_low, uint64_t lo, uint64_t hi)
{
	uint64_t limit = only_low ? UINT32_MAX : UINT64_MAX, sign = limit / 2 + 1;

	if (lo > hi)
		return DD_FALSE;
	if (!(term->flags & PSC_COMPARE_SIGNED))
		return range(dd, term->arg, only_low, lo, hi);
	if ((lo < sign) == (hi < sign))
		return range(dd, term->arg, only_low, lo ^ sign, hi ^ sign);
	return psc_dd_ite(dd, range(dd, term->arg, only_low, lo ^ sign, limit), DD_TRUE,
			  range(dd, term->arg, only_low, 0, hi ^ sign));
}

static uint32_t compare(struct dd *dd, const struct psc_term *term, bool narrow)
{
	bool only_low = narrow || term->flags & PSC_COMPARE_32;
	uint64_t limit = only_low ? UINT32_MAX : UINT64_MAX;
	uint64_t sign = term->flags & PSC_COMPARE_SIGNED ? limit / 2 + 1 : 0;
	uint64_t a = (term->a & limit) ^ sign, b = (term->b & limit) ^ sign;

	switch (term->op) {
	case PSC_OP_NE: return negate(dd, ordered(dd, term, only_low, a, a));
	case PSC_OP_EQ: return ordered(dd, term, only_low, a, a);
	case PSC_OP_GE: return ordered(dd, term, only_low, a, limit);
	case PSC_OP_LT: return negate(dd, ordered(dd, term, only_low, a, limit));
	case PSC_OP_LE: return ordered(dd, term, only_low, 0, a);
	case PSC_OP_GT: return negate(dd, ordered(dd, term, only_low, 0, a));
	case PSC_OP_RANGE: return ordered(dd, term, only_low, a, b);
	default: return masked(dd, term->arg, only_low, term->a & limit, term->b & limit);
	}
}

static uint32_t build_condition(struct dd *dd, const struct psc_term *terms, size_t count, bool narrow)
{
	uint32_t stack[PSC_MAX_TERMS], result = DD_TRUE;
	size_t depth = 0;

	for (size_t i = 0; i < count; i++) {
		switch (terms[i].kind) {
		case PSC_TERM_COMPARE:
			stack[depth++] = compare(dd, &terms[i], narrow);
			break;
		case PSC_TERM_NOT:
			stack[depth - 1] = negate(dd, stack[depth - 1]);
			break;
		case PSC_TERM_AND:
			depth--;
			stack[depth - 1] = psc_dd_ite(dd, stack[depth - 1], stack[depth], DD_FALSE);
			break;
		case PSC_TERM_OR:
			depth--;
			stack[depth - 1] = psc_dd_ite(dd, stack[depth - 1], DD_TRUE, stack[depth]);
			break;
		}
	}
	while (depth > 0)
		result = psc_dd_ite(dd, stack[--depth], result, DD_FALSE);
	return result;
}

static uint32_t condition_of(struct psc_policy *policy, struct dd *dd, struct rule *rule, enum psc_arch arch)
{
	bool narrow = policy->low_words && !psc_arch_wide(arch);

	if (rule->condition[narrow] == DD_NONE)
		rule->condition[narrow] =
			rule->count ? build_condition(dd, &policy->terms[rule->first], rule->count, narrow) : DD_TRUE;
	return rule->condition[narrow];
}

/* ---- numbers */

/* The order in which rules of one call are laid over each other. */
static bool laid_before(const struct psc_policy *policy, const struct entry *a, const struct entry *b)
{
	int32_t x = (int32_t)(policy->rules[a->rule].action & SECCOMP_RET_ACTION_FULL);
	int32_t y = (int32_t)(policy->rules[b->rule].action & SECCOMP_RET_ACTION_FULL);

	if (a->nr != b->nr)
		return a->nr < b->nr;
	if (policy->priority == PSC_PRIORITY_FIRST)
		return a->rule > b->rule;
	if (a->maybe || b->maybe)
		return a->maybe != b->maybe ? b->maybe : a->rule > b->rule;
	return x != y ? x > y : a->rule < b->rule;
}

/* Entries of one number, in the order of laid_before(). */
static void sort_layers(const struct psc_policy *policy, struct entry *entries, struct entry *spare, size_t count)
{
	size_t half = count / 2, i = 0, j = half, n = 0;

	if (count < 2)
		return;
	sort_layers(policy, entries, spare, half);
	sort_layers(policy, entries + half, spare, count - half);
	memcpy(spare, entries, half * sizeof(*spare));
	while (i < half && j < count)
		entries[n++] = laid_before(policy, &entries[j], &spare[i]) ? entries[j++] : spare[i++];
	memcpy(entries + n, spare + i, (half - i) * sizeof(*spare));
}

/* One pass of a radix sort, by the byte of the number that is shift bits up. */
static void sort_by_byte(const struct entry *entries, struct entry *ret_entries, size_t count, unsigned int shift)
{
	size_t place[256] = { 0 }, sum = 0;

	for (size_t i = 0; i < count; i++)
		place[entries[i].nr >> shift & 0xff]++;
	for (size_t b = 0; b < 256; b++) {
		size_t here = place[b];

		place[b] = sum;
		sum += here;
	}
	for (size_t i = 0; i < count; i++)
		ret_entries[place[entries[i].nr >> shift & 0xff]++] = entries[i];
}

/* By number, in time linear in the rules, then each number's layers. spare is as large as entries. */
static void sort_entries(const struct psc_policy *policy, struct entry *entries, struct entry *spare, size_t count)
{
	uint32_t differing = 0;

	for (size_t i = 1; i < count; i++)
		differing |= entries[i].nr ^ entries[0].nr;
	for (unsigned int shift = 0; shift < 32; shift += 8)
		if (differing >> shift & 0xff) {
			sort_by_byte(entries, spare, count, shift);
			memcpy(entries, spare, count * sizeof(*entries));
		}
	for (size_t i = 0, from; i < count;) {
		for (from = i; i < count && entries[i].nr == entries[from].nr; i++)
			;
		sort_layers(policy, &entries[from], spare, i - from);
	}
}

/* The entries of one rule on an ABI: at most two, its own number's and the multiplexer's. */
static size_t collect_rule(struct psc_policy *policy, struct dd *dd, enum psc_arch arch, uint32_t index,
			   struct entry *entries)
{
	struct rule *rule = &policy->rules[index];
	struct psc_multiplexed through;
	uint32_t condition;
	size_t count = 0;
	int nr;

	if (rule->arch >= 0 && rule->arch != (int32_t)arch)
		return 0;
	if (rule->id < 0) {
		entries[0] = (struct entry){ .nr = rule->nr, .rule = index };
		return 1;
	}
	nr = psc_syscall_number(arch, rule->id);
	if (nr >= 0)
		entries[count++] = (struct entry){ .nr = (uint32_t)nr, .rule = index };
	if (policy->separate || psc_syscall_multiplexed(arch, rule->id, &through) < 0)
		return count;
	condition = condition_of(policy, dd, rule, arch);
	if (condition != DD_FALSE)
		entries[count++] = (struct entry){ through.nr, index, (uint8_t)__builtin_popcount(through.mask),
						   (uint8_t)through.call, condition != DD_TRUE };
	return count;
}

static size_t collect(struct psc_policy *policy, struct dd *dd, enum psc_arch arch, struct entry *entries)
{
	size_t count = 0;

	for (size_t i = 0; i < policy->rule_count; i++)
		count += collect_rule(policy, dd, arch, (uint32_t)i, entries + count);
	return count;
}

static uint32_t entry_condition(struct psc_policy *policy, struct dd *dd, enum psc_arch arch, const struct entry *entry)
{
	if (entry->through == 0)
		return condition_of(policy, dd, &policy->rules[entry->rule], arch);
	return word_masked(dd, WORD_ARG0_LOW, UINT32_MAX >> (32 - entry->through), entry->call);
}

/* What rules of one call come to: where any of them matches, and what is done
 * there (the default elsewhere). */
struct layers {
	uint32_t matches;
	uint32_t node;
};

/* Lay entries over each other, the last on top. By halves: a thousand rules for
 * one call then cost n log n, and not n * n, edges. */
static struct layers lay(struct psc_policy *policy, struct dd *dd, enum psc_arch arch, const struct entry *entries,
			 size_t count, uint32_t fallback)
{
	struct layers below, above;

	if (count == 1) {
		below.matches = entry_condition(policy, dd, arch, entries);
		below.node = psc_dd_ite(dd, below.matches, psc_dd_leaf(dd, policy->rules[entries->rule].action), fallback);
		return below;
	}
	below = lay(policy, dd, arch, entries, count / 2, fallback);
	above = lay(policy, dd, arch, entries + count / 2, count - count / 2, fallback);
	return (struct layers){ psc_dd_ite(dd, above.matches, DD_TRUE, below.matches),
				psc_dd_ite(dd, above.matches, above.node, below.node) };
}

/* True if one rule has no conditions and no other does anything else. */
static bool is_plain(const struct psc_policy *policy, const struct entry *entries, size_t count)
{
	uint32_t action = policy->rules[entries->rule].action;
	bool plain = false;

	for (size_t i = 0; i < count; i++) {
		const struct rule *rule = &policy->rules[entries[i].rule];

		if (rule->action != action)
			return false;
		plain |= rule->count == 0 && entries[i].through == 0;
	}
	return plain;
}

/* Lay all entries of one number: those that may match cap what is below them. */
static uint32_t lay_all(struct psc_policy *policy, struct dd *dd, enum psc_arch arch, const struct entry *entries,
			size_t count, uint32_t node)
{
	size_t i = 0, from;

	if (is_plain(policy, entries, count))
		return psc_dd_leaf(dd, policy->rules[entries->rule].action);
	while (i < count) {
		for (from = i; i < count && !entries[i].maybe; i++)
			;
		if (i > from)
			node = lay(policy, dd, arch, &entries[from], i - from, node).node;
		for (; i < count && entries[i].maybe && !dd->error; i++)
			node = psc_dd_ite(dd, entry_condition(policy, dd, arch, &entries[i]),
					  psc_dd_cap(dd, node, policy->rules[entries[i].rule].action), node);
	}
	return node;
}

/* Push the edges of one ABI's numbers, from first on; with ret_skipped what is decided
 * for number -1 goes there. */
static int push_numbers(struct psc_policy *policy, struct dd *dd, size_t mark, enum psc_arch arch, uint32_t first,
			uint32_t *ret_skipped)
{
	uint32_t fallback = psc_dd_leaf(dd, policy->default_action);
	size_t count, i = 0;
	_cleanup_free_ struct entry *entries = malloc((policy->rule_count + 1) * 4 * sizeof(*entries));

	if (!entries)
		return -ENOMEM;
	count = collect(policy, dd, arch, entries);
	if (dd->error)
		return dd->error;
	sort_entries(policy, entries, entries + count, count);
	psc_dd_push(dd, mark, first, fallback);
	while (i < count) {
		uint32_t nr = entries[i].nr, node;
		size_t from = i;

		while (i < count && entries[i].nr == nr)
			i++;
		node = lay_all(policy, dd, arch, &entries[from], i - from, fallback);
		if (ret_skipped && nr == UINT32_MAX) {
			*ret_skipped = node;
			break;
		}
		psc_dd_push(dd, mark, nr, node);
		if (nr < UINT32_MAX && (i == count || entries[i].nr != nr + 1))
			psc_dd_push(dd, mark, nr + 1, fallback);
	}
	return dd->error;
}

/* x86_64 and x32 share a token. Number -1 is what a tracer writes to skip a
 * call: it never is a call of x32, so it gets the default action, or what x86_64's rules say. */
static int push_x86_64(struct psc_policy *policy, struct dd *dd, size_t mark)
{
	uint32_t bad = psc_dd_leaf(dd, policy->bad_arch), skipped = psc_dd_leaf(dd, policy->default_action);
	int r = 0;

	if (policy->archs[PSC_ARCH_X86_64])
		r = push_numbers(policy, dd, mark, PSC_ARCH_X86_64, 0, &skipped);
	else
		psc_dd_push(dd, mark, 0, bad);
	if (r < 0)
		return r;
	if (policy->archs[PSC_ARCH_X32])
		r = push_numbers(policy, dd, mark, PSC_ARCH_X32, PSC_X32_BIT, NULL);
	else
		psc_dd_push(dd, mark, PSC_X32_BIT, bad);
	psc_dd_push(dd, mark, UINT32_MAX, skipped);
	return r < 0 ? r : dd->error;
}

static uint32_t token_node(struct psc_policy *policy, struct dd *dd, enum psc_arch arch)
{
	size_t mark = psc_dd_mark(dd);
	int r;

	if (psc_arch_token(arch) == psc_arch_token(PSC_ARCH_X86_64))
		r = push_x86_64(policy, dd, mark);
	else
		r = push_numbers(policy, dd, mark, arch, 0, NULL);
	if (r < 0 && !dd->error)
		dd->error = r;
	return psc_dd_node(dd, mark, psc_var(WORD_NR, RAW));
}

static uint32_t build(struct psc_policy *policy, struct dd *dd)
{
	uint32_t bad = psc_dd_leaf(dd, policy->bad_arch), root = bad;

	for (size_t i = 0; i < policy->rule_count; i++)
		policy->rules[i].condition[0] = policy->rules[i].condition[1] = DD_NONE;
	for (int arch = 0; arch < PSC_ARCH_COUNT; arch++) {
		uint32_t token = psc_arch_token(arch);

		if (!policy->archs[arch] || (arch == PSC_ARCH_X32 && policy->archs[PSC_ARCH_X86_64]))
			continue;
		root = psc_dd_ite(dd, word_range(dd, WORD_ARCH, token, token), token_node(policy, dd, arch), root);
	}
	return root;
}

/* Allow what another program of the stack decides. */
static uint32_t keep_part(struct dd *dd, const struct psc_compile_options *options, uint32_t root)
{
	uint32_t inside = DD_FALSE;

	for (size_t i = 0; i < options->span_count && !dd->error; i++) {
		const struct psc_span *span = &options->spans[i];
		uint32_t here = word_range(dd, WORD_NR, span->first, span->last);

		if (span->arg >= 0)
			here = psc_dd_ite(dd, here, range(dd, span->arg, span->low, span->lo, span->hi), DD_FALSE);
		here = psc_dd_ite(dd, word_range(dd, WORD_ARCH, span->token, span->token), here, DD_FALSE);
		inside = psc_dd_ite(dd, inside, DD_TRUE, here);
	}
	if (options->others)
		inside = negate(dd, inside);
	return psc_dd_ite(dd, inside, root, psc_dd_leaf(dd, SECCOMP_RET_ALLOW));
}

static bool spans_are_valid(const struct psc_compile_options *options)
{
	for (size_t i = 0; i < options->span_count; i++) {
		const struct psc_span *span = &options->spans[i];

		if (span->first > span->last || span->arg < -1 || span->arg > 5 || span->lo > span->hi ||
		    (span->low && span->hi > UINT32_MAX))
			return false;
	}
	return true;
}

int psc_policy_compile(struct psc_policy *policy, const struct psc_compile_options *options,
		       struct sock_filter **ret_insns, size_t *ret_len)
{
	const struct psc_compile_options plain = { .optimize = PSC_OPTIMIZE_SIZE };
	bool big_endian = false;
	struct tests tests;
	struct dd dd;
	uint32_t root;
	int r;

	if (!options)
		options = &plain;
	if (!spans_are_valid(options))
		return -EINVAL;
	for (int i = 0; i < PSC_ARCH_COUNT; i++)
		big_endian |= policy->archs[i] && psc_arch_big_endian(i);
	r = psc_dd_init(&dd);
	if (r < 0)
		return r;
	r = psc_tests_init(&tests);
	if (r < 0) {
		psc_dd_done(&dd);
		return r;
	}
	root = build(policy, &dd);
	if (root != DD_NONE && options->part)
		root = keep_part(&dd, options, root);
	r = root == DD_NONE ? dd.error : psc_optimize(&dd, root, options, &tests, &root);
	if (r == -E2BIG)
		*ret_len = 0;
	if (r >= 0)
		r = psc_emit(&tests, root, big_endian, ret_insns, ret_len);
	psc_tests_done(&tests);
	psc_dd_done(&dd);
	return r;
}
