/* SPDX-License-Identifier: GPL-2.0-only */
/* Sockets that found no room in a map: each counts as one loss, however often it is retried. */
#ifndef NETBPF_UNFOLLOWED_BPF_H
#define NETBPF_UNFOLLOWED_BPF_H

#include "netbpf.bpf.h"

/*
 * Sockets that were counted, by address. LRU: sockets that ended unseen are the oldest and are evicted
 * first. A socket that is evicted too early counts once more: the count is never too low.
 */
BPF_TABLE("lru_hash", u64, u8, unfollowed, LRU_ENTRIES(16384));

#define EEXIST 17

/* A map has no room for the object at this address. */
static inline void count_unfollowed(u64 object)
{
	u8 yes = 1;

	if (unfollowed.insert(&object, &yes) != -EEXIST)
		count_loss(LOSS_MAP_FULL);
}

/* The object ends, or a new one begins at its address. */
static inline void forget_unfollowed(u64 object)
{
	unfollowed.delete(&object);
}

#endif
