"""Packet sizes: how much packets were merged, and which packets a device counted unseen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Values = Mapping[str, Any]
Counted = Mapping[tuple[int, str], tuple[int, int]]

# Sum of packets by how a device handed them over -> the kernel function that takes them.
_ENTRIES = {
    "by_gro": "napi_gro_receive",
    "by_netif_rx": "netif_rx",
    "by_direct": "netif_receive_skb",
}
_BELOW = (
    "received {} packets that passed no probe: another device handed them over (macvlan, ipvlan, "
    "VLAN, bond, team), or XDP took them"
)
_PAST = (
    "sent {} packets that passed no probe: they bypassed the queueing discipline "
    "(PACKET_QDISC_BYPASS, AF_XDP, netpoll, pktgen), or came from XDP"
)
_DIRECTIONS = (("received", "nic_recv", _BELOW), ("sent", "nic_send", _PAST))

# Fields that describe() adds to a histogram.
FIELDS: dict[str, dict[str, Any]] = {
    "average": {"type": "number", "description": "bytes per packet"},
    "small_share": {"type": "number", "description": "share of packets below 128 bytes"},
    "wire_packets": {"type": "integer", "description": "packets on the wire, estimated"},
    "wire_bytes": {"type": "integer", "description": "their bytes, estimated"},
    "merge_factor": {
        "type": "number",
        "description": "bytes per packet over bytes per wire packet",
    },
    "entry": {
        "type": "array",
        "items": {"type": "string"},
        "description": "kernel functions through which they came in",
    },
}


def describe(histogram: Values, sums: Values) -> dict[str, Any]:
    """Return averages, the share of small packets, the merge factor and a headline."""
    packets, total = histogram["count"] or 1, histogram["sum"]
    wire = sums["wire_bytes"] / (sums["wire_packets"] or 1)
    entries = [function for name, function in _ENTRIES.items() if sums[name]]
    average, small = round(total / packets, 1), round(sums["small"] / packets, 4)
    factor = round(total / packets / wire, 2) if wire else 1.0
    entry = f", in through {' and '.join(entries)}" if entries else ""
    return {
        "average": average,
        "small_share": small,
        "wire_packets": sums["wire_packets"],
        "wire_bytes": sums["wire_bytes"],
        "merge_factor": factor,
        "entry": entries,
        "headline": f"{histogram['count']} packets, {total} bytes, average {average:g}, "
        f"{small:.0%} small, merge factor {factor:g}{entry}",
    }


def without_gro(histograms: Sequence[Values]) -> list[str]:
    """Return a note for each device whose packets never passed GRO."""
    entries: dict[str, set[str]] = {}
    for histogram in histograms:
        if histogram["key"]["point"] == "nic_recv" and "dev" in histogram["key"]:
            entries.setdefault(histogram["key"]["dev"], set()).update(histogram["entry"])
    note = "{} does not pass the GRO entry points: nic_recv was counted at {}"
    return [
        note.format(dev, ", ".join(sorted(functions)))
        for dev, functions in sorted(entries.items())
        if "napi_gro_receive" not in functions
    ]


def compare_devices(
    histograms: Sequence[Values], counted: Counted, settings: Values
) -> tuple[dict[str, Any], list[str]]:
    """Return the packets that devices counted, with the least number unseen, and notes on those.

    `counted` is {(netns, device): (received, sent)}.
    """
    seen = {tuple(histogram["key"].values()): histogram for histogram in histograms}
    devices, notes = [], []
    for (netns, dev), packets_of in sorted(counted.items()):
        if not any(packets_of) or (settings["interface"] and dev not in settings["interface"]):
            continue
        row = {"dev": dev, "netns": netns}
        for packets, (direction, point, note) in zip(packets_of, _DIRECTIONS):
            unseen = _unseen(packets, seen.get((dev, point, netns)))
            row[direction], row[f"{direction}_unseen"] = packets, unseen
            if unseen:
                notes.append(f"{dev} (netns {netns}) {note.format(unseen)}")
        devices.append(row)
    return {"devices": devices}, notes


def _unseen(packets: int, histogram: Values | None) -> int:
    if not histogram:
        return packets
    if not histogram["hardware"]:
        return max(0, packets - int(histogram["count"]))
    # Hardware counts packets on the wire, and reports some of them seconds later.
    unseen = max(0, packets - max(histogram["count"], histogram["wire_packets"]))
    return unseen if unseen * 100 >= packets else 0
