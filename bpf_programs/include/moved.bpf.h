/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The map `moved`: sessions, who moved bytes through them, and how many. A program includes
 * <netbpf/records.h>, with struct session and struct session_sums, before this. Includes owners.bpf.h,
 * which calls on_owner() for each proof of an owner.
 */
#ifndef NETBPF_MOVED_BPF_H
#define NETBPF_MOVED_BPF_H

#include "streams.bpf.h"
#include "unfollowed.bpf.h"

/* `since` of a socket's session, or CROSSED. By address of the socket, until it is destroyed. */
BPF_HASH(current_sessions, u64, u64, MAP_ENTRIES);
#define CROSSED 1 /* both ends sent a SYN: bytes_acked will include this end's */

/* Also sessions that ended in this interval or the one before: user space removes them. */
BPF_HASH(moved, struct session, struct session_sums, MAP_ENTRIES * 4);

static inline struct session_sums *session_of(struct sock *sk)
{
	struct session key = {.sk = (u64)sk};
	u64 *since = current_sessions.lookup(&key.sk);

	if (!since)
		return NULL;
	key.since = *since;
	return moved.lookup(&key);
}

static inline void begin_session(struct sock *sk, const struct streams *first, bool finished)
{
	struct session key = {.sk = (u64)sk, .since = bpf_ktime_get_ns()};
	struct session_sums fresh = {.uid = ~0U, .finished = finished};
	struct endpoints ends = {};

	read_endpoints(sk, &ends);
	if (!pass_endpoints(&ends))
		return;
	SET_ENDS(&fresh, &ends);
	fresh.first_acked = first->acked;
	fresh.first_received = first->received;
	fresh.first_written = first->written;
	fresh.first_read = first->read;
	if (moved.update(&key, &fresh)) {
		count_unfollowed(key.sk);
	} else if (current_sessions.update(&key.sk, &key.since)) {
		moved.delete(&key);
		count_unfollowed(key.sk);
	}
}

/* A session that is older than the run: only what it moves from now on counts. */
static inline void begin_old(struct sock *sk)
{
	u64 key = (u64)sk;
	struct streams now = {};
	int state;

	if (current_sessions.lookup(&key))
		return;
	read_streams(&now, sk);
	state = READ(sk, __sk_common.skc_state); /* after the numbers: a FIN counts as written */
	if (state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT)
		begin_session(sk, &now, false);
	else if (state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_CLOSING ||
		 (state == TCP_CLOSE && READ(sk, __sk_common.skc_dport)))
		begin_session(sk, &now, true); /* which can still read what has arrived */
}

/* A process proved that it holds the socket: if the filters exclude it, the session is removed. */
static inline void on_owner(struct sock *sk, bool pass, int how)
{
	struct session key = {.sk = (u64)sk};
	u64 *since = pass ? NULL : current_sessions.lookup(&key.sk);

	if (pass && how == OWNER_SNAPSHOT)
		begin_old(sk);
	if (!since)
		return;
	key.since = *since;
	moved.delete(&key);
	current_sessions.delete(&key.sk);
}
#define ON_OWNER(sk, pass) on_owner(sk, pass, owner->how)
#define SNAPSHOT_STATES ~(1 << TCP_LISTEN)

#include "owners.bpf.h"

/* The session that the socket had, if any, is over; the next one may have the same ends. */
static inline void leave_session(struct sock *sk)
{
	struct session_sums *sums = session_of(sk);
	u64 key = (u64)sk;

	if (sums)
		sums->gone = 1;
	current_sessions.delete(&key);
}

/* Is the socket still connected as in this session? connect(AF_UNSPEC) removes the remote port. */
static inline bool is_same(struct sock *sk, const struct session_sums *sums)
{
	struct endpoints ends = {};

	read_endpoints(sk, &ends);
	return ends.rport == sums->rport && ends.lport == sums->lport && ends.netns == sums->netns;
}

/*
 * Read the totals: the program writes until its FIN, and reads until the socket is destroyed. Return
 * whether the session still is at this address. The flags are read after the numbers: if a flag is
 * not set, the numbers are not of a later time.
 */
static inline bool measure(struct sock *sk, struct session_sums *sums, u64 *tx, u64 *rx)
{
	struct streams first = {.acked = sums->first_acked, .received = sums->first_received};
	struct streams now = {};
	bool present;

	first.written = sums->first_written;
	first.read = sums->first_read;
	read_streams(&now, sk);
	present = is_same(sk, sums) && !sums->gone;
	*tx = sums->finished || !present ? sums->last_tx : written_since(&first, &now);
	*rx = present ? read_since(&first, &now) : sums->last_rx;
	return present;
}

/* At a FIN, CLOSE or the destruction: these hold the socket's lock, the iterator does not. */
static inline void measure_last(struct sock *sk, struct session_sums *sums)
{
	u64 tx, rx;

	measure(sk, sums, &tx, &rx);
	sums->last_tx = tx;
	sums->last_rx = rx;
	asm volatile("" ::: "memory");
	sums->finished = 1;
}

#endif
