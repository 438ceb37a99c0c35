/* SPDX-License-Identifier: GPL-2.0-only */
/* Both ends of a socket: addresses of 16 bytes (IPv4 mapped), ports in host order. */
#ifndef NETBPF_SOCK_BPF_H
#define NETBPF_SOCK_BPF_H

#include "filter.bpf.h"

KERNEL_FIELDS(sock, __sk_common.skc_family, __sk_common.skc_state, __sk_common.skc_num)
KERNEL_FIELDS(sock, __sk_common.skc_dport, __sk_common.skc_rcv_saddr, __sk_common.skc_daddr)
KERNEL_FIELDS(sock, __sk_common.skc_net.net)
/* Absent from kernels built without IPv6. */
KERNEL_OPTIONAL(sock, __sk_common.skc_v6_rcv_saddr, __sk_common.skc_v6_daddr)
KERNEL_FIELDS(inet_sock, inet_sport)
KERNEL_FIELDS(net, ns.inum)

#define IPPROTO_TCP 6
#define IPPROTO_UDP 17

struct endpoints {
	u8 laddr[16];
	u8 raddr[16];
	u32 netns; /* inode number of the network namespace */
	u16 lport;
	u16 rport;
	u8 family; /* AF_INET also for IPv4-mapped addresses */
};

static inline void map_ipv4(u8 *to, u32 addr)
{
	__builtin_memset(to, 0, 10);
	to[10] = 0xff;
	to[11] = 0xff;
	__builtin_memcpy(to + 12, &addr, 4);
}

static inline bool is_mapped(const u8 *addr)
{
	const u32 *words = (const u32 *)addr;

	return !words[0] && !words[1] && words[2] == 0xffff0000; /* 00 00 ff ff in memory */
}

/* An address of a socket; `to` stays as it is where the kernel has no IPv6. */
static inline void read_laddr(u8 *to, struct sock *sk, u16 family)
{
	if (family == AF_INET) {
		map_ipv4(to, READ(sk, __sk_common.skc_rcv_saddr));
		return;
	}
#ifdef HAVE_sock___sk_common_skc_v6_rcv_saddr
	READ_INTO(to, sk, __sk_common.skc_v6_rcv_saddr);
#endif
}

static inline void read_raddr(u8 *to, struct sock *sk, u16 family)
{
	if (family == AF_INET) {
		map_ipv4(to, READ(sk, __sk_common.skc_daddr));
		return;
	}
#ifdef HAVE_sock___sk_common_skc_v6_daddr
	READ_INTO(to, sk, __sk_common.skc_v6_daddr);
#endif
}

static inline void read_endpoints(struct sock *sk, struct endpoints *ends)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);
	u16 family = READ(sk, __sk_common.skc_family);
	/* skc_num is 0 once the socket is unhashed; inet_sport (network order) stays. */
	u16 sport = READ((struct inet_sock *)sk, inet_sport);
	u16 dport = READ(sk, __sk_common.skc_dport);

	ends->netns = READ(net, ns.inum);
	ends->lport = swap16(sport);
	ends->rport = swap16(dport);
	ends->family = family;
	read_laddr(ends->laddr, sk, family);
	read_raddr(ends->raddr, sk, family);
	if (family != AF_INET && (is_mapped(ends->laddr) || is_mapped(ends->raddr)))
		ends->family = AF_INET;
}

/* Copy the columns of both ends, from endpoints or from another struct that has them. */
#define SET_ENDS(to, from)                                                                         \
	({                                                                                         \
		(to)->netns = (from)->netns;                                                       \
		(to)->family = (from)->family;                                                     \
		(to)->lport = (from)->lport;                                                       \
		(to)->rport = (from)->rport;                                                       \
		__builtin_memcpy((to)->laddr, (from)->laddr, 16);                                  \
		__builtin_memcpy((to)->raddr, (from)->raddr, 16);                                  \
	})

/* Is `addr` in the block `net` with `mask`? Both are given as two big words in memory order. */
static inline bool in_block(const u8 *addr, u64 net0, u64 net1, u64 mask0, u64 mask1)
{
	const u64 *words = (const u64 *)addr;

	return (words[0] & mask0) == net0 && (words[1] & mask1) == net1;
}

#if defined(FILTER_FAMILY) || defined(FILTER_LADDR) || defined(FILTER_RADDR)
#define FILTER_ADDRESSES 1
#endif
#if defined(FILTER_NETNS) || defined(FILTER_LPORT) || defined(FILTER_RPORT) ||                     \
	defined(FILTER_ADDRESSES)
#define FILTER_SOCKET 1
#endif

static inline bool pass_lport(u16 lport)
{
#ifdef FILTER_LPORT
	return FILTER_LPORT(lport);
#else
	return true;
#endif
}

/* All but the network namespace and the local port. */
static inline bool pass_peer(const struct endpoints *ends)
{
#ifdef FILTER_FAMILY
	if (ends->family != FILTER_FAMILY)
		return false;
#endif
#ifdef FILTER_RPORT
	if (!FILTER_RPORT(ends->rport))
		return false;
#endif
#ifdef FILTER_LADDR
	if (!in_block(ends->laddr, FILTER_LADDR))
		return false;
#endif
#ifdef FILTER_RADDR
	if (!in_block(ends->raddr, FILTER_RADDR))
		return false;
#endif
	return true;
}

static inline bool pass_endpoints(const struct endpoints *ends)
{
	return pass_netns(ends->netns) && pass_lport(ends->lport) && pass_peer(ends);
}

/* Do the namespace and the ports of a socket pass, as far as they are set? Costs a read or two each. */
static inline bool pass_ports(struct sock *sk)
{
#ifdef FILTER_NETNS
	struct net *net = READ(sk, __sk_common.skc_net.net);

	if (!pass_netns(READ(net, ns.inum)))
		return false;
#endif
#ifdef FILTER_LPORT
	u16 sport = READ((struct inet_sock *)sk, inet_sport);

	if (sport && !FILTER_LPORT(swap16(sport)))
		return false;
#endif
#ifdef FILTER_RPORT
	u16 dport = READ(sk, __sk_common.skc_dport);

	if (dport && !FILTER_RPORT(swap16(dport)))
		return false;
#endif
	return true;
}

#ifdef FILTER_ADDRESSES
/* Do family and addresses pass? One address is read at a time, as there is little room on the stack. */
static inline bool pass_addresses(struct sock *sk)
{
	u16 family = READ(sk, __sk_common.skc_family);
	u8 addr[16] __attribute__((aligned(8))) = {};
	bool mapped;

	read_laddr(addr, sk, family);
	mapped = is_mapped(addr);
#ifdef FILTER_LADDR
	if (!in_block(addr, FILTER_LADDR))
		return false;
#endif
	read_raddr(addr, sk, family);
	mapped |= is_mapped(addr);
#ifdef FILTER_RADDR
	if (!in_block(addr, FILTER_RADDR))
		return false;
#endif
#ifdef FILTER_FAMILY
	return (mapped ? AF_INET : family) == FILTER_FAMILY;
#else
	return true;
#endif
}
#endif

/*
 * May a socket pass the filters, now or later? A local port may be chosen yet (SYN_SENT), and a socket
 * without a peer, such as a listener, may get one of either family.
 */
static inline bool may_pass_socket(struct sock *sk)
{
	if (!pass_ports(sk))
		return false;
#ifdef FILTER_ADDRESSES
	return !READ(sk, __sk_common.skc_dport) || pass_addresses(sk);
#else
	return true;
#endif
}

#endif
