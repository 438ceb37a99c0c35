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
from netbpf.run.runner import Run

CAUSES = ("ring_full", "map_full", "probe_missed", "reader", "unwritten", "not_covered", "unseen")


class Fakes:
    """A run that has ended with these losses, and its summary."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **lost: int) -> None:
        monkeypatch.setattr(summary, "ids_differ", lambda: False)
        self.summary: dict[str, Any] = {}
        self.lost = {**dict.fromkeys(CAUSES, 0), **lost}
        run: Any = Run.__new__(Run)
        run.tool = find_tool("tcplife")
        run.settings = {"fail_on_loss": True, "output": "json"}
        run.out = SimpleNamespace(error=None, blocked=False)
        run.clock, run.active_filters, run._merged = Clock(), [], 0
        run.stop = SimpleNamespace(reason="SIGINT", finish=lambda _: None)
        run.attached = SimpleNamespace(described=list, selections=(), not_covered=0)
        run.result = SimpleNamespace(
            summary=dict, seen=0, empty=True, unit="events", notes=[], namespaces=set(), after_end=0
        )
        run.counters = SimpleNamespace(rise={}, own={}, scope=dict, notes=lambda _: [])
        run.names, run.confinement = SimpleNamespace(notes=list), Confinement()
        run.writer = SimpleNamespace(summary=self.summary.update)
        self.run = run

    def end(self) -> int:
        return int(self.run._summarise(Clock().start, {}, self.lost))


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
    fakes.run.active_filters = ["--pid 41", "--ipv4"]
    fakes.end()
    assert fakes.summary["notes"] == ["nothing matched --pid 41 and --ipv4"]
    fakes.run.result.empty, fakes.run.result.notes = False, []
    fakes.end()
    assert fakes.summary["notes"] == []
