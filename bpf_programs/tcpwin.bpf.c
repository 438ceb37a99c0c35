// SPDX-License-Identifier: GPL-2.0-only
/* tcpwin: congestion windows of TCP, and their changes. Front-end: netbpf/tools/tcpwin.py */
#include "netbpf.bpf.h"
#include "congestion_state.bpf.h"
#include "unfollowed.bpf.h"
#include <netbpf/records.h>

KERNEL_FIELDS(sock, sk_lock.owned)

#ifdef SUMMARY
#include "congestion_times.bpf.h"
#endif
#include "owners.bpf.h"

#ifdef SUMMARY
/* Follow a connection, unless filters exclude its process, or it is not known. */
static inline void follow(struct sock *sk, u8 ca_state)
{
#ifdef FILTER_PROCESS
	if (!has_record(sk))
		return;
#endif
	begin_flow(sk, ca_state);
}

static inline void change_state(struct flow_times *times, u8 ca_state)
{
	times->was_changes += times->now != ca_state;
	end_state(times, ca_state);
}

static inline int on_ca_change(struct sock *sk, u8 ca_state)
{
	struct flow_times *times = times_of(sk);

	if (times)
		change_state(times, ca_state);
	else if (pass_ports(sk) && is_connected(sk))
		follow(sk, ca_state);
	return 0;
}

/* Before 6.1, the state is compared at each segment and retransmission. */
static inline int on_ca_segment(struct sock *sk)
{
	return on_ca_change(sk, ca_state_of(sk));
}

static inline void fill_owner(struct flow_times *times, struct sock *sk, struct owner *owner)
{
	if ((owner->how || find_owner(sk, owner)) && pass_owner(owner))
		SET_OWNER(times, owner);
}

/* Each connection, at the end of an interval. */
static inline int on_times(struct map_element_context *ctx, struct flow *at)
{
	struct flow flow = *at;
	struct flow_times *times = flows.lookup(&flow);
	struct owner owner = {};

	if (times && !times->over)
		fill_owner(times, (struct sock *)times->sk, &owner);
	if (times)
		publish(times);
	return 0;
}

static inline void on_step(struct sock *sk, int newstate, struct owner *owner)
{
	struct flow_times *times = newstate == TCP_CLOSE ? times_of(sk) : NULL;

	if (times) {
		change_state(times, ca_state_of(sk)); /* before 6.1, it may be a new one */
		fill_owner(times, sk, owner);
		times->over = 1;
	}
	if (newstate == TCP_ESTABLISHED && pass_ports(sk))
		follow(sk, ca_state_of(sk));
}
#else
#include "windows.bpf.h"

/* A segment came in, and is not handled yet; or one was retransmitted. */
static inline int on_segment(struct sock *sk)
{
	struct owner owner = {};

	return observe(sk, ca_state_of(sk), &owner);
}

static inline int on_congestion(struct sock *sk, u8 ca_state)
{
	struct owner owner = {};

	return observe(sk, ca_state, &owner);
}

static inline void on_step(struct sock *sk, int newstate, struct owner *owner)
{
#ifdef CHANGES
	u64 key = (u64)sk;

	observe(sk, ca_state_of(sk), owner);
	if (newstate == TCP_CLOSE)
		last_windows.delete(&key);
#endif
}

/* With INTERVAL: each open socket, once per process that has it open. */
static inline int on_open(struct task_file_context *ctx, struct task_struct *task, struct sock *sk)
{
	struct endpoints ends = {};
	struct owner owner = {};
	struct window ev = {};

	if (!pass_ports(sk) || !is_connected(sk))
		return 0;
	read_endpoints(sk, &ends);
	if (!pass_endpoints(&ends))
		return 0;
	if (!find_owner(sk, &owner))
		owner_from_task(&owner, task, OWNER_SNAPSHOT);
	if (!pass_owner(&owner))
		return 0;
	read_window(&ev, sk, ca_state_of(sk));
	complete_window(&ev, sk, &owner, &ends);
	bpf_seq_write(ctx->meta->seq, &ev, sizeof(ev));
	return 0;
}
#endif

static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
	struct owner owner = {};

	if (READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	owner_from_state(&owner, sk, newstate);
	/* The descriptor is gone by then, but packets and timers wait for the socket's lock. */
	if (newstate == TCP_CLOSE && READ(sk, sk_lock.owned))
		owner_from_current(&owner);
	on_step(sk, newstate, &owner);
	/* At ESTABLISHED the local port is known, which connect() chooses after SYN_SENT. */
	if (newstate == TCP_CLOSE || oldstate == TCP_LISTEN ||
	    (newstate == TCP_ESTABLISHED && !may_pass_socket(sk)))
		forget_owner(sk);
	return 0;
}
