/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The map `flows`: how long connections were in each state of congestion control, added up by their
 * ends. A program includes congestion_state.bpf.h, unfollowed.bpf.h and <netbpf/records.h>, with struct
 * flow and struct flow_times, before this, and owners.bpf.h, which calls on_owner() for each proof of an
 * owner, after it.
 */
#ifndef NETBPF_CONGESTION_TIMES_BPF_H
#define NETBPF_CONGESTION_TIMES_BPF_H

/* Also connections that ended in this interval or the one before: user space removes them. */
BPF_HASH(flows, struct flow, struct flow_times, MAP_ENTRIES);

/* Read the key of a connection; return its family, 0 if filters exclude it. */
static inline u8 read_flow(struct flow *flow, struct sock *sk)
{
	struct endpoints ends = {};

	read_endpoints(sk, &ends);
	if (!pass_endpoints(&ends))
		return 0;
	flow->netns = ends.netns;
	flow->lport = ends.lport;
	flow->rport = ends.rport;
	__builtin_memcpy(flow->laddr, ends.laddr, 16);
	__builtin_memcpy(flow->raddr, ends.raddr, 16);
	return ends.family;
}

/* A connection is in a state from now on, unless it is followed already. */
static inline void begin_flow(struct sock *sk, u8 ca_state)
{
	struct flow_times fresh = {.sk = (u64)sk, .uid = ~0U, .now = ca_state}, *known;
	struct flow flow = {};

	fresh.since = bpf_ktime_get_ns();
	fresh.family = read_flow(&flow, sk);
	if (!fresh.family)
		return;
	known = flows.lookup(&flow);
	if (!known) {
		if (flows.update(&flow, &fresh))
			count_unfollowed((u64)sk);
	} else if (known->over) { /* the same ends once more */
		known->sk = fresh.sk;
		known->since = fresh.since;
		known->now = ca_state;
		known->over = 0;
	}
}

/* A process proved that it holds the socket: filters exclude it, or it may be older than the run. */
static inline void on_owner(struct sock *sk, bool pass)
{
	struct flow flow = {};

	if (!pass_ports(sk) || !is_connected(sk))
		return;
	if (pass)
		begin_flow(sk, ca_state_of(sk));
	else if (read_flow(&flow, sk))
		flows.delete(&flow);
}
#define ON_OWNER(sk, pass) on_owner(sk, pass)
#define SNAPSHOT_STATES ~(1 << TCP_LISTEN)

/*
 * The state ends, and another one begins. In this order: publish() reads the sums first, so that it
 * never adds the same time twice.
 */
static inline void end_state(struct flow_times *times, u8 next)
{
	u64 now = bpf_ktime_get_ns(), spent = now - times->since, *past = &times->was_open;
	u8 state = times->now;

	times->since = now;
	times->now = next;
	asm volatile("" ::: "memory");
	if (state <= CA_STATE_LOSS)
		past[state] += spent;
}

/* The entry of a connection that has not ended, NULL if it has none. */
static inline struct flow_times *times_of(struct sock *sk)
{
	struct flow_times *times;
	struct flow flow = {};

	if (!pass_ports(sk) || !is_connected(sk) || !read_flow(&flow, sk))
		return NULL;
	times = flows.lookup(&flow);
	return times && !times->over ? times : NULL;
}

/* The sums that user space reads: only this program sets them, so that they never fall. */
#define PUBLISH(state, number)                                                                     \
	({                                                                                         \
		u64 total_ = past[number] + (times->now == (number) ? spent : 0);                  \
		if (total_ > times->state##_ns)                                                    \
			times->state##_ns = total_;                                                \
	})

static inline void publish(struct flow_times *times)
{
	u64 past[] = {times->was_open, times->was_disorder, times->was_cwr, times->was_recovery,
		      times->was_loss};
	u64 spent = 0;

	asm volatile("" ::: "memory");
	if (!times->over)
		spent = bpf_ktime_get_ns() - times->since;
	PUBLISH(open, CA_STATE_OPEN);
	PUBLISH(disorder, CA_STATE_DISORDER);
	PUBLISH(cwr, CA_STATE_CWR);
	PUBLISH(recovery, CA_STATE_RECOVERY);
	PUBLISH(loss, CA_STATE_LOSS);
	times->changes = times->was_changes;
}

#endif
