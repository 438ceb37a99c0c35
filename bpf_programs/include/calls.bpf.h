/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Functions and system calls whose begin shows the arguments and whose end shows the result: what a
 * thread began is kept here until it ends.
 */
#ifndef NETBPF_CALLS_BPF_H
#define NETBPF_CALLS_BPF_H

#include "filter.bpf.h"

struct call {
	u64 args[3];
};
BPF_HASH(calls, u64, struct call, MAP_ENTRIES);

/* The current thread begins a call: nothing to keep if nobody asked for its process. */
static inline int begin_call(u64 a, u64 b, u64 c)
{
	struct call call = {.args = {a, b, c}};
	u64 thread = bpf_get_current_pid_tgid();

#ifdef FILTER_PROCESS
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct process process = {};

	read_process(&process, task);
	if (!pass_process(&process, task))
		return 0;
#endif
	if (calls.update(&thread, &call))
		count_loss(LOSS_MAP_FULL);
	return 0;
}

/* The current thread ends a call: did it begin since the start, and with what arguments? */
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

/* An argument of a system call, by the registers that its function in the kernel is given. */
#define SYSCALL_ARG(regs, n)                                                                       \
	({                                                                                         \
		u64 arg_;                                                                          \
		bpf_probe_read_kernel(&arg_, sizeof(arg_),                                         \
				      (const void *)(regs) +                                       \
					      (u64)&PT_REGS_PARM##n((struct pt_regs *)0));         \
		arg_;                                                                              \
	})

#endif
