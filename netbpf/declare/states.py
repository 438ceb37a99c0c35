"""The shared probes of TCP state changes and of the destruction of TCP sockets."""

from __future__ import annotations

from typing import Any

from netbpf.declare.probes import Probe, Role, tracepoint_probe


def state_probe(name: str = "state", role: Role = Role.STATE, **options: Any) -> Probe:
    """Return the probe (`options` as for Probe); the tracepoint exists since 4.16."""
    raw, fields = ("sk", "oldstate", "newstate"), ("skaddr", "oldstate", "newstate")
    event = "sock:inet_sock_set_state"
    return tracepoint_probe(name, event, raw, fields, role=role, **options)


# A TCP socket is destroyed: entries with its address are removed. Exists since 4.16.
GONE = tracepoint_probe("gone", "tcp:tcp_destroy_sock", ("sk",), ("skaddr",), optional=True)
