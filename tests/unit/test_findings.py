"""Rules about what a test cannot bring about in a network namespace, given as evidence.

The queues of CPUs belong to the whole machine, damaged frames to hardware, and ten minutes are
longer than a test may take.
"""

from __future__ import annotations

from netbpf.declare.finding import Evidence, all_rules
from netbpf.triage.judge import judge

SECONDS = 10.0


def reported(**given):
    """Return (rule, severity, facts) of the findings."""
    evidence = Evidence(**{"rows": {}, "counters": {}, "seconds": SECONDS, "lost": {}, **given})
    found = judge(all_rules(), evidence)
    return [(one.rule.ident, one.case.severity, one.facts) for one in found]


def test_softirqs_that_leave_work():
    few, many = (int(SECONDS) * each for each in (9, 17))
    assert reported(counters={"Softnet.time_squeeze": few}) == []
    facts = [f"{many} softirqs ended with packets left, 17 per second (Softnet.time_squeeze)"]
    assert reported(counters={"Softnet.time_squeeze": many}) == [
        ("softirq-squeezed", "note", facts)
    ]


def test_softirqs_that_leave_work_are_reported_with_the_packets_lost():
    ((rule, severity, facts),) = reported(
        counters={"Softnet.time_squeeze": 1700, "Softnet.dropped": 23}
    )
    assert (rule, severity) == ("backlog-drops", "warning")
    assert [fact for fact in facts if fact.startswith("also: ")]


def test_device_with_damaged_frames():
    counters = {"Device.eth7.rx_errs": 23, "Device.eth7.rx_frame": 17, "Device.lo.rx_errs": 0}
    facts = ["rx_errs 23, rx_frame 17"]
    assert reported(counters=counters) == [("device-errors", "warning", facts)]


def idle_sessions(number):
    row = {"netns": 7, "state": "ESTABLISHED", "close": None, "role": "passive",
           "laddr": "10.0.0.1", "lport": 443, "raddr": "10.0.0.2", "rport": 40000, "pid": 41,
           "comm": "server", "container": None, "unit": None, "count": 0, "pending": number,
           "idle": number, "long_idle": number, "unread": 0, "unsent": 0, "first": 1}  # fmt: skip
    return {"tcplife": [row]}


def test_connections_that_nothing_moves_on():
    assert reported(rows=idle_sessions(99)) == []
    ((rule, severity, facts),) = reported(rows=idle_sessions(101))
    assert (rule, severity) == ("idle-connections", "note")
    assert facts == ["101 connections without any data for 10 minutes or more",
                     "101 of them accepted on port 443"]  # fmt: skip


def test_full_syn_queues_of_a_kernel_that_does_not_say_whose():
    def cookies(sent, made, **levels):
        counters = {"TcpExt.SyncookiesSent": sent, "Tcp.PassiveOpens": made}
        return [pair[:2] for pair in reported(counters=counters, levels=levels)]

    assert cookies(0, 23) == []
    assert cookies(23, 23) == [("syn-cookies", "warning")]
    assert cookies(101, 3) == [("syn-cookies", "critical")]
    assert cookies(101, 101, syncookies=2) == []  # the administrator wants them always
    assert cookies(101, 3, syncookies=2) == [("syn-cookies", "critical")]
