"""Columns of flows and packets: endpoints, shares, send errors, protocols."""

from __future__ import annotations

import pytest

from netbpf.declare.network import (
    ETHERTYPE,
    SOCKET,
    DropReason,
    Endpoint,
    IpVersion,
    KernelStack,
    SendError,
    Share,
    end,
    protocol_name,
)


@pytest.mark.parametrize(
    ("addr", "port", "text"),
    [
        ("10.0.0.1", 80, "10.0.0.1:80"),
        ("fd00::1", 80, "[fd00::1]:80"),
        ("fd00::1", None, "fd00::1"),
        (None, 80, "-"),
    ],
)
def test_endpoints(addr, port, text):
    assert end(addr, port) == text
    column = Endpoint("an end", "lport")
    column.name = "laddr"
    assert column.cell({"laddr": addr, "lport": port}) == text


def test_send_errors_are_errnos_or_queue_drops():
    column = SendError("why")
    convert = column.converter()
    assert [convert(raw) for raw in (0, -1, -113, 1)] == [
        None, "EPERM", "EHOSTUNREACH", "NET_XMIT_DROP",
    ]  # fmt: skip
    assert column.text("NET_XMIT_DROP") == "dropped by the queue"
    assert column.text("EPERM") == "Operation not permitted"


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (6, "tcp"),
        (58, "icmpv6"),
        (200, "protocol 200"),
        (ETHERTYPE | 0x0806, "arp"),
        (ETHERTYPE | 0x1234, "0x1234"),
        (ETHERTYPE, None),
        (SOCKET | 16, "netlink"),
        (SOCKET | 99, "family 99"),
    ],
)
def test_protocols(raw, name):
    assert protocol_name(raw) == name


def test_shares_are_percent_in_text():
    assert Share("part").text(0.0412) == "4.12%"
    assert IpVersion("version").text("ipv6") == "6"


def test_unresolved_number_is_shown_as_a_number():
    column = DropReason("why")
    assert column.converter()(3) == "3"
    column.bind({3: "NO_SOCKET"}.get)
    assert column.converter()(3) == "NO_SOCKET"


def test_stacks_are_indented_lines():
    assert KernelStack("how").text(["a+0x1", "b+0x2"]) == "\n    a+0x1\n    b+0x2"
    assert KernelStack("how").text(None) == ""
