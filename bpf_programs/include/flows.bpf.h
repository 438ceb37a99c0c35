/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Emit a retransmission as an event, or with COUNT_FLOWS add it to the sums of its connection. A program
 * includes <netbpf/records.h> before, with struct retransmission and struct flow_sums.
 */
#ifndef NETBPF_FLOWS_BPF_H
#define NETBPF_FLOWS_BPF_H

#include "resent.bpf.h"
#include "unfollowed.bpf.h"

KERNEL_FIELDS(tcp_sock, segs_out, total_retrans)

#ifdef COUNT_FLOWS
BPF_HASH(flows, struct connection, struct flow_sums, MAP_ENTRIES);

/* The socket is locked: no other CPU changes the sums of its flow. */
static inline void submit(struct retransmission *ev, struct connection *connection, struct sock *sk)
{
	struct flow_sums none = {}, *sums;

	none.over = !sk; /* no change of state will end a request */
	sums = flows.lookup_or_try_init(connection, &none);
	if (!sums) {
		count_unfollowed(connection->object);
		return;
	}
	sums->pid = ev->pid; /* the owner may have changed */
	__builtin_memcpy(sums->comm, ev->comm, sizeof(sums->comm));
	SET_ENDS(sums, ev);
	if (ev->kind == KIND_FAILED)
		sums->failed += ev->segs;
	else
		sums->segs += ev->segs;
	if (sk) {
		u32 retrans = READ((struct tcp_sock *)sk, total_retrans);
		u32 sent = READ((struct tcp_sock *)sk, segs_out);
		u32 more = retrans - sums->all_retrans, more_sent = sent - sums->all_sent;
		/* The socket counts what fails as it is sent, and not what fails before that. */
		u32 failed = ev->kind == KIND_FAILED && more ? ev->segs : 0;

		sums->retrans += more > failed ? more - failed : 0;
		sums->sent += more_sent > failed ? more_sent - failed : 0;
		sums->all_retrans = retrans;
		sums->all_sent = sent;
	}
}

static inline void end_flow(struct sock *sk)
{
	struct connection connection = {};
	struct flow_sums *sums;

	identify(&connection, sk);
	sums = flows.lookup(&connection);
	if (sums)
		sums->over = 1;
	forget_unfollowed(connection.object);
}
#else
static inline void submit(struct retransmission *ev, struct connection *connection, struct sock *sk)
{
	emit(ev, sizeof(*ev));
}

#define end_flow forget_segments
#endif

#endif
