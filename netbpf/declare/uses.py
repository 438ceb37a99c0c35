"""Uses of network devices: what is counted by whom, and what is left of the devices' counters."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import dropwhile
from typing import Any, Optional

from netbpf.declare import columns as c
from netbpf.declare.constants import device_filter
from netbpf.declare.keyed import Keyed, KeyedTable
from netbpf.declare.network import KernelStack, Protocol, Share
from netbpf.declare.options import NARROWING, Option
from netbpf.declare.record import key, named, sums
from netbpf.declare.stacks import Functions
from netbpf.declare.table import Entry, Rows

TRAFFIC = {0: None, 1: "socket", 2: "forwarded", 3: "kernel", 4: "other"}
OTHER = "other"
_SUMS = ("tx_bytes", "tx_packets", "rx_bytes", "rx_packets")
_COUNTERS = {"tx_bytes": "tx_bytes", "tx_packets": "tx_packets", "rx_bytes": "rx_bytes",
             "rx_packets": "rx_packets", "tx_drop": "drops", "rx_drop": "drops"}  # fmt: skip
_COLUMNS = (*_SUMS, "drops")
# Words of --by for several keys.
WORDS = {"process": "pid,comm", "remote": "raddr,rport"}

UseKey = key(
    "use_key", dev=c.Text("network device", width=8), netns=c.Netns(),
    queue=c.Count("queue of the device; null if a packet has none", ctype="u16", null=0xFFFF,
                  width=5),
    cpu=c.Count("CPU that handled the packets", ctype="u16", width=3),
    pid=c.Pid("process that uses the socket"), comm=c.Comm("its name", width=15),
    uid=c.Uid("user id of the owner"), cgroup=c.Cgroup(), owner=c.Owner("how it was found"),
    family=c.Family("address family"), proto=Protocol("protocol"),
    laddr=c.Addr("local address"), lport=c.Port("local port", null=0),
    raddr=c.Addr("remote address"), rport=c.Port("remote port", null=0),
    stack=KernelStack("call stack, innermost function first", header=" "),
    traffic=c.Enum("whose packets they are", TRAFFIC),
)  # fmt: skip
UseSums = sums("use_sums", " ".join(_SUMS))

COUNTS = named(
    traffic=c.Enum(
        "socket: of a process; forwarded; kernel: sent by itself; other: the rest of the device; "
        "null if --by has no process", TRAFFIC, width=9, priority=68),
    tx_bytes=c.Bytes("bytes sent", header="TX_KB", width=7, priority=71),
    tx_packets=c.Count("packets sent", header="TX_PKTS", width=7),
    rx_bytes=c.Bytes("bytes received", header="RX_KB", width=7, priority=71),
    rx_packets=c.Count("packets received", header="RX_PKTS", width=7),
    bytes=c.Bytes("bytes sent and received", header="KB", text=False),
    share=Share("share of the bytes of the device; of all, if --by has no device", width=6),
    drops=c.Count("packets that the device dropped, by its counters; in the row `other`", width=5,
                  wide=True, alert=True),
)  # fmt: skip


def fold(entries: Sequence[Entry], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row per value of the columns `names` and kind of traffic."""
    rows: dict[tuple[object, ...], dict[str, Any]] = {}
    for values, counts in entries:
        if values.get("stack"):
            values = {**values, "stack": own_frames(values["stack"])}
        of = {name: values[name] for name in (*names, "traffic")}
        row = rows.setdefault(tuple(of.values()), {**of, **dict.fromkeys(_SUMS, 0)})
        for name in _SUMS:
            row[name] += counts[name]
    for row in rows.values():
        row.update(bytes=row["tx_bytes"] + row["rx_bytes"], share=None, drops=None)
    return list(rows.values())


# Innermost functions of a stack that was taken at a tracepoint.
_TRACING = re.compile(
    r"bpf_prog_|_*bpf_trace|trace_call_bpf|perf_|__traceiter_|do_perf_|__do_trace"
)


def own_frames(stack: Functions) -> Functions:
    """Return a stack without the functions that run a BPF program."""
    return Functions(dropwhile(_TRACING.match, stack))


class UseTable(KeyedTable):
    """Packets and bytes by the keys of --by, and the rest of each device."""

    def __init__(self) -> None:
        super().__init__(
            "uses", UseKey, UseSums, COUNTS, "bytes", fold=fold,
            keyed=Keyed(UseKey, fixed=("traffic",), filled=("dev", "netns"),
                        default=("dev", "pid", "comm")),
            refresh=("stale",), counters=[f"Device.*.{name}" for name in _COUNTERS],
            counted=self.with_rest,
        )  # fmt: skip

    def options(self) -> tuple[Option, ...]:
        """Let --by have a value always, and accept the words for several keys."""
        by, *rest = super().options()
        keys: Any = by.parse
        by.parse = lambda text: keys(",".join(WORDS.get(word, word) for word in text.split(",")))
        by.default = "dev,process"
        words = "; ".join(f"{word} stands for {keys}" for word, keys in WORDS.items())
        by.help = f"{by.help.partition(' (default')[0]}; {words}"
        return (by, *rest)

    def with_rest(
        self, rows: Rows, grown: Mapping[str, int], settings: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Add shares, and for each device a row with what its counters have and no other row.

        `grown` is {"Device.eth0.tx_bytes": increase}. Without dev in --by, all devices are one. The
        rest is not shown if filters of processes or ends leave out what they do not match.
        """
        by_device = any(one.name == "dev" for one in settings["by"])
        counted = counted_by(grown, settings["interface"], by_device)
        groups: dict[Any, list[dict[str, Any]]] = {dev: [] for dev in counted}
        for row in rows:
            groups.setdefault(row["dev"] if by_device else None, []).append(row)
        none = dict.fromkeys(column.name for column in self.row.columns)
        narrowed = any(settings.get(name) for name in NARROWING)
        totals = {}
        for dev, group in groups.items():
            rest = rest_of(group, counted.get(dev, {}))
            totals[dev] = sum(row["bytes"] for row in group) + rest["bytes"]
            if any(rest.values()) and not narrowed:
                group.append({**none, **rest, "dev": dev, "traffic": OTHER})
        return [
            {**row, "share": round(row["bytes"] / totals[dev], 4) if totals[dev] else None}
            for dev in sorted(groups, key=lambda dev: -totals[dev])
            for row in groups[dev]
        ]


def counted_by(
    grown: Mapping[str, int], devices: Optional[Sequence[str]], by_device: bool
) -> dict[Optional[str], dict[str, int]]:
    """Return {device: {column: number}} of the devices' counters, of these `devices` if given."""
    found: dict[Optional[str], dict[str, int]] = {}
    for counter, number in grown.items():
        dev, _, name = counter.partition(".")[2].rpartition(".")
        if not devices or dev in devices:
            columns = found.setdefault(dev if by_device else None, dict.fromkeys(_COLUMNS, 0))
            columns[_COUNTERS[name]] += number
    return found


def rest_of(rows: Rows, counted: Mapping[str, int]) -> dict[str, int]:
    """Return what a device counted and no row has."""
    rest = {name: max(0, counted.get(name, 0) - sum(row[name] for row in rows)) for name in _SUMS}
    return {**rest, "bytes": rest["tx_bytes"] + rest["rx_bytes"], "drops": counted.get("drops", 0)}


def constants(settings: Mapping[str, Any]) -> dict[str, object]:
    """Return the filter of devices."""
    return {**device_filter(settings["interface"])}
