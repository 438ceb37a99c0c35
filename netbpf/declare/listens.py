"""Calls of listen(2): the probes, and the filter of protocols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netbpf.declare.calls import PROTO_WORDS, RING
from netbpf.declare.constants import one_of
from netbpf.declare.probes import Fexit, Kprobe, Kretprobe, Probe, Tracepoint

_FUNCTIONS = ("__x64_sys_listen", "__arm64_sys_listen")
PROBES = (
    Probe(
        "listen",
        Fexit(*_FUNCTIONS, args=("regs|__unused", "return"), call="on_call"),
        Tracepoint("syscalls:sys_exit_listen", args=("ret",), call="on_exit"),
        Kretprobe(*_FUNCTIONS, args=("return",), call="on_exit"),
    ),
    Probe(
        "enter",
        Tracepoint("syscalls:sys_enter_listen", args=("fd", "backlog")),
        Kprobe(*_FUNCTIONS, args=("regs|__unused",), call="on_enter_regs"),
        optional=True,
        with_probe="listen",
    ),
    RING,
)


def constants(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the filter of --proto."""
    numbers = {number for word in settings["proto"] or () for number in PROTO_WORDS[word]}
    return {"FILTER_PROTO(x)": one_of("x", sorted(numbers))} if numbers else {}
