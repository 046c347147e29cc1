/* signal_tick.h - private: let an interpreter hear signals while a loop in C receives. */
#ifndef PSC_SIGNAL_TICK_H
#define PSC_SIGNAL_TICK_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

/* True once a tick reached this thread, until the next psc_signal_tick_arm() or psc_signal_tick_only(). */
extern __thread volatile sig_atomic_t psc_signal_ticked __attribute__((tls_model("initial-exec")));

/* Have the wake-up signal interrupt this thread once, after ns nanoseconds, unless a tick is under way
 * already. Where the kernel gives no timer, or after psc_signal_tick_forbid(), no tick comes. */
void psc_signal_tick_arm(int wake_signal, int64_t ns);

/* After psc_signal_tick_arm(): no tick is to come any more, for it would interrupt what the thread does
 * next, such as pause(). Between begin and end the loop's own ticks go on. */
void psc_signal_tick_disarm(void);

/* For a loop that must not return for a tick alone: signals is a pipe into which the interpreter's
 * handlers write (-1: none). Ticks come until psc_signal_tick_end(). */
void psc_signal_tick_begin(int wake_signal, int signals);
void psc_signal_tick_end(void);

/* Of a loop that was interrupted, between begin and end: was it by a tick, and does no signal wait to
 * be heard? The next tick is armed then. */
bool psc_signal_tick_only(void);

/* The process has loaded a filter into itself, which may kill it for arming a timer. */
void psc_signal_tick_forbid(void);
bool psc_signal_tick_is_forbidden(void);

/* For the handler of the wake-up signal, and for the child of a fork(), which has no timers. */
void psc_signal_tick_came(void);
void psc_signal_tick_forget(void);

#endif
