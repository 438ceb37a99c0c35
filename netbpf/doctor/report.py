"""Report what each tool uses on this machine, what is missing and how to fix it.

Nothing is attached. The report is plain data, derived from the tools' declarations; `describe`
formats it as text.
"""

from __future__ import annotations

import copy
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Optional

from netbpf import __version__
from netbpf.bpf import cache, layout
from netbpf.bpf.maps import possible_cpus
from netbpf.declare import memory
from netbpf.declare.tool import Tool, all_tools
from netbpf.doctor import machine
from netbpf.doctor.machine import ABSENT, BAD, OK, Check
from netbpf.doctor.survey import survey
from netbpf.errors import EXIT_PRIVILEGE, EXIT_UNSUPPORTED, NetbpfError, Unsupported
from netbpf.kernel.inspect import Kernel, LiveKernel
from netbpf.kernel.select import Selection, select
from netbpf.output.text import fill
from netbpf.run.confinement import missing_needs
from netbpf.system.file_limit import allow_many_files
from netbpf.system.privileges import Denied, missing_privileges

_MARKS = {OK: "ok", ABSENT: "--", BAD: "!!"}
_MAX_NAMES = 6  # processes named in text; JSON has all of them


def examine(btf: str = "") -> dict[str, Any]:
    """Return the report on this machine; `btf` is a file to read kernel types from.

    Raises UsageError if `btf` cannot be read. Everything else that is missing is reported.
    """
    with suppress(NetbpfError):  # a later check reports the failure
        allow_many_files()
    missing = missing_privileges()
    kernel, types = _kernel(btf)
    checks = [*machine.machine_checks(), types, _cache(missing)]
    if kernel:
        checks += machine.kernel_checks(kernel, missing)
    tools = [_with_privileges(tool, examine_tool(tool, kernel, missing)) for tool in all_tools()]
    hints = dict.fromkeys(_hints(checks, tools))
    unmet = [check.name for check in checks if check.state == BAD and check.name != "privileges"]
    return {
        "netbpf": __version__,
        "kernel": os.uname().release,
        "machine": platform.machine(),
        "missing_privileges": missing,
        "checks": [check._asdict() for check in checks],
        "tools": [_with_needs(tool, unmet) for tool in tools],
        "libraries": _libraries(),
        "hints": list(hints),
    }


def _kernel(btf: str) -> tuple[Optional[Kernel], Check]:
    try:
        return LiveKernel(btf), machine.check_btf(btf, None)
    except Unsupported as error:
        return None, machine.check_btf(btf, error)


def _cache(missing: Sequence[str]) -> Check:
    available, words = cache.describe()
    if missing and not available:
        words = machine.UNKNOWN
    return Check("cache", OK if available else ABSENT, words)


def _with_needs(report: dict[str, Any], unmet: Sequence[str]) -> dict[str, Any]:
    # The machine's checks explain what is missing; tools only refer to them.
    if not unmet:
        return report
    problems = [*report["problems"], f"needs {', '.join(unmet)}: see above"]
    return {**report, "usable": False, "problems": problems}


def examine_tool(
    tool: Tool, kernel: Optional[Kernel], missing: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what `tool` uses on `kernel` and what it lacks there.

    "usable" is None if `missing` privileges prevent the check.
    """
    if not kernel:
        probes, problems = [], ["unknown without kernel types"]
    else:
        selections = selections_of(tool, kernel)
        probes = [_probe(selection, missing) for selection in selections]
        problems = [] if missing else list(_missing_probes(selections))
        problems += missing_fields(tool, kernel)
    lost = sorted({name for probe in probes for name in probe["lost_columns"]})
    return {
        "name": tool.name,
        "summary": tool.summary,
        "usable": None if missing else not problems,
        "problems": problems,
        "probes": probes,
        "lost_columns": lost,
        "memory": memory.by_default(tool, possible_cpus()),
    }


def _with_privileges(tool: Tool, report: dict[str, Any]) -> dict[str, Any]:
    """Add the privileges that this process lacks: "it_takes" names one, "without" what is lost.

    If "without" is null, the tool cannot run.
    """
    found = [{"it_takes": n.words, "without": n.without or None} for n in missing_needs(tool, {})]
    for probe in report["probes"]:
        denied = [one["why"] for one in probe["rejected"] if isinstance(one["why"], Denied)]
        if denied and (not probe["kind"] or probe["lost_columns"]):
            required = not probe["kind"] and not probe["optional"] and not probe["option"]
            without = None if required else f"probe {probe['name']} is not used"
            found.append({"it_takes": denied[0].requires, "without": without})
    fatal = [one for one in found if one["without"] is None]
    usable = False if fatal and report["usable"] is not None else report["usable"]
    return {**report, "usable": usable, "privileges": found}


def selections_of(tool: Tool, kernel: Kernel) -> list[Selection]:
    """Return the selection for each probe of `tool`, with no alternative if none is usable."""
    optional = []
    for probe in tool.all_probes:
        optional.append(copy.copy(probe))
        optional[-1].optional = True
    selections = select(optional, kernel)
    return [selection._replace(probe=p) for selection, p in zip(selections, tool.all_probes)]


def _probe(selection: Selection, missing: Sequence[str]) -> dict[str, Any]:
    probe = selection.probe
    return {
        "name": probe.name,
        "kind": selection.kind or None,
        "targets": list(selection.targets),
        "optional": probe.optional,
        "option": probe.option or None,
        "rejected": [
            {"alternative": text, "why": machine.UNKNOWN if missing else why}
            for text, why in selection.rejected
        ],
        "lost_columns": [] if missing or selection.redundant else list(selection.lost_columns),
    }


def _missing_probes(selections: Sequence[Selection]) -> Iterator[str]:
    for selection in selections:
        probe = selection.probe
        if selection.alternative or probe.optional or selection.redundant:
            continue
        tried = "; ".join(f"{text}: {why}" for text, why in selection.rejected)
        if not probe.option:
            yield f"no alternative works for probe '{probe.name}' ({tried})"


def missing_fields(tool: Tool, kernel: Kernel) -> Iterator[str]:
    """Yield a message for each field and constant that the C program needs and the kernel lacks."""
    try:
        wanted = manifests_of(tool)
    except OSError as error:
        yield f"cannot read its C program ({error.filename}: {error.strerror})"
        return
    # One at a time: a header for all of them would fail at the first missing one.
    singles = [m._replace(names=(name,)) for m in wanted for name in m.names]
    yield from filter(None, (_missing_field(single, kernel) for single in singles))


def _missing_field(wanted: layout.Manifest, kernel: Kernel) -> str:
    try:
        layout.header(kernel, [wanted], [])
    except Unsupported as error:
        return error.message
    return ""


def manifests_of(tool: Tool) -> list[layout.Manifest]:
    """Return the kernel fields that the C program of `tool` reads. Raises OSError."""
    source = layout.program_directory() / f"{tool.name}.bpf.c"
    return layout.manifests(layout.program_text(source))


def _libraries() -> Optional[dict[str, Any]]:
    """Return the coverage of user-space probes, or None if no tool has any."""
    probes = [probe for tool in all_tools() for probe in tool.all_probes]
    if not any(a.how.user_space for probe in probes for a in probe.alternatives):
        return None
    return survey()


def _hints(checks: Sequence[Check], tools: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from (check.hint for check in checks if check.hint and check.state == BAD)
    if any(tool["usable"] is False and tool["probes"] for tool in tools):
        yield "for a tool that cannot run on this kernel: see PROBES in its manual"
    yield from (check.hint for check in checks if check.hint and check.state != BAD)


def exit_code(report: Mapping[str, Any]) -> int:
    """Return 0 if every tool is usable, 77 if privileges are missing, else 69."""
    each = [one for tool in report["tools"] for one in tool.get("privileges", ())]
    if report["missing_privileges"] or any(one["without"] is None for one in each):
        return EXIT_PRIVILEGE
    return 0 if all(tool["usable"] for tool in report["tools"]) else EXIT_UNSUPPORTED


# --- as text --------------------------------------------------------------------------------------


def describe(report: Mapping[str, Any]) -> str:
    """Return the report as text, wrapped at 80 columns."""
    lines = [f"netbpf {report['netbpf']} on Linux {report['kernel']} {report['machine']}", ""]
    lines.append("this machine (ok: available, --: missing but optional, !!: missing and required)")
    for check in report["checks"]:
        lines += fill(check["words"], f"  {_MARKS[check['state']]}  {check['name']:<12} ", 19)
    for tool in report["tools"]:
        lines += ["", *_tool_lines(tool)]
    if report["libraries"]:
        lines += ["", *_library_lines(report["libraries"])]
    if report["hints"]:
        lines += ["", "to fix:"]
        for hint in report["hints"]:
            lines += fill(hint, "  - ", 4)
    return "\n".join(lines)


def _tool_lines(tool: Mapping[str, Any]) -> Iterator[str]:
    mark = {True: "ok", False: "!!", None: "--"}[tool["usable"]]
    yield from fill(tool["summary"], f"{mark}  {tool['name']}: ", 4)
    for problem in tool["problems"]:
        yield from fill(problem, "    ", 6)
    for one in tool.get("privileges", ()):
        yield from fill(
            f"needs {one['it_takes']}: {one['without'] or 'cannot run without it'}", "    ", 6
        )
    width = max([14, *(len(probe["name"]) for probe in tool["probes"])])
    indent = width + 5
    for probe in tool["probes"]:
        yield from fill(_probe_text(probe), f"    {probe['name']:<{width}} ", indent)
        for one in probe["rejected"]:
            text = f"{one['alternative']}: {one['why']}"
            if one["why"] != machine.UNKNOWN:
                yield from fill(text, " " * indent + "not ", indent + 4)
    yield from fill(memory.describe(tool["memory"]), "    ", 6)
    if tool["lost_columns"]:
        yield from fill(f"may be unknown: {', '.join(tool['lost_columns'])}", "    ", 6)


def _probe_text(probe: Mapping[str, Any]) -> str:
    condition = f" (with --{probe['option'].replace('_', '-')})" if probe["option"] else ""
    if not probe["kind"]:
        if any(one["why"] == machine.UNKNOWN for one in probe["rejected"]):
            return machine.UNKNOWN + condition
        return ("not used" if probe["optional"] or condition else "NONE") + condition
    targets = ", ".join(probe["targets"]) or "targets resolved while running"
    return f"{probe['kind']} {targets}{condition}"


def _library_lines(coverage: Mapping[str, Any]) -> Iterator[str]:
    yield "programs whose name lookups can be traced"
    if "error" in coverage:
        yield f"  !!  {coverage['error']}"
        return
    for libc in coverage["libcs"]:
        text = f"{libc['path'] or 'a deleted file'}, {libc['processes']} processes"
        yield from fill(text, f"  ok  {libc['kind']:<12} ", 19)
    if coverage["programs"]:
        yield f"  ok  {coverage['programs']} static or Go programs"
    yield f"  ok  {coverage['covered']} processes in total"
    gaps = sorted({f"{gap['name']} ({gap['reason']})" for gap in coverage["uncovered"]})
    if gaps:
        more = f", and {len(gaps) - _MAX_NAMES} more" if len(gaps) > _MAX_NAMES else ""
        text = f"cannot be traced: {', '.join(gaps[:_MAX_NAMES])}{more}"
        yield from fill(text, f"  --  {len(coverage['uncovered'])} ", 6)
