"""Queueing disciplines: how tc numbers and names them, and what is counted of their packets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Optional

from netbpf.declare.columns import Converter, Count, Latest, Netns, Text
from netbpf.declare.constants import device_filter, one_of_names
from netbpf.declare.histogram import bucket_bounds
from netbpf.declare.record import Record, sums
from netbpf.declare.stalls import BUCKETS

COUNTED = {
    "bypassed": "packets that found the queue empty and did not wait",
    "dropped": "packets that the discipline dropped",
    "split": "large packets that the discipline cut into smaller ones",
    "unknown": "packets that left the queue and were not seen to enter it",
}
FIELDS = {name: {"type": "integer", "description": text} for name, text in COUNTED.items()}
_COUNTS, _LARGEST = " ".join(COUNTED), "max_us qlen_max length_ns"
_LENGTH: dict[str, Any] = {
    "qlen": Latest("packets in the queue", "length_ns", shown=True),
    "backlog_bytes": Latest("their bytes", "length_ns"),
}  # null while length_ns is 0
# Kinds that the kernel no longer has: 051d44209842, bbe77c14ee61 and fb38306ceb9e (all in 6.3).
RETIRED = ("cbq", "dsmark", "atm")


class Handle(Count):
    """The handle of a queueing discipline, as tc shows it: hexadecimal and a colon."""

    ctype = "u32"
    json_type = "string"
    width = 6
    priority = 22

    def converter(self) -> Optional[Converter]:
        """Return the conversion from number to text."""
        return lambda raw: f"{raw >> 16:x}:"


class QueueKey(Record):
    """The queueing discipline in which packets wait."""

    cstruct = "queue_key"

    dev = Text("network device")
    kind = Text("kind of queueing discipline")
    handle = Handle("handle of the discipline, as tc shows it", wide=True)
    netns = Netns()
    queue = Count("transmit queue of the device (--by)", ctype="u16", null=0xFFFF, width=5)


# What a map has behind the buckets, and the same value for a table.
QueueSums = sums("queue_sums", _COUNTS, gauges=_LARGEST, **_LENGTH)
AllSums = sums("", f"{' '.join(BUCKETS)} count sum {_COUNTS}", gauges=_LARGEST, **_LENGTH)


def kinds(text: str) -> list[str]:
    """Parse "fq,fq_codel" into names of kinds, which have 1 to 15 characters."""
    found = text.split(",")
    for name in found:
        if not re.fullmatch(r"\w[\w.-]{0,14}", name, re.ASCII):
            raise ValueError(f"'{name}' is not the name of a kind of queueing discipline")
    return found


def constants(settings: Mapping[str, Any]) -> dict[str, object]:
    """Return the filters by device and kind; QUEUES asks for a row per transmit queue."""
    kind, by = settings["kind"], [key.name for key in settings["by"] or ()]
    found: dict[str, object] = {**device_filter(settings["interface"])}
    if kind:
        found["FILTER_KIND(a, b)"] = one_of_names("a", "b", kind)
    if settings["queues"] or "queue" in by:
        found["QUEUES"] = 1
    return found


def describe(histogram: Mapping[str, Any], sums: Mapping[str, int]) -> dict[str, Any]:
    """Return what was counted with the waits, and a headline with what is not 0."""
    counts = {name: sums[name] for name in COUNTED}
    more = [f", {number} {name}" for name, number in counts.items() if number]
    return {**counts, "headline": f"{histogram['count']} waited{''.join(more)}"}


def complete(row: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a table's row that are computed from its sums."""
    waited, through = row["count"], row["count"] + row["bypassed"]
    return {
        "waited": waited,
        "share": round(waited / through, 4) if through else None,
        "p50_us": _bound(row, 50),
        "p99_us": _bound(row, 99),
        "max_us": row["max_us"] if waited else None,
        "qlen_max": row["qlen_max"] or None,
        **{name: row[name] if row["length_ns"] else None for name in _LENGTH},
    }


def _bound(row: Mapping[str, Any], percent: int) -> Optional[int]:
    """Return the bound of the bucket of a percentile, None if no packet waited."""
    rank, counted = -(-row["count"] * percent // 100), 0
    for slot, name in enumerate(BUCKETS):
        counted += row[name]
        if rank and counted >= rank:
            return bucket_bounds(slot)[1]
    return None


def notes(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return a note on kinds of --kind that newer kernels do not have, if none was seen."""
    gone = [kind for kind in settings["kind"] or () if kind in RETIRED]
    if summary["events"] or not gone:
        return []
    return [f"Linux 6.3 and newer have no queueing discipline of the kind {' or '.join(gone)}"]
