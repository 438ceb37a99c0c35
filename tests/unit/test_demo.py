"""The demonstration waits as long as something happens, and no longer."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time

import pytest

from netbpf.declare.tool import find_tool
from netbpf.demo import show


@pytest.fixture
def running(tmp_path):
    """A tool that says nothing, for ever."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ready = tmp_path / "ready"
    yield show.Running(find_tool("tcplife"), process, io.BytesIO(), io.BytesIO(), ready)
    process.communicate()


def test_a_tool_has_started_when_it_says_so_or_has_ended(running):
    assert not running.started
    running.ready.touch()
    assert running.started
    running.ready.unlink()
    assert not running.started
    running.process.kill()
    running.process.wait()
    assert running.started


def test_patience_is_that_with_the_next_and_not_with_all(running, monkeypatch):
    monkeypatch.setattr(show, "_PATIENCE", 0.3)
    start = time.monotonic()
    show._wait([running], lambda: False)
    assert 0.3 <= time.monotonic() - start
    sign = threading.Timer(0.2, running.ready.touch)
    sign.start()
    start = time.monotonic()
    show._wait([running], lambda: False)
    assert 0.5 <= time.monotonic() - start
    sign.join()


def test_what_is_so_is_not_waited_for(running, monkeypatch):
    monkeypatch.setattr(show, "_PATIENCE", 3600)
    show._wait([running], lambda: True)


def test_who_waits_long_is_told_how_far_it_is(running, monkeypatch, capsys):
    monkeypatch.setattr(show, "_PATIENCE", 0.3)
    monkeypatch.setattr(show, "_NEWS", 0.1)
    show._wait([running], lambda: False)
    assert "... 0 of them have started\n" in capsys.readouterr().out
