/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The header of a TCP segment at a device. A program includes <netbpf/records.h> before, with
 * TOTAL_UNREAD: packets whose headers are not in the linear part of the buffer.
 */
#ifndef NETBPF_TCP_HEADER_BPF_H
#define NETBPF_TCP_HEADER_BPF_H

#include "device_packet.bpf.h"

#define FLAG_FIN 0x01 /* byte 13 of the TCP header */
#define FLAG_SYN 0x02
#define FLAG_RST 0x04
#define FLAG_ACK 0x10

/* The TCP header, as far as it is read. */
struct tcp_header {
	u16 ports[2]; /* these in network order */
	u32 seq;
	u32 ack;
	u8 length; /* in units of four bytes, in the upper half */
	u8 flags;
	u16 window;
};

/*
 * The bytes from the IP header on. Its own length does not include what pads a short frame; it is 0 if
 * it has no room for the number (BIG TCP), and such packets are not padded.
 */
static inline u32 length_of(struct sk_buff *skb, const struct linear *linear, u16 ethertype)
{
	u32 behind = linear->end - linear->at + READ(skb, data_len), length;
	u8 first[6] = {};

	if (!read_linear(linear, first, sizeof(first)))
		return behind;
	if (ethertype == ETH_P_IP)
		length = first[2] << 8 | first[3];
	else
		length = (first[4] << 8 | first[5]) ? (first[4] << 8 | first[5]) + 40 : 0;
	return length && length < behind ? length : behind;
}

/* Read the headers of a TCP segment; false if it is none. */
static inline bool read_segment(struct sk_buff *skb, struct packet *packet, struct tcp_header *tcp,
				bool sent)
{
	struct linear linear = {};
	u16 ethertype = find_header(skb, &linear, sent);

	if (ethertype != ETH_P_IP && ethertype != ETH_P_IPV6)
		return false;
	packet->len = length_of(skb, &linear, ethertype);
	if (ethertype == ETH_P_IP)
		read_ipv4(packet, &linear);
	else
		read_ipv6(packet, &linear);
	merge_ways(packet, sizeof(*packet));
	if (!packet->hidden && packet->proto == IPPROTO_TCP) {
		if (!packet->sport && !packet->dport) /* a later fragment */
			return false;
		if (read_linear(&linear, tcp, sizeof(*tcp))) {
			tcp->seq = __builtin_bswap32(tcp->seq);
			tcp->ack = __builtin_bswap32(tcp->ack);
			tcp->window = swap16(tcp->window);
			return true;
		}
		packet->hidden = true;
	}
	if (packet->hidden)
		add_total(TOTAL_UNREAD, 1);
	return false;
}

#endif
