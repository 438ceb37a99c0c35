"""What programs do with sockets: the shared probes of calls, messages and io_uring; and rows.

Each group belongs to a header of bpf_programs/include: CALL_PROBES to socket_calls.bpf.h,
MESSAGE_PROBES to messages.bpf.h, RING_PROBES to ring.bpf.h, RING alone to ring_entries.bpf.h,
SIGNAL to signal_entries.bpf.h.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from netbpf.declare.probes import (
    Fentry,
    Fexit,
    Kprobe,
    Kretprobe,
    Probe,
    RawTracepoint,
    Tracepoint,
)
from netbpf.declare.table import Entry

# enum op in include/ops.bpf.h and enum proto in include/anysock.bpf.h.
OPS = dict(enumerate("socket socketpair bind listen connect accept send recv close".split()))
PROTOS = dict(enumerate("tcp4 tcp6 udp4 udp6 unix netlink other".split()))
WAITS = ("EAGAIN", "EINPROGRESS")
RESTARTED = "512"  # beside the errors of calls: include/restarts.bpf.h


def _call(name: str, *args: str, waits: bool = False) -> tuple[Probe, ...]:
    # The function is in the kernel's table of system calls: it is never inlined. An exit of it is
    # seen only if its entry was: of calls that may have waited since before the start, the
    # tracepoint sees more, and adds that where another way is better.
    functions = (f"__x64_sys_{name}", f"__arm64_sys_{name}")
    event = Tracepoint(f"syscalls:sys_exit_{name}", args=("ret",))
    begin = (Tracepoint(f"syscalls:sys_enter_{name}", args=args), Kprobe(*functions))
    enter = Probe(f"enter_{name}", *begin, optional=True, with_probe=name)
    if not waits:
        return Probe(name, Fexit(*functions), event, Kretprobe(*functions)), enter
    end = Probe(name, event, Fexit(*functions), Kretprobe(*functions))
    return end, enter, Probe(f"earlier_{name}", event, optional=True, complements=name)


def _messages(name: str, *args: str) -> tuple[Probe, ...]:
    # The tracepoints are in the one place that all messages pass (since 6.3); before, what each
    # family does.
    families = ("inet", "inet6", "unix_stream", "unix_dgram", "netlink", "packet")
    functions = [f"{family}_{name}msg" for family in families]
    end = Probe(
        name,
        RawTracepoint(f"sock_{name}_length", args=("sk", "ret", "flags")),
        Tracepoint(f"sock:sock_{name}_length", args=("sk", "ret", "flags")),
        Fexit(*functions, args=args, every=True),
        Kretprobe(*functions, every=True),
    )
    begin = Kprobe(*functions, every=True)
    # unix_seqpacket_*msg() calls unix_dgram_*msg(), which some compilers make a part of it: these
    # sockets have probes of their own, and the others' pass them over.
    packets = f"unix_seqpacket_{name}msg"
    ways = (Fexit(packets, args=args), Kretprobe(packets))
    return (
        end,
        Probe(f"enter_{name}", begin, optional=True, with_probe=name),
        Probe(f"{name}_packets", *ways, optional=True, with_probe=name),
        Probe(
            f"enter_{name}_packets", Kprobe(packets), optional=True, with_probe=f"{name}_packets"
        ),
    )


CALL_PROBES = (
    *_call("socket", "family", "type", "protocol"),
    *_call("socketpair", "family", "type", "protocol"),
    *_call("bind", "fd"),
    *_call("listen", "fd"),
    *_call("connect", "fd"),
    *_call("accept", "fd", waits=True),
    *_call("accept4", "fd", waits=True),
    Probe(
        "close",
        Fentry("__x64_sys_close", "__arm64_sys_close"),
        Tracepoint("syscalls:sys_enter_close", args=("fd",)),
        Kprobe("__x64_sys_close", "__arm64_sys_close"),
    ),
)
MESSAGE_PROBES = (*_messages("send", "sock"), *_messages("recv", "sock", "flags"))
# Until 6.12 the result is an argument of its own; before 502c87d65564 (5.18) nothing says whose it
# is.
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
        with_probe="ring",  # where that one has no way, the request is not filled in yet
    ),
)
# A thread takes a signal: that decides whether the call that it interrupted is made again.
SIGNAL = Probe(
    "signal",
    RawTracepoint("signal_deliver", args=("sig", "ka"), call="on_signal_action"),
    Tracepoint("signal:signal_deliver", args=("sig", "sa_handler", "sa_flags")),
    optional=True,
)


def tally(groups: Iterable[Entry], *names: str) -> list[dict[str, Any]]:
    """Return a row for each combination of the key's columns `names`: calls by their result.

    `groups` are keys with the column `error`, and the sums `calls` and `bytes`.
    """
    found: dict[tuple[object, ...], dict[str, Any]] = {}
    errors: dict[tuple[object, ...], Counter[str]] = {}
    for key, sums in groups:
        which = tuple(key[name] for name in names)
        none = dict.fromkeys(("calls", "errors", "would_block", "restarted", "bytes"), 0)
        row = found.setdefault(which, {**dict(zip(names, which)), **none, "top_error": None})
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
            most = errors.setdefault(which, Counter())
            most[error] += calls
            row["top_error"] = most.most_common(1)[0][0]
    return list(found.values())
