"""Recordings: they answer like the kernel for whole subsystems, and fail for anything else."""

from __future__ import annotations

import json

import pytest

from netbpf.bpf import layout
from netbpf.declare import Event, Fentry, Fexit, Kretprobe, Pid, Probe, RawTracepoint, Tool
from netbpf.doctor import recording
from netbpf.errors import PrivilegeError, Unsupported
from netbpf.kernel import btf, inspect
from netbpf.kernel.inspect import LiveKernel, RecordedKernel
from netbpf.kernel.recorded import SIZE, NotRecorded, covers
from netbpf.kernel.select import select
from tests.unit.fakes import STRUCT, UNION, BtfBlob

FORMAT = """\
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

"""
SKADDR = "\tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;\n"
SOURCE = """
KERNEL_FIELDS(tcp_sock, sk.state)
KERNEL_OPTIONAL(tcp_sock, absent)
KERNEL_ENUM(odd_enum, ODD_ONE)
"""


class Thing(Event):
    """The event of the fake tool."""

    pid = Pid("whose")


TOOL = Tool(
    "pretend - a tool that is not there\n",
    event=Thing,
    probes=(
        Probe("seen", Fentry("odd_see", args=("sk",)), RawTracepoint("seen", args=("sk",))),
        Probe("felt", Fexit("odd_feel"), Kretprobe("odd_feel"), optional=True, loses=("pid",)),
    ),
)


def types() -> BtfBlob:
    """Return the types of a small kernel: some that tools use, some that none does."""
    blob = BtfBlob()
    u8, u32 = blob.integer("unsigned char", 1), blob.integer("unsigned int", 4)
    u64 = blob.integer("unsigned long", 8)
    ports = blob.compound(STRUCT, "", 4, [("dport", u32, 0)])
    pair = blob.compound(UNION, "", 4, [("portpair", u32, 0), ("", ports, 0)])
    sock = blob.compound(STRUCT, "sock", 16, [("state", u8, 0), ("", pair, 32), ("hash", u64, 64)])
    # A struct that no pattern names, held by one that is recorded.
    held = blob.compound(STRUCT, "odd_held", 8, [("low", u32, 0), ("high", u32, 32)])
    queue = blob.compound(STRUCT, "", 8, [("len", u32, 32)])
    blob.compound(STRUCT, "tcp_sock", 48, [
        ("sk", sock, 64),
        ("held", held, 192),
        ("queue", queue, 256),
        ("nonagle", u8, 321, 4),
        ("row", blob.array(sock, 2, u32), 0),
        ("to", blob.pointer(sock), 0),
    ])  # fmt: skip
    blob.compound(STRUCT, "unrelated", 8, [("x", u64, 0)])
    blob.compound(STRUCT, "bpf_iter__task_file", 8, [("x", u64, 0)])
    blob.enum("tcp_ca_state", {"TCP_CA_Open": 0, "TCP_CA_Loss": 4})
    blob.enum("odd_enum", {"ODD_ONE": 1})
    blob.function("tcp_set_state", 0, {"sk": u64, "": u32, "state": u32})
    blob.function("tcp_nothing", 0, {})
    blob.function("odd_see", 0, {"sk": u64})
    blob.function("odd_aside", 0, {"sk": u64})
    blob.function("__traceiter_seen", 0, {"__data": u64, "sk": u64})
    blob.function("__traceiter_bare", 0, {"__data": u64})
    return blob


@pytest.fixture
def live(tmp_path, monkeypatch):
    """The small kernel, with two trace events and fentry."""
    try:
        btf._libbpf()
    except Unsupported:
        pytest.skip("needs libbpf: apt install libbpf1, or dnf install libbpf")
    for event in ("sock/inet_sock_set_state", "xfs/xfs_read"):
        (tmp_path / "events" / event).mkdir(parents=True)
        (tmp_path / "events" / event / "format").write_text(FORMAT + SKADDR)
    (tmp_path / "events/sock/bare").mkdir()
    (tmp_path / "events/sock/bare/format").write_text(FORMAT)
    (tmp_path / "btf").write_bytes(types().bytes())
    (tmp_path / "pretend.bpf.c").write_text(SOURCE)
    monkeypatch.setattr(inspect, "tracefs", lambda: str(tmp_path))
    monkeypatch.setattr(recording, "tracefs", lambda: str(tmp_path))
    monkeypatch.setattr(recording, "all_tools", lambda: [TOOL])
    monkeypatch.setattr(layout, "program_directory", lambda: tmp_path)
    monkeypatch.setattr(LiveKernel, "dynamic", lambda kernel, kind: kind == "fentry")
    inspect.tracepoint_format.cache_clear()
    yield LiveKernel(str(tmp_path / "btf"))
    inspect.tracepoint_format.cache_clear()


@pytest.fixture
def recorded(live):
    """A recording of it, serialized and parsed."""
    return RecordedKernel(json.loads(json.dumps(recording.recording_of(live))))


QUESTIONS = [
    ("tracepoint", "sock:inet_sock_set_state"),
    ("tracepoint", "sock:bare"),
    ("tracepoint", "sock:absent"),
    ("tracepoint", "tcp:absent"),  # a system of which this kernel has nothing
    ("raw_tracepoint", "seen"),
    ("raw_tracepoint", "bare"),
    ("raw_tracepoint", "absent"),
    ("function", "tcp_set_state"),
    ("function", "tcp_nothing"),
    ("function", "tcp_absent"),
    ("function", "odd_see"),
    ("function", "odd_feel"),
    ("typed", "tcp_set_state"),
    ("iterator", "task_file"),
    ("iterator", "absent"),
    ("dynamic", "kprobe"),
    ("dynamic", "fentry"),
    ("preempts", "rawtp"),
    ("preempts", "syscalls"),
    ("field", "tcp_sock", "sk"),
    ("field", "tcp_sock", "sk.state"),
    ("field", "tcp_sock", "sk.portpair"),
    ("field", "tcp_sock", "sk.dport"),
    ("field", "tcp_sock", "sk.hash"),
    ("field", "tcp_sock", "sk.hash.deeper"),
    ("field", "tcp_sock", "held"),
    ("field", "tcp_sock", "held.high"),
    ("field", "odd_held", "high"),
    ("field", "tcp_sock", "queue"),
    ("field", "tcp_sock", "queue.len"),
    ("field", "tcp_sock", "queue.absent"),
    ("field", "tcp_sock", "nonagle"),
    ("field", "tcp_sock", "row"),
    ("field", "tcp_sock", "row.state"),
    ("field", "tcp_sock", "to"),
    ("field", "tcp_sock", "to.state"),
    ("field", "tcp_sock", "sizeof"),
    ("field", "sock", "absent"),
    ("field", "tcp_absent", "state"),
    ("size", "tcp_sock"),
    ("size", "odd_held"),
    ("size", "tcp_absent"),
    ("enumerator", "tcp_ca_state", "TCP_CA_Loss"),
    ("enumerator", "tcp_ca_state", "absent"),
    ("enumerator", "tcp_absent", "absent"),
    ("enumerator", "odd_enum", "ODD_ONE"),
]


@pytest.mark.parametrize("question", QUESTIONS, ids=" ".join)
def test_recorded_kernel_answers_as_the_kernel_did(live, recorded, question):
    kind, *what = question
    answer, truth = getattr(recorded, kind)(*what), getattr(live, kind)(*what)
    assert (answer, type(answer)) == (truth, type(truth))
    assert recorded.release == live.release


@pytest.mark.parametrize(
    "question",
    [
        ("tracepoint", "xfs:xfs_read"),
        ("function", "odd_aside"),
        ("typed", "odd_aside"),
        ("field", "unrelated", "x"),
        ("size", "unrelated"),
        ("enumerator", "unrelated", "X"),
        ("dynamic", "magic"),
    ],
    ids=" ".join,
)
def test_uncovered_query_is_an_error(recorded, question):
    kind, *what = question
    with pytest.raises(NotRecorded, match=what[0].split(":")[0]):
        getattr(recorded, kind)(*what)


def test_an_empty_recording_answers_nothing():
    recorded = RecordedKernel({"release": "1"})
    with pytest.raises(NotRecorded):
        recorded.function("tcp_set_state")
    with pytest.raises(NotRecorded):
        recorded.raw_tracepoint("seen")


@pytest.mark.parametrize(
    "recording",
    [
        None, [], "x", {}, {"release": None}, {"release": "1", "function": ["tcp_close"]},
        {"release": "1", "function": {"tcp_close": None}}, {"release": "1", "untyped": {}},
        {"release": "1", "covers": {"struct": "x"}}, {"release": "1", "dynamic": {"kprobe": 1}},
        {"release": "1", "enum": {"mode": {"ON": True}}}, {"release": "1", "struct": {"sock": {}}},
        {"release": "1", "struct": {"sock": {SIZE: 8, "x": "u32 %s"}}},
        {"release": "1", "struct": {"sock": {SIZE: -8}}},
        {"release": "1", "struct": {"sock": {SIZE: 8, "x": {SIZE: 8}}}},
    ],
)  # fmt: skip
def test_invalid_recording_is_an_error(recording):
    with pytest.raises(ValueError, match="not a recording of a kernel"):
        RecordedKernel(recording)


def test_nested_struct_that_is_not_recorded_is_an_error():
    struct = {"sock": {SIZE: 8, "x": "0 sock_common"}}
    recorded = RecordedKernel({"release": "1", "struct": struct, "covers": {"struct": ["sock*"]}})
    with pytest.raises(NotRecorded, match="sock_common"):
        recorded.field("sock", "x")


def test_a_recording_answers_every_selection(live, recorded):
    assert select(TOOL.probes, recorded) == select(TOOL.probes, live)
    # Alternatives that were not needed at first are in there too, beyond what patterns cover.
    refused = {("seen", "fentry"): "refused", ("felt", "fexit"): "refused"}
    assert select(TOOL.probes, recorded, refused) == select(TOOL.probes, live, refused)
    wanted = layout.manifests(SOURCE)
    assert layout.header(recorded, wanted, []) == layout.header(live, wanted, [])


def test_patterns_match_whole_names():
    assert covers(("tcp_*", "sock"), "tcp_sock") and covers(("tcp_*", "sock"), "sock")
    assert not covers(("tcp_*", "sock"), "sock_common") and not covers(("tcp_*",), "mptcp_sock")
    assert not covers((), "anything")


def test_recording_needs_privileges(monkeypatch, tmp_path):
    monkeypatch.setattr(recording, "missing_privileges", lambda: ["CAP_BPF"])
    with pytest.raises(PrivilegeError, match="CAP_BPF"):
        recording.record(str(tmp_path / "kernel.json"))
    assert not (tmp_path / "kernel.json").exists()
