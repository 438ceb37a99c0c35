"""Columns of flows and packets: endpoints, and numbers that the running kernel names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from netbpf.declare.columns import Addr, Column, Converter, Errno, Family


def end(addr: Any, port: Any) -> str:
    """Return "1.2.3.4:80", "[::1]:80", or only the address if `port` is None."""
    if addr is None:
        return "-"
    if port is None:
        return str(addr)
    return f"[{addr}]:{port}" if ":" in str(addr) else f"{addr}:{port}"


class Endpoint(Addr):
    """An address whose text includes the port, from the column `port`."""

    width = 21

    def __init__(self, help: str, port: str, **more: Any) -> None:
        super().__init__(help, **more)
        self.port = port

    def cell(self, values: Mapping[str, Any]) -> str:
        """Format address and port."""
        return end(values[self.name], values[self.port])


class IpVersion(Family):
    """An address family, in text 4 or 6, as in bcc's tools."""

    width = 2

    def text(self, value: Any) -> str:
        """Return the IP version."""
        return {"ipv4": "4", "ipv6": "6"}.get(value) or super().text(value)


class Share(Column):
    """A fraction from 0 to 1; percent in text."""

    width = 7
    priority = 75
    json_type = "number"
    text_unit = "%"

    def text(self, value: Any) -> str:
        """Format as percent with two decimals."""
        return "-" if value is None else f"{value * 100:.2f}%"


class SendError(Errno):
    """The result of sending: a negative errno, or 1 (NET_XMIT_DROP, include/linux/netdevice.h).

    A queueing discipline returns NET_XMIT_DROP when it drops the packet.
    """

    def converter(self) -> Optional[Converter]:
        """Return the conversion from the kernel's result to a symbol."""
        named = super().converter()
        assert named
        return lambda raw: named(-raw) if raw <= 0 else {1: "NET_XMIT_DROP"}.get(raw, str(raw))

    def text(self, value: Any) -> str:
        """Describe the error."""
        return "dropped by the queue" if value == "NET_XMIT_DROP" else super().text(value)


# IANA protocol numbers, ETH_P_* and AF_*: fixed by wire formats and the kernel's ABI.
_IP = {
    0: "ip", 1: "icmp", 2: "igmp", 4: "ipip", 6: "tcp", 17: "udp", 33: "dccp", 41: "ipv6",
    47: "gre", 50: "esp", 51: "ah", 58: "icmpv6", 89: "ospf", 103: "pim", 112: "vrrp", 132: "sctp",
    136: "udplite",
}  # fmt: skip
_ETHERTYPES = {
    0x0004: "802.2", 0x0800: "ip", 0x0806: "arp", 0x8100: "vlan", 0x86DD: "ipv6", 0x8847: "mpls",
    0x8863: "pppoe", 0x8864: "pppoe", 0x888E: "eapol", 0x88CC: "lldp", 0x88F7: "ptp",
}  # fmt: skip
_FAMILIES = {1: "unix", 16: "netlink", 17: "packet", 29: "can", 31: "bluetooth", 40: "vsock"}
ETHERTYPE, SOCKET = (
    1 << 16,
    2 << 16,
)  # kind of the number in the low 16 bits; an IP protocol has neither


class Protocol(Column):
    """The protocol of a packet: an IP protocol, ETHERTYPE | ethertype, or SOCKET | family."""

    width = 6
    json_type = "string"

    def converter(self) -> Optional[Converter]:
        """Return the conversion from number to name."""
        return protocol_name


def protocol_name(raw: int) -> Optional[str]:
    """Return the name of a packet's protocol, None if unknown."""
    kind, number = raw & ~0xFFFF, raw & 0xFFFF
    if kind == ETHERTYPE:
        return _ETHERTYPES.get(number, f"0x{number:04x}") if number else None
    if kind == SOCKET:
        return _FAMILIES.get(number, f"family {number}") if number else None
    return _IP.get(number, f"protocol {number}")


def protocol_numbers(name: str) -> list[int]:
    """Return the numbers that `protocol_name` calls `name`; raise ValueError if there are none."""
    known = dict(_IP)
    known.update({ETHERTYPE | number: word for number, word in _ETHERTYPES.items()})
    known.update({SOCKET | number: word for number, word in _FAMILIES.items()})
    found = [number for number, word in known.items() if word == name]
    if not found:
        names = ", ".join(sorted(set(known.values())))
        raise ValueError(f"'{name}' is not one of {names}")
    return found


class Resolved(Column):
    """A number that only the running kernel can name, see netbpf.run.names.

    `source` is the attribute of Names that resolves it.
    """

    source = ""
    json_type = "string"

    _resolve: Converter = str

    def bind(self, resolve: Converter) -> None:
        """Set the function from number to name; without one, the number is shown."""
        self._resolve = resolve

    def converter(self) -> Optional[Converter]:
        """Return the conversion."""
        return lambda raw: self._resolve(raw)


class DropReason(Resolved):
    """Why an skb was freed: enum skb_drop_reason, including reasons of subsystems."""

    source = "reason"
    width = 20
    full = 28
    priority = 80


class KernelSymbol(Resolved):
    """A kernel text address as symbol+offset."""

    source = "symbol"
    ctype = "u64"
    width = 24
    full = 36
    priority = 70


class KernelStack(Resolved):
    """A kernel stack, by its id in the BPF map `map`; innermost function first.

    The map exists only if the column's option is given.
    """

    map = "stacks"
    source = "stack"
    below = True
    ctype = "s32"
    json_type = "array"

    def text(self, value: Any) -> str:
        """Format as one indented line per function."""
        return "".join(f"\n    {frame}" for frame in value or ())


class SocketAddress(Column):
    """The address of a kernel object, which identifies it while it exists: hexadecimal."""

    ctype = "u64"
    width = 16
    priority = 15
    whole = True
    json_type = "string"

    def converter(self) -> Optional[Converter]:
        """Return the conversion from number to hexadecimal digits."""
        return lambda raw: f"{raw:x}"
