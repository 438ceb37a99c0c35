// SPDX-License-Identifier: GPL-2.0-only
/* netsize: packet sizes at four points of the way. Front-end: netbpf/tools/netsize.py */
#include "netbpf.bpf.h"
#include "device_queue.bpf.h"
#include "filter.bpf.h"
#include "histogram.bpf.h"
#include "wire.bpf.h"
#include <netbpf/records.h>

KERNEL_FIELDS(sk_buff, dev, len, head, data, network_header)
KERNEL_FIELDS(net_device, name, nd_net.net, hard_header_len, dev.parent)
KERNEL_FIELDS(net, ns.inum)

#define SMALL 128 /* bytes: below this a packet is mostly headers */
#define NETDEV_TX_BUSY 0x10 /* include/linux/netdevice.h */

/* How a device hands over what it received. */
enum way { WAY_OTHER, WAY_GRO, WAY_NETIF_RX, WAY_DIRECT };

BPF_F_TABLE("percpu_hash", struct size_key, struct sizes, sizes, MAP_ENTRIES, 0);
BPF_PERCPU_ARRAY(zeros, struct sizes, 1);

static inline struct sizes *sizes_of(struct size_key *key, struct net_device *dev)
{
	struct sizes *found = sizes.lookup(key), *empty;
	int zero = 0;

	if (found)
		return found;
	empty = zeros.lookup(&zero); /* too large for the stack */
	found = empty ? sizes.lookup_or_try_init(key, empty) : NULL;
	if (!found)
		count_loss(LOSS_MAP_FULL);
	else if (READ(dev, dev.parent))
		found->hardware = 1;
	return found;
}

/* Bytes before the network header: on the way out the link header is in front already. */
static inline u32 link_header(struct sk_buff *skb, struct net_device *dev, u32 len)
{
	s32 offset = READ(skb, head) + READ(skb, network_header) - READ(skb, data);

	if (offset >= 0 && offset <= 64 && offset <= len)
		return offset;
	return READ(dev, hard_header_len); /* raw packets need not say where they begin */
}

static inline int count_packet(struct sk_buff *skb, int point, int way, s64 times)
{
	struct net_device *dev = READ(skb, dev);
	struct net *net = READ(dev, nd_net.net);
	u32 len = READ(skb, len);
	u32 wire_packets = 1, wire_bytes;
	struct size_key key = {};
	struct sizes *sizes;
	u64 name[2] = {};
	bool sent = point == POINT_STACK_SEND || point == POINT_NIC_SEND;

	key.netns = READ(net, ns.inum);
	READ_INTO(name, dev, name);
	__builtin_memcpy(key.dev, name, sizeof(name));
	key.point = point;
	SET_BY_queue(&key, queue_of(skb, dev, sent));
	SET_BY_cpu(&key, bpf_get_smp_processor_id());
	if (!pass_netns(key.netns))
		return 0;
#ifdef FILTER_DEV
	if (!FILTER_DEV(name[0], name[1]))
		return 0;
#endif
	if (sent)
		len -= link_header(skb, dev, len);
	wire_bytes = len;
	if (len > SMALL)
		estimate_wire(skb, len, &wire_packets, &wire_bytes);
	sizes = sizes_of(&key, dev);
	if (!sizes)
		return 0;
	record_value(&sizes->histogram, len, times);
	sizes->wire_packets += times * wire_packets;
	sizes->wire_bytes += times * wire_bytes;
	if (len < SMALL)
		sizes->small += times;
	if (way == WAY_GRO)
		sizes->by_gro += times;
	else if (way == WAY_NETIF_RX)
		sizes->by_netif_rx += times;
	else if (way == WAY_DIRECT)
		sizes->by_direct += times;
	return 0;
}

static inline int on_packet(struct sk_buff *skb, int point, int way)
{
	return count_packet(skb, point, way, 1);
}

/* The driver had no room: the packet comes again, so it was not sent this time. */
static inline int on_sent(struct sk_buff *skb, int result)
{
	return result == NETDEV_TX_BUSY ? count_packet(skb, POINT_NIC_SEND, WAY_OTHER, -1) : 0;
}
