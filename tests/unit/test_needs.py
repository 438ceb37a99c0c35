"""Privileges: what each tool needs, errors, and effects on a run."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import Any

import pytest

from netbpf.bpf import loader
from netbpf.bpf.object import MapSpec
from netbpf.declare import Probe, RawTracepoint, Tracepoint, needs
from netbpf.declare.needs import Need, needs_of
from netbpf.declare.tool import all_tools, find_tool
from netbpf.errors import AttachRefused, PrivilegeError, Unsupported, UsageError
from netbpf.kernel import processes
from netbpf.kernel.processes import kernel_pid
from netbpf.kernel.select import select
from netbpf.run import confinement
from netbpf.run.confinement import Confinement
from netbpf.system import privileges
from netbpf.system.privileges import CAPABILITIES, Denied, privilege_error, refusal_reason
from tests.unit.fakes import FakeKernel


def all_needs() -> list[Need]:
    values = list(vars(needs).values())
    several = [one for value in values if type(value) is tuple for one in value]
    return [value for value in (*values, *several) if isinstance(value, Need)]


def lacking(tool: str, held: set[str], monkeypatch: Any, **settings: Any) -> set[str]:
    monkeypatch.setattr(privileges, "lacks", lambda need: not held & set(need.any_of))
    monkeypatch.setattr(confinement, "probing_denied", lambda: True)
    monkeypatch.setattr(confinement, "addresses_visible", lambda: False)
    found = confinement.missing_needs(find_tool(tool), settings)
    return {need.name for need in found if not need.without}


@pytest.mark.parametrize("need", all_needs(), ids=lambda need: need.words)
def test_capabilities_exist(need):
    assert need.any_of and set(need.any_of) <= set(CAPABILITIES)
    assert need.to and not need.to.endswith(".")
    assert not (need.hides and not need.without)
    assert need.running or not need.helper


@pytest.mark.parametrize("tool", all_tools(), ids=lambda tool: tool.name)
def test_every_tool_needs_programs_and_attaching(tool):
    assert {needs.PROGRAMS, needs.ATTACH} <= set(needs_of(tool, {}))


def test_capability_numbers_match_the_kernel():
    numbers = {"CAP_CHOWN": 0, "CAP_SETPCAP": 8, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21}
    numbers |= {"CAP_SYSLOG": 34, "CAP_PERFMON": 38, "CAP_BPF": 39, "CAP_CHECKPOINT_RESTORE": 40}
    assert {name: CAPABILITIES.index(name) for name in numbers} == numbers


@pytest.mark.parametrize(
    ("tool", "held", "missing", "settings"),
    [
        ("tcplife", set(), {"CAP_BPF", "CAP_PERFMON"}, {}),
        ("tcplife", {"CAP_BPF", "CAP_PERFMON"}, set(), {}),
        ("tcplife", {"CAP_SYS_ADMIN"}, set(), {}),
        ("tcplife", {"CAP_BPF", "CAP_PERFMON"}, {"CAP_SYS_ADMIN"}, {"max_overhead": 5.0}),
        ("skbdrop", {"CAP_SYS_ADMIN"}, {"CAP_SYSLOG"}, {}),
        ("gethostlatency", {"CAP_BPF", "CAP_PERFMON"}, {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE"}, {}),
        ("gethostlatency", {"CAP_SYS_ADMIN"}, {"CAP_SYS_PTRACE"}, {}),
        ("gethostlatency", {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE"}, set(), {}),
    ],
)
def test_required_privileges(monkeypatch, tool, held, missing, settings):
    assert lacking(tool, held, monkeypatch, **settings) == missing


def test_privileges_depend_on_the_kernel(monkeypatch):
    monkeypatch.setattr(privileges, "lacks", lambda need: True)
    for probing, symbols in ((True, False), (False, True)):
        monkeypatch.setattr(confinement, "probing_denied", lambda it=probing: it)
        monkeypatch.setattr(confinement, "addresses_visible", lambda it=symbols: it)
        lookups = confinement.missing_needs(find_tool("gethostlatency"), {})
        drops = confinement.missing_needs(find_tool("skbdrop"), {})
        assert (needs.UPROBES in lookups) is probing
        assert (needs.PLACES in drops) is not symbols


def test_error_names_the_capability_its_purpose_and_a_remedy():
    error = privilege_error([needs.PROCESSES], "gethostlatency", [needs.UPROBES, needs.PROCESSES])
    assert error.exit_code == 77
    assert error.message == "tracing needs CAP_SYS_PTRACE to inspect processes of other users"
    assert "sudo netbpf gethostlatency" in error.hint or "user namespace" in error.hint
    if "user namespace" not in error.hint:
        assert "--ambient-caps +sys_admin,+sys_ptrace" in error.hint


# --- probes --------------------------------------------------------------------------------------


class HiddenTracefs(FakeKernel):
    """A kernel whose trace events this process cannot read."""

    def tracepoint(self, name: str) -> Any:
        raise PermissionError(errno.EACCES, needs.TRACEFS.words)


EXITS = Tracepoint("syscalls:sys_exit_x")


def test_unreadable_tracepoint_is_a_privilege_error():
    with pytest.raises(PrivilegeError) as raised:
        select([Probe("leave", EXITS)], HiddenTracefs())
    assert "CAP_DAC_READ_SEARCH to read /sys/kernel/tracing" in raised.value.message
    assert "no such" not in raised.value.message
    with pytest.raises(Unsupported):
        select([Probe("leave", EXITS)], FakeKernel())


def test_alternative_without_tracefs_is_not_reported():
    probe = Probe("leave", EXITS, RawTracepoint("sys_exit"))
    (selection,) = select([probe], HiddenTracefs(raw={"sys_exit": ()}))
    assert selection.kind == "rawtp" and selection.denied == ""


def test_alternative_that_loses_columns_names_the_privilege():
    probe = Probe("leave", EXITS, RawTracepoint("sys_exit", loses=("pid",)))
    (selection,) = select([probe], HiddenTracefs(raw={"sys_exit": ()}))
    assert selection.kind == "rawtp" and "CAP_DAC_READ_SEARCH" in selection.denied


def test_unreadable_optional_probe_names_the_privilege():
    (selection,) = select([Probe("leave", EXITS, optional=True)], HiddenTracefs())
    assert selection.kind == "" and "CAP_DAC_READ_SEARCH" in selection.denied
    (selection,) = select([Probe("leave", EXITS, optional=True)], FakeKernel())
    assert selection.denied == ""


def test_refused_probe_is_a_privilege_error_only_if_one_is_missing(monkeypatch):
    error = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(privileges, "capabilities", lambda *_: ["CAP_BPF", "CAP_PERFMON"])
    words = refusal_reason("the kernel refused to attach it", error)
    assert isinstance(words, Denied) and words.endswith(": needs CAP_SYS_ADMIN")
    assert words.requires == "CAP_SYS_ADMIN"
    assert not isinstance(refusal_reason("x", error, (errno.EPERM,)), Denied)
    assert not isinstance(refusal_reason("x", OSError(errno.EINVAL, "Invalid argument")), Denied)
    monkeypatch.setattr(privileges, "capabilities", lambda *_: ["CAP_SYS_ADMIN"])
    assert not isinstance(refusal_reason("x", error), Denied)
    with pytest.raises(PrivilegeError):
        select([Probe("leave", RawTracepoint("x"))], FakeKernel(raw={"x": ()}),
               {("leave", "rawtp"): words})  # fmt: skip


def test_process_hidden_by_proc_is_a_privilege_error(monkeypatch):
    absent = 2**22 + 1  # above the most that the kernel gives
    with pytest.raises(UsageError):
        kernel_pid(absent)
    monkeypatch.setattr(processes.os, "kill", refuse)
    with pytest.raises(PrivilegeError, match="hides from this user"):
        kernel_pid(absent)


# --- memory --------------------------------------------------------------------------------------


def refuse(*_: object) -> int:
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("limit", [65536, -1])
def test_map_above_the_memlock_limit_is_a_privilege_error(monkeypatch, limit):
    monkeypatch.setattr(loader, "bpf", refuse)
    monkeypatch.setattr(loader, "_raise_limit", lambda: False)
    monkeypatch.setattr(privileges, "capabilities", lambda *_: ["CAP_BPF"])
    monkeypatch.setattr(privileges.resource, "getrlimit", lambda _: (limit, limit))
    shape = MapSpec("events", 27, 0, 0, 1 << 20, 0)
    with pytest.raises((PrivilegeError, Exception)) as raised:
        loader._make_map(shape)
    assert isinstance(raised.value, PrivilegeError) is (limit == 65536)
    if limit == 65536:
        assert "CAP_SYS_RESOURCE to lock more memory" in raised.value.message
    assert not isinstance(raised.value, AttachRefused)


# --- a run ---------------------------------------------------------------------------------------


def confined(monkeypatch: Any, tool: str, *without: Need) -> Confinement:
    monkeypatch.setattr(confinement, "missing_needs", lambda *_: list(without))
    return Confinement([(find_tool(tool), {})])


def attached(*denied: str) -> Any:
    selections = [SimpleNamespace(denied=why, probe=SimpleNamespace(name="x")) for why in denied]
    return SimpleNamespace(selections=selections, not_covered=sum(map(bool, denied)))


RESULT: Any = SimpleNamespace(lost={})


def test_missing_privileges_are_noted_and_counted_if_rows_are_hidden(monkeypatch):
    found = confined(monkeypatch, "tcpsynbl", *needs.FIRST, needs.STATISTICS)
    assert found.not_covered(find_tool("tcpsynbl"), attached(), RESULT) == 1
    notes = found.notes(find_tool("tcpsynbl"), attached())
    assert len(notes) == 2
    assert notes[0].endswith("may be missing: needs CAP_SYS_ADMIN, CAP_SYS_PTRACE")


def test_denied_probes_and_losses_of_results_are_added(monkeypatch):
    found = confined(monkeypatch, "tcplife")
    result: Any = SimpleNamespace(lost={"not_covered": 5})
    tool = find_tool("tcplife")
    assert found.not_covered(tool, attached("needs CAP_X", "", "needs CAP_X"), result) == 7
    assert found.notes(tool, attached("needs CAP_X")) == ["probe x is not used: needs CAP_X"]


def test_missing_required_privilege_is_an_error(monkeypatch):
    with pytest.raises(PrivilegeError, match="CAP_SYS_PTRACE to inspect"):
        confined(monkeypatch, "gethostlatency", needs.PROCESSES, needs.FILES)


def test_run_as_a_library_keeps_the_privileges(monkeypatch):
    monkeypatch.setattr(privileges, "drop_capabilities", lambda _: pytest.fail("gave up"))
    found = confined(monkeypatch, "tcplife")
    found.enter({"losses": -1}, print)
    found.seal()
    assert found.described()["seccomp"] is False and found.helper == []


def test_write_access_follows_the_mode_alone(tmp_path):
    assert confinement._may_write(str(tmp_path))
    tmp_path.chmod(0o555)
    assert not confinement._may_write(str(tmp_path))  # even for root, who may do all the same
    tmp_path.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(tmp_path, 65534, 65534)
        assert not confinement._may_write(str(tmp_path))
        tmp_path.chmod(0o777)
        assert confinement._may_write(str(tmp_path))
