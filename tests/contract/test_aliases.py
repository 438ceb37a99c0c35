"""Rule: an alias is one declaration; command lines of the original work or name the right one."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import click
import pytest

import netbpf.aliases
from netbpf.cli import cli, settings_of
from netbpf.declare.aliases import (
    Alias,
    Mapped,
    Positional,
    Sets,
    Shows,
    all_aliases,
    chosen_columns,
    extension_of,
    find_alias,
)
from netbpf.declare.keys import parse_keys
from netbpf.declare.record import text_columns
from netbpf.declare.tool import all_tools, find_tool, tool_names
from netbpf.docs.alias_manual import alias_columns, alias_page, alias_text, shown_record
from netbpf.errors import UsageError

COLUMNS = 80
ALIASES = all_aliases()
EXTENDED = [alias for tool in all_tools() if (alias := extension_of(tool)).flags]
by_alias = pytest.mark.parametrize("alias", ALIASES, ids=lambda alias: alias.name)
by_declaration = pytest.mark.parametrize(
    "alias", [*ALIASES, *EXTENDED], ids=lambda alias: alias.name
)

# The command lines of the manuals, examples and usage texts of bcc and libbpf-tools (the flags that
# select by a BPF map apart, which are below), and what netbpf makes of each: settings, or the
# beginning of the usage error and a part of the hint.
Settings = dict[str, Any]
_CONNECTIONS = find_tool("soconnect").event.columns
_ROUND_TRIPS = find_tool("tcprtt").keyed.parts
_USES = find_tool("nettop").keyed.parts
ACCEPTED: dict[str, Settings] = {
    "tcpconnect": {"proto": None, "summary": False},
    "tcpconnect -t": {"timestamp": True},
    "tcpconnect -p 181": {"pid": [181]},
    "tcpconnect -P 80": {"rport": [(80, 80)], "lport": None},
    "tcpconnect -P 80,81": {"rport": [(80, 80), (81, 81)]},
    "tcpconnect --port 80": {"rport": [(80, 80)]},
    "tcpconnect -4": {"ipv4": True},
    "tcpconnect -6": {"ipv6": True},
    "tcpconnect -U": {"uid": None},
    "tcpconnect --print-uid": {"uid": None},
    "tcpconnect -u 1000": {"uid": "1000"},
    "tcpconnect -Uu 1000": {"uid": "1000"},
    "tcpconnect -c": {"by": parse_keys("laddr,raddr,rport", _CONNECTIONS)},
    "tcpconnect --count": {"by": parse_keys("laddr,raddr,rport", _CONNECTIONS)},
    "tcpconnect -c --by comm": {"by": parse_keys("comm", _CONNECTIONS)},
    "tcpconnect -v": {"verbose": True},
    "tcpaccept": {"proto": ["tcp"]},
    "tcpaccept -t": {"timestamp": True},
    "tcpaccept -T": {"time": True},
    "tcpaccept -P 80,81": {"lport": [(80, 80), (81, 81)], "rport": None},
    "tcpaccept --port 80": {"lport": [(80, 80)]},
    "tcpaccept -p 181": {"pid": [181]},
    "tcpaccept -4": {"ipv4": True},
    "tcpaccept -6": {"ipv6": True},
    "tcpconnlat": {"min_ms": None},
    "tcpconnlat 1": {"min_ms": 1.0},
    "tcpconnlat 0.1": {"min_ms": 0.1},
    "tcpconnlat 10": {"min_ms": 10.0},
    "tcpconnlat -t": {"timestamp": True},
    "tcpconnlat -p 181": {"pid": [181]},
    "tcpconnlat -4": {"ipv4": True},
    "tcpconnlat -6": {"ipv6": True},
    "tcpconnlat -v": {"verbose": True},
    "tcpconnlat -p 181 -t 10": {"pid": [181], "timestamp": True, "min_ms": 10.0},
    "xdpdrop": {"reason": "XDP"},
    "tcpdrop": {"events": True, "proto": ["tcp"], "stack": True, "time": "seconds"},
    "tcpdrop -4": {"ipv4": True},
    "tcpdrop -6": {"ipv6": True},
    "tcpdrop --netns-id 4026531840": {"netns": "4026531840"},
    "tcpdrop --pid-netns 181": {"netns": "181"},
    "tcplife": {"output": "text"},
    "tcplife -t": {"timestamp": True},
    "tcplife -w": {"wide": True},
    "tcplife -tw": {"wide": True, "timestamp": True},
    "tcplife -stT": {"output": "csv", "timestamp": True, "time": True},
    "tcplife --csv": {"output": "csv"},
    "tcplife -p 181": {"pid": [181]},
    "tcplife -p 1215 -4": {"pid": [1215], "ipv4": True},
    "tcplife -L 80": {"lport": [(80, 80)]},
    "tcplife -L 80,81": {"lport": [(80, 80), (81, 81)]},
    "tcplife -L 22,80": {"lport": [(22, 22), (80, 80)]},
    "tcplife --localport 80": {"lport": [(80, 80)]},
    "tcplife -D 80": {"rport": [(80, 80)]},
    "tcplife --remoteport 80": {"rport": [(80, 80)]},
    "tcplife -4": {"ipv4": True},
    "tcplife -6": {"ipv6": True},
    "tcpretrans": {"flows": False},
    "tcpretrans -s": {"sequence": True},
    "tcpretrans --sequence": {"sequence": True},
    "tcpretrans -l": {"loss": True},
    "tcpretrans --lossprobe": {"loss": True},
    "tcpretrans -c": {"flows": True},
    "tcpretrans --count": {"flows": True},
    "tcpretrans -4": {"ipv4": True},
    "tcpretrans -6": {"ipv6": True},
    "tcprtt": {"interval": None, "of": "srtt", "by": None, "ms": False},
    "tcprtt -i 1 -d 10": {"interval": 1.0, "duration": 10.0},
    "tcprtt --interval 5": {"interval": 5.0},
    "tcprtt -m -T": {"ms": True, "time": True},
    "tcprtt --milliseconds": {"ms": True},
    "tcprtt --millisecond": {"ms": True},
    "tcprtt --lport 80": {"lport": [(80, 80)]},
    "tcprtt -P 80": {"rport": [(80, 80)], "lport": None},
    "tcprtt -a 192.168.122.200": {"laddr": ip_network("192.168.122.200"), "raddr": None},
    "tcprtt -A 192.168.122.100": {"raddr": ip_network("192.168.122.100"), "laddr": None},
    "tcprtt -b": {"by": parse_keys("laddr", _ROUND_TRIPS)},
    "tcprtt --byladdr": {"by": parse_keys("laddr", _ROUND_TRIPS)},
    "tcprtt -B": {"by": parse_keys("raddr", _ROUND_TRIPS)},
    "tcprtt -B --by raddr/24": {"by": parse_keys("raddr/24", _ROUND_TRIPS)},
    "tcprtt -4": {"ipv4": True},
    "tcprtt -6": {"ipv6": True},
    "gethostlatency": {"pid": None},
    "gethostlatency -p 181": {"pid": [181]},
    "tcpstates": {"output": "text"},
    "tcpstates -t": {"timestamp": True},
    "tcpstates -T": {"time": True},
    "tcpstates -w": {"wide": True},
    "tcpstates -tw": {"wide": True, "timestamp": True},
    "tcpstates -stT": {"output": "csv", "timestamp": True, "time": True},
    "tcpstates --csv": {"output": "csv"},
    "tcpstates -L 80,81": {"lport": [(80, 80), (81, 81)]},
    "tcpstates --localport 80": {"lport": [(80, 80)]},
    "tcpstates -D 80": {"rport": [(80, 80)]},
    "tcpstates --remoteport 80": {"rport": [(80, 80)]},
    "tcpstates -4": {"ipv4": True},
    "tcpstates -6": {"ipv6": True},
    "tcpsynbl": {"ipv4": False},
    "tcpsynbl 1 10": {"interval": 1.0, "count": 10},
    "tcpsynbl -T 1": {"time": True, "interval": 1.0},
    "tcpsynbl -4": {"ipv4": True},
    "tcpsynbl -6": {"ipv6": True},
    "tcptop": {"interval": 1, "count": None, "by": None},
    "tcptop -C": {"noclear": True},
    "tcptop -CS": {"noclear": True, "nosummary": True},
    "tcptop 1 10": {"interval": 1.0, "count": 10},
    "tcptop -p 181": {"pid": [181]},
    "tcptop -C 5": {"interval": 5.0},
    "tcptop -4": {"ipv4": True},
    "tcptop -6": {"ipv6": True},
    "tcptop -r 20": {"top": 20},
    "tcptop --rows 20": {"top": 20},
    "tcptop -c /sys/fs/cgroup/unified": {"cgroup": "/sys/fs/cgroup/unified"},
    "tcpsubnet": {"by": parse_keys("raddr/24", _CONNECTIONS), "interval": 1},
    "tcpsubnet -v": {"verbose": True},
    "tcpsubnet -i 5": {"interval": 5},
    "solisten": {"pid": None, "errors": False},
    "solisten -t": {"timestamp": True},
    "solisten -p 1234": {"pid": [1234]},
    "solisten --netns 4242": {"netns": "4242"},
    "tcptracer": {"step": ["connect", "accept", "close"], "netns": None},
    "tcptracer -t": {"timestamp": True},
    "tcptracer -p 181": {"pid": [181]},
    "tcptracer -N 4026531969": {"netns": "4026531969"},
    "tcptracer --netns 4026531969": {"netns": "4026531969"},
    "tcptracer -4": {"ipv4": True},
    "tcptracer -6": {"ipv6": True},
    "tcptracer -U": {"uid": None},
    "tcptracer --print-uid": {"uid": None},
    "tcptracer -u 1000": {"uid": "1000"},
    "tcptracer --verbose": {"verbose": True},
    "netqtop": {"by": parse_keys("dev,queue", _USES), "interval": 1, "interface": None},
    "netqtop -n lo": {"interface": ["lo"]},
    "netqtop --name lo -i 2": {"interface": ["lo"], "interval": 2.0},
    "netqtop --interval 2": {"interval": 2.0, "interface": None},
    "nethogs": {"by": parse_keys("dev,pid,uid,comm", _USES), "interval": 1, "interface": None},
    "nethogs lo,eth0": {"interface": ["lo", "eth0"], "interval": 1},
    "nethogs -d 5 lo": {"interface": ["lo"], "interval": 5.0, "duration": None},
    "nethogs -c 3": {"count": 3},
    "nethogs -P 181": {"pid": [181]},
    "nethogs -s": {"sort": "tx_bytes"},
    "tcpcong": {"summary": True, "interval": None},
    "tcpcong 1 10": {"summary": True, "interval": 1.0, "count": 10},
    "tcpcong -T 1 3": {"time": True, "interval": 1.0, "count": 3},
    "tcpcong -L 3000-3006 1": {"lport": [(3000, 3006)], "interval": 1.0},
    "tcpcong --localport 3000": {"lport": [(3000, 3000)]},
    "tcpcong -R 5000-5005 1": {"rport": [(5000, 5005)], "interval": 1.0},
    "tcpcong --remoteport 5000": {"rport": [(5000, 5000)]},
    "tcpcong -j": {"output": "json"},
    "udpconnect": {"proto": ["udp"], "time": "seconds"},
    "tcpconnect-tp": {"proto": None, "time": "seconds"},
    "soconnlat": {"histogram": "latency_us", "by": parse_keys("comm,stack", _CONNECTIONS)},
    "sofamily": {"op": ["connect", "accept"]},
    "soprotocol": {"op": ["connect", "accept"]},
    "socketio": {"op": ["send", "recv"]},
    "tcpaccept-tp": {"proto": ["tcp"], "time": "seconds"},
}
REFUSED: dict[str, tuple[str, str]] = {
    "tcpconnect -L": ("tcpconnect: -L needs an argument; in bcc", "-w shows the local port"),
    "tcpconnect --lport": ("tcpconnect: -L needs an argument; in bcc", "-L LIST"),
    "tcpconnect -L -p 181": ("tcpconnect: -L needs an argument; in bcc", "-L LIST"),
    "tcpconnect -tL": ("tcpconnect: -L needs an argument; in bcc", "-L LIST"),
    "tcpconnect -d": ("tcpconnect: -d needs an argument; in bcc", "gethostlatency"),
    "tcpconnect -d -t": ("tcpconnect: -d needs an argument; in bcc", "-d SECONDS"),
    "tcpconnect --dns": ("tcpconnect has no --dns, which in bcc", "gethostlatency"),
    "tcpconnect --cgroupmap /sys/fs/bpf/test01": ("tcpconnect has no -C, --cgroupmap", "--cgroup "),
    "tcpconnect --mntnsmap /sys/fs/bpf/mnt_ns_set": ("tcpconnect has no -M", "--container ID"),
    "tcpconnect -C mappath": ("tcpconnect has no -C, --cgroupmap", "--cgroup PATH"),
    "tcpconnect -M mappath": ("tcpconnect has no -M, --mntnsmap", "--container ID"),
    "tcpconnect -cs": ("tcpconnect has no -s, --source-port", "--by laddr,lport"),
    "tcpconnect --ebpf": ("tcpconnect has no --ebpf", "'netbpf schema --c soconnect'"),
    "tcpaccept --cgroupmap mappath": ("tcpaccept has no --cgroupmap", "--cgroup PATH"),
    "tcpaccept --mntnsmap mappath": ("tcpaccept has no --mntnsmap", "--container ID"),
    "tcpconnlat -L": ("tcpconnlat has no -L, --lport", "-w shows the local port"),
    "tcpconnlat -L 10": ("tcpconnlat has no -L, --lport", "-w shows the local port"),
    "tcpconnlat --lport 10": ("tcpconnlat has no -L, --lport", "'netbpf soconnect -L LIST'"),
    "solisten -n 4242": ("solisten has no -n, which in bcc selects a network", "--netns does"),
    "solisten --show-netns": ("solisten has no --show-netns, which in bcc", "-w shows it"),
    "tcptracer -v": ("tcptracer has no -v, which in bcc", "-w shows the network namespace"),
    "tcptracer -tv": ("tcptracer has no -v, which in bcc", "--verbose the probes"),
    "tcptracer --cgroupmap /sys/fs/bpf/test01": ("tcptracer has no -C, --cgroupmap", "--cgroup "),
    "tcptracer --mntnsmap mappath": ("tcptracer has no -M, --mntnsmap", "--container ID"),
    "tcptracer -C mappath": ("tcptracer has no -C, --cgroupmap", "--cgroup PATH"),
    "tcptracer -M mappath": ("tcptracer has no -M, --mntnsmap", "--container ID"),
    "tcpstates -Y": ("tcpstates has no -Y, --journal", "systemd-cat"),
    "tcpstates --journal": ("tcpstates has no -Y, --journal", "systemd-cat"),
    "tcprtt -p 80": ("tcprtt has no -p, which in bcc selects a local port", "-L LIST"),
    "tcprtt -i 1 -p 80": ("tcprtt has no -p, which in bcc selects a local port", "--pid LIST"),
    "tcprtt -e": ("tcprtt has no -e, --extension, which in bcc also shows", "always shown"),
    "tcprtt -i 1 -e": ("tcprtt has no -e, --extension", "always shown"),
    "tcprtt -D": ("tcprtt: -D needs an argument; in bcc it prints", "'netbpf schema --c tcprtt'"),
    "tcprtt --debug": ("tcprtt has no --debug, which in bcc prints", "'netbpf schema --c tcprtt'"),
    "tcptop --cgroupmap mappath": ("tcptop has no --cgroupmap", "--cgroup PATH"),
    "tcptop --mntnsmap mappath": ("tcptop has no --mntnsmap", "--container ID"),
    "tcptop -s sent": ("tcptop has no -s, which in bcc", "--sort bytes, tx_bytes"),
    "tcpsubnet -f k": ("tcpsubnet has no -f, --format", "--json"),
    "tcpsubnet --format K": ("tcpsubnet has no -f, --format", "-o csv"),
    "tcpsubnet -J": ("tcpsubnet has no -J", "--json"),
    "tcpsubnet 0.0.0.0/0": ("INTERVAL: '0.0.0.0/0' is not", "--raddr 10.1.2.0/24 selects"),
    "tcpsubnet 192.30.253.110/27,0.0.0.0/0": ("INTERVAL: ", "'netbpf tcptop --by raddr/16'"),
    "tcpcong -uT 1": ("tcpcong has no -u, --microseconds, which in bcc", "two decimals"),
    "tcpcong -T -u -L 30000-40000 1 3": ("tcpcong has no -u", "--json and -o csv"),
    "tcpcong -d": ("tcpcong: -d needs an argument; in bcc it shows histograms", "-d SECONDS"),
    "tcpcong --dist": ("tcpcong has no --dist, which in bcc", "'netbpf tcpwin'"),
    "netqtop -t": ("netqtop has no -t, --throughput, which in bcc", "leave it out"),
    "nethogs -p": ("nethogs: -p needs an argument; in nethogs it listens", "-p LIST"),
    "nethogs -t": ("nethogs has no -t, which in nethogs prints", "leave it out"),
    "nethogs -v 3": ("nethogs has no -v, which in nethogs selects", "--json"),
    "nethogs -a": ("nethogs has no -a, which in nethogs shows all", "leave it out"),
    "nethogs -C": ("nethogs has no -C", "all protocols"),
    "nethogs -l": ("nethogs has no -l", "'ps -fp PID'"),
    "nethogs -b": ("nethogs has no -b", "--verbose"),
    "nethogs -f tcp": ("nethogs has no -f", "--raddr"),
    "gethostlatency -l /lib/libc.so.6": ("gethostlatency has no -l, --libc", "-p and --comm"),
}


def command_of(line: str) -> tuple[str, list[str], Any]:
    name, *words = shlex.split(line)
    command = cli.get_command(click.Context(cli), name)
    assert command, name
    return name, words, command


def settings(line: str) -> Settings:
    """Return the settings of a command line."""
    name, words, command = command_of(line)
    context = command.make_context(name, words)
    return settings_of(command.alias.tool, context.params, command.alias)


@pytest.mark.parametrize("line", ACCEPTED)
def test_command_lines_of_the_originals_mean_the_same(line: str) -> None:
    found = settings(line)
    assert {name: found.get(name) for name in ACCEPTED[line]} == ACCEPTED[line]


@pytest.mark.parametrize("line", REFUSED)
def test_flags_that_mean_something_else_name_the_right_one(line: str) -> None:
    message, hint = REFUSED[line]
    with pytest.raises(UsageError) as caught:
        settings(line)
    assert caught.value.message.startswith(message)
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", sorted({line.split()[0] for line in ACCEPTED}))
def test_help_of_the_originals_is_help_here(name: str, capsys: Any) -> None:
    _, _, command = command_of(name)
    with pytest.raises(click.exceptions.Exit):
        command.make_context(name, ["-h"])
    assert name in capsys.readouterr().out


@by_declaration
def test_every_flag_of_an_original_is_in_the_tables_above(alias: Alias) -> None:
    words = [word for line in (*ACCEPTED, *REFUSED) if line.split()[0] == alias.name
             for word in line.split()[1:]]  # fmt: skip
    given = {letter for word in words if word[0] == "-" != word[1:2] for letter in word[1:]}
    for flag in alias.flags:
        known = [f for f in flag.flags if f in words or f[1:] in given]
        assert known or flag.flags == ("--ebpf",), f"{alias.name} {flag.flags}: which line has it?"


@by_alias
def test_alias_is_the_command_that_it_says(alias: Alias) -> None:
    words = alias.same_as.replace("[", "").replace("]", "").split()[1:]
    option = alias.argument[1]
    own = settings(f"{alias.name} 5" if option else alias.name)
    same = settings(" ".join(words).replace(alias.argument[0] or "-", "5" if option else "-"))
    shown = ("shown", "time")
    assert {k: v for k, v in own.items() if k not in shown} == {
        k: v for k, v in same.items() if k not in shown
    }


@by_declaration
def test_names_and_flags_are_unambiguous(alias: Alias) -> None:
    assert alias.name not in tool_names() or alias.tool_name == alias.name
    assert alias.name not in cli.commands
    assert alias.suite
    options = {option.name: option for option in alias.tool.options}
    flags = [flag for option in options.values() for flag in alias.spellings(option)]
    flags += [flag for switch in alias.switches() for flag in switch.flags]
    flags += [flag for one in alias.positionals() for flag in one.flags]
    flags += [flag for refused in alias.refused() for flag in alias.alone(refused)]
    assert len(set(flags)) == len(flags), "one flag with two meanings: refuse it"
    for flag in alias.flags:
        if isinstance(flag, Mapped):
            assert flag.option in options
            assert not set(flag.flags) & set(options[flag.option].flags), "it has that flag"
        elif isinstance(flag, Shows):
            assert alias.columns and flag.column in {c.name for c in shown_record(alias)}
        elif isinstance(flag, Sets):
            assert options[flag.option].value(flag.value)
            assert flag.columns or alias.tool.histogram, "rows need columns"
        elif isinstance(flag, Positional):
            assert alias.tool.interval and flag.argument in ("interval", "count")
    for refused in alias.refused():
        colliding = set(refused.flags) - set(alias.alone(refused))
        for option in options.values():
            if colliding & set(option.flags):
                assert option.parse, f"{option.flags}: a switch cannot be refused by its argument"


def test_aliases_have_different_names():
    names = [alias.name for alias in ALIASES]
    assert len(set(names)) == len(names)


@by_alias
def test_columns_are_those_of_the_tool_and_fit(alias: Alias) -> None:
    assert alias.summary and not alias.summary.endswith(".")
    shown = alias_columns(alias)
    assert [column.name for column in shown] == [one.name for one in alias.columns]
    width = sum(column.width + 1 for column in shown[:-1]) + sum(len(c.title) for c in shown[-1:])
    assert width + 9 * bool(alias.time) <= COLUMNS


@by_alias
def test_wide_output_has_every_column_of_the_tool_once(alias: Alias) -> None:
    columns = shown_record(alias)
    usual = list(text_columns(columns, wide=True))
    names = [c.name for c in chosen_columns(columns, alias.columns, usual, wide=True)]
    assert names[: len(alias.columns)] == [one.name for one in alias.columns]
    assert len(set(names)) == len(names) and set(names) >= {column.name for column in usual}


@by_alias
def test_help_begins_with_the_command_and_names_every_flag(alias: Alias) -> None:
    _, _, command = command_of(alias.name)
    text = command.get_help(click.Context(command))
    assert text == alias_text(alias)
    assert text.startswith(f"same as: netbpf {alias.tool_name}")
    assert [line for line in text.splitlines() if len(line) > COLUMNS] == []
    for flag in (flag for one in alias.flags for flag in one.flags):
        assert flag in text
    for column in alias_columns(alias):
        assert f"\n  {column.title} " in text


@pytest.mark.skipif(not shutil.which("groff"), reason="needs groff: apt install groff")
@by_alias
def test_man_page_is_typeset_without_a_warning(alias: Alias) -> None:
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8"], input=alias_page(alias), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Same as: netbpf {alias.tool_name}" in " ".join(done.stdout.split())


@pytest.mark.parametrize("alias", EXTENDED, ids=lambda alias: alias.name)
def test_manual_of_a_tool_has_the_flags_of_its_original(alias: Alias) -> None:
    _, _, command = command_of(alias.name)
    text = command.get_help(click.Context(command))
    assert not text.startswith("same as")
    for flag in (flag for one in alias.flags for flag in one.flags):
        assert flag in text.split(f"Flags of {alias.suite}:")[1].split("\nFIELDS\n")[0]


def test_list_and_completion_have_every_alias(capsys: Any) -> None:
    with contextlib.suppress(SystemExit):
        cli.main(["list"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    commands = cli.list_commands(click.Context(cli))
    for alias in ALIASES:
        (line,) = [line for line in lines if line.split()[0] == alias.name]
        assert line.endswith(f"same as: {alias.same_as}")
        assert alias.name in commands


NEW = '''"""One more suite."""

from netbpf.declare.aliases import Alias, Mapped

SUITE = "another suite"
ALIASES = (
    Alias("sessions", "tcplife", "finished sessions", "--open -4",
          columns=("raddr", "pid"), flags=(Mapped("--to", option="rport"),)),
)
'''


def test_a_new_alias_is_one_declaration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert find_alias("sessions") is None
    (tmp_path / "other.py").write_text(NEW)
    monkeypatch.setattr(netbpf.aliases, "__path__", [*netbpf.aliases.__path__, str(tmp_path)])
    found = settings("sessions --to 443 -d 1")
    assert (found["open"], found["ipv4"], found["rport"]) == (True, True, [(443, 443)])
    assert [one.name for one in found["shown"]] == ["raddr", "pid"]
    cli.main(["list"], standalone_mode=False)
    assert "same as: netbpf tcplife --open -4" in capsys.readouterr().out
