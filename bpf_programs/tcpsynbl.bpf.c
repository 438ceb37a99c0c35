// SPDX-License-Identifier: GPL-2.0-only
/* tcpsynbl: queues of listening TCP sockets. Front-end: netbpf/tools/tcpsynbl.py */
#include "netbpf.bpf.h"
#include "listeners.bpf.h"
#include "lost.bpf.h"
#include "histogram.bpf.h"

KERNEL_FIELDS(inet_connection_sock, icsk_accept_queue.qlen.counter)
/* Only for hints. */
KERNEL_OPTIONAL(net, core.sysctl_somaxconn, ipv4.sysctl_max_syn_backlog)
KERNEL_OPTIONAL(net, ipv4.sysctl_tcp_syncookies)

#define TCP_SYNACK_COOKIE 2 /* enum tcp_synack_type, include/net/tcp.h */

/* A listener, for the table: its address may be that of another one that is closed by now. */
struct listener {
	u64 sk;
	u64 since; /* 0 with sk: that of a connection whose listener is not found */
	u32 netns;
	u16 lport;
	u8 laddr[16];
	u8 pad[2];
};

/* Sums, and from accept_queue on gauges; a peak is the greatest since the last interval's end. */
struct listener_sums {
	u64 handshakes;
	u64 syns;
	u64 dropped;
	u64 cookies;
	u64 accept_queue;
	u64 accept_max;
	u64 accept_peak;
	u64 accept_limit;
	u64 syn_queue;
	u64 syn_max;
	u64 syn_peak;
	u64 dropped_total;
	u64 somaxconn;
	u64 syn_backlog;
	u64 syncookies;
	u64 session;
	u32 pid;
	char comm[16];
	u8 owner;
	u8 pad[3];
};
BPF_HASH(listeners, struct listener, struct listener_sums, MAP_ENTRIES);

struct queue_key {
	u32 limit;
	u32 netns;
	u16 lport;
	u8 laddr[16];
	u8 pad[2];
};
/* Each takes room on every CPU. */
#define QUEUES (MAP_ENTRIES < 1024 ? MAP_ENTRIES : 1024 + (MAP_ENTRIES - 1024) / 16)
BPF_F_TABLE("percpu_hash", struct queue_key, struct histogram, queues, QUEUES, 0);
BPF_PERCPU_ARRAY(empty, struct histogram, 1);

/* What is counted as lost once: by its address, or by what is known of one that is not found. */
static inline u64 name_of(const struct listener *listener)
{
	return listener->sk ?: (u64)listener->netns << 32 | listener->lport << 1 | 1;
}

static inline u32 syn_queue(struct sock *sk)
{
	return READ((struct inet_connection_sock *)sk, icsk_accept_queue.qlen.counter);
}

/* Fill in the table's key. `sk` is the listener, or NULL if that is not found. */
static inline void describe(struct listener *listener, struct sock *sk, struct known *found,
			    const struct endpoints *ends)
{
	listener->sk = (u64)sk;
	listener->since = found ? found->since : 0;
	listener->netns = ends->netns;
	listener->lport = ends->lport;
	__builtin_memcpy(listener->laddr, ends->laddr, 16);
}

/* What limits the queues of all listeners of a namespace. */
static inline void read_settings(struct listener_sums *sums, struct sock *sk)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);

#ifdef HAVE_net_core_sysctl_somaxconn
	sums->somaxconn = READ(net, core.sysctl_somaxconn);
#endif
#ifdef HAVE_net_ipv4_sysctl_max_syn_backlog
	sums->syn_backlog = READ(net, ipv4.sysctl_max_syn_backlog);
#endif
#ifdef HAVE_net_ipv4_sysctl_tcp_syncookies
	sums->syncookies = READ(net, ipv4.sysctl_tcp_syncookies);
#endif
}

static inline struct listener_sums *sums_of(struct listener *listener, struct sock *sk,
					    struct known *found)
{
	struct listener_sums fresh = {}, *sums = listeners.lookup(listener);

	if (!sums) {
		read_settings(&fresh, sk);
		listeners.insert(listener, &fresh); /* another CPU may have been first: fine */
		sums = listeners.lookup(listener);
	}
	if (!sums) {
		count_unfollowed(name_of(listener));
		return NULL;
	}
	if (found) {
		sums->pid = found->owner.process.pid;
		sums->owner = found->owner.how;
		__builtin_memcpy(sums->comm, found->owner.process.comm, 16);
	}
	return sums;
}

/* Look at both queues, `more` connections being about to enter the accept queue. */
static inline void look(struct listener_sums *sums, struct sock *sk, u32 more)
{
	u64 accept = READ(sk, sk_ack_backlog) + more, syn = syn_queue(sk);

	sums->accept_queue = accept;
	sums->accept_limit = READ(sk, sk_max_ack_backlog);
	sums->syn_queue = syn;
	if (accept > sums->accept_peak)
		sums->accept_peak = accept;
	if (syn > sums->syn_peak)
		sums->syn_peak = syn;
}

static inline void count_handshake(struct sock *child, struct listener *listener)
{
	u64 waiting = READ(child, sk_ack_backlog);
	struct queue_key key = {};
	struct histogram *queue;
	int zero = 0;

	key.limit = READ(child, sk_max_ack_backlog);
	key.netns = listener->netns;
	key.lport = listener->lport;
	__builtin_memcpy(key.laddr, listener->laddr, 16);
	queue = queues.lookup(&key);
	if (!queue) {
		queue = empty.lookup(&zero); /* too large for the stack */
		if (queue)
			queues.insert(&key, queue);
		queue = queues.lookup(&key);
	}
	if (queue)
		record_value(queue, waiting, 1);
	else
		count_unfollowed(name_of(listener));
}

/* A handshake is complete: `child` is new, and a copy of its listener. */
static inline void on_child(struct sock *child)
{
	struct sock *sk = listener_of(child);
	struct listener listener = {};
	struct listener_sums *sums;
	struct known *found = NULL;
	struct owner nobody = {};
	struct endpoints ends = {};

	read_endpoints(sk ? sk : child, &ends);
	if (!pass_endpoints(&ends))
		return;
	if (sk)
		found = know_of(sk, &ends);
	if (sk ? !found : !pass_owner(&nobody))
		return;
	if (found && !pass_owner(&found->owner))
		return;
	describe(&listener, sk, found, &ends);
	count_handshake(child, &listener);
	sums = sums_of(&listener, child, found);
	if (!sums)
		return;
	__sync_fetch_and_add(&sums->handshakes, 1);
	look(sums, child, 1);
}

#define CLOSING (~0ULL)

/*
 * Look at a listener: what it lost, and its queues as they are now. Each `session` of the iterator
 * ends an interval.
 */
static inline void settle(struct sock *sk, struct known *found, u64 session)
{
	struct endpoints ends = {};
	struct listener listener = {};
	struct listener_sums *sums;
	u32 lost;

	read_endpoints(sk, &ends);
	if (!pass_endpoints(&ends) || !pass_owner(&found->owner))
		return;
	lost = lost_by(sk, found);
	describe(&listener, sk, found, &ends);
	/* One that has nothing to report needs no room. */
	if (!lost && !READ(sk, sk_ack_backlog) && !syn_queue(sk) && !listeners.lookup(&listener))
		return;
	sums = sums_of(&listener, sk, found);
	if (!sums)
		return;
	read_settings(sums, sk);
	if (lost > sums->dropped)
		sums->dropped = lost;
	sums->dropped_total = sums->dropped;
	look(sums, sk, 0);
	if (sums->session != session) {
		sums->session = session;
		sums->accept_max = sums->accept_peak;
		sums->syn_max = sums->syn_peak;
		sums->accept_peak = sums->accept_queue;
		sums->syn_peak = sums->syn_queue;
	}
	if (session == CLOSING) /* its connections are gone with it */
		sums->accept_queue = sums->accept_peak = sums->syn_queue = sums->syn_peak = 0;
}

/* In listen(): a new life of the socket, with the current process as its owner. */
static inline void on_listen(struct sock *sk)
{
	struct endpoints ends = {};
	struct owner owner = {};

	read_endpoints(sk, &ends);
	if (!pass_endpoints(&ends))
		return;
	own_current(&owner);
	if (!pass_owner(&owner))
		return;
	forget_unfollowed((u64)sk);
	forget_listener(sk);
	know(sk, &ends, &owner);
}

static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
	struct known *found;

	if ((oldstate != TCP_LISTEN && newstate != TCP_LISTEN) ||
	    READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	if (oldstate == TCP_LISTEN && newstate == TCP_SYN_RECV) {
		on_child(sk);
	} else if (newstate == TCP_LISTEN) {
		on_listen(sk);
	} else {
		found = find_known(sk);
		if (!found)
			return 0;
		settle(sk, found, CLOSING);
		forget_listener(sk);
	}
	return 0;
}

#ifdef USE_listeners_iter
/*
 * Every listener that is known, also one that no file table holds: its descriptor is on its way to
 * another process, or in io_uring's own table, or it belongs to the kernel. Run after holders_iter.
 */
int listeners_iter(struct map_element_context *ctx)
{
	struct known *found;
	struct sock *sk;
	u64 *key = ctx->key;

	if (!key)
		return 0;
	sk = (struct sock *)*key;
	found = find_known(sk);
	if (!found)
		return 0;
	if (!listens_still(sk, found)) { /* its end was not seen */
		forget_listener(sk);
		return 0;
	}
	settle_owner(found);
	settle(sk, found, ctx->meta->session_id);
	return 0;
}
#endif

#include "syn_entries.bpf.h"
