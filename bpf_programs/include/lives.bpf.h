/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sockets of programs from the call that makes them to the last close, with what passes through them.
 * A program that includes this includes <netbpf/records.h> before, with the columns of solife.
 */
#ifndef NETBPF_LIVES_BPF_H
#define NETBPF_LIVES_BPF_H

#include "sock.bpf.h"
#include "unfollowed.bpf.h"

KERNEL_FIELDS(sock, sk_type, sk_protocol, sk_kern_sock, sk_drops.counter)
/* Since c51613fa276f ("net: add sk->sk_drop_counters", 6.18) for UDP and raw sockets. */
KERNEL_OPTIONAL(sock, sk_drop_counters)
KERNEL_OPTIONAL(udp_sock, drop_counters.drops0.counter, drop_counters.drops1.counter)

#define SOCK_RAW 3 /* linux/net.h */
#define PF_EXITING 0x00000004 /* include/linux/sched.h */
#define PEERS 8 /* addresses of a socket that are kept */

struct life {
	u64 begin_ns;
	u64 tx_bytes;
	u64 rx_bytes;
	u64 raddr[2]; /* that it sent to last, without being connected */
	u64 peer[PEERS][2];
	u16 port[PEERS]; /* of these peers */
	struct process process; /* that made it; of an accepted one, that used it first */
	u32 tx_msgs;
	u32 rx_msgs;
	u32 errors;
	u16 rport;
	u8 peers; /* PEERS + 1: more than that */
	u8 origin;
	u8 pass; /* did the process filters let `process` through? */
	u8 pad[7];
};
/*
 * By the address of struct sock, until it is released. If another program of a cgroup denies a new
 * socket, it has no end that is seen: its entry stays until the next socket at that address.
 */
BPF_HASH(lives, u64, struct life, MAP_ENTRIES);

/* The number of SockProto. */
static inline u16 life_proto(struct sock *sk)
{
	return READ(sk, sk_type) == SOCK_RAW ? PROTO_RAW : READ(sk, sk_protocol);
}

static inline bool pass_proto(struct sock *sk)
{
#ifdef FILTER_PROTO
	return FILTER_PROTO(life_proto(sk));
#else
	return true;
#endif
}

/* May a new socket pass the filters when it ends? */
static inline bool may_pass(struct sock *sk)
{
#ifdef FILTER_FAMILY
	if (FILTER_FAMILY != AF_INET && READ(sk, __sk_common.skc_family) == AF_INET)
		return false;
#endif
	return !read_sock_sk_kern_sock(sk) && pass_proto(sk) && pass_ports(sk);
}

/* The process of a call on the socket is its first. */
static inline void own_life(struct life *life)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	if (READ(task, flags) & PF_KTHREAD)
		return;
	read_process(&life->process, task);
	life->pass = pass_process(&life->process, task);
}

static inline int begin_life(struct sock *sk, struct life *life)
{
	u64 key = (u64)sk;

	life->begin_ns = bpf_ktime_get_ns();
	forget_unfollowed(key);
	if (lives.update(&key, life))
		count_unfollowed(key);
	return 0;
}

static inline void end_life(u64 key)
{
	lives.delete(&key);
	forget_unfollowed(key);
}

/* The kernel's count of packets that it dropped at the socket, see sk_drops_read(). */
static inline u32 drops_of(struct sock *sk)
{
#if defined(HAVE_sock_sk_drop_counters) && defined(HAVE_udp_sock_drop_counters_drops0_counter)
	void *counters = READ(sk, sk_drop_counters);
	struct udp_sock *up = counters - (u64)FIELD_AT((struct udp_sock *)0, drop_counters);

	if (counters)
		return READ(up, drop_counters.drops0.counter) +
		       READ(up, drop_counters.drops1.counter);
#endif
	return READ(sk, sk_drops.counter);
}

/* Does a failed call count as an error? Not one that has to wait, or that a signal interrupted. */
static inline bool is_error(int result)
{
	return result != -11 && result != -115 && result != -4 && /* EAGAIN, EINPROGRESS, EINTR */
	       !(result <= -512 && result >= -516); /* ERESTARTSYS ... */
}

/* The socket sends to an address: note it, and whether it is a new one. */
static inline void note_peer(struct life *life, const u64 *addr, u16 port)
{
	u32 known = life->peers;

	life->raddr[0] = addr[0];
	life->raddr[1] = addr[1];
	life->rport = port;
#pragma unroll
	for (int i = 0; i < PEERS; i++) {
		if (i < known && life->peer[i][0] == addr[0] && life->peer[i][1] == addr[1] &&
		    life->port[i] == port)
			return;
	}
	if (known < PEERS) {
		life->peer[known][0] = addr[0];
		life->peer[known][1] = addr[1];
		life->port[known] = port;
	}
	if (known <= PEERS)
		life->peers = known + 1;
}

/* A UDP socket sends to the address that the call gives, a struct sockaddr of the kernel's. */
static inline int on_peer(struct sock *sk, const void *uaddr, int family)
{
	u64 key = (u64)sk, addr[2] = {};
	struct life *life = uaddr ? lives.lookup(&key) : NULL;
	u32 addr4 = 0;
	u16 port = 0;

	if (!life)
		return 0;
	bpf_probe_read_kernel(&port, sizeof(port), uaddr + 2);
	if (family == AF_INET6) {
		bpf_probe_read_kernel(addr, sizeof(addr), uaddr + 8);
	} else {
		bpf_probe_read_kernel(&addr4, sizeof(addr4), uaddr + 4);
		map_ipv4((u8 *)addr, addr4);
	}
	note_peer(life, addr, swap16(port));
	return 0;
}

/* Fill in the event of a socket; return false if filters exclude it. */
static inline bool fill(struct finished *ev, struct sock *sk, struct life *life)
{
	struct endpoints ends = {};

	read_endpoints(sk, &ends);
	ev->tx_bytes = ev->rx_bytes = ev->duration_us = UNKNOWN;
	ev->tx_msgs = ev->rx_msgs = ev->errors = ev->peers = ~0U;
	ev->time = bpf_ktime_get_ns();
	if (life) {
		ev->duration_us = ev->time - life->begin_ns;
		ev->tx_bytes = life->tx_bytes;
		ev->rx_bytes = life->rx_bytes;
		ev->tx_msgs = life->tx_msgs;
		ev->rx_msgs = life->rx_msgs;
		ev->errors = life->errors;
		ev->origin = life->origin;
		if (!ends.rport && life->peers) {
			__builtin_memcpy(ends.raddr, life->raddr, 16);
			ends.rport = life->rport;
			if (is_mapped(ends.raddr))
				ends.family = AF_INET;
		}
	}
	if (!pass_endpoints(&ends) || (MIN_NS && (!life || ev->duration_us < MIN_NS)))
		return false;
	SET_ENDS(ev, &ends);
	ev->proto = life_proto(sk);
	if (life && (ev->proto == PROTO_UDP || ev->proto == PROTO_UDPLITE))
		ev->peers = life->peers;
	ev->drops = drops_of(sk);
	return true;
}

static inline void set_process(struct finished *ev, struct process *process)
{
	ev->pid = process->pid;
	ev->uid = process->pid ? process->uid : ~0U;
	ev->cgroup = process->cgroup;
	ev->owner = process->pid ? OWNER_EXACT : OWNER_UNKNOWN;
	__builtin_memcpy(ev->comm, process->comm, sizeof(ev->comm));
}

#endif
