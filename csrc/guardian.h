/* guardian.h - private: the parts of the guardian.
 *
 *	guardian.c        what it does, and when: the loop, requests, the manager's death
 *	guardian_send.c   what the manager is told, and keeps it until it has been sent
 *	guardian_guest.c  clients of the named socket
 *	guardian_work.c   the threads that filter targets
 *	ward.c            one target: filter it, kill it, answer for it
 *
 * The main thread never waits for a peer: its sockets are non-blocking, what a peer
 * can make it keep is bounded, and every refusal of the kernel that may pass
 * (ENOMEM, ENOBUFS, EMFILE, ETOOMANYREFS, ...) is tried again at g->retry_at.
 */
#ifndef PSC_GUARDIAN_H
#define PSC_GUARDIAN_H

#include "internal.h"
#include "psc.h"

#include <pthread.h>

/* ---------------------------------------------------------------- targets */

/* An attempt to filter a ward, made in another thread; afterwards its result, which
 * owns the listeners until the manager has been sent them. */
struct psc_work {
	struct psc_work *next;
	uint32_t ward, serial;
	bool automatic; /* no request: try for timeout_ns, then kill */
	bool told;	/* the manager has all of it, or is dead */
	size_t sent;	/* how many outcomes it was sent */
	int pidfd;	/* the ward's; it is kept open while the ward is busy */
	struct psc_guardian_message options;
	struct psc_filter filter; /* the guardian's, which outlives it */
	enum psc_ward_state state;
	int r;
	struct psc_attach_result result;
};

/* Do it. Waits. */
void psc_work_run(struct psc_work *work);

/* Close the listeners of its result, and free that. */
void psc_work_close(struct psc_work *work);

/* One target. Owns its descriptors. */
struct psc_ward {
	uint32_t id;
	int pidfd;
	enum psc_ward_state state;
	bool busy; /* a worker filters it now */
	bool settled; /* after the manager's death: nothing is left to be done at once */
	struct psc_guardian_message options;
	struct psc_work *spare; /* for the deadline, which must not fail for want of memory */
	int *listeners;
	size_t n_listeners;
};

void psc_ward_destroy(struct psc_ward *ward);

/* Take over descriptors. -ENOMEM: they are still the caller's. */
PSC_MUST_CHECK int psc_ward_add_listeners(struct psc_ward *ward, const int *fds, size_t n);

/* Take over the listeners of a result, all or (-ENOMEM) none. */
PSC_MUST_CHECK int psc_ward_take_result(struct psc_ward *ward, struct psc_work *work);

/* True if this process may filter the target, as far as can be known before. */
bool psc_ward_can_inject(const struct psc_ward *ward);

/* 0, or -errno with *ret_refusal and *ret_tid: why this process could not filter the target, as it is now. The
 * same would hold at the deadline: filters and strict mode are never left. */
PSC_MUST_CHECK int psc_ward_foresee(const struct psc_ward *ward, const struct psc_filter *filter,
				    enum psc_refusal *ret_refusal, pid_t *ret_tid);

/* Receive one notification without waiting longer than some milliseconds, and
 * answer it. -ENOENT: none is there any more. -ESHUTDOWN: no task is left under the listener. */
PSC_MUST_CHECK int psc_ward_answer_one(int listener, const struct psc_answer *answer);

/* Answer what the dead manager received under these listeners and left unanswered. */
void psc_ward_answer_orphans(const struct psc_ward *ward, struct psc_journal *journal);

/* SIGALRM comes every few milliseconds until it is stopped: no call waits longer. */
void psc_alarm_start(void);
void psc_alarm_stop(void);

/* ------------------------------------------------------------ guardian_work.c */

/* One thread always lives, so work can be late but never impossible; more are made
 * while all are busy. bell is an eventfd: something is done. */
struct psc_workers {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct psc_work *waiting, **last;
	struct psc_work *done;
	unsigned int threads, idle, n_waiting;
	bool stopping;
	int bell;
};

void psc_workers_init(struct psc_workers *workers);
/* -EAGAIN, -ENOMEM, -EMFILE: the first thread or the bell cannot be made. */
PSC_MUST_CHECK int psc_workers_start(struct psc_workers *workers);
void psc_workers_add(struct psc_workers *workers, struct psc_work *work);
/* What is done; read the bell first. */
struct psc_work *psc_workers_collect(struct psc_workers *workers);
/* When nothing is under way. Waits for the threads to end. */
void psc_workers_stop(struct psc_workers *workers);

/* ------------------------------------------------------------------- guardian */

#define PSC_MAX_GUESTS 64
#define PSC_MAX_REPLIES 256

struct psc_reply {
	uint32_t serial, ward;
	int32_t error;
	bool inject;
	enum psc_refusal refusal; /* of WATCH */
	pid_t tid;
	int32_t manager;
	uint32_t wards;
};

struct psc_guest {
	int fd;
	pid_t pid;
	int64_t until;
	bool answering;
	struct psc_reply answer;
};

enum psc_source { SOURCE_MANAGER, SOURCE_DEATH, SOURCE_NAMED, SOURCE_GUEST, SOURCE_WORK, SOURCE_LISTENER };

struct psc_guardian {
	int epoll;
	bool polling; /* epoll was refused */
	int start_error; /* what kept it from beginning; HELLO is answered with it */
	struct psc_workers workers;
	size_t working;

	int manager; /* connection, -1: dead */
	int manager_pidfd;
	pid_t manager_pid; /* 0: not asked yet */
	bool hearing;	   /* the connection is in the epoll set */
	bool deaf;	   /* its other end is closed: what it sent before is still read */
	bool paused;	   /* the kernel refused to receive: until retry_at */

	int named;
	bool admitting; /* it is in the epoll set */
	int filter_fd, journal_fd;
	struct psc_filter filter;
	struct psc_journal *journal; /* only while the manager is dead */
	bool greeted, leave;
	struct psc_ward *wards;
	size_t n, size;

	struct psc_guest guests[PSC_MAX_GUESTS];
	size_t n_guests;

	struct psc_reply replies[PSC_MAX_REPLIES]; /* a ring */
	size_t first_reply, n_replies;
	struct psc_work *unsent, **last_unsent;
	bool handing; /* the filter and all wards, to a new manager */
	struct psc_reply handover;
	bool handover_begun;
	size_t next_ward, next_listener;

	int64_t retry_at; /* -1: nothing was refused */
	int64_t retry_ns;
	size_t turn; /* where poll() looks first, if it is needed */
};

void psc_guardian_watch(struct psc_guardian *g, enum psc_source source, int fd, uint32_t events);
void psc_guardian_unwatch(struct psc_guardian *g, int fd);

/* Something was refused: have the loop try everything again soon. */
void psc_guardian_again(struct psc_guardian *g);
struct psc_ward *psc_guardian_find(struct psc_guardian *g, uint32_t id);

/* guardian_send.c */
bool psc_guardian_has_room(const struct psc_guardian *g); /* for one more reply */
void psc_guardian_reply(struct psc_guardian *g, struct psc_reply reply);
void psc_guardian_queue(struct psc_guardian *g, struct psc_work *work);
void psc_guardian_send_all(struct psc_guardian *g); /* as much as goes now */
void psc_guardian_forget_unsent(struct psc_guardian *g, uint32_t ward);
bool psc_guardian_unsent(const struct psc_guardian *g, uint32_t ward);
/* The manager is dead: nothing is to be sent; what belongs to wards goes to them. */
void psc_guardian_send_nothing(struct psc_guardian *g);

/* guardian_guest.c */
void psc_guests_admit(struct psc_guardian *g);
void psc_guests_hear(struct psc_guardian *g, int fd);
void psc_guests_retry(struct psc_guardian *g);
void psc_guests_expire(struct psc_guardian *g, int64_t now);
int64_t psc_guests_next(const struct psc_guardian *g); /* -1: none is there */
void psc_guests_drop_all(struct psc_guardian *g);

/* Make a guest the manager. -EBUSY: there is one. */
PSC_MUST_CHECK int psc_guardian_hand_over(struct psc_guardian *g, int fd, const struct psc_reply *reply);
pid_t psc_guardian_manager_pid(struct psc_guardian *g);

#endif
