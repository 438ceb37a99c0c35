"""tcplife against sessions whose every packet is written down here: state x packet x IPv4/IPv6.

Truth: the packets that passed a tun device whose other side is this test (raw_peer.py). They show
which FIN or RST came first, what was acknowledged, what was sent again, and when.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import harness
import pytest
from compared import compares
from harness import Json, Run
from raw_peer import ACK, FIN, RST, SYN, Peer, Wire, ends, wire
from topology import Host

FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
RESET = struct.pack("ii", 1, 0)  # struct linger: close() sends a RST
KEEPIDLE, KEEPINTVL, KEEPCNT, SYNCNT, LINGER2, USER_TIMEOUT = 4, 5, 6, 7, 8, 18
FASTOPEN, NO_COOKIE, MSG_FASTOPEN = 23, 34, 0x20000000
COOKIE = b"\x22\x02\x01\x01"  # the option of a SYN that asks for Fast Open, and padding
PAUSE = 0.03  # a packet is answered in much less
UNREACHABLE = {"ipv4": (3, 1), "ipv6": (1, 3)}
PORT_UNREACHABLE = {"ipv4": (3, 3), "ipv6": (1, 4)}
NO_ROUTE = {"ipv4": (3, 0), "ipv6": (1, 0)}
_ports = itertools.count(20001)


class Session:
    """The host's socket, its raw peer, and what the host's program did."""

    def __init__(self, wire: Wire, family: str) -> None:
        self.wire, self.family = wire, family
        self.peer = Peer(wire, family, next(_ports))
        self.host, self.remote = ends(family, wire.number)
        self.role = ""
        self.up = self.down = 0  # octets written by the program, and sent to it in order
        self.begin = time.monotonic()
        self.sock = wire.host.socket(FAMILIES[family], socket.SOCK_STREAM)
        self.listener: socket.socket | None = None

    def connecting(self) -> Session:
        self.role = "active"
        self.sock.bind((self.host, 0))
        self.peer.host_port = self.sock.getsockname()[1]
        self.sock.setblocking(False)
        self.begin = time.monotonic()
        self.sock.connect_ex((self.remote, self.peer.port))
        self.peer.see(SYN)
        return self

    def sending(self, size: int) -> Session:
        """Connect with data on the SYN."""
        self.role = "active"
        self.sock.bind((self.host, 0))
        self.sock.setsockopt(socket.IPPROTO_TCP, NO_COOKIE, 1)
        self.sock.setblocking(False)
        self.begin = time.monotonic()
        with contextlib.suppress(BlockingIOError):
            self.sock.sendto(b"u" * size, MSG_FASTOPEN, (self.remote, self.peer.port))
        assert len(self.peer.see(SYN).data) == size
        self.up = size
        return self

    def listening(self, fast: bool = False) -> Session:
        self.role = "passive"
        self.listener = self.sock
        if fast:
            self.listener.setsockopt(socket.IPPROTO_TCP, FASTOPEN, 5)
        self.listener.bind((self.host, 0))
        self.listener.listen(5)
        self.listener.settimeout(harness.TIMEOUT)
        self.peer.host_port = self.listener.getsockname()[1]
        return self

    def asked(self, fast: bytes = b"") -> Session:
        """A SYN comes, with data for Fast Open, and is answered."""
        self.peer.send(SYN, fast, options=COOKIE if fast else b"")
        self.peer.see(SYN | ACK)
        self.down += len(fast)
        return self

    def accepted(self) -> Session:
        assert self.listener
        self.sock, _ = self.listener.accept()
        return self

    def opened(self, role: str) -> Session:
        if role == "active":
            self.connecting().peer.send(SYN | ACK)
            self.peer.see(ACK)
        else:
            self.listening().asked().peer.send(ACK)
            self.accepted()
        return self

    def write(self, size: int) -> None:
        self.sock.setblocking(True)
        self.sock.sendall(b"u" * size)
        self.up += size
        self.peer.see(ACK, size)

    def data(self, size: int, **words: Any) -> None:
        """Data comes and is acknowledged, or is refused."""
        self.peer.send(ACK, b"d" * size, **words)
        self.peer.drain(0.005)
        if not words:
            self.down += size

    def read(self) -> None:
        self.sock.setblocking(True)
        self.sock.settimeout(harness.TIMEOUT)
        self.sock.recv(65536)

    def shut(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)
        self.peer.see(FIN | ACK)

    def close(self) -> None:
        self.sock.close()

    def linger(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.sock.close()

    def option(self, *names: int, value: int = 1) -> None:
        for name in names:
            self.sock.setsockopt(socket.IPPROTO_TCP, name, value)

    def destroy(self) -> None:
        """Do what ss -K does, in all states: -a."""
        both = ("sport", "=", f":{self.peer.host_port}", "dport", "=", f":{self.peer.port}")
        self.wire.host.run("ss", "-K", "-tna", *both)

    def finish(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError):
            self.linger()
        if self.listener:
            self.listener.close()

    def their_fin(self, **words: Any) -> None:
        self.peer.send(FIN | ACK, **words)
        self.peer.see(ACK)

    def close_both(self) -> None:
        """The host closes first, in order."""
        self.close()
        self.peer.see(FIN | ACK)
        self.their_fin()

    def peer_closes(self) -> None:
        """The peer closes first, in order."""
        self.their_fin()
        self.close()
        self.peer.see(FIN | ACK)
        self.peer.send(ACK)


class Watch:
    """One run for all tests of this file."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def lines_of(self, session: Session, number: int = 1) -> list[Json]:
        """Return the events of a session, of which so many must come."""
        ports = (session.peer.host_port, session.peer.port)

        def ours(events: list[Json]) -> list[Json]:
            return [e for e in events if (e["lport"], e["rport"]) == ports]

        self.run.wait_for(lambda events: len(ours(events)) >= number)
        return ours(self.run.events)


@pytest.fixture(scope="module")
def raw(one_host: Host) -> Iterator[Wire]:
    one_host.sysctl(net__ipv4__tcp_fastopen=0x207, net__ipv4__tcp_fastopen_blackhole_timeout_sec=0)
    with wire(one_host) as made:
        yield made


@pytest.fixture(scope="module")
def watch(one_host: Host, raw: Wire, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    directory = tmp_path_factory.mktemp("packets")
    with harness.running(directory, "tcplife", "--netns", one_host.inode) as run:
        yield Watch(run)
    for event in run.events:
        assert not [v for v in event.values() if isinstance(v, int) and v >= 1 << 62], event


# --- every state, ended by every packet and call --------------------------------------------------

Script = Callable[[Session], None]


def established(s: Session) -> None:
    s.write(70)
    s.peer.send(ACK)
    s.data(30)
    s.read()


def fin_wait1(s: Session) -> None:
    established(s)
    s.shut()


def fin_wait2(s: Session) -> None:
    fin_wait1(s)
    s.peer.send(ACK)


def close_wait(s: Session) -> None:
    established(s)
    s.their_fin()


def closing(s: Session) -> None:
    fin_wait1(s)
    s.their_fin(ack=s.peer.ack - 1)


def last_ack(s: Session) -> None:
    close_wait(s)
    s.shut()


STATES = (established, fin_wait1, fin_wait2, close_wait, closing, last_ack)
# FIN_WAIT2 is left out: without a descriptor the kernel keeps a timewait socket instead.
CLOSED = (fin_wait1, closing, last_ack)


def reset(s: Session) -> None:
    s.peer.send(RST)


def reset_and_ack(s: Session) -> None:
    s.peer.send(RST | ACK)


def reset_outside_the_window(s: Session) -> None:
    s.peer.send(RST, ahead=1 << 20, stray=True)
    s.peer.drain(0.01)
    s.peer.send(RST)


def reset_at_another_place(s: Session) -> None:
    """Inside the window, but not at its begin: a challenge ACK answers (RFC 5961)."""
    s.peer.send(RST, ahead=10, stray=True)
    s.peer.drain(0.01)
    s.peer.send(RST)


def syn(s: Session) -> None:
    s.peer.send(SYN, stray=True)
    s.peer.drain(0.01)
    s.peer.send(RST)


def hard_error(s: Session) -> None:
    """ICMP's error for a whole session is soft: it goes on."""
    s.peer.icmp(*PORT_UNREACHABLE[s.family])
    s.peer.drain(0.01)
    s.peer.send(RST)


def destroyed(s: Session) -> None:
    s.destroy()


def late(s: Session) -> None:
    """Data, part of it new, of which the kernel wants nothing: TCPAbortOnData, or unread."""
    fins = [p for p in s.peer.passed if p.flags & FIN]
    s.peer.send(ACK, b"d" * 9, ahead=-1 if any(fin.ours for fin in fins) else 0,
                ack=s.peer.ack - any(not fin.ours for fin in fins), stray=True)  # fmt: skip
    s.peer.drain(0.01)
    if s.sock.fileno() >= 0:
        # It was queued if no FIN of the peer's stands before it.
        s.down += 0 if any(fin.ours for fin in fins) else 9
        s.close()


def linger(s: Session) -> None:
    s.linger()


def unspec(s: Session) -> None:
    """connect() to AF_UNSPEC ends the session at once."""
    name = struct.pack("=H14x", socket.AF_UNSPEC)
    assert ctypes.CDLL(None).connect(s.sock.fileno(), name, len(name)) == 0


ENDS = (
    reset, reset_and_ack, reset_outside_the_window, reset_at_another_place, syn, hard_error,
    destroyed, late,
)  # fmt: skip
BY_DESCRIPTOR = (linger, unspec)


def wrong_in(event: Json, s: Session, close: str) -> dict[str, tuple[Any, Any]]:
    """Return the columns that differ from what the program did and the packets show."""
    acknowledged = max(s.peer.acknowledged() - 1, 0)
    wanted = {
        "role": s.role,
        "close": close,
        "tx_bytes": s.up,
        "rx_bytes": s.down,
        "tx_unacked": max(s.up - acknowledged, 0),
        "retrans": s.peer.sent_again(),
    }
    return {name: (event[name], value) for name, value in wanted.items() if event[name] != value}


def _play(
    raw: Wire, family: str, role: str, held: str, state: Script, end: Script
) -> tuple[Session, str, float]:
    """Return a session that has ended, by what, and how long it lasted at least (us)."""
    s = Session(raw, family).opened(role)
    opened = time.monotonic()
    state(s)
    if held == "closed":
        s.close()
    ending = time.monotonic()
    end(s)
    s.peer.drain(0.01)
    # What passes after that, such as an answer to a packet for no socket, is not part of it.
    return s, s.peer.ended_by(), (ending - opened) * 1e6


@compares("tcplife", "tx_unacked", "close", "rx_bytes")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("role", ["active", "passive"])
@pytest.mark.parametrize("held", ["held", "closed"])
def test_session_in_every_state_ends_as_its_packets_show(
    watch: Watch, raw: Wire, held: str, role: str, family: str
) -> None:
    differs = []
    for state in STATES if held == "held" else CLOSED:
        # All before their lines are read: each line waits a tenth of a second for a RST.
        ends = (*ENDS, *BY_DESCRIPTOR) if held == "held" else ENDS
        played = [(end, *_play(raw, family, role, held, state, end)) for end in ends]
        for end, s, close, low in played:
            (event,) = watch.lines_of(s)
            wrong = wrong_in(event, s, close)
            high = (time.monotonic() - s.begin) * 1e6
            if not low <= event["duration_us"] <= high:
                wrong["duration_us"] = (event["duration_us"], (low, high))
            if wrong:
                differs.append((state.__name__, end.__name__, wrong))
        for _, s, _, _ in played:
            s.finish()
    assert not differs


# --- beginnings, Fast Open, timers: each a script -------------------------------------------------

SCRIPTS: dict[str, tuple[Script, str]] = {}


def script(close: str) -> Callable[[Script], Script]:
    """Register a script, and what must be shown as what ended it; "" means no line."""

    def register(function: Script) -> Script:
        SCRIPTS[function.__name__] = (function, close)
        return function

    return register


@script("refused")
def syn_is_refused(s: Session) -> None:
    s.connecting().peer.send(RST | ACK)


@script("aborted")
def reset_without_ack_refuses_no_syn(s: Session) -> None:
    s.connecting().peer.send(RST, stray=True)
    s.peer.drain()
    s.close()


@script("fin-local")
def wrong_ack_of_a_syn_is_answered_by_a_reset_that_ends_nothing(s: Session) -> None:
    s.connecting().peer.send(SYN | ACK, ack=s.peer.ack + 77, stray=True)
    s.peer.see(RST)
    s.peer.send(SYN | ACK)
    s.peer.see(ACK)
    s.close_both()


@script("aborted")
def syn_sent_is_destroyed(s: Session) -> None:
    s.connecting().destroy()


@script("timeout")
def syn_is_never_answered(s: Session) -> None:
    s.option(SYNCNT)
    s.connecting().peer.drain(3.5)


@script("timeout")
def syn_has_a_user_timeout(s: Session) -> None:
    s.option(USER_TIMEOUT, value=300)
    s.connecting().peer.drain(1.5)


@script("unreachable")
def syn_is_answered_by_icmp(s: Session) -> None:
    s.connecting().peer.icmp(*NO_ROUTE[s.family])
    s.peer.drain()
    s.option(SYNCNT)
    s.peer.drain(3.5)


@script("refused")
def syn_is_answered_by_port_unreachable(s: Session) -> None:
    s.connecting().peer.icmp(*PORT_UNREACHABLE[s.family])
    s.peer.drain()


@script("fin-local")
def syn_is_sent_twice(s: Session) -> None:
    s.connecting().peer.see(SYN)
    s.peer.send(SYN | ACK)
    s.peer.see(ACK)
    s.close_both()


@script("fin-local")
def fin_on_a_syn_ack_counts_for_nothing(s: Session) -> None:
    s.connecting().peer.send(SYN | ACK | FIN, stray=True)
    s.peer.took(s.peer.last._replace(flags=SYN | ACK))
    s.peer.see(ACK)
    s.close_both()


@script("fin-local")
def data_on_a_syn_ack_counts_when_it_comes_again(s: Session) -> None:
    s.connecting().peer.send(SYN | ACK, b"ddddd", stray=True)
    s.peer.took(s.peer.last._replace(data=b""))
    s.peer.see(ACK)
    s.data(5)
    s.read()
    s.close_both()


def crossed(s: Session) -> Session:
    """The peer's SYN crosses the host's."""
    s.connecting().peer.send(SYN)
    s.peer.see(SYN | ACK)
    time.sleep(PAUSE)
    return s


@script("fin-local")
def syns_cross(s: Session) -> None:
    crossed(s).peer.send(ACK)
    s.peer.drain(0.01)
    established(s)
    s.close_both()


@script("fin-remote")
def syns_cross_and_a_fin_completes_the_handshake(s: Session) -> None:
    s.down += 9
    crossed(s).their_fin(data=b"d" * 9)
    s.read()
    s.close()
    s.peer.see(FIN | ACK)
    s.peer.send(ACK)


@script("rst-remote")
def syns_cross_and_a_reset_comes(s: Session) -> None:
    crossed(s).peer.send(RST)


@script("rst-local")
def syns_cross_and_the_host_resets(s: Session) -> None:
    crossed(s).linger()


@script("rst-local")
def syns_cross_and_the_socket_is_destroyed(s: Session) -> None:
    crossed(s).destroy()


@script("fin-remote")
def third_packet_is_late(s: Session) -> None:
    s.listening().asked()
    time.sleep(0.2)
    s.peer.send(ACK)
    s.accepted().peer_closes()


@script("fin-remote")
def third_packet_has_data_and_fin(s: Session) -> None:
    s.listening().asked().their_fin(data=b"d" * 9)
    s.down += 9
    s.accepted().read()
    s.close()
    s.peer.see(FIN | ACK)
    s.peer.send(ACK)


@script("fin-remote")
def third_packet_is_lost_and_data_stands_in(s: Session) -> None:
    s.listening().asked().data(9)
    s.accepted().read()
    s.peer_closes()


@script("fin-remote")
def syn_ack_is_sent_twice(s: Session) -> None:
    s.listening().asked().peer.see(SYN | ACK)
    s.peer.send(ACK)
    s.accepted().peer_closes()


@script("rst-remote")
def reset_comes_before_accept(s: Session) -> None:
    s.listening().asked().peer.send(ACK)
    s.peer.send(RST)


@script("rst-local")
def listener_closes_before_accept(s: Session) -> None:
    s.listening().asked().peer.send(ACK)
    s.data(9)
    s.close()


@script("rst-remote")
def wrong_third_packet_is_answered_by_a_reset_that_ends_nothing(s: Session) -> None:
    s.listening().asked().peer.send(ACK, ack=s.peer.ack + 5, stray=True)
    s.peer.see(RST)
    s.peer.passed = [p for p in s.peer.passed if not p.flags & RST]
    s.peer.send(ACK)
    s.accepted().peer.send(RST)


@script("")
def request_is_reset(s: Session) -> None:
    s.listening().asked().peer.send(RST)


@script("")
def syn_with_a_fin_is_no_syn(s: Session) -> None:
    s.listening().peer.send(SYN | FIN)
    s.peer.drain()


@script("fin-remote")
def fast_open_is_accepted(s: Session) -> None:
    s.listening(fast=True).asked(b"d" * 11).accepted().read()
    s.peer_closes()


@script("fin-remote")
def fast_open_ends_with_the_third_packet(s: Session) -> None:
    s.listening(fast=True).asked(b"d" * 11).peer.send(FIN | ACK, b"d" * 9)
    s.down += 9
    s.accepted().read()
    s.peer.drain()
    s.close()
    s.peer.see(FIN | ACK)
    s.peer.send(ACK)


@script("rst-remote")
def fast_open_is_reset_before_the_third_packet(s: Session) -> None:
    s.listening(fast=True).asked(b"d" * 11).accepted().read()
    s.write(44)
    s.peer.send(RST)


@script("rst-local")
def fast_open_is_closed_unread(s: Session) -> None:
    s.listening(fast=True).asked(b"d" * 11).accepted().close()


@script("fin-local")
def fast_open_is_closed_before_the_third_packet(s: Session) -> None:
    s.listening(fast=True).asked(b"d" * 11).accepted().read()
    s.close()
    s.peer.see(FIN | ACK)
    s.peer.send(ACK)


@script("fin-local")
def data_on_the_syn_is_taken(s: Session) -> None:
    s.sending(21).peer.send(SYN | ACK)
    s.peer.see(ACK)
    s.close_both()


@script("fin-local")
def data_on_the_syn_is_not_taken(s: Session) -> None:
    s.sending(21).peer.send(SYN | ACK, ack=s.peer.ack - 21)
    s.peer.see(ACK, 21)
    s.peer.send(ACK)
    s.close_both()


@script("refused")
def data_on_the_syn_is_refused(s: Session) -> None:
    s.sending(21).peer.send(RST | ACK, ack=s.peer.ack - 21)


@script("fin-remote")
def data_on_the_syn_is_answered_by_data_and_fin(s: Session) -> None:
    s.sending(21).peer.send(SYN | ACK | FIN, b"d" * 13)
    s.down += 13
    s.peer.see(ACK)
    s.read()
    s.close()
    s.peer.see(FIN | ACK)
    s.peer.send(ACK)


@script("fin-remote")
def data_on_the_syn_is_answered_by_a_fin(s: Session) -> None:
    s.sending(21).peer.send(SYN | ACK | FIN)
    s.peer.see(ACK)
    s.close()
    s.peer.see(FIN | ACK)
    s.peer.send(ACK)


@script("rst-remote")
def data_is_sent_again(s: Session) -> None:
    s.opened("active").write(70)
    s.peer.see(ACK, 70)
    s.peer.send(ACK)
    s.peer.send(RST)


@script("fin-local")
def fin_is_sent_again(s: Session) -> None:
    s.opened("active").close()
    s.peer.see(FIN | ACK)
    s.peer.see(FIN | ACK)
    s.their_fin()


@script("rst-local")
def linger2_is_negative(s: Session) -> None:
    s.opened("active").option(LINGER2, value=-1)
    s.close()
    s.peer.see(FIN | ACK)
    s.peer.send(ACK)


@script("rst-local")
def linger2_is_negative_and_data_comes(s: Session) -> None:
    s.opened("passive").option(LINGER2, value=-1)
    s.close()
    s.peer.see(FIN | ACK)
    s.peer.send(ACK, b"d" * 9, stray=True)


@script("fin-local")
def linger2_ends_fin_wait2(s: Session) -> None:
    s.opened("active").option(LINGER2)
    s.close()
    s.peer.see(FIN | ACK)
    s.peer.send(ACK)


@script("timeout")
def user_timeout_ends_what_is_not_acknowledged(s: Session) -> None:
    s.opened("active").option(USER_TIMEOUT, value=400)
    s.write(70)
    s.peer.drain(1.5)


@script("timeout")
def user_timeout_ends_a_closed_window(s: Session) -> None:
    s.opened("active").peer.send(ACK, window=0)
    s.option(USER_TIMEOUT, value=400)
    s.sock.sendall(b"u" * 70)
    s.up += 70
    until = time.monotonic() + 2
    while s.peer.next(until):
        if not s.peer.passed[-1].flags & RST:
            s.peer.send(ACK, window=0)


@script("timeout")
def fin_is_never_acknowledged(s: Session) -> None:
    s.opened("active").option(USER_TIMEOUT, value=400)
    s.shut()
    s.peer.drain(1.5)


@script("timeout")
def keepalive_is_not_answered(s: Session) -> None:
    s.opened("passive").sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    s.option(KEEPIDLE, KEEPINTVL, KEEPCNT)
    s.peer.drain(3)


@script("rst-remote")
def keepalive_is_answered_by_a_reset(s: Session) -> None:
    s.opened("passive").sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    s.option(KEEPIDLE, KEEPINTVL, KEEPCNT)
    s.peer.see(ACK)
    s.peer.send(RST)


@script("unreachable")
def icmp_gives_the_reason_of_a_timeout(s: Session) -> None:
    s.opened("active").option(USER_TIMEOUT, value=400)
    s.write(70)
    s.peer.icmp(*UNREACHABLE[s.family])
    s.peer.drain(1.5)


@script("fin-local")
def icmp_that_the_program_reads_ends_nothing(s: Session) -> None:
    level, name = (socket.IPPROTO_IPV6, 25) if s.family == "ipv6" else (socket.IPPROTO_IP, 11)
    s.opened("active").sock.setsockopt(level, name, 1)  # IP_RECVERR
    s.write(70)
    s.peer.icmp(*PORT_UNREACHABLE[s.family])
    s.peer.drain()
    s.peer.send(ACK)
    s.close_both()


@script("fin-remote")
def data_and_fin_come_out_of_order(s: Session) -> None:
    s.opened("active").data(5, ahead=4, stray=True)
    s.peer.send(FIN | ACK, ahead=9, stray=True)
    fin = s.peer.last
    s.peer.send(ACK, b"d" * 4)
    s.peer.took(fin)
    s.peer.drain()
    s.down += 9
    s.read()
    s.close()
    s.peer.see(FIN | ACK)
    s.peer.send(ACK)


@script("rst-local")
def fin_that_is_missing_a_byte_before_it_ends_nothing(s: Session) -> None:
    s.opened("active").peer.send(FIN | ACK, b"d" * 5, ahead=4, stray=True)
    s.peer.drain()
    s.linger()


@script("fin-local")
def fin_outside_the_window_ends_nothing(s: Session) -> None:
    s.opened("active").peer.send(FIN | ACK, ahead=1 << 20, stray=True)
    s.peer.drain()
    s.close_both()


@script("fin-local")
def reset_after_time_wait_is_not_part_of_it(s: Session) -> None:
    s.opened("active").close_both()
    s.peer.send(RST, stray=True)


@script("fin-local")
def fins_cross(s: Session) -> None:
    s.opened("passive").close()
    s.peer.see(FIN | ACK)
    s.their_fin(ack=s.peer.ack - 1)
    s.peer.send(ACK)


@script("rst-remote")
def urgent_byte_is_a_byte(s: Session) -> None:
    s.opened("active").sock.send(b"!", socket.MSG_OOB)
    s.up += 1
    s.peer.drain()
    s.peer.send(ACK)
    s.peer.send(RST)


@contextlib.contextmanager
def no_orphans() -> Iterator[Callable[[], None]]:
    """Yield a function that allows no orphan from now on; the block's end takes it back.

    tcp_max_orphans belongs to the first namespace: opened there, it is set for a moment only.
    """
    files: list[int] = []

    def look() -> None:
        for name in Path("/proc").glob("[0-9]*/ns/net"):
            with contextlib.suppress(OSError), name.open() as handle:
                if name.stat().st_ino not in seen and not files:
                    seen.add(name.stat().st_ino)
                    assert ctypes.CDLL(None).setns(handle.fileno(), 0x40000000) == 0
                    files.append(os.open("/proc/sys/net/ipv4/tcp_max_orphans", os.O_RDWR))

    seen: set[int] = set()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    (file,) = files
    before = os.pread(file, 32, 0)
    try:
        yield lambda: os.pwrite(file, b"0", 0) and None
    finally:
        os.pwrite(file, before, 0)
        os.close(file)


@pytest.mark.alone  # sessions of other tests would be reset, too
@pytest.mark.parametrize("family", FAMILIES)
def test_session_that_is_out_of_memory_is_reset(watch: Watch, raw: Wire, family: str) -> None:
    """TcpExt.TCPAbortOnMemory: more sockets without a descriptor than tcp_max_orphans."""
    first, second = (Session(raw, family).opened("active") for _ in range(2))
    first.close()  # an orphan, as its FIN is not acknowledged
    first.peer.see(FIN | ACK)
    time.sleep(0.3)  # the kernel counts them every 0.1 s
    before = raw.host.snmp()["TcpExtTCPAbortOnMemory"]
    with no_orphans() as forbid:
        forbid()
        second.close()
    second.peer.see(RST | ACK)
    assert raw.host.snmp()["TcpExtTCPAbortOnMemory"] == before + 1
    (event,) = watch.lines_of(second)
    assert not wrong_in(event, second, "rst-local")
    first.peer.send(RST)
    first.finish()


def handshake_bounds(s: Session) -> tuple[float, float] | None:
    """Return from when to when the host waited, as (least, most) in us; None if not known.

    Active: from the SYN to what answered it; a SYN was read after it left, and an answer was sent
    before it came. Passive: from the SYN-ACK, not known if that was sent twice.
    """
    passed = s.peer.passed
    syns = [p for p in passed if not p.ours and p.flags & SYN]
    if s.role == "passive" and len(syns) != 1:
        return None
    since = next(i for i, p in enumerate(passed) if p is syns[0])
    answer = next((p for p in passed[since:] if p.ours and p.flags & ACK), None)
    if not answer or answer.flags & RST:
        return None
    if any(p.flags & FIN and not p.ours and p.at < answer.at for p in passed):
        return None  # Fast Open: closed before the third packet, no state changes with that
    sent = s.begin if s.role == "active" else next(p.at for p in passed if p.ours)
    after = [p.at for p in passed if p.at > answer.at] or [time.monotonic()]
    return (answer.at - syns[0].at) * 1e6, (after[0] - sent) * 1e6


@compares("tcplife", "tx_unacked", "retrans", "role", "tx_bytes", "handshake_us")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SCRIPTS)
def test_session_is_shown_as_its_packets_show_it(
    watch: Watch, raw: Wire, name: str, family: str
) -> None:
    play, close = SCRIPTS[name]
    s = Session(raw, family)
    play(s)
    s.peer.drain()
    found = watch.lines_of(s, 1) if close else []
    bounds = handshake_bounds(s) if close else None
    s.finish()
    if not close:
        other = Session(raw, family).opened("active")
        other.linger()
        watch.lines_of(other)
        assert watch.lines_of(s, 0) == []
        return
    (event,) = found
    assert not wrong_in(event, s, close)
    if close[:3] in ("fin", "rst") and name not in BESIDE:
        assert s.peer.ended_by() == close
    if bounds and event["duration_us"] is not None:
        assert bounds[0] <= event["handshake_us"] <= bounds[1], bounds
    elif s.role == "passive":
        assert event["handshake_us"] is None


# Scripts in which a RST passes that ends no session.
BESIDE = {"wrong_ack_of_a_syn_is_answered_by_a_reset_that_ends_nothing"}


@pytest.mark.parametrize("family", FAMILIES)
def test_session_whose_interface_is_gone_times_out(
    watch: Watch, one_host: Host, family: str
) -> None:
    """Nothing is sent and nothing comes: no FIN and no RST pass, as no packet can."""
    lost = Wire(one_host, number=1)
    s = Session(lost, family).opened("active")
    s.option(USER_TIMEOUT, value=400)
    lost.close()
    s.sock.setblocking(True)
    s.sock.sendall(b"u" * 70)
    (event,) = watch.lines_of(s)
    assert event["close"] in ("timeout", "unreachable")
    with pytest.raises(OSError) as error:
        s.sock.recv(1)
    assert event["close"] == ("timeout" if error.value.errno == errno.ETIMEDOUT else "unreachable")
    assert (event["tx_bytes"], event["rx_bytes"], event["tx_unacked"]) == (70, 0, 70)
    s.finish()
