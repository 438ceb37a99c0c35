"""The shared probes of include/owners.bpf.h, which find the owner of a TCP socket.

A tool with `owners=True` gets them: connects and closes (unless it traces states itself, with a
probe of the role STATE), accepts, the sockets that existed before the start, and on request sends:
a probe for every send (since 6.3) costs too much for what it adds.
"""

from __future__ import annotations

from collections.abc import Sequence

from netbpf.declare.options import Option
from netbpf.declare.probes import (
    Fentry,
    Fexit,
    Iterator,
    Kprobe,
    Kretprobe,
    Probe,
    RawTracepoint,
    Role,
    Tracepoint,
    tracepoints,
)
from netbpf.declare.states import state_probe

SNAPSHOT = Probe(
    "snapshot",
    Iterator("task_file"),
    role=Role.SNAPSHOT,
    optional=True,
    loses=("pid", "comm"),
)
_OWNER_STATE = state_probe("owner_state", role=Role.NONE)
OWNER_PROBES = (
    _OWNER_STATE,
    Probe(
        "accept",
        # Called by accept() after all waiting, so it also sees calls in flight at the start. Exits
        # are seen only for calls whose entry was.
        Fentry("security_sock_graft", args=("sk",), call="on_graft"),
        Kprobe("security_sock_graft", args=("sk",), call="on_graft"),
        # For kernels without CONFIG_SECURITY_NETWORK.
        Fexit("inet_csk_accept", args=("return",)),
        Kretprobe("inet_csk_accept", args=("return",)),
        Tracepoint("syscalls:sys_exit_accept", args=("ret",), call="on_accept_exit"),
        optional=True,
        loses=("pid", "comm"),
    ),
    Probe(
        "accept4",
        Tracepoint("syscalls:sys_exit_accept4", args=("ret",), call="on_accept_exit"),
        optional=True,
        loses=("pid", "comm"),
        with_probe="accept",
    ),
    SNAPSHOT,
    Probe(
        "owner_send",
        RawTracepoint("sock_send_length", args=("sk",)),
        Tracepoint("sock:sock_send_length", args=("sk",)),
        option="learn_sends",
        optional=True,
        loses=("pid", "comm"),
    ),
)
# For include/users.bpf.h: whoever sends or receives owns a socket, if it is not one of TCP (6.3).
USER_PROBES = tuple(
    Probe(
        name,
        *tracepoints(f"sock:sock_{way}_length", ("sk",), ("sk",), call="on_user"),
        role=Role.OWNERS,
        optional=True,
    )
    for name, way in (("sender", "send"), ("receiver", "recv"))
)


def owner_probes(own: Sequence[Probe]) -> tuple[Probe, ...]:
    """Return the probes that find owners for a tool that has the probes `own`."""
    traces_states = any(probe.role is Role.STATE for probe in own)
    return tuple(probe for probe in OWNER_PROBES if not (traces_states and probe is _OWNER_STATE))


OWNER_OPTIONS = (
    Option(
        "--learn-sends",
        help="also find owners from sends (accepted by io_uring, UDP); costs 0.1 us per send",
    ),
)
