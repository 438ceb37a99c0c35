// SPDX-License-Identifier: GPL-2.0-only
/* rcvfull: datagrams that found a full receive buffer. Front-end: netbpf/tools/rcvfull.py */
#include "netbpf.bpf.h"
#include "sock.bpf.h"
#include <netbpf/records.h>

KERNEL_FIELDS(sock, sk_rcvbuf, sk_backlog.rmem_alloc.counter)

static inline int submit(struct full_buffer *ev)
{
	ev->time = bpf_ktime_get_ns();
	bpf_get_current_comm(ev->comm, sizeof(ev->comm));
	emit(ev, sizeof(*ev));
	return 0;
}

static inline int on_full(struct sock *sk)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);
	struct full_buffer ev = {};

	ev.rcvfull_bytes = READ(sk, sk_rcvbuf);
	ev.netns = READ(net, ns.inum);
	if (ev.rcvfull_bytes < LEAST_BYTES || !pass_netns(ev.netns))
		return 0;
	if (ev.rcvfull_bytes)
		ev.rcvfull_percent =
			(u64)READ(sk, sk_backlog.rmem_alloc.counter) * 100 / ev.rcvfull_bytes;
	return submit(&ev);
}

/* The trace event names no socket. */
static inline int on_full_without_socket(int rc)
{
	struct full_buffer ev = {};

	return submit(&ev);
}
