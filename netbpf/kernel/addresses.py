"""The addresses of this machine, in the network namespace of this process."""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from pathlib import Path

_LOCAL = re.compile(r"\|-- ([0-9.]{7,15})\n\s+/32 host LOCAL")


def local_addresses(proc: str = "/proc/self/net") -> frozenset[str]:
    """Return the IPv4 and IPv6 addresses, from fib_trie and if_inet6; none from a missing file."""
    found: set[str] = set()
    with suppress(OSError):
        found.update(_LOCAL.findall(Path(proc, "fib_trie").read_text()))
    with suppress(OSError):
        for line in Path(proc, "if_inet6").read_text().splitlines():
            digits = line.partition(" ")[0]
            if re.fullmatch("[0-9a-f]{32}", digits):
                found.add(str(ipaddress.IPv6Address(int(digits, 16))))
    return frozenset(found)
