// SPDX-License-Identifier: GPL-2.0-only
/* ipecn: ECN marks of IP packets at the device. Front-end: netbpf/tools/ipecn.py */
#include "netbpf.bpf.h"
#include "blocks.bpf.h"
#include "device_packet.bpf.h"
#include <netbpf/records.h>

#define NO_IP -1

/* The two lowest bits of IPv4's TOS and of IPv6's traffic class, which begins in the first byte. */
static inline int read_mark(const struct linear *linear, u16 ethertype)
{
	u8 first[2] = {};

	if (ethertype != ETH_P_IP && ethertype != ETH_P_IPV6)
		return NO_IP;
	if (!read_linear(linear, first, sizeof(first))) {
		add_total(TOTAL_UNREAD, 1);
		return NO_IP;
	}
	return (ethertype == ETH_P_IP ? first[1] : first[1] >> 4) & 3;
}

#ifdef RING_PAGES
/* Is a line for packets with this mark asked for? */
static inline bool is_shown(int mark)
{
#ifdef ALL_MARKS
	return mark != MARK_NOT_ECT;
#else
	return mark == MARK_CE;
#endif
}

static inline void handle(struct sk_buff *skb, const struct packet *packet, int mark)
{
	struct ecn_packet ev = {.mark = mark, .proto = packet->proto, .netns = packet->netns};

	SET_FLOW(&ev, packet);
	__builtin_memcpy(ev.dev, packet->dev, sizeof(ev.dev));
	ev.segs = segments_of(skb);
	ev.time = bpf_ktime_get_ns();
	emit(&ev, sizeof(ev));
}
#else
BPF_F_TABLE("percpu_hash", struct ecn_key, struct ecn_counts, marks, MAP_ENTRIES, 0);

static inline bool is_shown(int mark)
{
	return true;
}

static inline void handle(struct sk_buff *skb, const struct packet *packet, int mark)
{
	struct ecn_counts none = {}, *counts;
	struct ecn_key key = {};
	u16 segments = segments_of(skb);

	SET_BY_dev(&key, packet->dev);
	SET_BY_netns(&key, packet->netns);
	SET_BY_family(&key, packet->family);
	SET_BY_proto(&key, packet->proto);
	SET_BY_saddr(&key, packet->saddr, packet->family);
	SET_BY_sport(&key, packet->sport);
	SET_BY_daddr(&key, packet->daddr, packet->family);
	SET_BY_dport(&key, packet->dport);
	counts = marks.lookup_or_try_init(&key, &none);
	if (!counts) {
		count_loss(LOSS_MAP_FULL);
		return;
	}
	counts->packets += segments;
	counts->ce += mark == MARK_CE ? segments : 0;
	counts->ect0 += mark == MARK_ECT0 ? segments : 0;
	counts->ect1 += mark == MARK_ECT1 ? segments : 0;
	counts->not_ect += mark == MARK_NOT_ECT ? segments : 0;
}
#endif

static inline int on_packet(struct sk_buff *skb, bool sent)
{
	struct packet packet __attribute__((aligned(8))) = {};
	struct linear linear = {};
	u16 ethertype = find_header(skb, &linear, sent);
	int mark = read_mark(&linear, ethertype);

	if (mark == NO_IP || !is_shown(mark) || !take_device(&packet, READ(skb, dev)) ||
	    !pass_netns(packet.netns) || !pass_device(&packet))
		return 0;
	if (ethertype == ETH_P_IP)
		read_ipv4(&packet, &linear);
	else
		read_ipv6(&packet, &linear);
	merge_ways(&packet, sizeof(packet));
	if (pass_flow(&packet, sent))
		handle(skb, &packet, mark);
	return 0;
}
