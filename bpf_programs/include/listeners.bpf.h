/* SPDX-License-Identifier: GPL-2.0-only */
/* Listening TCP sockets that the filters let through: who owns them, and what they lost. */
#ifndef NETBPF_LISTENERS_BPF_H
#define NETBPF_LISTENERS_BPF_H

#include "listener_of.bpf.h"
#include "owners.bpf.h"

KERNEL_FIELDS(sock, sk_ack_backlog, sk_max_ack_backlog, sk_drops.counter)

/*
 * A tracked listener, by address of the socket. An entry is removed when the socket stops listening,
 * or when another socket is found at its address.
 */
struct tracked {
	struct owner owner;
	struct owner other; /* another process that was found to have it open, in this interval */
	u64 since; /* when it was first seen: unique for this address */
	u64 refused; /* packets in sk_drops that were no connections, see on_dropped() */
	u64 lost; /* connections, where a probe shows each loss */
	u32 drops; /* sk_drops when it was first seen */
	u32 netns;
	u16 lport;
	u8 owner_seen; /* the owner was found to have it open, in this interval */
	u8 pad[5];
};
BPF_HASH(tracked, u64, struct tracked, MAP_ENTRIES);

static inline struct tracked *find_tracked(struct sock *sk)
{
	u64 key = (u64)sk;

	return tracked.lookup(&key);
}

/* Track a listener that passed the filters; an entry that exists stays as it is. */
static inline struct tracked *track_listener(struct sock *sk, const struct endpoints *ends,
					     const struct owner *owner)
{
	struct tracked fresh = {.owner = *owner, .netns = ends->netns, .lport = ends->lport};
	struct tracked *found;
	u64 key = (u64)sk;

	fresh.since = bpf_ktime_get_ns();
	fresh.drops = READ(sk, sk_drops.counter);
	found = tracked.lookup_or_try_init(&key, &fresh);
	if (!found)
		count_unfollowed(key);
	return found;
}

/* The same for a listener whose owner is not known in this context. */
static inline struct tracked *find_or_track(struct sock *sk, const struct endpoints *ends)
{
	struct tracked *found = find_tracked(sk);
	struct owner unknown = {};

	if (found || !pass_owner(&unknown))
		return found;
	return track_listener(sk, ends, &unknown);
}

static inline void forget_listener(struct sock *sk)
{
	u64 key = (u64)sk;

	tracked.delete(&key);
}

/* Is the socket still the listener that was tracked at this address? */
static inline bool is_same_listener(struct sock *sk, const struct tracked *found)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);

	return READ(sk, __sk_common.skc_state) == TCP_LISTEN &&
	       READ(sk, sk_protocol) == IPPROTO_TCP && READ(net, ns.inum) == found->netns &&
	       READ(sk, __sk_common.skc_num) == found->lport;
}

/* After all file tables were read: the owner is replaced if only another process has it open. */
static inline void update_owner(struct tracked *found)
{
	if (!found->owner_seen && found->other.how)
		found->owner = found->other;
	found->owner_seen = 0;
	found->other.how = 0;
}

/* Each socket in a file table, at the start and at each interval's end. */
static inline int on_holders(struct task_file_context *ctx, struct task_struct *task,
			     struct sock *sk)
{
	struct endpoints ends = {};
	struct owner owner = {};
	struct tracked *found;

	if (READ(sk, __sk_common.skc_state) != TCP_LISTEN)
		return 0;
	read_endpoints(sk, &ends);
	if (!pass_endpoints(&ends))
		return 0;
	own(&owner, task, OWNER_SNAPSHOT);
	found = find_tracked(sk);
	if (!found && pass_owner(&owner))
		found = track_listener(sk, &ends, &owner);
	if (!found || !owner.how)
		return 0;
	if (found->owner.process.pid == owner.process.pid)
		found->owner_seen = 1;
	else if (!found->other.how)
		found->other = owner;
	return 0;
}

/* Each listener of a namespace, at the start: those that no file table has get no owner. */
static inline int on_unheld(struct tcp_context *ctx, struct sock *sk)
{
	struct endpoints ends = {};

	if (READ(sk, __sk_common.skc_state) != TCP_LISTEN) {
		/* Listeners come first: some output makes the reader end the iteration here. */
		bpf_seq_write(ctx->meta->seq, &ends, 1);
		return 0;
	}
	read_endpoints(sk, &ends);
	if (pass_endpoints(&ends))
		find_or_track(sk, &ends);
	return 0;
}

#endif
