// SPDX-License-Identifier: GPL-2.0-only
/* skbdrop: packets that the kernel frees as dropped. Front-end: netbpf/tools/skbdrop.py */
#include "netbpf.bpf.h"
#include <netbpf/records.h>
#include "packet.bpf.h"
#include "harmless.bpf.h"
#define OWNERS_OF_ALL 1
#include "owners.bpf.h"
#include "stale_owners.bpf.h"

#if defined(FILTER_PROCESS) || defined(RING_PAGES) || defined(BY_COMM) || defined(BY_PID) ||       \
	defined(BY_UID) || defined(BY_CGROUP) || defined(BY_OWNER)
#define NEEDS_OWNER 1
#endif

#include "drop_counts.bpf.h"

#if defined(BY_STACK) && !defined(USE_STACKS)
#define USE_STACKS 1
#endif
#ifdef USE_STACKS
BPF_STACK_TRACE(stacks, 4096);
#endif

static inline int read_stack(void *ctx)
{
	int id = -1;

#ifdef USE_STACKS
	id = stacks.get_stackid(ctx, 0);
	if (id < 0)
		count_loss(LOSS_MAP_FULL); /* no room, or another stack is in its place */
#endif
	return id;
}

#ifdef RING_PAGES
static inline void submit_drop(struct drop_key *key, struct packet *packet, struct owner *owner)
{
	struct drop *ev = events.ringbuf_reserve(sizeof(struct drop)); /* too large for the stack */

	if (!ev) {
		count_loss(LOSS_RING_FULL);
		return;
	}
	ev->time = bpf_ktime_get_ns();
	ev->location = key->location;
	ev->reason = key->reason;
	ev->harmless = key->harmless;
	ev->proto = packet->proto;
	ev->len = packet->len;
	ev->netns = packet->netns;
	SET_FLOW(ev, packet);
	__builtin_memcpy(ev->dev, packet->dev, 16);
	ev->socket = key->socket;
	SET_OWNER(ev, owner);
	events.ringbuf_submit(ev, 0);
}
#endif

/* Does the packet pass -4, -6 and --port? One whose headers cannot be read does not. */
static inline bool pass_headers(struct packet *packet)
{
	bool unread = false;

#ifdef FILTER_FAMILY
	if (packet->family ? packet->family != FILTER_FAMILY : !packet->hidden)
		return false;
	unread = !packet->family;
#endif
#ifdef FILTER_PORT
	if (!packet->hidden && !FILTER_PORT(packet->sport) && !FILTER_PORT(packet->dport))
		return false;
	unread = packet->hidden;
#endif
	if (unread)
		add_total(TOTAL_UNREAD, 1);
	return !unread;
}

/* `rx_sk` is the socket that received the packet, NULL if there is none or the kernel is too old. */
static inline int on_drop(void *ctx, struct sk_buff *skb, u64 location, u32 reason,
			  struct sock *rx_sk)
{
	struct sock *sk = rx_sk ? rx_sk : READ(skb, sk);
	struct packet packet __attribute__((aligned(8))) = {};
	struct drop_key key = {};
	struct owner owner = {};

#ifdef XDP_REASON
	if (reason == NOT_SPECIFIED && XDP_PLACE(location))
		reason = XDP_REASON;
#endif
#ifdef FILTER_REASON
	if (!FILTER_REASON(reason))
		return 0;
#endif
	read_packet(&packet, skb, sk);
#ifdef FILTER_PROTO
	if (!FILTER_PROTO(packet.proto))
		return 0;
#endif
#ifdef NEEDS_OWNER
	merge_ways(&packet, sizeof(packet));
#endif
	if (!pass_netns(packet.netns) || !pass_device(&packet) || !pass_headers(&packet))
		return 0;
	key.harmless = is_harmless(skb, &packet, reason, location, sk, rx_sk);
#ifdef NEEDS_OWNER
	merge_ways(&key, sizeof(key));
	if (sk)
		find_owner(owner_sk(sk), &owner);
	if (!pass_owner(&owner))
		return 0;
#endif
#ifndef SHOW_ALL
	if (key.harmless) {
		add_total(TOTAL_HIDDEN, 1);
		return 0;
	}
#endif
	key.socket = sk != NULL;
	key.location = location;
	key.reason = reason;
	key.proto = packet.proto;
	key.netns = packet.netns;
	__builtin_memcpy(key.dev, packet.dev, sizeof(key.dev));
	key.stack = read_stack(ctx);
	count_drop(&key, &packet, &owner);
#ifdef RING_PAGES
	submit_drop(&key, &packet, &owner);
#endif
	return 0;
}
