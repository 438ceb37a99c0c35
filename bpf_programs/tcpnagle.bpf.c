// SPDX-License-Identifier: GPL-2.0-only
/* tcpnagle: how long written data waits before it leaves. Front-end: netbpf/tools/tcpnagle.py */
#include "netbpf.bpf.h"
#include "owner_map.bpf.h"
#include <netbpf/records.h>
#include "stalls.bpf.h"
#include "refused.bpf.h"
#if defined(USE_send_kretprobe)
#include "calls.bpf.h"
#endif

KERNEL_FIELDS(tcp_sock, copied_seq)

/* Sends by the socket's own setting: an entry for each combination of the three bits. */
BPF_F_TABLE("percpu_hash", struct setting_key, struct setting_sums, settings, 8, 0);

/*
 * A send has returned, its socket is not locked any more, and `unsent` bytes from `seq` on are held.
 */
static inline void begin_stall(struct sock *sk, u32 seq, u32 unsent, u8 nonagle, bool small,
			       struct owner *owner, struct endpoints *ends)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	u64 key = (u64)sk;
	struct stall *current = stalls.lookup(&key), stall = {};
	u32 reason = why_held(tp, seq, unsent, nonagle);

	if (reason == REASON_OTHER && take_refusal(key, seq))
		reason = REASON_REFUSED;
	if (current && after(current->end, seq)) { /* older data waits in front of this */
		current->small_writes += small;
		if (reason != REASON_OTHER || current->socket.reason != REASON_REFUSED)
			current->socket.reason = reason; /* it may have changed */
		return;
	}
	stall.start = bpf_ktime_get_ns();
	stall.end = seq + unsent;
	stall.copied_seq = READ(tp, copied_seq);
	stall.small_writes = small;
	stall.socket.sk = key;
	stall.socket.reason = reason;
	stall.uid = owner->process.uid;
	stall.cgroup = owner->process.cgroup;
	stall.socket.pid = owner->process.pid;
	__builtin_memcpy(stall.socket.comm, owner->process.comm, sizeof(stall.socket.comm));
	SET_ENDS(&stall.socket, ends);
	if (stalls.update(&key, &stall))
		count_unfollowed(key);
	/* The data may have left by now, from another CPU. */
	if (!after(stall.end, READ(tp, snd_nxt)))
		stalls.delete(&key);
}

static inline void count_send(u32 nonagle, bool small, bool is_held)
{
	struct setting_key key = {.setting = nonagle};
	struct setting_sums none = {}, *sums = settings.lookup_or_try_init(&key, &none);

	if (sums) {
		sums->sends += 1;
		sums->small += small;
		sums->held += is_held;
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
	owner_from_current(&owner);
	if (!pass_owner(&owner))
		return 0;
#endif
#ifdef FILTER_SOCKET
	read_endpoints(sk, &ends);
	if (!pass_endpoints(&ends))
		return 0;
#endif
	nonagle = read_tcp_sock_nonagle(tp);
	/* In this order: the queue only shrinks, so the difference is never more than what was held. */
	unsent = READ(tp, write_seq);
	seq = READ(tp, snd_nxt);
	unsent -= seq;
	small = (u32)sent < READ(tp, mss_cache);
	count_send(nonagle & 7, small, (s32)unsent > 0);
	if ((s32)unsent <= 0)
		return 0;
	if (!owner.how)
		owner_from_current(&owner);
	if (!ends.netns)
		read_endpoints(sk, &ends);
	begin_stall(sk, seq, unsent, nonagle & 7, small, &owner, &ends);
	return 0;
}

#if defined(USE_send_kretprobe)
static inline int on_send_return(int sent)
{
	struct call call;

	return end_call(&call) ? on_send((struct sock *)call.args[0], sent) : 0;
}
#endif

/* A packet leaves: does it end the stall of its socket? */
static inline int on_leave(struct sk_buff *skb)
{
	u64 key = (u64)READ(skb, sk);
	struct stall *stall = key ? stalls.lookup(&key) : NULL;
	struct outgoing out;

	/* Not a retransmission of older data, and not as long as only a part has left. */
	if (!stall || !read_outgoing(&out, skb) || out.sport != stall->socket.lport ||
	    after(stall->end, out.end))
		return 0;
	/* A segment past the held data means that its transmission was missed. */
	if (after(stall->end, out.seq))
		end_stall(stall, (bpf_ktime_get_ns() - stall->start) / 1000);
	stalls.delete(&key);
	return 0;
}

static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
	u64 key = (u64)sk;

	if (newstate == TCP_CLOSE) {
		stalls.delete(&key);
		refusals.delete(&key);
		forget_unfollowed(key);
	}
	return 0;
}
