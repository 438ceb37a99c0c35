/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A TCP connection until a program reads its first byte, and the event of that moment. A program that
 * includes this includes owners.bpf.h and <netbpf/records.h>, with struct first_byte, before.
 */
#ifndef NETBPF_FIRST_BYTE_BPF_H
#define NETBPF_FIRST_BYTE_BPF_H

#include "readable.bpf.h"

KERNEL_FIELDS(tcp_sock, bytes_sent, rack.mstamp, syn_data_acked)

struct waiting {
	u64 begin_ns; /* connect(), or when the listener had a new connection */
	u64 established_ns; /* 0: not yet */
	u64 write_ns; /* the first write; 0: none before data arrived */
	u64 arrival_ns; /* the first data arrived; 0: not yet */
	u64 listener; /* that the connection came to */
	u8 role;
	u8 was_read; /* by a receive call */
	u8 pad[6];
};
/* By the address of struct sock, until the first byte is read, or none can be any more. */
BPF_HASH(waits, u64, struct waiting, MAP_ENTRIES);

/* A connection begins. */
static inline void begin_wait(struct sock *sk, u64 key, struct waiting *waiting)
{
	if ((ONLY_ROLE && waiting->role != ONLY_ROLE) || !pass_ports(sk))
		return;
	waiting->begin_ns = bpf_ktime_get_ns();
	/* The handshake of an accepted one is over, or Fast Open does not wait for it. */
	if (waiting->role == ROLE_PASSIVE)
		waiting->established_ns = waiting->begin_ns;
	if (waits.update(&key, waiting))
		count_unfollowed(key);
}

static inline void on_established(struct sock *sk, u64 key)
{
	struct waiting *waiting = waits.lookup(&key);

	if (waiting && !waiting->established_ns)
		waiting->established_ns = bpf_ktime_get_ns();
#ifdef FILTER_SOCKET /* both ends are set now */
	struct endpoints ends = {};

	read_endpoints(sk, &ends);
	if (!pass_endpoints(&ends))
		waits.delete(&key);
#endif
}

/*
 * Data has arrived. If the peer answers before the first write has returned, the write is not noted yet:
 * RACK has the time, in us, at which the newest acknowledged segment was sent.
 */
static inline void note_arrival(struct sock *sk, struct waiting *waiting)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	u64 now = bpf_ktime_get_ns(), sent;

	if (!waiting->write_ns && READ(tp, bytes_sent)) {
		sent = READ(tp, rack.mstamp) * 1000;
		waiting->write_ns = sent < now ? sent : now;
	}
	waiting->arrival_ns = now;
}

/* The later one of two moments: what happened before its phase took no time in it. */
static inline u64 later(u64 a, u64 b)
{
	return a > b ? a : b;
}

/* The phases follow each other without a gap: those that are known add up to first_rx_us. */
static inline void fill_phases(struct first_byte *ev, struct waiting *waiting)
{
	u64 established = waiting->established_ns, at = established;
	u64 arrival = waiting->arrival_ns ? later(waiting->arrival_ns, established) : 0;

	ev->connect_us = ev->first_tx_us = ev->answer_us = ev->pickup_us = UNKNOWN;
	ev->first_rx_us = waiting->was_read ? ev->duration_us : UNKNOWN;
	if (waiting->role == ROLE_ACTIVE)
		ev->connect_us = established - waiting->begin_ns;
	if (waiting->write_ns) {
		at = later(waiting->write_ns, established);
		if (arrival && at > arrival)
			at = arrival;
		ev->first_tx_us = at - established;
	}
	if (!arrival)
		return;
	ev->answer_us = arrival - at;
	if (waiting->was_read)
		ev->pickup_us = ev->time - arrival;
}

/* Fill in an event, as of now; return false if it is not wanted. */
static inline bool fill(struct first_byte *ev, struct sock *sk, struct waiting *waiting,
			struct owner *owner, u8 end)
{
	struct endpoints ends = {};

	ev->time = bpf_ktime_get_ns();
	ev->duration_us = ev->time - waiting->begin_ns;
	read_endpoints(sk, &ends);
	if (ev->duration_us < MIN_NS || !pass_owner(owner) || !pass_endpoints(&ends))
		return false;
	/* Fast Open: data that comes with a SYN is not announced. */
	if (waiting->role == ROLE_PASSIVE && !waiting->arrival_ns &&
	    read_tcp_sock_syn_data_acked((struct tcp_sock *)sk))
		waiting->arrival_ns = waiting->begin_ns;
	fill_phases(ev, waiting);
	ev->end = end;
	ev->role = waiting->role;
	ev->proto = is_subflow(sk) ? PROTO_MPTCP : PROTO_TCP;
	SET_OWNER(ev, owner);
	SET_ENDS(ev, &ends);
	return true;
}

/*
 * How a connection ended whose program can read no byte any more. Bytes that have arrived and are read
 * were read by no receive call that is seen: by splice(2), a mapping, or in a sockmap.
 */
static inline u8 how_ended(struct sock *sk, struct waiting *waiting)
{
	int err = READ(sk, sk_err);

	if (!has_unread(sk)) {
		if (waiting->arrival_ns)
			return END_DATA;
		if (has_fin(sk))
			return END_EOF;
	}
	if (!err)
		return END_CLOSED;
	return err == ECONNRESET || err == EPIPE || err == ECONNABORTED ? END_RESET : END_TIMEOUT;
}

/* The wait for the first byte is over. */
static inline void finish(struct sock *sk, u64 key, struct waiting *known, struct owner *owner,
			  u8 end)
{
	struct waiting waiting = *known;
	struct first_byte ev = {};

	if (waits.delete(&key))
		return; /* another thread reads at the same time */
	if (end != END_DATA && is_subflow(sk))
		return; /* one of the subflows of a connection */
	find_owner_or_listener(sk, waiting.listener, owner);
	if (!fill(&ev, sk, &waiting, owner, end))
		return;
	if (end != END_DATA)
		add_total(TOTAL_WITHOUT_DATA, 1);
	emit(&ev, sizeof(ev));
}

#endif
