/* SPDX-License-Identifier: GPL-2.0-only */
/* Listening TCP sockets: which one a new connection belongs to, whose it is, what it has dropped. */
#ifndef NETBPF_LISTENERS_BPF_H
#define NETBPF_LISTENERS_BPF_H

#include "owners.bpf.h"

KERNEL_FIELDS(sock, sk_ack_backlog, sk_max_ack_backlog, sk_drops.counter)
/* Without it the listener of a connection is not found, only its address. */
KERNEL_OPTIONAL(tcp_sock, tsorted_sent_queue.next)

/* What is known of a socket that listens now, by its address. */
struct known {
	struct owner owner;
	u64 drops; /* sk_drops as last looked at */
};
BPF_HASH(known, u64, struct known, MAP_ENTRIES);

/*
 * The listener of a child that is a bare copy of it yet (inet_csk_clone_lock): the copied head of an
 * empty list still points to where it was copied from. NULL if that is not what is found there.
 */
static inline struct sock *listener_of(struct sock *child)
{
#ifdef HAVE_tcp_sock_tsorted_sent_queue_next
	void *head = READ((struct tcp_sock *)child, tsorted_sent_queue.next);
	struct sock *sk = head - (u64)&FIELD_OF((struct tcp_sock *)child, tsorted_sent_queue.next);

	if (READ(sk, __sk_common.skc_state) == TCP_LISTEN &&
	    READ(sk, sk_max_ack_backlog) == READ(child, sk_max_ack_backlog) &&
	    READ(sk, __sk_common.skc_net.net) == READ(child, __sk_common.skc_net.net))
		return sk;
#endif
	return NULL;
}

static inline struct known *know(struct sock *sk, const struct owner *owner)
{
	struct known fresh = {.owner = *owner, .drops = READ(sk, sk_drops.counter)};
	u64 key = (u64)sk;

	if (known.update(&key, &fresh))
		count_loss(LOSS_MAP_FULL);
	return known.lookup(&key);
}

/* What is known of a listener; one that was not seen before has an unknown owner. */
static inline struct known *known_of(struct sock *sk)
{
	struct owner nobody = {};
	u64 key = (u64)sk;
	struct known *found = known.lookup(&key);

	return found ? found : know(sk, &nobody);
}

#endif
