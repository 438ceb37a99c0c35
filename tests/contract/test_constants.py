"""Rule: what is compiled is the same for any process, port, address, device or time."""

from __future__ import annotations

import os
import re

import pytest

from netbpf.bpf import constants
from netbpf.bpf.constants import take_constants
from netbpf.declare.options import Option
from netbpf.declare.tool import Tool, all_tools
from netbpf.run.filters import filter_defines
from tests.contract.conventions import PROGRAMS

TOOLS = {tool.name: tool for tool in all_tools()}
# Two arguments of each option that takes one.
ARGUMENTS = {
    "output": ("json", "text"),
    "duration": ("1", "60"),
    "max_overhead": ("1", "2"),
    "ready_file": ("/run/a", "/run/b"),
    "btf": ("a", "b"),
    "probe": ("a=tp", "b=fexit"),
    "max_events": ("1", "1000"),
    "pid": (f"{os.getpid()},1", f"1,{os.getppid()}"),
    "uid": ("0", "65534"),
    "netns": ("4026531840", str(os.getpid())),
    "min_ms": ("0.5", "1000"),
    "host": ("a*", "b"),
    "interface": ("lo,eth0", "veth1234567890a,wg0"),
    "dev": ("lo", "veth1234567890a"),
    "port": ("53,1000-2000", "123,80-81"),
    "lport": ("22", "443"),
    "rport": ("1-1024,5432", "32768-60999,6379"),
    "laddr": ("127.0.0.1", "2001:db8::/32"),
    "raddr": ("10.0.0.0/8", "192.168.1.1"),
    "sort": ("bytes", "calls"),
    "top": ("1", "20"),
}
# Those whose argument does decide, or is looked up on the machine.
DECIDE = {
    "buffer": "the size of a map",
    "map_entries": "the size of a map",
    "comm": "a pattern becomes an automaton",
    "cgroup": "looked up: one number, as tests/unit/test_filters.py shows",
    "container": "looked up: one number, as tests/unit/test_filters.py shows",
    "reason": "looked up in the running kernel: one number for each",
}


def cases() -> list[tuple[str, Option]]:
    return [(name, option) for name, tool in TOOLS.items() for option in tool.options]


def text_of(tool: Tool, option: Option, argument: object) -> str:
    given = {**{o.name: o.default for o in tool.options}, option.name: argument}
    settings = {o.name: o.value(given[o.name]) for o in tool.options}
    own = tool.constants(settings) if tool.constants else {}
    return "\n".join([*filter_defines(settings), *(f"{name} {own[name]}" for name in own)])


@pytest.mark.parametrize(
    ("name", "option"),
    [case for case in cases() if case[1].metavar and case[1].name not in DECIDE],
    ids=lambda value: value.name if isinstance(value, Option) else value,
)
def test_what_is_compiled_is_the_same_for_any_argument(name: str, option: Option) -> None:
    assert option.name in ARGUMENTS, "give two arguments in ARGUMENTS, or the reason in DECIDE"
    texts = [text_of(TOOLS[name], option, argument) for argument in ARGUMENTS[option.name]]
    assert len({take_constants(text)[0] for text in texts}) == 1


def test_exceptions_are_options() -> None:
    known = {option.name for _, option in cases()}
    assert set(DECIDE) | set(ARGUMENTS) <= known


def test_index_width_matches_the_c_macro() -> None:
    text = (PROGRAMS / "include" / "netbpf.bpf.h").read_text()
    (digits,) = re.findall(r'asm\("%0 = 0x([0-9a-f]+)" #index " ll"', text)
    assert int(digits + "00", 16) == constants._MARK << 32
    assert 0x100 == constants._MAX_CONSTANTS


def test_programs_use_no_index_themselves() -> None:
    texts = [path.read_text() for path in PROGRAMS.rglob("*.bpf.[ch]")]
    assert sum(text.count("LOAD_CONSTANT(") for text in texts) == 1  # its definition
