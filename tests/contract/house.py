"""Where things are, and what the contract tests share: the tools, their texts, C read as data.

The C side is read without a compiler: comments are taken out, the house's own headers put in, and
the few forms that the house uses are recognised (flat structs, enums, guarded entries).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from netbpf.bpf.layout import program_directory, program_text
from netbpf.declare.record import Record
from netbpf.declare.tool import Tool, find_tool, tool_names

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "netbpf"
PROGRAMS = ROOT / "bpf_programs"
DATA = ROOT / "tests" / "data"

# A test with this is run for every tool, and gets it as `name` (so that a tool that cannot even be
# imported fails by its name, and not the whole run).
every_tool = pytest.mark.parametrize("name", tool_names())

_SIZES = {"u8": 1, "char": 1, "bool": 1, "u16": 2, "s16": 2, "u32": 4, "s32": 4, "int": 4,
          "u64": 8, "s64": 8}  # fmt: skip


class Member(NamedTuple):
    """A member of a C struct, with its offset and size in bytes."""

    ctype: str
    name: str
    offset: int
    size: int


class Entry(NamedTuple):
    """A function that can be attached: its guard (USE_...), its name, and its text."""

    guard: str
    name: str
    body: str


def tool_of(name: str) -> Tool:
    """Return the tool `name`."""
    return find_tool(name)


def records_of(tool: Tool) -> Iterator[type[Record]]:
    """Yield every record of `tool` that has a C struct."""
    declared: list[type[Record] | None] = [tool.event]
    if tool.histogram and tool.histogram.map:
        declared.append(tool.histogram.key)
    for table in tool.tables:
        declared += [table.key, table.sums]
    for record in declared:
        if record is not None:
            yield record


@cache
def program(name: str) -> str:
    """Return the C program of a tool, its own headers put in, comments taken out."""
    return without_comments(program_text(program_directory() / f"{name}.bpf.c"))


def without_comments(text: str) -> str:
    """Return C without comments and with joined lines joined."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", text).replace("\\\n", " ")


def constants(text: str) -> dict[str, int]:
    """Return {name: value} of `#define NAME NUMBER`, bcc's TASK_COMM_LEN among them."""
    found = re.findall(r"#define (\w+) (0x[0-9a-f]+|\d+)\s*$", text, re.MULTILINE)
    return {"TASK_COMM_LEN": 16, **{name: _integer(number) for name, number in found}}


def _integer(text: str) -> int:
    octal = re.fullmatch(r"0[0-7]+", text)
    return int(text, 8) if octal else int(text, 0)


def enums(text: str) -> dict[str, dict[str, int]]:
    """Return {enum: {enumerator: value}}; those without a name are named by their first one."""
    found = {}
    known = constants(text)
    for name, body in re.findall(r"\benum\s*(\w*)\s*\{([^}]*)\}", text):
        values: dict[str, int] = {}
        following = 0
        for item in filter(None, map(str.strip, body.split(","))):
            word, _, given = (part.strip() for part in item.partition("="))
            following = _number(given, {**known, **values}) if given else following
            values[word] = following
            following += 1
        found[name or next(iter(values))] = values
    return found


def _number(text: str, known: dict[str, int]) -> int:
    return known[text] if text in known else _integer(text)


def struct(text: str, name: str) -> tuple[list[Member], int]:
    """Return the members and the size of the C struct `name`, laid out as a C compiler does.

    Structs and arrays in it are taken apart, but for arrays of bytes; a struct of bytes only is an
    array of bytes.
    """
    members, size, _ = _laid_out(text, name)
    return members, size


def _laid_out(text: str, name: str) -> tuple[list[Member], int, int]:
    found = re.search(rf"\bstruct {name}\s*\{{(.*?)\n\}}", text, re.DOTALL)
    assert found, f"there is no C struct '{name}' in the program"
    known = _known(text)
    members: list[Member] = []
    at, widest = 0, 1
    for line in filter(None, map(str.strip, found[1].split(";"))):
        match = re.fullmatch(r"((?:struct )?\w+)\s+(\w+)(?:\[(\w+)\])?", line)
        assert match, f"struct {name}: '{line}' is not a plain member"
        count = _number(match[3], known) if match[3] else 0
        parts, size, align = _parts(text, match[1], match[2], count)
        at += -at % align
        members += [part._replace(offset=at + part.offset) for part in parts]
        at, widest = at + size, max(widest, align)
    return members, at + -at % widest, widest


def _parts(text: str, ctype: str, name: str, count: int) -> tuple[list[Member], int, int]:
    if not ctype.startswith("struct "):
        size = _SIZES[ctype]
        if count and size == 1:
            return [Member(f"{ctype}[{count}]", name, 0, count)], count, 1
        row = [Member(ctype, name, n * size, size) for n in range(count or 1)]
        return row, size * (count or 1), size
    inner, size, align = _laid_out(text, ctype[7:])
    if align == 1:
        return [Member(f"u8[{size}]", name, 0, size)], size, 1
    return inner, size, align


def _known(text: str) -> dict[str, int]:
    return {
        **constants(text),
        **{n: v for values in enums(text).values() for n, v in values.items()},
    }


def entries(text: str) -> list[Entry]:
    """Return every function that is not static, with the USE_... that it is compiled under."""
    found: list[Entry] = []
    guards: list[str] = []
    lines = _expanded(text, dict(_macros(text))).splitlines()
    for number, line in enumerate(lines):
        condition = re.match(r"#\s*if(?:n?def)?\b\s*(.*)", line)
        if condition:
            guards.append(condition[1])
        elif re.match(r"#\s*endif", line):
            guards.pop()
        name = re.match(r"\s*int (\w+)\((?:struct|u64|void) [^)]*\)(?!;)", line)
        if name:
            used = [guard[4:] for guard in guards if guard.startswith("USE_")]
            body = "\n".join(lines[number : _end(lines, number) + 1])
            found.append(Entry(used[-1] if used else "", name[1], body))
    return found


def _end(lines: list[str], start: int) -> int:
    if lines[start].rstrip().endswith("}"):
        return start  # made by a macro, all in one line
    return next(n for n in range(start, len(lines)) if lines[n].startswith("}"))


def _macros(text: str) -> Iterator[tuple[str, tuple[list[str], str]]]:
    for name, parameters, body in re.findall(r"^#define (\w+)\(([^)]*)\) +(.*)$", text, re.M):
        if re.search(r"##\s*_\w+\(", body):
            yield name, ([p.strip() for p in parameters.split(",")], body)


def _expanded(body: str, macros: dict[str, tuple[list[str], str]]) -> str:
    def expand(call: re.Match[str]) -> str:
        if call[1] not in macros:
            return call[0]
        parameters, text = macros[call[1]]
        # Commas inside of parentheses part nothing.
        for parameter, given in zip(parameters, re.split(r",(?![^(]*\))", call[2])):
            text = re.sub(rf"\b{parameter}\b", given.strip(), text)
        return re.sub(r"\s*##\s*", "", text)

    return re.sub(r"^([A-Z]\w*)\((.*)\)[ \t]*$", expand, body, flags=re.M)


def map_types(text: str, map_name: str) -> tuple[str, str]:
    """Return the C types of key and value of the BPF map `map_name`."""
    for kind, arguments in re.findall(r"^BPF_(\w+)\(([^;]*?)\)", text, re.MULTILINE):
        words = [word.strip() for word in arguments.split(",")]
        if words[0].startswith('"'):
            key, value, name = words[1:4]
        elif kind.endswith("ARRAY"):
            name, key, value = words[0], "u32", words[1]
        else:
            name, key, value = (words + ["u64", "u64"])[:3]
        if name == map_name:
            return key, value
    raise AssertionError(f"the program has no map '{map_name}'")
