"""What clang made is kept for the next start, in memory: /run/netbpf, or where NETBPF_CACHE says.

A file is named by a hash of all that its content depends on, so nothing in it can be out of date.
What lies there is loaded into the kernel by root: a directory counts only if no other user can
write to it or put another in its place, and no link is followed to it or in it. Whatever goes wrong
means that there is no cache, and never that a tool does not start.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

from netbpf.bpf.object import MAGIC

DIRECTORY = "/run/netbpf"
MOST_FILES, MOST_BYTES = 64, 8 << 20
_LIBRARY = "libbcc.so.0"
_LD_CACHE = Path("/etc/ld.so.cache")
# Files of ours, and what an interrupted write left: nothing else there is ever removed.
_OURS = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{16})?")
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_MOST_LINKS = 40  # as the kernel has it
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO must not stop us


class NoCache(Exception):
    """There is no usable cache; the message says why."""


class _File(NamedTuple):
    used: int  # ns since 1970
    size: int  # bytes
    name: str


def place() -> str:
    """Return the directory that is asked for; raise NoCache if none is wanted."""
    wanted = os.environ.get("NETBPF_CACHE") or DIRECTORY
    if wanted == "off":
        raise NoCache("NETBPF_CACHE is off")
    return wanted.rstrip("/") or "/"  # a slash at the end would have a link followed


def take(key: str, say: Callable[[str], None] = lambda words: None) -> Optional[bytes]:
    """Return what was kept under `key`, None if nothing was; raise NoCache.

    `say` gets the reason why a file that is there does not count.
    """
    with _directory(place(), make=False) as directory:
        if directory is None:
            return None
        try:
            return _content(directory, key)
        except FileNotFoundError:
            return None
        except (OSError, NoCache) as error:
            why = getattr(error, "strerror", "") or str(error)
            say(f"{place()}/{key[:12]}... is thrown away: it {why}")
            return None


def _content(directory: int, key: str) -> bytes:
    """Return what is in a file; raise NoCache if it cannot be trusted, OSError."""
    # Before it is opened: opening a device may do something.
    _check_file(os.stat(key, dir_fd=directory, follow_symlinks=False))
    file = os.open(key, _READ_FLAGS, dir_fd=directory)
    try:
        _check_file(os.fstat(file))
        with suppress(OSError):  # read-only
            os.utime(file)  # in use: others go first
        return b"".join(iter(lambda: os.read(file, MOST_BYTES), b""))
    finally:
        os.close(file)


def _check_file(state: os.stat_result) -> None:
    objection = _objection(state, stat.S_ISREG)
    if objection or state.st_size > MOST_BYTES:
        raise NoCache(objection or "is too large")


def keep(key: str, data: bytes) -> None:
    """Keep `data` under `key`, in the place of what is there, and let the oldest go; NoCache."""
    if len(data) > MOST_BYTES:
        raise NoCache("the compiled program is too large")
    with _directory(place(), make=True) as directory:
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
            raise NoCache(f"{place()}: {error.strerror}") from error
        _shrink(directory)


@contextmanager
def attempt(words: str, say: Callable[[str], None]) -> Iterator[None]:
    """Go on without the cache if it cannot be used; `say` gets `words` and the reason."""
    try:
        yield
    except (NoCache, OSError) as reason:
        say(f"{words}: {reason}")


def describe() -> tuple[bool, str]:
    """Return whether a start would find a usable cache, and where it is or why there is none."""
    try:
        path = place()
        with _directory(path, make=False) as directory:
            if directory is None:
                parent = os.path.dirname(os.path.abspath(path))
                if not os.access(parent, os.W_OK):
                    raise NoCache(f"{path} cannot be made")
                return True, f"{path}, made by the first start"
            if not os.access(".", os.W_OK, dir_fd=directory):
                raise NoCache(f"{path} cannot be written")
            files = _files(directory)
    except NoCache as reason:
        return False, f"none, every start compiles: {reason}"
    return True, f"{path}, {len(files)} compiled, {sum(f.size for f in files) >> 10} KB"


# --- the name of a file ---------------------------------------------------------------------------


def key_of(*parts: Any) -> str:
    """Return the name for what is made from `parts` (plain data) by this bcc on this kernel.

    Raises NoCache if it cannot be told which bcc that is.
    """
    kernel = os.uname()
    setting = sorted(item for item in os.environ.items() if item[0].startswith("BCC_"))
    here = [MAGIC.hex(), compiler(), setting, platform.machine(), kernel.release, kernel.version]
    page = os.sysconf("SC_PAGE_SIZE")
    return hashlib.sha256(json.dumps([*here, page, *parts]).encode()).hexdigest()


def compiler() -> list[tuple[str, int, int]]:
    """Return path, size and time (ns) of bcc's Python package and of the library it would load.

    Without importing it, which takes 40 ms and links LLVM. An update changes both; asking for a
    version number would miss the distributor's patches.
    """
    package = importlib.util.find_spec("bcc")
    library = _library(os.environ.get("LD_LIBRARY_PATH", "").split(":"))
    if not package or not package.origin or not library:
        raise NoCache("it cannot be told which bcc this is")
    paths = [os.path.realpath(package.origin), os.path.realpath(library)]
    states = [os.stat(path) for path in paths]
    return [(path, state.st_size, state.st_mtime_ns) for path, state in zip(paths, states)]


def _library(first: Sequence[str]) -> str:
    for directory in filter(None, first):
        if os.path.exists(f"{directory}/{_LIBRARY}"):
            return f"{directory}/{_LIBRARY}"
    with suppress(OSError):
        # The file of ldconfig(8) holds full paths, each ended by a zero byte. Reading it is three
        # orders of magnitude cheaper than asking the loader, which would load LLVM.
        for path in re.findall(rb"/[^\0]*/libbcc\.so\.0(?=\0)", _LD_CACHE.read_bytes()):
            if os.path.exists(path):
                return os.fsdecode(path)
    return ""


# --- the directory --------------------------------------------------------------------------------


@contextmanager
def _directory(path: str, make: bool) -> Iterator[Optional[int]]:
    """Yield a descriptor of the directory, None if there is none and none is to be made."""
    _check_way(os.path.dirname(os.path.abspath(path)))
    try:
        if make:
            with suppress(FileExistsError):
                os.mkdir(path, 0o700)
        descriptor = os.open(path, _DIRECTORY_FLAGS)
    except FileNotFoundError as error:
        if make:
            raise NoCache(f"{path} cannot be made ({error.strerror})") from error
        yield None
        return
    except OSError as error:
        raise NoCache(f"{path} is not usable ({error.strerror})") from error
    try:
        objection = _objection(os.fstat(descriptor), stat.S_ISDIR)
        if objection:
            raise NoCache(f"{path} {objection}")
        yield descriptor
    finally:
        os.close(descriptor)


def _check_way(path: str) -> None:
    """Raise NoCache if another user could put something else in the place of the directory `path`.

    That may be who owns a directory or link on the way, or can write to such a directory. Where
    only owners may rename and remove (the sticky bit, as in /tmp) that is no matter.
    """
    names, at, links = [*path.split("/")[1:]], "/", 0
    while True:
        try:
            state = os.lstat(at)
        except OSError:
            return  # what is not there cannot be used, or is made by us
        if state.st_uid not in (0, os.geteuid()):
            raise NoCache(f"{at} belongs to somebody else")
        if stat.S_ISLNK(state.st_mode):
            links += 1
            target = os.readlink(at)
            names = [*target.split("/"), *names]
            at = "/" if target.startswith("/") else os.path.dirname(at)
        elif state.st_mode & 0o022 and not state.st_mode & stat.S_ISVTX:
            raise NoCache(f"{at} can be written by others")
        if not names or links > _MOST_LINKS:
            return
        at = os.path.normpath(f"{at}/{names.pop(0)}")


def _objection(state: os.stat_result, right_type: Any) -> str:
    """Return why a file or directory cannot be trusted, "" if it can."""
    if not right_type(state.st_mode):
        return "is something else"
    if state.st_uid != os.geteuid():
        return "belongs to somebody else"
    return "can be written by others" if state.st_mode & 0o022 else ""


def _write(directory: int, name: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with open(os.open(name, flags, 0o600, dir_fd=directory), "wb") as file:
        file.write(data)


def _files(directory: int) -> list[_File]:
    found = []
    for name in filter(_OURS.fullmatch, os.listdir(directory)):
        with suppress(OSError):  # another start was quicker
            state = os.stat(name, dir_fd=directory, follow_symlinks=False)
            found.append(_File(state.st_mtime_ns, state.st_size, name))
    return sorted(found)


def _shrink(directory: int) -> None:
    files = _files(directory)
    while len(files) > MOST_FILES or sum(file.size for file in files) > MOST_BYTES:
        with suppress(OSError):
            os.unlink(files[0].name, dir_fd=directory)
        del files[0]
