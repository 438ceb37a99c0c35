"""The demonstration waits while tools start and stop, and no longer."""

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
    """A tool that runs forever and prints nothing."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ready = tmp_path / "ready"
    yield show.Running(find_tool("tcplife"), process, io.BytesIO(), io.BytesIO(), ready)
    process.communicate()


def test_tool_has_started_when_its_ready_file_exists_or_it_has_exited(running):
    assert not running.started
    running.ready.touch()
    assert running.started
    running.ready.unlink()
    assert not running.started
    running.process.kill()
    running.process.wait()
    assert running.started


def test_timeout_starts_again_with_each_tool(running, monkeypatch):
    monkeypatch.setattr(show, "_TIMEOUT", 0.3)
    start = time.monotonic()
    show._wait([running], lambda: False)
    assert 0.3 <= time.monotonic() - start
    sign = threading.Timer(0.2, running.ready.touch)
    sign.start()
    start = time.monotonic()
    show._wait([running], lambda: False)
    assert 0.5 <= time.monotonic() - start
    sign.join()


def test_a_true_condition_returns_at_once(running, monkeypatch):
    monkeypatch.setattr(show, "_TIMEOUT", 3600)
    show._wait([running], lambda: True)


def test_progress_is_printed_during_a_long_wait(running, monkeypatch, capsys):
    monkeypatch.setattr(show, "_TIMEOUT", 0.3)
    monkeypatch.setattr(show, "_PROGRESS", 0.1)
    show._wait([running], lambda: False)
    assert "... 0 tools have started\n" in capsys.readouterr().out
