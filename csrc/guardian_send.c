/* guardian_send.c - what a guardian tells its manager.
 *
 * Nothing that was promised to the manager is dropped because it cannot be sent now:
 *
 *	full socket, ENOBUFS, ENOMEM, ETOOMANYREFS, ...  stays here, with its listeners,
 *	                                                 and is tried again
 *	the other end is closed                          is dropped; what the manager
 *	                                                 sent before is still read
 *	the manager is dead                              listeners go to their wards
 *
 * Replies are kept in a ring. While that is full no request is read, so a manager
 * that does not read its answers fills its own socket and no memory here.
 */
#define _GNU_SOURCE
#include "guardian.h"

#include <string.h>

/* ------------------------------------------------------------------ one message */

static bool send_now(struct psc_guardian *g, const struct psc_guardian_message *message, const int *fds, size_t n)
{
	int r = psc_guardian_send(g->manager, message, fds, n);

	if (r == 0)
		return true;
	if (r == -EPIPE || r == -ECONNRESET || r == -ENOTCONN)
		g->deaf = true;
	else
		psc_guardian_again(g);
	return false;
}

static bool send_reply(struct psc_guardian *g, const struct psc_reply *reply, const int *fds, size_t n)
{
	const struct psc_guardian_message m = {
		.kind = PSC_GUARDIAN_DONE,
		.serial = reply->serial,
		.ward = reply->ward,
		.error = reply->error,
		.inject = reply->inject,
		.refusal = reply->refusal,
		.tid = reply->tid,
		.manager = reply->manager,
		.wards = reply->wards,
	};

	return send_now(g, &m, fds, n);
}

/* -------------------------------------------------------------------- results */

/* One part: outcomes from work->sent on, as many as their listeners leave room for. */
static bool send_part(struct psc_guardian *g, struct psc_work *work, struct psc_guardian_message *m)
{
	const struct psc_attach_result *result = &work->result;
	int fds[PSC_GUARDIAN_FDS];
	size_t n = 0, at = work->sent;

	m->common_listener = at == 0 && result->listener >= 0;
	if (m->common_listener)
		fds[n++] = result->listener;
	for (m->n_outcomes = 0; at < result->n_threads && m->n_outcomes < psc_array_size(m->outcomes); at++) {
		const struct psc_thread_outcome *from = &result->threads[at];

		m->outcomes[m->n_outcomes].tid = from->tid;
		m->outcomes[m->n_outcomes].filters_before = from->filters_before;
		m->outcomes[m->n_outcomes].filters_after = from->filters_after;
		m->outcomes[m->n_outcomes].listener = from->listener >= 0;
		if (from->listener >= 0)
			fds[n++] = from->listener;
		m->n_outcomes++;
	}
	m->more = at < result->n_threads;
	if (!send_now(g, m, fds, n))
		return false;
	work->sent = at;
	work->told = !m->more;
	return true;
}

static void send_result(struct psc_guardian *g, struct psc_work *work)
{
	const struct psc_attach_result *result = &work->result;
	struct psc_guardian_message m = {
		.kind = work->automatic ? PSC_GUARDIAN_ACTED : PSC_GUARDIAN_DONE,
		.serial = work->serial,
		.ward = work->ward,
		.error = work->r,
		.state = work->state,
		.refusal = result->refusal,
		.pid = result->pid,
		.tid = result->tid,
		.other_tracer = result->other_tracer,
		.stop_ns = result->stop_ns,
		.residue = result->residue,
		.no_new_privs_set = result->no_new_privs_set,
		.suspended = result->suspended,
	};

	while (!work->told && send_part(g, work, &m))
		;
}

/* The manager has the listeners: copies of what is guarded are kept. Returns false if memory is short. */
static bool absorb(struct psc_guardian *g, struct psc_work *work)
{
	struct psc_ward *ward = psc_guardian_find(g, work->ward);

	if (ward && (g->manager < 0 || ward->options.guarded) && psc_ward_take_result(ward, work) < 0) {
		psc_guardian_again(g);
		return false;
	}
	psc_work_close(work);
	return true;
}

static void go_through_unsent(struct psc_guardian *g)
{
	struct psc_work **at = &g->unsent;

	while (*at) {
		struct psc_work *work = *at;

		if (g->manager < 0 || g->deaf)
			work->told = true;
		else if (!work->told)
			send_result(g, work);
		if (!work->told || !absorb(g, work)) {
			at = &work->next;
			continue;
		}
		*at = work->next;
		free(work);
	}
	g->last_unsent = at;
}

void psc_guardian_queue(struct psc_guardian *g, struct psc_work *work)
{
	work->next = NULL;
	*g->last_unsent = work;
	g->last_unsent = &work->next;
}

bool psc_guardian_unsent(const struct psc_guardian *g, uint32_t ward)
{
	for (const struct psc_work *work = g->unsent; work; work = work->next)
		if (work->ward == ward)
			return true;
	return false;
}

void psc_guardian_forget_unsent(struct psc_guardian *g, uint32_t ward)
{
	struct psc_work **at = &g->unsent;

	while (*at) {
		struct psc_work *work = *at;

		if (work->ward != ward) {
			at = &work->next;
			continue;
		}
		*at = work->next;
		psc_work_close(work);
		free(work);
	}
	g->last_unsent = at;
}

/* ------------------------------------------------------------------- handover */

static bool send_ward_part(struct psc_guardian *g, const struct psc_ward *ward)
{
	struct psc_guardian_message m = ward->options;
	int fds[PSC_GUARDIAN_FDS] = { ward->pidfd };
	size_t n = ward->n_listeners - g->next_listener;

	n = n < PSC_GUARDIAN_FDS - 1 ? n : PSC_GUARDIAN_FDS - 1;
	if (n)
		memcpy(fds + 1, ward->listeners + g->next_listener, n * sizeof(*fds));
	m.kind = PSC_GUARDIAN_WARD;
	m.ward = ward->id;
	m.state = ward->state;
	m.n_outcomes = 0;
	m.more = g->next_listener + n < ward->n_listeners;
	if (!send_now(g, &m, fds, n + 1))
		return false;
	g->next_listener += n;
	if (!m.more) {
		g->next_ward++;
		g->next_listener = 0;
	}
	return true;
}

/* No request is read before all of it has been sent, so the wards stay what they are. */
static bool hand_on(struct psc_guardian *g)
{
	const int fds[] = { g->filter_fd, g->journal_fd };

	if (!g->handover_begun) {
		g->handover_begun = send_reply(g, &g->handover, fds, 2);
		return g->handover_begun;
	}
	if (g->next_ward < g->n)
		return send_ward_part(g, &g->wards[g->next_ward]);
	g->handing = false;
	return true;
}

/* ------------------------------------------------------------------------ all */

bool psc_guardian_has_room(const struct psc_guardian *g)
{
	return g->n_replies < PSC_MAX_REPLIES;
}

void psc_guardian_reply(struct psc_guardian *g, struct psc_reply reply)
{
	g->replies[(g->first_reply + g->n_replies++) % PSC_MAX_REPLIES] = reply;
}

void psc_guardian_send_all(struct psc_guardian *g)
{
	if (g->manager < 0)
		return;
	while (!g->deaf && g->handing)
		if (!hand_on(g))
			break;
	while (!g->deaf && !g->handing && g->n_replies && send_reply(g, &g->replies[g->first_reply], NULL, 0)) {
		g->first_reply = (g->first_reply + 1) % PSC_MAX_REPLIES;
		g->n_replies--;
	}
	if (g->deaf) {
		g->handing = false;
		g->n_replies = 0;
	}
	if (!g->handing)
		go_through_unsent(g);
}

void psc_guardian_send_nothing(struct psc_guardian *g)
{
	g->handing = false;
	g->n_replies = 0;
	go_through_unsent(g);
}
