"""Where packets spend their time: the stages of their way, and what is shown of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netbpf.declare.columns import (
    Addr,
    Comm,
    Count,
    Duration,
    Enum,
    Family,
    Netns,
    Pid,
    Port,
    Text,
)
from netbpf.declare.constants import device_filter, one_of
from netbpf.declare.network import Protocol
from netbpf.declare.record import Event, Record, sums
from netbpf.errors import UsageError

WAYS = {0: "rx", 1: "tx"}
STAGES = dict(enumerate("device stack socket qdisc driver total".split()))  # as on the way
FIELDS: dict[str, dict[str, Any]] = {
    "average": {"type": ["number", "null"], "description": "us per packet"},
    "share": {"type": ["number", "null"], "description": "share of the total time of its packets"},
    "discarded": {
        "type": "integer",
        "description": "--tx: how many of them the driver freed as discarded (kfree_skb)",
    },
}


class StageKey(Record):
    """A stage of the way of packets."""

    cstruct = "stage_key"

    dev = Text("network device by which the packet came in, or by which it was sent")
    proto = Protocol("protocol: tcp or udp, or with --tx any")
    netns = Netns("network namespace of the socket, or with --tx of the device, by inode number")
    comm = Comm("name of the process that read the packet (--by)")
    pid = Pid("the process (--by)")
    family = Family("address family, IPv4-mapped addresses count as ipv4 (--by)")
    lport = Port("local port (--by)")
    raddr = Addr("remote address (--by)")
    way = Enum("rx: received, tx: sent", WAYS, wide=True)
    stage = Enum("stage of the way, or total", STAGES)


class SlowPacket(Event):
    """A packet that a program has read, and that took long."""

    cstruct = "slow_packet"

    pid = Pid("process that read the packet", width=7)
    comm = Comm("its name", width=8)
    family = Family("address family, IPv4-mapped addresses count as ipv4", wide=True)
    proto = Protocol("protocol of the socket: tcp or udp", width=5)
    laddr = Addr("local address", wide=True, priority=28)
    lport = Port("local port")
    raddr = Addr("remote address")
    rport = Port("remote port", wide=True)
    dev = Text("network device by which the packet came in", wide=True, width=10)
    device_us = Duration("from the driver to the protocols", header="DEVICE", width=6)
    stack_us = Duration("through the protocols to the socket", header="STACK", width=6)
    socket_us = Duration("in the queue of the socket", header="SOCKET", width=6)
    total_us = Duration("from the driver to the program", header="TOTAL_MS", width=8)
    stage = Text("the stage that took longest", ctype="", width=6, priority=72)
    netns = Netns("network namespace of the socket, by inode number")


class Totals(Record):
    """What no distribution has."""

    unknown = Count("packets that were read, or sent, and whose way was not seen")
    virtual = Count("--tx: packets to devices without hardware, which are left out unless -i")


StageSums = sums("stage_sums", "total_us discarded")


def describe(histogram: Mapping[str, Any], sums: Mapping[str, int]) -> dict[str, Any]:
    """Return average, share of the packets' time, discarded packets, and a headline."""
    packets, spent = histogram["count"], histogram["sum"]
    average = round(spent / packets, 1) if packets else None
    share = round(spent / sums["total_us"], 4) if sums["total_us"] else None
    of_all = histogram["key"]["stage"] != "total" and share is not None
    percent = f", {share:.0%} of their time" if of_all else ""
    took = "" if average is None else f", average {average:.12g} us"
    lost = f", {sums['discarded']} discarded" if sums["discarded"] else ""
    return {
        "average": average,
        "share": share,
        "discarded": sums["discarded"],
        "headline": f"{packets} packets{took}{percent}{lost}",
    }


def order(histogram: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the sort key of a distribution: stages follow each other as on the way."""
    stages = {name: number for number, name in enumerate(STAGES.values())}
    return (
        *(f"{value:020}" if isinstance(value, int) else str(value)
          for name, value in histogram["key"].items() if name != "stage"),
        str(stages.get(histogram["key"]["stage"], len(stages))),
    )  # fmt: skip


def slowest(values: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Complete an event with the stage in which the packet was longest."""
    stages = ("device", "stack", "socket")
    return {**values, "stage": max(stages, key=lambda name: values[f"{name}_us"])}


def constants(settings: Mapping[str, Any]) -> dict[str, object]:
    """Return the filters by device and stage; UsageError for keys that sent packets do not have."""
    of_readers = [key.name for key in settings["by"] or () if key.name in ("comm", "pid")]
    if settings["tx"] and of_readers:
        reason = "give other keys, or leave out --tx"
        raise UsageError(f"--by: with --tx, no process is known ({', '.join(of_readers)})", reason)
    found: dict[str, object] = {**device_filter(settings["interface"])}
    if settings["stage"]:
        numbers = [number for number, name in STAGES.items() if name in settings["stage"]]
        found["FILTER_STAGE(x)"] = one_of("x", numbers)
    return found


def notes(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Return notes on packets that no distribution has."""
    totals = summary["totals"]
    unknown, virtual = totals["unknown"], totals["virtual"]
    done = "sent" if settings["tx"] else "read"
    found = []
    if unknown:
        found.append(f"{unknown} packets were {done} whose way was not seen (LIMITS in --help)")
    if virtual:
        found.append(f"{virtual} packets to devices without hardware are left out: -i shows them")
    return found
