"""gethostlatency - name lookups: caller, name, latency and result

DESCRIPTION
  Shows each call of getaddrinfo, gethostbyname, gethostbyname2 and gethostbyaddr (and their _r
  forms) when it returns, with its latency and result, and the lookups of Go programs, which do not
  use libc. If a lookup failed, text shows the reason after the name. A call is one line, even if
  libc calls other lookup functions for it.

  Every libc in use is probed, including those of containers and chroots, and every static or Go
  program that contains the functions; new ones are found while tracing. netbpf reports at the start
  and at the end how many processes the probes cover, and which they do not. Lookups that have not
  ended at the end, or at an INTERVAL, are listed. Processes whose lookups may be missed for other
  reasons than those in LIMITS are counted as lost (not_covered).

  A lookup that never returns is a line with the result "abandoned" and its age: its thread was
  cancelled or killed, its program was replaced (exec), or a signal handler jumped out of it
  (siglongjmp). The time of a line is when the lookup ended. A host of more than 254 bytes, or a
  service of more than 31, is truncated: the column truncated (with -w) names which, and text shows
  "..." there.

EXAMPLES
  netbpf gethostlatency                      all lookups
  netbpf gethostlatency --failed -w          those that failed, all columns
  netbpf gethostlatency --min-ms 100         slow ones
  netbpf gethostlatency --host '*.internal'  names of one domain
  netbpf gethostlatency --histogram -d 60    distribution per name over a minute

  Three programs, one of which looks up an unknown name (netbpf gethostlatency):

    TIME         PID COMM          LATms HOST
    10:24:38   17887 getent         0.02 localhost
    10:24:38   17888 curl           0.48 no-such-host.invalid         no such name
    10:24:38   17890 python3        0.12 localhost

OVERHEAD
  Breakpoints and programs together take about 17 us per lookup of a C program in a virtual machine,
  and less on hardware; 9 us per lookup of a Go program. Without probes, the lookup of an address
  takes 20 us. All processes are checked every ten seconds, which takes at most 0.1 ms each, and new
  programs are read. A helper process does this with at most a quarter of one CPU, so that no file
  of any user delays events, the start or the end. A file that takes more than 256 MB or 0.75 s of
  CPU time is skipped, as is one that cannot be read within three seconds; at most 256 files are
  probed.

LIMITS
  Not seen: resolvers that programs bring with them (c-ares, Rust's hickory, Java's), stripped
  static programs, 32-bit programs, Go before 1.17 (on arm64 before 1.18), getnameinfo of musl,
  programs that send DNS queries themselves, libcs with other file names, and static programs that a
  security module hides from root. A program file that was never seen before can finish its first
  lookups before it is probed: about ten milliseconds. Lookups that began before the start are not
  shown. glibc's getnameinfo appears as the gethostbyaddr_r that it calls. Go does not distinguish
  an unknown name from one without addresses. The latency is that of the libc call: a name found in
  /etc/hosts or in a cache is also a lookup. If a lookup is left by a jump, the last handler that
  ran is assumed to have jumped; netbpf notices that at the thread's next lookup, when the thread
  ends, and while it sleeps. A goroutine that ended in a lookup is pending until its process ends or
  its address is reused. A lookup of a signal handler or coroutine on another stack is a separate
  line; the lookup of a handler on the same stack is part of the lookup that it interrupted. Return
  instructions are probed. Where they cannot be found (on arm64, and in code with computed jumps; -v
  names the file) a uretprobe is used, which changes the return address on the stack. In that case
  the kernel kills a program by SIGILL if, during a lookup, it starts another one on a second stack
  above the first; and C++ destructors do not run in a thread that is cancelled during a lookup.
"""

import fnmatch

from netbpf.declare import NETNS, PROCESS, Event, Histogram, Option, Row, Tool
from netbpf.declare import aggregation as a
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.calls import SIGNAL
from netbpf.declare.costs import Cost
from netbpf.declare.lookups import FUNCTIONS, GO_PROBES, LIBC_PROBES
from netbpf.declare.memory import Memory
from netbpf.declare.names import Cut, HostName, LookupResult, is_cut
from netbpf.declare.options import milliseconds, nanoseconds, nonempty
from netbpf.declare.record import key

CUT = {0: None, 1: "host", 2: "service", 3: "host,service"}


class Lookup(Event):
    """A name lookup that has ended, or is pending."""

    cstruct = "lookup"

    pid = c.Pid("process that called")
    comm = c.Comm("its name", width=10)
    latency_us = c.Duration("call to return, or until abandoned, or until now if pending",
                            header="LATms", width=8)  # fmt: skip
    host = HostName("requested name, or address (gethostbyaddr)")
    family = c.Family("requested address family, null for any", wide=True)
    service = Cut("requested service", ctype="char[32]", width=8, wide=True)
    func = c.Enum("function that was called", FUNCTIONS, width=16, wide=True)
    truncated = c.Enum("arguments that were truncated", CUT, width=12, wide=True)
    container = c.Container("container of the process", wide=True)
    uid = c.Uid("user id of the process", wide=True)
    netns = c.Netns()
    # The last one in text, without a heading: it is empty unless the lookup failed.
    result = LookupResult(
        "OK, or an error such as EAI_NONAME; abandoned if it never returns; null if pending",
        header=" ",
    )


class LookupsRow(Row):
    """The lookups of a key in an interval."""

    host = HostName("requested name, or address")
    lookups = c.Count("lookups that ended", width=7, over=a.Number())
    failures = c.Count("lookups that failed", width=8, over=a.Number(when=a.failed))
    pending = c.Count("lookups that had not ended", width=7, over=a.Number(when=a.pending))
    p50_us = c.Duration("median latency", header="P50ms", width=8,
                        over=a.Percentile("latency_us", 50))  # fmt: skip
    p99_us = c.Duration("99 % took no longer", header="P99ms", width=8,
                        over=a.Percentile("latency_us", 99))  # fmt: skip
    top_error = LookupResult("most frequent error", header="ERROR", none="-",
                             over=a.MostCommon("result", a.failed))  # fmt: skip


HostKey = key("", host=HostName("requested name, or address"))


def enrich(values, settings):
    """Apply --host, and --min-ms to pending lookups: the program filters neither."""
    host = (values["host"] or "").lower().rstrip(".")
    if settings["host"] and not fnmatch.fnmatchcase(host, settings["host"].lower()):
        return None
    if settings["histogram"] and is_cut(values):
        values["host"] += "..."
    return values if values["latency_us"] >= (settings["min_ms"] or 0) * 1000 else None


def headline(histogram, _):
    """Return the number of lookups and their average as a headline."""
    number, average = histogram["count"], histogram["sum"] / histogram["count"] / 1000
    return {"headline": f"lookups: {number}, average {average:.2f} ms"}


_NUMBER = {"type": "integer", "minimum": 0}
COVERAGE = {
    "libcs": {**_NUMBER, "description": "distinct libc files with probes"},
    "programs": {**_NUMBER, "description": "static and Go programs with probes"},
    "processes": {**_NUMBER, "description": "running processes that these cover"},
    "uncovered": {"type": "array", "description": "other processes: pid, comm, reason, lost"},
}

TOOL = Tool(
    __doc__,
    memory=Memory(2_700_000, cpu=51_000, entry=520),
    cost=Cost(1.9, 45.7, per="lookup"),
    event=Lookup,
    aggregation=a.Aggregation(LookupsRow, ("host",), order="lookups"),
    histogram=Histogram("", HostKey, "us", describe=headline, of="latency_us", option="histogram"),
    probes=(
        *LIBC_PROBES,
        *GO_PROBES,
        p.tracepoint_probe("exec", "sched:sched_process_exec", ("old_pid",), ("old_pid",)),
        p.tracepoint_probe("exit", "sched:sched_process_exit"),
        SIGNAL,
    ),
    options=(
        *PROCESS,
        *NETNS,
        Option("--min-ms", metavar="MS", parse=milliseconds, define="MIN_NS", number=nanoseconds,
               help="only lookups that take at least this long"),
        Option("--failed", define="FAILED_ONLY", number=int, help="only lookups that fail"),
        Option("--host", metavar="GLOB", parse=nonempty, help="only names such as '*.example.com'"),
        Option("--histogram", help="show a distribution per name instead of each lookup"),
    ),
    no_filter="a lookup has no socket of its own",
    enrich=enrich,
    maps=("execs", "programs_seen"),
    show_time="seconds",
    pending=("calls", "latency_us"),
    uprobes="lookups",
    summary_fields={
        "pending": {**_NUMBER, "description": "lookups that had not ended"},
        "abandoned": {**_NUMBER, "description": "lookups that never returned, before filters"},
        "coverage": {"type": "object", "properties": COVERAGE, "required": list(COVERAGE)},
    },
)  # fmt: skip
