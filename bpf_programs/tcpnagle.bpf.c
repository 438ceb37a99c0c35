// SPDX-License-Identifier: GPL-2.0-only
/* tcpnagle: how long written data waits before it leaves. Front-end: netbpf/tools/tcpnagle.py */
#include "netbpf.bpf.h"
#include "owners.bpf.h"
#include "unsent.bpf.h"
#include "held.bpf.h"
#include "refused.bpf.h"
#if defined(USE_send_kretprobe)
#include "calls.bpf.h"
#endif

KERNEL_FIELDS(tcp_sock, copied_seq)

/* Numbers of the column `setting` in netbpf/tools/tcpnagle.py: the bits of tcp_sock.nonagle. */
enum setting_number {
	SETTING_ON,
	SETTING_OFF,
	SETTING_CORK,
	SETTING_OFF_CORK,
	SETTING_PUSH,
	SETTING_OFF_PUSH,
	SETTING_CORK_PUSH,
	SETTING_OFF_CORK_PUSH,
	SETTINGS,
};

/* Sends by the socket's own setting: an entry for each combination of the three bits. */
struct setting_key {
	u32 setting;
};
struct setting {
	u64 sends;
	u64 small;
	u64 held;
};
BPF_F_TABLE("percpu_hash", struct setting_key, struct setting, settings, SETTINGS, 0);

static inline void fill_holder(struct holder *holder, struct sock *sk, struct owner *owner,
			       struct endpoints *ends)
{
	holder->sk = (u64)sk;
	holder->pid = owner->process.pid;
	holder->netns = ends->netns;
	holder->lport = ends->lport;
	holder->rport = ends->rport;
	__builtin_memcpy(holder->comm, owner->process.comm, 16);
	__builtin_memcpy(holder->laddr, ends->laddr, 16);
	__builtin_memcpy(holder->raddr, ends->raddr, 16);
}

/* A send is done, its socket is not locked any more, and `unsent` bytes from `seq` on are held. */
static inline void begin_hold(struct sock *sk, u32 seq, u32 unsent, u8 nonagle, bool small,
			      struct owner *owner, struct endpoints *ends)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	u64 key = (u64)sk;
	struct hold *known = holds.lookup(&key), hold = {};
	u32 reason = why_held(tp, seq, unsent, nonagle);

	if (reason == OTHER && is_refused(key, seq))
		reason = REFUSED;
	if (known && after(known->end, seq)) { /* older data waits in front of this */
		known->small_writes += small;
		if (reason != OTHER || known->holder.reason != REFUSED)
			known->holder.reason = reason; /* it may be another one now */
		return;
	}
	hold.start = bpf_ktime_get_ns();
	hold.end = seq + unsent;
	hold.copied_seq = READ(tp, copied_seq);
	hold.small_writes = small;
	fill_holder(&hold.holder, sk, owner, ends);
	hold.holder.reason = reason;
	if (holds.update(&key, &hold))
		count_unfollowed(key);
	/* It may have left meanwhile, on another CPU. */
	if (!after(hold.end, READ(tp, snd_nxt)))
		holds.delete(&key);
}

static inline void count_send(u32 nonagle, bool small, bool is_held)
{
	struct setting_key key = {.setting = nonagle};
	struct setting none = {}, *setting = settings.lookup(&key);

	if (!setting) {
		settings.insert(&key, &none);
		setting = settings.lookup(&key);
	}
	if (setting) {
		setting->sends += 1;
		setting->small += small;
		setting->held += is_held;
	}
}

static inline int on_send(struct sock *sk, int sent)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	u16 family = READ(sk, __sk_common.skc_family);
	struct endpoints ends = {};
	struct owner owner = {};
	u32 seq, unsent;
	u8 nonagle;
	bool small;

	if (sent <= 0 || (family != AF_INET && family != AF_INET6) ||
	    READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
#ifdef FILTER_PROCESS
	own_current(&owner);
	if (!pass_owner(&owner))
		return 0;
#endif
#ifdef FILTER_SOCKET
	read_endpoints(sk, &ends);
	if (!pass_endpoints(&ends))
		return 0;
#endif
	nonagle = read_tcp_sock_nonagle(tp);
	/* Read in this order, as the queue only shrinks meanwhile: never more than there was. */
	unsent = READ(tp, write_seq);
	seq = READ(tp, snd_nxt);
	unsent -= seq;
	small = (u32)sent < READ(tp, mss_cache);
	count_send(nonagle & 7, small, (s32)unsent > 0);
	if ((s32)unsent <= 0)
		return 0;
	if (!owner.how)
		own_current(&owner);
	if (!ends.netns)
		read_endpoints(sk, &ends);
	begin_hold(sk, seq, unsent, nonagle & 7, small, &owner, &ends);
	return 0;
}

/* A packet leaves: does it end the wait of what its socket holds? */
static inline int on_leave(struct sk_buff *skb)
{
	u64 key = (u64)READ(skb, sk);
	struct hold *hold = key ? holds.lookup(&key) : NULL;
	struct outgoing out;

	/* Not for a retransmission of what is older, nor as long as only a part has left. */
	if (!hold || !read_outgoing(&out, skb) || out.sport != hold->holder.lport ||
	    after(hold->end, out.end))
		return 0;
	/* What begins behind the data that is held shows that its leaving was not seen. */
	if (after(hold->end, out.seq))
		end_hold(hold, (bpf_ktime_get_ns() - hold->start) / 1000);
	holds.delete(&key);
	return 0;
}

static inline int on_close(struct sock *sk, int newstate)
{
	u64 key = (u64)sk;

	if (newstate == TCP_CLOSE) {
		holds.delete(&key);
		refusals.delete(&key);
		forget_unfollowed(key);
	}
	return 0;
}

#ifdef USE_send_rawtp
int send_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	return on_send((struct sock *)RAWTP_ARG(send, sk), RAWTP_ARG(send, ret));
}
#endif
#ifdef USE_send_tp
int send_tp(struct send_args *ctx)
{
	return on_send((struct sock *)ctx->sk, ctx->ret);
}
#endif
#ifdef USE_send_fexit
int send_fexit(u64 *ctx)
{
	return on_send((struct sock *)ctx[ARG_send_sk], ctx[ARGS_send]);
}
#endif

#ifdef USE_send_kretprobe
int send_kretprobe(struct pt_regs *ctx)
{
	struct call call;

	return end_call(&call) ? on_send((struct sock *)call.args[0], PT_REGS_RC(ctx)) : 0;
}
#endif
#ifdef USE_enter_send_kprobe
int enter_send_kprobe(struct pt_regs *ctx)
{
	return begin_call(PT_REGS_PARM1(ctx), 0, 0);
}
#endif

#ifdef USE_leave_rawtp
int leave_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	return on_leave((struct sk_buff *)RAWTP_ARG(leave, skb));
}
#endif
#ifdef USE_leave_tp
int leave_tp(struct leave_args *ctx)
{
	return on_leave((struct sk_buff *)ctx->skbaddr);
}
#endif

#ifdef USE_free_rawtp
int free_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	return on_free((struct sk_buff *)RAWTP_ARG(free, skb));
}
#endif
#ifdef USE_free_tp
int free_tp(struct free_args *ctx)
{
	return on_free((struct sk_buff *)ctx->skbaddr);
}
#endif

#ifdef USE_state_rawtp
int state_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	return on_close((struct sock *)RAWTP_ARG(state, sk), RAWTP_ARG(state, newstate));
}
#endif
#ifdef USE_state_tp
int state_tp(struct state_args *ctx)
{
	return on_close((struct sock *)ctx->skaddr, ctx->newstate);
}
#endif
