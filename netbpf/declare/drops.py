"""Dropped packets: the kernel's counters of drops, rows, and notes on unseen drops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from netbpf.declare.columns import (
    Addr,
    Cgroup,
    Comm,
    Enum,
    Family,
    Netns,
    Owner,
    Pid,
    Port,
    Text,
    Uid,
)
from netbpf.declare.constants import device_filter, in_ranges, one_of
from netbpf.declare.keyed import add_up
from netbpf.declare.network import (
    DropReason,
    KernelStack,
    KernelSymbol,
    Protocol,
    end,
    protocol_numbers,
)
from netbpf.declare.reasons import MEANINGS
from netbpf.declare.record import key, sums
from netbpf.declare.stacks import Functions
from netbpf.declare.table import Entry

COUNTERS = (
    "Ip.InHdrErrors", "Ip.InAddrErrors", "Ip.InUnknownProtos", "Ip.InDiscards", "Ip.OutDiscards",
    "Ip.OutNoRoutes", "Ip.ReasmFails", "IpExt.InNoRoutes", "IpExt.InTruncatedPkts",
    "IpExt.InCsumErrors", "Ip6.InDiscards", "Ip6.InNoRoutes", "Ip6.OutDiscards", "Ip6.OutNoRoutes",
    "Icmp.InErrors", "Icmp.InCsumErrors", "Udp.NoPorts", "Udp.InErrors", "Udp.RcvbufErrors",
    "Udp.SndbufErrors", "Udp.InCsumErrors", "Udp.MemErrors", "Udp6.NoPorts", "Udp6.InErrors",
    "Udp6.RcvbufErrors", "Udp6.InCsumErrors", "Tcp.InErrs", "Tcp.InCsumErrors",
    "TcpExt.ListenOverflows", "TcpExt.ListenDrops", "TcpExt.TCPReqQFullDrop",
    "TcpExt.TCPReqQFullDoCookies", "TcpExt.TCPBacklogDrop", "TcpExt.PFMemallocDrop",
    "TcpExt.TCPMinTTLDrop", "TcpExt.TCPDeferAcceptDrop", "TcpExt.IPReversePathFilter",
    "TcpExt.TCPRcvQDrop", "TcpExt.TCPZeroWindowDrop", "TcpExt.TCPOFODrop", "TcpExt.OfoPruned",
    "TcpExt.PruneCalled", "TcpExt.RcvPruned", "TcpExt.PAWSEstab", "TcpExt.TCPAbortOnData",
    "Softnet.dropped", "Softnet.flow_limit", "Device.*.rx_errs", "Device.*.rx_drop",
    "Device.*.rx_fifo", "Device.*.rx_frame", "Device.*.tx_errs", "Device.*.tx_drop",
    "Device.*.tx_fifo", "Device.*.tx_carrier", "Netlink.*.drops", "Raw.*.drops", "Raw6.*.drops",
    "Packet.*.drops",
)  # fmt: skip
# Drops that free no buffer, or that happen in hardware.
_UNSEEN = {
    "TcpExt.ListenDrops": "SYNs dropped because of a full accept queue",
    "TcpExt.TCPReqQFullDrop": "SYNs dropped because of a full SYN queue",
    "TcpExt.TCPReqQFullDoCookies": "SYNs answered with cookies",
    "rx_fifo": "no room in the device's ring",
    "rx_frame": "frames that were damaged on arrival",
    "rx_errs": "errors of the device",
    "tx_fifo": "errors of the device",
    "tx_carrier": "errors of the device",
}
YES_NO = {0: "no", 1: "yes"}
_KEY_COLUMNS = ("reason", "location", "proto", "dev", "netns", "harmless", "socket")
_FULL = "its receive buffer was full: that may free no packet, and then there is no row"
_NO_REASONS = "this kernel gives no reasons: the rows include frees that lose nothing"


DropKey = key(
    "drop_key",
    location=KernelSymbol("location in the kernel"),
    reason=DropReason("drop reason"),
    proto=Protocol("protocol"),
    netns=Netns(),
    stack=KernelStack("call stack", option="stack"),
    dev=Text("device"),
    harmless=Enum("whether it is known to lose nothing", YES_NO),
    socket=Enum("whether there is a socket", YES_NO),
)
DropBy = key(
    "drop_by",
    pid=Pid("process that owns the packet's socket"),
    comm=Comm("its name"),
    uid=Uid("user id of the owner"),
    cgroup=Cgroup(),
    netns=Netns(),
    owner=Owner("how the owner was found"),
    reason=DropReason("drop reason"),
    location=KernelSymbol("location in the kernel"),
    family=Family("address family"),
    proto=Protocol("protocol"),
    saddr=Addr("source address"),
    sport=Port("source port", null=0),
    daddr=Addr("destination address"),
    dport=Port("destination port", null=0),
    dev=Text("device"),
    stack=KernelStack("call stack, innermost function first", header=" "),
)
DropCounts = sums("drop_counts", "count bytes")
DropSums = sums(
    "drop_sums",
    "count bytes",
    # Of one packet, as an example.
    sport=Port("source port", null=0),
    dport=Port("destination port", null=0),
    family=Family("address family"),
    saddr=Addr("source"),
    daddr=Addr("destination"),
)


def without_addresses(values: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the addresses of packets that are not IP."""
    return values if values["family"] else {**values, "saddr": None, "daddr": None}


def rows(groups: Sequence[Entry], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per location and reason, most packets first."""
    found = []
    for group, counts in groups:
        ends = [end(counts[f"{side}addr"], counts[f"{side}port"]) for side in "sd"]
        row = {
            **{name: group[name] for name in _KEY_COLUMNS},
            **{name: counts[name] for name in ("count", "bytes")},
            "example": " > ".join(ends) if counts["family"] else None,
            "programs": None,
            "meaning": MEANINGS.get(group["reason"]) if settings["explain"] else None,
            "stack": from_location(group["stack"], group["location"]),
        }
        found.append(row)
    return sorted(found, key=lambda row: -row["count"])


def protocols(text: str) -> list[str]:
    """Parse "tcp,udp" into names of protocols of packets."""
    names = text.split(",")
    for name in names:
        protocol_numbers(name)
    return names


def constants(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the filters of devices, protocols and ports."""
    found = device_filter(settings["dev"])
    if settings["proto"]:
        numbers = [number for name in settings["proto"] for number in protocol_numbers(name)]
        found["FILTER_PROTO(x)"] = one_of("x", numbers)
    if settings["port"]:
        found["FILTER_PORT(x)"] = in_ranges("x", settings["port"])
    return found


def from_location(stack: Optional[list[str]], location: str) -> Optional[list[str]]:
    """Return `stack` from the function of `location` on, without the functions that free."""
    functions = [frame.partition("+")[0] for frame in stack or ()]
    function = location.partition("+")[0]
    if not stack or function not in functions:
        return stack
    return Functions(stack[functions.index(function) :])


def by_keys(groups: Sequence[Entry], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each value of the columns `names`."""
    if "stack" not in names:
        return add_up(groups, names)
    found = [({**group, "stack": from_location(group["stack"], group["location"])}, counts)
             for group, counts in groups]  # fmt: skip
    return add_up(found, names)


def notes(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return notes on hidden packets, and on drops that no program can see."""
    hidden, unread = (summary["totals"][name] for name in ("hidden", "unread"))
    lines = []
    (drop,) = [probe for probe in summary["probes"] if probe["name"] == "drop"]
    if any("has no reason" in why for why in drop["rejected"]):
        lines.append(_NO_REASONS)
    if hidden:
        lines.append(f"{hidden} frees that lose nothing are not shown (--all shows them)")
    if unread:
        lines.append(f"{unread} packets with unreadable headers were left out by a filter")
    for name, grown in summary["counters"].items():
        if grown and name.endswith(".drops"):
            lines.append(f"{name} +{grown}, {_FULL}")
        why = _UNSEEN.get(name) or _UNSEEN.get(name.rpartition(".")[2])
        if grown and why:
            lines.append(f"not seen by this probe: {name} +{grown}, {why}")
    return lines
