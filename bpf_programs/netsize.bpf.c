// SPDX-License-Identifier: GPL-2.0-only
/* netsize: packet sizes at four points of the way. Front-end: netbpf/tools/netsize.py */
#include "netbpf.bpf.h"
#include "filter.bpf.h"
#include "histogram.bpf.h"
#include "wire.bpf.h"

KERNEL_FIELDS(sk_buff, dev, len, head, data, network_header)
KERNEL_FIELDS(net_device, name, nd_net.net, hard_header_len, dev.parent)
KERNEL_FIELDS(net, ns.inum)

#define SMALL 128 /* bytes: below this a packet is mostly headers */
#define NETDEV_TX_BUSY 0x10 /* include/linux/netdevice.h */

/* Numbers of the column `point` in netbpf/tools/netsize.py. */
enum point { NIC_RECV, STACK_RECV, STACK_SEND, NIC_SEND };
/* How a device hands over what it received. */
enum way { WAY_OTHER, WAY_GRO, WAY_NETIF_RX, WAY_DIRECT };

struct size_key {
	u32 netns;
	char dev[16];
	u8 point;
	u8 pad[3];
};

struct sizes {
	struct histogram histogram;
	u64 small;
	u64 wire_packets;
	u64 wire_bytes;
	u64 by_gro;
	u64 by_netif_rx;
	u64 by_direct;
	u64 hardware;
};
BPF_F_TABLE("percpu_hash", struct size_key, struct sizes, sizes, MAP_ENTRIES, 0);
BPF_PERCPU_ARRAY(zeros, struct sizes, 1);

static inline struct sizes *sizes_of(struct size_key *key, struct net_device *dev)
{
	struct sizes *found = sizes.lookup(key);
	int zero = 0;

	if (found)
		return found;
	found = zeros.lookup(&zero); /* too large for the stack */
	if (found)
		sizes.insert(key, found); /* another CPU may have been first: that is fine */
	found = sizes.lookup(key);
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

static inline int on_packet(struct sk_buff *skb, int point, int way, s64 times)
{
	struct net_device *dev = READ(skb, dev);
	struct net *net = READ(dev, nd_net.net);
	u32 len = READ(skb, len);
	u32 wire_packets = 1, wire_bytes;
	struct size_key key = {};
	struct sizes *sizes;
	u64 name[2] = {};

	key.netns = READ(net, ns.inum);
	READ_INTO(name, dev, name);
	__builtin_memcpy(key.dev, name, sizeof(name));
	key.point = point;
	if (!pass_netns(key.netns))
		return 0;
#ifdef FILTER_DEV
	if (!FILTER_DEV(name[0], name[1]))
		return 0;
#endif
	if (point == STACK_SEND || point == NIC_SEND)
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

/* One entry per tracepoint and kind: all of them pass an skb. */
#define PACKET_RAWTP(probe, point, way)                                                            \
	int probe##_rawtp(struct bpf_raw_tracepoint_args *ctx)                                     \
	{                                                                                          \
		return on_packet((struct sk_buff *)RAWTP_ARG(probe, skb), point, way, 1);          \
	}
#define PACKET_TP(probe, point, way)                                                               \
	int probe##_tp(struct probe##_args *ctx)                                                   \
	{                                                                                          \
		return on_packet((struct sk_buff *)ctx->skbaddr, point, way, 1);                   \
	}

#ifdef USE_gro_rawtp
PACKET_RAWTP(gro, NIC_RECV, WAY_GRO)
#endif
#ifdef USE_gro_frags_rawtp
PACKET_RAWTP(gro_frags, NIC_RECV, WAY_GRO)
#endif
#ifdef USE_netif_rx_rawtp
PACKET_RAWTP(netif_rx, NIC_RECV, WAY_NETIF_RX)
#endif
#ifdef USE_direct_rawtp
PACKET_RAWTP(direct, NIC_RECV, WAY_DIRECT)
#endif
#ifdef USE_direct_list_rawtp
PACKET_RAWTP(direct_list, NIC_RECV, WAY_DIRECT)
#endif
#ifdef USE_stack_recv_rawtp
PACKET_RAWTP(stack_recv, STACK_RECV, WAY_OTHER)
#endif
#ifdef USE_stack_send_rawtp
PACKET_RAWTP(stack_send, STACK_SEND, WAY_OTHER)
#endif
#ifdef USE_nic_send_rawtp
PACKET_RAWTP(nic_send, NIC_SEND, WAY_OTHER)
#endif

#ifdef USE_gro_tp
PACKET_TP(gro, NIC_RECV, WAY_GRO)
#endif
#ifdef USE_gro_frags_tp
PACKET_TP(gro_frags, NIC_RECV, WAY_GRO)
#endif
#ifdef USE_netif_rx_tp
PACKET_TP(netif_rx, NIC_RECV, WAY_NETIF_RX)
#endif
#ifdef USE_direct_tp
PACKET_TP(direct, NIC_RECV, WAY_DIRECT)
#endif
#ifdef USE_direct_list_tp
PACKET_TP(direct_list, NIC_RECV, WAY_DIRECT)
#endif
#ifdef USE_stack_recv_tp
PACKET_TP(stack_recv, STACK_RECV, WAY_OTHER)
#endif
#ifdef USE_stack_send_tp
PACKET_TP(stack_send, STACK_SEND, WAY_OTHER)
#endif
#ifdef USE_nic_send_tp
PACKET_TP(nic_send, NIC_SEND, WAY_OTHER)
#endif

/* The driver had no room: the packet comes again, so it was not sent this time. */
static inline int on_sent(struct sk_buff *skb, int result)
{
	return result == NETDEV_TX_BUSY ? on_packet(skb, NIC_SEND, WAY_OTHER, -1) : 0;
}

#ifdef USE_sent_rawtp
int sent_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	return on_sent((struct sk_buff *)RAWTP_ARG(sent, skb), RAWTP_ARG(sent, rc));
}
#endif
#ifdef USE_sent_tp
int sent_tp(struct sent_args *ctx)
{
	return on_sent((struct sk_buff *)ctx->skbaddr, ctx->rc);
}
#endif
