"""tcpnagle measures what this test held back itself, says why, and finds nothing else."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from alternatives import Case, Stage
from compared import compares
from harness import SLOW, Json, Run, wait_until
from topology import Host

TCP = socket.IPPROTO_TCP
SO_MAX_PACING_RATE = 47
TCPI_SND_WND = 228  # offset in struct tcp_info, since Linux 5.4
SMALL = b"x" * 100
ROUNDS = 10
FEW_US = 20_000  # below this, a hold is not one that a test arranged


class Pair:
    """Both ends of a connection, in this process."""

    def __init__(self, source: Host, target: Host, family: str = "ipv4", room: int = 0) -> None:
        kind = socket.AF_INET if family == "ipv4" else socket.AF_INET6
        address = target.ipv4 if family == "ipv4" else target.ipv6
        with target.socket(kind, socket.SOCK_STREAM) as listener:
            if room:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
            listener.bind((address, 0))
            listener.listen(1)
            self.client = source.socket(kind, socket.SOCK_STREAM)
            # What this machine has chosen for all may pace.
            self.client.setsockopt(TCP, socket.TCP_CONGESTION, b"reno")
            # One write always fits.
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
            self.client.connect(listener.getsockname())
            self.server, _ = listener.accept()
        self.port = int(self.server.getsockname()[1])
        for end in (self.client, self.server):
            end.settimeout(20)

    def set(self, option: int, value: int) -> None:
        """Set a TCP option of the client."""
        self.client.setsockopt(TCP, option, value)

    def receive(self, number: int) -> float:
        """Let the server read that many bytes; return when it had them all."""
        while number:
            part = len(self.server.recv(min(number, 1 << 20)))
            assert part
            number -= part
        return time.monotonic()

    def interactive(self) -> None:
        """Make the server one that delays its acknowledgements, in the hope to send them along."""
        for _ in range(5):
            self.client.sendall(SMALL)
            self.receive(len(SMALL))
            self.server.sendall(b"y")
            self.client.recv(1)

    def write_write_read(self) -> float:
        """Return for how long the second write was under way (seconds)."""
        self.client.sendall(SMALL)
        self.client.sendall(SMALL)
        begin = time.monotonic()
        end = self.receive(2 * len(SMALL))
        self.server.sendall(b"y")
        self.client.recv(1)
        return end - begin

    def window(self) -> int:
        """Return how much the server will take beyond what it has acknowledged."""
        info = self.client.getsockopt(TCP, socket.TCP_INFO, 256)
        return int(struct.unpack_from("=I", info, TCPI_SND_WND)[0])

    def unacknowledged(self) -> int:
        """Return how many segments of the client are under way."""
        info = self.client.getsockopt(TCP, socket.TCP_INFO, 256)
        return int(struct.unpack_from("=I", info, 24)[0])

    def fill_window(self) -> None:
        """Send until the server's window is closed: what is sent then waits until it reads."""
        self.set(socket.TCP_NODELAY, 1)
        while room := self.window():
            self.client.send(b"x" * min(room, 1024))
            wait_until(lambda: not self.unacknowledged(), what="acknowledgements")

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture
def pair(one_host: Host) -> Iterator[Pair]:
    with contextlib.closing(Pair(one_host, one_host)) as made:
        yield made


@pytest.fixture
def far(two_hosts: tuple[Host, Host]) -> Iterator[Pair]:
    with contextlib.closing(Pair(*two_hosts)) as made:
        yield made


def held(run: Run, reason: str) -> Json | None:
    """The distribution of one reason."""
    found = [h for h in run.histograms if h["key"] == {"reason": reason}]
    assert len(found) <= 1
    return found[0] if found else None


def long_holds(run: Run) -> dict[str, int]:
    """How many holds of each reason were long enough to be arranged."""
    found = {}
    for histogram in run.histograms:
        number = sum(b["count"] for b in histogram["buckets"] if b["high"] >= FEW_US)
        if number:
            found[histogram["key"]["reason"]] = number
    return found


def check(run: Run, reason: str, arranged: list[float]) -> None:
    """Exactly these holds, for this reason, within 20 % in all and each in its bucket or next."""
    assert long_holds(run) == {reason: len(arranged)}, run.histograms
    histogram = held(run, reason)
    assert histogram
    whole = sum(arranged) * 1e6
    assert histogram["sum"] == pytest.approx(whole, rel=0.2), (histogram, arranged)
    for bucket in histogram["buckets"]:
        if bucket["high"] >= FEW_US:
            near = [t for t in arranged if bucket["low"] * 0.8 <= t * 1e6 <= bucket["high"] * 1.2]
            assert bucket["count"] <= len(near)


def small_sends(run: Run) -> dict[str, int]:
    """Sends of less than a segment by setting."""
    return {r["setting"]: r["small"] for r in run.rows if "setting" in r}


def settings(run: Run) -> dict[str, tuple[int, int]]:
    """Sends and held sends by setting."""
    return {r["setting"]: (r["sends"], r["held"]) for r in run.rows if "setting" in r}


def holders(run: Run) -> list[Json]:
    return [row for row in run.rows if "holds" in row]


# --- nagle ---------------------------------------------------------------------------------------


@compares("tcpnagle", "reason", "buckets", "sum", shape="histogram")
@compares("tcpnagle", "setting", "held", shape="rows")
@compares(
    "tcpnagle",
    "pid",
    "laddr",
    "lport",
    "raddr",
    "rport",
    "holds",
    "held_us",
    "p99_us",
    "small_writes",
    "reason",
    "advice",
    "comm",
    shape="--top",
)
def test_write_write_read_is_held_until_the_delayed_acknowledgement(
    netbpf: Any, one_host: Host, pair: Pair
) -> None:
    pair.interactive()
    with netbpf("tcpnagle", "--top", "5", "--netns", one_host.inode) as run:
        arranged = [pair.write_write_read() for _ in range(ROUNDS)]
        run.stop()
    assert all(0.030 < one < 0.2 for one in arranged), f"the test itself failed: {arranged}"
    check(run, "nagle", arranged)
    # Two writes of the client and one of the server per round.
    assert settings(run) == {"ON": (3 * ROUNDS, ROUNDS)}
    (row,) = holders(run)
    assert (row["pid"], row["lport"]) == (os.getpid(), pair.client.getsockname()[1])
    assert row["comm"] == Path("/proc/self/comm").read_text().strip()
    assert (row["laddr"], row["raddr"], row["rport"]) == ("127.0.0.1", "127.0.0.1", pair.port)
    assert row["holds"] == row["small_writes"] == ROUNDS
    assert row["held_us"] == pytest.approx(sum(arranged) * 1e6, rel=0.2)
    assert max(arranged) * 0.8e6 <= row["p99_us"] <= max(arranged) * 2.4e6
    assert (row["reason"], row["advice"]) == ("nagle", "TCP_NODELAY or one write")
    assert any("delays its acknowledgements" in note for note in run.summary["notes"])
    assert run.summary["complete"] is True


@compares("tcpnagle", "still_held", shape="summary")
def test_with_nodelay_nothing_is_held(netbpf: Any, one_host: Host, pair: Pair) -> None:
    pair.interactive()
    pair.set(socket.TCP_NODELAY, 1)
    with netbpf("tcpnagle", "--top", "5", "--netns", one_host.inode) as run:
        times = [pair.write_write_read() for _ in range(ROUNDS)]
        run.stop()
    assert max(times) < 0.03 * SLOW, f"the test itself failed: {times}"
    assert run.histograms == []
    assert holders(run) == []
    assert settings(run) == {"OFF": (2 * ROUNDS, 0), "ON": (ROUNDS, 0)}
    assert run.summary["events"] == run.summary["still_held"] == 0


def test_one_write_per_request_is_never_held(netbpf: Any, one_host: Host, pair: Pair) -> None:
    with netbpf("tcpnagle", "--netns", one_host.inode) as run:
        for _ in range(5):
            pair.interactive()
        run.stop()
    assert run.histograms == []
    assert settings(run) == {"ON": (50, 0)}


# --- cork ----------------------------------------------------------------------------------------


def test_cork_holds_until_its_timeout_of_200_ms(netbpf: Any, one_host: Host, pair: Pair) -> None:
    pair.set(socket.TCP_CORK, 1)
    with netbpf("tcpnagle", "--netns", one_host.inode) as run:
        pair.client.sendall(SMALL)
        begin = time.monotonic()
        arranged = pair.receive(len(SMALL)) - begin
        run.stop()
    assert 0.16 <= arranged <= 0.3, f"the test itself failed: {arranged}"
    check(run, "cork", [arranged])
    assert settings(run) == {"CORK": (1, 1)}


def test_cork_holds_until_it_is_taken_off(netbpf: Any, one_host: Host, pair: Pair) -> None:
    arranged = []
    with netbpf("tcpnagle", "--netns", one_host.inode) as run:
        for span in (0.03, 0.06, 0.09):
            pair.set(socket.TCP_CORK, 1)
            for _ in range(3):
                pair.client.sendall(SMALL)
            begin = time.monotonic()
            time.sleep(span)
            pair.set(socket.TCP_CORK, 0)
            arranged.append(pair.receive(3 * len(SMALL)) - begin)
        run.stop()
    check(run, "cork", arranged)
    assert settings(run) == {"CORK": (9, 9)}


@pytest.mark.parametrize("nodelay", [0, 1])
def test_more_to_come_is_cork_for_one_send(
    netbpf: Any, one_host: Host, pair: Pair, nodelay: int
) -> None:
    pair.set(socket.TCP_NODELAY, nodelay)
    with netbpf("tcpnagle", "--netns", one_host.inode) as run:
        pair.client.send(SMALL, socket.MSG_MORE)
        begin = time.monotonic()
        time.sleep(0.08)
        pair.client.send(SMALL)
        arranged = pair.receive(2 * len(SMALL)) - begin
        run.stop()
    check(run, "cork", [arranged])
    assert settings(run) == {("OFF" if nodelay else "ON"): (2, 1)}


def test_settings_are_named_by_their_bits(netbpf: Any, one_host: Host, pair: Pair) -> None:
    with netbpf("tcpnagle", "--netns", one_host.inode) as run:
        for nodelay, cork, sends in ((0, 0, 2), (1, 0, 3), (0, 1, 5), (1, 1, 7)):
            pair.set(socket.TCP_NODELAY, nodelay)
            pair.set(socket.TCP_CORK, cork)
            for _ in range(sends):
                pair.client.sendall(SMALL)
            pair.set(socket.TCP_CORK, 0)
            pair.receive(sends * len(SMALL))
        run.stop()
    found = {name: sends for name, (sends, _) in settings(run).items()}
    assert found == {"ON": 2, "OFF": 3, "CORK": 5, "OFF+CORK": 7}


@compares("tcpnagle", "small", shape="rows")
def test_a_send_is_small_below_the_size_of_a_segment(
    netbpf: Any, two_hosts: tuple[Host, Host], far: Pair
) -> None:
    (size,) = struct.unpack_from("=I", far.client.getsockopt(TCP, socket.TCP_INFO, 104), 16)
    sizes = (size - 1, size, size + 1, 1, 2 * size)  # tcpi_snd_mss
    with netbpf("tcpnagle", "--netns", two_hosts[0].inode) as run:
        for number in sizes:
            assert far.client.send(b"x" * number) == number
            far.receive(number)
        far.set(socket.TCP_NODELAY, 1)
        far.client.sendall(SMALL)
        run.stop()
    assert small_sends(run) == {"ON": 2, "OFF": 1}
    assert {name: sends for name, (sends, _) in settings(run).items()} == {"ON": 5, "OFF": 1}


def test_option_that_was_just_set_is_there_as_push(netbpf: Any, one_host: Host) -> None:
    """Behind a closed window: what is written after it joins what waits already."""
    with contextlib.closing(Pair(one_host, one_host, room=8192)) as pair:
        while room := pair.window():
            pair.client.send(b"x" * min(room, 1024))
            wait_until(lambda: not pair.unacknowledged(), what="acknowledgements")
        with netbpf("tcpnagle", "--netns", one_host.inode) as run:
            pair.client.sendall(SMALL)
            pair.set(socket.TCP_NODELAY, 1)
            pair.client.sendall(SMALL)
            run.stop()
    assert settings(run) == {"ON": (1, 1), "OFF+PUSH": (1, 1)}


# --- windows, pacing, the device -----------------------------------------------------------------


def test_closed_receive_window_holds_until_the_other_end_reads(netbpf: Any, one_host: Host) -> None:
    with contextlib.closing(Pair(one_host, one_host, room=8192)) as pair:
        pair.set(socket.TCP_NODELAY, 1)
        sent = 0
        while room := pair.window():
            sent += pair.client.send(b"x" * min(room, 1024))
            wait_until(lambda: not pair.unacknowledged(), what="acknowledgements")
        with netbpf("tcpnagle", "--top", "1", "--netns", one_host.inode) as run:
            pair.client.sendall(SMALL)
            begin = time.monotonic()
            time.sleep(0.3)
            arranged = pair.receive(sent + len(SMALL)) - begin
            run.stop()
    check(run, "rwnd", [arranged])
    (row,) = holders(run)
    assert (row["reason"], row["advice"]) == ("rwnd", None)


def test_full_congestion_window_holds_until_acknowledgements_arrive(
    netbpf: Any, two_hosts: tuple[Host, Host], far: Pair
) -> None:
    left, _ = two_hosts
    size = 60_000
    with netbpf("tcpnagle", "--netns", left.inode) as run:
        with left.dropping(f"tcp sport {far.port}"):
            far.client.sendall(b"x" * size)
            begin = time.monotonic()
            time.sleep(0.15)
        arranged = far.receive(size) - begin
        run.stop()
    check(run, "cwnd", [arranged])


def test_pacing_holds_as_long_as_the_rate_wants(
    netbpf: Any, two_hosts: tuple[Host, Host], far: Pair
) -> None:
    size, rate = 60_000, 200_000
    far.client.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, rate)
    with netbpf("tcpnagle", "--netns", two_hosts[0].inode) as run:
        far.client.sendall(b"x" * size)
        begin = time.monotonic()
        arranged = far.receive(size) - begin
        run.stop()
    assert arranged > 0.5 * size / rate, f"the test itself failed: {arranged}"
    check(run, "pacing", [arranged])


def test_full_device_queue_corks_by_itself(
    netbpf: Any, two_hosts: tuple[Host, Host], far: Pair
) -> None:
    left, _ = two_hosts
    far.set(socket.TCP_NODELAY, 1)
    shape = ["tc", "qdisc", "replace", "dev", left.device, "root", "tbf"]
    left.run(*shape, "rate", "100kbit", "burst", "2k", "limit", "100k")
    try:
        before = left.snmp()["TcpExtTCPAutoCorking"]
        with netbpf("tcpnagle", "--netns", left.inode) as run:
            far.client.sendall(b"x" * 1400)  # the burst
            far.client.sendall(b"x" * 1400)  # waits in the device's queue
            far.client.sendall(SMALL)
            begin = time.monotonic()
            arranged = far.receive(2800) - begin
            far.receive(len(SMALL))
            run.stop()
        assert left.snmp()["TcpExtTCPAutoCorking"] - before == 1
    finally:
        left.run("tc", "qdisc", "del", "dev", left.device, "root")
    check(run, "autocork", [arranged])
    assert run.summary["counters"]["TcpExt.TCPAutoCorking"] == 1


@contextlib.contextmanager
def refusing(host: Host, by: str) -> Iterator[None]:
    """Let nothing of a host out of its device: a queue without room, or a firewall's rule."""
    if by == "queue":
        host.run("tc", "qdisc", "add", "dev", host.device, "root", "pfifo", "limit", 0)
    else:
        rules = "type filter hook output priority 0\nmeta l4proto tcp counter drop"
        host.run("nft", "-f", "-", input=f"table inet nb-no {{\nchain out {{\n{rules}\n}}\n}}")
    try:
        yield
    finally:
        if by == "queue":
            host.run("tc", "qdisc", "del", "dev", host.device, "root")
        else:
            host.run("nft", "delete", "table", "inet", "nb-no")


@pytest.mark.parametrize("by", ["queue", "firewall"])
@pytest.mark.parametrize("nodelay", [0, 1])
def test_data_that_is_refused_is_held_until_a_packet_passes(
    netbpf: Any, two_hosts: tuple[Host, Host], far: Pair, by: str, nodelay: int
) -> None:
    # No cork and no MSG_MORE. Truth: when the other end receives it.
    left, _ = two_hosts
    far.set(socket.TCP_NODELAY, nodelay)
    far.client.sendall(SMALL)
    far.receive(len(SMALL))
    wait_until(lambda: not far.unacknowledged(), what="acknowledgements")
    with netbpf("tcpnagle", "--top", 3, "--netns", left.inode) as run:
        with refusing(left, by):
            far.client.sendall(SMALL)
            begin = time.monotonic()
            time.sleep(0.7)
        arranged = far.receive(len(SMALL)) - begin
        run.stop()
    check(run, "refused", [arranged])
    (row,) = holders(run)
    assert (row["reason"], row["holds"], row["small_writes"]) == ("refused", 1, 1)
    assert settings(run) == {"OFF" if nodelay else "ON": (1, 1)}
    assert run.summary["still_held"] == 0


def test_refusal_at_the_end_of_a_hold_goes_on_with_it(
    netbpf: Any, two_hosts: tuple[Host, Host], far: Pair
) -> None:
    left, _ = two_hosts
    with netbpf("tcpnagle", "--top", 3, "--netns", left.inode) as run:
        far.set(socket.TCP_CORK, 1)
        far.client.sendall(SMALL)
        begin = time.monotonic()
        with refusing(left, "queue"):
            far.set(socket.TCP_CORK, 0)  # now it is sent, in vain
            time.sleep(0.3)
        arranged = far.receive(len(SMALL)) - begin
        run.stop()
    check(run, "refused", [arranged])
    (row,) = (row for row in holders(run) if row["holds"])
    assert (row["reason"], row["holds"], row["small_writes"]) == ("refused", 1, 1)
    assert row["held_us"] == pytest.approx(arranged * 1e6, rel=0.2)


# --- what never leaves ---------------------------------------------------------------------------


def test_data_of_a_socket_that_is_reset_is_neither_counted_nor_kept(
    netbpf: Any, one_host: Host, pair: Pair
) -> None:
    with netbpf("tcpnagle", "--netns", one_host.inode) as run:
        pair.set(socket.TCP_CORK, 1)
        pair.client.sendall(SMALL)
        pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        pair.client.close()
        run.stop()
    assert run.histograms == []
    assert settings(run) == {"CORK": (1, 1)}
    assert run.summary["still_held"] == 0


def test_close_sends_what_was_held(netbpf: Any, one_host: Host, pair: Pair) -> None:
    with netbpf("tcpnagle", "--netns", one_host.inode) as run:
        pair.set(socket.TCP_CORK, 1)
        pair.client.sendall(SMALL)
        begin = time.monotonic()
        time.sleep(0.05)
        pair.client.close()
        arranged = pair.receive(len(SMALL)) - begin
        run.stop()
    check(run, "cork", [arranged])
    assert run.summary["still_held"] == 0


def test_what_is_still_held_at_the_end_is_told(netbpf: Any, one_host: Host) -> None:
    with contextlib.closing(Pair(one_host, one_host, room=8192)) as pair:
        pair.fill_window()
        with netbpf("tcpnagle", "--netns", one_host.inode) as run:
            pair.client.sendall(SMALL)
            run.stop()
    assert run.summary["still_held"] == 1
    (note,) = [note for note in run.summary["notes"] if "still held" in note]
    assert f"pid {os.getpid()}" in note and f"port {pair.port}" in note and "rwnd" in note


def test_all_that_is_still_held_counts_and_five_are_named(netbpf: Any, one_host: Host) -> None:
    with contextlib.ExitStack() as stack:
        pairs = [
            stack.enter_context(contextlib.closing(Pair(one_host, one_host, room=8192)))
            for _ in "1234567"
        ]
        for pair in pairs:
            pair.fill_window()
        with netbpf("tcpnagle", "--netns", one_host.inode) as run:
            for pair in pairs:
                pair.client.sendall(SMALL)
            run.stop()
    assert run.summary["still_held"] == len(pairs)
    notes = [note for note in run.summary["notes"] if "still held" in note]
    # Those that wait longest.
    assert [f"port {pair.port}, " in note for pair, note in zip(pairs, notes)] == [True] * 5


# --- filters, intervals, text --------------------------------------------------------------------


def hold_by_cork(pair: Pair, span: float = 0.03) -> float:
    """Hold something for 30 ms, or as long as is wanted; return for how long it was (seconds)."""
    pair.set(socket.TCP_CORK, 1)
    pair.client.sendall(SMALL)
    begin = time.monotonic()
    time.sleep(span)
    pair.set(socket.TCP_CORK, 0)
    return pair.receive(len(SMALL)) - begin


def test_each_filter_shows_its_sockets_and_no_other(
    netbpf: Any, one_host: Host, two_hosts: tuple[Host, Host]
) -> None:
    comm = Path("/proc/self/comm").read_text().strip()
    with contextlib.ExitStack() as stack:
        four, six = (
            stack.enter_context(contextlib.closing(Pair(one_host, one_host, family)))
            for family in ("ipv4", "ipv6")
        )
        cases: list[tuple[tuple[object, ...], set[Pair]]] = [
            (("-4",), {four}),
            (("-6",), {six}),
            (("-D", four.port), {four}),
            (("-L", six.client.getsockname()[1]), {six}),
            (("--raddr", "::1"), {six}),
            (("--laddr", "127.0.0.0/8"), {four}),
            (("-p", os.getpid()), {four, six}),
            (("-p", 1), set()),
            (("--comm", comm), {four, six}),
            (("--comm", "no-such"), set()),
            (("-u", 65533), set()),
            (("--netns", two_hosts[0].namespace), set()),
        ]
        for words, wanted in cases:
            scope = () if "--netns" in words else ("--netns", one_host.inode)
            with netbpf("tcpnagle", "--top", 9, *words, *scope) as run:
                hold_by_cork(four)
                hold_by_cork(six)
                run.stop()
            assert {row["rport"] for row in holders(run)} == {p.port for p in wanted}, words
            assert sum(sends for sends, _ in settings(run).values()) == len(wanted), words
            assert run.summary["events"] == len(wanted)


@compares("tcpnagle", "percentiles", shape="histogram")
@compares("tcpnagle", "netns", "p99_us", shape="--top")
def test_percentiles_are_the_bounds_of_what_was_arranged(
    netbpf: Any, one_host: Host, pair: Pair
) -> None:
    """A hundred holds, the two longest far off: one of them is above the 99th percentile."""
    with netbpf("tcpnagle", "--top", 2, "--netns", one_host.inode) as run:
        short = [hold_by_cork(pair, 0.005) for _ in range(98)]
        long = [hold_by_cork(pair, 0.15) for _ in range(2)]
        run.stop()
    assert max(short) < 0.12, "the test itself failed"
    histogram = held(run, "cork")
    assert histogram and histogram["count"] == 100
    (row,) = holders(run)
    assert (row["netns"], row["holds"]) == (one_host.inode, 100)
    found = histogram["percentiles"]
    assert sorted(short)[49] * 0.5e6 <= found["p50"] <= sorted(short)[49] * 2e6
    assert min(long) * 0.6e6 <= found["p99"] <= max(long) * 2e6
    assert min(long) * 0.9e6 <= row["p99_us"] <= max(long) * 2.2e6


def test_holders_come_in_the_order_of_their_time(netbpf: Any, one_host: Host) -> None:
    spans = (0.03, 0.12, 0.06)
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(contextlib.closing(Pair(one_host, one_host))) for _ in spans]
        ports = [pair.port for pair in pairs]
        with netbpf("tcpnagle", "--top", 2, "-D", ",".join(map(str, ports[:2]))) as two:
            with netbpf("tcpnagle", "--top", 2, "--netns", one_host.inode) as run:
                times = {pair.port: hold_by_cork(pair, t) for pair, t in zip(pairs, spans)}
                run.stop()
            two.stop()
    # Of three sockets those two that held data longest, most first; then of two that were named.
    order = sorted(ports, key=lambda port: -times[port])
    assert [row["rport"] for row in holders(run)] == order[:2]
    assert [row["rport"] for row in holders(two)] == [p for p in order if p != ports[2]]
    for row in holders(run):
        assert row["held_us"] == pytest.approx(times[row["rport"]] * 1e6, rel=0.2)
    assert run.summary["events"] == 3 and two.summary["events"] == 2


def test_a_socket_without_room_is_lost_once_and_only_if_it_was_asked_for(
    netbpf: Any, one_host: Host
) -> None:
    room, more = 256, 9
    listener = one_host.socket(socket.AF_INET, socket.SOCK_STREAM)
    with contextlib.ExitStack() as stack:
        stack.enter_context(listener)
        listener.bind((one_host.ipv4, 0))
        listener.listen(8)
        port = listener.getsockname()[1]
        ends = []
        for _ in range(room + more):
            ends.append(stack.enter_context(one_host.socket(socket.AF_INET, socket.SOCK_STREAM)))
            ends[-1].setsockopt(TCP, socket.TCP_CORK, 1)
            ends[-1].connect((one_host.ipv4, port))
            stack.enter_context(listener.accept()[0])
        options = ("--netns", one_host.inode, "--map-entries", room)
        with netbpf("tcpnagle", *options) as everything:
            with netbpf("tcpnagle", *options, "-D", port + 1) as nothing:
                for _ in range(2):
                    for end in ends:
                        end.send(b"x")
                nothing.stop()
            everything.stop()
    assert everything.summary["lost"]["map_full"] == more
    assert nothing.summary["lost"]["map_full"] == 0 and nothing.summary["complete"]


def test_sockets_without_room_in_the_table_are_lost(netbpf: Any, one_host: Host) -> None:
    """One holds after the other: what is held now always has room."""
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(contextlib.closing(Pair(one_host, one_host))) for _ in "12345"]
        words = ("--top", 9, "--netns", one_host.inode, "--map-entries", 2)
        with netbpf("tcpnagle", *words) as run:
            for _ in range(2):
                for pair in pairs:
                    hold_by_cork(pair)
            run.stop()
    assert [row["holds"] for row in holders(run)] == [2, 2]
    assert run.summary["lost"]["map_full"] == len(pairs) - 2
    assert sum(h["count"] for h in run.histograms) == 2 * len(pairs)


def test_refused_data_of_others_takes_no_room(netbpf: Any, two_hosts: tuple[Host, Host]) -> None:
    left, right = two_hosts
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(contextlib.closing(Pair(left, right))) for _ in "12345"]
        unused = max(pair.port for pair in pairs) + 1
        words = ("--netns", left.inode, "--map-entries", 1)
        run = stack.enter_context(netbpf("tcpnagle", *words, "-D", unused))
        with refusing(left, "queue"):
            for pair in pairs:
                pair.client.sendall(SMALL)
        for pair in pairs:
            pair.receive(len(SMALL))
        run.stop()
    assert run.rows == run.histograms == []
    assert run.summary["lost"]["map_full"] == 0 and run.summary["complete"] is True


@compares("tcpnagle", "count", shape="histogram")
@compares("tcpnagle", "sends", shape="rows")
def test_intervals_add_up_to_the_whole(netbpf: Any, one_host: Host, pair: Pair) -> None:
    with netbpf("tcpnagle", "0.2", "--top", "3", "--netns", one_host.inode) as run:
        for number in (1, 2, 3):
            hold_by_cork(pair)
            seen: Callable[[], bool] = lambda: len(run.histograms) >= number  # noqa: B023, E731
            wait_until(seen, what="the end of the interval")
        run.stop()
    assert sum(h["count"] for h in run.histograms) == 3
    assert sum(row["holds"] for row in holders(run)) == 3
    assert sum(row["sends"] for row in run.rows if "setting" in row) == 3


def test_text_fits_80_columns_and_gives_the_advice(netbpf: Any, one_host: Host, pair: Pair) -> None:
    pair.interactive()
    with netbpf("tcpnagle", "--top", "3", "--netns", one_host.inode, json_lines=False) as run:
        for _ in range(3):
            pair.write_write_read()
        pair.set(socket.TCP_NODELAY, 1)
        pair.client.sendall(SMALL)
        pair.receive(len(SMALL))
        run.stop()
    lines = run.stdout.splitlines()
    # A setting is named by the option that sets it, and a percentile is the bound that it is.
    words = [line.split() for line in lines]
    assert ["default", "9", "9", "3"] in words
    assert ["TCP_NODELAY", "1", "1", "0"] in words
    (holder,) = (line for line in words if line[-1:] == ["TCP_NODELAY/writev"])
    assert holder[5].startswith("<=") and holder[5].endswith("ms")
    assert max(map(len, lines)) <= 80
    assert "reason=nagle" in lines
    assert any(line.endswith("TCP_NODELAY/writev") for line in lines)


# --- whatever the kind of probe ------------------------------------------------------------------


def writes(stage: Stage, run: Run) -> None:
    pair = Pair(stage.alone, stage.alone)
    pair.interactive()
    for _ in range(3):
        pair.write_write_read()
    pair.client.close()
    pair.server.close()


def holders_and_settings(run: Run, lost: set[str]) -> Any:
    wanted = ("pid", "comm", "laddr", "lport", "rport", "holds", "small_writes", "reason")
    shown = [tuple(row[name] for name in wanted) for row in holders(run)]
    return sorted(shown), settings(run)


ALTERNATIVES = Case(lambda s: ("--top", 5, "--netns", s.alone.inode), writes, holders_and_settings)
