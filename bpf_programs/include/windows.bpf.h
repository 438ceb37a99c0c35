/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Windows and buffers of a TCP sender, as the event struct window, and what limits it. A program
 * includes <netbpf/records.h>, congestion_state.bpf.h and owners.bpf.h before this.
 */
#ifndef NETBPF_WINDOWS_BPF_H
#define NETBPF_WINDOWS_BPF_H


KERNEL_FIELDS(tcp_sock, snd_cwnd, snd_ssthresh, snd_wnd, rcv_wnd, snd_nxt, write_seq)
KERNEL_FIELDS(tcp_sock, packets_out, retrans_out, sacked_out, lost_out)
KERNEL_FIELDS(tcp_sock, srtt_us, total_retrans, delivered, chrono_type, is_cwnd_limited)
KERNEL_FIELDS(sock, sk_sndbuf, sk_wmem_queued)

enum { CHRONO_RWND_LIMITED = 2, CHRONO_SNDBUF_LIMITED = 3 }; /* enum tcp_chrono, since 4.10 */

/* The kernel's clocks of limits do not distinguish the program from the congestion window. */
static inline u8 limit_of(struct tcp_sock *tp, const struct window *ev)
{
	u64 chrono = read_tcp_sock_chrono_type(tp);

	if (chrono == CHRONO_RWND_LIMITED)
		return LIMITED_RWND;
	if (chrono == CHRONO_SNDBUF_LIMITED)
		return LIMITED_SNDBUF;
	if (!ev->unsent)
		return LIMITED_APP;
	return ev->inflight >= ev->snd_cwnd || read_tcp_sock_is_cwnd_limited(tp) ? LIMITED_CWND
										 : LIMITED_OTHER;
}

/* A line is shown if one of these has changed. */
static inline void read_window(struct window *ev, struct sock *sk, u8 ca_state)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	ev->snd_cwnd = READ(tp, snd_cwnd);
	ev->snd_ssthresh = READ(tp, snd_ssthresh);
	ev->ca_state = ca_state;
}

/* Fill in the rest. */
static inline void complete_window(struct window *ev, struct sock *sk, const struct owner *owner,
				   const struct endpoints *ends)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	ev->time = bpf_ktime_get_ns();
	SET_OWNER(ev, owner);
	SET_ENDS(ev, ends);
	ev->sock = (u64)sk;
	ev->snd_wnd = READ(tp, snd_wnd);
	ev->rcv_wnd = READ(tp, rcv_wnd);
	ev->inflight = READ(tp, packets_out) + READ(tp, retrans_out) - READ(tp, sacked_out) -
		       READ(tp, lost_out);
	ev->unsent = READ(tp, write_seq) - READ(tp, snd_nxt);
	ev->sndbuf = READ(sk, sk_sndbuf);
	ev->wmem_queued = READ(sk, sk_wmem_queued);
	ev->srtt_us = READ(tp, srtt_us) >> 3;
	ev->retrans = READ(tp, total_retrans);
	ev->delivered = READ(tp, delivered);
	ev->limited = limit_of(tp, ev);
}

#endif
