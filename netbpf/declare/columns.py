"""What a value means: one class per meaning, with its C type, its machine value and its text.

Machine formats carry `value`, the terminal carries `text`: JSON never holds "1.2 kB", and the
terminal never holds 1258291. A value that is not known is None: null in JSON, empty in CSV, "-"
in text.
"""

from __future__ import annotations

import errno as errno_names
import os
from collections.abc import Mapping
from typing import Any, Optional

from netbpf.declare.column import Column as Column
from netbpf.declare.column import Converter as Converter
from netbpf.declare.values import LOOKUP_RESULTS, TCP_STATES, address, clean, escape

U64_MAX = 2**64 - 1
U32_MAX = 2**32 - 1


class Count(Column):
    """How many of something."""

    ctype = "u64"
    width = 9
    align = ">"


class Gauge(Count):
    """A number that is no sum: the greatest of all CPUs' values, as it stands.

    With `shown`, a row is shown as long as it is not 0, even if nothing has changed.
    """

    def __init__(self, help: str, *, shown: bool = False, **more: Any) -> None:  # noqa: A002
        super().__init__(help, **more)
        self.shown = shown


class Bytes(Column):
    """A size in bytes; in text in units of 1024 bytes, as bcc's tools print it."""

    ctype = "u64"
    width = 8
    align = ">"
    unit, text_unit = "bytes", "KB"

    def text(self, value: Any) -> str:
        """Return kilobytes: small ones with two decimals, so that a small session is not 0."""
        return "-" if value is None else _short(value / 1024)


class Duration(Column):
    """A time span: nanoseconds in C, whole microseconds as a value, milliseconds in text."""

    ctype = "u64"
    width = 9
    align = ">"
    unit, text_unit = "us", "ms"

    def converter(self) -> Optional[Converter]:
        """Return the conversion from ns to us; U64_MAX means not known."""
        return lambda raw: None if raw == U64_MAX else raw // 1000

    def text(self, value: Any) -> str:
        """Return milliseconds, short ones with two decimals."""
        return "-" if value is None else _short(value / 1000)


def _short(number: float) -> str:
    # Five characters as long as the whole part has at most five digits.
    decimals = 2 if number < 99.995 else 1 if number < 999.95 else 0
    return f"{number:.{decimals}f}"


class Micros(Column):
    """A time span that the kernel itself keeps in microseconds; 0 means never measured."""

    width = 9
    align = ">"
    unit = "us"

    def converter(self) -> Optional[Converter]:
        """Return the conversion that makes 0 unknown."""
        return lambda raw: raw or None


class Pid(Column):
    """A process id (tgid) in the initial pid namespace; 0 means not known."""

    width = 7

    def converter(self) -> Optional[Converter]:
        """Return the conversion that makes 0 unknown."""
        return lambda raw: raw or None


class Netns(Count):
    """A network namespace by the inode number of /proc/PID/ns/net; 0 means not known."""

    ctype = "u32"
    width = 10

    def __init__(self, help: str = "network namespace, by inode number") -> None:  # noqa: A002
        super().__init__(help, wide=True, null=0)


class Cgroup(Count):
    """A cgroup of version 2 by its id, which is the inode number of its directory."""

    def __init__(self, help: str = "cgroup id of the process, 0 if not known") -> None:  # noqa: A002
        super().__init__(help, text=False)


class Uid(Column):
    """A user id in the initial user namespace; U32_MAX means not known."""

    width = 6

    def converter(self) -> Optional[Converter]:
        """Return the conversion that makes U32_MAX unknown."""
        return lambda raw: None if raw == U32_MAX else raw


class Text(Column):
    """A C string from outside, escaped before it is shown; empty means not known."""

    ctype = "char[16]"
    width = 16
    json_type = "string"

    def converter(self) -> Optional[Converter]:
        """Return the conversion from bytes to text."""
        return lambda raw: clean(raw) or None

    def text(self, value: Any) -> str:
        """Return the string with control characters escaped."""
        return "-" if value is None else escape(value)


class Comm(Text):
    """A process name: task_struct.comm, at most 15 bytes."""

    full = 15


class Container(Column):
    """A container's id, 64 hex digits; C has the id of its cgroup. None outside of containers.

    The reader of events puts the container in the cgroup's place.
    """

    ctype = "u64"
    width = 12
    json_type = "string"

    def text(self, value: Any) -> str:
        """Return the short form that container tools print."""
        return "-" if value is None else str(value)[:12]


class Enum(Column):
    """One of a few words; C has its number. `words` maps number to word, None is not known."""

    ctype = "u8"
    json_type = "string"

    def __init__(
        self,
        help: str,  # noqa: A002
        words: Mapping[int, Optional[str]],
        **more: Any,
    ) -> None:
        super().__init__(help, **more)
        self.words = words

    @property
    def prefix(self) -> str:
        """What the names of the words begin with in C: KIND_RTO of a column `kind`."""
        return f"{self.name.upper()}_"

    def converter(self) -> Optional[Converter]:
        """Return the conversion from number to word; a number without a word stays a number."""
        words = self.words
        return lambda raw: words[raw] if raw in words else str(raw)

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema: the words, and null if one number means not known."""
        words = sorted(w for w in self.words.values() if w is not None)
        return {"type": ["string", "null"], "description": self.help, "examples": words}


class Owner(Enum):
    """How the owner of a socket is known."""

    width = 8
    prefix = "OWNER_"

    def __init__(self, help: str, **more: Any) -> None:  # noqa: A002
        super().__init__(help, {0: "unknown", 1: "exact", 2: "snapshot"}, **more)


class Family(Enum):
    """An address family; IPv4-mapped IPv6 counts as ipv4. Numbers: AF_* of the kernel's ABI."""

    width = 6

    def __init__(self, help: str, **more: Any) -> None:  # noqa: A002
        super().__init__(help, {0: None, 1: "unix", 2: "ipv4", 10: "ipv6"}, **more)


class Addr(Column):
    """An IP address: always 16 bytes in C, IPv4 as ::ffff:a.b.c.d, printed as IPv4."""

    ctype = "u8[16]"
    width = 15
    full = 39
    json_type = "string"

    def converter(self) -> Optional[Converter]:
        """Return the conversion from 16 bytes to text."""
        return address

    def text(self, value: Any) -> str:
        """Return the address."""
        return "-" if value is None else str(value)


class Port(Column):
    """A port in host byte order; 0 means not known yet."""

    ctype = "u16"
    width = 5


class Errno(Column):
    """An error number, positive; 0 is None. Symbolic in machine formats, words in text."""

    ctype = "s32"
    width = 16
    json_type = "string"

    def converter(self) -> Optional[Converter]:
        """Return the conversion from number to symbol."""
        return lambda raw: errno_names.errorcode.get(raw, str(raw)) if raw else None

    def text(self, value: Any) -> str:
        """Return the C library's words for the error."""
        number = getattr(errno_names, value, None) if value else None
        return "-" if value is None else os.strerror(number) if number else str(value)


class TcpState(Enum):
    """A TCP state; numbers are those of include/net/tcp_states.h, fixed by the kernel's ABI."""

    width = 11
    prefix = "TCP_"

    def __init__(self, help: str, **more: Any) -> None:  # noqa: A002
        super().__init__(help, TCP_STATES, **more)


class LookupResult(Enum):
    """What came of a name lookup: OK or EAI_*, None as long as it goes on. In text only words."""

    ctype = "s32"
    width = 16
    prefix = ""

    def __init__(self, help: str, **more: Any) -> None:  # noqa: A002
        words = {number: name for number, (name, _) in LOOKUP_RESULTS.items()}
        super().__init__(help, {**words, 1: None}, **more)

    def text(self, value: Any) -> str:
        """Return what is worth a word: nothing if all is well."""
        words = dict(LOOKUP_RESULTS.values())
        return "still waiting" if value is None else words.get(value, str(value))


def is_cut(values: Mapping[str, Any], name: str = "host") -> bool:
    """Tell whether a value of the column `name` goes on behind what was held of it."""
    return name in (values.get("truncated") or "").split(",")


class Cut(Text):
    """A string that may have been too long: the column `truncated` names those that were."""

    def cell(self, values: Mapping[str, Any]) -> str:
        """Return the string, and a sign that it goes on."""
        return self.text(values[self.name]) + "..." * is_cut(values, self.name)


class HostName(Cut):
    """A host's name, or its address: 16 bytes in C, and a 1 in the last byte of the field."""

    ctype = "char[256]"
    width = 28

    def converter(self) -> Optional[Converter]:
        """Return the conversion from bytes to text."""
        return lambda raw: address(raw[:16]) if raw[-1] == 1 else clean(raw) or None
