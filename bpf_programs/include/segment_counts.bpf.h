/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Count TCP segments by the keys of --by. A program includes <netbpf/records.h> before, with struct
 * segment_key and struct segment_sums.
 */
#ifndef NETBPF_SEGMENT_COUNTS_BPF_H
#define NETBPF_SEGMENT_COUNTS_BPF_H

#include "blocks.bpf.h"
#include "owner_map.bpf.h"
#include "tcp_header.bpf.h"

BPF_F_TABLE("percpu_hash", struct segment_key, struct segment_sums, segments, MAP_ENTRIES, 0);

static inline void show(const struct packet *packet, const struct endpoints *ends,
			const struct tcp_header *tcp, const struct owner *owner, u8 dir, u16 segs,
			u16 retrans)
{
	struct segment_sums none = {}, *sums;
	struct segment_key key = {};

	SET_BY_pid(&key, owner->process.pid);
	SET_BY_comm(&key, owner->process.comm);
	SET_BY_uid(&key, owner->how ? owner->process.uid : ~0U);
	SET_BY_cgroup(&key, owner->process.cgroup);
	SET_BY_owner(&key, owner->how);
	SET_BY_netns(&key, ends->netns);
	SET_BY_family(&key, ends->family);
	SET_BY_laddr(&key, ends->laddr, ends->family);
	SET_BY_lport(&key, ends->lport);
	SET_BY_raddr(&key, ends->raddr, ends->family);
	SET_BY_rport(&key, ends->rport);
	SET_BY_dir(&key, dir);
	SET_BY_flags(&key, tcp->flags);
	SET_BY_dev(&key, packet->dev);
	sums = segments.lookup_or_try_init(&key, &none);
	if (!sums) {
		count_loss(LOSS_MAP_FULL);
		return;
	}
	sums->segs += segs;
	sums->bytes += packet->payload;
	sums->retrans += retrans == (u16)~0 ? 0 : retrans;
}

#endif
