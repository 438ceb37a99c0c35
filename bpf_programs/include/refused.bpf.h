/* SPDX-License-Identifier: GPL-2.0-only */
/* New data that is refused on its way to the device: TCP still has it and tries again. */
#ifndef NETBPF_REFUSED_BPF_H
#define NETBPF_REFUSED_BPF_H

#include "held.bpf.h"
#include "owners.bpf.h"

KERNEL_FIELDS(sk_buff, sk, len, head, data, transport_header)

/* States in which there may be data to send; a full socket has one of them, no substitute does. */
#define SENDING                                                                                    \
	(1 << TCP_ESTABLISHED | 1 << TCP_FIN_WAIT1 | 1 << TCP_CLOSE_WAIT | 1 << TCP_LAST_ACK |     \
	 1 << TCP_CLOSING)

/*
 * Sockets whose new data was just refused on its way to the device, and at which sequence number: a
 * send that ends with its data held finds the reason here.
 */
BPF_HASH(refusals, u64, u32, MAP_ENTRIES);

/* Was the data that begins at `seq` refused? Once asked, that is over. */
static inline bool is_refused(u64 sk, u32 seq)
{
	u32 *refused = refusals.lookup(&sk);
	bool same = refused && *refused == seq;

	if (refused)
		refusals.delete(&sk);
	return same;
}

/* Data of a TCP packet on its way out. */
struct outgoing {
	u32 seq;
	u32 end;
	u16 sport;
};

/* The headers of the packet's own socket: in a tunnel there are others in front of them. */
static inline bool read_outgoing(struct outgoing *out, struct sk_buff *skb)
{
	const void *tcp = READ(skb, head) + READ(skb, transport_header);
	u8 header[16]; /* up to the length of the header, include/uapi/linux/tcp.h */
	u32 payload;

	bpf_probe_read_kernel(header, sizeof(header), tcp);
	out->sport = header[0] << 8 | header[1];
	out->seq = header[4] << 24 | header[5] << 16 | header[6] << 8 | header[7];
	payload = READ(skb, len) - (u32)(tcp - READ(skb, data)) - (header[12] >> 4 << 2);
	out->end = out->seq + payload;
	return (s32)payload > 0;
}

/* Is the socket one that was asked for, as far as that is certain here? */
static inline bool is_asked_for(struct sock *sk)
{
#ifdef FILTER_PROCESS
	struct owner owner = {};

	own_current(&owner); /* a send whose data is refused is the process's own */
	if (!pass_owner(&owner))
		return false;
#endif
#ifdef FILTER_SOCKET
	struct endpoints ends = {};

	read_endpoints(sk, &ends);
	return pass_endpoints(&ends);
#else
	return true;
#endif
}

/* New data of a socket was refused: go on with the hold that its packet seemed to end. */
static inline void resume_hold(struct sock *sk, struct outgoing *out, u32 snd_nxt)
{
	u64 key = (u64)sk;
	struct hold *hold = holds.lookup(&key);
	int zero = 0;
	struct ended *ended = last_ended.lookup(&zero);

	if (hold) {
		hold->holder.reason = REFUSED;
	} else if (ended && ended->hold.holder.sk == key && after(ended->hold.end, out->seq) &&
		   !after(ended->hold.end, out->end)) {
		count_hold(&ended->hold, ended->us, -1);
		ended->hold.holder.reason = REFUSED;
		if (holds.update(&key, &ended->hold))
			count_unfollowed(key);
		ended->hold.holder.sk = 0;
	} else if (is_asked_for(sk) && refusals.update(&key, &snd_nxt)) {
		count_unfollowed(key);
	}
}

/*
 * A packet is freed as a drop. If TCP was sending new data with it, that data stays where it was:
 * snd_nxt moves only behind what the device's queue has taken (tcp_write_xmit). The queue is full,
 * a firewall's rule forbids it, or it has no route.
 */
static inline int on_free(struct sk_buff *skb)
{
	struct sock *sk = READ(skb, sk);
	struct outgoing out;
	u32 snd_nxt;
	u16 family;
	u8 state;

	if (!sk)
		return 0;
	family = READ(sk, __sk_common.skc_family);
	state = READ(sk, __sk_common.skc_state);
	if ((family != AF_INET && family != AF_INET6) || !(SENDING >> state & 1) ||
	    READ(sk, sk_protocol) != IPPROTO_TCP || !read_outgoing(&out, skb))
		return 0;
	/* Where the queue cuts up what it got, only the last piece has a socket: it may begin later. */
	snd_nxt = READ((struct tcp_sock *)sk, snd_nxt);
	if (out.sport == READ(sk, __sk_common.skc_num) && !after(snd_nxt, out.seq))
		resume_hold(sk, &out, snd_nxt);
	return 0;
}

#endif
