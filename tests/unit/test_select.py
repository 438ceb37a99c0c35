"""The choice of probes: the first alternative that the kernel offers, and why no better one."""

from __future__ import annotations

import pytest

from netbpf.declare.probes import (
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
    return [choice.kind for choice in select(probes, kernel, **more)]


def test_first_usable_alternative_wins():
    # GIVEN a kernel that offers everything
    kernel = FakeKernel(FORMAT, RAW, {"tcp_set_state": ("sk", "state")}, takes=("kprobe",))
    # THEN the best is used
    [choice] = select([STATE], kernel)
    assert (choice.kind, choice.entry, choice.targets) == (
        "rawtp", "state_rawtp", ("inet_sock_set_state",)
    )  # fmt: skip
    assert choice.passed_over == ()


def test_next_alternative_is_used_when_the_target_is_missing():
    kernel = FakeKernel(FORMAT, takes=("kprobe",))
    [choice] = select([STATE], kernel)
    assert choice.kind == "tp"
    assert choice.passed_over == (
        ("raw tracepoint inet_sock_set_state", "this kernel has no such tracepoint"),
    )


def test_alternative_without_a_needed_argument_is_not_usable():
    kernel = FakeKernel(FORMAT, {"inet_sock_set_state": ("sk", "oldstate")})
    [choice] = select([STATE], kernel)
    assert choice.kind == "tp"
    assert choice.passed_over[0][1] == "it lacks newstate here"


def test_first_of_several_names_that_is_usable_is_the_target():
    probe = Probe("drop", RawTracepoint("gone", "there", "also_there"))
    [choice] = select([probe], FakeKernel(raw={"there": (), "also_there": ()}))
    assert choice.targets == ("there",)


def test_every_takes_all_names_that_are_there():
    probe = Probe("bind", Kprobe("inet_bind", "gone", "inet6_bind", every=True))
    kernel = FakeKernel(functions={"inet_bind": (), "inet6_bind": ()}, takes=("kprobe",))
    [choice] = select([probe], kernel)
    assert choice.targets == ("inet_bind", "inet6_bind")


def test_missing_says_why_the_first_name_cannot_be_used():
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
    ],
    ids=repr,
)
def test_a_kernel_without_anything_says_so(alternative, why):
    probe = Probe("p", alternative, optional=True)
    [choice] = select([probe], FakeKernel(functions={"f": ()}))
    assert choice.alternative is None
    assert [reason for _, reason in choice.passed_over] == [why]


@pytest.mark.parametrize(
    "alternative",
    [Kprobe("f"), Kretprobe("f"), Fentry("f"), Fexit("f"), Iterator("i"), RawTracepoint("t"),
     Tracepoint("s:t")],
    ids=repr,
)  # fmt: skip
def test_a_kernel_with_everything_takes_any_kind(alternative):
    kernel = FakeKernel({"s:t": ()}, {"t": ()}, {"f": ()}, ("i",), ("kprobe", "fentry", "uprobe"))
    assert kinds(kernel, Probe("p", alternative)) == [alternative.kind]


def test_uprobes_need_no_target_in_the_kernel():
    [choice] = select([Probe("lookup", Uprobe())], FakeKernel(takes=("uprobe",)))
    assert (choice.kind, choice.targets) == ("uprobe", ())


def test_optional_probe_may_have_none_and_says_which_columns_it_costs():
    probe = Probe("accept", Fexit("inet_csk_accept"), optional=True, loses=("pid", "comm"))
    [choice] = select([probe], FakeKernel())
    assert (choice.kind, choice.lost_columns) == ("", ("pid", "comm"))


def test_alternative_says_which_columns_it_costs():
    probe = Probe("accept", Kretprobe("f", loses=("queue",)), loses=("pid",))
    [choice] = select([probe], FakeKernel(functions={"f": ()}, takes=("kprobe",)))
    assert choice.lost_columns == ("queue",)


ACCEPT = Probe("accept", Fexit("inet_csk_accept"), Tracepoint("syscalls:sys_exit_accept"))
ACCEPT4 = Probe("accept4", Tracepoint("syscalls:sys_exit_accept4"), optional=True, instead="accept")
SYSCALLS = {"syscalls:sys_exit_accept": ("ret",), "syscalls:sys_exit_accept4": ("ret",)}


def test_stand_in_is_used_beside_a_partner_of_the_same_kind():
    assert kinds(FakeKernel(SYSCALLS), ACCEPT, ACCEPT4) == ["tp", "tp"]


def test_stand_in_is_covered_by_a_partner_of_another_kind():
    kernel = FakeKernel(SYSCALLS, functions={"inet_csk_accept": ()}, takes=("fentry",))
    choices = select([ACCEPT, ACCEPT4], kernel)
    assert [choice.kind for choice in choices] == ["fexit", ""]
    assert choices[1].passed_over == (("accept4", "covered by accept_fexit"),)
    assert [choice.covered for choice in choices] == [False, True]


SENDS = ("inet_sendmsg", "inet6_sendmsg", "gone_sendmsg")
SEND = Probe("send", Fexit(*SENDS, every=True), Kretprobe(*SENDS, every=True))
ENTER = Probe("enter_send", Kprobe(*SENDS, every=True), optional=True, instead="send")
FUNCTIONS = {"inet_sendmsg": ("sock",), "inet6_sendmsg": ("sock",)}


def test_begin_of_a_function_is_used_beside_its_end():
    kernel = FakeKernel(functions=FUNCTIONS, takes=("kprobe",))
    assert kinds(kernel, SEND, ENTER) == ["kretprobe", "kprobe"]


def test_a_kretprobe_is_one_program_for_all_functions():
    [choice] = select([SEND], FakeKernel(functions=FUNCTIONS, takes=("kprobe",)))
    assert choice.programs == (("send_kretprobe", ("inet_sendmsg", "inet6_sendmsg")),)


def test_fexit_is_one_program_per_function():
    kernel = FakeKernel(functions=FUNCTIONS, takes=("fentry", "kprobe"))
    send, enter = select([SEND, ENTER], kernel)
    assert send.programs == (
        ("send_fexit", ("inet_sendmsg",)),
        ("send_fexit:inet6_sendmsg", ("inet6_sendmsg",)),
    )
    assert enter.programs == ()


PACKETS = Probe(
    "packets", Fexit("packet_sendmsg"), Kretprobe("packet_sendmsg"), optional=True, instead="send"
)
BEGIN = Probe("enter_packets", Kprobe("packet_sendmsg"), optional=True, instead="packets")


@pytest.mark.parametrize(
    ("forced", "wanted"),
    [
        ({}, ["fexit", "fexit", ""]),
        ({"send": "kretprobe"}, ["kretprobe", "kretprobe", "kprobe"]),
        ({"packets": "kretprobe"}, ["fexit", "", ""]),  # what does not go together is not used
    ],
)
def test_stand_in_takes_the_kind_of_its_partner(forced, wanted):
    functions = {**FUNCTIONS, "packet_sendmsg": ("sock",)}
    kernel = FakeKernel(functions=functions, takes=("fentry", "kprobe"))
    choices = select([SEND, PACKETS, BEGIN], kernel, forced=forced)
    assert [choice.kind for choice in choices] == wanted


def test_who_stands_in_with_one_that_is_covered_is_covered_too():
    kernel = FakeKernel(FORMAT, RAW, functions={"packet_sendmsg": ("sock",)}, takes=("fentry",))
    partner = Probe("packets", Fexit("packet_sendmsg"), optional=True, instead="state")
    _, *choices = select([STATE, partner, BEGIN], kernel)
    assert [choice.passed_over[-1][1] for choice in choices] == ["covered by state_rawtp"] * 2
    assert all(choice.covered for choice in choices)


def test_who_stands_in_with_one_that_has_no_way_has_none_and_is_not_covered():
    choices = select([PACKETS, BEGIN], FakeKernel(takes=("kprobe",)))
    assert [choice.kind for choice in choices] == ["", ""]
    assert not any(choice.covered for choice in choices)


# --- programs that other tasks interrupt ----------------------------------------------------------

CALL = Probe("leave", Fexit("f"), Tracepoint("syscalls:f"), Kretprobe("f"))
PREEMPTED = "other tasks may interrupt its programs here, and what they do then is not seen"


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
def test_what_is_preempted_comes_last(what, kinds):
    assert tuple(c.kind for c in select([STATE, CALL], preemptive(*what))) == kinds


def test_it_is_said_why_what_is_preempted_was_passed_over():
    state, call = select([STATE, CALL], preemptive("rawtp", "syscalls"))
    assert state.passed_over == (("raw tracepoint inet_sock_set_state", PREEMPTED),)
    assert call.passed_over == (("fexit f", PREEMPTED), ("tracepoint syscalls:f", PREEMPTED))


def test_what_is_preempted_is_used_where_nothing_else_is():
    [call] = select([CALL], preemptive("rawtp", "syscalls", takes=("fentry",)))
    assert call.kind == "fexit"
    assert call.passed_over == (("kretprobe f", "this kernel has no kprobes"),)
    [call] = select([CALL], preemptive("rawtp", "syscalls", takes=()))
    assert call.kind == "tp"
    # THEN each way is told once
    reasons = ["kretprobe f", "fexit f"]
    assert [words for words, _ in call.passed_over] == reasons


LEAVE = Probe("leave", Tracepoint("syscalls:f"), Fexit("f"), Kretprobe("f"))
EARLIER = Probe("earlier", Tracepoint("syscalls:f"), optional=True, besides="leave")


@pytest.mark.parametrize(
    "what, forced, kinds",
    [
        ((), {}, ("tp", "")),
        (("rawtp", "syscalls"), {}, ("kretprobe", "tp")),
        ((), {"leave": "fexit"}, ("fexit", "tp")),
    ],
)
def test_what_adds_to_another_is_used_unless_that_takes_the_same_kind(what, forced, kinds):
    leave, earlier = select([LEAVE, EARLIER], preemptive(*what), forced=forced)
    assert (leave.kind, earlier.kind) == kinds
    assert earlier.covered is (leave.kind == "tp")


def test_what_tells_more_is_used_even_if_it_is_preempted():
    lossy = Tracepoint("sock:inet_sock_set_state", loses=("err",))
    probe = Probe("state", RawTracepoint("inet_sock_set_state"), lossy)
    [choice] = select([probe], preemptive("rawtp"))
    assert (choice.kind, choice.passed_over) == ("rawtp", ())


def test_forced_kind_is_used_even_if_it_is_preempted():
    [choice] = select([STATE], preemptive("rawtp"), forced={"state": "rawtp"})
    assert choice.kind == "rawtp"


def test_forced_kind_passes_better_ones_over():
    kernel = FakeKernel(FORMAT, RAW)
    [choice] = select([STATE], kernel, forced={"state": "tp"})
    assert choice.kind == "tp"
    assert choice.passed_over[0][1] == "--probe asks for tp"


def test_forced_kind_that_this_kernel_lacks_is_unsupported():
    with pytest.raises(Unsupported, match="--probe asks for kprobe"):
        select([STATE], FakeKernel(FORMAT, RAW), forced={"state": "kprobe"})


@pytest.mark.parametrize("forced", [{"absent": "tp"}, {"state": "fexit"}, {"state": ""}])
def test_forcing_what_is_not_declared_is_a_usage_error_that_lists_what_is(forced):
    with pytest.raises(UsageError) as caught:
        select([STATE], FakeKernel(FORMAT, RAW), forced=forced)
    assert "state=rawtp|tp|kprobe" in caught.value.hint


def test_refused_alternative_falls_through_with_the_kernels_reason():
    # GIVEN a kernel that offers the raw tracepoint but refused to attach it
    refused = {("state", "rawtp"): "the kernel refused to attach it (EPERM)"}
    # THEN the next one is used, and the reason is told
    [choice] = select([STATE], FakeKernel(FORMAT, RAW), refused)
    assert choice.kind == "tp"
    assert choice.passed_over[0][1] == "the kernel refused to attach it (EPERM)"


def test_needed_probe_without_alternatives_is_unsupported_with_all_reasons():
    refused = {("state", "tp"): "no"}
    with pytest.raises(Unsupported) as caught:
        select([STATE], FakeKernel(FORMAT), refused)
    assert caught.value.message == (
        "kernel 1.2.3-fake has nothing for probe 'state' ("
        "raw tracepoint inet_sock_set_state: this kernel has no such tracepoint; "
        "tracepoint sock:inet_sock_set_state: no; "
        "kprobe tcp_set_state: this kernel has no kprobes)"
    )
    assert "netbpf doctor" in caught.value.hint
    assert caught.value.exit_code == 69


def test_choices_keep_the_order_of_the_probes():
    probes = [Probe(name, RawTracepoint("t")) for name in "cab"]
    assert [c.probe.name for c in select(probes, FakeKernel(raw={"t": ()}))] == list("cab")
