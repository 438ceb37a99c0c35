/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A TCP attempt to connect: from SYN_SENT to the end of the handshake, and to the return of the call
 * that began it.
 */
#ifndef NETBPF_ATTEMPT_BPF_H
#define NETBPF_ATTEMPT_BPF_H

#include "connection.bpf.h"

KERNEL_FIELDS(sock, sk_err)
KERNEL_FIELDS(tcp_sock, total_retrans, segs_out, retrans_stamp, tcp_wstamp_ns)
/* Since 614e8316aa4c ("tcp: add support for usec resolution in TCP TS values", 6.7). */
KERNEL_OPTIONAL(tcp_sock, tcp_usec_ts)

#define DIED (-512) /* in place of a result: the process was killed in the call */

struct attempt {
	u64 begin_ns; /* SYN_SENT; 0: before the start */
	u64 syn_ns; /* the first SYN was sent; 0: none was, or the time is not known */
	u64 end_ns; /* 0: not yet */
	u64 call_ns; /* 0: no connect() was seen, as with io_uring */
	u64 returned_ns; /* 0: not yet */
	struct owner owner;
	struct endpoints ends;
#ifdef WITH_USER_STACKS
	u64 stack;
#endif
	s32 error; /* of the socket */
	s32 ret; /* of connect() */
	u32 retransmits;
	u32 retrans_before; /* the socket's counts when the attempt began, of earlier attempts */
	u32 segs_before;
	u8 syn_left; /* a SYN was handed to the network */
	u8 port_chosen; /* the program had bound a local port */
	u8 established;
	u8 deferred; /* Fast Open: connect() left the SYN to the first write */
	u8 answered; /* by a SYN: both ends connected at the same time */
};
/* By the address of struct sock. */
BPF_HASH(attempts, u64, struct attempt, MAP_ENTRIES);
/*
 * An attempt is emitted when the call has returned and the handshake has ended, which happen in any
 * order and on two CPUs at once: the side that finds the other side's entry here is the second, and
 * emits the attempt.
 */
BPF_HASH(rendezvous, u64, u8, MAP_ENTRIES);

/* Did connect() return before the attempt ended? */
static inline bool left_open(s32 ret)
{
	return ret == -EINPROGRESS || ret == -EINTR;
}

/* Fill in an attempt that has ended, or is under way; return false if the event is not wanted. */
static inline bool fill_attempt(struct connection *ev, struct attempt *attempt)
{
	s32 error = attempt->error;

	ev->time = bpf_ktime_get_ns();
	ev->syscall_us = ev->handshake_us = UNKNOWN;
	ev->async = attempt->call_ns ? 0 : ASYNC_UNKNOWN;
	if (attempt->returned_ns) {
		ev->syscall_us = attempt->returned_ns - attempt->call_ns;
		/* 0 before the end: Fast Open, which sends the SYN with the first data */
		ev->async = left_open(attempt->ret) ||
			    (!attempt->ret &&
			     (!attempt->end_ns || attempt->end_ns > attempt->returned_ns));
	}
	if (attempt->syn_ns)
		ev->handshake_us = (attempt->end_ns ? attempt->end_ns : ev->time) - attempt->syn_ns;
	if (!error && !attempt->established && attempt->ret < 0 && !left_open(attempt->ret) &&
	    attempt->ret != DIED)
		error = -attempt->ret;
	ev->errno = error;
	ev->result = error;
	if (error == EADDRNOTAVAIL && !attempt->syn_left && !attempt->port_chosen)
		ev->result = RESULT_PORTS_USED_UP;
	else if (!error && !attempt->established)
		ev->result = !attempt->end_ns	  ? RESULT_PENDING
			     : !attempt->syn_left ? RESULT_NOT_SENT
			     : attempt->answered  ? RESULT_CLOSED
						  : RESULT_UNANSWERED;
	ev->retransmits = attempt->retransmits;
#ifdef WITH_USER_STACKS
	ev->stack = attempt->stack;
#endif
	ev->proto = PROTO_TCP;
	ev->rport = attempt->ends.rport;
	any_ip(&ev->raddr, attempt->ends.raddr);
	return fill(ev, &attempt->owner, &attempt->ends);
}

/* Fill in an attempt and remove it from the maps; return false if the event is not wanted. */
static inline bool take_attempt(struct connection *ev, u64 key, struct attempt *attempt)
{
	bool wanted = fill_attempt(ev, attempt);

	rendezvous.delete(&key);
	attempts.delete(&key);
	return wanted;
}

static inline void emit_attempt(u64 key, struct attempt *attempt)
{
	struct connection ev = {};

	if (take_attempt(&ev, key, attempt))
		emit(&ev, sizeof(ev));
}

/* One side, the call or the handshake, is done. Is the other one done too, so that this one emits? */
static inline bool other_side_done(u64 key)
{
	u8 mark = 1;

	return rendezvous.insert(&key, &mark);
}

/*
 * When the first SYN was sent. Until the second one, the kernel keeps the time of the last packet;
 * then, until an answer arrives, the time of the first one in units of the timestamp option.
 */
static inline u64 time_of_syn(const struct attempt *attempt, struct tcp_sock *tp)
{
	u64 now = bpf_ktime_get_ns(), sent, unit = 1000000;
	u32 stamp;

	if (!attempt->begin_ns || !attempt->syn_left)
		return 0;
	if (!attempt->retransmits) {
		sent = READ(tp, tcp_wstamp_ns);
		return sent > attempt->begin_ns && sent < now ? sent : attempt->begin_ns;
	}
	stamp = READ(tp, retrans_stamp);
	if (!stamp)
		return attempt->deferred ? 0 : attempt->begin_ns;
#ifdef HAVE_tcp_sock_tcp_usec_ts
	if (read_tcp_sock_tcp_usec_ts(tp))
		unit = 1000;
#endif
	sent = now - (u32)((u32)(now / unit) - stamp) * unit;
	return sent > attempt->begin_ns + 2 * unit ? sent : attempt->begin_ns;
}

/* Update an attempt with what the socket itself counts, while it is under way or at its end. */
static inline void read_attempt(struct attempt *attempt, struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;

	attempt->retransmits = READ(tp, total_retrans) - attempt->retrans_before;
	attempt->syn_left = READ(tp, segs_out) != attempt->segs_before;
	if (!attempt->syn_ns)
		attempt->syn_ns = time_of_syn(attempt, tp);
	read_endpoints(sk, &attempt->ends);
}

/* An attempt ends that was in SYN_SENT at the start: owners of no other sockets are recorded. */
static inline struct attempt *restore_attempt(struct sock *sk, u64 key)
{
	struct attempt before = {}, *attempt;

	if (!find_owner(sk, &before.owner))
		return NULL;
	forget_owner(sk);
	if (!pass_owner(&before.owner))
		return NULL;
	attempt = attempts.lookup_or_try_init(&key, &before);
	if (!attempt)
		count_loss(LOSS_MAP_FULL);
	return attempt;
}

/* The handshake of an attempt ends. */
static inline void end_attempt(struct sock *sk, u64 key, bool established)
{
	struct attempt *attempt = attempts.lookup(&key);

	if (!attempt)
		attempt = restore_attempt(sk, key);
	if (!attempt)
		return;
	read_attempt(attempt, sk);
	attempt->established = established;
	attempt->error = established ? 0 : READ(sk, sk_err);
	attempt->end_ns = bpf_ktime_get_ns();
	if (!attempt->call_ns || other_side_done(key))
		emit_attempt(key, attempt);
}

/* SYN_SENT -> SYN_RECV: both ends connect at the same time. */
static inline void cross_attempt(struct sock *sk, u64 key)
{
	struct attempt *attempt = attempts.lookup(&key);

	if (attempt) {
		read_attempt(attempt, sk);
		attempt->answered = 1;
	}
}

/* A packet is sent again: if it is a SYN, the socket still has the time of the first one. */
static inline int on_again(struct sock *sk)
{
	u64 key = (u64)sk;
	struct attempt *attempt;

	if (READ(sk, __sk_common.skc_state) != TCP_SYN_SENT)
		return 0;
	attempt = attempts.lookup(&key);
	if (attempt)
		read_attempt(attempt, sk);
	return 0;
}

#endif
