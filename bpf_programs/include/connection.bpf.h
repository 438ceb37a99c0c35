/* SPDX-License-Identifier: GPL-2.0-only */
/* The event of soconnect: an attempt to connect, of whatever protocol. */
#ifndef NETBPF_CONNECTION_BPF_H
#define NETBPF_CONNECTION_BPF_H

#define SNAPSHOT_STATES (1 << TCP_SYN_SENT)
#include "owners.bpf.h"
#include "early.bpf.h"

#define UNKNOWN (~0ULL)

enum { EINTR = 4, EAGAIN = 11, EADDRNOTAVAIL = 99, EINPROGRESS = 115 }; /* asm-generic/errno.h */

/* Numbers of the column result in netbpf/tools/soconnect.py that are no error numbers. */
enum {
	RESULT_PENDING = -1,
	RESULT_PORTS_USED_UP = 1000,
	RESULT_CLOSED,
	RESULT_UNANSWERED,
	RESULT_NOT_SENT,
};
enum { ASYNC_UNKNOWN = 2 };
struct connection {
	u64 time;
	u64 latency_us; /* in ns, as all durations here */
	u64 syscall_us;
	u64 handshake_us;
	u64 cgroup;
	u32 pid;
	s32 result;
	s32 errno;
	u32 retransmits;
	u32 uid;
	u32 netns;
	u16 rport;
	u16 proto;
	u16 lport;
	char comm[16];
	u8 family;
	struct any_addr raddr;
	u8 laddr[16];
	u8 async;
	u8 owner;
	u8 pad[2];
};

static inline bool is_stream_of_ours(u16 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_MPTCP;
}

static inline bool is_wanted(u16 proto)
{
#ifdef WITH_UDP
	if (proto == IPPROTO_UDP || proto == IPPROTO_UDPLITE)
		return true;
#endif
#ifdef WITH_UNIX
	if (proto == PROTO_UNIX_STREAM || proto == PROTO_UNIX_DGRAM ||
	    proto == PROTO_UNIX_SEQPACKET)
		return true;
#endif
	return is_stream_of_ours(proto);
}

/* Fill in what all have in common; false if it is not to be shown. */
static inline bool fill(struct connection *ev, struct owner *owner, struct endpoints *ends)
{
	ev->latency_us = ev->handshake_us != UNKNOWN ? ev->handshake_us : ev->syscall_us;
	if (!pass_endpoints(ends) || (ev->latency_us != UNKNOWN && ev->latency_us < MIN_NS))
		return false;
#ifdef ONLY_FAILED
	if (!ev->result)
		return false;
#endif
	ev->cgroup = owner->process.cgroup;
	ev->pid = owner->process.pid;
	ev->uid = owner->how ? owner->process.uid : ~0U;
	ev->owner = owner->how;
	__builtin_memcpy(ev->comm, owner->process.comm, sizeof(ev->comm));
	ev->netns = ends->netns;
	ev->family = ends->family;
	ev->lport = ends->lport;
	__builtin_memcpy(ev->laddr, ends->laddr, 16);
	return true;
}

#endif
