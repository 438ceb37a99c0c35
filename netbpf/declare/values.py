"""Raw values of C as values and text: strings of strangers, addresses, numbers with names."""

from __future__ import annotations

# include/net/tcp_states.h: fixed by the kernel's ABI.
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

# What a name lookup returns: netdb.h, the same numbers in glibc and musl; name and words. What is
# above 0 is ours: include/lookups.bpf.h.
ABANDONED = 2
LOOKUP_RESULTS = {
    ABANDONED: ("abandoned", "abandoned"),
    0: ("OK", ""),
    -1: ("EAI_BADFLAGS", "bad flags"),
    -2: ("EAI_NONAME", "no such name"),
    -3: ("EAI_AGAIN", "no answer for now"),
    -4: ("EAI_FAIL", "failed for good"),
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
    """Return `text` with every control and non-printable character escaped.

    Names of processes, hosts and files are chosen by strangers: none may reach a terminal with
    an escape sequence, a line break or a direction override in it.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def clean(raw: bytes) -> str:
    """Return a C string of unknown origin as text: up to the NUL, undecodable bytes as \\xNN."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


_MAPPED = b"\0" * 10 + b"\xff\xff"


def address(raw: bytes) -> str:
    """Return the text of a 16-byte address, IPv4-mapped ones as IPv4."""
    if raw.startswith(_MAPPED):
        return f"{raw[12]}.{raw[13]}.{raw[14]}.{raw[15]}"
    import socket  # lazily: it takes longer to import than most tools' declarations

    return socket.inet_ntop(socket.AF_INET6, raw)
