/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Entries of the probe `gone`, the end of every TCP socket: another one may then get its address. To
 * be included behind the program's own on_gone(sk).
 */
#ifdef USE_gone_rawtp
int gone_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	return on_gone((struct sock *)RAWTP_ARG(gone, sk));
}
#endif
#ifdef USE_gone_tp
int gone_tp(struct gone_args *ctx)
{
	return on_gone((struct sock *)ctx->skaddr);
}
#endif
