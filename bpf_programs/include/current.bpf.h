/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The current task: its network namespace, and the arguments of the system call that it is in. A call
 * that seccomp refuses, or that a tracer skips, has no trace event at its entry, only at its exit:
 * the kernel asks seccomp first.
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
	s32 rolled_back; /* the result if seccomp sends SIGSYS: no call was made */
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
/* At the top of the stack, which has 16 KiB unless KASAN is configured; see the check below. */
static inline const void *registers_of_call(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	return (const void *)READ(task, stack) + (16 << 10) - sizeof(struct pt_regs);
}
#define SEES_REGISTERS 1
#endif

/* Read the first arguments of the system call that exits with `ret`; return false if that fails. */
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
	u64 first = 0; /* orig_x0, behind the ABI part of the struct: x0 has the result */

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
