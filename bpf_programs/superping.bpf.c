// SPDX-License-Identifier: GPL-2.0-only
/* superping: ICMP echo requests and what came of them. Front-end: netbpf/tools/superping.py */
#include "netbpf.bpf.h"
#include <netbpf/records.h>
#include "echo.bpf.h"

/* A request is handed to a device's queue, to its driver, or is freed as dropped. */
static inline int on_echo(struct sk_buff *skb, int step)
{
	struct packet packet __attribute__((aligned(8))) = {};
	struct sock *sk = READ(skb, sk);
	struct echo_key key = {};
	struct net_device *dev;
	struct request *known;

	if (!is_wanted(sk, step) || !read_echo(&packet, &key, skb))
		return 0;
	if (sk && !is_of_ip(sk)) /* of a packet socket, or of a tap of a virtual machine */
		sk = NULL;
	if (!is_wanted(sk, step))
		return 0;
	dev = READ(skb, dev);
	packet.netns = key.netns = sk ? netns_of(sk) : netns_of_device(dev);
	if (!pass_request(&packet))
		return 0;
	known = echoes.lookup(&key);
	if (known && is_same(known, skb)) {
		note_step(known, step);
		if (step != QUEUED || known->device != (u64)dev)
			return 0;
	}
	if (step == WITH_DRIVER || (step == DROPPED && had_device(skb)))
		return 0;
	if (known) /* asked again with the same number */
		finish(&key, known, RESULT_LOST);
	begin(&key, &packet, skb, sk, step == QUEUED ? dev : NULL);
	return 0;
}

/* A reply or an error comes off a device, whose namespace may be another one (macvlan). */
static inline int on_answer(struct sk_buff *skb)
{
	u16 ethertype = swap16(READ(skb, protocol));
	struct request *request;
	struct arrival arrival = {};
	struct answer answer = {};
	struct linear linear = {};
	u8 *data = (u8 *)READ(skb, data);
	u64 head;

	if (!may_be_icmp(data, ethertype))
		return 0;
	linear_of(&linear, skb, data);
	ethertype = skip_tags(skb, &linear, ethertype);
	if (!read_answer(&answer, &linear, ethertype))
		return 0;
	answer.key.netns = netns_of_device(READ(skb, dev));
	request = find_request(&answer.key);
	arrival.time = bpf_ktime_get_ns();
	arrival.key = answer.key;
	head = (u64)READ(skb, head);
	arrivals.update(&head, &arrival);
	if (!request)
		return 0;
	note_answer(request, &answer, arrival.time);
	if (!request->sk)
		finish(&answer.key, request, RESULT_LOST);
	return 0;
}

/* A program reads a reply or an error, or looks at it. */
static inline int on_taken(struct sk_buff *skb)
{
	u16 ethertype = swap16(READ(skb, protocol));
	struct sock *sk = READ(skb, sk);
	struct answer answer = {};
	struct linear linear = {};
	struct request *request;
	struct arrival *arrival;
	u64 head;
	u8 *ip;

	if (!sk)
		return 0;
	ip = network_header_of(skb);
	if (!may_be_icmp(ip, ethertype))
		return 0;
	linear_of(&linear, skb, ip);
	if (!read_answer(&answer, &linear, ethertype))
		return 0;
	answer.key.netns = netns_of(sk);
	head = (u64)READ(skb, head);
	arrival = arrivals.lookup(&head);
	request = find_request(&answer.key);
	if ((!request || !is_asker(request, sk)) && arrival) { /* NAT has changed its numbers */
		answer.key = arrival->key;
		request = find_request(&answer.key);
	}
	if (!request || !is_asker(request, sk))
		return 0;
	note_answer(request, &answer, arrival ? arrival->time : 0);
	finish_read(&answer.key, request);
	return 0;
}

/* A program sends on a socket: it is the owner. */
static inline int on_send(struct sock *sk)
{
	u16 protocol = READ(sk, sk_protocol);

	if (protocol != IPPROTO_ICMP && protocol != IPPROTO_ICMPV6 && protocol != IPPROTO_RAW)
		return 0;
	if (is_of_ip(sk) && pass_netns(netns_of(sk)))
		note_owner(sk);
	return 0;
}

static inline int on_sendmsg(struct socket *socket)
{
	return on_send(READ(socket, sk));
}

/* No probe shows that a socket is closed, or that a request is given up. */
static inline int on_sweep(struct map_element_context *ctx, struct echo_key *at)
{
	struct echo_key key = *at;
	struct request *request = echoes.lookup(&key);

	if (request && (is_closed(request->sk, request->inode) ||
			bpf_ktime_get_ns() - request->begin_ns >= TIMEOUT_NS))
		finish(&key, request, RESULT_LOST);
	return 0;
}

static inline int on_open(struct map_element_context *ctx, struct echo_key *at)
{
	struct echo_key key = *at;
	struct request *request = echoes.lookup(&key);
	struct echo ev = {};

	if (request && fill_unread(&ev, &key, request, RESULT_WAITING))
		bpf_seq_write(ctx->meta->seq, &ev, sizeof(ev));
	return 0;
}
