/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * MPTCP: the socket that a program has is carried by subflows, which are TCP sockets; queues, states
 * and addresses are theirs. Listeners of programs written in Go are such sockets since Go 1.24.
 */
#ifndef NETBPF_MPTCP_BPF_H
#define NETBPF_MPTCP_BPF_H

#include "sock.bpf.h"

KERNEL_FIELDS(sock, sk_protocol)
/* Absent from kernels built without MPTCP. */
KERNEL_OPTIONAL(mptcp_sock, first)

#define IPPROTO_MPTCP 262

/* The socket that carries this one: itself, or the first subflow; NULL if there is none yet. */
static inline struct sock *transport_sock(struct sock *sk)
{
#ifdef HAVE_mptcp_sock_first
	if (READ(sk, sk_protocol) == IPPROTO_MPTCP)
		return READ((struct mptcp_sock *)sk, first);
#endif
	return sk;
}

#endif
