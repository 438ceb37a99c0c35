// SPDX-License-Identifier: GPL-2.0-only
/* so1stbyte: one event per TCP connection, at its first byte. Front-end: netbpf/tools/so1stbyte.py */
#define SNAPSHOT_STATES (1 << TCP_LISTEN) /* of listeners: older connections are not shown */
#include "owners.bpf.h"
#include "listener_of.bpf.h"
#include <netbpf/records.h>
#include "first_byte.bpf.h"
#if defined(USE_send_kretprobe) || defined(USE_recv_kretprobe)
#include "calls.bpf.h"
#endif

#define MSG_PEEK 0x2 /* linux/socket.h */
#define MSG_ERRQUEUE 0x2000

/* One or both directions of a connection end. */
static inline void on_end(struct sock *sk, u64 key, struct owner *owner, int newstate)
{
	struct waiting *waiting = waits.lookup(&key);

	if (!waiting)
		return;
	if (!waiting->established_ns) /* the attempt to connect has failed */
		waits.delete(&key);
	else if (!may_read_later(sk, newstate))
		finish(sk, key, waiting, owner, how_ended(sk, waiting));
}

static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
	struct waiting waiting = {};
	struct owner owner = {};
	u64 key = (u64)sk;

	/* Once the local port is chosen, a socket may not pass any more: what it has is removed. */
	if (READ(sk, sk_protocol) != IPPROTO_TCP ||
	    (!pass_ports(sk) && newstate != TCP_ESTABLISHED && newstate != TCP_CLOSE))
		return 0;
	if (oldstate == TCP_LISTEN) /* of a new child: those of another socket, or its listener's */
		forget_owner(sk);
	owner_from_state(&owner, sk, newstate);
	if (newstate == TCP_SYN_SENT) {
		waiting.role = ROLE_ACTIVE;
		if (pass_owner(&owner))
			begin_wait(sk, key, &waiting);
	} else if (oldstate == TCP_LISTEN && newstate == TCP_SYN_RECV) {
		waiting.role = ROLE_PASSIVE;
		waiting.listener = (u64)listener_of(sk);
		begin_wait(sk, key, &waiting);
	} else if (newstate == TCP_ESTABLISHED) {
		on_established(sk, key);
	} else if (newstate != TCP_SYN_RECV && newstate != TCP_LISTEN) {
		if (newstate == TCP_CLOSE && is_by_holder(sk))
			owner_from_current(&owner);
		on_end(sk, key, &owner, newstate);
	}
	if (newstate == TCP_CLOSE)
		forget_owner(sk);
	return 0;
}

/* A socket is destroyed whose program has not read what had arrived: the program closes it now. */
static inline int on_gone(struct sock *sk)
{
	u64 key = (u64)sk;
	struct waiting *waiting = waits.lookup(&key);
	struct owner owner = {};

	if (!waiting)
		return 0;
	owner_from_current(&owner);
	finish(sk, key, waiting, &owner, how_ended(sk, waiting));
	return 0;
}

/* Bytes have arrived, or a FIN. */
static inline int on_arrival(struct sock *sk)
{
	u64 key = (u64)sk;
	struct waiting *waiting = waits.lookup(&key);

	if (waiting && !waiting->arrival_ns && has_unread(sk))
		note_arrival(sk, waiting);
	return 0;
}

static inline int on_send(struct sock *sk, int sent)
{
	u64 key = sent > 0 ? (u64)transport_sock(sk) : 0;
	struct waiting *waiting = key ? waits.lookup(&key) : NULL;

	if (waiting && !waiting->write_ns && !waiting->arrival_ns)
		waiting->write_ns = bpf_ktime_get_ns();
	return 0;
}

/* Receiving 0 bytes is the end of file, or what the program asked for. */
static inline int on_recv(struct sock *sk, int received, int flags)
{
	struct owner owner = {};
	struct waiting *waiting;
	u64 key;

	if (received < 0 || flags & (MSG_PEEK | MSG_ERRQUEUE))
		return 0;
	key = (u64)transport_sock(sk);
	sk = (struct sock *)key;
	waiting = waits.lookup(&key);
	if (!waiting || (!received && (!has_fin(sk) || has_unread(sk))))
		return 0;
	waiting->was_read = received > 0;
	owner_from_current(&owner);
	finish(sk, key, waiting, &owner, received ? END_DATA : END_EOF);
	return 0;
}

/* A connection that still waits for its first byte. */
static inline int on_open(struct map_element_context *ctx, u64 *key)
{
	u64 address = *key;
	struct sock *sk = (struct sock *)address;
	struct waiting *known = waits.lookup(&address), waiting = {};
	struct first_byte ev = {};
	struct owner owner = {};

	if (!known)
		return 0;
	waiting = *known;
	find_owner_or_listener(sk, waiting.listener, &owner);
	if (waiting.established_ns && fill(&ev, sk, &waiting, &owner, END_WAITING))
		bpf_seq_write(ctx->meta->seq, &ev, sizeof(ev));
	return 0;
}

#if defined(USE_send_kretprobe) || defined(USE_recv_kretprobe)
static inline int on_send_return(int sent)
{
	struct call call;

	return end_call(&call) ? on_send((struct sock *)call.args[0], sent) : 0;
}

static inline int on_recv_return(int received)
{
	struct call call;

	return end_call(&call) ? on_recv((struct sock *)call.args[0], received, call.args[1]) : 0;
}
#endif
