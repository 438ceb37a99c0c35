// SPDX-License-Identifier: GPL-2.0-only
/* tcpretrans: one event per retransmission, or sums per flow. Front-end: netbpf/tools/tcpretrans.py */
#include "netbpf.bpf.h"
#include "sock.bpf.h"
#include "owners.bpf.h"
#include "unfollowed.bpf.h"
#include <netbpf/records.h>
#include "resent.bpf.h"
#include "resend_kind.bpf.h"

KERNEL_FIELDS(sk_buff, len, cb)
KERNEL_FIELDS(tcp_skb_cb, seq, tcp_gso_segs)
KERNEL_FIELDS(tcp_sock, srtt_us, snd_una, snd_wnd, mss_cache)
KERNEL_FIELDS(tcp_sock, segs_out, total_retrans)
KERNEL_FIELDS(inet_connection_sock, icsk_rto, icsk_ca_state)
KERNEL_FIELDS(request_sock, num_retrans, __req_common.skc_listener)
KERNEL_FIELDS(tcp_request_sock, snt_isn)
KERNEL_FIELDS(sock, sk_write_queue.next)

#ifdef COUNT_FLOWS
BPF_HASH(flows, struct connection, struct flow_sums, MAP_ENTRIES);

/* The socket is locked: nobody else changes the sums of its flow meanwhile. */
static inline void show(struct retransmission *ev, struct connection *connection, struct sock *sk)
{
	struct flow_sums none = {}, *sums;

	none.over = !sk; /* no state follows that would end a request */
	sums = flows.lookup_or_try_init(connection, &none);
	if (!sums) {
		count_unfollowed(connection->object);
		return;
	}
	sums->pid = ev->pid; /* the owner may be another one now */
	__builtin_memcpy(sums->comm, ev->comm, sizeof(sums->comm));
	SET_ENDS(sums, ev);
	if (ev->kind == KIND_FAILED)
		sums->failed += ev->segs;
	else
		sums->segs += ev->segs;
	if (sk) {
		u32 retrans = READ((struct tcp_sock *)sk, total_retrans);
		u32 sent = READ((struct tcp_sock *)sk, segs_out);
		u32 more = retrans - sums->all_retrans, more_sent = sent - sums->all_sent;
		/* The socket counts what fails as it is sent, and not what fails before that. */
		u32 failed = ev->kind == KIND_FAILED && more ? ev->segs : 0;

		sums->retrans += more > failed ? more - failed : 0;
		sums->sent += more_sent > failed ? more_sent - failed : 0;
		sums->all_retrans = retrans;
		sums->all_sent = sent;
	}
}

static inline void end_flow(struct sock *sk)
{
	struct connection connection = {};
	struct flow_sums *sums;

	identify(&connection, sk);
	sums = flows.lookup(&connection);
	if (sums)
		sums->over = 1;
	forget_unfollowed(connection.object);
}
#else
static inline void show(struct retransmission *ev, struct connection *connection, struct sock *sk)
{
	emit(ev, sizeof(*ev));
}

#define end_flow forget_segments
#endif

/*
 * Count a retransmission for the comparison with the kernel's counters, and find whose it is: was
 * it asked for? `holder` is the socket whose owner is wanted, or `other` if that has none as yet.
 * What is not asked for costs these reads and takes no room in a map.
 */
static inline bool is_wanted(struct retransmission *ev, struct endpoints *ends, struct sock *holder,
			     struct sock *other)
{
	struct owner owner = {};

	if (ends->netns == COUNTED_NETNS)
		add_total(ev->kind == KIND_FAILED ? TOTAL_FAILED_THERE : TOTAL_IN_NAMESPACE,
			  ev->segs);
	if (!pass_endpoints(ends))
		return false;
	if (!find_owner(holder, &owner) && other)
		find_owner(other, &owner);
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
	show(ev, connection, sk);
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
	if (!is_wanted(&ev, &ends, sk, NULL))
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
 * Only those that were sent: the request sock stands in for the socket that is to be. `sk` is the
 * listener, or with Fast Open the child, which is not accepted as yet or has an owner of its own.
 */
static inline int on_synack(struct sock *sk, struct request_sock *req)
{
	struct connection connection = {};
	struct retransmission ev = {};
	struct endpoints ends = {};

	read_endpoints((struct sock *)req, &ends);
	ends.lport = READ((struct sock *)req, __sk_common.skc_num);
	ev.kind = KIND_SYNACK;
	ev.segs = 1;
	if (!is_wanted(&ev, &ends, sk, READ(req, __req_common.skc_listener)))
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
 * A loss probe with new data, if there is any and the window takes it. The others are seen when
 * they retransmit, and with one on its way none is sent.
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
	if (!is_wanted(&ev, &ends, sk, NULL))
		return 0;
	ev.state = READ(sk, __sk_common.skc_state);
	ev.ca_state = read_inet_connection_sock_icsk_ca_state(icsk);
	ev.rto_us = READ(icsk, icsk_rto) * TICK_US;
	ev.srtt_us = READ(tp, srtt_us) >> 3;
	identify(&connection, sk);
	finish(&ev, &connection, sk);
	return 0;
}

/* Owners, and the end of a flow: its address may be another one's from now on. */
static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
	if (newstate == TCP_CLOSE && READ(sk, sk_protocol) == IPPROTO_TCP)
		end_flow(sk);
	return on_owner_state(sk, oldstate, newstate);
}
