"""TCP states: the probes of their changes, and the changes that are steps of a connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netbpf.declare.columns import Enum
from netbpf.declare.constants import one_of
from netbpf.declare.probes import Probe, Role, tracepoint_probe


def state_probe(name: str = "state", role: Role = Role.STATE, **options: Any) -> Probe:
    """Return the probe (`options` as for Probe); the tracepoint exists since 4.16."""
    raw, fields = ("sk", "oldstate", "newstate"), ("skaddr", "oldstate", "newstate")
    event = "sock:inet_sock_set_state"
    return tracepoint_probe(name, event, raw, fields, role=role, **options)


# A TCP socket is destroyed: entries with its address are removed. Exists since 4.16.
GONE = tracepoint_probe("gone", "tcp:tcp_destroy_sock", ("sk",), ("skaddr",), optional=True)

# What a change of state is for the connection.
STEPS = {0: None, 1: "connect", 2: "accept", 3: "close"}
_LETTERS = {"connect": "C", "accept": "A", "close": "X"}


class StepLetter(Enum):
    """A step of a connection, by the letter that bcc's tcptracer shows."""

    def __init__(self, help: str) -> None:
        super().__init__(help, STEPS, width=1)

    def text(self, value: Any) -> str:
        """Return the letter."""
        return _LETTERS.get(value) or super().text(value)


def step_filter(settings: Mapping[str, Any]) -> dict[str, object]:
    """Return the filter of --step."""
    wanted = [number for number, name in STEPS.items() if name in (settings["step"] or ())]
    return {"FILTER_STEP(x)": one_of("x", wanted)} if wanted else {}
