/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Packets that a receive buffer did not take: for each, the cause is counted in the map of
 * receive_buffers.bpf.h.
 */
#ifndef NETBPF_RECEIVE_DROPS_BPF_H
#define NETBPF_RECEIVE_DROPS_BPF_H

#include "receive_buffers.bpf.h"

KERNEL_OPTIONAL_ENUM(skb_drop_reason, SKB_DROP_REASON_SOCKET_RCVBUFF)
KERNEL_OPTIONAL_ENUM(skb_drop_reason, SKB_DROP_REASON_PROTO_MEM)
KERNEL_OPTIONAL_ENUM(skb_drop_reason, SKB_DROP_REASON_SOCKET_BACKLOG)
KERNEL_OPTIONAL_ENUM(skb_drop_reason, SKB_DROP_REASON_TCP_ZEROWINDOW)
KERNEL_OPTIONAL_ENUM(skb_drop_reason, SKB_DROP_REASON_TCP_OVERWINDOW)
KERNEL_OPTIONAL_ENUM(skb_drop_reason, SKB_DROP_REASON_TCP_OFO_QUEUE_PRUNE)
/* Since 9ca48d616ed7 ("tcp: do not accept packets beyond window", 6.17). */
KERNEL_OPTIONAL_ENUM(skb_drop_reason, SKB_DROP_REASON_TCP_INVALID_END_SEQUENCE)

enum cause { NO_CAUSE, NO_ROOM, MEMORY, BACKLOG, WINDOW, PRUNED };
enum { ENOMEM = 12 }; /* asm-generic/errno-base.h */

#ifdef SEES_CAUSES
static inline enum cause cause_of(u32 reason)
{
	switch (reason) {
	case HAVE_SKB_DROP_REASON_SOCKET_RCVBUFF:
		return NO_ROOM;
	case HAVE_SKB_DROP_REASON_PROTO_MEM:
		return MEMORY;
	case HAVE_SKB_DROP_REASON_SOCKET_BACKLOG:
		return BACKLOG;
	case HAVE_SKB_DROP_REASON_TCP_OFO_QUEUE_PRUNE:
		return PRUNED;
	case HAVE_SKB_DROP_REASON_TCP_ZEROWINDOW:
	case HAVE_SKB_DROP_REASON_TCP_OVERWINDOW:
#ifdef HAVE_SKB_DROP_REASON_TCP_INVALID_END_SEQUENCE
	case HAVE_SKB_DROP_REASON_TCP_INVALID_END_SEQUENCE:
#endif
		return WINDOW;
	}
	return NO_CAUSE;
}
#endif

static inline void count_drop(struct sock *sk, enum cause cause)
{
	struct buffer_sums *sums = has_buffer(sk) ? buffer_or_new(sk) : NULL;

	if (!sums)
		return;
	measure(sk, sums);
	if (cause == NO_ROOM)
		__sync_fetch_and_add(&sums->all_no_room, 1);
	else if (cause == MEMORY)
		__sync_fetch_and_add(&sums->all_memory, 1);
	else if (cause == BACKLOG)
		__sync_fetch_and_add(&sums->all_backlogged, 1);
	else if (cause == WINDOW)
		__sync_fetch_and_add(&sums->all_window, 1);
	else
		__sync_fetch_and_add(&sums->all_pruned, 1);
}

/* A packet is freed; `sk` is the socket that it came for, or NULL. */
static inline int on_drop(struct sk_buff *skb, u32 reason, struct sock *sk)
{
#ifdef SEES_CAUSES
	enum cause cause = cause_of(reason);

	if (sk && cause != NO_CAUSE)
		count_drop(sk, cause);
#endif
	return 0;
}

/* A UDP socket does not take a packet: for kernels whose kfree_skb does not show the socket. */
static inline int on_udp_drop(struct sock *sk, int error)
{
#ifndef SEES_CAUSES
	count_drop(sk, error == -ENOMEM ? NO_ROOM : MEMORY);
#endif
	return 0;
}

#endif
