"""Aliases: which columns and settings a command line under another name has."""

from __future__ import annotations

import io

import pytest

from netbpf import cli
from netbpf.declare.aliases import (
    Alias,
    Mapped,
    Refused,
    Sets,
    Shown,
    Shows,
    chosen_columns,
    find_alias,
    resolve,
)
from netbpf.declare.columns import Duration
from netbpf.declare.record import text_columns
from netbpf.declare.tool import find_tool
from netbpf.errors import UsageError
from netbpf.output.writers import make_writer
from netbpf.run import session
from tests.unit.test_writers import FixedClock

SESSIONS = find_tool("tcplife").event.columns
EXAMPLE = Alias(
    "sessions",
    "tcplife",
    args="--open",
    columns=("pid", Shown("raddr", "DADDR", 20), Shown("duration_us", "TIME(ms)", like=Duration)),
    time="seconds",
    flags=(
        Mapped("--to", option="rport"),
        Shows("-U", column="uid"),
        Sets("-c", "--count", option="by", value="raddr", columns=("raddr", "sessions")),
        Refused("-L", what="shows the port", hint="-w"),
        Refused("-x", "--extra", what="does more", hint="nothing"),
        Refused("-D", what="is a switch", hint="--to", always=True),
    ),
)
EXAMPLE.suite = "a book"


def titles(shown: object, wide: bool = False) -> list[str]:
    usual = list(text_columns(SESSIONS, wide))
    return [column.title for column in chosen_columns(SESSIONS, shown, usual, wide)]


def test_columns_are_in_the_order_of_the_original_under_its_headings():
    assert titles(EXAMPLE.columns) == ["PID", "DADDR", "TIME(ms)"]
    assert titles(()) == ["PID", "COMM", "LADDR", "LPORT", "RADDR", "RPORT", "TX_KB", "RX_KB", "MS"]


def test_wide_has_the_other_columns_behind_them():
    found = titles(EXAMPLE.columns, wide=True)
    assert found[:3] == ["PID", "DADDR", "TIME(ms)"]
    assert "CLOSE" in found and "MS" not in found and found.count("PID") == 1


def test_records_without_these_columns_keep_their_own():
    assert titles([Shown("pid"), Shown("no_such_column")]) == titles(())


def test_columns_of_the_tool_do_not_change():
    raddr = next(column for column in SESSIONS if column.name == "raddr")
    before = (raddr.title, raddr.width)
    shown = Shown("raddr", "DADDR", 20).column(raddr)
    assert (shown.title, shown.width, shown.name) == ("DADDR", 20, "raddr")
    assert (raddr.title, raddr.width) == before


def test_a_heading_never_exceeds_its_column():
    (port,) = [column for column in SESSIONS if column.name == "rport"]
    assert Shown("rport", "DESTINATION").column(port).width == len("DESTINATION")


@pytest.mark.parametrize(
    ("settings", "arguments", "shown", "time"),
    [
        ({}, {}, ["pid", "raddr", "duration_us"], "seconds"),
        ({"time": True}, {}, ["pid", "raddr", "duration_us"], True),
        ({"timestamp": True}, {}, ["pid", "raddr", "duration_us"], None),
        ({}, {"shows_uid": True}, ["uid", "pid", "raddr", "duration_us"], "seconds"),
        ({"by": ("raddr",)}, {}, None, "seconds"),
    ],
)
def test_settings_are_completed(settings, arguments, shown, time):
    found = EXAMPLE.complete(dict(settings), arguments)
    assert found.get("time") == time
    assert [one.name for one in found["shown"]] == shown if shown else "shown" not in found


def test_flags_of_the_original_become_spellings_or_are_refused():
    options = {option.name: option for option in EXAMPLE.tool.options}
    assert EXAMPLE.spellings(options["rport"]) == ("--rport", "--to")
    assert EXAMPLE.spellings(options["lport"]) == ("-L", "--lport")
    assert EXAMPLE.refused_without_argument(options["lport"]).hint == "-w"
    assert EXAMPLE.refused_without_argument(options["rport"]) is None
    message = "sessions has no -x, --extra, which in a book does more"
    assert EXAMPLE.refusal(EXAMPLE.refused()[1], False) == message
    message = "sessions: -L needs an argument; in a book it shows the port"
    assert EXAMPLE.refusal(EXAMPLE.refused()[0], True) == message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-L"], "sessions: -L needs an argument"),
        (["-L", "-w"], "sessions: -L needs an argument"),
        (["-wL"], "sessions: -L needs an argument"),
        (["-x"], "sessions has no -x, --extra"),
        (["-x", "1"], "sessions has no -x, --extra"),
        (["--extra=1"], "sessions has no -x, --extra"),
        (["-D", "80"], "sessions has no -D"),
    ],
    ids=" ".join,
)
def test_refused_flags_are_usage_errors(words, message):
    with pytest.raises(UsageError) as caught:
        cli.alias_command(EXAMPLE).make_context("sessions", words)
    assert caught.value.message.startswith(message)


def test_arguments_before_those_of_the_user_are_the_aliases_own():
    context = cli.alias_command(EXAMPLE).make_context("sessions", ["--to", "443", "-L", "80"])
    found = cli.settings_of(EXAMPLE.tool, context.params, EXAMPLE)
    assert (found["open"], found["rport"], found["lport"]) == (True, [(443, 443)], [(80, 80)])


@pytest.mark.parametrize(
    ("words", "keys", "shown"),
    [
        (["-c"], ["raddr"], ["raddr", "sessions"]),
        (["--count", "--by", "comm"], ["comm"], None),
        ([], None, ["pid", "raddr", "duration_us"]),
    ],
    ids=str,
)
def test_a_switch_of_the_original_can_set_an_option(words, keys, shown):
    context = cli.alias_command(EXAMPLE).make_context("sessions", words)
    found = cli.settings_of(EXAMPLE.tool, context.params, EXAMPLE)
    assert (found["by"] and [key.name for key in found["by"]]) == keys
    assert ("shown" in found and [one.name for one in found["shown"]]) == (shown or False)


def test_the_tool_runs_under_its_own_name(monkeypatch):
    asked: dict = {}
    monkeypatch.setattr(
        session, "run", lambda tool, settings: asked.update(settings, tool=tool.name) or 0
    )
    with pytest.raises(SystemExit):
        cli.main(["tcpconnlat", "10", "-p", "1"])
    assert (asked["tool"], asked["min_ms"], asked["pid"]) == ("soconnect", 10.0, [1])
    assert asked.get("interval") is None


def test_errors_name_the_alias(capsys):
    for words, hint in (
        (["tcpaccept", "--absent"], "try 'netbpf tcpaccept --help'"),
        (["tcpaccept", "x"], "try 'netbpf tcpaccept --help'"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 2
        assert capsys.readouterr().err.splitlines()[1] == f"hint: {hint}"


def test_an_alias_is_resolved_to_its_tool():
    assert resolve("tcpdrop").name == resolve("skbdrop").name == "skbdrop"
    assert find_alias("skbdrop") is None
    with pytest.raises(UsageError, match="no-such"):
        resolve("no-such")


def test_text_has_the_columns_and_json_all_fields(monkeypatch):
    values = {column.name: None for column in SESSIONS}
    values.update(pid=7, raddr="192.0.2.1", duration_us=1500)
    texts = {}
    for output in ("text", "json", "csv"):
        for name, settings in (("alias", {"shown": EXAMPLE.columns}), ("tool", {})):
            out = io.StringIO()
            writer = make_writer(output, "tcplife", SESSIONS, FixedClock(), out, settings)
            writer.begin()
            writer.event(0, values)
            texts[output, name] = out.getvalue()
    heading, line = texts["text", "alias"].splitlines()
    assert heading.split() == ["PID", "DADDR", "TIME(ms)"]
    assert line.split() == ["7", "192.0.2.1", "1.50"]
    assert texts["json", "alias"] == texts["json", "tool"]
    assert texts["csv", "alias"] == texts["csv", "tool"]
