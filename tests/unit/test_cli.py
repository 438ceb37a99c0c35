"""The command line: options become settings, errors become one line, a hint and an exit code."""

from __future__ import annotations

import io
import sys

import pytest

from netbpf import cli
from netbpf.cli import main, settings_of
from netbpf.declare.tool import find_tool
from netbpf.errors import NetbpfError, PrivilegeError, UsageError
from netbpf.run import session


def run(monkeypatch, *words: str, error: Exception | None = None) -> tuple[object, dict]:
    """Run `netbpf` with a runner that only records its settings."""
    asked: dict = {}

    def fake(tool, settings):
        asked.update(settings, tool=tool.name)
        if error:
            raise error
        return 0

    monkeypatch.setattr(session, "run", fake)
    with pytest.raises(SystemExit) as ended:
        main(words)
    return ended.value.code, asked


def test_arguments_become_settings(monkeypatch):
    code, asked = run(monkeypatch, "tcplife", "-p", "1,2", "-L", "80-90", "-d", "1.5", "-w")
    assert code in (0, None)
    assert asked["tool"] == "tcplife"
    assert (asked["pid"], asked["lport"], asked["duration"]) == ([1, 2], [(80, 90)], 1.5)
    assert (asked["wide"], asked["time"], asked["output"]) == (True, False, "text")
    assert asked["buffer"] == 1 << 25


@pytest.mark.parametrize("words", [["--json"], ["-o", "json"]])
def test_switch_can_set_another_option(monkeypatch, words):
    assert run(monkeypatch, "tcplife", *words)[1]["output"] == "json"


def test_interval_and_count_are_numbers(monkeypatch):
    asked = run(monkeypatch, "tcplife", "0.5", "3")[1]
    assert (asked["interval"], asked["count"]) == (0.5, 3)


def failed(capsys, *words: str) -> tuple[int, list[str]]:
    with pytest.raises(SystemExit) as ended:
        main(words)
    streams = capsys.readouterr()
    assert streams.out == ""
    return ended.value.code, streams.err.splitlines()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tcplife", "-p", "0"], "netbpf: error: --pid: '0' is not a whole number"),
        (["tcplife", "--laddr", "10.0.0.1/8"], "netbpf: error: --laddr: '10.0.0.1/8' is not"),
        (["tcplife", "-o", "xml"], "netbpf: error: invalid value"),
        (["tcplife", "--absent"], "netbpf: error: no such option"),
        (["tcplife", "x"], "netbpf: error: INTERVAL: 'x' is not a number of seconds"),
        (["tcplife", "1", "0"], "netbpf: error: COUNT: '0' is not a whole number"),
        (["tcplife", "1", "2", "3"], "netbpf: error: got unexpected extra argument"),
        (["absent"], "netbpf: error: no tool named 'absent'"),
        (["schema", "absent"], "netbpf: error: no tool named 'absent'"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_usage_error_is_one_line_with_a_hint_and_exits_2(capsys, words, message):
    code, lines = failed(capsys, *words)
    assert code == 2
    assert lines[0].startswith(message)
    assert lines[1].startswith("hint: ")
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (NetbpfError("it broke", "fix it", "much more"), 1,
         ["netbpf: error: it broke", "hint: fix it"]),
        (PrivilegeError("tracing needs CAP_BPF"), 77, ["netbpf: error: tracing needs CAP_BPF"]),
        (ValueError("odd\nthing"), 1,
         ["netbpf: error: ValueError: odd thing",
          "hint: this is a bug: please report it with the output of -v"]),
        (KeyboardInterrupt(), 0, []),
    ],
    ids=lambda part: type(part).__name__,
)  # fmt: skip
def test_error_while_running_has_its_exit_code_and_no_traceback(
    monkeypatch, capsys, error, code, lines
):
    assert run(monkeypatch, "tcplife", error=error)[0] == code
    assert capsys.readouterr().err.strip().splitlines() == lines


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["tcplife", "--rpot", "80"], "did you mean --rport? try 'netbpf tcplife --help'"),
        (["tcplife", "--colums", "pid"], "did you mean --columns? "),
        (["tcplive"], "did you mean tcplife? tools: "),
        (["docter"], "did you mean doctor? tools: "),
        (["schema", "sockstats"], "did you mean sockstat? tools: "),
        (["demo", "netsise"], "did you mean netsize? tools: "),
        (["tcplife", "--zzzzzz"], "try 'netbpf tcplife --help'"),
        (["doctor", "--jsn"], "did you mean --json? try 'netbpf doctor --help'"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_misspelt_name_gets_the_nearest_one_as_a_hint(capsys, words, hint):
    code, lines = failed(capsys, *words)
    assert code == 2
    assert lines[1].startswith(f"hint: {hint}")


def test_option_that_a_tool_rejects_is_not_proposed(capsys):
    _, lines = failed(capsys, "tcpsynbl", "--rpotr", "80")
    assert "--rport" not in lines[1]


def test_time_and_columns_become_settings(monkeypatch):
    asked = run(monkeypatch, "tcplife", "-d", "2m30s", "--columns", "RADDR,pid", "1m")[1]
    assert (asked["duration"], asked["interval"]) == (150.0, 60.0)
    assert asked["columns"] == ["raddr", "pid"]


def test_verbose_shows_detail_and_traceback(monkeypatch, capsys):
    run(monkeypatch, "tcplife", "-v", error=NetbpfError("it broke", "", "much more"))
    text = capsys.readouterr().err
    assert "much more" in text
    assert "Traceback" in text


def test_names_in_messages_are_escaped(capsys):
    _, lines = failed(capsys, "\x1b[2Jabsent")
    assert all(line.isprintable() for line in lines)


def test_unsupported_filter_is_a_usage_error_with_a_reason(capsys):
    tool = next(
        (t for t in cli.all_tools() if any(o.name == "pid" for o in t.unsupported_options)), None
    )  # fmt: skip
    if tool is None:
        pytest.skip("every tool honours --pid: nothing is refused")
    code, lines = failed(capsys, tool.name, "-p", "1")
    assert code == 2
    assert f"{tool.name} has no --pid" in lines[0]


def test_every_tools_defaults_are_settings():
    for tool in cli.all_tools():
        settings = settings_of(tool, {o.name: o.default for o in tool.options})
        assert set(settings) >= {o.name for o in tool.options}


def test_list_names_every_tool(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["list"])
        raise SystemExit(0)  # without an error, main returns
    assert ended.value.code in (0, None)
    out = capsys.readouterr().out
    for tool in cli.all_tools():
        assert f"{tool.name} " in out
        assert tool.summary in out


def test_character_missing_in_the_locale_is_escaped(monkeypatch):
    # GIVEN an output that can write ASCII only
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    # WHEN a tool writes a name with another character
    monkeypatch.setattr(session, "run", lambda tool, settings: print("caf\u00e9") or 0)
    with pytest.raises(SystemExit) as ended:
        main(["tcplife"])
    out.flush()
    # THEN it is written in another way
    assert ended.value.code in (0, None)
    assert out.buffer.getvalue() == b"caf\\xe9\n"


def test_error_of_a_bad_argument_names_the_flag():
    with pytest.raises(UsageError, match="--map-entries"):
        settings_of(find_tool("tcplife"), {"map_entries": "many"})


@pytest.mark.parametrize("given", [{"interval": "5"}, {"by": "saddr/24"}, {"summary": True}])
def test_interval_and_keys_ask_for_the_table_instead_of_lines(given):
    tool = find_tool("ipecn")
    settings = settings_of(tool, given)
    assert settings["summary"] is True and not tool.has_events(settings)
    assert tool.has_events(settings_of(tool, {}))
