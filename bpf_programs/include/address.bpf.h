/* SPDX-License-Identifier: GPL-2.0-only */
/* Addresses of any family: an IP address, the path of a unix socket, or an unknown address. */
#ifndef NETBPF_ADDRESS_BPF_H
#define NETBPF_ADDRESS_BPF_H

#include "mptcp.bpf.h"

KERNEL_FIELDS(sock, sk_type)
/* Absent from kernels built without unix sockets. */
KERNEL_OPTIONAL(unix_sock, addr)
KERNEL_OPTIONAL(unix_address, len, name)

#define UNIX_PATH 108

/* C side of the column class AnyAddr. */
enum any_kind { ANY_NONE, ANY_IP, ANY_UNIX };
struct any_addr {
	u8 kind;
	u8 bytes[UNIX_PATH]; /* 16 of an IP address (IPv4 mapped); or a path, abstract names with @ */
};

/* sockaddr_in and sockaddr_in6, and the beginning of sun_path; ports in network order. */
struct sockaddr_any {
	u16 family;
	u16 port;
	u32 ipv4;
	u8 ipv6[16];
} __attribute__((packed));

static inline bool is_inet(u16 family)
{
	return family == AF_INET || family == AF_INET6;
}

/* Number of the column class SockProto: the protocol, or for other families than IP 1000 + type. */
static inline u16 sock_proto(struct sock *sk)
{
	return is_inet(READ(sk, __sk_common.skc_family)) ? READ(sk, sk_protocol)
							 : 1000 + READ(sk, sk_type);
}

static inline void any_ip(struct any_addr *to, const u8 *addr)
{
	to->kind = ANY_IP;
	__builtin_memcpy(to->bytes, addr, 16);
}

/* Read as many bytes as the program passed, at most `room`, which is a power of 2 less 1. */
static inline bool read_some(void *to, u32 room, const void *from, u32 len)
{
	u64 size = len < room ? len : room;

	asm volatile("" : "+r"(size)); /* or clang drops the mask, and the verifier sees no bound */
	return !bpf_probe_read_user(to, size & room, from);
}

/* Read a struct sockaddr that a program passes to the kernel; return false if that fails. */
static inline bool read_sockaddr(struct any_addr *to, u16 *family, u16 *port, const void *from,
				 u32 len)
{
	struct {
		struct sockaddr_any name;
		u8 rest[8];
	} any = {};

	if (!read_some(&any, 31, from, len))
		return false;
	*family = len < sizeof(any.name.family) ? 0 : any.name.family;
	if (is_inet(*family) && len >= 8) {
		to->kind = ANY_IP;
		*port = swap16(any.name.port);
		if (*family == AF_INET)
			map_ipv4(to->bytes, any.name.ipv4);
		else
			__builtin_memcpy(to->bytes, any.name.ipv6, 16);
	} else if (*family == AF_UNIX && len > 2 && len <= 2 + UNIX_PATH &&
		   read_some(to->bytes, 127, from + 2, len - 2)) {
		to->kind = ANY_UNIX;
		if (!to->bytes[0])
			to->bytes[0] = '@';
	}
	return true;
}

/* The path that a unix socket is bound to, if any. */
static inline void any_unix(struct any_addr *to, struct sock *sk)
{
#if defined(HAVE_unix_sock_addr) && defined(HAVE_unix_address_name)
	struct unix_address *addr = READ((struct unix_sock *)sk, addr);
	u64 len = addr ? READ(addr, len) - 2 : 0; /* less the family */

	if (!len || len > UNIX_PATH)
		return;
	asm volatile("" : "+r"(len)); /* as above */
	bpf_probe_read_kernel(to->bytes, len & 127, FIELD_AT(addr, name) + 2);
	to->kind = ANY_UNIX;
	if (!to->bytes[0])
		to->bytes[0] = '@';
#endif
}

#endif
