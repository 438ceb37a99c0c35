/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sockets of every family: which protocol they have, and whether they pass the filters. A program
 * that includes this has a column `proto` (PROTOS in declare/calls.py) and includes
 * <netbpf/records.h> before.
 */
#ifndef NETBPF_ANYSOCK_BPF_H
#define NETBPF_ANYSOCK_BPF_H

#include "mptcp.bpf.h"

KERNEL_FIELDS(sock, sk_type)
KERNEL_FIELDS(task_struct, nsproxy)
KERNEL_FIELDS(nsproxy, net_ns)

/* The ABI's numbers: linux/socket.h, linux/net.h, linux/in.h. */
#define AF_NETLINK 16
#define SOCK_TYPE_MASK 0xf
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_SEQPACKET 5

/* The protocol of a socket with this family, type and protocol (0: the usual one). */
static inline int proto_of(u16 family, u32 type, u16 protocol)
{
	bool six = family == AF_INET6;

	if (family == AF_UNIX)
		return PROTO_UNIX;
	if (family == AF_NETLINK)
		return PROTO_NETLINK;
	if (family != AF_INET && !six)
		return PROTO_OTHER;
	if (type == SOCK_STREAM &&
	    (!protocol || protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP))
		return six ? PROTO_TCP6 : PROTO_TCP4;
	if (type == SOCK_DGRAM && (!protocol || protocol == IPPROTO_UDP))
		return six ? PROTO_UDP6 : PROTO_UDP4;
	return PROTO_OTHER;
}

/* The protocol of a socket; one with an IPv4-mapped address has IPv4. */
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

/* Read what is known of a socket's ends. One that could not be made (NULL) has only a family. */
static inline void read_ends_of_call(struct sock *sk, u16 family, struct endpoints *ends)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct nsproxy *nsproxy;
	struct net *net;

	if (sk && (family == AF_INET || family == AF_INET6)) {
		read_endpoints(sk, ends);
		return;
	}
	nsproxy = READ(task, nsproxy);
	net = sk ? READ(sk, __sk_common.skc_net.net) : READ(nsproxy, net_ns);
	ends->netns = READ(net, ns.inum);
	ends->family = family;
}

/* Does the socket pass the filters? */
static inline bool pass_socket(struct sock *sk, u16 family)
{
#ifdef FILTER_SOCKET
	struct endpoints ends = {};

	read_ends_of_call(sk, family, &ends);
	return pass_endpoints(&ends);
#else
	return true;
#endif
}

/* Does a call of the current process pass the filters of operations, protocols and processes? */
static inline bool pass_call(int op, int proto)
{
#ifdef FILTER_OP
	if (!FILTER_OP(op))
		return false;
#endif
#ifdef FILTER_PROTO
	if (!FILTER_PROTO(proto))
		return false;
#endif
	return pass_current();
}

#ifdef FILTER_SOCKET
/*
 * May the socket of a call that begins pass the filters when the call ends? False only if what is
 * known now excludes it: a port or an address may be chosen during the call.
 */
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
