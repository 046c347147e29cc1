/* group.h - private: many processes under our hands at once, between group.c (stop
 * all, check all, filter all) and group_scan.c (who belongs to them). */
#ifndef PSC_GROUP_H
#define PSC_GROUP_H

#include "attach.h"

#define PSC_PID_LIMIT (1 << 22) /* the kernel's PID_MAX_LIMIT */

struct psc_member {
	struct psc_member *next;
	pid_t pid, parent;
	unsigned int seen; /* the number of the last scan that showed it */
	enum {
		PSC_MEMBER_NEW,     /* seen, perhaps seized, not stopped yet */
		PSC_MEMBER_STOPPED,
		PSC_MEMBER_OUT,	    /* left alone: it refused or died; outcome says so */
		PSC_MEMBER_FORGOTTEN, /* never was one: dead before it stopped, or somebody else */
	} state;
	bool filtered, failed; /* failed: when there was no way back any more */
	int outcome;
	int pidfd;
	struct psc_attach_options options;
	struct psc_attach_result result;
	struct psc_task_state leader;
	struct psc_job job;
};

struct psc_group {
	const struct psc_group_options *options;
	struct psc_job common;		 /* what all members begin with */
	struct psc_member *first, *last; /* in the order they were seen: parents before children */
	struct psc_member **by_pid;	 /* PSC_PID_LIMIT of them; memory is taken where it is used */
	struct psc_member *blamed;
	enum psc_refusal refusal;	 /* if refused, with outcome */
	bool refused;
	bool may_suspend;		 /* psc_restart_may_suspend() */
	const struct psc_abi *denies_restart; /* the program does, for tasks of this ABI; NULL */
	pid_t injector;
	unsigned int scans;
	unsigned int found; /* by the last scan */
	bool left_out;	    /* somebody is, so there may be new ones for ever */
	uint64_t deadline, stop_ns;
	int outcome; /* 0 or -errno; before the injector ends: -EINTR */
};

/* Refuse all. member: who is the reason, or NULL. Returns error. */
int psc_group_refuse(struct psc_group *group, struct psc_member *member, enum psc_refusal why, int error);

struct psc_member *psc_group_find(const struct psc_group *group, pid_t pid);

/* Look once who belongs to the group now. Unknown ones become members, counted in
 * group->found. -errno: refused. */
PSC_MUST_CHECK int psc_group_scan(struct psc_group *group);

/* 1: the stopped member belongs to the tree; its number was not used again since it was found. 0: it does not.
 * -errno: it could not be looked at. */
PSC_MUST_CHECK int psc_group_is_descendant(const struct psc_group *group, const struct psc_member *member);

#endif
