"""What Nagle's algorithm holds back, as netbpf's tcpnagle and its peer tell it."""

from __future__ import annotations

import contextlib
from typing import Any

import peer_tools
import pytest
from peer_tools import Record, Tool, at_fault, book, tools, watched
from test_tcpnagle import FEW_US, ROUNDS, Pair, long_holds
from topology import Host


@pytest.fixture(**tools(book("tcpnagle")))
def peer(request: Any) -> Tool:
    return request.param


def test_tcpnagle_measures_what_is_held(
    peer: Tool, one_host: Host, tmp_path_factory: pytest.TempPathFactory, record: Record
) -> None:
    """The book's script starts its clock where nothing is in flight: Nagle never holds there."""
    words = ("tcpnagle", "--netns", one_host.inode)
    with contextlib.closing(Pair(one_host, one_host)) as pair:
        pair.interactive()
        with watched(peer, tmp_path_factory, *words) as (watcher, run):
            arranged = [pair.write_write_read() for _ in range(ROUNDS)]
            run.stop()
            watcher.stop()
    assert min(arranged) > 0.03, f"the test itself failed: {arranged}"
    assert long_holds(run) == {"nagle": ROUNDS}
    blocked = peer_tools.maps(watcher.text).get("blocked_us", {})
    seen = sum(count for low, count in blocked.items() if 2 * low > FEW_US)
    at_fault(peer, seen < ROUNDS, watcher.text, record)
