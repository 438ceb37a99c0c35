/* SPDX-License-Identifier: GPL-2.0-only */
/* Counts of dropped packets, by location and reason or by the keys of --by. */
#ifndef NETBPF_DROP_COUNTS_BPF_H
#define NETBPF_DROP_COUNTS_BPF_H

#include "blocks.bpf.h"
#include "owners.bpf.h"
#include "packet.bpf.h"

/* There are fewer places than sockets, and each takes room on every CPU. */
#define DROP_ENTRIES (MAP_ENTRIES / 8 + 1)
#ifdef BY_KEY
BPF_F_TABLE("percpu_hash", struct drop_by, struct drop_counts, drops_by_key, DROP_ENTRIES, 0);
#else
BPF_F_TABLE("percpu_hash", struct drop_key, struct drop_sums, drops, DROP_ENTRIES, 0);
#endif

#ifdef BY_KEY
#define NO_UID ((u32)-1) /* null in the column: uid 0 is root */

static inline void fill_key(struct drop_by *by, struct drop_key *key, struct packet *packet,
			    struct owner *owner)
{
	SET_BY_reason(by, key->reason);
	SET_BY_location(by, key->location);
	SET_BY_proto(by, packet->proto);
	SET_BY_dev(by, packet->dev);
	SET_BY_netns(by, packet->netns);
	SET_BY_family(by, packet->family);
	SET_BY_saddr(by, packet->saddr, packet->family);
	SET_BY_daddr(by, packet->daddr, packet->family);
	SET_BY_sport(by, packet->sport);
	SET_BY_dport(by, packet->dport);
	SET_BY_pid(by, owner->process.pid);
	SET_BY_comm(by, owner->process.comm);
	SET_BY_uid(by, owner->how ? owner->process.uid : NO_UID);
	SET_BY_cgroup(by, owner->process.cgroup);
	SET_BY_owner(by, owner->how);
	SET_BY_stack(by, key->stack);
}
#endif

static inline void count_drop(struct drop_key *key, struct packet *packet, struct owner *owner)
{
#ifdef BY_KEY
	struct drop_counts none = {}, *sums;
	struct drop_by by = {};

	fill_key(&by, key, packet, owner);
	sums = drops_by_key.lookup_or_try_init(&by, &none);
#else
	struct drop_sums none = {}, *sums = drops.lookup_or_try_init(key, &none);
#endif

	if (!sums) {
		count_loss(LOSS_MAP_FULL);
		return;
	}
	sums->count++;
	sums->bytes += packet->len;
#ifndef BY_KEY
	SET_FLOW(sums, packet); /* the last one of this CPU, as an example */
#endif
}

#endif
