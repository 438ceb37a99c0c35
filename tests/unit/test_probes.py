"""Declared probes: their attributes and representation."""

from __future__ import annotations

from netbpf.declare import probes
from netbpf.declare.probes import Alternative, Kprobe, Probe, RawTracepoint, tracepoint_probe

KINDS = [
    c
    for c in vars(probes).values()
    if isinstance(c, type) and issubclass(c, Alternative) and c is not Alternative
]


def test_kinds_have_distinct_names_and_labels():
    assert len({c.kind for c in KINDS}) == len(KINDS)
    assert len({c("f").how.label for c in KINDS}) == len(KINDS)
    assert all(c.kind.isidentifier() for c in KINDS)  # part of a C name


def test_representation_names_kind_and_targets():
    probe = Probe("drop", RawTracepoint("a", "b"), Kprobe("c"))
    assert repr(probe) == "Probe(drop: rawtp:a|b, kprobe:c)"


def test_lists_become_tuples_that_cannot_be_changed():
    alternative = Kprobe("f", args=["sk"], loses=["pid"])
    assert (alternative.args, alternative.loses) == (("sk",), ("pid",))


def test_a_tracepoint_is_two_alternatives():
    probe = tracepoint_probe("drop", "skb:kfree_skb", ("skb",), ("skbaddr",), optional=True)
    assert repr(probe) == "Probe(drop: rawtp:kfree_skb, tp:skb:kfree_skb)"
    assert [one.args for one in probe.alternatives] == [("skb",), ("skbaddr",)]
    assert probe.optional
