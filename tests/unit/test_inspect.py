"""Kernel queries: format files are parsed, and the running kernel is queried."""

from __future__ import annotations

import os

import pytest

from netbpf.kernel import inspect
from netbpf.kernel.btf import Field
from netbpf.kernel.inspect import parse_format, tracepoint_id

FORMAT = """\
name: inet_sock_set_state
ID: 1479
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;
\tfield:int oldstate;\toffset:16;\tsize:4;\tsigned:1;
\tfield:__u16 sport;\toffset:24;\tsize:2;\tsigned:0;
\tfield:__u8 saddr_v6[16];\toffset:28;\tsize:16;\tsigned:0;
\tfield:char comm[TASK_COMM_LEN];\toffset:44;\tsize:16;\tsigned:0;
\tfield:__data_loc char[] name;\toffset:60;\tsize:4;\tsigned:0;
\tfield:enum skb_drop_reason reason;\toffset:64;\tsize:4;\tsigned:0;
\tfield:bool csum;\toffset:68;\tsize:1;\tsigned:0;
\tfield:__u8 daddr[sizeof(struct sockaddr_in6)];\toffset:104;\tsize:28;\tsigned:0;
\tfield:struct sockaddr_in6 addr;\toffset:72;\tsize:28;\tsigned:0;

print fmt: "family=%s sport=%hu field:int fake;", REC->sport
"""


def test_format_file_has_offset_and_type_of_every_field():
    assert parse_format(FORMAT) == {
        "common_type": Field(0, "u16 %s"),
        "common_pid": Field(32, "s32 %s"),
        "skaddr": Field(64, "u64 %s"),
        "oldstate": Field(128, "s32 %s"),
        "sport": Field(192, "u16 %s"),
        "saddr_v6": Field(224, "u8 %s[16]"),
        "comm": Field(352, "u8 %s[16]"),
        "name": Field(480, "u32 %s"),
        "reason": Field(512, "u32 %s"),
        "csum": Field(544, "u8 %s"),
        "daddr": Field(832, "u8 %s[28]"),
        "addr": Field(576, "u8 %s[28]"),
    }


def test_other_text_has_no_fields():
    assert parse_format("") == {}
    assert parse_format("field:int x; offset:a; size:4; signed:1;") == {}


@pytest.fixture
def tracefs(tmp_path, monkeypatch):
    """A tracefs with one trace event."""
    directory = tmp_path / "events" / "sock" / "inet_sock_set_state"
    directory.mkdir(parents=True)
    (directory / "format").write_text(FORMAT)
    (directory / "id").write_text("1479\n")
    monkeypatch.setattr(inspect, "tracefs", lambda: str(tmp_path))
    inspect.tracepoint_format.cache_clear()
    yield tmp_path
    inspect.tracepoint_format.cache_clear()


@pytest.mark.usefixtures("tracefs")
def test_trace_event_is_read_from_tracefs():
    assert list(inspect.tracepoint_format("sock:inet_sock_set_state") or ())[2] == "skaddr"
    assert inspect.tracepoint_format("sock:absent") is None
    assert inspect.tracepoint_format("absent") is None
    assert tracepoint_id("sock:inet_sock_set_state") == 1479
    with pytest.raises(OSError, match="absent"):
        tracepoint_id("sock:absent")


def test_tracefs_is_found_where_it_is_mounted(tmp_path, monkeypatch):
    (tmp_path / "b" / "events").mkdir(parents=True)
    monkeypatch.setattr(inspect, "_TRACEFS", (str(tmp_path / "a"), str(tmp_path / "b")))
    inspect.tracefs.cache_clear()
    try:
        assert inspect.tracefs() == str(tmp_path / "b")
    finally:
        inspect.tracefs.cache_clear()


def refuse(fstype: str) -> str:
    raise PermissionError(fstype)


def test_missing_tracefs_that_cannot_be_mounted_is_a_missing_privilege(tmp_path, monkeypatch):
    monkeypatch.setattr(inspect, "_TRACEFS", ())
    monkeypatch.setattr(inspect, "detached_mount", refuse)
    monkeypatch.chdir(tmp_path)
    inspect.tracefs.cache_clear()
    inspect.tracepoint_format.cache_clear()
    try:
        assert inspect.tracefs() == ""
        with pytest.raises(PermissionError, match=r"CAP_\w+ to \w+ .*tracefs"):
            inspect.tracepoint_format("sock:inet_sock_set_state")
    finally:
        inspect.tracefs.cache_clear()
        inspect.tracepoint_format.cache_clear()


def test_live_kernel_is_the_running_kernel(monkeypatch):
    monkeypatch.setattr(inspect, "Btf", lambda path: path)
    kernel = inspect.LiveKernel()
    assert kernel.release == os.uname().release
    assert kernel.btf == "/sys/kernel/btf/vmlinux"
    assert inspect.LiveKernel("other").btf == "other"


@pytest.mark.parametrize(
    ("has", "preempted"),
    [
        ((), []),
        (("tracepoint_srcu_srcu_data",), []),  # up to 6.12, for another reason
        (("tracepoint_ext",), []),
        (("tracepoint_srcu_srcu_data", "tracepoint_ext"), ["rawtp"]),
        (
            ("tracepoint_srcu_srcu_data", "tracepoint_ext", "trace_call_bpf_faultable"),
            ["rawtp", "syscalls"],
        ),
    ],
)
def test_preemption_is_inferred_from_symbols(monkeypatch, has, preempted):
    class Types:
        def find(self, name, *kinds):
            return int(name in has)

        def size(self, name):
            return 24 if name in has else None

    monkeypatch.setattr(inspect, "Btf", lambda path: Types())
    kernel = inspect.LiveKernel()
    assert [what for what in ("rawtp", "syscalls") if kernel.preempts(what)] == preempted
