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

#ifdef USE_send_reset_rawtp
int send_reset_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	/* The packet that is answered comes second, under another name since 6.11. */
	return on_send_reset((struct sock *)RAWTP_ARG(send_reset, sk), ctx->args[1]);
}
#endif
#ifdef USE_send_reset_tp
int send_reset_tp(struct send_reset_args *ctx)
{
	return on_send_reset((struct sock *)ctx->skaddr, ctx->skbaddr);
}
#endif

static inline int on_receive_reset(struct sock *sk)
{
	if (READ(sk, __sk_common.skc_state) != TCP_CLOSE)
		on_reset(sk, RST_REMOTE);
	return 0;
}

#ifdef USE_receive_reset_rawtp
int receive_reset_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	return on_receive_reset((struct sock *)RAWTP_ARG(receive_reset, sk));
}
#endif
#ifdef USE_receive_reset_tp
int receive_reset_tp(struct receive_reset_args *ctx)
{
	return on_receive_reset((struct sock *)ctx->skaddr);
}
#endif
