/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The calls to connect() that threads are in, by thread. A call ends when it returns, or when a signal
 * interrupts it and the kernel does not restart it. Without a handshake the call is the whole
 * attempt: UDP, unix sockets, and TCP if no SYN was sent. Otherwise attempt.bpf.h has the rest.
 */
#ifndef NETBPF_CONNECT_CALLS_BPF_H
#define NETBPF_CONNECT_CALLS_BPF_H

#include "attempt.bpf.h"
#include "current.bpf.h"
#include "signals.bpf.h"

KERNEL_FIELDS(sock, sk_socket)
KERNEL_FIELDS(socket, state)

enum { SS_UNCONNECTED = 1 }; /* enum socket_state, linux/net.h */
enum { AF_UNSPEC };
enum { SOCK_DGRAM = 2 }; /* enum sock_type on most machines; MIPS differs */

struct call {
	u64 began_ns; /* 0: the begin was not seen */
	u64 interrupted_ns; /* a signal interrupted the call, which the kernel may restart; or 0 */
	s32 fd;
	u8 restarts; /* the kernel has decided to restart the call */
	u8 is_repeated; /* on a socket that is connecting or connected */
	u8 dissolves; /* AF_UNSPEC: the socket becomes unconnected */
	u64 sk;
	struct owner owner;
	u16 proto;
	u16 rport;
	u16 family; /* of the address; 0 also if it could not be read */
	u8 sent_syn; /* an attempt began in this call: `attempts` has the rest */
	struct any_addr to; /* read when the call begins: the program may reuse the memory then */
};
/* Twice as many as attempts: with a full map, only start_attempt() counts a socket as lost. */
BPF_HASH(calls, u64, struct call, MAP_ENTRIES * 2);

/* Fill in a call without a handshake, which has not ended if `end_ns` is 0; false: not wanted. */
static inline bool fill_call(struct connection *ev, struct call *call, s32 ret, u64 end_ns)
{
	struct sock *sk = (struct sock *)call->sk;
	struct endpoints ends = {};

	ev->time = bpf_ktime_get_ns();
	ev->syscall_us = ev->handshake_us = UNKNOWN;
	if (call->began_ns)
		ev->syscall_us = (end_ns ? end_ns : ev->time) - call->began_ns;
	ev->errno = ret == DIED ? 0 : -ret;
	ev->result = ret == DIED ? RESULT_CLOSED : end_ns ? ev->errno : RESULT_PENDING;
	ev->proto = call->proto;
	ends.family = call->family;
	if (sk) {
		struct net *net = READ(sk, __sk_common.skc_net.net);

		ends.netns = READ(net, ns.inum);
		ends.family = READ(sk, __sk_common.skc_family);
	} else {
		ends.netns = current_netns();
	}
	if (sk && is_inet(ends.family))
		read_endpoints(sk, &ends);
	ev->rport = call->rport;
	__builtin_memcpy(&ev->raddr, &call->to, sizeof(ev->raddr));
	if (ret == 0 && is_inet(ends.family)) {
		any_ip(&ev->raddr, ends.raddr); /* the kernel replaces 0.0.0.0 by 127.0.0.1 */
		ev->rport = ends.rport;
	} else if (call->to.kind == ANY_IP) {
		__builtin_memcpy(ends.raddr, call->to.bytes, 16);
		ends.rport = call->rport;
		if (is_mapped(ends.raddr))
			ends.family = AF_INET;
	}
	/* inet_dgram_connect() found no free local port. */
	if (ret == -EAGAIN && call->proto == PROTO_UDP)
		ev->result = RESULT_PORTS_USED_UP;
	if (!fill(ev, &call->owner, &ends))
		return false;
#ifdef WITH_USER_STACKS
	if (end_ns)
		ev->stack = user_stack();
#endif
	return true;
}

/* Is a call wanted that is made on no socket, by the family of its address? */
static inline bool is_wanted_family(u16 family)
{
#ifdef WITH_UNIX
	if (family == AF_UNIX)
		return true;
#endif
	/* The protocol of a call on no socket is not known: --proto udp has no such calls. */
	return is_wanted(PROTO_TCP) && is_inet(family);
}

/* Fill in the call that the current thread makes; return false if the call is not wanted. */
static inline bool read_call(struct call *call, int fd, const void *addr, u32 len)
{
	struct sock *sk = socket_of_fd(fd);
	bool is_read;
	struct socket *socket;
	struct net *net;

	owner_from_current(&call->owner);
	if (!pass_owner(&call->owner))
		return false;
	if (sk) {
		call->sk = (u64)sk;
		call->proto = sock_proto(sk);
		net = READ(sk, __sk_common.skc_net.net);
		if (!is_wanted(call->proto) || !may_pass_early(sk, READ(sk, __sk_common.skc_family),
							       READ(net, ns.inum), false))
			return false;
	}
	is_read = read_sockaddr(&call->to, &call->family, &call->rport, addr, len);
	call->dissolves = is_read && len >= sizeof(call->family) && call->family == AF_UNSPEC;
	if (!sk && (!is_wanted_family(call->family) ||
		    !may_pass_early(NULL, call->family, current_netns(), false)))
		return false;
	call->fd = fd;
	if (sk && !call->dissolves && READ(sk, sk_type) != SOCK_DGRAM) {
		socket = READ(sk, sk_socket);
		call->is_repeated = READ(socket, state) != SS_UNCONNECTED;
	}
	return true;
}

/* SYN_SENT: in a call, or outside by a write with Fast Open, or by io_uring. */
static inline void start_attempt(struct sock *sk, u64 key)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct call *call = calls.lookup(&thread);
	struct attempt attempt = {};

	if (!call || call->interrupted_ns) {
		call = NULL;
		owner_from_current(&attempt.owner);
		if (!pass_owner(&attempt.owner))
			return;
	} else {
		/* The call's own socket, or a subflow that carries it (MPTCP). */
		call->sk = key;
		call->sent_syn = 1;
		attempt.call_ns = call->began_ns;
		attempt.owner = call->owner;
	}
	read_endpoints(sk, &attempt.ends);
	attempt.begin_ns = bpf_ktime_get_ns();
	attempt.port_chosen = attempt.ends.lport != 0;
	attempt.retrans_before = READ((struct tcp_sock *)sk, total_retrans);
	attempt.segs_before = READ((struct tcp_sock *)sk, segs_out);
	rendezvous.delete(&key);
	if (may_pass_endpoints(&attempt.ends)) {
#ifdef WITH_USER_STACKS
		attempt.stack = user_stack();
#endif
		if (!attempts.update(&key, &attempt))
			return;
		count_loss(LOSS_MAP_FULL);
	}
	if (call)
		calls.delete(&thread);
}

/* The call returned. Fill in the event, if the call ends the attempt and the event is wanted. */
static inline bool take_call(struct connection *ev, struct call *call, s32 ret, u64 now)
{
	struct attempt *attempt;
	u64 key = call->sk;

	if (!call->sent_syn)
		return (!is_tcp(call->proto) || (ret && !left_open(ret))) &&
		       fill_call(ev, call, ret, now);
	attempt = attempts.lookup(&key);
	if (!attempt)
		return false;
	attempt->ret = ret;
	attempt->returned_ns = now;
	attempt->deferred = !ret && !attempt->end_ns &&
			    READ((struct tcp_sock *)key, segs_out) == attempt->segs_before;
	return other_side_done(key) && take_attempt(ev, key, attempt);
}

static inline void end_call(u64 thread, struct call *call, s32 ret, u64 now)
{
	struct connection ev = {};

	if (call->is_repeated)
		add_total(TOTAL_REPEATED, 1);
	else if (call->dissolves && !ret)
		add_total(TOTAL_DISSOLVED, 1);
	else if (take_call(&ev, call, ret, now))
		emit(&ev, sizeof(ev));
	calls.delete(&thread);
}

/*
 * Add a call that returns and whose begin was not seen: seccomp refused it, or it began before the
 * start. Return false if it is no attempt of its own: if a handshake began before the start, its end
 * shows the attempt.
 */
static inline bool add_unseen(u64 thread, s32 ret)
{
	struct call_args args = {};
	struct call call = {};
	struct sock *sk;

#ifndef WITH_UNIX
	if (!ret)
		return false;
#endif
	if (ret > 0 || left_open(ret) || is_interrupted(ret) || !args_of_call(&args, ret) ||
	    !read_call(&call, args.fd, args.addr, args.len) || call.is_repeated ||
	    (call.dissolves && !ret))
		return false;
	sk = (struct sock *)call.sk;
	if (is_tcp(call.proto)) {
		sk = transport_sock(sk);
		if (!ret || (sk && READ((struct tcp_sock *)sk, segs_out)))
			return false;
	} else if (!ret && sk && is_inet(READ(sk, __sk_common.skc_family))) {
		return false;
	}
	return !calls.update(&thread, &call);
}

#endif
