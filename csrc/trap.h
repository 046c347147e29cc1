/* trap.h - private: the SIGSYS of SECCOMP_RET_TRAP, given from outside. */
#ifndef PSC_TRAP_H
#define PSC_TRAP_H

#include "psc.h"

/* Answer a notification as the kernel answers SECCOMP_RET_TRAP: the call is not made,
 * the thread gets SIGSYS with the kernel's siginfo and registers. Call it with all
 * signals blocked, in a process of one thread; neither allocates nor uses stdio streams.
 * -EADDRINUSE: its SIGSYS is blocked or ignored, so the kernel would have killed it;
 * nothing was done. Other errors: it could not be done (-EPERM: not permitted, or
 * traced by another); the call may still wait. Waits (shortly). */
PSC_MUST_CHECK int psc_trap(int listener, const struct seccomp_notif *n, uint32_t data);

#endif
