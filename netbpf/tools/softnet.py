"""softnet - softirqs of the network per CPU: time, delay, NAPI polls, packets, drops

DESCRIPTION
  Most of the kernel's work on packets is done in two softirqs: NET_RX receives, by polling the
  drivers' queues (NAPI) and the queue of the CPU, and NET_TX completes sending. For each CPU, shows
  in each interval (a second, if none is given) how often they ran and for how long (RUN_MS), the
  99th percentiles, in microseconds, of the time of a run (RUN_P99) and of the time from raising to
  running it (DELAY_P99), and how many packets the polls handled.

  SQUEEZED, DROPPED and others are from /proc/net/softnet_stat: runs that ended with work left, as
  the budget (net.core.netdev_budget) or the time was used up, and packets dropped as the queue of
  the CPU was full (net.core.netdev_max_backlog). They are in the rows of NET_RX.

  RUN_MS close to the length of the interval means that the CPU does nothing else. Polls outside of
  softirqs have rows of their own: thread for NAPI in kernel threads, busy-poll for programs.

EXAMPLES
  netbpf softnet                    all CPUs, every second
  netbpf softnet --devices 10       also by device and NAPI instance, every 10 s
  netbpf softnet --cpu 0,4-7 -w     some CPUs, all columns
  netbpf softnet --histogram 60 1   distributions of the times in a minute
  netbpf softnet --json | jq -c 'select(.squeezed > 0 or .dropped > 0)'

  Loopback traffic of iperf3 (netbpf softnet --devices 1):

OVERHEAD
  Three runs of a program per softirq of any kind, and one per poll: not per packet.

LIMITS
  Percentiles are upper bounds, at most a quarter too high, and at most 524 ms; those of --histogram
  are powers of two. A run that was raised before the start, or while the one before it was about to
  begin, has no delay.
  A packet in PACKETS is what the driver counts, often after merging (LRO); some drivers count
  completed sends or nothing. PROCESSED counts after GRO merged packets, and again on devices on top
  of others.
  On kernels with PREEMPT_RT, the time of a run includes that of threads that interrupt it.
"""

from netbpf.declare import Histogram, Option, Table, Tool
from netbpf.declare import probes as p
from netbpf.declare import softirqs as s
from netbpf.declare.memory import Memory
from netbpf.declare.options import count


def softirq_probe(name: str) -> p.Probe:
    """Return the probe of a softirq that is raised, entered or left."""
    return p.tracepoint_probe(name, f"irq:softirq_{name}", ("vec_nr",), ("vec",))


TOOL = Tool(
    __doc__,
    memory=Memory(60_000, cpu=8_000, entry=100, entry_cpu=40),
    histogram=Histogram("times", s.TimeKey, "us", option="histogram"),
    table=(
        Table(
            "softirqs", s.SoftirqKey, s.SoftirqSums, s.CpuRow, s.rows, per_cpu=False, main=True,
            counters=s.PER_CPU, counted=s.counted,
        ),
        Table(
            "napis", s.NapiKey, s.NapiSums, s.NapiRow, order="packets", option="devices",
            forget=True,
        ),
    ),
    probes=(
        softirq_probe("raise"),
        softirq_probe("entry"),
        softirq_probe("exit"),
        p.tracepoint_probe("poll", "napi:napi_poll", *[("napi", "work", "budget")] * 2),
    ),
    default_interval=1,
    options=(
        Option("--devices", define="WITH_DEVICES", help="also show polls by device"),
        Option("--histogram", define="WITH_HISTOGRAM",
               help="also show distributions of the times of runs and of delays"),
        Option("--cpu", metavar="LIST", parse=s.cpus, help="only these CPUs (0,4-7)"),
        Option("--map-entries", metavar="N", parse=count, default="4096",
               help="how many NAPI instances --devices can count"),
    ),
    no_filter="softirqs are of a CPU: their work is of no single process, namespace or socket",
    counters=s.COUNTERS,
    constants=s.constants,
)  # fmt: skip
