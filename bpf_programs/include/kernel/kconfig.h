/* SPDX-License-Identifier: GPL-2.0-only */
/* What bcc force-includes first: stands in for the kernel's own headers. */
#define CONFIG_BPF_SYSCALL 1
#include <linux/types.h>

#define PAGE_SIZE 4096UL /* the unit of BPF_RINGBUF_OUTPUT, whatever this kernel's pages are */
#define TASK_COMM_LEN 16
#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10

/* Registers of a probed task: fixed by ptrace's ABI, in the names that bcc's PT_REGS_* use. */
#if defined(__TARGET_ARCH_x86) || defined(__x86_64__)
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8;
	unsigned long ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
#else
struct user_pt_regs {
	unsigned long long regs[31];
	unsigned long long sp, pc, pstate;
};
struct pt_regs {
	unsigned long long regs[31];
	unsigned long long sp, pc, pstate;
};
#endif
