"""From a declaration to attached probes: select, generate, compile, attach, and fall back."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Callable

from netbpf.bpf import generate, layout
from netbpf.bpf.attach import attach, release
from netbpf.bpf.compiler import compile_and_load
from netbpf.bpf.loader import Loaded
from netbpf.bpf.maps import Map, possible_cpus
from netbpf.declare.memory import format_size
from netbpf.declare.network import KernelStack
from netbpf.declare.owners import OWNER_PROBES
from netbpf.declare.probes import Iterator, Probe, Role
from netbpf.declare.record import AmendedEvent
from netbpf.declare.stacks import RECORDS_OF_STACKS, user_stacks, wants_stacks
from netbpf.declare.tool import Tool
from netbpf.errors import AttachRefused, NetbpfError, UsageError
from netbpf.kernel import thread_stacks
from netbpf.kernel.btf import FUNC, Btf
from netbpf.kernel.counters import Source
from netbpf.kernel.inspect import Kernel, LiveKernel
from netbpf.kernel.select import Selection, select
from netbpf.run import comm_automaton
from netbpf.system.privileges import refusal_reason

Log = Callable[[str], None]
_MAX_MAPS = 4  # named in messages


class Attached:
    """Programs in the kernel, their selections, and the descriptors that hold them.

    `counters` reads the kernel's own counters, of the namespaces that the programs trace.
    `left_calls` returns which threads have left their calls (kernel/thread_stacks.py).
    """

    counters: Source

    def __init__(self, selections: Sequence[Selection], loaded: Loaded) -> None:
        """Take the loaded programs; attach_targets() attaches them."""
        self.selections = tuple(selections)
        self.loaded = loaded
        self.links: dict[str, list[int]] = {}
        self.user_links: list[int] = []
        # Optional probes that this process may not attach: their events are lost.
        self.not_covered = sum(bool(selection.denied) for selection in selections)
        self.left_calls = thread_stacks.left_calls
        self.closers: list[Callable[[], None]] = []

    def with_role(self, role: Role) -> list[int]:
        """Return the links of the probes that have a role."""
        names = [s.probe.name for s in self.selections if s.probe.role is role]
        return [link for name in names for link in self.links.get(name, ())]

    @property
    def missing(self) -> set[str]:
        """The columns that the probes in use cannot fill."""
        return {name for s in self.selections if s.alternative for name in s.alternative.loses}

    def attach_targets(self) -> None:
        """Attach every program that has a target in the kernel; raise AttachRefused."""
        for selection in self.selections:
            kind = selection.alternative.how if selection.alternative else None
            if not kind or kind.user_space:
                continue
            for name, target in ((n, t) for n, targets in selection.programs for t in targets):
                over = self.loaded.maps.get(getattr(selection.alternative, "over", ""))
                try:
                    link = attach(kind, self.loaded.programs[name], target, over)
                except OSError as error:
                    raise AttachRefused(
                        selection.probe.name,
                        refusal_reason("the kernel refused to attach it", error),
                    ) from error
                self.links.setdefault(selection.probe.name, []).append(link)

    def detach(self) -> None:
        """Detach everything; maps stay readable.

        User-space probes and trace events are detached in the background, as each trace event takes
        80 ms, and more on a busy machine: results were read before, and later events are ignored.
        """
        slow, self.user_links = self.user_links, []
        used = [(s.probe.name, s.alternative.how) for s in self.selections if s.alternative]
        names = [name for name, kind in used if kind.attach == "trace_event"]
        release([*slow, *(link for name in names for link in self.links.pop(name, ()))])
        for links in self.links.values():
            for link in links:
                os.close(link)
        self.links = {}

    def close(self) -> None:
        """Detach, and close programs, maps and everything in `closers`."""
        for close in self.closers:
            close()
        self.detach()
        for fd in (*self.loaded.programs.values(), *self.loaded.maps.values()):
            os.close(fd)
        self.loaded.programs.clear()
        self.loaded.maps.clear()

    def log_choice(self, log: Log) -> None:
        """Log the kind and targets of each probe, and why better ones were rejected."""
        for selection in self.selections:
            resolved = "resolved while running" if selection.kind else ""
            where = f"{selection.kind or 'none'} {', '.join(selection.targets) or resolved}"
            log(f"probe {selection.probe.name}: {where}".rstrip())
            for text, why in selection.rejected:
                log(f"  not {text}: {why}")

    def described(self) -> list[dict[str, Any]]:
        """Return the summary's list of probes, without redundant ones."""
        return [
            {
                "name": selection.probe.name,
                "kind": selection.kind or None,
                "targets": list(selection.targets),
                "rejected": [f"{text}: {why}" for text, why in selection.rejected],
            }
            for selection in self.selections
            if not selection.redundant
        ]


def probes_of(tool: Tool, settings: Mapping[str, Any]) -> list[Probe]:
    """Return the probes that a tool needs with these settings.

    Those that find owners fill a map, which costs time and can be full: only if owners are shown.
    """
    shown = tool.shows_owners(settings)
    return [
        probe
        for probe in tool.all_probes
        if (shown or (probe not in OWNER_PROBES and probe.role is not Role.OWNERS))
        and (not probe.option or settings.get(probe.option))
        and not any(settings.get(option) for option in probe.unless.split())
    ]


def start(
    tool: Tool, settings: Mapping[str, Any], kernel: LiveKernel, defines: Sequence[str], log: Log
) -> Attached:
    """Return `tool`'s programs, attached; an alternative that the kernel refuses is skipped."""
    with types_from(settings.get("btf")):
        return _start(tool, settings, kernel, defines, log)


@contextmanager
def types_from(path: Any) -> Generator[None, None, None]:
    """Name the type file `path`, if given, in errors that its types may have caused."""
    try:
        yield
    except UsageError:
        raise
    except NetbpfError as error:
        if path:
            error.message = f"with the types of '{path}': {error.message}"
            error.hint = "--btf needs a file that was generated from the running kernel"
        raise


def _source(tool: Tool) -> str:
    path = layout.program_directory() / f"{tool.name}.bpf.c"
    if not path.is_file():
        raise NetbpfError(
            f"tool '{tool.name}' has no program '{path}'",
            "a tool's docstring begins with its name, which its three files have too",
        )
    return layout.program_text(path)


def _start(
    tool: Tool, settings: Mapping[str, Any], kernel: LiveKernel, defines: Sequence[str], log: Log
) -> Attached:
    probes = probes_of(tool, settings)
    forced = parse_forced(settings.get("probe"))
    text = _source(tool)
    refused: dict[tuple[str, str], str] = {}

    def find_target(function: str) -> int:
        # The kernel expects its own type ids, which may differ from those of a file.
        return (Btf() if settings.get("btf") else kernel.btf).find(function, FUNC)

    while True:
        selections = select(probes, kernel, refused, forced)
        headers, entries = generated(tool, text, kernel, selections, defines)
        program = text + entries
        try:
            maps = maps_of(tool, settings)
            loaded = compile_and_load(program, headers, selections, maps, find_target, log)
            log(memory_text(loaded.memory))
            attached = Attached(selections, loaded)
            try:
                if settings.get("comm"):
                    _fill_tokens(loaded, settings["comm"])
                attached.attach_targets()
            except BaseException:
                attached.close()
                raise
            return attached
        except AttachRefused as error:
            kind = next(
                selection.kind for selection in selections if selection.probe.name == error.probe
            )
            log(f"probe {error.probe}: {kind}: {error.message}\n{error.detail}".rstrip())
            refused[error.probe, kind] = error.message


def _fill_tokens(loaded: Loaded, glob: str) -> None:
    tokens = Map.from_fd(loaded.maps[comm_automaton.MAP])
    tokens.set(bytes(tokens.key_size), comm_automaton.CommAutomaton.of(glob).table())


def generated(
    tool: Tool,
    text: str,
    kernel: Kernel,
    selections: Sequence[Selection],
    defines: Sequence[str] = (),
) -> tuple[dict[str, str], str]:
    """Return the generated headers <netbpf/NAME> by name, and the entries to append to `text`."""
    cpus = f"#define CPUS {possible_cpus()}"  # see LRU_ENTRIES
    header = layout.header(kernel, layout.manifests(text), selections)
    headers = {
        "kernel.h": "\n".join([*defines, cpus, header, generate.enums(tool)]),
        "records.h": generate.structs(tool),
    }
    return headers, generate.entries(kernel, selections)


def generated_text(tool: Tool, kernel: Kernel) -> str:
    """Return the C text generated for `tool` on `kernel`, with all of its probes."""
    text = _source(tool)
    headers, entries = generated(tool, text, kernel, select(tool.all_probes, kernel))
    parts = {**{f"<netbpf/{name}>": part for name, part in headers.items()}, "entries": entries}
    return "\n".join(f"/* {name} */\n{part}" for name, part in parts.items())


def memory_text(sizes: Mapping[str, int]) -> str:
    """Return a description of the memory that maps and buffers take, with the largest ones."""
    largest = sorted(sizes.items(), key=lambda pair: -pair[1])[:_MAX_MAPS]
    named = ", ".join(f"{name} {format_size(size)}" for name, size in largest)
    rest = f", and {len(sizes) - len(largest)} more" if len(sizes) > len(largest) else ""
    total = format_size(sum(sizes.values()))
    return f"maps and buffers take {total} of kernel memory: {named}{rest}"


def maps_of(tool: Tool, settings: Mapping[str, Any]) -> list[str]:
    """Return the names of the maps that the reader needs."""
    alternatives = [a for probe in probes_of(tool, settings) for a in probe.alternatives]
    names = ["losses", *tool.maps]
    names += [a.over for a in alternatives if isinstance(a, Iterator) and a.over]
    if tool.event and tool.has_events(settings):
        names += ["events", *(["late"] if issubclass(tool.event, AmendedEvent) else [])]
    if tool.pending:
        names.append(tool.pending[0])
    if settings.get("comm"):
        names.append(comm_automaton.MAP)
    if tool.totals:
        names.append("totals")
    histogram = tool.histogram_of(settings)
    if histogram and histogram.map:
        names.append(histogram.map)
    tables = tool.tables_of(settings)
    names += [table.map for table in tables]
    keys = [column for table in tables for column in table.key.columns]
    if wants_stacks(settings):
        names += [column.map for column in keys if isinstance(column, KernelStack)]
    return names + list(RECORDS_OF_STACKS if user_stacks(tool.records, settings) else ())


def parse_forced(text: Any) -> dict[str, str]:
    """Parse --probe's "state=tp,accept=kretprobe"."""
    pairs = [word.partition("=") for word in (text or "").split(",") if word]
    if any(not equals or not kind for _, equals, kind in pairs):
        raise UsageError(f"--probe: '{text}' is not NAME=KIND,...", "for example --probe state=tp")
    return {name: kind for name, _, kind in pairs}
