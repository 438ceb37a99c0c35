"""Rows by any key are the events of the same traffic, counted by hand."""

from __future__ import annotations

import contextlib
import ipaddress
import subprocess
import sys
from collections import Counter
from importlib import import_module
from typing import Any

import pytest
from alternatives import Stage
from compared import compares
from harness import Run, netbpf_once

from netbpf.declare.tool import find_tool

# Tools, and the keys by which their events are counted, some of them together.
KEYS = {
    "soconnect": ("comm,result", "raddr,rport", "raddr/16,family", "netns,pid,uid,cgroup"),
    "soaccept": ("comm,errno", "raddr", "listener,lport", "netns,proto"),
    "solisten": ("comm,errno", "laddr,lport", "proto,family", "netns,pid,uid,cgroup"),
    "superping": ("result", "raddr,pid,comm", "raddr/16,laddr,family", "netns,uid,cgroup,owner"),
    "tcplife": ("pid,comm", "raddr/8,close", "lport,rport", "role,family,state"),
    "solife": ("comm,proto", "raddr/8,rport", "lport,laddr", "end,family", "pid,uid,cgroup"),
    "tcpstates": ("newstate", "oldstate,newstate,comm", "raddr,netns"),
    "tcpretrans": ("kind", "pid,comm,raddr", "state,family"),
    "skbdrop": (
        "reason,location",
        "saddr,sport",
        "daddr/8,dport",
        "dev,netns,proto,family",
        "pid,comm,uid,cgroup,owner",
    ),
}
COUNTED = {  # the column that counts events
    "soconnect": "attempts", "soaccept": "accepts", "tcplife": "sessions", "tcpstates": "changes",
    "skbdrop": "count", "solisten": "listens", "solife": "sockets", "superping": "requests",
}  # fmt: skip


def by_hand(run: Run, keys: str) -> Counter[tuple[object, ...]]:
    """Count events by the same keys."""
    return Counter(values_of(event, keys) for event in run.events)


def values_of(event: dict[str, Any], keys: str) -> tuple[object, ...]:
    return tuple(part(event, key) for key in keys.split(","))


def part(event: dict[str, Any], key: str) -> object:
    name, slash, length = key.partition("/")
    if not slash or event[name] is None:
        return event[name]
    address = ipaddress.ip_address(event[name])
    return str(ipaddress.ip_network(f"{address}/{length}", strict=False))


@compares("tcplife", "pid", "comm", "sessions", shape="--summary")
@compares("tcpretrans", "pid", "comm", "retransmits", "failed", "bytes", shape="--summary")
@compares("skbdrop", "netns", "family", "proto", "saddr", "sport", "daddr", "dport", "reason",
          "location", "dev", "count", "bytes", shape="--by")  # fmt: skip
@pytest.mark.parametrize("tool", KEYS)
def test_rows_by_each_key_are_the_events_counted_by_hand(
    netbpf: Any, stage: Stage, tool: str
) -> None:
    case = import_module(f"test_{tool}").ALTERNATIVES
    args = [arg for arg in case.args(stage) if arg not in ("-l", "--events")]
    of_lines = ["--events"] if tool == "skbdrop" else []
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(netbpf(tool, *args, *of_lines))
        runs = {keys: stack.enter_context(netbpf(tool, *args, "--by", keys)) for keys in KEYS[tool]}
        case.act(stage, lines)
    assert lines.events
    for keys, run in runs.items():
        names = [key.partition("/")[0] for key in keys.split(",")]
        rows = {tuple(row[name] for name in names): row for row in run.rows}
        assert len(rows) == len(run.rows)
        if tool == "tcpretrans":
            for values, row in rows.items():
                mine = [
                    e for e in lines.events if tuple(part(e, k) for k in keys.split(",")) == values
                ]
                sent = [e for e in mine if e["kind"] not in ("FAILED", "PROBE")]
                assert row["retransmits"] == sum(e["segs"] for e in sent)
                assert row["failed"] == sum(e["segs"] for e in mine if e["kind"] == "FAILED")
                assert row["bytes"] == sum(e["len"] for e in sent)
        else:
            counted = {values: row[COUNTED[tool]] for values, row in rows.items()}
            if tool in ("soaccept", "solisten"):
                counted = {k: n + rows[k]["errors"] for k, n in counted.items()}
            assert counted == by_hand(lines, keys), keys
        if tool == "skbdrop":
            sizes: Counter[tuple[object, ...]] = Counter()
            for event in lines.events:
                sizes[values_of(event, keys)] += event["len"]
            assert {values: row["bytes"] for values, row in rows.items()} == sizes
        declared = find_tool(tool)
        others = set((declared.keyed or declared.aggregation).keys) - set(names)
        assert all(row[other] is None for row in run.rows for other in others)


@compares(
    "tcplife", "open", "tx_bytes", "rx_bytes", "retrans", "p50_us", "p99_us", shape="--summary"
)
def test_sums_and_percentiles_are_those_of_the_sessions(netbpf: Any, stage: Stage) -> None:
    case = import_module("test_tcplife").ALTERNATIVES
    with (
        netbpf("tcplife", *case.args(stage)) as lines,
        netbpf("tcplife", *case.args(stage), "--summary") as run,
    ):
        case.act(stage, lines)
    rows = {(row["pid"], row["comm"]): row for row in run.rows}
    for (pid, comm), row in rows.items():
        mine = [e for e in lines.events if (e["pid"], e["comm"]) == (pid, comm)]
        for name in ("tx_bytes", "rx_bytes", "retrans"):
            assert row[name] == sum(e[name] for e in mine)
        times = sorted(e["duration_us"] for e in mine if e["duration_us"] is not None)
        if times:
            # Each run takes the time itself, one after the other.
            assert abs(row["p50_us"] - times[(len(times) - 1) // 2]) <= 100
            assert abs(row["p99_us"] - times[-1]) <= 100
        assert row["open"] == 0


@compares(
    "gethostlatency", "host", "lookups", "failures", "pending", "p50_us", "p99_us", "top_error",
    shape="--summary",
)  # fmt: skip
def test_lookups_by_host(netbpf: Any) -> None:
    program = (
        "import contextlib, socket\n"
        "for name in ['localhost'] * 3 + ['netbpf-by.invalid'] * 2:\n"
        "    with contextlib.suppress(OSError): socket.getaddrinfo(name, 80)\n"
    )
    with netbpf("gethostlatency") as lines, netbpf("gethostlatency", "--summary") as run:
        with subprocess.Popen([sys.executable, "-c", program]) as process:
            process.wait()
        lines.wait_for(lambda found: len([e for e in found if e["pid"] == process.pid]) >= 5)
    rows = {row["host"]: row for row in run.rows}
    good, bad = rows["localhost"], rows["netbpf-by.invalid"]
    assert (good["lookups"], good["failures"], good["pending"], good["top_error"]) == (
        3,
        0,
        0,
        None,
    )
    assert (bad["lookups"], bad["failures"], bad["pending"]) == (2, 2, 0)
    (error,) = {e["result"] for e in lines.events if e["host"] == "netbpf-by.invalid"}
    assert bad["top_error"] == error
    for host, row in (("localhost", good), ("netbpf-by.invalid", bad)):
        times = sorted(e["latency_us"] for e in lines.events if e["host"] == host)
        # Each run takes the time itself.
        assert abs(row["p50_us"] - times[(len(times) - 1) // 2]) <= 500
        assert abs(row["p99_us"] - times[-1]) <= 500


@pytest.mark.parametrize("words", [("--histogram", "duration_us"), ("--histogram", "tx_bytes")])
def test_distribution_of_a_column_by_key(netbpf: Any, stage: Stage, words: tuple[str, str]) -> None:
    case = import_module("test_tcplife").ALTERNATIVES
    with (
        netbpf("tcplife", *case.args(stage)) as lines,
        netbpf("tcplife", *case.args(stage), *words, "--by", "comm,role") as run,
    ):
        case.act(stage, lines)
    column = words[1]
    wanted = Counter((e["comm"], e["role"]) for e in lines.events if e[column] is not None)
    found = {(h["key"]["comm"], h["key"]["role"]): h for h in run.histograms}
    assert {key: h["count"] for key, h in found.items()} == wanted
    if column == "tx_bytes":
        for key, h in found.items():
            mine = [e[column] for e in lines.events if (e["comm"], e["role"]) == key]
            assert h["sum"] == sum(mine) and h["unit"] == "bytes"


def test_what_cannot_be_counted_is_a_usage_error() -> None:
    for words, text in (
        (("soconnect", "--by", "colour"), "'colour' is not a key"),
        (("tcplife", "--by", "comm/8"), "only addresses have blocks"),
        (("tcpretrans", "--flows", "--by", "comm"), "--by counts events"),
        (("tcplife", "--summary", "--sort", "no_column"), "--sort"),
    ):
        done = netbpf_once(*words)
        assert done.returncode == 2 and text in done.stderr and "hint" in done.stderr
