"""A fake proc tree: the libc of each process, and which processes are covered or why not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netbpf.binaries import mappings, scan
from netbpf.binaries.binary import looks_like_go
from netbpf.system.untrusted import Limits
from tests.unit import hostile
from tests.unit.test_elf import make_elf, symbol
from tests.unit.test_golang import binary as go_binary

LIBC = make_elf(b"\0getaddrinfo\0gethostbyname_r\0", [symbol(1), symbol(13)])
STATIC = make_elf(b"\0gethostbyname\0", [symbol(1)])
INTERPRETED = make_elf(b"\0main\0", [symbol(1)])
INTERPRETED = INTERPRETED[:120] + (3).to_bytes(4, "little") + INTERPRETED[124:]  # 2nd: PT_INTERP


class Proc:
    """A proc tree under a directory, with the root directories of processes next to it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "proc"
        self.path.mkdir()
        self.files = directory / "files"
        self.files.mkdir()

    def file(self, name: str, data: bytes, root: str = "") -> Path:
        path = self.files / (root + name).lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(data)
        return path

    def process(self, pid: int, exe: Path | None, maps=(), root: str = "", perms="r-xp") -> None:
        """Add a process; `maps` holds (name, file) pairs."""
        directory = self.path / str(pid)
        directory.mkdir()
        (directory / "comm").write_text(f"name{pid}\n")
        (directory / "root").symlink_to(self.files / root.lstrip("/") if root else "/")
        if exe:
            (directory / "exe").symlink_to(exe)
        (directory / "map_files").mkdir()
        lines = [
            "5000-6000 r-xp 00000000 3f:01 9  /usr/bin/name",
            "7ff0-7ff1 rw-p 0 00:00 0 [stack]",
        ]
        for number, (name, file) in enumerate(maps):
            span = f"{0x7000 + number:x}000-{0x7001 + number:x}000"
            lines.append(f"{span} {perms} 00026000 3f:01 {file.stat().st_ino}   {name}")
            (directory / "map_files" / span).symlink_to(file)
        (directory / "maps").write_text("\n".join(lines) + "\n")

    def scan(self) -> scan.Coverage:
        return scan.scan(str(self.path), known=False)


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


@pytest.fixture
def program(proc: Proc) -> Path:
    return proc.file("/bin/program", INTERPRETED)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("/usr/lib/x86_64-linux-gnu/libc.so.6", "glibc"),
        ("/lib/libc-2.31.so", "glibc"),
        ("/lib/ld-musl-x86_64.so.1", "musl"),
        ("/lib/libc.musl-x86_64.so.1", "musl"),
        ("/usr/lib/libc.so", "musl"),
    ],
)
def test_each_name_of_a_libc(proc, program, name, kind):
    libc = proc.file(name, LIBC)
    proc.process(7, program, [(str(libc), libc)])
    (found,) = proc.scan().binaries
    assert (found.kind, found.path, found.pids) == (kind, str(libc), {7})
    assert set(found.functions) == {"getaddrinfo", "gethostbyname_r"}
    assert (found.device, found.inode) == (libc.stat().st_dev, libc.stat().st_ino)


@pytest.mark.parametrize("name", ["/lib/libcrypto.so.3", "/lib/libc++.so.1", "/lib/libc.so.6.bak"])
def test_other_libraries_are_not_libc(proc, program, name):
    other = proc.file(name, LIBC)
    proc.process(7, program, [(str(other), other)], root="/without-known-paths")
    coverage = proc.scan()
    assert coverage.binaries == []
    assert coverage.uncovered[7].reason == "no libc mapped"


def test_libc_mapped_as_data_does_not_count(proc, program):
    libc = proc.file("/lib/libc.so.6", LIBC)
    proc.process(7, program, [(str(libc), libc)], perms="r--p")
    assert proc.scan().covered == 0


def test_processes_with_one_file_are_one_binary(proc, program):
    libc = proc.file("/lib/libc.so.6", LIBC)
    for pid in (5, 6, 7):
        proc.process(pid, program, [(str(libc), libc)])
    coverage = proc.scan()
    assert [found.pids for found in coverage.binaries] == [{5, 6, 7}]
    assert coverage.covered == 3


def test_container_is_reached_through_its_root(proc, program):
    inside = proc.file("/lib/libc.so.6", LIBC, root="/box")
    proc.process(8, program, [("/lib/libc.so.6", inside)], root="/box")
    (found,) = proc.scan().binaries
    assert found.path == f"{proc.path}/8/root/lib/libc.so.6"
    assert found.inode == inside.stat().st_ino


def test_deleted_libc_is_reached_through_the_mapping(proc, program):
    libc = proc.file("/gone/libc.so.6", LIBC)
    proc.process(9, program, [(f"{libc} (deleted)", libc)])
    (found,) = proc.scan().binaries
    assert "/9/map_files/" in found.path


def test_another_file_of_that_name_is_not_the_mapped_one(proc, program):
    old, new = proc.file("/old", LIBC), proc.file("/lib/libc.so.6", LIBC)
    proc.process(9, program, [(str(new), old)])
    (found,) = proc.scan().binaries
    assert found.inode == old.stat().st_ino


def test_host_file_with_the_containers_inode_number_is_not_its_libc(proc, program):
    own, inside = proc.file("/lib/libc.so.6", LIBC), proc.file("/box-libc", LIBC)
    proc.process(9, program, [(str(own), inside)], root="/box")
    maps = proc.path / "9" / "maps"
    maps.write_text(maps.read_text().replace(str(inside.stat().st_ino), str(own.stat().st_ino)))
    (found,) = proc.scan().binaries
    assert found.inode == inside.stat().st_ino


def test_chrooted_process_is_reached_by_the_host_path(proc, program):
    libc = proc.file("/chroot/lib/libc.so.6", LIBC)
    proc.process(9, program, [(str(libc), libc)], root="/chroot")
    device = libc.stat().st_dev
    maps = proc.path / "9" / "maps"
    number = f"{os.major(device):02x}:{os.minor(device):02x}"
    maps.write_text(maps.read_text().replace(" 3f:01 ", f" {number} "))
    (found,) = proc.scan().binaries
    assert found.path == str(libc)


def test_path_of_an_ended_process_is_replaced_by_a_second_one(proc, program):
    inside = proc.file("/lib/libc.so.6", LIBC, root="/box")
    for pid in (8, 9):
        proc.process(pid, program, [("/lib/libc.so.6", inside)], root="/box")
    (found,) = proc.scan().binaries
    (proc.path / "8" / "root").unlink()
    assert found.path == f"{proc.path}/9/root/lib/libc.so.6"
    (proc.path / "9" / "root").unlink()
    assert found.path is None


def test_static_program_with_symbols(proc):
    static = proc.file("/bin/static", STATIC)
    proc.process(4, static)
    (found,) = proc.scan().binaries
    assert (found.kind, set(found.functions), found.path) == (
        "static",
        {"gethostbyname"},
        str(static),
    )


def test_reasons_of_uncovered_processes(proc, program):
    proc.process(1, proc.file("/bin/stripped", make_elf(b"\0", [], kind=11)))
    proc.process(2, proc.file("/bin/none", make_elf(b"\0main\0", [symbol(1)])))
    proc.process(3, proc.file("/bin/script", b"#!/bin/sh\n"))
    bad = proc.file("/lib/libc.so.6", LIBC[:300])
    proc.process(4, program, [(str(bad), bad)])
    arm = bytearray(STATIC)
    arm[18] = 243  # RISC-V: not supported
    proc.process(5, proc.file("/bin/foreign", bytes(arm)))
    reasons = {pid: gap.reason for pid, gap in proc.scan().uncovered.items()}
    assert reasons[1] == "static, stripped"
    assert reasons[2] == "static, without lookup functions"
    assert reasons[3] == "not an ELF file"
    assert reasons[4].startswith("glibc: ")
    if os.uname().machine in ("x86_64", "aarch64"):
        assert "RISCV" in reasons[5]


def test_go_program_is_recognised_and_read(proc):
    path = proc.file("/bin/go", go_binary())
    proc.process(3, path)
    if os.uname().machine != "x86_64":
        pytest.skip("needs an x86-64 machine: the synthetic Go program is for it")
    (found,) = proc.scan().binaries
    assert (found.kind, found.path) == ("go", str(path))
    assert [function.name for function in found.go.lookups] == ["net.(*Resolver).lookupIPAddr"]


def test_cgo_program_has_libc_and_its_own_lookups(proc):
    if os.uname().machine != "x86_64":
        pytest.skip("needs an x86-64 machine: the synthetic Go program is for it")
    libc = proc.file("/lib/libc.so.6", LIBC)
    proc.process(3, proc.file("/bin/go", go_binary()), [(str(libc), libc)])
    coverage = proc.scan()
    assert sorted(found.kind for found in coverage.binaries) == ["glibc", "go"]
    assert coverage.covered == 1


def test_go_program_that_cannot_be_read_has_a_reason(proc):
    proc.process(3, proc.file("/bin/go", go_binary((1, 16), go="go1.16.7")))
    gap = proc.scan().uncovered[3]
    assert gap.name == "name3"
    assert "go1.16.7" in gap.reason or "Go" in gap.reason


def test_kernel_threads_and_vanished_processes_are_not_counted(proc, program):
    proc.process(2, None)
    (proc.path / "99").mkdir()
    coverage = proc.scan()
    coverage.rescan(12345)
    assert (coverage.covered, coverage.uncovered) == (0, {})


def test_rescan_returns_only_new_files(proc, program):
    libc = proc.file("/lib/libc.so.6", LIBC)
    coverage = proc.scan()
    proc.process(5, program, [(str(libc), libc)])
    assert [found.kind for found in coverage.rescan(5)] == ["glibc"]
    proc.process(6, program, [(str(libc), libc)])
    assert coverage.rescan(6) == []
    assert coverage.rescan(6) == []
    assert coverage.covered == 2


def test_libc_is_known_before_a_new_process_has_mapped_it(proc, program):
    inside = proc.file("/lib/ld-musl-x86_64.so.1", LIBC, root="/box")
    coverage = proc.scan()
    proc.process(5, program, root="/box")
    (found,) = coverage.rescan(5)
    assert (found.kind, found.inode, found.pids) == ("musl", inside.stat().st_ino, set())


def test_forget_drops_a_process(proc, program):
    libc = proc.file("/lib/libc.so.6", LIBC)
    proc.process(5, program, [(str(libc), libc)])
    coverage = proc.scan()
    coverage.forget(5)
    assert coverage.covered == 0
    assert coverage.binaries[0].pids == set()


def test_no_process_with_a_failed_probe_is_covered(proc, program):
    libc, other = proc.file("/lib/libc.so.6", LIBC), proc.file("/old/libc.so.6", LIBC)
    for pid, path in ((5, libc), (6, libc), (7, other)):
        proc.process(pid, program, [(str(path), path)])
    coverage = proc.scan()
    refused = next(found for found in coverage.binaries if 5 in found.pids)
    coverage.mark_failed(refused, "libc.so.6 cannot be probed")
    assert coverage.covered == 1 and set(coverage.uncovered) == {5, 6}
    proc.process(8, program, [(str(libc), libc)])
    assert coverage.rescan(8) == [] == coverage.rescan(5)
    reasons = {gap.reason for gap in coverage.uncovered.values()}
    assert (coverage.covered, set(coverage.uncovered)) == (1, {5, 6, 8})
    assert reasons == {"libc.so.6 cannot be probed"}
    coverage.forget(8)
    assert set(coverage.uncovered) == {5, 6}


def test_summary_names_uncovered_processes(proc, program):
    libc = proc.file("/lib/libc.so.6", LIBC)
    proc.process(5, program, [(str(libc), libc)])
    proc.process(6, proc.file("/bin/stripped", make_elf(b"\0", [], kind=11)))
    assert proc.scan().summary() == (
        "1 libc, 1 process covered, 1 not coverable: name6 (static, stripped)"
    )


def test_own_process_is_covered():
    coverage = scan.Coverage()
    coverage.rescan(os.getpid())
    if os.getpid() in coverage.uncovered:
        pytest.skip(f"this Python has {coverage.uncovered[os.getpid()].reason}")
    assert coverage.covered == 1
    assert any("getaddrinfo" in found.functions for found in coverage.binaries)


def test_c_programs_are_not_go(proc, program):
    assert not looks_like_go(str(program))
    assert not looks_like_go("/nonexistent")
    assert not looks_like_go("/dev/zero")


# --- hostile files and processes ------------------------------------------------------------------


def test_process_with_a_file_that_is_given_up_is_lost_and_named_first(proc, program):
    libc = hostile.repeated(proc.files / "libc.so.6")
    proc.process(5, program, [(str(libc), libc)])
    proc.process(6, proc.file("/bin/stripped", make_elf(b"\0", [], kind=11)))
    coverage = proc.scan()
    assert {pid: gap.lost for pid, gap in coverage.uncovered.items()} == {5: True, 6: False}
    assert str(libc) in coverage.uncovered[5].reason
    words = coverage.summary()
    assert words.index("name5") < words.index("name6")


def test_lost_and_out_of_scope_processes(proc, program):
    proc.process(1, proc.file("/bin/stripped", make_elf(b"\0", [], kind=11)))
    proc.process(2, proc.file("/bin/none", make_elf(b"\0main\0", [symbol(1)])))
    proc.process(3, proc.file("/bin/script", b"#!/bin/sh\n"))
    proc.process(4, proc.file("/bin/go", go_binary((1, 16), go="go1.16.7")))
    other = proc.file("/lib/libc.so.6", make_elf(b"\0main\0", [symbol(1)]))
    proc.process(5, program, [(str(other), other)])
    bad = proc.file("/bad/libc.so.6", LIBC[:300])
    proc.process(6, program, [(str(bad), bad)])
    assert {pid for pid, gap in proc.scan().uncovered.items() if gap.lost} == {6}


def test_file_names_are_escaped(proc, program):
    libc = hostile.repeated(proc.files / "libc.so.6")
    wild = proc.files / "wild\x1b[31m"
    wild.mkdir()
    libc = libc.rename(wild / "libc.so.6")
    proc.process(5, program, [(str(libc), libc)])
    assert "wild\\x1b[31m" in proc.scan().uncovered[5].reason


def test_long_file_is_read_after_the_others(proc, program):
    libc = proc.file("/lib/libc.so.6", LIBC)
    proc.process(5, program, [(str(libc), libc)])
    proc.process(6, program, [(str(libc), libc)])
    coverage = scan.Coverage(str(proc.path), first=Limits(50, 60))
    assert coverage.rescan(5) == coverage.rescan(6) == []
    assert set(coverage.uncovered) == {5, 6}
    assert list(coverage.unfinished.values()) == [{5, 6}]
    assert [found.pids for found in coverage.finish_one()] == [{5, 6}]
    assert (coverage.unfinished, coverage.uncovered, coverage.covered) == ({}, {}, 2)


def test_file_that_was_given_up_is_not_read_again(proc, program, monkeypatch):
    libc = hostile.repeated(proc.files / "libc.so.6")
    proc.process(5, program, [(str(libc), libc)])
    coverage = scan.Coverage(str(proc.path), first=Limits(1 << 20, 60))
    coverage.rescan(5)
    assert coverage.unfinished
    coverage.finish_one()
    assert coverage.uncovered[5].lost and not coverage.unfinished
    monkeypatch.setattr(scan, "read_libc", None)
    coverage.rescan(5)
    assert coverage.uncovered[5].lost and not coverage.unfinished


def test_number_of_probed_files_is_bounded(proc, program, monkeypatch):
    monkeypatch.setattr(scan, "MAX_FILES", 2)
    for pid in (5, 6, 7):
        libc = proc.file(f"/{pid}/libc.so.6", LIBC)
        proc.process(pid, program, [(str(libc), libc)])
    coverage = proc.scan()
    assert len(coverage.binaries) == 2
    assert {pid: gap.lost for pid, gap in coverage.uncovered.items()} == {7: True}
    assert "more than 2 files" in coverage.uncovered[7].reason


def test_number_of_remembered_reasons_is_bounded(proc, program, monkeypatch):
    monkeypatch.setattr(scan, "_MAX_REMEMBERED", 2)
    good = proc.file("/lib/libc.so.6", LIBC)
    proc.process(4, program, [(str(good), good)])
    for pid in (5, 6, 7):
        bad = proc.file(f"/{pid}/libc.so.6", LIBC[:300])
        proc.process(pid, program, [(str(bad), bad)])
    coverage = proc.scan()
    assert coverage.prune() == []
    assert [len(kept) for kept in (coverage._libcs, coverage._programs)] == [1, 0]  # noqa: SLF001
    assert coverage.binaries[0].pids == {4}


def test_process_with_too_many_libcs_is_lost(proc, program):
    libcs = [proc.file(f"/{number}/libc.so.6", LIBC) for number in range(12)]
    proc.process(5, program, [(str(libc), libc) for libc in libcs])
    coverage = proc.scan()
    assert len(coverage.binaries) == 8
    assert coverage.uncovered[5].reason == "more than 8 libcs" and coverage.uncovered[5].lost


def test_libc_mapped_many_times_is_resolved_once(proc, program, monkeypatch):
    libc = proc.file("/lib/libc.so.6", LIBC)
    proc.process(5, program, [(str(libc), libc)] * 50)
    asked = []
    real = mappings.identity_of
    monkeypatch.setattr(mappings, "identity_of", lambda path: asked.append(path) or real(path))
    assert proc.scan().covered == 1
    assert len(asked) == 2  # from the host's root, and from the process's


def test_libc_that_cannot_be_opened_is_a_loss(proc, program):
    libc = proc.file("/lib/libc.so.6", LIBC)
    proc.process(5, program, [("/lib/libc.so.6", libc)], root="/nowhere")
    for mapped in (proc.path / "5" / "map_files").iterdir():
        mapped.unlink()
    (gap,) = proc.scan().uncovered.values()
    assert (gap.reason, gap.lost) == ("its libc cannot be opened", True)


def test_well_known_paths_stay_below_the_root(proc, program):
    """Links of directories and files do not lead out of the root."""
    outside = proc.file("/lib/x86_64-linux-gnu/libc.so.6", LIBC).parent
    box = proc.files / "box"
    (box / "lib").mkdir(parents=True)
    (box / "lib" / "here-linux-gnu").symlink_to(outside)
    (box / "lib" / "libc.so.6").symlink_to(outside / "libc.so.6")
    (box / "lib64").symlink_to(outside)
    os.mkfifo(box / "lib" / "ld-musl-x86_64.so.1")
    coverage = proc.scan()
    proc.process(5, program, root="/box")
    assert coverage.rescan(5) == []
    assert coverage.uncovered[5].reason == "no libc mapped"


def test_listing_of_an_untrusted_directory_is_bounded(proc, program, monkeypatch):
    monkeypatch.setattr(mappings, "_MAX_ENTRIES", 10)
    for number in range(30):
        proc.file(f"/box/lib/{number}", b"")
    assert len(mappings._matching(f"{proc.files}/box/lib", "*")) == 10  # noqa: SLF001


def test_roots_processes_come_first_and_users_take_turns(tmp_path, monkeypatch):
    owners = {5: 1000, 6: 1000, 7: 1001, 8: 0, 9: 1000, 10: 1001, 11: 0}
    for pid in owners:
        (tmp_path / str(pid)).mkdir()
    monkeypatch.setattr(mappings, "owner", lambda pid, _: owners[pid])
    assert mappings.processes(str(tmp_path)) == [8, 11, 5, 7, 6, 10, 9]


def test_inaccessible_process_is_lost_without_the_privilege(proc, program, monkeypatch):
    proc.process(5, program)
    real = os.stat

    def refuse(path, *more, **options):
        if str(path).endswith("/5/exe"):
            raise PermissionError(13, "Permission denied")
        return real(path, *more, **options)

    monkeypatch.setattr(os, "stat", refuse)
    for held, lost in (([], True), (["CAP_SYS_PTRACE"], False)):
        monkeypatch.setattr(scan, "held_capabilities", lambda held=held: held)
        (gap,) = proc.scan().uncovered.values()
        assert (gap.reason, gap.lost) == ("permission denied", lost)


def test_mapping_of_an_impossible_device_is_ignored(tmp_path):
    proc = Proc(tmp_path)
    libc = proc.file("/lib/libc.so.6", LIBC)
    proc.process(1, libc, [("/lib/libc.so.6 (deleted)", libc)])
    maps = proc.path / "1" / "maps"
    maps.write_text(maps.read_text().replace(" 3f:01 ", f" {'f' * 9}:01 "))
    proc.scan()
