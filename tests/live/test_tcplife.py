"""tcplife tells the truth about sessions that this test made itself."""

from __future__ import annotations

import contextlib
import csv
import io
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple

import harness
import pytest
import traffic
from alternatives import Case, events, sessions
from compared import compares
from crowd import CONTAINER, NOBODY, QUICK_ENDS, Crowd
from harness import ATTEMPTS, SLOW, Json, Run, seconds, wait_until
from traffic import ENDS, FAMILIES, OWN_PORTS, Line, Peer, Plan, Session

THOUSAND = 1009


def check(found: Counter[Line], wanted: Counter[Line]) -> None:
    assert found == wanted, traffic.difference(found, wanted)


# --- a thousand sessions ------------------------------------------------------------------------


class Thousand(NamedTuple):
    """What was done, and what was said of it."""

    sessions: list[Session]
    events: list[Json]
    summary: Json
    began: float
    ended: float


@pytest.fixture(scope="module")
def thousand(crowd: Crowd, tmp_path_factory: pytest.TempPathFactory) -> Thousand:
    """All kinds of sessions.

    In an emulated machine once more if the tool says that the kernel skipped a run of a program:
    there a run takes long, and an interrupt may come in the midst of it.
    """
    for _ in range(ATTEMPTS):
        found = played(crowd, tmp_path_factory)
        if not found.summary["lost"]["probe_missed"]:
            break
    return found


def played(crowd: Crowd, tmp_path_factory: pytest.TempPathFactory) -> Thousand:
    directory = tmp_path_factory.mktemp("thousand")
    with harness.running(directory, "tcplife", "--buffer", "4m") as run:
        began = time.time()
        sessions = crowd.play(THOUSAND, tuple(ENDS))
        ended = time.time()
    return Thousand(sessions, crowd.ours(run.events), run.summary, began, ended)


def test_every_session_is_reported_exactly_once_with_exact_bytes_owner_role_and_close(
    thousand: Thousand,
) -> None:
    assert len(thousand.sessions) == THOUSAND
    check(Counter(map(Line.of, thousand.events)), traffic.lines(thousand.sessions))


def test_nothing_is_lost_and_the_summary_says_so(thousand: Thousand) -> None:
    assert thousand.summary["events"] >= len(thousand.events)
    assert {"ring_full", "map_full"} <= set(thousand.summary["lost"])
    assert not any(thousand.summary["lost"].values()), thousand.summary["lost"]
    assert thousand.summary["complete"] is True


@compares("tcplife", "time")
def test_events_carry_their_own_time(thousand: Thousand) -> None:
    stamps = [harness.seconds(event["time"]) for event in thousand.events]
    # Wall clock from the kernel clock: adjusting the one against the other costs some precision.
    assert thousand.began - 0.01 <= min(stamps)
    assert max(stamps) <= thousand.ended + 0.01
    assert max(stamps) - min(stamps) > 0.9  # not the time of printing: timeouts alone take 1 s


# --- times ---------------------------------------------------------------------------------------


def micros(begin: float, end: float) -> float:
    return (end - begin) * 1e6


def ends_of(event: Json) -> tuple[Any, ...]:
    return event["laddr"], event["lport"], event["raddr"], event["rport"]


def in_turn(thousand: Thousand) -> Iterator[tuple[Session, Line, Json]]:
    """Yield what each line of a session is told as.

    The kernel may choose a port again that a reset has freed: sessions with the same ends follow
    one another, and so do their events.
    """
    told: dict[tuple[Any, ...], list[Json]] = {}
    for event in sorted(thousand.events, key=lambda event: harness.seconds(event["time"])):
        told.setdefault(ends_of(event), []).append(event)
    for session in sorted(thousand.sessions, key=lambda session: session.begin):
        for line in session.lines():
            yield session, line, told[ends_of(line._asdict())].pop(0)


@compares("tcplife", "laddr", "lport", "raddr", "rport", "handshake_us", "duration_us")
def test_handshake_and_duration_agree_with_what_the_programs_measured(thousand: Thousand) -> None:
    for session, _, event in in_turn(thousand):
        if session.server:
            plausible(event, session)


def plausible(event: Json, session: Session) -> None:
    """The client's handshake lies inside connect(2); durations include what both ends measured."""
    # The last acknowledgement may have to wait for a busy machine.
    slack = 500_000 * SLOW
    active = event["role"] == "active"
    if active:
        assert 0 < event["handshake_us"] <= micros(session.begin, session.connected), event
    elif event["handshake_us"] is not None:  # a round trip's time, if one could be taken
        assert event["handshake_us"] <= micros(session.begin, session.accepted) + slack, event
    opened = session.connected if active else session.accepted
    assert event["duration_us"] >= micros(opened, session.closing), event
    assert event["duration_us"] <= micros(session.begin, session.over) + slack, event


def test_failed_attempts_have_the_time_of_the_attempt_and_no_duration(thousand: Thousand) -> None:
    for session, line, event in in_turn(thousand):
        if not session.server:
            assert not event["duration_us"]
            assert event["handshake_us"] <= micros(session.begin, session.over)
            if line.close == "timeout":
                assert event["handshake_us"] >= 500_000


# --- single sessions with a difficult life -------------------------------------------------------


class Watch:
    """One run for all tests of this part; each asks only about its own sessions."""

    def __init__(self, run: Run, crowd: Crowd) -> None:
        self.run = run
        self.crowd = crowd

    def events(self, session: Session, wanted: int) -> list[Json]:
        """The events of a session, once there are that many."""
        pair = {session.local, session.remote}

        def own(events: list[Json]) -> list[Json]:
            ours = self.crowd.ours(events)
            ends = [((e["laddr"], e["lport"]), (e["raddr"], e["rport"])) for e in ours]
            return [event for event, both in zip(ours, ends) if set(both) == pair]

        self.run.wait_for(lambda events: len(own(events)) >= wanted)
        return own(self.run.events)

    def check(self, session: Session, *wanted: Line) -> None:
        """Exactly these lines must come."""
        found = self.events(session, len(wanted))
        check(Counter(map(Line.of, found)), Counter(wanted))


@pytest.fixture(scope="module")
def watch(crowd: Crowd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    with harness.running(tmp_path_factory.mktemp("watch"), "tcplife") as run:
        yield Watch(run, crowd)
    twice = list(told_twice(crowd.ours(run.events)))
    assert not twice, f"reported more than once: {twice}"


def told_twice(events: list[Json]) -> Iterator[tuple[Json, Json]]:
    """Yield pairs of events that are one session: after a reset its ports may be used again."""
    last: dict[Any, Json] = {}
    for event in sorted(events, key=lambda event: event["time"]):
        before = last.get(ends_of(event))
        lived = (event["duration_us"] or 0) + (event["handshake_us"] or 0)
        begin = seconds(event["time"]) - lived / 1e6
        if before and begin < seconds(before["time"]):
            yield before, event
        last[ends_of(event)] = event


@compares("tcplife", "retrans", "role")
def test_delayed_handshake_is_not_part_of_the_duration(watch: Watch, crowd: Crowd) -> None:
    session = Session(next(traffic.ids), *crowd.pairs[0], "ipv4")
    connect_with_the_first_syn_lost(session, crowd)
    session.transfer(up=1234)
    session.end()
    watch.check(session, *session.lines())
    (event,) = (e for e in watch.events(session, 2) if e["role"] == "active")
    assert event["handshake_us"] >= 1_000_000  # the first retransmission of a SYN comes after 1 s
    assert event["handshake_us"] <= micros(session.begin, session.connected)
    assert event["duration_us"] < 500_000 * SLOW
    assert event["retrans"] == 1


def connect_with_the_first_syn_lost(session: Session, crowd: Crowd) -> None:
    client, server = session.ends
    listener, port = server.listeners["ipv4"]
    with crowd.right.dropping(f"tcp dport {port}") as drops:
        words = {"family": "ipv4", "addr": crowd.right.ipv4, "port": port}
        opened = client.ask("connect", id=session.id, wait=False, **words)
        wait_until(drops.count, what="the first SYN")
    session.begin = opened["begin"]
    session.local, session.remote = traffic.plain(opened["local"]), (crowd.right.ipv4, port)
    session.connected = client.ask("connected", id=session.id)["end"]
    server.ask("accept", id=session.id, listener=listener)


@compares("tcplife", "close")
def test_session_whose_other_end_stays_ends_when_its_own_program_closes(
    watch: Watch, crowd: Crowd
) -> None:
    session = crowd.connect()
    session.transfer(up=7, down=4099)
    session.closes = ENDS["client-fin"]
    client, server = session.ends
    client.ask("close", id=session.id)
    watch.check(session, session.lines()[0])
    assert server.ask("ended", id=session.id)["how"] == "fin"
    watch.check(session, *session.lines())


def test_both_ends_closing_at_once_are_both_the_closer(watch: Watch, crowd: Crowd) -> None:
    session = crowd.connect()
    session.transfer(up=7, down=1234)
    session.closes = ("fin-local", "fin-local")
    fins = f"tcp flags & fin == fin th dport {{{session.local[1]}, {session.remote[1]}}}"
    with crowd.left.dropping(fins) as one, crowd.right.dropping(fins) as other:
        for peer in session.ends:
            peer.ask("close", id=session.id)
        wait_until(lambda: one.count() and other.count(), what="both FINs")
    watch.check(session, *session.lines())


@compares("tcplife", "tx_bytes")
def test_established_session_that_times_out_says_so_and_counts_what_was_written(
    watch: Watch, crowd: Crowd
) -> None:
    session = crowd.connect()
    session.transfer(up=7, down=1234)
    session.closes = ("timeout", "rst-local")
    client, server = session.ends
    with crowd.right.dropping(f"tcp sport {session.local[1]}"):
        gave_up = client.ask("give_up", id=session.id, send=4099)
        assert gave_up == {"sent": 4099, "how": "ETIMEDOUT"}
        server.ask("close", id=session.id, reset=True)
    timed_out, reset = session.lines()
    watch.check(session, timed_out._replace(tx_bytes=7 + 4099), reset)


@compares("tcplife", "rx_bytes")
def test_unsent_bytes_count_for_the_writer_and_unread_bytes_for_the_receiver(
    watch: Watch, crowd: Crowd
) -> None:
    session = crowd.connect()
    session.closes = ENDS["client-reset"]
    client, server = session.ends
    written = client.ask("write", id=session.id, send=1 << 26)["sent"]
    # The window is full once nothing is on the way although there is more to send.
    wait_until(lambda: not client.ask("queued", id=session.id)["flying"])
    client.ask("close", id=session.id, reset=True)
    unread = server.ask("queued", id=session.id)["unread"]
    server.ask("ended", id=session.id)
    assert 0 < unread < written < 1 << 26
    sent, received = session.lines()
    watch.check(session, sent._replace(tx_bytes=written), received._replace(rx_bytes=unread))


@compares("tcplife", "comm")
@pytest.mark.parametrize("end", QUICK_ENDS[:-1])
def test_owner_is_the_worker_that_accepts_not_the_process_that_listens(
    watch: Watch, crowd: Crowd, end: str
) -> None:
    client, server = crowd.pairs[0]
    with worker(server, "nb-worker") as accepting:
        session = traffic.connect(client, accepting)
        traffic.transfer(session, Plan("ipv4", end, 1234, 4099))
        session.end(end)
    assert session.lines()[1].comm == "nb-worker"
    watch.check(session, *session.lines())


@pytest.mark.parametrize("end", ["client-fin", "server-fin", "server-reset"])
def test_owner_is_the_child_that_closes_what_its_parent_accepted(
    watch: Watch, crowd: Crowd, end: str
) -> None:
    session = crowd.connect()
    _, server = session.ends
    with worker(server, "nb-child") as child:
        server.ask("close", id=session.id)
        session.server = child
        session.transfer(up=1234, down=65537)
        session.end(end)
    watch.check(session, *session.lines())


@contextlib.contextmanager
def worker(parent: Peer, comm: str) -> Iterator[Peer]:
    child = parent.fork(comm)
    try:
        yield child
    finally:
        child.stop()


# --- whose, and which ----------------------------------------------------------------------------

Filter = tuple[Callable[[Crowd], tuple[object, ...]], Callable[[Crowd, Line], bool]]
Filtered = dict[str, tuple[Counter[Line], Counter[Line]]]

# Name -> the words of the command line, and what lines they must let through.
FILTERS: dict[str, Filter] = {
    "lport": (
        lambda c: ("--lport", c.port(0, "ipv4")),
        lambda c, line: line.lport == c.port(0, "ipv4"),
    ),
    "lport-range": (
        lambda c: ("-L", f"{OWN_PORTS[0]}-{OWN_PORTS[-1]},1"),
        lambda c, line: line.lport in OWN_PORTS,
    ),
    "rport": (
        lambda c: ("--rport", f"{c.port(1, 'ipv6')},{traffic.REFUSED_PORT}"),
        lambda c, line: line.rport in (c.port(1, "ipv6"), traffic.REFUSED_PORT),
    ),
    "pid": (
        lambda c: ("-p", f"{c.nobody.pid},{c.servers[0].pid}"),
        lambda c, line: line.pid in (c.nobody.pid, c.servers[0].pid),
    ),
    "comm": (lambda c: ("--comm", "nb-c*-[!r]?h*"), lambda c, line: line.pid == c.nobody.pid),
    "uid": (lambda c: ("--uid", NOBODY), lambda c, line: line.pid == c.nobody.pid),
    "user": (lambda c: ("-u", "nobody"), lambda c, line: line.pid == c.nobody.pid),
    "ipv4": (lambda c: ("-4",), lambda c, line: line.family == "ipv4"),
    "ipv6": (lambda c: ("-6",), lambda c, line: line.family == "ipv6"),
    "laddr": (
        lambda c: ("--laddr", "10.91.0.2/31"),
        lambda c, line: line.laddr == c.right.ipv4,
    ),
    "raddr": (
        lambda c: ("--raddr", "fd00:91::2/127"),
        lambda c, line: line.raddr == c.right.ipv6,
    ),
    "netns-name": (
        lambda c: ("--netns", c.left.namespace),
        lambda c, line: line.laddr in (c.left.ipv4, c.left.ipv6),
    ),
    "netns-pid": (
        lambda c: ("--netns", c.servers[0].pid),
        lambda c, line: line.laddr in (c.right.ipv4, c.right.ipv6),
    ),
    "netns-inode": (
        lambda c: ("--netns", c.right.inode),
        lambda c, line: line.laddr in (c.right.ipv4, c.right.ipv6),
    ),
    "cgroup": (
        lambda c: ("--cgroup", c.cgroup.parent),
        lambda c, line: line.pid == c.nobody.pid,
    ),
    "container": (
        lambda c: ("--container", CONTAINER[:12]),
        lambda c, line: line.pid == c.nobody.pid,
    ),
    "two": (
        lambda c: ("--pid", c.root.pid, "-D", c.port(0, "mapped")),
        lambda c, line: line.pid == c.root.pid and line.rport == c.port(0, "mapped"),
    ),
}
AT_ONCE = 4  # runs that watch the same traffic: starting them is what takes the time


@pytest.fixture(scope="module")
def filtered(
    crowd: Crowd, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Filtered:
    """For each filter that is asked for: the lines that were shown, and all that happened."""
    chosen = {item.name for item in request.session.items}
    names = [name for name in FILTERS if any(item.endswith(f"[{name}]") for item in chosen)]
    results = {}
    for at in range(0, len(names), AT_ONCE):
        with contextlib.ExitStack() as stack:
            runs = {}
            for name in names[at : at + AT_ONCE]:
                words = FILTERS[name][0](crowd)
                runs[name] = harness.start(tmp_path_factory.mktemp(name), "tcplife", *words)
                stack.callback(harness.kill, runs[name].process)
            for run in runs.values():
                stack.enter_context(harness.attended(run))
            made = traffic.lines(crowd.play(41))
        results.update({name: (crowd.lines(run), made) for name, run in runs.items()})
    return results


@pytest.mark.parametrize("name", FILTERS)
def test_filter_shows_what_matches_and_nothing_else(
    filtered: Filtered, crowd: Crowd, name: str
) -> None:
    shown, made = filtered[name]
    wanted = Counter(line for line in made.elements() if FILTERS[name][1](crowd, line))
    # Both cases are in the traffic, or the filter would not be tried.
    assert 0 < sum(wanted.values()) < sum(made.values())
    check(shown, wanted)


# --- other forms of the same ---------------------------------------------------------------------


def test_csv_and_text_tell_the_same_sessions(netbpf: Any, crowd: Crowd) -> None:
    whose = ("tcplife", "--pid", crowd.root.pid)
    with netbpf(*whose, "-s", json_lines=False) as as_csv:
        with netbpf(*whose, json_lines=False) as as_text:
            made = traffic.lines(crowd.play(23))
    wanted = Counter(line for line in made.elements() if line.pid == crowd.root.pid)
    rows = list(csv.DictReader(io.StringIO(as_csv.stdout)))
    check(Counter(map(line_of_csv, rows)), wanted)
    heading, *shown = [row.split() for row in as_text.stdout.splitlines()]
    assert heading == "PID COMM LADDR LPORT RADDR RPORT TX_KB RX_KB MS".split()
    assert Counter(tuple(row[:8]) for row in shown) == Counter(map(in_text, wanted.elements()))


def line_of_csv(row: dict[str, str]) -> Line:
    return Line.of({n: int(v) if v.isdigit() else v for n, v in row.items()})


def in_text(line: Line) -> tuple[str, ...]:
    ends = (line.laddr, line.lport, line.raddr, line.rport)
    sizes = (f"{size / 1024:.2f}" for size in (line.tx_bytes, line.rx_bytes))
    return (str(line.pid), line.comm, *map(str, ends), *sizes)


def test_name_of_a_process_cannot_reach_the_terminal_or_break_json(
    netbpf: Any, watch: Watch, crowd: Crowd
) -> None:
    evil = '\x1b[31m"\\\udcff\n'
    with netbpf("tcplife", "--pid", crowd.root.pid, json_lines=False) as text:
        crowd.root.ask("comm", comm=evil)
        try:
            session = crowd.connect().end()
        finally:
            crowd.root.ask("comm", comm=crowd.root.comm)
    (event,) = (e for e in watch.events(session, 2) if e["role"] == "active")
    assert event["comm"] == '\x1b[31m"\\\\xff\n'
    assert len(text.stdout.splitlines()) == 2  # the heading and one session
    assert "\x1b" not in text.stdout


# --- sessions that are older or longer than the run ----------------------------------------------


@compares("tcplife", "owner", "family")
def test_sessions_opened_before_the_start_have_owners_and_exact_bytes(
    netbpf: Any, crowd: Crowd
) -> None:
    ends = ("client-fin", "server-fin", "client-reset", "server-unread")
    plans = [Plan(family, end, 4099, 7) for family in FAMILIES for end in ends]
    sessions = [(crowd.connect(plan.family), plan) for plan in plans]
    for session, _ in sessions:
        session.transfer(up=1234, down=65537)
    with netbpf("tcplife") as run:
        for session, plan in sessions:
            traffic.transfer(session, plan)
            session.end(plan.end)
    # Closing proves the owner better than the snapshot; who was reset has only the snapshot.
    wanted = Counter(
        line._replace(owner="snapshot" if line.close == "rst-remote" else "exact")
        for line in traffic.lines(session for session, _ in sessions).elements()
    )
    check(crowd.lines(run), wanted)
    assert {event["handshake_us"] for event in crowd.ours(run.events)} == {None}


@compares("tcplife", "state")
def test_open_lists_sessions_of_before_and_during_with_their_bytes(
    netbpf: Any, crowd: Crowd
) -> None:
    before = crowd.connect()
    before.transfer(up=1234, down=4099)
    with netbpf("tcplife", "--open") as run:
        before.transfer(up=7)
        during = traffic.connect(*crowd.pairs[1], "mapped")
        during.transfer(down=65537)
        finished = crowd.play(5)
    for session in (before, during):
        session.end()
        session.closes = (None, None)
    check(crowd.lines(run), traffic.lines(finished))
    still_open = crowd.ours(run.rows)
    wanted = Counter(before.lines("snapshot") + during.lines())
    check(Counter(map(Line.of, still_open)), wanted)
    assert {row["state"] for row in still_open} == {"ESTABLISHED"}
    ends = ends_of(during.lines()[0]._asdict())
    (age,) = (event["duration_us"] for event in still_open if ends_of(event) == ends)
    assert 0 < age <= micros(during.begin, during.over)


def test_open_lists_at_each_interval_what_has_moved_since(netbpf: Any, crowd: Crowd) -> None:
    with netbpf("tcplife", "--open", "0.2", "--pid", crowd.root.pid) as run:
        session = crowd.connect()
        for wanted in (1234, 2468):
            session.transfer(up=1234)
            wait_until(lambda: sent_at_intervals(run)[-1:] == [wanted])  # noqa: B023
        session.end()
    shown = sent_at_intervals(run)
    assert shown == sorted(shown)
    assert len(run.events) == 1


def sent_at_intervals(run: Run) -> list[int]:
    return [row["tx_bytes"] for row in run.rows]


def test_without_open_a_session_that_goes_on_is_not_shown(netbpf: Any, crowd: Crowd) -> None:
    session = crowd.connect()
    with netbpf("tcplife", "--pid", crowd.root.pid) as run:
        session.transfer(up=1234)
    session.end()
    assert run.events + run.rows == []


# --- whatever the kind of probe ------------------------------------------------------------------


ALTERNATIVES = Case(lambda s: ("--netns", s.right.inode), sessions, events)
