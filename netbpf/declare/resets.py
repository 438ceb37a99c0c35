"""The shared probes of RSTs, for include/resets.bpf.h."""

from __future__ import annotations

from netbpf.declare.probes import tracepoint_probe

RESET_PROBES = (
    tracepoint_probe(
        "send_reset",
        "tcp:tcp_send_reset",
        ("sk", "skb__nullable|skb"),  # the answered packet is named skb__nullable since 6.11
        ("skaddr", "skbaddr"),
    ),
    tracepoint_probe("receive_reset", "tcp:tcp_receive_reset", ("sk",), ("skaddr",)),
)
