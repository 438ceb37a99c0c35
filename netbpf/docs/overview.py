"""netbpf - network tracing tools that run on the kernel at hand

DESCRIPTION
  netbpf is a set of tools that show what Linux does with sockets, connections and packets, while it
  happens, and without any change to programs. Each tool is a small BPF program and a reader.

  The BPF programs are compiled when a tool starts, for the running kernel and without kernel
  headers: where a field is comes from the kernel's own BTF. Each tool has several ways to see what
  it needs. The first one that this kernel offers is used, and what that one cannot tell is shown as
  unknown.

OUTPUT
  Text is for people and may change. JSON (--json) and CSV (-o csv) are for programs: fields may be
  added, but are not renamed. Data goes to standard output, everything else to standard error.

  JSON is one object per line. Each has "tool" and "type": "event", "interval" (a row of a table),
  "histogram", "counters" or "summary". All but the summary have "time" (RFC 3339, UTC,
  microseconds): that of the event, not of printing. The summary is always the last line, with
  "start" and "end". 'netbpf schema TOOL' prints the JSON Schema.

  CSV holds one kind of rows. Of a tool that has several it is the one that an option asks for
  (--events, --top), else the main table; standard error names what is left out.

  Names that come from outside (of processes, hosts, files) are escaped, so that they cannot send
  control sequences to a terminal.

FILTERS
  -p and --netns take ids as ps and lsns show them where netbpf runs; --netns also takes a name of
  ip-netns(8) or a path. Process ids in the output are those of the host, also in a PID namespace.
  Times are those of the host, also in a time namespace. What cannot match is an error; a run that
  shows nothing names the filters that it had.

SUMMARY
  Every run ends by saying what its result is worth: how much was seen in what time; what was lost,
  by cause, zeros included; which probes were used, and what they cost; and what the kernel's own
  counters say about the same time, in the namespace of --netns or in all that can be found
  together; no other filter applies to them. Causes of loss:

  ring_full     events that found no room in the ring buffer; --buffer makes it larger
  map_full      sockets, calls or keys that found no room, and values that may be wrong for that
                reason; --map-entries allows more
  probe_missed  runs that the kernel skipped, as a BPF program was active on that CPU already; it
                counts them since 5.12, those at trace events, kprobes and uprobes since 6.7
  reader        records that could not be read
  unseen        what the kernel counted and showed to no program (tcpretrans)

  "complete" is true if all of them are zero. With --fail-on-loss the exit status says it too.

PRIVILEGES
  Tracing needs CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN, which root has. No probe is left
  behind: they are held by file descriptors, and end when netbpf ends, however it ends.

ENVIRONMENT
  NETBPF_CACHE  where compiled programs are kept for the next start, which is then several times as
                fast; /run/netbpf unless told, in memory and gone after a reboot; "off" keeps none

  The directory is used only if it belongs to the user who traces and nobody else can write to it.
"""

from __future__ import annotations

from netbpf import __version__
from netbpf.declare.docs import written
from netbpf.declare.options import EVENT_LIMITS, FILTERS, LIMITS, OUTPUT
from netbpf.declare.tool import all_tools, sections_of
from netbpf.docs.pages import Block, Heading, Paragraph, Section, Terms, as_roff, parse
from netbpf.docs.wording import EXIT_STATUS, describe_option

_DOC = written(__doc__, __file__)

# The group's own commands; a contract test compares them with the command line.
COMMANDS = {
    "list": "list the tools with a sentence each",
    "doctor": "say what each tool will use on this machine, what is missing, how to mend it",
    "demo": "make a little traffic on loopback and show what each tool sees of it",
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
            Paragraph("netbpf list | doctor | demo [TOOL...] | schema TOOL"),
        ),
        "DESCRIPTION": own.pop("DESCRIPTION"),
        "TOOLS": (Terms(tools),),
        "COMMANDS": (Terms(tuple(COMMANDS.items())),),
        "OPTIONS": _options(),
    }
    last: dict[str, tuple[Block, ...]] = {
        "EXIT STATUS": (Terms(EXIT_STATUS),),
        "SEE ALSO": (Paragraph(pages),),
    }
    return [Section(title, blocks) for title, blocks in {**first, **own, **last}.items()]


def _options() -> tuple[Block, ...]:
    groups = (("Filters", FILTERS), ("Output", OUTPUT), ("Limits", (*LIMITS, *EVENT_LIMITS)))
    blocks: list[Block] = [
        Paragraph(
            "These are common to the tools. A filter that a tool cannot honour is a usage error "
            "and never ignored."
        )
    ]
    for title, group in groups:
        blocks += [Heading(title), Terms(tuple(map(describe_option, group)))]
    return tuple(blocks)
