/* A 32-bit program (built with -m32). "busy": spins with known values in the registers and sees any that changes.
 * "sleep": waits in nanosleep for 400 ms and reports how late that ended. */
#include "victim.h"

static int spin_round32(uint32_t *seed)
{
	uint32_t in[4], out[4], flags, count = 0;
	uint32_t *source = in, *target = out;

	for (int i = 0; i < 4; i++)
		in[i] = *seed = *seed * 1664525 + 1013904223;
	__asm__ volatile("	pushl %%ebp\n"
			 "	pushl %[out]\n"
			 "	movl (%[in]), %%eax\n	movl 8(%[in]), %%edi\n	movl 12(%[in]), %%ebp\n"
			 "	movl 4(%[in]), %%esi\n"
			 "	movl $0, %%edx\n"
			 "	movl $300000, %%ecx\n"
			 "	stc\n"
			 "1:	leal 1(%%edx), %%edx\n"
			 "	leal -1(%%ecx), %%ecx\n"
			 "	jecxz 2f\n"
			 "	jmp 1b\n"
			 "2:	popl %%ecx\n"
			 "	movl %%eax, (%%ecx)\n	movl %%esi, 4(%%ecx)\n	movl %%edi, 8(%%ecx)\n"
			 "	movl %%ebp, 12(%%ecx)\n"
			 "	popl %%ebp\n"
			 "	pushfl\n"
			 "	popl %%eax\n"
			 : "=&a"(flags), "=&d"(count), [in] "+S"(source), [out] "+c"(target)
			 :
			 : "edi", "memory", "cc");
	return memcmp(in, out, sizeof(in)) != 0 || count != 300000 || !(flags & 1);
}

static void busy(void)
{
	long rounds = 0, bad = 0;
	uint32_t seed = 1;

	say("ready");
	for (;;) {
		rounds++;
		if (spin_round32(&seed))
			bad++;
		if (heard())
			say("rounds=%ld bad=%ld probe=%d", rounds, bad, probe());
	}
}

int main(int argc, char **argv)
{
	struct timespec t = { .tv_nsec = 400000000 };
	int64_t start;
	int r;

	if (argc > 1 && strcmp(argv[1], "busy") == 0)
		busy();
	say("ready");
	start = now_ns();
	r = nanosleep(&t, NULL) ? errno : 0;
	say("errno=%d late_us=%ld probe=%d", r, (long)((now_ns() - start - t.tv_nsec) / 1000), probe());
	hear();
}
