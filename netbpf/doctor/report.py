"""Every tool against this machine: what will be used, what is missing, and how to mend it.

All is asked at once and nothing is attached. The report is plain data, made from the tools'
declarations; `describe` is its form for people.
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
from netbpf.run.confinement import lacking as lacking_of
from netbpf.system.file_limit import allow_many_files
from netbpf.system.privileges import Denied, missing_privileges

_MARKS = {OK: "ok", ABSENT: "--", BAD: "!!"}
_MOST_NAMES = 6  # processes named in text; JSON has them all


def examine(btf: str = "") -> dict[str, Any]:
    """Return the report on this machine; `btf` is a file to read kernel types from.

    A `btf` that cannot be read is a UsageError; nothing else that is missing raises.
    """
    with suppress(NetbpfError):  # what then fails, fails for that reason
        allow_many_files()
    lacking = missing_privileges()
    kernel, types = _kernel(btf)
    checks = [*machine.machine_checks(), types, _cache(lacking)]
    if kernel:
        checks += machine.kernel_checks(kernel, lacking)
    tools = [_with_privileges(tool, examine_tool(tool, kernel, lacking)) for tool in all_tools()]
    hints = dict.fromkeys(_hints(checks, tools))
    unfit = [check.name for check in checks if check.state == BAD and check.name != "privileges"]
    return {
        "netbpf": __version__,
        "kernel": os.uname().release,
        "machine": platform.machine(),
        "missing_privileges": lacking,
        "checks": [check._asdict() for check in checks],
        "tools": [_with_needs(tool, unfit) for tool in tools],
        "libraries": _libraries(),
        "hints": list(hints),
    }


def _kernel(btf: str) -> tuple[Optional[Kernel], Check]:
    try:
        return LiveKernel(btf), machine.check_btf(btf, None)
    except Unsupported as error:
        return None, machine.check_btf(btf, error)


def _cache(lacking: Sequence[str]) -> Check:
    there, words = cache.describe()
    if lacking and not there:
        words = machine.ROOT_TELLS
    return Check("cache", OK if there else ABSENT, words)


def _with_needs(report: dict[str, Any], unfit: Sequence[str]) -> dict[str, Any]:
    # What no tool can do without is said once, under the machine's name, and counts for all.
    if not unfit:
        return report
    problems = [*report["problems"], f"needs {', '.join(unfit)}: see above"]
    return {**report, "usable": False, "problems": problems}


def examine_tool(
    tool: Tool, kernel: Optional[Kernel], lacking: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what `tool` will use on `kernel`, and all that it misses there.

    "usable" is None where that cannot be told: without privileges (`lacking`) much does not show.
    """
    if not kernel:
        probes, problems = [], ["kernel types are needed to tell"]
    else:
        selections = selections_of(tool, kernel)
        probes = [_probe(selection, lacking) for selection in selections]
        problems = [] if lacking else list(_missing_probes(selections))
        problems += missing_fields(tool, kernel)
    lost = sorted({name for probe in probes for name in probe["lost_columns"]})
    return {
        "name": tool.name,
        "summary": tool.summary,
        "usable": None if lacking else not problems,
        "problems": problems,
        "probes": probes,
        "lost_columns": lost,
        "memory": memory.by_default(tool, possible_cpus()),
    }


def _with_privileges(tool: Tool, report: dict[str, Any]) -> dict[str, Any]:
    """Add what this process lacks: "it takes" a privilege, "without" it the result lacks that.

    Where "without" is null, the tool cannot do its work.
    """
    found = [{"it_takes": n.words, "without": n.without or None} for n in lacking_of(tool, {})]
    for probe in report["probes"]:
        denied = [over["why"] for over in probe["rejected"] if isinstance(over["why"], Denied)]
        if denied and (not probe["kind"] or probe["lost_columns"]):
            needed = not probe["kind"] and not probe["optional"] and not probe["option"]
            without = None if needed else f"probe {probe['name']} is not used"
            found.append({"it_takes": denied[0].partition("it takes ")[2], "without": without})
    unfit = [one for one in found if one["without"] is None]
    usable = False if unfit and report["usable"] is not None else report["usable"]
    return {**report, "usable": usable, "privileges": found}


def selections_of(tool: Tool, kernel: Kernel) -> list[Selection]:
    """Return the selection for each probe of `tool`; without an alternative if none is usable."""
    lenient = []
    for probe in tool.all_probes:
        lenient.append(copy.copy(probe))
        lenient[-1].optional = True
    chosen = select(lenient, kernel)
    return [selection._replace(probe=p) for selection, p in zip(chosen, tool.all_probes)]


def _probe(selection: Selection, lacking: Sequence[str]) -> dict[str, Any]:
    probe = selection.probe
    return {
        "name": probe.name,
        "kind": selection.kind or None,
        "targets": list(selection.targets),
        "optional": probe.optional,
        "option": probe.option or None,
        "rejected": [
            {"alternative": words, "why": machine.ROOT_TELLS if lacking else why}
            for words, why in selection.rejected
        ],
        "lost_columns": [] if lacking or selection.redundant else list(selection.lost_columns),
    }


def _missing_probes(selections: Sequence[Selection]) -> Iterator[str]:
    for selection in selections:
        probe = selection.probe
        if selection.alternative or probe.optional or selection.redundant:
            continue
        tried = "; ".join(f"{words}: {why}" for words, why in selection.rejected)
        if not probe.option:
            yield f"nothing for probe '{probe.name}' ({tried})"


def missing_fields(tool: Tool, kernel: Kernel) -> Iterator[str]:
    """Yield, for each field and constant that the C program needs and the kernel lacks, words."""
    try:
        wanted = manifests_of(tool)
    except OSError as error:
        yield f"its C program cannot be read ({error.filename}: {error.strerror})"
        return
    # One by one, as the whole would stop at the first that is missing.
    singles = [m._replace(names=(name,)) for m in wanted for name in m.names]
    yield from filter(None, (_missing_field(single, kernel) for single in singles))


def _missing_field(wanted: layout.Manifest, kernel: Kernel) -> str:
    try:
        layout.header(kernel, [wanted], [])
    except Unsupported as error:
        return error.message
    return ""


def manifests_of(tool: Tool) -> list[layout.Manifest]:
    """Return what the C program of `tool` reads of the kernel; OSError if it is not there."""
    source = layout.program_directory() / f"{tool.name}.bpf.c"
    return layout.manifests(layout.program_text(source))


def _libraries() -> Optional[dict[str, Any]]:
    """Return how far probes in user space reach, if any tool has them."""
    probes = [probe for tool in all_tools() for probe in tool.all_probes]
    if not any(a.how.user_space for probe in probes for a in probe.alternatives):
        return None
    return survey()


def _hints(checks: Sequence[Check], tools: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from (check.hint for check in checks if check.hint and check.state == BAD)
    if any(tool["usable"] is False and tool["probes"] for tool in tools):
        yield "for a tool that this kernel cannot run: the manual's PROBES name what it needs"
    yield from (check.hint for check in checks if check.hint and check.state != BAD)


def exit_code(report: Mapping[str, Any]) -> int:
    """Return 0 if every tool can be used, 77 if privileges are missing, else 69."""
    each = [one for tool in report["tools"] for one in tool.get("privileges", ())]
    if report["missing_privileges"] or any(one["without"] is None for one in each):
        return EXIT_PRIVILEGE
    return 0 if all(tool["usable"] for tool in report["tools"]) else EXIT_UNSUPPORTED


# --- in words -------------------------------------------------------------------------------------


def describe(report: Mapping[str, Any]) -> str:
    """Return the report for people; lines are as short as the machine's names allow."""
    lines = [f"netbpf {report['netbpf']} on Linux {report['kernel']} {report['machine']}", ""]
    lines.append("this machine (ok: there, --: not there and not needed, !!: needed)")
    for check in report["checks"]:
        lines += fill(check["words"], f"  {_MARKS[check['state']]}  {check['name']:<12} ", 19)
    for tool in report["tools"]:
        lines += ["", *_tool_lines(tool)]
    if report["libraries"]:
        lines += ["", *_library_lines(report["libraries"])]
    if report["hints"]:
        lines += ["", "to mend:"]
        for hint in report["hints"]:
            lines += fill(hint, "  - ", 4)
    return "\n".join(lines)


def _tool_lines(tool: Mapping[str, Any]) -> Iterator[str]:
    mark = {True: "ok", False: "!!", None: "--"}[tool["usable"]]
    yield from fill(tool["summary"], f"{mark}  {tool['name']}: ", 4)
    for problem in tool["problems"]:
        yield from fill(problem, "    ", 6)
    for one in tool.get("privileges", ()):
        lost = f"without it, {one['without']}" if one["without"] else "without it, it cannot run"
        yield from fill(f"it takes {one['it_takes']}: {lost}", "    ", 6)
    width = max([14, *(len(probe["name"]) for probe in tool["probes"])])
    indent = width + 5
    for probe in tool["probes"]:
        yield from fill(_probe_words(probe), f"    {probe['name']:<{width}} ", indent)
        for better in probe["rejected"]:
            words = f"{better['alternative']}: {better['why']}"
            if better["why"] != machine.ROOT_TELLS:
                yield from fill(words, " " * indent + "not ", indent + 4)
    yield from fill(memory.in_sentence(tool["memory"]), "    ", 6)
    if tool["lost_columns"]:
        yield from fill(f"may stay unknown: {', '.join(tool['lost_columns'])}", "    ", 6)


def _probe_words(probe: Mapping[str, Any]) -> str:
    only = f" (with --{probe['option'].replace('_', '-')})" if probe["option"] else ""
    if not probe["kind"]:
        if any(better["why"] == machine.ROOT_TELLS for better in probe["rejected"]):
            return machine.ROOT_TELLS + only
        return ("not used" if probe["optional"] or only else "NOTHING") + only
    where = ", ".join(probe["targets"])
    return f"{probe['kind']} {'found while running' if not where else where}{only}"


def _library_lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield "programs whose name lookups can be seen"
    if "error" in found:
        yield f"  !!  {found['error']}"
        return
    for libc in found["libcs"]:
        words = f"{libc['path'] or 'a file that is gone'}, {libc['processes']} processes"
        yield from fill(words, f"  ok  {libc['kind']:<12} ", 19)
    if found["programs"]:
        yield f"  ok  {found['programs']} static or Go programs"
    yield f"  ok  {found['covered']} processes in all"
    gaps = sorted({f"{gap['name']} ({gap['reason']})" for gap in found["uncovered"]})
    if gaps:
        more = f", and {len(gaps) - _MOST_NAMES} more" if len(gaps) > _MOST_NAMES else ""
        words = f"not coverable: {', '.join(gaps[:_MOST_NAMES])}{more}"
        yield from fill(words, f"  --  {len(found['uncovered'])} ", 6)
