// SPDX-License-Identifier: GPL-2.0-only
/* tcptop: bytes that programs move through TCP sessions. Front-end: netbpf/tools/tcptop.py */
#include "netbpf.bpf.h"
#include <netbpf/records.h>
#include "moved.bpf.h"

KERNEL_FIELDS(sock, sk_lock.owned)
KERNEL_FIELDS(tcp_sock, repair)

static inline void fill_owner(struct session_sums *sums, struct owner *owner)
{
	if (!owner->how)
		return;
	SET_OWNER(sums, owner);
	sums->pass = owner->pass;
}

static inline void on_established(struct sock *sk, int oldstate)
{
	u64 key = (u64)sk, *crossed = current_sessions.lookup(&key);
	struct streams first = {};
	bool active = crossed && *crossed == CROSSED;

	if (oldstate == TCP_SYN_SENT) {
#ifdef FILTER_PROCESS
		if (!has_record(sk))
			return; /* the filter excluded the process that connects */
#endif
		active = !read_tcp_sock_repair((struct tcp_sock *)sk); /* no SYN is sent then */
	}
	read_first(&first, sk, active);
	begin_session(sk, &first, false);
}

static inline void on_close(struct sock *sk, struct session_sums *sums)
{
	struct owner owner = {};

	if (!find_owner(sk, &owner) && READ(sk, sk_lock.owned))
		owner_from_current(&owner);
	fill_owner(sums, &owner);
}

static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
	u64 key = (u64)sk, crossed = CROSSED;
	struct session_sums *sums;

	if (READ(sk, sk_protocol) != IPPROTO_TCP || newstate == TCP_LISTEN)
		return 0;
	if (!may_pass_socket(sk)) {
		/* A local port is chosen after SYN_SENT: the owner was recorded. */
		if (newstate == TCP_ESTABLISHED || newstate == TCP_CLOSE)
			forget_owner(sk);
		return 0;
	}
	if (oldstate == TCP_LISTEN || newstate == TCP_SYN_SENT)
		leave_session(sk);
	if (oldstate == TCP_LISTEN) { /* the owner of the listener, or of an earlier socket */
		forget_owner(sk);
		return 0;
	}
	owner_on_state(sk, newstate);
	if (oldstate == TCP_SYN_SENT && newstate == TCP_SYN_RECV &&
	    current_sessions.update(&key, &crossed))
		count_unfollowed(key);
	if (newstate == TCP_ESTABLISHED || oldstate == TCP_SYN_RECV)
		on_established(sk, oldstate);
	if (newstate != TCP_FIN_WAIT1 && newstate != TCP_LAST_ACK && newstate != TCP_CLOSE)
		return 0;
	sums = session_of(sk);
	if (sums)
		measure_last(sk, sums);
	if (sums && newstate == TCP_CLOSE)
		on_close(sk, sums);
	if (newstate == TCP_CLOSE)
		forget_owner(sk);
	return 0;
}

/* Until here the program can read what arrived before the session's end. */
static inline int on_gone(struct sock *sk)
{
	struct session_sums *sums;

	if (!may_pass_socket(sk))
		return 0;
	sums = session_of(sk);
	if (sums)
		measure_last(sk, sums);
	leave_session(sk);
	return 0;
}

/* At the start, each socket in a file table: the probe `snapshot` is not used if no owner is shown. */
static inline int on_held(struct task_file_context *ctx, struct task_struct *task, struct sock *sk)
{
#ifndef FILTER_PROCESS
	begin_old(sk);
#endif
	return 0;
}

/* At the start, each TCP socket of a namespace: those that no file table has get no owner. */
static inline int on_unheld(struct tcp_context *ctx, struct sock *sk)
{
	begin_old(sk);
	return 0;
}

/*
 * Each session, at the end of an interval. Only this program sets the columns that user space reads,
 * so that they never fall.
 */
static inline int on_totals(struct map_element_context *ctx, struct session *at)
{
	struct session key = *at;
	struct session_sums *sums = moved.lookup(&key);
	struct sock *sk = (struct sock *)key.sk;
	struct owner owner = {};
	bool present;
	u64 tx, rx;

	if (!sums || sums->over)
		return 0;
	present = measure(sk, sums, &tx, &rx);
	if (present && (tx > sums->tx_bytes || rx > sums->rx_bytes) && find_owner(sk, &owner))
		fill_owner(sums, &owner);
	sums->over = !present;
#ifdef FILTER_PROCESS
	if (!sums->pass)
		return 0;
#endif
	if (tx > sums->tx_bytes)
		sums->tx_bytes = tx;
	if (rx > sums->rx_bytes)
		sums->rx_bytes = rx;
	return 0;
}
