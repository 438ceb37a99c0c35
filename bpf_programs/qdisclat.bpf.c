// SPDX-License-Identifier: GPL-2.0-only
/* qdisclat: time in queueing disciplines. Front-end: netbpf/tools/qdisclat.py */
#include "netbpf.bpf.h"
#include "queues.bpf.h"
#ifdef RING_PAGES
#include "packet.bpf.h"
#endif

#define NETDEV_TX_BUSY 0x10 /* include/linux/netdevice.h */
#define BULK 64 /* packets that are followed of those that leave a queue at once */

#ifdef RING_PAGES
static inline void submit(struct waiting *waited, struct sk_buff *skb)
{
	struct packet packet __attribute__((aligned(8))) = {};
	struct Qdisc_ops *ops = READ(waited->qdisc, ops);
	struct long_wait ev = {};

	if (!waited->start || waited->wait < MIN_NS)
		return;
	read_packet(&packet, skb, READ(skb, sk));
	merge_ways(&packet, sizeof(packet));
	ev.time = bpf_ktime_get_ns();
	ev.wait_us = waited->wait;
	ev.handle = READ(waited->qdisc, handle);
	READ_INTO(ev.kind, ops, id);
	__builtin_memcpy(ev.dev, packet.dev, sizeof(ev.dev));
	ev.netns = packet.netns;
	ev.proto = packet.proto;
	ev.len = packet.len;
	SET_FLOW(&ev, &packet);
	emit(&ev, sizeof(ev));
}
#else
#define submit(waited, skb) (void)(skb)
#endif

/* The stack hands a packet to a queue. */
static inline int on_begin(struct sk_buff *skb)
{
	struct net_device *dev = READ(skb, dev);
	struct netdev_queue *txq = READ(dev, _tx) + READ(skb, queue_mapping);
	struct Qdisc *qdisc = READ(txq, qdisc);
	struct waiting packet = {.dev = dev, .qdisc = qdisc};
	u64 key = (u64)skb;

	if (!READ(qdisc, enqueue) /* noqueue */ || !pass_queue(dev, qdisc))
		return 0;
	packet.start = bpf_ktime_get_ns();
	if (waiting.update(&key, &packet))
		count_loss(LOSS_MAP_FULL);
	return 0;
}

/* A packet leaves its queue. One that the driver refused leaves it again, which does not count. */
static inline void end_wait(struct queue_sums *sums, struct sk_buff *skb, struct net_device *dev,
			    struct Qdisc *qdisc, u64 now)
{
	u64 key = (u64)skb;
	struct waiting *packet = waiting.lookup(&key), left = {};

	if (packet && packet->wait)
		return;
	if (packet)
		left.start = packet->start;
	else
		take_piece(&left, skb, dev);
	left.wait = NO_WAIT;
	if (left.start) {
		left.wait = (now - left.start) ?: NO_WAIT;
		record_value(&sums->histogram, left.wait / 1000, 1);
		note_longest(sums, left.wait / 1000);
	} else {
		sums->unknown += 1;
	}
	if (packet) {
		packet->wait = left.wait;
		return;
	}
	left.qdisc = qdisc;
	if (waiting.update(&key, &left))
		count_loss(LOSS_MAP_FULL);
}

static inline int on_dequeue(struct Qdisc *qdisc, struct netdev_queue *txq, int packets,
			     struct sk_buff *skb)
{
	struct net_device *dev = READ(txq, dev);
	u64 now = bpf_ktime_get_ns();
	struct queue_sums *sums;

	if (!skb || !pass_queue(dev, qdisc))
		return 0;
	sums = sums_of(dev, qdisc);
	if (sums)
		note_length(sums, qdisc, packets);
	for (int i = 0; i < BULK && i < packets && skb && sums; i++) {
		end_wait(sums, skb, dev, qdisc, now);
		skb = READ(skb, next);
	}
	return 0;
}

enum end { SENT, DROPPED, CONSUMED };

/* A packet is sent, or its buffer is freed. */
static inline int on_end(struct sk_buff *skb, int end)
{
	u64 key = (u64)skb;
	struct waiting *found = waiting.lookup(&key), packet;
	struct queue_sums *sums;

	if (found) {
		packet = *found;
		waiting.delete(&key);
	} else if (end != DROPPED || !take_piece(&packet, skb, READ(skb, dev))) {
		return 0;
	}
	if (packet.wait) {
		submit(&packet, skb);
		return 0;
	}
	sums = sums_of(packet.dev, packet.qdisc);
	if (!sums)
		return 0;
	if (end == DROPPED) {
		note_drop(sums, packet.qdisc);
	} else if (end == SENT || READ(packet.qdisc, flags) & TCQ_F_CAN_BYPASS) {
		note_bypass(sums, packet.qdisc); /* if it was cut, then for the driver */
	} else {
		sums->split += 1;
		expect_pieces(skb, &packet);
	}
	return 0;
}

/* The driver had no room: the packet goes back to the queue. */
static inline int on_busy(struct sk_buff *skb, int result)
{
	struct waiting back = {};
	u64 key = (u64)skb;

	back.wait =
		NO_WAIT; /* an initialiser would be data of the object, which bcc does not load */
	if (result == NETDEV_TX_BUSY && waiting.update(&key, &back))
		count_loss(LOSS_MAP_FULL);
	return 0;
}
