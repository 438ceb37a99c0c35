/* SPDX-License-Identifier: GPL-2.0-only */
/* The table of listeners: handshakes, queues and losses of each. Needs the records of tcpsynbl. */
#ifndef NETBPF_LISTENER_SUMS_BPF_H
#define NETBPF_LISTENER_SUMS_BPF_H

#include "lost.bpf.h"

KERNEL_FIELDS(inet_connection_sock, icsk_accept_queue.qlen.counter)
/* Only for hints. */
KERNEL_OPTIONAL(net, core.sysctl_somaxconn, ipv4.sysctl_max_syn_backlog)
KERNEL_OPTIONAL(net, ipv4.sysctl_tcp_syncookies)

BPF_HASH(listeners, struct listener, struct listener_sums, MAP_ENTRIES);

/* Fill in the key of a listener. `sk` and `found` are NULL if only its address is known. */
static inline void fill_key(struct listener *listener, struct sock *sk, struct tracked *found,
			    const struct endpoints *ends)
{
	listener->sk = (u64)sk;
	listener->since = found ? found->since : 0;
	listener->netns = ends->netns;
	listener->lport = ends->lport;
	__builtin_memcpy(listener->laddr, ends->laddr, sizeof(listener->laddr));
}

/* A map has no room for a listener: count that once, by its address or by what else is known. */
static inline void count_unfollowed_listener(const struct listener *listener)
{
	count_unfollowed(listener->sk ?: (u64)listener->netns << 32 | listener->lport << 1 | 1);
}

static inline u32 syn_queue(struct sock *sk)
{
	return READ((struct inet_connection_sock *)sk, icsk_accept_queue.qlen.counter);
}

/* What limits the queues of all listeners of a namespace. */
static inline void read_settings(struct listener_sums *sums, struct sock *sk)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);

#ifdef HAVE_net_core_sysctl_somaxconn
	sums->somaxconn = READ(net, core.sysctl_somaxconn);
#endif
#ifdef HAVE_net_ipv4_sysctl_max_syn_backlog
	sums->syn_backlog = READ(net, ipv4.sysctl_max_syn_backlog);
#endif
#ifdef HAVE_net_ipv4_sysctl_tcp_syncookies
	sums->syncookies = READ(net, ipv4.sysctl_tcp_syncookies);
#endif
}

static inline struct listener_sums *sums_of(struct listener *listener, struct sock *sk,
					    struct tracked *found)
{
	struct listener_sums fresh = {}, *sums = listeners.lookup(listener);

	if (!sums) {
		read_settings(&fresh, sk);
		sums = listeners.lookup_or_try_init(listener, &fresh);
	}
	if (!sums) {
		count_unfollowed_listener(listener);
		return NULL;
	}
	if (found) {
		sums->pid = found->owner.process.pid;
		sums->owner = found->owner.how;
		__builtin_memcpy(sums->comm, found->owner.process.comm, sizeof(sums->comm));
	}
	return sums;
}

/* The same for a listener by itself: NULL also if the filters exclude it. */
static inline struct listener_sums *sums_at(struct sock *sk)
{
	struct listener listener = {};
	struct endpoints ends = {};
	struct tracked *found;

	read_endpoints(sk, &ends);
	if (!pass_endpoints(&ends))
		return NULL;
	found = find_or_track(sk, &ends);
	if (!found || !pass_owner(&found->owner))
		return NULL;
	fill_key(&listener, sk, found, &ends);
	return sums_of(&listener, sk, found);
}

/* Read the length of both queues; `more` connections are about to enter the accept queue. */
static inline void sample_queues(struct listener_sums *sums, struct sock *sk, u32 more)
{
	u64 accept = READ(sk, sk_ack_backlog) + more, syn = syn_queue(sk);

	sums->accept_queue = accept;
	sums->accept_limit = READ(sk, sk_max_ack_backlog);
	sums->syn_queue = syn;
	if (accept > sums->accept_peak)
		sums->accept_peak = accept;
	if (syn > sums->syn_peak)
		sums->syn_peak = syn;
}

#define CLOSING (~0ULL)

/*
 * Update what a listener lost, and sample its queues. Each `session` of the iterator ends an
 * interval; a peak is the greatest value since the last interval's end.
 */
static inline void update_drops(struct sock *sk, struct tracked *found, u64 session)
{
	struct endpoints ends = {};
	struct listener listener = {};
	struct listener_sums *sums;
	u32 lost;

	read_endpoints(sk, &ends);
	if (!pass_endpoints(&ends) || !pass_owner(&found->owner))
		return;
	lost = lost_by(sk, found);
	fill_key(&listener, sk, found, &ends);
	/* A listener that has nothing to report needs no room. */
	if (!lost && !READ(sk, sk_ack_backlog) && !syn_queue(sk) && !listeners.lookup(&listener))
		return;
	sums = sums_of(&listener, sk, found);
	if (!sums)
		return;
	read_settings(sums, sk);
	if (lost > sums->dropped)
		sums->dropped = lost;
	sums->dropped_total = sums->dropped;
	sample_queues(sums, sk, 0);
	if (sums->session != session) {
		sums->session = session;
		sums->accept_max = sums->accept_peak;
		sums->syn_max = sums->syn_peak;
		sums->accept_peak = sums->accept_queue;
		sums->syn_peak = sums->syn_queue;
	}
	if (session == CLOSING) /* its connections end with it */
		sums->accept_queue = sums->accept_peak = sums->syn_queue = sums->syn_peak = 0;
}

#endif
