/* SPDX-License-Identifier: GPL-2.0-only */
/* The probe `stale`: delete owners of sockets that are gone, whose end no probe shows. */
#ifndef NETBPF_STALE_OWNERS_BPF_H
#define NETBPF_STALE_OWNERS_BPF_H

#include "owners.bpf.h"

static inline int on_stale(struct map_element_context *ctx, u64 *key)
{
	u64 address = *key;
	struct owner *owner = owners.lookup(&address);

	if (owner && owner->inode && !is_owned_still((struct sock *)address, owner))
		owners.delete(&address);
	return 0;
}

#endif
