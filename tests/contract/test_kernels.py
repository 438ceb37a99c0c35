"""Rule: every tool works on every recorded kernel, or it is written down here why it cannot."""

from __future__ import annotations

import json

import pytest

from netbpf.errors import Unsupported
from netbpf.kernel import layout
from netbpf.kernel.select import missing, select
from netbpf.tested import recordings
from tests.contract.house import DATA, every_tool, program, tool_of

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
    answers = json.loads((DATA / "kernels" / f"{kernel}.json").read_text())
    assert answers["release"]
    questions = {"release", "tracepoint", "raw_tracepoint", "function", "typed", "iterator",
                 "dynamic", "preempts", "field", "size", "enumerator"}  # fmt: skip
    assert set(answers) <= questions


@every_kernel
@every_tool
def test_tool_has_a_way_for_every_probe_or_it_is_known_why_not(name, kernel):
    tool = tool_of(name)
    try:
        choices = select(tool.all_probes, KERNELS[kernel])
    except KeyError as question:
        not_asked(kernel, question)
    except Unsupported as error:
        assert (name, kernel) in UNSUPPORTED, error.message
        return
    assert (name, kernel) not in UNSUPPORTED, "it works now: take it off the list"
    assert len(choices) == len(tool.all_probes)


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
