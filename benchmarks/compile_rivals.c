// The same rules built into a program by libpsc and by libseccomp (linear, and the binary tree that runc asks for),
// in turns, in one process. Each builds twice, and the second time counts: the first brings its code into the caches.
//
//	compile_rivals RULES ROUNDS PREFIX    times, as JSON; programs in PREFIX.{size,depth,linear,tree}
//	compile_rivals RULES once EMITTER     builds once: for a counter of instructions (ours; libseccomp's probe of
//	                                      the kernel does not work under valgrind)
//
// RULES: "default WORD", "badarch WORD", "arch NAME", "rule WORD CALL TERMS [ARG OP A B]...". Names are resolved before
// the clock starts. A call that this libseccomp does not know is left out of all programs, and counted.
#define _GNU_SOURCE
#include <seccomp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "psc.h"

enum emitter { EMIT_SIZE, EMIT_DEPTH, EMIT_LINEAR, EMIT_TREE, EMITTERS };
static const char *const emitter_names[] = { "size", "depth", "linear", "tree" };

#define MAX_RULES 2048
#define MAX_COMPARISONS 6

struct rule {
	uint32_t action;
	int psc_call, seccomp_call;
	unsigned int count;
	struct psc_term terms[MAX_COMPARISONS];
	struct scmp_arg_cmp cmps[MAX_COMPARISONS];
};

static struct rules {
	uint32_t default_action, bad_arch;
	struct { enum psc_arch psc; uint32_t seccomp; } arches[8];
	size_t arch_count;
	struct rule rules[MAX_RULES];
	size_t count, unknown;
} rules;

static void die(const char *what)
{
	fprintf(stderr, "compile_rivals: %s\n", what);
	exit(1);
}

static void read_rule(const char *text)
{
	struct rule *rule = &rules.rules[rules.count];
	char name[64];
	int used;

	if (rules.count == MAX_RULES || sscanf(text, "%u %63s %u%n", &rule->action, name, &rule->count, &used) != 3 ||
	    rule->count > MAX_COMPARISONS)
		die("a rule cannot be read");
	for (unsigned int i = 0; i < rule->count; i++) {
		unsigned int arg, op;
		unsigned long long a, b;
		int more;

		text += used;
		if (sscanf(text, "%u %u %llu %llu%n", &arg, &op, &a, &b, &more) != 4)
			die("a comparison cannot be read");
		used = more;
		rule->terms[i] = (struct psc_term){ .kind = PSC_TERM_COMPARE, .arg = arg, .op = op, .a = a, .b = b };
		rule->cmps[i] = (struct scmp_arg_cmp){ .arg = arg, .op = (enum scmp_compare)op, .datum_a = a, .datum_b = b };
	}
	rule->psc_call = psc_syscall_id(name);
	rule->seccomp_call = seccomp_syscall_resolve_name(name);
	if (rule->psc_call < 0)
		die("a call that we do not know");
	if (rule->seccomp_call == __NR_SCMP_ERROR)
		rules.unknown++;
	else
		rules.count++;
}

static void read_arch(const char *name)
{
	int arch = psc_arch_by_name(name);

	if (arch < 0 || rules.arch_count == 8)
		die("an architecture that we do not know");
	rules.arches[rules.arch_count].psc = arch;
	rules.arches[rules.arch_count].seccomp = seccomp_arch_resolve_name(name);
	if (!rules.arches[rules.arch_count].seccomp)
		die("an architecture that libseccomp does not know");
	rules.arch_count++;
}

static void read_rules(const char *path)
{
	FILE *file = fopen(path, "re");
	char line[1024], name[64];

	if (!file)
		die("the rules cannot be opened");
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "default %u", &rules.default_action) == 1 || sscanf(line, "badarch %u", &rules.bad_arch) == 1)
			continue;
		if (sscanf(line, "arch %63s", name) == 1)
			read_arch(name);
		else if (!strncmp(line, "rule ", 5))
			read_rule(line + 5);
	}
	fclose(file);
}

static size_t emit_ours(enum emitter emitter, struct sock_filter **ret_insns)
{
	struct psc_compile_options options = { .optimize = emitter == EMIT_DEPTH ? PSC_OPTIMIZE_DEPTH : PSC_OPTIMIZE_SIZE };
	struct psc_policy *policy;
	size_t n;

	if (psc_policy_new(rules.default_action, rules.bad_arch, PSC_PRIORITY_RESTRICTIVE, &policy) < 0)
		die("psc_policy_new");
	psc_policy_compare_low_words(policy);
	for (size_t i = 0; i < rules.arch_count; i++)
		if (psc_policy_add_arch(policy, rules.arches[i].psc) < 0)
			die("psc_policy_add_arch");
	for (size_t i = 0; i < rules.count; i++) {
		struct rule *rule = &rules.rules[i];

		if (psc_policy_add(policy, rule->action, rule->psc_call, rule->terms, rule->count) < 0)
			die("psc_policy_add");
	}
	if (psc_policy_compile(policy, &options, ret_insns, &n) < 0)
		die("psc_policy_compile");
	psc_policy_free(policy);
	return n;
}

static size_t emit_libseccomp(enum emitter emitter, struct sock_filter **ret_insns)
{
	scmp_filter_ctx context = seccomp_init(rules.default_action);
	int fd = memfd_create("program", MFD_CLOEXEC);
	struct stat status;

	if (!context || fd < 0 || seccomp_attr_set(context, SCMP_FLTATR_ACT_BADARCH, rules.bad_arch) ||
	    seccomp_attr_set(context, SCMP_FLTATR_CTL_OPTIMIZE, emitter == EMIT_TREE ? 2 : 1) ||
	    seccomp_arch_remove(context, SCMP_ARCH_NATIVE))
		die("libseccomp's context");
	for (size_t i = 0; i < rules.arch_count; i++)
		if (seccomp_arch_add(context, rules.arches[i].seccomp))
			die("seccomp_arch_add");
	for (size_t i = 0; i < rules.count; i++) {
		struct rule *rule = &rules.rules[i];

		if (seccomp_rule_add_array(context, rule->action, rule->seccomp_call, rule->count, rule->cmps))
			die("seccomp_rule_add_array");
	}
	if (seccomp_export_bpf(context, fd) || fstat(fd, &status))
		die("seccomp_export_bpf");
	seccomp_release(context);
	*ret_insns = malloc(status.st_size);
	if (!*ret_insns || pread(fd, *ret_insns, status.st_size, 0) != status.st_size)
		die("reading libseccomp's program");
	close(fd);
	return status.st_size / sizeof(struct sock_filter);
}

static size_t emit(enum emitter emitter, struct sock_filter **ret_insns)
{
	return emitter <= EMIT_DEPTH ? emit_ours(emitter, ret_insns) : emit_libseccomp(emitter, ret_insns);
}

static long now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static size_t keep(enum emitter emitter, const char *prefix)
{
	struct sock_filter *insns;
	size_t n = emit(emitter, &insns);
	char path[4096];
	FILE *file;

	snprintf(path, sizeof(path), "%s.%s", prefix, emitter_names[emitter]);
	file = fopen(path, "we");
	if (!file || fwrite(insns, sizeof(*insns), n, file) != n || fclose(file))
		die("a program cannot be written");
	free(insns);
	return n;
}

static void report(long *times[EMITTERS], int rounds, const size_t sizes[EMITTERS])
{
	printf("{\"rules\": %zu, \"unknown\": %zu", rules.count, rules.unknown);
	for (int e = 0; e < EMITTERS; e++) {
		printf(", \"%s\": {\"instructions\": %zu, \"ns\": [", emitter_names[e], sizes[e]);
		for (int i = 0; i < rounds; i++)
			printf("%s%ld", i ? ", " : "", times[e][i]);
		printf("]}");
	}
	printf("}\n");
}

int main(int argc, char **argv)
{
	long *times[EMITTERS];
	size_t sizes[EMITTERS];
	struct sock_filter *insns;
	int rounds;

	if (argc != 4)
		die("usage: compile_rivals RULES ROUNDS PREFIX | RULES once EMITTER");
	read_rules(argv[1]);
	if (!strcmp(argv[2], "once")) {
		for (int e = 0; e < EMITTERS; e++)
			if (!strcmp(argv[3], emitter_names[e]))
				emit(e, &insns);
		return 0;
	}
	rounds = atoi(argv[2]);
	for (int e = 0; e < EMITTERS; e++) {
		times[e] = calloc(rounds, sizeof(long));
		sizes[e] = keep(e, argv[3]);
	}
	for (int i = 0; i < rounds; i++)
		for (int e = 0; e < EMITTERS; e++) {
			long start;

			emit(e, &insns);
			free(insns);
			start = now();
			emit(e, &insns);
			times[e][i] = now() - start;
			free(insns);
		}
	report(times, rounds, sizes);
	return 0;
}
