/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Stalls: how long sockets hold written data, and why. Counts them per reason, and with TOP per
 * socket. Needs the records of tcpnagle.
 */
#ifndef NETBPF_STALLS_BPF_H
#define NETBPF_STALLS_BPF_H

#include "histogram.bpf.h"
#include "unfollowed.bpf.h"
#include "unsent.bpf.h"

/* A socket that holds data: everything before sequence number `end` that is not sent yet. */
struct stall {
	struct stalled_socket socket;
	u64 start;
	u32 end;
	u32 copied_seq; /* what the program had read by then */
	u32 small_writes;
	u32 uid;
	u64 cgroup;
};
BPF_HASH(stalls, u64, struct stall, MAP_ENTRIES); /* by address of the socket */

#ifdef BY_KEY
#include "blocks.bpf.h"
#define STALL_KEYS MAP_ENTRIES
#else
#define STALL_KEYS (REASON_REFUSED + 1)
#endif
BPF_F_TABLE("percpu_hash", struct stall_key, struct histogram, stall_times, STALL_KEYS, 0);
#ifdef TOP
BPF_HASH(stalled_sockets, struct stalled_socket, struct stalled_sums, MAP_ENTRIES);
#endif
/* New entries of both maps start from it: too large for the stack. */
BPF_PERCPU_ARRAY(zeros, struct stalled_sums, 1);

#ifdef TOP
/* A socket's stalls end one after the other: no other CPU changes its sums. */
static inline void count_socket(struct stall *stall, u64 us, s64 times, struct stalled_sums *empty)
{
	struct stalled_sums *sums = stalled_sockets.lookup_or_try_init(&stall->socket, empty);

	if (!sums) {
		count_unfollowed(stall->socket.sk);
		return;
	}
	/* Its first members are those of a histogram. */
	record_value((struct histogram *)sums, us, times);
	sums->small_writes += stall->small_writes * times;
	/* A write waited for the acknowledgement of another one, then an answer was read. */
	if (times > 0 && sums->copied_seq && sums->copied_seq != stall->copied_seq)
		sums->rounds += 1;
	sums->copied_seq = stall->copied_seq;
}
#endif

static inline void fill_key(struct stall_key *key, struct stall *stall)
{
	key->reason = stall->socket.reason;
	SET_BY_comm(key, stall->socket.comm);
	SET_BY_pid(key, stall->socket.pid);
	SET_BY_uid(key, stall->uid);
	SET_BY_cgroup(key, stall->cgroup);
	SET_BY_netns(key, stall->socket.netns);
	SET_BY_family(key, stall->socket.family);
	SET_BY_laddr(key, stall->socket.laddr, stall->socket.family);
	SET_BY_lport(key, stall->socket.lport);
	SET_BY_raddr(key, stall->socket.raddr, stall->socket.family);
	SET_BY_rport(key, stall->socket.rport);
}

/* Count a stall that ended, or with `times` -1 take it back. */
static inline void count_stall(struct stall *stall, u64 us, s64 times)
{
	struct stall_key key = {};
	int zero = 0;
	struct stalled_sums *empty = zeros.lookup(&zero);
	struct histogram *histogram;

	if (!empty)
		return;
	fill_key(&key, stall);
	histogram = stall_times.lookup_or_try_init(&key, (struct histogram *)empty);
	if (histogram)
		record_value(histogram, us, times);
	else
		count_loss(LOSS_MAP_FULL);
#ifdef TOP
	count_socket(stall, us, times, empty);
#endif
}

/* The latest stall that ended on this CPU: its packet may still be refused. */
struct ended {
	struct stall stall;
	u64 us;
};
BPF_PERCPU_ARRAY(last_ended, struct ended, 1);

static inline void end_stall(struct stall *stall, u64 us)
{
	int zero = 0;
	struct ended *ended = last_ended.lookup(&zero);

	count_stall(stall, us, 1);
	if (ended) {
		ended->stall = *stall;
		ended->us = us;
	}
}

#endif
