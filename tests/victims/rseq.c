/* Restartable sequences as glibc registers them: several threads add to per-CPU counters without any lock or
 * atomic instruction. Each addition dwells inside its sequence, so a stop falls there more often than not; the
 * kernel must abort the sequence then. One that is continued instead loses additions of the others: the sum of the
 * counters falls behind what the threads counted for themselves. */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/rseq.h>
#include "victim.h"

#define THREADS 6
#define MAX_CPUS 1024

static struct {
	long n;
} __attribute__((aligned(64))) counters[MAX_CPUS];
static atomic_long added, aborted;
static atomic_int running, pausing;

/* True if the sequence was committed on that CPU. */
__attribute__((noinline)) static bool add_on(struct rseq *rs, uint32_t cpu)
{
	__asm__ goto volatile(".pushsection __rseq_cs, \"aw\"\n"
			      "	.balign 32\n"
			      "3:	.long 0, 0\n"
			      "	.quad 1f, 2f - 1f, 4f\n"
			      ".popsection\n"
			      "	leaq 3b(%%rip), %%rax\n"
			      "	movq %%rax, %[rseq_cs]\n"
			      "1:	cmpl %[cpu], %[cpu_id]\n"
			      "	jnz 4f\n"
			      "	movq %[counter], %%rax\n"
			      "	movl $2000, %%ecx\n"
			      "5:	decl %%ecx\n"
			      "	jnz 5b\n"
			      "	incq %%rax\n"
			      "	movq %%rax, %[counter]\n"
			      "2:	jmp 6f\n"
			      "	.long 0x53053053\n"
			      "4:	jmp %l[abort]\n"
			      "6:\n"
			      :
			      : [rseq_cs] "m"(rs->rseq_cs), [cpu_id] "m"(rs->cpu_id), [cpu] "r"(cpu),
				[counter] "m"(counters[cpu].n)
			      : "rax", "rcx", "memory", "cc"
			      : abort);
	return true;
abort:
	return false;
}

static void *adder(void *arg)
{
	struct rseq *rs = (void *)((char *)__builtin_thread_pointer() + __rseq_offset);

	running++;
	for (;;) {
		if (add_on(rs, ((volatile struct rseq *)rs)->cpu_id_start))
			added++;
		else
			aborted++;
		if (!pausing)
			continue;
		running--;
		while (pausing)
			usleep(100);
		running++;
	}
	return arg;
}

static void report(void)
{
	long sum = 0;

	pausing = 1;
	while (running)
		usleep(100);
	for (int i = 0; i < MAX_CPUS; i++)
		sum += counters[i].n;
	say("added=%ld lost=%ld aborted=%ld probe=%d", added, added - sum, aborted, probe());
	pausing = 0;
	while (running < THREADS)
		usleep(100);
}

int main(void)
{
	pthread_t t;

	if (__rseq_size == 0) {
		say("no rseq");
		return 77;
	}
	for (int i = 0; i < THREADS; i++)
		if (pthread_create(&t, NULL, adder, NULL))
			die("pthread_create");
	while (running < THREADS)
		usleep(100);
	say("ready");
	for (;;) {
		hear();
		report();
	}
}
