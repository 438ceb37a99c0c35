// SPDX-License-Identifier: GPL-2.0-only
/* tcpretrans: one event per retransmission, or sums per flow. Front-end: netbpf/tools/tcpretrans.py */
#include "netbpf.bpf.h"
#include "sock.bpf.h"
#include "owners.bpf.h"
#include <netbpf/records.h>
#include "flows.bpf.h"
#include "resend_kind.bpf.h"

KERNEL_FIELDS(sk_buff, len, cb)
KERNEL_FIELDS(tcp_skb_cb, seq, tcp_gso_segs)
KERNEL_FIELDS(tcp_sock, srtt_us, snd_una, snd_wnd, mss_cache)
KERNEL_FIELDS(inet_connection_sock, icsk_rto, icsk_ca_state)
KERNEL_FIELDS(request_sock, num_retrans, __req_common.skc_listener)
KERNEL_FIELDS(tcp_request_sock, snt_isn)
KERNEL_FIELDS(sock, sk_write_queue.next)

/*
 * Count a retransmission for the comparison with the kernel's counters, find its owner, and apply
 * the filters. A retransmission that is filtered out costs these reads and uses no map entry.
 */
static inline bool is_wanted(struct retransmission *ev, struct endpoints *ends, struct sock *sk)
{
	struct owner owner = {};

	if (ends->netns == COUNTED_NETNS)
		add_total(ev->kind == KIND_FAILED ? TOTAL_FAILED_THERE : TOTAL_IN_NAMESPACE,
			  ev->segs);
	if (!pass_endpoints(ends))
		return false;
	find_owner(sk, &owner);
	if (!pass_owner(&owner))
		return false;
	SET_OWNER(ev, &owner);
	SET_ENDS(ev, ends);
	return true;
}

static inline void finish(struct retransmission *ev, struct connection *connection, struct sock *sk)
{
	add_total(ev->kind == KIND_FAILED ? TOTAL_FAILED : TOTAL_SEGS, ev->segs);
	ev->time = bpf_ktime_get_ns();
	submit(ev, connection, sk);
}

static inline int on_retransmit(struct sock *sk, struct sk_buff *skb, int err)
{
	struct tcp_skb_cb *cb = (struct tcp_skb_cb *)FIELD_AT(skb, cb);
	struct inet_connection_sock *icsk = (struct inet_connection_sock *)sk;
	struct connection connection = {};
	struct retransmission ev = {};
	struct endpoints ends = {};

	read_endpoints(sk, &ends);
	ev.ca_state = read_inet_connection_sock_icsk_ca_state(icsk);
	ev.kind = err ? KIND_FAILED : kind_of(sk, cb, ev.ca_state);
	ev.segs = READ(cb, tcp_gso_segs);
	if (!is_wanted(&ev, &ends, sk))
		return 0;
	ev.state = READ(sk, __sk_common.skc_state);
	ev.len = READ(skb, len);
	ev.seq = READ(cb, seq);
	ev.rto_us = READ(icsk, icsk_rto) * TICK_US;
	ev.srtt_us = READ((struct tcp_sock *)sk, srtt_us) >> 3;
	identify(&connection, sk);
#ifndef COUNT_FLOWS
	ev.attempt = count_attempt(&connection, sk, ev.seq);
#endif
	ev.err = err;
	finish(&ev, &connection, sk);
	return 0;
}

/*
 * A SYN-ACK that was sent again. The request sock represents the future child socket. `sk` is the
 * listener, or with Fast Open the child, which is not accepted yet or has an owner itself.
 */
static inline int on_synack(struct sock *sk, struct request_sock *req)
{
	struct connection connection = {};
	struct retransmission ev = {};
	struct endpoints ends = {};
	struct sock *owned = has_record(sk) ? sk : READ(req, __req_common.skc_listener);

	read_endpoints((struct sock *)req, &ends);
	ends.lport = READ((struct sock *)req, __sk_common.skc_num);
	ev.kind = KIND_SYNACK;
	ev.segs = 1;
	if (!is_wanted(&ev, &ends, owned))
		return 0;
	ev.state = TCP_SYN_RECV;
	ev.seq = READ((struct tcp_request_sock *)req, snt_isn);
#ifdef HAVE_request_sock_timeout
	ev.rto_us = synack_timeout(sk, req);
#endif
	ev.attempt = READ(req, num_retrans) + 1; /* raised when this one is sent */
	connection = (struct connection){.object = (u64)req, .first_seq = ev.seq};
	finish(&ev, &connection, NULL);
	return 0;
}

/*
 * A loss probe that sends new data, if there is any and it fits into the window. Other loss probes
 * are seen as retransmissions. None is sent while another one is in flight.
 */
static inline int on_loss_probe(struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct sk_buff *skb = READ(sk, sk_write_queue.next);
	struct tcp_skb_cb *cb = (struct tcp_skb_cb *)FIELD_AT(skb, cb);
	u32 window_end = READ(tp, snd_una) + READ(tp, snd_wnd);
	struct inet_connection_sock *icsk = (struct inet_connection_sock *)sk;
	struct connection connection = {};
	struct retransmission ev = {};
	struct endpoints ends = {};

	if (READ(tp, tlp_high_seq) || (void *)skb == FIELD_AT(sk, sk_write_queue))
		return 0;
	ev.seq = READ(cb, seq);
	ev.len = READ(skb, len);
	if (ev.len > READ(tp, mss_cache))
		ev.len = READ(tp, mss_cache);
	if ((s32)(window_end - ev.seq - ev.len) < 0)
		return 0;
	read_endpoints(sk, &ends);
	ev.kind = KIND_PROBE;
	if (!is_wanted(&ev, &ends, sk))
		return 0;
	ev.state = READ(sk, __sk_common.skc_state);
	ev.ca_state = read_inet_connection_sock_icsk_ca_state(icsk);
	ev.rto_us = READ(icsk, icsk_rto) * TICK_US;
	ev.srtt_us = READ(tp, srtt_us) >> 3;
	identify(&connection, sk);
	finish(&ev, &connection, sk);
	return 0;
}

/* Record owners, and end a flow: its socket's address may be reused from now on. */
static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
	if (newstate == TCP_CLOSE && READ(sk, sk_protocol) == IPPROTO_TCP)
		end_flow(sk);
	return on_owner_state(sk, oldstate, newstate);
}
