/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From the ends of a TCP segment to the socket that it belongs to, and to the socket's owner. A segment
 * at a device has no socket yet when it is received: it is found as TCP will find it, first among
 * connections, then among those that have ended, then among listeners.
 *
 * A program that includes this has a probe `state` of its own, which calls follow_state().
 */
#ifndef NETBPF_SOCKET_OF_BPF_H
#define NETBPF_SOCKET_OF_BPF_H

#include "sock.bpf.h"
#include "unfollowed.bpf.h"

KERNEL_FIELDS(sock, sk_reuseport_cb, sk_lock.owned, __sk_common.skc_bound_dev_if)
KERNEL_FIELDS(sock_reuseport, num_socks)

/* The ends of a connection, or of a listener, which has no remote one: begins as struct endpoints does. */
struct socket_key {
	u8 laddr[16];
	u8 raddr[16];
	u32 netns;
	u16 lport;
	u16 rport;
};
#define KEY_OF(ends) ((struct socket_key *)(ends))

/* By its ends: the address of struct sock, and PROVEN, as addresses are even. Removed at CLOSE. */
BPF_HASH(sockets, struct socket_key, u64, MAP_ENTRIES);
#define PROVEN 1ULL /* a process proved once that it holds the socket: it is not the listener's */

static inline void on_owner(struct sock *sk);
#define ON_OWNER(sk, pass) on_owner(sk)
#include "owners.bpf.h"

#define REMEMBERED_NS 60000000000ULL /* how long a connection that ended can be in TIME_WAIT */

struct last_owner {
	struct owner owner;
	u64 until;
};
/* Owners of connections that have ended, by their ends: nothing shows the end of TIME_WAIT. */
BPF_TABLE("lru_hash", struct socket_key, struct last_owner, ended, LRU_ENTRIES(MAP_ENTRIES));

static inline bool same_ends(struct sock *sk, const struct endpoints *ends)
{
	return READ((struct inet_sock *)sk, inet_sport) == swap16(ends->lport) &&
	       READ(sk, __sk_common.skc_dport) == swap16(ends->rport);
}

static inline void follow_socket(struct sock *sk, const struct endpoints *ends, u64 flags)
{
	u64 value = (u64)sk | flags, *known = sockets.lookup(KEY_OF(ends));

	if (known && (*known & ~PROVEN) == (u64)sk) {
		*known |= flags;
		return;
	}
	if (sockets.update(KEY_OF(ends), &value))
		count_unfollowed((u64)sk);
}

/* By the ends that the socket has: those of its segments may be translated (NAT) at the device. */
static inline void follow_connection(struct sock *sk, u64 flags)
{
	struct endpoints ends = {};

	read_endpoints(sk, &ends);
	follow_socket(sk, &ends, flags);
}

/* A listener has no remote end. */
static inline void set_listener_key(struct endpoints *ends)
{
	ends->rport = 0;
	__builtin_memset(ends->raddr, 0, 16);
}

/* A process proved that it holds the socket. */
static inline void on_owner(struct sock *sk)
{
	struct endpoints ends = {};

	if (!may_pass_socket(sk))
		return;
	read_endpoints(sk, &ends);
	if (!ends.lport)
		return;
	if (!ends.rport) { /* it begins to listen, or does so already */
		/* Others may have the same address at other devices: it does not say which one. */
		if (READ(sk, __sk_common.skc_bound_dev_if))
			return;
		set_listener_key(&ends);
	}
	follow_socket(sk, &ends, PROVEN);
}

/* The socket ends, or stops to listen: keep who had it last, for what still arrives. */
static inline void end_socket(struct sock *sk, int oldstate)
{
	struct last_owner last = {};
	struct endpoints ends = {};
	u64 *known;

	read_endpoints(sk, &ends);
	if (oldstate == TCP_LISTEN)
		set_listener_key(&ends);
	known = sockets.lookup(KEY_OF(&ends));
	if (!known || (*known & ~PROVEN) != (u64)sk)
		return;
	if (oldstate != TCP_LISTEN) {
		recorded_owner(sk, &last.owner);
		/* Packets and timers wait for the socket's lock: a call of the process resets it. */
		if (READ(sk, sk_lock.owned))
			owner_from_current(&last.owner);
		last.until = bpf_ktime_get_ns() + REMEMBERED_NS;
		ended.update(KEY_OF(&ends), &last);
	}
	sockets.delete(KEY_OF(&ends));
}

/* What a change of state says about the socket and its owner. */
static inline void follow_state(struct sock *sk, int oldstate, int newstate)
{
	if (READ(sk, sk_protocol) != IPPROTO_TCP)
		return;
	if (newstate == TCP_CLOSE) {
		end_socket(sk, oldstate);
	} else if (newstate == TCP_ESTABLISHED && may_pass_socket(sk)) {
		follow_connection(sk, 0);
	}
	on_owner_state(sk, oldstate, newstate);
}

static inline struct sock *followed(const struct endpoints *ends, u64 *flags)
{
	u64 *known = sockets.lookup(KEY_OF(ends));
	struct sock *sk;

	if (!known)
		return NULL;
	sk = (struct sock *)(*known & ~PROVEN);
	*flags = *known & PROVEN;
	return same_ends(sk, ends) ? sk : NULL;
}

/*
 * The listener that gets a segment for no connection: that of the address, or of all of either family.
 * NULL if several share it (SO_REUSEPORT).
 */
static inline struct sock *find_listener(const struct endpoints *of)
{
	struct endpoints ends = *of;
	struct sock_reuseport *group;
	struct sock *sk;
	u64 flags = 0;

	set_listener_key(&ends);
	sk = followed(&ends, &flags);
	if (!sk && of->family == AF_INET) {
		__builtin_memset(ends.laddr + 12, 0, 4);
		sk = followed(&ends, &flags);
	}
	if (!sk) {
		__builtin_memset(ends.laddr, 0, 16);
		sk = followed(&ends, &flags);
	}
	if (!sk || READ(sk, __sk_common.skc_state) != TCP_LISTEN)
		return NULL;
	group = READ(sk, sk_reuseport_cb);
	return group && READ(group, num_socks) > 1 ? NULL : sk;
}

static inline bool is_closing(struct sock *sk)
{
	u8 state = READ(sk, __sk_common.skc_state);

	return state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_CLOSING ||
	       state == TCP_LAST_ACK;
}

/*
 * Find the owner of the socket that a segment with these ends belongs to. `sk` is the connection, if it
 * is known already, `opens` says that the segment asks for a new one.
 */
static inline void find_owner_of_ends(struct sock *sk, const struct endpoints *ends, bool opens,
				      struct owner *owner)
{
	u64 flags = 0;
	struct last_owner *last;
	struct sock *listener = NULL;

	if (sk && !has_record(sk))
		sk = followed(ends, &flags);
	else if (!sk)
		sk = followed(ends, &flags);
	if (!sk && !opens) {
		last = ended.lookup(KEY_OF(ends));
		if (last && bpf_ktime_get_ns() < last->until) {
			*owner = last->owner;
			return;
		}
	}
	if (!sk || (!flags && !has_record(sk)))
		listener = find_listener(ends);
	if (listener)
		sk = listener;
	if (!sk)
		return;
	/* Who closed it was recorded then, and its descriptor is gone before the FIN is sent. */
	if (is_closing(sk))
		recorded_owner(sk, owner);
	else if (find_owner(sk, owner) && listener)
		owner->how = OWNER_LISTENER;
}

#endif
