/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Calls that a signal interrupts. The kernel ends them with a number that no program sees, and when
 * it delivers the signal it decides: the call begins again (no handler, as after SIGSTOP and SIGCONT,
 * or one with SA_RESTART), or it fails with EINTR, or the process dies. A program that includes this
 * has the probe `signal`, and defines before
 *   on_decided(fate): the current thread's interrupted call, if it is in one.
 */
#ifndef NETBPF_RESTARTS_BPF_H
#define NETBPF_RESTARTS_BPF_H

#include "netbpf.bpf.h"

KERNEL_FIELDS(k_sigaction, sa.sa_handler, sa.sa_flags)

enum fate { CALL_RESTARTS, CALL_FAILS, CALL_DIES };

/* ERESTARTSYS to ERESTART_RESTARTBLOCK, include/linux/errno.h */
static inline bool is_interrupted(s32 ret)
{
	return ret <= -512 && ret >= -516;
}

/* The ABI's numbers: linux/signal.h, asm-generic/signal.h. */
#define SIG_IGN 1
#define SA_RESTART 0x10000000
#define SIG(n) (1ULL << (n))
/* Those that do not end a process that has no handler: CHLD CONT STOP TSTP TTIN TTOU URG WINCH. */
#define HARMLESS (SIG(17) | SIG(18) | SIG(19) | SIG(20) | SIG(21) | SIG(22) | SIG(23) | SIG(28))

static inline enum fate fate_of_call(u32 sig, u64 handler, u64 flags)
{
	if (handler > SIG_IGN)
		return flags & SA_RESTART ? CALL_RESTARTS : CALL_FAILS;
	return handler == SIG_IGN || HARMLESS >> (sig & 63) & 1 ? CALL_RESTARTS : CALL_DIES;
}

static inline int on_decided(enum fate fate);

#ifdef USE_signal_rawtp
int signal_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	struct k_sigaction *action = (struct k_sigaction *)RAWTP_ARG(signal, ka);

	return on_decided(fate_of_call(RAWTP_ARG(signal, sig), (u64)READ(action, sa.sa_handler),
				       READ(action, sa.sa_flags)));
}
#endif
#ifdef USE_signal_tp
int signal_tp(struct signal_args *ctx)
{
	return on_decided(fate_of_call(ctx->sig, ctx->sa_handler, ctx->sa_flags));
}
#endif

#endif
