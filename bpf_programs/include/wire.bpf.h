/* SPDX-License-Identifier: GPL-2.0-only */
/* The packets that a large packet becomes on the wire, segmented by hardware or by the kernel. */
#ifndef NETBPF_WIRE_BPF_H
#define NETBPF_WIRE_BPF_H

#include "netbpf.bpf.h"

KERNEL_FIELDS(sk_buff, head, data, tail, end, network_header, transport_header)
KERNEL_FIELDS(sk_buff, inner_transport_header, protocol)
KERNEL_FIELDS(skb_shared_info, gso_size, gso_segs, gso_type)

#define SKB_GSO_TCP (1 << 0 | 1 << 4) /* TCPV4, TCPV6: include/linux/skbuff.h */
#define SKB_GSO_TUNNEL (0x3f << 6) /* GRE, IPXIP4, IPXIP6 and UDP_TUNNEL, with _CSUM */
#define SKB_GSO_SCTP (1 << 14)
#define SKB_GSO_UDP (1 << 16) /* IP fragments */
#define ETH_P_IPV6 0x86DD

/* Length of the headers before the transport header, 0 if it is not known. */
static inline u32 before_transport(struct sk_buff *skb, u8 *head, bool tunnel, u8 **transport)
{
	u16 network = READ(skb, network_header);
	u16 offset = tunnel ? READ(skb, inner_transport_header) : READ(skb, transport_header);
	u8 *data, first = 0;

	*transport = head + offset;
	if (offset != (u16)~0 && offset > network && offset - network <= 256)
		return offset - network;
	if (tunnel)
		return 0;
	/* Drivers need not set it: they have only removed the link header. */
	data = READ(skb, data);
	bpf_probe_read_kernel(&first, 1, data);
	first = first >> 4 == 4 ? (first & 0xf) * 4 : 40;
	*transport = data + first;
	return first;
}

/* Estimate how many packets the wire carries for this one, and their bytes with all headers. */
static inline void estimate_wire(struct sk_buff *skb, u32 len, u32 *packets, u32 *bytes)
{
	u8 *head = (u8 *)READ(skb, head), *transport;
	struct skb_shared_info *shared = (void *)(head + READ(skb, end));
	u16 size = READ(shared, gso_size);
	u32 type, headers, segments, more = 0;
	u8 offset = 0;

	if (!size)
		return;
	type = READ(shared, gso_type);
	headers = before_transport(skb, head, type & SKB_GSO_TUNNEL, &transport);
	if (type & SKB_GSO_TCP) {
		if (headers && transport + 13 <= head + READ(skb, tail))
			bpf_probe_read_kernel(&offset, 1, transport + 12);
		headers += offset >> 4 << 2;
	} else if (type & SKB_GSO_SCTP) {
		headers += 12;
	} else if (type & SKB_GSO_UDP) { /* the UDP header is in the first fragment only */
		more = READ(skb, protocol) == swap16(ETH_P_IPV6) ? 8 : 0;
	} else {
		headers += 8; /* UDP */
	}
	segments = READ(shared, gso_segs);
	if (!segments && len > headers)
		segments = (len - headers + size - 1) / size;
	if (segments > 1) {
		*packets = segments;
		*bytes = len + (segments - 1) * headers + segments * more;
	}
}

#endif
