/* SPDX-License-Identifier: GPL-2.0-only */
/* What a TCP socket was given to send and has not sent, and why not. */
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

/* Numbers of the column `reason` in netbpf/tools/tcpnagle.py. */
enum reason { NAGLE, CORK, AUTOCORK, CWND, RWND, PACING, OTHER, REFUSED, REASONS };

/* Is sequence number `a` after `b`? */
static inline bool after(u32 a, u32 b)
{
	return (s32)(b - a) < 0;
}

/*
 * Did the last send say MSG_MORE? All others mark what they wrote as pushed (tcp_push), and the trace
 * event of a send has no flags. One that says MSG_MORE marks it once that is half of the largest
 * window; then this is false.
 */
static inline bool is_more_to_come(struct tcp_sock *tp)
{
	return READ(tp, pushed_seq) != READ(tp, write_seq);
}

/* Is it the setting of the namespace that small data waits while earlier data is in the device? */
static inline bool has_autocorking(struct sock *sk)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);

	return READ(net, ipv4.sysctl_tcp_autocorking);
}

/*
 * Why data that was written has not left: the tests of tcp_write_xmit(), tcp_nagle_check() and
 * tcp_push(), for the first segment that is to leave. OTHER if none of them stands against it.
 */
static inline u32 why_held(struct tcp_sock *tp, u32 snd_nxt, u32 unsent, u8 nonagle)
{
	struct sock *sk = (struct sock *)tp;
	u32 mss = READ(tp, mss_cache), una = READ(tp, snd_una), sml = READ(tp, snd_sml);
	u32 out = READ(tp, packets_out);
	u32 in_flight = out - READ(tp, sacked_out) - READ(tp, lost_out) + READ(tp, retrans_out);
	u8 state = READ(sk, __sk_common.skc_state);
	bool small = unsent < mss, throttled;

	if (state == TCP_SYN_SENT || state == TCP_SYN_RECV) /* no window is known as yet */
		return OTHER;
	if (after(snd_nxt + (small ? unsent : mss), una + READ(tp, snd_wnd)))
		return RWND;
	if (in_flight >= READ(tp, snd_cwnd))
		return CWND;
	throttled = READ(sk, sk_tsq_flags) >> TSQ_THROTTLED & 1;
	/* What waits for the device leaves with its next interrupt, MSG_MORE or not. */
	if (small && (nonagle & TCP_NAGLE_CORK || (!throttled && is_more_to_come(tp))))
		return CORK;
	if (small && !nonagle && out && after(sml, una) && !after(sml, snd_nxt))
		return NAGLE;
	if (throttled)
		return small && has_autocorking(sk) ? AUTOCORK : OTHER;
	if (READ(sk, sk_pacing_status) == SK_PACING_NEEDED &&
	    READ(tp, tcp_wstamp_ns) > bpf_ktime_get_ns())
		return PACING;
	return OTHER;
}

#endif
