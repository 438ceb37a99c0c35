/* SPDX-License-Identifier: GPL-2.0-only */
/* Signals that a thread handles on its way back to user space: the probe SIGNAL of declare/calls.py. */
#ifndef NETBPF_SIGNALS_BPF_H
#define NETBPF_SIGNALS_BPF_H

#include "netbpf.bpf.h"

KERNEL_FIELDS(k_sigaction, sa.sa_handler, sa.sa_flags)

/* Numbers of signals and of their flags: the same on x86, arm64 and all newer architectures. */
#define SIGKILL 9
#define SIGNAL_BIT(sig) (1UL << ((sig)-1))
#define SA_RESTART 0x10000000
/* SIGCHLD, SIGCONT, SIGURG, SIGWINCH are ignored by default; STOP, TSTP, TTIN, TTOU stop. */
#define HARMLESS                                                                                   \
	(SIGNAL_BIT(17) | SIGNAL_BIT(18) | SIGNAL_BIT(23) | SIGNAL_BIT(28) | SIGNAL_BIT(19) |      \
	 SIGNAL_BIT(20) | SIGNAL_BIT(21) | SIGNAL_BIT(22))

/* Results of calls inside the kernel that user space never sees: include/linux/errno.h. */
#define ERESTARTSYS 512
#define ERESTARTNOINTR 513
#define ERESTART_RESTARTBLOCK 516

static inline int on_signal(int sig, u64 handler, u64 flags);

/* The raw tracepoint passes the action as a whole, the trace event has its members. */
static inline int on_signal_action(int sig, struct k_sigaction *action)
{
	return on_signal(sig, (u64)READ(action, sa.sa_handler), READ(action, sa.sa_flags));
}

/* Did a signal interrupt the call that has this result? */
static inline bool is_interrupted(s64 result)
{
	return result <= -ERESTARTSYS && result >= -ERESTART_RESTARTBLOCK;
}

/* Has the program set a function? The other values are SIG_DFL (0) and SIG_IGN (1). */
static inline bool is_handler(u64 handler)
{
	return handler > 1;
}

/* Does this signal end the process? The kernel also ends single threads by SIGKILL. */
static inline bool ends_process(int sig, u64 handler)
{
	return !handler && sig > 0 && (sig > 32 || !(HARMLESS & SIGNAL_BIT(sig)));
}

#endif
