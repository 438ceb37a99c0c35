// SPDX-License-Identifier: GPL-2.0-only
/* tcpsnoop: TCP segments at devices, and their owners. Front-end: netbpf/tools/tcpsnoop.py */
#include "netbpf.bpf.h"
#include "socket_of.bpf.h"
#include <netbpf/records.h>
#include "tcp_header.bpf.h"

KERNEL_FIELDS(tcp_sock, snd_nxt, total_retrans)

#define NOT_KNOWN 0xffff /* null of the column `retrans` */

static inline void set_ends(struct endpoints *ends, const struct packet *packet, bool sent)
{
	ends->netns = packet->netns;
	ends->family = packet->family;
	ends->lport = sent ? packet->sport : packet->dport;
	ends->rport = sent ? packet->dport : packet->sport;
	__builtin_memcpy(ends->laddr, sent ? packet->saddr : packet->daddr, 16);
	__builtin_memcpy(ends->raddr, sent ? packet->daddr : packet->saddr, 16);
}

/*
 * The connection that sends a segment, NULL if there is none: a request has no socket yet, and what TCP
 * answers without a connection, it sends with a socket of its own, which has no ends.
 */
static inline struct sock *connection_of(struct sk_buff *skb, const struct endpoints *ends)
{
	struct sock *sk = READ(skb, sk);
	u8 state;

	if (!sk)
		return NULL;
	state = READ(sk, __sk_common.skc_state);
	if (state == TCP_NEW_SYN_RECV || state == TCP_TIME_WAIT ||
	    READ(sk, sk_protocol) != IPPROTO_TCP || !same_ends(sk, ends))
		return NULL;
	return sk;
}

/*
 * How many of the segments are sent again. TCP counts a retransmission before it sends it, and moves
 * snd_nxt after it has sent something new.
 */
static inline u16 sent_again(struct sock *sk, const struct segment *ev)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	u32 length = ev->len + !!(ev->flags & FLAG_SYN) + !!(ev->flags & FLAG_FIN);

	if (!sk)
		return NOT_KNOWN;
	if (!length || ev->flags & FLAG_RST || !READ(tp, total_retrans))
		return 0;
	return (s32)(ev->seq + length - READ(tp, snd_nxt)) <= 0 ? ev->segs : 0;
}

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

static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
	follow_state(sk, oldstate, newstate);
	return 0;
}

static inline int on_segment(struct sk_buff *skb, bool sent)
{
	struct packet packet __attribute__((aligned(8))) = {};
	struct endpoints ends __attribute__((aligned(8))) = {};
	struct owner owner = {};
	struct tcp_header tcp = {};
	struct sock *sk = NULL;
	struct segment *ev;
	bool opens;

	if (!take_device(&packet, READ(skb, dev)) || !pass_netns(packet.netns) ||
	    !pass_device(&packet) || !read_segment(skb, &packet, &tcp, sent))
		return 0;
	set_ends(&ends, &packet, sent);
	if (!pass_endpoints(&ends))
		return 0;
	opens = (tcp.flags & (FLAG_SYN | FLAG_ACK)) == FLAG_SYN;
	if (sent)
		sk = connection_of(skb, &ends);
	/* The port of a connection is chosen after the change of state: the answer must find it. */
	if (sk && opens)
		follow_socket(sk, &ends, PROVEN);
	if (!pass_segment(tcp.flags, sent))
		return 0;
	find_owner_of_ends(sk, &ends, opens && !sent, &owner);
	if (!pass_owner(&owner))
		return 0;
	ev = events.ringbuf_reserve(sizeof(*ev));
	if (!ev) {
		count_loss(LOSS_RING_FULL);
		return 0;
	}
	ev->time = bpf_ktime_get_ns();
	ev->len = packet.payload;
	ev->seq = __builtin_bswap32(tcp.seq);
	ev->ack = __builtin_bswap32(tcp.ack);
	ev->win = swap16(tcp.window);
	ev->flags = tcp.flags;
	ev->dir = sent ? DIR_TX : DIR_RX;
	ev->segs = segments_of(skb);
	ev->retrans = sent_again(sk, ev);
	__builtin_memcpy(ev->dev, packet.dev, sizeof(ev->dev));
	SET_ENDS(ev, &ends);
	SET_OWNER(ev, &owner);
	events.ringbuf_submit(ev, 0);
	return 0;
}
