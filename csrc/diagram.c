/* Decision diagrams over intervals.
 *
 * A node asks for one variable (a word of seccomp_data, or a word under a mask)
 * and divides all its values into intervals, each with a child that asks for
 * later variables only. Nodes are unique: same question, same intervals, same
 * children means same index, so equal parts of a policy are one part from the
 * moment they are made, and two diagrams mean the same if (under no mask: and
 * only if) they are the same index. */
#include "compile.h"
#include "internal.h"

#include <string.h>

#define MAX_NODES (1U << 18)
#define MAX_EDGES (1U << 22)
#define CAPPED (UINT32_MAX - 1) /* in the memo, in place of a condition: psc_dd_cap() */

/* Double an array of *room elements until n fit. */
static int grow(void *array, size_t *room, size_t n, size_t size)
{
	size_t want = *room ? *room : 64;
	void *bigger;

	if (n <= *room)
		return 0;
	while (want < n)
		want *= 2;
	bigger = realloc(*(void **)array, want * size);
	if (!bigger)
		return -ENOMEM;
	*(void **)array = bigger;
	*room = want;
	return 0;
}

static uint32_t fail(struct dd *dd, int error)
{
	if (!dd->error)
		dd->error = error;
	return DD_NONE;
}

int psc_dd_init(struct dd *dd)
{
	*dd = (struct dd){ .slot_count = 1024, .memo_count = 512 };
	dd->slots = calloc(dd->slot_count, sizeof(*dd->slots));
	dd->memo = calloc(dd->memo_count, sizeof(*dd->memo));
	if (!dd->slots || !dd->memo || grow(&dd->nodes, &dd->room, 256, sizeof(*dd->nodes)) < 0) {
		psc_dd_done(dd);
		return -ENOMEM;
	}
	/* Two leaves that no hash finds: no action is equal to a truth value. */
	dd->nodes[DD_FALSE] = (struct dd_node){ DD_LEAF, 0, 0 };
	dd->nodes[DD_TRUE] = (struct dd_node){ DD_LEAF, 1, 0 };
	dd->count = 2;
	return 0;
}

void psc_dd_done(struct dd *dd)
{
	free(dd->nodes);
	free(dd->edges);
	free(dd->stack);
	free(dd->slots);
	free(dd->memo);
	*dd = (struct dd){ 0 };
}

static uint32_t mix(uint32_t hash, uint32_t value)
{
	return (hash ^ value) * 0x9e3779b1 ^ (hash >> 13);
}

static uint32_t hash_node(const struct dd *dd, const struct dd_node *node, const struct dd_edge *edges)
{
	uint32_t hash = mix((uint32_t)node->var, (uint32_t)(node->var >> 32));

	if (node->var == DD_LEAF)
		return mix(hash, node->first);
	for (uint32_t i = 0; i < node->count; i++)
		hash = mix(mix(hash, edges[i].start), edges[i].child);
	return hash ^ hash >> 16;
}

static bool same_node(const struct dd *dd, const struct dd_node *a, const struct dd_node *b, const struct dd_edge *edges)
{
	if (a->var != b->var || a->count != b->count)
		return false;
	if (a->var == DD_LEAF)
		return a->first == b->first;
	return memcmp(&dd->edges[a->first], edges, a->count * sizeof(*edges)) == 0;
}

static int rehash(struct dd *dd)
{
	size_t count = dd->slot_count * 2;
	uint32_t *slots = calloc(count, sizeof(*slots));

	if (!slots)
		return -ENOMEM;
	for (uint32_t i = 2; i < dd->count; i++) {
		size_t at = hash_node(dd, &dd->nodes[i], &dd->edges[dd->nodes[i].first]) & (count - 1);

		while (slots[at])
			at = (at + 1) & (count - 1);
		slots[at] = i + 1;
	}
	free(dd->slots);
	dd->slots = slots;
	dd->slot_count = count;
	return 0;
}

/* The node equal to this one, made now if there was none. */
static uint32_t intern(struct dd *dd, struct dd_node node, const struct dd_edge *edges)
{
	size_t at = hash_node(dd, &node, edges) & (dd->slot_count - 1);

	for (; dd->slots[at]; at = (at + 1) & (dd->slot_count - 1))
		if (same_node(dd, &dd->nodes[dd->slots[at] - 1], &node, edges))
			return dd->slots[at] - 1;
	if (dd->count >= MAX_NODES || dd->edge_count + node.count > MAX_EDGES)
		return fail(dd, -E2BIG);
	if (grow(&dd->nodes, &dd->room, dd->count + 1, sizeof(*dd->nodes)) < 0 ||
	    grow(&dd->edges, &dd->edge_room, dd->edge_count + node.count, sizeof(*dd->edges)) < 0)
		return fail(dd, -ENOMEM);
	if (node.var != DD_LEAF) {
		memcpy(&dd->edges[dd->edge_count], edges, node.count * sizeof(*edges));
		node.first = (uint32_t)dd->edge_count;
		dd->edge_count += node.count;
	}
	dd->nodes[dd->count++] = node;
	dd->slots[at] = (uint32_t)dd->count;
	if (dd->count * 2 > dd->slot_count && rehash(dd) < 0)
		return fail(dd, -ENOMEM);
	return (uint32_t)dd->count - 1;
}

uint32_t psc_dd_leaf(struct dd *dd, uint32_t action)
{
	if (dd->error)
		return DD_NONE;
	return intern(dd, (struct dd_node){ DD_LEAF, action, 0 }, NULL);
}

size_t psc_dd_mark(struct dd *dd)
{
	return dd->depth;
}

void psc_dd_push(struct dd *dd, size_t mark, uint32_t start, uint32_t child)
{
	if (child == DD_NONE || dd->error)
		return;
	if (dd->depth > mark && dd->stack[dd->depth - 1].start == start)
		dd->depth--;
	if (dd->depth > mark && dd->stack[dd->depth - 1].child == child)
		return;
	if (grow(&dd->stack, &dd->stack_room, dd->depth + 1, sizeof(*dd->stack)) < 0) {
		fail(dd, -ENOMEM);
		return;
	}
	dd->stack[dd->depth++] = (struct dd_edge){ start, child };
}

uint32_t psc_dd_node(struct dd *dd, size_t mark, uint64_t var)
{
	size_t count = dd->depth - mark;
	uint32_t result = DD_NONE;

	if (!dd->error)
		result = count == 1 ? dd->stack[mark].child :
				      intern(dd, (struct dd_node){ var, 0, (uint32_t)count }, &dd->stack[mark]);
	dd->depth = mark;
	return result;
}

static struct dd_memo *memo_slot(struct dd_memo *memo, size_t count, uint32_t c, uint32_t t, uint32_t e)
{
	size_t at = mix(mix(mix(0, c), t), e);

	/* c is never DD_FALSE here, so 0 marks a free slot. */
	for (at &= count - 1; memo[at].c; at = (at + 1) & (count - 1))
		if (memo[at].c == c && memo[at].t == t && memo[at].e == e)
			break;
	return &memo[at];
}

static int remember(struct dd *dd, uint32_t c, uint32_t t, uint32_t e, uint32_t result)
{
	if (++dd->memo_used * 2 > dd->memo_count) {
		size_t count = dd->memo_count * 2;
		struct dd_memo *memo = calloc(count, sizeof(*memo));

		if (!memo)
			return -ENOMEM;
		for (size_t i = 0; i < dd->memo_count; i++)
			if (dd->memo[i].c)
				*memo_slot(memo, count, dd->memo[i].c, dd->memo[i].t, dd->memo[i].e) = dd->memo[i];
		free(dd->memo);
		dd->memo = memo;
		dd->memo_count = count;
	}
	*memo_slot(dd->memo, dd->memo_count, c, t, e) = (struct dd_memo){ c, t, e, result };
	return 0;
}

/* A reader of one operand: its edges if it asks for var, itself otherwise. */
struct cursor {
	uint32_t self;
	uint32_t at, end; /* in dd->edges; at == end: it does not ask for var */
};

static struct cursor open_cursor(const struct dd *dd, uint32_t node, uint64_t var)
{
	const struct dd_node *n = &dd->nodes[node];

	if (n->var != var)
		return (struct cursor){ node, 0, 0 };
	return (struct cursor){ node, n->first, n->first + n->count };
}

static uint32_t cursor_child(const struct dd *dd, const struct cursor *cursor)
{
	return cursor->at < cursor->end ? dd->edges[cursor->at].child : cursor->self;
}

/* Where its next edge starts; above all values if there is none. */
static uint64_t cursor_next(const struct dd *dd, const struct cursor *cursor)
{
	return cursor->at + 1 < cursor->end ? dd->edges[cursor->at + 1].start : UINT64_MAX;
}

uint32_t psc_dd_ite(struct dd *dd, uint32_t c, uint32_t t, uint32_t e)
{
	struct cursor cursors[3];
	uint64_t var = DD_LEAF, start = 0;
	const uint32_t operands[3] = { c, t, e };
	const struct dd_memo *known;
	uint32_t result;
	size_t mark;

	if (dd->error)
		return DD_NONE;
	if (c == DD_TRUE || t == e)
		return t;
	if (c == DD_FALSE)
		return e;
	known = memo_slot(dd->memo, dd->memo_count, c, t, e);
	if (known->c)
		return known->result;
	for (int i = 0; i < 3; i++)
		if (dd->nodes[operands[i]].var < var)
			var = dd->nodes[operands[i]].var;
	for (int i = 0; i < 3; i++)
		cursors[i] = open_cursor(dd, operands[i], var);
	mark = psc_dd_mark(dd);
	while (start != UINT64_MAX && !dd->error) {
		uint64_t next = UINT64_MAX;
		uint32_t child = psc_dd_ite(dd, cursor_child(dd, &cursors[0]), cursor_child(dd, &cursors[1]),
					    cursor_child(dd, &cursors[2]));

		psc_dd_push(dd, mark, (uint32_t)start, child);
		for (int i = 0; i < 3; i++)
			if (cursor_next(dd, &cursors[i]) < next)
				next = cursor_next(dd, &cursors[i]);
		for (int i = 0; i < 3; i++)
			if (next != UINT64_MAX && cursor_next(dd, &cursors[i]) == next)
				cursors[i].at++;
		start = next;
	}
	result = psc_dd_node(dd, mark, var);
	if (result != DD_NONE && remember(dd, c, t, e, result) < 0)
		return fail(dd, -ENOMEM);
	return result;
}

uint32_t psc_dd_cap(struct dd *dd, uint32_t node, uint32_t action)
{
	const struct dd_memo *known;
	struct dd_node n;
	uint32_t result;
	size_t mark;

	if (dd->error)
		return DD_NONE;
	n = dd->nodes[node];
	if (n.var == DD_LEAF) {
		int32_t old = (int32_t)(n.first & SECCOMP_RET_ACTION_FULL), new = (int32_t)(action & SECCOMP_RET_ACTION_FULL);

		return new < old ? psc_dd_leaf(dd, action) : node;
	}
	known = memo_slot(dd->memo, dd->memo_count, CAPPED, node, action);
	if (known->c)
		return known->result;
	mark = psc_dd_mark(dd);
	for (uint32_t i = 0; i < n.count && !dd->error; i++) {
		uint32_t child = psc_dd_cap(dd, dd->edges[n.first + i].child, action);

		psc_dd_push(dd, mark, dd->edges[n.first + i].start, child);
	}
	result = psc_dd_node(dd, mark, n.var);
	if (result != DD_NONE && remember(dd, CAPPED, node, action, result) < 0)
		return fail(dd, -ENOMEM);
	return result;
}
