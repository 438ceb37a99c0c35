"""The shared probes of RSTs, for include/resets.bpf.h."""

from __future__ import annotations

from netbpf.declare.probes import Probe, RawTracepoint, Tracepoint

RESET_PROBES = (
    Probe(
        "send_reset",
        # The answered packet is named skb__nullable since 6.11.
        RawTracepoint("tcp_send_reset", args=("sk", "skb__nullable|skb")),
        Tracepoint("tcp:tcp_send_reset", args=("skaddr", "skbaddr")),
    ),
    Probe(
        "receive_reset",
        RawTracepoint("tcp_receive_reset", args=("sk",)),
        Tracepoint("tcp:tcp_receive_reset", args=("skaddr",)),
    ),
)
