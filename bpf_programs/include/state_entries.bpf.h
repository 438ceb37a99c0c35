/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Entries of the probe `state`, every change of a TCP state: to be included behind the program's
 * own on_state(sk, oldstate, newstate).
 */
#ifdef USE_state_rawtp
int state_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	return on_state((struct sock *)RAWTP_ARG(state, sk), RAWTP_ARG(state, oldstate),
			RAWTP_ARG(state, newstate));
}
#endif
#ifdef USE_state_tp
int state_tp(struct state_args *ctx)
{
	return on_state((struct sock *)ctx->skaddr, ctx->oldstate, ctx->newstate);
}
#endif
