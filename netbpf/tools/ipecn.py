"""ipecn - ECN marks of IP packets: whose packets a congested router has marked

DESCRIPTION
  Shows each received IPv4 and IPv6 packet that is marked CE (Congestion Experienced): a router, or
  a queue of a sender, that supports Explicit Congestion Notification (ECN, RFC 3168) marks packets
  instead of dropping them. CE from a remote address means that the path from there to here is
  congested. --all also shows packets marked ECT(0) or ECT(1), whose senders support ECN, and --out
  shows packets that this machine sends, with the marks of its own queueing disciplines.

  --summary counts packets per device and sender: NOT_ECT without ECN, ECT0, ECT1 (the L4S service,
  RFC 9331), CE, and CE_SHARE, the share of the packets with ECN that are marked CE. --by counts
  them by other keys; an INTERVAL implies --summary. In filters the remote end (--raddr, -D) is the
  source of a received packet, and the destination of a sent one.

EXAMPLES
  netbpf ipecn                           each received packet that is marked CE
  netbpf ipecn 5                         packets by mark, device and sender, every 5 s
  netbpf ipecn --by saddr/24,proto -d 60
                                         by network and protocol, a minute
  netbpf ipecn --out --by dev,daddr 10   which destinations this machine uses ECN with
  netbpf ipecn -i eth0 --raddr 10.0.0.0/8 --all -n 100
                                         the first 100 packets with ECN from a network
  netbpf ipecn --json | jq -r 'select(.saddr).saddr'   the senders of CE

  Datagrams over loopback with several marks (netbpf ipecn --summary -d 5):

    DEV      SADDR             NOT_ECT     ECT0     ECT1       CE CE_SHARE  PACKETS
    lo       127.0.0.1              11       13       17       23   43.40%       64

OVERHEAD
  A program of about 0.1 us per packet that is received (--out: sent), and of 0.4 us if a line shows
  it. Tables take 0.3 us per packet; -i and --netns halve that for other devices and namespaces.

LIMITS
  Packets that GRO merged, or that are cut after they were sent (GSO, TSO), are one line with the
  number of packets in SEGS; tables count each of them, as the kernel's counters do.
  The kernel's counters in the summary (InCEPkts and others) count the packets that reach IP: not
  those that are bridged, or dropped before by XDP, tc or for a wrong checksum, and none that are
  sent. Packets of a device on top of another one (VLAN, macvlan) are in the rows of the lower one.
  Packets in tunnels count twice, with the outer header and, at the tunnel's device, with the inner.
  Later fragments of a packet have no ports. Packets whose IP header is not in the linear part of
  the buffer cannot be read: the summary counts them (unread).
  A packet that a device could not accept at once is counted again with --out when it is sent again.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from netbpf.declare import NETNS, SOCKET, Cost, Event, Option, Record, Row, Table, Tool
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.constants import device_filter
from netbpf.declare.keyed import Keyed, KeyedTable, add_up
from netbpf.declare.memory import Memory
from netbpf.declare.network import Endpoint, Protocol, Share
from netbpf.declare.options import count, devices
from netbpf.declare.record import key, sums
from netbpf.declare.table import Entry, sorted_rows

MARKS = {0: "not_ect", 1: "ect1", 2: "ect0", 3: "ce"}  # bits of the IP header (RFC 3168)
KERNEL_MARKS = ("CE", "ECT0", "ECT1", "NoECT")


class Packet(Event):
    """A packet with a mark."""

    cstruct = "ecn_packet"

    mark = c.Enum("ce, and with --all also ect0 and ect1", MARKS, width=4)
    proto = Protocol("protocol", width=6)
    family = c.Family("address family", wide=True)
    saddr = Endpoint("source address", "sport", header="SADDR:SPORT")
    sport = c.Port("source port", null=0, text=False)
    daddr = Endpoint("destination address", "dport", header="DADDR:DPORT")
    dport = c.Port("destination port", null=0, text=False)
    segs = c.Count("packets that were merged, or will be cut from it", ctype="u16", width=4)
    dev = c.Text("device", width=8)
    netns = c.Netns()


EcnKey = key(
    "ecn_key", dev=c.Text("device", width=8), netns=c.Netns(), family=c.Family("address family"),
    proto=Protocol("protocol"), saddr=c.Addr("source address"), sport=c.Port("source port", null=0),
    daddr=c.Addr("destination address"), dport=c.Port("destination port", null=0),
)  # fmt: skip
EcnCounts = sums("ecn_counts", "packets not_ect ect0 ect1 ce")


class Counts(Row):
    """Numbers of packets by mark."""

    not_ect = c.Count("packets whose sender does not use ECN")
    ect0 = c.Count("packets marked ECT(0)", width=8)
    ect1 = c.Count("packets marked ECT(1): L4S", width=8)
    ce = c.Count("packets marked CE: congestion", width=8, alert=True)
    ce_share = Share("share of CE in the packets with ECN", width=8)
    packets = c.Count("packets", width=8)


class Totals(Record):
    """Packets that are not in the rows."""

    unread = c.Count("packets whose IP header could not be read")


def with_share(entries: Sequence[Entry], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row per value of the columns `names`, those with most packets first."""
    rows = add_up(entries, names)
    for row in rows:
        capable = row["ect0"] + row["ect1"] + row["ce"]
        row["ce_share"] = round(row["ce"] / capable, 4) if capable else None
    return sorted(rows, key=lambda row: -int(row["packets"]))


class MarkRow(Row):
    """Packets from one address that a device received, or sent."""

    dev = c.Text("device", width=8)
    saddr = c.Addr("source address")
    not_ect, ect0, ect1, ce, ce_share, packets = map(copy, Counts.columns)
    netns = c.Netns()


def by_sender(entries: Sequence[Entry], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per device and sender, those with most marked packets first."""
    rows = sorted_rows(with_share(entries, ("dev", "saddr", "netns")), "ce")
    return [{column.name: row[column.name] for column in MarkRow.columns}
            for row in rows[: settings["top"] or None]]  # fmt: skip


TOOL = Tool(
    __doc__,
    memory=Memory(60_000, cpu=100, entry=125, entry_cpu=48), cost=Cost(0.5, 1.4),
    event=Packet,
    events_unless="summary",
    table=(
        Table("marks", EcnKey, EcnCounts, MarkRow, by_sender, option="summary", forget=True),
        KeyedTable("marks", EcnKey, EcnCounts, Counts.columns, "ce", fold=with_share,
                   keyed=Keyed(EcnKey, default=("dev", "netns", "saddr")), implies="summary"),
    ),
    totals=Totals,
    probes=(
        p.tracepoint_probe("received", "net:netif_receive_skb", ("skb", "0"), ("skbaddr", "0"),
                           call="on_packet", unless="out"),
        p.tracepoint_probe("sent", "net:net_dev_start_xmit", ("skb", "1"), ("skbaddr", "1"),
                           call="on_packet", option="out"),
    ),
    options=(
        *NETNS,
        *SOCKET,
        Option("--all", define="ALL_MARKS", help="also show packets marked ECT(0) or ECT(1)"),
        Option("--out", help="show sent packets instead of received ones"),
        Option("--summary", help="count packets by mark, device and sender instead"),
        Option("-i", "--interface", metavar="LIST", parse=devices,
               help="only these network devices"),
        Option("--map-entries", metavar="N", parse=count, default="16384",
               help="how many senders, or keys of --by, are counted at once"),
    ),
    no_filter="a packet at a device belongs to no process yet",
    show_time="seconds", interval_option="summary",
    counters=[f"{group}.In{mark}Pkts" for group in ("IpExt", "Ip6") for mark in KERNEL_MARKS],
    constants=lambda settings: device_filter(settings["interface"]),
)  # fmt: skip
