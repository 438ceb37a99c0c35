"""Convert raw C values: untrusted strings, addresses, numbers with names."""

from __future__ import annotations

# include/net/tcp_states.h, part of the kernel's ABI.
TCP_STATES = {
    1: "ESTABLISHED",
    2: "SYN_SENT",
    3: "SYN_RECV",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    6: "TIME_WAIT",
    7: "CLOSE",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    10: "LISTEN",
    11: "CLOSING",
    12: "NEW_SYN_RECV",
}

# Return values of getaddrinfo(3): name and description. netdb.h of glibc and musl have the same
# numbers; those above 0 are defined in include/lookups.bpf.h.
ABANDONED = 2
LOOKUP_RESULTS = {
    ABANDONED: ("abandoned", "abandoned"),
    0: ("OK", ""),
    -1: ("EAI_BADFLAGS", "bad flags"),
    -2: ("EAI_NONAME", "no such name"),
    -3: ("EAI_AGAIN", "temporary failure"),
    -4: ("EAI_FAIL", "permanent failure"),
    -5: ("EAI_NODATA", "no address for this name"),
    -6: ("EAI_FAMILY", "family not supported"),
    -7: ("EAI_SOCKTYPE", "socket type not supported"),
    -8: ("EAI_SERVICE", "no such service"),
    -9: ("EAI_ADDRFAMILY", "no address of this family"),
    -10: ("EAI_MEMORY", "out of memory"),
    -11: ("EAI_SYSTEM", "system error"),
    -12: ("EAI_OVERFLOW", "buffer too small"),
    -101: ("EAI_CANCELED", "cancelled"),
    -104: ("EAI_INTR", "interrupted"),
    -105: ("EAI_IDN_ENCODE", "bad characters in the name"),
}


def escape(text: str) -> str:
    """Return `text` with all control and non-printable characters escaped.

    Names of processes, hosts and files are untrusted: no escape sequence, line break or direction
    override in them may reach a terminal.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def width_of(text: str) -> int:
    """Return the terminal columns that `text` takes: 2 per wide character, 0 per combining one."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width  # lazy: 1 MB of tables, seldom needed

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, width: int) -> str:
    """Return the beginning of `text` that takes at most `width` terminal columns."""
    text = text[: width + sum(not character.isascii() for character in text)]
    while width_of(text) > width:
        text = text[:-1]
    return text


def clean(raw: bytes) -> str:
    """Decode an untrusted C string up to its NUL, undecodable bytes as \\xNN."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


_MAPPED = b"\0" * 10 + b"\xff\xff"


def address(raw: bytes) -> str:
    """Format a 16-byte address; IPv4-mapped addresses as IPv4."""
    if raw.startswith(_MAPPED):
        return f"{raw[12]}.{raw[13]}.{raw[14]}.{raw[15]}"
    import socket  # lazy: this import is slower than those of most tools

    return socket.inet_ntop(socket.AF_INET6, raw)
