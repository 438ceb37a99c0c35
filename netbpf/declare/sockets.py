"""Columns of socket calls: addresses of any family, protocols, results and short times."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Optional

from netbpf.declare.columns import Addr, Column, Converter, Duration, Enum, Family
from netbpf.declare.values import address, clean, escape

_NONE, _IP, _UNIX = range(3)  # enum any_kind in include/address.bpf.h


class AnyAddr(Addr):
    """An IP address, or the path of a unix socket (@ if abstract): struct any_addr in C."""

    ctype = "u8[109]"
    cstruct = "struct any_addr"

    def converter(self) -> Optional[Converter]:
        """Return the conversion, which depends on the kind in the first byte."""

        def convert(raw: bytes) -> Optional[str]:
            if raw[0] == _IP:
                return address(raw[1:17])
            return clean(raw[1:]) or None if raw[0] == _UNIX else None

        return convert

    def text(self, value: Any) -> str:
        """Return the address; a path is untrusted, so it is escaped."""
        return "-" if value is None else escape(value)


class LocalAddr(Addr):
    """A local IP address, null while it is not chosen (0.0.0.0, ::)."""

    priority = 28

    def converter(self) -> Optional[Converter]:
        """Return the conversion from 16 bytes to text."""
        return lambda raw: address(raw) if any(raw[12:]) or any(raw[:10]) else None


class BoundAddr(Addr):
    """The IP address that a listener is bound to; all ones in C if unknown."""

    def converter(self) -> Optional[Converter]:
        """Return the conversion from 16 bytes to text."""
        return lambda raw: None if raw == b"\xff" * 16 else address(raw)


# include/uapi/linux/in.h; 1000 + enum sock_type for families other than IP.
SOCK_PROTOS = {
    0: None, 1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 58: "icmp6",
    136: "udplite", 262: "mptcp",
    1001: "stream", 1002: "dgram", 1003: "raw", 1005: "seqpacket",
}  # fmt: skip


class SockProto(Enum):
    """A socket's protocol, or the type of a unix socket."""

    ctype = "u16"
    width = 6

    def __init__(self, help: str, **options: Any) -> None:
        super().__init__(help, SOCK_PROTOS, **options)


class AnyFamily(Family):
    """The address family of any socket, not only of those with IP addresses."""

    def __init__(self, help: str, **more: Any) -> None:
        super().__init__(help, **more)
        self.words = {**self.words, 16: "netlink", 17: "packet", 40: "vsock"}


class CallResult(Column):
    """The result of an attempt: OK, or the error as text; None (-1 in C) while it is pending.

    `words` replaces the C library's text for some numbers, which need not be error numbers; `short`
    maps texts to shorter ones for text output.
    """

    ctype = "s32"
    width = 20
    full = 24
    priority = 80
    json_type = "string"

    def __init__(
        self,
        help: str,
        words: Mapping[int, str],
        short: Optional[Mapping[str, str]] = None,
        **options: Any,
    ) -> None:
        super().__init__(help, **options)
        self.words = {-1: None, 0: "OK", **words}
        self.texts: dict[Optional[str], str] = {None: "In progress", "OK": "Success"}
        self.texts.update(short or {})

    def converter(self) -> Optional[Converter]:
        """Return the conversion from number to text."""
        words = self.words
        return lambda raw: words[raw] if raw in words else os.strerror(raw)

    def is_alert(self, value: Any) -> bool:
        """Return whether the attempt failed."""
        return value not in (None, "OK")

    def text(self, value: Any) -> str:
        """Return the text, "Success" for OK as in the book."""
        return self.texts.get(value, str(value))


class Elapsed(Duration):
    """A short duration: nanoseconds in C, whole microseconds as a value and in text."""

    text_unit = ""

    def text(self, value: Any) -> str:
        """Return microseconds."""
        return "-" if value is None else str(value)


class Flag(Column):
    """Yes or no; 2 in C means unknown."""

    ctype = "u8"
    width = 5
    json_type = "boolean"

    def converter(self) -> Optional[Converter]:
        """Return the conversion from number to bool."""
        return lambda raw: None if raw == 2 else bool(raw)

    def text(self, value: Any) -> str:
        """Return "yes", "no" or "-"."""
        return "-" if value is None else "yes" if value else "no"


def ends_of(values: Mapping[str, Any]) -> tuple[object, ...]:
    """Return the key that two records of one IP socket share, for `Tool(identity=)`."""
    return tuple(values[name] for name in ("netns", "laddr", "lport", "raddr", "rport"))
