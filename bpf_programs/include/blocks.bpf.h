/* SPDX-License-Identifier: GPL-2.0-only */
/* Blocks of addresses as keys of --by: see SET_BY_<column>() in <netbpf/records.h>. */
#ifndef NETBPF_BLOCKS_BPF_H
#define NETBPF_BLOCKS_BPF_H

#include "sock.bpf.h"

/* Set `block` to the first `prefix` bits of `addr`. IPv4 addresses are mapped, after 96 bits. */
static inline void set_block(u8 *block, const u8 *addr, u8 family, u64 prefix)
{
	u64 bits = family == AF_INET ? 96 + prefix : prefix;

#pragma unroll
	for (int i = 0; i < 16; i++) {
		u64 first = 8 * i;

		if (bits >= first + 8)
			block[i] = addr[i];
		else if (bits > first)
			block[i] = addr[i] & (u8)(0xff00 >> (bits - first));
	}
}

#endif
