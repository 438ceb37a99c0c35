/* SPDX-License-Identifier: GPL-2.0-only */
/* What a packet's own headers say, wherever in the stack it is, and where it was going. */
#ifndef NETBPF_PACKET_BPF_H
#define NETBPF_PACKET_BPF_H

#include "sock.bpf.h"

KERNEL_FIELDS(sk_buff, head, data, len, data_len, network_header, mac_header, protocol, dev, sk)
KERNEL_FIELDS(sk_buff, skb_iif, _skb_refdst)
KERNEL_FIELDS(net_device, name, nd_net.net)
KERNEL_FIELDS(sock, sk_protocol)
KERNEL_OPTIONAL(net_device, index_hlist, ifindex)
KERNEL_OPTIONAL(net, dev_index_head)
KERNEL_OPTIONAL(hlist_node, next)
KERNEL_OPTIONAL(dst_entry, dev)

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88A8
#define ETH_HLEN 14
#define IPPROTO_UDP 17
#define TCP_NEW_SYN_RECV 12
/* What a protocol's number is: see Protocol in netbpf/declare/network.py. */
#define PROTO_ETHERTYPE (1 << 16)
#define PROTO_SOCKET (2 << 16)
#define FIRST_NAMESPACE 0xEFFFFFF8 /* inode numbers of namespaces: include/uapi/linux/nsfs.h */
#define LONGEST_HEADERS 512 /* bytes between the network header and where a packet is read */
#define EXTENSIONS 8 /* headers between IPv6's and the transport's that are read */

struct packet {
	struct net *net;
	u32 netns;
	u32 proto;
	u32 len; /* from the network header on */
	u16 sport;
	u16 dport;
	char dev[16];
	u8 saddr[16]; /* IPv4 mapped, as in struct endpoints; zero unless family says IP */
	u8 daddr[16];
	u8 family; /* 0: not an IP packet, or `hidden` */
	u8 hidden; /* an IP packet whose IP or transport header is not in the linear part */
	u8 tcp_flags;
	u32 payload; /* bytes behind the TCP header */
};

/* Where a packet's bytes can be read: what lies in page fragments has no address here. */
struct linear {
	u8 *at;
	u8 *end;
};

/* Read from `from`, all or nothing: behind the end lies what another packet left. */
static inline bool read_linear(const struct linear *linear, void *to, u32 size)
{
	return linear->at + size <= linear->end && !bpf_probe_read_kernel(to, size, linear->at);
}

static inline bool is_kernel_pointer(const void *pointer)
{
	return (s64)pointer < 0;
}

/*
 * Is that a device? skb->dev and the route share their place with other things while a packet is
 * queued (rbnode, dev_scratch, tcp_tsorted_anchor): only a device has a namespace.
 */
static inline bool take_device(struct packet *packet, struct net_device *dev)
{
	u64 name[2] = {};
	struct net *net;
	u32 inum;

	if (!is_kernel_pointer(dev))
		return false;
	net = READ(dev, nd_net.net);
	if (!is_kernel_pointer(net))
		return false;
	inum = READ(net, ns.inum);
	if (inum < FIRST_NAMESPACE)
		return false;
	READ_INTO(name, dev, name);
	__builtin_memcpy(packet->dev, name, sizeof(name));
	packet->net = net;
	packet->netns = inum;
	return true;
}

#if defined(HAVE_net_dev_index_head) && defined(HAVE_net_device_index_hlist) &&                    \
	defined(HAVE_hlist_node_next)
#define DEVICES_PER_HASH 16 /* that are looked at: there are 256 lists */

/* The device with that number in packet->net: for packets that are past it. */
static inline void take_device_by_index(struct packet *packet, int ifindex)
{
	struct net *net = packet->net;
	void *list = (void *)READ(net, dev_index_head) + (ifindex & 0xff) * sizeof(void *);
	struct hlist_node *node = NULL;

	bpf_probe_read_kernel(&node, sizeof(node), list);
	for (int i = 0; i < DEVICES_PER_HASH && node; i++) {
		struct net_device *dev =
			(void *)node - (u64)FIELD_AT((struct net_device *)0, index_hlist);

		if (READ(dev, ifindex) == ifindex) {
			take_device(packet, dev);
			return;
		}
		node = READ(node, next);
	}
}
#else
static inline void take_device_by_index(struct packet *packet, int ifindex)
{
}
#endif

/* Device and namespace: those that the packet is at, else those that its route or socket tell. */
static inline void read_place(struct packet *packet, struct sk_buff *skb, struct sock *sk)
{
	int ifindex = READ(skb, skb_iif);

	if (take_device(packet, READ(skb, dev)))
		return;
	if (sk) {
		packet->net = READ(sk, __sk_common.skc_net.net);
		packet->netns = READ(packet->net, ns.inum);
	}
	if (ifindex && packet->net)
		take_device_by_index(packet, ifindex);
#ifdef HAVE_dst_entry_dev
	else if (!ifindex) {
		struct dst_entry *dst = (void *)(READ(skb, _skb_refdst) & ~1UL); /* SKB_DST_NOREF */

		if (is_kernel_pointer(dst))
			take_device(packet, READ(dst, dev));
	}
#endif
}

static inline bool has_ports(u32 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == 33 /* DCCP */ ||
	       proto == 132 /* SCTP */ || proto == 136 /* UDP-Lite */;
}

/* Ports, and of TCP what else it is; `behind` counts the bytes from linear->at on. */
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
	if (ip[6] & 0x1f || ip[7]) /* a later fragment: data stands where the first has ports */
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

/* `sk` is a socket that the packet belongs to or came to, or NULL. */
static inline void read_packet(struct packet *packet, struct sk_buff *skb, struct sock *sk)
{
	u16 protocol = READ(skb, protocol), network = READ(skb, network_header);
	u32 len = READ(skb, len), paged = READ(skb, data_len);
	u8 *head = (u8 *)READ(skb, head), *data = (u8 *)READ(skb, data);
	struct linear linear = {network ? head + network : data, data + (len - paged)};
	u16 ethertype = swap16(protocol);
	s64 before;

	ethertype = skip_tags(skb, &linear, ethertype);
	before = data - linear.at;
	packet->len = len;
	if (before > -LONGEST_HEADERS && before < LONGEST_HEADERS)
		packet->len += before;
	read_place(packet, skb, sk);
	if (ethertype == ETH_P_IP)
		read_ipv4(packet, &linear);
	else if (ethertype == ETH_P_IPV6)
		read_ipv6(packet, &linear);
	if (packet->family)
		return;
	packet->proto = PROTO_ETHERTYPE | ethertype;
	if (sk && !packet->hidden) {
		u16 family = READ(sk, __sk_common.skc_family);
		u8 state = READ(sk, __sk_common.skc_state);

		if (family != AF_INET && family != AF_INET6)
			packet->proto = PROTO_SOCKET | family;
		else if (!ethertype && state != TCP_NEW_SYN_RECV && state != TCP_TIME_WAIT)
			packet->proto = READ(sk, sk_protocol);
	}
}

#endif
