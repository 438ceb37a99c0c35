/* SPDX-License-Identifier: GPL-2.0-only */
/* A packet's headers, as far as they lie in the linear part of its buffer. */
#ifndef NETBPF_HEADERS_BPF_H
#define NETBPF_HEADERS_BPF_H

#include "sock.bpf.h"

KERNEL_FIELDS(sk_buff, head, mac_header)

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88A8
#define ETH_HLEN 14
/* Numbers of protocols that are none of IP's: see Protocol in netbpf/declare/network.py. */
#define PROTO_ETHERTYPE (1 << 16)
#define PROTO_SOCKET (2 << 16)
#define EXTENSIONS 8 /* headers between IPv6's and the transport's that are read */

struct packet {
	struct net *net;
	u32 netns;
	u32 proto;
	u32 len; /* from the network header on */
	u16 sport;
	u16 dport;
	char dev[16];
	u8 saddr[16]; /* IPv4 mapped, as in struct endpoints; zero unless family is IP */
	u8 daddr[16];
	u8 family; /* 0: not an IP packet, or `hidden` */
	u8 hidden; /* an IP packet whose IP or transport header is not in the linear part */
	u8 tcp_flags;
	u32 payload; /* bytes behind the TCP header */
};

/* Copy the columns of both ends from a packet. */
#define SET_FLOW(to, packet)                                                                       \
	({                                                                                         \
		(to)->family = (packet)->family;                                                   \
		(to)->sport = (packet)->sport;                                                     \
		(to)->dport = (packet)->dport;                                                     \
		__builtin_memcpy((to)->saddr, (packet)->saddr, 16);                                \
		__builtin_memcpy((to)->daddr, (packet)->daddr, 16);                                \
	})

/* The readable bytes of a packet: those in page fragments have no address here. */
struct linear {
	u8 *at;
	u8 *end;
};

/* Read all `size` bytes or none: behind the end lies an older packet's data. */
static inline bool read_linear(const struct linear *linear, void *to, u32 size)
{
	return linear->at + size <= linear->end && !bpf_probe_read_kernel(to, size, linear->at);
}

static inline bool has_ports(u32 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == 33 /* DCCP */ ||
	       proto == 132 /* SCTP */ || proto == 136 /* UDP-Lite */;
}

/* Ports, and TCP's flags and payload; `behind` is the number of bytes from linear->at on. */
static inline void read_transport(struct packet *packet, const struct linear *linear, u32 behind)
{
	u16 ports[2] = {};
	u8 more[2] = {}; /* bytes 12 and 13 of TCP: its length and its flags */
	struct linear rest = {linear->at + 12, linear->end};

	if (!has_ports(packet->proto))
		return;
	if (!read_linear(linear, ports, sizeof(ports))) {
		packet->hidden = true;
		return;
	}
	packet->sport = swap16(ports[0]);
	packet->dport = swap16(ports[1]);
	if (packet->proto != IPPROTO_TCP || !read_linear(&rest, more, sizeof(more)))
		return;
	packet->tcp_flags = more[1];
	packet->payload = behind - (more[0] >> 4) * 4;
}

static inline void read_ipv4(struct packet *packet, struct linear *linear)
{
	u8 ip[20] = {};
	u32 saddr, daddr, length;

	if (!read_linear(linear, ip, sizeof(ip))) {
		packet->hidden = true;
		return;
	}
	if (ip[0] >> 4 != 4)
		return;
	__builtin_memcpy(&saddr, ip + 12, 4);
	__builtin_memcpy(&daddr, ip + 16, 4);
	map_ipv4(packet->saddr, saddr);
	map_ipv4(packet->daddr, daddr);
	packet->family = AF_INET;
	packet->proto = ip[9];
	if (ip[6] & 0x1f || ip[7]) /* a later fragment: it has data where the first one has ports */
		return;
	length = (ip[0] & 0xf) * 4;
	linear->at += length;
	read_transport(packet, linear, packet->len - length);
}

/* The length of an extension header, 0 if it is none. */
static inline u32 extension(u32 proto, const u8 *header)
{
	if (proto == 44) /* fragment */
		return 8;
	if (proto == 51) /* authentication, in units of four bytes */
		return (header[1] + 2) * 4;
	/* Hop-by-hop, routing, destination options, mobility, HIP, shim6. */
	if (proto == 0 || proto == 43 || proto == 60 || proto == 135 || proto == 139 ||
	    proto == 140)
		return (header[1] + 1) * 8;
	return 0;
}

static inline void read_ipv6(struct packet *packet, struct linear *linear)
{
	u8 ip[40] = {};
	u32 behind;

	if (!read_linear(linear, ip, sizeof(ip))) {
		packet->hidden = true;
		return;
	}
	if (ip[0] >> 4 != 6)
		return;
	__builtin_memcpy(packet->saddr, ip + 8, 16);
	__builtin_memcpy(packet->daddr, ip + 24, 16);
	packet->family = AF_INET6;
	packet->proto = ip[6];
	linear->at += sizeof(ip);
	behind = packet->len - sizeof(ip);
	for (int i = 0; i < EXTENSIONS; i++) {
		u8 next[4] = {};
		u32 proto = packet->proto, length = extension(proto, next);

		if (!length)
			break;
		if (!read_linear(linear, next, sizeof(next))) {
			packet->proto = PROTO_ETHERTYPE | ETH_P_IPV6;
			packet->hidden = true;
			return;
		}
		length = extension(proto, next);
		packet->proto = next[0];
		if (proto == 44 && (next[2] || next[3] >> 3)) /* a later fragment: only data */
			return;
		linear->at += length;
		behind -= length;
	}
	read_transport(packet, linear, behind);
}

static inline bool is_vlan(u16 ethertype)
{
	return ethertype == ETH_P_8021Q || ethertype == ETH_P_8021AD;
}

/* Go past VLAN tags that are in the packet's bytes: return the ethertype behind them. */
static inline u16 skip_tags(struct sk_buff *skb, struct linear *linear, u16 ethertype)
{
	u8 tag[4] = {};
	u16 mac = READ(skb, mac_header);

	/* With a tag the network header is at it, or behind it: only the link header is certain. */
	if (!is_vlan(ethertype) || mac == (u16)~0)
		return ethertype;
	linear->at = (u8 *)READ(skb, head) + mac + ETH_HLEN;
	for (int i = 0; i < 2 && is_vlan(ethertype); i++) {
		if (!read_linear(linear, tag, sizeof(tag)))
			break;
		linear->at += sizeof(tag);
		ethertype = tag[2] << 8 | tag[3];
	}
	return ethertype;
}

#endif
