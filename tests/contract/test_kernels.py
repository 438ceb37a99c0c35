"""Rule: every tool works on every recorded kernel, or it is written down here why it cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from netbpf.errors import Unsupported
from netbpf.kernel import layout
from netbpf.kernel.inspect import RecordedKernel
from netbpf.kernel.select import select
from tests.contract.house import DATA, every_tool, program, tool_of

KERNELS = sorted((DATA / "kernels").glob("*.json"))
# (tool, kernel file's stem): what that kernel lacks.
UNSUPPORTED: dict[tuple[str, str], str] = {}

every_kernel = pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)


def recorded(path: Path) -> RecordedKernel:
    return RecordedKernel(json.loads(path.read_text()))


def not_asked(path: Path, question: KeyError) -> None:
    pytest.skip(
        f"{path.name} was recorded before {question} was asked:"
        f" run netbpf doctor --record {path.name} on that kernel"
    )


def test_there_is_a_recorded_kernel():
    assert KERNELS, "run netbpf doctor --record tests/data/kernels/NAME.json"


@every_kernel
def test_recording_says_which_kernel_it_is_and_nothing_of_the_machine(path):
    answers = json.loads(path.read_text())
    assert answers["release"]
    questions = {"release", "tracepoint", "raw_tracepoint", "function", "typed", "iterator",
                 "dynamic", "field", "size", "enumerator"}  # fmt: skip
    assert set(answers) <= questions


@every_kernel
@every_tool
def test_tool_has_a_way_for_every_probe_or_it_is_known_why_not(name, path):
    tool = tool_of(name)
    try:
        choices = select(tool.all_probes, recorded(path))
    except KeyError as question:
        not_asked(path, question)
    except Unsupported as error:
        assert (name, path.stem) in UNSUPPORTED, error.message
        return
    assert (name, path.stem) not in UNSUPPORTED, "it works now: take it off the list"
    assert len(choices) == len(tool.all_probes)


@every_kernel
@every_tool
def test_every_field_that_a_program_needs_is_there(name, path):
    if (name, path.stem) in UNSUPPORTED:
        return
    try:
        text = layout.header(recorded(path), layout.manifests(program(name)), [])
    except KeyError as question:
        not_asked(path, question)
    assert "struct" in text
