/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sessions that are followed from their begin on: which ones, and what each change of state up to
 * the last one shows. Includes owners.bpf.h, which passes on each proof of an owner.
 */
#ifndef NETBPF_FOLLOWED_BPF_H
#define NETBPF_FOLLOWED_BPF_H

#include "listener_of.bpf.h"
#include "tcp_life.bpf.h"

KERNEL_FIELDS(sock, sk_lock.owned)

/* By the address of struct sock, until CLOSE. */
BPF_HASH(lives, u64, struct life, MAP_ENTRIES);

/* A process proved that it holds the socket: one that the filters exclude is not followed. */
static inline void on_owner(struct sock *sk, bool pass)
{
	u64 key = (u64)sk;
	struct life *life;

#ifdef FILTER_PROCESS
	if (!pass) {
		lives.delete(&key);
		return;
	}
#endif
	if (!is_in_sockmap(sk))
		return;
	life = lives.lookup(&key);
	if (life)
		life->bypassed = 1;
}
#define ON_OWNER(sk, pass) on_owner(sk, pass)
#define SNAPSHOT_STATES ~(1 << TCP_LISTEN) /* a listener is no session: it takes no room */

#include "owners.bpf.h"

/*
 * Is the session one that was asked for, as far as its ends are known? What one look can exclude comes
 * first; ports that are not chosen yet exclude nothing, nor do the addresses of a listener's copy.
 */
static inline bool pass_ends(struct sock *sk)
{
#ifdef FILTER_SOCKET
	u16 sport = READ((struct inet_sock *)sk, inet_sport);
	u16 dport = READ(sk, __sk_common.skc_dport);
	struct endpoints ends = {};

#ifdef FILTER_LPORT
	if (sport && !FILTER_LPORT(swap16(sport)))
		return false;
#endif
#ifdef FILTER_RPORT
	if (dport && !FILTER_RPORT(swap16(dport)))
		return false;
#endif
	if (!sport || !dport) {
		struct net *net = READ(sk, __sk_common.skc_net.net);

		return pass_netns(READ(net, ns.inum));
	}
	read_endpoints(sk, &ends);
	return pass_endpoints(&ends);
#else
	return true;
#endif
}

static inline void start_life(u64 key, struct life *life)
{
	if (lives.update(&key, life))
		count_unfollowed(key);
}

/* Return what is remembered of a session, a new entry if nothing is; NULL if there is no room. */
static inline struct life *life_of(struct sock *sk)
{
	struct life none = {}, *life;
	u64 key = (u64)sk;

	life = lives.lookup_or_try_init(&key, &none);
	if (!life)
		count_unfollowed(key);
	return life;
}

/* connect() begins, nothing has been sent yet. */
static inline void on_connect(struct sock *sk, u64 key, struct owner *current)
{
	struct life life = {.begin_ns = bpf_ktime_get_ns(), .role = ROLE_ACTIVE};

	if (!pass_owner(current))
		return;
	start_life(key, &life);
	if (current->how)
		set_owner(sk, current);
}

/*
 * A new child of a listener, of which it is a bare copy yet. With the handshake complete, ESTABLISHED
 * follows at once; a Fast Open child has to wait for it.
 */
static inline void on_child(struct sock *sk, u64 key)
{
	struct inet_connection_sock *listener = (struct inet_connection_sock *)listener_of(sk);
	struct life life = {.role = ROLE_PASSIVE};

	if (!listener)
		return;
	life.deferred = READ(listener, icsk_accept_queue.rskq_defer_accept);
	if (!life.deferred && !READ(listener, icsk_accept_queue.fastopenq.max_qlen))
		return;
	life.begin_ns = bpf_ktime_get_ns();
	if (lives.update(&key, &life)) /* its address is not known yet: a filter may exclude it */
		count_unfollowed(key);
}

static inline void on_established(struct sock *sk, u64 key, int oldstate)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct life life = {}, *known = lives.lookup(&key);
	u64 now = bpf_ktime_get_ns();

	if (known)
		life = *known;
	else if (oldstate == TCP_SYN_RECV && !READ(tp, bytes_acked))
		life.role = ROLE_PASSIVE; /* no SYN of its own was acknowledged */
#ifdef FILTER_PROCESS
	else
		return; /* another process connects */
#endif
	life.bypassed = is_in_sockmap(sk);
	if (oldstate == TCP_SYN_SENT && read_tcp_sock_repair(tp)) {
		life.role = ROLE_UNKNOWN;
		life.restored = 1;
	} else {
		life.established_ns = now;
		life.handshake_ns = life.role == ROLE_PASSIVE
					    ? passive_handshake(tp, &life, now)
					    : active_handshake(tp, &life, oldstate, now);
	}
	if (known)
		*known = life;
	else
		start_life(key, &life);
}

/* The peer's FIN has come. */
static inline void on_remote_fin(struct sock *sk, int oldstate, int newstate)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	bool first = newstate == TCP_CLOSING && is_unsent(tp); /* ours is still waiting */
	bool on_syn = newstate == TCP_CLOSE_WAIT && is_fin_on_syn(tp, oldstate);
	bool bypassed = is_in_sockmap(sk);
	struct life *life;

	if (!first && !on_syn && !bypassed)
		return;
	life = life_of(sk);
	if (!life)
		return;
	if (first)
		life->first_fin = FIN_REMOTE;
	life->fin_on_syn |= on_syn;
	life->bypassed |= bypassed;
}

/*
 * Is it the owner who changes the state: by connect(), close() or shutdown(), unless a packet or a
 * timer ends the session? In the states that a packet leaves without an error, the lock of a process
 * shows it: packets and timers wait while one has it.
 */
static inline bool is_by_owner(struct sock *sk, int oldstate, int newstate)
{
	if (newstate == TCP_CLOSE)
		return oldstate == TCP_ESTABLISHED || oldstate == TCP_CLOSE_WAIT ||
		       oldstate == TCP_SYN_RECV || READ(sk, sk_lock.owned);
	return newstate == TCP_SYN_SENT || newstate == TCP_FIN_WAIT1 || newstate == TCP_LAST_ACK;
}

static inline void on_reset(struct sock *sk, u8 whose)
{
	struct life *life = pass_ends(sk) ? life_of(sk) : NULL;

	if (life && !life->rst)
		life->rst = whose;
}

#endif
