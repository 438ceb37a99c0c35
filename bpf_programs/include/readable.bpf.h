/* SPDX-License-Identifier: GPL-2.0-only */
/* Is there something to read on a TCP socket, now or later, and what ended it? */
#ifndef NETBPF_READABLE_BPF_H
#define NETBPF_READABLE_BPF_H

#include "mptcp.bpf.h"

KERNEL_FIELDS(sock, sk_err, sk_shutdown, sk_lock.owned, __sk_common.skc_flags)
KERNEL_FIELDS(tcp_sock, rcv_nxt, copied_seq)
KERNEL_OPTIONAL(tcp_sock, is_mptcp) /* absent from kernels built without MPTCP */
KERNEL_ENUM(sock_flags, SOCK_DONE)

#define RCV_SHUTDOWN 1 /* include/net/sock.h: no data can arrive any more */

enum { EPIPE = 32, ECONNABORTED = 103, ECONNRESET }; /* asm-generic/errno.h */

/* Does the socket carry an MPTCP connection, which may have other subflows? */
static inline bool is_subflow(struct sock *sk)
{
#ifdef HAVE_tcp_sock_is_mptcp
	return READ((struct tcp_sock *)sk, is_mptcp);
#else
	return false;
#endif
}

/* Has the peer's FIN arrived? */
static inline bool has_fin(struct sock *sk)
{
	return READ(sk, __sk_common.skc_flags) >> SOCK_DONE & 1;
}

/*
 * Have bytes arrived that were not read? A FIN counts in rcv_nxt, and in copied_seq once a program has
 * read the end of file. close() removes what was not read, and leaves both numbers.
 */
static inline bool has_unread(struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	return (s32)(READ(tp, rcv_nxt) - READ(tp, copied_seq) - has_fin(sk)) > 0;
}

/*
 * Can the program read a byte after this change of state? What has arrived stays readable after a RST,
 * and after the last FIN, until the socket is destroyed; and after shutdown(SHUT_WR) more can arrive.
 */
static inline bool may_read_later(struct sock *sk, int newstate)
{
	if (has_unread(sk))
		return true;
	return newstate != TCP_CLOSE && newstate != TCP_LAST_ACK &&
	       (newstate != TCP_FIN_WAIT1 || !(READ(sk, sk_shutdown) & RCV_SHUTDOWN));
}

/*
 * Does the current process change the state? Packets and timers wait while a process holds the
 * socket's lock, or end it with an error; and so does 'ss -K', which is another process.
 */
static inline bool is_by_holder(struct sock *sk)
{
	return READ(sk, sk_lock.owned) && !READ(sk, sk_err);
}

#endif
