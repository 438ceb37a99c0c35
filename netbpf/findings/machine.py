"""Problems of the machine that the kernel's own counters show, and losses of the tools."""

from __future__ import annotations

from collections.abc import Iterator

from netbpf.declare.finding import CRITICAL, NOTE, WARNING, Case, Evidence, Rule, times

_DEVICE = (
    "rx_errs",
    "tx_errs",
    "rx_fifo",
    "tx_fifo",
    "rx_frame",
    "tx_carrier",
    "rx_drop",
    "tx_drop",
)
_MTU = ("Ip.FragFails", "Ip6.FragFails", "Icmp6.InPktTooBigs")
_ERRORS = ("rx_errs", "tx_errs", "rx_fifo", "tx_fifo", "rx_frame", "tx_carrier")
_FLAPS = 3  # changes of a device's carrier
_SQUEEZED = 10  # softirqs per second
_BUFFERS = {
    "Udp.RcvbufErrors": "UDP", "Udp6.RcvbufErrors": "UDP over IPv6", "Udp.MemErrors": "UDP",
    "TcpExt.TCPRcvQDrop": "TCP",
}  # fmt: skip


def backlog(evidence: Evidence) -> Iterator[Case]:
    """Find packets that no CPU took from its queue in time."""
    dropped = evidence.counters.get("Softnet.dropped", 0)
    if dropped:
        facts = [f"{times(dropped, 'packet')} dropped (Softnet.dropped)"]
        yield Case(WARNING, {}, facts, frozenset({("reason", "CPU_BACKLOG")}), weight=dropped)


def squeezed(evidence: Evidence) -> Iterator[Case]:
    """Find softirqs that often end before all packets are handled."""
    number = evidence.counters.get("Softnet.time_squeeze", 0)
    rate = number / max(evidence.seconds, 1)
    if rate >= _SQUEEZED:
        facts = [f"{times(number, 'softirq')} ended with packets left, {rate:.0f} per second "
                 "(Softnet.time_squeeze)"]  # fmt: skip
        yield Case(NOTE, {}, facts, frozenset({("reason", "CPU_BACKLOG")}), weight=number)


def devices(evidence: Evidence) -> Iterator[Case]:
    """Find devices with errors."""
    found: dict[str, dict[str, int]] = {}
    for name, number in evidence.counters.items():
        group, _, rest = name.partition(".")
        dev, _, what = rest.rpartition(".")
        if group == "Device" and number and what in _ERRORS:
            found.setdefault(dev, {})[what] = number
    for dev, counts in found.items():
        facts = [", ".join(f"{what} {number}" for what, number in sorted(counts.items()))]
        weight = sum(counts.values())
        yield Case(WARNING, {"dev": dev}, facts, frozenset({("dev", dev)}), weight=weight)


def flapping(evidence: Evidence) -> Iterator[Case]:
    """Find devices that lose their carrier again and again."""
    for name, changes in evidence.levels.items():
        group, _, dev = name.partition(".")
        if group == "carrier" and changes >= _FLAPS:
            facts = [f"its carrier came or went {times(changes, 'time')}"]
            yield Case(WARNING, {"dev": dev}, facts, frozenset({("dev", dev)}), weight=changes)


def receive_buffers(evidence: Evidence) -> Iterator[Case]:
    """Find sockets that lost data because nobody read in time."""
    for name, number in evidence.counters.items():
        group, _, rest = name.partition(".")
        what = _BUFFERS.get(name)
        if not what and group in ("Netlink", "Raw", "Raw6", "Packet") and rest.endswith("drops"):
            what = f"{group.lower()} socket {rest.partition('.')[0]}"
        if what and number:
            facts = [f"{times(number, 'packet')} lost ({name})"]
            yield Case(
                WARNING,
                {"what": what},
                facts,
                frozenset({("reason", "SOCKET_RCVBUFF")}),
                weight=number,
            )


def time_wait(evidence: Evidence) -> Iterator[Case]:
    """Find that sockets in TIME_WAIT have reached their limit, or take half of the local ports."""
    levels, waiting = evidence.levels, evidence.levels.get("tcp.tw", 0)
    limit, ports = levels.get("max_tcp.tw", 0), levels.get("ports", 0)
    cut = evidence.counters.get("TcpExt.TCPTimeWaitOverflow", 0)
    facts = [f"{times(waiting, 'socket')} in TIME_WAIT; the limit is {limit}, and a connection to "
             f"one destination can have one of {ports} local ports"]  # fmt: skip
    if cut:
        facts.append(f"{times(cut, 'connection')} closed without TIME_WAIT (TCPTimeWaitOverflow)")
        yield Case(WARNING, {"what": "reached their limit"}, facts, frozenset(), weight=cut)
    elif ports and waiting >= ports / 2:
        values = {"what": "are as many as half of the local ports"}
        yield Case(NOTE, values, facts, frozenset(), weight=waiting)


def conntrack(evidence: Evidence) -> Iterator[Case]:
    """Find that the table of tracked connections is nearly full."""
    number, limit = (evidence.levels.get(name, 0) for name in ("conntrack", "max_conntrack"))
    if limit and number >= 0.9 * limit:
        severity = CRITICAL if number >= limit else WARNING
        facts = [f"{number} connections are tracked, the limit is {limit}"]
        yield Case(severity, {}, facts, frozenset(), weight=number)


def path_mtu(evidence: Evidence) -> Iterator[Case]:
    """Find that packets are larger than a path allows."""
    failed = {name: evidence.counters.get(name, 0) for name in _MTU}
    failed = {name: number for name, number in failed.items() if number}
    if sum(failed.values()) >= 3:
        facts = [", ".join(f"{name} {number}" for name, number in failed.items())]
        subjects = frozenset({("reason", "PKT_TOO_BIG")})
        yield Case(WARNING, {}, facts, subjects, weight=sum(failed.values()))


def own_loss(evidence: Evidence) -> Iterator[Case]:
    """Find what the tools themselves did not see."""
    for tool, causes in evidence.lost.items():
        lost = {cause: number for cause, number in causes.items() if number}
        if lost:
            facts = [", ".join(f"{cause} {number}" for cause, number in sorted(lost.items()))]
            yield Case(NOTE, {"tool": tool}, facts, frozenset(), weight=sum(lost.values()))


RULES = (
    Rule(
        "backlog-drops", (), backlog,
        "Packets are dropped before the network stack sees them",
        "The queue of a CPU is full: one CPU handles more packets than it can. Spread them over "
        "more CPUs (RSS, RPS), or raise net.core.netdev_max_backlog for bursts.",
        "netbpf softnet 1",
        "no packet may be lost here on a machine that keeps up",
        {"drops": "reason", "softirq-squeezed": "reason"},
        counters=("Softnet.dropped",),
    ),
    Rule(
        "softirq-squeezed", (), squeezed,
        "Softirqs end before all packets are handled",
        "Receiving has used up its packets or its time (net.core.netdev_budget and "
        "netdev_budget_usecs), and the rest waits for the next turn: packets come late, and none "
        "are lost yet. If one CPU has most of them, spread the packets over more (RSS, RPS).",
        "netbpf softnet 1",
        "10 per second: a single burst squeezes a few",
        counters=("Softnet.time_squeeze",),
    ),
    Rule(
        "device-errors", (), devices,
        "The device {dev} has errors",
        "Frames were damaged or did not fit: a cable, a transceiver, a duplex mismatch, or a ring "
        "that is too short (ethtool -S {dev}).",
        "ip -s -s link show dev {dev}",
        "a healthy link has none",
        counters=tuple(f"Device.*.{name}" for name in _ERRORS),
    ),
    Rule(
        "device-flaps", (), flapping,
        "The device {dev} loses its carrier again and again",
        "While it is down, everything that is sent through it is lost, and routes may go with it. "
        "Look at the cable, the transceiver and the other end; dmesg says when, and whether the "
        "speed is negotiated again each time. Of a veth pair, the other end is set down and up.",
        "ip -s -s link show dev {dev}",
        "3 changes: plugging a cable in again makes two",
        {"device-errors": "dev"},
    ),
    Rule(
        "receive-buffer-full", (), receive_buffers,
        "A receive buffer was full ({what}): what arrived was thrown away",
        "The program reads slower than packets arrive, or its buffer is small for a burst "
        "(SO_RCVBUF, net.core.rmem_max).",
        "netbpf skbdrop --reason SOCKET_RCVBUFF --events -d 10",
        "each is data that the program never gets",
        {"drops": "reason"},
        counters=(*_BUFFERS, "Netlink.*.drops", "Raw.*.drops", "Raw6.*.drops", "Packet.*.drops"),
    ),
    Rule(
        "time-wait", (), time_wait,
        "Sockets in TIME_WAIT {what}",
        "The side that closes first keeps a connection for a minute, so that late segments reach "
        "no new one. Thousands are normal on a busy client and cost little; they matter if local "
        "ports run out. Keep connections open, or set net.ipv4.tcp_tw_reuse = 1 on clients.",
        "ss -tan state time-wait",
        "beyond net.ipv4.tcp_max_tw_buckets the kernel gives the protection up",
        counters=("TcpExt.TCPTimeWaitOverflow",),
    ),
    Rule(
        "conntrack-full", (), conntrack,
        "The table of tracked connections is nearly full",
        "New connections are dropped once it is (nf_conntrack: table full, in dmesg). Raise "
        "net.netfilter.nf_conntrack_max, shorten its timeouts, or do not track what no rule needs.",
        "sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max",
        "90 % of net.netfilter.nf_conntrack_max: a burst fills the rest",
    ),
    Rule(
        "mtu", (), path_mtu,
        "Packets are larger than a path allows",
        "Small packets pass, and large ones do not: connections open, and hang as soon as data "
        "flows. A tunnel or VPN on the way has a smaller MTU, and ICMP messages about it may be "
        "filtered. Lower the MTU of the device, or set net.ipv4.tcp_mtu_probing = 1.",
        "netbpf skbdrop --reason PKT_TOO_BIG --events -d 10",
        "3 packets that could not be sent in one piece, or that a router refused",
        {"drops": "reason"},
        counters=_MTU,
    ),
    Rule(
        "own-loss", (), own_loss,
        "{tool} did not see everything",
        "Findings from what it sees may be missing, or their numbers too small. "
        "Repeat with a larger --buffer, or with filters.",
        "netbpf {tool} -d 10 -v",
        "a result that lost data must say so",
    ),
)  # fmt: skip
