/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The map of sessions: which sockets get an entry, and what each change of state before CLOSE adds.
 * Includes owners.bpf.h, which calls on_owner() for each proof of an owner.
 */
#ifndef NETBPF_SESSIONS_BPF_H
#define NETBPF_SESSIONS_BPF_H

#include "listener_of.bpf.h"
#include "session_state.bpf.h"

KERNEL_FIELDS(sock, sk_lock.owned)

/* By the address of struct sock, until CLOSE. */
BPF_HASH(sessions, u64, struct session_state, MAP_ENTRIES);

/* A process proved that it holds the socket: if the filters exclude it, the session is removed. */
static inline void on_owner(struct sock *sk, bool pass)
{
	u64 key = (u64)sk;
	struct session_state *session;

#ifdef FILTER_PROCESS
	if (!pass) {
		sessions.delete(&key);
		return;
	}
#endif
	if (!is_in_sockmap(sk))
		return;
	session = sessions.lookup(&key);
	if (session)
		session->bypassed = 1;
}
#define ON_OWNER(sk, pass) on_owner(sk, pass)
#define SNAPSHOT_STATES ~(1 << TCP_LISTEN) /* a listener is no session: it takes no room */

#include "owners.bpf.h"

/*
 * Do the session's ends pass the filters, as far as they are set? The addresses of a child that is
 * still a copy of its listener exclude nothing, nor do those of a socket whose port is not chosen yet.
 */
static inline bool pass_ends(struct sock *sk)
{
	if (!pass_ports(sk))
		return false;
#ifdef FILTER_ADDRESSES
	return !READ((struct inet_sock *)sk, inet_sport) || !READ(sk, __sk_common.skc_dport) ||
	       pass_addresses(sk);
#else
	return true;
#endif
}

static inline void start_session(u64 key, struct session_state *session)
{
	if (sessions.update(&key, session))
		count_unfollowed(key);
}

/* Return the entry of a session, a new one if it has none; NULL if there is no room. */
static inline struct session_state *session_of(struct sock *sk)
{
	struct session_state none = {}, *session;
	u64 key = (u64)sk;

	session = sessions.lookup_or_try_init(&key, &none);
	if (!session)
		count_unfollowed(key);
	return session;
}

/* connect() begins, nothing has been sent yet. */
static inline void on_connect(struct sock *sk, u64 key, struct owner *current)
{
	struct session_state session = {.begin_ns = bpf_ktime_get_ns(), .role = ROLE_ACTIVE};

	if (!pass_owner(current))
		return;
	start_session(key, &session);
	if (current->how)
		set_owner(sk, current);
}

/*
 * A listener's child was cloned and still has the listener's ends. ESTABLISHED follows at once if the
 * handshake is complete, later for a Fast Open child.
 */
static inline void on_child(struct sock *sk, u64 key)
{
	struct inet_connection_sock *listener = (struct inet_connection_sock *)listener_of(sk);
	struct session_state session = {.role = ROLE_PASSIVE};

	if (!listener)
		return;
	session.deferred = READ(listener, icsk_accept_queue.rskq_defer_accept);
	if (!session.deferred && !READ(listener, icsk_accept_queue.fastopenq.max_qlen))
		return;
	session.begin_ns = bpf_ktime_get_ns();
	/* Its own ends are not set yet: the filters are applied at ESTABLISHED. */
	start_session(key, &session);
}

static inline void on_established(struct sock *sk, u64 key, int oldstate)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct session_state session = {}, *known = sessions.lookup(&key);
	u64 now = bpf_ktime_get_ns();

	if (known)
		session = *known;
	else if (oldstate == TCP_SYN_RECV && !READ(tp, bytes_acked))
		session.role = ROLE_PASSIVE; /* no SYN of its own was acknowledged */
#ifdef FILTER_PROCESS
	else
		return; /* the process filter excluded the connect() */
#endif
	session.bypassed = is_in_sockmap(sk);
	if (oldstate == TCP_SYN_SENT && read_tcp_sock_repair(tp)) {
		session.role = 0;
		session.restored = 1;
	} else {
		session.established_ns = now;
		session.handshake_ns = session.role == ROLE_PASSIVE
					       ? passive_handshake(tp, &session, now)
					       : active_handshake(tp, &session, oldstate, now);
	}
	if (known)
		*known = session;
	else
		start_session(key, &session);
}

/* The peer's FIN has arrived. */
static inline void on_remote_fin(struct sock *sk, int oldstate, int newstate)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	bool first = newstate == TCP_CLOSING && is_unsent(tp); /* our FIN is still queued */
	bool on_syn = newstate == TCP_CLOSE_WAIT && is_fin_on_syn(tp, oldstate);
	bool bypassed = is_in_sockmap(sk);
	struct session_state *session;

	if (!first && !on_syn && !bypassed)
		return;
	session = session_of(sk);
	if (!session)
		return;
	if (first)
		session->first_fin = CLOSE_FIN_REMOTE;
	session->fin_on_syn |= on_syn;
	session->bypassed |= bypassed;
}

/*
 * Does the owner change the state, by connect(), close() or shutdown(), unless a packet or a timer
 * ends the session with an error? FIN_WAIT2, CLOSING and LAST_ACK also end by a packet without an
 * error: the owner closed these if a process holds the socket's lock, which packets and timers wait for.
 */
static inline bool is_by_owner(struct sock *sk, int oldstate, int newstate)
{
	if (newstate == TCP_CLOSE)
		return oldstate == TCP_ESTABLISHED || oldstate == TCP_CLOSE_WAIT ||
		       oldstate == TCP_SYN_RECV || READ(sk, sk_lock.owned);
	return newstate == TCP_SYN_SENT || newstate == TCP_FIN_WAIT1 || newstate == TCP_LAST_ACK;
}

#endif
