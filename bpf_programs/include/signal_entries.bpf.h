/* SPDX-License-Identifier: GPL-2.0-only */
/* Entries of the probe `signal`, which all end in on_signal(sig, handler, flags). */
#ifdef USE_signal_rawtp
int signal_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	struct k_sigaction *action = (struct k_sigaction *)RAWTP_ARG(signal, ka);

	return on_signal(RAWTP_ARG(signal, sig), (u64)READ(action, sa.sa_handler),
			 READ(action, sa.sa_flags));
}
#endif
#ifdef USE_signal_tp
int signal_tp(struct signal_args *ctx)
{
	return on_signal(ctx->sig, ctx->sa_handler, ctx->sa_flags);
}
#endif
