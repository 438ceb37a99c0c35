/* SPDX-License-Identifier: GPL-2.0-only */
/* Is a connection established, and in which state is its congestion control? */
#ifndef NETBPF_CONGESTION_STATE_BPF_H
#define NETBPF_CONGESTION_STATE_BPF_H

#include "sock.bpf.h"

KERNEL_FIELDS(inet_connection_sock, icsk_ca_state)

/* After the handshake, and before the end: the windows are those of this connection. */
static inline bool is_connected(struct sock *sk)
{
	u8 state = READ(sk, __sk_common.skc_state);

	return state != TCP_SYN_SENT && state != TCP_SYN_RECV && state != TCP_CLOSE &&
	       state != TCP_LISTEN;
}

static inline u8 ca_state_of(struct sock *sk)
{
	return read_inet_connection_sock_icsk_ca_state((struct inet_connection_sock *)sk);
}

#endif
