// SPDX-License-Identifier: GPL-2.0-only
/* skbdrop: packets that the kernel frees as dropped. Front-end: netbpf/tools/skbdrop.py */
#include "netbpf.bpf.h"
#include "packet.bpf.h"
#include "harmless.bpf.h"
#define OWNERS_OF_ALL 1
#include "owners.bpf.h"
#include "stale_owners.bpf.h"

KERNEL_OPTIONAL(sock, __sk_common.skc_listener)

#if defined(FILTER_PROCESS) || defined(RING_PAGES)
#define NEEDS_OWNER 1
#endif

/* Those of one place, for one reason; a map entry each. */
struct drop_key {
	u64 location;
	u32 reason;
	u32 proto;
	u32 netns;
	s32 stack; /* id in the map `stacks`, negative for none */
	char dev[16];
	u8 harmless;
	u8 socket;
	u8 pad[6];
};
struct drop_sums {
	u64 count;
	u64 bytes;
	/* The last one of this CPU, as an example. */
	u16 sport;
	u16 dport;
	u8 family;
	u8 saddr[16];
	u8 daddr[16];
	u8 pad[3];
};
/* There are fewer places than sockets, and each takes room on every CPU. */
#define DROP_ENTRIES (MAP_ENTRIES / 8 + 1)
BPF_F_TABLE("percpu_hash", struct drop_key, struct drop_sums, drops, DROP_ENTRIES, 0);

struct drop {
	u64 time;
	u64 location;
	u64 cgroup;
	u32 pid;
	u32 reason;
	u32 proto;
	u32 len;
	u32 netns;
	u32 uid;
	u16 sport;
	u16 dport;
	char comm[16];
	u8 owner;
	u8 family;
	u8 saddr[16];
	u8 daddr[16];
	char dev[16];
	u8 harmless;
	u8 socket;
};

/* Order of the record Totals in netbpf/tools/skbdrop.py. */
enum total { TOTAL_HIDDEN, TOTAL_UNREAD, TOTALS };
BPF_PERCPU_ARRAY(totals, u64, TOTALS);

#ifdef USE_STACKS
BPF_STACK_TRACE(stacks, 4096);

static inline int read_stack(void *ctx)
{
	int id = stacks.get_stackid(ctx, 0);

	if (id < 0)
		count_loss(LOSS_MAP_FULL); /* no room, or another stack is in its place */
	return id;
}
#else
static inline int read_stack(void *ctx)
{
	return -1;
}
#endif

static inline void count_drop(struct drop_key *key, struct packet *packet)
{
	struct drop_sums none = {}, *sums = drops.lookup_or_try_init(key, &none);

	if (!sums) {
		count_loss(LOSS_MAP_FULL);
		return;
	}
	sums->count++;
	sums->bytes += packet->len;
	sums->family = packet->family;
	sums->sport = packet->sport;
	sums->dport = packet->dport;
	__builtin_memcpy(sums->saddr, packet->saddr, 16);
	__builtin_memcpy(sums->daddr, packet->daddr, 16);
}

#ifdef RING_PAGES
static inline void send_drop(struct drop_key *key, struct packet *packet, struct owner *owner)
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
	ev->sport = packet->sport;
	ev->dport = packet->dport;
	ev->family = packet->family;
	__builtin_memcpy(ev->dev, packet->dev, 16);
	__builtin_memcpy(ev->saddr, packet->saddr, 16);
	__builtin_memcpy(ev->daddr, packet->daddr, 16);
	ev->pid = owner->process.pid;
	ev->uid = owner->how ? owner->process.uid : ~0U;
	ev->cgroup = owner->process.cgroup;
	ev->owner = owner->how;
	ev->socket = key->socket;
	__builtin_memcpy(ev->comm, owner->process.comm, TASK_COMM_LEN);
	events.ringbuf_submit(ev, 0);
}
#endif

static inline void count_total(int which)
{
	u64 *total = totals.lookup(&which);

	if (total)
		*total += 1;
}

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
		count_total(TOTAL_UNREAD);
	return !unread;
}

static inline bool pass_packet(struct packet *packet)
{
	const u64 *dev = (const u64 *)packet->dev;

	if (!pass_netns(packet->netns))
		return false;
#ifdef FILTER_DEV
	if (!FILTER_DEV(dev[0], dev[1]))
		return false;
#endif
	return pass_headers(packet);
}

/* Who owns the socket that the packet was for, or came from. */
static inline void find_holder(struct sock *sk, struct owner *owner)
{
#ifdef HAVE_sock___sk_common_skc_listener
	if (READ(sk, __sk_common.skc_state) == TCP_NEW_SYN_RECV) /* a request's, too small a sock */
		sk = READ(sk, __sk_common.skc_listener);
#endif
	find_owner(sk, owner);
}

static inline int on_drop(void *ctx, struct sk_buff *skb, u64 location, u32 reason,
			  struct sock *rx_sk)
{
	struct sock *sk = rx_sk ? rx_sk : READ(skb, sk);
	struct packet packet __attribute__((aligned(8))) = {};
	struct drop_key key = {};
	struct owner owner = {};

#ifdef FILTER_REASON
	if (!FILTER_REASON(reason))
		return 0;
#endif
	read_packet(&packet, skb, sk);
#ifdef NEEDS_OWNER
	merge_ways(&packet, sizeof(packet));
#endif
	if (!pass_packet(&packet))
		return 0;
	key.harmless = is_harmless(skb, &packet, reason, location, sk, rx_sk);
#ifdef NEEDS_OWNER
	merge_ways(&key, sizeof(key));
	if (sk)
		find_holder(sk, &owner);
	if (!pass_owner(&owner))
		return 0;
#endif
#ifndef SHOW_ALL
	if (key.harmless) {
		count_total(TOTAL_HIDDEN);
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
	count_drop(&key, &packet);
#ifdef RING_PAGES
	send_drop(&key, &packet, &owner);
#endif
	return 0;
}

#ifdef USE_drop_rawtp
int drop_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *rx_sk = NULL;
	u32 reason = 0;

#ifdef ARG_drop_reason
	reason = RAWTP_ARG(drop, reason);
#endif
#ifdef ARG_drop_rx_sk
	rx_sk = (struct sock *)RAWTP_ARG(drop, rx_sk);
#endif
	return on_drop(ctx, (struct sk_buff *)RAWTP_ARG(drop, skb), RAWTP_ARG(drop, location),
		       reason, rx_sk);
}
#endif
#ifdef USE_drop_tp
int drop_tp(struct drop_args *ctx)
{
	struct sock *rx_sk = NULL;
	u32 reason = 0;

#ifdef ARG_drop_reason
	reason = ctx->reason;
#endif
#ifdef ARG_drop_rx_sk
	rx_sk = (struct sock *)ctx->rx_sk;
#endif
	return on_drop(ctx, (struct sk_buff *)ctx->skbaddr, (u64)ctx->location, reason, rx_sk);
}
#endif

#ifdef USE_reset_rawtp
int reset_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	note_reset((struct sock *)RAWTP_ARG(reset, sk));
	return 0;
}
#endif
#ifdef USE_reset_tp
int reset_tp(struct reset_args *ctx)
{
	note_reset((struct sock *)ctx->skaddr);
	return 0;
}
#endif
