/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The probes `send_reset` and `receive_reset`: RSTs that end a session, and those that this end sends
 * after the change to CLOSE, when the session's event is already out. A program includes
 * <netbpf/records.h> before.
 */
#ifndef NETBPF_RESETS_BPF_H
#define NETBPF_RESETS_BPF_H

#include "sessions.bpf.h"

/*
 * The reader holds back an event whose `key` is not 0 for a moment; a second event with the same key
 * and AMENDMENT in it changes the column `close` of the first.
 */
#define AMENDMENT 1

/*
 * By the address of struct sock: the key of the event that was sent last, if it may be amended. The
 * RST follows in the same call or for the same packet, so that only the newest entries matter.
 */
BPF_TABLE("lru_hash", u64, u64, amendable, LRU_ENTRIES(16384));
/*
 * By key: amendments that found no room in the ring. No event is lost: the reader looks them up here,
 * and removes what it has read.
 */
BPF_HASH(late, u64, u8, 4096);

/* The session ended by a RST of this end, sent after the change to CLOSE. */
static inline void amend(struct sock *sk)
{
	struct session ev = {.close = CLOSE_RST_LOCAL};
	u64 key = (u64)sk, *amended = pass_ends(sk) ? amendable.lookup(&key) : NULL;

	if (!amended)
		return;
	ev.time = bpf_ktime_get_ns();
	ev.key = *amended | AMENDMENT;
	amendable.delete(&key);
	if (events.ringbuf_output(&ev, sizeof(ev), 0)) {
		ev.key ^= AMENDMENT;
		if (late.update(&ev.key, &ev.close))
			count_loss(LOSS_RING_FULL);
	}
}

static inline void note_reset(struct sock *sk, u8 whose)
{
	struct session_state *session = pass_ends(sk) ? session_of(sk) : NULL;

	if (session && !session->rst)
		session->rst = whose;
}

/*
 * This end sends a RST, which either answers a packet or ends the session: the change to CLOSE is
 * then the next step, or was the last one. After an answer the session continues, unless it is in
 * CLOSE. `sk` may be NULL, a request or a timewait socket.
 */
static inline int on_send_reset(struct sock *sk, bool answer)
{
	if (!sk)
		return 0;
	if (READ(sk, __sk_common.skc_state) == TCP_CLOSE)
		amend(sk);
	else if (!answer)
		note_reset(sk, CLOSE_RST_LOCAL);
	return 0;
}

static inline int on_receive_reset(struct sock *sk)
{
	if (READ(sk, __sk_common.skc_state) != TCP_CLOSE)
		note_reset(sk, CLOSE_RST_REMOTE);
	return 0;
}

#endif
