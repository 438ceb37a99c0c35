/* SPDX-License-Identifier: GPL-2.0-only */
/* ICMP and ICMPv6: echo requests, and the replies and errors that answer them. */
#ifndef NETBPF_ICMP_BPF_H
#define NETBPF_ICMP_BPF_H

#include "packet.bpf.h"

#define IPPROTO_ICMP 1
#define IPPROTO_ICMPV6 58
#define FRAGMENT 44 /* IPv6's extension header of fragments */
#define ICMP_LENGTH 8

/* Message types of ICMP (RFC 792) and ICMPv6 (RFC 4443). */
enum { ICMP_REPLY, ICMP_UNREACHABLE = 3, ICMP_ECHO = 8, ICMP_EXCEEDED = 11, ICMP_PARAMETER = 12 };
enum { ICMP6_UNREACHABLE = 1, ICMP6_TOO_BIG, ICMP6_EXCEEDED, ICMP6_PARAMETER };
enum { ICMP6_ECHO = 128, ICMP6_REPLY };
#define ICMP_FRAG_NEEDED 4 /* code of ICMP_UNREACHABLE */

struct icmp {
	u8 type;
	u8 code;
	u16 checksum;
	u16 ident; /* this and the next in network order; of echo messages only */
	u16 seq;
};

/* What identifies a request, and its answers. */
struct echo_key {
	u8 raddr[16]; /* zero if a group was asked: others answer */
	u32 netns;
	u16 ident;
	u16 seq;
};

struct answer {
	struct echo_key key;
	u8 from[16];
	u8 result;
	u8 ttl;
	u8 pad[6];
};

static inline bool is_of_ip(struct sock *sk)
{
	u16 family = READ(sk, __sk_common.skc_family);

	return family == AF_INET || family == AF_INET6;
}

static inline u32 netns_of(struct sock *sk)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);

	return READ(net, ns.inum);
}

static inline u32 netns_of_device(struct net_device *dev)
{
	struct net *net = READ(dev, nd_net.net);

	return READ(net, ns.inum);
}

static inline void linear_of(struct linear *linear, struct sk_buff *skb, u8 *at)
{
	linear->at = at;
	linear->end = (u8 *)READ(skb, data) + (READ(skb, len) - READ(skb, data_len));
}

static inline u8 *network_header_of(struct sk_buff *skb)
{
	return (u8 *)READ(skb, head) + READ(skb, network_header);
}

/* Can this be ICMP? The protocol byte excludes most packets; IPv6 extensions may precede ICMPv6. */
static inline bool may_be_icmp(const u8 *ip, u16 ethertype)
{
	u8 next = 0, none[4] = {};

	if (ethertype != ETH_P_IP && ethertype != ETH_P_IPV6)
		return is_vlan(ethertype); /* behind its tag */
	bpf_probe_read_kernel(&next, sizeof(next), ip + (ethertype == ETH_P_IP ? 9 : 6));
	if (ethertype == ETH_P_IP)
		return next == IPPROTO_ICMP;
	return next == IPPROTO_ICMPV6 || extension(next, none);
}

/* Read the IP header at linear->at, and the ICMP header, where linear->at is then. */
static inline bool read_icmp(struct packet *packet, struct icmp *icmp, struct linear *linear,
			     u16 ethertype)
{
	if (ethertype == ETH_P_IP)
		read_ipv4(packet, linear);
	else
		read_ipv6(packet, linear);
	merge_ways(packet, sizeof(*packet));
	return packet->proto == (packet->family == AF_INET ? IPPROTO_ICMP : IPPROTO_ICMPV6) &&
	       read_linear(linear, icmp, sizeof(*icmp));
}

static inline bool is_echo(u8 family, u8 type)
{
	return type == (family == AF_INET ? ICMP_ECHO : ICMP6_ECHO);
}

/* What an ICMP message says about a request, RESULT_WAITING if nothing. */
static inline u8 result_of(u8 family, const struct icmp *icmp)
{
	if (family == AF_INET) {
		switch (icmp->type) {
		case ICMP_REPLY:
			return RESULT_REPLY;
		case ICMP_UNREACHABLE:
			return icmp->code == ICMP_FRAG_NEEDED ? RESULT_TOO_BIG : RESULT_UNREACHABLE;
		case ICMP_EXCEEDED:
			return RESULT_TIME_EXCEEDED;
		case ICMP_PARAMETER:
			return RESULT_BAD_HEADER;
		}
		return RESULT_WAITING;
	}
	switch (icmp->type) {
	case ICMP6_REPLY:
		return RESULT_REPLY;
	case ICMP6_UNREACHABLE:
		return RESULT_UNREACHABLE;
	case ICMP6_TOO_BIG:
		return RESULT_TOO_BIG;
	case ICMP6_EXCEEDED:
		return RESULT_TIME_EXCEEDED;
	case ICMP6_PARAMETER:
		return RESULT_BAD_HEADER;
	}
	return RESULT_WAITING;
}

/* Read the beginning of the request that an error quotes, at linear->at: IP and ICMP headers. */
static inline bool read_quoted(struct answer *answer, struct icmp *icmp, struct linear *linear,
			       u8 family)
{
	u8 ip[40] = {}, next[2] = {};
	u32 daddr;

	if (!read_linear(linear, ip, family == AF_INET ? 20 : 40))
		return false;
	if (family == AF_INET) {
		if (ip[9] != IPPROTO_ICMP)
			return false;
		__builtin_memcpy(&daddr, ip + 16, 4);
		map_ipv4(answer->key.raddr, daddr);
		linear->at += (ip[0] & 0xf) * 4;
	} else {
		__builtin_memcpy(answer->key.raddr, ip + 24, 16);
		linear->at += 40;
		if (ip[6] == FRAGMENT) {
			if (!read_linear(linear, next, sizeof(next)))
				return false;
			ip[6] = next[0];
			linear->at += 8;
		}
		if (ip[6] != IPPROTO_ICMPV6)
			return false;
	}
	return read_linear(linear, icmp, sizeof(*icmp)) && is_echo(family, icmp->type);
}

/* Read a reply, or an error about a request, whose IP header is at linear->at; but for its netns. */
static inline bool read_answer(struct answer *answer, struct linear *linear, u16 ethertype)
{
	struct packet packet __attribute__((aligned(8))) = {};
	struct linear hops = {linear->at + (ethertype == ETH_P_IP ? 8 : 7), linear->end};
	struct icmp icmp = {};

	if (!read_linear(&hops, &answer->ttl, 1) || !read_icmp(&packet, &icmp, linear, ethertype))
		return false;
	answer->result = result_of(packet.family, &icmp);
	if (answer->result == RESULT_WAITING)
		return false;
	__builtin_memcpy(answer->from, packet.saddr, 16);
	__builtin_memcpy(answer->key.raddr, packet.saddr, 16);
	linear->at += ICMP_LENGTH;
	if (answer->result != RESULT_REPLY && !read_quoted(answer, &icmp, linear, packet.family))
		return false;
	answer->key.ident = swap16(icmp.ident);
	answer->key.seq = swap16(icmp.seq);
	return true;
}

/* Was a request sent in fragments, of which this is the first? IPv4 says so, IPv6 has a header. */
static inline bool is_fragment(const u8 *ip, u8 family)
{
	u8 at6 = 0;

	bpf_probe_read_kernel(&at6, sizeof(at6), ip + 6);
	return family == AF_INET ? at6 & 0x20 : at6 == FRAGMENT;
}

/* Is a packet that still has an Ethernet header for a group, multicast or broadcast? */
static inline bool is_for_group(struct sk_buff *skb, const u8 *ip)
{
	const u8 *link = (const u8 *)READ(skb, data);
	u8 first = 0;

	if (link + ETH_HLEN == ip)
		bpf_probe_read_kernel(&first, sizeof(first), link);
	return first & 1;
}

/* Read a packet that leaves, if it is an echo request; its length is 0 if it is in fragments. */
static inline bool read_echo(struct packet *packet, struct echo_key *key, struct sk_buff *skb)
{
	u16 ethertype = swap16(READ(skb, protocol));
	u8 *ip = network_header_of(skb);
	struct linear linear = {};
	struct icmp icmp = {};

	if (!may_be_icmp(ip, ethertype))
		return false;
	linear_of(&linear, skb, ip);
	packet->len = (u8 *)READ(skb, data) + READ(skb, len) - ip;
	if (!read_icmp(packet, &icmp, &linear, ethertype) || !is_echo(packet->family, icmp.type))
		return false;
	key->ident = swap16(icmp.ident);
	key->seq = swap16(icmp.seq);
	if (!is_for_group(skb, ip))
		__builtin_memcpy(key->raddr, packet->daddr, 16);
	if (is_fragment(ip, packet->family))
		packet->len = 0;
	return true;
}

#endif
