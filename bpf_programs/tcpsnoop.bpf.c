// SPDX-License-Identifier: GPL-2.0-only
/* tcpsnoop: TCP segments at devices, and their owners. Front-end: netbpf/tools/tcpsnoop.py */
#include "netbpf.bpf.h"
#include "socket_of.bpf.h"
#include <netbpf/records.h>
#include "tcp_header.bpf.h"

KERNEL_FIELDS(tcp_sock, snd_nxt, total_retrans)

#if defined(FILTER_PROCESS) || defined(RING_PAGES) || defined(BY_COMM) || defined(BY_PID) ||       \
	defined(BY_UID) || defined(BY_CGROUP) || defined(BY_OWNER)
#define NEEDS_OWNER 1
#endif
#define NOT_KNOWN 0xffff /* null of the column `retrans` */

/*
 * The connection that sends a segment, NULL if there is none: a request has no socket yet, and what TCP
 * answers without a connection, it sends with a socket of its own, which has no ends.
 */
static inline struct sock *connection_of(struct sk_buff *skb)
{
	struct sock *sk = READ(skb, sk);
	u8 state;

	if (!sk)
		return NULL;
	state = READ(sk, __sk_common.skc_state);
	if (state == TCP_NEW_SYN_RECV || state == TCP_TIME_WAIT ||
	    READ(sk, sk_protocol) != IPPROTO_TCP || !READ(sk, __sk_common.skc_dport))
		return NULL;
	return sk;
}

/*
 * How many of `segs` segments are sent again. TCP counts a retransmission before it sends it, and moves
 * snd_nxt after it has sent something new.
 */
static inline u16 sent_again(struct sock *sk, const struct tcp_header *tcp, u32 length, u16 segs)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	if (!sk)
		return NOT_KNOWN;
	length += !!(tcp->flags & FLAG_SYN) + !!(tcp->flags & FLAG_FIN);
	if (!length || tcp->flags & FLAG_RST || !READ(tp, total_retrans))
		return 0;
	return (s32)(tcp->seq + length - READ(tp, snd_nxt)) <= 0 ? segs : 0;
}

#ifdef RING_PAGES
static inline void show(const struct packet *packet, const struct endpoints *ends,
			const struct tcp_header *tcp, const struct owner *owner, u8 dir, u16 segs,
			u16 retrans)
{
	struct segment *ev = events.ringbuf_reserve(sizeof(*ev)); /* too large for the stack */

	if (!ev) {
		count_loss(LOSS_RING_FULL);
		return;
	}
	ev->time = bpf_ktime_get_ns();
	ev->len = packet->payload;
	ev->seq = tcp->seq;
	ev->ack = tcp->ack;
	ev->win = tcp->window;
	ev->flags = tcp->flags;
	ev->dir = dir;
	ev->segs = segs;
	ev->retrans = retrans;
	__builtin_memcpy(ev->dev, packet->dev, sizeof(ev->dev));
	SET_ENDS(ev, ends);
	SET_OWNER(ev, owner);
	events.ringbuf_submit(ev, 0);
}
#else
#include "segment_counts.bpf.h"
#endif

/* The filters --dir and --flags. */
static inline bool pass_segment(u8 flags, bool sent)
{
#ifdef ONLY_DIR
	if (ONLY_DIR != (sent ? DIR_TX : DIR_RX))
		return false;
#endif
#ifdef FILTER_FLAGS
	return FILTER_FLAGS(flags);
#else
	return true;
#endif
}

/* Does the segment pass the filters, but those of ends? Fills in the owner, if one is needed. */
static inline bool pass(struct sock *sk, const struct endpoints *ends, u8 flags, bool sent,
			struct owner *owner)
{
#ifdef NEEDS_OWNER
	bool opens = (flags & (FLAG_SYN | FLAG_ACK)) == FLAG_SYN;

	/* The port of a connection is chosen after the change of state: the answer must find it. */
	if (sk && opens)
		follow_connection(sk, PROVEN);
	if (!pass_segment(flags, sent))
		return false;
	find_owner_of_ends(sk, ends, opens && !sent, owner);
	return pass_owner(owner);
#else
	return pass_segment(flags, sent);
#endif
}

static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
#ifdef NEEDS_OWNER
	follow_state(sk, oldstate, newstate);
#endif
	return 0;
}

static inline int on_segment(struct sk_buff *skb, bool sent)
{
	struct packet packet __attribute__((aligned(8))) = {};
	struct endpoints ends __attribute__((aligned(8))) = {};
	struct owner owner = {};
	struct tcp_header tcp = {};
	struct sock *sk = NULL;
	u16 segs;

	if (!take_device(&packet, READ(skb, dev)) || !pass_netns(packet.netns) ||
	    !pass_device(&packet) || !read_segment(skb, &packet, &tcp, sent))
		return 0;
	read_ends(&ends, &packet, sent);
	if (!pass_endpoints(&ends))
		return 0;
	if (sent)
		sk = connection_of(skb);
	if (!pass(sk, &ends, tcp.flags, sent, &owner))
		return 0;
	segs = segments_of(skb);
	show(&packet, &ends, &tcp, &owner, sent ? DIR_TX : DIR_RX, segs,
	     sent_again(sk, &tcp, packet.payload, segs));
	return 0;
}
