"""tcpretrans tells the truth about retransmissions that this test provoked."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import alternatives
import pytest
import topology
import traffic
from alternatives import Case, Stage
from bpf_maps import keys_of
from compared import compares
from harness import SLOW, Json, Run, attended, kill, seconds, start, wait_until
from topology import Host
from traffic import Peer, Session

from netbpf.kernel.btf import Btf

BLACK_HOLE = traffic.DROPPED_PORT
LOST_PORTS = "tcp dport {} meta length > 900 numgen inc mod {} == 0"


class Pair(NamedTuple):
    """A client in one host and a server in another."""

    left: Host
    right: Host
    client: Peer
    server: Peer

    def sockets(self, number: int, family: str = "ipv4", port: int = BLACK_HOLE) -> list[int]:
        """Let the client begin that many connects, and return their ids."""
        stack, addr = traffic.address(self.right, family)
        words = {"family": stack, "addr": addr, "port": port, "wait": False}
        idents = [next(traffic.ids) for _ in range(number)]
        for ident in idents:
            self.client.ask("connect", id=ident, **words)
        return idents

    def close(self, idents: list[int]) -> None:
        for ident in idents:
            self.client.ask("close", id=ident, reset=True)

    def lossy(self, session: Session, every: int) -> Any:
        """Drop every so many full segments of the session on their arrival, the first one, too."""
        return self.right.dropping(LOST_PORTS.format(session.remote[1], every))


@pytest.fixture(scope="module")
def pair(two_hosts: tuple[Host, Host]) -> Iterator[Pair]:
    left, right = two_hosts
    with traffic.peers() as new:
        client, server = new("nb-client", left), new("nb-server", right)
        for family in ("ipv4", "ipv6", "mapped"):
            server.listen(family)
        yield Pair(left, right, client, server)


@contextlib.contextmanager
def counted(host: Host) -> Iterator[dict[str, int]]:
    """Yield a dictionary that has the rise of the host's counters after the block."""
    rise: dict[str, int] = {}
    before = host.snmp()
    yield rise
    after = host.snmp()
    rise.update({name: value - before.get(name, 0) for name, value in after.items()})


def ours(found: list[Json], *hosts: Host) -> list[Json]:
    """Those of our namespaces: others may retransmit, too."""
    spaces = {host.inode for host in hosts}
    return [one for one in found if one["netns"] in spaces]


def segments(found: list[Json], *kinds: str) -> int:
    """The sum of segments, of some kinds or of all that were sent."""
    wanted = kinds or ("SYN", "SYNACK", "RTO", "FAST", "TLP")
    return sum(one["segs"] for one in found if one["kind"] in wanted)


def probes_used(run: Run) -> dict[str, str]:
    return {probe["name"]: probe["kind"] for probe in run.summary["probes"]}


# --- handshakes -----------------------------------------------------------------------------------


@compares(
    "tcpretrans",
    "pid",
    "comm",
    "owner",
    "family",
    "raddr",
    "rport",
    "state",
    "kind",
    "segs",
    "attempt",
)
@compares("tcpretrans", "segs", "in_namespace", shape="summary")
def test_syns_into_a_black_hole(netbpf: Any, pair: Pair) -> None:
    number = 7
    with counted(pair.left) as rise, pair.right.dropping(f"tcp dport {BLACK_HOLE}") as drops:
        with netbpf("tcpretrans", "-D", BLACK_HOLE, "--netns", pair.left.inode) as run:
            idents = pair.sockets(number)
            run.wait_for(2 * number)  # one and two seconds after the first ones
            pair.close(idents)
        dropped = drops.count()
    events = run.events
    assert len(events) == 2 * number == dropped - number
    assert segments(events) == rise["TcpRetransSegs"] == rise["TcpExtTCPSynRetrans"]
    for event in events:
        assert (event["kind"], event["state"], event["segs"]) == ("SYN", "SYN_SENT", 1)
        assert (event["pid"], event["comm"]) == (pair.client.pid, "nb-client")
        assert (event["owner"], event["family"], event["err"]) == ("exact", "ipv4", None)
        assert (event["raddr"], event["rport"]) == (pair.right.ipv4, BLACK_HOLE)
        assert event["rto_us"] >= 1_000_000
    for port in {event["lport"] for event in events}:
        assert [e["attempt"] for e in events if e["lport"] == port] == [1, 2]
    assert run.summary["totals"]["segs"] == run.summary["totals"]["in_namespace"] == 2 * number
    assert run.summary["counters"]["Tcp.RetransSegs"] == 2 * number
    assert not any(run.summary["lost"].values())


@compares("tcpretrans", "laddr", "lport")
@pytest.mark.parametrize("family", ["ipv4", "ipv6", "mapped"])
@pytest.mark.parametrize("known", ["exact", "snapshot"])
def test_synacks_to_clients_that_never_complete(
    netbpf: Any, pair: Pair, family: str, known: str
) -> None:
    number = 5
    usual = dict(pair.server.listeners)
    if known == "snapshot":
        pair.server.listen(family)
    with counted(pair.right) as rise, netbpf("tcpretrans", "--netns", pair.right.inode) as run:
        if known == "exact":
            pair.server.listen(family)
        port = pair.server.listeners[family][1]
        # The final ACK of the handshake: neither SYN nor data.
        with pair.right.dropping(f"tcp dport {port} tcp flags & (syn | ack) == ack"):
            idents = pair.sockets(number, family, port)
            run.wait_for(number)
        pair.close(idents)
    pair.server.listeners = usual  # those clients may yet complete: let nobody accept them
    events = run.events
    assert segments(events) == len(events) == number
    assert number == rise["TcpRetransSegs"] == rise["TcpExtTCPSynRetrans"]
    for event in events:
        assert (event["kind"], event["state"], event["attempt"]) == ("SYNACK", "SYN_RECV", 1)
        # A SYN-ACK belongs to whoever listens.
        assert (event["pid"], event["comm"]) == (pair.server.pid, "nb-server")
        assert event["owner"] == known
        # A dual-stack listener's IPv4 client is an IPv4 client.
        assert event["family"] == ("ipv6" if family == "ipv6" else "ipv4")
        assert event["lport"] == port
        assert event["laddr"] == traffic.address(pair.right, family)[1]
    assert len({event["rport"] for event in events}) == number


@compares("tcpretrans", "rto_us")
def test_each_repeat_of_a_synack_has_its_number_and_its_timeout(netbpf: Any, pair: Pair) -> None:
    port = pair.server.listeners["ipv4"][1]
    with pair.right.dropping(f"tcp dport {port} tcp flags & (syn | ack) == ack"):
        with netbpf("tcpretrans", "--netns", pair.right.inode) as run:
            begun = time.monotonic()
            idents = pair.sockets(1, "ipv4", port)
            run.wait_for(2)
            elapsed = time.monotonic() - begun
        pair.close(idents)
    first, second = run.events[:2]
    assert [first["attempt"], second["attempt"]] == [1, 2]
    # The timeout doubles: the second one ends three times the first one after the handshake.
    assert second["rto_us"] == 2 * first["rto_us"]
    assert (first["rto_us"] + second["rto_us"]) / 1e6 == pytest.approx(elapsed, abs=0.3 * SLOW)
    gap = seconds(second["time"]) - seconds(first["time"])
    assert gap == pytest.approx(second["rto_us"] / 1e6, abs=0.3 * SLOW)
    assert first["seq"] == second["seq"]


@pytest.mark.parametrize("fast_open", [False, True])
def test_timeout_of_a_synack_has_the_limit_that_the_kernel_keeps(
    netbpf: Any, fast_open: bool
) -> None:
    # A limit of one second counts for Fast Open since 6.15 (54a378f43425), for others since 6.19
    # (1e9d3005e02c). Truth: when the SYN-ACKs leave; without the limit the timeout doubles.
    with topology.two_hosts() as (left, right), contextlib.ExitStack() as stack:
        right.sysctl(net__ipv4__tcp_fastopen=0x603)  # data in a SYN needs no cookie
        left.sysctl(net__ipv4__tcp_fastopen=0x5)
        listener = stack.enter_context(right.socket(socket.AF_INET, socket.SOCK_STREAM))
        if fast_open:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 8)
        with contextlib.suppress(OSError):  # ENOPROTOOPT before 6.15
            listener.setsockopt(socket.IPPROTO_TCP, 44, 1000)  # TCP_RTO_MAX_MS
        listener.bind((right.ipv4, 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        run = stack.enter_context(netbpf("tcpretrans", "-L", port, "--netns", right.inode))
        client = stack.enter_context(left.socket(socket.AF_INET, socket.SOCK_STREAM))
        with left.dropping(f"tcp sport {port}"):
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.sendto(b"x", socket.MSG_FASTOPEN, listener.getsockname())
            client.close()  # so that no SYN comes again, which would be answered as well
            run.wait_for(3)
    first, second, third = run.events[:3]
    for before, event in ((first, second), (second, third)):
        gap = seconds(event["time"]) - seconds(before["time"])
        assert event["rto_us"] / 1e6 == pytest.approx(gap, abs=0.3 * SLOW)
    assert first["rto_us"] == 1_000_000
    assert [event["attempt"] for event in (first, second, third)] == [1, 2, 3]


@pytest.mark.parametrize("accepted", [True, False])
def test_synack_of_a_fast_open_child_is_one_of_its_owner(netbpf: Any, accepted: bool) -> None:
    # The child exists with the SYN, and its own timer sends the SYN-ACK again. Truth: what is
    # dropped is no SYN, so that TcpExt.TCPSynRetrans of the server counts nothing else.
    with topology.two_hosts() as (left, right), contextlib.ExitStack() as stack:
        right.sysctl(net__ipv4__tcp_fastopen=0x603)  # data in a SYN needs no cookie
        left.sysctl(net__ipv4__tcp_fastopen=0x5)
        run = stack.enter_context(netbpf("tcpretrans", "--netns", right.inode))
        listener = stack.enter_context(right.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 8)
        listener.bind((right.ipv4, 0))
        listener.listen(8)
        client = stack.enter_context(left.socket(socket.AF_INET, socket.SOCK_STREAM))
        local, port = listener.getsockname()
        with counted(right) as rise, left.dropping(f"tcp sport {port}"):
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.sendto(b"x" * 10, socket.MSG_FASTOPEN, listener.getsockname())
            remote = client.getsockname()
            assert select.select([listener], [], [], 10)[0]
            client.close()  # so that no SYN comes again, which would be answered as well
            if accepted:
                server = stack.enter_context(listener.accept()[0])
                assert server.recv(100) == b"x" * 10
            run.wait_for(2)
        events = run.events[: rise["TcpExtTCPSynRetrans"]]
    assert len(events) >= 2
    for attempt, event in enumerate(events, 1):
        assert (event["kind"], event["state"], event["segs"]) == ("SYNACK", "SYN_RECV", 1)
        assert (event["attempt"], event["rto_us"]) == (attempt, 1_000_000 << (attempt - 1))
        assert (event["pid"], event["owner"]) == (os.getpid(), "exact")
        assert (event["laddr"], event["lport"]) == (local, port)
        assert (event["raddr"], event["rport"]) == remote


def test_answers_of_two_ends_that_connect_at_once_are_synacks(netbpf: Any) -> None:
    # Their SYNs cross. Truth: what is dropped in both hosts has SYN and ACK.
    # Hosts of their own: what these two have begun goes on after the test.
    ports = (20, 21)
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(topology.two_hosts())
        run = stack.enter_context(netbpf("tcpretrans", "-L", "20,21"))
        rule = "tcp dport {20, 21}"
        syns = [stack.enter_context(host.dropping(rule)) for host in hosts]
        clients = [
            stack.enter_context(host.socket(socket.AF_INET, socket.SOCK_STREAM)) for host in hosts
        ]
        for client, host, port in zip(clients, hosts, ports):
            client.bind((host.ipv4, port))
        begin(clients[0], hosts[1].ipv4, 21)
        begin(clients[1], hosts[0].ipv4, 20)
        answers = f"{rule} tcp flags & (syn | ack) == syn | ack"
        drops = [stack.enter_context(host.dropping(answers)) for host in hosts]
        for dropped in syns:
            dropped.end()
        wait_until(lambda: min(dropped.count() for dropped in drops) >= 2, what="answers again")
        run.wait_for(lambda events: {e["lport"] for e in events if e["kind"] != "SYN"} == {20, 21})
        found = ours(run.events, *hosts)
    for event in found:
        state = {"SYN": "SYN_SENT", "SYNACK": "SYN_RECV"}
        assert event["state"] == state[event["kind"]]
        assert (event["pid"], event["segs"]) == (os.getpid(), 1)


def test_attempts_before_the_start_are_counted(netbpf: Any, pair: Pair) -> None:
    with pair.right.dropping(f"tcp dport {BLACK_HOLE}") as drops:
        idents = pair.sockets(1)
        wait_until(lambda: drops.count() >= 2, what="a retransmission")
        with netbpf("tcpretrans", "--netns", pair.left.inode) as run:
            run.wait_for(2)
            pair.close(idents)
        sent = drops.count()
    seen = len(run.events)
    assert [event["attempt"] for event in run.events] == list(range(sent - seen, sent))
    assert sent - seen >= 2
    assert run.events[-1]["owner"] == "snapshot"


# --- data -----------------------------------------------------------------------------------------


@compares("tcpretrans", "len", "ca_state")
def test_sum_and_kinds_during_a_lossy_transfer_agree_with_the_kernels_counters(
    netbpf: Any, pair: Pair
) -> None:
    with netbpf("tcpretrans", "--netns", pair.left.inode) as run, counted(pair.left) as rise:
        session = traffic.connect(pair.client, pair.server)
        session.transfer(up=100_003)  # opens the congestion window
        with pair.lossy(session, 7) as drops:
            session.transfer(up=2_000_003)
            assert drops.count() > 0
        black_out(run, pair, session)
        session.end()
    events = run.events
    assert segments(events) == rise["TcpRetransSegs"] == run.summary["totals"]["in_namespace"]
    assert run.summary["totals"]["segs"] == rise["TcpRetransSegs"]
    assert segments(events, "FAST") == rise["TcpExtTCPFastRetrans"] > 0
    # The timer sends one segment, what was lost with it follows as the window opens again.
    timer = rise["TcpExtTCPTimeouts"] + rise["TcpExtTCPSlowStartRetrans"]
    assert segments(events, "RTO") == timer > 0
    # Some carry new data, and whether there is any at all is a matter of timers.
    assert segments(events, "TLP") <= rise["TcpExtTCPLossProbes"]
    for event in events:
        assert (event["pid"], event["comm"], event["owner"]) == (
            pair.client.pid,
            "nb-client",
            "exact",
        )
        assert (event["laddr"], event["lport"]) == session.local
        assert (event["raddr"], event["rport"]) == session.remote
        assert 0 < event["srtt_us"] < 10_000_000
        # A GSO skb is one line that stands for several segments.
        assert event["segs"] == -(-event["len"] // 1448)
    assert max(event["segs"] for event in events) > 1
    assert {event["ca_state"] for event in events if event["kind"] == "RTO"} == {"loss"}
    assert {event["ca_state"] for event in events if event["kind"] == "FAST"} == {"recovery"}


def black_out(run: Run, pair: Pair, session: Session) -> None:
    """Let nothing through until the retransmission timer has fired for new data."""
    seen = len(run.events)
    with pair.right.dropping(f"tcp dport {session.remote[1]}"):
        pair.client.tell("transfer", id=session.id, send=5003)
        run.wait_for(lambda events: any(e["kind"] == "RTO" for e in events[seen:]))
    pair.server.ask("transfer", id=session.id, receive=5003)
    pair.client.answer()


@compares("tcpretrans", "seq")
def test_loss_of_the_last_segment_is_one_line_a_tail_loss_probe(netbpf: Any, pair: Pair) -> None:
    number = 11
    with netbpf("tcpretrans", "--netns", pair.left.inode, "-s") as run:
        session = traffic.connect(pair.client, pair.server)
        session.transfer(up=10_007)
        with counted(pair.left) as rise, pair.lossy(session, 2) as drops:
            for _ in range(number):
                session.transfer(up=1000)  # it is dropped, its retransmission is not
                session.transfer(up=100)  # before the next probe something else must be acked
            assert drops.count() == number
        session.end()
    assert [event["kind"] for event in run.events] == ["TLP"] * number
    assert segments(run.events) == rise["TcpRetransSegs"] == rise["TcpExtTCPLossProbes"] == number
    assert {event["len"] for event in run.events} == {1000}
    sequence = [event["seq"] for event in run.events]
    steps = {(later - earlier) % 2**32 for earlier, later in zip(sequence, sequence[1:])}
    assert steps == {1100}


def assert_kinds(events: list[Json], rise: dict[str, int]) -> None:
    """Each kind is what the kernel counts: probes here never have new data."""
    assert segments(events) == rise["TcpRetransSegs"]
    assert segments(events, "TLP") == rise["TcpExtTCPLossProbes"]


def too_big(capture: socket.socket, port: int) -> bytes:
    """Return what a router whose next link is narrower answers to the first full segment."""
    while True:
        packet = capture.recv(65536)
        offset = (packet[0] & 15) * 4
        if len(packet) > 1400 and struct.unpack_from("!H", packet, offset + 2)[0] == port:
            break
    # Destination unreachable, fragmentation needed, the next hop takes 1000 bytes (RFC 1191).
    body = struct.pack("!BBHHH", 3, 4, 0, 0, 1000) + packet[: offset + 8]
    words = struct.unpack(f"!{len(body) // 2}H", body)
    return body[:2] + struct.pack("!H", 0xFFFF - sum(words) % 0xFFFF) + body[4:]


@pytest.mark.parametrize("together", [1, 2])
def test_what_a_narrower_path_makes_lost_is_no_loss_probe(netbpf: Any, together: int) -> None:
    # Hosts of its own: they remember the path. Truth: TcpExt.TCPLossProbes does not grow.
    with topology.two_hosts() as (left, right), traffic.peers() as new:
        if together == 1:  # no skb has several segments
            left.run("ip", "link", "set", left.device, "gso_max_segs", 1)
        client, server = new("nb-client", left), new("nb-server", right)
        server.listen("ipv4")
        back = right.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        with back, netbpf("tcpretrans", "--netns", left.inode) as run, counted(left) as rise:
            session = traffic.connect(client, server)
            session.transfer(up=20_011)
            port = session.remote[1]
            ipv4 = socket.ntohs(0x0800)
            capture = right.socket(socket.AF_PACKET, socket.SOCK_DGRAM, ipv4)
            with capture, right.dropping(f"tcp dport {port}") as drops:
                client.tell("transfer", id=session.id, send=1448)
                answer = too_big(capture, port)
                drops.end()
                back.sendto(answer, (left.ipv4, 0))
                server.ask("transfer", id=session.id, receive=1448)
                client.answer()
            session.end()
        assert_kinds(run.events, rise)
        assert rise["TcpExtTCPLossProbes"] == rise["TcpExtTCPTimeouts"] == 0
        assert {(e["kind"], e["ca_state"]) for e in run.events} == {("RTO", "loss")}
        assert [event["segs"] for event in run.events] == [together] * (2 // together)
        assert sum(event["len"] for event in run.events) == 1448


def test_data_of_a_syn_that_is_sent_again_is_no_loss_probe(netbpf: Any) -> None:
    # The server had given a cookie, and takes no data with a SYN any more.
    with topology.two_hosts() as (left, right):
        right.sysctl(net__ipv4__tcp_fastopen=3)
        with right.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 8)
            listener.bind((right.ipv4, 0))
            listener.listen(8)

            def send(data: bytes) -> None:
                with left.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                    client.sendto(data, socket.MSG_FASTOPEN, listener.getsockname())
                    server, _ = listener.accept()
                    with server:
                        assert server.recv(100, socket.MSG_WAITALL if data else 0) == data

            send(b"c" * 100)  # no cookie as yet: the data follows the handshake
            right.sysctl(net__ipv4__tcp_fastopen=0)
            with netbpf("tcpretrans", "--netns", left.inode) as run, counted(left) as rise:
                send(b"d" * 100)
    assert rise["TcpExtTCPFastOpenActiveFail"] == 1, "the test itself failed"
    assert_kinds(run.events, rise)
    assert [event["len"] for event in run.events] == [100]
    assert rise["TcpExtTCPLossProbes"] == 0


@compares("tcpretrans", "srtt_us")
def test_every_number_of_a_line_is_what_the_socket_and_the_wire_have(
    netbpf: Any, two_hosts: tuple[Host, Host]
) -> None:
    left, right = two_hosts
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(right.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.bind((right.ipv4, 0))
        listener.listen(1)
        capture = stack.enter_context(
            right.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.ntohs(0x0800))
        )
        capture.bind((right.device, 0x0800))
        run = stack.enter_context(netbpf("tcpretrans", "--netns", left.inode))
        client = stack.enter_context(left.socket(socket.AF_INET, socket.SOCK_STREAM))
        client.connect(listener.getsockname())
        server = stack.enter_context(listener.accept()[0])
        client.sendall(b"x" * 4099)
        assert len(server.recv(4099, socket.MSG_WAITALL)) == 4099
        wait_until(lambda: not tcp_info(client)[2], what="acknowledgements")
        port, local = listener.getsockname()[1], client.getsockname()
        with right.dropping(f"tcp dport {port}"):
            rto, rtt, _ = tcp_info(client)
            client.sendall(b"y" * 777)
            run.wait_for(3, timeout=20 * SLOW)
            number = len(run.events)
        capture.setblocking(False)
        sent = captured(capture, port, 777)
    probe, first, second = run.events[:3]
    assert len(sent) >= number + 1 and len(set(sent)) == 1
    for attempt, event in enumerate(run.events[:3], 1):
        assert (event["len"], event["segs"], event["attempt"]) == (777, 1, attempt)
        assert event["seq"] == sent[0]
        assert event["srtt_us"] == rtt
        assert (event["state"], event["err"]) == ("ESTABLISHED", None)
        assert (event["pid"], event["netns"]) == (os.getpid(), left.inode)
        assert (event["laddr"], event["lport"]) == local
    assert [event["kind"] for event in run.events[:3]] == ["TLP", "RTO", "RTO"]
    assert [probe["ca_state"], first["ca_state"], second["ca_state"]] == ["open", "loss", "loss"]
    assert [event["rto_us"] for event in run.events[:3]] == [rto, rto, 2 * rto]


def tcp_info(client: socket.socket) -> tuple[int, int, int]:
    """Return the timeout and the round trip time in us, and how many segments are on the way."""
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return tuple(struct.unpack_from("=I", info, at)[0] for at in (8, 68, 24))  # type: ignore


def captured(capture: socket.socket, port: int, payload: int) -> list[int]:
    """Return the sequence numbers of all captured segments of that size to a port."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            packet = capture.recv(65536)
            ip = (packet[0] & 15) * 4
            if packet[9] != socket.IPPROTO_TCP:
                continue
            _, to, seq = struct.unpack_from("!HHI", packet, ip)
            size = int.from_bytes(packet[2:4], "big") - ip - (packet[ip + 12] >> 4) * 4
            if to == port and size == payload:
                found.append(seq)
    return found


def test_transfer_without_loss_gives_no_line(netbpf: Any, pair: Pair) -> None:
    with netbpf("tcpretrans", "--netns", pair.left.inode) as run, counted(pair.left) as rise:
        session = traffic.connect(pair.client, pair.server)
        session.transfer(up=1_000_003, down=100_003)
        session.end()
    # Nothing was dropped; a machine that stalls may send something again all the same.
    again = rise["TcpRetransSegs"]
    assert again == 0 or SLOW > 1
    assert segments(run.events) == again
    none = {"failed": 0, "failed_there": 0}
    assert run.summary["totals"] == {"segs": again, "in_namespace": again, **none}


shows_failures = pytest.mark.skipif(
    "err" not in (Btf().parameters("__traceiter_tcp_retransmit_skb") or ()),
    reason="needs a kernel that tells of failures: 6.17",
)


@compares("tcpretrans", "err")
@compares("tcpretrans", "failed", "failed_there", shape="summary")
@shows_failures
def test_failures_are_lines_with_the_error_and_are_not_taken_for_retransmissions(
    netbpf: Any, pair: Pair
) -> None:
    session = traffic.connect(pair.client, pair.server)
    rules = f"type filter hook output priority 0\ntcp dport {session.remote[1]} counter drop"
    table = f"table inet nb-out {{\nchain outgoing {{\n{rules}\n}}\n}}"
    with netbpf("tcpretrans", "--netns", pair.left.inode) as run, counted(pair.left) as rise:
        with pair.right.dropping(f"tcp dport {session.remote[1]}") as drops:
            pair.client.tell("transfer", id=session.id, send=3)
            wait_until(drops.count)  # it was sent: what follows is a retransmission
            pair.left.run("nft", "-f", "-", input=table)
            try:
                run.wait_for(lambda events: segments(events, "FAILED") >= 3)
            finally:
                pair.left.run("nft", "delete", "table", "inet", "nb-out")
        pair.server.ask("transfer", id=session.id, receive=3)
        pair.client.answer()
        session.end()
    failed = [event for event in run.events if event["kind"] == "FAILED"]
    assert len(failed) >= 3
    assert {(event["err"], event["pid"]) for event in failed} == {("EPERM", pair.client.pid)}
    assert segments(failed, "FAILED") == rise["TcpExtTCPRetransFail"]
    # The kernel counts before it sends: its number has those that failed then, too.
    assert segments(run.events) + len(failed) == rise["TcpRetransSegs"]
    assert run.summary["totals"]["failed"] == len(failed) == run.summary["totals"]["failed_there"]
    assert f"and {len(failed)} that then failed" in " ".join(run.summary["notes"])


def test_owner_stays_right_while_others_keep_the_cpus_busy(netbpf: Any, pair: Pair) -> None:
    number = 13
    busy = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(2)]
    try:
        with pair.right.dropping(f"tcp dport {BLACK_HOLE}"):
            with netbpf("tcpretrans", "--netns", pair.left.inode) as run:
                idents = pair.sockets(number)
                run.wait_for(number)
                pair.close(idents)
    finally:
        for process in busy:
            kill(process)
    owners = {(event["pid"], event["comm"], event["owner"]) for event in run.events}
    assert owners == {(pair.client.pid, "nb-client", "exact")}


def test_session_of_an_accept_that_began_before_the_start_has_its_owner(
    netbpf: Any, pair: Pair
) -> None:
    ahead = traffic.accept_ahead(pair.server)
    with netbpf("tcpretrans", "--netns", pair.right.inode) as run:
        session = traffic.connect(pair.client, pair.server, ahead=ahead)
        rule = f"tcp sport {session.remote[1]} meta length > 900 numgen inc mod 2 == 0"
        with pair.left.dropping(rule):
            session.transfer(down=1000)
        run.wait_for(1)
        session.end()
    owners = {(event["pid"], event["comm"], event["owner"]) for event in run.events}
    assert owners == {(pair.server.pid, "nb-server", "exact")}


# --- filters, counting, text ----------------------------------------------------------------------


@compares("tcpretrans", "netns")
def test_each_filter_shows_what_it_should_and_nothing_else(
    tmp_path: Any, pair: Pair, one_host: Host
) -> None:
    other = BLACK_HOLE + 1
    both, four, six = {"ipv4", "ipv6"}, {"ipv4"}, {"ipv6"}
    cases: list[tuple[tuple[object, ...], set[str]]] = [
        (("-D", f"{BLACK_HOLE}-{other}"), both),
        (("-D", BLACK_HOLE), four),
        (("-D", other), six),
        (("-4",), four),
        (("-6",), six),
        (("--raddr", pair.right.ipv4), four),
        (("--laddr", f"{pair.left.ipv6}/128"), six),
        (("-L", "1-2"), set()),
        (("-p", pair.client.pid), both),
        (("-p", pair.server.pid), set()),
        (("--comm", "nb-cl*"), both),
        (("--comm", "nb-s*"), set()),
        (("-u", "root"), both),
        (("-u", "nobody"), set()),
        (("--netns", pair.left.namespace), both),
        (("--netns", one_host.namespace), set()),
    ]
    for at in range(0, len(cases), 4):
        check_filters(tmp_path, pair, cases[at : at + 4])


def check_filters(tmp_path: Any, pair: Pair, cases: Any) -> None:
    rule = f"tcp dport {{ {BLACK_HOLE}, {BLACK_HOLE + 1} }}"
    with contextlib.ExitStack() as stack, pair.right.dropping(rule) as drops:
        runs = []
        for words, _ in [*cases, ((), {"ipv4", "ipv6"})]:  # the last one sees both
            directory = tmp_path / f"filter-{len(list(tmp_path.iterdir()))}"
            directory.mkdir()
            runs.append(start(directory, "tcpretrans", *words))
        for run in runs:
            stack.enter_context(attended(run))
        idents = pair.sockets(1, "ipv4") + pair.sockets(1, "ipv6", BLACK_HOLE + 1)
        wait_until(lambda: drops.count() >= 4, what="a retransmission of each")
        runs[-1].wait_for(lambda events: len(ours(events, pair.left)) >= 2)
        pair.close(idents)
    for run, (words, wanted) in zip(runs, cases):
        shown = {event["family"] for event in ours(run.events, pair.left)}
        assert shown == wanted, words


@compares("tcpretrans", "laddr", "lport", "retransmits", "share", "pid", "comm", shape="--flows")
def test_counting_ranks_flows_and_adds_up_over_the_intervals(netbpf: Any, pair: Pair) -> None:
    options = ("-c", "0.2", "--netns", pair.left.inode)
    with netbpf("tcpretrans", *options) as run, counted(pair.left) as rise:
        sessions = [traffic.connect(pair.client, pair.server) for _ in range(2)]
        for session, size in zip(sessions, (300_007, 2_000_003)):
            session.transfer(up=100_003)
            with pair.lossy(session, 7):
                session.transfer(up=size)
            time.sleep(0.3)  # not to be safe: so that there is more than one interval
        for session in sessions:
            session.end()
    assert run.events == []
    assert sum(row["retransmits"] for row in run.rows) == rise["TcpRetransSegs"] > 0
    by_time: dict[str, list[int]] = {}
    for row in run.rows:
        by_time.setdefault(row["time"], []).append(row["retransmits"])
        assert (row["pid"], row["comm"]) == (pair.client.pid, "nb-client")
        assert 0 < row["share"] < 1 and row["sent"] > row["retransmits"]
    assert len(by_time) >= 2
    assert all(counts == sorted(counts, reverse=True) for counts in by_time.values())
    assert {(row["laddr"], row["lport"]) for row in run.rows} == {s.local for s in sessions}


def syn_sent(host: Host, target: str, source: int = 0, port: int = BLACK_HOLE) -> socket.socket:
    """Begin a connect from a port of our choice that nobody answers."""
    client = host.socket(socket.AF_INET, socket.SOCK_STREAM)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind((host.ipv4, source))
    begin(client, target, port)
    return client


def begin(client: socket.socket, target: str, port: int) -> None:
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        client.connect((target, port))


def dissolve(client: socket.socket) -> None:
    """Connect to AF_UNSPEC, which gives up what the socket was connected to."""
    nowhere = struct.pack("=H14x", socket.AF_UNSPEC)
    assert ctypes.CDLL(None).connect(client.fileno(), nowhere, len(nowhere)) == 0


@compares("tcpretrans", "rport", "failed", "sent", shape="--flows")
@pytest.mark.parametrize("by", ["another socket", "the same socket"])
def test_counts_go_on_when_a_flow_has_its_second_connection(
    netbpf: Any, pair: Pair, by: str
) -> None:
    # What the socket counts starts from 0 each time. Truth: the SYNs that arrived.
    port = traffic.source_port(own=True)
    with pair.right.dropping(f"tcp dport {BLACK_HOLE}") as drops:
        with netbpf("tcpretrans", "-c", "--netns", pair.left.inode) as run:
            client = syn_sent(pair.left, pair.right.ipv4, port)
            wait_until(lambda: drops.count() >= 3, what="two retransmissions")
            if by == "another socket":
                client.close()
                client = syn_sent(pair.left, pair.right.ipv4, port)
            else:
                dissolve(client)
                begin(client, pair.right.ipv4, BLACK_HOLE)
            wait_until(lambda: drops.count() >= 5, what="another retransmission")
            client.close()
        sent = drops.count()
    (row,) = run.rows
    assert (row["lport"], row["rport"], row["pid"]) == (port, BLACK_HOLE, os.getpid())
    assert (row["retransmits"], row["sent"], row["failed"]) == (sent - 2, sent, 0)
    assert row["share"] == round((sent - 2) / sent, 4)
    assert sum(run.summary["lost"].values()) == 0


def test_what_two_flows_sent_is_counted_once_over_intervals_in_which_they_are_idle(
    netbpf: Any, pair: Pair
) -> None:
    port = BLACK_HOLE + 1
    with contextlib.ExitStack() as stack:
        one, two = (
            stack.enter_context(pair.right.dropping(f"tcp dport {number}"))
            for number in (BLACK_HOLE, port)
        )
        run = stack.enter_context(netbpf("tcpretrans", "-c", "0.1", "--netns", pair.left.inode))
        clients = [syn_sent(pair.left, pair.right.ipv4)]
        time.sleep(0.3)  # so that the intervals of one are idle ones of the other
        clients.append(syn_sent(pair.left, pair.right.ipv4, port=port))
        wait_until(lambda: one.count() >= 3 and two.count() >= 3, what="two retransmissions each")
        for client in clients:
            client.close()
        sent = {BLACK_HOLE: one.count(), port: two.count()}
        run.stop()
    for remote, number in sent.items():
        rows = [row for row in run.rows if row["rport"] == remote]
        assert len(rows) >= 2
        # The first row has the SYN, every later one nothing but what was sent again.
        assert [row["retransmits"] for row in rows] == [1] * (number - 1)
        assert [row["sent"] for row in rows] == [2] + [1] * (number - 2)
        assert [row["share"] for row in rows] == [0.5] + [1.0] * (number - 2)


@shows_failures
def test_what_failed_is_no_part_of_what_a_flow_sent(netbpf: Any, pair: Pair) -> None:
    # Truth: the socket's own count of segments (TCP_INFO) and TcpExt.TCPRetransFail.
    left, right = pair.left, pair.right
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(right.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.bind((right.ipv4, 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        run = stack.enter_context(netbpf("tcpretrans", "-c", "-D", port, "--netns", left.inode))
        rise = stack.enter_context(counted(left))
        client = stack.enter_context(left.socket(socket.AF_INET, socket.SOCK_STREAM))
        client.connect(listener.getsockname())
        server = stack.enter_context(listener.accept()[0])
        rules = f"type filter hook output priority 0\ntcp dport {port} counter drop"
        with right.dropping(f"tcp dport {port}") as drops:
            client.sendall(b"x" * 777)
            wait_until(lambda: drops.count() >= 2, what="a retransmission")
            left.run("nft", "-f", "-", input=f"table inet nb-o {{\nchain o {{\n{rules}\n}}\n}}")
            before = left.snmp()["TcpExtTCPRetransFail"]
            try:
                wait_until(lambda: left.snmp()["TcpExtTCPRetransFail"] - before >= 2)
            finally:
                left.run("nft", "delete", "table", "inet", "nb-o")
        assert len(server.recv(777, socket.MSG_WAITALL)) == 777
        wait_until(lambda: not tcp_info(client)[2], what="the acknowledgement")
        segs_out = struct.unpack_from("=I", client.getsockopt(6, socket.TCP_INFO, 256), 136)[0]
        run.stop()
    (row,) = run.rows
    failed = rise["TcpExtTCPRetransFail"]
    again = rise["TcpRetransSegs"] - failed
    assert (row["failed"], row["retransmits"]) == (failed, again)
    assert row["sent"] == segs_out - failed
    assert row["share"] == round(again / (segs_out - failed), 4)


def syn(source: str, target: str, sport: int, dport: int) -> bytes:
    """Return a TCP header that asks for a connection, with its checksum."""
    header = struct.pack("!HHIIBBHHH", sport, dport, sport, 0, 5 << 4, 2, 8192, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!HH", 6, 20)
    words = struct.unpack("!16H", pseudo + header)
    return header[:16] + struct.pack("!H", 0xFFFF - sum(words) % 0xFFFF) + header[18:]


def half_open(host: Host) -> set[int]:
    """Return the remote ports of connections that the kernel has in SYN_RECV (3)."""
    lines = [line.split() for line in host.run("cat", "/proc/self/net/tcp").splitlines()]
    return {int(words[2].partition(":")[2], 16) for words in lines if words[3] == "03"}


def test_a_session_without_room_is_lost_once_and_only_if_it_was_asked_for(netbpf: Any) -> None:
    # Requests of nobody's sockets, so that no other map has anything to do with them; and more than
    # there are sockets on the machine, whose owners have to find room.
    room, ports = 1024, range(20000, 21100)
    with topology.two_hosts() as (left, right), contextlib.ExitStack() as stack:
        right.sysctl(net__ipv4__tcp_max_syn_backlog=8192, net__ipv4__tcp_syncookies=0)
        right.sysctl(net__core__somaxconn=8192)
        listener = stack.enter_context(right.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.bind((right.ipv4, 0))
        listener.listen(8192)
        port = listener.getsockname()[1]
        raw = stack.enter_context(left.socket(socket.AF_INET, socket.SOCK_RAW, 6))
        options = ("-c", "--netns", right.inode, "--map-entries", room)
        runs = [
            stack.enter_context(netbpf("tcpretrans", *options, *words))
            for words in ((), ("-L", port + 1), ("-D", "20500-20504"))
        ]
        rise = stack.enter_context(counted(right))
        stack.enter_context(right.dropping("tcp flags rst"))
        for number, sport in enumerate(ports):
            raw.sendto(syn(left.ipv4, right.ipv4, sport, port), (right.ipv4, 0))
            if number % 200 == 199:  # a CPU's queue takes 1000 packets, also of those sent again
                time.sleep(0.1)
        time.sleep(0.1)
        asking = half_open(right)
        again = 2 * len(asking)
        wait_until(lambda: right.snmp()["TcpExtTCPSynRetrans"] >= again, what="two repeats each")
        for run in runs:
            run.stop()
    everything, nothing, few = runs
    assert rise["TcpExtTCPSynRetrans"] == again and len(asking) > room, "the test itself failed"
    assert len(everything.rows) == room
    assert {row["retransmits"] for row in everything.rows} == {2}
    assert everything.summary["lost"]["map_full"] == len(asking) - room
    assert nothing.rows == [] and nothing.summary["complete"]
    assert {(row["rport"], row["retransmits"]) for row in few.rows} == {
        (number, 2) for number in range(20500, 20505) if number in asking
    }
    assert few.summary["complete"]


def sessions(rows: list[Json]) -> set[tuple[int, int]]:
    return {(row["lport"], row["rport"]) for row in rows}


@pytest.mark.parametrize("what", ["sockets", "requests"])
def test_sessions_that_are_over_give_their_room_back(netbpf: Any, pair: Pair, what: str) -> None:
    # Room for two: two retransmit, and when their rows are there, two others do.
    port = BLACK_HOLE if what == "sockets" else pair.server.listeners["ipv4"][1]
    host, way = (pair.left, "-D") if what == "sockets" else (pair.right, "-L")
    # A request never gets its third packet; the reset that ends it passes.
    rest = " tcp flags & (syn | ack | rst) == ack" if host is pair.right else ""
    words = ("-c", "0.2", way, port, "--netns", host.inode, "--map-entries", 2)
    with (
        pair.right.dropping(f"tcp dport {port}{rest}"),
        netbpf("tcpretrans", *words) as run,
    ):
        for number in (2, 4):
            idents = pair.sockets(2, "ipv4", port)
            wait_until(lambda n=number: len(sessions(run.rows)) == n, what="rows")
            pair.close(idents)
            time.sleep(0.5)  # two intervals: what is over goes at the end of one
    assert run.summary["lost"]["map_full"] == 0 and run.summary["complete"]


def test_text_is_that_of_bcc_and_fits_80_columns(netbpf: Any, pair: Pair) -> None:
    options = ("--netns", pair.left.inode)
    with contextlib.ExitStack() as stack:
        texts = [
            stack.enter_context(netbpf("tcpretrans", *options, *more, json_lines=False))
            for more in ((), ("-s",))
        ]
        shown = stack.enter_context(netbpf("tcpretrans", *options))
        session = traffic.connect(pair.client, pair.server)
        session.transfer(up=10_007)
        with pair.lossy(session, 2):
            session.transfer(up=1000)
        with pair.right.dropping(f"tcp dport {session.remote[1]}") as drops:
            pair.client.tell("transfer", id=session.id, send=5003)
            shown.wait_for(lambda events: any(e["segs"] > 1 for e in events) or len(events) > 2)
            assert drops.count()
        pair.server.ask("transfer", id=session.id, receive=5003)
        pair.client.answer()
        session.end()
    head, *lines = texts[0].stdout.splitlines()
    assert head.split() == "TIME PID IP LADDR:LPORT T> RADDR:RPORT STATE COMM KINDxN".split()
    assert all(len(line) <= 80 for line in (head, *lines))
    assert len(lines) == len(shown.events)
    letters = {"TLP": "L>", "RTO": "R>", "FAST": "R>"}
    for line, event in zip(lines, shown.events):
        clock, pid, version, local, letter, remote, state, comm, kind = line.split()
        assert len(clock) == 8
        assert (pid, version, comm) == (str(pair.client.pid), "4", pair.client.comm)
        assert state == {"ESTABLISHED": "ESTAB"}.get(event["state"], event["state"])
        segs = event["segs"]
        assert kind == (f"{event['kind']}x{segs}" if segs > 1 else event["kind"])
        assert letter == letters[event["kind"]]
        assert (local, remote) == ("{}:{}".format(*session.local), "{}:{}".format(*session.remote))
    head, *lines = texts[1].stdout.splitlines()
    assert head.split()[-1] == "SEQ"
    assert [int(line.split()[-1]) for line in lines] == [event["seq"] for event in shown.events]


def test_long_addresses_keep_their_ports(netbpf: Any, pair: Pair) -> None:
    rule = f"tcp dport {BLACK_HOLE + 1}"
    options = ("--netns", pair.left.inode, "-D", BLACK_HOLE + 1)
    with pair.right.dropping(rule), netbpf("tcpretrans", *options, json_lines=False) as run:
        idents = pair.sockets(1, "ipv6", BLACK_HOLE + 1)
        wait_until(lambda: len(run.stdout.splitlines()) > 1, what="a line")
        pair.close(idents)
    words = run.stdout.splitlines()[1].split()
    assert words[3].startswith(f"[{pair.left.ipv6}]:")
    assert words[5:] == [f"[{pair.right.ipv6}]:{BLACK_HOLE + 1}", "SYN_SENT", "nb-client", "SYN"]


def test_loss_probes_are_shown_or_it_is_said_why_not(netbpf: Any, pair: Pair) -> None:
    with netbpf("tcpretrans", "-l", "--netns", pair.left.inode) as run:
        session = traffic.connect(pair.client, pair.server)
        session.transfer(up=10_007)
        with pair.lossy(session, 2):
            session.transfer(up=1000)
        run.wait_for(1)  # the kernel tells of it after it has sent
        session.end()
    # With the probe or without: a retransmitting loss probe is one line.
    assert [event["kind"] for event in run.events] == ["TLP"]
    said = any(note.startswith("-l: loss probes") for note in run.summary["notes"])
    assert said is (probes_used(run)["loss_probe"] is None)


def ordinals(events: list[Json]) -> list[int]:
    """Return how often each event's segment had been sent again by then."""
    seen: dict[tuple[int, int], int] = {}
    found = []
    for event in events:
        key = (event["lport"], event["seq"])
        seen[key] = seen.get(key, 0) + 1
        found.append(seen[key])
    return found


def attempts(events: list[Json]) -> list[int]:
    return [event["attempt"] for event in events]


def test_segments_without_room_are_lost_where_an_attempt_may_be_wrong(
    netbpf: Any, pair: Pair
) -> None:
    # Room for one connection and four segments: of the others the attempts are not known.
    words = ("--netns", pair.left.inode, "--fail-on-loss")
    opened = [traffic.connect(pair.client, pair.server) for _ in range(3)]
    with netbpf("tcpretrans", *words) as whole:
        with netbpf("tcpretrans", *words, "--map-entries", 1, returncode=3) as part:
            for session in opened:
                with pair.lossy(session, 2):
                    session.transfer(up=100_003)
            for session in opened:
                session.end()
            wait_until(lambda: len(part.events) == len(whole.events) > 20, what="the same events")
    assert attempts(whole.events) == ordinals(whole.events)
    assert not any(whole.summary["lost"].values())
    right = ordinals(part.events)
    wrong = sum(mine != true for mine, true in zip(attempts(part.events), right))
    # Two owners find no room either.
    assert 0 < wrong <= part.summary["lost"]["map_full"] - 2
    assert part.summary["lost"]["map_full"] - 2 <= len(part.events)


def test_connections_that_are_over_forget_their_segments(netbpf: Any, pair: Pair) -> None:
    # One after the other they find room, which they would not have together.
    with netbpf("tcpretrans", "--netns", pair.left.inode, "--map-entries", 8) as run:
        for _ in range(4):
            session = traffic.connect(pair.client, pair.server)
            with pair.lossy(session, 3):
                session.transfer(up=60_003)
            session.end()
        wait_until(lambda: not keys_of(run, "attempts"), what="an empty map")
        assert not keys_of(run, "resends")
    assert attempts(run.events) == ordinals(run.events)
    assert len(run.events) > 20
    assert not any(run.summary["lost"].values())


# --- whatever the kind of probe ------------------------------------------------------------------


def losses(stage: Stage, run: Run) -> None:
    pair = Pair(stage.left, stage.right, stage.client, stage.server)
    session = traffic.connect(stage.client, stage.server)
    session.transfer(up=10_007)
    with pair.lossy(session, 2):
        session.transfer(up=1000)
    session.end()
    with stage.right.dropping(f"tcp dport {traffic.DROPPED_PORT}"):
        idents = pair.sockets(3)
        run.wait_for(1 + 3)
        pair.close(idents)


ALTERNATIVES = Case(
    lambda s: ("-l", "--netns", s.left.inode), losses, alternatives.events, {"loss": True}
)
