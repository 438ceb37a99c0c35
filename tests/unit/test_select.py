"""The selection of probes: the first alternative that the kernel offers, and why no better one."""

from __future__ import annotations

import pytest

from netbpf.declare.probes import (
    CgroupSock,
    Fentry,
    Fexit,
    Iterator,
    Kprobe,
    Kretprobe,
    Probe,
    RawTracepoint,
    Tracepoint,
    Uprobe,
)
from netbpf.errors import Unsupported, UsageError
from netbpf.kernel.select import missing, select
from tests.unit.fakes import FakeKernel

STATE = Probe(
    "state",
    RawTracepoint("inet_sock_set_state", args=("sk", "newstate")),
    Tracepoint("sock:inet_sock_set_state", args=("skaddr",)),
    Kprobe("tcp_set_state", args=("sk",)),
)
RAW = {"inet_sock_set_state": ("sk", "oldstate", "newstate")}
FORMAT = {"sock:inet_sock_set_state": ("skaddr", "oldstate")}


def kinds(kernel, *probes, **more) -> list[str]:
    return [selection.kind for selection in select(probes, kernel, **more)]


def test_first_usable_alternative_wins():
    # GIVEN a kernel that offers everything
    kernel = FakeKernel(FORMAT, RAW, {"tcp_set_state": ("sk", "state")}, takes=("kprobe",))
    # THEN the best is used
    [selection] = select([STATE], kernel)
    assert (selection.kind, selection.entry, selection.targets) == (
        "rawtp", "state_rawtp", ("inet_sock_set_state",)
    )  # fmt: skip
    assert selection.rejected == ()


def test_next_alternative_is_used_when_the_target_is_missing():
    kernel = FakeKernel(FORMAT, takes=("kprobe",))
    [selection] = select([STATE], kernel)
    assert selection.kind == "tp"
    assert selection.rejected == (
        ("raw tracepoint inet_sock_set_state", "this kernel has no such tracepoint"),
    )


def test_alternative_without_a_needed_argument_is_not_usable():
    kernel = FakeKernel(FORMAT, {"inet_sock_set_state": ("sk", "oldstate")})
    [selection] = select([STATE], kernel)
    assert selection.kind == "tp"
    assert selection.rejected[0][1] == "it has no newstate on this kernel, only sk, oldstate"


def test_first_usable_name_is_the_target():
    probe = Probe("drop", RawTracepoint("gone", "there", "also_there"))
    [selection] = select([probe], FakeKernel(raw={"there": (), "also_there": ()}))
    assert selection.targets == ("there",)


def test_every_selects_all_names_that_exist():
    probe = Probe("bind", Kprobe("inet_bind", "gone", "inet6_bind", every=True))
    kernel = FakeKernel(functions={"inet_bind": (), "inet6_bind": ()}, takes=("kprobe",))
    [selection] = select([probe], kernel)
    assert selection.targets == ("inet_bind", "inet6_bind")


def test_missing_returns_the_reason_for_the_first_name():
    alternative = Kprobe("gone", "there", args=("sk",))
    kernel = FakeKernel(functions={"there": ("x",)}, takes=("kprobe",))
    assert missing(alternative, kernel) == ((), "this kernel has no such function")


@pytest.mark.parametrize(
    ("alternative", "why"),
    [
        (Kprobe("f"), "this kernel has no kprobes"),
        (Kretprobe("f"), "this kernel has no kprobes"),
        (Fentry("f"), "this kernel refuses fentry programs"),
        (Fexit("f"), "this kernel refuses fentry programs"),
        (Uprobe(), "this kernel has no uprobes"),
        (Iterator("task_file"), "this kernel has no such iterator"),
        (RawTracepoint("t"), "this kernel has no such tracepoint"),
        (Tracepoint("s:t"), "this kernel has no such tracepoint"),
        (
            CgroupSock("sock_create"),
            "this kernel has no such cgroup hook, or this process cannot reach the root of all "
            "cgroups",
        ),
    ],
    ids=repr,
)
def test_kernel_without_any_facility_has_a_reason(alternative, why):
    probe = Probe("p", alternative, optional=True)
    [selection] = select([probe], FakeKernel(functions={"f": ()}))
    assert selection.alternative is None
    assert [reason for _, reason in selection.rejected] == [why]


@pytest.mark.parametrize(
    "alternative",
    [Kprobe("f"), Kretprobe("f"), Fentry("f"), Fexit("f"), Iterator("i"), RawTracepoint("t"),
     Tracepoint("s:t")],
    ids=repr,
)  # fmt: skip
def test_kernel_with_every_facility_accepts_any_kind(alternative):
    kernel = FakeKernel({"s:t": ()}, {"t": ()}, {"f": ()}, ("i",), ("kprobe", "fentry", "uprobe"))
    assert kinds(kernel, Probe("p", alternative)) == [alternative.kind]


@pytest.mark.parametrize(
    ("number", "size", "kind"), [(2, 640, "cgsock"), (3, 640, ""), (2, 0, ""), (None, 640, "")]
)
def test_hooks_of_cgroups_need_their_number_and_support_for_programs(number, size, kind):
    enums = {("bpf_attach_type", "BPF_CGROUP_INET_SOCK_CREATE"): number}
    probe = Probe("p", CgroupSock("sock_create", args=("sk",)), optional=True)
    kernel = FakeKernel(enums=enums, sizes={"cgroup_bpf": size})
    assert kinds(kernel, probe) == [kind]


def test_uprobes_need_no_target_in_the_kernel():
    [selection] = select([Probe("lookup", Uprobe())], FakeKernel(takes=("uprobe",)))
    assert (selection.kind, selection.targets) == ("uprobe", ())


def test_optional_probe_may_have_none_and_lists_its_lost_columns():
    probe = Probe("accept", Fexit("inet_csk_accept"), optional=True, loses=("pid", "comm"))
    [selection] = select([probe], FakeKernel())
    assert (selection.kind, selection.lost_columns) == ("", ("pid", "comm"))


def test_alternative_lists_its_lost_columns():
    probe = Probe("accept", Kretprobe("f", loses=("queue",)), loses=("pid",))
    [selection] = select([probe], FakeKernel(functions={"f": ()}, takes=("kprobe",)))
    assert selection.lost_columns == ("queue",)


ACCEPT = Probe("accept", Fexit("inet_csk_accept"), Tracepoint("syscalls:sys_exit_accept"))
ACCEPT4 = Probe(
    "accept4", Tracepoint("syscalls:sys_exit_accept4"), optional=True, with_probe="accept"
)
SYSCALLS = {"syscalls:sys_exit_accept": ("ret",), "syscalls:sys_exit_accept4": ("ret",)}


def test_paired_probe_is_used_with_a_partner_of_the_same_kind():
    assert kinds(FakeKernel(SYSCALLS), ACCEPT, ACCEPT4) == ["tp", "tp"]


def test_paired_probe_is_redundant_with_a_partner_of_another_kind():
    kernel = FakeKernel(SYSCALLS, functions={"inet_csk_accept": ()}, takes=("fentry",))
    selections = select([ACCEPT, ACCEPT4], kernel)
    assert [selection.kind for selection in selections] == ["fexit", ""]
    assert selections[1].rejected == (("accept4", "covered by accept_fexit"),)
    assert [selection.redundant for selection in selections] == [False, True]


SENDS = ("inet_sendmsg", "inet6_sendmsg", "gone_sendmsg")
SEND = Probe("send", Fexit(*SENDS, every=True), Kretprobe(*SENDS, every=True))
ENTER = Probe("enter_send", Kprobe(*SENDS, every=True), optional=True, with_probe="send")
FUNCTIONS = {"inet_sendmsg": ("sock",), "inet6_sendmsg": ("sock",)}


def test_entry_of_a_function_is_used_with_its_return():
    kernel = FakeKernel(functions=FUNCTIONS, takes=("kprobe",))
    assert kinds(kernel, SEND, ENTER) == ["kretprobe", "kprobe"]


def test_kretprobe_is_one_program_for_all_functions():
    [selection] = select([SEND], FakeKernel(functions=FUNCTIONS, takes=("kprobe",)))
    assert selection.programs == (("send_kretprobe", ("inet_sendmsg", "inet6_sendmsg")),)


def test_fexit_is_one_program_per_function():
    kernel = FakeKernel(functions=FUNCTIONS, takes=("fentry", "kprobe"))
    send, enter = select([SEND, ENTER], kernel)
    assert send.programs == (
        ("send_fexit", ("inet_sendmsg",)),
        ("send_fexit:inet6_sendmsg", ("inet6_sendmsg",)),
    )
    assert enter.programs == ()


PACKETS = Probe(
    "packets",
    Fexit("packet_sendmsg"),
    Kretprobe("packet_sendmsg"),
    optional=True,
    with_probe="send",
)
BEGIN = Probe("enter_packets", Kprobe("packet_sendmsg"), optional=True, with_probe="packets")


@pytest.mark.parametrize(
    ("forced", "wanted"),
    [
        ({}, ["fexit", "fexit", ""]),
        ({"send": "kretprobe"}, ["kretprobe", "kretprobe", "kprobe"]),
        ({"packets": "kretprobe"}, ["fexit", "", ""]),  # incompatible kinds are not used
    ],
)
def test_paired_probe_takes_the_kind_of_its_partner(forced, wanted):
    functions = {**FUNCTIONS, "packet_sendmsg": ("sock",)}
    kernel = FakeKernel(functions=functions, takes=("fentry", "kprobe"))
    selections = select([SEND, PACKETS, BEGIN], kernel, forced=forced)
    assert [selection.kind for selection in selections] == wanted


def test_partner_of_a_redundant_probe_is_redundant():
    kernel = FakeKernel(FORMAT, RAW, functions={"packet_sendmsg": ("sock",)}, takes=("fentry",))
    partner = Probe("packets", Fexit("packet_sendmsg"), optional=True, with_probe="state")
    _, *selections = select([STATE, partner, BEGIN], kernel)
    assert [selection.rejected[-1][1] for selection in selections] == ["covered by state_rawtp"] * 2
    assert all(selection.redundant for selection in selections)


def test_partner_of_a_probe_without_alternative_is_unused_but_not_redundant():
    selections = select([PACKETS, BEGIN], FakeKernel(takes=("kprobe",)))
    assert [selection.kind for selection in selections] == ["", ""]
    assert not any(selection.redundant for selection in selections)


# --- preemptible programs -------------------------------------------------------------------------

CALL = Probe("leave", Fexit("f"), Tracepoint("syscalls:f"), Kretprobe("f"))
PREEMPTIBLE = "preemptible on this kernel, so events can be missed"


def preemptive(*what: str, takes: tuple[str, ...] = ("kprobe", "fentry"), **more) -> FakeKernel:
    events = {**FORMAT, "syscalls:f": ()}
    return FakeKernel(events, RAW, {"f": ()}, takes=takes, preempted=what, **more)


@pytest.mark.parametrize(
    ("what", "kinds"),
    [
        ((), ("rawtp", "fexit")),
        (("rawtp",), ("tp", "tp")),
        (("rawtp", "syscalls"), ("tp", "kretprobe")),
        (("syscalls",), ("rawtp", "fexit")),
    ],
)
def test_preemptible_kinds_come_last(what, kinds):
    assert tuple(c.kind for c in select([STATE, CALL], preemptive(*what))) == kinds


def test_preemptible_kinds_are_rejected_with_a_reason():
    state, call = select([STATE, CALL], preemptive("rawtp", "syscalls"))
    assert state.rejected == (("raw tracepoint inet_sock_set_state", PREEMPTIBLE),)
    assert call.rejected == (("fexit f", PREEMPTIBLE), ("tracepoint syscalls:f", PREEMPTIBLE))


def test_preemptible_kind_is_used_if_there_is_no_other():
    [call] = select([CALL], preemptive("rawtp", "syscalls", takes=("fentry",)))
    assert call.kind == "fexit"
    assert call.rejected == (("kretprobe f", "this kernel has no kprobes"),)
    [call] = select([CALL], preemptive("rawtp", "syscalls", takes=()))
    assert call.kind == "tp"
    # THEN each alternative is listed once
    reasons = ["kretprobe f", "fexit f"]
    assert [text for text, _ in call.rejected] == reasons


LEAVE = Probe("leave", Tracepoint("syscalls:f"), Fexit("f"), Kretprobe("f"))
INFLIGHT = Probe("inflight", Tracepoint("syscalls:f"), optional=True, complements="leave")


@pytest.mark.parametrize(
    "what, forced, kinds",
    [
        ((), {}, ("tp", "")),
        (("rawtp", "syscalls"), {}, ("kretprobe", "tp")),
        ((), {"leave": "fexit"}, ("fexit", "tp")),
    ],
)
def test_complement_is_used_unless_its_partner_has_the_same_kind(what, forced, kinds):
    leave, inflight = select([LEAVE, INFLIGHT], preemptive(*what), forced=forced)
    assert (leave.kind, inflight.kind) == kinds
    assert inflight.redundant is (leave.kind == "tp")


def test_preemptible_kind_with_more_columns_is_preferred():
    lossy = Tracepoint("sock:inet_sock_set_state", loses=("err",))
    probe = Probe("state", RawTracepoint("inet_sock_set_state"), lossy)
    [selection] = select([probe], preemptive("rawtp"))
    assert (selection.kind, selection.rejected) == ("rawtp", ())


def test_forced_kind_is_used_even_if_it_is_preemptible():
    [selection] = select([STATE], preemptive("rawtp"), forced={"state": "rawtp"})
    assert selection.kind == "rawtp"


def test_forced_kind_rejects_better_ones():
    kernel = FakeKernel(FORMAT, RAW)
    [selection] = select([STATE], kernel, forced={"state": "tp"})
    assert selection.kind == "tp"
    assert selection.rejected[0][1] == "--probe asks for tp"


def test_forced_kind_missing_on_this_kernel_is_unsupported():
    with pytest.raises(Unsupported, match="--probe asks for kprobe"):
        select([STATE], FakeKernel(FORMAT, RAW), forced={"state": "kprobe"})


@pytest.mark.parametrize("forced", [{"absent": "tp"}, {"state": "fexit"}, {"state": ""}])
def test_forcing_an_undeclared_kind_is_a_usage_error_with_the_choices(forced):
    with pytest.raises(UsageError) as caught:
        select([STATE], FakeKernel(FORMAT, RAW), forced=forced)
    assert "state=rawtp|tp|kprobe" in caught.value.hint


def test_excluded_alternative_is_rejected_with_the_kernels_reason():
    # GIVEN a kernel that offers the raw tracepoint but refused to attach it
    excluded = {("state", "rawtp"): "the kernel refused to attach it (EPERM)"}
    # THEN the next one is used, and the reason is listed
    [selection] = select([STATE], FakeKernel(FORMAT, RAW), excluded)
    assert selection.kind == "tp"
    assert selection.rejected[0][1] == "the kernel refused to attach it (EPERM)"


def test_required_probe_without_alternatives_is_unsupported_with_all_reasons():
    excluded = {("state", "tp"): "no"}
    with pytest.raises(Unsupported) as caught:
        select([STATE], FakeKernel(FORMAT), excluded)
    assert caught.value.message == (
        "kernel 1.2.3-fake has no usable alternative for probe 'state' ("
        "raw tracepoint inet_sock_set_state: this kernel has no such tracepoint; "
        "tracepoint sock:inet_sock_set_state: no; "
        "kprobe tcp_set_state: this kernel has no kprobes)"
    )
    assert "-v" in caught.value.hint
    assert caught.value.exit_code == 69


def test_hint_names_doctor_if_no_program_was_refused():
    with pytest.raises(Unsupported) as caught:
        select([STATE], FakeKernel())
    assert "netbpf doctor" in caught.value.hint


def test_selections_keep_the_order_of_the_probes():
    probes = [Probe(name, RawTracepoint("t")) for name in "cab"]
    assert [c.probe.name for c in select(probes, FakeKernel(raw={"t": ()}))] == list("cab")
