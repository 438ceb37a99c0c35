"""The summary: complete only without losses, and its notes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from netbpf.declare.tool import find_tool
from netbpf.errors import EXIT_LOST
from netbpf.output.clock import Clock
from netbpf.run import summary
from netbpf.run.confinement import Confinement
from netbpf.run.member import Member
from netbpf.run.session import Session

CAUSES = ("ring_full", "map_full", "probe_missed", "reader", "unwritten", "not_covered", "unseen")


class Fakes:
    """A run of one tool that has ended with these losses, and its summary."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **lost: int) -> None:
        monkeypatch.setattr(summary, "ids_differ", lambda: False)
        self.summary: dict[str, Any] = {}
        self.lost = {**dict.fromkeys(CAUSES, 0), **lost}
        member: Any = Member.__new__(Member)
        member.tool = find_tool("tcplife")
        member.settings = {"fail_on_loss": True, "output": "json"}
        member.clock, member.active_filters, member._merged = Clock(), [], 0
        member.attached = SimpleNamespace(described=list, selections=(), not_covered=0)
        member.result = SimpleNamespace(
            summary=dict, seen=0, empty=True, unit="events", notes=[], namespaces=set(), after_end=0
        )
        member.counters = SimpleNamespace(rise={}, own={}, scope=dict, notes=lambda _: [])
        member.names, member.confinement = SimpleNamespace(notes=list), Confinement()
        member.writer = SimpleNamespace(summary=self.summary.update)
        member.stop = SimpleNamespace(reason="SIGINT", finish=lambda *_: None)
        self.member = member

    def end(self) -> int:
        self.member.write_summary(Clock().start, {}, self.lost)
        session: Any = Session.__new__(Session)
        session.members, session.settings = [self.member], self.member.settings
        session.out = SimpleNamespace(error=None, blocked=False)
        return int(session.exit_status([self.lost]))


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_alone_makes_a_run_incomplete(monkeypatch, cause):
    fakes = Fakes(monkeypatch, **{cause: 1})
    assert fakes.end() == EXIT_LOST
    assert fakes.summary["complete"] is False
    assert fakes.summary["lost"] == {**dict.fromkeys(CAUSES, 0), cause: 1}


def test_run_without_losses_is_complete(monkeypatch):
    fakes = Fakes(monkeypatch)
    assert fakes.end() == 0
    assert fakes.summary["complete"] is True


def test_summary_without_results_names_the_filters(monkeypatch):
    fakes = Fakes(monkeypatch)
    fakes.member.active_filters = ["--pid 41", "--ipv4"]
    fakes.end()
    assert fakes.summary["notes"] == ["nothing matched --pid 41 and --ipv4"]
    fakes.member.result.empty, fakes.member.result.notes = False, []
    fakes.end()
    assert fakes.summary["notes"] == []
