"""tcprtt has a value for each ACK of new data, and it is the one that TCP_INFO had at that time."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import topology
import traffic
from alternatives import Case, Stage
from compared import compares
from harness import Json, Run, kill, wait_until
from old_sessions import FOUR, SIX, UID, Old
from packets import log2_buckets
from topology import Host, cgroup_of
from traffic import Peer, Session

from netbpf.declare.keys import Key

TCP = socket.IPPROTO_TCP
EXCHANGES = 43
LAST_RTT, LAST_MDEV, MIN_RTT, UNACKED = 68, 72, 148, 24  # offsets in struct tcp_info


def u32(info: bytes, offset: int) -> int:
    return int(struct.unpack_from("=I", info, offset)[0])


class Exchange:
    """A connection over loopback, both ends in this process."""

    def __init__(self, host: Host) -> None:
        with host.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind((host.ipv4, 0))
            listener.listen(1)
            self.client = host.socket(socket.AF_INET, socket.SOCK_STREAM)
            self.client.connect(listener.getsockname())
            self.server, _ = listener.accept()
        self.port = int(self.server.getsockname()[1])
        # Ends of other namespaces may have the same ports.
        self.filter = ("--netns", host.inode, "-D", self.port)
        self._before: list[bytes] = []  # TCP_INFO of the client before each request
        for end in (self.client, self.server):
            end.settimeout(20)

    def info(self) -> bytes:
        return self.client.getsockopt(TCP, socket.TCP_INFO, 256)

    def values(self, offset: int = LAST_RTT) -> list[int]:
        """Return a u32 of the client's TCP_INFO before each request."""
        return [u32(info, offset) for info in self._before]

    def request(self) -> None:
        self._before.append(self.info())
        self.client.sendall(b"x" * 100)

    def once(self) -> None:
        """Send a request, which is acknowledged once, and wait for the response."""
        self.request()
        assert len(self.server.recv(100)) == 100
        self.server.sendall(b"y" * 10)
        assert len(self.client.recv(10)) == 10

    def late(self) -> None:
        """Send a request that is acknowledged alone, when the server's timer expires."""
        self.server.setsockopt(TCP, socket.TCP_QUICKACK, 0)
        self.request()
        wait_until(lambda: not u32(self.info(), UNACKED), what="the late acknowledgement")
        assert len(self.server.recv(100)) == 100

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture
def pair(one_host: Host) -> Iterator[Exchange]:
    with contextlib.closing(Exchange(one_host)) as made:
        yield made


def only(run: Run) -> Json:
    """Return the one histogram."""
    (found,) = run.histograms
    return found


def filled(histogram: Json) -> dict[tuple[int, int], int]:
    return {(b["low"], b["high"]): b["count"] for b in histogram["buckets"] if b["count"]}


def counted(run: Run, *names: str) -> Counter[tuple[Any, ...]]:
    """Return how many values there are by these keys, and no others."""
    found: Counter[tuple[Any, ...]] = Counter()
    for histogram in run.histograms:
        assert set(histogram["key"]) == {*names, "of"}
        found[tuple(histogram["key"][name] for name in names)] += histogram["count"]
    return found


def samples(run: Run) -> int:
    return sum(histogram["count"] for histogram in run.histograms)


# --- values ---------------------------------------------------------------------------------------


@compares("tcprtt", "buckets", "count", "sum", "percentiles", "average", "of", shape="histogram")
@pytest.mark.parametrize(
    "measure, offset", [("", LAST_RTT), ("min_rtt", MIN_RTT), ("mdev", LAST_MDEV)]
)
def test_values_are_those_of_tcp_info_at_each_acknowledgement(
    measure: str, offset: int, netbpf: Any, pair: Exchange
) -> None:
    with netbpf("tcprtt", *pair.filter, *(["--of", measure] if measure else [])) as run:
        for _ in range(EXCHANGES):
            pair.once()
    values = pair.values(offset)
    found = only(run)
    assert found["key"] == {"of": measure or "srtt"}
    assert (found["count"], found["sum"], found["unit"]) == (EXCHANGES, sum(values), "us")
    assert filled(found) == log2_buckets(values)
    assert found["average"] == pytest.approx(sum(values) / EXCHANGES, abs=0.05)
    for percent in (50, 90, 99):
        value = sorted(values)[-(-EXCHANGES * percent // 100) - 1]
        assert found["percentiles"][f"p{percent}"] == (1 << value.bit_length()) - 1
    assert run.summary["events"] == EXCHANGES
    assert not any(run.summary["lost"].values())


def test_latest_measurements_are_those_that_the_smoothed_time_is_made_of(
    netbpf: Any, pair: Exchange
) -> None:
    """TCP smooths by an eighth: tcp_rtt_estimator(). Its remainder is not in TCP_INFO."""
    with netbpf("tcprtt", "--of", "rtt", *pair.filter) as run:
        for _ in range(EXCHANGES):
            pair.once()
    found, smoothed = only(run), pair.values()
    assert (found["key"], found["count"]) == ({"of": "rtt"}, EXCHANGES)
    first, last = smoothed[0], smoothed[-1]  # the first one is the handshake's
    known = first + 8 * last - 8 * first + sum(smoothed[:-1])
    assert known <= found["sum"] <= known + 7


def test_milliseconds(netbpf: Any, pair: Exchange) -> None:
    args = ("tcprtt", "--ms", *pair.filter)
    with netbpf(*args) as run, netbpf(*args, json_lines=False) as text:
        for _ in range(7):
            pair.once()
        for _ in range(5):
            pair.late()
        for _ in range(11):
            pair.once()
    values = pair.values()
    assert max(values) >= 4000, "no acknowledgement was late"
    found, whole = only(run), [value // 1000 for value in values]
    assert (found["unit"], found["count"], found["sum"]) == ("ms", 23, sum(whole))
    assert filled(found) == log2_buckets(whole)
    assert found["average"] == pytest.approx(sum(values) / 23 / 1000, abs=0.001)
    assert f"\n{'ms':>21} : count" in text.stdout
    assert f"23 values, average {found['average']:g} ms\n" in text.stdout


def test_ss_shows_the_value_of_the_next_sample(netbpf: Any, one_host: Host, pair: Exchange) -> None:
    words = one_host.run("ss", "-Htin", f"dport = :{pair.port}").split()
    (shown,) = (word for word in words if word.startswith("rtt:"))
    with netbpf("tcprtt", *pair.filter) as run:
        pair.once()
    assert only(run)["sum"] == round(float(shown[4:].partition("/")[0]) * 1000)


# --- which segments -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ends(two_hosts: tuple[Host, Host]) -> Iterator[tuple[Peer, Peer, Peer]]:
    """Two clients, the second in a cgroup and under a user of its own, and a server."""
    left, right = two_hosts
    with topology.cgroup() as group, traffic.peers() as start:
        first = start("nb-first", left)
        second = start("nb-second", left, uid=UID, cgroup=group)
        server = start("nb-server", right)
        for family in ("ipv4", "ipv6", "mapped-client"):
            server.listen(family)
        yield first, second, server


def requests(session: Session, number: int) -> None:
    """Send messages, each of which is acknowledged before the next one."""
    for _ in range(number):
        session.transfer(up=100)


def responses(session: Session, number: int) -> None:
    """Send messages the other way."""
    for _ in range(number):
        session.transfer(down=100)


def test_who_only_receives_adds_nothing(
    netbpf: Any, two_hosts: tuple[Host, Host], ends: tuple[Peer, Peer, Peer]
) -> None:
    left, right = two_hosts
    first, _, server = ends
    with (
        netbpf("tcprtt", "--netns", left.inode) as receiver,
        netbpf("tcprtt", "--netns", right.inode) as sender,
    ):
        session = traffic.connect(first, server)
        requests(session, 1)
        responses(session, 101)
        session.end()
    assert (samples(receiver), samples(sender)) == (1, 101)


@compares("tcprtt", "not_measured", shape="summary")
def test_accepted_connections_have_no_latest_measurement_before_their_first(
    netbpf: Any, two_hosts: tuple[Host, Host], ends: tuple[Peer, Peer, Peer]
) -> None:
    first, _, server = ends
    args = ("tcprtt", "--netns", two_hosts[1].inode, "--of")
    with netbpf(*args, "rtt") as latest, netbpf(*args, "srtt") as smoothed:
        for _ in range(5):
            session = traffic.connect(first, server)
            responses(session, 3)
            session.end()
    assert (samples(latest), samples(smoothed)) == (10, 15)
    assert latest.summary["totals"] == {"not_measured": 5}
    assert smoothed.summary["totals"] == {"not_measured": 0}


def test_intervals_add_up_to_the_whole(netbpf: Any, pair: Exchange) -> None:
    done = 0
    with netbpf("tcprtt", "0.2", *pair.filter) as run:
        for wanted in (1, 2, 3):
            for _ in range(7):
                pair.once()
            done += 7
            wait_until(lambda: samples(run) >= done, what="the end of an interval")  # noqa: B023
            assert len(run.histograms) >= wanted
    assert samples(run) == done
    assert sum(len(h["buckets"]) > 0 for h in run.histograms) == len(run.histograms)


def test_each_open_session_is_counted_once_per_interval(netbpf: Any, one_host: Host) -> None:
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(contextlib.closing(Exchange(one_host))) for _ in range(7)]
        for number, pair in enumerate(pairs):
            for _ in range(number):
                pair.once()
        values = [u32(pair.info(), LAST_RTT) for pair in pairs]
        # Two descriptors of one process, and two processes.
        stack.enter_context(pairs[1].client.dup())
        handed = pairs[2].client.fileno()
        holder = subprocess.Popen(["sleep", "infinity"], pass_fds=[handed])
        stack.callback(kill, holder)
        args = ("tcprtt", "--per", "session", "--netns", one_host.inode)
        ports = ",".join(str(pair.port) for pair in pairs)
        with netbpf(*args, "-D", ports, "0.2") as run:
            wait_until(lambda: len(run.histograms) >= 3, what="three intervals")
            pairs[0].close()
            wait_until(lambda: run.histograms[-1]["count"] == 6, what="an interval without it")
        with netbpf(*args, "-D", ports) as rest, netbpf(*args, "-D", "9") as none:
            pass
    counts = [histogram["count"] for histogram in run.histograms]
    assert counts == sorted(counts, reverse=True) and set(counts) == {6, 7}
    for histogram in run.histograms:
        assert filled(histogram) == log2_buckets(values[7 - histogram["count"] :])
    assert only(rest)["sum"] == sum(values[1:])
    assert none.histograms == []


# --- keys -----------------------------------------------------------------------------------------


@compares("tcprtt", "comm", "pid", "uid", "cgroup", "netns", "family", shape="histogram")
@compares("tcprtt", "laddr", "lport", "raddr", "rport", shape="histogram")
def test_keys_are_those_of_the_sockets_and_their_owners(
    netbpf: Any, two_hosts: tuple[Host, Host], ends: tuple[Peer, Peer, Peer]
) -> None:
    left, right = two_hosts
    first, second, server = ends
    owners, sockets, blocks = "comm,pid,uid,cgroup", "laddr,lport,raddr,rport", "family,raddr/24"
    with contextlib.ExitStack() as stack:
        args = ("tcprtt", "--netns", left.inode, "--by")
        near = {
            keys: stack.enter_context(netbpf(*args, keys)) for keys in (owners, sockets, blocks)
        }
        far = stack.enter_context(netbpf("tcprtt", "--netns", right.inode, "--by", owners))
        spaces = stack.enter_context(netbpf("tcprtt", "--by", "netns"))
        four = traffic.connect(first, server, "ipv4")
        mapped = traffic.connect(second, server, "mapped-client")
        six = traffic.connect(second, server, "ipv6")
        requests(four, 5)
        requests(mapped, 3)
        requests(six, 7)
        responses(six, 11)
        groups = {peer.comm: cgroup_of(peer.pid) for peer in ends}
        for session in (four, mapped, six):
            session.end()
    who = [(p.comm, p.pid, uid, groups[p.comm]) for p, uid in zip(ends, (0, UID, 0))]
    assert counted(near[owners], *owners.split(",")) == {who[0]: 5, who[1]: 10}
    assert counted(far, *owners.split(",")) == {who[2]: 11}
    assert counted(near[sockets], *sockets.split(",")) == {
        (*four.local, *four.remote): 5,
        (*mapped.local, *mapped.remote): 3,
        (*six.local, *six.remote): 7,
    }
    assert counted(near[blocks], "family", "raddr") == {
        ("ipv4", "10.91.0.0/24"): 8, ("ipv6", "fd00::/24"): 7
    }  # fmt: skip
    found = counted(spaces, "netns")  # other namespaces may have traffic of their own
    assert (found[left.inode,], found[right.inode,]) == (15, 11)


def test_keys_without_room_are_counted(netbpf: Any, one_host: Host) -> None:
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(contextlib.closing(Exchange(one_host))) for _ in range(5)]
        args = ("tcprtt", "--map-entries", 8, "--by", "rport", "--netns", one_host.inode)
        ports = ",".join(str(pair.port) for pair in pairs)
        with netbpf(*args, "-D", ports) as run:
            for pair in pairs:
                for _ in range(7):
                    pair.once()
    assert counted(run, "rport") == {(pair.port,): 7 for pair in pairs[:2]}  # an eighth, and one
    assert run.summary["lost"]["map_full"] == 3 * 7
    assert run.summary["complete"] is False


# --- filters --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def old(ends: tuple[Peer, Peer, Peer]) -> Old:
    first, second, server = ends
    return Old(traffic.connect(first, server, "ipv4"), traffic.connect(second, server, "ipv6"))


@pytest.mark.parametrize(
    "flag, selects, number",
    [*((flag, FOUR[flag], 5) for flag in FOUR), *((flag, SIX[flag], 7) for flag in SIX)],
)
def test_filters_select_one_of_two_sessions(
    flag: str, selects: Any, number: int, netbpf: Any, two_hosts: tuple[Host, Host], old: Old
) -> None:
    with netbpf("tcprtt", "--netns", two_hosts[0].inode, flag, *selects(old)) as run:
        requests(old.four, 5)
        requests(old.six, 7)
    assert samples(run) == number


def test_namespace_filter_selects_one_end(
    netbpf: Any, two_hosts: tuple[Host, Host], old: Old
) -> None:
    left, right = two_hosts
    with (
        netbpf("tcprtt", "--netns", left.namespace) as near,
        netbpf("tcprtt", "--netns", right.namespace) as far,
    ):
        requests(old.four, 5)
        responses(old.four, 3)
    assert (samples(near), samples(far)) == (5, 3)


# --- whatever the kind of probe -------------------------------------------------------------------


def act(stage: Stage, run: Run) -> None:
    for family in ("ipv4", "ipv6"):
        session = traffic.connect(stage.client, stage.server, family)
        requests(session, 23)
        session.end()


def facts(run: Run, lost: set[str]) -> Any:
    keys = [{k: v for k, v in h["key"].items() if k not in lost} for h in run.histograms]
    numbers = [histogram["count"] for histogram in run.histograms]
    return sorted((json.dumps(key, sort_keys=True), n) for key, n in zip(keys, numbers))


ALTERNATIVES = Case(
    lambda stage: ("--netns", stage.left.inode, "--by", "comm,laddr"),
    act,
    facts,
    {"by": (Key("comm"), Key("laddr"))},
)
