// SPDX-License-Identifier: GPL-2.0-only
/* tcpsynbl: queues of listening TCP sockets. Front-end: netbpf/tools/tcpsynbl.py */
#include "netbpf.bpf.h"
#include "listeners.bpf.h"
#include "histogram.bpf.h"

KERNEL_FIELDS(inet_connection_sock, icsk_accept_queue.qlen.counter)
/* Only for hints. */
KERNEL_OPTIONAL(net, core.sysctl_somaxconn, ipv4.sysctl_max_syn_backlog)

#define TCP_SYNACK_COOKIE 2 /* enum tcp_synack_type, include/net/tcp.h */

/* A listener, for the table; a field is the listener's own, never that of a connection. */
struct listener {
	u64 sk;
	u32 pid;
	u32 netns;
	u16 lport;
	char comm[16];
	u8 laddr[16];
	u8 owner;
	u8 pad[5];
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
	u64 session;
};
BPF_HASH(listeners, struct listener, struct listener_sums, MAP_ENTRIES);

struct queue_key {
	u32 limit;
	u32 netns;
	u16 lport;
	u8 laddr[16];
	u8 pad[2];
};
BPF_F_TABLE("percpu_hash", struct queue_key, struct histogram, queues, MAP_ENTRIES, 0);
BPF_PERCPU_ARRAY(empty, struct histogram, 1);

static inline u32 syn_queue(struct sock *sk)
{
	return READ((struct inet_connection_sock *)sk, icsk_accept_queue.qlen.counter);
}

/* Fill in the table's key; false if filters keep the listener out. `sk` may be a bare copy. */
static inline bool describe(struct listener *listener, struct sock *sk, const struct owner *owner)
{
	struct endpoints ends = {};

	read_endpoints(sk, &ends);
	if (!pass_owner(owner) || !pass_endpoints(&ends))
		return false;
	listener->pid = owner->process.pid;
	listener->owner = owner->how;
	listener->netns = ends.netns;
	listener->lport = ends.lport;
	__builtin_memcpy(listener->comm, owner->process.comm, 16);
	__builtin_memcpy(listener->laddr, ends.laddr, 16);
	return true;
}

static inline struct listener_sums *sums_of(struct listener *listener, struct sock *sk)
{
	struct listener_sums fresh = {}, *found = listeners.lookup(listener);

	if (found)
		return found;
#ifdef HAVE_net_core_sysctl_somaxconn
	fresh.somaxconn = READ(READ(sk, __sk_common.skc_net.net), core.sysctl_somaxconn);
#endif
#ifdef HAVE_net_ipv4_sysctl_max_syn_backlog
	fresh.syn_backlog = READ(READ(sk, __sk_common.skc_net.net), ipv4.sysctl_max_syn_backlog);
#endif
	listeners.insert(listener, &fresh); /* another CPU may have been first: that is fine */
	found = listeners.lookup(listener);
	if (!found)
		count_loss(LOSS_MAP_FULL);
	return found;
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
		count_loss(LOSS_MAP_FULL);
}

/* A handshake is complete: `child` is new, and a copy of its listener. */
static inline void on_child(struct sock *child)
{
	struct sock *sk = listener_of(child);
	struct known *found = sk ? known_of(sk) : NULL;
	struct listener listener = {.sk = (u64)sk};
	struct owner nobody = {};
	struct listener_sums *sums;

	if (!describe(&listener, sk ? sk : child, found ? &found->owner : &nobody))
		return;
	count_handshake(child, &listener);
	sums = sums_of(&listener, child);
	if (!sums)
		return;
	__sync_fetch_and_add(&sums->handshakes, 1);
	look(sums, child, 1);
}

#define CLOSING (~0ULL)

/*
 * Look at a listener: what it dropped since the last look, and its queues as they are now. Each
 * `session` of the iterator ends an interval, though it may come across a socket several times.
 */
static inline void settle(struct sock *sk, struct known *found, u64 session)
{
	u32 drops = READ(sk, sk_drops.counter), more = drops - (u32)found->drops;
	struct listener listener = {.sk = (u64)sk};
	struct listener_sums *sums;

	found->drops = drops;
	if (!describe(&listener, sk, &found->owner))
		return;
	/* One that has nothing to tell needs no room. */
	if (!more && !READ(sk, sk_ack_backlog) && !syn_queue(sk) && !listeners.lookup(&listener))
		return;
	sums = sums_of(&listener, sk);
	if (!sums)
		return;
	sums->dropped += more;
	sums->dropped_total = sums->dropped;
	look(sums, sk, 0);
	if (sums->session != session) {
		sums->session = session;
		sums->accept_max = sums->accept_peak;
		sums->syn_max = sums->syn_peak;
		sums->accept_peak = sums->accept_queue;
		sums->syn_peak = sums->syn_queue;
	}
	if (session == CLOSING) /* nobody waits any more */
		sums->accept_queue = sums->accept_peak = sums->syn_queue = sums->syn_peak = 0;
}

static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
	u64 key = (u64)sk;
	struct known *found;

	if (oldstate == TCP_LISTEN && newstate == TCP_SYN_RECV) {
		if (READ(sk, sk_protocol) == IPPROTO_TCP)
			on_child(sk);
	} else if (newstate == TCP_LISTEN) {
		struct owner owner = {};

		if (READ(sk, sk_protocol) != IPPROTO_TCP)
			return 0;
		own_current(&owner); /* in listen() */
		know(sk, &owner);
	} else if (oldstate == TCP_LISTEN) {
		found = known.lookup(&key);
		if (found)
			settle(sk, found, CLOSING);
		known.delete(&key);
	}
	return 0;
}

#include "state_entries.bpf.h"

#ifdef USE_listeners_iter
/* Every listener that is in a file table: run at the start and at each interval's end. */
int listeners_iter(struct task_file_context *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct owner owner = {};
	struct known *found;
	struct sock *sk;
	u64 key;

	if (!task || !file)
		return 0;
	sk = sock_of_file(file);
	if (!sk || READ(sk, __sk_common.skc_state) != TCP_LISTEN)
		return 0;
	key = (u64)sk;
	found = known.lookup(&key);
	if (!found) {
		own(&owner, task, OWNER_SNAPSHOT);
		found = know(sk, &owner);
	}
	if (found)
		settle(sk, found, ctx->meta->session_id);
	return 0;
}
#endif

/* A SYN arrives: both queues as it finds them. */
static inline struct listener_sums *sums_at(struct sock *sk)
{
	struct listener listener = {.sk = (u64)sk};
	struct known *found = known_of(sk);

	if (!found || !describe(&listener, sk, &found->owner))
		return NULL;
	return sums_of(&listener, sk);
}

static inline int on_syn(struct sock *sk)
{
	struct listener_sums *sums = sums_at(sk);

	if (sums) {
		__sync_fetch_and_add(&sums->syns, 1);
		look(sums, sk, 0);
	}
	return 0;
}

static inline int on_synack(struct sock *sk, int type)
{
	struct listener_sums *sums = type == TCP_SYNACK_COOKIE ? sums_at(sk) : NULL;

	if (sums)
		__sync_fetch_and_add(&sums->cookies, 1);
	return 0;
}

#ifdef USE_syn_fentry
int syn_fentry(u64 *ctx)
{
	return on_syn((struct sock *)ctx[ARG_syn_sk]);
}
#endif
#ifdef USE_syn_kprobe
int syn_kprobe(struct pt_regs *ctx)
{
	return on_syn((struct sock *)PT_REGS_PARM3(ctx));
}
#endif
#ifdef USE_synack_fentry
int synack_fentry(u64 *ctx)
{
	return on_synack((struct sock *)ctx[ARG_synack_sk], ctx[ARG_synack_synack_type]);
}
#endif
#ifdef USE_synack_kprobe
int synack_kprobe(struct pt_regs *ctx)
{
	return on_synack((struct sock *)PT_REGS_PARM1(ctx), PT_REGS_PARM5(ctx));
}
#endif
