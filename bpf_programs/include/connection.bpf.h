/* SPDX-License-Identifier: GPL-2.0-only */
/* The event of soconnect: an attempt to connect, with any protocol. */
#ifndef NETBPF_CONNECTION_BPF_H
#define NETBPF_CONNECTION_BPF_H

#define SNAPSHOT_STATES (1 << TCP_SYN_SENT)
#include "owners.bpf.h"
#include "early.bpf.h"
#include "user_stacks.bpf.h"
#include <netbpf/records.h>

enum { EINTR = 4, EAGAIN = 11, EADDRNOTAVAIL = 99, EINPROGRESS = 115 }; /* asm-generic/errno.h */
enum { ASYNC_UNKNOWN = 2 }; /* of the column class Flag */

/* TCP, or MPTCP, which TCP sockets carry: there is a handshake. */
static inline bool is_tcp(u16 proto)
{
	return proto == PROTO_TCP || proto == PROTO_MPTCP;
}

static inline bool is_wanted(u16 proto)
{
#ifdef WITH_UDP
	if (proto == PROTO_UDP || proto == PROTO_UDPLITE)
		return true;
#endif
#ifdef WITH_UNIX
	if (proto == PROTO_STREAM || proto == PROTO_DGRAM || proto == PROTO_SEQPACKET)
		return true;
#endif
#ifdef WITHOUT_TCP
	return false;
#else
	return is_tcp(proto);
#endif
}

/* Fill in the columns that all protocols have; return false if the event is not wanted. */
static inline bool fill(struct connection *ev, struct owner *owner, struct endpoints *ends)
{
	ev->latency_us = ev->handshake_us != UNKNOWN ? ev->handshake_us : ev->syscall_us;
	if (!pass_endpoints(ends) || (ev->latency_us != UNKNOWN && ev->latency_us < MIN_NS))
		return false;
#ifdef ONLY_FAILED
	if (!ev->result)
		return false;
#endif
	SET_OWNER(ev, owner);
	ev->netns = ends->netns;
	ev->family = ends->family;
	ev->lport = ends->lport;
	__builtin_memcpy(ev->laddr, ends->laddr, 16);
	return true;
}

#endif
