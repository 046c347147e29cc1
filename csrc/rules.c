/* The table: what is answered to whom, decided without anybody's help.
 *
 *   (arch, nr) --hash--> entry --> rule --> rule --> the entry's own answer
 *                                 (conditional ones, the last given first)
 *
 * A call without conditional rules costs the hash alone. Conditions have three values:
 * yes, no, and unknown where memory cannot be read. "and" is the least of them, "or" the
 * greatest, "not" turns them over. What comes out definite while something is unknown
 * comes out the same whatever the unknown is: so a rule is tried with its registers
 * alone first, then with the caller's process, and memory is read only if that
 * decides nothing. Each byte of it is read once, so that all rules see the same.
 *
 * The id is checked after the reads by the answer itself, not by an ID_VALID of its own,
 * which costs 5 % of a call. An id never comes back: if SEND or ADDFD finds it, the task
 * waited from RECV until then, could not exec meanwhile, and the memory and the process
 * that its number led to were its own. If they were another's, which got the number of
 * one that died, the answer is ENOENT and reaches nobody. A kill, which goes by a pidfd,
 * asks ID_VALID once that is open; a caller that is handed the call answers by its id.
 *
 * Memory is read by process_vm_readv(), some 1.5 us, or kept open: see memory.c.
 *
 * Nothing here allocates or takes a lock while deciding, see serve.c.
 */
#define _GNU_SOURCE
#include "rules.h"
#include "inbox.h"
#include "memory.h"

#include <string.h>
#include <time.h>

#define MAX_ERRNO 4095
#define NEVER UINT32_MAX
#define CHUNK 256
#define PAGE 4096
#define FOREIGN_TICKS 1000000

enum truth { NO, UNKNOWN, YES };

struct rule {
	uint32_t next; /* NEVER: none */
	uint32_t first_term, n_terms;
	uint32_t first_string;
	uint32_t first_process, n_processes;
	struct psc_answer answer, unreadable;
};

/* Open addressing, at most half full, so that a miss ends. key is 0 while free: no
 * arch is 0. */
struct entry {
	uint64_t key;
	uint32_t rule;
	struct psc_answer answer;
};

struct psc_table {
	struct psc_answer otherwise;
	struct psc_answer own; /* for threads of owner, instead of hold; owner 0: none */
	pid_t owner;
	bool holds; /* some answer does */
	struct psc_memory *memory; /* NULL: none is kept */
	struct rule *rules;
	struct psc_term *terms;
	struct psc_string *strings;
	char *texts;
	pid_t *processes;
	uint32_t mask;
	struct entry entries[];
};

static struct entry *find_entry(const struct psc_table *table, uint64_t key)
{
	uint32_t i = psc_call_hash(key);

	while (table->entries[i & table->mask].key && table->entries[i & table->mask].key != key)
		i++;
	return (struct entry *)&table->entries[i & table->mask];
}

/* ------------------------------------------------------------------ building */

bool psc_answer_sound(const struct psc_answer *answer)
{
	switch (answer->kind) {
	case PSC_HOLD:
	case PSC_CONTINUE:
	case PSC_VALUE:
	case PSC_KILL:
		return true;
	case PSC_ERROR:
		return answer->error >= 1 && answer->error <= MAX_ERRNO;
	case PSC_ADD_FD:
		return answer->fd >= 0 && answer->at >= -1;
	default:
		return false;
	}
}

static bool string_sound(const struct psc_rule *rule, const struct psc_term *term)
{
	const struct psc_string *s;

	if (term->arg > 5 || term->a >= rule->n_strings)
		return false;
	s = &rule->strings[term->a];
	return (unsigned int)s->kind <= PSC_STRING_GLOB && s->length < PSC_STRING_MAX && !memchr(s->text, 0, s->length);
}

static bool comparison_sound(const struct psc_term *term)
{
	return term->arg <= 5 && term->op >= PSC_OP_NE && term->op <= PSC_OP_RANGE &&
	       !(term->flags & ~(PSC_COMPARE_32 | PSC_COMPARE_SIGNED));
}

/* True if the terms are a postfix expression, or several. */
static bool terms_sound(const struct psc_rule *rule)
{
	size_t depth = 0;

	for (size_t i = 0; i < rule->n_terms; i++) {
		const struct psc_term *term = &rule->terms[i];

		switch (term->kind) {
		case PSC_TERM_COMPARE:
		case PSC_TERM_STRING:
			if (!(term->kind == PSC_TERM_STRING ? string_sound(rule, term) : comparison_sound(term)))
				return false;
			depth++;
			break;
		case PSC_TERM_NOT:
			if (depth < 1)
				return false;
			break;
		case PSC_TERM_AND:
		case PSC_TERM_OR:
			if (depth-- < 2)
				return false;
			break;
		default:
			return false;
		}
	}
	return true;
}

static bool conditional(const struct psc_rule *rule)
{
	return rule->n_terms || rule->n_processes;
}

static int check(const struct psc_rule *rules, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (rules[i].n_terms > PSC_MAX_TERMS)
			return -E2BIG;
		if (!rules[i].arch || !psc_answer_sound(&rules[i].answer) || !terms_sound(&rules[i]))
			return -EINVAL;
		if (conditional(&rules[i]) && !psc_answer_sound(&rules[i].unreadable))
			return -EINVAL;
	}
	return 0;
}

static int by_number(const void *a, const void *b)
{
	pid_t x = *(const pid_t *)a, y = *(const pid_t *)b;

	return (x > y) - (x < y);
}

struct sizes {
	size_t terms, strings, text, processes;
};

static struct sizes measure(const struct psc_rule *rules, size_t n)
{
	struct sizes sizes = {};

	for (size_t i = 0; i < n; i++) {
		sizes.terms += rules[i].n_terms;
		sizes.strings += rules[i].n_strings;
		sizes.processes += rules[i].n_processes;
		for (size_t k = 0; k < rules[i].n_strings; k++)
			sizes.text += rules[i].strings[k].length + 1;
	}
	return sizes;
}

/* Append what the rule points to; used counts what is taken of each array. */
static struct rule copy(struct psc_table *table, const struct psc_rule *rule, struct sizes *used)
{
	struct rule made = {
		.next = NEVER,
		.first_term = (uint32_t)used->terms,
		.n_terms = (uint32_t)rule->n_terms,
		.first_string = (uint32_t)used->strings,
		.first_process = (uint32_t)used->processes,
		.n_processes = (uint32_t)rule->n_processes,
		.answer = rule->answer,
		.unreadable = rule->unreadable,
	};

	if (rule->n_terms)
		memcpy(&table->terms[used->terms], rule->terms, rule->n_terms * sizeof(*rule->terms));
	for (size_t i = 0; i < rule->n_strings; i++) {
		struct psc_string *s = &table->strings[used->strings + i];
		char *text = &table->texts[used->text];

		*s = rule->strings[i];
		memcpy(text, s->text, s->length);
		text[s->length] = 0;
		s->text = text;
		used->text += s->length + 1;
	}
	if (rule->n_processes) {
		memcpy(&table->processes[used->processes], rule->processes, rule->n_processes * sizeof(pid_t));
		qsort(&table->processes[used->processes], rule->n_processes, sizeof(pid_t), by_number);
	}
	used->terms += rule->n_terms;
	used->strings += rule->n_strings;
	used->processes += rule->n_processes;
	return made;
}

static bool holds_call(const struct psc_rule *rule)
{
	return rule->answer.kind == PSC_HOLD || (conditional(rule) && rule->unreadable.kind == PSC_HOLD);
}

static void enter(struct psc_table *table, const struct psc_rule *rules, size_t n)
{
	struct sizes used = {};

	for (size_t i = 0; i < n; i++) {
		uint64_t key = psc_call_key(rules[i].arch, rules[i].nr);
		struct entry *entry = find_entry(table, key);

		if (!entry->key)
			*entry = (struct entry){ key, NEVER, table->otherwise };
		table->rules[i] = copy(table, &rules[i], &used);
		table->holds |= holds_call(&rules[i]);
		table->rules[i].next = entry->rule;
		entry->rule = conditional(&rules[i]) ? (uint32_t)i : NEVER;
		if (!conditional(&rules[i]))
			entry->answer = rules[i].answer;
	}
}

int psc_table_new(const struct psc_rule *rules, size_t n, const struct psc_answer *otherwise,
		  struct psc_table **ret_table)
{
	struct sizes sizes;
	struct psc_table *table;
	size_t size = 4;
	int r = check(rules, n);

	if (r < 0 || !psc_answer_sound(otherwise))
		return r < 0 ? r : -EINVAL;
	sizes = measure(rules, n);
	if (n >= NEVER / 4 || sizes.terms >= NEVER || sizes.strings >= NEVER || sizes.processes >= NEVER)
		return -E2BIG;
	while (size < n * 2)
		size *= 2;
	table = calloc(1, sizeof(*table) + size * sizeof(table->entries[0]));
	if (!table)
		return -ENOMEM;
	table->otherwise = *otherwise;
	table->holds = otherwise->kind == PSC_HOLD;
	table->mask = (uint32_t)size - 1;
	table->rules = calloc(n + 1, sizeof(*table->rules));
	table->terms = calloc(sizes.terms + 1, sizeof(*table->terms));
	table->strings = calloc(sizes.strings + 1, sizeof(*table->strings));
	table->texts = calloc(sizes.text + 1, 1);
	table->processes = calloc(sizes.processes + 1, sizeof(*table->processes));
	if (!table->rules || !table->terms || !table->strings || !table->texts || !table->processes) {
		psc_table_free(table);
		return -ENOMEM;
	}
	enter(table, rules, n);
	*ret_table = table;
	return 0;
}

void psc_table_free(struct psc_table *table)
{
	if (!table)
		return;
	psc_memory_free(table->memory);
	free(table->rules);
	free(table->terms);
	free(table->strings);
	free(table->texts);
	free(table->processes);
	free(table);
}

bool psc_table_holds(const struct psc_table *table)
{
	return table->holds;
}

int psc_table_keep_memory(struct psc_table *table)
{
	return table->memory ? 0 : psc_memory_new(&table->memory);
}

/* ------------------------------------------------------------------- strings */

/* As much of a string as was asked for. over: there is no more, or none to be had;
 * end is the place of its NUL, -1: not seen. */
struct text {
	size_t have;
	bool over;
	ssize_t end;
	char bytes[PSC_STRING_MAX];
};

/* What is known of a call while rules are tried. */
struct look {
	const struct psc_table *table;
	const struct seccomp_notif *n;
	const struct psc_event *event; /* that n is of, or NULL */
	bool strings; /* may be read */
	unsigned int begun; /* a bit for each of texts that has been set up */
	struct text *texts;
};

static size_t least(size_t a, size_t b)
{
	return a < b ? a : b;
}

static size_t greatest(size_t a, size_t b)
{
	return a > b ? a : b;
}

/* Never across a page's end in one go: the next one may not be there. */
static void extend(struct text *text, const struct look *look, uint64_t addr, size_t wanted)
{
	char *to = text->bytes + text->have, *end;
	size_t size = greatest(wanted - text->have, CHUNK);
	ssize_t got;

	addr += text->have;
	size = least(least(size, PAGE - addr % PAGE), PSC_STRING_MAX - text->have);
	got = look->event ? psc_memory_peek(look->table->memory, (int)(uint32_t)look->event->key, look->n, addr, to, size) :
			    psc_notify_peek(look->n, addr, to, size);
	if (got <= 0) {
		text->over = true;
		return;
	}
	end = memchr(to, 0, (size_t)got);
	if (end)
		text->end = end - text->bytes;
	text->have += (size_t)got;
	text->over = end || text->have == PSC_STRING_MAX;
}

/* The string that an argument points to, of it at least wanted bytes if there are. */
static const struct text *fetch(struct look *look, unsigned int arg, size_t wanted)
{
	struct text *text = &look->texts[arg];

	if (!(look->begun & 1U << arg)) {
		look->begun |= 1U << arg;
		text->have = 0;
		text->over = false;
		text->end = -1;
	}
	while (!text->over && text->have < wanted)
		extend(text, look, look->n->data.args[arg], wanted);
	return text;
}

static enum truth glob(struct look *look, unsigned int arg, const struct psc_string *s)
{
	const struct text *text = fetch(look, arg, 1);

	while (!text->over)
		text = fetch(look, arg, text->have + 1);
	if (text->end < 0)
		return UNKNOWN;
	return psc_glob_match(s->text, s->length, text->bytes, (size_t)text->end) ? YES : NO;
}

/* What is not seen of the string cannot matter once a byte that is seen differs. */
static enum truth string_is(struct look *look, unsigned int arg, const struct psc_string *s)
{
	size_t wanted = s->length + (s->kind == PSC_STRING_EXACT), seen;
	const struct text *text;

	if (s->kind == PSC_STRING_GLOB)
		return glob(look, arg, s);
	text = fetch(look, arg, wanted);
	seen = least(text->have, wanted);
	if (memcmp(text->bytes, s->text, seen) != 0)
		return NO;
	return seen == wanted ? YES : UNKNOWN;
}

/* ----------------------------------------------------------------- deciding */

static bool compare(const struct psc_term *term, const struct seccomp_data *data)
{
	uint64_t limit = term->flags & PSC_COMPARE_32 ? UINT32_MAX : UINT64_MAX;
	uint64_t sign = term->flags & PSC_COMPARE_SIGNED ? limit / 2 + 1 : 0;
	uint64_t arg = (data->args[term->arg] & limit) ^ sign, a = (term->a & limit) ^ sign, b = (term->b & limit) ^ sign;

	switch (term->op) {
	case PSC_OP_NE: return arg != a;
	case PSC_OP_LT: return arg < a;
	case PSC_OP_LE: return arg <= a;
	case PSC_OP_EQ: return arg == a;
	case PSC_OP_GE: return arg >= a;
	case PSC_OP_GT: return arg > a;
	case PSC_OP_MASKED_EQ: return ((arg ^ sign) & (a ^ sign)) == (b ^ sign);
	default:	return a <= arg && arg <= b; /* PSC_OP_RANGE */
	}
}

static bool listed(const struct psc_table *table, const struct rule *rule, pid_t process)
{
	return bsearch(&process, &table->processes[rule->first_process], rule->n_processes, sizeof(process), by_number);
}

/* Signal 0 tells whether a task belongs to a thread group, without /proc. Mostly it is
 * the leader of its own, and that is all there is to ask. */
static enum truth in_processes(const struct psc_table *table, const struct rule *rule, pid_t tid)
{
	pid_t leader;
	long r;

	if (tid == 0) /* of a namespace that has no number for it: none that was listed */
		return NO;
	r = psc_syscall(SYS_tgkill, tid, tid, 0);
	if (r == 0)
		return listed(table, rule, tid) ? YES : NO;
	for (uint32_t i = 0; r == -ESRCH && i < rule->n_processes; i++) {
		r = psc_syscall(SYS_tgkill, table->processes[rule->first_process + i], tid, 0);
		if (r == 0)
			return YES;
	}
	if (r == -ESRCH)
		return NO;
	/* It may not be signalled, but looked at. */
	leader = psc_thread_group(tid);
	if (leader < 0)
		return UNKNOWN;
	return listed(table, rule, leader) ? YES : NO;
}

static enum truth term_is(struct look *look, const struct rule *rule, const struct psc_term *term)
{
	if (term->kind == PSC_TERM_COMPARE)
		return compare(term, &look->n->data) ? YES : NO;
	if (!look->strings)
		return UNKNOWN;
	return string_is(look, term->arg, &look->table->strings[rule->first_string + term->a]);
}

static enum truth terms_are(struct look *look, const struct rule *rule)
{
	const struct psc_term *terms = &look->table->terms[rule->first_term];
	uint8_t stack[PSC_MAX_TERMS];
	size_t depth = 0;
	uint8_t all = YES;

	for (uint32_t i = 0; i < rule->n_terms; i++) {
		switch (terms[i].kind) {
		case PSC_TERM_NOT:
			stack[depth - 1] = (uint8_t)(YES - stack[depth - 1]);
			break;
		case PSC_TERM_AND:
			depth--;
			stack[depth - 1] = (uint8_t)least(stack[depth - 1], stack[depth]);
			break;
		case PSC_TERM_OR:
			depth--;
			stack[depth - 1] = (uint8_t)greatest(stack[depth - 1], stack[depth]);
			break;
		default:
			stack[depth++] = (uint8_t)term_is(look, rule, &terms[i]);
		}
	}
	while (depth)
		all = (uint8_t)least(all, stack[--depth]);
	return all;
}

static enum truth holds(struct look *look, const struct rule *rule)
{
	enum truth process = rule->n_processes ? UNKNOWN : YES, terms;

	look->strings = false;
	terms = terms_are(look, rule);
	if (terms != NO && rule->n_processes)
		process = in_processes(look->table, rule, (pid_t)look->n->pid);
	if (terms == UNKNOWN && process != NO) {
		look->strings = true;
		terms = terms_are(look, rule);
	}
	return terms < process ? terms : process;
}

static void keep_text(struct psc_event *event, const struct text *text)
{
	size_t length = text->end >= 0 ? (size_t)text->end : text->have;

	event->text_len = (uint16_t)least(length, sizeof(event->text));
	memcpy(event->text, text->bytes, event->text_len);
}

/* Apart, for its stack: only calls with conditional rules need that much. */
static __attribute__((noinline)) struct psc_answer try_rules(const struct psc_table *table, const struct entry *entry,
							      const struct seccomp_notif *n, struct psc_event *event)
{
	struct text texts[6];
	struct look look = { .table = table, .n = n, .event = event, .texts = texts };
	struct psc_answer answer = entry->answer;

	for (uint32_t i = entry->rule; i != NEVER; i = table->rules[i].next) {
		enum truth truth = holds(&look, &table->rules[i]);

		if (truth == NO)
			continue;
		answer = truth == YES ? table->rules[i].answer : table->rules[i].unreadable;
		break;
	}
	if (event && look.begun)
		keep_text(event, &texts[__builtin_ctz(look.begun)]);
	return answer;
}

struct psc_answer psc_table_decide(const struct psc_table *table, const struct seccomp_notif *n)
{
	const struct entry *entry = find_entry(table, psc_call_key(n->data.arch, n->data.nr));

	if (!entry->key)
		return table->otherwise;
	return entry->rule == NEVER ? entry->answer : try_rules(table, entry, n, NULL);
}

void psc_table_decide_event(const struct psc_table *table, struct psc_event *event)
{
	const struct seccomp_notif *n = &event->notif.n;
	const struct entry *entry = find_entry(table, psc_call_key(n->data.arch, n->data.nr));

	if (!entry->key)
		event->answer = table->otherwise;
	else if (entry->rule == NEVER)
		event->answer = entry->answer;
	else
		event->answer = try_rules(table, entry, n, event);
}

/* ------------------------------------------------------------------ oneself */

void psc_table_refuse_own(struct psc_table *table, const struct psc_answer *answer)
{
	table->own = *answer;
	table->owner = getpid();
}

/* Ticks of a counter that does at least one in a nanosecond. The vDSO's clock costs 1 % of
 * a call: its code and data are cold each time. */
static uint64_t ticks(void)
{
#ifdef __x86_64__
	return __builtin_ia32_rdtsc();
#else
	return psc_now_ns();
#endif
}

/* A number that was another process's a moment ago is not ours yet: the kernel gives
 * numbers in turn, and makes nowhere near all of them in that time, a millisecond at
 * most. A counter that ran backwards (another processor's) is asked about again. */
bool psc_table_refuses(const struct psc_table *table, struct psc_event *event)
{
	pid_t tid = (pid_t)event->notif.n.pid;
	uint64_t now;

	if (!table->owner || tid == 0)
		return false;
	now = ticks();
	if (tid == event->foreign && now - event->foreign_ticks < FOREIGN_TICKS)
		return false;
	if (psc_syscall(SYS_tgkill, table->owner, tid, 0) != 0) {
		event->foreign = tid;
		event->foreign_ticks = now;
		return false;
	}
	event->answer = table->own;
	return true;
}
