/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Calls that may have begun before the start. A probe at the end of a function sees those whose
 * begin it saw; the trace event at the end of the system call, a moment later, sees them all. Where
 * a tool uses both, the probes `earlier...` tell what the others did not.
 */
#ifndef NETBPF_EARLIER_BPF_H
#define NETBPF_EARLIER_BPF_H

#include "netbpf.bpf.h"

#if defined(USE_earlier_tp) || defined(USE_earlier_accept_tp) || defined(USE_earlier_accept4_tp)
#define EARLIER 1
/*
 * Threads whose call has been told, until its system call ends a moment later; the end of 32-bit ones
 * shows nowhere.
 */
BPF_TABLE("lru_hash", u64, u8, told, LRU_ENTRIES(4096));
#endif

#ifdef EARLIER
/* Told calls whose end was not seen: where the kernel skips a run for such a one, nothing is lost. */
static inline void count_covered(s64 more)
{
	int which = DUPLICATE_MISSES;
	u64 *covered = losses.lookup(&which);

	if (covered)
		__sync_fetch_and_add(covered, more);
}
#endif

/* The current thread's call is told. */
static inline void mark_told(void)
{
#ifdef EARLIER
	u64 thread = bpf_get_current_pid_tgid();
	u8 yes = 1;

	if (!told.update(&thread, &yes))
		count_covered(1);
#endif
}

#ifdef EARLIER
/* The current thread's system call ends: was it told? */
static inline bool was_told(void)
{
	u64 thread = bpf_get_current_pid_tgid();

	if (told.delete(&thread))
		return false;
	count_covered(-1);
	return true;
}
#endif

#endif
