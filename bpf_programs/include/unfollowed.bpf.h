/* SPDX-License-Identifier: GPL-2.0-only */
/* Sockets that found no room in a map: each counts as one loss, however often it is tried again. */
#ifndef NETBPF_UNFOLLOWED_BPF_H
#define NETBPF_UNFOLLOWED_BPF_H

#include "netbpf.bpf.h"

/* By the address of struct sock: those that were counted. */
BPF_TABLE("lru_hash", u64, u8, unfollowed, MAP_ENTRIES);

/* A map has no room for the socket. */
static inline void count_unfollowed(struct sock *sk)
{
	u64 key = (u64)sk;
	u8 yes = 1;

	if (!unfollowed.insert(&key, &yes))
		count_loss(LOSS_MAP_FULL);
}

/* The socket ends, or another one begins at its address. */
static inline void forget_unfollowed(struct sock *sk)
{
	u64 key = (u64)sk;

	unfollowed.delete(&key);
}

#endif
