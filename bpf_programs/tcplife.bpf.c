// SPDX-License-Identifier: GPL-2.0-only
/* tcplife: one event per finished TCP session. Front-end: netbpf/tools/tcplife.py */
#include "sessions.bpf.h"
#include <netbpf/records.h>
#include "idle.bpf.h"
#include "resets.bpf.h"
#include "sockmap.bpf.h"

/* Fill in what is known of a session that is in `state`, or was before CLOSE. */
static inline void fill(struct session *ev, struct sock *sk, struct session_state *session,
			struct owner *owner, int state)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct endpoints ends = {};
	struct volume volume = {};

	read_endpoints(sk, &ends);
	ev->time = bpf_ktime_get_ns();
	read_volume(&volume, sk, session, state);
	ev->tx_bytes = volume.written;
	ev->tx_unacked = volume.unacked;
	ev->rx_bytes = volume.received;
	ev->retrans = READ(tp, total_retrans);
	ev->srtt_us = READ(tp, srtt_us) >> 3;
	ev->handshake_us = session->handshake_ns ? session->handshake_ns : UNKNOWN;
	ev->duration_us = age_of(session, ev->time);
	ev->role = session->role;
	ev->age_us = ev->idle_us = ev->rx_unread = ev->tx_unsent = UNKNOWN;
	SET_OWNER(ev, owner);
	SET_ENDS(ev, &ends);
}

static inline void finish(struct sock *sk, struct session_state *session, struct owner *current,
			  int state)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	u64 now = bpf_ktime_get_ns(), key = (u64)sk, left;
	struct session ev = {};

	amendable.delete(&key); /* of an earlier session at this address */
	if (sent_nothing(tp, state))
		return; /* no port was free, or Fast Open waited for data: there was no session */
	/* No packet and no timer: its owner closes it, or its listener does. */
	if (session->rst || READ(sk, sk_err))
		__builtin_memset(current, 0, sizeof(*current));
	if (!current->how)
		find_owner(sk, current);
	if (!pass_owner(current))
		return;
	if (state == TCP_SYN_SENT) { /* the handshake failed */
		left = syn_left(tp, session, now);
		session->handshake_ns = left ? now - left : 0;
	}
	fill(&ev, sk, session, current, state);
	ev.close = end_of_session(sk, session, state);
	ev.state = TCP_CLOSE;
	ev.key = may_reset(tp, session, state) ? ev.time & ~(u64)AMENDMENT : 0;
	if (emit(&ev, sizeof(ev)) && ev.key)
		amendable.update(&key, &ev.key);
}

static inline void on_close(struct sock *sk, u64 key, struct owner *current, int oldstate)
{
	struct session_state session = {}, *known = sessions.lookup(&key);

	if (known) {
		session = *known;
		sessions.delete(&key);
	}
	finish(sk, &session, current, oldstate);
	forget_owner(sk);
}

static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
	struct owner current = {};
	u64 key = (u64)sk;

	if (newstate == TCP_LISTEN)
		return 0;
	if (!pass_ends(sk)) {
		/* Ends that were not set at the first change of state are set after the next one. */
		if (oldstate == TCP_SYN_SENT || oldstate == TCP_SYN_RECV) {
			sessions.delete(&key);
			forget_owner(sk);
		}
		return 0;
	}
	if (READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	if (oldstate == TCP_LISTEN) {
		/* The owner of the listener, or of an earlier socket at the child's address. */
		forget_owner(sk);
		if (newstate == TCP_SYN_RECV)
			on_child(sk, key);
		return 0;
	}
	/* Called once: the verifier follows each path through a filter by name. */
	if (is_by_owner(sk, oldstate, newstate))
		owner_from_current(&current);
	if (newstate == TCP_SYN_SENT)
		on_connect(sk, key, &current);
	else if (newstate == TCP_ESTABLISHED)
		on_established(sk, key, oldstate);
	else if (newstate == TCP_CLOSE_WAIT || newstate == TCP_CLOSING)
		on_remote_fin(sk, oldstate, newstate);
	else if (newstate == TCP_CLOSE)
		on_close(sk, key, &current, oldstate);
	else if (current.how)
		set_owner(sk, &current);
	return 0;
}

static inline void fill_open(struct session *ev, struct sock *sk, struct session_state *session)
{
	struct idleness idle = {};

	read_idleness(&idle, sk, ev->state);
	ev->idle_us = idle.idle_ns;
	ev->rx_unread = idle.unread;
	ev->tx_unsent = idle.unsent;
	ev->age_us = session->begin_ns ? ev->time - session->begin_ns : idle.age_ns;
	if (ev->duration_us != UNKNOWN)
		ev->age_us = ev->duration_us;
}

/* Sessions that are still open: every TCP socket in a file table. */
static inline int on_open(struct task_file_context *ctx, struct task_struct *task, struct sock *sk)
{
	u64 key = (u64)sk;
	struct session_state session = {}, *known = sessions.lookup(&key);
	struct owner owner = {};
	struct session ev = {.state = READ(sk, __sk_common.skc_state)};

	if (ev.state == TCP_CLOSE || ev.state == TCP_LISTEN)
		return 0;
	if (known)
		session = *known;
	if (!find_owner(sk, &owner))
		owner_from_task(&owner, task, OWNER_SNAPSHOT);
	if (!pass_owner(&owner) || !pass_ends(sk))
		return 0;
	fill(&ev, sk, &session, &owner, ev.state);
	fill_open(&ev, sk, &session);
	bpf_seq_write(ctx->meta->seq, &ev, sizeof(ev));
	return 0;
}
