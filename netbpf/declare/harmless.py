"""Packets that the kernel frees as dropped although nothing is lost, for the C program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Callable

from netbpf.declare.constants import in_ranges, one_of

_NO_REASON = 2**31  # a number that no reason has

# Reasons of frees that lose nothing.
_HARMLESS = ("QUEUE_PURGE", "CONSUMED")
# Functions in which frees without a reason lose nothing: segments in TIME_WAIT; and, before
# QUEUE_PURGE (6.6, 4025d3e73abd), the queues of a socket that is destroyed, such as a FIN.
_WAITING = ("tcp_v4_rcv", "tcp_v6_rcv")
_PURGING = ("skb_queue_purge", "sk_stream_kill_queues", "inet_sock_destruct")
# tcp_rcv_state_process() and the functions by which it frees, unless the compiler inlines them.
_ACKED = ("tcp_rcv_state_process", "tcp_drop_reason", "tcp_drop")
# Of a segment with at most one byte: a probe, or data that a newer segment has overtaken. A kernel
# without TCP_OLD_SEQUENCE uses TCP_INVALID_SEQUENCE for both sides of the window.
_PROBES = ("TCP_OLD_SEQUENCE", "TCP_OLD_DATA")
_OLD_PROBES = ("TCP_INVALID_SEQUENCE", "TCP_OLD_DATA")
_SINGLE = ("NOT_SPECIFIED", "SOCKET_CLOSE", "TCP_OLD_ACK", "TCP_FASTOPEN")

# Functions that free what an XDP program has dropped and give no reason, up to 7.2 at least.
_XDP = ("do_xdp_generic", "veth_xdp_rcv_skb")


def reason_in(known: Mapping[str, int], names: Iterable[str]) -> str:
    """Return a C test of whether `r` is one of the reasons `names` that the kernel has."""
    numbers = [known[name] for name in names if name in known]
    return one_of("r", numbers) if numbers else "0"


def place_in(span: Callable[[str], tuple[int, int]], functions: Iterable[str]) -> str:
    """Return a C test of whether the return address `x` is in one of `functions`.

    `span` returns the first address of a function and the one after it, zeros if unknown.
    """
    spans = [(low + 1, high) for low, high in map(span, functions) if high]
    return in_ranges("x", spans) if spans else "0"


def reason_constants(settings: Mapping[str, Any], names: Any) -> dict[str, object]:
    """Return the numbers of reasons, and tests of reasons and addresses, of the running kernel.

    `names` is a netbpf.run.names.Names.
    """
    known = names.reasons
    # Before TCP_LISTEN_OVERFLOW a full accept queue gave no reason there either.
    request = _WAITING if "TCP_LISTEN_OVERFLOW" in known else ()
    probes = _PROBES if _PROBES[0] in known else _OLD_PROBES
    tests: dict[str, object] = {
        **{name: known.get(name, _NO_REASON) for name in _SINGLE},
        "HARMLESS_REASON(r)": reason_in(known, _HARMLESS),
        "PROBE_REASON(r)": reason_in(known, probes),
        "ACKED_PLACE(x)": place_in(names.span, _ACKED if known else ()),
        "REQUEST_PLACE(x)": place_in(names.span, request),
    }
    if "XDP" in known:
        tests["XDP_REASON"] = known["XDP"]
        tests["XDP_PLACE(x)"] = place_in(names.span, _XDP)
    if settings["reason"]:
        tests["FILTER_REASON(r)"] = one_of("r", names.numbers(settings["reason"].split(",")))
    if known and not names.offers("kfree_skb", "rx_sk"):
        waiting = _WAITING if "QUEUE_PURGE" in known else (*_WAITING, *_PURGING)
        tests["HARMLESS_PLACE(x)"] = place_in(names.span, waiting)
    return tests
