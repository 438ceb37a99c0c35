"""softnet - softirqs of the network per CPU: time, delay, NAPI polls, packets, drops

DESCRIPTION
  Most of the kernel's work on packets is done in two softirqs: NET_RX receives, by polling the
  drivers' queues (NAPI) and the queue of the CPU, and NET_TX completes sending. For each CPU, shows
  in each interval (a second, if none is given) how often they ran and for how long (RUN_MS), the
  99th percentiles, in microseconds, of the time of a run (P99(us)) and of the time from raising to
  running it (DELAY(us)), and how many packets the polls handled.

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

  iperf3 over loopback (netbpf softnet --devices 1):

    CPU SOFTIRQ     RUNS  RUN_MS P99(us) DELAY(us)   POLLS  PACKETS SQUEEZED DROPPED
      0 NET_RX     15931   22.49      11         4   15931    19106        0       0
      1 NET_RX      5877   11.66      15         5    5876     8215        0       0

    DEV              NAPI_ID     POLLS   PACKETS     FULL      NETNS
    (backlog)              -     21807     27321        0          -

OVERHEAD
  Programs of 0.25 us in all per run of a softirq of the network, and of 0.1 us per poll: not per
  packet. Other softirqs (timers, scheduler, RCU) take about 0.1 us each.

LIMITS
  Percentiles are upper bounds, at most a quarter too high, and at most 524 ms; those of --histogram
  are powers of two. A run that was raised before the start has no delay.
  PACKETS is what drivers report of their polls, some of them also completed sends, or nothing.
  PROCESSED counts after GRO has merged packets, and again on each device on top of another one.
  The backlog is the queue of a CPU: for lo, most virtual devices, and packets that another CPU has
  handed over (RPS).
  The counters in the summary are of all CPUs, also with --cpu.
  On kernels with PREEMPT_RT, the time of a run includes that of threads that interrupt it.
"""

from netbpf.declare import Cost, Histogram, Option, Table, Tool
from netbpf.declare import probes as p
from netbpf.declare import softirqs as s
from netbpf.declare.memory import Memory
from netbpf.declare.options import count


def softirq_probe(name: str) -> p.Probe:
    """Return the probe of a softirq that is raised, entered or left."""
    return p.tracepoint_probe(name, f"irq:softirq_{name}", ("vec_nr",), ("vec",))


TOOL = Tool(
    __doc__,
    memory=Memory(20_000, cpu=10_000, entry=105, entry_cpu=24), cost=Cost(1.3, 0.4),
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
