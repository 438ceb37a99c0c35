"""Rule: what is compiled is the same for any process, port, address, device or time."""

from __future__ import annotations

import contextlib
import os
import re

import pytest

from netbpf.bpf import constants
from netbpf.bpf.constants import take_constants
from netbpf.declare.options import Option
from netbpf.declare.tool import Tool, all_tools
from netbpf.errors import UsageError
from netbpf.run.filters import filter_defines
from tests.contract.conventions import PROGRAMS

TOOLS = {tool.name: tool for tool in all_tools()}
# Arguments of which each option that takes one accepts some.
CANDIDATES = (
    "1", "60", "json", "text", "bytes", "calls", "10.0.0.0/8", "192.168.1.1", "2001:db8::/32",
    "::1", "22", "1-1024,5432",
    "lo,eth0", "veth1234567890a,wg0", "a=tp", "b=fexit", "/run/a", "/run/b", str(os.getpid()),
    "4026531840", "a*", "b", "comm", "netns", "send", "recv",
    "ESTABLISHED", "CLOSING", "connect", "accept",
    "ESTABLISHED", "CLOSING", "S", "FA",
)  # fmt: skip
# Those whose argument does decide, or is looked up on the machine.
DECIDE = {
    "buffer": "the size of a map",
    "map_entries": "the size of a map",
    "by": "which members of the key are filled",
    "cgroup": "looked up: one number, as tests/unit/test_filters.py shows",
    "container": "looked up: one number, as tests/unit/test_filters.py shows",
    "proto": "a name decides, and soconnect leaves out code",
    "reason": "looked up in the running kernel: one number for each",
}


def cases() -> list[tuple[str, Option]]:
    return [(name, option) for name, tool in TOOLS.items() for option in tool.options]


def text_of(tool: Tool, option: Option, argument: object) -> str:
    given = {**{o.name: o.default for o in tool.options}, option.name: argument}
    settings = {o.name: o.value(given[o.name]) for o in tool.options}
    own = tool.own_constants(settings)
    return "\n".join([*filter_defines(settings), *(f"{name} {own[name]}" for name in own)])


@pytest.mark.parametrize(
    ("name", "option"),
    [case for case in cases() if case[1].metavar and case[1].name not in DECIDE],
    ids=lambda value: value.name if isinstance(value, Option) else value,
)
def test_what_is_compiled_is_the_same_for_any_argument(name: str, option: Option) -> None:
    alike: dict[object, dict[str, str]] = {}
    for argument in option.choices or CANDIDATES:
        with contextlib.suppress(UsageError):  # for other options, or not on this machine
            text = take_constants(text_of(TOOLS[name], option, argument))[0]
            alike.setdefault(form_of(option.value(argument)), {})[argument] = text
    groups = [texts for texts in alike.values() if len(texts) > 1]
    assert groups or len(option.choices) == 1, (
        "add two arguments to CANDIDATES, or the option to DECIDE"
    )
    for texts in groups:
        assert len(set(texts.values())) == 1, texts


def form_of(value: object) -> object:
    """Return what may decide the text: types, how many parts there are, numbers or names."""
    if isinstance(value, str):
        return re.sub(r"[A-Za-z]+", "a", re.sub(r"[0-9]+", "0", value))
    parts = value if isinstance(value, (list, tuple)) else ()
    return (type(value), *(form_of(part) for part in parts))


def test_exceptions_are_options() -> None:
    known = {option.name for _, option in cases()}
    assert set(DECIDE) <= known


def test_index_width_matches_the_c_macro() -> None:
    text = (PROGRAMS / "include" / "netbpf.bpf.h").read_text()
    (digits,) = re.findall(r'asm\("%0 = 0x([0-9a-f]+)" #index " ll"', text)
    assert int(digits + "00", 16) == constants._MARK << 32
    assert 0x100 == constants._MAX_CONSTANTS


def test_programs_use_no_index_themselves() -> None:
    texts = [path.read_text() for path in PROGRAMS.rglob("*.bpf.[ch]")]
    assert sum(text.count("LOAD_CONSTANT(") for text in texts) == 1  # its definition
