"""Rule: every tool works on every recorded kernel, or it is written down here why it cannot."""

from __future__ import annotations

import json

import pytest

from netbpf.bpf import layout
from netbpf.docs.kernels import recordings
from netbpf.doctor.recording import COVERS
from netbpf.errors import Unsupported
from netbpf.kernel.select import missing, select
from tests.contract.conventions import DATA, every_tool, program, tool_of

KERNELS = recordings()
# (tool, name of the recording): what that kernel lacks.
UNSUPPORTED: dict[tuple[str, str], str] = {}

every_kernel = pytest.mark.parametrize("kernel", KERNELS)


def not_asked(kernel: str, question: KeyError) -> None:
    pytest.fail(
        f"{kernel}.json was recorded before {question} was asked: record it again on that kernel, "
        f"with netbpf doctor --record {kernel}.json or make vm KERNEL={kernel} SAVE=1"
    )


def test_there_is_a_recorded_kernel():
    assert KERNELS, "run netbpf doctor --record tests/data/kernels/NAME.json"


@every_kernel
def test_recording_says_which_kernel_it_is_and_nothing_of_the_machine(kernel):
    recording = json.loads((DATA / "kernels" / f"{kernel}.json").read_text())
    assert recording["release"]
    parts = {"release", "covers", "common_fields", "tracepoint", "raw_tracepoint", "function",
             "untyped", "iterator", "dynamic", "preempts", "struct", "enum"}  # fmt: skip
    assert set(recording) == parts


# What no tool asks for today. A tool that begins to must find it in every recording, or the tests
# of a new field would wait until all kernels have been booted once more.
OF_EVERY_KERNEL = [
    ("tracepoint", "sched:sched_switch"),
    ("tracepoint", "syscalls:sys_enter_sendmmsg"),
    ("tracepoint", "neigh:neigh_update"),
    ("tracepoint", "fib:fib_table_lookup"),
    ("raw_tracepoint", "tcp_rcv_space_adjust"),
    ("raw_tracepoint", "sys_enter"),
    ("function", "tcp_v6_do_rcv"),
    ("function", "inet_csk_complete_hashdance"),
    ("function", "__x64_sys_shutdown"),
    ("field", "tcp_sock", "inet_conn.icsk_inet.sk.__sk_common.skc_daddr"),
    ("field", "tcp_sock", "mdev_max_us"),
    ("field", "netns_ipv4", "sysctl_tcp_retries2"),
    ("field", "task_struct", "thread_pid"),
    ("field", "signal_struct", "shared_pending.signal.sig"),
    ("field", "sk_buff", "cb"),
    ("field", "skb_shared_info", "gso_segs"),
    ("field", "request_sock", "num_timeout"),
    ("field", "io_ring_ctx", "flags"),
    ("size", "udp_sock"),
    ("enumerator", "sock_flags", "SOCK_LINGER"),
    ("enumerator", "tcp_queue", "TCP_FRAG_IN_RTX_QUEUE"),
]
OF_SOME_KERNELS = [
    ("tracepoint", "tcp:tcp_sendmsg_locked"),
    ("raw_tracepoint", "icmp_send"),
    ("function", "tcp_of_no_kernel"),
    ("field", "sock", "of_no_kernel"),
    ("field", "tcp_of_no_kernel", "state"),
    ("size", "sock_of_no_kernel"),
    ("enumerator", "sk_rst_reason", "SK_RST_REASON_NO_SOCKET"),
]


@every_kernel
@pytest.mark.parametrize("question", OF_EVERY_KERNEL, ids=" ".join)
def test_recording_holds_what_no_tool_asks_for_yet(kernel, question):
    kind, *what = question
    assert getattr(KERNELS[kernel], kind)(*what) is not None


@every_kernel
@pytest.mark.parametrize("question", OF_SOME_KERNELS, ids=" ".join)
def test_recording_knows_what_its_kernel_lacks(kernel, question):
    kind, *what = question
    answer = getattr(KERNELS[kernel], kind)(*what)
    assert answer is None or "of_no_kernel" not in " ".join(what)


@every_kernel
def test_recording_covers_what_today_is_to_be_recorded(kernel):
    recording = json.loads((DATA / "kernels" / f"{kernel}.json").read_text())
    for part, patterns in COVERS.items():
        lacking = set(patterns) - set(recording["covers"][part])
        assert not lacking, f"{kernel}.json was recorded without {part} {lacking}: record it again"


@every_kernel
@every_tool
def test_tool_has_a_way_for_every_probe_or_it_is_known_why_not(name, kernel):
    tool = tool_of(name)
    try:
        selections = select(tool.all_probes, KERNELS[kernel])
    except KeyError as question:
        not_asked(kernel, question)
    except Unsupported as error:
        assert (name, kernel) in UNSUPPORTED, error.message
        return
    assert (name, kernel) not in UNSUPPORTED, "it works now: take it off the list"
    assert len(selections) == len(tool.all_probes)


@every_tool
def test_every_alternative_can_be_tried_on_some_kernel(name):
    """One that no kernel of the lab offers would never have been seen to work."""
    for probe in tool_of(name).all_probes:
        for way in probe.alternatives:
            assert any(not missing(way, kernel)[1] for kernel in KERNELS.values()), (probe, way)


@every_kernel
@every_tool
def test_every_field_that_a_program_needs_is_there(name, kernel):
    if (name, kernel) in UNSUPPORTED:
        return
    try:
        text = layout.header(KERNELS[kernel], layout.manifests(program(name)), [])
    except KeyError as question:
        not_asked(kernel, question)
    assert "struct" in text
