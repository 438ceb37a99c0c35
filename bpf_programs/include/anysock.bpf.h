/* SPDX-License-Identifier: GPL-2.0-only */
/* Sockets of every family: what protocol they are, and whether they were asked for. */
#ifndef NETBPF_ANYSOCK_BPF_H
#define NETBPF_ANYSOCK_BPF_H

#include "mptcp.bpf.h"

KERNEL_FIELDS(sock, sk_type)
KERNEL_FIELDS(task_struct, nsproxy)
KERNEL_FIELDS(nsproxy, net_ns)

/* Numbers of a column `proto`: see netbpf/declare/calls.py. */
enum proto { TCP4, TCP6, UDP4, UDP6, UNIX, NETLINK, OTHER };

/* The ABI's numbers: linux/socket.h, linux/net.h, linux/in.h. */
#define AF_NETLINK 16
#define SOCK_TYPE_MASK 0xf
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_SEQPACKET 5
#define IPPROTO_UDP 17

#if defined(FILTER_NETNS) || defined(FILTER_FAMILY) || defined(FILTER_LPORT) ||                    \
	defined(FILTER_RPORT) || defined(FILTER_LADDR) || defined(FILTER_RADDR)
#define FILTER_ENDS 1
#endif

/* The protocol of a socket with this family, type and protocol (0: the usual one). */
static inline int proto_of(u16 family, u32 type, u16 protocol)
{
	bool six = family == AF_INET6;

	if (family == AF_UNIX)
		return UNIX;
	if (family == AF_NETLINK)
		return NETLINK;
	if (family != AF_INET && !six)
		return OTHER;
	if (type == SOCK_STREAM &&
	    (!protocol || protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP))
		return six ? TCP6 : TCP4;
	if (type == SOCK_DGRAM && (!protocol || protocol == IPPROTO_UDP))
		return six ? UDP6 : UDP4;
	return OTHER;
}

/* The protocol of a socket: with an IPv4-mapped address it is IPv4. */
static inline int proto_of_sock(struct sock *sk, u16 family)
{
#ifdef HAVE_sock___sk_common_skc_v6_daddr
	u8 laddr[16], raddr[16];

	if (family == AF_INET6) {
		READ_INTO(laddr, sk, __sk_common.skc_v6_rcv_saddr);
		READ_INTO(raddr, sk, __sk_common.skc_v6_daddr);
		if (is_mapped(laddr) || is_mapped(raddr))
			family = AF_INET;
	}
#endif
	return proto_of(family, READ(sk, sk_type), READ(sk, sk_protocol));
}

/* Is the socket one that was asked for? One that could not be made has only a family. */
static inline bool pass_socket(struct sock *sk, u16 family)
{
#ifdef FILTER_ENDS
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct endpoints ends = {};
	struct nsproxy *nsproxy;
	struct net *net;

	if (sk && (family == AF_INET || family == AF_INET6)) {
		read_endpoints(sk, &ends);
	} else {
		nsproxy = READ(task, nsproxy);
		net = sk ? READ(sk, __sk_common.skc_net.net) : READ(nsproxy, net_ns);
		ends.netns = READ(net, ns.inum);
		ends.family = family;
	}
	return pass_endpoints(&ends);
#else
	return true;
#endif
}

/*
 * At the begin of a call: may its socket be one that was asked for when it ends? What is decided
 * already takes no room in a map; a port or address that it has not got yet is not.
 */
#ifdef FILTER_ENDS
static inline bool may_pass_call(struct sock *sk)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct nsproxy *nsproxy = READ(task, nsproxy);
	struct net *net = sk ? READ(sk, __sk_common.skc_net.net) : READ(nsproxy, net_ns);
	u16 family = sk ? READ(sk, __sk_common.skc_family) : 0;

	if (!pass_netns(READ(net, ns.inum)))
		return false;
	if (family != AF_INET && family != AF_INET6)
		return pass_socket(sk, family);
#ifdef FILTER_FAMILY
	if (family == AF_INET && FILTER_FAMILY != AF_INET)
		return false;
#endif
#ifdef FILTER_LPORT
	u16 lport = READ(sk, __sk_common.skc_num);

	if (lport && !FILTER_LPORT(lport))
		return false;
#endif
	return true;
}
#endif

#endif
