/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Connections that a listener lost, equal to ListenDrops when it is the only one of its namespace.
 *
 * Since 6.11 (kfree_skb with rx_sk) the number is sk_drops minus the packets that the listener
 * refused, which kfree_skb shows. On older kernels two functions that lose connections are probed.
 */
#ifndef NETBPF_LOST_BPF_H
#define NETBPF_LOST_BPF_H

#include "listeners.bpf.h"

KERNEL_FIELDS(sk_buff, head, end, protocol, dev, transport_header)
KERNEL_FIELDS(skb_shared_info, gso_segs)

#define ETH_P_IP 0x0800
#define TCP_FLAG_ACK 0x10

#if defined(USE_dropped_rawtp) || defined(USE_dropped_tp)
#define READINGS 4

/*
 * tcp_listendrop() raises sk_drops together with ListenDrops. A packet that the listener refuses
 * raises sk_drops alone (tcp_v4_rcv, discard_and_relse), and is subtracted: a repeated SYN, an ACK
 * that TCP_DEFER_ACCEPT ignores, a RST. It is freed a moment after it raised sk_drops: the smallest
 * of several readings is right.
 */
static inline u32 lost_by(struct sock *sk, struct tracked *found)
{
	s32 least = 0x7fffffff;

	for (int i = 0; i < READINGS; i++) {
		u32 drops = READ(sk, sk_drops.counter) - found->drops;
		s32 lost = drops - (u32)found->refused;

		if (lost < least)
			least = lost;
	}
	return least > 0 ? least : 0;
}
#else
static inline u32 lost_by(struct sock *sk, struct tracked *found)
{
	return found->lost;
}
#endif

/*
 * Does sk_drops include a packet that is freed for a listener? tcp_v4_rcv() raises it, except for a
 * wrong checksum. After tcp_v4_rcv() has cleared skb->dev and called tcp_v4_do_rcv(), only tcp_drop()
 * raises it, for a packet without ACK: an ACK without a valid SYN cookie is answered with a reset.
 */
static inline bool is_counted(struct sk_buff *skb, u32 reason)
{
	u8 *header = (u8 *)READ(skb, head) + READ(skb, transport_header);
	u8 flags = 0;

	if (reason == REASON_TCP_CSUM)
		return false;
	if (READ(skb, dev))
		return true;
	bpf_probe_read_kernel(&flags, sizeof(flags), header + 13);
	return !(flags & TCP_FLAG_ACK);
}

/* A listener refused a packet: its sk_drops is higher, but no connection is lost. */
static inline int on_dropped(struct sk_buff *skb, u32 reason, struct sock *sk)
{
	struct skb_shared_info *shared;
	struct tracked *found;
	u16 segments;

	if (!sk || READ(sk, __sk_common.skc_state) != TCP_LISTEN)
		return 0;
	found = find_tracked(sk);
	if (!found || !is_counted(skb, reason))
		return 0;
	shared = (void *)READ(skb, head) + READ(skb, end);
	segments = READ(shared, gso_segs);
	__sync_fetch_and_add(&found->refused, segments ? segments : 1);
	return 0;
}

/* What this CPU is doing; all of it runs with bottom halves off. */
struct cpu_work {
	u64 listener; /* whose tcp_conn_request() runs */
	u64 answered; /* did that make a SYN-ACK? */
	u64 accepting; /* whose syn_recv_sock() runs */
};
BPF_PERCPU_ARRAY(cpu_work, struct cpu_work, 1);

static inline struct cpu_work *current_work(void)
{
	int zero = 0;

	return cpu_work.lookup(&zero);
}

/* tcp_listendrop(): the listener lost a connection. */
static inline void count_lost(struct sock *sk)
{
	struct tracked *found = find_tracked(sk);

	if (found)
		__sync_fetch_and_add(&found->lost, 1);
}

/* tcp_conn_request() returns: the SYN is lost if no SYN-ACK was made. */
static inline int on_syn_end(void)
{
	struct cpu_work *work = current_work();

	if (!work)
		return 0;
#if defined(USE_synack_fentry) || defined(USE_synack_kprobe)
	if (work->listener && !work->answered)
		count_lost((struct sock *)work->listener);
#endif
	work->listener = 0;
	return 0;
}

/* The last packet of a handshake, with a request or a cookie, made a child, or NULL if it is lost. */
static inline int on_syn_recv(struct sock *sk, struct sock *child)
{
	if (!child)
		count_lost(sk);
	return 0;
}

/* For an IPv4 packet tcp_v6_syn_recv_sock() calls tcp_v4_syn_recv_sock(), which counts the loss. */
static inline int on_syn_recv6(struct sock *sk, struct sock *child, struct sk_buff *skb)
{
	return child || READ(skb, protocol) == swap16(ETH_P_IP) ? 0 : on_syn_recv(sk, child);
}

/* A kretprobe has no arguments: keep the listener until the function returns. */
static inline int on_syn_recv_begin(u64 sk)
{
	struct cpu_work *work = current_work();

	if (work)
		work->accepting = sk;
	return 0;
}

static inline int on_syn_recv_end(struct sock *child)
{
	struct cpu_work *work = current_work();

	/* For an IPv4 packet of an IPv6 listener the inner function of the two returns first. */
	if (work && work->accepting)
		on_syn_recv((struct sock *)work->accepting, child);
	return on_syn_recv_begin(0);
}

#endif
