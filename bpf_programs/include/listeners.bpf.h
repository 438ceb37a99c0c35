/* SPDX-License-Identifier: GPL-2.0-only */
/* Listening TCP sockets: which one a new connection belongs to, whose it is, what it has lost. */
#ifndef NETBPF_LISTENERS_BPF_H
#define NETBPF_LISTENERS_BPF_H

#include "listener_of.bpf.h"
#include "owners.bpf.h"

KERNEL_FIELDS(sock, sk_ack_backlog, sk_max_ack_backlog, sk_drops.counter)

/*
 * A socket that listens now, by its address: only those that the filters let through. Entries are
 * removed when the socket listens no more, or when another socket is found in its place.
 */
struct known {
	struct owner owner;
	struct owner holder; /* another one, found in file tables since the last look */
	u64 since; /* when it was first seen: no other listener at this address has that */
	u64 refused; /* packets in sk_drops that were no connections, see on_refused() */
	u64 lost; /* connections, where each loss is seen */
	u32 drops; /* sk_drops when it was first seen */
	u32 netns;
	u16 lport;
	u8 held; /* the owner was found in file tables since the last look */
	u8 pad[5];
};
BPF_HASH(known, u64, struct known, MAP_ENTRIES);

static inline struct known *find_known(struct sock *sk)
{
	u64 key = (u64)sk;

	return known.lookup(&key);
}

/* Begin to follow a listener, which passed the filters; one that is followed already stays. */
static inline struct known *know(struct sock *sk, const struct endpoints *ends,
				 const struct owner *owner)
{
	struct known fresh = {.owner = *owner, .netns = ends->netns, .lport = ends->lport};
	struct known *found;
	u64 key = (u64)sk;

	fresh.since = bpf_ktime_get_ns();
	fresh.drops = READ(sk, sk_drops.counter);
	known.insert(&key, &fresh);
	found = known.lookup(&key);
	if (!found)
		count_unfollowed(key);
	return found;
}

/* The same for one that is met on the way: nothing proves who its owner is. */
static inline struct known *know_of(struct sock *sk, const struct endpoints *ends)
{
	struct known *found = find_known(sk);
	struct owner nobody = {};

	if (found || !pass_owner(&nobody))
		return found;
	return know(sk, ends, &nobody);
}

static inline void forget_listener(struct sock *sk)
{
	u64 key = (u64)sk;

	known.delete(&key);
}

/* Is a socket still the listener that was met here? */
static inline bool listens_still(struct sock *sk, const struct known *found)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);

	return READ(sk, __sk_common.skc_state) == TCP_LISTEN &&
	       READ(sk, sk_protocol) == IPPROTO_TCP && READ(net, ns.inum) == found->netns &&
	       READ(sk, __sk_common.skc_num) == found->lport;
}

/* A process has the listener in its file table: who listens is who holds it. */
static inline void hold(struct known *found, const struct owner *holder)
{
	if (found->owner.process.pid == holder->process.pid)
		found->held = 1;
	else if (!found->holder.how)
		found->holder = *holder;
}

/* All file tables were seen: an owner who holds it no more gives way to one who does. */
static inline void settle_owner(struct known *found)
{
	if (!found->held && found->holder.how)
		found->owner = found->holder;
	found->held = 0;
	found->holder.how = 0;
}

#ifdef USE_holders_iter
/* Every listener that is in a file table: run at the start and at each interval's end. */
int holders_iter(struct task_file_context *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct endpoints ends = {};
	struct owner owner = {};
	struct known *found;
	struct sock *sk;

	if (!task || !file)
		return 0;
	sk = sock_of_file(file);
	if (!sk || READ(sk, __sk_common.skc_state) != TCP_LISTEN)
		return 0;
	read_endpoints(sk, &ends);
	if (!pass_endpoints(&ends))
		return 0;
	own(&owner, task, OWNER_SNAPSHOT);
	found = find_known(sk);
	if (!found && pass_owner(&owner))
		found = know(sk, &ends, &owner);
	if (found && owner.how)
		hold(found, &owner);
	return 0;
}
#endif

#ifdef USE_unheld_iter
/* Every listener of a namespace, at the start: those that no file table holds have no owner. */
int unheld_iter(struct tcp_context *ctx)
{
	struct sock *typed = ctx->sk, *sk = NULL;
	struct endpoints ends = {};

	/* The verifier allows no arithmetic with a pointer whose type it knows: take the number. */
	bpf_probe_read_kernel(&sk, sizeof(sk), &typed);
	if (!sk)
		return 0;
	if (READ(sk, __sk_common.skc_state) != TCP_LISTEN) {
		bpf_seq_write(ctx->meta->seq, &ends, 1); /* that is enough */
		return 0;
	}
	read_endpoints(sk, &ends);
	if (pass_endpoints(&ends))
		know_of(sk, &ends);
	return 0;
}
#endif

#endif
