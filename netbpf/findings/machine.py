"""Problems of the machine that the kernel's own counters show, and losses of the tools."""

from __future__ import annotations

from collections.abc import Iterator

from netbpf.declare.finding import NOTE, WARNING, Case, Evidence, Rule, times

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
_ERRORS = ("rx_errs", "tx_errs", "rx_fifo", "tx_fifo", "rx_frame", "tx_carrier")
_BUFFERS = {
    "Udp.RcvbufErrors": "UDP", "Udp6.RcvbufErrors": "UDP over IPv6", "Udp.MemErrors": "UDP",
    "TcpExt.TCPRcvQDrop": "TCP",
}  # fmt: skip


def backlog(evidence: Evidence) -> Iterator[Case]:
    """Find packets that no CPU took from its queue in time."""
    dropped = evidence.counters.get("Softnet.dropped", 0)
    if dropped:
        facts = [f"{times(dropped, 'packet')} dropped (Softnet.dropped)"]
        yield Case(WARNING, {}, facts, frozenset({("dev", None)}), weight=dropped)


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


def receive_buffers(evidence: Evidence) -> Iterator[Case]:
    """Find sockets that lost data because nobody read in time."""
    for name, number in evidence.counters.items():
        group, _, rest = name.partition(".")
        what = _BUFFERS.get(name)
        if not what and group in ("Netlink", "Raw", "Raw6", "Packet") and rest.endswith("drops"):
            what = f"{group.lower()} socket {rest.partition('.')[0]}"
        if what and number:
            facts = [f"{times(number, 'packet')} lost ({name})"]
            yield Case(WARNING, {"what": what}, facts, frozenset({("buffer", name)}), weight=number)


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
        {"drops": "dev"},
    ),
    Rule(
        "device-errors", (), devices,
        "The device {dev} has errors",
        "Frames were damaged or did not fit: a cable, a transceiver, a duplex mismatch, or a ring "
        "that is too short (ethtool -S {dev}).",
        "ip -s -s link show dev {dev}",
        "a healthy link has none",
    ),
    Rule(
        "receive-buffer-full", (), receive_buffers,
        "A receive buffer was full ({what}): what arrived was thrown away",
        "The program reads slower than packets arrive, or its buffer is small for a burst "
        "(SO_RCVBUF, net.core.rmem_max).",
        "netbpf skbdrop --reason SOCKET_RCVBUFF --events -d 10",
        "each is data that the program never gets",
        {"drops": "buffer"},
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
