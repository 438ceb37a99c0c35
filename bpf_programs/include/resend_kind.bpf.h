/* SPDX-License-Identifier: GPL-2.0-only */
/* What made TCP send a segment again, and the timeout of a SYN-ACK. */
#ifndef NETBPF_RESEND_KIND_BPF_H
#define NETBPF_RESEND_KIND_BPF_H

#include "sock.bpf.h"

KERNEL_FIELDS(tcp_skb_cb, end_seq, tcp_flags, sacked)
KERNEL_FIELDS(tcp_sock, snd_nxt, tlp_high_seq)
KERNEL_FIELDS(inet_connection_sock, icsk_pending)
KERNEL_OPTIONAL(inet_connection_sock, icsk_timeout) /* until 6.14 */
KERNEL_OPTIONAL(inet_connection_sock, icsk_rto_max) /* since 6.15 */
KERNEL_FIELDS(request_sock, num_timeout)
KERNEL_OPTIONAL(request_sock, timeout) /* since 5.16 */
KERNEL_OPTIONAL(request_sock_ops, syn_ack_timeout) /* until 6.18 */
KERNEL_ENUM(tcp_ca_state, TCP_CA_Loss)

#define ICSK_TIME_LOSS_PROBE 5 /* include/net/inet_connection_sock.h */
#define TCPHDR_SYN 0x02 /* include/net/tcp.h */
#define TCPHDR_ACK 0x10
#define TCPCB_LOST 0x04
#define TCP_RTO_MAX_US 120000000ULL

/*
 * Did the probe's timer expire? Until 5.10 what the SYN-ACK of Fast Open did not acknowledge is sent
 * again without being marked lost, as the probe is (a7abf3cd76e1, 5.11, marks it); by then the timer
 * has just been started. The field that tells them apart is gone since 6.15 (a7c428ee8f59).
 */
static inline bool is_probe_due(struct sock *sk)
{
#ifdef HAVE_inet_connection_sock_icsk_timeout
	u64 timeout = READ((struct inet_connection_sock *)sk, icsk_timeout);

	return (s64)(bpf_jiffies64() - timeout) >= 0;
#else
	return true;
#endif
}

/*
 * A tail loss probe is sent while its timer is still the pending one, has no predecessor on the
 * way, and takes the very last segment, which need not be lost (tcp_send_loss_probe). Everything
 * else that is sent again is marked lost first, whoever asks for it: the retransmission timer, the
 * peer's acknowledgements, a smaller path MTU, a SYN-ACK that takes no data of the SYN. That may
 * happen while the probe's timer is pending.
 */
static inline bool is_loss_probe(struct sock *sk, struct tcp_skb_cb *cb)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	return READ((struct inet_connection_sock *)sk, icsk_pending) == ICSK_TIME_LOSS_PROBE &&
	       !READ(tp, tlp_high_seq) && READ(cb, end_seq) == READ(tp, snd_nxt) &&
	       !(READ(cb, sacked) & TCPCB_LOST) && is_probe_due(sk);
}

static inline u8 kind_of(struct sock *sk, struct tcp_skb_cb *cb, u8 ca_state)
{
	u32 flags = READ(cb, tcp_flags);

	if (flags & TCPHDR_SYN) /* with ACK when both ends connect at once */
		return flags & TCPHDR_ACK ? KIND_SYNACK : KIND_SYN;
	if (is_loss_probe(sk, cb))
		return KIND_TLP;
	return ca_state == TCP_CA_Loss ? KIND_RTO : KIND_FAST;
}

#ifdef HAVE_request_sock_timeout
/*
 * The longest timeout. The listener's own limit counts since 1e9d3005e02c ("tcp: Apply max RTO to
 * non-TFO SYN+ACK.", 6.19; the series has taken request_sock_ops.syn_ack_timeout away), that of a
 * child of Fast Open since there is one (54a378f43425, 6.15).
 */
static inline u64 longest_timeout(struct sock *sk)
{
#ifdef HAVE_inet_connection_sock_icsk_rto_max
#ifdef HAVE_request_sock_ops_syn_ack_timeout
	if (READ(sk, __sk_common.skc_state) == TCP_LISTEN)
		return TCP_RTO_MAX_US;
#endif
	return (u64)READ((struct inet_connection_sock *)sk, icsk_rto_max) * TICK_US;
#else
	return TCP_RTO_MAX_US;
#endif
}

/* The time after which the SYN-ACK is sent again, as reqsk_timeout() has it: it doubles, up to a limit. */
static inline u32 synack_timeout(struct sock *sk, struct request_sock *req)
{
	u64 us = ((u64)READ(req, timeout) << read_request_sock_num_timeout(req)) * TICK_US;
	u64 most = longest_timeout(sk);

	return us < most ? us : most;
}
#endif

#endif
