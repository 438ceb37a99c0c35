/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Calls of user-space functions, beyond bcc's PT_REGS_PARM1..6 and PT_REGS_RC; and programs that
 * begin to run, for tools whose probes are placed while they run (netbpf/run/lookups.py).
 */
#ifndef NETBPF_USER_BPF_H
#define NETBPF_USER_BPF_H

#include "user_memory.bpf.h"

KERNEL_FIELDS(task_struct, mm)
KERNEL_FIELDS(mm_struct, exe_file)
KERNEL_FIELDS(file, f_inode)
KERNEL_FIELDS(inode, i_ino, i_sb)
KERNEL_FIELDS(super_block, s_dev)

/*
 * The stack pointer at the entry and at the return of one call, made equal: x86 pops the return
 * address in between. C_ARG7 and 8 are on the stack there.
 */
#define CALL_SP(ctx) ((ctx)->sp)
#if defined(__TARGET_ARCH_x86) || defined(__x86_64__)
#define CALL_SP_AT_RETURN(ctx) ((ctx)->sp - 8)
#define RETURN_ADDRESS(ctx) read_user_word((ctx)->sp)
#define C_ARG7(ctx) read_user_word((ctx)->sp + 8)
#define C_ARG8(ctx) read_user_word((ctx)->sp + 16)
#else
#define CALL_SP_AT_RETURN(ctx) ((ctx)->sp)
#define RETURN_ADDRESS(ctx) ((ctx)->regs[30])
#define C_ARG7(ctx) ((ctx)->regs[6])
#define C_ARG8(ctx) ((ctx)->regs[7])
#endif

/*
 * Did a function that has a uretprobe end in a jump to this one? Then the return address is the first
 * of the page that the kernel adds (uprobe_get_trampoline_vaddr). After a call that is very unlikely.
 */
static inline bool came_by_jump(struct pt_regs *ctx)
{
	return (RETURN_ADDRESS(ctx) & 0xfff) == 0;
}

/*
 * Programs that begin to run, except files that the reader has put into a map. The ring has 16 times
 * 4 KiB, whole pages of any size that kernels use, as they require. _EXEC_RING_PAGES in
 * netbpf/run/lookups.py, which has the same structs.
 */
#define EXEC_RING_PAGES 16
struct program_file {
	u64 inode;
	u64 device;
};
struct program_start {
	struct program_file file;
	u64 pid;
};
BPF_RINGBUF_OUTPUT(execs, EXEC_RING_PAGES);
/* A file that is evicted is reported once more. */
BPF_TABLE("lru_hash", struct program_file, u64, programs_seen, LRU_ENTRIES(4096));

/* The current process begins to run another program. */
static inline void report_program(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct mm_struct *mm = READ(task, mm);
	struct file *file = READ(mm, exe_file);
	struct inode *inode = READ(file, f_inode);
	struct super_block *super = READ(inode, i_sb);
	struct program_start start = {};

	start.file.inode = READ(inode, i_ino);
	start.file.device = READ(super, s_dev);
	start.pid = current_pid();
	/* If the ring is full, nothing is lost: the reader looks at all processes periodically. */
	if (!programs_seen.lookup(&start.file))
		execs.ringbuf_output(&start, sizeof(start), 0);
}

#endif
