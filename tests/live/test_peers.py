"""netbpf and its peers watch the same traffic, which this test made and therefore knows.

Where a peer is right, both must say the same. Where it is known to be wrong, the test asserts what
netbpf says, and then that the peer says otherwise: a peer that was mended is a skip with its
version, as that is no failure of ours. What a peer gets wrong by chance is only recorded.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple

import harness
import peer_tools
import pytest
import resolver
import test_tcpretrans as retransmissions
import traffic
from crowd import Crowd
from ends import End
from harness import SLOW, Json, Run, wait_until
from peer_tools import Tool, Watcher, bcc, bpftrace, libbpf
from test_gethostlatency import LATE, Lab, expected
from test_soaccept import waiting
from test_tcplife import ends_of, worker
from test_tcpretrans import Pair
from test_tcpsynbl import Clients, listening, overflow, port_of
from topology import Host
from traffic import Line, Session

Record = Callable[[Tool, object], None]


def tools(*found: Tool) -> Any:
    """Parameters of a fixture: one peer after the other."""
    return {"scope": "module", "params": found, "ids": [tool.kind for tool in found]}


@contextlib.contextmanager
def watched(
    tool: Tool, factory: pytest.TempPathFactory, name: str, *words: object
) -> Iterator[tuple[Watcher, Run]]:
    """Let the peer and a tool of netbpf watch, in the block; WORDS are netbpf's."""
    peer = Watcher(tool, factory.mktemp("peer"))
    try:
        with harness.running(factory.mktemp("netbpf"), name, *words) as run:
            yield peer, run
    finally:
        peer.kill()


@pytest.fixture
def record(request: Any, record_testsuite_property: Callable[[str, object], None]) -> Record:
    """Return what notes a peer's words, under the test's name, in the report (--junitxml)."""

    def note(tool: Tool, said: object) -> None:
        record_testsuite_property(f"{request.node.name}: {tool} {tool.version()}", str(said))

    return note


def at_fault(tool: Tool, wrong: bool, said: object, record: Record) -> None:
    """Note what a peer said that is known to be wrong, or say that it was mended."""
    record(tool, said)
    if not wrong:
        pytest.skip(f"{tool} {tool.version()} is right here, and was not before: {said}")


def near(value: float, wanted: float, rounded: float = 0.0) -> bool:
    """Are both the same time (us), but for what two probes and rounding make of it?"""
    return abs(value - wanted) <= rounded + 2000 * SLOW + 0.05 * wanted


# --- tcplife --------------------------------------------------------------------------------------

ENDS = ("client-fin", "server-fin", "client-reset", "server-reset", "refused", "server-unread")


class Life(NamedTuple):
    """Sessions, what netbpf said of them, and what a peer said: rows by their ends."""

    tool: Tool
    sessions: list[Session]
    left: Session  # its server closed first, and was gone when that was acknowledged
    events: dict[tuple[Any, ...], Json]
    rows: dict[tuple[Any, ...], list[list[str]]]


@pytest.fixture(**tools(libbpf("tcplife", "-w"), bcc("tcplife"), bpftrace("tcplife")))
def life(request: Any, crowd: Crowd, tmp_path_factory: pytest.TempPathFactory) -> Life:
    with watched(request.param, tmp_path_factory, "tcplife") as (peer, run):
        sessions = crowd.play(60, ENDS)
        left = left_alone(crowd)
        last = crowd.connect().end()
        peer.wait_for(lambda: ends(last) <= {key_of(row) for row in peer.rows(9)})
        run.wait_for(lambda found: ends(last) <= {strings(ends_of(one)) for one in found})
        peer.stop()
    events = {strings(ends_of(one)): one for one in crowd.ours(run.events)}
    hosts = (crowd.left, crowd.right)
    addresses = {addr for host in hosts for addr in (host.ipv4, host.ipv6)}
    rows: dict[tuple[Any, ...], list[list[str]]] = {}
    for row in peer.rows(9):
        if {row[2], row[4]} <= addresses:
            rows.setdefault(key_of(row), []).append(row)
    return Life(request.param, sessions, left, events, rows)


def left_alone(crowd: Crowd) -> Session:
    """Make a session whose server closes and ends before its FIN arrives at the client."""
    client, server = crowd.pairs[0]
    with contextlib.ExitStack() as stack:
        accepting = stack.enter_context(worker(server, "nb-worker"))
        session = traffic.connect(client, accepting)
        session.transfer(up=1234, down=4099)
        session.closes = traffic.ENDS["server-fin"]
        fins = f"tcp dport {session.local[1]} tcp flags & fin == fin"
        with crowd.left.dropping(fins) as drops:
            accepting.ask("close", id=session.id)
            wait_until(drops.count, what="the FIN")
            stack.close()
    assert client.ask("ended", id=session.id)["how"] == "fin"
    return session


def key_of(row: list[str]) -> tuple[str, ...]:
    """Return the ends in PID COMM LADDR LPORT RADDR RPORT TX_KB RX_KB MS."""
    return tuple(row[2:6])


def strings(words: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(map(str, words))


def ends(session: Session) -> set[tuple[Any, ...]]:
    return {strings(ends_of(line._asdict())) for line in session.lines()}


def all_lines(life: Life) -> list[Line]:
    return [line for session in (*life.sessions, life.left) for line in session.lines()]


def test_tcplife_sees_the_sessions_and_bytes_that_its_peers_see(life: Life) -> None:
    for line in all_lines(life):
        key = strings(ends_of(line._asdict()))
        assert Line.of(life.events[key]) == line
        (row,) = life.rows[key]
        assert peer_tools.kilobytes(line, row), (line, row)
    # And those of one session more, which told that all others were out.
    assert len(life.events) == len(all_lines(life)) + 2
    assert set(life.events) == set(life.rows)


def test_tcplife_measures_the_durations_that_its_peers_measure(life: Life) -> None:
    checked = 0
    for line in all_lines(life):
        key = strings(ends_of(line._asdict()))
        event, milliseconds = life.events[key], float(life.rows[key][0][8])
        if event["duration_us"]:
            wanted = event["duration_us"]
            # Two measure from the end of the handshake, bpftrace from the begin of an active one.
            if life.tool.kind == "bpftrace" and line.role == "active":
                wanted += event["handshake_us"]
            assert near(milliseconds * 1000, wanted, rounded=1000), (event, life.rows[key])
            checked += 1
    assert checked > 50


def test_tcplife_names_the_process_that_closed_first_and_has_ended(
    life: Life, record: Record
) -> None:
    """Peers name whoever is on the CPU when the FIN is acknowledged: not a process that is gone."""
    (_, line) = life.left.lines()
    key = strings(ends_of(line._asdict()))
    event, (row,) = life.events[key], life.rows[key]
    assert (event["pid"], event["comm"], event["owner"]) == (line.pid, "nb-worker", "exact")
    at_fault(life.tool, row[0] != str(line.pid), row, record)


def test_tcplife_names_the_owner_whoever_is_on_the_cpu(life: Life, record: Record) -> None:
    wrong = []
    for line in all_lines(life):
        key = strings(ends_of(line._asdict()))
        assert (life.events[key]["pid"], life.events[key]["comm"]) == (line.pid, line.comm)
        if life.rows[key][0][0] != str(line.pid):
            wrong.append((line.close, line.pid, *life.rows[key][0]))
    record(life.tool, f"{len(wrong)} of {len(all_lines(life))} are wrong, such as {wrong[:5]}")


# --- tcpretrans -----------------------------------------------------------------------------------

SYNS, TAILS = 7, 5
BLACK_HOLE = traffic.DROPPED_PORT
LAST = BLACK_HOLE + 1


class Again(NamedTuple):
    """Retransmissions, as netbpf and a peer told them: lines are those of `peer_tools.again`.

    The client was stopped when its SYNs to the BLACK_HOLE were sent again. `tail` are the ends of a
    session with TAILS tail loss probes, `port` that of a listener whose SYN-ACKs were sent again.
    """

    tool: Tool
    client: int
    tail: tuple[str, str]
    port: int
    events: list[Json]
    lines: list[tuple[str, ...]]


@pytest.fixture(**tools(bcc("tcpretrans", "-l"), bpftrace("tcpretrans")))
def again(
    request: Any, two_hosts: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory
) -> Again:
    left, right = two_hosts
    with contextlib.ExitStack() as stack:
        new = stack.enter_context(traffic.peers())
        pair = Pair(left, right, new("nb-client", left), new("nb-server", right))
        pair.server.listen("ipv4")
        port = pair.server.listen("mapped")
        peer, run = stack.enter_context(watched(request.param, tmp_path_factory, "tcpretrans"))
        syns_are_lost(pair, SYNS, BLACK_HOLE)
        unfinished(pair, run, port)
        tail = tail_losses(pair)
        lossy(pair)
        syns_are_lost(pair, 1, LAST)
        peer.wait_for(lambda: f"{right.ipv4}:{LAST} " in peer.text)
        run.wait_for(lambda events: LAST in {event["rport"] for event in events})
    ours = {left.ipv4, right.ipv4}
    lines = [
        one
        for one in peer_tools.again(peer.text)
        if {one[1].split(":")[0], one[3].split(":")[0]} == ours
    ]
    events = retransmissions.ours(run.events, left, right)
    return Again(request.param, pair.client.pid, tail, port, events, lines)


def syns_are_lost(pair: Pair, number: int, port: int) -> None:
    """Let connects begin, stop the client, and wait until its SYNs have been sent again."""
    with pair.right.dropping(f"tcp dport {port}") as drops:
        idents = pair.sockets(number, port=port)
        os.kill(pair.client.pid, signal.SIGSTOP)
        try:
            assert drops.count() == number, "the test itself failed: SYNs were sent again already"
            wait_until(lambda: drops.count() >= 2 * number, what="retransmissions")
        finally:
            os.kill(pair.client.pid, signal.SIGCONT)
        pair.close(idents)


def unfinished(pair: Pair, run: Run, port: int) -> None:
    """Let handshakes miss their last packet until the SYN-ACKs have been sent again."""
    with pair.right.dropping(f"tcp dport {port} tcp flags & (syn | ack) == ack"):
        idents = pair.sockets(2, "mapped", port)
        run.wait_for(lambda events: [event["lport"] for event in events].count(port) >= 2)
    pair.close(idents)


def tail_losses(pair: Pair) -> tuple[str, str]:
    """Lose the last segment again and again; return the session's ends."""
    session = traffic.connect(pair.client, pair.server)
    session.transfer(up=10_007)
    with pair.lossy(session, 2):
        for _ in range(TAILS):
            session.transfer(up=1000)  # it is dropped, its retransmission is not
            session.transfer(up=100)  # before the next probe something else must be acked
    session.end()
    return "{}:{}".format(*session.local), "{}:{}".format(*session.remote)


def lossy(pair: Pair) -> None:
    session = traffic.connect(pair.client, pair.server)
    session.transfer(up=100_003)
    with pair.lossy(session, 7):
        session.transfer(up=300_007)
    session.end()


def both_ends(event: Json) -> tuple[str, str]:
    return f"{event['laddr']}:{event['lport']}", f"{event['raddr']}:{event['rport']}"


def test_tcpretrans_sees_the_retransmissions_that_its_peers_see(again: Again) -> None:
    kinds = {event["kind"] for event in again.events}
    assert {"SYN", "SYNACK", "TLP", "FAST"} <= kinds, "the test itself failed"
    # bpftrace's probe is below the timer and above tail loss probes.
    unseen = {"SYNACK", "TLP"} if again.tool.kind == "bpftrace" else {"SYNACK"}
    told = [event for event in again.events if event["kind"] not in unseen]
    wanted = Counter((*both_ends(event), event["state"]) for event in told)
    assert Counter((one[1], one[3], one[4]) for one in again.lines if one[2] != "L") == wanted


def test_tcpretrans_tells_a_tail_loss_probe_once(again: Again, record: Record) -> None:
    told = [event["kind"] for event in again.events if both_ends(event) == again.tail]
    assert told == ["TLP"] * TAILS
    lines = [line for line in again.lines if (line[1], line[3]) == again.tail]
    at_fault(again.tool, len(lines) != TAILS, lines, record)


def test_tcpretrans_names_the_owner_while_it_is_stopped(again: Again, record: Record) -> None:
    """Peers name whoever is on the CPU when the timer fires: not a process that is stopped."""
    syns = [event for event in again.events if event["rport"] == BLACK_HOLE]
    assert len(syns) >= SYNS
    assert {(e["pid"], e["comm"], e["owner"]) for e in syns} == {
        (again.client, "nb-client", "exact")
    }
    lines = [line for line in again.lines if line[3].endswith(f":{BLACK_HOLE}")]
    assert len(lines) == len(syns)
    wrong = str(again.client) not in {line[0] for line in lines}
    at_fault(again.tool, wrong, lines, record)


def test_tcpretrans_tells_of_syn_acks(again: Again, record: Record) -> None:
    told = [event["kind"] for event in again.events if event["lport"] == again.port]
    assert told == ["SYNACK"] * 2
    lines = [line for line in again.lines if line[1].endswith(f":{again.port}")]
    at_fault(again.tool, len(lines) != 2, lines, record)


# --- tcpsynbl -------------------------------------------------------------------------------------

SHORT, DUAL = 5, 23  # limits of listeners: one whose queue overflows, one for IPv4 and IPv6


class Queues(NamedTuple):
    """Listeners, and what was said of them: a peer's samples are {limit: {bucket: count}}."""

    tool: Tool
    ports: dict[int, int]
    run: Run
    samples: dict[int, dict[int, int]]
    text: str


@pytest.fixture(**tools(libbpf("tcpsynbl"), bcc("tcpsynbl"), bpftrace("tcpsynbl")))
def queues(request: Any, one_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Queues:
    words = ("tcpsynbl", "--netns", one_host.inode)
    with (
        watched(request.param, tmp_path_factory, *words) as (peer, run),
        contextlib.closing(Clients(one_host)) as clients,
        listening(one_host, SHORT) as short,
        listening(one_host, DUAL, "::", dual=True) as dual,
    ):
        ports = {SHORT: port_of(short), DUAL: port_of(dual)}
        overflow(clients, ports[SHORT], SHORT, 3)
        clients.connect(ports[DUAL], 7)
        clients.connect(ports[DUAL], 4, "::1")
        run.stop()
        peer.stop()
    samples = peer_tools.samples(peer.text)
    assert {SHORT, DUAL} <= set(samples), peer.text
    return Queues(request.param, ports, run, samples, peer.text)


def histogram(queues: Queues, limit: int) -> Json:
    (found,) = [h for h in queues.run.histograms if h["key"]["lport"] == queues.ports[limit]]
    return found


def test_tcpsynbl_has_the_samples_of_its_peers_for_an_ipv4_listener(queues: Queues) -> None:
    theirs, ours = queues.samples[SHORT], Counter[int]()
    for bucket in histogram(queues, SHORT)["buckets"]:
        # Two of the peers count a queue of 0 and one of 1 in the same bucket.
        ours[max(low for low in theirs if low <= bucket["low"])] += bucket["count"]
    assert ours == Counter({low: count for low, count in theirs.items() if count})
    assert sum(theirs.values()) == SHORT + 1


def test_tcpsynbl_tells_of_the_syns_that_a_full_queue_drops(queues: Queues, record: Record) -> None:
    (row,) = [row for row in queues.run.rows if row["lport"] == queues.ports[SHORT]]
    assert (row["handshakes"], row["dropped"]) == (SHORT + 1, 3)
    unseen = "dropping" not in queues.text and sum(queues.samples[SHORT].values()) == SHORT + 1
    at_fault(queues.tool, unseen, queues.samples[SHORT], record)


def test_tcpsynbl_counts_ipv4_handshakes_of_a_dual_stack_listener_once(
    queues: Queues, record: Record
) -> None:
    assert histogram(queues, DUAL)["count"] == 7 + 4
    theirs = sum(queues.samples[DUAL].values())
    assert theirs in (7 + 4, 2 * 7 + 4)
    at_fault(queues.tool, theirs != 7 + 4, queues.samples[DUAL], record)


# --- gethostlatency -------------------------------------------------------------------------------

QUESTIONS = [
    ("gethostbyname_r", LATE),
    ("gethostbyname", LATE),
    ("gethostbyname2", "none.test"),
    ("getaddrinfo", "fail.test"),
    ("getaddrinfo", "one.test"),
    ("getaddrinfo", LATE),
]


class Lookups(NamedTuple):
    """What programs asked and were told, and by pid what netbpf and a peer said of it."""

    tool: Tool
    answers: list[Json]
    events: dict[int, Json]
    rows: dict[str, list[list[str]]]


@pytest.fixture(**tools(libbpf("gethostlatency"), bpftrace("gethostlatency")))
def lookups(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Lookups:
    with resolver.namespace() as namespace:
        lab = Lab(namespace, tmp_path_factory.mktemp("lab"))
        askers = [lab.waiting(lab.build("glibc"), *question) for question in QUESTIONS]
        with watched(request.param, tmp_path_factory, "gethostlatency") as (peer, run):
            answers = [asker.answer() for asker in askers]
            pids = {asker.pid for asker in askers}
            last = str(askers[-1].pid)
            peer.wait_for(lambda: last in {row[1] for row in peer.rows(5)})
            run.wait_for(lambda events: pids <= {event["pid"] for event in events})
    rows: dict[str, list[list[str]]] = {}
    for row in peer.rows(5):
        rows.setdefault(row[1], []).append(row)
    events = {event["pid"]: event for event in run.events}
    return Lookups(request.param, answers, events, rows)


def test_gethostlatency_sees_the_lookups_and_times_that_its_peers_see(lookups: Lookups) -> None:
    for (function, host), said in zip(QUESTIONS, lookups.answers):
        event = lookups.events[said["pid"]]
        assert (event["func"], event["host"], event["result"]) == (function, host, expected(said))
        if not function.endswith("_r"):
            (row,) = lookups.rows[str(said["pid"])]
            assert row[2:3] + row[4:] == [event["comm"], host]
            rounded = 1000 if lookups.tool.kind == "bpftrace" else 10
            assert near(float(row[3]) * 1000, event["latency_us"], rounded), (row, event)


def test_gethostlatency_sees_the_reentrant_functions(lookups: Lookups, record: Record) -> None:
    said = lookups.answers[0]
    assert lookups.events[said["pid"]]["func"] == "gethostbyname_r"
    rows = lookups.rows.get(str(said["pid"]), [])
    at_fault(lookups.tool, not rows, rows, record)


def test_gethostlatency_says_which_functions_another_tool_keeps_from_it(
    tmp_path_factory: pytest.TempPathFactory, record: Record
) -> None:
    """The kernel refuses a second probe if the first names a semaphore: bcc does so by mistake."""
    tool = bcc("gethostlatency")
    with watched(tool, tmp_path_factory, "gethostlatency") as (_, run):
        pass
    notes = [note for note in run.summary["notes"] if "cannot be probed at" in note]
    at_fault(tool, bool(notes), notes, record)
    for function in ("getaddrinfo", "gethostbyname", "gethostbyname2"):
        assert f"{function}, {function}()" in notes[0]
    assert "gethostbyname_r" not in notes[0] and "Invalid argument" in notes[0]
    gaps = {gap["pid"]: gap["reason"] for gap in run.summary["coverage"]["uncovered"]}
    assert "libc.so.6 cannot be probed" in gaps[os.getpid()]


# --- soaccept -------------------------------------------------------------------------------------

BACKLOG = 7


class Accepts(NamedTuple):
    """Accepts, and a peer's lines: (pid, comm, raddr, rport, laddr, lport, more...)."""

    tool: Tool
    early: tuple[str, ...]  # of a call to accept that was waiting when the tools began
    made: list[tuple[str, ...]]
    events: dict[tuple[str, ...], Json]
    lines: dict[tuple[str, ...], list[str]]


@pytest.fixture(**tools(bcc("tcpaccept"), bpftrace("tcpaccept")))
def accepts(
    request: Any, two_hosts: tuple[Host, Host], tmp_path_factory: pytest.TempPathFactory
) -> Accepts:
    left, right = two_hosts
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(End.start("nb-client", left))
        servers = [stack.enter_context(End.start("nb-server", right)) for _ in range(2)]
        (one, port), (two, other) = (server.listen("ipv4", backlog=BACKLOG) for server in servers)
        servers[1].tell("accept", id=100, listener=two)
        wait_until(lambda: waiting(servers[1]), what="a call to accept")
        peer, run = stack.enter_context(watched(request.param, tmp_path_factory, "soaccept"))
        client.connect("ipv4", right.ipv4, other)
        early = accepted(servers[1], servers[1].answer())
        for _ in range(4):
            client.connect("ipv4", right.ipv4, port)
        asked = ({"four": four, "null": null} for four in (True, False) for null in (True, False))
        made = [
            accepted(servers[0], servers[0].ask("accept", id=number, listener=one, **words))
            for number, words in enumerate(asked, 101)
        ]
        peer.wait_for(lambda: f" {made[-1][2]} " in peer.text)
        run.wait_for(lambda events: {early, *made} <= set(map(accept_of, events)))
    lines = {(row[0], *row[2:6]): row for row in peer_tools.accepts(peer)}
    events = {accept_of(event): event for event in run.events}
    return Accepts(request.param, early, made, events, lines)


def accepted(server: End, told: Json) -> tuple[str, ...]:
    return strings((server.pid, *told["remote"], *told["local"]))


def accept_of(event: Json) -> tuple[str, ...]:
    return strings(tuple(event[n] for n in ("pid", "raddr", "rport", "laddr", "lport")))


def test_soaccept_sees_what_its_peers_see_with_and_without_an_address(accepts: Accepts) -> None:
    for key in accepts.made:
        assert key in accepts.events and key in accepts.lines, (key, accepts.lines)
        assert accepts.events[key]["comm"] == accepts.lines[key][1] == "nb-server"


def test_soaccept_sees_the_call_that_waited_when_it_began(accepts: Accepts, record: Record) -> None:
    assert accepts.events[accepts.early]["result"] == "OK"
    line = accepts.lines.get(accepts.early)
    at_fault(accepts.tool, line is None, line, record)


def test_soaccept_shows_the_queue_of_the_listener(accepts: Accepts, record: Record) -> None:
    events = [accepts.events[key] for key in accepts.made]
    ours = [f"{event['queue']}/{event['queue_max']}" for event in events]
    assert ours == [f"{queue}/{BACKLOG}" for queue in (3, 2, 1, 0)]
    theirs = [" ".join(accepts.lines[key][6:]) for key in accepts.made]
    at_fault(accepts.tool, theirs != ours, theirs, record)
