/* SPDX-License-Identifier: GPL-2.0-only */
/* How long an open session has been idle, and the bytes that wait on its two sides. */
#ifndef NETBPF_IDLE_BPF_H
#define NETBPF_IDLE_BPF_H

#include "session_state.bpf.h"

KERNEL_FIELDS(tcp_sock, lsndtime, rcv_nxt, copied_seq)
KERNEL_FIELDS(inet_connection_sock, icsk_ack.lrcvtime)

/* What is known of an open session only; UNKNOWN before the handshake, and in a sockmap. */
struct idleness {
	u64 idle_ns; /* since data was sent or received */
	u64 age_ns; /* at least: since the earlier of the last data of both directions */
	u64 unread; /* octets that arrived in order and were not read */
	u64 unsent; /* octets that were written and not handed to IP */
};

/* The time since a moment in ticks (tcp_jiffies32), in ns. */
static inline u64 since_tick(u32 then)
{
	return (u64)((u32)bpf_jiffies64() - then) * TICK_US * 1000;
}

/*
 * As tcp_get_info() and tcp_inq(): lsndtime and lrcvtime are set by data (tcp_event_data_sent,
 * tcp_event_data_recv), and when the session is set up. A FIN counts in both pairs of numbers, the
 * peer's until it is read.
 */
static inline void read_idleness(struct idleness *to, struct sock *sk, int state)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	u64 sent_ns, received_ns;
	u32 unread, unsent;

	if (state == TCP_SYN_SENT || is_in_sockmap(sk)) {
		to->idle_ns = to->age_ns = to->unread = to->unsent = UNKNOWN;
		return;
	}
	sent_ns = since_tick(READ(tp, lsndtime));
	received_ns = since_tick(READ((struct inet_connection_sock *)sk, icsk_ack.lrcvtime));
	to->idle_ns = sent_ns < received_ns ? sent_ns : received_ns;
	to->age_ns = sent_ns < received_ns ? received_ns : sent_ns;
	unread = READ(tp, rcv_nxt) - READ(tp, copied_seq);
	if (unread && READ(sk, __sk_common.skc_flags) >> SOCK_DONE & 1)
		unread--;
	unsent = READ(tp, write_seq) - READ(tp, snd_nxt);
	if (unsent && has_own_fin(state))
		unsent--;
	to->unread = unread;
	to->unsent = unsent;
}

#endif
