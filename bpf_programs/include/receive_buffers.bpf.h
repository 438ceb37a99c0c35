/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The map `buffers`: receive buffers of IP sockets, what went in and out, and who reads it. A program
 * includes <netbpf/records.h>, with struct buffer and struct buffer_sums, before this. Includes
 * owners.bpf.h, which calls on_owner() for each proof of an owner.
 */
#ifndef NETBPF_RECEIVE_BUFFERS_BPF_H
#define NETBPF_RECEIVE_BUFFERS_BPF_H

#include "anysock.bpf.h"
#include "readable.bpf.h"
#include "unfollowed.bpf.h"

KERNEL_FIELDS(sock, sk_backlog.rmem_alloc.counter, sk_rcvbuf, sk_socket, __sk_common.skc_state)
KERNEL_FIELDS(socket_alloc, vfs_inode.i_ino)
KERNEL_FIELDS(udp_sock, forward_deficit)

#if defined(USE_drop_rawtp) || defined(USE_drop_tp)
#define SEES_CAUSES 1 /* of drops of all protocols, not only of UDP */
#endif

#define WHOLE 10000 /* fill_max of a buffer that is exactly full */

BPF_HASH(buffers, struct buffer, struct buffer_sums, MAP_ENTRIES * 4);
BPF_ARRAY(no_sums, struct buffer_sums, 1); /* too large for the stack */

/*
 * A number that distinguishes the sockets that follow each other at an address. TCP sockets have their
 * ends, and no inode before they are accepted; others may change their ends, and have an inode, whose
 * number is never reused. 0: the socket is closed.
 */
static inline u64 number_of(struct sock *sk)
{
	struct socket_alloc *file;
	u64 ports;
	u32 addr[4] = {};

	if (READ(sk, sk_protocol) != IPPROTO_TCP) {
		file = (struct socket_alloc *)READ(sk, sk_socket);
		return file ? READ(file, vfs_inode.i_ino) : 0;
	}
	read_raddr((u8 *)addr, sk, READ(sk, __sk_common.skc_family));
	ports = (u32)READ((struct inet_sock *)sk, inet_sport) << 16 |
		READ(sk, __sk_common.skc_dport);
	return (u64)(addr[0] ^ addr[1] ^ addr[2] ^ addr[3]) << 32 | ports;
}

static inline struct buffer_sums *buffer_of(struct sock *sk)
{
	struct buffer key = {.sk = (u64)sk, .number = number_of(sk)};

	return buffers.lookup(&key);
}

struct owner;
static inline void on_owner(struct sock *sk, struct owner *owner);
#define ON_OWNER(sk, pass) on_owner(sk, owner)
#define OWNERS_OF_ALL 1

#include "owners.bpf.h"
#include "stale_owners.bpf.h"

static inline void fill_owner(struct buffer_sums *sums, struct owner *owner)
{
	if (!owner->how)
		return;
	SET_OWNER(sums, owner);
	sums->pass = owner->pass;
}

/* A process proved that it holds the socket. */
static inline void on_owner(struct sock *sk, struct owner *owner)
{
	struct buffer_sums *sums = buffer_of(sk);

	if (sums)
		fill_owner(sums, owner);
}
static inline u32 filled(struct sock *sk)
{
	return READ(sk, sk_backlog.rmem_alloc.counter);
}

/* A new buffer, of a socket that filters let through; NULL if there is no room. */
static inline struct buffer_sums *follow(struct sock *sk, struct buffer *key)
{
	struct buffer_sums *sums;
	struct endpoints ends = {};
	struct owner owner = {};
	int zero = 0;

	read_endpoints(sk, &ends);
	if (!pass_endpoints(&ends))
		return NULL;
	sums = no_sums.lookup(&zero);
	sums = sums ? buffers.lookup_or_try_init(key, sums) : NULL;
	if (!sums) {
		count_unfollowed(key->sk);
		return NULL;
	}
	SET_ENDS(sums, &ends);
#ifdef SEES_CAUSES
	sums->sees_causes = 1;
#endif
	sums->proto = proto_of_sock(sk, READ(sk, __sk_common.skc_family));
	find_owner(sk, &owner);
	SET_OWNER(sums, &owner);
	sums->pass = owner.pass;
	return sums;
}

/* The same without memory of datagrams that were read, which UDP gives back later. */
static inline u32 waiting(struct sock *sk)
{
	u32 used = filled(sk);

	if (READ(sk, sk_protocol) == IPPROTO_UDP)
		used -= READ((struct udp_sock *)sk, forward_deficit);
	return used;
}

/* The buffer of a socket; NULL if filters exclude it, it is closed, or there is no room. */
static inline struct buffer_sums *buffer_or_new(struct sock *sk)
{
	struct buffer key = {.sk = (u64)sk, .number = number_of(sk)};
	struct buffer_sums *known = buffers.lookup(&key);

	return known || !key.number ? known : follow(sk, &key);
}

/* Does this socket have a receive buffer of its own that the filters may let through? */
static inline bool has_buffer(struct sock *sk)
{
	u16 family = READ(sk, __sk_common.skc_family);

	if ((family != AF_INET && family != AF_INET6) || !may_pass_socket(sk))
		return false;
#ifdef FILTER_PROTO
	if (!FILTER_PROTO(proto_of_sock(sk, family)))
		return false;
#endif
	/* What arrives at a listener is a connection; an MPTCP socket has the data of its subflows. */
	if (READ(sk, __sk_common.skc_state) == TCP_LISTEN)
		return false;
	return READ(sk, sk_protocol) != IPPROTO_TCP || !is_subflow(sk);
}

#define RETRIES 3

/*
 * Raise a maximum. Packets for a UDP socket can arrive on several CPUs at once, and kernels before 5.12
 * have no atomic exchange: look again whether another CPU has written a smaller value.
 */
static inline void raise(volatile u64 *most, u64 value)
{
#pragma unroll
	for (int i = 0; i < RETRIES; i++) {
		if (*most < value)
			*most = value;
	}
}

/* Note how full the buffer is. */
static inline void measure(struct sock *sk, struct buffer_sums *sums)
{
	u64 now = filled(sk), limit = (u32)READ(sk, sk_rcvbuf);

	raise(&sums->used_max_bytes, now);
	raise(&sums->fill_max, limit ? now * WHOLE / limit : 0);
	sums->limit_bytes = limit;
}

#endif
