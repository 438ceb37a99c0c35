"""The network's softirqs: rows per CPU, from sums in the kernel and from softnet_stat."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from netbpf.declare import columns as c
from netbpf.declare.constants import Range, in_ranges
from netbpf.declare.record import Row, key, sums
from netbpf.declare.table import Entry, Rows

# What polled or ran: the two softirqs, a thread of NAPI (napi/eth0-8193), a program (SO_BUSY_POLL).
SOFTIRQS = {0: "NET_TX", 1: "NET_RX", 2: "thread", 3: "busy-poll"}
TIMES = {0: "run", 1: "delay"}
SLOTS = 72  # four per power of two: the last one begins at 459 ms
# Column of a row -> counter of the CPU.
_COUNTED = {
    "processed": "processed",
    "squeezed": "time_squeeze",
    "dropped": "dropped",
    "rps": "received_rps",
    "flow_limited": "flow_limit",
}
COUNTERS = tuple(f"Softnet.{name}" for name in _COUNTED.values())
PER_CPU = tuple(f"Softnet.*.{name}" for name in _COUNTED.values())

SoftirqKey = key(
    "softirq_key", cpu=c.Count("CPU", ctype="u16"), softirq=c.Enum("softirq", SOFTIRQS)
)
SoftirqSums = sums(
    "softirq_sums",
    "runs run_ns ksoftirqd polls packets budget full "
    + " ".join(f"{what}_{slot}" for what in TIMES.values() for slot in range(SLOTS)),
)
TimeKey = key("time_key", what=c.Enum("run or delay", TIMES), softirq=c.Enum("softirq", SOFTIRQS))


class CpuRow(Row):
    """What a CPU did in one softirq in an interval."""

    cpu = c.Count("CPU", width=3)
    softirq = c.Enum("NET_RX, NET_TX; thread: NAPI in a kernel thread; busy-poll: in a program",
                     SOFTIRQS, width=9)  # fmt: skip
    runs = c.Count("runs of the softirq", width=6)
    run_us = c.Duration("time in these runs", header="RUN_MS", width=7)
    run_p99_us = c.Micros("99 % of the runs took no longer", header="P99(us)", width=7)
    delay_p99_us = c.Micros("99 % began no longer after they were raised", header="DELAY(us)")
    polls = c.Count("polls of NAPI", width=7)
    packets = c.Count("packets that the polls handled", width=8)
    full = c.Count("polls that used up their budget", wide=True, width=6)
    budget = c.Count("packets that the polls were allowed to handle", wide=True)
    ksoftirqd = c.Count("runs in the thread ksoftirqd", wide=True)
    processed = c.Count("packets that the stack received (softnet_stat)", wide=True)
    squeezed = c.Count("runs that ended with work left (softnet_stat)", width=8, alert=True)
    dropped = c.Count("packets dropped at the CPU's queue (softnet_stat)", width=7, alert=True)
    rps = c.Count("wake-ups for packets from other CPUs (softnet_stat)", wide=True)
    flow_limited = c.Count("packets dropped by the flow limit (softnet_stat)", wide=True,
                           alert=True)  # fmt: skip


class Device(c.Text):
    """A network device; the queue of a CPU has none."""

    def text(self, value: Any) -> str:
        """Name the queue of the CPU."""
        return "(backlog)" if value is None else super().text(value)


NapiKey = key("napi_key", dev=c.Text("device"), napi_id=c.Count("id", null=0), netns=c.Netns())
NapiSums = sums("napi_sums", "packets polls full")


class NapiRow(Row):
    """What the polls of a NAPI instance handled in an interval."""

    dev = Device("device; null: the queues of the CPUs (lo, RPS, netif_rx)")
    napi_id = c.Count("its NAPI instance, such as one per queue", width=7)
    polls = c.Count("polls")
    packets = c.Count("packets that they handled")
    full = c.Count("polls that used up their budget", width=8)
    netns = c.Netns()


def upper_bound(slot: int) -> int:
    """Return the longest time in us that a slot counts: see slot_of() in softnet.bpf.c."""
    if slot < 8:
        return slot
    bits, quarter = divmod(slot, 4)
    return ((4 + quarter + 1) << (bits - 1)) - 1


def percentile(values: Mapping[str, int], what: str, percent: int = 99) -> Optional[int]:
    """Return the time in us that `percent` of the counted ones did not exceed, None without any."""
    counts = [values[f"{what}_{slot}"] for slot in range(SLOTS)]
    wanted, seen = -(-sum(counts) * percent // 100), 0
    for slot, count in enumerate(counts):
        seen += count
        if count and seen >= wanted:
            return upper_bound(slot)
    return None


def rows(entries: Sequence[Entry], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per CPU and softirq."""
    return [_row({**values, **names, "run_us": values["run_ns"] // 1000,
                  "run_p99_us": percentile(values, "run"),
                  "delay_p99_us": percentile(values, "delay")})
            for names, values in entries]  # fmt: skip


def _row(values: Mapping[str, Any]) -> dict[str, Any]:
    row = {column.name: values.get(column.name) for column in CpuRow.columns}
    if row["softirq"] in ("thread", "busy-poll"):  # no softirq
        row.update(dict.fromkeys(("runs", "run_us", "ksoftirqd")))
    return row


def counted(found: Rows, grown: Mapping[str, int], settings: Mapping[str, Any]) -> Rows:
    """Add what softnet_stat counted to the rows of NET_RX, and sort the rows by CPU."""
    every = {(row["cpu"], row["softirq"]): row for row in found}
    for row in found:
        if row["softirq"] == "NET_RX":
            row.update(dict.fromkeys(_COUNTED, 0))
    for column, counter in _COUNTED.items():
        for name, number in grown.items():
            _, cpu, of = name.split(".")
            if of == counter and _is_wanted(int(cpu), settings):
                place = (int(cpu), "NET_RX")
                if place not in every:
                    none = dict.fromkeys(("runs", "run_us", "ksoftirqd", *_COUNTED), 0)
                    none.update(dict.fromkeys(("polls", "packets", "full", "budget"), 0))
                    every[place] = _row({**none, "cpu": place[0], "softirq": place[1]})
                every[place][column] = number
    return [every[place] for place in sorted(every)]


def _is_wanted(cpu: int, settings: Mapping[str, Any]) -> bool:
    ranges = settings["cpu"]
    return not ranges or any(low <= cpu <= high for low, high in ranges)


def cpus(text: str) -> list[Range]:
    """Parse "0,4-7" into inclusive (low, high) pairs of numbers of CPUs."""
    pairs = []
    for word in text.split(","):
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", word)
        if not match or int(match[1]) > int(match[2] or match[1]):
            raise ValueError(f"'{word}' is not a CPU or a range of CPUs")
        pairs.append((int(match[1]), int(match[2] or match[1])))
    return pairs


def constants(settings: Mapping[str, Any]) -> dict[str, object]:
    """Return the filter of CPUs, and the size of the distributions."""
    found: dict[str, object] = {"TIME_SLOTS": SLOTS}
    if settings["cpu"]:
        found["FILTER_CPU(x)"] = in_ranges("x", settings["cpu"])
    return found
