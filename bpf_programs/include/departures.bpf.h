/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sent packets from the queue of a device until the driver frees them, by the address of the buffer. A
 * program that includes this defines
 *   leave(departure, discarded, now): the driver has freed a packet, as one that it discards.
 */
#ifndef NETBPF_DEPARTURES_BPF_H
#define NETBPF_DEPARTURES_BPF_H

#include "packet.bpf.h"

KERNEL_FIELDS(net_device, dev.parent)

#define NETDEV_TX_BUSY 0x10 /* include/linux/netdevice.h */

/* Times are ns. */
struct departure {
	u64 queued; /* the stack hands it over */
	u64 sent; /* the driver gets it; 0 before */
	void *head; /* the same buffer may be another packet, if it was freed unseen */
	u32 proto;
	u32 netns;
	char dev[16];
	u8 raddr[16];
	u16 lport;
	u8 family;
};
BPF_HASH(departures, u64, struct departure, MAP_ENTRIES);

static inline void leave(const struct departure *departure, bool discarded, u64 now);

/* Fill in what is known of a packet at a device; false if it is filtered out. */
static inline bool read_departure(struct departure *to, struct sk_buff *skb)
{
	struct packet packet __attribute__((aligned(8))) = {};
	struct endpoints ends = {};

	read_packet(&packet, skb, READ(skb, sk));
	merge_ways(&packet, sizeof(packet));
	if (!pass_device(&packet) || !pass_netns(packet.netns))
		return false;
	ends.netns = packet.netns;
	ends.lport = packet.sport;
	ends.rport = packet.dport;
	ends.family = packet.family;
	__builtin_memcpy(ends.laddr, packet.saddr, 16);
	__builtin_memcpy(ends.raddr, packet.daddr, 16);
	if (!pass_endpoints(&ends))
		return false;
	to->proto = packet.proto;
	to->netns = packet.netns;
	to->lport = packet.sport;
	to->family = packet.family;
	__builtin_memcpy(to->dev, packet.dev, 16);
	__builtin_memcpy(to->raddr, packet.daddr, 16);
	return true;
}

/* Without hardware, the receiver frees the packet, or another device sends it. */
static inline bool is_virtual(struct sk_buff *skb)
{
#ifdef FILTER_DEV
	return false;
#else
	struct net_device *dev = READ(skb, dev);

	return !READ(dev, dev.parent);
#endif
}

static inline int on_queue(struct sk_buff *skb)
{
	struct departure departure = {};
	u64 key = (u64)skb;

	if (!read_departure(&departure, skb))
		return 0;
	if (is_virtual(skb)) {
		add_total(TOTAL_VIRTUAL, 1);
		return 0;
	}
	departure.queued = bpf_ktime_get_ns();
	if (departures.update(&key, &departure))
		count_loss(LOSS_MAP_FULL);
	return 0;
}

/* The driver gets a packet. Pieces of one that was cut before are new buffers. */
static inline int on_sent(struct sk_buff *skb)
{
	u64 key = (u64)skb;
	struct departure *departure = departures.lookup(&key), other = {};

	if (departure && !departure->sent) {
		departure->head = READ(skb, head);
		departure->sent = bpf_ktime_get_ns();
	} else if (!departure && read_departure(&other, skb) && !is_virtual(skb)) {
		add_total(TOTAL_UNKNOWN, 1);
	}
	return 0;
}

/* The driver had no room: the packet goes back to the queue. */
static inline int on_busy(struct sk_buff *skb, int result)
{
	u64 key = (u64)skb;
	struct departure *departure = result == NETDEV_TX_BUSY ? departures.lookup(&key) : NULL;

	if (departure)
		departure->sent = 0;
	return 0;
}

static inline int on_freed(struct sk_buff *skb, bool discarded)
{
	u64 key = (u64)skb;
	struct departure *departure = departures.lookup(&key);

	if (!departure)
		return 0;
	if (departure->sent && departure->head == READ(skb, head))
		leave(departure, discarded, bpf_ktime_get_ns());
	departures.delete(&key);
	return 0;
}

#endif
