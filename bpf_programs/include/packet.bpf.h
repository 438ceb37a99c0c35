/* SPDX-License-Identifier: GPL-2.0-only */
/* A packet's headers, device and network namespace, at any layer of the stack. */
#ifndef NETBPF_PACKET_BPF_H
#define NETBPF_PACKET_BPF_H

#include "headers.bpf.h"

KERNEL_FIELDS(sk_buff, head, data, len, data_len, network_header, mac_header, protocol, dev, sk)
KERNEL_FIELDS(sk_buff, skb_iif, _skb_refdst)
KERNEL_FIELDS(net_device, name, nd_net.net)
KERNEL_FIELDS(sock, sk_protocol)
KERNEL_OPTIONAL(sock, __sk_common.skc_listener)
KERNEL_OPTIONAL(net_device, index_hlist, ifindex)
KERNEL_OPTIONAL(net, dev_index_head)
KERNEL_OPTIONAL(hlist_node, next)
KERNEL_OPTIONAL(dst_entry, dev)

#define FIRST_NAMESPACE 0xEFFFFFF8 /* inode numbers of namespaces: include/uapi/linux/nsfs.h */
#define LONGEST_HEADERS 512 /* bytes between the network header and where a packet is read */

static inline bool is_kernel_pointer(const void *pointer)
{
	return (s64)pointer < 0;
}

/*
 * Take name and namespace from `dev`, if it is a device. While a packet is queued, skb->dev and the
 * route share their memory with rbnode, dev_scratch and tcp_tsorted_anchor: only a device has a
 * namespace.
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
#define DEVICES_PER_HASH 16 /* that are compared: there are 256 lists */

/* Take the device number `ifindex` of packet->net: for packets that have left it. */
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

/* Device and namespace where the packet is, else those of its socket, its input device or route. */
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

static inline bool pass_device(const struct packet *packet)
{
#ifdef FILTER_DEV
	const u64 *name = (const u64 *)packet->dev;

	return FILTER_DEV(name[0], name[1]);
#else
	return true;
#endif
}

/* The socket whose owner counts: a request_sock, which is smaller than a sock, has its listener's. */
static inline struct sock *owner_sk(struct sock *sk)
{
#ifdef HAVE_sock___sk_common_skc_listener
	if (READ(sk, __sk_common.skc_state) == TCP_NEW_SYN_RECV)
		return READ(sk, __sk_common.skc_listener);
#endif
	return sk;
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

	if (!network &&
	    head + READ(skb, mac_header) == data) /* not known, and still at the link header */
		linear.at += ETH_HLEN;
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
