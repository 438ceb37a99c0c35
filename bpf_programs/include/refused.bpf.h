/* SPDX-License-Identifier: GPL-2.0-only */
/* New data that is refused on its way to the device: TCP keeps it and tries again. */
#ifndef NETBPF_REFUSED_BPF_H
#define NETBPF_REFUSED_BPF_H

#include "owner_map.bpf.h"
#include "stalls.bpf.h"

KERNEL_FIELDS(sk_buff, sk, len, head, data, transport_header)

/* States with data to send. Only full sockets have them, not request or time-wait sockets. */
#define SENDING                                                                                    \
	(1 << TCP_ESTABLISHED | 1 << TCP_FIN_WAIT1 | 1 << TCP_CLOSE_WAIT | 1 << TCP_LAST_ACK |     \
	 1 << TCP_CLOSING)

/*
 * The sequence number of data that was just refused, by address of its socket: the reason for a stall
 * that begins when the send returns.
 */
BPF_HASH(refusals, u64, u32, MAP_ENTRIES);

/* Was the data that begins at `seq` refused? Removes the entry. */
static inline bool take_refusal(u64 sk, u32 seq)
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

/* Read the headers that the packet's own socket wrote: a tunnel adds its own in front of them. */
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

/* Does a socket pass the filters whose data is refused during its process's own send? */
static inline bool passes_filters(struct sock *sk)
{
#ifdef FILTER_PROCESS
	struct owner owner = {};

	own_current(&owner);
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

/* New data of a socket was refused: resume the stall that its packet seemed to end. */
static inline void resume_stall(struct sock *sk, struct outgoing *out, u32 snd_nxt)
{
	u64 key = (u64)sk;
	struct stall *stall = stalls.lookup(&key);
	int zero = 0;
	struct ended *ended = last_ended.lookup(&zero);

	if (stall) {
		stall->socket.reason = REASON_REFUSED;
	} else if (ended && ended->stall.socket.sk == key && after(ended->stall.end, out->seq) &&
		   !after(ended->stall.end, out->end)) {
		count_stall(&ended->stall, ended->us, -1);
		ended->stall.socket.reason = REASON_REFUSED;
		if (stalls.update(&key, &ended->stall))
			count_unfollowed(key);
		ended->stall.socket.sk = 0;
	} else if (passes_filters(sk) && refusals.update(&key, &snd_nxt)) {
		count_unfollowed(key);
	}
}

/*
 * A packet is dropped: the queue is full, a firewall's rule forbids it, or it has no route. If it
 * carries new data, TCP still holds that: tcp_write_xmit() advances snd_nxt only after the device's
 * queue has taken a packet.
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
	/* Of a packet that the queue segments, only the last segment has a socket: it begins later. */
	snd_nxt = READ((struct tcp_sock *)sk, snd_nxt);
	if (out.sport == READ(sk, __sk_common.skc_num) && !after(snd_nxt, out.seq))
		resume_stall(sk, &out, snd_nxt);
	return 0;
}

#endif
