"""Generate C from a declaration: entries of the selected probes, structs, enums and totals.

The entry of a probe reads the arguments from this kernel's context and calls the program's own
`on_<probe>`. Structs are generated from the declared records, so that C and Python cannot differ; a
program includes them as <netbpf/records.h>. Enums are the values of the records' Enum columns,
TOTAL_* the columns of the tool's totals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from netbpf.bpf.layout import arguments_of, offered_name
from netbpf.declare.columns import Enum, Owner
from netbpf.declare.histogram import SLOTS
from netbpf.declare.losses import IN_PROGRAMS
from netbpf.declare.probe_kinds import CONTEXT, ITERATORS, RESULT
from netbpf.declare.probes import Alternative, is_of_target
from netbpf.declare.record import Record
from netbpf.declare.tool import Tool
from netbpf.declare.values import TCP_STATES
from netbpf.kernel.inspect import Kernel
from netbpf.kernel.select import Selection

_SHARED = (Owner("how the owner is known"),)  # C headers use its values for every tool


def entries(kernel: Kernel, selections: Sequence[Selection]) -> str:
    """Return the C entry function of each selected alternative."""
    made = [_entry(kernel, one, one.alternative) for one in selections if one.alternative]
    # Arguments are 64-bit words; the parameters of on_<probe> have their types.
    pragma = '#pragma clang diagnostic ignored "-Wint-conversion"'
    return "\n".join(['#line 1 "generated entries"', pragma, *made, ""])


def _entry(kernel: Kernel, selection: Selection, used: Alternative) -> str:
    if used.how.offers == "iterator":
        context, body = ITERATORS[selection.targets[0]]
        body = body.format(call=_function(selection.probe.name, used))
    else:
        context = used.how.context or f"struct {selection.probe.name}_args"
        body = used.how.body.format(call=_call(kernel, selection, used))
    return f"int {selection.entry}({context} *ctx)\n{{\n{body}}}\n"


def _function(probe: str, used: Alternative) -> str:
    return used.call or f"on_{probe}"


def _call(kernel: Kernel, selection: Selection, used: Alternative) -> str:
    name = selection.probe.name
    function = _function(name, used)
    ways = [a for a in selection.probe.alternatives if _function(name, a) == function]
    longest = max(len(way.args) for way in ways)
    offered = arguments_of(kernel, used, selection.targets[0] if selection.targets else "")
    values = [_value(used, offered, arg) for arg in used.args]
    values += ["0"] * (longest - len(values))  # arguments that this kernel does not have
    return f"{function}({', '.join(values)})"


def _value(used: Alternative, offered: Sequence[str], arg: str) -> str:
    if arg == CONTEXT:
        return "ctx"
    if arg == RESULT:
        return used.how.argument(RESULT, 0, len(offered))
    if not is_of_target(arg):
        return arg
    name = offered_name(arg, offered)
    return used.how.argument(name, offered.index(name), len(offered))


def enums(tool: Tool) -> str:
    """Return C enums: of the tool's Enum columns, TCP states, causes of loss and totals."""
    columns = [column for record in tool.records for column in record.members]
    words = [column for column in columns if isinstance(column, Enum)]
    known = {column.prefix: column for column in (*_SHARED, *words)}
    lines = [line for column in known.values() for line in _enum(column.prefix, column.words)]
    lines += [] if "TCP_" in known else _enum("TCP_", TCP_STATES)
    lines += [f"enum {{ {', '.join(f'LOSS_{cause.upper()}' for cause in IN_PROGRAMS)} }};"]
    lines += [f"#define LOSS_CAUSES {len(IN_PROGRAMS)}", f"#define HISTOGRAM_SLOTS {SLOTS}"]
    if tool.totals:
        names = ", ".join(f"TOTAL_{column.name.upper()}" for column in tool.totals.columns)
        lines += [f"enum {{ {names} }};", f"#define TOTALS {len(tool.totals.columns)}"]
    return "\n".join([*lines, ""])


def _enum(prefix: str, words: object) -> Iterator[str]:
    assert isinstance(words, dict)
    pairs = [
        f"{prefix}{name} = {number}"
        for number, word in words.items()
        if word and (name := re.sub("[-,.]", "_", word.upper())).isidentifier()
    ]
    if pairs:
        yield f"enum {{ {', '.join(pairs)} }};"


def structs(tool: Tool) -> str:
    """Return the C structs of the records in the tool's maps and ring buffer, and key setters."""
    found = {record.cstruct: record for record in tool.records if record.cstruct}
    histogram = tool.histogram and tool.histogram.extra
    parts = [_struct(record, record is histogram) for record in found.values()]
    return "\n".join([*parts, *(tool.keyed.setters() if tool.keyed else ()), ""])


def _struct(record: type[Record], after_buckets: bool) -> str:
    lines = [f"struct {record.cstruct} {{"]
    if after_buckets:
        lines.append("\tstruct histogram histogram;")
    lines += [f"\t{column.c_member};" for column in record.members]
    padding = record.size - sum(column.size for column in record.members)
    lines += [f"\tu8 pad[{padding}];"] if padding else []
    return "\n".join([*lines, "};", ""])
