/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Received packets on their way from the driver to the program that reads them. Nothing shows the end
 * of most packets that no program reads (acknowledgements, packets that GRO merges), and the kernel
 * uses their buffers again: an entry is valid only for the packet that it was made for.
 */
#ifndef NETBPF_ARRIVALS_BPF_H
#define NETBPF_ARRIVALS_BPF_H

#include "sock.bpf.h"

KERNEL_FIELDS(sk_buff, dev, prev, head, data, network_header, transport_header, skb_iif)
KERNEL_FIELDS(net_device, name)
KERNEL_FIELDS(sock, sk_protocol, sk_receive_queue.next, sk_receive_queue.prev)
KERNEL_FIELDS(udp_sock, reader_queue.next)

#if !defined(USE_consumed_fentry) && !defined(USE_consumed_kprobe)
#define MATCH_BY_ORDER 1 /* no probe shows which datagram is read */
#endif
#define QUEUED 64 /* packets that are looked at when a socket has new ones */

/* A packet, by the address of its buffer. Times are ns. */
struct arrival {
	u64 device; /* the driver hands it over */
	u64 stack; /* the protocols get it */
	u64 socket; /* it is in the queue of `sk` */
	void *head;
	u64 header; /* part of the IP header */
	struct sock *sk;
	char dev[16];
#ifdef WITH_ENDS
	struct endpoints ends;
#endif
};
BPF_TABLE("lru_hash", u64, struct arrival, arrivals, LRU_ENTRIES(MAP_ENTRIES));

/* Length, id and so on: what stays the same up to the socket, also with NAT. */
static inline u64 header_at(const u8 *network)
{
	u64 header = 0;

	bpf_probe_read_kernel(&header, sizeof(header), network + 2);
	return header;
}

static inline bool is_of(const struct arrival *arrival, struct sk_buff *skb)
{
	u8 *head = (u8 *)READ(skb, head);

	return arrival->head == head &&
	       arrival->header == header_at(head + READ(skb, network_header));
}

static inline bool is_ip_sock(struct sock *sk, u16 protocol)
{
	u16 family = READ(sk, __sk_common.skc_family);

	return (family == AF_INET || family == AF_INET6) && READ(sk, sk_protocol) == protocol;
}

/* A driver, or what takes its place, hands over a packet. */
static inline int on_device(struct sk_buff *skb)
{
	struct net_device *dev = READ(skb, dev);
	struct arrival arrival = {};
	u64 key = (u64)skb;

	if (READ(skb, skb_iif)) /* it was handed over before, and comes from a bridge */
		return 0;
	READ_INTO(arrival.dev, dev, name);
	arrival.device = bpf_ktime_get_ns();
	if (arrivals.update(&key, &arrival))
		count_loss(LOSS_MAP_FULL);
	return 0;
}

static inline int on_stack(struct sk_buff *skb)
{
	u64 key = (u64)skb;
	struct arrival *arrival = arrivals.lookup(&key);

	if (!arrival || arrival->stack)
		return 0;
	arrival->head = READ(skb, head);
	arrival->header = header_at((u8 *)READ(skb, data));
	arrival->stack = bpf_ktime_get_ns();
	return 0;
}

#ifdef WITH_ENDS
/* Both ends as the packet has them: a socket of UDP may have many peers. */
static inline void read_ends(struct endpoints *ends, struct sk_buff *skb, struct sock *sk)
{
	u8 *head = (u8 *)READ(skb, head), *network = head + READ(skb, network_header), version = 0;
	struct net *net = READ(sk, __sk_common.skc_net.net);
	u32 addresses[2] = {};
	u16 ports[2] = {};

	bpf_probe_read_kernel(&version, 1, network);
	if (version >> 4 == 4) {
		bpf_probe_read_kernel(addresses, sizeof(addresses), network + 12);
		map_ipv4(ends->raddr, addresses[0]);
		map_ipv4(ends->laddr, addresses[1]);
		ends->family = AF_INET;
	} else {
		bpf_probe_read_kernel(ends->raddr, 16, network + 8);
		bpf_probe_read_kernel(ends->laddr, 16, network + 24);
		ends->family = AF_INET6;
	}
	bpf_probe_read_kernel(ports, sizeof(ports), head + READ(skb, transport_header));
	ends->rport = swap16(ports[0]);
	ends->lport = swap16(ports[1]);
	ends->netns = READ(net, ns.inum);
}
#endif

#ifdef MATCH_BY_ORDER
/* The datagram that is read next from a socket of UDP, by their addresses. */
BPF_TABLE("lru_hash", u64, u64, next_datagrams, LRU_ENTRIES(MAP_ENTRIES));

/* The first datagram in the queues of a socket of UDP, NULL if there is none. */
static inline u64 first_datagram(struct sock *sk)
{
	struct udp_sock *up = (struct udp_sock *)sk;
	const void *skb = READ(up, reader_queue.next);

	if (skb != FIELD_AT(up, reader_queue))
		return (u64)skb;
	skb = READ(sk, sk_receive_queue.next);
	return skb == FIELD_AT(sk, sk_receive_queue) ? 0 : (u64)skb;
}

/* The first of the datagrams in the queue is read next, unless an earlier one is being read. */
static inline void expect_datagram(struct sock *sk)
{
	u64 key = (u64)sk, first, *next = next_datagrams.lookup(&key);

	if (next && *next && arrivals.lookup(next))
		return;
	first = first_datagram(sk);
	if (next)
		*next = first;
	else
		next_datagrams.update(&key, &first);
}
#endif

/* The kernel wakes the readers of a socket: packets are at the end of its queue. */
static inline int on_queued(struct sock *sk)
{
	struct sk_buff *skb, *end = (struct sk_buff *)FIELD_AT(sk, sk_receive_queue);
	bool is_udp = is_ip_sock(sk, IPPROTO_UDP);
	u64 now = bpf_ktime_get_ns();

	if ((!is_udp && !is_ip_sock(sk, IPPROTO_TCP)) || !pass_ports(sk))
		return 0;
	skb = READ(sk, sk_receive_queue.prev);
	for (int i = 0; i < QUEUED && skb && skb != end; i++) {
		u64 key = (u64)skb;
		struct arrival *arrival = arrivals.lookup(&key);

		if (!arrival || !arrival->stack || arrival->socket || !is_of(arrival, skb))
			break;
#ifdef WITH_ENDS
		read_ends(&arrival->ends, skb, sk);
#endif
		arrival->sk = sk;
		arrival->socket = now;
		skb = READ(skb, prev);
	}
#ifdef MATCH_BY_ORDER
	if (is_udp)
		expect_datagram(sk);
#endif
	return 0;
}

/* A packet is dropped, also from the queue of a socket that is closed. */
static inline int on_dropped(struct sk_buff *skb)
{
	u64 key = (u64)skb;

	arrivals.delete(&key);
	return 0;
}

#endif
