"""What drop reasons mean, by name: sentences of ours. The names are the running kernel's own.

The counter in brackets is the one that should grow with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Callable, Optional

from netbpf.declare.constants import in_ranges, one_of

MEANINGS = {
    "NOT_SPECIFIED": "the code that frees it gives no reason: the location tells which code",
    "NO_SOCKET": "nobody listens on that port [Udp.NoPorts, Tcp.OutRsts]",
    "SOCKET_CLOSE": "the socket was being closed",
    "SOCKET_FILTER": "a BPF filter on the socket refused it",
    "SOCKET_RCVBUFF": "the socket's receive buffer is full: its program reads too slowly, or "
    "SO_RCVBUF is small [Udp.RcvbufErrors, TcpExt.TCPRcvQDrop]",
    "SOCKET_BACKLOG": "the socket's backlog was full while its program held the socket "
    "[TcpExt.TCPBacklogDrop]",
    "PROTO_MEM": "the protocol has used up its memory (tcp_mem, udp_mem) [Udp.MemErrors]",
    "PKT_TOO_SMALL": "shorter than its header",
    "PKT_TOO_BIG": "larger than the path allows",
    "TCP_CSUM": "wrong TCP checksum: damaged on the way [Tcp.InCsumErrors]",
    "UDP_CSUM": "wrong UDP checksum: damaged on the way [Udp.InCsumErrors]",
    "IP_CSUM": "wrong IP header checksum [IpExt.InCsumErrors]",
    "ICMP_CSUM": "wrong ICMP checksum [Icmp.InCsumErrors]",
    "SKB_CSUM": "its checksum could not be computed",
    "NETFILTER_DROP": "a firewall rule (nftables, iptables) dropped it",
    "OTHERHOST": "for another machine's link address: seen as the device is promiscuous",
    "IP_INHDR": "malformed IP header [Ip.InHdrErrors]",
    "IP_RPFILTER": "came in where its source would not be reached (rp_filter) "
    "[TcpExt.IPReversePathFilter]",
    "UNICAST_IN_L2_MULTICAST": "a unicast IP packet in a multicast frame",
    "XFRM_POLICY": "an IPsec policy refused it",
    "IP_NOPROTO": "an IP protocol that nobody handles [Ip.InUnknownProtos]",
    "IP_INADDRERRORS": "its destination is no address of this machine [Ip.InAddrErrors]",
    "IP_INNOROUTES": "no route to forward it [IpExt.InNoRoutes]",
    "IP_OUTNOROUTES": "no route to send it [Ip.OutNoRoutes]",
    "IP_LOCAL_SOURCE": "came from outside with an address of this machine as its source",
    "IP_INVALID_SOURCE": "its source can be no sender (multicast, zero)",
    "IP_INVALID_DEST": "its destination can be no receiver",
    "IP_LOCALNET": "an address of 127.0.0.0/8 on the wire",
    "TCP_FLAGS": "flags that make no sense in that state",
    "TCP_OLD_DATA": "data that had been received already: harmless, the peer sent it again",
    "TCP_OLD_ACK": "an acknowledgement older than the last one: harmless",
    "TCP_OFOMERGE": "data that is in the out-of-order queue already: harmless",
    "TCP_ZEROWINDOW": "data although the receive window is closed [TcpExt.TCPZeroWindowDrop]",
    "TCP_OVERWINDOW": "data beyond the receive window",
    "TCP_OLD_SEQUENCE": "outside of the window: mostly sent again although it had arrived",
    "TCP_INVALID_SEQUENCE": "sequence number outside of the window",
    "TCP_INVALID_ACK_SEQUENCE": "acknowledges what was never sent",
    "TCP_RFC7323_PAWS": "its timestamp is too old [TcpExt.PAWSEstab]",
    "TCP_LISTEN_OVERFLOW": "the listener's accept queue is full [TcpExt.ListenOverflows]",
    "TCP_RESET": "a reset that was not accepted: outside of the window, or for a listener",
    "TCP_INVALID_SYN": "a SYN in the middle of a session",
    "TCP_CLOSE": "the session was closed already",
    "TCP_ABORT_ON_DATA": "data after close: the program closed without reading everything "
    "[TcpExt.TCPAbortOnData]",
    "TCP_OFO_QUEUE_PRUNE": "thrown out of the out-of-order queue for lack of memory "
    "[TcpExt.OfoPruned]",
    "BPF_CGROUP_EGRESS": "a BPF program of the cgroup refused to let it out",
    "IPV6DISABLED": "IPv6 is switched off on that device",
    "NEIGH_CREATEFAIL": "the neighbour table is full (gc_thresh3)",
    "NEIGH_FAILED": "nobody answered for the next hop's link address (ARP, ND)",
    "NEIGH_QUEUEFULL": "too many packets wait for the next hop's link address (unres_qlen)",
    "NEIGH_DEAD": "the next hop's entry had been removed",
    "TC_EGRESS": "a tc filter or BPF program dropped it on the way out",
    "TC_INGRESS": "a tc filter or BPF program dropped it on the way in",
    "QDISC_DROP": "the queue discipline was full, or chose to drop it (tc -s qdisc)",
    "QDISC_OVERLIMIT": "the queue discipline is over its limit (tc -s qdisc)",
    "QDISC_CONGESTED": "the queue discipline dropped it against congestion (tc -s qdisc)",
    "CPU_BACKLOG": "the CPU's queue is full (netdev_max_backlog) [Softnet.dropped]",
    "XDP": "a generic XDP program dropped it",
    "UNHANDLED_PROTO": "an ethertype that nobody handles",
    "SECURITY_HOOK": "a security module (SELinux, AppArmor) refused it",
    "FULL_RING": "the ring of a tun, tap or veth device is full",
    "NOMEM": "no memory",
    "DEV_READY": "the device is not up",
    "DUP_FRAG": "the same fragment twice",
    "FRAG_REASM_TIMEOUT": "other fragments of it did not come in time [Ip.ReasmTimeout]",
    "QUEUE_PURGE": "waited in the queue of a socket that was closed: not lost on the way",
}  # fmt: skip

# Reasons of frees that lose nothing.
HARMLESS = ("QUEUE_PURGE", "CONSUMED")
# Where frees without a reason lose nothing: segments in TIME_WAIT; and before QUEUE_PURGE (6.6,
# 4025d3e73abd) what is in a socket's queues when it is destroyed, such as a FIN.
WAITING = ("tcp_v4_rcv", "tcp_v6_rcv")
# tcp_rcv_state_process() and what it frees through, if the compiler has not put that into it.
ACKED = ("tcp_rcv_state_process", "tcp_drop_reason", "tcp_drop")
# Of a segment with at most one byte: a probe, or what a newer one has overtaken. Where the kernel
# has no TCP_OLD_SEQUENCE, TCP_INVALID_SEQUENCE stands for both sides of the window.
PROBES = ("TCP_OLD_SEQUENCE", "TCP_OLD_DATA")
OLD_PROBES = ("TCP_INVALID_SEQUENCE", "TCP_OLD_DATA")
PURGING = ("skb_queue_purge", "sk_stream_kill_queues", "inet_sock_destruct")


def meaning(reason: str) -> Optional[str]:
    """Return a sentence about a drop reason, None if we have none."""
    return MEANINGS.get(reason)


def reason_in(known: Mapping[str, int], names: Iterable[str]) -> str:
    """Return the C test whether `r` is one of these reasons, as far as the kernel has them."""
    found = [known[name] for name in names if name in known]
    return one_of("r", found) if found else "0"


def place_in(span: Callable[[str], tuple[int, int]], functions: Iterable[str]) -> str:
    """Return the C test whether the return address `x` lies in one of these functions.

    `span` returns first and following address of a function, zeros if that is not known.
    """
    spans = [(low + 1, high) for low, high in map(span, functions) if high]
    return in_ranges("x", spans) if spans else "0"
