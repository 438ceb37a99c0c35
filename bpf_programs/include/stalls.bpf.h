/* SPDX-License-Identifier: GPL-2.0-only */
/* What sockets hold back, for how long and why: per reason, and with TOP per socket. */
#ifndef NETBPF_HELD_BPF_H
#define NETBPF_HELD_BPF_H

#include "histogram.bpf.h"
#include "unfollowed.bpf.h"
#include "unsent.bpf.h"

/* Whose data is held, for the table. */
struct holder {
	u64 sk;
	u32 pid;
	u32 netns;
	u16 lport;
	u16 rport;
	char comm[16];
	u8 laddr[16];
	u8 raddr[16];
	u8 reason;
	u8 pad[3];
};

/* What a socket holds, by its address: all that is not sent before sequence number `end`. */
struct hold {
	struct holder holder;
	u64 start;
	u32 end;
	u32 copied_seq; /* what the program had read by then */
	u32 small_writes;
	u32 pad;
};
BPF_HASH(holds, u64, struct hold, MAP_ENTRIES);

struct held_key {
	u32 reason;
};
BPF_F_TABLE("percpu_hash", struct held_key, struct histogram, held, REASONS, 0);
BPF_PERCPU_ARRAY(no_holds, struct histogram, 1);

#ifdef TOP
struct holder_sums {
	struct histogram holds;
	u64 small_writes;
	u64 rounds;
	u64 copied_seq;
};
BPF_HASH(holders, struct holder, struct holder_sums, MAP_ENTRIES);
BPF_PERCPU_ARRAY(empty, struct holder_sums, 1);

/* Count a hold that ended, or with `times` -1 take it back. */
static inline void count_holder(struct hold *hold, u64 us, s64 times)
{
	struct holder_sums *sums = holders.lookup(&hold->holder);
	int zero = 0;

	if (!sums) {
		sums = empty.lookup(&zero); /* too large for the stack */
		if (sums)
			holders.insert(&hold->holder, sums);
		sums = holders.lookup(&hold->holder);
	}
	if (!sums) {
		count_unfollowed(hold->holder.sk);
		return;
	}
	/* A socket's holds end one after the other: no other CPU counts here. */
	record_value(&sums->holds, us, times);
	sums->small_writes += hold->small_writes * times;
	/* A write waited for the acknowledgement of another one, then an answer was read. */
	if (times > 0 && sums->copied_seq && sums->copied_seq != hold->copied_seq)
		sums->rounds += 1;
	sums->copied_seq = hold->copied_seq;
}
#endif

static inline void count_hold(struct hold *hold, u64 us, s64 times)
{
	struct held_key key = {.reason = hold->holder.reason};
	struct histogram *histogram = held.lookup(&key);
	int zero = 0;

	if (!histogram) {
		histogram = no_holds.lookup(&zero); /* too large for the stack */
		if (histogram)
			held.insert(&key, histogram);
		histogram = held.lookup(&key);
	}
	if (histogram)
		record_value(histogram, us, times);
#ifdef TOP
	count_holder(hold, us, times);
#endif
}

/* The hold that ended last on this CPU: its packet may yet be refused. */
struct ended {
	struct hold hold;
	u64 us;
};
BPF_PERCPU_ARRAY(last_ended, struct ended, 1);

static inline void end_hold(struct hold *hold, u64 us)
{
	int zero = 0;
	struct ended *ended = last_ended.lookup(&zero);

	count_hold(hold, us, 1);
	if (ended) {
		ended->hold = *hold;
		ended->us = us;
	}
}

#endif
