// SPDX-License-Identifier: GPL-2.0-only
/* tcpsynbl: queues of listening TCP sockets. Front-end: netbpf/tools/tcpsynbl.py */
#include "netbpf.bpf.h"
#include "histogram.bpf.h"
#include <netbpf/records.h>
#include "listener_sums.bpf.h"

#define TCP_SYNACK_COOKIE 2 /* enum tcp_synack_type, include/net/tcp.h */

/* Each entry takes room on every CPU. */
#define QUEUES (MAP_ENTRIES < 1024 ? MAP_ENTRIES : 1024 + (MAP_ENTRIES - 1024) / 16)
BPF_F_TABLE("percpu_hash", struct queue_key, struct histogram, queues, QUEUES, 0);
BPF_PERCPU_ARRAY(zeros, struct histogram, 1);

static inline void count_handshake(struct sock *child, struct listener *listener)
{
	u64 waiting = READ(child, sk_ack_backlog);
	struct queue_key key = {.netns = listener->netns, .lport = listener->lport};
	int zero = 0;
	struct histogram *queue, *empty = zeros.lookup(&zero); /* too large for the stack */

	key.limit = READ(child, sk_max_ack_backlog);
	__builtin_memcpy(key.laddr, listener->laddr, sizeof(key.laddr));
	queue = empty ? queues.lookup_or_try_init(&key, empty) : NULL;
	if (queue)
		record_value(queue, waiting, 1);
	else
		count_unfollowed_listener(listener);
}

/* A handshake is complete: `child` is new, and a copy of its listener. */
static inline void on_child(struct sock *child)
{
	struct sock *sk = listener_of(child);
	struct listener listener = {};
	struct listener_sums *sums;
	struct tracked *found = NULL;
	struct owner unknown = {};
	struct endpoints ends = {};

	read_endpoints(sk ? sk : child, &ends);
	if (!pass_endpoints(&ends))
		return;
	if (sk)
		found = find_or_track(sk, &ends);
	if (sk ? !found : !pass_owner(&unknown))
		return;
	if (found && !pass_owner(&found->owner))
		return;
	fill_key(&listener, sk, found, &ends);
	count_handshake(child, &listener);
	sums = sums_of(&listener, child, found);
	if (!sums)
		return;
	__sync_fetch_and_add(&sums->handshakes, 1);
	sample_queues(sums, child, 1);
}

/* In listen(): the socket starts again as a new listener, owned by the current process. */
static inline void on_listen(struct sock *sk)
{
	struct endpoints ends = {};
	struct owner owner = {};

	read_endpoints(sk, &ends);
	if (!pass_endpoints(&ends))
		return;
	own_current(&owner);
	if (!pass_owner(&owner))
		return;
	forget_unfollowed((u64)sk);
	forget_listener(sk);
	track_listener(sk, &ends, &owner);
}

static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
	struct tracked *found;

	if ((oldstate != TCP_LISTEN && newstate != TCP_LISTEN) ||
	    READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	if (oldstate == TCP_LISTEN && newstate == TCP_SYN_RECV) {
		on_child(sk);
	} else if (newstate == TCP_LISTEN) {
		on_listen(sk);
	} else {
		found = find_tracked(sk);
		if (!found)
			return 0;
		update_drops(sk, found, CLOSING);
		forget_listener(sk);
	}
	return 0;
}

/*
 * Each tracked listener, run after `holders`. No file table has it if its descriptor is in a message
 * to another process, or in io_uring's own table, or if it belongs to the kernel.
 */
static inline int on_listeners(struct map_element_context *ctx, u64 *key)
{
	struct sock *sk = (struct sock *)*key;
	struct tracked *found = find_tracked(sk);

	if (!found)
		return 0;
	if (!is_same_listener(sk, found)) { /* its end was missed */
		forget_listener(sk);
		return 0;
	}
	update_owner(found);
	update_drops(sk, found, ctx->meta->session_id);
	return 0;
}

/* A SYN arrives: sample both queues before it enters one. */
static inline int on_syn(struct sock *sk)
{
	struct listener_sums *sums = sums_at(sk);
	struct cpu_work *work = current_work();

	if (work) {
		work->listener = (u64)sk;
		work->answered = 0;
	}
	if (sums) {
		__sync_fetch_and_add(&sums->syns, 1);
		sample_queues(sums, sk, 0);
	}
	return 0;
}

static inline int on_synack(struct sock *sk, int type)
{
	struct listener_sums *sums = type == TCP_SYNACK_COOKIE ? sums_at(sk) : NULL;
	struct cpu_work *work = current_work();

	if (work)
		work->answered = 1;
	if (sums)
		__sync_fetch_and_add(&sums->cookies, 1);
	return 0;
}
