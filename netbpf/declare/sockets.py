"""Columns about socket calls: addresses of any family, protocols, results and short times."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Optional

from netbpf.declare.columns import Addr, Column, Converter, Duration, Enum
from netbpf.declare.values import address, clean, escape

_NONE, _IP, _UNIX = range(3)  # enum any_kind in include/address.bpf.h


class AnyAddr(Addr):
    """An IP address or the path of a unix socket (abstract ones with @): struct any_addr in C."""

    ctype = "u8[109]"
    cstruct = "struct any_addr"

    def converter(self) -> Optional[Converter]:
        """Return the conversion by the kind that the first byte tells."""

        def convert(raw: bytes) -> Optional[str]:
            if raw[0] == _IP:
                return address(raw[1:17])
            return clean(raw[1:]) or None if raw[0] == _UNIX else None

        return convert

    def text(self, value: Any) -> str:
        """Return the address; a path is what a stranger chose."""
        return "-" if value is None else escape(value)


class LocalAddr(Addr):
    """A local IP address; one that is not chosen yet (0.0.0.0, ::) is not known."""

    priority = 28

    def converter(self) -> Optional[Converter]:
        """Return the conversion from 16 bytes to text."""
        return lambda raw: address(raw) if any(raw[12:]) or any(raw[:10]) else None


class BoundAddr(Addr):
    """The IP address that a listener is bound to; all ones in C: not known."""

    def converter(self) -> Optional[Converter]:
        """Return the conversion from 16 bytes to text."""
        return lambda raw: None if raw == b"\xff" * 16 else address(raw)


# include/uapi/linux/in.h; for other families than IP 1000 + enum sock_type.
SOCK_PROTOS = {
    0: None, 6: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 136: "udplite", 262: "mptcp",
    1001: "stream", 1002: "dgram", 1003: "raw", 1005: "seqpacket",
}  # fmt: skip


class SockProto(Enum):
    """A socket's protocol; of a unix socket its type."""

    ctype = "u16"
    width = 6

    def __init__(self, help: str, **more: Any) -> None:  # noqa: A002
        super().__init__(help, SOCK_PROTOS, **more)


class CallResult(Column):
    """How an attempt ended: OK, or the error in words; None (-1 in C) as long as it goes on.

    `words` are better ones than the C library's for some numbers, which need not be error numbers;
    `short` are shorter ones for text output, by the words that they stand for.
    """

    ctype = "s32"
    width = 20
    full = 24
    priority = 80
    json_type = "string"

    def __init__(
        self,
        help: str,  # noqa: A002
        words: Mapping[int, str],
        short: Optional[Mapping[str, str]] = None,
        **more: Any,
    ) -> None:
        super().__init__(help, **more)
        self.words = {-1: None, 0: "OK", **words}
        self.texts: dict[Optional[str], str] = {None: "In progress", "OK": "Success"}
        self.texts.update(short or {})

    def converter(self) -> Optional[Converter]:
        """Return the conversion from number to words."""
        words = self.words
        return lambda raw: words[raw] if raw in words else os.strerror(raw)

    def is_alert(self, value: Any) -> bool:
        """Return whether the attempt failed."""
        return value not in (None, "OK")

    def text(self, value: Any) -> str:
        """Return the words, those of success as in the book."""
        return self.texts.get(value, str(value))


class Elapsed(Duration):
    """A short time span: nanoseconds in C, whole microseconds as a value and in text."""

    text_unit = ""

    def text(self, value: Any) -> str:
        """Return microseconds."""
        return "-" if value is None else str(value)


class Flag(Column):
    """Yes or no; 2 in C means not known."""

    ctype = "u8"
    width = 5
    json_type = "boolean"

    def converter(self) -> Optional[Converter]:
        """Return the conversion from number to truth."""
        return lambda raw: None if raw == 2 else bool(raw)

    def text(self, value: Any) -> str:
        """Return a word."""
        return "-" if value is None else "yes" if value else "no"


def ends_of(values: Mapping[str, Any]) -> tuple[object, ...]:
    """Return what two records of one IP socket have in common, for the hook `same`."""
    return tuple(values[name] for name in ("netns", "laddr", "lport", "raddr", "rport"))
