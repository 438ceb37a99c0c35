// SPDX-License-Identifier: GPL-2.0-only
/* sormem: how full receive buffers are, and what they drop. Front-end: netbpf/tools/sormem.py */
#include "netbpf.bpf.h"
#include "histogram.bpf.h"
#define OP_RECV 0 /* of the shared probes: the only operation here */
#include <netbpf/records.h>
#include "receive_drops.bpf.h"
#include "messages.bpf.h"

#ifdef WITH_HISTOGRAM
BPF_F_TABLE("percpu_hash", struct size_key, struct histogram, sizes, 64, 0);
BPF_PERCPU_ARRAY(no_sizes, struct histogram, 1);

static inline void count_size(struct size_key *key, u64 size)
{
	struct histogram *found = sizes.lookup(key), *empty;
	int zero = 0;

	if (!found) {
		empty = no_sizes.lookup(&zero); /* too large for the stack */
		found = empty ? sizes.lookup_or_try_init(key, empty) : NULL;
	}
	if (found)
		record_value(found, size, 1);
	else
		count_loss(LOSS_MAP_FULL);
}
#endif

static inline void count_sizes(struct sock *sk, struct buffer_sums *sums, int at)
{
#ifdef WITH_HISTOGRAM
	struct size_key key = {.what = WHAT_RMEM_ALLOC, .at = at};

#ifdef FILTER_PROCESS
	if (!sums->pass)
		return;
#endif
	key.proto = proto_of_sock(sk, READ(sk, __sk_common.skc_family));
	count_size(&key, filled(sk));
	key.what = WHAT_RMEM_LIMIT;
	count_size(&key, (u32)READ(sk, sk_rcvbuf));
#endif
}

/* Data or a FIN is in the buffer. */
static inline int on_arrival(struct sock *sk)
{
	struct buffer_sums *sums = has_buffer(sk) ? buffer_or_new(sk) : NULL;

	if (!sums)
		return 0;
	measure(sk, sums);
	__sync_fetch_and_add(&sums->all_arrivals, 1);
	count_sizes(sk, sums, AT_ARRIVAL);
	return 0;
}

/* A program has received; what it took is no longer in the buffer. */
static inline int on_message(int op, struct sock *sk, int result, int flags)
{
	struct buffer_sums *sums;
	struct owner owner = {};

	if (result < 0 || !takes_data(flags) || !has_buffer(sk))
		return 0;
	sums = buffer_or_new(sk);
	if (!sums)
		return 0;
	if (sums->pid != (u32)(bpf_get_current_pid_tgid() >> 32)) {
		owner_from_current(&owner);
		fill_owner(sums, &owner);
	}
	sums->limit_bytes = (u32)READ(sk, sk_rcvbuf);
	__sync_fetch_and_add(&sums->all_reads, 1);
	count_sizes(sk, sums, AT_READ);
	return 0;
}

/* A TCP socket is destroyed; its address can be used again. */
static inline int on_gone(struct sock *sk)
{
	struct buffer_sums *sums = buffer_of(sk);

	if (sums)
		sums->gone = 1;
	forget_unfollowed((u64)sk);
	return 0;
}

/*
 * Called for each open socket at the start and at the end of an interval: finds data that nobody has
 * read, and records which process holds the socket.
 */
static inline int on_held(struct task_file_context *ctx, struct task_struct *task, struct sock *sk)
{
	struct buffer_sums *sums = buffer_of(sk);
	struct owner owner = {};

	if (sums ? sums->owner : !waiting(sk) || !has_buffer(sk))
		return 0;
	owner_from_task(&owner, task, OWNER_SNAPSHOT);
	if (!sums && pass_owner(&owner))
		sums = buffer_or_new(sk);
	if (!sums)
		return 0;
	measure(sk, sums);
	if (!sums->owner)
		fill_owner(sums, &owner);
	return 0;
}

/*
 * Each buffer, at the end of an interval. Only this program sets what user space reads, so that what
 * came before the owner was known is shown with it.
 */
static inline int on_publish(struct map_element_context *ctx, struct buffer *at)
{
	struct buffer key = *at;
	struct buffer_sums *sums = buffers.lookup(&key);
	struct sock *sk = (struct sock *)key.sk;
	struct endpoints ends = {};

	if (!sums || sums->over)
		return 0;
	sums->over = sums->gone || number_of(sk) != key.number;
	sums->used_bytes = sums->waits = 0;
	if (!sums->over) {
		sums->limit_bytes = (u32)READ(sk, sk_rcvbuf);
		sums->used_bytes = filled(sk);
		read_endpoints(sk, &ends);
		SET_ENDS(sums, &ends);
	}
#ifdef FILTER_PROCESS
	if (!sums->pass)
		return 0;
#endif
	if (!sums->over)
		sums->waits = waiting(sk);
	sums->arrivals = sums->all_arrivals;
	sums->reads = sums->all_reads;
	sums->no_room = sums->all_no_room;
	sums->memory = sums->all_memory;
	sums->backlogged = sums->all_backlogged;
	sums->window = sums->all_window;
	sums->pruned = sums->all_pruned;
	return 0;
}
