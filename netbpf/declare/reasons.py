"""Descriptions of drop reasons, by the names that the running kernel has for them.

The counter in brackets is the one that should grow with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from netbpf.declare.table import Rows

MEANINGS = {
    "NOT_SPECIFIED": "the code that frees it gives no reason: see the location",
    "NO_SOCKET": "no socket is bound to that port [Udp.NoPorts, Tcp.OutRsts]",
    "SOCKET_CLOSE": "the socket was being closed",
    "SOCKET_FILTER": "a BPF filter on the socket rejected it",
    "SOCKET_RCVBUFF": "the socket's receive buffer is full: the program reads too slowly, or "
    "SO_RCVBUF is small [Udp.RcvbufErrors, TcpExt.TCPRcvQDrop]",
    "SOCKET_BACKLOG": "the socket's backlog was full while the program used the socket "
    "[TcpExt.TCPBacklogDrop]",
    "PROTO_MEM": "the protocol has used up its memory (tcp_mem, udp_mem) [Udp.MemErrors]",
    "PKT_TOO_SMALL": "shorter than its header",
    "PKT_TOO_BIG": "larger than the path allows",
    "TCP_CSUM": "wrong TCP checksum: damaged in transit [Tcp.InCsumErrors]",
    "UDP_CSUM": "wrong UDP checksum: damaged in transit [Udp.InCsumErrors]",
    "IP_CSUM": "wrong IP header checksum [IpExt.InCsumErrors]",
    "ICMP_CSUM": "wrong ICMP checksum [Icmp.InCsumErrors]",
    "SKB_CSUM": "its checksum could not be computed",
    "NETFILTER_DROP": "a firewall rule (nftables, iptables) dropped it",
    "OTHERHOST": "for another machine's link address: the device is promiscuous",
    "IP_INHDR": "malformed IP header [Ip.InHdrErrors]",
    "IP_RPFILTER": "received on a device that has no route to its source (rp_filter) "
    "[TcpExt.IPReversePathFilter]",
    "UNICAST_IN_L2_MULTICAST": "a unicast IP packet in a multicast frame",
    "XFRM_POLICY": "an IPsec policy rejected it",
    "IP_NOPROTO": "an IP protocol without a handler [Ip.InUnknownProtos]",
    "IP_INADDRERRORS": "its destination is not an address of this machine [Ip.InAddrErrors]",
    "IP_INNOROUTES": "no route to forward it [IpExt.InNoRoutes]",
    "IP_OUTNOROUTES": "no route to send it [Ip.OutNoRoutes]",
    "IP_LOCAL_SOURCE": "received with a source address of this machine",
    "IP_INVALID_SOURCE": "its source address is invalid (multicast, zero)",
    "IP_INVALID_DEST": "its destination address is invalid",
    "IP_LOCALNET": "an address of 127.0.0.0/8 outside of loopback",
    "TCP_FLAGS": "invalid flags in that state",
    "TCP_OLD_DATA": "data that was already received: harmless, the peer retransmitted it",
    "TCP_OLD_ACK": "an acknowledgement older than the last one: harmless",
    "TCP_OFOMERGE": "data that is already in the out-of-order queue: harmless",
    "TCP_ZEROWINDOW": "data although the receive window is closed [TcpExt.TCPZeroWindowDrop]",
    "TCP_OVERWINDOW": "data beyond the receive window",
    "TCP_OLD_SEQUENCE": "before the window: usually retransmitted although it had arrived",
    "TCP_INVALID_SEQUENCE": "sequence number outside of the window",
    "TCP_INVALID_ACK_SEQUENCE": "acknowledges data that was never sent",
    "TCP_RFC7323_PAWS": "its timestamp is too old [TcpExt.PAWSEstab]",
    "TCP_LISTEN_OVERFLOW": "the listener's accept queue is full [TcpExt.ListenOverflows]",
    "TCP_RESET": "a reset that was ignored: outside of the window, or for a listener",
    "TCP_INVALID_SYN": "a SYN in the middle of a session",
    "TCP_CLOSE": "the session was already closed",
    "TCP_ABORT_ON_DATA": "data after close: the program closed without reading everything "
    "[TcpExt.TCPAbortOnData]",
    "TCP_OFO_QUEUE_PRUNE": "removed from the out-of-order queue because memory was low "
    "[TcpExt.OfoPruned]",
    "BPF_CGROUP_EGRESS": "a BPF program of the cgroup rejected it",
    "IPV6DISABLED": "IPv6 is disabled on that device",
    "NEIGH_CREATEFAIL": "the neighbour table is full (gc_thresh3)",
    "NEIGH_FAILED": "the next hop did not answer (ARP, ND)",
    "NEIGH_QUEUEFULL": "too many packets wait for the next hop's address (unres_qlen)",
    "NEIGH_DEAD": "the next hop's entry was removed",
    "TC_EGRESS": "a tc filter or BPF program dropped it on the way out",
    "TC_INGRESS": "a tc filter or BPF program dropped it on the way in",
    "QDISC_DROP": "the queueing discipline was full, or dropped it by its rules (tc -s qdisc)",
    "QDISC_OVERLIMIT": "the queueing discipline is over its limit (tc -s qdisc)",
    "QDISC_CONGESTED": "the queueing discipline dropped it because of congestion (tc -s qdisc)",
    "CPU_BACKLOG": "the CPU's queue is full (netdev_max_backlog) [Softnet.dropped]",
    "XDP": "an XDP program of the device dropped it (ip -d link)",
    "UNHANDLED_PROTO": "an ethertype without a handler",
    "SECURITY_HOOK": "a security module (SELinux, AppArmor) rejected it",
    "FULL_RING": "the ring of a tun, tap or veth device is full",
    "NOMEM": "no memory",
    "DEV_READY": "the device is not up",
    "DUP_FRAG": "a duplicate fragment",
    "FRAG_REASM_TIMEOUT": "its other fragments did not arrive in time [Ip.ReasmTimeout]",
    "QUEUE_PURGE": "was in the queue of a socket that was closed: not lost in transit",
}  # fmt: skip


def explain(rows: Rows, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the meaning of each drop reason in `rows`, with --explain."""
    reasons = (row["reason"] for row in rows) if settings["explain"] else ()
    for reason in reasons:
        if reason in MEANINGS:
            yield reason, f"{reason}: {MEANINGS[reason]}"
