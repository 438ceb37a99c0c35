"""rcvfull - datagrams that found a full receive buffer, by socket

DESCRIPTION
  Shows each UDP datagram that the kernel dropped because the socket's receive buffer was full, with
  the size of that buffer.

EXAMPLES
  netbpf rcvfull                        all of them, as they happen
  netbpf rcvfull --least-kb 208         only sockets whose buffer is at least that large

OVERHEAD
  A program of less than a microsecond per dropped datagram.

LIMITS
  Sockets of other protocols are not seen.
"""

from netbpf.declare import NETNS, Event, Option, Tool
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.options import count


class Fullness(c.Column):
    """A share in percent, as a bar in text."""

    ctype = "u8"
    width = 10

    def text(self, value):
        """Return one sign per ten percent."""
        return "-" if value is None else "#" * (value // 10)


class FullBuffer(Event):
    """A datagram that was dropped."""

    cstruct = "full_buffer"

    comm = c.Comm("the task that ran, which need not own the socket")
    rcvfull_bytes = c.Bytes("size of the receive buffer", header="BUF_KB")
    rcvfull_percent = Fullness("how full it was")
    netns = c.Netns()


TOOL = Tool(
    __doc__,
    event=FullBuffer,
    probes=(
        p.Probe(
            "full",
            p.RawTracepoint("udp_fail_queue_rcv_skb", args=("sk",)),
            p.Tracepoint("udp:udp_fail_queue_rcv_skb", args=("rc",), call="on_full_without_socket",
                         loses=("rcvfull_bytes", "rcvfull_percent", "netns")),
        ),
    ),
    options=(
        *NETNS,
        Option("--least-kb", metavar="KB", parse=count, define="LEAST_BYTES",
               number=lambda kb: (kb or 0) * 1024, help="only buffers of at least this size"),
    ),
    no_filter="the process that runs is not the one that owns the socket",
)  # fmt: skip
