/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Messages that are sent and received on sockets, by any call. A program that includes this has the
 * probes of MESSAGE_PROBES in declare/calls.py, and defines
 *   on_message(op, sk, result, flags): `result` is the number of bytes, or a negative error.
 * It calls on_message() from the tracepoints that all messages pass (since 6.3). The functions here
 * are for older kernels, where each family has functions of its own.
 */
#ifndef NETBPF_MESSAGES_BPF_H
#define NETBPF_MESSAGES_BPF_H

#include "calls.bpf.h"

KERNEL_FIELDS(socket, sk)
KERNEL_FIELDS(sock, __sk_common.skc_family, sk_type)

#define SOCK_STREAM 1 /* linux/net.h */
#define SOCK_SEQPACKET 5
#define MSG_PEEK 0x2 /* linux/socket.h */
#define MSG_ERRQUEUE 0x2000

static inline int on_message(int op, struct sock *sk, int result, int flags);

/* Does a receive with these flags take data? MSG_PEEK leaves it in the queue. */
static inline bool takes_data(int flags)
{
	return !(flags & (MSG_PEEK | MSG_ERRQUEUE));
}

/*
 * A message on an AF_UNIX socket that keeps packets apart passes unix_seqpacket_*msg() and, unless
 * the compiler made that a part of it, unix_dgram_*msg() as well: only the probes `*_packets`, whose
 * functions are called with `packets` 1, count it.
 */
static inline bool keeps_packets(struct sock *sk)
{
	return READ(sk, __sk_common.skc_family) == AF_UNIX && READ(sk, sk_type) == SOCK_SEQPACKET;
}

/* Exit of a family's function: it shows the arguments and the result. */
static inline int on_family_message(int op, bool packets, struct socket *socket, int result,
				    int flags)
{
	struct sock *sk = READ(socket, sk);

	return keeps_packets(sk) == packets ? on_message(op, sk, result, flags) : 0;
}

static inline int on_enter_message(bool packets, struct socket *socket, int flags)
{
	struct sock *sk = READ(socket, sk);

	return keeps_packets(sk) == packets ? begin_call((u64)sk, flags, 0) : 0;
}

/* Return of a family's function: it shows the result only. */
static inline int on_message_return(int op, int result)
{
	struct call call;

	if (!end_call(&call))
		return 0;
	return on_message(op, (struct sock *)call.args[0], result, call.args[1]);
}

#endif
