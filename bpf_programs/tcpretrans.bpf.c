// SPDX-License-Identifier: GPL-2.0-only
/* tcpretrans: one event per retransmission, or sums per flow. Front-end: netbpf/tools/tcpretrans.py */
#include "netbpf.bpf.h"
#include "sock.bpf.h"
#include "owners.bpf.h"

KERNEL_FIELDS(sk_buff, len, cb)
KERNEL_FIELDS(tcp_skb_cb, seq, end_seq, tcp_flags, tcp_gso_segs)
KERNEL_FIELDS(tcp_sock, srtt_us, snd_nxt, snd_una, snd_wnd, tlp_high_seq, mss_cache)
KERNEL_FIELDS(tcp_sock, segs_out, total_retrans)
KERNEL_FIELDS(inet_connection_sock, icsk_rto, icsk_retransmits, icsk_pending, icsk_ca_state)
KERNEL_FIELDS(tcp_request_sock, snt_isn)
KERNEL_FIELDS(request_sock, num_timeout)
KERNEL_OPTIONAL(request_sock, timeout) /* since 5.16 */
KERNEL_FIELDS(sock, sk_write_queue.next)
KERNEL_ENUM(tcp_ca_state, TCP_CA_Loss)

#define ICSK_TIME_LOSS_PROBE 5 /* include/net/inet_connection_sock.h */
#define TCPHDR_SYN 0x02 /* include/net/tcp.h */

/* Numbers of the column `kind` in netbpf/tools/tcpretrans.py. */
enum kind { KIND_SYN, KIND_SYNACK, KIND_RTO, KIND_FAST, KIND_TLP, KIND_FAILED, KIND_PROBE };

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
	char comm[16];
	u8 owner;
	u8 family;
	u8 laddr[16];
	u8 raddr[16];
	u8 state;
	u8 kind;
	u8 ca_state;
	u8 pad[7];
};

/* How often each segment was sent again; of those that nobody asks for any more, the oldest go. */
struct segment {
	u64 object;
	u64 seq;
};
BPF_TABLE("lru_hash", struct segment, u32, attempts, MAP_ENTRIES);

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
struct flow {
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
struct flow_sums {
	u64 segs;
	u64 failed;
	u64 retrans;
	u64 sent;
	u64 all_retrans; /* as the socket had it when it was last seen here */
	u64 all_sent;
};
BPF_HASH(flows, struct flow, struct flow_sums, MAP_ENTRIES);

/* The socket is locked: nobody else changes the sums of its flow meanwhile. */
static inline void show(struct retransmission *ev, struct sock *sk)
{
	struct flow_sums none = {}, *sums;
	struct flow flow = {};

	flow.pid = ev->pid;
	flow.netns = ev->netns;
	flow.lport = ev->lport;
	flow.rport = ev->rport;
	flow.family = ev->family;
	__builtin_memcpy(flow.comm, ev->comm, sizeof(flow.comm));
	__builtin_memcpy(flow.laddr, ev->laddr, sizeof(flow.laddr));
	__builtin_memcpy(flow.raddr, ev->raddr, sizeof(flow.raddr));
	sums = flows.lookup_or_try_init(&flow, &none);
	if (!sums) {
		count_loss(LOSS_MAP_FULL);
		return;
	}
	if (ev->kind == KIND_FAILED)
		sums->failed += ev->segs;
	else
		sums->segs += ev->segs;
	if (sk) {
		u32 retrans = READ((struct tcp_sock *)sk, total_retrans);
		u32 sent = READ((struct tcp_sock *)sk, segs_out);

		sums->retrans += (u32)(retrans - sums->all_retrans);
		sums->sent += (u32)(sent - sums->all_sent);
		sums->all_retrans = retrans;
		sums->all_sent = sent;
	}
}
#else
static inline void show(struct retransmission *ev, struct sock *sk)
{
	emit(ev, sizeof(*ev));
}
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

/* `holder` is the socket whose owner is asked for: of a request, its listener. */
static inline void finish(struct retransmission *ev, struct endpoints *ends, struct sock *holder,
			  struct sock *sk)
{
	struct owner owner = {};

	if (ends->netns == COUNTED_NETNS)
		add_total(ev->kind == KIND_FAILED ? TOTAL_NAMESPACE_FAILED : TOTAL_NAMESPACE,
			  ev->segs);
	find_owner(holder, &owner);
	if (!pass_owner(&owner) || !pass_endpoints(ends))
		return;
	add_total(ev->kind == KIND_FAILED ? TOTAL_FAILED : TOTAL_SEGS, ev->segs);
	ev->time = bpf_ktime_get_ns();
	ev->pid = owner.process.pid;
	ev->uid = owner.how ? owner.process.uid : ~0U;
	ev->cgroup = owner.process.cgroup;
	ev->owner = owner.how;
	__builtin_memcpy(ev->comm, owner.process.comm, sizeof(ev->comm));
	fill_ends(ev, ends);
	show(ev, sk);
}

static inline u32 count_attempt(void *object, u32 seq, u32 by_timer)
{
	struct segment segment = {.object = (u64)object, .seq = seq};
	u32 first = 0, count = 1, *known = attempts.lookup(&segment);

	if (known)
		count = *known + 1;
	if (count < by_timer) /* it began before the start */
		count = by_timer;
	attempts.update(&segment, &count);
	return count;
}

/*
 * A tail loss probe is sent while its timer is still the pending one, has no predecessor on the
 * way, and takes the very last segment (tcp_send_loss_probe); the retransmission timer clears
 * icsk_pending first. Fast retransmits may find the probe's timer pending, too, but the last
 * segment is never lost before something that was sent after it has arrived.
 */
static inline bool is_loss_probe(struct sock *sk, struct tcp_skb_cb *cb)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	return READ((struct inet_connection_sock *)sk, icsk_pending) == ICSK_TIME_LOSS_PROBE &&
	       !READ(tp, tlp_high_seq) && READ(cb, end_seq) == READ(tp, snd_nxt);
}

static inline u8 kind_of(struct sock *sk, struct tcp_skb_cb *cb, u8 state, u8 ca_state)
{
	if (READ(cb, tcp_flags) & TCPHDR_SYN)
		return state == TCP_SYN_RECV ? KIND_SYNACK : KIND_SYN;
	if (is_loss_probe(sk, cb))
		return KIND_TLP;
	return ca_state == TCP_CA_Loss ? KIND_RTO : KIND_FAST;
}

static inline int on_retransmit(struct sock *sk, struct sk_buff *skb, int err)
{
	struct tcp_skb_cb *cb = (struct tcp_skb_cb *)FIELD_AT(skb, cb);
	struct inet_connection_sock *icsk = (struct inet_connection_sock *)sk;
	struct retransmission ev = {};
	struct endpoints ends = {};

	read_endpoints(sk, &ends);
	ev.state = READ(sk, __sk_common.skc_state);
	ev.ca_state = read_inet_connection_sock_icsk_ca_state(icsk);
	ev.kind = kind_of(sk, cb, ev.state, ev.ca_state);
	ev.segs = READ(cb, tcp_gso_segs);
	ev.len = READ(skb, len);
	ev.seq = READ(cb, seq);
	ev.rto_us = READ(icsk, icsk_rto) * TICK_US;
	ev.srtt_us = READ((struct tcp_sock *)sk, srtt_us) >> 3;
	ev.attempt = count_attempt(sk, ev.seq, READ(icsk, icsk_retransmits));
	ev.err = err;
	if (err)
		ev.kind = KIND_FAILED;
	finish(&ev, &ends, sk, sk);
	return 0;
}

/* Only those that were sent: the request sock stands in for the socket that is to be. */
static inline int on_synack(struct sock *listener, struct request_sock *req)
{
	u32 timeouts = read_request_sock_num_timeout(req);
	struct retransmission ev = {};
	struct endpoints ends = {};

	read_endpoints((struct sock *)req, &ends);
	ends.lport = READ((struct sock *)req, __sk_common.skc_num);
	ev.state = TCP_SYN_RECV;
	ev.kind = KIND_SYNACK;
	ev.segs = 1;
	ev.seq = READ((struct tcp_request_sock *)req, snt_isn);
#ifdef HAVE_request_sock_timeout
	ev.rto_us = (READ(req, timeout) << timeouts) * TICK_US;
#endif
	ev.attempt = count_attempt(req, ev.seq, timeouts + 1);
	finish(&ev, &ends, listener, NULL);
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
	ev.state = READ(sk, __sk_common.skc_state);
	ev.ca_state = read_inet_connection_sock_icsk_ca_state(icsk);
	ev.kind = KIND_PROBE;
	ev.rto_us = READ(icsk, icsk_rto) * TICK_US;
	ev.srtt_us = READ(tp, srtt_us) >> 3;
	finish(&ev, &ends, sk, sk);
	return 0;
}

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
