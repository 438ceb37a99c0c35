// SPDX-License-Identifier: GPL-2.0-only
/* tcpretrans: one event per retransmission, or sums per flow. Front-end: netbpf/tools/tcpretrans.py */
#include "netbpf.bpf.h"
#include "sock.bpf.h"
#include "owners.bpf.h"
#include "unfollowed.bpf.h"
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

struct retransmission {
	u64 time;
	u64 cgroup;
	u32 pid;
	u32 segs;
	u32 len;
	u32 seq;
	u32 attempt;
	u32 rto_us;
	u32 srtt_us;
	s32 err; /* negative errno, or NET_XMIT_DROP (1) from a full queue */
	u32 uid;
	u32 netns;
	u16 lport;
	u16 rport;
	u8 owner;
	u8 family;
	u8 laddr[16];
	u8 raddr[16];
	u8 state;
	char comm[16];
	u8 kind;
	u8 ca_state;
	u8 pad[7];
};

/* Order of the record Totals in netbpf/tools/tcpretrans.py. */
enum total { TOTAL_SEGS, TOTAL_FAILED, TOTAL_NAMESPACE, TOTAL_NAMESPACE_FAILED, TOTALS };
BPF_PERCPU_ARRAY(totals, u64, TOTALS);

static inline void add_total(int which, u32 segs)
{
	u64 *total = totals.lookup(&which);

	if (total)
		*total += segs;
}

#ifdef COUNT_FLOWS
struct flow_sums {
	u64 segs;
	u64 failed;
	u64 retrans; /* those that failed are in neither of these */
	u64 sent;
	u64 all_retrans; /* as the socket had it when it was last seen here */
	u64 all_sent;
	u64 over; /* nothing more can come: the entry may go */
	u32 pid;
	u32 netns;
	u16 lport;
	u16 rport;
	char comm[16];
	u8 family;
	u8 laddr[16];
	u8 raddr[16];
	u8 pad[3];
};
BPF_HASH(flows, struct connection, struct flow_sums, MAP_ENTRIES);

static inline void fill_flow(struct flow_sums *flow, struct retransmission *ev)
{
	flow->pid = ev->pid;
	flow->netns = ev->netns;
	flow->lport = ev->lport;
	flow->rport = ev->rport;
	flow->family = ev->family;
	__builtin_memcpy(flow->comm, ev->comm, sizeof(flow->comm));
	__builtin_memcpy(flow->laddr, ev->laddr, sizeof(flow->laddr));
	__builtin_memcpy(flow->raddr, ev->raddr, sizeof(flow->raddr));
}

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
	fill_flow(sums, ev); /* the owner may be another one now */
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

static inline void fill_ends(struct retransmission *ev, struct endpoints *ends)
{
	ev->netns = ends->netns;
	ev->family = ends->family;
	ev->lport = ends->lport;
	ev->rport = ends->rport;
	__builtin_memcpy(ev->laddr, ends->laddr, 16);
	__builtin_memcpy(ev->raddr, ends->raddr, 16);
}

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
		add_total(ev->kind == KIND_FAILED ? TOTAL_NAMESPACE_FAILED : TOTAL_NAMESPACE,
			  ev->segs);
	if (!pass_endpoints(ends))
		return false;
	if (!find_owner(holder, &owner) && other)
		find_owner(other, &owner);
	if (!pass_owner(&owner))
		return false;
	ev->pid = owner.process.pid;
	ev->uid = owner.how ? owner.process.uid : ~0U;
	ev->cgroup = owner.process.cgroup;
	ev->owner = owner.how;
	__builtin_memcpy(ev->comm, owner.process.comm, sizeof(ev->comm));
	fill_ends(ev, ends);
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

#ifdef USE_retransmit_rawtp
int retransmit_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
#ifdef ARG_retransmit_err
	int err = RAWTP_ARG(retransmit, err);
#else
	int err = 0;
#endif
	return on_retransmit((struct sock *)RAWTP_ARG(retransmit, sk),
			     (struct sk_buff *)RAWTP_ARG(retransmit, skb), err);
}
#endif
#ifdef USE_retransmit_tp
int retransmit_tp(struct retransmit_args *ctx)
{
#ifdef ARG_retransmit_err
	int err = ctx->err;
#else
	int err = 0;
#endif
	return on_retransmit((struct sock *)ctx->skaddr, (struct sk_buff *)ctx->skbaddr, err);
}
#endif

#ifdef USE_synack_rawtp
int synack_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	return on_synack((struct sock *)RAWTP_ARG(synack, sk),
			 (struct request_sock *)RAWTP_ARG(synack, req));
}
#endif
#ifdef USE_synack_tp
int synack_tp(struct synack_args *ctx)
{
	return on_synack((struct sock *)ctx->skaddr, (struct request_sock *)ctx->req);
}
#endif

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

#include "state_entries.bpf.h"

#ifdef USE_loss_probe_fentry
int loss_probe_fentry(u64 *ctx)
{
	return on_loss_probe((struct sock *)ctx[ARG_loss_probe_sk]);
}
#endif
#ifdef USE_loss_probe_kprobe
int loss_probe_kprobe(struct pt_regs *ctx)
{
	return on_loss_probe((struct sock *)PT_REGS_PARM1(ctx));
}
#endif
