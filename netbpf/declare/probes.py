"""How a program gets into the kernel: probes, each an ordered list of alternatives.

A probe is a moment that a tool needs ("a socket changes state"). Its alternatives are the ways to
see that moment, best first. Which one is used is chosen by `netbpf.kernel.select` from what the
kernel offers, never from its version. `netbpf.bpf.generate` makes the C entry of the alternative
that is used, `NAME_KIND`, which calls the program's own `on_NAME(arguments)`. `USE_NAME_KIND` is
defined for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

from netbpf.declare.probe_kinds import CONTEXT, KINDS, RESULT, ProbeKind


class Alternative:
    """One way to see a moment.

    `names` are targets that carry the same arguments: the first one that the kernel has is used
    (functions get renamed), or with `every=True` all that it has (one function per family).

    `args` are passed to the C function `on_<probe>`, or the one that `call` names: parameter or
    field names of the target, "return" for a function's result, "ctx" for the context of the
    program. "a|b" is the first of these names that the target has. A name in capitals, or a number,
    is passed to C as it is. If another alternative of the probe passes more to the same function,
    the rest is 0. An alternative whose target lacks an argument is not usable. `loses` are columns
    that this alternative cannot fill.
    """

    kind = ""

    def __init__(
        self,
        *names: str,
        args: Sequence[str] = (),
        loses: Sequence[str] = (),
        every: bool = False,
        call: str = "",
    ) -> None:
        self.names = names
        self.args = tuple(args)
        self.loses = tuple(loses)
        self.every = every
        self.call = call

    def __repr__(self) -> str:
        return f"{self.kind}:{'|'.join(self.names)}"

    @property
    def how(self) -> ProbeKind:
        """What the kind is."""
        return KINDS[self.kind]

    @property
    def words(self) -> str:
        """The kind as manuals name it."""
        return self.how.label

    @property
    def needed(self) -> tuple[tuple[str, ...], ...]:
        """What the target must have: for each argument the names that it may have."""
        return tuple(tuple(arg.split("|")) for arg in self.args if is_of_target(arg))


def is_of_target(arg: str) -> bool:
    """Return whether an argument is the target's own, and no constant, context or result."""
    return arg[:1].islower() and arg not in (RESULT, CONTEXT)


class RawTracepoint(Alternative):
    """A kernel tracepoint with its C arguments, without the copy that trace events make.

    Cheapest, and attached by name through bpf(2), so tracefs is not needed. `args` are parameter
    names of the kernel's TP_PROTO, found through BTF. `names` have no "system:" prefix.
    """

    kind = "rawtp"


class Tracepoint(Alternative):
    """A trace event "system:name"; `args` are field names of its format file in tracefs."""

    kind = "tp"


class Fentry(Alternative):
    """Entry of a kernel function through the BPF trampoline; `args` are parameter names."""

    kind = "fentry"


class Fexit(Alternative):
    """Return of a kernel function through the BPF trampoline, arguments and result at hand."""

    kind = "fexit"


class Kprobe(Alternative):
    """Entry of a kernel function through a breakpoint or ftrace."""

    kind = "kprobe"


class Kretprobe(Alternative):
    """Return of a kernel function; only the result is at hand."""

    kind = "kretprobe"


class Iterator(Alternative):
    """A BPF iterator over kernel objects (`task_file`): run by the reader, attached to nothing.

    `over` names the program's own map, for the iterator over its elements (`bpf_map_elem`).
    """

    kind = "iter"

    def __init__(self, *names: str, over: str = "") -> None:
        super().__init__(*names)
        self.over = over


class Uprobe(Alternative):
    """Entries of user-space functions; the tool's watcher finds the binaries while running."""

    kind = "uprobe"


class Uretprobe(Alternative):
    """Returns of user-space functions; the tool's watcher finds the binaries while running."""

    kind = "uretprobe"


class Role(Enum):
    """What the framework does with a probe, apart from attaching it."""

    NONE = "none"
    STATE = "state"  # follows every TCP state, and so keeps owners itself
    SNAPSHOT = "snapshot"  # an iterator that records the owners of existing sockets
    STALE = "stale"  # an iterator that removes owners of sockets that no longer exist
    OPEN = "open"  # an iterator that writes an event for each thing that is still open


class Probe:
    """A moment that a tool needs, by name, with the ways to see it, best first.

    `optional`: the tool runs without it, `loses` says which columns are then empty. `option`: the
    probe is used only if this option of the tool is given. `with_probe`: it works only together
    with the probe of that name (a kprobe with a kretprobe), uses the same kind as that one, and is
    not used if it has no such alternative. `complements`: it adds what the probe of that name does
    not see, unless that one uses the same kind. `role` is what the framework
    uses it for.
    """

    def __init__(
        self,
        name: str,
        *alternatives: Alternative,
        optional: bool = False,
        loses: Sequence[str] = (),
        option: str = "",
        with_probe: str = "",
        complements: str = "",
        role: Role = Role.NONE,
    ) -> None:
        self.name = name
        self.alternatives = alternatives
        self.optional = optional
        self.loses = tuple(loses)
        self.option = option
        self.with_probe = with_probe
        self.complements = complements
        self.role = role

    def __repr__(self) -> str:
        return f"Probe({self.name}: {', '.join(map(repr, self.alternatives))})"


def traced(
    event: str, raw: Sequence[str] = (), fields: Sequence[str] = (), **more: Any
) -> tuple[Alternative, Alternative]:
    """Return the alternatives of a kernel tracepoint: raw, then the trace event `event`.

    `raw` are the `args` of the first, `fields` those of the second; `more` is for both.
    """
    name = event.partition(":")[2]
    return RawTracepoint(name, args=raw, **more), Tracepoint(event, args=fields, **more)


def tracepoint_probe(
    name: str,
    event: str,
    raw: Sequence[str] = (),
    fields: Sequence[str] = (),
    *,
    call: str = "",
    **options: Any,
) -> Probe:
    """Return the probe `name` of a kernel tracepoint, see traced(); `options` as for Probe."""
    return Probe(name, *traced(event, raw, fields, call=call), **options)
