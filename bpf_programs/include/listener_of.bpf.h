/* SPDX-License-Identifier: GPL-2.0-only */
/* From a new connection to the listener that it came to. */
#ifndef NETBPF_LISTENER_OF_BPF_H
#define NETBPF_LISTENER_OF_BPF_H

#include "sock.bpf.h"

KERNEL_FIELDS(sock, sk_max_ack_backlog)
/* Without it the listener of a connection is not found, only its address. */
KERNEL_OPTIONAL(tcp_sock, tsorted_sent_queue.next)

/*
 * The listener of a just-cloned child (inet_csk_clone_lock): the copied head of an empty list still
 * points into the listener. NULL if there is no such listener at that address.
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

#endif
