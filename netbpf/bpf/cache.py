"""Cache compiled programs for the next start, in /run/netbpf or the directory in NETBPF_CACHE.

The name of a file is a hash of everything that its content depends on, so it cannot be outdated.
Root loads the content into the kernel, so a directory is used only if no other user can write to it
or replace it, and no link is followed to it or in it. After any error a tool starts without cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

from netbpf.bpf.object import MAGIC

DIRECTORY = "/run/netbpf"
MAX_FILES, MAX_BYTES = 64, 8 << 20
_LIBRARY = "libbcc.so.0"
_LD_CACHE = Path("/etc/ld.so.cache")
# Names of cache files and of unfinished writes; no other file is ever removed.
_NAME = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{16})?")
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_MAX_LINKS = 40  # the kernel's limit
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO must not block


class NoCache(Exception):
    """The cache cannot be used; the message is the reason."""


class _File(NamedTuple):
    used: int  # ns since 1970
    size: int  # bytes
    name: str


def location() -> str:
    """Return the configured directory; raises NoCache if the cache is off."""
    path = os.environ.get("NETBPF_CACHE") or DIRECTORY
    if path == "off":
        raise NoCache("NETBPF_CACHE is off")
    return path.rstrip("/") or "/"  # a trailing slash would follow a link


def get(key: str, log: Callable[[str], None] = lambda text: None) -> Optional[bytes]:
    """Return the data stored under `key`, or None; raises NoCache.

    `log` is called with the reason if a file exists but is rejected.
    """
    with _directory(location(), make=False) as directory:
        if directory is None:
            return None
        try:
            return _content(directory, key)
        except FileNotFoundError:
            return None
        except (OSError, NoCache) as error:
            why = getattr(error, "strerror", "") or str(error)
            log(f"{location()}/{key[:12]}... is ignored: it {why}")
            return None


def _content(directory: int, key: str) -> bytes:
    """Return the content of a file; raises OSError, and NoCache if it cannot be trusted."""
    # Check before opening: opening a device can have side effects.
    _check_file(os.stat(key, dir_fd=directory, follow_symlinks=False))
    file = os.open(key, _READ_FLAGS, dir_fd=directory)
    try:
        _check_file(os.fstat(file))
        with suppress(OSError):  # a read-only file system
            os.utime(file)  # mark it as recently used
        return b"".join(iter(lambda: os.read(file, MAX_BYTES), b""))
    finally:
        os.close(file)


def _check_file(state: os.stat_result) -> None:
    problem = _problem(state, stat.S_ISREG)
    if problem or state.st_size > MAX_BYTES:
        raise NoCache(problem or "is too large")


def put(key: str, data: bytes) -> None:
    """Store or replace `data` under `key`, and evict the oldest files; raises NoCache."""
    if len(data) > MAX_BYTES:
        raise NoCache("the compiled program is too large")
    with _directory(location(), make=True) as directory:
        assert directory is not None
        partial = f"{key}.{os.urandom(8).hex()}"
        try:
            _write(directory, partial, data)
            with suppress(OSError):  # an empty directory cannot be replaced
                os.rmdir(key, dir_fd=directory)
            os.replace(partial, key, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError as error:
            with suppress(OSError):
                os.unlink(partial, dir_fd=directory)
            raise NoCache(f"{location()}: {error.strerror}") from error
        _shrink(directory)


@contextmanager
def attempt(text: str, log: Callable[[str], None]) -> Iterator[None]:
    """Leave the block if the cache cannot be used; `log` is called with `text` and the reason."""
    try:
        yield
    except (NoCache, OSError) as reason:
        log(f"{text}: {reason}")


def describe() -> tuple[bool, str]:
    """Return whether a start can use the cache, and where it is or why not, as text."""
    try:
        path = location()
        with _directory(path, make=False) as directory:
            if directory is None:
                parent = os.path.dirname(os.path.abspath(path))
                if not os.access(parent, os.W_OK):
                    raise NoCache(f"{path} cannot be created")
                return True, f"{path}, created by the first start"
            if not os.access(".", os.W_OK, dir_fd=directory):
                raise NoCache(f"{path} cannot be written")
            files = _files(directory)
    except NoCache as reason:
        return False, f"none, every start compiles: {reason}"
    return True, f"{path}, {len(files)} files, {sum(f.size for f in files) >> 10} KB"


# --- file names -----------------------------------------------------------------------------------


def key_of(*parts: Any) -> str:
    """Return the key for code compiled from `parts` (plain data) by this bcc for this kernel.

    Raises NoCache if bcc's version cannot be determined.
    """
    kernel = os.uname()
    setting = sorted(item for item in os.environ.items() if item[0].startswith("BCC_"))
    here = [MAGIC.hex(), compiler(), setting, kernel.machine, kernel.release, kernel.version]
    page = os.sysconf("SC_PAGE_SIZE")
    return hashlib.sha256(json.dumps([*here, page, *parts]).encode()).hexdigest()


def compiler() -> list[tuple[str, int, int]]:
    """Return path, size and mtime (ns) of bcc's Python package and of the library it would load.

    This does not import bcc, which takes 40 ms and links LLVM. An update changes the files, while a
    distributor's patch does not change the version number.
    """
    package = importlib.util.find_spec("bcc")
    library = _library(os.environ.get("LD_LIBRARY_PATH", "").split(":"))
    if not package or not package.origin or not library:
        raise NoCache("the installed bcc cannot be identified")
    paths = [os.path.realpath(package.origin), os.path.realpath(library)]
    states = [os.stat(path) for path in paths]
    return [(path, state.st_size, state.st_mtime_ns) for path, state in zip(paths, states)]


def _library(first: Sequence[str]) -> str:
    for directory in filter(None, first):
        if os.path.exists(f"{directory}/{_LIBRARY}"):
            return f"{directory}/{_LIBRARY}"
    with suppress(OSError):
        # The file of ldconfig(8) holds full paths, terminated by zero bytes. Reading it takes a
        # thousandth of the time that the loader takes, which would load LLVM.
        for path in re.findall(rb"/[^\0]*/libbcc\.so\.0(?=\0)", _LD_CACHE.read_bytes()):
            if os.path.exists(path):
                return os.fsdecode(path)
    return ""


# --- the directory --------------------------------------------------------------------------------


@contextmanager
def _directory(path: str, make: bool) -> Iterator[Optional[int]]:
    """Yield a descriptor of the directory, None if it does not exist and `make` is false."""
    _check_ancestors(os.path.dirname(os.path.abspath(path)))
    try:
        if make:
            with suppress(FileExistsError):
                os.mkdir(path, 0o700)
        descriptor = os.open(path, _DIRECTORY_FLAGS)
    except FileNotFoundError as error:
        if make:
            raise NoCache(f"{path} cannot be created ({error.strerror})") from error
        yield None
        return
    except OSError as error:
        raise NoCache(f"{path} is not usable ({error.strerror})") from error
    try:
        problem = _problem(os.fstat(descriptor), stat.S_ISDIR)
        if problem:
            raise NoCache(f"{path} {problem}")
        yield descriptor
    finally:
        os.close(descriptor)


def _check_ancestors(path: str) -> None:
    """Raise NoCache if another user could replace the directory `path`.

    This can be the owner of a directory or link on its path, or a user who can write to such a
    directory, unless only owners may rename and remove files in it (sticky bit, as in /tmp).
    """
    names, at, links = [*path.split("/")[1:]], "/", 0
    while True:
        try:
            state = os.lstat(at)
        except OSError:
            return  # not used if it does not exist, or created by this process
        if state.st_uid not in (0, os.geteuid()):
            raise NoCache(f"{at} belongs to another user")
        if stat.S_ISLNK(state.st_mode):
            links += 1
            target = os.readlink(at)
            names = [*target.split("/"), *names]
            at = "/" if target.startswith("/") else os.path.dirname(at)
        elif state.st_mode & 0o022 and not state.st_mode & stat.S_ISVTX:
            raise NoCache(f"{at} can be written by others")
        if not names or links > _MAX_LINKS:
            return
        at = os.path.normpath(f"{at}/{names.pop(0)}")


def _problem(state: os.stat_result, right_type: Any) -> str:
    """Return why a file or directory cannot be trusted, "" if it can."""
    if not right_type(state.st_mode):
        return "has another file type"
    if state.st_uid != os.geteuid():
        return "belongs to another user"
    return "can be written by others" if state.st_mode & 0o022 else ""


def _write(directory: int, name: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with open(os.open(name, flags, 0o600, dir_fd=directory), "wb") as file:
        file.write(data)


def _files(directory: int) -> list[_File]:
    files = []
    for name in filter(_NAME.fullmatch, os.listdir(directory)):
        with suppress(OSError):  # another process removed it
            state = os.stat(name, dir_fd=directory, follow_symlinks=False)
            files.append(_File(state.st_mtime_ns, state.st_size, name))
    return sorted(files)


def _shrink(directory: int) -> None:
    files = _files(directory)
    while len(files) > MAX_FILES or sum(file.size for file in files) > MAX_BYTES:
        with suppress(OSError):
            os.unlink(files[0].name, dir_fd=directory)
        del files[0]
