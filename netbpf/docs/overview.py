"""netbpf - network tracing tools that run on the kernel at hand

DESCRIPTION
  netbpf is a set of tools that trace sockets, connections, name lookups and packets in Linux,
  without modifying the traced programs. Each tool consists of small BPF programs and a reader.

  The BPF programs are compiled when a tool starts, for the running kernel and without kernel
  headers: the layout of kernel structs comes from the kernel's BTF. Each tool has alternative
  probes and uses the first ones that the running kernel supports. Columns that these cannot fill
  are shown as unknown.

OUTPUT
  Text is for people and may change. On a terminal it has as many columns as fit: those of the
  lowest priority are left out, long names are cut and marked with ~, and further columns are added
  where there is room. The heading is repeated when that changes, as for a first IPv6 address or
  another size of the window. In a pipe text has the columns of a terminal of 80 characters, and
  nothing is cut. --columns chooses columns, -w shows all. Failures are red on a terminal.

  JSON (--json) and CSV (-o csv) are for programs: fields may be
  added, but are not renamed. Data goes to standard output, everything else to standard error.

  JSON is one object per line. Each has "tool" and "type": "event", "interval" (a row of a table,
  or something that has not ended yet), "histogram", "counters", "progress" (every 10 seconds) or
  "summary". All but the summary have "time" (RFC 3339, UTC, microseconds), which is the time of
  the event, not of printing. The summary is always the last line and has "start" and "end".
  'netbpf schema TOOL' prints the JSON Schema.

  CSV holds one kind of rows: those that an option asks for (--events, --top), else those of the
  main table. Standard error names what is left out.

  Names from outside (of processes, hosts, files) are escaped, so that they cannot send control
  sequences to a terminal.

FILTERS
  -p and --netns take the ids that ps and lsns show where netbpf runs; --netns also takes a name of
  ip-netns(8) or a path. Process ids in the output are those of the host, also in a PID namespace.
  Times are those of the host, also in a time namespace. A filter that cannot match is an error. A
  run that shows nothing names the filters that were set.

SUMMARY
  Every run ends with a summary: what was seen in what time; what was lost, by cause; the
  probes that were used and their cost; and how much the kernel's own counters grew in the same
  time, in the namespace of --netns or summed over all that can be found. No other filter applies
  to these counters. Zeros are named in JSON, in text only with -v. Causes of loss:

  ring_full     events that found no room in the ring buffer; --buffer makes it larger
  map_full      sockets, calls or keys that could not be followed as a map was full, and values
                that may be wrong for that reason; --map-entries allows more
  probe_missed  runs that the kernel skipped as a BPF program was active on that CPU; counted
                since 5.12, for tracepoints, kprobes and uprobes since 6.7
  reader        records that could not be decoded
  unwritten     events before the stop that could not be written in time
  not_covered   probes, processes or namespaces that could not be observed; notes name them
  unseen        events that the kernel counted and showed to no program (tcpretrans)

  "complete" is true if all of them are zero. With --fail-on-loss the exit status reports it too.

PRIVILEGES
  Tracing needs CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN, which root has. Once its probes are
  attached, a tool drops the capabilities that it no longer needs. Probes are held by file
  descriptors: the kernel removes them when netbpf ends, however it ends.

ENVIRONMENT
  NO_COLOR      if set, text has no colours and no bold headings; so has TERM=dumb
  NETBPF_CACHE  directory of compiled programs, which make the next start several times faster;
                default /run/netbpf, in memory and gone after a reboot; "off" disables the cache

  The directory is used only if it belongs to the user who traces and no other user can write to it.
"""

from __future__ import annotations

from netbpf import __version__
from netbpf.declare.aliases import all_aliases
from netbpf.declare.docs import written
from netbpf.declare.options import EVENT_LIMITS, FILTERS, LIMITS, OUTPUT, SORT
from netbpf.declare.tool import all_tools, sections_of
from netbpf.docs.pages import Block, Heading, Paragraph, Section, Terms, as_roff, parse
from netbpf.docs.wording import EXIT_STATUS, describe_option

_DOC = written(__doc__, __file__)

# The commands that are not tools; a contract test compares them with the command line.
COMMANDS = {
    "list": "list the tools with their summaries",
    "doctor": "show which probes each tool will use here, what is missing, and how to fix it",
    "demo": "generate traffic on loopback and show the output of each tool",
    "record": "run several tools in one process, and print what they show as JSON lines",
    "triage": "find out what is wrong with the network of this machine",
    "schema": "print the JSON Schema of a tool's JSON lines",
}


def overview_page() -> str:
    """Return the man page netbpf(8) in roff."""
    return as_roff("netbpf", f"netbpf {__version__}", overview_sections())


def overview_sections() -> list[Section]:
    """Return the manual of netbpf as a whole."""
    own = {title: parse(text) for title, text in sections_of(_DOC).items()}
    tools = tuple((tool.name, tool.summary) for tool in all_tools())
    pages = ", ".join(f"netbpf-{name}(8)" for name, _ in tools)
    first: dict[str, tuple[Block, ...]] = {
        "NAME": (Paragraph(_DOC.partition("\n")[0]),),
        "SYNOPSIS": (
            Paragraph("netbpf TOOL [OPTIONS] [INTERVAL [COUNT]]"),
            Paragraph("netbpf triage | record TOOL..."),
            Paragraph("netbpf list | doctor | demo [TOOL...] | schema TOOL"),
        ),
        "DESCRIPTION": own.pop("DESCRIPTION"),
        "TOOLS": (Terms(tools),),
        "ALIASES": (
            Paragraph("Names of other suites, with their columns and flags:"),
            Terms(tuple((alias.name, f"same as: {alias.same_as}") for alias in all_aliases())),
        ),
        "COMMANDS": (Terms(tuple(COMMANDS.items())),),
        "OPTIONS": _options(),
    }
    last: dict[str, tuple[Block, ...]] = {
        "EXIT STATUS": (Terms(EXIT_STATUS),),
        "SEE ALSO": (Paragraph(pages),),
    }
    return [Section(title, blocks) for title, blocks in {**first, **own, **last}.items()]


def _options() -> tuple[Block, ...]:
    groups = (
        ("Filters", FILTERS),
        ("Output", (*OUTPUT, *SORT)),
        ("Limits", (*LIMITS, *EVENT_LIMITS)),
    )
    blocks: list[Block] = [
        Paragraph(
            "These options are common to the tools. A filter that a tool does not support is a "
            "usage error, never ignored."
        )
    ]
    for title, group in groups:
        blocks += [Heading(title), Terms(tuple(map(describe_option, group)))]
    return tuple(blocks)
