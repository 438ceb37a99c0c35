/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How far the two streams of a TCP session are: the bytes that the program wrote and read, which the
 * kernel stores as sequence numbers. SYN and FIN take one number each.
 */
#ifndef NETBPF_STREAMS_BPF_H
#define NETBPF_STREAMS_BPF_H

#include "sock.bpf.h"

KERNEL_FIELDS(sock, __sk_common.skc_flags)
KERNEL_FIELDS(tcp_sock, bytes_acked, bytes_received, write_seq, snd_una, rcv_nxt, copied_seq)
KERNEL_ENUM(sock_flags, SOCK_DONE)

/* Both sequence numbers, and the kernel's totals at the same time. */
struct streams {
	u64 acked;
	u64 received;
	u32 written;
	u32 read;
};

/* Did a FIN arrive, and is all data before it in the queue? */
static inline bool has_peers_fin(struct sock *sk)
{
	return READ(sk, __sk_common.skc_flags) >> SOCK_DONE & 1;
}

/* A program that reads the end of the data reads the FIN. */
static inline void read_streams(struct streams *to, struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	to->written = READ(tp, write_seq);
	/* In this order: if the FIN was read, what is read here afterwards includes it. */
	to->read = READ(tp, copied_seq);
	if (has_peers_fin(sk) && to->read == READ(tp, rcv_nxt))
		to->read--;
	to->acked = READ(tp, bytes_acked);
	to->received = READ(tp, bytes_received);
}

/*
 * Where the streams began, of a session that is being established. Fast Open may have moved data
 * before. The SYN counts in bytes_acked if this end was active; a FIN that came with the peer's SYN
 * does not count in bytes_received.
 */
static inline void read_first(struct streams *to, struct sock *sk, bool active)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	to->acked = to->received = 0;
	to->written = READ(tp, snd_una) - (u32)READ(tp, bytes_acked) + active;
	to->read = READ(tp, rcv_nxt) - (u32)READ(tp, bytes_received) - has_peers_fin(sk);
}

/*
 * The sequence numbers are exact and come round every 4 GiB. The totals of 64 bits are not: they
 * include SYN and FIN, and differ by what waits in the queues, which is less than 2 GiB.
 */
static inline u64 widen(u32 exact, u64 about)
{
	return about + (s64)(s32)(exact - (u32)about);
}

static inline u64 written_since(const struct streams *from, const struct streams *to)
{
	return widen(to->written - from->written, to->acked - from->acked);
}

static inline u64 read_since(const struct streams *from, const struct streams *to)
{
	return widen(to->read - from->read, to->received - from->received);
}

#endif
