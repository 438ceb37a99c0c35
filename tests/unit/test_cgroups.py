"""Control groups: ids are inode numbers of directories, and containers are found by id."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from netbpf.errors import Unsupported, UsageError
from netbpf.kernel import cgroups, container_names
from netbpf.kernel.cgroups import (
    cgroup_id,
    container_cgroup,
    container_cgroups,
    container_of,
    find_path,
    level_of,
    path_of,
)
from netbpf.kernel.container_names import ContainerName
from netbpf.kernel.credit import Credit

WEB, DB = "ab" * 32, "ac" + "0" * 62


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A version 2 hierarchy with two containers."""
    for name in (
        "system.slice/ssh.service",
        f"system.slice/docker-{WEB}.scope/init.scope",
        f"machine.slice/libpod-conmon-{DB}.scope",
        f"machine.slice/libpod-{DB}.scope/container",
    ):
        (tmp_path / name).mkdir(parents=True)
    for directory in [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]:
        (directory / "cgroup.procs").write_text("")
    monkeypatch.setattr(cgroups, "cgroup_root", lambda: str(tmp_path))
    cgroups.forget_paths()
    return tmp_path


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_cgroup_is_found_by_relative_and_absolute_path(tree):
    wanted = inode(tree / "system.slice" / "ssh.service")
    assert cgroup_id("system.slice/ssh.service") == wanted
    assert cgroup_id("/system.slice/ssh.service") == wanted
    assert cgroup_id(str(tree / "system.slice" / "ssh.service")) == wanted
    assert cgroup_id("/") == inode(tree)


@pytest.mark.parametrize("path", ["absent", "system.slice/cgroup.procs", "a\0b", "x" * 300])
def test_other_paths_are_usage_errors(tree, path):
    with pytest.raises(UsageError, match="--cgroup: there is no cgroup"):
        cgroup_id(path)


def test_missing_hierarchy_is_unsupported_with_a_hint(monkeypatch):
    monkeypatch.setattr(cgroups, "cgroup_root", lambda: "")
    with pytest.raises(Unsupported) as caught:
        cgroup_id("a")
    assert "mount -t cgroup2" in caught.value.hint


def test_container_is_found_by_a_prefix_of_its_id(tree):
    wanted = inode(tree / "system.slice" / f"docker-{WEB}.scope")
    assert container_cgroup("abab") == wanted
    assert container_cgroup(WEB) == wanted


def test_container_is_not_its_monitor(tree):
    assert container_cgroup("ac00") == inode(tree / "machine.slice" / f"libpod-{DB}.scope")


@pytest.mark.parametrize(
    ("prefix", "why"),
    [
        ("ffff", "no container's cgroup matches"),
        ("abc", "no container's cgroup matches 'abc'"),
        ("ABAB", "no container's cgroup matches 'ABAB'"),
        ("web1", "no container's cgroup matches 'web1'"),
        ("../..", "no container's cgroup matches '../..'"),
    ],
)
def test_unknown_container_is_a_usage_error(tree, prefix, why):
    with pytest.raises(UsageError, match=why):
        container_cgroup(prefix)


@pytest.mark.parametrize("word", ["web", "shop/web-1/web"])
def test_container_is_found_by_its_name(tree, monkeypatch, word):
    names = {WEB: ContainerName("web", "shop/web-1"), DB: ContainerName("db")}
    monkeypatch.setattr(container_names, "_names", lambda identity: iter([names[identity]]))
    wanted = inode(tree / "system.slice" / f"docker-{WEB}.scope")
    assert container_cgroups(word) == [wanted]
    with pytest.raises(UsageError, match="no container's cgroup matches"):
        container_cgroups("None/db")
    names[DB] = names[WEB]
    with pytest.raises(UsageError, match="more than one container matches"):
        container_cgroups(word)


def test_ambiguous_container_is_a_usage_error(tree):
    (tree / f"docker-{WEB[:8]}{'0' * 56}.scope").mkdir()
    with pytest.raises(UsageError, match="more than one container matches"):
        container_cgroup(WEB[:8])


@pytest.mark.parametrize(
    ("path", "identity"),
    [
        (f"/docker/{WEB}", WEB),
        (f"/system.slice/docker-{WEB}.scope", WEB),
        (f"/kubepods/besteffort/pod1-2/{WEB}", WEB),
        (f"/kubepods.slice/x.slice/cri-containerd-{WEB}.scope", WEB),
        (f"/x.slice:cri-containerd:{WEB}", WEB),
        (f"/machine.slice/libpod-{WEB}.scope/container", WEB),
        (f"/machine.slice/libpod-conmon-{WEB}.scope", ""),
        (f"/crio-conmon-{WEB}.scope", ""),
        (f"/docker/{WEB}/docker/{DB}", DB),
        (f"/docker/{WEB}0", ""),
        (f"/docker/{WEB[:-1]}", ""),
        ("/system.slice/ssh.service", ""),
        ("", ""),
    ],
)
def test_container_id_is_read_from_a_cgroups_path(path, identity):
    assert container_of(path) == identity


def test_path_of_a_cgroup_id(tree):
    assert path_of(inode(tree / "system.slice" / "ssh.service")) == "/system.slice/ssh.service"
    assert path_of(2**63) == ""


def test_all_cgroups_of_a_container_are_found_but_not_their_children(tree):
    here = [tree / "a.slice" / f"docker-{WEB}.scope", tree / "system.slice" / f"docker-{WEB}.scope"]
    (here[0] / f"again-{WEB}.scope").mkdir(parents=True)
    assert sorted(container_cgroups(WEB)) == sorted(map(inode, here))


def test_level_counts_from_the_root(tree, monkeypatch):
    monkeypatch.setattr(cgroups, "_whole", lambda root: True)
    monkeypatch.setattr(cgroups, "_FIRST_NAMESPACE", Path("/proc/self/ns/cgroup").stat().st_ino)
    assert level_of(inode(tree)) == 0
    assert level_of(inode(tree / "system.slice" / "ssh.service")) == 2
    assert level_of(1 << 60) is None
    monkeypatch.setattr(cgroups, "_FIRST_NAMESPACE", 1)
    assert level_of(inode(tree / "system.slice")) is None


@pytest.mark.parametrize(
    ("namespace", "mount", "whole", "root"),
    [
        (cgroups._FIRST_NAMESPACE, "/cg", True, "/cg"),
        (cgroups._FIRST_NAMESPACE, "/cg", False, "detached cgroup2"),
        (cgroups._FIRST_NAMESPACE, "", False, "detached cgroup2"),
        (4711, "/cg", True, ""),
    ],
)
def test_root_of_all_cgroups(monkeypatch, namespace, mount, whole, root):
    monkeypatch.setattr(cgroups.os, "stat", lambda path: SimpleNamespace(st_ino=namespace))
    monkeypatch.setattr(cgroups, "cgroup_root", lambda: mount)
    monkeypatch.setattr(cgroups, "_whole", lambda root: whole)
    monkeypatch.setattr(cgroups, "detached_mount", lambda kind: f"detached {kind}")
    assert cgroups.whole_hierarchy.__wrapped__() == root


def test_root_is_found_among_other_mounts():
    # Any user may mount a file system (FUSE) at a directory with any name.
    places = ("/a\x1cb\\040cgroup2", "/a\udcff", "/\u2028", "/\x85")
    mounts = "".join(f"x {path} fuse rw 0 0\n" for path in places)
    data = mounts.encode("utf-8", "surrogateescape") + b"none /sys/fs\\040of/x cgroup2 rw 0 0\n"
    assert cgroups._mounted_at(data) == "/sys/fs of/x"
    assert cgroups._mounted_at(b"none\n\n") == ""
    whole = b"1 2 0:1 / /a\xff\x1cb rw - fuse x rw\n3 4 0:2 / /sys/fs\\040of/x rw - cgroup2 x rw\n"
    assert cgroups._is_whole(whole, "/sys/fs of/x")
    assert not cgroups._is_whole(b"\n" + whole.replace(b" / /sys", b" /below /sys"), "/sys/fs of/x")


def test_search_for_a_cgroup_is_bounded(tree, monkeypatch):
    monkeypatch.setattr(cgroups, "_SEARCH_SECONDS", -1)
    for number in range(30):
        (tree / "user.slice" / str(number) / "x").mkdir(parents=True)
    wanted = inode(tree / "user.slice" / "29" / "x")
    assert path_of(wanted) == ""  # one directory was listed


def test_what_was_not_found_for_lack_of_time_is_found_later(tree, monkeypatch):
    wanted = inode(tree / "system.slice" / "ssh.service")
    monkeypatch.setattr(cgroups._credit, "_left", -1e9)  # noqa: SLF001
    assert (find_path(wanted), path_of(wanted)) == (None, "")
    cgroups._credit.refill()  # noqa: SLF001
    assert find_path(wanted) == path_of(wanted) == "/system.slice/ssh.service"
    assert find_path(2**63) == ""


def test_search_goes_on_where_it_stopped(tree, monkeypatch):
    for number in range(5):
        (tree / "user.slice" / str(number)).mkdir(parents=True)
    wanted = inode(tree / "user.slice" / "4")
    monkeypatch.setattr(cgroups, "_SEARCH_SECONDS", -1)  # one directory at a time
    found = [find_path(wanted) for _ in range(30)]
    assert found[0] is None and found[-1] == "/user.slice/4"


def test_a_path_is_kept_when_the_cgroup_is_gone(tree):
    path = tree / "system.slice" / "ssh.service"
    wanted = inode(path)
    assert path_of(wanted) == "/system.slice/ssh.service"
    (path / "cgroup.procs").unlink()
    path.rmdir()
    assert path_of(wanted) == "/system.slice/ssh.service"


def test_credit_is_a_share_of_the_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("netbpf.kernel.credit.time.monotonic", lambda: now[0])
    credit = Credit(share=0.1, most=0.25)

    def work(seconds: float) -> bool:
        with credit.spent() as allowed:
            now[0] += seconds if allowed else 0
        return allowed

    assert [work(0.1) for _ in range(4)] == [True, True, True, False]
    now[0] += 0.4
    assert not work(0.1)
    now[0] += 0.2
    assert work(0.1) and not work(0.1)
    now[0] += 1000
    assert [work(0.1) for _ in range(4)] == [True, True, True, False]


def test_kernel_returns_the_path_of_a_cgroup(tmp_path):
    cgroups.forget_paths()
    root = cgroups.cgroup_root()
    group = Path(root, f"netbpf-unit-{os.getpid()}", "below")
    try:
        group.mkdir(parents=True)
    except OSError as error:
        pytest.skip(f"no cgroup of version 2 can be made here: {error}")
    try:
        found = cgroups._path_by_inode(root, inode(group))  # noqa: SLF001
        if found is None and os.geteuid():
            pytest.skip("needs CAP_DAC_READ_SEARCH")
        assert found == str(group)[len(root) :] == path_of(inode(group))
        number = inode(group)
    finally:
        group.rmdir()
        group.parent.rmdir()
    assert cgroups._path_by_inode(root, number) == ""  # noqa: SLF001
