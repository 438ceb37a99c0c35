/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Packets that pass a device: their place, headers and size. A program that includes this defines
 * NEEDS_HEADERS if it needs the headers.
 */
#ifndef NETBPF_PASSING_BPF_H
#define NETBPF_PASSING_BPF_H

#include "device_packet.bpf.h"

KERNEL_FIELDS(net_device, flags)
KERNEL_FIELDS(sk_buff, skb_iif)

#define IFF_LOOPBACK 8 /* include/uapi/linux/if.h */
#define LOOPBACK_IFINDEX 1 /* include/linux/net_namespace.h */
#define SHORTEST_FRAME 60 /* ETH_ZLEN: include/uapi/linux/if_ether.h */

/* A packet at its device. */
struct passing {
	struct packet packet;
	u64 skb; /* an address to compare; 0: none, or a socket has taken it */
	u64 bytes;
	u16 queue;
};
/* The packet that the CPU received last: later, a socket takes it. Then one that waited. */
BPF_PERCPU_ARRAY(arrivals, struct passing, 2);
enum { LAST, WAITED };

/* An arrival, which has no room on the stack. */
static inline struct passing *arrival(int which)
{
	return arrivals.lookup(&which);
}

/* Bytes as most devices count them: with the link header, but lo without. */
static inline u64 bytes_of(struct sk_buff *skb, bool is_lo, bool sent)
{
	u64 bytes = READ(skb, len);
	u16 mac = READ(skb, mac_header);

	if (!sent && mac != (u16)~0) /* one that is sent begins with the link header */
		bytes += READ(skb, data) - READ(skb, head) - mac;
	return is_lo ? bytes - ETH_HLEN : bytes;
}

/* Read place, headers and size of a packet; false if filters exclude it. */
static inline bool read_passing(struct passing *to, struct sk_buff *skb, bool sent)
{
	struct net_device *dev = READ(skb, dev);

	if (!take_device(&to->packet, dev) || !pass_netns(to->packet.netns) ||
	    !pass_device(&to->packet))
		return false;
	to->bytes = bytes_of(skb, READ(dev, flags) & IFF_LOOPBACK, sent);
	to->queue = queue_of(skb, dev, sent);
#ifdef NEEDS_HEADERS
	read_flow(&to->packet, skb, sent);
#endif
	return pass_flow(&to->packet, sent);
}

/* Place, headers and size of a segment that waited until its socket was free. */
static inline bool read_waited(struct passing *to, struct sk_buff *skb, struct sock *sk)
{
	int ifindex = READ(skb, skb_iif);

	to->packet.net = READ(sk, __sk_common.skc_net.net);
	to->packet.netns = READ(to->packet.net, ns.inum);
	if (!pass_netns(to->packet.netns))
		return false;
	take_device_by_index(&to->packet, ifindex);
	if (!pass_device(&to->packet))
		return false;
	to->bytes = bytes_of(skb, ifindex == LOOPBACK_IFINDEX, false);
	to->queue = NO_QUEUE;
	read_flow(&to->packet, skb, true);
	return pass_flow(&to->packet, false);
}

/*
 * Is a segment the last packet, less the padding of short frames? One that waited may have the address
 * of an earlier packet that is gone.
 */
static inline bool is_last(const struct passing *last, struct sk_buff *skb, struct sock *sk)
{
	u16 rport = READ(sk, __sk_common.skc_dport);
	u64 bytes = bytes_of(skb, READ(skb, skb_iif) == LOOPBACK_IFINDEX, false);

	return last->skb == (u64)skb && last->packet.dport == READ(sk, __sk_common.skc_num) &&
	       last->packet.sport == swap16(rport) && last->bytes - bytes < SHORTEST_FRAME;
}

#endif
