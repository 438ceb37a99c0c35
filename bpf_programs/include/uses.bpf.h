/* SPDX-License-Identifier: GPL-2.0-only */
/* Uses of devices, counted by the keys of --by. */
#ifndef NETBPF_USES_BPF_H
#define NETBPF_USES_BPF_H

#include "blocks.bpf.h"
#include "passing.bpf.h"
#include "users.bpf.h"

#define NETDEV_TX_BUSY 0x10 /* include/linux/netdevice.h */
#define NO_UID ((u32)-1) /* null in the column: uid 0 is root */

BPF_F_TABLE("percpu_hash", struct use_key, struct use_sums, uses, MAP_ENTRIES, 0);
#ifdef BY_STACK
BPF_STACK_TRACE(stacks, 4096);
#endif

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
#endif

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

#endif
