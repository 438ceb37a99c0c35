"""Tools of BPF Performance Tools, chapter 10, that a tool of netbpf replaces."""

from netbpf.declare.aliases import Alias, Shown
from netbpf.declare.columns import Count
from netbpf.declare.network import IpVersion

SUITE = "BPF Performance Tools"

_COMM = Shown("comm", "COMM", 16)
_IP = Shown("family", "IP", like=IpVersion)

_KINDS = ("fq", "fq_codel", "codel", "red", "tbf", "cbs", "cbq")
_DEVICES = "There is a distribution for each device; --by kind shows one, as the book does."
_RETIRED = "Linux 6.3 removed this kind: newer kernels have nothing to show."

_HARDWARE = (
    "Also packets that the driver frees as discarded; those of devices without hardware (lo, "
    "veth), which the receiver frees, only with -i."
)
_CALLS = "Calls that fail are also counted; -w shows how many."

ALIASES = (
    Alias(
        "udpconnect",
        "soconnect",
        "UDP sockets that programs connect to an address",
        "--proto udp",
        columns=("pid", _COMM, _IP, Shown("raddr", "RADDR", 16), Shown("rport", "RPORT")),
        time="seconds",
        notes=("Calls that fail are also shown; -w shows the result.",),
    ),
    Alias(
        "sofamily",
        "sockstat",
        "address families of sockets that programs connect and accept",
        "--op connect,accept --by comm,family,op",
        columns=("comm", Shown("family", "FAM"), "op", "calls"),
        notes=(_CALLS,),
    ),
    Alias(
        "soprotocol",
        "sockstat",
        "protocols of sockets that programs connect and accept",
        "--op connect,accept --by comm,proto,op",
        columns=("comm", Shown("proto", "PROTO"), "op", "calls"),
        notes=(_CALLS, "Connects and accepts are rows of their own."),
    ),
    Alias(
        "socketio",
        "sockstat",
        "messages that programs send and receive, by process, protocol and remote port",
        "--op send,recv --by comm,pid,op,proto,rport",
        columns=("comm", "pid", "op", "proto", Shown("rport", "RPORT"), "calls", "bytes"),
        notes=("Operations are recv and send where the book has read and write. KB is added.",),
    ),
    Alias(
        "soconnlat",
        "soconnect",
        "latency of connections that programs open, by program and by the code that connects",
        "--histogram latency_us --by comm,stack",
        notes=("The latency is that of the attempt, also where connect(2) does not wait for it.",),
    ),
    Alias(
        "tcpconnect-tp",
        "soconnect",
        "TCP connections that programs of this machine open",
        columns=("pid", _COMM, _IP, Shown("laddr", "SADDR"), Shown("raddr", "DADDR"),
                 Shown("rport", "DPORT")),
        time="seconds",
        notes=("A line appears when the attempt has ended, not when it begins.",),
    ),
    Alias(
        "tcpaccept-tp",
        "soaccept",
        "TCP connections that programs of this machine accept",
        "--proto tcp",
        columns=(_IP, Shown("raddr", "RADDR", 15), Shown("rport", "RPORT"),
                 Shown("laddr", width=15), "lport", "result"),
        time="seconds",
        notes=(
            "A line appears when the program accepts the connection, not when the handshake ends: "
            "a connection that no program accepts has none.",
        ),
    ),
    Alias(
        "udplife",
        "solife",
        "UDP sockets of programs as they are closed: duration and bytes",
        "--proto udp",
        columns=("pid", "comm", "laddr", "lport", "raddr", "rport",
                 Shown("tx_bytes", "TX_B", 5, like=Count), Shown("rx_bytes", "RX_B", 5, like=Count),
                 Shown("duration_us", width=5)),
        notes=(
            "The book's tool shows only sockets that programs connect, and bytes of calls that "
            "fail. Here RADDR of a socket that is not connected is where it sent to last.",
        ),
    ),
    *(
        Alias(
            f"qdisc-{kind}",
            "qdisclat",
            f"how long packets wait in {kind} queueing disciplines, by device",
            f"--kind {kind}",
            notes=(_DEVICES, *((_RETIRED,) if kind == "cbq" else ())),
        )
        for kind in _KINDS
    ),
    Alias(
        "nettxlat",
        "skblife",
        "how long devices take to send packets, by network namespace",
        "--tx --stage driver --by netns",
        notes=(_HARDWARE,),
    ),
    Alias(
        "nettxlat-dev",
        "skblife",
        "how long devices take to send packets, by device",
        "--tx --stage driver --by dev",
        notes=(_HARDWARE,),
    ),
)  # fmt: skip
