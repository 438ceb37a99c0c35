"""Probes, each an ordered list of alternatives.

A probe is an event that a tool needs to see ("a socket changes state"). Its alternatives are
the kinds of probes that can trace it, best first. `netbpf.kernel.select` selects one of them by
what the kernel supports, never by its version. `netbpf.bpf.generate` generates the C entry of the
selected alternative, `NAME_KIND`, which calls the program's own `on_NAME(arguments)`, and defines
`USE_NAME_KIND`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

from netbpf.declare.probe_kinds import CONTEXT, KINDS, RESULT, ProbeKind


class Alternative:
    """One way to trace an event: a kind of probe, and its targets.

    `names` are targets with the same arguments: the first one that the kernel has is used, as
    functions get renamed, or with `every=True` all that it has (one function per family).

    `args` are passed to the C function `on_<probe>`, or the one that `call` names: parameter or
    field names of the target, "return" for a function's result, "ctx" for the context of the
    program. "a|b" is the first of these names that the target has. A name in capitals, or a number,
    is passed to C unchanged. If another alternative of the probe passes more to the same function,
    the rest is 0. An alternative is not usable if its target does not have an argument. `loses` are
    columns that it cannot fill.
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
        """The properties of the kind."""
        return KINDS[self.kind]

    @property
    def needed(self) -> tuple[tuple[str, ...], ...]:
        """The arguments that the target must have, each as a tuple of its possible names."""
        return tuple(tuple(arg.split("|")) for arg in self.args if is_of_target(arg))


def is_of_target(arg: str) -> bool:
    """Return whether an argument belongs to the target: no constant, context or result."""
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
    """Return of a kernel function through the BPF trampoline, with arguments and result."""

    kind = "fexit"


class Kprobe(Alternative):
    """Entry of a kernel function through a breakpoint or ftrace."""

    kind = "kprobe"


class Kretprobe(Alternative):
    """Return of a kernel function, with the result only."""

    kind = "kretprobe"


class CgroupSock(Alternative):
    """A hook of all cgroups for making and closing sockets, see HOOKS; the argument is `sk`.

    Programs that the hook runs before this one may be of others.
    """

    kind = "cgsock"


class CgroupAddr(Alternative):
    """A hook of all cgroups for calls with an address, see HOOKS; arguments are `sk`, `uaddr`.

    The program declares KERNEL_FIELDS(bpf_sock_addr_kern, sk, uaddr).
    """

    kind = "cgaddr"


class Iterator(Alternative):
    """A BPF iterator over kernel objects (`task_file`): run on demand, not attached.

    `over` names the program's own map, for the iterator over its elements (`bpf_map_elem`).
    """

    kind = "iter"

    def __init__(self, *names: str, over: str = "") -> None:
        super().__init__(*names)
        self.over = over


class Uprobe(Alternative):
    """Entry of user-space functions; the tool's UprobeManager finds the binaries while running."""

    kind = "uprobe"


class Uretprobe(Alternative):
    """Return of user-space functions; the tool's UprobeManager finds the binaries while running."""

    kind = "uretprobe"


class Role(Enum):
    """What the framework uses a probe for, in addition to attaching it."""

    NONE = "none"
    STATE = "state"  # traces every TCP state, and records owners itself
    SNAPSHOT = "snapshot"  # an iterator that records the owners of existing sockets
    OWNERS = "owners"  # of use only if owners of sockets are shown, or filters depend on them
    STALE = "stale"  # an iterator that removes owners of sockets that no longer exist
    OPEN = "open"  # an iterator that writes an event for each open object
    SWEEP = "sweep"  # an iterator that emits events whose end no probe shows: run every second
    LAST = "last"  # removes what other programs at the same place read: attached after them


class Probe:
    """An event that a tool needs to see, and the alternatives to trace it, best first.

    `optional`: the tool runs without it; the columns `loses` are then empty. `option`: the probe is
    used only if this option of the tool is given, `unless`: only if none of these options is, whose
    names are separated by spaces; "interval" is the argument INTERVAL. `with_probe`: it works only
    together with the probe of that name (a kprobe with a kretprobe), uses the same kind, and is not
    used if it has no such alternative. `complements`: it traces what the probe of that name does
    not see, unless that one uses the same kind. `role` is its use in the framework.
    """

    def __init__(
        self,
        name: str,
        *alternatives: Alternative,
        optional: bool = False,
        loses: Sequence[str] = (),
        option: str = "",
        unless: str = "",
        with_probe: str = "",
        complements: str = "",
        role: Role = Role.NONE,
    ) -> None:
        self.name = name
        self.alternatives = alternatives
        self.optional = optional
        self.loses = tuple(loses)
        self.option = option
        self.unless = unless
        self.with_probe = with_probe
        self.complements = complements
        self.role = role

    def __repr__(self) -> str:
        return f"Probe({self.name}: {', '.join(map(repr, self.alternatives))})"


def tracepoints(
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
    """Return the probe `name` of a kernel tracepoint, see tracepoints(); `options` as for Probe."""
    return Probe(name, *tracepoints(event, raw, fields, call=call), **options)
