"""The shared probes of a TCP socket's changes of state, and of its end."""

from __future__ import annotations

from typing import Any

from netbpf.declare.probes import Probe, RawTracepoint, Role, Tracepoint


def state_probe(name: str = "state", role: Role = Role.STATE, **options: Any) -> Probe:
    """Return the probe (`options` as for Probe): the tracepoint is there since 4.16."""
    return Probe(
        name,
        RawTracepoint("inet_sock_set_state", args=("sk", "oldstate", "newstate")),
        Tracepoint("sock:inet_sock_set_state", args=("skaddr", "oldstate", "newstate")),
        role=role,
        **options,
    )


# Every TCP socket is destroyed: entries under its address are removed. There since 4.16.
GONE = Probe(
    "gone",
    RawTracepoint("tcp_destroy_sock", args=("sk",)),
    Tracepoint("tcp:tcp_destroy_sock", args=("skaddr",)),
    optional=True,
)
