"""gethostlatency - name lookups: who asked for which name, how long it took, what came of it

DESCRIPTION
  Shows each call of getaddrinfo, gethostbyname, gethostbyname2 and gethostbyaddr (and of their _r
  forms) when it returns, with its latency and result, and the lookups of Go programs, which do
  without libc. Text shows words behind the name if a lookup failed. A call is one line, whatever
  libc does inside of it.

  Every libc in use is probed, those of containers and chroots too, and static and Go programs with
  the functions; new ones are found while tracing. The start and the end tell how many processes
  that covers, and which not. Lookups that still wait then, or at an INTERVAL, are listed. Processes
  whose lookups may go unseen, LIMITS apart, are counted as lost: not_covered.

  A lookup that never returns is a line with the result "abandoned" and its age: its thread was
  cancelled or killed, its program was replaced (exec), or the handler of a signal jumped out of it
  (siglongjmp). The time of a line is when the lookup ended. A host of more than 254 bytes, or a
  service of more than 31, is cut: the column truncated (in -w) names which, text shows "..." there.

EXAMPLES
  netbpf gethostlatency                      all lookups
  netbpf gethostlatency --failed -w          those that failed, all columns
  netbpf gethostlatency --min-ms 100         slow ones
  netbpf gethostlatency --host '*.internal'  names of one domain
  netbpf gethostlatency --histogram -d 60    distribution per name over a minute

  Three programs, one of them with a name that there is not (netbpf gethostlatency):

    TIME         PID COMM          LATms HOST
    10:24:38   17887 getent         0.02 localhost
    10:24:38   17888 curl           0.48 no-such-host.invalid         no such name
    10:24:38   17890 python3        0.12 localhost

OVERHEAD
  Breakpoints and programs together take some 17 us per lookup of C in a virtual machine, and less
  on hardware; 9 us per lookup of Go. An address that is looked up takes 20 us without. All
  processes are looked at every ten seconds, 0.1 ms each at most, and programs that are new. Another
  process of netbpf does that, on a quarter of one CPU at most: no file of any user holds up the
  events, the start or the end. A file that takes more than 256 MB or 0.75 s of work is given
  up, and so is one that does not answer within three; 256 files are probed at most.

LIMITS
  Not seen: resolvers that programs bring along (c-ares, Rust's hickory, Java's own), stripped
  static programs, programs of 32 bit, Go before 1.17 (on arm64 1.18), getnameinfo of musl, what
  goes to DNS directly, libcs under other names, and static programs that a security module hides
  from root. A program file that was never seen before can finish its first lookups
  before it is probed: some ten milliseconds. Lookups that began before the start are not shown.
  glibc's getnameinfo appears as the gethostbyaddr_r that it calls. Go does not tell an unknown name
  from one without addresses. The latency is libc's: a name in /etc/hosts or in a cache is a lookup,
  too. Of a jump out of a lookup, the last handler that ran is taken for the one that jumped; it is
  noticed at the thread's next lookup, when the thread ends, and while it sleeps. A goroutine that
  ended in a lookup waits until its process ends or its place is used again. A lookup of a signal
  handler or coroutine on another stack is a line of its own; what a handler looks up on the same
  stack belongs to the lookup that it interrupted. Returns are probed at their instructions. Where
  those cannot be found (arm64, and code that jumps to addresses it computes; -v names the file) it
  takes a uretprobe, which changes the return address on the stack. Then the kernel ends a program
  by SIGILL that, in the middle of a lookup, looks up on a second stack above the first one; and
  destructors of C++ do not run in a thread that is cancelled in a lookup.
"""

import fnmatch

from netbpf.declare import NETNS, PROCESS, Event, Histogram, Option, Record, Tool
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.calls import SIGNAL
from netbpf.declare.costs import Cost
from netbpf.declare.lookups import FUNCTIONS, GO_PROBES, LIBC_PROBES
from netbpf.declare.memory import Memory
from netbpf.declare.names import Cut, HostName, LookupResult, is_cut
from netbpf.declare.options import milliseconds, nanoseconds, nonempty

CUT = {0: None, 1: "host", 2: "service", 3: "host,service"}


class Lookup(Event):
    """A name lookup at its end, or still waiting."""

    cstruct = "lookup"

    pid = c.Pid("process that asked")
    comm = c.Comm("its name", width=10)
    latency_us = c.Duration(
        "call to return; to when it was left, if it never returns; to now, if it still waits",
        header="LATms", width=8,
    )  # fmt: skip
    host = HostName("name asked for, or address (gethostbyaddr)")
    family = c.Family("address family asked for, null for any", wide=True)
    service = Cut("service asked for", ctype="char[32]", width=8, wide=True)
    func = c.Enum("function that was called", FUNCTIONS, width=16, wide=True)
    truncated = c.Enum("what was too long to be held whole", CUT, width=12, wide=True)
    container = c.Container("container of the process", wide=True)
    uid = c.Uid("user id of the process", wide=True)
    netns = c.Netns()
    # In text the last one, and without a heading: there is a word only if something is wrong.
    result = LookupResult(
        "OK, or EAI_NONAME and the like; abandoned if it never returns; null if it still waits",
        header=" ",
    )


class HostKey(Record):
    """What lookups are counted by."""

    host = HostName("name asked for, or address")


def enrich(values, settings):
    """Apply --host, and --min-ms to lookups that still wait: C filters neither."""
    host = (values["host"] or "").lower().rstrip(".")
    if settings["host"] and not fnmatch.fnmatchcase(host, settings["host"].lower()):
        return None
    if settings["histogram"] and is_cut(values):
        values["host"] += "..."
    return values if values["latency_us"] >= (settings["min_ms"] or 0) * 1000 else None


def headline(found, _):
    """Return the number of lookups and their average as a headline."""
    number, average = found["count"], found["sum"] / found["count"] / 1000
    return {"headline": f"lookups: {number}, average {average:.2f} ms"}


_NUMBER = {"type": "integer", "minimum": 0}
COVERAGE = {
    "libcs": {**_NUMBER, "description": "distinct libc files with probes"},
    "programs": {**_NUMBER, "description": "static and Go programs with probes"},
    "processes": {**_NUMBER, "description": "running processes that these cover"},
    "uncovered": {"type": "array", "description": "the others: pid, comm, reason, lost"},
}


TOOL = Tool(
    __doc__,
    memory=Memory(2_700_000, cpu=51_000, entry=520),
    cost=Cost(1.9, 45.7, per="lookup"),
    event=Lookup,
    histogram=Histogram("", HostKey, "us", describe=headline, of="latency_us", option="histogram"),
    probes=(
        *LIBC_PROBES,
        *GO_PROBES,
        p.Probe(
            "exec",
            p.RawTracepoint("sched_process_exec", args=("old_pid",)),
            p.Tracepoint("sched:sched_process_exec", args=("old_pid",)),
        ),
        p.Probe(
            "exit", p.RawTracepoint("sched_process_exit"), p.Tracepoint("sched:sched_process_exit")
        ),
        SIGNAL,
    ),
    options=(
        *PROCESS,
        *NETNS,
        Option("--min-ms", metavar="MS", parse=milliseconds, help="only lookups that take as long"),
        Option("--failed", help="only lookups that do not succeed"),
        Option("--host", metavar="GLOB", parse=nonempty, help="only names such as '*.example.com'"),
        Option("--histogram", help="show a distribution per name instead of single lookups"),
    ),
    no_filter="a lookup has no socket of its own",
    constants=lambda settings: {
        "MIN_NS": nanoseconds(settings["min_ms"]),
        "FAILED_ONLY": int(settings["failed"]),
    },
    enrich=enrich,
    maps=("execs", "programs_seen"),
    show_time="seconds",
    pending=("calls", "latency_us"),
    uprobes="lookups",
    summary_fields={
        "pending": {**_NUMBER, "description": "lookups that had not ended"},
        "abandoned": {
            **_NUMBER,
            "description": "lookups that ended without a return, filters apart",
        },
        "coverage": {"type": "object", "properties": COVERAGE, "required": list(COVERAGE)},
    },
)
