"""The privileges that tools need, and their purpose.

Error messages, `netbpf doctor`, the summary and README are derived from these declarations.
`needs_of` returns the privileges of one tool; most follow from its probes, counters and columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from netbpf.declare.network import KernelStack, KernelSymbol
from netbpf.declare.stacks import user_stacks, wants_stacks

if TYPE_CHECKING:
    from netbpf.declare.tool import Tool


class Need(NamedTuple):
    """A privilege.

    Each capability in `any_of` is sufficient. `to` completes the sentence "needs CAP_X to".
    `without` describes what is missing without the privilege; if it is empty, the tool cannot run.
    With `hides`, rows are missing. `running`: the privilege is needed after attaching; with
    `helper`, only by a helper process, so that the tool itself drops it.
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
CGROUPS = Need(("CAP_NET_ADMIN", "CAP_SYS_ADMIN"), "load programs of cgroups")
# Since c8644cd0efe7 ("bpf: refine kernel.unprivileged_bpf_disabled behaviour", 5.19) a map can be
# read by its descriptor alone; before, this needed CAP_BPF if the sysctl was not 0.
MAPS = Need(("CAP_BPF", "CAP_SYS_ADMIN"), "read BPF maps on this kernel", running=True)
# Only root can search and read tracefs, unless it is mounted with a gid.
TRACEFS = Need(("CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE"), "read /sys/kernel/tracing (tracefs)")
MOUNT = Need(("CAP_SYS_ADMIN",), "mount tracefs (it is not mounted at /sys/kernel/tracing)")
# CAP_PERFMON was sufficient from 5.8 until ba677dbe77af ("perf: Revert to requiring CAP_SYS_ADMIN
# for uprobes", 6.16, and stable kernels from 5.10.240); a test attach determines which applies.
# uprobe_multi links (6.6) need neither, only the descriptor of the program.
UPROBES = Need(("CAP_SYS_ADMIN",), "attach uprobes", running=True, helper=True)
UPROBES_BEFORE = Need(("CAP_PERFMON", "CAP_SYS_ADMIN"), UPROBES.to, running=True, helper=True)
PROCESSES = Need(("CAP_SYS_PTRACE",), "inspect processes of other users", running=True, helper=True)
FILES = Need(
    ("CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE"),
    "read program files without read permission",
    "programs whose files are not readable by this user are not covered",
    running=True,
    helper=True,
)
MAPPED = Need(
    ("CAP_CHECKPOINT_RESTORE", "CAP_SYS_ADMIN"),
    "open mapped libraries that were deleted or replaced",
    "programs that use a deleted or replaced library are not covered",
    running=True,
    helper=True,
)
LOOKUPS = (UPROBES, PROCESSES, FILES, MAPPED)
STACKS = (
    Need(("CAP_SYS_PTRACE",), "read the mappings of other users' processes",
         "user stacks of other users' processes are not unwound", running=True, helper=True),
    Need(FILES.any_of, FILES.to, "user stacks have no names of files that this user cannot read",
         running=True, helper=True),
    Need(MAPPED.any_of, "open mapped files that were deleted or replaced",
         "user stacks have no names of deleted or replaced files", running=True, helper=True),
    Need(("CAP_SYS_NICE",), "read the mappings of a process before it ends",
         "user stacks of processes that end soon may lack functions", running=True, helper=True),
)  # fmt: skip
_OTHERS = "kernel counters do not include all network namespaces"
COUNTERS = (
    Need(("CAP_SYS_ADMIN",), "enter network namespaces to read kernel counters", _OTHERS,
         running=True, helper=True),
    Need(("CAP_SYS_PTRACE",), "find the network namespaces of other users' processes", _OTHERS,
         running=True, helper=True),
    Need(("CAP_DAC_READ_SEARCH", "CAP_DAC_OVERRIDE"), "open namespaces that other users mounted",
         _OTHERS, running=True, helper=True),
)  # fmt: skip
_WANTED = "kernel counters of that network namespace are missing"
ONE_NAMESPACE = (
    Need(("CAP_SYS_ADMIN",), "enter the network namespace to read kernel counters", _WANTED),
)
_EARLIER = "sockets that existed before the start in other network namespaces may be missing"
FIRST = (
    Need(("CAP_SYS_ADMIN",), "enter network namespaces to list existing sockets", _EARLIER, True),
    Need(("CAP_SYS_PTRACE",), "find the network namespaces of other users' processes", _EARLIER,
         True),
)  # fmt: skip
_DEVICES = "counters of devices in other network namespaces are not compared"
DEVICES = (
    Need(("CAP_SYS_ADMIN",), "read device counters in other network namespaces", _DEVICES),
    Need(("CAP_SYS_PTRACE",), "find the network namespaces of other users' processes", _DEVICES),
)
_PROGRAMS = "the XDP and tc programs of network devices are not listed"
DEVICE_PROGRAMS = (
    Need(("CAP_SYS_ADMIN",), "list the BPF programs of network devices", _PROGRAMS),
    Need(("CAP_SYS_PTRACE",), "find the network namespaces of other users' processes", _PROGRAMS),
)
STATISTICS = Need(
    ("CAP_SYS_ADMIN",), "measure the run time of BPF programs", "overhead is not measured",
    running=True, helper=True,
)  # fmt: skip
LIMIT = Need(STATISTICS.any_of, f"{STATISTICS.to} (--max-overhead)", running=True, helper=True)
# Needed if kernel.perf_event_paranoid is above 1 or kernel.kptr_restrict is 1.
SYMBOLS = Need(
    ("CAP_SYSLOG",), "read the addresses of kernel functions", "locations are shown as addresses"
)
PLACES = Need(
    SYMBOLS.any_of,
    f"{SYMBOLS.to}: the caller decides whether a freed packet was lost",
)
OF_PROCESS = Need(("CAP_SYS_PTRACE",), "see which network namespace another user's process is in")
HIDDEN = Need(("CAP_SYS_PTRACE",), "see a process that /proc (hidepid) hides from this user")
OF_DEVICES = Need(("CAP_SYS_ADMIN",), "list network devices in other network namespaces")
# Before 80ee81e0403c ("bpf: Eliminate rlimit-based memory accounting infra for bpf maps", 5.11).
MEMORY = Need(("CAP_SYS_RESOURCE",), "lock more memory than RLIMIT_MEMLOCK allows")
UNDISTURBED = Need(
    ("CAP_SYS_NICE", "CAP_SYS_RESOURCE"),
    "read maps without being preempted",
    "on a preemptible kernel, events during a map read may be missed",
)
READY_FILE = Need(
    ("CAP_DAC_OVERRIDE",), "remove --ready-file from another user's directory",
    "the ready file is not removed",
    running=True,
)  # fmt: skip


def needs_of(tool: Tool, settings: Mapping[str, Any]) -> list[Need]:
    """Return the privileges that `tool` needs with `settings`.

    Probe selection reports those that the selected probes need in addition (TRACEFS).
    """
    needs = [PROGRAMS, ATTACH]
    if any(way.how.attach == "cgroup" for probe in tool.all_probes for way in probe.alternatives):
        needs.append(CGROUPS)
    if tool.uprobes:
        needs += LOOKUPS
    if user_stacks(tool.records, settings):
        needs += STACKS
    if any(table.first for table in tool.tables_of(settings)):
        needs += FIRST
    if tool.namespace_counters:
        needs += ONE_NAMESPACE if settings.get("netns") else COUNTERS
    if any(table.programs and table.with_programs(settings) for table in tool.tables_of(settings)):
        needs += DEVICE_PROGRAMS
    if tool.compare_devices:
        needs += DEVICES
    if _shows_symbols(tool, settings):  # kernel_constants are addresses that the program compares
        needs.append(PLACES if tool.kernel_constants else SYMBOLS)
    needs.append(LIMIT if settings.get("max_overhead") else STATISTICS)
    return [*needs, UNDISTURBED]


def _shows_symbols(tool: Tool, settings: Mapping[str, Any]) -> bool:
    records = [tool.event] if tool.event and tool.has_events(settings) else []
    rows = [table.row for table in tool.tables_of(settings)]
    columns = [column for record in (*records, *rows) for column in record.columns]
    return any(
        isinstance(column, KernelSymbol)
        or (isinstance(column, KernelStack) and wants_stacks(settings))
        for column in columns
    )
