// SPDX-License-Identifier: GPL-2.0-only
/* skblife: where packets spend their time. Front-end: netbpf/tools/skblife.py */
#include "netbpf.bpf.h"
#include "blocks.bpf.h"
#include "histogram.bpf.h"
#include <netbpf/records.h>
#if defined(RING_PAGES) || defined(FILTER_SOCKET) || defined(BY_FAMILY) || defined(BY_LPORT)
#define WITH_ENDS 1
#endif
#ifdef TX
#include "departures.bpf.h"
#else
#include "reads.bpf.h"
#endif

BPF_F_TABLE("percpu_hash", struct stage_key, struct stage_sums, stages, 1024, 0);
BPF_PERCPU_ARRAY(zeros, struct stage_sums, 1);

static inline void add(struct stage_key *key, u8 stage, u64 us, u64 total, bool discarded)
{
	struct stage_sums *sums;
	int zero = 0;

#ifdef FILTER_STAGE
	if (!FILTER_STAGE(stage))
		return;
#endif
	key->stage = stage;
	sums = stages.lookup(key);
	if (!sums) {
		sums = zeros.lookup(&zero); /* too large for the stack */
		sums = sums ? stages.lookup_or_try_init(key, sums) : NULL;
	}
	if (!sums) {
		count_loss(LOSS_MAP_FULL);
		return;
	}
	record_value(&sums->histogram, us, 1);
	sums->total_us += total;
	sums->discarded += discarded;
}

#ifdef TX
static inline void leave(const struct departure *departure, bool discarded, u64 now)
{
	u64 queued = (departure->sent - departure->queued) / 1000;
	u64 total = (now - departure->queued) / 1000;
	struct stage_key key = {};

	key.way = WAY_TX;
	key.proto = departure->proto;
	key.netns = departure->netns;
	__builtin_memcpy(key.dev, departure->dev, sizeof(key.dev));
	SET_BY_family(&key, departure->family);
	SET_BY_lport(&key, departure->lport);
	SET_BY_raddr(&key, departure->raddr, departure->family);
	add(&key, STAGE_QDISC, queued, total, discarded);
	add(&key, STAGE_DRIVER, total - queued, total, discarded);
	add(&key, STAGE_TOTAL, total, total, discarded);
}
#else
/* The current process has read a packet: its stages add up exactly, in us. */
static inline void count_stages(const struct arrival *arrival, struct sock *sk, u16 proto, u64 now)
{
	u64 device = (arrival->stack - arrival->device) / 1000;
	u64 queued = (arrival->socket - arrival->device) / 1000;
	u64 total = (now - arrival->device) / 1000;
	struct net *net = READ(sk, __sk_common.skc_net.net);
	struct stage_key key = {};

	key.proto = proto;
	key.netns = READ(net, ns.inum);
	__builtin_memcpy(key.dev, arrival->dev, sizeof(key.dev));
#if defined(BY_COMM) || defined(BY_PID)
	struct process process = {};

	read_identity(&process, (struct task_struct *)bpf_get_current_task());
	SET_BY_comm(&key, process.comm);
	SET_BY_pid(&key, process.pid);
#endif
#ifdef WITH_ENDS
	SET_BY_family(&key, arrival->ends.family);
	SET_BY_lport(&key, arrival->ends.lport);
	SET_BY_raddr(&key, arrival->ends.raddr, arrival->ends.family);
#endif
	add(&key, STAGE_DEVICE, device, total, false);
	add(&key, STAGE_STACK, queued - device, total, false);
	add(&key, STAGE_SOCKET, total - queued, total, false);
	add(&key, STAGE_TOTAL, total, total, false);
}

#ifdef RING_PAGES
static inline void submit(const struct arrival *arrival, u16 proto, u64 now)
{
	struct process process = {};
	struct slow_packet ev = {};

	if (now - arrival->device < MIN_NS)
		return;
	read_identity(&process, (struct task_struct *)bpf_get_current_task());
	ev.time = bpf_ktime_get_ns();
	ev.pid = process.pid;
	__builtin_memcpy(ev.comm, process.comm, sizeof(ev.comm));
	__builtin_memcpy(ev.dev, arrival->dev, sizeof(ev.dev));
	ev.proto = proto;
	SET_ENDS(&ev, &arrival->ends);
	ev.device_us = arrival->stack - arrival->device;
	ev.stack_us = arrival->socket - arrival->stack;
	ev.socket_us = now - arrival->socket;
	ev.total_us = now - arrival->device;
	emit(&ev, sizeof(ev));
}
#else
#define submit(arrival, proto, now)
#endif

/* The current process has read a packet from a socket; `known` is NULL if its way was not seen. */
static inline void finish(const struct arrival *known, struct sock *sk, u16 proto, u64 now)
{
	struct arrival arrival = {};

	if (known)
		arrival = *known; /* another CPU may use the entry again */
	if (!arrival.socket || arrival.sk != sk) {
		add_total(TOTAL_UNKNOWN, 1);
		return;
	}
#ifdef FILTER_DEV
	const u64 *name = (const u64 *)arrival.dev;

	if (!FILTER_DEV(name[0], name[1])) /* not earlier: what has no entry is unknown */
		return;
#endif
#ifdef WITH_ENDS
	if (!pass_endpoints(&arrival.ends))
		return;
#endif
	count_stages(&arrival, sk, proto, now);
	submit(&arrival, proto, now);
}
#endif
