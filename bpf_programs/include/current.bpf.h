/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The current task: its network namespace, and what it gave to the system call that it is in. Of a
 * call that seccomp refuses (likewise one that a tracer skips) only the end is seen: the kernel asks
 * seccomp before it gets to the trace event of the begin.
 */
#ifndef NETBPF_CURRENT_BPF_H
#define NETBPF_CURRENT_BPF_H

#include "netbpf.bpf.h"

KERNEL_FIELDS(task_struct, nsproxy)
KERNEL_FIELDS(nsproxy, net_ns)
KERNEL_FIELDS(net, ns.inum)
/* Since dd6e10fbd9fb ("bpf: Add bpf_task_pt_regs() helper", 5.15). */
KERNEL_OPTIONAL_ENUM(bpf_func_id, BPF_FUNC_task_pt_regs)
KERNEL_OPTIONAL_ENUM(bpf_func_id, BPF_FUNC_get_current_task_btf)
KERNEL_OPTIONAL(task_struct, stack)

struct call_args {
	s32 fd;
	s32 rolled_back; /* what stands for the result if seccomp sends SIGSYS: nothing was called */
	const void *addr;
	u32 len;
};

static inline u32 current_netns(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct nsproxy *nsproxy = READ(task, nsproxy);
	struct net *net = READ(nsproxy, net_ns);

	return READ(net, ns.inum);
}

#if defined(HAVE_BPF_FUNC_task_pt_regs) && defined(HAVE_BPF_FUNC_get_current_task_btf)
static inline const void *registers_of_call(void)
{
	void *(*current_task)(void) = (void *)HAVE_BPF_FUNC_get_current_task_btf;
	const void *(*registers)(void *) = (void *)HAVE_BPF_FUNC_task_pt_regs;

	return registers(current_task());
}
#define SEES_REGISTERS 1
#elif defined(__x86_64__) && defined(HAVE_task_struct_stack)
/* At the top of the stack, of 16 KiB in all configurations but that of KASAN; see the check below. */
static inline const void *registers_of_call(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	return (const void *)READ(task, stack) + (16 << 10) - sizeof(struct pt_regs);
}
#define SEES_REGISTERS 1
#endif

/* Read the first arguments of the system call that ends now with `ret`; false if that fails. */
static inline bool args_of_call(struct call_args *to, s64 ret)
{
#ifdef SEES_REGISTERS
	struct pt_regs *regs = (struct pt_regs *)registers_of_call();
#if defined(__TARGET_ARCH_x86) || defined(__x86_64__)

	if ((s32)READ(regs, ax) != (s32)ret)
		return false;
	to->fd = READ(regs, di);
	to->rolled_back = READ(regs, orig_ax);
	to->addr = (const void *)READ(regs, si);
	to->len = READ(regs, dx);
#else
	u64 first = 0; /* orig_x0, behind the part that is ABI: the result stands in x0 */

	if ((s32)READ(regs, regs[0]) != (s32)ret)
		return false;
	bpf_probe_read_kernel(&first, sizeof(first), (const void *)(regs + 1));
	to->fd = first;
	to->rolled_back = first;
	to->addr = (const void *)READ(regs, regs[1]);
	to->len = READ(regs, regs[2]);
#endif
	return true;
#else
	return false;
#endif
}

#endif
