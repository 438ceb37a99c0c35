/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Calls that were in flight at the start. A probe at the return of a kernel function fires only for
 * calls whose entry it saw; the trace event at the exit of the system call, a moment later, fires for
 * all. Where a tool uses both, a probe that complements the first one (COMPLEMENTED is defined then)
 * reports the calls that the first one missed.
 */
#ifndef NETBPF_INFLIGHT_BPF_H
#define NETBPF_INFLIGHT_BPF_H

#include "netbpf.bpf.h"

#ifdef COMPLEMENTED
/*
 * Threads whose call has been reported, until its system call exits a moment later. 32-bit system
 * calls have no such trace event: their entries stay.
 */
BPF_TABLE("lru_hash", u64, u8, reported, LRU_ENTRIES(4096));

/* Count reported calls whose exit was not seen: a run that the kernel skips there loses nothing. */
static inline void count_duplicates(s64 more)
{
	int which = DUPLICATE_MISSES;
	u64 *duplicates = losses.lookup(&which);

	if (duplicates)
		__sync_fetch_and_add(duplicates, more);
}

/* The current thread's system call exits: has it been reported? */
static inline bool was_reported(void)
{
	u64 thread = bpf_get_current_pid_tgid();

	if (reported.delete(&thread))
		return false;
	count_duplicates(-1);
	return true;
}
#else
static inline bool was_reported(void)
{
	return false;
}
#endif

/* The current thread's call is reported now. */
static inline void mark_reported(void)
{
#ifdef COMPLEMENTED
	u64 thread = bpf_get_current_pid_tgid();
	u8 yes = 1;

	if (!reported.update(&thread, &yes))
		count_duplicates(1);
#endif
}

#endif
