"""Whatever kind of probe sees a moment, a tool says the same about it.

Each tool runs several times over the same traffic, each time with other kinds of probes, until all
that this kernel offers have been used.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pytest
from alternatives import Case, Stage
from harness import ATTEMPTS, SLOW, Run, attended, start

from netbpf.declare.probes import Probe
from netbpf.declare.tool import all_tools
from netbpf.kernel.inspect import LiveKernel
from netbpf.kernel.select import missing, select
from netbpf.run.program import probes_of

TOOLS = {tool.name: tool for tool in all_tools()}


def case_of(name: str) -> Case | None:
    """Return what the test file of a tool declares; contract tests report that there is no file."""
    if not Path(__file__).with_name(f"test_{name}.py").is_file():
        return None
    return getattr(import_module(f"test_{name}"), "ALTERNATIVES", None)


CASES = {name: case for name in TOOLS if (case := case_of(name))}


# --- which kinds ----------------------------------------------------------------------------------


@functools.cache
def kernel() -> LiveKernel:
    return LiveKernel()


def offered(probe: Probe) -> list[str]:
    """The kinds with which this kernel can serve a probe, best first."""
    kinds = [a.kind for a in probe.alternatives if not missing(a, kernel())[1]]
    return [kind for kind in dict.fromkeys(kinds) if not kind.startswith("u")]


def turns(name: str) -> list[dict[str, str]]:
    """What to force in each run: the best kind of every probe, the second best, and so on."""
    probes = probes_of(TOOLS[name], CASES[name].settings)
    kinds = {probe.name: offered(probe) for probe in probes if offered(probe)}
    leaders = [p for p in probes if p.name in kinds and not p.with_probe and not p.complements]
    return [
        with_partners({p.name: kinds[p.name][min(turn, len(kinds[p.name]) - 1)] for p in leaders},
                      probes, kinds)
        for turn in range(max(len(kinds[probe.name]) for probe in leaders))
    ]  # fmt: skip


def with_partners(
    forced: dict[str, str], probes: Sequence[Probe], kinds: dict[str, list[str]]
) -> dict[str, str]:
    """The same, with probes that stand in only beside one of the same kind."""
    pairs = {"kretprobe": "kprobe"}
    for probe in probes:
        kind = forced.get(probe.with_probe, "")
        for fitting in (kind, pairs.get(kind)):
            if fitting in kinds.get(probe.name, ()):
                forced[probe.name] = str(fitting)
                break
    return forced


def lost_columns(name: str, forced: dict[str, str]) -> set[str]:
    selections = select(probes_of(TOOLS[name], CASES[name].settings), kernel(), {}, forced)
    return {column for selection in selections for column in selection.lost_columns}


@pytest.mark.parametrize("name", sorted(CASES))
def test_all_kinds_that_this_kernel_offers_say_the_same(
    name: str, stage: Stage, tmp_path: Path
) -> None:
    case, forcing = CASES[name], turns(name)
    for attempt in range(ATTEMPTS):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        runs = traced(case, name, forcing, stage, directory)
        whole = [run for run in runs if complete(run)]
        if whole:
            break
    lost = set().union(*(lost_columns(name, forced) for forced in forcing))
    for run, forced in zip(runs, forcing):
        used = {probe["name"]: probe["kind"] for probe in run.summary["probes"]}
        assert {probe: used[probe] for probe in forced} == forced
    assert whole == runs or (whole and SLOW > 1), "a run missed something"
    wanted = case.facts(whole[0], lost)
    assert wanted, "the traffic shows nothing"
    for run in whole[1:]:
        assert case.facts(run, lost) == wanted, (run.summary["probes"], whole[0].summary["probes"])


def traced(
    case: Case, name: str, forcing: Sequence[dict[str, str]], stage: Stage, directory: Path
) -> list[Run]:
    """Return a run of the tool with each of these kinds, all of the same traffic."""
    runs = []
    with contextlib.ExitStack() as stack:
        for turn, forced in enumerate(forcing):
            place = directory / str(turn)
            place.mkdir()
            words = ",".join(f"{probe}={kind}" for probe, kind in forced.items())
            runs.append(start(place, name, "--probe", words, *case.args(stage)))
        for run in runs:
            stack.enter_context(attended(run))
        case.act(stage, runs[0])
    return runs


def complete(run: Run) -> bool:
    """Whether a run saw everything; if not, nothing but skipped runs of probes may be the cause.

    A BPF program that is preempted keeps others of its kind from running on that CPU, and the
    kernel counts them as missed: seen with 7.2 under emulation, where programs take long.
    """
    lost = {cause for cause, number in run.summary["lost"].items() if number}
    # tcpretrans has the kernel's own count beside it: what was missed is unseen, too.
    assert not lost or {"probe_missed"} <= lost <= {"probe_missed", "unseen"}
    assert run.summary["complete"] is not bool(lost)
    return not lost


def test_only_tools_of_user_space_have_no_case() -> None:
    for name in TOOLS.keys() - CASES.keys():
        kinds = {way.how.user_space for p in TOOLS[name].probes for way in p.alternatives[:1]}
        assert True in kinds, f"test_{name}.py needs ALTERNATIVES: see alternatives.py"
