/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Windows and buffers of a TCP sender, as the event struct window, and what limits it. With CHANGES, an
 * event is emitted only if the window differs from the last one. A program includes <netbpf/records.h>,
 * congestion_state.bpf.h and owners.bpf.h before this.
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

/* What was shown last. By the address of struct sock, until CLOSE. */
struct last_window {
	u32 snd_cwnd;
	u32 snd_ssthresh;
	u32 ca_state;
};
BPF_HASH(last_windows, u64, struct last_window, MAP_ENTRIES);

static inline bool has_changed(u64 key, const struct window *ev)
{
	struct last_window *last = last_windows.lookup(&key);

	return !last || last->snd_cwnd != ev->snd_cwnd || last->snd_ssthresh != ev->snd_ssthresh ||
	       last->ca_state != ev->ca_state;
}

/*
 * Emit an event if the window has changed, or with --each. `ca_state` is the state from now on, `owner`
 * may be known.
 */
static inline int observe(struct sock *sk, u8 ca_state, struct owner *owner)
{
	struct endpoints ends = {};
	struct window ev = {};
	u64 key = (u64)sk;

	if (!pass_ports(sk) || !is_connected(sk))
		return 0;
	read_window(&ev, sk, ca_state);
#ifdef CHANGES
	if (!has_changed(key, &ev))
		return 0;
#endif
	read_endpoints(sk, &ends);
	if (!pass_endpoints(&ends))
		return 0;
	if (!owner->how)
		find_owner(sk, owner);
	if (!pass_owner(owner))
		return 0;
#ifdef CHANGES
	struct last_window now = {ev.snd_cwnd, ev.snd_ssthresh, ca_state};

	if (last_windows.update(&key, &now)) {
		count_unfollowed(key);
		return 0;
	}
#endif
	complete_window(&ev, sk, owner, &ends);
	emit(&ev, sizeof(ev));
	return 0;
}

#endif
