/* SPDX-License-Identifier: GPL-2.0-only */
/* Sockets for which a map had no room: each is lost once, however often it asks again. */
#ifndef NETBPF_UNFOLLOWED_BPF_H
#define NETBPF_UNFOLLOWED_BPF_H

#include "netbpf.bpf.h"

/* By address; those that ended unseen are the oldest, and go first. */
BPF_TABLE("lru_hash", u64, u8, unfollowed, MAP_ENTRIES);

static inline void count_unfollowed(u64 object)
{
	u8 yes = 1;

	if (unfollowed.lookup(&object))
		return;
	unfollowed.update(&object, &yes);
	count_loss(LOSS_MAP_FULL);
}

/* The socket is closed: what comes at its address is another one. */
static inline void forget_unfollowed(u64 object)
{
	unfollowed.delete(&object);
}

#endif
