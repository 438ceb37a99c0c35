// SPDX-License-Identifier: GPL-2.0-only
/* nettop: who uses the network devices. Front-end: netbpf/tools/nettop.py */
#include "netbpf.bpf.h"
#include "blocks.bpf.h"
#include "device_packet.bpf.h"
#include <netbpf/records.h>
#define OWNERS_OF_ALL 1
#include "stale_owners.bpf.h"
#include "users.bpf.h"

KERNEL_FIELDS(net_device, flags)
KERNEL_FIELDS(sk_buff, skb_iif)

#if defined(FILTER_PROCESS) || defined(BY_PID) || defined(BY_COMM) || defined(BY_UID) ||           \
	defined(BY_CGROUP) || defined(BY_OWNER)
#define BY_PROCESS 1
#endif
#if defined(BY_PROCESS) || defined(FILTER_SOCKET) || defined(BY_PROTO) || defined(BY_FAMILY) ||    \
	defined(BY_LADDR) || defined(BY_LPORT) || defined(BY_RADDR) || defined(BY_RPORT)
#define NEEDS_HEADERS 1
#endif

#define NETDEV_TX_BUSY 0x10 /* include/linux/netdevice.h */
#define IFF_LOOPBACK 8 /* include/uapi/linux/if.h */
#define SHORTEST_FRAME 60 /* ETH_ZLEN: include/uapi/linux/if_ether.h */
#define LOOPBACK_IFINDEX 1 /* include/linux/net_namespace.h */
#define NO_UID ((u32)-1) /* null in the column: uid 0 is root */

BPF_F_TABLE("percpu_hash", struct use_key, struct use_sums, uses, MAP_ENTRIES, 0);
#ifdef BY_STACK
BPF_STACK_TRACE(stacks, 4096);
#endif

/* A packet at its device. */
struct passing {
	struct packet packet;
	u64 skb; /* an address to compare; 0: none, or a socket has taken it */
	u64 bytes;
	u16 queue;
};
/* The packet that the CPU received last: later, a socket takes it. Then one that waited. */
BPF_PERCPU_ARRAY(arrivals, struct passing, 2);
enum { LAST, WAITED };

/* An arrival, which has no room on the stack. */
static inline struct passing *arrival(int which)
{
	return arrivals.lookup(&which);
}

/* The packet that the CPU sends, and how it was counted. */
struct sending {
	struct use_key key;
	u64 skb;
	u64 bytes;
};
BPF_PERCPU_ARRAY(sendings, struct sending, 1);

static inline void count_use(struct use_key *key, bool sent, u64 bytes)
{
	struct use_sums none = {}, *sums = uses.lookup_or_try_init(key, &none);

	if (!sums) {
		count_loss(LOSS_MAP_FULL);
		return;
	}
	if (sent) {
		sums->tx_bytes += bytes;
		sums->tx_packets++;
	} else {
		sums->rx_bytes += bytes;
		sums->rx_packets++;
	}
}

/* Bytes as most devices count them: with the link header, but lo without. */
static inline u64 bytes_of(struct sk_buff *skb, bool is_lo, bool sent)
{
	u64 bytes = READ(skb, len);
	u16 mac = READ(skb, mac_header);

	if (!sent && mac != (u16)~0) /* one that is sent begins with the link header */
		bytes += READ(skb, data) - READ(skb, head) - mac;
	return is_lo ? bytes - ETH_HLEN : bytes;
}

/* Read place, headers and size of a packet; false if filters exclude it. */
static inline bool read_passing(struct passing *to, struct sk_buff *skb, bool sent)
{
	struct net_device *dev = READ(skb, dev);

	if (!take_device(&to->packet, dev) || !pass_netns(to->packet.netns) ||
	    !pass_device(&to->packet))
		return false;
	to->bytes = bytes_of(skb, READ(dev, flags) & IFF_LOOPBACK, sent);
	to->queue = queue_of(skb, dev, sent);
#ifdef NEEDS_HEADERS
	read_flow(&to->packet, skb, sent);
#endif
	return pass_flow(&to->packet, sent);
}

static inline void fill_key(struct use_key *key, const struct passing *from, bool sent, void *ctx)
{
	const struct packet *packet = &from->packet;
	u8 family = packet->family;

	__builtin_memcpy(key->dev, packet->dev, sizeof(key->dev));
	key->netns = packet->netns;
	SET_BY_queue(key, from->queue);
	SET_BY_cpu(key, bpf_get_smp_processor_id());
	SET_BY_proto(key, packet->proto);
	SET_BY_family(key, family);
	SET_BY_laddr(key, sent ? packet->saddr : packet->daddr, family);
	SET_BY_raddr(key, sent ? packet->daddr : packet->saddr, family);
	SET_BY_lport(key, sent ? packet->sport : packet->dport);
	SET_BY_rport(key, sent ? packet->dport : packet->sport);
#ifdef BY_STACK
	key->stack = stacks.get_stackid(ctx, 0);
	if (key->stack < 0)
		count_loss(LOSS_MAP_FULL); /* no room, or another stack is in its place */
#endif
}

#ifdef BY_PROCESS
static inline void fill_owner(struct use_key *key, const struct owner *owner)
{
	SET_BY_pid(key, owner->process.pid);
	SET_BY_comm(key, owner->process.comm);
	SET_BY_uid(key, owner->how ? owner->process.uid : NO_UID);
	SET_BY_cgroup(key, owner->process.cgroup);
	SET_BY_owner(key, owner->how);
}

/* Whose packet is it that leaves a device? */
static inline u8 traffic_of(struct sk_buff *skb, struct sock *sk, const struct owner *owner)
{
	if (!sk)
		return READ(skb, skb_iif) ? TRAFFIC_FORWARDED : TRAFFIC_KERNEL;
	if (owner->how || !READ(sk, sk_socket) || file_of_sock(sk))
		return TRAFFIC_SOCKET;
	return TRAFFIC_KERNEL; /* a socket of the kernel has no file */
}

/* A packet that was received is for a socket. */
static inline int count_taken(const struct passing *from, struct sock *sk, void *ctx)
{
	struct owner owner = {};
	struct use_key key = {};

	find_owner(sk, &owner);
	if (!pass_owner(&owner))
		return 0;
	fill_key(&key, from, false, ctx);
	fill_owner(&key, &owner);
	key.traffic = TRAFFIC_SOCKET;
	count_use(&key, false, from->bytes);
	return 0;
}
#endif

/* A device gets a packet to send. */
static inline int on_start(void *ctx, struct sk_buff *skb)
{
	int zero = 0;
	struct sending *sending = sendings.lookup(&zero);
	struct passing passing = {};
	struct use_key *key;

	if (!sending)
		return 0;
	sending->skb = 0;
	if (!read_passing(&passing, skb, true))
		return 0;
	merge_ways(&passing, sizeof(passing));
	key = &sending->key;
	__builtin_memset(key, 0, sizeof(*key));
#ifdef BY_PROCESS
	struct sock *sk = READ(skb, sk);
	struct owner owner = {};

	if (sk)
		find_sender(sk, &owner);
	if (!pass_owner(&owner))
		return 0;
	fill_owner(key, &owner);
	key->traffic = traffic_of(skb, sk, &owner);
#endif
	fill_key(key, &passing, true, ctx);
	count_use(key, true, passing.bytes);
	sending->skb = (u64)skb;
	sending->bytes = passing.bytes;
	return 0;
}

/* The driver had no room: the packet comes again, so it was not sent this time. */
static inline int on_sent(struct sk_buff *skb, int result)
{
	int zero = 0;
	struct sending *sending = sendings.lookup(&zero);
	struct use_sums *sums;

	if (result != NETDEV_TX_BUSY || !sending || sending->skb != (u64)skb)
		return 0;
	sending->skb = 0;
	sums = uses.lookup(&sending->key);
	if (sums) {
		sums->tx_bytes -= sending->bytes;
		sums->tx_packets--;
	}
	return 0;
}

/* The stack receives a packet from a device. */
static inline int on_received(void *ctx, struct sk_buff *skb)
{
	struct passing *passing = arrival(LAST);

	if (!passing)
		return 0;
	__builtin_memset(passing, 0, sizeof(*passing));
	if (!read_passing(passing, skb, false))
		return 0;
#ifdef BY_PROCESS
	passing->skb = (u64)skb;
#else
	struct use_key key = {};

	fill_key(&key, passing, false, ctx);
	count_use(&key, false, passing->bytes);
#endif
	return 0;
}

#ifdef BY_PROCESS
/* Place, headers and size of a segment that waited until its socket was free. */
static inline bool read_waited(struct passing *to, struct sk_buff *skb, struct sock *sk)
{
	int ifindex = READ(skb, skb_iif);

	to->packet.net = READ(sk, __sk_common.skc_net.net);
	to->packet.netns = READ(to->packet.net, ns.inum);
	if (!pass_netns(to->packet.netns))
		return false;
	take_device_by_index(&to->packet, ifindex);
	if (!pass_device(&to->packet))
		return false;
	to->bytes = bytes_of(skb, ifindex == LOOPBACK_IFINDEX, false);
	to->queue = NO_QUEUE;
	read_flow(&to->packet, skb, true);
	return pass_flow(&to->packet, false);
}

/*
 * Is a segment the last packet, less the padding of short frames? One that waited may have the address
 * of an earlier packet that is gone.
 */
static inline bool is_last(const struct passing *last, struct sk_buff *skb, struct sock *sk)
{
	u16 rport = READ(sk, __sk_common.skc_dport);
	u64 bytes = bytes_of(skb, READ(skb, skb_iif) == LOOPBACK_IFINDEX, false);

	return last->skb == (u64)skb && last->packet.dport == READ(sk, __sk_common.skc_num) &&
	       last->packet.sport == swap16(rport) && last->bytes - bytes < SHORTEST_FRAME;
}

/* An established TCP connection receives a segment. */
static inline int on_segment(void *ctx, struct sock *sk, struct sk_buff *skb)
{
	struct passing *last = arrival(LAST), *waited = arrival(WAITED);

	if (!last || !waited)
		return 0;
	if (is_last(last, skb, sk)) {
		last->skb = 0; /* the address is used again */
		return count_taken(last, sk, ctx);
	}
	__builtin_memset(waited, 0, sizeof(*waited));
	return read_waited(waited, skb, sk) ? count_taken(waited, sk, ctx) : 0;
}

/*
 * A socket has got something to read: the last packet, if it was for this socket. on_segment() has
 * seen those of established TCP connections.
 */
static inline int on_readable(void *ctx, struct sock *sk)
{
	u16 family = READ(sk, __sk_common.skc_family), protocol = READ(sk, sk_protocol);
	struct passing *last = arrival(LAST);
	struct net *net = READ(sk, __sk_common.skc_net.net);

	if (!last || !last->skb || (family != AF_INET && family != AF_INET6) ||
	    protocol != last->packet.proto || net != last->packet.net)
		return 0;
	if (has_ports(protocol) && READ(sk, __sk_common.skc_num) != last->packet.dport)
		return 0;
	if (protocol == IPPROTO_TCP && READ(sk, __sk_common.skc_state) == TCP_ESTABLISHED)
		return 0;
	last->skb = 0;
	return count_taken(last, sk, ctx);
}
#endif
