"""Dropped packets, as netbpf's skbdrop and its peer tell them."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
from peer_tools import Record, Tool, at_fault, book, tools, watched
from test_skbdrop import NO_SOCKET, NUMBER, only, send, total
from test_tcpnagle import Pair
from topology import Host

pytestmark = pytest.mark.skipif(not NO_SOCKET, reason="needs reasons for drops: 5.17")
SESSIONS = 29


@pytest.fixture(**tools(book("skbdrop", "--unsafe")))  # it runs nstat
def peer(request: Any) -> Tool:
    return request.param


def test_skbdrop_counts_drops_and_nothing_else(
    peer: Tool,
    two_hosts: tuple[Host, Host],
    tmp_path_factory: pytest.TempPathFactory,
    record: Record,
) -> None:
    """The book's script counts whatever is freed by kfree_skb(), also where a session ends well."""
    left, right = two_hosts
    words = ("skbdrop", "--netns", right.inode)
    with watched(peer, tmp_path_factory, *words) as (watcher, run):
        for _ in range(SESSIONS):
            with contextlib.closing(Pair(left, right)) as pair:
                pair.interactive()
        send(left, right, NUMBER)
        run.stop()
        watcher.stop()
    assert total(run.rows) == total(only(run.rows, reason=NO_SOCKET, proto="udp")) == NUMBER
    stacks = re.findall(r"^@\[\n(.*?)\]: (\d+)$", watcher.text, re.MULTILINE | re.DOTALL)
    counts = {stack: int(count) for stack, count in stacks}
    drops = sum(count for stack, count in counts.items() if "udp" in stack)
    assert drops == NUMBER
    sessions = {stack: count for stack, count in counts.items() if "tcp_" in stack}
    at_fault(peer, sum(sessions.values()) > 0, sessions, record)
