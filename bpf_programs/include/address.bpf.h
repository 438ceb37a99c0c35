/* SPDX-License-Identifier: GPL-2.0-only */
/* Addresses of any family: an IP address, the path of a unix socket, or none that is known. */
#ifndef NETBPF_ADDRESS_BPF_H
#define NETBPF_ADDRESS_BPF_H

#include "mptcp.bpf.h"

KERNEL_FIELDS(sock, sk_type)
/* Absent from kernels built without unix sockets. */
KERNEL_OPTIONAL(unix_sock, addr)
KERNEL_OPTIONAL(unix_address, len, name)

#define IPPROTO_UDP 17
#define IPPROTO_UDPLITE 136
#define SOCK_DGRAM 2 /* of enum sock_type, that of most machines; MIPS differs */

/* Numbers of the column class SockProto for unix sockets: see sock_proto(). */
#define PROTO_UNIX_STREAM 1001
#define PROTO_UNIX_DGRAM 1002
#define PROTO_UNIX_SEQPACKET 1005

#define UNIX_PATH 108

/* C side of the column class AnyAddr. */
enum any_kind { ANY_NONE, ANY_IP, ANY_UNIX };
struct any_addr {
	u8 kind;
	u8 bytes[UNIX_PATH]; /* 16 of an IP address (IPv4 mapped); or a path, abstract names with @ */
};

/* sockaddr_in, sockaddr_in6 and sockaddr_un, as far as they matter here; ports in network order. */
struct sockaddr_any {
	u16 family;
	union {
		struct {
			u16 port;
			u32 ipv4;
			u8 ipv6[16];
		} __attribute__((packed));
		u8 path[UNIX_PATH];
		u8 size_of_sockaddr_storage[126];
	};
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

/* Read an address that a program passes to the kernel; its family is 0 if that is impossible. */
static inline void read_sockaddr(struct sockaddr_any *to, const void *from, u32 len)
{
	u64 size = len < sizeof(*to) ? len : sizeof(*to) - 1;

	asm volatile("" : "+r"(size)); /* or clang drops the mask, and the verifier sees no bound */
	bpf_probe_read_user(to, size & (sizeof(*to) - 1), from);
}

static inline void any_ip(struct any_addr *to, const u8 *addr)
{
	to->kind = ANY_IP;
	__builtin_memcpy(to->bytes, addr, 16);
}

/* What a struct sockaddr says. */
static inline void any_sockaddr(struct any_addr *to, u16 *port, const struct sockaddr_any *from,
				u32 len)
{
	if (is_inet(from->family) && len >= 8) {
		to->kind = ANY_IP;
		*port = swap16(from->port);
		if (from->family == AF_INET)
			map_ipv4(to->bytes, from->ipv4);
		else
			__builtin_memcpy(to->bytes, from->ipv6, 16);
	} else if (from->family == AF_UNIX && len > 2) {
		to->kind = ANY_UNIX;
		__builtin_memcpy(to->bytes, from->path, UNIX_PATH);
		if (!to->bytes[0])
			to->bytes[0] = '@';
	}
}

/* The path that a unix socket is bound to, if it is. */
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
