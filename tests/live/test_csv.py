"""CSV holds one kind of rows, the one that is wanted, and names on stderr what it leaves out."""

from __future__ import annotations

import csv
import io
import socket
from typing import Any

import pytest
from topology import Host

from netbpf.declare.tool import find_tool, tool_names

# Tool with options: the index of its table whose rows CSV holds, and what stderr names.
SEVERAL = [
    (("tcpsynbl",), 0, ["distributions", "counters of each interval"]),
    (("tcpnagle", "--top", "7"), 1, ["distributions", "table of settings"]),
    (("skbdrop",), 0, []),
    (("sockstat",), 0, ["counters of each interval"]),
]


@pytest.mark.parametrize("words, table, left_out", SEVERAL, ids=lambda value: str(value))
def test_header_is_that_of_the_main_table(
    words: tuple[str, ...], table: int, left_out: list[str], netbpf: Any, one_host: Host
) -> None:
    tool = find_tool(words[0])
    whose = ("--netns", one_host.inode, "-d", 0.3)
    with netbpf(*words, *whose, "-o", "csv", json_lines=False) as run:
        run.wait_end()
    header = run.stdout.splitlines()[0].split(",")
    assert header == ["time", "type", *(column.name for column in tool.tables[table].row.columns)]
    notes = [line for line in run.stderr.splitlines() if "CSV has only" in line]
    assert len(notes) == (1 if left_out else 0), run.stderr
    assert all(title in notes[0] for title in left_out)
    assert all("--json" in note for note in notes)


def test_listener_of_a_program_is_a_row(netbpf: Any, one_host: Host) -> None:
    # The truth is the socket itself: its port, and the limit that it was given.
    with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(7)
        port = listener.getsockname()[1]
        with netbpf("tcpsynbl", "-L", port, "-o", "csv", json_lines=False) as run:
            with one_host.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
                client.connect(("127.0.0.1", port))
            run.stop()
    (row,) = csv.DictReader(io.StringIO(run.stdout))
    assert (row["type"], row["lport"], row["accept_limit"]) == ("interval", str(port), "7")
    assert row["handshakes"] == "1"


@pytest.mark.parametrize("tool", tool_names())
def test_every_row_has_the_columns_of_the_header(tool: str, netbpf: Any) -> None:
    with netbpf(tool, "-d", 0.5, "-o", "csv", json_lines=False) as run:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x", ("127.0.0.1", 9))
        run.wait_end()
    header, *rows = csv.reader(io.StringIO(run.stdout))
    assert header[:2] == ["time", "type"]
    assert all(len(row) == len(header) for row in rows)
