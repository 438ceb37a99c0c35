// SPDX-License-Identifier: GPL-2.0-only
/* tcpwin: congestion windows of TCP, and their changes. Front-end: netbpf/tools/tcpwin.py */
#include "netbpf.bpf.h"
#include "congestion_state.bpf.h"
#include "unfollowed.bpf.h"
#include <netbpf/records.h>

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

static inline int on_ca_change(struct sock *sk, u8 ca_state)
{
	struct flow_times *times = times_of(sk);

	if (!times) {
		if (pass_ports(sk) && is_connected(sk))
			follow(sk, ca_state);
	} else if (times->now != ca_state) {
		end_state(times, ca_state);
		times->past_changes++;
	}
	return 0;
}

/* Before 6.1, the state is compared at each segment. */
static inline int on_ca_segment(struct sock *sk)
{
	return on_ca_change(sk, ca_state_of(sk));
}

static inline void fill_owner(struct flow_times *times, struct sock *sk)
{
	struct owner owner = {};

	if (find_owner(sk, &owner))
		SET_OWNER(times, &owner);
}

/* Each connection, at the end of an interval. */
static inline int on_times(struct map_element_context *ctx, struct flow *at)
{
	struct flow flow = *at;
	struct flow_times *times = flows.lookup(&flow);

	if (!times)
		return 0;
	if (!times->over)
		fill_owner(times, (struct sock *)times->sk);
	publish(times);
	return 0;
}

static inline void on_step(struct sock *sk, int newstate)
{
	struct flow_times *times = newstate == TCP_CLOSE ? times_of(sk) : NULL;

	if (times) {
		end_state(times, times->now);
		fill_owner(times, sk);
		times->over = 1;
	}
	if (newstate == TCP_ESTABLISHED && pass_ports(sk))
		follow(sk, ca_state_of(sk));
}
#else
#include "windows.bpf.h"

/* What was shown last. By the address of struct sock, until CLOSE. */
struct last_window {
	u32 snd_cwnd;
	u32 snd_ssthresh;
	u32 ca_state;
};
BPF_HASH(last_windows, u64, struct last_window, MAP_ENTRIES);

static inline bool has_changed(u64 key, const struct window *ev)
{
	struct last_window *last = last_windows.lookup(&key);

	return !last || last->snd_cwnd != ev->snd_cwnd || last->snd_ssthresh != ev->snd_ssthresh ||
	       last->ca_state != ev->ca_state;
}

/* Emit an event if the window has changed, or with --each; `ca_state` is the state from now on. */
static inline int observe(struct sock *sk, u8 ca_state)
{
	struct endpoints ends = {};
	struct owner owner = {};
	struct window ev = {};
	u64 key = (u64)sk;

	if (!pass_ports(sk) || !is_connected(sk))
		return 0;
	read_window(&ev, sk, ca_state);
#ifdef CHANGES
	if (!has_changed(key, &ev))
		return 0;
#endif
	read_endpoints(sk, &ends);
	if (!pass_endpoints(&ends))
		return 0;
	find_owner(sk, &owner);
	if (!pass_owner(&owner))
		return 0;
#ifdef CHANGES
	struct last_window now = {ev.snd_cwnd, ev.snd_ssthresh, ca_state};

	if (last_windows.update(&key, &now)) {
		count_unfollowed(key);
		return 0;
	}
#endif
	complete_window(&ev, sk, &owner, &ends);
	emit(&ev, sizeof(ev));
	return 0;
}

/* A segment came in, and is not handled yet; or one was retransmitted. */
static inline int on_segment(struct sock *sk)
{
	return observe(sk, ca_state_of(sk));
}

static inline int on_congestion(struct sock *sk, u8 ca_state)
{
	return observe(sk, ca_state);
}

static inline void on_step(struct sock *sk, int newstate)
{
#ifdef CHANGES
	u64 key = (u64)sk;

	observe(sk, ca_state_of(sk));
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
	if (READ(sk, sk_protocol) == IPPROTO_TCP)
		on_step(sk, newstate);
	return on_owner_state(sk, oldstate, newstate);
}
