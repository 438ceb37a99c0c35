/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Packets that wait in queueing disciplines, and what is counted of each queue. Needs the records of
 * qdisclat.
 */
#ifndef NETBPF_QUEUES_BPF_H
#define NETBPF_QUEUES_BPF_H

#include "filter.bpf.h"
#include "histogram.bpf.h"
#include "iterators.bpf.h"
#include <netbpf/records.h>

KERNEL_FIELDS(sk_buff, dev, next, queue_mapping, head, end, len, transport_header)
KERNEL_FIELDS(skb_shared_info, gso_size, gso_segs, gso_type)
KERNEL_FIELDS(net_device, name, nd_net.net, _tx)
KERNEL_FIELDS(net, ns.inum)
KERNEL_FIELDS(netdev_queue, dev, qdisc)
KERNEL_FIELDS(Qdisc, ops, handle, parent, flags, state, enqueue, dev_queue, q.qlen, qstats.backlog)
KERNEL_FIELDS(Qdisc_ops, id)

#define TCQ_F_CAN_BYPASS 4 /* include/net/sch_generic.h */
#define TCQ_F_NOLOCK 0x100
#define QDISC_DEACTIVATED 2 /* 1 << __QDISC_STATE_DEACTIVATED, include/net/sch_generic.h */
#define TC_H_ROOT 0xffffffff /* include/uapi/linux/pkt_sched.h */

#define SKB_GSO_TCP (1 << 0 | 1 << 4) /* TCPV4, TCPV6: include/linux/skbuff.h */
#define PIECES 64 /* that are expected of a packet that was cut, at most */

/* A packet that is in a queue, or between the queue and the driver, by the address of its skb. */
struct waiting {
	u64 start; /* 0 if not seen */
	u64 wait; /* ns, 0 while it waits */
	struct net_device *dev; /* skb->dev is overwritten while it waits: a union with rbnode */
	struct Qdisc *qdisc;
};

/* A piece of a TCP packet that the discipline cuts into new buffers (tbf, cake). */
struct piece {
	struct net_device *dev;
	u32 ports; /* both, as in the header */
	u32 seq; /* of its first byte */
};

#define NO_WAIT 1 /* it has left the queue; its wait is unknown, or was counted before */

BPF_HASH(waiting, u64, struct waiting, MAP_ENTRIES);
BPF_TABLE("lru_hash", struct piece, struct waiting, pieces, LRU_ENTRIES(MAP_ENTRIES));
BPF_ARRAY(has_cut, u64, 1); /* there have been pieces */
BPF_F_TABLE("percpu_hash", struct queue_key, struct queue_sums, queues, 1024, 0);
BPF_PERCPU_ARRAY(zeros, struct queue_sums, 1);

static inline u32 netns_of(struct net_device *dev)
{
	struct net *net = READ(dev, nd_net.net);

	return READ(net, ns.inum);
}

static inline bool pass_queue(struct net_device *dev, struct Qdisc *qdisc)
{
	u64 name[2] = {};

#ifdef FILTER_DEV
	READ_INTO(name, dev, name);
	if (!FILTER_DEV(name[0], name[1]))
		return false;
#endif
#ifdef FILTER_KIND
	struct Qdisc_ops *ops = READ(qdisc, ops);

	READ_INTO(name, ops, id);
	if (!FILTER_KIND(name[0], name[1]))
		return false;
#endif
#ifdef FILTER_NETNS
	return pass_netns(netns_of(dev));
#endif
	return true;
}

/* The transmit queue of the discipline: the first one, if it is that of the whole device. */
static inline u16 queue_of(struct net_device *dev, struct Qdisc *qdisc)
{
#ifdef QUEUES
	u64 offset = (u64)READ(qdisc, dev_queue) - (u64)READ(dev, _tx);

	return offset / sizeof(struct netdev_queue);
#else
	return 0xffff; /* null */
#endif
}

static inline struct queue_sums *sums_of(struct net_device *dev, struct Qdisc *qdisc)
{
	struct Qdisc_ops *ops = READ(qdisc, ops);
	struct queue_key key = {};
	struct queue_sums *sums;
	int zero = 0;

	READ_INTO(key.dev, dev, name);
	READ_INTO(key.kind, ops, id);
	key.handle = READ(qdisc, handle);
	key.netns = netns_of(dev);
	key.queue = queue_of(dev, qdisc);
	sums = queues.lookup(&key);
	if (sums)
		return sums;
	sums = zeros.lookup(&zero); /* too large for the stack */
	if (sums)
		sums = queues.lookup_or_try_init(&key, sums);
	if (!sums)
		count_loss(LOSS_MAP_FULL);
	return sums;
}

/* The largest values since the start. */
static inline void note_longest(struct queue_sums *sums, u64 us)
{
	if (us > sums->max_us)
		sums->max_us = us;
}

/*
 * What is in the queue now. With TCQ_F_NOLOCK, each CPU has its own count; if the queues of a device
 * share the sums, it would be that of one of them.
 */
static inline void note_content(struct queue_sums *sums, struct Qdisc *qdisc, bool is_removed)
{
	if (READ(qdisc, flags) & TCQ_F_NOLOCK)
		return;
#ifndef QUEUES
	if (READ(qdisc, parent) != TC_H_ROOT)
		return;
#endif
	sums->qlen = is_removed ? 0 : READ(qdisc, q.qlen);
	sums->backlog_bytes = is_removed ? 0 : READ(qdisc, qstats.backlog);
	sums->length_ns = bpf_ktime_get_ns();
}

static inline void note_length(struct queue_sums *sums, struct Qdisc *qdisc, int leaving)
{
	u64 length = READ(qdisc, q.qlen) + leaving;

	if (length > sums->qlen_max && !(READ(qdisc, flags) & TCQ_F_NOLOCK))
		sums->qlen_max = length;
	note_content(sums, qdisc, false);
}

static inline void note_bypass(struct queue_sums *sums, struct Qdisc *qdisc)
{
	sums->bypassed += 1;
	if (!sums->length_ns) /* no packet has waited yet */
		note_content(sums, qdisc, false);
}

/* A discipline that is removed drops what is in it, and only then sets its counters to 0. */
static inline void note_drop(struct queue_sums *sums, struct Qdisc *qdisc)
{
	sums->dropped += 1;
	if (READ(qdisc, state) & QDISC_DEACTIVATED)
		note_content(sums, qdisc, true);
}

/* An element of `waiting`, before the table is read: a queue may have grown since the last dequeue. */
static inline int on_lengths(struct map_element_context *ctx, u64 *key)
{
	u64 skb = *key;
	struct waiting *packet = waiting.lookup(&skb);
	struct queue_sums *sums;

	if (!packet || packet->wait || !packet->qdisc)
		return 0;
	sums = sums_of(packet->dev, packet->qdisc);
	if (sums)
		note_content(sums, packet->qdisc, false);
	return 0;
}

static inline void read_piece(struct piece *piece, struct sk_buff *skb, struct net_device *dev)
{
	u8 *head = (u8 *)READ(skb, head);
	u32 first[2] = {}; /* ports and sequence number */

	bpf_probe_read_kernel(first, sizeof(first), head + READ(skb, transport_header));
	piece->dev = dev;
	piece->ports = first[0];
	piece->seq = __builtin_bswap32(first[1]);
}

/* A packet was cut: its pieces have waited since it came. */
static inline void expect_pieces(struct sk_buff *skb, struct waiting *whole)
{
	u8 *head = (u8 *)READ(skb, head);
	struct skb_shared_info *shared = (void *)(head + READ(skb, end));
	u32 size = READ(shared, gso_size), number = READ(shared, gso_segs);
	struct piece piece = {};
	int zero = 0;
	u64 *cut = has_cut.lookup(&zero);

	if (!size || !(READ(shared, gso_type) & SKB_GSO_TCP))
		return;
	if (!number)
		number = READ(skb, len) / size + 1;
	read_piece(&piece, skb, whole->dev);
	for (u32 i = 0; i < PIECES && i < number; i++) {
		asm("" : "+r"(number)); /* else the verifier does not see that PIECES is the end */
		pieces.insert(&piece, whole); /* not in place of one that still waits */
		piece.seq += size;
	}
	if (cut)
		*cut = 1;
}

/* Take the entry of a piece, if the packet is one. */
static inline bool take_piece(struct waiting *taken, struct sk_buff *skb, struct net_device *dev)
{
	struct piece piece = {};
	struct waiting *found;
	int zero = 0;
	u64 *cut = has_cut.lookup(&zero);

	if (!cut || !*cut)
		return false;
	read_piece(&piece, skb, dev);
	found = pieces.lookup(&piece);
	if (!found)
		return false;
	*taken = *found;
	pieces.delete(&piece);
	return true;
}

#endif
