/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Entries of the probes `send_reset` and `receive_reset`: to be included behind the program's own
 * on_reset(sk, whose), a RST that ends a session, and amend(sk), one of ours that left after the
 * change to CLOSE.
 */
/*
 * A RST leaves. It answers a packet, or ends the session by itself: then that comes next, if it has not
 * come already. After an answer the session goes on, unless it is closed already. `sk` may be no
 * whole socket: a request or a timewait socket.
 */
static inline int on_send_reset(struct sock *sk, bool answer)
{
	if (!sk)
		return 0;
	if (READ(sk, __sk_common.skc_state) == TCP_CLOSE)
		amend(sk);
	else if (!answer)
		on_reset(sk, RST_LOCAL);
	return 0;
}

static inline int on_receive_reset(struct sock *sk)
{
	if (READ(sk, __sk_common.skc_state) != TCP_CLOSE)
		on_reset(sk, RST_REMOTE);
	return 0;
}

