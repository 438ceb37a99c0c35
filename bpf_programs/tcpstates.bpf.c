// SPDX-License-Identifier: GPL-2.0-only
/* tcpstates: one event per change of a TCP state. Front-end: netbpf/tools/tcpstates.py */
#include "netbpf.bpf.h"
#include "sock.bpf.h"
#include "owners.bpf.h"
#include "unfollowed.bpf.h"
#include "listener_of.bpf.h"
#include <netbpf/records.h>

KERNEL_FIELDS(sock, sk_err)

/* The state that a socket is in, by its address. Removed at CLOSE. */
struct current_state {
	u64 since_ns;
	u64 listener; /* of a connection that no process has accepted yet */
	u64 connect_ns; /* a change to SYN_SENT that waits for its local port */
	u64 connects; /* it was in SYN_SENT: if the SYNs of both ends cross, SYN_RECV follows */
};
BPF_HASH(states, u64, struct current_state, MAP_ENTRIES);

#define STEP_NONE 0

/* Is the connection established, and has this end not sent its FIN? */
static inline bool is_usable(int state)
{
	return state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT;
}

/* Data in a SYN may bring the peer's FIN: then SYN_RECV ends with CLOSE_WAIT. */
static inline u8 step_of(struct current_state *state, int oldstate, int newstate)
{
	if (is_usable(oldstate))
		return is_usable(newstate) ? STEP_NONE : STEP_CLOSE;
	if (!is_usable(newstate))
		return STEP_NONE;
	if (oldstate == TCP_SYN_RECV && !state->connects)
		return STEP_ACCEPT;
	return oldstate == TCP_CLOSE ? STEP_NONE /* restored */ : STEP_CONNECT;
}

static inline void emit_change(struct state_change *ev, int oldstate, int newstate, u64 time,
			       u64 since)
{
	ev->time = time;
	ev->duration_us = since ? time - since : UNKNOWN;
	ev->oldstate = oldstate;
	ev->newstate = newstate;
	emit(ev, sizeof(*ev));
}

/* Was the change filtered out, or does it wait for the local port? Then there is nothing to emit. */
static inline bool is_wanted(struct current_state *state, struct endpoints *ends, int newstate,
			     u8 step, u64 now)
{
#ifdef FILTER_STEP
	if (!FILTER_STEP(step))
		return false;
#endif
#ifdef FILTER_LPORT
	if (newstate == TCP_SYN_SENT && !ends->lport) {
		state->connect_ns = now;
		return false;
	}
#endif
	return pass_endpoints(ends);
}

static inline void on_change(struct sock *sk, struct current_state *state, struct owner *owner,
			     int oldstate, int newstate)
{
	u64 now = bpf_ktime_get_ns(), since = state->since_ns;
	struct state_change ev = {};
	struct endpoints ends = {};

	state->since_ns = now;
	if (newstate == TCP_SYN_SENT)
		state->connects = 1;
	ev.step = step_of(state, oldstate, newstate);
	read_endpoints(sk, &ends);
	if (!is_wanted(state, &ends, newstate, ev.step, now))
		return;
	find_owner_or_listener(sk, state->listener, owner);
	if (!pass_owner(owner))
		return;
	SET_OWNER(&ev, owner);
	SET_ENDS(&ev, &ends);
	/* Older kernels set the addresses later: an IPv6 socket may be an IPv4 connection. */
	if (newstate == TCP_SYN_RECV && ends.family == AF_INET6 && !ends.rport)
		ev.family = 0;
	ev.sock = (u64)sk;
	if (state->connect_ns) {
		u8 step = ev.step;

		ev.step = STEP_NONE;
		emit_change(&ev, TCP_CLOSE, TCP_SYN_SENT, state->connect_ns, 0);
		ev.step = step;
	}
	state->connect_ns = 0;
	if (newstate == TCP_CLOSE)
		ev.errno = READ(sk, sk_err);
	emit_change(&ev, oldstate, newstate, now, since);
}

static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
	struct current_state state = {}, *known;
	struct owner owner = {};
	u64 key = (u64)sk;

	if (READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	if (oldstate == TCP_LISTEN) /* of a new child: those of another socket, or its listener's */
		forget_owner(sk);
	owner_from_state(&owner, sk, newstate);
	known = states.lookup(&key);
	if (known && oldstate != TCP_LISTEN && oldstate != TCP_CLOSE)
		state = *known;
	if (oldstate == TCP_LISTEN && newstate == TCP_SYN_RECV)
		state.listener = (u64)listener_of(sk);
	on_change(sk, &state, &owner, oldstate, newstate);
	if (newstate == TCP_CLOSE) {
		states.delete(&key);
		forget_owner(sk);
	} else if (may_pass_socket(sk) && states.update(&key, &state)) {
		count_unfollowed(key);
	}
	return 0;
}
