/* Tables of rules: conditions on registers, strings (of this very process) and processes; patterns. */
#define _GNU_SOURCE
#include "check.h"
#include "psc.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARCH 0xc000003e
#define NR 257

static const struct psc_answer allow = { .kind = PSC_CONTINUE }, unreadable = { .kind = PSC_ERROR, .error = EFAULT };

static struct psc_answer value(int64_t v)
{
	return (struct psc_answer){ .kind = PSC_VALUE, .value = v };
}

static struct psc_term compare(unsigned int arg, enum psc_op op, uint64_t a, uint64_t b, unsigned int flags)
{
	return (struct psc_term){ PSC_TERM_COMPARE, (uint8_t)arg, op, (uint8_t)flags, a, b };
}

static struct psc_answer decide(const struct psc_rule *rules, size_t n, const struct seccomp_notif *notif)
{
	struct psc_table *table;
	struct psc_answer answer;

	CHECK(psc_table_new(rules, n, &allow, &table) == 0);
	answer = psc_table_decide(table, notif);
	psc_table_free(table);
	return answer;
}

static struct seccomp_notif call(uint64_t a, uint64_t b)
{
	return (struct seccomp_notif){ .pid = (uint32_t)gettid(), .data = { .nr = NR, .arch = ARCH, .args = { a, b } } };
}

static bool matches(const struct psc_term *terms, size_t n, uint64_t a, uint64_t b)
{
	struct seccomp_notif notif = call(a, b);
	struct psc_rule rule = { .arch = ARCH, .nr = NR, .answer = value(1), .terms = terms, .n_terms = n, .unreadable = unreadable };

	return decide(&rule, 1, &notif).kind == PSC_VALUE;
}

static void test_operators(void)
{
	static const struct { enum psc_op op; uint64_t a, b, arg; unsigned int flags; bool yes; } cases[] = {
		{ PSC_OP_NE, 5, 0, 5, 0, false }, { PSC_OP_NE, 5, 0, 6, 0, true },
		{ PSC_OP_LT, 5, 0, 5, 0, false }, { PSC_OP_LT, 5, 0, 4, 0, true },
		{ PSC_OP_LE, 5, 0, 5, 0, true }, { PSC_OP_LE, 5, 0, 6, 0, false },
		{ PSC_OP_EQ, 1ULL << 32, 0, 1ULL << 32, 0, true }, { PSC_OP_EQ, 0, 0, 1ULL << 32, 0, false },
		{ PSC_OP_EQ, 0, 0, 1ULL << 32, PSC_COMPARE_32, true },
		{ PSC_OP_GE, 5, 0, 5, 0, true }, { PSC_OP_GT, 5, 0, 5, 0, false },
		{ PSC_OP_GT, 5, 0, UINT64_MAX, 0, true }, { PSC_OP_GT, 5, 0, UINT64_MAX, PSC_COMPARE_SIGNED, false },
		{ PSC_OP_LT, 0, 0, 0x80000000, PSC_COMPARE_SIGNED | PSC_COMPARE_32, true },
		{ PSC_OP_LT, 0, 0, 0x80000000, PSC_COMPARE_SIGNED, false },
		{ PSC_OP_MASKED_EQ, 3, 1, 5, 0, true }, { PSC_OP_MASKED_EQ, 3, 1, 6, 0, false },
		{ PSC_OP_RANGE, 5, 7, 5, 0, true }, { PSC_OP_RANGE, 5, 7, 7, 0, true }, { PSC_OP_RANGE, 5, 7, 8, 0, false },
		{ PSC_OP_RANGE, UINT64_MAX, 1, 0, PSC_COMPARE_SIGNED, true },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		struct psc_term term = compare(0, cases[i].op, cases[i].a, cases[i].b, cases[i].flags);

		CHECK(matches(&term, 1, cases[i].arg, 0) == cases[i].yes);
	}
}

static void test_what_is_left_of_an_expression_is_anded(void)
{
	struct psc_term terms[] = { compare(0, PSC_OP_EQ, 1, 0, 0), compare(1, PSC_OP_EQ, 2, 0, 0), { .kind = PSC_TERM_NOT } };

	CHECK(matches(terms, 2, 1, 2) && !matches(terms, 2, 1, 3) && !matches(terms, 2, 0, 2));
	CHECK(!matches(terms, 3, 1, 2) && matches(terms, 3, 1, 3));
	terms[2].kind = PSC_TERM_OR;
	CHECK(matches(terms, 3, 1, 3) && matches(terms, 3, 0, 2) && !matches(terms, 3, 0, 0));
	terms[2].kind = PSC_TERM_AND;
	CHECK(matches(terms, 3, 1, 2) && !matches(terms, 3, 1, 3));
}

static void test_the_last_rule_that_matches_wins(void)
{
	struct psc_term one = compare(0, PSC_OP_EQ, 1, 0, 0), low = compare(0, PSC_OP_LT, 10, 0, 0);
	struct psc_rule rules[] = {
		{ .arch = ARCH, .nr = NR, .answer = value(1), .terms = &one, .n_terms = 1, .unreadable = unreadable },
		{ .arch = ARCH, .nr = NR, .answer = value(2) },
		{ .arch = ARCH, .nr = NR, .answer = value(3), .terms = &low, .n_terms = 1, .unreadable = unreadable },
		{ .arch = ARCH, .nr = NR, .answer = value(4), .terms = &one, .n_terms = 1, .unreadable = unreadable },
	};
	struct seccomp_notif notif = call(1, 0);

	CHECK(decide(rules, 4, &notif).value == 4);
	CHECK(decide(rules, 3, &notif).value == 3);
	CHECK(decide(rules, 2, &notif).value == 2);
	CHECK(decide(rules, 1, &notif).value == 1);
	notif.data.args[0] = 5;
	CHECK(decide(rules, 4, &notif).value == 3);
	notif.data.args[0] = 50;
	CHECK(decide(rules, 4, &notif).value == 2);
	CHECK(decide(rules, 1, &notif).kind == PSC_CONTINUE);
	notif.data.arch = ARCH ^ 1;
	CHECK(decide(rules, 4, &notif).kind == PSC_CONTINUE);
}

/* YES: 1, NO: 0, the answer for what is unreadable: -1. */
static int string_at(const void *addr, enum psc_string_kind kind, const char *text, bool negated)
{
	struct psc_string string = { kind, text, strlen(text) };
	struct psc_term terms[] = { { .kind = PSC_TERM_STRING, .arg = 1 }, { .kind = PSC_TERM_NOT } };
	struct psc_rule rule = { .arch = ARCH, .nr = NR, .answer = value(1), .terms = terms, .n_terms = negated ? 2 : 1,
				 .strings = &string, .n_strings = 1, .unreadable = unreadable };
	struct seccomp_notif notif = call(0, (uintptr_t)addr);
	struct psc_answer answer = decide(&rule, 1, &notif);

	return answer.kind == PSC_VALUE ? 1 : answer.kind == PSC_CONTINUE ? 0 : -1;
}

static void test_strings(void)
{
	const char *path = "/tmp/file";

	CHECK(string_at(path, PSC_STRING_EXACT, "/tmp/file", false) == 1);
	CHECK(string_at(path, PSC_STRING_EXACT, "/tmp/fil", false) == 0);
	CHECK(string_at(path, PSC_STRING_EXACT, "/tmp/file2", false) == 0);
	CHECK(string_at("", PSC_STRING_EXACT, "", false) == 1);
	CHECK(string_at(path, PSC_STRING_EXACT, "", false) == 0);
	CHECK(string_at(path, PSC_STRING_PREFIX, "/tmp/", false) == 1);
	CHECK(string_at(path, PSC_STRING_PREFIX, "/tmp/file", false) == 1);
	CHECK(string_at(path, PSC_STRING_PREFIX, "/tmp/files", false) == 0);
	CHECK(string_at(path, PSC_STRING_GLOB, "/t*/f[h-j]le", false) == 1);
	CHECK(string_at(path, PSC_STRING_GLOB, "/t*/f[!h-j]le", false) == 0);
	CHECK(string_at(path, PSC_STRING_EXACT, "/tmp/file", true) == 0);
	CHECK(string_at(path, PSC_STRING_EXACT, "/tmp/fil", true) == 1);
	CHECK(string_at(NULL, PSC_STRING_PREFIX, "/", false) == -1);
	CHECK(string_at(NULL, PSC_STRING_PREFIX, "/", true) == -1);
	CHECK(string_at((void *)-8, PSC_STRING_GLOB, "*", false) == -1);
}

/* Two pages, and one behind them that is not there. */
static void test_strings_at_the_end_of_a_page(void)
{
	char *pages = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *end = pages + 2 * 4096;
	char pattern[PSC_STRING_MAX];

	CHECK(pages != MAP_FAILED && mprotect(end, 4096, PROT_NONE) == 0);
	memcpy(pages + 4096 - 3, "/tmp/file", 10);
	CHECK(string_at(pages + 4096 - 3, PSC_STRING_EXACT, "/tmp/file", false) == 1);
	CHECK(string_at(pages + 4096 - 3, PSC_STRING_PREFIX, "/tmp/f", false) == 1);
	CHECK(string_at(pages + 4096 - 3, PSC_STRING_GLOB, "*file", false) == 1);
	memcpy(end - 4, "/tmp", 4);
	CHECK(string_at(end - 4, PSC_STRING_PREFIX, "/tmp", false) == 1);
	CHECK(string_at(end - 4, PSC_STRING_PREFIX, "/tmp/", false) == -1);
	CHECK(string_at(end - 4, PSC_STRING_PREFIX, "/var/", false) == 0);
	CHECK(string_at(end - 4, PSC_STRING_EXACT, "/tmp", false) == -1);
	CHECK(string_at(end - 4, PSC_STRING_EXACT, "/etc", false) == 0);
	CHECK(string_at(end - 4, PSC_STRING_GLOB, "*", false) == -1);

	memset(pages, 'x', 2 * 4096);
	memset(pattern, 'x', sizeof(pattern));
	pattern[4095] = 0;
	pages[4095] = 0;
	CHECK(string_at(pages, PSC_STRING_GLOB, "x*", false) == 1);
	CHECK(string_at(pages, PSC_STRING_EXACT, pattern, false) == 1);
	pages[4095] = 'x';
	CHECK(string_at(pages, PSC_STRING_GLOB, "x*", false) == -1);
	CHECK(string_at(pages, PSC_STRING_EXACT, pattern, false) == 0);
	CHECK(string_at(pages, PSC_STRING_PREFIX, "xxx", false) == 1);
	munmap(pages, 3 * 4096);
}

static void test_memory_is_read_only_where_registers_decide_nothing(void)
{
	struct psc_string string = { PSC_STRING_EXACT, "a", 1 };
	struct psc_term terms[] = { compare(0, PSC_OP_EQ, 1, 0, 0), { .kind = PSC_TERM_STRING, .arg = 1 }, { .kind = PSC_TERM_OR } };
	struct psc_rule rule = { .arch = ARCH, .nr = NR, .answer = value(1), .terms = terms, .n_terms = 3,
				 .strings = &string, .n_strings = 1, .unreadable = unreadable };
	struct seccomp_notif notif = call(1, 0);

	CHECK(decide(&rule, 1, &notif).kind == PSC_VALUE);
	notif.data.args[0] = 2;
	CHECK(decide(&rule, 1, &notif).kind == PSC_ERROR);
	terms[2].kind = PSC_TERM_AND;
	CHECK(decide(&rule, 1, &notif).kind == PSC_CONTINUE);
	notif.data.args[0] = 1;
	CHECK(decide(&rule, 1, &notif).kind == PSC_ERROR);
	rule.n_terms = 2;
	CHECK(decide(&rule, 1, &notif).kind == PSC_ERROR);
}

static int decide_for(pid_t tid, const pid_t *processes, size_t n)
{
	struct psc_rule rule = { .arch = ARCH, .nr = NR, .answer = value(1), .processes = processes, .n_processes = n,
				 .unreadable = unreadable };
	struct seccomp_notif notif = call(0, 0);

	notif.pid = (uint32_t)tid;
	return decide(&rule, 1, &notif).kind == PSC_VALUE;
}

static void *in_thread(void *unused)
{
	pid_t me = getpid(), tid = gettid(), both[] = { getppid(), me };

	CHECK(tid != me);
	CHECK(decide_for(tid, &me, 1) == 1);
	CHECK(decide_for(tid, both, 2) == 1);
	CHECK(decide_for(tid, both, 1) == 0);
	CHECK(decide_for(tid, &tid, 1) == 0);
	return NULL;
}

static void test_processes(void)
{
	pid_t me = getpid(), child, both[2];
	pthread_t thread;
	int status, gate[2];
	char byte;

	CHECK(pipe(gate) == 0);
	child = fork();
	if (child == 0) {
		close(gate[1]);
		_exit((int)read(gate[0], &byte, 1));
	}
	both[0] = child, both[1] = me;
	CHECK(decide_for(me, &me, 1) == 1 && decide_for(me, both, 2) == 1 && decide_for(me, &child, 1) == 0);
	CHECK(decide_for(child, &child, 1) == 1 && decide_for(child, &me, 1) == 0);
	CHECK(decide_for(0, both, 2) == 0);
	CHECK(pthread_create(&thread, NULL, in_thread, NULL) == 0 && pthread_join(thread, NULL) == 0);
	close(gate[1]);
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	CHECK(decide_for(child, &child, 1) == 0);
	close(gate[0]);
}

static int refusal(const struct psc_rule *rule)
{
	struct psc_table *table;
	int r = psc_table_new(rule, 1, &allow, &table);

	if (r == 0)
		psc_table_free(table);
	return r;
}

static void test_refusals(void)
{
	static const struct psc_term bad[] = {
		{ .kind = PSC_TERM_NOT }, { .kind = PSC_TERM_AND }, { .kind = 9 }, { .kind = PSC_TERM_STRING, .a = 1 },
		{ .kind = PSC_TERM_STRING, .arg = 6 }, { PSC_TERM_COMPARE, 6, PSC_OP_EQ, 0, 0, 0 },
		{ PSC_TERM_COMPARE, 0, 0, 0, 0, 0 }, { PSC_TERM_COMPARE, 0, PSC_OP_RANGE + 1, 0, 0, 0 },
		{ PSC_TERM_COMPARE, 0, PSC_OP_EQ, 4, 0, 0 },
	};
	static char text[PSC_STRING_MAX + 1];
	struct psc_string string = { PSC_STRING_EXACT, text, 0 };
	struct psc_term term = { .kind = PSC_TERM_STRING };
	struct psc_rule rule = { .arch = ARCH, .nr = NR, .answer = value(1), .n_terms = 1, .strings = &string, .n_strings = 1,
				 .unreadable = unreadable };

	for (size_t i = 0; i < COUNT(bad); i++) {
		rule.terms = &bad[i];
		CHECK(refusal(&rule) == -EINVAL);
	}
	rule.terms = &term;
	CHECK(refusal(&rule) == 0);
	string.length = 1;
	CHECK(refusal(&rule) == -EINVAL);
	memset(text, 'x', sizeof(text));
	string.length = PSC_STRING_MAX - 1;
	CHECK(refusal(&rule) == 0);
	string.length = PSC_STRING_MAX;
	CHECK(refusal(&rule) == -EINVAL);
	string.length = 1;
	rule.unreadable.error = 4096;
	CHECK(refusal(&rule) == -EINVAL);
	rule.unreadable = unreadable;
	rule.answer.kind = PSC_ANSWER_KINDS;
	CHECK(refusal(&rule) == -EINVAL);
	rule.answer = (struct psc_answer){ .kind = PSC_ADD_FD, .fd = -1, .at = -1 };
	CHECK(refusal(&rule) == -EINVAL);
	rule.answer.fd = 0;
	CHECK(refusal(&rule) == 0);
	rule.n_terms = PSC_MAX_TERMS + 1;
	CHECK(refusal(&rule) == -E2BIG);
}

static bool glob(const char *pattern, const char *text)
{
	return psc_glob_match(pattern, strlen(pattern), text, strlen(text));
}

static void test_patterns(void)
{
	CHECK(glob("", "") && !glob("", "a") && glob("*", "") && glob("**", "a/b") && glob("?", "/") && !glob("?", ""));
	CHECK(glob("a*b*c", "aXbbXbc") && !glob("a*b*c", "aXbbXb") && glob("*aab", "aaaab"));
	CHECK(glob("[a-c]", "b") && !glob("[a-c]", "d") && glob("[!a-c]", "d") && glob("[]]", "]") && glob("[!]]", "x"));
	CHECK(glob("[a-]", "-") && glob("[-a]", "-") && !glob("[c-a]", "b") && glob("[", "[") && glob("[!", "[!"));
	CHECK(glob("\xff?", "\xff\x80") && glob("[\x80-\xff]", "\xc3"));
}

/* Patterns and texts of random bytes; the sanitizers watch, and work stays bounded. */
static void test_patterns_of_anything(void)
{
	static const char letters[] = "ab*?[]!-/";
	char pattern[64], text[64], as[4096];

	srandom(1);
	for (int i = 0; i < 200000; i++) {
		size_t m = (size_t)random() % 12, n = (size_t)random() % 12;
		char *p = malloc(m + 1), *t = malloc(n + 1);

		CHECK(p && t);
		for (size_t k = 0; k < m; k++)
			p[k] = letters[random() % 9];
		for (size_t k = 0; k < n; k++)
			t[k] = letters[random() % 9];
		memcpy(pattern, p, m);
		pattern[m] = '*';
		memcpy(text, t, n);
		text[n] = 'x';
		p = realloc(p, m ? m : 1), t = realloc(t, n ? n : 1);
		if (psc_glob_match(p, m, t, n) && !memchr(p, '[', m))
			CHECK(psc_glob_match(pattern, m + 1, text, n + 1));
		free(p);
		free(t);
	}
	memset(as, 'a', sizeof(as));
	as[sizeof(as) - 1] = 0;
	CHECK(!glob("*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b", as) && glob("*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a", as));
}

int main(void)
{
	test_operators();
	test_what_is_left_of_an_expression_is_anded();
	test_the_last_rule_that_matches_wins();
	test_strings();
	test_strings_at_the_end_of_a_page();
	test_memory_is_read_only_where_registers_decide_nothing();
	test_processes();
	test_refusals();
	test_patterns();
	test_patterns_of_anything();
	return 0;
}
