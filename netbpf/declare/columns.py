"""Column classes: each defines the C type, the decoded value and the text of one kind of value.

JSON and CSV contain decoded values, text output contains formatted ones: 1258291 bytes are "1229"
KB in text. An unknown value is None: null in JSON, empty in CSV, "-" in text.
"""

from __future__ import annotations

import errno as errno_names
import os
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

from netbpf.declare.column import Column as Column
from netbpf.declare.column import Converter as Converter
from netbpf.declare.values import TCP_STATES, address, clean, escape

U64_MAX = 2**64 - 1
U32_MAX = 2**32 - 1


class Count(Column):
    """A count."""

    ctype = "u64"
    width = 9


class Gauge(Count):
    """A current value, not a sum: the maximum of the CPUs' values.

    With `shown`, a row is shown while the value is not 0, even if nothing has changed.
    """

    def __init__(self, help: str, *, shown: bool = False, **more: Any) -> None:
        super().__init__(help, **more)
        self.shown = shown


class Latest(Gauge):
    """A current value: that of the CPU which wrote last, at the time (ns) in the member `when`."""

    def __init__(self, help: str, when: str, **more: Any) -> None:
        super().__init__(help, **more)
        self.when = when


class Bytes(Column):
    """A size in bytes; text shows units of 1024 bytes, as bcc's tools do."""

    ctype = "u64"
    width = 8
    priority = 60
    unit, text_unit = "bytes", "KB"

    def text(self, value: Any) -> str:
        """Format as kilobytes; small values have two decimals, so that they are not 0."""
        return "-" if value is None else _short(value / 1024)


class Duration(Column):
    """A time span: nanoseconds in C, integer microseconds when decoded, milliseconds in text."""

    ctype = "u64"
    width = 9
    priority = 60
    unit, text_unit = "us", "ms"

    def converter(self) -> Optional[Converter]:
        """Return the conversion from ns to us; U64_MAX is unknown."""
        return lambda raw: None if raw == U64_MAX else raw // 1000

    def batch_converter(self) -> Callable[[Sequence[Any]], Sequence[Any]]:
        """Return the conversion of many values, which are seldom the same."""
        return lambda raws: [None if raw == U64_MAX else raw // 1000 for raw in raws]

    def text(self, value: Any) -> str:
        """Format as milliseconds; small values have two decimals."""
        return "-" if value is None else _short(value / 1000)


def _short(number: float) -> str:
    # At most five characters for values below 100,000.
    decimals = 2 if number < 99.995 else 1 if number < 999.95 else 0
    return f"{number:.{decimals}f}"


class Micros(Column):
    """A time span that the kernel stores in microseconds; 0 means not measured."""

    width = 9
    unit = "us"

    def converter(self) -> Optional[Converter]:
        """Return the conversion that makes 0 unknown."""
        return lambda raw: raw or None


class Pid(Column):
    """A process id (tgid) in the initial pid namespace; 0 is unknown."""

    width = 7
    priority = 70

    def converter(self) -> Optional[Converter]:
        """Return the conversion that makes 0 unknown."""
        return lambda raw: raw or None


class Netns(Count):
    """A network namespace: the inode number of /proc/PID/ns/net; 0 is unknown."""

    ctype = "u32"
    width = 10
    priority = 20

    def __init__(self, help: str = "network namespace, by inode number") -> None:
        super().__init__(help, wide=True, null=0)


class Cgroup(Count):
    """A cgroup v2 id, which is the inode number of the cgroup's directory."""

    def __init__(self, help: str = "cgroup id of the process, 0 if unknown") -> None:
        super().__init__(help, text=False)


class Uid(Column):
    """A user id in the initial user namespace; U32_MAX is unknown."""

    width = 6
    priority = 25

    def converter(self) -> Optional[Converter]:
        """Return the conversion that makes U32_MAX unknown."""
        return lambda raw: None if raw == U32_MAX else raw


class Text(Column):
    """An untrusted C string, escaped in text; empty is unknown."""

    ctype = "char[16]"
    width = 16
    json_type = "string"

    def converter(self) -> Optional[Converter]:
        """Return the conversion from bytes to str."""
        return lambda raw: clean(raw) or None

    def text(self, value: Any) -> str:
        """Escape control characters."""
        return "-" if value is None else escape(value)


class Comm(Text):
    """A process name: task_struct.comm, at most 15 bytes."""

    full = 15
    priority = 65


class Container(Column):
    """A container id of 64 hex digits; None outside containers.

    C has the cgroup id, which the reader of events replaces by the container id.
    """

    ctype = "u64"
    width = 12
    priority = 40
    json_type = "string"

    def text(self, value: Any) -> str:
        """Shorten to 12 digits, as container tools do."""
        return "-" if value is None else str(value)[:12]


class Enum(Column):
    """One of a set of strings: `words` maps C numbers to strings, or to None if unknown."""

    ctype = "u8"
    whole = True
    json_type = "string"

    def __init__(
        self,
        help: str,
        words: Mapping[int, Optional[str]],
        **more: Any,
    ) -> None:
        super().__init__(help, **more)
        self.words = words

    @property
    def prefix(self) -> str:
        """The prefix of the C constants: the column `kind` has KIND_RTO."""
        return f"{self.name.upper()}_"

    def converter(self) -> Optional[Converter]:
        """Return the conversion from number to string; an undefined number is shown as it is."""
        words = self.words
        return lambda raw: words[raw] if raw in words else str(raw)

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema, with the strings as examples."""
        words = sorted(w for w in self.words.values() if w is not None)
        return {"type": ["string", "null"], "description": self.help, "examples": words}


class Owner(Enum):
    """How the owner of a socket was determined."""

    width = 8
    priority = 15
    prefix = "OWNER_"

    def __init__(self, help: str, **more: Any) -> None:
        super().__init__(help, {0: "unknown", 1: "exact", 2: "snapshot", 3: "listener"}, **more)


class Family(Enum):
    """An address family, AF_* of the kernel's ABI; IPv4-mapped IPv6 is ipv4."""

    width = 6
    priority = 10

    def __init__(self, help: str, **more: Any) -> None:
        super().__init__(help, {0: None, 1: "unix", 2: "ipv4", 10: "ipv6"}, **more)


class Addr(Column):
    """An IP address: 16 bytes in C, IPv4 as ::ffff:a.b.c.d, which is formatted as IPv4."""

    ctype = "u8[16]"
    width = 15
    priority = 60
    whole = True
    json_type = "string"

    def converter(self) -> Optional[Converter]:
        """Return the conversion from 16 bytes to str."""
        return address


class Port(Column):
    """A port in host byte order; 0 if not yet bound."""

    ctype = "u16"
    width = 5
    priority = 60


class Errno(Column):
    """A positive errno: its symbol when decoded, its description in text; 0 is None."""

    ctype = "s32"
    width = 16
    full = 24
    priority = 75
    alert = True
    json_type = "string"

    def converter(self) -> Optional[Converter]:
        """Return the conversion from number to symbol."""
        return lambda raw: errno_names.errorcode.get(raw, str(raw)) if raw else None

    def text(self, value: Any) -> str:
        """Return the C library's description of the error."""
        number = getattr(errno_names, value, None) if value else None
        return "-" if value is None else os.strerror(number) if number else str(value)


class TcpState(Enum):
    """A TCP state, numbered as in include/net/tcp_states.h (kernel ABI)."""

    width = 11
    prefix = "TCP_"

    def __init__(self, help: str, **more: Any) -> None:
        super().__init__(help, TCP_STATES, **more)
