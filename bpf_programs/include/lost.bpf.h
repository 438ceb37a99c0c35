/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Connections that a listener lost, equal to ListenDrops when it is the only one of its namespace.
 *
 * Since 6.11 (kfree_skb with rx_sk) they are sk_drops without the packets that it refused, which are
 * freed. Older kernels: probes of the two functions that lose connections.
 */
#ifndef NETBPF_LOST_BPF_H
#define NETBPF_LOST_BPF_H

#include "listeners.bpf.h"

KERNEL_FIELDS(sk_buff, head, end, protocol, dev, transport_header)
KERNEL_FIELDS(skb_shared_info, gso_segs)

#define ETH_P_IP 0x0800
#define TCP_FLAG_ACK 0x10

#if defined(USE_dropped_rawtp) || defined(USE_dropped_tp)
#define LOOKS 4

/*
 * Connections that the listener lost: tcp_listendrop() raises its sk_drops together with
 * ListenDrops. A packet that the listener refuses raises sk_drops alone (tcp_v4_rcv,
 * discard_and_relse), and is taken off: a repeated SYN, an ACK that TCP_DEFER_ACCEPT ignores, a RST.
 * It is freed a moment after it raised sk_drops: the smallest of several looks is right.
 */
static inline u32 lost_by(struct sock *sk, struct known *found)
{
	s32 least = 0x7fffffff;

	for (int i = 0; i < LOOKS; i++) {
		u32 drops = READ(sk, sk_drops.counter) - found->drops;
		s32 lost = drops - (u32)found->refused;

		if (lost < least)
			least = lost;
	}
	return least > 0 ? least : 0;
}
#else
static inline u32 lost_by(struct sock *sk, struct known *found)
{
	return found->lost;
}
#endif

/*
 * Is a packet that is freed for a listener in its sk_drops? tcp_v4_rcv() raises that, except for a
 * wrong checksum. Once it has taken the device away and gone on to tcp_v4_do_rcv(), only tcp_drop()
 * does, for what is no ACK: an ACK that is no SYN cookie's is answered with a reset.
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

/* A listener gave a packet up: its sk_drops is higher, but no connection is lost. */
static inline int on_refused(struct sk_buff *skb, u32 reason, struct sock *sk)
{
	struct skb_shared_info *shared;
	struct known *found;
	u16 segments;

	if (!sk || READ(sk, __sk_common.skc_state) != TCP_LISTEN)
		return 0;
	found = find_known(sk);
	if (!found || !is_counted(skb, reason))
		return 0;
	shared = (void *)READ(skb, head) + READ(skb, end);
	segments = READ(shared, gso_segs);
	__sync_fetch_and_add(&found->refused, segments ? segments : 1);
	return 0;
}

#ifdef USE_dropped_rawtp
int dropped_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	return on_refused((struct sk_buff *)RAWTP_ARG(dropped, skb), RAWTP_ARG(dropped, reason),
			  (struct sock *)RAWTP_ARG(dropped, rx_sk));
}
#endif
#ifdef USE_dropped_tp
int dropped_tp(struct dropped_args *ctx)
{
	return on_refused((struct sk_buff *)ctx->skbaddr, ctx->reason, (struct sock *)ctx->rx_sk);
}
#endif

/* What this CPU is processing; all of it runs with bottom halves off. */
struct at_work {
	u64 listener; /* whose tcp_conn_request() runs */
	u64 answered; /* did it make a SYN-ACK? */
	u64 accepting; /* whose syn_recv_sock() runs */
};
BPF_PERCPU_ARRAY(at_work, struct at_work, 1);

static inline struct at_work *working(void)
{
	int zero = 0;

	return at_work.lookup(&zero);
}

/* tcp_listendrop(): the listener lost a connection. */
static inline void on_lost(struct sock *sk)
{
	struct known *found = find_known(sk);

	if (found)
		__sync_fetch_and_add(&found->lost, 1);
}

/* A SYN was dealt with, with a SYN-ACK or without. */
static inline int on_syn_end(void)
{
	struct at_work *now = working();

#if defined(USE_synack_fentry) || defined(USE_synack_kprobe)
	if (now && now->listener && !now->answered)
		on_lost((struct sock *)now->listener);
#endif
	if (now)
		now->listener = 0;
	return 0;
}

#ifdef USE_syn_end_fexit
int syn_end_fexit(u64 *ctx)
{
	return on_syn_end();
}
#endif
#ifdef USE_syn_end_kretprobe
int syn_end_kretprobe(struct pt_regs *ctx)
{
	return on_syn_end();
}
#endif

/* The last packet of a handshake, with a request or a cookie: a child, or NULL for a lost one. */
#ifdef USE_dropped_fexit
int dropped_fexit(u64 *ctx)
{
	if (!ctx[ARGS_dropped])
		on_lost((struct sock *)ctx[ARG_dropped_sk]);
	return 0;
}
#endif
#ifdef USE_dropped6_fexit
int dropped6_fexit(u64 *ctx)
{
	struct sk_buff *skb = (struct sk_buff *)ctx[ARG_dropped6_skb];

	/* Called for an IPv4 packet, it is the other one that does the work. */
	if (!ctx[ARGS_dropped6] && READ(skb, protocol) != swap16(ETH_P_IP))
		on_lost((struct sock *)ctx[ARG_dropped6_sk]);
	return 0;
}
#endif

/* A return has no arguments: they are kept from the entry. */
static inline int on_accepting(u64 sk)
{
	struct at_work *now = working();

	if (now)
		now->accepting = sk;
	return 0;
}

static inline int on_accepted(bool child)
{
	struct at_work *now = working();

	/* With an IPv4 packet of an IPv6 listener the inner one of two comes first. */
	if (now && now->accepting && !child)
		on_lost((struct sock *)now->accepting);
	return on_accepting(0);
}

#ifdef USE_dropped_from_kprobe
int dropped_from_kprobe(struct pt_regs *ctx)
{
	return on_accepting(PT_REGS_PARM1(ctx));
}
#endif
#ifdef USE_dropped_kretprobe
int dropped_kretprobe(struct pt_regs *ctx)
{
	return on_accepted(PT_REGS_RC(ctx));
}
#endif
#ifdef USE_dropped6_kretprobe
int dropped6_kretprobe(struct pt_regs *ctx)
{
	return on_accepted(PT_REGS_RC(ctx));
}
#endif

#endif
