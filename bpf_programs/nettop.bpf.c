// SPDX-License-Identifier: GPL-2.0-only
/* nettop: who uses the network devices. Front-end: netbpf/tools/nettop.py */
#include "netbpf.bpf.h"
#include "sock.bpf.h" /* says whether there are filters */
#include <netbpf/records.h>

#if defined(FILTER_PROCESS) || defined(BY_PID) || defined(BY_COMM) || defined(BY_UID) ||           \
	defined(BY_CGROUP) || defined(BY_OWNER)
#define BY_PROCESS 1
#endif
#if defined(BY_PROCESS) || defined(FILTER_SOCKET) || defined(BY_PROTO) || defined(BY_FAMILY) ||    \
	defined(BY_LADDR) || defined(BY_LPORT) || defined(BY_RADDR) || defined(BY_RPORT)
#define NEEDS_HEADERS 1
#endif

#define OWNERS_OF_ALL 1
#include "stale_owners.bpf.h"
#include "uses.bpf.h"

#ifdef BY_PROCESS
/* A packet that was received is for a socket. */
static inline int count_taken(const struct passing *from, struct sock *sk, void *ctx)
{
	struct owner owner = {};
	struct use_key key = {};

	find_user(sk, &owner);
	if (!pass_owner(&owner))
		return 0;
	fill_key(&key, from, false, ctx);
	fill_owner(&key, &owner);
	key.traffic = TRAFFIC_SOCKET;
	count_use(&key, false, from->bytes);
	return 0;
}
#endif

/* A device gets a packet to send. */
static inline int on_start(void *ctx, struct sk_buff *skb)
{
	int zero = 0;
	struct sending *sending = sendings.lookup(&zero);
	struct passing passing = {};
	struct use_key *key;

	if (!sending)
		return 0;
	sending->skb = 0;
	if (!read_passing(&passing, skb, true))
		return 0;
	merge_ways(&passing, sizeof(passing));
	key = &sending->key;
	__builtin_memset(key, 0, sizeof(*key));
#ifdef BY_PROCESS
	struct sock *sk = READ(skb, sk);
	struct owner owner = {};

	if (sk)
		find_sender(sk, &owner);
	if (!pass_owner(&owner))
		return 0;
	fill_owner(key, &owner);
	key->traffic = traffic_of(skb, sk, &owner);
#endif
	fill_key(key, &passing, true, ctx);
	count_use(key, true, passing.bytes);
	sending->skb = (u64)skb;
	sending->bytes = passing.bytes;
	return 0;
}

/* The stack receives a packet from a device. */
static inline int on_received(void *ctx, struct sk_buff *skb)
{
	struct passing *passing = arrival(LAST);

	if (!passing)
		return 0;
	__builtin_memset(passing, 0, sizeof(*passing));
	if (!read_passing(passing, skb, false))
		return 0;
#ifdef BY_PROCESS
	passing->skb = (u64)skb;
#else
	struct use_key key = {};

	fill_key(&key, passing, false, ctx);
	count_use(&key, false, passing->bytes);
#endif
	return 0;
}

#ifdef BY_PROCESS
/* An established TCP connection receives a segment. */
static inline int on_segment(void *ctx, struct sock *sk, struct sk_buff *skb)
{
	struct passing *last = arrival(LAST), *waited = arrival(WAITED);

	if (!last || !waited)
		return 0;
	if (is_last(last, skb, sk)) {
		last->skb = 0; /* the address is used again */
	} else {
		last = waited;
		__builtin_memset(last, 0, sizeof(*last));
		if (!read_waited(last, skb, sk))
			return 0;
	}
	return count_taken(last, sk, ctx);
}

/*
 * A socket has got something to read: the last packet, if it was for this socket. on_segment() has
 * seen those of established TCP connections.
 */
static inline int on_readable(void *ctx, struct sock *sk)
{
	u16 family = READ(sk, __sk_common.skc_family), protocol = READ(sk, sk_protocol);
	struct passing *last = arrival(LAST);
	struct net *net = READ(sk, __sk_common.skc_net.net);

	if (!last || !last->skb || (family != AF_INET && family != AF_INET6) ||
	    protocol != last->packet.proto || net != last->packet.net)
		return 0;
	if (has_ports(protocol) && READ(sk, __sk_common.skc_num) != last->packet.dport)
		return 0;
	if (protocol == IPPROTO_TCP && READ(sk, __sk_common.skc_state) == TCP_ESTABLISHED)
		return 0;
	last->skb = 0;
	return count_taken(last, sk, ctx);
}
#endif
