/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Functions and system calls that show their arguments at the begin and their result at the end: the
 * arguments are kept here by thread until then.
 */
#ifndef NETBPF_CALLS_BPF_H
#define NETBPF_CALLS_BPF_H

#include "filter.bpf.h"

struct call {
	u64 args[3];
};
BPF_HASH(calls, u64, struct call, MAP_ENTRIES);

/* The current thread begins a call: keep its arguments if the process passes the filters. */
static inline int begin_call(u64 a, u64 b, u64 c)
{
	struct call call = {.args = {a, b, c}};
	u64 thread = bpf_get_current_pid_tgid();

	if (!pass_current())
		return 0;
	if (calls.update(&thread, &call))
		count_loss(LOSS_MAP_FULL);
	return 0;
}

/* The current thread ends a call: get its arguments; false if its begin was not seen. */
static inline bool end_call(struct call *call)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct call *known = calls.lookup(&thread);

	if (!known)
		return false;
	*call = *known;
	calls.delete(&thread);
	return true;
}

/* Argument `n` of a system call, from the registers that the kernel's function gets. */
#define SYSCALL_ARG(regs, n)                                                                       \
	({                                                                                         \
		u64 arg_;                                                                          \
		bpf_probe_read_kernel(&arg_, sizeof(arg_),                                         \
				      (const void *)(regs) +                                       \
					      (u64)&PT_REGS_PARM##n((struct pt_regs *)0));         \
		arg_;                                                                              \
	})

#endif
