"""Tools of bcc (tools/, and libbpf-tools/ with the same names) that a tool of netbpf replaces."""

from netbpf.declare.aliases import Alias, Mapped, Positional, Refused, Sets, Shown, Shows
from netbpf.declare.columns import Addr, Duration
from netbpf.declare.network import IpVersion
from netbpf.declare.states import StepLetter

SUITE = "bcc"

_PROCESSES = "--cgroup PATH or --container ID selects processes"


def _maps(*short: str) -> tuple[Refused, Refused]:
    cgroup, mount = (*short, "", "")[:2]
    return (
        Refused(*filter(None, (cgroup, "--cgroupmap")), hint=_PROCESSES,
                what="selects cgroups by a BPF map"),
        Refused(*filter(None, (mount, "--mntnsmap")), hint=_PROCESSES,
                what="selects mount namespaces by a BPF map"),
    )  # fmt: skip


_LOCAL_AND_REMOTE = (
    Mapped("--localport", option="lport"),
    Mapped("--remoteport", option="rport"),
    Mapped("--csv", option="s"),
)


def _program(tool: str) -> Refused:
    return Refused(
        "--ebpf",
        what="prints the BPF program",
        hint=f"'netbpf schema --c {tool}' prints the generated C",
    )


_IP = Shown("family", "IP", like=IpVersion)

ALIASES = (
    Alias(
        "tcpconnect",
        "soconnect",
        "TCP connections that programs of this machine open",
        columns=("pid", Shown("comm", "COMM", 12), _IP, Shown("laddr", "SADDR"),
                 Shown("raddr", "DADDR"), Shown("rport", "DPORT")),
        flags=(
            Mapped("-P", "--port", option="rport"),
            Sets("-c", "--count", option="by", value="laddr,raddr,rport",
                 columns=(Shown("laddr", "LADDR", 25), Shown("raddr", "RADDR", 25),
                          Shown("rport", "RPORT"), Shown("attempts", "CONNECTS"))),
            Shows("-U", "--print-uid", column="uid"),
            Refused("-L", "--lport", what="is a switch that shows the local port",
                    hint="-w shows the local port, -L LIST shows only these local ports"),
            Refused("-d", "--dns", what="is a switch that shows the last DNS query",
                    hint="-d SECONDS ends the run; 'netbpf gethostlatency' shows name lookups"),
            *_maps("-C", "-M"),
            Refused("-s", "--source-port", what="also counts by local port",
                    hint="--by laddr,lport,raddr,rport counts by local port"),
            _program("soconnect"),
        ),
        notes=(
            "A line appears when the attempt has ended, not when it begins. Attempts that end "
            "before a SYN is sent (no route, no free port) are also shown; -w shows the result.",
        ),
    ),
    Alias(
        "tcpconnlat",
        "soconnect",
        "how long TCP connections of this machine take to be established",
        columns=("pid", Shown("comm", "COMM", 12), _IP, Shown("laddr", "SADDR"),
                 Shown("raddr", "DADDR"), Shown("rport", "DPORT"),
                 Shown("latency_us", "LAT(ms)", like=Duration)),
        argument=("MS", "min_ms"),
        flags=(
            Refused("-L", "--lport", what="is a switch that shows the local port", always=True,
                    hint="-w shows the local port; 'netbpf soconnect -L LIST' shows only these"),
            _program("soconnect"),
        ),
        notes=(
            "Attempts that time out or are given up also have a line; -w shows the result.",
            "The number is the least time in milliseconds, not an interval.",
        ),
    ),
    Alias(
        "tcpaccept",
        "soaccept",
        "TCP connections that programs of this machine accept",
        "--proto tcp",
        columns=("pid", Shown("comm", "COMM", 12), _IP, Shown("raddr", "RADDR", 15),
                 Shown("rport", "RPORT"), Shown("laddr", width=15), "lport", "result"),
        flags=(Mapped("-P", "--port", option="lport"), *_maps(), _program("soaccept")),
        notes=("Accepts that fail are also shown: RESULT, which bcc does not have, is the error.",),
    ),
    Alias(
        "xdpdrop",
        "skbdrop",
        "packets that XDP programs drop",
        "--reason XDP",
        columns=("location", "dev", "proto", "count", "bytes"),
        notes=("Native XDP on a hardware device drops before there is a packet buffer: only the "
               "device's own counters have those.",),
    ),
    Alias(
        "tcpdrop",
        "skbdrop",
        "TCP segments that the kernel drops, and the kernel functions that led there",
        "--events --stack --proto tcp",
        columns=("pid", _IP, Shown("saddr"), Shown("daddr"), "reason"),
        time="seconds",
        flags=(Mapped("--netns-id", "--pid-netns", option="netns"), _program("skbdrop")),
        notes=(
            "PID is the owner of the socket, not the process that ran at that time.",
            "The reason replaces STATE and FLAGS. The stacks are in the table at the end (or at "
            "each INTERVAL), one for each place and reason. Drops that lose nothing are hidden; "
            "--all shows them.",
        ),
    ),
    Alias(
        "netqtop",
        "nettop",
        "packets and bytes by queue of the network devices",
        "--by dev,queue",
        columns=("dev", Shown("queue", "QueueID", 7), Shown("tx_packets", "TX_PKTS"),
                 Shown("tx_bytes", "TX_KB"), Shown("rx_packets", "RX_PKTS"),
                 Shown("rx_bytes", "RX_KB")),
        flags=(
            Mapped("-n", "--name", option="interface"),
            Positional("-i", "--interval", argument="interval"),
            Refused("-t", "--throughput", always=True, what="also shows the throughput",
                    hint="packets and bytes of each interval are always shown: leave it out"),
            _program("nettop"),
        ),
        notes=(
            "Sent and received packets of a queue are in one row, without -n those of all devices. "
            "'netbpf netsize --queues' has their sizes. Bytes include the link header. The queue "
            "of received packets is '-' if the driver does not record it.",
        ),
    ),
    Alias(
        "tcpsubnet",
        "tcptop",
        "bytes that programs send over TCP, by the receiver's network",
        "--by raddr/24",
        columns=(Shown("raddr", "SUBNET", 20), "sessions", "tx_bytes"),
        flags=(
            Refused("-f", "--format", what="selects the unit",
                    hint="text shows KB, --json and -o csv show bytes"),
            Positional("-i", "--interval", argument="interval"),
            Refused("-J", what="selects JSON", hint="--json does"),
            _program("tcptop"),
        ),
        no_interval="--raddr 10.1.2.0/24 selects a network, 'netbpf tcptop --by raddr/16' counts "
        "by larger ones",
        notes=(
            "Networks are the blocks of 24 bits that occur, not those of a list. --raddr selects "
            "one, 'netbpf tcptop --by raddr/16' shows larger ones.",
        ),
    ),
    Alias(
        "tcpcong",
        "tcpwin",
        "how long TCP connections are in each state of congestion control",
        "--summary",
        columns=(Shown("laddr", "LAddrPort", 18), Shown("raddr", "RAddrPort", 18),
                 Shown("open_us", "Open_ms"), Shown("disorder_us", "Dod_ms"),
                 Shown("recovery_us", "Rcov_ms"), Shown("cwr_us", "Cwr_ms"),
                 Shown("loss_us", "Los_ms", 6), Shown("changes", "Chgs")),
        flags=(
            Mapped("--localport", option="lport"),
            Mapped("-R", "--remoteport", option="rport"),
            Mapped("-j", option="json"),
            Refused("-u", "--microseconds", what="shows microseconds", always=True,
                    hint="text shows milliseconds with two decimals, --json and -o csv "
                    "microseconds; --uid LIST selects users"),
            Refused("-d", "--dist", what="shows histograms",
                    hint="-d SECONDS ends the run; 'netbpf tcpwin' shows each change of state"),
            _program("tcpwin"),
        ),
        notes=(
            "Connections without a change of state are also shown, and the time since the last "
            "change counts.",
        ),
    ),
    Alias(
        "tcptracer",
        "tcpstates",
        "TCP connections as they open and close, a line for each",
        "--step connect,accept,close",
        columns=(Shown("step", "T", like=StepLetter), "pid", Shown("comm", "COMM", 16), _IP,
                 Shown("laddr", "SADDR", 15, like=Addr), Shown("raddr", "DADDR", 15, like=Addr),
                 Shown("lport", "SPORT"), Shown("rport", "DPORT")),
        flags=(
            Mapped("-N", option="netns"),
            Shows("-U", "--print-uid", column="uid"),
            Refused("-v", what="also shows the network namespace, and events by name", always=True,
                    hint="-w shows the network namespace and all other columns, --verbose the "
                    "probes in use"),
            *_maps("-C", "-M"),
        ),
        notes=(
            "A (accept) appears when the handshake ends, with the process that listens, and not "
            "when a program accepts the connection: 'netbpf tcpaccept' shows that. X (close) also "
            "appears when this end shuts down sending, and when the connection is reset or given "
            "up.",
        ),
    ),
    # Tools of the same name: flags of bcc that are spelled differently here.
    Alias("tcplife", "tcplife", flags=(*_LOCAL_AND_REMOTE, _program("tcplife"))),
    Alias(
        "tcpstates",
        "tcpstates",
        flags=(
            *_LOCAL_AND_REMOTE,
            Refused("-Y", "--journal", what="writes to the systemd journal",
                    hint="'netbpf tcpstates --json | systemd-cat' does"),
            _program("tcpstates"),
        ),
    ),
    Alias(
        "tcptop",
        "tcptop",
        flags=(
            Mapped("-r", "--rows", option="top"),
            Mapped("-c", option="cgroup"),
            Refused("-s", what="sorts by all, sent or received",
                    hint="--sort bytes, tx_bytes or rx_bytes"),
            *_maps(),
            _program("tcptop"),
        ),
    ),
    Alias(
        "tcpretrans",
        "tcpretrans",
        flags=(
            Mapped("--lossprobe", option="loss"),
            Mapped("--count", option="flows"),
            _program("tcpretrans"),
        ),
    ),
    Alias(
        "tcprtt",
        "tcprtt",
        flags=(
            Positional("-i", "--interval", argument="interval"),
            Mapped("-m", "--milliseconds", "--millisecond", option="ms"),
            Refused("-p", what="selects a local port", always=True,
                    hint="-L LIST shows only these local ports, --pid LIST only these processes"),
            Mapped("-P", option="rport"),
            Mapped("-a", option="laddr"),
            Mapped("-A", option="raddr"),
            Sets("-b", "--byladdr", option="by", value="laddr"),
            Sets("-B", "--byraddr", option="by", value="raddr"),
            Refused("-e", "--extension", what="also shows the average",
                    hint="the average is always shown: leave it out"),
            Refused("-D", "--debug", what="prints the BPF program",
                    hint="'netbpf schema --c tcprtt' prints the generated C; -D LIST shows only "
                    "these remote ports"),
            _program("tcprtt"),
        ),
    ),
    Alias(
        "solisten",
        "solisten",
        flags=(
            Refused("-n", what="selects a network namespace", always=True,
                    hint="--netns does; --max-events N ends the run after N calls"),
            Refused("--show-netns", what="shows the network namespace",
                    hint="-w shows it and all other columns"),
            _program("solisten"),
        ),
    ),
    Alias(
        "gethostlatency",
        "gethostlatency",
        flags=(
            Refused("-l", "--libc", what="selects the libc to probe",
                    hint="every libc in use is probed; -p and --comm select processes"),
            _program("gethostlatency"),
        ),
    ),
)  # fmt: skip

# Names that no tool of netbpf replaces yet -> the command that comes nearest, and what it shows.
INSTEAD = {
    "bindsnoop": ("sockstat --op bind --by comm,pid,proto,lport", "who calls bind(2), by port"),
    "sofdsnoop": (
        "sockstat --proto unix --op send,recv --by comm,pid,op",
        "messages on unix sockets, by process, not the descriptors that are passed in them",
    ),
    "tcppktlat": ("so1stbyte --summary", "how late programs read the first byte (READ)"),
}
