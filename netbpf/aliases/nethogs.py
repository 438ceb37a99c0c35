"""nethogs, which a tool of netbpf replaces."""

from netbpf.declare.aliases import Alias, Mapped, Positional, Refused, Sets, Shown

SUITE = "nethogs"

_COLUMNS = ("pid", Shown("uid", "USER"), Shown("comm", "PROGRAM", 15), "dev",
            Shown("tx_bytes", "SENT_KB"), Shown("rx_bytes", "RECEIVED_KB"))  # fmt: skip

ALIASES = (
    Alias(
        "nethogs",
        "nettop",
        "bytes that processes send and receive through network devices",
        "--by dev,pid,uid,comm",
        columns=_COLUMNS,
        argument=("DEVICES", "interface"),
        flags=(
            Positional("-d", argument="interval"),
            Positional("-c", argument="count"),
            Mapped("-P", option="pid"),
            Sets("-s", option="sort", value="tx_bytes", columns=_COLUMNS),
            Refused("-p", what="listens to packets for other machines",
                    hint="only those that the machine sends and receives have a process; -p LIST "
                    "shows only these processes"),
            Refused("-t", always=True, what="prints lines instead of a screen",
                    hint="lines are always printed: leave it out"),
            Refused("-v", always=True, what="selects the unit",
                    hint="text shows KB of each interval, --json and -o csv show bytes"),
            Refused("-a", what="shows all devices",
                    hint="without DEVICES all are shown: leave it out"),
            Refused("-C", what="also counts UDP",
                    hint="all protocols are counted: leave it out; --by dev,pid,comm,proto "
                    "tells them apart"),
            Refused("-l", what="shows command lines", hint="'ps -fp PID' does"),
            Refused("-b", what="prints what it does",
                    hint="--verbose shows which probes are used"),
            Refused("-f", what="takes a filter of libpcap",
                    hint="--raddr, --laddr, -D, -L, -4 and -6 select packets"),
        ),
        notes=(
            "Separate several devices by commas. Programs are shown by name and users by id. A row "
            "without PID is what no process has: 'netbpf nettop' tells apart forwarded packets, "
            "those of the kernel, and the rest of the device.",
            "The duration of the run is --duration.",
        ),
    ),
)  # fmt: skip

# Names that no tool of netbpf replaces yet -> the command that comes nearest, and what it shows.
INSTEAD: dict[str, tuple[str, str]] = {}
