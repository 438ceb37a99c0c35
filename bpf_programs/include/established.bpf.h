/* SPDX-License-Identifier: GPL-2.0-only */
/* How long TCP connections wait to be accepted: the probes `state` and `gone`, see declare/states.py. */
#ifndef NETBPF_ESTABLISHED_BPF_H
#define NETBPF_ESTABLISHED_BPF_H

#include "early.bpf.h"

/*
 * When a connection entered its listener's accept queue, until it is accepted or destroyed: at the SYN
 * with Fast Open, else at the last packet of the handshake. Without room in the map the wait is not
 * known.
 */
BPF_HASH(established, u64, u64, MAP_ENTRIES);

/* Does the map have the connection? */
static inline bool waits(struct sock *accepted)
{
	u64 key = (u64)carrier_of(accepted);

	return established.lookup(&key);
}

/* How many ns an accepted connection waited, or UNKNOWN. */
static inline u64 waited(struct sock *accepted)
{
	u64 key = (u64)carrier_of(accepted), *since, wait;

	since = established.lookup(&key);
	if (!since)
		return UNKNOWN;
	wait = bpf_ktime_get_ns() - *since;
	established.delete(&key);
	return wait;
}

/* A new child is still a copy of its listener, with the listener's address and port. */
static inline bool may_be_wanted(struct sock *child)
{
#ifdef FILTER_SOCKET
	struct net *net = READ(child, __sk_common.skc_net.net);

	return may_pass_early(child, READ(child, __sk_common.skc_family), READ(net, ns.inum), true);
#else
	return true;
#endif
}

static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
	u64 key = (u64)sk, now;

	if (newstate == TCP_SYN_RECV && oldstate == TCP_LISTEN) {
		if (READ(sk, sk_protocol) != IPPROTO_TCP || !may_be_wanted(sk))
			return 0;
		now = bpf_ktime_get_ns();
		if (established.update(&key, &now))
			count_loss(LOSS_MAP_FULL);
	}
#ifdef FILTER_SOCKET
	/* Both ends are set now: remove a connection that the filters exclude. */
	if (newstate == TCP_ESTABLISHED && oldstate == TCP_SYN_RECV) {
		struct endpoints ends = {};

		read_endpoints(sk, &ends);
		if (!pass_endpoints(&ends))
			established.delete(&key);
	}
#endif
	return 0;
}

/* Another socket may get the address of a destroyed one. */
static inline int on_gone(struct sock *sk)
{
	u64 key = (u64)sk;

	established.delete(&key);
	return 0;
}

#endif
