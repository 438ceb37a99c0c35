"""Where packets spend their time: the stages of their way, and what is shown of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netbpf.declare.columns import Addr, Comm, Enum, Family, Netns, Pid, Port, Text
from netbpf.declare.constants import device_filter
from netbpf.declare.network import Protocol
from netbpf.declare.record import Record, sums

STAGES = dict(enumerate("device stack socket total".split()))  # in the order of the way
FIELDS: dict[str, dict[str, Any]] = {
    "average": {"type": "number", "description": "us per packet"},
    "share": {"type": ["number", "null"], "description": "share of the total time of its packets"},
}


class StageKey(Record):
    """A stage of the way of packets."""

    cstruct = "stage_key"

    dev = Text("network device by which the packet came in")
    proto = Protocol("protocol of the socket: tcp or udp")
    netns = Netns("network namespace of the socket, by inode number")
    comm = Comm("name of the process that read the packet (--by)")
    pid = Pid("the process (--by)")
    family = Family("address family, IPv4-mapped addresses count as ipv4 (--by)")
    lport = Port("local port (--by)")
    raddr = Addr("remote address (--by)")
    stage = Enum("stage of the way: device, stack, socket, or total", STAGES)


StageSums = sums("stage_sums", "total_us")


def describe(histogram: Mapping[str, Any], sums: Mapping[str, int]) -> dict[str, Any]:
    """Return the average, the share of the packets' time, and a headline."""
    packets, spent = histogram["count"], histogram["sum"]
    average = round(spent / packets, 1)
    share = round(spent / sums["total_us"], 4) if sums["total_us"] else None
    percent = f", {share:.0%} of their time" if share is not None else ""
    return {
        "average": average,
        "share": share,
        "headline": f"{packets} packets, average {average:.12g} us{percent}",
    }


def order(histogram: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the sort key of a distribution: stages follow each other as on the way."""
    stages = list(STAGES.values())
    return (
        *(f"{value:020}" if isinstance(value, int) else str(value)
          for name, value in histogram["key"].items() if name != "stage"),
        str(stages.index(histogram["key"]["stage"])),
    )  # fmt: skip


def slowest(values: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Complete an event with the stage in which the packet was longest."""
    stages = [name for name in STAGES.values() if name != "total"]
    return {**values, "stage": max(stages, key=lambda name: values[f"{name}_us"])}


def constants(settings: Mapping[str, Any]) -> dict[str, object]:
    """Return the filter by device."""
    return {**device_filter(settings["interface"])}
