"""Receive buffers of sockets: what is known of each, and how --by adds them up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from netbpf.declare.calls import PROTO_WORDS, PROTOS
from netbpf.declare.columns import (
    Addr,
    Bytes,
    Cgroup,
    Column,
    Comm,
    Count,
    Enum,
    Family,
    Netns,
    Owner,
    Pid,
    Port,
    Uid,
)
from netbpf.declare.constants import one_of
from netbpf.declare.keyed import Keyed, KeyedTable
from netbpf.declare.network import Endpoint, Share
from netbpf.declare.options import Option, one_or_more
from netbpf.declare.record import Row, copied, key, named, sums
from netbpf.declare.table import Entry, Table, sorted_rows
from netbpf.errors import UsageError

IP_PROTOS = {number: name for number, name in PROTOS.items() if name not in ("unix", "netlink")}
WHAT = {0: "rmem_alloc", 1: "rmem_limit"}
AT = {0: "arrival", 1: "read"}
WHOLE = 10000  # fill_max in C: see include/receive_buffers.bpf.h
CAUSES = ("no_room", "memory", "backlogged", "window", "pruned")
_UDP = ("udp4", "udp6")


class BufferRow(Row):
    """A socket in which data waits or arrived, that was read, or that dropped packets."""

    pid = Pid("process that has the socket")
    comm = Comm("its name", width=10)
    owner = Owner("how the owner was found: exact, snapshot or unknown", wide=True)
    proto = Enum("tcp4, tcp6, udp4, udp6, or other, such as raw sockets", IP_PROTOS, width=5)
    family = Family("address family, IPv4-mapped counts as ipv4", wide=True)
    laddr = Addr("local address", wide=True, priority=28)
    lport = Port("local port")
    raddr = Endpoint("remote address", "rport", header="RADDR:RPORT", wide=True)
    rport = Port("remote port", text=False)
    arrivals = Count("times that data or an end of file arrived", header="ARRIVED", width=7)
    reads = Count("receive calls that succeeded", width=7)
    used_bytes = Bytes("memory that the buffer takes now, null if the socket is closed",
                       header="KB", width=6, wide=True)  # fmt: skip
    used_max_bytes = Bytes(
        "most memory in the buffer since the first row", header="MAX_KB", width=6
    )
    limit_bytes = Bytes("size of the buffer: the limit of this memory", header="LIMIT_KB", width=8)
    fill_max = Share("largest share of the limit that it took since the first row", header="FILL")
    dropped = Count("packets that were dropped, for all causes", width=7, alert=True)
    no_room = Count("packets dropped as the buffer was full", wide=True, width=7)
    memory = Count("packets dropped as the protocol has used up its memory", wide=True, width=6)
    backlogged = Count("packets dropped as the backlog was full", wide=True, width=10)
    window = Count("packets dropped as they did not fit into the window", wide=True, width=6)
    pruned = Count("packets removed from the out of order queue", wide=True, width=6)
    uid = Uid("user id of the owner", wide=True)
    netns = Netns()
    cgroup = Cgroup()


Buffer = key("buffer", sk=Count("address of the socket"), number=Count("which one at this address"))
_HIDDEN = "all_arrivals all_reads all_no_room all_memory all_backlogged all_window all_pruned"
_OF_THE_PROGRAM: Any = {name: Column(name, ctype="u8") for name in ("gone", "pass", "sees_causes")}
BufferSums = sums(
    "buffer_sums", f"arrivals reads {' '.join(CAUSES)}",
    gauges=f"used_bytes used_max_bytes limit_bytes fill_max over cgroup {_HIDDEN}",
    shown="waits",
    pid=Pid("process"), comm=Comm("its name"), owner=Owner("how it was found"),
    uid=Uid("its user"), netns=Netns(), family=Family("address family"),
    laddr=Addr("local address"), lport=Port("local port"), raddr=Addr("remote address"),
    rport=Port("remote port"), proto=Enum("protocol", PROTOS),
    **_OF_THE_PROGRAM,
)  # fmt: skip
SizeKey = key("size_key", what=Enum("rmem_alloc or rmem_limit", WHAT),
              proto=Enum("protocol of the socket", PROTOS),
              at=Enum("when: arrival of data or read", AT))  # fmt: skip


def complete(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with what is computed; null for drops that nothing shows."""
    causes: dict[str, Any] = {name: values[name] for name in CAUSES}
    drops: Any = sum(causes.values())
    if not values["sees_causes"] or values["proto"] == "other":  # see LIMITS on raw sockets
        known = ("no_room", "memory") if values["proto"] in _UDP else ()
        causes = {name: causes[name] if name in known else None for name in CAUSES}
        drops = drops if known else None
    return {
        **values,
        **causes,
        "dropped": drops,
        "used_bytes": None if values["over"] else values["used_bytes"],
        "fill_max": round(values["fill_max"] / WHOLE, 4),
    }


def most_first(row: Mapping[str, Any]) -> tuple[float, ...]:
    """Order rows: those with drops first, then the fullest."""
    return (-(row["dropped"] or 0), -row["fill_max"], -row["arrivals"])


def rows(entries: Sequence[Entry], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each socket: the first --top of them, by --sort."""
    found = sorted((complete(values) for _, values in entries), key=most_first)
    shown = sorted_rows(found, settings["sort"])[: settings["top"] or None]
    return [{column.name: row[column.name] for column in BufferRow.columns} for row in shown]


_SUMS = ("sockets", "arrivals", "reads", "used_bytes", "dropped", *CAUSES)
_LARGEST = ("used_max_bytes", "fill_max")


def add(entries: Sequence[Entry], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each combination of values of the columns `names`."""
    found: dict[tuple[object, ...], dict[str, Any]] = {}
    for of, values in entries:
        row = found.setdefault(tuple(of[n] for n in names), {n: of[n] for n in names})
        for name in (*_SUMS, *_LARGEST):
            both = [value for value in (row.get(name), values[name]) if value is not None]
            total = max(both, default=None) if name in _LARGEST else sum(both)
            row[name] = total if both else None
    return list(found.values())


class ByKey(KeyedTable):
    """Buffers added up by the keys of --by."""

    def _groups(self, entries: Sequence[Entry], settings: Mapping[str, Any]) -> Sequence[Entry]:
        found = [complete(values) for _, values in entries]
        return [(row, {**row, "sockets": 1}) for row in found]


COMMON: Any = {"per_cpu": False, "refresh": ("stale", "held", "publish"), "forget": "over"}
_KEYS = copied(BufferRow, "pid comm owner proto family laddr lport raddr rport uid netns cgroup")
_COUNTS = (
    *named(sockets=Count("sockets", width=7)),
    *copied(
        BufferRow, f"arrivals reads used_bytes used_max_bytes fill_max dropped {' '.join(CAUSES)}"
    ).values(),
)
BUFFERS = (
    Table("buffers", Buffer, BufferSums, BufferRow, rows, **COMMON),
    ByKey("buffers", Buffer, BufferSums, _COUNTS, "dropped", fold=add,
          keyed=Keyed(type("Keys", (Row,), _KEYS), filled=tuple(_KEYS)), **COMMON),
)  # fmt: skip


_WORDS = {word: numbers for word, numbers in PROTO_WORDS.items() if set(numbers) <= set(IP_PROTOS)}
PROTO = Option("--proto", metavar="LIST", parse=one_or_more(*_WORDS),
               help=f"only these protocols: {', '.join(_WORDS)}")  # fmt: skip


def constants(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the C constant of --proto; raise UsageError for --histogram with --by."""
    if settings["histogram"] and settings["by"]:
        raise UsageError("--histogram has no keys: it excludes --by", "leave one out")
    if not settings["proto"]:
        return {}
    numbers = {number for word in settings["proto"] for number in _WORDS[word]}
    return {"FILTER_PROTO(x)": one_of("x", sorted(numbers))}
