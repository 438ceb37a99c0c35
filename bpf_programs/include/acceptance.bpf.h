/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The event of an accept(): both sockets, the queue, the wait and the process. A program that
 * includes this includes <netbpf/records.h> before, with struct acceptance and soaccept's totals.
 */
#ifndef NETBPF_ACCEPTANCE_BPF_H
#define NETBPF_ACCEPTANCE_BPF_H

#include "current.bpf.h"
#include "established.bpf.h"
#include "signals.bpf.h"

KERNEL_FIELDS(sock, sk_ack_backlog, sk_max_ack_backlog, sk_receive_queue.qlen)

#define NO_QUEUE (~0U)

enum { EAGAIN = 11, ECANCELED = 125 }; /* asm-generic/errno.h */

/* The number of connections in the listener's queue, and its limit. */
static inline void read_queue(struct acceptance *ev, struct sock *listener)
{
	struct sock *sk = transport_sock(listener);

	/* It may have been closed. The state has the same number for unix sockets. */
	if (!sk || READ(sk, __sk_common.skc_state) != TCP_LISTEN)
		return;
	if (READ(sk, __sk_common.skc_family) == AF_UNIX)
		ev->queue = READ(sk, sk_receive_queue.qlen);
	else if (READ(sk, sk_protocol) == IPPROTO_TCP)
		ev->queue = READ(sk, sk_ack_backlog);
	else
		return;
	ev->queue_max = READ(sk, sk_max_ack_backlog);
}

/* Both ends of a socket of any family. */
static inline void read_ends(struct acceptance *ev, struct endpoints *ends, struct sock *sk)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);

	ev->proto = sock_proto(sk);
	ends->family = READ(sk, __sk_common.skc_family);
	ends->netns = READ(net, ns.inum);
	if (ends->family == AF_UNIX) {
		any_unix(&ev->laddr, sk);
	} else if (is_inet(ends->family)) {
		read_endpoints(sk, ends);
		any_ip(&ev->laddr, ends->laddr);
	}
}

/* EAGAIN means an empty queue, ECANCELED that io_uring canceled the request: no events. */
static inline bool is_only_counted(s32 ret)
{
	if (ret != -EAGAIN && ret != -ECANCELED)
		return is_interrupted(ret);
	add_total(ret == -EAGAIN ? TOTAL_WOULD_BLOCK : TOTAL_INTERRUPTED, 1);
	return true;
}

/* `ret` is the descriptor of the new connection `sk`, or an error below 0. */
static inline int on_accepted(struct sock *listener, struct sock *sk, s32 ret)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct process process = {};
	struct endpoints ends = {};
	struct acceptance ev = {};

	ev.wait_us = sk ? waited(sk) : UNKNOWN;
	ev.queue = ev.queue_max = NO_QUEUE;
	read_process(&process, task);
	if (!pass_process(&process, task))
		return 0;
	__builtin_memset(ev.listener, 0xff, 16);
	ends.netns = current_netns();
	if (listener) {
		read_ends(&ev, &ends, listener);
		__builtin_memcpy(ev.listener, ends.laddr, 16);
		read_queue(&ev, listener);
	}
	if (sk) {
		read_ends(&ev, &ends, sk);
		if (is_inet(ends.family))
			any_ip(&ev.raddr, ends.raddr);
	}
#ifdef FILTER_PROTO
	if (!FILTER_PROTO(ev.proto))
		return 0;
#endif
	if (!pass_endpoints(&ends) || is_only_counted(ret))
		return 0;
#ifdef ONLY_ERRORS
	if (ret >= 0)
		return 0;
#endif
	ev.time = bpf_ktime_get_ns();
	ev.cgroup = process.cgroup;
	ev.pid = process.pid;
	ev.uid = process.uid;
	__builtin_memcpy(ev.comm, process.comm, sizeof(ev.comm));
	ev.fd = sk ? ret : -1;
	ev.errno = ret < 0 ? -ret : 0;
	ev.result = ev.errno;
	ev.netns = ends.netns;
	ev.family = ends.family;
	ev.lport = ends.lport;
	ev.rport = ends.rport;
	emit(&ev, sizeof(ev));
	return 0;
}

#endif
