"""Names of services, as /etc/services lists them."""

from __future__ import annotations

from contextlib import suppress


def ports_of_service(name: str) -> list[int]:
    """Return the ports of a service, which differ by protocol for a few names.

    Raises ValueError for an unknown name.
    """
    import socket  # takes 6 ms and is rarely needed

    found = set()
    for protocol in ("tcp", "udp"):
        with suppress(OSError, UnicodeError):
            found.add(socket.getservbyname(name, protocol))
    if not found:
        raise ValueError(f"'{name}' is neither a port nor a service of /etc/services")
    return sorted(found)
