/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Calls that a signal interrupts before they have done anything. The call returns ERESTARTSYS or a
 * like number inside the kernel, and what the program sees is decided later, on the way back to it
 * (handle_signal() and arch_do_signal_or_restart() in arch/x86/kernel/signal.c, do_signal() in
 * arch/arm64/kernel/signal.c): EINTR if a handler runs that was set without SA_RESTART, nothing at
 * all if the process dies, else the kernel makes the call again and the program does not notice.
 *
 * A program that includes this has the probe `signal`, and defines before
 *   struct counted: what a call is counted by,
 *   count(what, error, bytes): count one.
 * Only the thread's next call or signal shows that a call is made again. Until then the call is not
 * counted, so that no interval counts what a later one would have to subtract.
 */
#ifndef NETBPF_RESTARTS_BPF_H
#define NETBPF_RESTARTS_BPF_H

#include "filter.bpf.h"
#include "signals.bpf.h"

KERNEL_FIELDS(task_struct, pending.signal.sig)

#define EINTR 4

#define RESTARTED 512 /* in place of an error number: see RESTARTED in declare/calls.py */
#define PF_IO_WORKER 0x00000010 /* include/linux/sched.h */

struct interruption {
	struct counted what;
	u64 restarts; /* it is made again if the handler was set with SA_RESTART */
};
/* By thread: interrupted calls whose result for the program is not decided yet. */
BPF_HASH(interruptions, u64, struct interruption, MAP_ENTRIES);
/* Their number: nearly always 0, and reading an array costs next to nothing. */
BPF_ARRAY(interrupted_threads, s64, 1);

/* Add `more` to the number of interrupted calls and return the result. */
static inline s64 count_interrupted(s64 more)
{
	int zero = 0;
	s64 *threads = interrupted_threads.lookup(&zero);

	if (!threads)
		return 0;
	if (more)
		__sync_fetch_and_add(threads, more);
	return *threads;
}

static inline void forget_interruption(u64 thread)
{
	if (!interruptions.delete(&thread))
		count_interrupted(-1);
}

/* The current thread's call has ended: if one before was interrupted, it has been made again. */
static inline void call_ended(void)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct interruption *interruption;
	struct counted what;

	if (!count_interrupted(0))
		return;
	interruption = interruptions.lookup(&thread);
	if (!interruption)
		return;
	what = interruption->what;
	count(&what, RESTARTED, 0);
	forget_interruption(thread);
}

/* The current thread's call was interrupted: count it now if its result is decided already. */
static inline void on_interrupted(s64 result, struct counted *what)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct interruption interruption = {.what = *what, .restarts = result == -ERESTARTSYS};
	u64 thread = bpf_get_current_pid_tgid();
	u64 signals = 0;

	/* A worker of io_uring has no program that could repeat the call: io_uring returns EINTR. */
	if (READ(task, flags) & (PF_IO_WORKER | PF_KTHREAD)) {
		count(what, EINTR, 0);
		return;
	}
	call_ended();
	/* complete_signal() turns a signal that ends a process into SIGKILL when it is sent. */
	bpf_probe_read_kernel(&signals, sizeof(signals), FIELD_AT(task, pending.signal.sig));
	if (signals & SIGNAL_BIT(SIGKILL))
		count(what, 0, 0);
	else if (result == -ERESTARTNOINTR)
		count(what, RESTARTED, 0);
	else if (interruptions.update(&thread, &interruption))
		count_loss(LOSS_MAP_FULL);
	else
		count_interrupted(1);
}

/* The current thread takes a signal, on its way back to the program. */
static inline int on_signal(int sig, u64 handler, u64 flags)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct interruption *interruption;
	struct counted what;
	bool dies = ends_process(sig, handler);

	if (!count_interrupted(0))
		return 0;
	interruption = interruptions.lookup(&thread);
	/* Without a handler the call is made again, later. */
	if (!interruption || (!is_handler(handler) && !dies))
		return 0;
	what = interruption->what;
	if (dies)
		count(&what, 0, 0);
	else if (interruption->restarts && flags & SA_RESTART)
		count(&what, RESTARTED, 0);
	else
		count(&what, EINTR, 0);
	forget_interruption(thread);
	return 0;
}

#endif
