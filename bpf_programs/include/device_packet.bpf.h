/* SPDX-License-Identifier: GPL-2.0-only */
/* Packets at a device: where their IP header begins, and how many packets they stand for. */
#ifndef NETBPF_DEVICE_PACKET_BPF_H
#define NETBPF_DEVICE_PACKET_BPF_H

#include "device_queue.bpf.h"
#include "packet.bpf.h"

KERNEL_FIELDS(sk_buff, end)
KERNEL_FIELDS(skb_shared_info, gso_segs)

/*
 * Find the IP header and return the ethertype. A received packet begins with it, eth_type_trans() has
 * removed the link header; one that is sent begins with the link header.
 */
static inline u16 find_header(struct sk_buff *skb, struct linear *linear, bool sent)
{
	u32 length = READ(skb, len), paged = READ(skb, data_len);
	u8 *data = (u8 *)READ(skb, data);

	linear->at = data;
	linear->end = data + (length - paged);
	if (sent)
		linear->at = (u8 *)READ(skb, head) + READ(skb, network_header);
	return skip_tags(skb, linear, swap16(READ(skb, protocol)));
}

/* What the kernel's counters count: each of the packets that GRO merged, or that GSO will cut. */
static inline u16 segments_of(struct sk_buff *skb)
{
	struct skb_shared_info *shared = (void *)READ(skb, head) + READ(skb, end);
	u16 segments = READ(shared, gso_segs);

	return segments ? segments : 1;
}

/* The ends of a packet: the local one is its source if it is sent. */
static inline void read_ends(struct endpoints *ends, const struct packet *packet, bool sent)
{
	ends->netns = packet->netns;
	ends->family = packet->family;
	ends->lport = sent ? packet->sport : packet->dport;
	ends->rport = sent ? packet->dport : packet->sport;
	__builtin_memcpy(ends->laddr, sent ? packet->saddr : packet->daddr, 16);
	__builtin_memcpy(ends->raddr, sent ? packet->daddr : packet->saddr, 16);
}

/* Read the headers. */
static inline void read_flow(struct packet *packet, struct sk_buff *skb, bool sent)
{
	struct linear linear = {};
	u16 ethertype = find_header(skb, &linear, sent);

	packet->proto = PROTO_ETHERTYPE | ethertype;
	if (ethertype == ETH_P_IP)
		read_ipv4(packet, &linear);
	else if (ethertype == ETH_P_IPV6)
		read_ipv6(packet, &linear);
}

/* The filters of ends: the remote one is the sender of a received packet. */
static inline bool pass_flow(const struct packet *packet, bool sent)
{
#ifdef FILTER_SOCKET
	struct endpoints ends = {};

	read_ends(&ends, packet, sent);
	return pass_lport(ends.lport) && pass_peer(&ends);
#else
	return true;
#endif
}

#endif
