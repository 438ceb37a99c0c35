"""The summary: complete only if no cause of loss has a number, and what its notes say."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from netbpf.declare.tool import find_tool
from netbpf.errors import EXIT_LOST
from netbpf.output.clock import Clock
from netbpf.run import runner
from netbpf.run.runner import Run

CAUSES = ("ring_full", "map_full", "probe_missed", "reader", "unseen")


class Fakes:
    """A run that has ended with these losses, and its summary."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **lost: int) -> None:
        found = {cause: lost.get(cause, 0) for cause in ("ring_full", "map_full")}
        monkeypatch.setattr(runner, "read_losses", lambda _: found)
        monkeypatch.setattr(runner, "read_covered", lambda _: 0)
        monkeypatch.setattr(runner, "Map", lambda *_, **__: None)
        monkeypatch.setattr(runner, "ids_differ", lambda: False)
        self.summary: dict[str, Any] = {}
        self.unseen = {"unseen": lost.get("unseen", 0)}
        run: Any = Run.__new__(Run)
        run.tool, run.settings, run.out = (
            find_tool("tcplife"),
            {"fail_on_loss": True},
            io.StringIO(),
        )
        run.clock, run.narrowed = Clock(), []
        run.stop = SimpleNamespace(reason="SIGINT")
        run.attached = SimpleNamespace(
            loaded=SimpleNamespace(maps={"losses": 0}), choices=(), described=list
        )
        run.cost = SimpleNamespace(missed=lambda *_: lost.get("probe_missed", 0))
        run.shape = SimpleNamespace(
            strange=lost.get("reader", 0), summary=dict, seen=0, empty=True, unit="events",
            notes=[], namespaces=set(),
        )  # fmt: skip
        run.tally = SimpleNamespace(rise={}, own={}, scope=dict, notes=lambda _: [])
        run.names = SimpleNamespace(notes=list)
        run.writer = SimpleNamespace(summary=self.summary.update)
        self.run = run

    def end(self) -> int:
        return int(self.run._summarise(Clock().start, {}, self.unseen))


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


def test_run_that_shows_nothing_names_its_filters(monkeypatch):
    fakes = Fakes(monkeypatch)
    fakes.run.narrowed = ["--pid 41", "--ipv4"]
    fakes.end()
    assert fakes.summary["notes"] == ["nothing was seen that passes --pid 41 and --ipv4"]
    fakes.run.shape.empty, fakes.run.shape.notes = False, []
    fakes.end()
    assert fakes.summary["notes"] == []
