"""The cache returns stored data, ignores untrusted files, and evicts the oldest."""

from __future__ import annotations

import importlib.util
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from netbpf.bpf import cache, compiler
from netbpf.bpf.cache import NoCache
from netbpf.bpf.object import BpfObject, pack
from netbpf.errors import AttachRefused
from tests.contract.conventions import ROOT

KEYS = [f"{number:064x}" for number in range(100)]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away: sudo make unit")


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """The cache directory, which does not exist yet."""
    path = tmp_path / "cache"
    monkeypatch.setenv("NETBPF_CACHE", str(path))
    return path


def names(path: Path) -> list[str]:
    return sorted(child.name for child in path.iterdir())


# --- keep and take --------------------------------------------------------------------------------


def test_stored_data_is_returned(directory):
    assert cache.get(KEYS[1]) is None
    assert not directory.exists()  # reading does not create it
    cache.put(KEYS[1], b"one")
    cache.put(KEYS[2], b"two")
    assert cache.get(KEYS[1]) == b"one"
    assert cache.get(KEYS[2]) == b"two"
    assert cache.get(KEYS[3]) is None
    assert names(directory) == KEYS[1:3]  # and no partial files


def test_other_users_cannot_read_it(directory):
    cache.put(KEYS[1], b"one")
    assert directory.stat().st_mode & 0o7777 == 0o700
    assert (directory / KEYS[1]).stat().st_mode & 0o7777 == 0o600


def test_put_replaces(directory):
    cache.put(KEYS[1], b"damaged")
    cache.put(KEYS[1], b"one")
    assert cache.get(KEYS[1]) == b"one"
    assert names(directory) == [KEYS[1]]


def test_default_is_below_run(monkeypatch):
    for unset in (None, ""):
        monkeypatch.delenv("NETBPF_CACHE", raising=False)
        if unset is not None:
            monkeypatch.setenv("NETBPF_CACHE", unset)
        assert cache.location() == "/run/netbpf"


def test_off_is_off(monkeypatch, tmp_path):
    monkeypatch.setenv("NETBPF_CACHE", "off")
    monkeypatch.chdir(tmp_path)
    for call in (lambda: cache.get(KEYS[1]), lambda: cache.put(KEYS[1], b"one")):
        with pytest.raises(NoCache, match="off"):
            call()
    assert not names(tmp_path)


# --- what is not trusted --------------------------------------------------------------------------


def refused(directory: Path, word: str) -> None:
    """Assert that it is neither read nor written, and that the doctor reports the reason."""
    before = names(directory) if directory.is_dir() else []
    with pytest.raises(NoCache, match=word):
        cache.get(KEYS[1])
    with pytest.raises(NoCache, match=word):
        cache.put(KEYS[2], b"two")
    assert before == (names(directory) if directory.is_dir() else [])
    there, words = cache.describe()
    assert not there and word in words


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o720, 0o702])
def test_directory_that_others_can_write_to_is_not_used(directory, mode):
    cache.put(KEYS[1], b"one")
    directory.chmod(mode)
    refused(directory, "by others")


@needs_root
def test_directory_of_another_user_is_not_used(directory):
    cache.put(KEYS[1], b"one")
    os.chown(directory, 65534, 65534)
    refused(directory, "another user")


@pytest.mark.parametrize("ending", ["", "/", "//"])
def test_link_to_a_directory_is_not_followed(directory, monkeypatch, ending):
    cache.put(KEYS[1], b"one")
    link = directory.with_name("link")
    link.symlink_to(directory)
    monkeypatch.setenv("NETBPF_CACHE", f"{link}{ending}")
    refused(directory, "not usable")


def test_file_instead_of_a_directory_is_not_used(directory):
    directory.write_text("mine")
    refused(directory, "not usable")
    assert directory.read_text() == "mine"


def test_directory_that_cannot_be_created_is_reported(monkeypatch):
    monkeypatch.setenv("NETBPF_CACHE", "/proc/no/such/place")
    with pytest.raises(NoCache, match="cannot be created"):
        cache.put(KEYS[1], b"one")
    assert cache.describe()[0] is False


def test_file_that_others_can_write_to_is_not_read(directory):
    cache.put(KEYS[1], b"one")
    (directory / KEYS[1]).chmod(0o622)
    assert cache.get(KEYS[1]) is None


@needs_root
def test_file_of_another_user_is_not_read(directory):
    cache.put(KEYS[1], b"one")
    os.chown(directory / KEYS[1], 65534, 65534)
    assert cache.get(KEYS[1]) is None


def test_link_fifo_or_directory_instead_of_a_file_is_not_read(directory):
    cache.put(KEYS[1], b"one")
    (directory / KEYS[2]).symlink_to(directory / KEYS[1])
    os.mkfifo(directory / KEYS[3], 0o600)
    (directory / KEYS[4]).mkdir(0o700)
    assert [cache.get(key) for key in KEYS[2:5]] == [None, None, None]
    cache.put(KEYS[2], b"two")  # replaces the link, not its target
    assert cache.get(KEYS[2]) == b"two" and cache.get(KEYS[1]) == b"one"


def test_reason_why_a_file_is_ignored_is_logged(directory):
    said: list[str] = []
    assert cache.get(KEYS[1], said.append) is None
    cache.put(KEYS[1], b"one")
    assert cache.get(KEYS[2], said.append) is None and said == []  # there is no file
    os.mkfifo(directory / KEYS[3], 0o600)
    (directory / KEYS[1]).chmod(0o622)
    for key, word in ((KEYS[1], "can be written by others"), (KEYS[3], "has another file type")):
        assert cache.get(key, said.append) is None
        assert said.pop() == f"{directory}/{key[:12]}... is ignored: it {word}"


def test_empty_directory_instead_of_a_file_is_replaced(directory):
    cache.put(KEYS[1], b"one")
    for key in KEYS[2:4]:
        (directory / key).mkdir()
    (directory / KEYS[3] / "mine").write_text("x")
    cache.put(KEYS[2], b"two")
    assert cache.get(KEYS[2]) == b"two"
    with pytest.raises(NoCache, match="directory"):
        cache.put(KEYS[3], b"three")
    assert names(directory) == KEYS[1:4]  # and the partial file is gone


@needs_root
def test_device_instead_of_a_file_is_not_opened(directory, monkeypatch):
    cache.put(KEYS[1], b"one")
    os.mknod(directory / KEYS[2], 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero
    opened, really = [], os.open

    def opening(path, *more, **rest):
        opened.append(path)
        return really(path, *more, **rest)

    monkeypatch.setattr(cache.os, "open", opening)
    assert cache.get(KEYS[2]) is None
    assert KEYS[2] not in opened


def test_file_that_is_too_large_is_not_read(directory):
    cache.put(KEYS[1], b"one")
    os.truncate(directory / KEYS[1], 1 << 40)
    assert cache.get(KEYS[1]) is None


@pytest.mark.parametrize("mode", [0o777, 0o720, 0o702])
def test_ancestor_that_others_can_write_to_is_rejected(tmp_path, monkeypatch, mode):
    directory = tmp_path / "way" / "cache"
    directory.parent.mkdir()
    monkeypatch.setenv("NETBPF_CACHE", str(directory))
    cache.put(KEYS[1], b"one")
    directory.parent.chmod(mode)
    refused(directory, "by others")
    directory.parent.chmod(mode | 0o1000)  # like /tmp: only owners rename
    assert cache.get(KEYS[1]) == b"one"


@needs_root
@pytest.mark.parametrize("kind", ["directory", "link", "link to a link"])
def test_ancestor_of_another_user_is_rejected(tmp_path, monkeypatch, kind):
    way = tmp_path / "way"
    (way / "deep" / "cache").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("NETBPF_CACHE", str(way / "deep" / "cache"))
    cache.put(KEYS[1], b"one")
    if kind == "directory":
        os.chown(way, 65534, 65534)
    else:
        link = tmp_path / "link"
        link.symlink_to("way")
        monkeypatch.setenv("NETBPF_CACHE", str(link / "deep" / "cache"))
        assert cache.get(KEYS[1]) == b"one"  # a link of this user is followed, like /var/run
        os.chown(link, 65534, 65534, follow_symlinks=False)
        if kind == "link to a link":
            (tmp_path / "ours").symlink_to(link)
            monkeypatch.setenv("NETBPF_CACHE", str(tmp_path / "ours" / "deep" / "cache"))
    refused(way / "deep" / "cache", "another user")


def test_links_in_a_circle_are_rejected(tmp_path, monkeypatch):
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    monkeypatch.setenv("NETBPF_CACHE", str(tmp_path / "one" / "cache"))
    refused(tmp_path / "one" / "cache", "not usable")


def test_full_file_system_leaves_no_partial_file(directory, monkeypatch):
    cache.put(KEYS[1], b"one")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "replace", full)
    with pytest.raises(NoCache, match="No space left"):
        cache.put(KEYS[2], b"two")
    assert names(directory) == KEYS[1:2]


# --- its size -------------------------------------------------------------------------------------


def aged(directory: Path, key: str, seconds: int) -> None:
    os.utime(directory / key, (seconds, seconds))


def test_at_most_64_files_are_kept_and_the_least_recently_used_goes_first(directory):
    for number, key in enumerate(KEYS[:64]):
        cache.put(key, b"x")
        aged(directory, key, 1000 + number)
    assert cache.get(KEYS[0]) == b"x"  # used now: the next oldest is evicted
    cache.put(KEYS[64], b"x")
    assert names(directory) == [KEYS[0], *KEYS[2:65]]


def test_at_most_8_mb_are_kept(directory):
    for number, key in enumerate(KEYS[:8]):
        cache.put(key, bytes(1 << 20))
        aged(directory, key, 1000 + number)
    assert names(directory) == KEYS[:8]
    cache.put(KEYS[8], bytes(3 << 20))
    assert names(directory) == KEYS[3:9]


def test_too_large_data_are_not_stored(directory):
    cache.put(KEYS[1], b"one")
    with pytest.raises(NoCache, match="too large"):
        cache.put(KEYS[2], bytes((8 << 20) + 1))
    assert names(directory) == KEYS[1:2]


def test_other_files_are_never_removed(directory, monkeypatch):
    monkeypatch.setattr(cache, "MAX_FILES", 1)
    directory.mkdir(0o700)
    left = f"{KEYS[9]}.{'0' * 16}"  # from a start that was killed
    for name in ("notes.txt", KEYS[3][1:], left):
        (directory / name).write_text("x")
        aged(directory, name, 1)
    cache.put(KEYS[1], b"one")
    assert names(directory) == sorted([KEYS[3][1:], KEYS[1], "notes.txt"])


def test_description_counts(directory):
    assert cache.describe() == (True, f"{directory}, created by the first start")
    cache.put(KEYS[1], bytes(3000))
    cache.put(KEYS[2], bytes(3000))
    assert cache.describe() == (True, f"{directory}, 2 files, 5 KB")


# --- the name of a file ---------------------------------------------------------------------------


@pytest.fixture
def bcc(tmp_path, monkeypatch):
    """A fake installation of bcc: its package and its library."""
    package, library = tmp_path / "bcc" / "__init__.py", tmp_path / "lib" / "libbcc.so.0.26.0"
    for path in (package, library):
        path.parent.mkdir()
        path.write_text("x")
    link = library.with_name("libbcc.so.0")
    link.symlink_to(library.name)
    table = tmp_path / "ld.so.cache"
    table.write_bytes(b"glibc-ld.so.cache1.1\0\3libz.so.1\0" + bytes(link) + b"\0/lib/libz.so.1\0")
    monkeypatch.setattr(cache, "_LD_CACHE", table)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    found = SimpleNamespace(origin=str(package))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: found)
    return SimpleNamespace(package=package, library=library, table=table, link=link)


def key(text="int f() {}", header="#define A 1", functions=("f",), flags=("-w",), own="x"):
    files = {"include/netbpf/kernel.h": header, "include/linux/types.h": own}
    return cache.key_of(text, files, functions, flags)


@pytest.mark.usefixtures("bcc")
def test_key_is_a_hash_of_each_part_of_the_input():
    same = {key() for _ in range(3)}
    others = [
        key(text="int f() { }"), key(header="#define A 2"), key(functions=("g",)),
        key(functions=("f", "g")), key(flags=("-w", "-O2")), key(own="y"),
    ]  # fmt: skip
    assert len(same) == 1 and len(same | set(others)) == 1 + len(others)
    assert all(cache._NAME.fullmatch(name) for name in others)


def test_key_depends_on_kernel_machine_bcc_and_its_settings(bcc, monkeypatch):
    seen = [key()]

    def changed():
        seen.append(key())
        assert len(set(seen)) == len(seen), f"change {len(seen) - 1} made no other name"

    kernel = os.uname()
    machine = kernel.machine
    for values in (("9.9", kernel.version, machine), ("9.9", "#2", machine), ("9.9", "#2", "vax")):
        uname = SimpleNamespace(**dict(zip(("release", "version", "machine"), values)))
        monkeypatch.setattr(cache.os, "uname", lambda uname=uname: uname)
        changed()
    bcc.library.write_text("a fix")
    changed()
    bcc.package.write_text("a fix")
    changed()
    os.utime(bcc.library, ns=(1, 1))
    changed()
    monkeypatch.setenv("BCC_PROBE_PREFIX", "x")
    changed()
    monkeypatch.setattr(cache, "MAGIC", b"another format")
    changed()


def test_library_is_the_one_the_loader_finds(bcc, tmp_path, monkeypatch):
    paths = [path for path, _, _ in cache.compiler()]
    assert paths == [str(bcc.package), str(bcc.library)]
    other = tmp_path / "other" / "libbcc.so.0"
    other.parent.mkdir()
    other.write_text("mine")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/no/such/place:{other.parent}")
    assert cache.compiler()[1][0] == str(other)


def test_without_bcc_there_is_no_key(bcc, monkeypatch):
    bcc.link.unlink()
    with pytest.raises(NoCache, match="bcc cannot be identified"):
        key()
    bcc.link.symlink_to(bcc.library)
    key()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(NoCache, match="bcc cannot be identified"):
        key()


# --- beside the compiler --------------------------------------------------------------------------

IMAGE = BpfObject((), {"f": bytes(8)})


@pytest.fixture
def compiled(bcc, monkeypatch):
    """A list with one entry per compilation."""
    calls = []

    def compiling(*_):
        calls.append(1)
        return pack(IMAGE)

    monkeypatch.setattr(compiler, "_compile", compiling)
    return calls


def start(header: str = "") -> list[str]:
    said: list[str] = []
    arguments = "text", {"h": header}, ["f"]
    cached, key = compiler._cached(*arguments, said.append)
    assert (cached or compiler._compiled(*arguments, key, said.append)) == IMAGE
    return said


def test_second_start_does_not_compile_and_logs_it(directory, compiled):
    assert start()[0].startswith("compiled in ")
    assert start() == [f"compiled programs taken from {directory}"]
    assert len(compiled) == 1
    start("another")
    assert len(compiled) == 2 and len(names(directory)) == 2


def test_other_compiler_flags_are_another_program(directory, compiled, monkeypatch):
    start()
    monkeypatch.setattr(compiler, "_FLAGS", [*compiler._FLAGS, "-DANOTHER"])
    start()
    assert len(compiled) == 2 and len(names(directory)) == 2


@pytest.mark.parametrize("content", [b"", b"torn", pack(IMAGE)[:-1], pack(IMAGE) + b"x"])
def test_damaged_file_is_replaced(directory, compiled, content):
    start()
    (path,) = directory.iterdir()
    path.write_bytes(content)
    start()
    assert len(compiled) == 2
    assert path.read_bytes() == pack(IMAGE, path.name)


def test_file_of_another_program_is_replaced(directory, compiled):
    start()
    (path,) = directory.iterdir()
    for image, key in ((IMAGE, ""), (IMAGE, "0" * 64), (BpfObject((), {"g": bytes(8)}), path.name)):
        path.write_bytes(pack(image, key))
        assert start()[0].endswith("is ignored: its content is invalid")
        assert path.read_bytes() == pack(IMAGE, path.name)
    assert len(compiled) == 4


WRONG = BpfObject((), {"f": bytes(16)})


@pytest.fixture
def loading(directory, compiled, monkeypatch):
    """A kernel that refuses WRONG; return how to start on it, and the loaded objects."""
    tried: list[BpfObject] = []

    def load(image, *_):
        tried.append(image)
        if image in loading.refused:
            raise AttachRefused("f", "no")
        return image

    def start() -> tuple[object, list[str]]:
        said: list[str] = []
        return compiler.compile_and_load(
            "text", {"kernel.h": ""}, [], [], lambda _: 0, said.append
        ), said

    loading = SimpleNamespace(start=start, tried=tried, refused=[WRONG], compiled=compiled)
    monkeypatch.setattr(compiler, "load", load)
    monkeypatch.setattr(compiler, "entries_of", lambda _: [SimpleNamespace(function="f")])
    return loading


def test_object_that_the_kernel_refuses_is_compiled_again(loading, directory):
    loading.start()
    (path,) = directory.iterdir()
    path.write_bytes(pack(WRONG, path.name))
    loaded, said = loading.start()
    assert loaded == IMAGE and "the cached program is compiled again: no" in said
    assert loading.tried == [IMAGE, WRONG, IMAGE] and len(loading.compiled) == 2
    assert path.read_bytes() == pack(IMAGE, path.name)


@pytest.mark.parametrize("error", [KeyError(1), IndexError(), ValueError(), OSError(22, "x")])
def test_object_that_cannot_be_loaded_is_compiled_again(loading, directory, monkeypatch, error):
    loading.start()
    (path,) = directory.iterdir()
    path.write_bytes(pack(WRONG, path.name))
    plain, calls = compiler.load, []

    def load(image, *more):
        calls.append(image)
        if len(calls) == 1:
            raise error
        return plain(image, *more)

    monkeypatch.setattr(compiler, "load", load)
    assert loading.start()[0] == IMAGE
    assert len(loading.compiled) == 2


def test_object_that_is_refused_again_is_compiled_only_once(loading):
    loading.refused[:] = [IMAGE]
    for compiled in (1, 2, 2, 2):
        with pytest.raises(AttachRefused):
            loading.start()
        assert len(loading.compiled) == compiled
    loading.refused[:] = [WRONG]
    assert loading.start()[0] == IMAGE and len(loading.compiled) == 2


@pytest.mark.parametrize("where", ["off", "/proc/no/such/place"])
def test_without_a_cache_every_start_compiles_and_logs_the_reason(compiled, monkeypatch, where):
    monkeypatch.setenv("NETBPF_CACHE", where)
    assert any("off" in line or "cannot be created" in line for line in start())
    start()
    assert len(compiled) == 2


def test_bcc_is_not_imported_for_a_key():
    code = (
        "import sys; from netbpf.bpf import cache, compiler\n"
        "try: cache.key_of('x')\nexcept cache.NoCache: pass\n"
        "assert not {'bcc', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
