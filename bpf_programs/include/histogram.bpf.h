/* SPDX-License-Identifier: GPL-2.0-only */
/* A log2 histogram: bucket 0 counts the value 0, bucket k counts 2^(k-1) to 2^k - 1. */
#ifndef NETBPF_HISTOGRAM_BPF_H
#define NETBPF_HISTOGRAM_BPF_H

#include "netbpf.bpf.h"

/* Per CPU, so that plain additions are exact; the reader sums. */
struct histogram {
	u64 slots[HISTOGRAM_SLOTS];
	u64 count;
	u64 sum;
};

/* 1 if the number is not 0, without a jump: in a loop the verifier follows each of its ways. */
static inline u64 is_set(u64 number)
{
	u64 negative = -number;

	asm("" : "+r"(negative)); /* else the compiler sees through it */
	return (number | negative) >> 63;
}

/* How many bits the number has: 0 for 0. */
static inline u64 bits_of(u64 value)
{
	u64 bits = 0;

#pragma unroll
	for (u32 step = 32; step; step >>= 1) {
		u64 more = is_set(value >> step) * step;

		value >>= more;
		bits += more;
	}
	return bits + value;
}

/* Count `value` `times` times; a negative number takes back what was counted before. */
static inline void record_value(struct histogram *histogram, u64 value, s64 times)
{
	u64 slot = bits_of(value);

	if (slot >= HISTOGRAM_SLOTS)
		slot = HISTOGRAM_SLOTS - 1;
	histogram->slots[slot] += times;
	histogram->count += times;
	histogram->sum += times * value;
}

#endif
