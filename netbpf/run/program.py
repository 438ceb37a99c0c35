"""From a declaration to attached probes: select, generate, compile, attach, and fall back."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Optional

from netbpf.bpf import generate, layout
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
from netbpf.kernel.btf import FUNC, Btf
from netbpf.kernel.inspect import Kernel, LiveKernel
from netbpf.kernel.select import Selection, select
from netbpf.run import comm_automaton
from netbpf.run.attached import Attached, Log

_MAX_MAPS = 4  # named in messages
OWNERS = "owners"  # the map of include/owner_map.bpf.h
_FOLLOWS_OWNERS = "#define ON_OWNER("


def probes_of(tool: Tool, settings: Mapping[str, Any], shared: bool = False) -> list[Probe]:
    """Return the probes that a tool needs with these settings.

    Those that find owners fill a map, which costs time and can be full: only if owners are shown,
    and not if the owners are `shared` with other tools.
    """
    shown = tool.shows_owners(settings)
    unused = OWNER_PROBES if shared or not shown else ()
    return [
        probe
        for probe in tool.all_probes
        if probe not in unused
        and (shown or probe.role is not Role.OWNERS)
        and (not probe.option or settings.get(probe.option))
        and not any(settings.get(option) for option in probe.unless.split())
    ]


def may_share_owners(tool: Tool, settings: Mapping[str, Any]) -> bool:
    """Return whether a tool shows owners of sockets with these settings, found as others do."""
    in_its_own_way = any(probe.role is Role.OWNERS for probe in tool.all_probes)
    return tool.owners and tool.shows_owners(settings) and not in_its_own_way


class Program:
    """The program of a tool on its way into the kernel; an alternative that it refuses is skipped.

    `owners` are programs that find owners for several tools.
    """

    def __init__(
        self,
        tool: Tool,
        settings: Mapping[str, Any],
        kernel: LiveKernel,
        defines: Sequence[str],
        log: Log,
        owners: Optional[Attached] = None,
    ) -> None:
        self._tool, self._settings, self._kernel, self._log = tool, settings, kernel, log
        self._text = _source(tool)
        self._owners = owners if may_share_owners(tool, settings) else None
        self._defines = [*defines, *["#define OWNERS_SHARED 1"] * bool(self._owners)]
        # A program that follows each proof of an owner has the probes itself.
        shared = bool(self._owners) and _FOLLOWS_OWNERS not in self._text
        self._probes = probes_of(tool, settings, shared)
        self._forced = parse_forced(settings.get("probe"))
        self._refused: dict[tuple[str, str], str] = {}
        self._loaded: Optional[Attached] = None

    def load(self) -> None:
        """Compile and load it, unless that is done."""
        while not self._loaded:
            with types_from(self._settings.get("btf")), self._noting_refusals():
                self._loaded = self._load()

    def attach(self) -> Attached:
        """Return it attached."""
        while True:
            self.load()
            attached, self._loaded = self._loaded, None
            assert attached
            with types_from(self._settings.get("btf")), self._noting_refusals():
                with _closed_on_error(attached):
                    attached.attach_targets()
                return attached

    def close(self) -> None:
        """Close what is loaded and not attached."""
        if self._loaded:
            self._loaded.close()
            self._loaded = None

    def _load(self) -> Attached:
        selections = self._selections = select(
            self._probes, self._kernel, self._refused, self._forced
        )
        headers, entries = generated(
            self._tool, self._text, self._kernel, selections, self._defines
        )
        maps = maps_of(self._tool, self._settings)
        shared = {OWNERS: self._owners.loaded.maps[OWNERS]} if self._owners else {}
        loaded = compile_and_load(
            self._text + entries, headers, selections, maps, self._find_target, self._log, shared
        )
        self._log(memory_text(loaded.memory))
        attached = Attached(selections, loaded, self._owners)
        if self._settings.get("comm"):
            with _closed_on_error(attached):
                _fill_tokens(loaded, self._settings["comm"])
        return attached

    def _find_target(self, function: str) -> int:
        # The kernel expects its own type ids, which may differ from those of a file.
        types = Btf() if self._settings.get("btf") else self._kernel.btf
        return types.find(function, FUNC)

    @contextmanager
    def _noting_refusals(self) -> Generator[None, None, None]:
        """Note the alternative that the kernel refused, for the next attempt."""
        try:
            yield
        except AttachRefused as error:
            kind = next(s.kind for s in self._selections if s.probe.name == error.probe)
            self._log(f"probe {error.probe}: {kind}: {error.message}\n{error.detail}".rstrip())
            self._refused[error.probe, kind] = error.message


@contextmanager
def _closed_on_error(attached: Attached) -> Generator[None, None, None]:
    try:
        yield
    except BaseException:
        attached.close()
        raise


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
