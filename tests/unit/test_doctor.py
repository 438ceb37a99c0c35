"""The doctor: its report on a fake kernel, as data, text and exit code."""

from __future__ import annotations

import json

import pytest

from netbpf.bpf import layout
from netbpf.declare import (
    Event,
    Fentry,
    Fexit,
    Kretprobe,
    Pid,
    Probe,
    RawTracepoint,
    Tool,
    Tracepoint,
)
from netbpf.declare.tool import all_tools, find_tool
from netbpf.doctor import machine, report
from netbpf.errors import Unsupported
from netbpf.kernel.btf import Field
from tests.unit.fakes import FakeKernel

FIELD = Field(16, "u16 %s")
RAW = {"seen": ("sk", "what")}
HAS_FIELDS = {"fields": {("sock", "skc_family"): FIELD}, "sizes": {"sock": 64}}
SOURCE = """
KERNEL_FIELDS(sock, skc_family)
KERNEL_OPTIONAL(sock, skc_v6)
"""


class Thing(Event):
    """The event of the fake tool."""

    pid = Pid("whose")


TOOL = Tool(
    "pretend - a tool that is not there\n",
    event=Thing,
    probes=(
        Probe("seen", Fentry("see", args=("sk",)), RawTracepoint("seen", args=("sk",))),
        Probe("felt", Fexit("feel"), Kretprobe("feel"), optional=True, loses=("pid",)),
    ),
)


@pytest.fixture(autouse=True)
def programs(tmp_path, monkeypatch):
    """The C program of the fake tool."""
    (tmp_path / "pretend.bpf.c").write_text(SOURCE)
    monkeypatch.setattr(layout, "program_directory", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def real_programs(monkeypatch, programs):
    """The C programs of netbpf."""
    monkeypatch.undo()


def report_of(tools, **more):
    empty = {
        "netbpf": "0", "kernel": "1.2.3", "machine": "x", "missing_privileges": [], "checks": [],
        "libraries": None, "hints": [],
    }  # fmt: skip
    return {**empty, "tools": tools, **more}


def test_tool_is_usable_if_required_probes_and_fields_exist():
    found = report.examine_tool(TOOL, FakeKernel(raw=RAW, **HAS_FIELDS))
    assert found["usable"] is True and found["problems"] == []
    seen, felt = found["probes"]
    assert (seen["kind"], seen["targets"]) == ("rawtp", ["seen"])
    assert seen["rejected"] == [
        {"alternative": "fentry see", "why": "this kernel refuses fentry programs"}
    ]
    assert (felt["kind"], felt["lost_columns"]) == (None, ["pid"])
    assert found["lost_columns"] == ["pid"]


def test_everything_missing_is_reported_at_once(programs):
    # GIVEN a program that reads two fields, on a kernel without them and without any probe
    (programs / "pretend.bpf.c").write_text(SOURCE + "KERNEL_FIELDS(sock, skc_num)\n")
    # WHEN the tool is examined
    problems = report.examine_tool(TOOL, FakeKernel())["problems"]
    # THEN all three are named
    assert len(problems) == 3
    assert (
        "no alternative works for probe 'seen' (fentry see: this kernel refuses fentry"
        in problems[0]
    )
    assert "'skc_family'" in problems[1] and "'skc_num'" in problems[2]


def test_missing_c_program_is_reported(programs):
    (programs / "pretend.bpf.c").unlink()
    [problem] = report.examine_tool(TOOL, FakeKernel(raw=RAW, **HAS_FIELDS))["problems"]
    assert "pretend.bpf.c: No such file" in problem


def test_without_privileges_usability_is_unknown():
    found = report.examine_tool(TOOL, FakeKernel(**HAS_FIELDS), missing=["CAP_BPF"])
    assert found["usable"] is None and found["problems"] == []
    whys = {over["why"] for probe in found["probes"] for over in probe["rejected"]}
    assert whys == {machine.UNKNOWN}


def test_without_kernel_types_no_tool_is_usable():
    found = report.examine_tool(TOOL, None)
    assert found["usable"] is False and found["probes"] == []


def test_unusable_probe_of_an_option_is_not_a_problem():
    probes = (Probe("extra", Tracepoint("no:such"), option="extra"),)
    tool = Tool("pretend - with an option\n", event=Thing, probes=probes)
    found = report.examine_tool(tool, FakeKernel(**HAS_FIELDS))
    assert found["usable"] is True
    assert "not used (with --extra)" in report.describe(report_of([found]))


def test_privilege_that_a_probe_needs_is_a_field_of_its_own(monkeypatch):
    monkeypatch.setattr(report, "missing_needs", lambda *_: [])
    kernel = FakeKernel(raw=RAW, **HAS_FIELDS)
    monkeypatch.setattr(kernel, "raw_tracepoint", denied)
    found = report._with_privileges(TOOL, report.examine_tool(TOOL, kernel))
    assert found["privileges"] == [{"it_takes": "CAP_X to read it", "without": None}]
    assert found["usable"] is False
    assert found["probes"][0]["rejected"][1]["why"] == "needs CAP_X to read it"


def denied(name: str) -> None:
    raise PermissionError(13, "CAP_X to read it")


def test_redundant_probe_loses_no_columns():
    probes = (
        Probe("a", Fexit("f"), Tracepoint("s:a")),
        Probe("b", Tracepoint("s:b"), optional=True, loses=("pid",), with_probe="a"),
    )
    tool = Tool("pretend - with partners\n", event=Thing, probes=probes)
    kernel = FakeKernel(
        tracepoints={"s:b": ()}, functions={"f": ()}, takes=("fentry",), **HAS_FIELDS
    )
    found = report.examine_tool(tool, kernel)
    assert found["probes"][1]["kind"] is None
    assert found["lost_columns"] == []


# --- exit codes and words -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usable", "missing", "code"),
    [
        ([True, True], [], 0),
        ([True, False], [], 69),
        ([None, None], ["CAP_BPF"], 77),
        ([False, False], ["CAP_BPF"], 77),
    ],
)
def test_exit_code(usable, missing, code):
    tools = [{"usable": one} for one in usable]
    assert report.exit_code(report_of(tools, missing_privileges=missing)) == code


def test_text_has_marks_and_fits_80_columns():
    good = report.examine_tool(TOOL, FakeKernel(raw=RAW, **HAS_FIELDS))
    bad = report.examine_tool(TOOL, FakeKernel())
    checks = [
        machine.Check("bcc", machine.OK, "0.26.0")._asdict(),
        machine.Check("kprobes", machine.ABSENT, "not in this kernel")._asdict(),
        machine.Check("BTF", machine.BAD, "a long story " * 12, "tell it")._asdict(),
    ]
    text = report.describe(report_of([good, bad], checks=checks, hints=["mend " * 30]))
    assert max(map(len, text.splitlines())) <= 80
    assert text.isascii()
    for words in ("ok  bcc", "--  kprobes", "!!  BTF", "ok  pretend:", "!!  pretend:", "to fix:"):
        assert words in text
    assert "not fentry see: this kernel refuses fentry programs" in text
    assert "may be unknown: pid" in text


def test_text_names_only_some_uncovered_processes():
    gaps = [{"pid": n, "name": f"prog{n}", "reason": "static"} for n in range(10)]
    libraries = {
        "libcs": [{"kind": "glibc", "path": "/lib/libc.so.6", "processes": 4}],
        "programs": 1, "covered": 5, "uncovered": gaps,
    }  # fmt: skip
    text = " ".join(report.describe(report_of([], libraries=libraries)).split())
    assert "ok glibc /lib/libc.so.6, 4 processes" in text
    assert "-- 10 cannot be traced: prog0 (static)" in text
    assert "prog5 (static), and 4 more" in text and "prog6" not in text


def test_report_on_any_machine_is_json(real_programs):
    # The real machine, whatever it is, with or without root: it must not raise.
    found = report.examine()
    assert json.loads(json.dumps(found)) == found
    assert {tool["name"] for tool in found["tools"]} == {tool.name for tool in all_tools()}
    assert report.exit_code(found) in (0, 69, 77)
    assert report.describe(found)


def test_missing_requirement_of_the_machine_affects_all_tools(real_programs, monkeypatch):
    def no_kernel(_):
        raise Unsupported("no BTF here", "get one")

    monkeypatch.setattr(report, "LiveKernel", no_kernel)
    found = report.examine()
    assert {tool["usable"] for tool in found["tools"]} == {False}
    assert "get one" in found["hints"]
    assert report.exit_code(found) in (69, 77)


# --- the machine ----------------------------------------------------------------------------------


def test_python_without_bcc_gets_a_hint(tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'bcc'\" >&2\nexit 1\n")
    fake.chmod(0o755)
    found = machine.check_bcc(str(fake))
    assert found.state == machine.BAD
    assert "No module named 'bcc'" in found.words and "python3-bpfcc" in found.hint


def test_missing_python_is_a_result():
    assert machine.check_bcc("/nonexistent/python").state == machine.BAD


@pytest.mark.parametrize(
    ("text", "state", "words"),
    [
        ("[none] integrity confidentiality\n", machine.OK, "none"),
        ("none [integrity] confidentiality\n", machine.OK, "integrity"),
        ("none integrity [confidentiality]\n", machine.BAD, "confidentiality"),
    ],
)
def test_only_confidentiality_lockdown_is_a_problem(tmp_path, text, state, words):
    path = tmp_path / "lockdown"
    path.write_text(text)
    found = machine.check_lockdown(path)
    assert (found.state, found.words) == (state, words)


def test_a_kernel_without_lockdown_is_fine(tmp_path):
    assert machine.check_lockdown(tmp_path / "none").state == machine.OK


@pytest.mark.parametrize(("text", "state"), [("0\n", machine.ABSENT), ("1\n", machine.OK)])
def test_jit(tmp_path, text, state):
    path = tmp_path / "bpf_jit_enable"
    path.write_text(text)
    assert machine.check_jit(path).state == state


def test_only_the_initial_network_namespace_shows_the_jit(tmp_path):
    path = tmp_path / "bpf_jit_enable"
    assert "initial network namespace" in machine.check_jit(path).words
    path.with_name("netdev_max_backlog").write_text("1000\n")
    assert machine.check_jit(path).state == machine.ABSENT


@pytest.mark.parametrize(
    ("sizes", "held", "state"),
    [
        ({"bpf_map_memory": 16}, [], machine.ABSENT),
        ({"bpf_map_memory": 16}, ["CAP_SYS_RESOURCE"], machine.OK),
        ({}, [], machine.OK),
    ],
)
def test_locked_memory_is_limited_where_the_kernel_counts_it(monkeypatch, sizes, held, state):
    monkeypatch.setattr(machine, "held_capabilities", lambda: held)
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (65536, 65536))
    assert machine.check_memlock(FakeKernel(sizes=sizes)).state == state


def test_a_check_that_fails_is_a_result():
    def fail():
        raise PermissionError(13, "no")

    assert machine._guarded("x", fail).state == machine.ABSENT


def test_features_of_the_kernel_are_checked():
    states = {
        check.name: check.state
        for check in machine.kernel_checks(FakeKernel(takes=("uprobe",), sizes={"bpf_ringbuf": 8}))
    }
    assert states == {
        "ring buffer": "ok", "kprobes": "absent", "uprobes": "ok", "fentry": "absent",
        "iterators": "absent", "memlock": "ok",
    }  # fmt: skip


def test_memory_is_stated_for_each_tool():
    found = report.examine_tool(find_tool("tcplife"), None)["memory"]
    assert found["maps"] > 1 << 20 and found["buffer"] == 32 << 20
    assert found["buffer_events"] > 120_000
    tools = [report.examine_tool(find_tool("tcplife"), None)]
    words = report.describe({**report.examine(), "tools": tools})
    assert "of kernel memory for maps" in words
