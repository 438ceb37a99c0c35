"""The shared probes of socket calls, messages and io_uring requests, and rows of their results.

Each group is used by a header of bpf_programs/include: CALL_PROBES to socket_calls.bpf.h,
MESSAGE_PROBES and IP_RECV_PROBES to messages.bpf.h, RING_PROBES to ring.bpf.h, RING alone to
request.bpf.h, SIGNAL to signals.bpf.h.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from netbpf.declare.constants import one_of
from netbpf.declare.probes import (
    Alternative,
    Fentry,
    Fexit,
    Kprobe,
    Kretprobe,
    Probe,
    RawTracepoint,
    Tracepoint,
)
from netbpf.declare.table import Entry

OPS = dict(enumerate("socket socketpair bind listen connect accept send recv close".split()))
PROTOS = dict(enumerate("tcp4 tcp6 udp4 udp6 unix netlink other".split()))
PROTO_WORDS = {  # of --proto: numbers in PROTOS
    "tcp": (0, 1), "udp": (2, 3), **{name: (number,) for number, name in PROTOS.items()},
}  # fmt: skip
WAITS = ("EAGAIN", "EINPROGRESS")
RESTARTED = "512"  # instead of an error: see RESTARTED in include/restarts.bpf.h

# The parameter of a system call's function. For calls that a configuration can omit, BTF may have
# the parameter name of the stub: COND_SYSCALL() in arch/x86/include/asm/syscall_wrapper.h.
_REGS = "regs|__unused"


def _call(name: str, *args: str, op: str = "", waits: bool = False) -> tuple[Probe, ...]:
    # The function is in the kernel's table of system calls, so it is never inlined. A probe at its
    # return fires only for calls whose entry it saw. The trace event also fires for calls that were
    # in flight at the start: for calls that may wait it is preferred, or complements another kind.
    functions = (f"__x64_sys_{name}", f"__arm64_sys_{name}")
    constant = f"OP_{(op or name).upper()}"
    event = Tracepoint(f"syscalls:sys_exit_{name}", args=(constant, "ret"), call="on_exit")
    fexit = Fexit(*functions, args=(constant, _REGS, "return"), call="on_call")
    kretprobe = Kretprobe(*functions, args=(constant, "return"), call="on_return")
    entry = "on_enter_fd" if args == ("fd",) else "on_enter_make"
    begin = (
        Tracepoint(f"syscalls:sys_enter_{name}", args=args, call=entry),
        Kprobe(*functions, args=(_REGS,), call=f"{entry}_regs"),
    )
    enter = Probe(f"enter_{name}", *begin, optional=True, with_probe=name)
    if not waits:
        return Probe(name, fexit, event, kretprobe), enter
    rest = Tracepoint(*event.names, args=event.args, call="on_inflight")
    end = Probe(name, event, fexit, kretprobe)
    return end, enter, Probe(f"inflight_{name}", rest, optional=True, complements=name)


_FAMILIES = ("inet", "inet6", "unix_stream", "unix_dgram", "netlink", "packet")


def _messages(name: str, flags: str, families: Sequence[str] = _FAMILIES) -> tuple[Probe, ...]:
    # All messages pass these tracepoints (since 6.3). Before, each family has its own functions.
    # unix_seqpacket_*msg() calls unix_dgram_*msg(), which some compilers inline: these sockets have
    # separate probes, and the other probes skip them.
    functions = [f"{family}_{name}msg" for family in families]
    packets = [f"unix_seqpacket_{name}msg"]
    op = f"OP_{name.upper()}"
    message = (op, "sk", "ret", "flags")

    def ends(functions: Sequence[str], packets: str) -> tuple[Alternative, ...]:
        args = (op, packets, "sock", "return", flags)
        return (
            Fexit(*functions, args=args, call="on_family_message", every=True),
            Kretprobe(*functions, args=(op, "return"), call="on_message_return", every=True),
        )

    def begin(functions: Sequence[str], packets: str) -> Alternative:
        args = (packets, "sock", flags)
        return Kprobe(*functions, args=args, call="on_enter_message", every=True)

    return (
        Probe(
            name,
            RawTracepoint(f"sock_{name}_length", args=message, call="on_message"),
            Tracepoint(f"sock:sock_{name}_length", args=message, call="on_message"),
            *ends(functions, "0"),
        ),
        Probe(f"enter_{name}", begin(functions, "0"), optional=True, with_probe=name),
        Probe(f"{name}_packets", *ends(packets, "1"), optional=True, with_probe=name),
        Probe(
            f"enter_{name}_packets",
            begin(packets, "1"),
            optional=True,
            with_probe=f"{name}_packets",
        ),
    )


CALL_PROBES = (
    *_call("socket", "family", "type", "protocol"),
    *_call("socketpair", "family", "type", "protocol"),
    *_call("bind", "fd"),
    *_call("listen", "fd"),
    *_call("connect", "fd"),
    *_call("accept", "fd", waits=True),
    *_call("accept4", "fd", op="accept", waits=True),
    Probe(
        "close",
        Fentry("__x64_sys_close", "__arm64_sys_close", args=(_REGS,), call="on_close_regs"),
        Tracepoint("syscalls:sys_enter_close", args=("fd",)),
        Kprobe("__x64_sys_close", "__arm64_sys_close", args=(_REGS,), call="on_close_regs"),
    ),
)
MESSAGE_PROBES = (*_messages("send", "0"), *_messages("recv", "flags"))
IP_RECV_PROBES = _messages("recv", "flags", ("inet", "inet6"))[:2]  # without AF_UNIX's packets


def _tcp_message(name: str, *more: str) -> tuple[Probe, ...]:
    # As _messages(), for sockets of TCP only: before 6.3, one function has them all.
    args, function = ("sk", "ret", *more), f"tcp_{name}msg"
    kept = ("sk", *(more or ("0",)), "0")
    raw = RawTracepoint(f"sock_{name}_length", args=args)
    event = Tracepoint(f"sock:sock_{name}_length", args=args)
    fexit = Fexit(function, args=("sk", "return", *more))
    kretprobe = Kretprobe(function, args=("return",), call=f"on_{name}_return")
    begin = Kprobe(function, args=kept, call="begin_call")
    return (
        Probe(name, raw, event, fexit, kretprobe),
        Probe(f"enter_{name}", begin, optional=True, with_probe=name),
    )


# The kretprobes need calls.bpf.h.
TCP_SEND = _tcp_message("send")
TCP_RECV = _tcp_message("recv", "flags")
# Until 6.12 the result is a separate argument; before 502c87d65564 (5.18) the tracepoint does not
# have the request.
RING = Probe(
    "ring",
    RawTracepoint("io_uring_complete", args=("req", "cqe"), call="on_ring_cqe"),
    RawTracepoint("io_uring_complete", args=("req", "res")),
    Tracepoint("io_uring:io_uring_complete", args=("req", "res")),
    optional=True,
)
RING_PROBES = (
    RING,
    Probe(
        "ring_close",
        RawTracepoint("io_uring_submit_req", "io_uring_submit_sqe", args=("req",)),
        Tracepoint("io_uring:io_uring_submit_req", "io_uring:io_uring_submit_sqe", args=("req",)),
        optional=True,
        with_probe="ring",  # if that has no alternative, the request is not filled in yet
    ),
)
# A thread handles a signal: the kernel then decides whether to restart the interrupted call.
SIGNAL = Probe(
    "signal",
    RawTracepoint("signal_deliver", args=("sig", "ka"), call="on_signal_action"),
    Tracepoint("signal:signal_deliver", args=("sig", "sa_handler", "sa_flags")),
    optional=True,
)
ALL_PROBES = (*CALL_PROBES, *MESSAGE_PROBES, *RING_PROBES, SIGNAL)


def call_filters(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the C constants of --op and --proto."""
    found = {}
    if settings["op"]:
        found["FILTER_OP(x)"] = one_of("x", (n for n, op in OPS.items() if op in settings["op"]))
    if settings["proto"]:
        numbers = {number for word in settings["proto"] for number in PROTO_WORDS[word]}
        found["FILTER_PROTO(x)"] = one_of("x", sorted(numbers))
    return found


def call_rows(groups: Iterable[Entry], *names: str) -> list[dict[str, Any]]:
    """Return a row for each combination of the key columns `names`, with calls by result.

    `groups` are (key, sums) with the key column `error` and the sums `calls` and `bytes`.
    """
    rows: dict[tuple[object, ...], dict[str, Any]] = {}
    errors: dict[tuple[object, ...], Counter[str]] = {}
    for key, sums in groups:
        group = tuple(key[name] for name in names)
        zeros = dict.fromkeys(("calls", "errors", "would_block", "restarted", "bytes"), 0)
        row = rows.setdefault(group, {**dict(zip(names, group)), **zeros, "top_error": None})
        calls, error = sums["calls"], key["error"]
        if error == RESTARTED:
            row["restarted"] += calls
            continue
        row["calls"] += calls
        row["bytes"] += sums["bytes"]
        if error in WAITS:
            row["would_block"] += calls
        elif error:
            row["errors"] += calls
            counts = errors.setdefault(group, Counter())
            counts[error] += calls
            row["top_error"] = counts.most_common(1)[0][0]
    return list(rows.values())
