"""Columns about segments that TCP sends again, in a line of 80 characters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netbpf.declare.columns import Enum, TcpState
from netbpf.declare.network import Endpoint

KINDS = {0: "SYN", 1: "SYNACK", 2: "RTO", 3: "FAST", 4: "TLP", 5: "FAILED", 6: "PROBE"}
LETTERS = {"SYNACK": "S", "TLP": "L", "PROBE": "L", "FAILED": "F"}
CA_STATES = {0: "open", 1: "disorder", 2: "cwr", 3: "recovery", 4: "loss"}


class Local(Endpoint):
    """An end in a column that begins narrow and grows with what it shows."""

    width = 15
    priority = 28


class Remote(Local):
    """The other end, behind the letter of the kind."""

    width = 18
    priority = 60

    def cell(self, values: Mapping[str, Any]) -> str:
        """Return "R> 1.2.3.4:80"."""
        return f"{LETTERS.get(values['kind'], 'R')}> {super().cell(values)}"


class State(TcpState):
    """A TCP state; the usual one in the short form of ss."""

    width = 9

    def text(self, value: Any) -> str:
        """Return the state's name."""
        return super().text(value).replace("ESTABLISHED", "ESTAB")


class Kind(Enum):
    """What made TCP send again; in text with the number of segments, if those are several."""

    width = 6

    def cell(self, values: Mapping[str, Any]) -> str:
        """Return "FAST" or "FASTx7"."""
        segs = values["segs"]
        return f"{values['kind']}x{segs}" if segs > 1 else str(values["kind"])
