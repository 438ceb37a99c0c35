/* SPDX-License-Identifier: GPL-2.0-only */
/* How long TCP connections wait to be accepted: the probe `state`, see declare/states.py. */
#ifndef NETBPF_ESTABLISHED_BPF_H
#define NETBPF_ESTABLISHED_BPF_H

#include "mptcp.bpf.h"

#define UNKNOWN (~0ULL)

/* When a connection was established, until it is accepted; some never are: the oldest go. */
BPF_TABLE("lru_hash", u64, u64, established, MAP_ENTRIES);

/* Is it known to wait? */
static inline bool waits(struct sock *accepted)
{
	u64 key = (u64)carrier_of(accepted);

	return established.lookup(&key);
}

/* How many ns an accepted connection waited, or UNKNOWN. */
static inline u64 waited(struct sock *accepted)
{
	struct sock *sk = carrier_of(accepted);
	u64 key = (u64)sk, *since, wait;

	/* Handed out before the handshake's last packet was through with: Fast Open, or a race */
	if (READ(sk, __sk_common.skc_state) == TCP_SYN_RECV)
		return 0;
	since = established.lookup(&key);
	if (!since)
		return UNKNOWN;
	wait = bpf_ktime_get_ns() - *since;
	established.delete(&key);
	return wait;
}

static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
	u64 key = (u64)sk, now;

	if (oldstate == TCP_SYN_RECV && newstate == TCP_ESTABLISHED &&
	    READ(sk, sk_protocol) == IPPROTO_TCP) {
		now = bpf_ktime_get_ns();
		if (established.update(&key, &now))
			count_loss(LOSS_MAP_FULL);
	}
	return 0;
}

#include "state_entries.bpf.h"

#endif
