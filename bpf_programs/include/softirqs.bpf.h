/* SPDX-License-Identifier: GPL-2.0-only */
/* Sums and distributions of the network's softirqs, by CPU: see netbpf/declare/softirqs.py. */
#ifndef NETBPF_SOFTIRQS_BPF_H
#define NETBPF_SOFTIRQS_BPF_H

#include "histogram.bpf.h"

/* Numbers of softirqs: include/linux/interrupt.h, shown in /proc/softirqs. */
#define NET_TX_SOFTIRQ 2
#define NET_RX_SOFTIRQ 3

/* What a CPU is doing in a softirq, by its number in SOFTIRQS; a softirq does not leave its CPU. */
struct softirq_work {
	u64 raised; /* when, in ns: 0 if it is not pending, or was before the start */
	u64 entered; /* 0 if it does not run */
	u64 delay; /* of the run, UNKNOWN if it was raised before the start */
};

BPF_PERCPU_ARRAY(softirq_work, struct softirq_work, 2);
/* Each entry is written by its own CPU only, with softirqs disabled. */
BPF_F_TABLE("hash", struct softirq_key, struct softirq_sums, softirqs, CPUS * 4, 0);
BPF_ARRAY(no_sums, struct softirq_sums, 1);
#ifdef WITH_HISTOGRAM
BPF_F_TABLE("percpu_hash", struct time_key, struct histogram, times, 4, 0);
BPF_PERCPU_ARRAY(no_times, struct histogram, 1);
#endif

static inline bool pass_cpu(void)
{
#ifdef FILTER_CPU
	return FILTER_CPU(bpf_get_smp_processor_id());
#else
	return true;
#endif
}

/* The work of this CPU in a softirq, NULL unless it is one of the network's and passes the filter. */
static inline struct softirq_work *work_of(u32 vec)
{
	int softirq = vec - NET_TX_SOFTIRQ + SOFTIRQ_NET_TX;

	if ((vec != NET_TX_SOFTIRQ && vec != NET_RX_SOFTIRQ) || !pass_cpu())
		return NULL;
	return softirq_work.lookup(&softirq);
}

static inline struct softirq_sums *sums_of(u8 softirq)
{
	struct softirq_key key = {.cpu = bpf_get_smp_processor_id(), .softirq = softirq};
	struct softirq_sums *sums = softirqs.lookup(&key), *empty;
	int zero = 0;

	if (sums)
		return sums;
	empty = no_sums.lookup(&zero); /* too large for the stack */
	sums = empty ? softirqs.lookup_or_try_init(&key, empty) : NULL;
	if (!sums)
		count_loss(LOSS_MAP_FULL);
	return sums;
}

/* Four slots per power of two: see upper_bound() in netbpf/declare/softirqs.py. */
static inline u64 slot_of(u64 us)
{
	u64 bits = bits_of(us), slot = us;

	if (bits > 3)
		slot = (bits - 2) * 4 + (us >> (bits - 3) & 3);
	return slot < TIME_SLOTS ? slot : TIME_SLOTS - 1;
}

static inline void count_time(u64 *slots, u8 what, u8 softirq, u64 ns)
{
	u64 us = ns / 1000, slot = slot_of(us);

	if (slot < TIME_SLOTS)
		slots[slot]++;
#ifdef WITH_HISTOGRAM
	struct time_key key = {.what = what, .softirq = softirq};
	struct histogram *found = times.lookup(&key), *empty;
	int zero = 0;

	empty = found ? NULL : no_times.lookup(&zero);
	if (empty)
		found = times.lookup_or_try_init(&key, empty);
	if (found)
		record_value(found, us, 1);
	else
		count_loss(LOSS_MAP_FULL);
#endif
}

#endif
