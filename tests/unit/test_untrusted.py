"""Untrusted files: resolved below their root, opened without blocking, read within one budget."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import time
from pathlib import Path

import pytest

from netbpf.binaries import elf
from netbpf.binaries.binary import identity_of, looks_like_go, read_libc, read_program
from netbpf.binaries.elf import ElfFile
from netbpf.system import untrusted
from netbpf.system.untrusted import Budget, LimitExceeded, Limits, UnreadableBinary, open_regular
from tests.unit import hostile
from tests.unit.test_elf import make_elf, symbol
from tests.unit.test_golang import binary as go_binary
from tests.unit.test_golang import code

LIBC = make_elf(b"\0getaddrinfo\0", [symbol(1)])
# Far longer than any of these takes with its budget, far shorter than without.
TIME_LIMIT = 8.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the root directory of "process 7": tmp_path/proc/7/root is a link to it."""
    directory = tmp_path / "box"
    directory.mkdir()
    (tmp_path / "proc" / "7").mkdir(parents=True)
    (tmp_path / "proc" / "7" / "root").symlink_to(directory)
    (tmp_path / "secret").write_text("ours")
    (directory / "inside").write_text("theirs")
    return tmp_path / "proc" / "7" / "root"


def content(path: Path) -> str:
    with open_regular(str(path)) as file:
        return file.read().decode()


# --- resolving ----------------------------------------------------------------------------------


def test_absolute_link_ends_below_the_root(root, tmp_path):
    (root / "link").symlink_to("/inside")
    (root / "out").symlink_to(tmp_path / "secret")
    assert content(root / "link") == "theirs"
    with pytest.raises(UnreadableBinary, match="no such file"):
        open_regular(str(root / "out"))
    assert identity_of(str(root / "out")) is None


@pytest.mark.parametrize(
    "path", ["../secret", "../../../../../../../../etc/passwd", "up/../secret"]
)
def test_dots_do_not_lead_out_of_the_root(root, path):
    (root / "up").symlink_to("..")
    with pytest.raises(UnreadableBinary, match="no such file"):
        open_regular(f"{root}/{path}")
    (root / "link").symlink_to(path)
    assert identity_of(f"{root}/link") is None


def test_directory_that_is_a_link_stays_below_the_root(root, tmp_path):
    outside = tmp_path / "lib"
    outside.mkdir()
    (outside / "libc.so.6").write_text("ours")
    (root / "lib").symlink_to(outside)
    assert identity_of(f"{root}/lib/libc.so.6") is None


def test_links_of_proc_to_open_files_are_not_followed(root, tmp_path):
    opened = os.open(tmp_path / "secret", os.O_RDONLY)
    try:
        found = untrusted.open_inside
        there = os.open("/", os.O_PATH)
        with pytest.raises(OSError, match="symbolic links"):
            found(there, f"/proc/self/fd/{opened}", os.O_PATH)
        os.close(there)
    finally:
        os.close(opened)


def test_links_in_a_circle_are_refused(root):
    (root / "a").symlink_to("/b")
    (root / "b").symlink_to("/a")
    with pytest.raises(UnreadableBinary, match="symbolic links"):
        open_regular(str(root / "a"))


# --- opening ------------------------------------------------------------------------------------


def test_fifo_and_device_are_refused_and_never_opened(root, monkeypatch):
    os.mkfifo(root / "fifo")
    opened = []
    real = os.open

    def noted(path, flags, *more, **options):
        opened.append((path, flags & os.O_PATH))
        return real(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", noted)
    for path in (root / "fifo", "/dev/null", root):
        with pytest.raises(UnreadableBinary, match="not a regular file"):
            open_regular(str(path))
    assert opened and all(only_path for _, only_path in opened)


@pytest.mark.parametrize("path", ["/proc/self/maps", "/sys/kernel/notes"])
def test_kernel_files_are_not_regular_files(path):
    if not os.path.exists(path):
        pytest.skip(f"this kernel has no {path}")
    assert stat.S_ISREG(os.stat(path).st_mode)
    with pytest.raises(UnreadableBinary, match="a kernel file"):
        open_regular(path)


def test_lease_on_a_file_does_not_block(tmp_path):
    path = tmp_path / "libc.so.6"
    path.write_bytes(LIBC)
    began, ours = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGIO, signal.SIG_IGN)
            file = os.open(path, os.O_RDWR)
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            os.write(ours, b"x")
            time.sleep(60)
        finally:
            os._exit(0)
    try:
        os.close(ours)
        assert os.read(began, 1), "the test itself failed: no lease on this file system"
        start = time.monotonic()
        with pytest.raises(UnreadableBinary, match="unavailable"):
            open_regular(str(path))
        assert time.monotonic() - start < TIME_LIMIT  # /proc/sys/fs/lease-break-time is 45 s
    finally:
        os.close(began)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# --- reading within a budget --------------------------------------------------------------------


def test_budget_of_bytes_is_one_for_all_reads():
    budget = Budget("x", Limits(100, 60))
    budget.spend(60)
    budget.spend(40)
    with pytest.raises(LimitExceeded, match="to read"):
        budget.spend(1)


def test_budget_of_time_ends_a_loop():
    budget = Budget("x", Limits(100, 0.02))
    with pytest.raises(LimitExceeded, match="of work"):
        for _ in range(5_000_000):
            budget.step()


def given_up(path: Path, is_program: bool = False, **more) -> str:
    start = time.monotonic()
    identity = identity_of(str(path))
    if is_program:
        file = read_program(identity, str(path), looks_like_go(str(path)), **more)
    else:
        file = read_libc(identity, str(path), "glibc", **more)
    assert time.monotonic() - start < TIME_LIMIT
    assert file.binary is None and file.unfinished and file.lost
    assert str(path) in file.reason
    return file.reason


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (hostile.hollow, "more than"),
        (hostile.repeated, "too many"),
        (hostile.repeated_symbols, "s of work"),
    ],
)
def test_endless_tables_are_given_up(tmp_path, make, why):
    assert why in given_up(make(tmp_path / "libc.so.6"))


@pytest.mark.parametrize("make", [hostile.one_table, hostile.hollow_names])
def test_one_large_table_is_not_held_in_memory(tmp_path, make):
    import tracemalloc

    path = make(tmp_path / "libc.so.6")
    tracemalloc.start()
    try:
        read_libc(identity_of(str(path)), str(path), "glibc")
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_sections_that_share_an_endless_name_are_read_in_time(tmp_path):
    path = hostile.endless_names(tmp_path / "libc.so.6")
    file = read_libc(identity_of(str(path)), str(path), "glibc")
    assert file.reason == "glibc: no symbols"


def test_go_tables_that_prove_no_function_anywhere_are_given_up(tmp_path):
    path = tmp_path / "program"
    # A text with a stack check every 16 bytes, and steps that never end.
    text, _ = code()
    steps = [(8 + 8 * (n & 1), 1) for n in range(3000)]
    data = bytearray(go_binary(text_start=0, made=(text + bytes(3000), steps)))
    check = b"\x49\x3b\x66\x10" + bytes(12)
    data[0x1000:0x2000] = check * 256
    path.write_bytes(data)
    assert "given up" in given_up(path, is_program=True, limits=Limits(64 << 20, 0.05))


def test_function_with_too_many_returns_gets_no_probes_on_them(tmp_path):
    path = tmp_path / "libc.so.6"
    path.write_bytes(hostile.many_returns())
    file = read_libc(identity_of(str(path)), str(path), "glibc")
    assert file.binary
    assert file.binary.functions["getaddrinfo"].size == 0x4000
    assert file.binary.functions["getaddrinfo"].returns == ()


def test_file_truncated_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "libc.so.6"
    path.write_bytes(LIBC)
    with ElfFile(str(path)) as file:
        os.truncate(path, 0x300)
        with pytest.raises(UnreadableBinary, match="truncated"):
            file.functions(["getaddrinfo"])


def test_file_that_was_replaced_in_between_is_rejected(tmp_path):
    path = tmp_path / "libc.so.6"
    path.write_bytes(LIBC)
    identity = identity_of(str(path))
    path.unlink()
    path.write_bytes(LIBC + b"more")
    file = read_libc(identity, str(path), "glibc")
    assert file.binary is None and file.lost
    assert "another file" in file.reason


def test_ordinary_files_fit_into_the_first_budget(tmp_path):
    path = tmp_path / "libc.so.6"
    path.write_bytes(LIBC)
    assert read_libc(identity_of(str(path)), str(path), "glibc", Limits(1 << 20, 0.15)).binary
    assert elf.MAX_TABLE < untrusted.WHOLE.size
