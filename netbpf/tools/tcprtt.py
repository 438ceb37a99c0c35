"""tcprtt - distribution of round trip times of TCP connections

DESCRIPTION
  Counts round trip times as the kernel's TCP measures them: a value for each received segment that
  acknowledges new data. The value is one of these (--of):

    srtt     smoothed round trip time, which 'ss -i' shows as rtt: the default
    rtt      the latest measurement
    min_rtt  the minimum of the last minutes (net.ipv4.tcp_min_rtt_wlen)
    mdev     the mean deviation, by which the smoothed time varies

  --per session counts the current value of each open connection instead, once per INTERVAL or at
  the end, so that a busy connection counts as much as an idle one.

  A segment that only brings data measures nothing, and is not counted: a program that downloads
  has as many values as its requests were acknowledged.

EXAMPLES
  netbpf tcprtt                          all connections, until Ctrl-C
  netbpf tcprtt 1 10                     every second, ten times
  netbpf tcprtt --by raddr/24 -L 443 -d 60
                                         clients of a web server, by network
  netbpf tcprtt --of min_rtt --by raddr  the distance to each remote address
  netbpf tcprtt --by comm,rport 5        by program and service
  netbpf tcprtt --per session --by raddr/16 60
                                         how far the open connections are, by network
  netbpf tcprtt --raddr 10.0.0.0/8 --ms  of a network, in milliseconds

OVERHEAD
  A program of about 0.25 us per segment that arrives for an established connection, and of 0.9 us
  if it also looks for the owner (keys and filters of processes), which then costs as much per
  connect, accept and close as in tcplife. --per session has no program per segment, but one of
  about 0.3 us per open file of the machine and interval.

LIMITS
  TCP handles an acknowledgement after the tool has seen it: the value is that of the measurement
  before. The first one of a connection is from its handshake, and the last one is not counted. In
  accepted connections the handshake is in srtt, min_rtt and mdev, but not in rtt. The summary has
  the number of acknowledgements before the first measurement (not_measured).
  If the receiver delays an acknowledgement, often by 40 ms, so is the measurement. Only connections
  in the state ESTABLISHED are seen: none after a FIN of either end.
  --per session finds connections by the open files of processes, so not those of the kernel (NFS).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netbpf.declare import NETNS, PROCESS, SOCKET, Cost, Histogram, Option, Record, Tool
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.memory import Memory
from netbpf.declare.options import count
from netbpf.declare.record import sums

MEASURES = {0: "srtt", 1: "rtt", 2: "min_rtt", 3: "mdev"}
NUMBERS = {word: number for number, word in MEASURES.items()}


class RttKey(Record):
    """The key by which round trip times are counted."""

    cstruct = "rtt_key"

    of = c.Enum("what was measured: srtt, rtt, min_rtt or mdev (--of)", MEASURES, width=7)
    comm = c.Comm("name of the process that owns the socket (--by)")
    pid = c.Pid("process that owns the socket (--by)")
    uid = c.Uid("user id of the owner (--by)")
    cgroup = c.Cgroup("cgroup id of the owner (--by)")
    netns = c.Netns()
    family = c.Family("address family, IPv4-mapped addresses count as ipv4 (--by)")
    laddr = c.Addr("local address or network (--by)")
    lport = c.Port("local port (--by)")
    raddr = c.Addr("remote address or network (--by)")
    rport = c.Port("remote port (--by)")


RttSums = sums("rtt_sums", "total_us")


class Totals(Record):
    """What is not in the distributions."""

    not_measured = c.Count("acknowledgements before the first measurement of a connection")


def describe(histogram: Mapping[str, Any], sums: Mapping[str, int]) -> dict[str, Any]:
    """Return the average, in the unit of the histogram, and a headline with it."""
    values, unit = histogram["count"], histogram["unit"]
    mean = sums["total_us"] / (values or 1)
    average = round(mean / 1000, 3) if unit == "ms" else round(mean, 1)
    headline = f"{values} value{'s' * (values != 1)}, average {average:g} {unit}"
    return {"average": average, "headline": headline}


TOOL = Tool(
    __doc__,
    memory=Memory(1_650_000, cpu=40_000, entry=245, entry_cpu=44), cost=Cost(0.1, 2.1),
    histogram=Histogram(
        "rtts", RttKey, "us", extra=RttSums, describe=describe,
        fields={"average": {"type": "number", "description": "mean of the values"}},
        fixed=("of",), unused=[column.name for column in RttKey.columns if column.name != "of"],
        coarser=("ms", "ms"), refresh=("session",),
    ),
    totals=Totals,
    probes=(
        p.tracepoint_probe("segment", "tcp:tcp_probe", ("sk", "skb"), ("skaddr", "skbaddr"),
                           unless="per"),
        p.Probe("session", p.Iterator("task_file"), option="per"),
    ),
    owners=True,
    options=(
        *PROCESS,
        *NETNS,
        *SOCKET,
        Option("--of", choices=tuple(NUMBERS), default="srtt", define="MEASURE",
               number=lambda word: NUMBERS[word or "srtt"],
               help="what to count"),
        Option("--per", choices=("session",),
               help="count each open connection once per interval, not at acknowledgements"),
        Option("--ms", define="US_PER_UNIT", number=lambda given: 1000 if given else 1,
               help="count milliseconds instead of microseconds"),
        Option("--map-entries", metavar="N", parse=count, default="16384",
               help="how many connections are tracked, and eight times the keys of --by"),
    ),
    no_filter="it shows distributions, not events",
)  # fmt: skip
