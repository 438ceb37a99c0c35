"""The privileges that tools need, and what for: declared once.

Errors, `netbpf doctor`, the summary and README take them from here. Most follow from what a tool
declares (its probes, counters, columns); `needs_of` returns those of one tool.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from netbpf.declare.network import KernelStack, KernelSymbol

if TYPE_CHECKING:
    from netbpf.declare.tool import Tool


class Need(NamedTuple):
    """What a process must be allowed to do.

    Each of the capabilities `any_of` gives it; `to` says what for, as the end of "needs CAP_X to".
    `without` is what a result lacks without it; if it is empty, the tool cannot do its work. With
    `hides`, what it lacks are rows. `running`: the tool needs it after attaching as well, and with
    `helper` that is done by a process of its own, so that the tool itself can give it up.
    """

    any_of: tuple[str, ...]
    to: str
    without: str = ""
    hides: bool = False
    running: bool = False
    helper: bool = False

    @property
    def name(self) -> str:
        """The capability to ask for."""
        return self.any_of[0]

    @property
    def words(self) -> str:
        """Return "CAP_X to do this"."""
        return f"{self.name} to {self.to}"


PROGRAMS = Need(("CAP_BPF", "CAP_SYS_ADMIN"), "load BPF programs")
ATTACH = Need(("CAP_PERFMON", "CAP_SYS_ADMIN"), "attach programs and read kernel memory")
# Since c8644cd0efe7 ("bpf: refine kernel.unprivileged_bpf_disabled behaviour", 5.19) a map's
# descriptor is enough to read it; before, where that setting is not 0, it takes CAP_BPF as well.
MAPS = Need(("CAP_BPF", "CAP_SYS_ADMIN"), "read BPF maps on this kernel", running=True)
# Only root may search tracefs, and read what is in it, unless it is mounted for a group.
TRACEFS = Need(("CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE"), "read /sys/kernel/tracing (tracefs)")
MOUNT = Need(("CAP_SYS_ADMIN",), "mount tracefs, which is not mounted at /sys/kernel/tracing")
# CAP_PERFMON was enough from 5.8 until ba677dbe77af ("perf: Revert to requiring CAP_SYS_ADMIN for
# uprobes", 6.16, and in stable kernels from 5.10.240): which it is, the kernel is asked. Links of
# many places (6.6) take neither, but the program that they are for.
UPROBES = Need(("CAP_SYS_ADMIN",), "probe programs in user space", running=True, helper=True)
UPROBES_BEFORE = Need(("CAP_PERFMON", "CAP_SYS_ADMIN"), UPROBES.to, running=True, helper=True)
PROCESSES = Need(
    ("CAP_SYS_PTRACE",), "look into processes of other users", running=True, helper=True
)
FILES = Need(
    ("CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE"),
    "read program files that not everybody may read",
    "programs whose files only their users may read are not covered",
    running=True,
    helper=True,
)
MAPPED = Need(
    ("CAP_CHECKPOINT_RESTORE", "CAP_SYS_ADMIN"),
    "open libraries that are in use and were deleted or replaced",
    "programs that use a library which was deleted or replaced are not covered",
    running=True,
    helper=True,
)
LOOKUPS = (UPROBES, PROCESSES, FILES, MAPPED)
_OTHERS = "the kernel's counters are not of all network namespaces"
COUNTERS = (
    Need(("CAP_SYS_ADMIN",), "enter network namespaces for the kernel's counters", _OTHERS,
         running=True, helper=True),
    Need(("CAP_SYS_PTRACE",), "find the network namespaces of other users' processes", _OTHERS,
         running=True, helper=True),
    Need(("CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE"), "reach namespaces that other users mounted",
         _OTHERS, running=True, helper=True),
)  # fmt: skip
_WANTED = "the kernel's counters of that network namespace are missing"
ONE_NAMESPACE = (
    Need(("CAP_SYS_ADMIN",), "enter the network namespace for the kernel's counters", _WANTED),
)
_EARLIER = "sockets of other network namespaces that were there before the start may be missing"
FIRST = (
    Need(("CAP_SYS_ADMIN",), "enter network namespaces for the sockets that exist", _EARLIER, True),
    Need(("CAP_SYS_PTRACE",), "find the network namespaces of other users' processes", _EARLIER,
         True),
)  # fmt: skip
_DEVICES = "counters of devices in other network namespaces are not compared"
DEVICES = (
    Need(("CAP_SYS_ADMIN",), "read device counters in other network namespaces", _DEVICES),
    Need(("CAP_SYS_PTRACE",), "find the network namespaces of other users' processes", _DEVICES),
)
STATISTICS = Need(
    ("CAP_SYS_ADMIN",), "have the kernel count what programs cost", "overhead is not measured"
)
LIMIT = Need(STATISTICS.any_of, f"{STATISTICS.to} (--max-overhead)")
# Where kernel.perf_event_paranoid is more than 1 or kernel.kptr_restrict is 1: the kernel is asked.
SYMBOLS = Need(
    ("CAP_SYSLOG",), "read the addresses of kernel functions", "places are shown as addresses"
)
PLACES = Need(
    SYMBOLS.any_of,
    f"{SYMBOLS.to}: what is freed at some places was not lost",
)
OF_PROCESS = Need(("CAP_SYS_PTRACE",), "see which network namespace another user's process is in")
HIDDEN = Need(("CAP_SYS_PTRACE",), "see a process that /proc (hidepid) hides from this user")
OF_DEVICES = Need(("CAP_SYS_ADMIN",), "look for network devices in other network namespaces")
# Before 80ee81e0403c ("bpf: Eliminate rlimit-based memory accounting infra for bpf maps", 5.11).
MEMORY = Need(("CAP_SYS_RESOURCE",), "lock more memory than RLIMIT_MEMLOCK allows")
UNDISTURBED = Need(
    ("CAP_SYS_NICE", "CAP_SYS_RESOURCE"),
    "read maps without being kept from the CPU",
    "on a kernel that preempts, events of the time of a read may be missed",
)
READY_FILE = Need(
    ("CAP_DAC_OVERRIDE",), "remove --ready-file from another user's directory", "it stays",
    running=True,
)  # fmt: skip


def needs_of(tool: Tool, settings: Mapping[str, Any]) -> list[Need]:
    """Return the privileges that `tool` needs with these settings, by capability.

    What the chosen probes need in addition (TRACEFS) is for the choice of probes to say.
    """
    found = [PROGRAMS, ATTACH]
    if tool.uprobes:
        found += LOOKUPS
    if any(table.first for table in tool.tables_of(settings)):
        found += FIRST
    if tool.counters or tool.interval_counters:
        found += ONE_NAMESPACE if settings.get("netns") else COUNTERS
    if tool.compare_devices:
        found += DEVICES
    if _names_places(tool, settings):  # and its program goes by them, if it asks for constants
        found.append(PLACES if tool.kernel_constants else SYMBOLS)
    found.append(LIMIT if settings.get("max_overhead") else STATISTICS)
    return [*found, UNDISTURBED]


def _names_places(tool: Tool, settings: Mapping[str, Any]) -> bool:
    records = [tool.event] if tool.event and tool.has_events(settings) else []
    rows = [table.row for table in tool.tables_of(settings)]
    columns = [column for record in (*records, *rows) for column in record.columns]
    return any(
        isinstance(column, KernelSymbol)
        or (isinstance(column, KernelStack) and settings.get(column.option))
        for column in columns
    )
