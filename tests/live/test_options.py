"""Every option of every tool acts or is refused: with a value that cannot match it is never silent.

A value that cannot match is one that is absent from this machine. The run must end as a usage error
(2) with a hint, or with a note that names the option beside a result that is empty. An option that
is new needs values in REFUSED or EMPTY.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
from forks import netbpf_forked
from topology import Host

from netbpf.declare.options import LIMITS, OUTPUT, Option
from netbpf.declare.tool import all_tools

pytestmark = pytest.mark.beside

USAGE = 2
CGROUPS = next(
    (words[1] for words in map(str.split, open("/proc/self/mounts")) if words[2] == "cgroup2"), ""
)


@contextlib.contextmanager
def thread_id() -> Iterator[str]:
    text = (
        "import sys, threading\n"
        "t = threading.Thread(target=sys.stdin.read); t.start()\n"
        "print(t.native_id, flush=True); t.join()\n"
    )
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", text], **streams) as process:
        yield process.stdout.readline().strip()
        process.stdin.close()


@contextlib.contextmanager
def empty_cgroup() -> Iterator[str]:
    path = Path(CGROUPS, f"netbpf-options-{os.getpid()}")
    path.mkdir()
    try:
        yield str(path)
    finally:
        path.rmdir()


@contextlib.contextmanager
def empty_container() -> Iterator[str]:
    identity = f"{os.getpid():x}".rjust(64, "d")
    path = Path(CGROUPS, f"docker-{identity}.scope")
    path.mkdir()
    try:
        yield identity
    finally:
        path.rmdir()


def absent_namespace() -> str:
    return str(os.stat("/proc/self/ns/uts").st_ino)


# What is refused, by the option's name: values, or context managers that yield one.
REFUSED = {
    "pid": [thread_id, Path("/proc/sys/kernel/pid_max").read_text().strip(), "0"],
    "comm": ["[ab]" * 16, "x" * 16, ""],
    "uid": ["netbpf-no-such-user", str(2**32 - 1)],
    "cgroup": ["/netbpf/no/such/cgroup", "/proc"],
    "container": ["0123456789abcdef" * 4],
    "netns": ["77000001", "netbpf-no-such", absent_namespace(), "/proc/self/ns/uts"],
    "lport": ["0", "65536"],
    "rport": ["0", "65536"],
    "port": ["0"],
    "laddr": ["10.0.0.1/8", "localhost"],
    "raddr": ["10.0.0.1/8", "localhost"],
    "interface": ["netbpfnosuch0", "netbpfalternativenosuch0"],
    "dev": ["netbpfnosuch0", "netbpfalternativenosuch0"],
    "reason": ["NETBPF_NO_SUCH"],
    "proto": ["tcp,netbpf-no-such"],
    "min_ms": ["-1"],
    "top": ["0"],
    "sort": ["netbpf_no_such", ""],
    "by": ["netbpf_no_such", "comm,comm", "comm/8", ""],
    "histogram": ["netbpf_no_such", ""],
    "op": ["send,netbpf-no-such"],
    "state": ["NETBPF_NO_SUCH", ""],
    "step": ["connect,netbpf-no-such", ""],
    "kind": ["", "a/b"],
    "cpu": ["", "one"],
    "flags": ["", "S,X"],
    "dir": ["up"],
    "stage": ["", "socket,netbpf-no-such"],
    "timeout": ["-1", "soon"],
    "min_idle": ["-1", "soon"],
    "min_age": ["-1", "soon"],
    "map_entries": ["0"],
    "max_events": ["0"],
}
# What may match yet, but did not: the run is empty, and says which option it was.
EMPTY = {
    "comm": ["netbpf-absent"],
    "uid": ["4294967294"],
    "cgroup": [empty_cgroup],
    "container": [empty_container],
    "laddr": ["2001:db8:dead::/48"],
    "raddr": ["2001:db8:dead::/48"],
    "host": ["netbpf-no-such-host.invalid"],
    "min_ms": ["999999999"],
    "kind": ["netbpf-none"],
    "cpu": ["8191"],
    "min_idle": ["9999999"],
    "min_age": ["9999999"],
}
# Two that exclude each other.
PAIRS = [
    ("-4", "--laddr", "2001:db8::/32"),
    ("-6", "--raddr", "10.0.0.0/8"),
    ("--laddr", "10.0.0.0/8", "--raddr", "2001:db8::1"),
    ("-4", "-6"),
]
GENERAL = {option.name for option in (*OUTPUT, *LIMITS)}


def options() -> Iterator[tuple[str, Option]]:
    for tool in all_tools():
        for option in tool.options:
            if option.metavar and option.name not in GENERAL - {"map_entries"}:
                yield tool.name, option


def cases(wanted: dict[str, list[object]]) -> list[tuple[str, Option, object]]:
    return [(t, o, v) for t, o in options() for v in wanted.get(o.name, [])]


def named(value: object) -> str:
    return value.flags[-1] if isinstance(value, Option) else getattr(value, "__name__", str(value))


def run(tool: str, *words: object) -> subprocess.CompletedProcess[str]:
    return harness.netbpf_once(tool, *words, "--json", "-d", "0.2")


def refused(tool: str, *words: object) -> subprocess.CompletedProcess[str]:
    return netbpf_forked(tool, *words, "--json", "-d", "0.2")


@contextlib.contextmanager
def given(value: object) -> Iterator[str]:
    if callable(value):
        with value() as found:
            yield found
    else:
        yield str(value)


def test_every_option_with_an_argument_has_a_value_that_cannot_match() -> None:
    names = {option.name for _, option in options()}
    assert names <= REFUSED.keys() | EMPTY.keys(), "give values that cannot match"


@pytest.mark.parametrize(("tool", "option", "value"), cases(REFUSED), ids=named)
def test_what_cannot_match_is_refused_with_a_hint(tool: str, option: Option, value: object) -> None:
    with given(value) as word:
        done = refused(tool, option.flags[-1], word)
    errors = done.stderr.splitlines()
    assert done.returncode == USAGE, (done.stdout[-300:], done.stderr)
    assert [line.partition(" ")[0] for line in errors] == ["netbpf:", "hint:"], done.stderr
    assert option.flags[-1] in errors[0]
    assert done.stdout == ""


def filters() -> list[tuple[str, Option, object]]:
    """The cases of EMPTY, but not of options that only show events beside something else."""
    shows = {tool.name: tool.event_option for tool in all_tools()}
    return [case for case in cases(EMPTY) if case[1].name != shows[case[0]]]


@pytest.mark.parametrize(("tool", "option", "value"), filters(), ids=named)
def test_what_did_not_match_is_named(tool: str, option: Option, value: object) -> None:
    with given(value) as word:
        done = run(tool, option.flags[-1], word)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["events"] == 0
    notes = [note for note in summary["notes"] if "nothing matched" in note]
    assert len(notes) == 1, summary["notes"]
    assert option.flags[-1] in notes[0]


@pytest.mark.parametrize("words", PAIRS, ids=" ".join)
def test_options_that_exclude_each_other_are_refused(words: tuple[str, ...]) -> None:
    done = refused("tcplife", *words)
    assert done.returncode == USAGE
    assert "exclude each other" in done.stderr and "hint:" in done.stderr


@pytest.mark.parametrize("tool", [tool.name for tool in all_tools()])
def test_options_that_a_tool_has_not_are_refused(tool: str) -> None:
    found = next(one for one in all_tools() if one.name == tool)
    for option in found.unsupported_options:
        done = refused(tool, option.flags[-1], *(["1"] if option.metavar else []))
        assert done.returncode == USAGE, (option.flags, done.stderr)
        assert "hint:" in done.stderr


def test_a_second_table_with_rows_is_something_that_passes(netbpf: Any, one_host: Host) -> None:
    """No data waited: the first table is empty, and this process's sends are in another one."""
    with netbpf("tcpnagle", "--netns", one_host.namespace, "-p", os.getpid()) as run:
        with contextlib.ExitStack() as stack:
            listener, client = (
                stack.enter_context(one_host.socket(socket.AF_INET, socket.SOCK_STREAM))
                for _ in range(2)
            )
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            client.connect(listener.getsockname())
            client.sendall(b"x")
            run.stop()
    assert sum(row.get("sends", 0) for row in run.rows) == 1
    assert not [note for note in run.summary["notes"] if "nothing matched" in note]
