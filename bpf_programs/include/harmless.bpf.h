/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Frees that the kernel reports as drops although nothing is lost, see LIMITS of skbdrop. A program
 * that includes this has the probe `reset` and the constants of named_constants() in its tool.
 */
#ifndef NETBPF_HARMLESS_BPF_H
#define NETBPF_HARMLESS_BPF_H

#include "packet.bpf.h"

KERNEL_FIELDS(sock, sk_socket)

#define AF_VSOCK 40 /* include/linux/socket.h */
enum { TCP_FIN = 1, TCP_SYN = 2, TCP_RST = 4, TCP_ACK = 16 };

struct reset {
	u64 sk;
	u32 netns;
	u16 lport;
	u16 rport;
};
/* The session that the last reset on this CPU ended: its segment is freed right after. */
BPF_PERCPU_ARRAY(resets, struct reset, 1);

/* tcp_reset() runs. The segment that is freed next for this session is the reset. */
static inline int on_reset(struct sock *sk)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);
	int zero = 0;
	struct reset *reset = resets.lookup(&zero);

	if (!reset)
		return 0;
	reset->sk = (u64)sk;
	reset->netns = READ(net, ns.inum);
	reset->lport = swap16(READ((struct inet_sock *)sk, inet_sport));
	reset->rport = swap16(READ(sk, __sk_common.skc_dport));
	return 0;
}

/*
 * Is the packet the reset that has just ended a session? tcp_reset() also ends one on late data. The
 * reset of an established session is not freed as dropped: the next packet may be another segment,
 * with a reason of its own. The reset of a request has no reason, that of a Fast Open child has
 * TCP_FASTOPEN.
 */
static inline bool was_accepted(const struct packet *packet, u32 reason, struct sock *rx_sk)
{
	int zero = 0;
	struct reset *reset = resets.lookup(&zero);

	if (!reset || !reset->sk || (reason != NOT_SPECIFIED && reason != TCP_FASTOPEN))
		return false;
	/* Compare the ports as well: another socket may get the memory. */
	if (reset->lport != packet->dport || reset->rport != packet->sport)
		return false;
	if (rx_sk ? reset->sk != (u64)rx_sk : reset->netns != packet->netns)
		return false;
	reset->sk = 0;
	return packet->tcp_flags & TCP_RST;
}

/*
 * TCP segments that were handled: the reset that ended a session; ACKs that tcp_rcv_state_process()
 * has taken, which it frees without a reason in CLOSE_WAIT, CLOSING and LAST_ACK; the probes of
 * keepalive and of a closed window, which carry nothing or one old byte and were answered; ACKs
 * that newer ones have overtaken; and the ACK or reset that a connection request has taken.
 */
static inline bool was_handled(const struct packet *packet, u32 reason, u64 location,
			       struct sock *rx_sk)
{
	bool bare = (packet->tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)) == TCP_ACK;

	if (was_accepted(packet, reason, rx_sk))
		return true;
	if (REQUEST_PLACE(location) && reason == NOT_SPECIFIED && packet->tcp_flags & TCP_RST)
		return true;
	if (!bare || packet->payload > 1)
		return false;
	if (PROBE_REASON(reason))
		return true;
	if (packet->payload)
		return false;
	return reason == TCP_OLD_ACK ||
	       (reason == NOT_SPECIFIED && (ACKED_PLACE(location) || REQUEST_PLACE(location)));
}

/*
 * Nothing is lost with queues of a closed socket of any family; packets that vsock has handled
 * (virtio_transport_recv_pkt) or TCP; and packets that TIME_WAIT has answered or may ignore, which the
 * kernel frees as a drop without a reason (tcp_v4_rcv, discard_it). Older kernels give no reason for
 * the first and no socket for the last: there the location decides.
 */
static inline bool is_harmless(struct sk_buff *skb, const struct packet *packet, u32 reason,
			       u64 location, struct sock *sk, struct sock *rx_sk)
{
	void *dev = READ(skb, dev);
	u32 proto = packet->proto;
	bool local = proto > PROTO_SOCKET;

	if (HARMLESS_REASON(reason) || (local && reason == SOCKET_CLOSE))
		return true;
	if (proto == IPPROTO_TCP && was_handled(packet, reason, location, rx_sk))
		return true;
	if (reason != NOT_SPECIFIED)
		return false;
	if (local)
		return proto == (PROTO_SOCKET | AF_VSOCK) || !READ(sk, sk_socket);
	/* The socket is gone (udp_destruct_common); dev_scratch shows that the packet was queued. */
	if (proto == IPPROTO_UDP && !sk && dev && !is_kernel_pointer(dev))
		return true;
#ifdef HARMLESS_PLACE
	return HARMLESS_PLACE(location);
#else
	return rx_sk && READ(rx_sk, __sk_common.skc_state) == TCP_TIME_WAIT;
#endif
}

#endif
