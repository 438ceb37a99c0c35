"""User-space probes: the system call for a link of several offsets, and the fallbacks."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest

from netbpf.binaries.binary import Binary
from netbpf.binaries.elf import Function
from netbpf.bpf import attach
from netbpf.run import probe_points

u32, u64 = ctypes.c_uint32, ctypes.c_uint64


class LinkCreate(ctypes.Structure):
    """The part of union bpf_attr that BPF_LINK_CREATE uses for uprobe_multi."""

    _fields_ = (
        ("prog_fd", u32), ("target_fd", u32), ("attach_type", u32), ("flags", u32),
        ("path", u64), ("offsets", u64), ("ref_ctr_offsets", u64), ("cookies", u64),
        ("cnt", u32), ("multi_flags", u32), ("pid", u32),
    )  # fmt: skip


def refused(number: int) -> OSError:
    return OSError(number, os.strerror(number))


# --- the link -------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_return", [False, True])
def test_link_is_created_with_the_attributes_that_the_kernel_expects(monkeypatch, at_return):
    asked = []

    def bpf(command, attributes):
        made = LinkCreate.from_buffer_copy(attributes)
        offsets = list((u64 * made.cnt).from_address(made.offsets))
        asked.append((command, made, ctypes.string_at(made.path), offsets))
        return 7

    monkeypatch.setattr(attach, "bpf", bpf)
    assert attach.attach_places(5, "/proc/self/fd/9", [0x1000, 1 << 33], at_return) == 7
    ((command, made, path, offsets),) = asked
    assert (command, path, offsets) == (28, b"/proc/self/fd/9", [0x1000, 1 << 33])
    assert (made.prog_fd, made.attach_type, made.cnt) == (5, 48, 2)
    assert made.multi_flags == int(at_return)  # BPF_F_UPROBE_MULTI_RETURN
    for name in ("target_fd", "flags", "ref_ctr_offsets", "cookies", "pid"):
        assert getattr(made, name) == 0, name


def test_without_links_an_offset_is_probed_by_an_event(monkeypatch):
    def bpf(command, attributes):
        raise refused(errno.EINVAL)

    events = []
    monkeypatch.setattr(attach, "bpf", bpf)
    monkeypatch.setattr(attach, "_probe_event", lambda *asked: events.append(asked) or 8)
    assert attach.attach_user(5, "/lib/libc.so.6", 0x1000, True) == 8
    assert events == [(5, "uprobe", True, "/lib/libc.so.6", 0x1000)]


@pytest.mark.parametrize(
    ("load", "link", "event", "denied"),
    [
        (0, errno.EBADF, errno.EACCES, False),  # since 6.6
        (0, errno.EINVAL, errno.EACCES, True),  # before
        (0, errno.EINVAL, errno.ENOENT, False),
        (errno.EPERM, errno.EBADF, errno.EACCES, True),  # the program of a link takes CAP_BPF
    ],
)
def test_probing_is_denied_if_neither_link_nor_event_is_allowed(
    monkeypatch, load, link, event, denied
):
    def load_program(kind, code, attach):
        assert (kind, attach) == (2, (48, 0))
        if load:
            raise refused(load)
        return os.open(os.devnull, os.O_RDONLY)

    def fail(number):
        raise refused(number)

    monkeypatch.setattr(attach, "load_program", load_program)
    monkeypatch.setattr(attach, "bpf", lambda *_: fail(link))
    monkeypatch.setattr(attach, "_probe_event", lambda *_: fail(event))
    before = len(os.listdir("/proc/self/fd"))
    assert attach.probing_denied() is denied
    assert len(os.listdir("/proc/self/fd")) == before


# --- a file ---------------------------------------------------------------------------------------


class Kernel:
    """Fake links and events; those at an offset in `bad` are refused."""

    def __init__(self) -> None:
        self.links: list[tuple[int, list[int], bool]] = []
        self.single: list[tuple[int, int, bool]] = []
        self.bad: set[int] = set()
        self.takes_links = True

    def attach_places(self, program, path, offsets, at_return):
        assert os.path.realpath(path).endswith("libc.so.6")
        if not self.takes_links or self.bad & set(offsets):
            raise refused(errno.EINVAL)
        self.links.append((program, offsets, at_return))
        return os.open(os.devnull, os.O_RDONLY)

    def attach_user(self, program, path, offset, at_return):
        if offset in self.bad:
            raise refused(errno.EINVAL)
        self.single.append((program, offset, at_return))
        return os.open(os.devnull, os.O_RDONLY)


class WorkerEnd:
    """Records what the other end would receive."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.links = 0
        self.waits = 0

    def extend_deadline(self) -> None:
        self.waits += 1

    def send(self, message, descriptors=()):
        self.messages += [message["verbose"]] if "verbose" in message else []
        self.links += len(descriptors)


TARGETS = {
    "getaddrinfo": (1, False),
    "gethostbyname": (2, False),
    "getaddrinfo RET": (3, False),
    "gethostbyname RET": (3, False),
    "gethostbyname()": (4, True),
    "gethostbyaddr": (5, False),
    "gethostbyaddr()": (4, True),
}


@pytest.fixture
def kernel(monkeypatch):
    """The fake kernel."""
    kernel = Kernel()
    monkeypatch.setattr(probe_points, "attach_places", kernel.attach_places)
    monkeypatch.setattr(probe_points, "attach_user", kernel.attach_user)
    return kernel


@pytest.fixture
def libc(tmp_path):
    """A libc with three functions; the returns of one are known."""
    path = tmp_path / "libc.so.6"
    path.write_bytes(b"")
    found = path.stat()
    functions = (
        Function("getaddrinfo", 100, 0, 50, returns=(110, 120, 130)),
        Function("gethostbyname", 200, 0, 50),
        Function("gethostbyaddr", 300, 0, 50),
    )
    named = {function.name: function for function in functions}
    return Binary(found.st_dev, found.st_ino, "glibc", named, paths=[str(path)])


def attach_all(libc: Binary) -> tuple[str, WorkerEnd]:
    worker, before = WorkerEnd(), len(os.listdir("/proc/self/fd"))
    text = probe_points.attach_all(worker, TARGETS, libc, libc.paths[0])
    assert len(os.listdir("/proc/self/fd")) == before
    return text, worker


def test_file_has_one_link_for_each_program(kernel, libc):
    text, worker = attach_all(libc)
    assert not text and not kernel.single
    # Returns first: a call of which only the entry is seen would be pending for ever.
    assert kernel.links == [
        (3, [110, 120, 130], False),
        (1, [100], False),
        (4, [200, 300], True),
        (2, [200], False),
        (5, [300], False),
    ]
    assert worker.links == 5
    assert [line.split()[0] for line in worker.messages] == ["gethostbyname()", "gethostbyaddr()"]


def test_refused_offset_is_named_and_the_others_are_probed(kernel, libc):
    kernel.bad = {120, 300}
    text, worker = attach_all(libc)
    names = "getaddrinfo RET, gethostbyaddr(), gethostbyaddr"
    assert text == f"cannot be probed at {names}: Invalid argument"
    assert kernel.links == [(1, [100], False), (2, [200], False)]
    assert kernel.single == [(3, 110, False), (3, 130, False), (4, 200, True)]
    assert worker.links == 5
    assert [line.split()[0] for line in worker.messages] == ["gethostbyname()"]


def test_without_links_each_offset_is_probed_separately(kernel, libc):
    kernel.takes_links = False
    text, worker = attach_all(libc)
    assert not text and not kernel.links
    assert [offset for _, offset, _ in kernel.single] == [110, 120, 130, 100, 200, 300, 200, 300]
    assert worker.links == 8
    assert worker.waits >= 8  # each may have to wait until another tool's probe is gone
