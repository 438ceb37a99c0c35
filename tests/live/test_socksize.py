"""socksize counts each message in the bucket of its size, as the program that moved it reports."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import calls
import pytest
import topology
from alternatives import Case, everything
from bpf_maps import keys_of
from calls import Caller, Told, difference, shown
from compared import compares
from harness import ATTEMPTS, Json, Run, netbpf_once, wait_until
from packets import log2_buckets
from test_sockstat_by import CONTAINER, NOBODY, TALK, cgroup_of
from test_sockstat_signals import in_call, states
from topology import Host

from netbpf.kernel.btf import Btf

MESSAGES = ("send", "recv")
SMALL = 128
PR_SET_NAME = 15  # linux/prctl.h
EDGES = (0, 1, 2, 3, 4, 127, 128, 129, 255, 256, 4095, 4096, 65535, 65536)
BY_PROCESS = ("tcp4", "tcp6", "udp4", "unix", "errors", "failures")  # any user may play these


@pytest.fixture(scope="module")
def start() -> Iterator[Any]:
    """Start processes that make calls; they end with the module."""
    with calls.callers() as start:
        yield start


@pytest.fixture(scope="module")
def caller(start: Any) -> Caller:
    """A process that makes calls, for all tests that need no more."""
    return start()  # type: ignore[no-any-return]


def wanted(*told: Told, by: tuple[str, ...] = ("op", "proto")) -> dict[tuple[str, ...], Json]:
    """Return what must be shown of what processes did, by `by`: op, proto or both."""
    found: dict[tuple[str, ...], Json] = {}
    sizes: dict[tuple[str, ...], list[int]] = {}
    for one in told:
        for (op, proto), row in one.rows.items():
            if op in MESSAGES:
                key = tuple({"op": op, "proto": proto}[name] for name in by)
                fields = found.setdefault(key, {**calls.Row()._asdict(), "peeks": 0})
                for name, value in row._asdict().items():
                    fields[name] += value
        for (op, proto, size), number in one.sizes.items():
            key = tuple({"op": op, "proto": proto}[name] for name in by)
            if size is None:
                found[key]["peeks"] += number
            else:
                sizes.setdefault(key, []).extend([size] * number)
    return {key: {**fields, **distribution(sizes.get(key, []))} for key, fields in found.items()}


def distribution(sizes: list[int]) -> Json:
    """Return the fields of the distribution of these sizes."""
    sizes = sorted(sizes)
    number = len(sizes)
    small = sum(size <= SMALL for size in sizes)
    percentiles = {}
    for percent in (50, 90, 99):
        exact = sizes[-(-number * percent // 100) - 1] if sizes else None
        # A percentile is known as far as its bucket.
        percentiles[f"p{percent}"] = None if exact is None else (1 << exact.bit_length()) - 1
    return {
        "buckets": log2_buckets(sizes),
        "count": number,
        "sum": sum(sizes),
        "percentiles": percentiles,
        "average": round(sum(sizes) / number, 1) if sizes else 0,
        "small_share": round(small / number, 4) if sizes else 0,
    }


FIELDS = (*calls.Row._fields, "peeks", *distribution([]))


def found(run: Run, *names: str) -> dict[tuple[Any, ...], Json]:
    """Return the fields of each histogram by the columns `names` of its key, and no others."""
    shown: dict[tuple[Any, ...], Json] = {}
    for histogram in run.histograms:
        assert set(histogram["key"]) == set(names or ("op", "proto"))
        fields = {name: histogram[name] for name in FIELDS}
        fields["buckets"] = {(b["low"], b["high"]): b["count"] for b in fields["buckets"]
                             if b["count"]}  # fmt: skip
        fields["percentiles"] = {n: v for n, v in fields["percentiles"].items() if n != "bounds"}
        key = tuple(histogram["key"][name] for name in names or ("op", "proto"))
        assert key not in shown
        shown[key] = fields
    return shown


def sums(run: Run, *names: str) -> dict[tuple[Any, ...], tuple[int, int]]:
    """Return {key: (calls, bytes)} over all intervals."""
    added: dict[tuple[Any, ...], tuple[int, int]] = {}
    for histogram in run.histograms:
        key = tuple(histogram["key"][name] for name in names)
        number, moved = added.get(key, (0, 0))
        added[key] = (number + histogram["calls"], moved + histogram["bytes"])
    return added


def done(told: Told, *names: str) -> dict[tuple[Any, ...], tuple[int, int]]:
    """Return what sums() must be."""
    fields = wanted(told, by=names)
    return {key: (one["calls"], one["bytes"]) for key, one in fields.items()}


# --- every message, every size -------------------------------------------------------------------


@compares("socksize", "buckets", "count", "sum", "percentiles", "op", "proto", shape="histogram")
@compares("socksize", "calls", "bytes", "errors", "would_block", "peeks", "average", "small_share",
          shape="histogram")  # fmt: skip
def test_histograms_equal_what_the_program_did(netbpf: Any, caller: Caller) -> None:
    words = ("-p", caller.pid, "--by")
    for _ in range(ATTEMPTS):
        with (
            netbpf("socksize", *words, "op,proto") as run,
            netbpf("socksize", *words, "op") as joined,
        ):
            told = caller.go("everything", 23)
        if run.summary["complete"] and joined.summary["complete"]:
            break
        # Since 7.0 a program can be preempted; on a busy CPU others are then skipped, and counted.
        assert run.summary["lost"]["probe_missed"] or joined.summary["lost"]["probe_missed"]
    assert run.summary["complete"] and joined.summary["complete"]
    assert not difference(found(run), wanted(told))
    assert not difference(found(joined, "op"), wanted(told, by=("op",)))
    assert run.summary["events"] == sum(h["count"] for h in run.histograms)


def test_a_size_is_in_its_bucket_to_the_byte(netbpf: Any, caller: Caller) -> None:
    with netbpf("socksize", "-p", caller.pid) as run:
        told = caller.go("sized", 7, *EDGES)
    shown = found(run, "op", "comm")
    assert not difference(
        shown, {(op, caller.comm): fields for (op,), fields in wanted(told, by=("op",)).items()}
    )
    sends, receives = (shown[op, caller.comm] for op in MESSAGES)
    assert sends["buckets"][0, 0] == 7 and receives["buckets"][0, 0] == 14  # the end of file
    assert sends["buckets"][128, 255] == 3 * 7
    assert sends["small_share"] == round(EDGES.index(129) / len(EDGES), 4)


@compares("socksize", "comm", "op", shape="histogram")
def test_strace_saw_the_same_sizes(netbpf: Any, start: Any, tmp_path: Path) -> None:
    caller = start("nb-sz-traced", trace=tmp_path / "strace")
    with netbpf("socksize", "--comm", "nb-sz-traced") as run:
        for scene in ("tcp4", "tcp6", "unix", "netlink", "errors"):
            caller.go(scene, 3)
    caller.stop()
    sizes, peeks, failed = traced(tmp_path / "strace")
    for (op, comm), fields in found(run, "op", "comm").items():
        assert comm == "nb-sz-traced"
        assert fields["buckets"] == log2_buckets(sizes[op])
        assert (fields["bytes"], fields["peeks"]) == (sum(sizes[op]), peeks[op])
        assert fields["errors"] + fields["would_block"] == failed[op]
    assert len(run.histograms) == 2 and peeks["recv"] > 23 and failed["send"] > 2


_LINE = re.compile(r"^\d+ +(\w+)\(\d+<(?:TCP|UDP|UNIX|NETLINK)(.*)\) += (-?\d+)")


def traced(path: Path) -> tuple[dict[str, list[int]], Counter[str], Counter[str]]:
    """Return the sizes that strace saw of sends and receives, their peeks, and their failures."""
    sizes: dict[str, list[int]] = {"send": [], "recv": []}
    peeks: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        match = _LINE.match(line)
        op = calls.OPS.get(match[1], "") if match else ""
        if not match or op not in MESSAGES:
            continue
        if int(match[3]) < 0:
            failed[op] += 1
        elif "MSG_PEEK" in match[2]:
            peeks[op] += 1
        else:
            sizes[op].append(int(match[3]))
    return sizes, peeks, failed


@pytest.mark.parametrize("scene", ["everything", "failures", "sendfile", "ring"])
def test_sockstat_shows_the_same_calls_and_bytes(netbpf: Any, caller: Caller, scene: str) -> None:
    if scene == "ring":
        calls.needs_ring(caller)
    words = ("-p", caller.pid, "--op", "send,recv", "--by", "op,proto")
    with netbpf("socksize", *words) as run, netbpf("sockstat", *words) as other:
        told = caller.go(scene, 5)
    assert run.summary["complete"] and other.summary["complete"]
    rows = shown(other.rows)
    assert {key: calls.Row(*(fields[name] for name in calls.Row._fields))
            for key, fields in found(run).items()} == rows  # fmt: skip
    if scene != "sendfile":
        assert not difference(found(run), wanted(told))
    # Before 6.5 (2dc334f1a63a), pages go to a socket past its sendmsg: the manual says so.
    elif not Btf().parameters("unix_stream_sendpage"):
        assert found(run)["send", "unix"]["sum"] == 5 * 100003


def test_threads_count_with_the_name_of_their_process(netbpf: Any) -> None:
    comm = Path("/proc/self/comm").read_text().rstrip("\n")
    one, two = socket.socketpair()

    def talk() -> None:
        ctypes.CDLL(None).prctl(PR_SET_NAME, b"nb-sz-thread", 0, 0, 0)
        for _ in range(7):
            one.send(bytes(11))
            two.recv(100)

    with one, two, netbpf("socksize", "-p", os.getpid()) as run:
        thread = threading.Thread(target=talk)
        thread.start()
        thread.join()
    assert sums(run, "op", "comm") == {("send", comm): (7, 77), ("recv", comm): (7, 77)}


# --- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["restart", "fail", "both"])
def test_interrupted_calls_count_as_the_program_saw_them(netbpf: Any, start: Any, how: str) -> None:
    caller = start("nb-signals")
    with netbpf("socksize", "-p", caller.pid, "--by", "op,proto") as run:
        told = caller.go("interrupted", 1, "recv", how, 7)
    assert not difference(found(run), wanted(told))
    again = {"restart": 7, "fail": 0, "both": 4}[how]
    assert found(run)["recv", "unix"]["errors"] == 7 - again


def test_a_call_in_which_the_process_dies_has_no_size_and_no_error(netbpf: Any, start: Any) -> None:
    caller = start("nb-killed")
    with netbpf("socksize", "-p", caller.pid) as run:
        caller.tell("blocked_recv")
        fd = caller.answer()["fd"]
        wait_until(lambda: in_call(caller.pid, fd), what="a process that waits in recv")
        os.kill(caller.pid, signal.SIGKILL)
        wait_until(lambda: states(caller.pid) <= {"Z"}, what="the end of the process")
        assert keys_of(run, "interruptions") == []
    (histogram,) = run.histograms
    assert (histogram["calls"], histogram["errors"], histogram["count"]) == (1, 0, 0)
    assert histogram["buckets"] == []


# --- keys ----------------------------------------------------------------------------------------


@compares("socksize", "comm", "pid", "uid", "cgroup", shape="histogram")
def test_sizes_by_process(netbpf: Any, start: Any) -> None:
    one = start("nb-size-one")
    with topology.cgroup(f"docker-{CONTAINER}.scope") as cgroup, contextlib.ExitStack() as stack:
        callers = stack.enter_context(calls.callers())
        two = callers("nb-size-two", uid=NOBODY, cgroup=cgroup)
        known = {
            "comm": (one.comm, two.comm),
            "pid": (one.pid, two.pid),
            "uid": (0, NOBODY),
            "container": (None, CONTAINER),
            "cgroup": (cgroup_of(one.pid), cgroup_of(two.pid)),
        }
        runs = {
            name: stack.enter_context(
                netbpf("socksize", "--comm", "nb-size-*", "--by", f"{name},op")
            )
            for name in known
        }
        told = [
            [caller.go(scene, times) for scene in BY_PROCESS]
            for caller, times in zip((one, two), (2, 3))
        ]
        for run in runs.values():
            run.stop()
    for name, values in known.items():
        parts = {
            (str(value), *key): fields
            for value, of in zip(values, told)
            for key, fields in wanted(*of, by=("op",)).items()
        }
        seen = {(str(value), op): f for (value, op), f in found(runs[name], name, "op").items()}
        assert not difference(seen, parts), name


@compares("socksize", "laddr", "lport", "raddr", "rport", "netns", "family", shape="histogram")
def test_sizes_by_address(netbpf: Any, one_host: Host) -> None:
    plan = [("127.0.1.1", 2), ("127.0.2.9", 3), ("127.64.0.1", 5), ("::1", 4)]
    command = one_host.inside(sys.executable, "-I", "-S", "-c", TALK.format(plan=plan))
    lists = ("raddr,rport,lport", "raddr/24,laddr/8", "raddr/0", "family", "netns", "laddr")
    args = ("socksize", "--netns", one_host.inode, "--op", "send", "--proto", "udp,unix", "--by")
    with contextlib.ExitStack() as stack:
        runs = {by: stack.enter_context(netbpf(*args, by)) for by in lists}
        spoken = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    ports = [tuple(map(int, line.split())) for line in spoken.stdout.splitlines()]

    def counts(by: str) -> dict[tuple[Any, ...], tuple[int, int]]:
        return sums(runs[by], *(part.partition("/")[0] for part in by.split(",")))

    def both(**of: Any) -> tuple[int, int]:
        return (of["sevens"] + of.get("ones", 0), 7 * of["sevens"] + of.get("ones", 0))

    ends = {(host, there, here): both(sevens=n) for (host, n), (here, there) in zip(plan, ports)}
    nowhere = both(sevens=0, ones=11)
    assert counts("raddr,rport,lport") == {**ends, (None, None, None): nowhere}
    assert counts("raddr/24,laddr/8") == {
        ("127.0.1.0/24", "127.0.0.0/8"): both(sevens=2),
        ("127.0.2.0/24", "127.0.0.0/8"): both(sevens=3),
        ("127.64.0.0/24", "127.0.0.0/8"): both(sevens=5),
        ("::/24", "::/8"): both(sevens=4),
        (None, None): nowhere,
    }
    assert counts("raddr/0") == {
        ("0.0.0.0/0",): both(sevens=10), ("::/0",): both(sevens=4), (None,): nowhere
    }  # fmt: skip
    assert counts("family") == {
        ("ipv4",): both(sevens=10), ("ipv6",): both(sevens=4), ("unix",): nowhere
    }  # fmt: skip
    assert counts("netns") == {(one_host.inode,): both(sevens=14, ones=11)}
    own: Counter[str] = Counter()
    for host, times in plan:
        with one_host.socket(socket.AF_INET6 if ":" in host else socket.AF_INET,
                             socket.SOCK_DGRAM) as sender:  # fmt: skip
            sender.connect((host, 9))
            own[sender.getsockname()[0]] += times
    assert counts("laddr") == {(None,): nowhere} | {
        (address,): both(sevens=times) for address, times in own.items()
    }


def test_top_shows_the_keys_with_the_most_calls_first(netbpf: Any, start: Any) -> None:
    workers = [start(f"nb-most-{name}") for name in "abc"]
    words = ("socksize", "--comm", "nb-most-*", "--by", "comm")
    with netbpf(*words) as run, netbpf(*words, "--top", 2) as first:
        for worker, times in zip(workers, (3, 11, 7)):
            worker.go("tcp4", times)
    order = [histogram["key"]["comm"] for histogram in run.histograms]
    assert order == ["nb-most-b", "nb-most-c", "nb-most-a"]
    assert [histogram["key"]["comm"] for histogram in first.histograms] == order[:2]
    assert found(first, "comm").items() <= found(run, "comm").items()
    assert first.summary["events"] == run.summary["events"]


# --- filters -------------------------------------------------------------------------------------


def only(netbpf: Any, mine: Caller, others: list[Caller], *words: object) -> None:
    """Of several processes that do the same, a filter selects one."""
    with netbpf("socksize", "--by", "op,proto", *words) as run:
        told = mine.go("everything", 3)
        for other in others:
            other.go("everything", 5)
    assert not difference(found(run), wanted(told))


def test_filter_by_pid(netbpf: Any, start: Any, caller: Caller) -> None:
    only(netbpf, caller, [start("nb-other")], "-p", caller.pid)


def test_filter_by_name(netbpf: Any, start: Any) -> None:
    only(
        netbpf,
        start("nb-sz-mine-x"),
        [start("nb-sz-mind"), start("nb-sz-mine")],
        "--comm",
        "nb-sz-mine-?",
    )


def test_filter_by_user(netbpf: Any, start: Any, caller: Caller) -> None:
    user = 100_000 + os.getpid()  # nobody else's
    mine = start("nb-user", uid=user)
    with netbpf("socksize", "-u", user, "--by", "op,proto") as run:
        told = mine.go("tcp4", 3)
        caller.go("tcp4", 5)
    assert not difference(found(run), wanted(told))


def test_filter_by_cgroup(netbpf: Any, caller: Caller) -> None:
    with topology.cgroup("inner") as path, calls.callers() as start:
        mine = start("nb-group", cgroup=path)
        for level in (path, path.parent):
            only(netbpf, mine, [caller], "--cgroup", level)


def test_filter_by_network_namespace(
    netbpf: Any, start: Any, caller: Caller, one_host: Host
) -> None:
    mine = start("nb-inside", host=one_host)
    # Other tools ask each namespace for its counters, through netlink.
    only(netbpf, mine, [caller], "--netns", one_host.namespace, "--comm", "nb-*")


@pytest.mark.parametrize(
    ("words", "ops", "protos"),
    [
        (("-4",), MESSAGES, ("tcp4", "udp4", "other")),
        (("-6",), MESSAGES, ("tcp6", "udp6")),
        (("--op", "send"), ("send",), ()),
        (("--op", "recv"), ("recv",), ()),
        (("--op", "send,recv", "--proto", "tcp,netlink"), MESSAGES, ("tcp4", "tcp6", "netlink")),
        (("--proto", "unix", "--op", "recv"), ("recv",), ("unix",)),
        (("--proto", "udp6"), MESSAGES, ("udp6",)),
    ],
    ids=lambda value: "-".join(value),
)
def test_filters_of_calls_and_families(
    netbpf: Any, caller: Caller, words: tuple[str, ...], ops: Any, protos: Any
) -> None:
    with netbpf("socksize", "-p", caller.pid, "--by", "op,proto", *words) as run:
        told = caller.go("everything", 3)
    parts = wanted(told)
    expected = {
        (op, proto): fields
        for (op, proto), fields in parts.items()
        if op in ops and proto in (protos or {proto})
    }
    if words == ("-4",):  # of the two other sockets, the raw one
        other = expected["recv", "other"]
        expected["recv", "other"] = {**other, "calls": 3, "would_block": 3}
        assert other["calls"] == other["would_block"] == 6
    assert expected and not difference(found(run), expected)


@pytest.mark.parametrize("more", [(), ("--laddr", "127.0.0.0/8"), ("--raddr", "127.0.0.1")])
def test_filter_by_local_port_and_address(
    netbpf: Any, caller: Caller, more: tuple[str, ...]
) -> None:
    with netbpf("socksize", "-p", caller.pid, "--by", "op,proto", "-L", 23467, *more) as run:
        told = caller.go("session", 3, "127.0.0.1", 23467)
        caller.go("session", 2, "127.0.0.1", 23466)
        other = caller.go("session", 2, "::1", 23467)
    assert not difference(found(run), wanted(told) if more else wanted(told, other))


def test_filter_by_remote_port(netbpf: Any, caller: Caller) -> None:
    with netbpf("socksize", "-p", caller.pid, "--by", "op,proto", "-D", 23468) as run:
        caller.go("session", 3, "127.0.0.1", 23468)
        caller.go("session", 2, "127.0.0.1", 23469)
    # The server's end of those sessions.
    assert sums(run, "op", "proto") == {("recv", "tcp4"): (3, 3 * 1234)}


# --- intervals, losses ---------------------------------------------------------------------------


def test_intervals_add_up_to_the_total(netbpf: Any, caller: Caller) -> None:
    total: dict[Any, tuple[int, int]] = {}
    with netbpf("socksize", "-p", caller.pid, "--by", "op,proto", "0.1") as run:

        def enough() -> bool:
            # Without a pause: messages are counted while the tool reads its map.
            for key, (number, moved) in done(caller.go("everything", 3), "op", "proto").items():
                before = total.get(key, (0, 0))
                total[key] = (before[0] + number, before[1] + moved)
            return len({histogram["time"] for histogram in run.histograms}) >= 7

        wait_until(enough, what="seven intervals with histograms")
    assert sums(run, "op", "proto") == total
    assert run.summary["complete"]


def test_what_finds_no_room_is_counted(netbpf: Any) -> None:
    words = ("-p", os.getpid(), "--map-entries", 2, "--by", "rport", "--op", "send")
    with netbpf("socksize", *words, "--fail-on-loss", returncode=3) as run:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for port in range(9000, 9023):
                sender.connect(("127.0.0.1", port))
                with contextlib.suppress(ConnectionRefusedError):
                    sender.send(b"x")
    seen = sum(histogram["calls"] for histogram in run.histograms)
    assert len(run.histograms) == 2 and seen + run.summary["lost"]["map_full"] == 23


# --- text, CSV, usage ----------------------------------------------------------------------------


def test_text_has_a_line_of_numbers_and_the_bars(netbpf: Any, caller: Caller) -> None:
    with netbpf("socksize", "-p", caller.pid, json_lines=False) as run:
        told = caller.go("everything", 23)
    lines = run.stdout.splitlines()
    expected = wanted(told, by=("op",))
    for (op,), of in expected.items():
        others = {name.replace("_", " "): of[name] for name in ("errors", "would_block", "peeks")}
        more = "".join(f", {number} {name}" for name, number in others.items() if number)
        assert (
            f"op={op} comm={caller.comm}: {of['calls']} calls, {of['bytes']} bytes, "
            f"average {of['average']:.12g}, {of['small_share']:.0%} small{more}"
        ) in lines
    bars = [line for line in lines if "|*" in line]
    assert len(bars) == sum(len(of["buckets"]) for of in expected.values())
    assert max(map(len, bars)) <= 80


def test_csv_has_a_row_per_bucket(netbpf: Any, caller: Caller) -> None:
    with netbpf("socksize", "-p", caller.pid, "-o", "csv", json_lines=False) as run:
        told = caller.go("everything", 2)
    rows = [
        (row["op"], row["comm"], int(row["low"]), int(row["high"]), int(row["count"]))
        for row in csv.DictReader(io.StringIO(run.stdout))
        if row["count"] != "0"
    ]
    assert sorted(rows) == sorted(
        (op, caller.comm, low, high, number)
        for (op,), fields in wanted(told, by=("op",)).items()
        for (low, high), number in fields["buckets"].items()
    )


@pytest.mark.parametrize(
    "words",
    [
        ("--op", "connect"),
        ("--proto", "sctp"),
        ("--by", "dev"),
        ("--by", "stack"),
        ("-n", "3"),
        ("--top", "0"),
    ],
    ids=" ".join,
)
def test_nonsense_is_a_usage_error(words: tuple[str, ...]) -> None:
    ended = netbpf_once("socksize", *words, "-d", "1")
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr


# --- whatever the kind of probe ------------------------------------------------------------------


ALTERNATIVES = Case(
    lambda s: ("-p", s.caller.pid, "--by", "op,proto"),
    everything,
    lambda run, lost: sorted(found(run).items()),
)
