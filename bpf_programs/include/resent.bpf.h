/* SPDX-License-Identifier: GPL-2.0-only */
/* Which connection, and how often each of its segments was sent again. */
#ifndef NETBPF_RESENT_BPF_H
#define NETBPF_RESENT_BPF_H

#include "sock.bpf.h"

KERNEL_FIELDS(tcp_sock, snd_una, bytes_acked)
KERNEL_FIELDS(inet_connection_sock, icsk_retransmits)

/*
 * A connection, for as long as its counters and sequence numbers mean the same. The address of a
 * socket is not enough: it is used again, by another socket or by the same one after a connect()
 * with AF_UNSPEC. Each connection has a first sequence number of its own; a request has it as well.
 */
struct connection {
	u64 object;
	u32 first_seq;
	u32 pad;
};

/*
 * How often each segment was sent again; the least recently used entries are evicted.
 * A segment is named by its distance from the first one: sequence numbers come again after 4 GB.
 */
struct segment {
	struct connection of;
	u64 distance;
};
BPF_TABLE("lru_hash", struct segment, u32, attempts, MAP_ENTRIES);

static inline void identify(struct connection *connection, struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	connection->object = (u64)sk;
	connection->first_seq = READ(tp, snd_una) - (u32)READ(tp, bytes_acked);
}

static inline u32 count_attempt(struct connection *connection, struct sock *sk, u32 seq)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	u32 una = READ(tp, snd_una), count = 1, by_timer = 0, *before;
	struct segment segment = {};

	segment.of = *connection;
	segment.distance = READ(tp, bytes_acked) + (s32)(seq - una);
	before = attempts.lookup(&segment);
	if (before)
		count = *before + 1;
	/* The timer sends the first segment, and counts from 0 after each acknowledgement. */
	if (seq == una)
		by_timer = READ((struct inet_connection_sock *)sk, icsk_retransmits);
	if (count < by_timer) /* it began before the start */
		count = by_timer;
	attempts.update(&segment, &count);
	return count;
}

#endif
