"""The ready file: always new, follows no link, and removed at the end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netbpf.errors import NetbpfError, UsageError
from netbpf.run.ready import ReadyFile


def test_file_has_the_process_id_and_is_removed_at_the_end(tmp_path):
    path = tmp_path / "ready"
    sign = ReadyFile(str(path))
    assert not path.exists()
    sign.create()
    assert path.read_text() == f"{os.getpid()}\n"
    sign.close()
    assert not path.exists()
    sign.close()


def test_stale_file_is_removed_at_once(tmp_path):
    path = tmp_path / "ready"
    path.write_text("4711\n")
    ReadyFile(str(path)).close()
    assert not path.exists()


def test_file_that_is_not_a_ready_file_is_kept(tmp_path):
    path = tmp_path / "precious"
    path.write_text("x" * 1000)
    with pytest.raises(UsageError, match="is not a ready file"):
        ReadyFile(str(path))
    assert path.stat().st_size == 1000


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "directory", "socket"])
def test_other_kind_of_file_is_an_error_and_kept(tmp_path, kind):
    path, target = tmp_path / "ready", tmp_path / "target"
    if kind == "link":
        target.write_text("1\n")
        path.symlink_to(target)
    elif kind == "dangling":
        path.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        os.mknod(path, 0o140600)
    with pytest.raises(UsageError, match="is not a ready file"):
        ReadyFile(str(path))
    assert os.path.lexists(path)
    assert target.exists() is (kind == "link")


@pytest.mark.parametrize("kind", ["link", "fifo", "file"])
def test_file_that_appears_before_creation_is_neither_followed_nor_opened(tmp_path, kind):
    path, target = tmp_path / "ready", tmp_path / "target"
    sign = ReadyFile(str(path))
    if kind == "link":
        path.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.write_text("another's\n")
    with pytest.raises(NetbpfError, match="File exists"):
        sign.create()
    sign.close()
    assert os.path.lexists(path) and not target.exists()


def test_file_that_replaced_it_is_kept_at_the_end(tmp_path):
    path = tmp_path / "ready"
    sign = ReadyFile(str(path))
    sign.create()
    path.rename(tmp_path / "moved")
    path.write_text("another's\n")
    sign.close()
    assert path.read_text() == "another's\n"


@pytest.mark.parametrize("where", ["no/such/directory/ready", "file/ready"])
def test_directory_must_exist(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot create"):
        ReadyFile(str(tmp_path / where))
