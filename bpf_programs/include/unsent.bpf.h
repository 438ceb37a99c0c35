/* SPDX-License-Identifier: GPL-2.0-only */
/* Why a TCP socket has not sent data that was written. Needs the records of tcpnagle. */
#ifndef NETBPF_UNSENT_BPF_H
#define NETBPF_UNSENT_BPF_H

#include "sock.bpf.h"

KERNEL_FIELDS(tcp_sock, nonagle, write_seq, snd_nxt, snd_una, snd_wnd, snd_cwnd, snd_sml, mss_cache)
KERNEL_FIELDS(tcp_sock, packets_out, sacked_out, lost_out, retrans_out, tcp_wstamp_ns)
KERNEL_FIELDS(tcp_sock, pushed_seq)
KERNEL_FIELDS(sock, sk_tsq_flags, sk_pacing_status)
KERNEL_FIELDS(net, ipv4.sysctl_tcp_autocorking)
KERNEL_ENUM(tsq_enum, TSQ_THROTTLED)

/* Bits of tcp_sock.nonagle and a value of sk_pacing_status: include/net/tcp.h, net/sock.h */
#define TCP_NAGLE_OFF 1
#define TCP_NAGLE_CORK 2
#define TCP_NAGLE_PUSH 4
#define SK_PACING_NEEDED 1

/* Is sequence number `a` after `b`? */
static inline bool after(u32 a, u32 b)
{
	return (s32)(b - a) < 0;
}

/*
 * Did the last send have MSG_MORE? The trace event has no flags, but sends without MSG_MORE mark their
 * data as pushed (tcp_push). So does one with MSG_MORE whose data is at least half of the largest
 * window: then this returns false.
 */
static inline bool has_msg_more(struct tcp_sock *tp)
{
	return READ(tp, pushed_seq) != READ(tp, write_seq);
}

/* Does small data wait in this network namespace while earlier data is in the device's queue? */
static inline bool has_autocorking(struct sock *sk)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);

	return READ(net, ipv4.sysctl_tcp_autocorking);
}

/*
 * Why written data has not left: applies the tests of tcp_write_xmit(), tcp_nagle_check() and
 * tcp_push() to the next segment. REASON_OTHER if all of them would let it leave.
 */
static inline u32 why_held(struct tcp_sock *tp, u32 snd_nxt, u32 unsent, u8 nonagle)
{
	struct sock *sk = (struct sock *)tp;
	u32 mss = READ(tp, mss_cache), una = READ(tp, snd_una), sml = READ(tp, snd_sml);
	u32 out = READ(tp, packets_out);
	u32 in_flight = out - READ(tp, sacked_out) - READ(tp, lost_out) + READ(tp, retrans_out);
	u8 state = READ(sk, __sk_common.skc_state);
	bool small = unsent < mss, throttled;

	if (state == TCP_SYN_SENT || state == TCP_SYN_RECV) /* the window is not known yet */
		return REASON_OTHER;
	if (after(snd_nxt + (small ? unsent : mss), una + READ(tp, snd_wnd)))
		return REASON_RWND;
	if (in_flight >= READ(tp, snd_cwnd))
		return REASON_CWND;
	throttled = READ(sk, sk_tsq_flags) >> TSQ_THROTTLED & 1;
	/* Throttled data leaves when the device completes earlier data, even with MSG_MORE. */
	if (small && (nonagle & TCP_NAGLE_CORK || (!throttled && has_msg_more(tp))))
		return REASON_CORK;
	if (small && !nonagle && out && after(sml, una) && !after(sml, snd_nxt))
		return REASON_NAGLE;
	if (throttled)
		return small && has_autocorking(sk) ? REASON_AUTOCORK : REASON_OTHER;
	if (READ(sk, sk_pacing_status) == SK_PACING_NEEDED &&
	    READ(tp, tcp_wstamp_ns) > bpf_ktime_get_ns())
		return REASON_PACING;
	return REASON_OTHER;
}

#endif
