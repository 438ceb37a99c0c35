"""Command lines of every tool, and the globs, address blocks and containers in them."""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from contextlib import suppress
from typing import Any

import click
from hypothesis import strategies as st

from netbpf.cli import alias_command, settings_of
from netbpf.declare import options
from netbpf.declare.aliases import all_aliases, extension_of
from netbpf.declare.tool import Tool, all_tools
from netbpf.declare.values import escape
from netbpf.doctor.recording import COVERS
from netbpf.errors import NetbpfError, UsageError
from netbpf.kernel import cgroups
from netbpf.kernel.cgroups import cgroup_id, container_cgroups, container_of
from netbpf.kernel.recorded import covers
from netbpf.run.filters import filter_defines
from netbpf.run.program import parse_forced
from tests.fuzz.damage import directory, mutated
from tests.fuzz.target import Target
from tests.unit.test_filters import Automaton, body_of, evaluate, understood

TOOLS = {tool.name: tool for tool in all_tools()}
ALIASES = {alias.name: alias for alias in (*map(extension_of, TOOLS.values()), *all_aliases())}
COMMANDS = {name: alias_command(alias) for name, alias in ALIASES.items()}
FLAGS = sorted(
    {flag for tool in TOOLS.values() for option in tool.options for flag in option.flags}
    | {flag for alias in ALIASES.values() for one in alias.flags for flag in one.flags}
)
VALUES = [
    b"1", b"80,8000-8100", b"443-80", b"10.0.0.0/8", b"::1", b"fe80::1%lo/64", b"2001:db8::/32",
    b"nginx*", b"[a-z]?", b"eth0,lo", b"4m", b"256k", b"0.5", b"1e9", b"root", b"0,1000", b"json",
    b"csv", b"state=tp,accept=rawtp", b"4026531840", b"/", b"..", b"abcdef0123", b"p99", b"EAGAIN",
    b"NO_SOCKET", b"*.example.com", b"-1", b"", b"--", b"4294967295", b"1,2,,3", b"0.0005",
    b",".join(b"%d" % number for number in range(300)),
]  # fmt: skip
WORD = mutated(VALUES).map(lambda data: data.replace(b"\0", b"").decode(errors="surrogateescape"))
LINES = st.tuples(
    st.sampled_from(sorted(ALIASES)),
    st.lists(st.tuples(st.sampled_from([*FLAGS, "", "", "-x"]), st.none() | WORD), max_size=5),
)
# What C may get: netbpf's own names, numbers and operators. No character that could end a line,
# a string or a comment.
IN_C = re.compile(r"(?:#define \w+(?:\([\w, ]+\))? [\w ()|&<>=!,+*?:-]+)", re.ASCII)
SLOW = ("pid", "cgroup", "container", "netns", "ready_file", "btf")  # they query the machine


def arguments_of(pairs: list[tuple[str, str | None]]) -> list[str]:
    """Return the arguments of a command line."""
    return [word for flag, value in pairs for word in (flag, value) if word]


def command(line: tuple[str, list[tuple[str, str | None]]]) -> None:
    """A command line is rejected with a printable message, or parsed."""
    name, pairs = line
    try:
        context = COMMANDS[name].make_context(name, arguments_of(pairs), resilient_parsing=False)
        settings = settings_of(ALIASES[name].tool, context.params, ALIASES[name])
        parse_forced(settings.get("probe"))
        harmless(ALIASES[name].tool, settings)
    except (click.exceptions.Exit, click.ClickException):
        pass
    except NetbpfError as error:
        assert error.exit_code == 2 and error.message and "\n" not in escape(error.message)


def harmless(tool: Tool, settings: dict[str, Any]) -> None:
    """Settings become numbers in C."""
    quick = {name: value for name, value in settings.items() if name not in SLOW}
    lines = filter_defines(quick)
    for option in tool.options:
        if option.parse is options.devices and quick.get(option.name):
            # These are names of existing devices.
            raw = (name.encode(errors="surrogateescape")[:15] for name in quick[option.name])
            quick[option.name] = [name.decode(errors="surrogateescape") for name in raw]
    if tool.constants and not settings.get("reason"):
        lines += [f"#define {name} {value}" for name, value in tool.constants(quick).items()]
    for text in lines:
        assert IN_C.fullmatch(text), text


GLOBS = mutated([b"nginx*", b"[a-z]?b", b"*", b"[!a]x*", b"a]b", b"[]a]", b"**??"])
NAMES = st.binary(max_size=12).map(lambda raw: raw.replace(b"\0", b"").decode("latin-1"))


def glob(case: tuple[bytes, str]) -> None:
    """The automaton matches what fnmatch matches."""
    pattern = options.comm_glob(case[0].replace(b"\0", b"").decode(errors="surrogateescape"))
    automaton = Automaton(pattern)
    if understood(pattern):
        for name in (case[1], pattern, pattern[:-1]):
            if "\0" not in name and len(name) < 16 and all(ord(c) < 256 for c in name):
                assert automaton.match(name) == fnmatch.fnmatchcase(name, pattern), name


PORTS = st.lists(st.tuples(st.integers(0, 65536), st.none() | st.integers(0, 65536)), max_size=8)


def ports(rows: list[tuple[int, int | None]]) -> None:
    """A list of ports matches its ports, or is rejected with a reason."""
    text = ",".join(f"{low}" if high is None else f"{low}-{high}" for low, high in rows)
    pairs = [(low, low if high is None else high) for low, high in rows]
    right = bool(rows) and all(1 <= low <= high <= 65535 for low, high in pairs)
    try:
        found = options.ports(text)
    except ValueError:
        assert not right
        return
    assert right and found == pairs
    (line,) = filter_defines({"lport": found})
    for port in {p + d for pair in pairs for p in pair for d in (-1, 0, 1)}:
        inside = any(low <= port <= high for low, high in pairs)
        assert bool(evaluate(body_of(line), x=port)) == inside


def block(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    found = options.network(text)
    assert found == ipaddress.ip_network(text)
    (line,) = filter_defines({"laddr": found})
    assert IN_C.fullmatch(line), line


BLOCKS = [b"10.0.0.0/8", b"::ffff:0:0/96", b"2001:db8::/32", b"1.2.3.4", b"fe80::1%1", b"0.0.0.0/0"]

ID = b"0123456789abcdef" * 4
PATHS = [
    b"/system.slice/docker-" + ID + b".scope",
    b"/kubepods/pod1/" + ID,
    b"/libpod-" + ID + b".scope",
    b"/cri-containerd:" + ID,
    b"/crio-conmon-" + ID + b".scope",
    b"/user.slice/session-1.scope",
]


def container(data: bytes) -> None:
    found = container_of(data.decode(errors="surrogateescape"))
    assert not found or (re.fullmatch(r"[0-9a-f]{64}", found) and found.encode() in data)


TREE = directory()
for path in PATHS:
    (TREE / path.decode()[1:]).mkdir(parents=True, exist_ok=True)
    (TREE / path.decode()[1:] / "cgroup.procs").touch()


def group(data: bytes) -> None:
    """Options name an existing cgroup or container, or are rejected."""
    cgroups.cgroup_root, before = lambda: str(TREE), cgroups.cgroup_root  # type: ignore[assignment]
    word = data.decode(errors="surrogateescape")
    try:
        with suppress(UsageError):
            assert cgroup_id(word) > 0
        with suppress(UsageError):
            assert container_cgroups(word)
    finally:
        cgroups.cgroup_root = before


GROUPS = [
    b"/system.slice",
    b"0123456789ab",
    b"user.slice/session-1.scope",
    b"../..",
    ID,
    b"a" * 5000,
]

PATTERNS = st.lists(
    st.sampled_from([*COVERS["function"], *COVERS["struct"], "a?b", "[!x]*"]), max_size=6
)
FUNCTIONS = mutated([b"tcp_v4_rcv", b"__sk_receive_skb", b"cgroup_exit_x", b"axb", b"sock1_x", b""])


def covered(case: tuple[list[str], bytes]) -> None:
    """A recording covers what the shell's patterns match."""
    patterns, name = case[0], case[1].decode(errors="surrogateescape")
    assert covers(patterns, name) == any(fnmatch.fnmatchcase(name, one) for one in patterns)


TARGETS = (
    Target("options", LINES, command),
    Target("comm-glob", st.tuples(GLOBS, NAMES), glob, (ValueError,)),
    Target("ports", PORTS, ports),
    Target("address-block", mutated(BLOCKS), block, (ValueError,)),
    Target("container-name", mutated(PATHS), container),
    Target("cgroup-options", mutated(GROUPS), group),
    Target("covers", st.tuples(PATTERNS, FUNCTIONS), covered),
)
