"""tcpwin shows the windows that TCP_INFO has, at each segment, change and interval.

Most peers are played by the test, segment by segment (raw_peer.py), and the host's timers are so
long that nothing happens which the test did not send: TCP_INFO between two segments is exact.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import topology
import traffic
from alternatives import Case, Stage
from compared import compares
from harness import Json, Run, kill, netbpf_once, seconds, wait_until
from old_sessions import FOUR, SIX, UID, Old
from raw_peer import ACK, RST, SYN, Peer, Wire, ends, wire
from topology import Host, cgroup_of

from netbpf.kernel.btf import Btf

TCP = socket.IPPROTO_TCP
SO_MEMINFO, SNDBUF, WMEM_QUEUED = 55, 3, 5
LINGER_0 = struct.pack("ii", 1, 0)  # close() sends a reset
MSS = 536  # without an option of the peer
STATES = ("open", "disorder", "cwr", "recovery", "loss")
ECE, CWR = 0x40, 0x80
U32 = {  # offsets in struct tcp_info
    "unacked": 24, "sacked": 28, "lost": 32, "retrans": 36, "rtt": 68, "snd_ssthresh": 76,
    "snd_cwnd": 80, "total_retrans": 100, "segs_in": 140, "notsent": 144, "delivered": 192,
    "snd_wnd": 228, "rcv_wnd": 232,
}  # fmt: skip
CLOCKS = {"busy_us": 168, "rwnd_us": 176, "sndbuf_us": 184}  # of what limits the sender
WINDOW = ("snd_cwnd", "snd_ssthresh", "ca_state")
_ports = itertools.count(21001)


def info_of(sock: socket.socket) -> dict[str, Any]:
    """Return TCP_INFO and SO_MEMINFO of a socket."""
    raw = sock.getsockopt(TCP, socket.TCP_INFO, 256)
    found: dict[str, Any] = {"ca_state": STATES[raw[1]]}
    found.update({name: struct.unpack_from("=I", raw, at)[0] for name, at in U32.items()})
    found.update({name: struct.unpack_from("=Q", raw, at)[0] for name, at in CLOCKS.items()})
    memory = struct.unpack("=9I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))
    return {**found, "sndbuf": memory[SNDBUF], "wmem_queued": memory[WMEM_QUEUED]}


def columns(info: dict[str, Any]) -> Json:
    """Return the columns that a line has for this TCP_INFO."""
    same = ("snd_cwnd", "ca_state", "snd_wnd", "rcv_wnd", "sndbuf", "wmem_queued", "delivered")
    threshold = info["snd_ssthresh"]
    return {
        **{name: info[name] for name in same},
        "snd_ssthresh": None if threshold == 0x7FFFFFFF else threshold,
        "inflight": info["unacked"] - info["sacked"] - info["lost"] + info["retrans"],
        "unsent": info["notsent"],
        "srtt_us": info["rtt"],
        "retrans": info["total_retrans"],
    }


def window(line: Json) -> tuple[Any, ...]:
    return tuple(line[name] for name in WINDOW)


def steps(values: list[Any]) -> list[Any]:
    """Return `values` without repetitions."""
    return [value for value, _ in itertools.groupby(values)]


class Moment(NamedTuple):
    """The sender before a segment, and when that was sent, on both clocks."""

    info: dict[str, Any]
    begin: float
    end: float
    monotonic: tuple[float, float]


class Sender:
    """A connection of the host to a peer that this test plays."""

    def __init__(self, wire: Wire, ecn: bool = False) -> None:
        self.wire, self.peer = wire, Peer(wire, "ipv4", next(_ports))
        self.sock = wire.host.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
        self.sock.bind((ends("ipv4")[0], 0))
        self.sock.setblocking(False)
        self.moments: list[Moment] = []
        self.connect(ecn)

    def connect(self, ecn: bool = False) -> None:
        begin = time.monotonic()
        error = self.sock.connect_ex((ends("ipv4")[1], self.peer.port))
        assert error == errno.EINPROGRESS, os.strerror(error)
        self.first = self.peer.see(SYN | ECE | CWR if ecn else SYN).seq + 1
        self.peer.send(SYN | ACK | ECE if ecn else SYN | ACK)
        self.peer.see(ACK)
        self.connected = (begin, time.monotonic())

    @property
    def port(self) -> int:
        return self.peer.port

    @property
    def info(self) -> dict[str, Any]:
        return info_of(self.sock)

    def write(self, segments: int) -> None:
        """Write so many full segments, to which the next write adds nothing (MSG_EOR)."""
        assert self.sock.send(b"x" * (segments * MSS), socket.MSG_EOR) == segments * MSS

    def fill(self) -> None:
        """Write until the send buffer is full."""
        with pytest.raises(BlockingIOError):
            while True:
                self.sock.send(b"x" * MSS)

    def ack(self, segments: int, window: int = 65535, flags: int = ACK) -> None:
        """Acknowledge that many segments since the connection began."""
        info, begin, before = self.info, time.time(), time.monotonic()
        self.peer.send(flags, ack=self.first + segments * MSS, window=window)
        wait_until(lambda: self.info["segs_in"] > info["segs_in"], what="the acknowledgement")
        self.moments.append(Moment(info, begin, time.time(), (before, time.monotonic())))

    def acked(self) -> int:
        """Return how many segments the peer has acknowledged."""
        return max((s.ack - self.first) // MSS for s in self.peer.passed if s.ours and s.ack)

    @property
    def ledger(self) -> list[tuple[Any, ...]]:
        """The windows before each segment, and now."""
        infos = [*(moment.info for moment in self.moments), self.info]
        return steps([window(columns(info)) for info in infos])

    def lose_one(self) -> None:
        """Let the fourth of 100 segments be lost, and sent again; the next is acknowledged."""
        self.write(100)
        for number in (1, 2, 3, 3, 3, 3):
            self.ack(number)
        assert self.info["ca_state"] == "recovery"
        for _ in range(2):
            self.ack(3)
        self.ack(4)
        self.go_on()

    def go_on(self) -> None:
        """Acknowledge all, and one that is sent after that: without SACK, this ends a recovery."""
        self.ack(self.acked() + self.info["unacked"])
        self.ack(self.acked() + 1)
        assert self.info["ca_state"] == "open"

    def close(self) -> None:
        """Reset the connection."""
        self.sock.close()


@pytest.fixture
def host() -> Iterator[Host]:
    """A host without sockets of other tests."""
    with topology.one_host() as made:
        yield made


@pytest.fixture
def path(host: Host) -> Iterator[Wire]:
    """The way to a peer, without any timer; a sender halves its window at a loss."""
    host.sysctl(
        net__ipv4__tcp_congestion_control="reno",
        net__ipv4__tcp_early_retrans=0,
        net__ipv4__tcp_recovery=0,
        net__ipv4__tcp_no_metrics_save=1,
        net__ipv4__tcp_ecn=2,  # only if the peer asks for it
    )
    with wire(host) as made:
        set_timer(made, "rto_min", "100s")
        yield made


def set_timer(wire: Wire, *how: str) -> None:
    local = ends("ipv4", wire.number)[0]
    network = f"{local.rpartition('.')[0]}.0/24"
    place = ["dev", wire.name, "proto", "kernel", "scope", "link", "src", local]
    wire.host.run("ip", "route", "change", network, *place, *how)


# --- values ---------------------------------------------------------------------------------------


@compares("tcpwin", "time", "snd_cwnd", "snd_ssthresh", "inflight", "ca_state", "srtt_us", "unsent")
@compares("tcpwin", "snd_wnd", "rcv_wnd", "sndbuf", "wmem_queued", "retrans", "delivered")
@compares("tcpwin", "pid", "comm", "owner", "family", "laddr", "lport", "raddr", "rport", "uid")
@compares("tcpwin", "netns", "cgroup")
def test_each_segment_shows_what_tcp_info_had_before_it(netbpf: Any, path: Wire) -> None:
    with netbpf("tcpwin", "--each", "--netns", path.host.inode) as run:
        sender = Sender(path)
        sender.lose_one()
        while len(sender.moments) < 23:
            sender.ack(sender.acked() + 1, window=4000 + len(sender.moments))
        run.wait_for(len(sender.moments))
        sender.close()
    assert len(run.events) == len(sender.moments) == 23
    for event, moment in zip(run.events, sender.moments):
        wanted = columns(moment.info)
        assert {name: event[name] for name in wanted} == wanted
        assert moment.begin <= seconds(event["time"]) <= moment.end
        assert (event["pid"], event["comm"], event["owner"]) == (os.getpid(), comm(), "exact")
        assert (event["family"], event["uid"]) == ("ipv4", os.getuid())
        assert (event["laddr"], event["raddr"]) == ends("ipv4")
        assert (event["lport"], event["rport"]) == (sender.peer.host_port, sender.port)
        assert event["netns"] == path.host.inode
        assert event["cgroup"] == cgroup_of(os.getpid())
    assert {event["ca_state"] for event in run.events} == {"open", "disorder", "recovery"}


def comm() -> str:
    return Path("/proc/self/comm").read_text().strip()


@compares("tcpwin", "sock")
def test_socket_is_the_one_of_other_tools(netbpf: Any, path: Wire) -> None:
    with netbpf("tcpwin", "--netns", path.host.inode) as run:
        with netbpf("tcpstates", "--netns", path.host.inode) as states:
            senders = [Sender(path) for _ in range(3)]
            for sender in senders:
                sender.write(1)
                sender.ack(1)
                sender.close()
            states.wait_for(lambda found: sum(e["newstate"] == "CLOSE" for e in found) == 3)
    for sender in senders:
        own, theirs = (
            {e["sock"] for e in found.events if e["rport"] == sender.port}
            for found in (run, states)
        )
        assert own == theirs and len(own) == 1


@compares("tcpwin", "limited")
def test_what_limits_a_sender_is_what_the_kernels_clocks_say(netbpf: Any, path: Wire) -> None:
    with netbpf("tcpwin", "--each", "--netns", path.host.inode) as run:
        sender = Sender(path)
        wanted = ["app"]  # nothing was written
        sender.ack(0)
        sender.lose_one()
        wanted += [""] * (len(sender.moments) - 1)
        assert clock_of(sender) == "busy" and sender.info["notsent"]
        wanted.append("cwnd")
        sender.ack(sender.acked() + 1, window=0)
        assert clock_of(sender) == "rwnd"
        wanted.append("rwnd")
        sender.ack(sender.acked())
        while sender.info["notsent"] > 8 * MSS:
            wanted.append("cwnd")
            sender.ack(sender.acked() + 1)
        sender.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel's minimum
        sender.fill()
        wanted.append("cwnd")
        sender.ack(sender.acked() + sender.info["unacked"])  # the rest is sent, and it is not much
        assert clock_of(sender) == "sndbuf" and not sender.info["notsent"]
        wanted.append("sndbuf")
        sender.ack(sender.acked() + sender.info["unacked"] - 1)
        assert clock_of(sender) == "busy" and not sender.info["notsent"]
        wanted.append("app")
        sender.ack(sender.acked() + 1)
        run.wait_for(len(sender.moments))
        sender.close()
    found = [event["limited"] for event in run.events]
    assert len(found) == len(wanted)
    assert [one if want else "" for one, want in zip(found, wanted)] == wanted


def clock_of(sender: Sender) -> str:
    """Return which of the clocks runs; the busy one runs with the others."""
    before = sender.info

    def moved() -> str:
        now = sender.info
        names = ("rwnd", "sndbuf", "busy")
        return next((name for name in names if now[f"{name}_us"] > before[f"{name}_us"]), "")

    return str(wait_until(moved, what="a clock"))


# --- changes --------------------------------------------------------------------------------------


def in_order(part: list[Any], whole: list[Any]) -> bool:
    """Return whether `whole` has the values of `part` in this order, perhaps with others."""
    rest = iter(whole)
    return all(value in rest for value in part)


@pytest.mark.parametrize("end", ["close", "shutdown", "reset by the peer"])
def test_a_loss_halves_the_window_once(netbpf: Any, path: Wire, end: str) -> None:
    with netbpf("tcpwin", "--netns", path.host.inode) as run:
        sender = Sender(path)
        sender.lose_one()
        if end == "shutdown":
            sender.sock.shutdown(socket.SHUT_WR)
            open_at = len(sender.moments)
            while sender.info["snd_cwnd"] < 9:  # no event of the kernel shows these
                sender.ack(sender.acked() + 1)
        ledger = sender.ledger
        if end == "reset by the peer":
            sender.peer.send(RST | ACK)
        sender.close()
        run.wait_for(lambda found: found and window(found[-1]) == ledger[-1])
    lines = [window(event) for event in run.events]
    assert lines == steps(lines), "a line without a change"
    assert lines[0] == ledger[0] == (10, None, "open")
    if end == "shutdown":
        ledger = [*steps([window(columns(m.info)) for m in sender.moments[:open_at]]), ledger[-1]]
    assert in_order(ledger, lines)
    assert steps([line[2] for line in lines]) == ["open", "disorder", "recovery", "open"]
    before = [line[0] for line in lines if line[2] == "disorder"][-1]
    assert steps([line[1] for line in lines]) == [None, before // 2]
    # The segment that ends the recovery may already raise the window.
    after = next(cwnd for cwnd, threshold, state in ledger if threshold and state == "open")
    assert after in (before // 2, before // 2 + 1)
    assert run.summary["complete"] is True


def test_a_timeout_is_a_loss(netbpf: Any, path: Wire) -> None:
    set_timer(path, "rto_min", "0.2s")
    with netbpf("tcpwin", "--netns", path.host.inode) as run:
        sender = Sender(path)
        sender.write(7)
        wait_until(lambda: sender.info["ca_state"] == "loss", what="a timeout")
        ledger = sender.ledger
        found = run.wait_for(lambda events: any(e["ca_state"] == "loss" for e in events))
        sender.ack(7)
        sender.write(1)
        sender.ack(8)  # without SACK, only now the recovery ends
        ledger += sender.ledger[-1:]
        sender.close()
        run.wait_for(lambda events: events[-1]["ca_state"] == "open")
    (lost,) = [window(event) for event in found if event["ca_state"] == "loss"]
    assert lost == ledger[0] == (1, 5, "loss")
    lines = [window(event) for event in run.events]
    assert steps([line[2] for line in lines][-3:]) in (["loss", "open"], ["open", "loss", "open"])
    assert lines[-1] == ledger[-1]
    assert run.summary["counters"]["TcpExt.TCPTimeouts"] >= 1


def test_an_idle_connection_has_one_line(netbpf: Any, path: Wire) -> None:
    old = Sender(path)
    with netbpf("tcpwin", "--netns", path.host.inode) as run:
        new = Sender(path)
        for sender in (old, new):
            for _ in range(5):
                sender.ack(0)
            sender.close()
        run.wait_for(2)
    assert [(e["rport"], e["owner"]) for e in run.events] == [
        (old.port, "snapshot"), (new.port, "exact"),
    ]  # fmt: skip
    assert {window(event) for event in run.events} == {(10, None, "open")}


def disconnect(sock: socket.socket) -> None:
    """Call connect(AF_UNSPEC), which Python's sockets cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(sock.fileno(), bytes(16), 16) == 0, os.strerror(ctypes.get_errno())


def test_a_new_connection_at_the_address_of_an_old_one_has_a_first_line(
    netbpf: Any, path: Wire
) -> None:
    """A socket that is connected again keeps its address."""
    with netbpf("tcpwin", "--netns", path.host.inode) as run:
        sender = Sender(path)
        for number in range(3):
            if number:
                disconnect(sender.sock)
                sender.peer = Peer(path, "ipv4", next(_ports))
                sender.connect()
            sender.ack(0)
            run.wait_for(number + 1)
        sender.close()
    assert len({event["rport"] for event in run.events}) == len(run.events) == 3
    assert len({event["sock"] for event in run.events}) == 1


# --- INTERVAL -------------------------------------------------------------------------------------


def test_intervals_show_what_tcp_info_has(netbpf: Any, path: Wire) -> None:
    old = Sender(path)
    with netbpf("tcpwin", "0.1", "--netns", path.host.inode) as run:
        new = Sender(path)
        for sender in (old, new):
            sender.write(100)
            sender.ack(1)
            for _ in range(3):
                sender.ack(1)
        wanted = {sender.port: columns(sender.info) for sender in (old, new)}
        assert {one["ca_state"] for one in wanted.values()} == {"recovery"}
        # In the second of two further rows nothing is of a time before.
        for sender in (old, new):
            shown(run, sender, 2)
        rows = {sender.port: of(run, sender)[-1] for sender in (old, new)}
        old.close()
        count = len(of(run, old))
        shown(run, new, 3)
        assert len(of(run, old)) <= count + 1
        new.close()
    for sender, how in ((old, "snapshot"), (new, "exact")):
        row = rows[sender.port]
        assert {name: row[name] for name in wanted[sender.port]} == wanted[sender.port]
        assert (row["pid"], row["owner"]) == (os.getpid(), how)
    assert run.events == []
    assert run.summary["open"] == 0
    assert not any(one["name"] in ("segment", "congestion") for one in run.summary["probes"])


def of(run: Run, sender: Sender) -> list[Json]:
    return [row for row in run.rows if row["rport"] == sender.port]


def shown(run: Run, sender: Sender, more: int) -> None:
    """Wait until a connection has that many further rows."""
    count = len(of(run, sender))
    wait_until(lambda: len(of(run, sender)) >= count + more, what="rows")


class Pair(NamedTuple):
    """Both ends of a connection over loopback."""

    client: socket.socket
    server: socket.socket

    def exchange(self, number: int) -> None:
        for _ in range(number):
            self.client.sendall(b"x" * 1000)
            assert self.server.recv(1000, socket.MSG_WAITALL)
            self.server.sendall(b"y" * 100)
            assert self.client.recv(100, socket.MSG_WAITALL)


@contextlib.contextmanager
def pairs(host: Host, number: int) -> Iterator[list[Pair]]:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(host.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        made = []
        for _ in range(number):
            client = stack.enter_context(host.socket(socket.AF_INET, socket.SOCK_STREAM))
            client.connect(listener.getsockname())
            made.append(Pair(client, stack.enter_context(listener.accept()[0])))
        yield made


@compares("tcpwin", "open", shape="summary")
def test_ss_shows_the_same_of_each_open_connection(netbpf: Any, host: Host) -> None:
    with pairs(host, 7) as made, contextlib.ExitStack() as stack:
        for number, pair in enumerate(made):
            pair.exchange(number)
        # Two descriptors of one process, and two processes: one row.
        stack.enter_context(made[1].client.dup())
        holder = subprocess.Popen(["sleep", "infinity"], pass_fds=[made[2].client.fileno()])
        stack.callback(kill, holder)
        wait_until(
            lambda: not any(info_of(sock)["unacked"] for pair in made for sock in pair),
            what="the last acknowledgement",
        )
        with netbpf("tcpwin", 60, "--netns", host.inode) as run:
            pass  # and at the end
        words = host.run("ss", "-Htinm", "state", "established")
    rows = {(row["lport"], row["rport"]): row for row in run.rows}
    assert len(rows) == len(run.rows) == 14 == run.summary["open"]
    found = dict(map(as_ss_has_it, words.replace("\n\t", " ").splitlines()))
    assert found.keys() == rows.keys()
    for key, wanted in found.items():
        assert {name: rows[key][name] for name in wanted} == wanted


def as_ss_has_it(line: str) -> tuple[tuple[int, int], Json]:
    """Return the ports and the columns of a line of ss."""
    words = line.split()
    local, remote = (int(word.rpartition(":")[2]) for word in words[2:4])
    named = dict(word.split(":", 1) for word in words if ":" in word)
    memory = named["skmem"].strip("()").split(",")  # "tb" is the send buffer, "w" its queue
    parts = {part.rstrip("0123456789"): int(part.lstrip("abcdefghijklmnopqrstuvwxyz"))
             for part in memory}  # fmt: skip
    return (local, remote), {
        "snd_cwnd": int(named["cwnd"]),
        "snd_ssthresh": int(named["ssthresh"]) if "ssthresh" in named else None,
        "srtt_us": round(float(named["rtt"].partition("/")[0]) * 1000),
        "delivered": int(named.get("delivered", 0)),
        "sndbuf": parts["tb"],
        "wmem_queued": parts["w"],
    }


# --- --summary ------------------------------------------------------------------------------------


class Bounds(NamedTuple):
    """The least and the most time in each state, in us, and the number of changes."""

    least: dict[str, float]
    most: dict[str, float]
    changes: int


def bounds_of(sender: Sender, last: str, end: tuple[float, float]) -> Bounds:
    """Return how long a sender was in each state until `end`; `last` is the last one."""
    states = [*(moment.info["ca_state"] for moment in sender.moments), last]
    held = [(states[0], sender.connected)]
    for moment, state in zip(sender.moments, states[1:]):  # the state after each segment
        if state != held[-1][0]:
            held.append((state, moment.monotonic))
    least, most = (dict.fromkeys(STATES, 0.0) for _ in range(2))
    for (state, since), (_, until) in zip(held, [*held[1:], ("", end)]):
        least[state] += (until[0] - since[1]) * 1e6
        most[state] += (until[1] - since[0]) * 1e6
    return Bounds(least, most, len(held) - 1)


def check_times(rows: list[Json], bounds: Bounds) -> None:
    """Compare the sums of rows with the bounds, which a microsecond may be missing from."""
    for state in STATES:
        total = sum(row[f"{state}_us"] for row in rows)
        assert bounds.least[state] - len(rows) <= total <= bounds.most[state], state
    assert sum(row["changes"] for row in rows) == bounds.changes


@compares("tcpwin", "open_us", "disorder_us", "recovery_us", "changes", shape="--summary")
@compares("tcpwin", "pid", "comm", "owner", "family", "laddr", "lport", shape="--summary")
@compares("tcpwin", "raddr", "rport", "uid", "netns", "cgroup", shape="--summary")
@pytest.mark.parametrize("interval", [(), ("0.05",)])
def test_times_in_the_states_add_up(netbpf: Any, path: Wire, interval: tuple[str, ...]) -> None:
    with netbpf("tcpwin", "--summary", "--netns", path.host.inode, *interval) as run:
        sender = Sender(path)
        sender.lose_one()
        last, begin = sender.info["ca_state"], time.monotonic()
        sender.close()
        end = (begin, time.monotonic())
        if interval:
            other = Sender(path)  # shown after the end of the first one
            wait_until(lambda: of(run, other), what="the next interval")
            other.close()
    rows = of(run, sender)
    bounds = bounds_of(sender, last, end)
    assert bounds.changes == 3
    assert all(bounds.most[state] for state in ("open", "disorder", "recovery"))
    check_times(rows, bounds)
    assert len(rows) == 1 or interval
    row = rows[-1]
    assert (row["pid"], row["comm"], row["owner"]) == (os.getpid(), comm(), "exact")
    assert (row["family"], row["uid"], row["netns"]) == ("ipv4", os.getuid(), path.host.inode)
    assert (row["laddr"], row["raddr"]) == ends("ipv4")
    assert (row["lport"], row["rport"]) == (sender.peer.host_port, sender.port)
    assert row["cgroup"] == cgroup_of(os.getpid())


@compares("tcpwin", "loss_us", shape="--summary")
def test_time_after_a_timeout(netbpf: Any, path: Wire) -> None:
    set_timer(path, "rto_min", "0.2s")
    with netbpf("tcpwin", "--summary", "--netns", path.host.inode) as run:
        sender = Sender(path)
        sender.write(7)
        written = time.monotonic()
        wait_until(lambda: sender.info["ca_state"] == "loss", what="a timeout")
        lost = time.monotonic()
        wait_until(lambda: sender.info["total_retrans"] >= 2, what="the next timeout")
        before = time.monotonic()
        sender.ack(7)
        sender.close()
        after = time.monotonic()
    (row,) = run.rows
    assert (before - lost) * 1e6 - 1 <= row["loss_us"] <= (after - written) * 1e6
    assert row["disorder_us"] == row["recovery_us"] == 0


@compares("tcpwin", "cwr_us", shape="--summary")
@pytest.mark.skipif(
    Btf().parameters("__traceiter_tcp_cong_state_set") is None,
    reason="needs a kernel that shows each congestion state: 6.1",
)
def test_time_after_congestion_was_signalled(netbpf: Any, path: Wire) -> None:
    """The peer agrees to ECN, and echoes congestion (ECE) with an acknowledgement."""
    path.host.sysctl(net__ipv4__tcp_ecn=1)
    with netbpf("tcpwin", "--summary", "--netns", path.host.inode) as run:
        with netbpf("tcpwin", "--netns", path.host.inode) as lines:
            sender = Sender(path, ecn=True)
            sender.write(40)
            sender.ack(1)
            before = time.monotonic()
            sender.ack(2, flags=ACK | ECE)
            signalled = time.monotonic()
            assert sender.info["ca_state"] == "cwr"
            wait_until(lambda: time.monotonic() > signalled + 0.05, what="time to pass")
            again = time.monotonic()
            sender.go_on()
            done = time.monotonic()
            sender.close()
            lines.wait_for(lambda found: found[-1]["ca_state"] == "open" and len(found) > 2)
    (row,) = run.rows
    assert (again - signalled) * 1e6 - 1 <= row["cwr_us"] <= (done - before) * 1e6
    assert row["changes"] == 2
    assert steps([event["ca_state"] for event in lines.events]) == ["open", "cwr", "open"]


def test_a_connection_that_is_older_counts_from_the_start(netbpf: Any, path: Wire) -> None:
    old, closed = Sender(path), Sender(path)
    begin = time.monotonic()
    with netbpf("tcpwin", "--summary", "--netns", path.host.inode) as run:
        ready = time.monotonic()
        closed.close()
        after = time.monotonic()
        wait_until(lambda: time.monotonic() > after + 0.1, what="time to pass")
        stop = time.monotonic()
    end = time.monotonic()
    by_port = {row["rport"]: row for row in run.rows}
    assert by_port.keys() == {old.port, closed.port}
    assert (stop - ready) * 1e6 <= by_port[old.port]["open_us"] <= (end - begin) * 1e6
    assert by_port[closed.port]["open_us"] <= (after - begin) * 1e6
    owners = {port: row["owner"] for port, row in by_port.items()}
    assert owners == {old.port: "snapshot", closed.port: "exact"}  # who closes it holds it
    old.close()


def test_connections_between_the_same_ends_are_one_row(netbpf: Any, host: Host) -> None:
    with netbpf("tcpwin", "--summary", "--netns", host.inode) as run:
        spans = []
        with host.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            for _ in range(3):
                client = host.socket(socket.AF_INET, socket.SOCK_STREAM)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
                client.bind(("127.0.0.1", 20_023))
                begin = time.monotonic()
                client.connect(listener.getsockname())
                connected = time.monotonic()
                server = listener.accept()[0]
                closing = time.monotonic()
                client.close()
                server.close()
                spans.append((closing - connected, time.monotonic() - begin))
    assert len(run.rows) == 2
    for row in run.rows:
        assert sum(least for least, _ in spans) * 1e6 - 3 <= row["open_us"]
        assert row["open_us"] <= sum(most for _, most in spans) * 1e6


def test_top_has_those_with_most_changes_first(netbpf: Any, path: Wire) -> None:
    with (
        netbpf("tcpwin", "--summary", "--top", 1, "--netns", path.host.inode) as first,
        netbpf("tcpwin", "--summary", "--netns", path.host.inode) as whole,
    ):
        quiet, lossy, last = Sender(path), Sender(path), Sender(path)
        lossy.lose_one()
        for sender in (quiet, lossy, last):
            sender.close()
    assert [row["rport"] for row in first.rows] == [lossy.port]
    assert [row["rport"] for row in whole.rows][:1] == [lossy.port]
    assert {row["rport"] for row in whole.rows} == {quiet.port, lossy.port, last.port}


def test_columns_of_tcpcong(netbpf: Any, path: Wire) -> None:
    with netbpf("tcpcong", "--netns", path.host.inode, json_lines=False) as run:
        sender = Sender(path)
        sender.lose_one()
        sender.close()
    heading, row = run.stdout.splitlines()
    names = "LAddrPort RAddrPort Open_ms Dod_ms Rcov_ms Cwr_ms Los_ms Chgs"
    assert heading.split() == names.split()
    local, remote, *times, changes = row.split()
    assert local == f"{ends('ipv4')[0]}:{sender.peer.host_port}"
    assert remote == f"{ends('ipv4')[1]}:{sender.port}"
    assert changes == "3"
    assert [float(time) > 0 for time in times] == [True, True, True, False, False]


# --- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [(), ("--summary",)])
def test_connections_without_room_are_counted(
    netbpf: Any, host: Host, form: tuple[str, ...]
) -> None:
    args = ("tcpwin", *form, "--map-entries", 8, "--netns", host.inode)
    with netbpf(*args) as run, pairs(host, 7) as made:
        for pair in made:
            pair.exchange(3)
    lines = run.rows if form else run.events
    assert len({(line["lport"], line["rport"]) for line in lines}) == 8
    # Six of 14 have no entry, and one more no owner, as the listener has one.
    assert run.summary["lost"]["map_full"] == 7
    assert run.summary["complete"] is False


# --- filters --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def old(two_hosts: tuple[Host, Host]) -> Iterator[Old]:
    left, right = two_hosts
    with topology.cgroup() as group, traffic.peers() as start:
        first = start("nb-first", left)
        second = start("nb-second", left, uid=UID, cgroup=group)
        server = start("nb-server", right)
        server.listen("ipv4")
        server.listen("ipv6")
        yield Old(traffic.connect(first, server, "ipv4"), traffic.connect(second, server, "ipv6"))


FORMS = {"changes": (), "each": ("--each",), "interval": ("0.1",), "summary": ("--summary",)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "flag, selects, family",
    [*((flag, FOUR[flag], "ipv4") for flag in FOUR), *((flag, SIX[flag], "ipv6") for flag in SIX)],
)
def test_filters_select_one_of_two_sessions(
    flag: str, selects: Any, family: str, form: str, netbpf: Any,
    two_hosts: tuple[Host, Host], old: Old,
) -> None:  # fmt: skip
    args = ("--netns", two_hosts[0].inode, flag, *selects(old))
    with netbpf("tcpwin", *FORMS[form], *args) as run:
        for session in old:
            for _ in range(3):
                session.transfer(up=100)
        if form == "interval":
            wait_until(lambda: len(run.rows) >= 3, what="rows")
    lines = run.rows if form in ("interval", "summary") else run.events
    session = old.four if family == "ipv4" else old.six
    assert {(line["laddr"], line["lport"]) for line in lines} == {session.local}
    assert len(lines) >= (3 if form in ("each", "interval") else 1)


@pytest.mark.parametrize("form", FORMS)
def test_namespace_filter_selects_one_end(
    form: str, netbpf: Any, two_hosts: tuple[Host, Host], old: Old
) -> None:
    left, right = two_hosts
    with (
        netbpf("tcpwin", *FORMS[form], "--netns", left.namespace) as near,
        netbpf("tcpwin", *FORMS[form], "--netns", right.namespace) as far,
    ):
        for session in old:
            session.transfer(up=100, down=100)
        for run in (near, far):
            if form == "interval":
                wait_until(lambda: run.rows, what="rows")  # noqa: B023
    for run, side in ((near, "local"), (far, "remote")):
        lines = run.rows if form in ("interval", "summary") else run.events
        found = {(line["laddr"], line["lport"]) for line in lines}
        assert found == {getattr(session, side) for session in old}


@pytest.mark.parametrize("form", ["changes", "summary"])
def test_new_connections_of_other_processes_are_filtered_out(
    form: str, netbpf: Any, path: Wire
) -> None:
    """Connected in this process, and accepted in it or not at all."""
    own, other = (
        ("tcpwin", *FORMS[form], "--netns", path.host.inode, "-p", pid) for pid in (os.getpid(), 1)
    )
    with netbpf(*own) as shown, netbpf(*other) as hidden, pairs(path.host, 3) as made:
        for pair in made:
            pair.exchange(3)
        sender = Sender(path)
        sender.lose_one()
        sender.close()
    lines = shown.rows if form == "summary" else shown.events
    assert len({(line["lport"], line["rport"]) for line in lines}) == 7
    assert hidden.rows == hidden.events == []


@pytest.mark.parametrize("more", ["1", "--summary"])
def test_each_excludes_the_other_forms(more: str) -> None:
    done = netbpf_once("tcpwin", "--each", more)
    assert done.returncode == 2
    assert "--each excludes INTERVAL and --summary" in done.stderr


# --- whatever the kind of probe -------------------------------------------------------------------


def act(stage: Stage, run: Run) -> None:
    for family in ("ipv4", "ipv6"):
        session = traffic.connect(stage.client, stage.server, family)
        for _ in range(23):
            session.transfer(up=100, down=100)
        session.end()


def facts(run: Run, lost: set[str]) -> Any:
    first = {(event["laddr"], event["lport"]): event for event in reversed(run.events)}
    names = ("pid", "comm", "family", "laddr", "raddr", "rport", *WINDOW)
    return sorted(repr([event[name] for name in names]) for event in first.values())


ALTERNATIVES = Case(lambda stage: ("--netns", stage.left.inode), act, facts)
