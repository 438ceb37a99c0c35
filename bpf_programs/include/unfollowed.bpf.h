/* SPDX-License-Identifier: GPL-2.0-only */
/* Sockets that found no room in a map: each counts as one loss, however often it is tried again. */
#ifndef NETBPF_UNFOLLOWED_BPF_H
#define NETBPF_UNFOLLOWED_BPF_H

#include "netbpf.bpf.h"

/*
 * Those that were counted, by address; those that ended unseen are the oldest, and go first. One that
 * is forgotten too early, or finds no room, counts once more: never too few.
 */
BPF_TABLE("lru_hash", u64, u8, unfollowed, LRU_ENTRIES(16384));

#define EEXIST 17

/* A map has no room for what is at the address `object`. */
static inline void count_unfollowed(u64 object)
{
	u8 yes = 1;

	if (unfollowed.insert(&object, &yes) != -EEXIST)
		count_loss(LOSS_MAP_FULL);
}

/* It ends, or another one begins at its address. */
static inline void forget_unfollowed(u64 object)
{
	unfollowed.delete(&object);
}

#endif
