"""Findings: what is collected, how causes and effects are told, and what is printed."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from netbpf.declare.finding import (
    CRITICAL,
    NOTE,
    WARNING,
    Case,
    Evidence,
    Rule,
    View,
    all_rules,
    service,
)
from netbpf.declare.tool import find_tool
from netbpf.kernel import levels
from netbpf.kernel.addresses import local_addresses
from netbpf.output.clock import Clock
from netbpf.triage import collect
from netbpf.triage.collect import Collector
from netbpf.triage.judge import Finding, as_json, judge
from netbpf.triage.schema import triage_schema
from netbpf.triage.show import text_lines

NOTHING = Evidence({}, {}, 15.0, {})
SCREEN: Any = SimpleNamespace(width=None, paint=lambda text, style: text)
SUMMARY = {"tools": ["tcplife"], "seconds": 15.0, "not_seen": [], "cpu_percent": 0.1,
           "reader_cpu_seconds": 0.3}  # fmt: skip


def case(severity: str = WARNING, weight: float = 1, pid: int = 41, **values: Any) -> Case:
    subjects = frozenset({("service", values.get("port", 80))})
    who = [{"pid": pid, "comm": "web", "container": None, "unit": None, "netns": 1, "count": 1}]
    return Case(severity, {"port": 80, **values}, ["a fact"], subjects, who, 0, weight)


def rule(ident: str, cases: Iterable[Case], **words: Any) -> Rule:
    return Rule(ident, (), lambda evidence: cases, f"{ident} of port {{port}}", "It means that.",
                "netbpf x -L {port}", "a book", **words)  # fmt: skip


def test_worst_comes_first() -> None:
    rules = [rule("a", [case(NOTE, 99), case(WARNING, 1, pid=1), case(WARNING, 5, pid=2)]),
             rule("b", [case(CRITICAL, 1)])]  # fmt: skip
    found = [(one.case.severity, one.case.weight) for one in judge(rules, NOTHING)]
    assert found == [(CRITICAL, 1), (WARNING, 5), (WARNING, 1), (NOTE, 99)]


def test_effect_is_told_with_its_cause() -> None:
    rules = [rule("cause", [case(CRITICAL)], explains={"effect": "service"}),
             rule("effect", [case(CRITICAL, 99), case(port=81)])]  # fmt: skip
    found = judge(rules, NOTHING)
    assert [one.rule.ident for one in found] == ["cause", "effect"]
    assert found[0].facts == ["a fact", "also: effect of port 80"]
    assert found[1].sentence == "effect of port 81"


def test_cases_of_one_process_are_told_together() -> None:
    cases = [case(port=port, weight=100 - port) for port in range(80, 90)]
    cases.append(case(port=99, pid=42))
    found = judge([rule("full", cases, differs="port")], NOTHING)
    assert [one.case.values["port"] for one in found] == [80, 99]
    assert found[0].case.facts[1] == "the same for 81, 82, 83 and 6 more"


def test_many_effects_are_counted() -> None:
    effects = rule("effect", [case(pid=n, name=n) for n in range(9)])._replace(
        sentence="effect {name}"
    )
    (found,) = judge([rule("cause", [case(CRITICAL)], explains={"effect": "service"}), effects],
                     NOTHING)  # fmt: skip
    assert found.facts[-1] == "also: 6 more effects"
    assert len(found.facts) == 5


def test_command_quotes_what_a_shell_would_read() -> None:
    hostile = Finding(rule("x", []), case(port="a;reboot $(x) '`"))
    assert shlex.split(hostile.command) == ["netbpf", "x", "-L", "a;reboot $(x) '`"]


def test_text_escapes_hostile_names() -> None:
    (found,) = judge([rule("x", [case(port="\x1b[31mred\n")])], NOTHING)
    text = "\n".join(text_lines([found], Clock(), SUMMARY, SCREEN))
    assert "\x1b" not in text and "red\n" not in text


def test_service_of_a_wildcard_listener_is_that_of_a_local_address() -> None:
    here = NOTHING._replace(addresses=frozenset({"10.0.0.1"}))
    same = [service(here, address, 80) for address in ("0.0.0.0", "::", "10.0.0.1", "127.0.0.2")]
    assert same == [same[0]] * 4
    assert service(here, "10.0.0.2", 80) != same[0]


def test_addresses_of_a_machine(tmp_path: Any) -> None:
    (tmp_path / "fib_trie").write_text(
        "Local:\n  +-- 10.0.0.0/24 2 0 2\n     |-- 10.0.0.1\n        /32 host LOCAL\n"
        "     |-- 10.0.0.255\n        /32 link BROADCAST\n"
    )
    (tmp_path / "if_inet6").write_text("fd000000000000000000000000000002 02 40 00 80 eth0\n")
    assert local_addresses(str(tmp_path)) == {"10.0.0.1", "fd00::2"}
    assert local_addresses(str(tmp_path / "none")) == frozenset()


VIEW = View("tcplife", keys=("pid",), sums=("bytes",), largest=("age",), over=(("old", "age", 5),))


def collector(view: View = VIEW) -> Collector:
    stream: Any = SimpleNamespace(isatty=lambda: False)
    return Collector(view, "tcplife", (), Clock(), stream, {})


def test_events_are_counted_by_key() -> None:
    found = collector()
    found.events([10, 20], {"pid": (1, 1), "bytes": (3, None), "age": (4, 9)})
    found.events([5], {"pid": (1,), "bytes": (2,), "age": (None,)}, "interval")
    (row,) = found.rows_of_view()
    assert row == {"pid": 1, "bytes": 5, "age": 9, "old": 1, "count": 2, "pending": 1,
                   "first": 10, "last": 5}  # fmt: skip


def test_keys_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "MOST_KEYS", 3)
    found = collector()
    for pid in range(7):
        found.events([pid], {"pid": (pid,), "bytes": (1,), "age": (1,)})
    rows = found.rows_of_view()
    assert len(rows) == 4 and found.crowded == 4
    assert sum(row["count"] for row in rows) == 7


def test_rules_look_at_columns_that_their_tools_have() -> None:
    for one in all_rules():
        for view in one.views:
            tool = find_tool(view.tool)
            if not view.keys:
                continue
            assert tool.event
            known = {column.name for column in tool.event.columns}
            columns = {*view.keys, *view.sums, *view.largest, *(name for _, name, _ in view.over)}
            assert columns <= known, one.ident


def test_every_tool_has_one_view() -> None:
    views = {view for one in all_rules() for view in one.views}
    assert len({view.tool for view in views}) == len(views)


def test_names_of_rules_are_unique_and_explain_rules_that_exist() -> None:
    idents = [one.ident for one in all_rules()]
    assert len(set(idents)) == len(idents)
    for one in all_rules():
        assert set(one.explains) <= set(idents), one.ident
        assert one.source and one.meaning.endswith((".", "{meaning}."))


def found(**words: Any) -> dict[str, str]:
    """Return {finding: severity} of evidence with these counters, levels or rows."""
    return {one.rule.ident: one.case.severity
            for one in judge(all_rules(), NOTHING._replace(**words))}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ({}, {}),
        ({"counters": {"Softnet.dropped": 23}}, {"backlog-drops": WARNING}),
        ({"counters": {"Device.eth0.rx_errs": 3}}, {"device-errors": WARNING}),
        ({"counters": {"Device.eth0.rx_packets": 3}}, {}),
        ({"counters": {"Udp.RcvbufErrors": 1}}, {"receive-buffer-full": WARNING}),
        ({"counters": {"Netlink.23.drops": 1}}, {"receive-buffer-full": WARNING}),
        ({"counters": {"Icmp6.InPktTooBigs": 3}}, {"mtu": WARNING}),
        ({"counters": {"Icmp6.InPktTooBigs": 2}}, {}),
        ({"levels": {"conntrack": 89, "max_conntrack": 100}}, {}),
        ({"levels": {"conntrack": 90, "max_conntrack": 100}}, {"conntrack-full": WARNING}),
        ({"levels": {"conntrack": 100, "max_conntrack": 100}}, {"conntrack-full": CRITICAL}),
        ({"levels": {"tcp.tw": 49, "ports": 100}}, {}),
        ({"levels": {"tcp.tw": 50, "ports": 100}}, {"time-wait": NOTE}),
        ({"counters": {"TcpExt.TCPTimeWaitOverflow": 1}}, {"time-wait": WARNING}),
        ({"lost": {"tcplife": {"ring_full": 23}}}, {"own-loss": NOTE}),
        ({"lost": {"tcplife": {"ring_full": 0}}}, {}),
    ],
)
def test_counters_and_levels(words: dict[str, Any], wanted: dict[str, str]) -> None:
    assert found(**words) == wanted


def test_drops_are_told_with_the_counter_that_explains_them() -> None:
    row = {"reason": "SOCKET_RCVBUFF", "dev": None, "location": "x", "proto": "udp", "count": 23,
           "harmless": "no", "example": ""}  # fmt: skip
    rows = {"skbdrop": [row]}
    assert found(rows=rows) == {"drops": WARNING}
    assert found(rows=rows, counters={"Udp.RcvbufErrors": 23}) == {"receive-buffer-full": WARNING}
    assert found(rows={"skbdrop": [{**row, "harmless": "yes"}]}) == {}


def test_levels_of_sockstat() -> None:
    text = "sockets: used 9\nTCP: inuse 5 orphan 2 tw 123 alloc 8 mem 1\nUDP: inuse 3 mem 0\n"
    assert dict(levels.sockets_of(text)) == {"tcp.orphan": 2, "tcp.tw": 123}
    assert dict(levels.sockets_of("TCP: inuse x\n")) == {}


def test_levels_of_this_namespace() -> None:
    here = levels.Levels()
    try:
        found = here.read()
    finally:
        here.close()
    assert 0 < found["ports"] <= 65536 and found["tcp.tw"] <= found["max_tcp.tw"]
    assert here.read() == {
        n: v for n, v in found.items() if n in ("ports", "syncookies") or n[:4] == "max_"
    }


def test_lines_match_their_schema() -> None:
    check = jsonschema.Draft202012Validator(triage_schema())
    one = Finding(rule("x", []), case())
    for since in ("", Clock().rfc3339(Clock().start)):
        check.validate({"tool": "triage", **as_json(one, since)})
    with pytest.raises(jsonschema.ValidationError):
        check.validate({"tool": "triage", **as_json(one, ""), "more": 1})


def connect(**values: Any) -> dict[str, Any]:
    usual = {"netns": 1, "raddr": "10.0.0.5", "rport": 80, "errno": "ETIMEDOUT", "pid": 41,
             "result": "Connection timed out", "comm": "web", "container": None, "unit": None,
             "count": 1, "pending": 0, "first": 1, "last": 1, "retransmits": 2,
             "latency_us": 3_000_000}  # fmt: skip
    return {**usual, **values}


def test_same_destination_in_two_namespaces_is_two_destinations() -> None:
    rows = [connect(), connect(netns=2, pid=42, retransmits=5), connect(netns=2, pid=42)]
    told = judge(all_rules(), NOTHING._replace(rows={"soconnect": rows}))
    assert [one.facts[1].partition(" sent")[0] for one in told] == ["7 SYNs", "2 SYNs"]


def test_process_that_another_address_answers_has_a_note_and_others_have_not() -> None:
    fails = {"errno": "ECONNREFUSED", "result": "Connection refused"}
    answered = connect(raddr="10.0.0.6", errno=None, result="OK")
    for rows, severity in (
        ([connect(**fails)], CRITICAL),
        ([connect(**fails), connect(errno=None, result="OK")], WARNING),
        ([connect(**fails), answered], NOTE),
        ([connect(**fails), connect(**fails, pid=42), answered], CRITICAL),
    ):
        assert found(rows={"soconnect": rows}) == {"backend-refuses": severity}


def test_many_destinations_of_one_process_are_one_finding() -> None:
    rows = [connect(raddr=f"10.1.{n // 256}.{n % 256}") for n in range(4001)]
    (one,) = judge(all_rules(), NOTHING._replace(rows={"soconnect": rows}))
    assert one.facts[-1].endswith("and 3997 more")
