"""Options shared by tools, their parsers, and the groups in which tools list them.

A tool lists the options that it supports, usually whole groups. Other common options are usage
errors for that tool; they are never ignored.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional, Union

from netbpf.declare.constants import Range, load_constant
from netbpf.declare.services import ports_of_service
from netbpf.errors import UsageError

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

# A token of a glob: a set of characters in brackets, or one character.
COMM_TOKEN = re.compile(r"\[(?:!.|[^!])[^\]]*\]|.", re.DOTALL)
MAX_LIST = 256  # items of a list option: each becomes one comparison in the BPF program


def nonempty(text: str) -> str:
    """Accept text that is not blank."""
    if not text.strip():
        raise ValueError(f"'{text}' is empty")
    return text


def integers(text: str) -> list[int]:
    """Parse "12,34" into positive 32-bit numbers."""
    return [_integer(word, 1, 2**32 - 1) for word in _list(text)]


def ports(text: str) -> list[Range]:
    """Parse "80,8000-8100,https" into inclusive (low, high) pairs; names are of /etc/services."""
    pairs = []
    for word in _list(text):
        if re.search(r"[^0-9-]", word):
            pairs += [(port, port) for port in ports_of_service(word)]
            continue
        low, dash, high = word.partition("-")
        pair = (_integer(low, 1, 65535), _integer(high if dash else low, 1, 65535))
        if pair[0] > pair[1]:
            raise ValueError(f"'{word}' is an empty range")
        pairs.append(pair)
    return pairs


def network(text: str) -> Network:
    """Parse "10.0.0.0/8" or one address. Host bits are an error, as they are usually a typo."""
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"'{text}' is not an address or CIDR block: {error}") from None


def seconds(text: str) -> float:
    """Parse a positive time span: seconds with an optional fraction, or "90s", "1m", "2h30m"."""
    match = _SPAN.fullmatch(text)
    if not match or not any(match.groups()):
        return _number(text, "seconds (or a time such as 90s, 1m or 2h30m)", 0.001, 10**8)
    span = sum(float(n or 0) * unit for n, unit in zip(match.groups(), (86400, 3600, 60, 1)))
    if not 0.001 <= span <= 10**8:
        raise ValueError(f"'{text}' is not between 0.001 and {10**8} seconds")
    return span


_SPAN = re.compile(
    r"(?:([0-9]{1,5})d)?(?:([0-9]{1,7})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,12}(?:\.[0-9]{1,9})?)s)?"
)


def percent(text: str) -> float:
    """Parse a share of one CPU in percent."""
    return _number(text, "percent", 0.001, 100_000)


def milliseconds(text: str) -> float:
    """Parse a time span in milliseconds."""
    return _number(text, "milliseconds", 0, 10**9)


def nanoseconds(span: Optional[float]) -> int:
    """Return `span`, which is in milliseconds, in nanoseconds; 0 if it is None."""
    return int((span or 0) * 1e6)


def count(text: str) -> int:
    """Parse a positive whole number."""
    return _integer(text, 1, 2**31 - 1)


def size(text: str) -> int:
    """Parse "256k", "4m" or a number of bytes."""
    match = re.fullmatch(r"([0-9]{1,12})([kmg]?)(?:i?b)?", text.lower())
    if not match:
        raise ValueError(f"'{text}' is not a size such as 256k or 4m")
    value = int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2]]
    if not 4096 <= value <= 1 << 30:
        raise ValueError(f"'{text}' is not between 4k and 1g")
    return value


def comm_glob(text: str) -> str:
    """Accept a glob that can match a process name, which has at most 15 characters."""
    characters = [token for token in COMM_TOKEN.findall(text) if token != "*"]
    if not text or len(characters) > 15 or not text.isascii():
        raise ValueError(f"'{text}' cannot match a process name (1 to 15 ASCII characters)")
    return text


def one_or_more(*words: str) -> Callable[[str], list[str]]:
    """Return a parser of a list of some of `words`."""

    def parse(text: str) -> list[str]:
        found = _list(text)
        for word in found:
            if word not in words:
                raise ValueError(f"'{word}' is not one of {', '.join(words)}")
        return found

    return parse


def devices(text: str) -> list[str]:
    """Parse "eth0,eth1" into names of network devices, which have no slash or space.

    A name has 1 to 15 bytes, an alternative name (altname) up to 127.
    """
    for name in _list(text):
        raw = name.encode(errors="surrogateescape")  # all other bytes are valid
        if not re.fullmatch(rb"[^ \t\n\v\f\r/\0]{1,127}", raw):
            raise ValueError(f"'{name}' is not a valid network device name")
    return text.split(",")


def names(text: str) -> list[str]:
    """Parse "pid,raddr" into names in lower case, each once."""
    return list(dict.fromkeys(_list(text.lower())))


def _list(text: str) -> list[str]:
    items = text.split(",")
    if not all(items):
        raise ValueError(f"'{text}' has an empty item")
    if len(items) > MAX_LIST:
        raise ValueError(f"more than {MAX_LIST} items")
    return items


def _integer(word: str, low: int, high: int) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", word) or not low <= int(word) <= high:
        raise ValueError(f"'{word}' is not a whole number from {low} to {high}")
    return int(word)


def _number(text: str, unit: str, low: float, high: float) -> float:
    if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text) or not low <= float(text) <= high:
        raise ValueError(f"'{text}' is not a number of {unit} from {low:g} to {high:g}")
    return float(text)


class Option:
    """One command line option.

    `flags` are its spellings, `help` is one sentence, `metavar` names the argument. `parse` returns
    the value of an argument or raises ValueError; without `parse` the option is a switch.
    `choices` are the valid values of a text argument. A switch with `sets` changes other settings.
    `name` is the key of the value in the settings. `define` names a C constant that is 1 if the
    option is given or, with `number`, always defined as the result of `number(value)`.
    """

    def __init__(
        self,
        *flags: str,
        help: str,
        metavar: str = "",
        parse: Callable[[str], Any] | None = None,
        choices: Sequence[str] = (),
        default: Any = None,
        sets: Mapping[str, Any] | None = None,
        define: str = "",
        number: Callable[[Any], int] | None = None,
    ) -> None:
        self.flags = flags
        self.help = help
        self.metavar = metavar
        self.parse = parse
        self.choices = tuple(choices)
        self.default = default if parse or choices else False
        self.sets = dict(sets or {})
        self.define = define
        self.number = number
        longest = max(flags, key=len)
        self.name = longest.lstrip("-").replace("-", "_")

    @property
    def is_filter(self) -> bool:
        """Whether the option leaves out what does not match: its help begins with "only"."""
        return self.help.startswith("only ")

    def constant(self, value: Any) -> dict[str, object]:
        """Return the C constants for the option's value."""
        if not self.define or not (value or self.number):
            return {}
        return {self.define: load_constant(self.number(value)) if self.number else 1}

    def value(self, text: Any) -> Any:
        """Return the value of the argument `text`. Raises UsageError."""
        if self.parse is None or text is None:
            return text
        try:
            return self.parse(text)
        except ValueError as error:
            raise UsageError(
                f"{self.flags[-1]}: {error}", f"{self.flags[-1]}: {self.help}"
            ) from None


OUTPUT = (
    Option(
        "-o", "--output", metavar="FORMAT", choices=("text", "json", "csv"), default="text",
        help="output format: text, json (one object per line) or csv (with a header)",
    ),
    Option("--json", help="same as --output json", sets={"output": "json"}),
    Option("-T", "--time", help="show the wall clock time of each event (microseconds)"),
    Option("-t", "--timestamp", help="show seconds since the start of tracing"),
    Option("-w", "--wide", help="show all columns, as wide as their content"),
    Option("--columns", metavar="LIST", parse=names,
           help="show these columns, in this order (text and CSV)"),
)  # fmt: skip
SORT = (
    Option(
        "--sort",
        metavar="COLUMN",
        parse=nonempty,
        help="sort the rows of tables by this column, largest numbers first",
    ),
)
LIMITS = (
    Option(
        "-d", "--duration", metavar="TIME", parse=seconds,
        help="stop after this time (60, 90s, 1m, 2h30m)",
    ),
    Option("--buffer", metavar="SIZE", parse=size, default="32m",
           help="ring buffer size, rounded up to a power of two (such as 256k or 4m)"),
    Option("--map-entries", metavar="N", parse=count, default="16384",
           help="size of BPF maps: how many sockets, sessions or keys are tracked at once"),
    Option("--fail-on-loss", help="exit with status 3 if data was lost"),
    Option("--max-overhead", metavar="PERCENT", parse=percent,
           help="stop if probes and reader use more than this share of one CPU over 3 seconds"),
    Option("--ready-file", metavar="PATH", parse=nonempty,
           help="create this file when all probes are attached, remove it at exit"),
    Option("--btf", metavar="FILE", parse=nonempty,
           help="read kernel types from this file, for a kernel without BTF"),
    Option("--probe", metavar="NAME=KIND,...", parse=nonempty,
           help="use only this kind (tp, rawtp, fentry, kprobe ...) for a probe"),
    Option("-v", "--verbose",
           help="log compilation, probe selection, attaching and memory use"),
)  # fmt: skip
EVENT_LIMITS = (
    Option("-n", "--max-events", metavar="N", parse=count, help="stop after this many events"),
)
PROCESS = (
    Option("-p", "--pid", metavar="LIST", parse=integers, help="only these process ids"),
    Option("--comm", metavar="GLOB", parse=comm_glob,
           help="only process names that match this pattern, such as 'nginx*'"),
    Option("-u", "--uid", metavar="LIST", parse=nonempty, help="only these users, by id or name"),
    Option("--cgroup", metavar="PATH", parse=nonempty,
           help="only processes in this cgroup (version 2) and below"),
    Option("--container", metavar="ID|NAME", parse=nonempty,
           help="only processes of this container, by a prefix of its id, or by its name"),
)  # fmt: skip
NETNS = (
    Option("--netns", metavar="PID|NAME|INODE", parse=nonempty, help="only this network namespace"),
)
SOCKET = (
    Option("-4", "--ipv4", help="only IPv4, IPv4-mapped addresses included"),
    Option("-6", "--ipv6", help="only IPv6, IPv4-mapped addresses excluded"),
    Option("-L", "--lport", metavar="LIST", parse=ports,
           help="only these local ports (80,8000-8100,https)"),
    Option("-D", "--rport", metavar="LIST", parse=ports,
           help="only these remote ports (443,8000-8100,https)"),
    Option("--laddr", metavar="CIDR", parse=network, help="only local addresses in this block"),
    Option("--raddr", metavar="CIDR", parse=network, help="only remote addresses in this block"),
)  # fmt: skip

# Filters of rows that do not apply to the kernel's counters.
NARROWING = {option.name for option in (*PROCESS, *SOCKET)}
# All common filters; a tool rejects those that it does not list.
FILTERS = (*PROCESS, *NETNS, *SOCKET)


def by_name(options: Sequence[Option]) -> dict[str, Option]:
    """Return {name: option}."""
    return {option.name: option for option in options}
