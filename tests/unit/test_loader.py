"""The arguments of bpf(2) byte by byte, errors of refused programs, and the created maps."""

from __future__ import annotations

import ctypes
import errno
import os
import resource

import pytest

from netbpf.bpf import loader, preemption
from netbpf.bpf.loader import Entry, entries_of
from netbpf.bpf.object import BpfObject, MapSpec
from netbpf.declare.probe_kinds import KINDS
from netbpf.declare.probes import (
    CgroupAddr,
    CgroupSock,
    Fentry,
    Fexit,
    Iterator,
    Kprobe,
    Probe,
    RawTracepoint,
    Tracepoint,
    Uprobe,
)
from netbpf.errors import AttachRefused, NetbpfError, Unsupported
from netbpf.kernel.select import Selection
from netbpf.system import syscalls
from tests.unit.test_object import EXIT, MOVE, load_map

u32, u64 = ctypes.c_uint32, ctypes.c_uint64


class ProgramLoad(ctypes.Structure):
    """The part of union bpf_attr for BPF_PROG_LOAD, with the layout of a C compiler."""

    _fields_ = (
        ("prog_type", u32), ("insn_cnt", u32), ("insns", u64), ("license", u64),
        ("log_level", u32), ("log_size", u32), ("log_buf", u64), ("kern_version", u32),
        ("prog_flags", u32), ("prog_name", ctypes.c_char * 16), ("prog_ifindex", u32),
        ("expected_attach_type", u32), ("prog_btf_fd", u32), ("func_info_rec_size", u32),
        ("func_info", u64), ("func_info_cnt", u32), ("line_info_rec_size", u32),
        ("line_info", u64), ("line_info_cnt", u32), ("attach_btf_id", u32),
    )  # fmt: skip


class MapCreate(ctypes.Structure):
    """The part of union bpf_attr for BPF_MAP_CREATE."""

    _fields_ = (
        ("map_type", u32), ("key_size", u32), ("value_size", u32), ("max_entries", u32),
        ("map_flags", u32), ("inner_map_fd", u32), ("numa_node", u32),
        ("map_name", ctypes.c_char * 16),
    )  # fmt: skip


class Kernel:
    """A fake bpf(2): records the calls, and returns the configured errors."""

    def __init__(self) -> None:
        self.maps: list[MapCreate] = []
        self.programs: list[tuple[ProgramLoad, bytes]] = []
        self.errors: list[int] = []  # of the next loads; 0 for success
        self.map_errors: list[int] = []
        self.log = b""

    def bpf(self, command: int, attributes: bytes) -> int:
        if command == 0:
            return self._map(MapCreate.from_buffer_copy(attributes))
        assert command == 5
        assert len(attributes) == ctypes.sizeof(ProgramLoad)
        return self._program(ProgramLoad.from_buffer_copy(attributes))

    def _map(self, asked: MapCreate) -> int:
        refuse(self.map_errors)
        self.maps.append(asked)
        return os.open(os.devnull, os.O_RDONLY)

    def _program(self, asked: ProgramLoad) -> int:
        assert ctypes.string_at(asked.license) == b"GPL"
        if asked.log_level:
            ctypes.memmove(asked.log_buf, self.log, len(self.log))
            assert asked.log_size > len(self.log)
        refuse(self.errors)
        self.programs.append((asked, ctypes.string_at(asked.insns, asked.insn_cnt * 8)))
        return os.open(os.devnull, os.O_RDONLY)


def refuse(errors: list[int]) -> None:
    code = errors.pop(0) if errors else 0
    if code:
        raise OSError(code, os.strerror(code))


@pytest.fixture
def kernel(monkeypatch):
    """The fake kernel instead of the real one."""
    kernel = Kernel()
    for module in (loader, syscalls):
        monkeypatch.setattr(module, "bpf", kernel.bpf)
    return kernel


@pytest.fixture
def open_files():
    """Return the number of open descriptors."""
    return lambda: len(os.listdir("/proc/self/fd"))


def entry(function: str = "state_rawtp", kind: str = "rawtp", target: str = "") -> Entry:
    return Entry("state", function, function, KINDS[kind], target)


def found(name: str) -> int:
    return {"tcp_connect": 4711, "bpf_iter_task_file": 815}.get(name, 0)


# --- what is asked --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alternative", "targets", "kinds", "target"),
    [
        (RawTracepoint("t"), ("t",), (17, 0), ""),
        (Tracepoint("s:t"), ("s:t",), (5, 0), ""),
        (Kprobe("f"), ("f",), (2, 42), ""),
        (Uprobe("f"), ("f",), (2, 48), ""),
        (Fentry("f"), ("f",), (26, 24), "f"),
        (Fexit("f"), ("f",), (26, 25), "f"),
        (Iterator("task_file"), ("task_file",), (26, 28), "bpf_iter_task_file"),
        (CgroupSock("sock_create"), ("sock_create",), (9, 2), ""),
        (CgroupSock("sock_release"), ("sock_release",), (9, 34), ""),
        (CgroupAddr("sendmsg6"), ("sendmsg6",), (18, 15), ""),
    ],
)
def test_program_types_are_the_kernels(alternative, targets, kinds, target):
    selection = Selection(Probe("see", alternative), alternative, targets, ())
    (made,) = entries_of([selection, Selection(Probe("none", optional=True), None, (), ())])
    assert (made.kind.program_type, made.attach_type, made.target) == (*kinds, target)
    assert made.function == made.program == f"see_{alternative.kind}"


def test_fentry_of_two_functions_is_two_programs_of_one_c_function():
    alternative = Fentry("f", "g", every=True)
    first, second = entries_of([Selection(Probe("see", alternative), alternative, ("f", "g"), ())])
    assert first.function == second.function == "see_fentry"
    assert (first.program, first.target) == ("see_fentry", "f")
    assert (second.program, second.target) == ("see_fentry:g", "g")


def test_attributes_of_a_program_have_the_kernels_layout(kernel):
    code = MOVE + EXIT
    bpf_object = BpfObject((), {"a_name_that_is_too_long": code})
    made = entry("a_name_that_is_too_long", "fexit", "tcp_connect")
    loader.load(bpf_object, [made], [], found)
    ((asked, instructions),) = kernel.programs
    assert instructions == code
    assert (asked.prog_type, asked.expected_attach_type, asked.attach_btf_id) == (26, 25, 4711)
    assert asked.prog_name == b"a_name_that_is_"
    unused = ("log_level", "log_size", "log_buf", "kern_version", "prog_flags", "prog_ifindex")
    types = ("prog_btf_fd", "func_info", "func_info_cnt", "line_info", "line_info_cnt")
    for name in (*unused, *types):
        assert getattr(asked, name) == 0, name


def test_attributes_of_a_map_match_its_spec(kernel):
    shape = MapSpec("calls_by_process", 10, 24, 56, 8192, 2)
    loader.load(BpfObject((shape,), {}), [], ["calls_by_process"], found)
    (asked,) = kernel.maps
    told = (asked.map_type, asked.key_size, asked.value_size, asked.max_entries, asked.map_flags)
    assert told == shape[1:]
    assert asked.map_name == b"calls_by_proces"
    assert (asked.inner_map_fd, asked.numa_node) == (0, 0)


def test_only_used_maps_are_created_and_programs_get_their_descriptors(kernel, open_files):
    before = open_files()
    shapes = [MapSpec(name, 1, 4, 8, 16, 0) for name in ("spare", "inner", "losses", "events")]
    bpf_object = BpfObject(
        tuple(shapes), {"state_rawtp": load_map(1) + load_map(2) + EXIT, "other": EXIT}
    )
    loaded = loader.load(bpf_object, [entry()], ["losses", "events"], found)
    assert [asked.map_name for asked in kernel.maps] == [b"inner", b"losses", b"events"]
    assert set(loaded.maps) == {"losses", "events"}
    ((_, instructions),) = kernel.programs
    second = load_map(loaded.maps["losses"])
    assert instructions[16:] == second + EXIT
    assert instructions[:16] not in (second, load_map(loaded.maps["events"]))
    # The program keeps the map that only it uses.
    assert open_files() == before + 3
    for descriptor in (*loaded.maps.values(), *loaded.programs.values()):
        os.close(descriptor)


# --- uprobes --------------------------------------------------------------------------------------

SWITCHES = {"bpf_preempt_disable": 111, "bpf_preempt_enable": 222}
PLAIN = MOVE + EXIT
ALONE = preemption.without_preemption(PLAIN, preemption.Switches(111, 222))


def found_with_switches(name: str) -> int:
    return SWITCHES.get(name, 0) or found(name)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("uprobe", ALONE), ("kprobe", PLAIN), ("rawtp", PLAIN), ("tp", PLAIN), ("fentry", PLAIN)],
)
def test_uprobe_programs_disable_preemption(kernel, kind, expected):
    made = entry("see", kind, "tcp_connect" if kind == "fentry" else "")
    loader.load(BpfObject((), {"see": PLAIN}), [made], [], found_with_switches)
    ((_, instructions),) = kernel.programs
    assert instructions == expected


def test_kernel_without_kfunc_calls_gets_the_unchanged_program(kernel):
    kernel.errors = [524]  # ENOTSUPP, a kernel-internal code: no JIT compiler
    loader.load(BpfObject((), {"see": PLAIN}), [entry("see", "uprobe")], [], found_with_switches)
    ((_, instructions),) = kernel.programs
    assert instructions == PLAIN


# --- refusals -------------------------------------------------------------------------------------

IMAGE = BpfObject((MapSpec("losses", 6, 4, 8, 4, 0),), {"state_rawtp": EXIT, "accept_tp": EXIT})


def test_error_of_a_refused_program_has_the_reason_and_the_log(kernel, open_files):
    before = open_files()
    kernel.errors = [0, errno.EINVAL, errno.EINVAL]
    kernel.log = b"0: (95) exit\nR0 !read_ok\n"
    second = Entry("accept", "accept_tp", "accept_tp", KINDS["tp"], "")
    with pytest.raises(AttachRefused) as caught:
        loader.load(IMAGE, [entry(), second], ["losses"], found)
    assert caught.value.probe == "accept"
    assert caught.value.message == "the kernel refused to load it (Invalid argument)"
    assert caught.value.detail == "0: (95) exit\nR0 !read_ok"
    assert open_files() == before  # everything created is closed


def test_end_of_a_long_log_is_shown(kernel):
    kernel.errors, kernel.log = [errno.E2BIG] * 2, b"x" * (1 << 20) + b"the reason\n"
    with pytest.raises(AttachRefused) as caught:
        loader.load(IMAGE, [entry()], [], found)
    assert caught.value.detail.endswith("xthe reason")
    assert len(caught.value.detail) < 1 << 17


def test_function_missing_in_btf_is_an_error(kernel):
    def none(_):
        raise Unsupported("this kernel has no BTF")

    for find in (found, none):
        with pytest.raises(AttachRefused, match="do not have 'gone'"):
            loader.load(IMAGE, [entry(kind="fentry", target="gone")], [], find)
    assert kernel.programs == []


def test_error_of_a_refused_map_names_it(kernel, open_files):
    before = open_files()
    kernel.map_errors = [errno.ENOMEM]
    with pytest.raises(NetbpfError, match=r"'losses' \(Cannot allocate memory\)") as caught:
        loader.load(IMAGE, [entry()], ["losses"], found)
    assert "--map-entries" in caught.value.hint
    assert open_files() == before


def test_interrupted_verifier_is_retried(kernel):
    kernel.errors = [errno.EAGAIN] * 3
    assert loader.load(IMAGE, [entry()], [], found).programs
    kernel.errors = [errno.EAGAIN] * 6
    with pytest.raises(AttachRefused, match="temporarily"):
        loader.load(IMAGE, [entry()], [], found)


# --- RLIMIT_MEMLOCK -------------------------------------------------------------------------------


class Limits:
    """A fake RLIMIT_MEMLOCK; only with `privileged` the hard limit can be raised."""

    def __init__(self, soft: int, hard: int, privileged: bool) -> None:
        self.now, self.privileged, self.asked = (soft, hard), privileged, 0

    def get(self, _: int) -> tuple[int, int]:
        return self.now

    def set(self, _: int, limits: tuple[int, int]) -> None:
        self.asked += 1
        higher = limits[1] == resource.RLIM_INFINITY != self.now[1]
        if higher and not self.privileged:
            raise ValueError("not allowed to raise maximum limit")
        self.now = limits


@pytest.fixture
def limited(monkeypatch):
    """Set the fake limit."""

    def set_up(*limits):
        pretended = Limits(*limits)
        monkeypatch.setattr(loader.resource, "getrlimit", pretended.get)
        monkeypatch.setattr(loader.resource, "setrlimit", pretended.set)
        return pretended

    return set_up


INFINITE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "raised"),
    [((64, 64, True), INFINITE), ((64, 128, False), 128), ((64, INFINITE, False), INFINITE)],
)
def test_memlock_limit_is_raised_if_it_may_be_the_reason(kernel, limited, limits, raised):
    limit = limited(*limits)
    kernel.map_errors = [errno.EPERM]
    assert loader.load(IMAGE, [entry()], ["losses"], found).maps
    assert limit.now[0] == raised
    limit = limited(*limits)
    kernel.errors = [errno.EPERM]
    assert loader.load(IMAGE, [entry()], [], found).programs
    assert limit.now[0] == raised


@pytest.mark.parametrize("limits", [(64, 64, False), (INFINITE, INFINITE, True)])
def test_error_is_the_kernels_if_the_limit_cannot_be_raised(kernel, limited, limits):
    limited(*limits)
    kernel.errors = [errno.EPERM] * 3
    with pytest.raises(AttachRefused, match="Operation not permitted"):
        loader.load(IMAGE, [entry()], [], found)


def test_limit_is_unchanged_if_it_is_not_the_reason(kernel, limited):
    limit = limited(64, 64, True)
    loader.load(IMAGE, [entry()], ["losses"], found)
    kernel.errors = [errno.EACCES] * 2  # from the verifier
    with pytest.raises(AttachRefused, match="Permission denied"):
        loader.load(IMAGE, [entry()], [], found)
    assert not limit.asked and limit.now == (64, 64)
