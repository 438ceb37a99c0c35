"""Declared probes: what they hold and how they read in messages."""

from __future__ import annotations

from netbpf.declare import probes
from netbpf.declare.probes import Alternative, Kprobe, Probe, RawTracepoint

KINDS = [
    c
    for c in vars(probes).values()
    if isinstance(c, type) and issubclass(c, Alternative) and c is not Alternative
]


def test_kinds_are_told_apart_by_name_and_in_words():
    assert len({c.kind for c in KINDS}) == len(KINDS)
    assert len({c("f").how.label for c in KINDS}) == len(KINDS)
    assert all(c.kind.isidentifier() for c in KINDS)  # part of a C name


def test_representation_names_kind_and_targets():
    probe = Probe("drop", RawTracepoint("a", "b"), Kprobe("c"))
    assert repr(probe) == "Probe(drop: rawtp:a|b, kprobe:c)"


def test_lists_become_tuples_that_cannot_be_changed():
    alternative = Kprobe("f", args=["sk"], loses=["pid"])
    assert (alternative.args, alternative.loses) == (("sk",), ("pid",))
