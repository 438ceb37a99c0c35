"""How a program gets into the kernel: probes, each an ordered list of alternatives.

A probe is a moment that a tool needs ("a socket changes state"). Its alternatives are the ways to
see that moment, best first. Which one is used is chosen by `netbpf.kernel.select` from what the
kernel offers, never from its version. In the C program, the entry of alternative KIND of probe
NAME is the function `NAME_KIND`, compiled only if `USE_NAME_KIND` is defined.
"""

from __future__ import annotations

from collections.abc import Sequence


class Alternative:
    """One way to see a moment.

    `names` are targets that carry the same arguments: the first one that the kernel has is used
    (functions get renamed), or with `every=True` all that it has (one function per family).
    `args` are the argument or field names that the C entry reads: an alternative whose target
    lacks one of them is not usable. `loses` are columns that this alternative cannot fill.
    """

    kind = ""
    words = ""

    def __init__(
        self,
        *names: str,
        args: Sequence[str] = (),
        loses: Sequence[str] = (),
        every: bool = False,
    ) -> None:
        self.names = names
        self.args = tuple(args)
        self.loses = tuple(loses)
        self.every = every

    def __repr__(self) -> str:
        return f"{self.kind}:{'|'.join(self.names)}"


class RawTracepoint(Alternative):
    """A kernel tracepoint with its C arguments, without the copy that trace events make.

    Cheapest, and attached by name through bpf(2), so tracefs is not needed. `args` are parameter
    names of the kernel's TP_PROTO, found through BTF. `names` have no "system:" prefix.
    """

    kind, words = "rawtp", "raw tracepoint"


class Tracepoint(Alternative):
    """A trace event "system:name"; `args` are field names of its format file in tracefs."""

    kind, words = "tp", "tracepoint"


class Fentry(Alternative):
    """Entry of a kernel function through the BPF trampoline; `args` are parameter names."""

    kind, words = "fentry", "fentry"


class Fexit(Alternative):
    """Return of a kernel function through the BPF trampoline, arguments and result at hand."""

    kind, words = "fexit", "fexit"


class Kprobe(Alternative):
    """Entry of a kernel function through a breakpoint or ftrace."""

    kind, words = "kprobe", "kprobe"


class Kretprobe(Alternative):
    """Return of a kernel function; only the result is at hand."""

    kind, words = "kretprobe", "kretprobe"


class Iterator(Alternative):
    """A BPF iterator over kernel objects (`task_file`): run by the reader, attached to nothing.

    `over` names the program's own map, for the iterator over its elements (`bpf_map_elem`).
    """

    kind, words = "iter", "BPF iterator"

    def __init__(self, *names: str, over: str = "") -> None:
        super().__init__(*names)
        self.over = over


class Uprobe(Alternative):
    """Entries of user-space functions; the tool's watcher finds the binaries while running."""

    kind, words = "uprobe", "uprobe"


class Uretprobe(Alternative):
    """Returns of user-space functions; the tool's watcher finds the binaries while running."""

    kind, words = "uretprobe", "uretprobe"


class Probe:
    """A moment that a tool needs, by name, with the ways to see it, best first.

    `optional`: the tool runs without it, `loses` says which columns are then empty.
    `option`: the probe is used only if this option of the tool is given. `with_probe`: it works only
    together with the probe of that name (a kprobe with a kretprobe), uses the same kind as that
    one, and is not used if it has no such alternative. `complements`: it adds what the probe of
    that name does not see, unless that one uses the same kind.
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
    ) -> None:
        self.name = name
        self.alternatives = alternatives
        self.optional = optional
        self.loses = tuple(loses)
        self.option = option
        self.with_probe = with_probe
        self.complements = complements

    def __repr__(self) -> str:
        return f"Probe({self.name}: {', '.join(map(repr, self.alternatives))})"
