/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which connection, and how often each of its segments was sent again. A program includes
 * <netbpf/records.h> before.
 */
#ifndef NETBPF_RESENT_BPF_H
#define NETBPF_RESENT_BPF_H

#include "sock.bpf.h"

KERNEL_FIELDS(tcp_sock, snd_una, bytes_acked)
KERNEL_FIELDS(inet_connection_sock, icsk_retransmits)

/*
 * struct connection is the key of the table of flows: the address of a socket is not enough, as it is
 * used again, by another socket or by the same one after a connect() with AF_UNSPEC. Each connection
 * has a first sequence number of its own; a request has it as well.
 */
/*
 * How often each segment was sent again, until it is acknowledged or the connection ends. The key has
 * the segment's distance from the first one, as sequence numbers wrap around after 4 GB.
 */
struct segment {
	u64 object;
	u64 distance;
};
struct resent {
	u64 newer; /* distance of the segment that was sent again next, for the first time */
	u32 count;
	u32 pad;
};
BPF_HASH(attempts, struct segment, struct resent, MAP_ENTRIES * 4);

#define SEGMENTS 1024 /* of a connection that are remembered */
#define AT_ONCE 4 /* acknowledged ones that are forgotten with each new one */

/* By the address of struct sock: its segments in a row. Removed with all of them at CLOSE. */
struct resends {
	u64 oldest;
	u64 newest;
	u64 unknown_from; /* those between were sent again and found no room; none if equal */
	u64 unknown_to;
	u32 number;
	u32 first_seq;
};
BPF_HASH(resends, u64, struct resends, MAP_ENTRIES);

static inline void identify(struct connection *connection, struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	connection->object = (u64)sk;
	connection->first_seq = READ(tp, snd_una) - (u32)READ(tp, bytes_acked);
}

static inline void forget_oldest(u64 object, struct resends *resends)
{
	struct segment segment = {.object = object, .distance = resends->oldest};
	struct resent *resent = attempts.lookup(&segment);

	resends->number = resent ? resends->number - 1 : 0;
	resends->oldest = resent ? resent->newer : 0;
	attempts.delete(&segment);
}

static inline void forget(u64 object, struct resends *known, int most)
{
#pragma nounroll
	for (int i = 0; i < most && known->number; i++)
		forget_oldest(object, known);
}

/* The connection is over. */
static inline void forget_segments(struct sock *sk)
{
	u64 object = (u64)sk;
	struct resends *known = resends.lookup(&object);

	if (!known)
		return;
	forget(object, known, SEGMENTS);
	resends.delete(&object);
}

/* The segments of a connection; NULL if there is no room. Its socket is locked. */
static inline struct resends *segments_of(struct connection *connection)
{
	struct resends none = {.first_seq = connection->first_seq}, *known;
	u64 object = connection->object;

	known = resends.lookup_or_try_init(&object, &none);
	if (known && known->first_seq != connection->first_seq) {
		/* Entries of another connection, whose end was missed: those not deleted here remain. */
		forget(object, known, 8 * AT_ONCE);
		*known = none;
	}
	return known;
}

/* A segment is sent again for the first time. */
static inline bool remember(struct segment *segment, struct resends *known)
{
	struct segment last = {.object = segment->object, .distance = known->newest};
	struct resent fresh = {.count = 1}, *newest;

	if (known->number >= SEGMENTS || attempts.update(segment, &fresh))
		return false;
	newest = known->number ? attempts.lookup(&last) : NULL;
	if (newest)
		newest->newer = segment->distance;
	else
		known->oldest = segment->distance;
	known->newest = segment->distance;
	known->number++;
	return true;
}

/* The segment has no entry: it was never sent again, or there was no room for it. */
static inline void meet(struct segment *segment, struct resends *known, u64 acked)
{
	u64 at = segment->distance;

	for (int i = 0; i < AT_ONCE && known->number && known->oldest < acked; i++)
		forget_oldest(segment->object, known);
	if (known->unknown_to <= acked)
		known->unknown_from = known->unknown_to = 0;
	if (at >= known->unknown_from && at < known->unknown_to)
		count_loss(LOSS_MAP_FULL);
	if (remember(segment, known))
		return;
	if (known->unknown_from == known->unknown_to)
		known->unknown_from = at;
	if (at < known->unknown_from)
		known->unknown_from = at;
	if (at >= known->unknown_to)
		known->unknown_to = at + 1;
}

/* Return the number of this retransmission of the segment. If it may be higher, count a loss. */
static inline u32 count_attempt(struct connection *connection, struct sock *sk, u32 seq)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	u64 acked = READ(tp, bytes_acked);
	u32 una = READ(tp, snd_una), count = 1, by_timer = 0;
	struct resends *known = segments_of(connection);
	struct segment segment = {.object = connection->object};
	struct resent *before;

	segment.distance = acked + (s32)(seq - una);
	before = attempts.lookup(&segment);
	if (before)
		count = before->count + 1;
	else if (known)
		meet(&segment, known, acked);
	else if (READ(sk, __sk_common.skc_state) != TCP_SYN_SENT) /* then it is by timer */
		count_loss(LOSS_MAP_FULL);
	/* The timer sends the first segment, and counts from 0 after each acknowledgement. */
	if (seq == una)
		by_timer = READ((struct inet_connection_sock *)sk, icsk_retransmits);
	if (count < by_timer) /* it began before the start */
		count = by_timer;
	before = attempts.lookup(&segment);
	if (before)
		before->count = count;
	return count;
}

#endif
