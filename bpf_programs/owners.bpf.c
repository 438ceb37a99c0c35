// SPDX-License-Identifier: GPL-2.0-only
/*
 * owners: the owners of sockets for all tools of a session. Front-end: netbpf/run/shared_owners.py
 *
 * The tools' programs run after on_shared_state() and before on_gone(), so that each of them finds the
 * owner, up to the end of the socket.
 */
#define OWNERS_OF_ALL 1
#include "netbpf.bpf.h"
#include "owners.bpf.h"
#include <netbpf/records.h>

static inline int on_shared_state(struct sock *sk, int oldstate, int newstate)
{
	if (READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	if (oldstate == TCP_LISTEN) /* a new child, which may stand where another socket was */
		forget_owner(sk);
	owner_on_state(sk, newstate);
	/* At ESTABLISHED the local port is known, which connect() chooses after SYN_SENT. */
	if (newstate == TCP_ESTABLISHED && !may_pass_socket(sk))
		forget_owner(sk);
	return 0;
}

static inline int on_gone(struct sock *sk)
{
	forget_owner(sk);
	return 0;
}
