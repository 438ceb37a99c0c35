"""The shared probes of TCP state changes and of the destruction of TCP sockets."""

from __future__ import annotations

from typing import Any

from netbpf.declare.probes import Probe, RawTracepoint, Role, Tracepoint


def state_probe(name: str = "state", role: Role = Role.STATE, **options: Any) -> Probe:
    """Return the probe (`options` as for Probe); the tracepoint exists since 4.16."""
    return Probe(
        name,
        RawTracepoint("inet_sock_set_state", args=("sk", "oldstate", "newstate")),
        Tracepoint("sock:inet_sock_set_state", args=("skaddr", "oldstate", "newstate")),
        role=role,
        **options,
    )


# A TCP socket is destroyed: entries with its address are removed. Exists since 4.16.
GONE = Probe(
    "gone",
    RawTracepoint("tcp_destroy_sock", args=("sk",)),
    Tracepoint("tcp:tcp_destroy_sock", args=("skaddr",)),
    optional=True,
)
