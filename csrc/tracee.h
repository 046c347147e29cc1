/* tracee.h - private: another task under our hands, between stop and release.
 *
 *   visit.c   stop every thread of a process, and let it go again
 *   cave.c    find unused room in its executable memory
 *   inject.c  make one of its threads make system calls
 *   loader.c  have a temporary thread of it load a program
 *   restart.c let threads go whose call resumes by restart_syscall
 *   commit.c  what an attach does with these
 *   attach.c  the process that does it, and what happens before and after
 *
 * All of it runs in the injector (see attach.c), which shares our memory but not
 * our thread: no malloc, no stdio streams (snprintf() is fine), no errno here, only raw system calls.
 */
#ifndef PSC_TRACEE_H
#define PSC_TRACEE_H

#include "internal.h"
#include "psc.h"

#if defined(__x86_64__)
#include "arch/x86_64.h"
#else
#error "no csrc/arch header for this machine"
#endif

#define psc_sys6(nr, a, b, c, d, e, f, ...) \
	psc_raw_syscall(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
/* A raw system call of up to six arguments: >= 0 or -errno. */
#define psc_sys(nr, ...) psc_sys6(nr, ##__VA_ARGS__, 0, 0, 0, 0, 0, 0)

enum psc_tracee_state {
	PSC_TRACEE_RUNNING, /* seized, not stopped yet */
	PSC_TRACEE_STOPPED,
	PSC_TRACEE_DEAD,
	PSC_TRACEE_WORKER, /* not seized: a thread that the kernel made, see psc_visit_is_worker() */
	PSC_TRACEE_LEFT, /* released, but traced until this tracer exits: see restart.c */
};

#define PSC_SEIZE_OPTIONS (PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC)
#define PSC_ERESTART_RESTARTBLOCK 516 /* of the kernel, for tracers to see */

struct psc_tracee {
	pid_t tid;
	enum psc_tracee_state state;
	bool group_stop;    /* stopped for its process's stop, not by us alone */
	bool masked;	    /* its signals are blocked by us; sigmask has the real mask */
	bool injected;	    /* its registers are in our code, which must stay */
	uint64_t sigmask;
	int filters;	    /* in its chain before anything was changed; -1: not asked */
	struct psc_regs regs; /* as it was stopped, to be put back unmodified */
};

/* One process being visited. */
struct psc_visit {
	pid_t tgid;
	pid_t only;	    /* stop this thread alone; 0: all of them */
	int mem;	    /* /proc/TGID/mem */
	int tasks;	    /* /proc/TGID/task */
	uint64_t deadline;  /* CLOCK_MONOTONIC, ns */
	uint64_t since;	    /* when the first thread was interrupted; 0: none was */
	bool own_signals;   /* the visitor is a process of its own and may use timers */
	int timer;	    /* the one that runs, if it does */

	struct psc_tracee *tracees;
	size_t n, size;
	bool workers;	    /* it may have threads that the kernel made: look, and leave them alone */
	pid_t seizing;	    /* a seize is under way (read by the timer's handler) */
	bool execed;	    /* it has executed another program since it was seized */
	bool stop_signal;   /* a SIGSTOP was held back */
	pid_t dying;	    /* a loader to be reaped, see psc_loader_leave() */
	pid_t blamed;	    /* the thread that a failure is about, 0: none */
	pid_t other_tracer; /* which traces blamed */
	unsigned long options; /* PTRACE_O_* wanted beside the usual, once stopped */
};

/* Is it in a frozen cgroup of v2? There it can be stopped, but nothing that it is then
 * made to execute runs before it is thawed. */
bool psc_visit_is_frozen(pid_t pid);

/* Is a thread one that the kernel made for the process, for io_uring or vhost? It never runs
 * code of the process and makes no system call. A stop fails its requests with EINTR, and an
 * injected call would wait for ever. TSYNC reaches it, stopped or not. */
bool psc_visit_is_worker(pid_t tid);

/* A file of /proc/PID as a string, cut where it is too long. The length, or -errno. */
PSC_MUST_CHECK long psc_read_proc(pid_t pid, const char *name, char *text, size_t size);

/* The state letter of proc_pid_stat(5), 't' in a ptrace-stop; 0: no such task. */
char psc_task_letter(pid_t tid);

/* Seize and stop all threads, until a whole scan finds no unknown one. On
 * failure call psc_visit_release() all the same. -EBUSY: other_tracer holds
 * blamed. -EPERM, -ESRCH. -ETIMEDOUT: blamed would not stop. */
PSC_MUST_CHECK int psc_visit_stop(struct psc_visit *visit);

/* Seize and interrupt those that a look finds, and do not wait: so many processes can be
 * on their way to a stop at once, which psc_visit_stop() then waits for. Errors as there. */
PSC_MUST_CHECK int psc_visit_begin_stop(struct psc_visit *visit);

/* Let the threads run again, seized still; a thread in a group-stop stays in it. A call that
 * resumes by restart_syscall is passed as by psc_restart_step(), so syscall-stops may follow.
 * -errno: one of them could not be resumed, see psc_tracee_go_on(); release them. */
PSC_MUST_CHECK int psc_visit_resume(struct psc_visit *visit);

/* Interrupt those that run, for psc_visit_stop(). */
void psc_visit_interrupt(struct psc_visit *visit);

/* Resume a thread from a stop that is not the wanted one, so that it stops soon again. */
void psc_visit_stop_again(struct psc_visit *visit, pid_t tid, int status);

/* The timer that wakes blocking waits, to look at the clock. psc_visit_stop() begins
 * it; a caller that waits long, or stops many, can end it and begin it again. */
PSC_MUST_CHECK int psc_visit_start_timer(struct psc_visit *visit);
void psc_visit_stop_timer(struct psc_visit *visit);

/* Take note of a thread that is traced already. -ENOMEM. */
PSC_MUST_CHECK int psc_visit_add(struct psc_visit *visit, pid_t tid);

/* Let all threads go, each as it was. The list of them stays. Threads that become
 * PSC_TRACEE_LEFT are detached by the exit of the calling thread or process: it must exit
 * soon, and without PTRACE_O_EXITKILL set on others. */
void psc_visit_release(struct psc_visit *visit);

/* Free the list. */
void psc_visit_destroy(struct psc_visit *visit);

/* Wait for one stop or the death of a thread; *ret_status as wait(2) has it. */
PSC_MUST_CHECK int psc_visit_wait(struct psc_visit *visit, pid_t tid, int *ret_status);

struct psc_tracee *psc_visit_find(struct psc_visit *visit, pid_t tid);

/* The signal that a stop is about, to be passed on; 0 for all stops but a signal's. */
int psc_stop_signal(int status);

/* Does the thread of these registers go on by restart_syscall(2) when it is resumed? */
bool psc_restart_is_pending(const struct psc_regs *regs);

/* Does the program break restart_syscall, by a kill, an errno or a trap, for tasks of this ABI? */
bool psc_restart_is_denied(const struct sock_filter *insns, size_t len, const struct psc_abi *abi);

enum psc_restart {
	PSC_RESTART_NONE,	/* nothing done: resume or detach the thread, with psc_stop_signal() */
	PSC_RESTART_UNDER_WAY,	/* resumed; it stops again before it executes anything of its own */
	PSC_RESTART_ENTERED,	/* resumed into restart_syscall, filters suspended until the syscall-exit-stop */
	PSC_RESTART_LOST,	/* it could not be resumed, and is detached: see psc_tracee_go_on() */
};

/* At a stop of a thread, status as of wait(2): if it is about to call restart_syscall and its
 * filters forbid that, take it one step further. The same is to be called at each stop that
 * follows. options: PTRACE_O_* that the thread shall have. */
enum psc_restart psc_restart_step(pid_t tid, int status, unsigned long options);

/* Release a thread at a stop, status as of wait(2): detach it, unless it must be left to the
 * exit of this tracer, as PSC_TRACEE_LEFT. */
void psc_restart_let_go_from(struct psc_tracee *tracee, int status);

/* Of psc_visit_release(): the stopped threads that were in such a call. */
void psc_restart_let_go(struct psc_visit *visit);

/* May this process suspend the filters of a target? */
bool psc_restart_may_suspend(void);

/* Unused zero bytes at the end of a private executable mapping. */
struct psc_cave {
	uint64_t address;
	size_t size;
	bool vdso;
};

/* Find a cave of at least size bytes below limit, in the vDSO if that has it. tid
 * is any live thread: an exited leader has no memory to look at. Mappings of files are
 * searched if the threads are stopped, where they can drop no page; and only pages that are
 * in memory, because the file system that would be asked for another can be one that never answers.
 * -ENOSPC: there is none; *ret_cave is then the largest one (size 0: none). */
PSC_MUST_CHECK int psc_cave_find(pid_t tid, int mem, size_t size, uint64_t limit, bool stopped,
				 struct psc_cave *ret_cave);

/* Are these bytes of a stopped target in memory, so that to read them asks no file system? */
bool psc_memory_is_present(pid_t tid, uint64_t address, size_t size);

/* Is the cave still there, executable and all zero? */
PSC_MUST_CHECK int psc_cave_check(pid_t tid, int mem, const struct psc_cave *cave);

/* Write memory of a stopped target, read-only pages too. */
PSC_MUST_CHECK int psc_tracee_write(struct psc_visit *visit, struct psc_tracee *tracee, uint64_t address,
				    const void *data, size_t size);

/* Code in the cave, made for one thread:
 *
 *   main:     [prctl] seccomp [close] [munmap], or a loader's, see loader.c
 *   call:     one system call instruction, arguments in registers
 *   restore:  [rt_sigprocmask], all registers back, go on as if nothing had been
 *
 * Whatever the thread is set to execute here runs to the end by itself: if the
 * injector is killed the kernel detaches, and the thread completes the call,
 * puts its registers back and continues. */
struct psc_site {
	uint64_t main, call, end;
	uint64_t fprog;	    /* what main says to seccomp() */
	uint32_t flags;
	bool no_new_privs;
};

/* What main does. Zero data means: only call and restore are wanted. */
struct psc_script {
	uint64_t data;	    /* address of the program in the target */
	uint64_t fprog;	    /* address of its struct sock_fprog */
	uint32_t flags;	    /* of seccomp() */
	bool no_new_privs;
	bool close_listener, unmap, unmask;
	uint64_t map, map_size;
	bool loader;	    /* a temporary thread does it */
};

/* Write the code into the cave. -ENOSPC: it does not fit. */
PSC_MUST_CHECK int psc_site_build(struct psc_visit *visit, struct psc_tracee *tracee, const struct psc_cave *cave,
				  const struct psc_script *script, struct psc_site *ret_site);

/* A ptrace request on a stopped thread, repeated some times if it fails. >= 0 or -errno. */
long psc_tracee_request(long what, pid_t tid, uint64_t address, uint64_t data);

/* Resume a stopped thread by PTRACE_CONT, PTRACE_SYSCALL or PTRACE_LISTEN. A thread that cannot be
 * resumed is detached: whatever fails, it must not stay stopped. 0: it runs, or it was killed.
 * -errno: it is not traced any more; if even the detach failed, only the exit of its tracer lets it go. */
PSC_MUST_CHECK int psc_tracee_go_on(long how, pid_t tid, int signal);

/* Detach a stopped thread. If that fails it runs on, and the exit of its tracer does not kill it. */
void psc_tracee_detach(pid_t tid, int signal);

/* Block its signals until psc_tracee_restore(). Comes before all that follows. */
PSC_MUST_CHECK int psc_tracee_block_signals(struct psc_tracee *tracee);

/* Most bytes that psc_site_build() needs. */
#define PSC_SITE_SIZE 384

/* A result that only tracers see: the call is made again by itself. */
#define PSC_ERESTARTNOINTR 513

/* Have the thread make one call. *ret_result is what it returned, an error of
 * the call itself included. listener >= 0: the call may be notified there and is
 * continued. -EFAULT: the thread could not execute the call (it is back at its
 * site's mercy: restore it). -ESRCH: it died. */
PSC_MUST_CHECK int psc_tracee_call(struct psc_visit *visit, struct psc_tracee *tracee, const struct psc_site *site,
				   int listener, long nr, const uint64_t args[6], long *ret_result);

/* Have it run main up to the return of seccomp(). */
PSC_MUST_CHECK int psc_tracee_run_main(struct psc_visit *visit, struct psc_tracee *tracee,
				       const struct psc_site *site, long *ret_result);

/* The stop that a thread is resumed to. */
enum psc_stop {
	PSC_STOP_SYSCALL, /* the entry or the exit of its next system call */
	PSC_STOP_CLONE,   /* the same, or the birth of a thread: 1 */
	PSC_STOP_TRAP,    /* that of an interrupt, made pending first: at the end of the call that it is in */
};

/* Resume a thread that executes a site's code, until that stop. Errors as psc_tracee_call(). */
PSC_MUST_CHECK int psc_tracee_resume(struct psc_visit *visit, struct psc_tracee *tracee, const struct psc_site *site,
				     enum psc_stop wanted);

/* The same in two steps; in between its state is PSC_TRACEE_RUNNING. */
PSC_MUST_CHECK int psc_tracee_start(struct psc_tracee *tracee, enum psc_stop wanted);
PSC_MUST_CHECK int psc_tracee_await(struct psc_visit *visit, struct psc_tracee *tracee, const struct psc_site *site,
				    enum psc_stop wanted);

/* The registers of a stopped thread. A request that fails is repeated: a failure that passes must not
 * leave a thread in our code. */
PSC_MUST_CHECK int psc_tracee_get_regs(const struct psc_tracee *tracee, struct psc_regs *ret_regs);
PSC_MUST_CHECK int psc_tracee_set_regs(struct psc_tracee *tracee, const struct psc_regs *regs);

/* A thread with the target's memory and handlers, and a copy of its descriptors. */
#define PSC_LOADER_CLONE_FLAGS (CLONE_VM | CLONE_FS | CLONE_SIGHAND | CLONE_THREAD)

/* Have the thread run main, made with script.loader, up to the birth of a thread, which then
 * stands before its first instruction as *ret_loader. Options are its PTRACE_O_*. The maker is on
 * its way to PSC_STOP_TRAP, to be awaited if its state is PSC_TRACEE_RUNNING.
 * 1: clone() failed with *ret_error; there is no loader. Else as psc_tracee_call(). If
 * ret_loader->injected is set, end the loader. */
PSC_MUST_CHECK int psc_loader_start(struct psc_visit *visit, struct psc_tracee *tracee, const struct psc_site *site,
				    unsigned long options, struct psc_tracee *ret_loader, long *ret_error);

/* Run the loader to the end of seccomp(), where it stands with its descriptors still open.
 * *ret_result is what seccomp() returned. -ESRCH: it died. */
PSC_MUST_CHECK int psc_loader_run(struct psc_visit *visit, struct psc_tracee *loader, const struct psc_site *site,
				  long *ret_result);

/* Take a loader that has loaded its program into exit(), from which no thread returns, and let it go on
 * into its death; then, when its process runs again, wait for that. An exec of the process waits for it, too. */
PSC_MUST_CHECK int psc_loader_leave(struct psc_visit *visit, struct psc_tracee *loader, const struct psc_site *site);
void psc_loader_reap(struct psc_visit *visit);

/* Wait for its death. One that has not run ends without having loaded anything. The code that it
 * runs may be removed only if loader->injected is false then. */
PSC_MUST_CHECK int psc_loader_end(struct psc_visit *visit, struct psc_tracee *loader, const struct psc_site *site);

/* The next call that the thread enters is this one, by its registers. A process that can write to its
 * memory decides nothing by rewriting the code: neither what is called nor with what. */
PSC_MUST_CHECK int psc_tracee_enter_call(struct psc_visit *visit, struct psc_tracee *tracee, const struct psc_site *site,
					 long nr, int n, const uint64_t *args);

/* The same for seccomp(), and for prctl() before it, which is passed. */
PSC_MUST_CHECK int psc_tracee_enter_seccomp(struct psc_visit *visit, struct psc_tracee *tracee,
					    const struct psc_site *site);

/* Put registers and signal mask back. */
PSC_MUST_CHECK int psc_tracee_restore(struct psc_visit *visit, struct psc_tracee *tracee);

/* A thread in a restartable sequence is to be restored at its abort handler: the
 * kernel, which would have sent it there, sees only the cave's addresses. */
void psc_tracee_abort_rseq(struct psc_visit *visit, struct psc_tracee *tracee);

#endif
