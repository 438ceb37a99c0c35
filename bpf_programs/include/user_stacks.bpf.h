/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The user stack of the system call that the current thread is in, as a number by which calls are
 * counted. netbpf/run/stacks.py resolves it.
 *
 * Few programs have frame pointers throughout: libc's connect() has none. So the reader unwinds a
 * copy of the stack by .eh_frame, and stores for each address the rule to get from there to the
 * caller. This program follows these rules, and copies the stack only if one is missing, or if it has
 * not reported this stack yet. Beyond COPIES_PER_SECOND it follows frame pointers.
 */
#ifndef NETBPF_USER_STACKS_BPF_H
#define NETBPF_USER_STACKS_BPF_H

#include "current.bpf.h"
#include "user_memory.bpf.h"

KERNEL_FIELDS(task_struct, mm)
KERNEL_FIELDS(mm_struct, exe_file)
KERNEL_FIELDS(file, f_path.dentry)
KERNEL_FIELDS(dentry, d_parent, d_name.name)
/* Since fa28dcb82a38 ("bpf: Introduce helper bpf_get_task_stack()", 5.9). */
KERNEL_OPTIONAL_ENUM(bpf_func_id, BPF_FUNC_get_task_stack)

#ifdef WITH_USER_STACKS
#define STACK_COPY 8192 /* bytes of a stack that are copied; no stack is followed further */
#define STACK_DEPTH 48
#define FRAMES_BY_POINTER 16
#define PATH_PARTS 8
#define STACK_RING_PAGES 512
#define COPIES_PER_SECOND 100 /* per process */
#define COPY_KEY (1ULL << 63) /* the key of one call, whose stack could not be followed */
#define POINTER_KEY (1ULL << 62) /* the key of a stack that was followed by frame pointers */

/*
 * How to find the caller of a function that is at an address: the CFA is the caller's stack pointer.
 * RULE_DEREF: the CFA is saved at bp + cfa, and the caller's bp at bp. Numbers: binaries/frame_rules.py
 */
enum { RULE_SP = 1, RULE_BP, RULE_DEREF, RULE_END, RULE_NONE };
struct unwind_rule {
	s32 cfa; /* what is added to sp or bp */
	s16 bp; /* where bp is saved, from the cfa; 0: it is unchanged */
	u16 kind;
};
struct code_address {
	u64 ip;
	u64 space; /* the address space: another one after exec() */
};
BPF_TABLE("lru_hash", struct code_address, struct unwind_rule, unwind_rules, LRU_ENTRIES(16384));
BPF_TABLE("lru_hash", u64, u8, stacks_seen, LRU_ENTRIES(16384));

struct copy_rate {
	u64 since_ns;
	u64 used;
};
BPF_TABLE("lru_hash", u64, struct copy_rate, copy_rates, LRU_ENTRIES(1024));
BPF_PERCPU_ARRAY(stacks_limited, u64, 1);

/* struct bpf_stack_build_id, linux/bpf.h */
struct build_frame {
	s32 status;
	u8 build_id[20];
	u64 offset;
};

/* RECORD in netbpf/run/stack_records.py */
struct stack_record {
	u64 key;
	u64 space;
	u64 ip;
	u64 sp;
	u64 bp;
	u32 pid;
	u32 size; /* of the copy, in bytes */
	struct build_frame frames[FRAMES_BY_POINTER];
	char program[PATH_PARTS][40]; /* its path, from the end */
	u8 copy[STACK_COPY];
};
BPF_RINGBUF_OUTPUT(stack_records, STACK_RING_PAGES);

struct walk {
	u64 ip;
	u64 sp;
	u64 bp;
	u64 hash;
};

static inline void add_frame(struct walk *at, u64 ip)
{
	at->ip = ip;
	at->hash = (at->hash ^ ip) * 0x9e3779b97f4a7c15ULL;
	at->hash ^= at->hash >> 29;
}

enum walked { WALKS, WALK_ENDED, RULE_MISSING };

/* Go to the caller. */
static inline enum walked step(struct walk *at, u64 space, u64 first)
{
	struct code_address code = {.ip = at->ip, .space = space};
	struct unwind_rule *rule;
	u64 cfa;

	if (!at->ip)
		return WALK_ENDED;
	rule = unwind_rules.lookup(&code);
	if (!rule)
		return RULE_MISSING;
	if (rule->kind >= RULE_END)
		return WALK_ENDED;
	cfa = (rule->kind == RULE_SP ? at->sp : at->bp) + rule->cfa;
	if (rule->kind == RULE_DEREF)
		cfa = read_user_word(cfa);
	if (cfa - first > STACK_COPY)
		return WALK_ENDED;
	if (rule->kind == RULE_DEREF)
		at->bp = read_user_word(at->bp);
	else if (rule->bp)
		at->bp = read_user_word(cfa + rule->bp);
	at->sp = cfa;
	add_frame(at, read_user_word(cfa - 8));
	return WALKS;
}

/* Go to the caller by the frame pointer. */
static inline bool step_by_pointer(struct walk *at)
{
	u64 frame[2] = {};

	if (read_user(frame, sizeof(frame), (void *)at->bp) || frame[0] <= at->bp)
		return false;
	at->bp = frame[0];
	add_frame(at, frame[1]);
	return true;
}

static inline bool may_copy(u64 space)
{
	struct copy_rate *rate = copy_rates.lookup(&space), first = {};
	u64 now = bpf_ktime_get_ns();

	if (!rate) {
		first.since_ns = now;
		first.used = 1;
		copy_rates.update(&space, &first);
		return true;
	}
	if (now - rate->since_ns > 1000000000) {
		rate->since_ns = now;
		rate->used = 0;
	}
	return rate->used++ < COPIES_PER_SECOND;
}

/* Note the path of the program, from its end, for a process that ends before the reader sees it. */
static inline void read_program(struct stack_record *record, struct mm_struct *mm)
{
	struct file *file = READ(mm, exe_file);
	struct dentry *dentry = READ(file, f_path.dentry), *parent;
	int i;

	for (i = 0; i < PATH_PARTS; i++) {
		record->program[i][0] = 0;
		parent = READ(dentry, d_parent);
		if (!dentry || parent == dentry)
			continue;
		bpf_probe_read_kernel_str(record->program[i], sizeof(record->program[i]),
					  READ(dentry, d_name.name));
		dentry = parent;
	}
}

/* Copy what there is of the stack: its end is that of a page. */
static inline void copy_stack(struct stack_record *record, u64 sp)
{
	u32 first = 4096 - (sp & 4095);

	record->size = STACK_COPY;
	if (!read_user(record->copy, STACK_COPY, (void *)sp))
		return;
	record->size = 0;
	if (read_user(record->copy, first, (void *)sp))
		return;
	record->size = first;
	if (!read_user(record->copy + first, 4096, (void *)(sp + first)))
		record->size = first + 4096;
}

/* The build ids of the frames, as far as frame pointers lead. */
static inline void read_build_ids(struct stack_record *record)
{
	__builtin_memset(record->frames, 0, sizeof(record->frames));
#if defined(HAVE_BPF_FUNC_get_task_stack) && defined(HAVE_BPF_FUNC_get_current_task_btf)
	void *(*current_task)(void) = (void *)HAVE_BPF_FUNC_get_current_task_btf;
	long (*get_stack)(void *, void *, u32, u64) = (void *)HAVE_BPF_FUNC_get_task_stack;
	u64 flags = 1 << 8 | 1 << 11; /* BPF_F_USER_STACK | BPF_F_USER_BUILD_ID */

	get_stack(current_task(), record->frames, sizeof(record->frames), flags);
#endif
}

static inline bool report_stack(u64 key, u64 space, struct walk *from)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct stack_record *record = stack_records.ringbuf_reserve(sizeof(struct stack_record));

	if (!record)
		return false;
	record->key = key;
	record->space = space;
	record->ip = from->ip;
	record->sp = from->sp;
	record->bp = from->bp;
	record->pid = current_pid();
	read_build_ids(record);
	read_program(record, READ(task, mm));
	copy_stack(record, from->sp);
	stack_records.ringbuf_submit(record, 0);
	return true;
}

static inline void report_once(u64 key, u64 space, struct walk *from)
{
	u8 yes = 1;

	if (!stacks_seen.lookup(&key) && report_stack(key, space, from))
		stacks_seen.update(&key, &yes);
}

/* The key of the current thread's user stack, 0 if it has none. */
static inline u64 user_stack(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct mm_struct *mm = READ(task, mm);
	u64 space = (u64)mm, key;
	struct walk first = {}, at;
	enum walked done = WALKS;
	u64 *limited;
	int i, zero = 0;

#ifdef SEES_REGISTERS
	struct pt_regs *regs = (struct pt_regs *)registers_of_call();

#if defined(__TARGET_ARCH_x86) || defined(__x86_64__)
	first.ip = READ(regs, ip);
	first.bp = READ(regs, bp);
#else
	first.ip = READ(regs, pc);
	first.bp = READ(regs, regs[29]);
#endif
	first.sp = READ(regs, sp);
#endif
	if (!mm || !first.ip || !first.sp)
		return 0;
	first.hash = space;
	add_frame(&first, first.ip);
	at = first;
	for (i = 0; i < STACK_DEPTH && done == WALKS; i++)
		done = step(&at, space, first.sp);
	if (done != RULE_MISSING) {
		key = at.hash & ~(COPY_KEY | POINTER_KEY);
		report_once(key, space, &first);
		return key;
	}
	key = COPY_KEY | (bpf_ktime_get_ns() << 10 | bpf_get_smp_processor_id()) >> 1;
	if (may_copy(space) && report_stack(key, space, &first))
		return key;
	limited = stacks_limited.lookup(&zero);
	if (limited)
		*limited += 1;
	at = first;
	for (i = 0; i < FRAMES_BY_POINTER && step_by_pointer(&at); i++)
		;
	key = (at.hash & ~COPY_KEY) | POINTER_KEY;
	report_once(key, space, &first);
	return key;
}
#endif

#endif
