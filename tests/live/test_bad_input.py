"""What cannot work is said in one line, with a hint, before anything else happens."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import pytest
from harness import SOURCE_TREE

from netbpf.kernel.btf import STRUCT, Btf

pytestmark = pytest.mark.beside

NOBODY = 65534
SYSTEM_PYTHON = "/usr/bin/python3"
USAGE, UNSUPPORTED, NO_PRIVILEGE = 2, 69, 77


def check(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """One error line that names its subject, one hint, the status, and no result."""
    lines = done.stderr.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["netbpf:", "hint:"], done.stderr
    assert lines[0].startswith("netbpf: error: ")
    for word in words:
        assert word in lines[0], lines[0]
    assert done.stdout == ""
    assert done.returncode == status, done.stderr


def impossible_pid() -> str:
    # Process ids stay below this number.
    return Path("/proc/sys/kernel/pid_max").read_text().strip()


BAD_WORDS: dict[str, tuple[list[str], str]] = {
    "tool": (["tcplive"], "tcplive"),
    "option": (["tcplife", "--colour"], "--colour"),
    "cidr": (["tcplife", "--laddr", "10.0.0.0/33"], "10.0.0.0/33"),
    "cidr-with-host-bits": (["tcplife", "--raddr", "10.0.0.1/8"], "10.0.0.1/8"),
    "address": (["tcplife", "--raddr", "localhost"], "localhost"),
    "ports": (["tcplife", "--lport", "80,htpp"], "htpp"),
    "port-too-high": (["tcplife", "--rport", "65536"], "65536"),
    "port-range-backwards": (["tcplife", "-L", "443-80"], "443-80"),
    "ports-empty-item": (["tcplife", "-D", "80,,443"], "80,,443"),
    "pid-that-is-no-number": (["tcplife", "--pid", "init"], "init"),
    "pid-that-does-not-exist": (["tcplife", "--pid", impossible_pid()], impossible_pid()),
    "user": (["tcplife", "--uid", "no-such-user"], "no-such-user"),
    "cgroup": (["tcplife", "--cgroup", "/no/such/cgroup"], "/no/such/cgroup"),
    "container": (["tcplife", "--container", "0123456789abcdef"], "0123456789abcdef"),
    "netns": (["tcplife", "--netns", "no-such-netns"], "no-such-netns"),
    "both-families": (["tcplife", "-4", "-6"], "-6"),
    "duration": (["tcplife", "--duration", "soon"], "soon"),
    "buffer": (["tcplife", "--buffer", "12x"], "12x"),
    "output": (["tcplife", "--output", "xml"], "xml"),
    "filter-without-sense": (["netsize", "--pid", "1"], "pid"),
    "interval": (["netsize", "soon"], "soon"),
    "ready-file": (["tcplife", "--ready-file", "/no/such/dir/ready"], "/no/such/dir/ready"),
}


@pytest.mark.parametrize("name", BAD_WORDS)
def test_bad_word_is_a_usage_error_that_quotes_it(name: str) -> None:
    words, quoted = BAD_WORDS[name]
    check(harness.netbpf_once(*words), USAGE, quoted)


BAD_BTF = {
    "missing": None,
    "empty": b"",
    "text": b"this is no BTF\n" * 100,
    "header-only": b"\x9f\xeb\x01\x00\x18\x00\x00\x00" + b"\xff" * 16,
    "truncated": "half",
}


@pytest.mark.parametrize("kind", BAD_BTF)
def test_unreadable_btf_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "vmlinux.btf"
    content: Any = BAD_BTF[kind]
    if content == "half":
        whole = Path("/sys/kernel/btf/vmlinux")
        if not whole.exists():
            pytest.skip("needs a kernel with BTF: CONFIG_DEBUG_INFO_BTF=y")
        data = whole.read_bytes()
        content = data[: len(data) // 2]
    if content is not None:
        path.write_bytes(content)
    check(harness.netbpf_once("tcplife", "--btf", path), USAGE, str(path))


def spoiled_btf(kind: str) -> bytes:
    """Return this kernel's types with one thing wrong in struct sock."""
    data = bytearray(Path("/sys/kernel/btf/vmlinux").read_bytes())
    header, types, _, strings = struct.unpack_from("=4I", data, 4)
    known = Btf()
    begin = header + types - (known._type(1).address - 12)
    sock = begin + known._type(known.find("sock", STRUCT)).address  # of its members
    if kind == "type":
        struct.pack_into("=I", data, sock + 4, 0x7FFFFFFF)
    elif kind == "size":
        struct.pack_into("=I", data, sock - 4, 8)
    else:
        name = {"name": b"list_head", "field": b"skc_family"}[kind]
        old, evil = b"\0" + name + b"\0", b"\0" + b"a}; int b;"[: len(name)] + b"\0"
        at = data.index(old, header + strings)
        data[at : at + len(old)] = evil
    return bytes(data)


@pytest.mark.parametrize("kind", ["type", "size", "name", "field"])
@pytest.mark.parametrize("words", [("tcplife", "-d", "0.1"), ("doctor",), ("doctor", "--record")])
def test_damaged_btf_is_an_error_in_words(
    tmp_path: Path, kind: str, words: tuple[str, ...]
) -> None:
    path, record = tmp_path / "damaged.btf", tmp_path / "record.json"
    path.write_bytes(spoiled_btf(kind))
    more = [record] if "--record" in words else []
    done = harness.netbpf_once(*words, *more, "--btf", path)
    check(done, USAGE, "--btf: ", str(path), "is damaged: ")
    assert not record.exists()


@pytest.mark.parametrize("words", [("tcplife",), ("doctor",)])
def test_btf_that_is_no_file_is_an_error_at_once(tmp_path: Path, words: tuple[str, ...]) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, Path("/dev/zero")):
        check(harness.netbpf_once(*words, "--btf", path), USAGE, str(path))


def test_btf_of_another_kernel_is_named(tmp_path: Path) -> None:
    # A file without any types is no damage: the program lacks a field in it.
    path = tmp_path / "empty.btf"
    path.write_bytes(struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0, 1) + b"\0")
    done = harness.netbpf_once("tcplife", "--btf", path)
    check(done, UNSUPPORTED, f"with the types of '{path}': ")
    assert "report" not in done.stderr


@pytest.fixture(scope="module")
def public_tree() -> Iterator[Path]:
    """A copy of the package that every user can read; the source tree may be in a private place."""
    directory = Path(tempfile.mkdtemp())
    try:
        for name in ("netbpf", "bpf_programs"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(SOURCE_TREE / name, directory / name, ignore=ignore)
        must = ["chmod", "-R", "a+rX", str(directory)]
        subprocess.run(must, check=True)
        yield directory
    finally:
        shutil.rmtree(directory)


def as_nobody(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    who: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    environment = {**os.environ, "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=harness.START_TIMEOUT,
        check=False,
        **who,
    )


@pytest.mark.parametrize("tool", ["tcplife", "netsize"])
def test_without_root_the_way_to_it_is_shown(public_tree: Path, tool: str) -> None:
    done = as_nobody(SYSTEM_PYTHON, "-m", "netbpf", tool, cwd=public_tree)
    check(done, NO_PRIVILEGE)
    assert "sudo" in done.stderr


def test_bad_words_count_more_than_missing_privileges(public_tree: Path) -> None:
    done = as_nobody(SYSTEM_PYTHON, "-m", "netbpf", "tcplife", "-L", "htpp", cwd=public_tree)
    check(done, USAGE, "htpp")


@pytest.mark.parametrize(
    "words",
    [
        "raise ImportError(\"No module named 'bcc'\")",
        "",  # PyPI's package of that name, which is something else, or half an installation
        "raise OSError('libbcc.so.0: cannot open shared object file')",
    ],
    ids=["missing", "another-package", "library-missing"],
)
def test_without_bcc_the_package_to_install_is_named(tmp_path: Path, words: str) -> None:
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "__init__.py").write_text(words + "\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{SOURCE_TREE}"}
    line = [sys.executable, "-m", "netbpf", "tcplife", "-d", "1"]
    done = subprocess.run(
        line,
        cwd=tmp_path,
        env=environment,
        text=True,
        capture_output=True,
        timeout=harness.START_TIMEOUT,
        check=False,
    )
    check(done, UNSUPPORTED, "bcc")
    hint = done.stderr.splitlines()[1]
    assert "python3-bpfcc" in hint or "python3-bcc" in hint, hint


def test_help_and_list_need_neither_root_nor_bcc(public_tree: Path, tmp_path: Path) -> None:
    blocker = public_tree / "bcc"
    blocker.mkdir()
    try:
        (blocker / "__init__.py").write_text("raise ImportError('bcc')\n")
        for words in (["--help"], ["list"], ["tcplife", "--help"], ["schema", "netsize"]):
            done = as_nobody(SYSTEM_PYTHON, "-m", "netbpf", *words, cwd=public_tree)
            assert done.returncode == 0, done.stderr
            assert "tcplife" in done.stdout or "netsize" in done.stdout
            assert done.stderr == ""
    finally:
        shutil.rmtree(blocker)
