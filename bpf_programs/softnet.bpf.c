// SPDX-License-Identifier: GPL-2.0-only
/* softnet: runs of the network's softirqs, and polls of NAPI. Front-end: netbpf/tools/softnet.py */
#include "netbpf.bpf.h"
#include <netbpf/records.h>
#include "softirqs.bpf.h"

KERNEL_FIELDS(napi_struct, dev, napi_id)
KERNEL_FIELDS(net_device, name, nd_net.net)
KERNEL_FIELDS(net, ns.inum)
KERNEL_FIELDS(task_struct, flags)

#define PF_KTHREAD 0x00200000 /* include/linux/sched.h */

#ifdef WITH_DEVICES
BPF_F_TABLE("percpu_hash", struct napi_key, struct napi_sums, napis, MAP_ENTRIES, 0);
#endif

/* A softirq becomes pending, or is so already: the first time counts. */
static inline int on_raise(u32 vec)
{
	struct softirq_work *work = work_of(vec);

	if (work && !work->raised)
		work->raised = bpf_ktime_get_ns();
	return 0;
}

static inline int on_entry(u32 vec)
{
	struct softirq_work *work = work_of(vec);

	if (!work)
		return 0;
	work->entered = bpf_ktime_get_ns();
	work->delay = work->raised ? work->entered - work->raised : UNKNOWN;
	work->raised = 0; /* what is raised from here on is another run */
	return 0;
}

static inline bool is_thread(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	return READ(task, flags) & PF_KTHREAD;
}

static inline bool is_ksoftirqd(void)
{
	char comm[16] = {};

	bpf_get_current_comm(comm, sizeof(comm));
	return comm[0] == 'k' && comm[1] == 's' && comm[2] == 'o' && comm[3] == 'f' && is_thread();
}

static inline int on_exit(u32 vec)
{
	struct softirq_work *work = work_of(vec);
	u8 softirq = vec == NET_RX_SOFTIRQ ? SOFTIRQ_NET_RX : SOFTIRQ_NET_TX;
	struct softirq_sums *sums;
	u64 run;

	if (!work || !work->entered) /* entered before the start */
		return 0;
	run = bpf_ktime_get_ns() - work->entered;
	work->entered = 0;
	sums = sums_of(softirq);
	if (!sums)
		return 0;
	sums->runs++;
	sums->run_ns += run;
	sums->ksoftirqd += is_ksoftirqd();
	count_time(&sums->run_0, WHAT_RUN, softirq, run);
	if (work->delay != UNKNOWN)
		count_time(&sums->delay_0, WHAT_DELAY, softirq, work->delay);
	return 0;
}

static inline u8 polled_in(void)
{
	struct softirq_work *work = work_of(NET_RX_SOFTIRQ);

	if (work && work->entered)
		return SOFTIRQ_NET_RX;
	return is_thread() ? SOFTIRQ_THREAD : SOFTIRQ_BUSY_POLL;
}

/* A poll has handled `work` packets, of `budget` that it was allowed to; netpoll has no budget. */
static inline int on_poll(struct napi_struct *napi, int work, int budget)
{
	struct softirq_sums *sums;
	bool full = budget > 0 && work >= budget;

	if (!pass_cpu())
		return 0;
	sums = sums_of(polled_in());
	if (sums) {
		sums->polls++;
		sums->packets += work;
		sums->budget += budget;
		sums->full += full;
	}
#ifdef WITH_DEVICES
	struct net_device *dev = READ(napi, dev); /* NULL: the queue of the CPU */
	struct napi_sums none = {}, *of_napi;
	struct napi_key key = {};

	key.napi_id = READ(napi, napi_id);
	if (dev) {
		struct net *net = READ(dev, nd_net.net);

		READ_INTO(key.dev, dev, name);
		key.netns = READ(net, ns.inum);
	}
	of_napi = napis.lookup_or_try_init(&key, &none);
	if (!of_napi) {
		count_loss(LOSS_MAP_FULL);
		return 0;
	}
	of_napi->polls++;
	of_napi->packets += work;
	of_napi->full += full;
#endif
	return 0;
}
