/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the kernel does with a call that a signal interrupts, for calls that return ERESTARTSYS inside
 * the kernel: it restarts the call (no handler, as after SIGSTOP and SIGCONT, or one with SA_RESTART),
 * the call fails with EINTR, or the process dies. A program that includes this has the probe `signal`,
 * and defines
 *   on_decided(fate): for the interrupted call of the current thread, if it is in one.
 */
#ifndef NETBPF_FATE_BPF_H
#define NETBPF_FATE_BPF_H

#include "signals.bpf.h"

enum fate { CALL_RESTARTS, CALL_FAILS, CALL_DIES };

static inline int on_decided(enum fate fate);

static inline int on_signal(int sig, u64 handler, u64 flags)
{
	if (is_handler(handler))
		return on_decided(flags & SA_RESTART ? CALL_RESTARTS : CALL_FAILS);
	return on_decided(ends_process(sig, handler) ? CALL_DIES : CALL_RESTARTS);
}

#endif
