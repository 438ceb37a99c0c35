"""sockstat counts what programs do with sockets, call by call and byte by byte."""

from __future__ import annotations

import csv
import io
import socket
from collections.abc import Iterator
from typing import Any

import calls
import pytest
import topology
from alternatives import Case, everything
from calls import Caller, by_process, difference, shown, totals
from compared import compares
from harness import ATTEMPTS, Json, Run, netbpf_once, wait_until
from topology import Host

from netbpf.kernel.btf import Btf

NOBODY = 65534
UNSEEN_OF_A_RING = ("connect", "accept", "close")  # of what such old kernels' io_uring can do


@pytest.fixture(scope="module")
def start() -> Iterator[Any]:
    """Start processes that make calls; they end with the module."""
    with calls.callers() as start:
        yield start


@pytest.fixture(scope="module")
def caller(start: Any) -> Caller:
    """A process that makes calls, for all tests that need no more."""
    return start()  # type: ignore[no-any-return]


def counters(run: Run) -> list[Json]:
    """The kernel's counters of each interval."""
    return [line["counters"] for line in run.lines if line["type"] == "counters"]


# --- every call, every byte, every error ---------------------------------------------------------


@compares("sockstat", "top_error", "proto", shape="rows")
def test_rows_equal_what_the_program_did(netbpf: Any, caller: Caller) -> None:
    for _ in range(ATTEMPTS):
        with netbpf("sockstat", "-p", caller.pid) as run:
            told = caller.go("everything", 23)
        if run.summary["complete"]:
            break
        # Since 7.0 a program can be preempted; on a busy CPU others are then skipped, and counted.
        assert run.summary["lost"]["probe_missed"]
    assert run.summary["complete"]
    assert not difference(shown(run.rows), told.rows)
    for row in run.rows:
        failed = told.errors.get((row["op"], row["proto"]))
        if failed:
            most = max(failed.values())
            assert failed[row["top_error"]] == most, row
        else:
            assert row["top_error"] is None


@compares("sockstat", "op", "calls", "errors", shape="rows")
def test_strace_saw_the_same_calls(netbpf: Any, start: Any, tmp_path: Any) -> None:
    caller = start("nb-traced", trace=tmp_path / "strace")
    with netbpf("sockstat", "--comm", "nb-traced") as run:
        for scene in ("tcp4", "tcp6", "unix", "netlink", "errors"):
            caller.go(scene, 3)
    caller.stop()
    seen = calls.traced(tmp_path / "strace")
    rows = shown(run.rows, "op")
    # strace also saw the start of the program, which makes no socket calls.
    wanted = {
        (op,): (sum(n.values()), sum(v for e, v in n.items() if e and e not in calls.WAITS))
        for op, n in seen.items()
    }
    assert not difference({op: (row.calls, row.errors) for op, row in rows.items()}, wanted)


@pytest.mark.parametrize("kind", ["rawtp", "tp"])
def test_io_uring_is_included(netbpf: Any, caller: Caller, kind: str) -> None:
    calls.needs_ring(caller)
    # Before 5.18 only messages are seen: the manual says so.
    seen = "req" in (Btf().parameters("__traceiter_io_uring_complete") or ())
    words = ("--probe", f"ring={kind},ring_close={kind}") if seen else ()
    with netbpf("sockstat", "-p", caller.pid, *words) as run:
        told = caller.go("ring", 23).rows
    if not seen:
        told = {key: row for key, row in told.items() if key[0] not in UNSEEN_OF_A_RING}
    assert not difference(shown(run.rows), told)


@compares("sockstat", "bytes", shape="rows")
def test_a_file_sent_to_a_socket_counts_with_its_bytes(netbpf: Any, caller: Caller) -> None:
    with netbpf("sockstat", "-p", caller.pid) as run:
        told = caller.go("sendfile", 3)
    # Before 6.5 (2dc334f1a63a), pages go to a socket past its sendmsg: the manual says so.
    if Btf().parameters("unix_stream_sendpage"):
        assert ("send", "unix") not in shown(run.rows)
        return
    assert shown(run.rows)["send", "unix"].bytes == told.rows["send", "unix"].bytes == 300009


# --- intervals -----------------------------------------------------------------------------------


def test_intervals_add_up_to_the_total(netbpf: Any, caller: Caller) -> None:
    told: dict[Any, calls.Row] = {}
    with netbpf("sockstat", "-p", caller.pid, "0.1") as run:

        def enough() -> bool:
            # Without a pause: calls are made while the tool reads its map.
            for key, row in caller.go("everything", 3).rows.items():
                told[key] = told.get(key, calls.Row()) + row
            return len({row["time"] for row in run.rows}) >= 7

        wait_until(enough, what="seven intervals with rows")
    assert not difference(shown(run.rows), told)
    assert run.summary["complete"]
    assert run.summary["events"] == len(run.rows)
    assert len(counters(run)) >= 7


def test_calls_before_the_start_and_after_the_end_do_not_count(netbpf: Any, caller: Caller) -> None:
    caller.go("tcp4", 5)
    with netbpf("sockstat", "-p", caller.pid) as run:
        told = caller.go("tcp4", 2)
    caller.go("tcp4", 5)
    assert not difference(shown(run.rows), told.rows)


def test_an_accept_that_began_before_the_start_counts(netbpf: Any, caller: Caller) -> None:
    for _ in range(ATTEMPTS):
        caller.tell("blocked")
        ports = caller.answer()["ports"]
        with netbpf("sockstat", "-p", caller.pid) as run:
            for port in ports:
                socket.create_connection(("127.0.0.1", port)).close()
            caller.answer()
        if not run.summary["lost"]["probe_missed"]:
            break
    assert shown(run.rows)["accept", "tcp4"] == calls.Row(calls=3)


def test_count_of_intervals_ends_it(netbpf: Any, caller: Caller) -> None:
    with netbpf("sockstat", "-p", caller.pid, "0.1", "3") as run:
        assert run.wait_end() == 0
    assert len(counters(run)) == 3
    assert run.summary["stopped_by"] == "count"


# --- views ---------------------------------------------------------------------------------------


def test_no_split_joins_the_protocols(netbpf: Any, caller: Caller) -> None:
    with netbpf("sockstat", "-p", caller.pid, "--no-split") as run:
        told = caller.go("everything", 2)
    assert not difference(shown(run.rows, "op"), told.joined())
    assert {row["proto"] for row in run.rows} == {None}
    assert [row["op"] for row in run.rows] == calls.ALL_OPS


@compares("sockstat", "op", "pid", "comm", "calls", "errors", "would_block", "bytes", shape="--top")
def test_top_shows_the_busiest_processes_of_each_operation(netbpf: Any, start: Any) -> None:
    workers = [start(f"nb-top-{name}") for name in "abc"]
    with netbpf("sockstat", "--comm", "nb-top-*", "--top", "2") as run:
        tolds = [worker.go("tcp4", times) for worker, times in zip(workers, (3, 11, 7))]
    together: dict[Any, calls.Row] = {}
    for told in tolds:
        for key, row in told.rows.items():
            together[key] = together.get(key, calls.Row()) + row
    assert not difference(shown(totals(run)), together)
    rows = by_process(run)
    ops = [op for op in calls.ALL_OPS if (op, "tcp4") in together]
    order = [(op, workers[i].pid, workers[i].comm) for op in ops for i in (1, 2)]
    assert [(row["op"], row["pid"], row["comm"]) for row in rows] == order
    for i in (1, 2):
        own = [row for row in rows if row["pid"] == workers[i].pid]
        assert not difference(shown(own, "op"), tolds[i].joined())


def test_the_kernels_counters_are_those_of_the_namespace(
    netbpf: Any, start: Any, one_host: Host
) -> None:
    caller = start("nb-flood", host=one_host)
    before = one_host.snmp()["UdpRcvbufErrors"]
    with netbpf("sockstat", "--netns", one_host.namespace, "0.2") as run:
        told = caller.go("overflow", 2)
        wait_until(lambda: len(counters(run)) >= 2, what="two intervals")
    rise = one_host.snmp()["UdpRcvbufErrors"] - before
    assert 0 < rise < 100
    assert sum(each["Udp.RcvbufErrors"] for each in counters(run)) == rise
    assert run.summary["counters"]["Udp.RcvbufErrors"] == rise
    assert shown(run.rows)["send", "udp4"] == told.rows["send", "udp4"]


# --- filters -------------------------------------------------------------------------------------


def only(netbpf: Any, wanted: Caller, others: list[Caller], *words: object) -> None:
    """Of several processes that do the same, a filter lets one through."""
    with netbpf("sockstat", *words) as run:
        told = wanted.go("everything", 3)
        for other in others:
            other.go("everything", 5)
    assert not difference(shown(run.rows), told.rows)


def test_filter_by_pid(netbpf: Any, start: Any, caller: Caller) -> None:
    other = start("nb-other")
    only(netbpf, caller, [other], "-p", caller.pid)
    with netbpf("sockstat", "-p", f"{caller.pid},{other.pid}") as run:
        told = caller.go("unix", 2), other.go("unix", 3)
    assert (
        shown(run.rows)["send", "unix"]
        == told[0].rows["send", "unix"] + told[1].rows["send", "unix"]
    )


def test_filter_by_name(netbpf: Any, start: Any) -> None:
    only(netbpf, start("nb-mine-x"), [start("nb-mind"), start("nb-mine")], "--comm", "nb-mine-?")


def test_filter_by_user(netbpf: Any, start: Any, caller: Caller) -> None:
    mine = start("nb-nobody", uid=NOBODY)
    with netbpf("sockstat", "-u", NOBODY) as run:
        told = mine.go("tcp4", 3)
        caller.go("tcp4", 5)
    assert not difference(shown(run.rows), told.rows)


def test_filter_by_cgroup(netbpf: Any, caller: Caller) -> None:
    with topology.cgroup("inner") as path, calls.callers() as start:
        mine = start("nb-group", cgroup=path)
        for level in (path, path.parent):
            only(netbpf, mine, [caller], "--cgroup", level)


def test_filter_by_network_namespace(
    netbpf: Any, start: Any, caller: Caller, one_host: Host
) -> None:
    mine = start("nb-inside", host=one_host)
    only(netbpf, mine, [caller], "--netns", one_host.namespace)


@pytest.mark.parametrize("option", ["-4", "-6"])
def test_filter_by_family(netbpf: Any, caller: Caller, option: str) -> None:
    mine = {"-4": ("tcp4", "udp4"), "-6": ("tcp6", "udp6")}[option]
    with netbpf("sockstat", "-p", caller.pid, option) as run:
        told = caller.go("everything", 3)
    wanted = {key: row for key, row in told.rows.items() if key[1] in mine}
    found = {key: row for key, row in shown(run.rows).items() if key[1] != "other"}
    assert not difference(found, wanted)


@pytest.mark.parametrize("more", [(), ("--laddr", "127.0.0.0/8"), ("--raddr", "127.0.0.1")])
def test_filter_by_local_port_and_address(
    netbpf: Any, caller: Caller, more: tuple[str, ...]
) -> None:
    with netbpf("sockstat", "-p", caller.pid, "-L", 23457, *more) as run:
        told = caller.go("session", 3, "127.0.0.1", 23457)
        caller.go("session", 2, "127.0.0.1", 23456)
        other = caller.go("session", 2, "::1", 23457)
    wanted = dict(told.rows) if more else {**told.rows, **other.rows}
    if "--raddr" not in more:  # when it gets its port, a socket has no peer
        wanted["bind", "tcp4"] = calls.Row(calls=3)
    if not more:
        wanted["bind", "tcp6"] = calls.Row(calls=2)
    assert not difference(shown(run.rows), wanted)


def test_filter_by_remote_port(netbpf: Any, caller: Caller) -> None:
    with netbpf("sockstat", "-p", caller.pid, "-D", 23458) as run:
        caller.go("session", 3, "127.0.0.1", 23458)
        caller.go("session", 2, "127.0.0.1", 23459)
    rows = shown(run.rows)
    # The server's end of those sessions: accepted, read, closed.
    assert rows["accept", "tcp4"] == calls.Row(calls=3)
    assert rows["recv", "tcp4"] == calls.Row(calls=3, bytes=3 * 1234)
    assert rows["close", "tcp4"] == calls.Row(calls=3)
    assert set(rows) == {(op, "tcp4") for op in ("accept", "recv", "close")}


# --- honesty -------------------------------------------------------------------------------------


def test_a_full_map_is_counted(netbpf: Any, caller: Caller) -> None:
    words = ("-p", caller.pid, "--map-entries", 1, "--fail-on-loss")
    with netbpf("sockstat", *words, returncode=3) as run:
        caller.tell("blocked")
        for port in caller.answer()["ports"]:
            socket.create_connection(("127.0.0.1", port)).close()
        caller.answer()
    # Three threads hang in accept, one has room; the results tell enough to count them all.
    assert run.summary["lost"]["map_full"] == 2
    assert not run.summary["complete"]
    assert shown(run.rows)["accept", "tcp4"] == calls.Row(calls=3)


def test_probes_say_where_messages_are_seen(netbpf: Any, caller: Caller) -> None:
    with netbpf("sockstat", "-p", caller.pid) as run:
        caller.go("unix")
    probes = {probe["name"]: probe for probe in run.summary["probes"]}
    assert probes["send"]["kind"] and probes["recv"]["kind"]
    if probes["send"]["kind"] == "rawtp":
        assert probes["send"]["targets"] == ["sock_send_length"]
    # 23 system calls and messages or so: what is counted is what was run.
    assert run.summary["overhead"]["runs"] > 23


# --- text and CSV --------------------------------------------------------------------------------


def test_text_has_the_columns_and_fits_a_terminal(netbpf: Any, caller: Caller) -> None:
    words = ("-p", caller.pid, "--top", 3)
    with netbpf("sockstat", *words, json_lines=False) as run:
        caller.go("everything", 23)
    lines = run.stdout.splitlines()
    assert lines[0].split() == "OP PROTO CALLS ERRORS WOULD_BLOCK KB TOP_ERROR".split()
    below = [line.split() for line in lines].index(
        "OP PID COMM CALLS ERRORS WOULD_BLOCK KB".split()
    )
    # Longer words for an error stick out, as the last of a line.
    assert lines[0].index("TOP_ERROR") + len("Connection refused") <= 80
    assert max(len(line) for line in lines[below:]) <= 80
    refused = next(line for line in lines if line.split()[:2] == ["connect", "tcp4"])
    assert refused.endswith("Connection refused")
    assert any(line.startswith("kernel: ") for line in lines)


def test_csv_has_one_kind_of_rows(netbpf: Any, caller: Caller) -> None:
    with netbpf("sockstat", "-p", caller.pid, "-o", "csv", json_lines=False) as run:
        told = caller.go("everything", 2)
    rows = list(csv.DictReader(io.StringIO(run.stdout)))
    numbers = [{**row, **{name: int(row[name]) for name in calls.Row._fields}} for row in rows]
    assert not difference(shown(numbers), told.rows)
    assert {row["top_error"] for row in rows} >= {"", "ECONNREFUSED"}


def test_top_and_csv_exclude_each_other() -> None:
    done = netbpf_once("sockstat", "--top", "3", "-o", "csv", "-d", "1")
    assert done.returncode == 2
    assert "--top" in done.stderr and "hint:" in done.stderr


@pytest.mark.parametrize("words", [("--top", "0"), ("--top", "many"), ("-n", "3"), ("--open",)])
def test_nonsense_is_a_usage_error(words: tuple[str, ...]) -> None:
    done = netbpf_once("sockstat", *words, "-d", "1")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr


# --- whatever the kind of probe ------------------------------------------------------------------


ALTERNATIVES = Case(
    lambda s: ("-p", s.caller.pid), everything, lambda run, lost: sorted(shown(run.rows).items())
)
