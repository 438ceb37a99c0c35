/* SPDX-License-Identifier: GPL-2.0-only */
/* The queue of a device that a packet uses. */
#ifndef NETBPF_DEVICE_QUEUE_BPF_H
#define NETBPF_DEVICE_QUEUE_BPF_H

#include "netbpf.bpf.h"

KERNEL_FIELDS(sk_buff, queue_mapping)
KERNEL_FIELDS(net_device, dev.parent, real_num_rx_queues)

#define NO_QUEUE 0xffff /* null in the column */

/*
 * The queue of the device. A received packet has the number plus 1, see skb_record_rx_queue(). With
 * virtual devices (veth) it still has the number of the queue that it was sent from.
 */
static inline u16 queue_of(struct sk_buff *skb, struct net_device *dev, bool sent)
{
	u16 queue = READ(skb, queue_mapping);
	u32 queues;

	if (sent)
		return queue;
	queues = READ(dev, real_num_rx_queues);
	if (queues == 1)
		return 0;
	if (!READ(dev, dev.parent))
		return NO_QUEUE;
	return queue && queue <= queues ? queue - 1 : NO_QUEUE;
}

#endif
