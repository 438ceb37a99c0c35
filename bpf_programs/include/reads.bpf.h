/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Packets that a program reads from sockets of TCP and UDP. A program that includes this defines
 *   finish(known, sk, proto, now): the current process has read a packet, whose arrival is `known`.
 */
#ifndef NETBPF_READS_BPF_H
#define NETBPF_READS_BPF_H

#include "arrivals.bpf.h"
#ifdef USE_recv_kretprobe
#include "calls.bpf.h"
#endif

KERNEL_FIELDS(sk_buff, sk, cb, users.refs.counter)
KERNEL_FIELDS(tcp_sock, copied_seq)
KERNEL_FIELDS(tcp_skb_cb, seq)

#define MSG_PEEK 0x2 /* linux/socket.h */
#define MSG_ERRQUEUE 0x2000
enum { EFAULT = 14 }; /* asm-generic/errno.h: a datagram that cannot be copied is dropped */

/* What a thread reads first in a call on a socket of TCP: with MSG_PEEK it has not left the queue. */
struct first_read {
	u64 skb;
	u64 time;
	struct arrival arrival; /* all 0 if it was not seen */
};
BPF_HASH(first_reads, u64, struct first_read, MAP_ENTRIES);

static inline void finish(const struct arrival *known, struct sock *sk, u16 proto, u64 now);

/* A part of a packet is copied to the program: this is the first one, or it was counted before. */
static inline int on_copy(struct sk_buff *skb)
{
	u64 key = (u64)skb, thread = bpf_get_current_pid_tgid();
	struct tcp_skb_cb *cb = (struct tcp_skb_cb *)FIELD_AT(skb, cb);
	struct sock *sk = READ(skb, sk);
	struct first_read first = {};
	struct arrival *arrival;
	s32 ahead;

	if (!sk || !is_ip_sock(sk, IPPROTO_TCP) || !pass_current() || !pass_ports(sk))
		return 0;
	ahead = READ((struct tcp_sock *)sk, copied_seq) - READ(cb, seq);
	if (ahead < 0) /* with MSG_PEEK, which leaves the packets before it in the queue as well */
		return 0;
	arrival = arrivals.lookup(&key);
	if (arrival && !(arrival->socket && is_of(arrival, skb)))
		arrival = NULL;
	if (!arrival && ahead)
		return 0;
	first.time = bpf_ktime_get_ns();
	if (first_reads.lookup(&thread)) { /* what was copied before it has left the queue */
		finish(arrival, sk, IPPROTO_TCP, first.time);
		arrivals.delete(&key);
		return 0;
	}
	first.skb = key;
	if (arrival)
		first.arrival = *arrival;
	if (first_reads.update(&thread, &first))
		count_loss(LOSS_MAP_FULL);
	return 0;
}

/* A call on a socket of TCP ends. */
static inline void on_tcp_read(struct sock *sk, int received, int flags)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct first_read *first = first_reads.lookup(&thread);
	struct arrival *arrival;

	if (!first)
		return;
	if (received > 0 && !(flags & MSG_PEEK)) {
		u64 key = first->skb;

		arrival = arrivals.lookup(&key);
		finish(&first->arrival, sk, IPPROTO_TCP, first->time);
		if (arrival && arrival->device == first->arrival.device)
			arrivals.delete(&key);
	}
	first_reads.delete(&thread);
}

#ifdef MATCH_BY_ORDER
/*
 * A call on a socket of UDP ends. No event shows which datagram it was, but they are read in the order
 * of the queue: it is the one that was the first before, and is no more.
 */
static inline void on_datagram(struct sock *sk, int received)
{
	u64 key = (u64)sk, first, read = 0, *next = next_datagrams.lookup(&key);

	if (next) {
		read = *next;
		*next = 0; /* before the queue is read: what arrives meanwhile is set by on_queued() */
	}
	first = first_datagram(sk);
	if (next && first)
		*next = first;
	else if (first)
		next_datagrams.update(&key, &first);
	if (received < 0 || (!received && !read) /* shutdown() */ || !pass_current())
		return;
	if (read == first) /* two threads read, and the other one was counted */
		read = 0;
	finish(read ? arrivals.lookup(&read) : NULL, sk, IPPROTO_UDP, bpf_ktime_get_ns());
	if (read)
		arrivals.delete(&read);
}
#else
#define on_datagram(sk, received)

/* A datagram was read, or with MSG_PEEK looked at. */
static inline int on_consumed(struct sock *sk, struct sk_buff *skb, int len)
{
	u64 key = (u64)skb;
	struct arrival *arrival;

	if (len < 0 || READ(skb, users.refs.counter) > 1 || !pass_ports(sk) || !pass_current())
		return 0;
	arrival = arrivals.lookup(&key);
	if (arrival && !(arrival->socket && is_of(arrival, skb)))
		arrival = NULL;
	finish(arrival, sk, IPPROTO_UDP, bpf_ktime_get_ns());
	arrivals.delete(&key);
	return 0;
}
#endif

static inline int on_recv(struct sock *sk, int received, int flags)
{
	if (!pass_ports(sk) || flags & MSG_ERRQUEUE)
		return 0;
	if (is_ip_sock(sk, IPPROTO_TCP))
		on_tcp_read(sk, received, flags);
	else if (is_ip_sock(sk, IPPROTO_UDP) && !(flags & MSG_PEEK) &&
		 (received >= 0 || received == -EFAULT)) /* other errors leave the queue as it is */
		on_datagram(sk, received);
	return 0;
}

#ifdef USE_recv_kretprobe
/* Return of tcp_recvmsg(): it shows the result only. */
static inline int on_recv_return(int received)
{
	struct call call;

	return end_call(&call) ? on_recv((struct sock *)call.args[0], received, call.args[1]) : 0;
}
#endif

#endif
