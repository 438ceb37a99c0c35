/* SPDX-License-Identifier: GPL-2.0-only */
/* Filters for sockets whose ends are not all set: a socket that can never pass takes no map entry. */
#ifndef NETBPF_EARLY_BPF_H
#define NETBPF_EARLY_BPF_H

#include "address.bpf.h"

static inline bool is_chosen(const u8 *addr)
{
	const u32 *words = (const u32 *)addr;

	return words[3] || (words[0] | words[1]);
}

/* May a socket with these ends pass the filters later? Ports and addresses of 0 are not set yet. */
static inline bool may_pass_endpoints(const struct endpoints *ends)
{
	if (!pass_netns(ends->netns))
		return false;
	if (!is_inet(ends->family))
		return pass_endpoints(ends);
#ifdef FILTER_FAMILY
	/* An IPv6 socket without an address may get an IPv4-mapped one. */
	if (ends->family != FILTER_FAMILY && (ends->family == AF_INET || is_chosen(ends->laddr)))
		return false;
#endif
#ifdef FILTER_LPORT
	if (ends->lport && !FILTER_LPORT(ends->lport))
		return false;
#endif
#ifdef FILTER_RPORT
	if (ends->rport && !FILTER_RPORT(ends->rport))
		return false;
#endif
#ifdef FILTER_LADDR
	if (is_chosen(ends->laddr) && !in_block(ends->laddr, FILTER_LADDR))
		return false;
#endif
#ifdef FILTER_RADDR
	if (is_chosen(ends->raddr) && !in_block(ends->raddr, FILTER_RADDR))
		return false;
#endif
	return true;
}

/*
 * The same for a socket of any family without a remote end: the remote address and port in it are left
 * from an earlier connection. The connections of a listener have its local address; the local address
 * of other sockets may change with the route.
 */
static inline bool may_pass_early(struct sock *sk, u16 family, u32 netns, bool listens)
{
#ifdef FILTER_SOCKET
	struct endpoints ends = {};

	if (sk && is_inet(family)) {
		read_endpoints(sk, &ends);
		__builtin_memset(ends.raddr, 0, 16);
		if (!listens)
			__builtin_memset(ends.laddr, 0, 16);
		ends.rport = 0;
	}
	ends.family = family;
	ends.netns = netns;
	return may_pass_endpoints(&ends);
#else
	return true;
#endif
}

#endif
