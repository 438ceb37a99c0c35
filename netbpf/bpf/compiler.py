"""Compile a C program with bcc, without kernel headers, in a process of its own, unless it is kept.

bcc needs a directory that looks like kernel headers. A few lines are enough, as the kernel's
structs come from `netbpf.bpf.layout`. They live in a detached tmpfs that nobody else sees and
that vanishes with the process. Clang and LLVM (some 100 MB) run in a forked child, which hands the
instructions and what it knows of the maps over as bytes and ends: the memory goes back before
anything is loaded, and nothing of what bcc prints can reach the terminal. The same bytes are kept
for the next start, which then has no use for bcc.

This is the only module that imports bcc.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

from netbpf.bpf import cache
from netbpf.bpf.constants import take_constants
from netbpf.bpf.layout import program_directory
from netbpf.bpf.loader import FindTarget, Loaded, entries_of, load, spec_of
from netbpf.bpf.object import MAGIC, BpfObject, pack, unpack, with_maps
from netbpf.errors import NetbpfError, Unsupported
from netbpf.kernel.select import Selection
from netbpf.system.lines import lines_of
from netbpf.system.syscalls import advise, detached_mount

_FLAGS = ("-Wno-unused-function", "-fno-jump-tables")
BCC_HINT = (
    "use /usr/bin/python3 with the distribution's python3-bpfcc (Debian, Ubuntu) or "
    "python3-bcc (Fedora); PyPI's 'bcc' is something else"
)


Files = Mapping[str, str]  # the directory that bcc takes for kernel headers: text by path
Say = Callable[[str], None]


def compile_and_load(
    text: str,
    headers: Mapping[str, str],
    selections: Sequence[Selection],
    maps: Sequence[str],
    find_target: FindTarget,
    say: Say,
) -> Loaded:
    """Compile `text`, unless that is cached, and load the selected entries.

    `headers` are generated: text by name in <netbpf/>.

    Numbers in LOAD_CONSTANT() are put in at loading.
    `maps` names those that the reader needs, `find_target` finds a function in the kernel's BTF.
    Raises AttachRefused if the kernel refuses one program, Unsupported if bcc is missing, and
    NetbpfError (with the compiler's output as detail) if the program does not compile.
    """
    header, numbers = take_constants(headers["kernel.h"])
    entries = entries_of(selections)
    functions = sorted({entry.function for entry in entries})
    files = _header_files({**headers, "kernel.h": header})

    def ready(image: BpfObject) -> Loaded:
        return load(image, entries, maps, find_target, numbers)

    kept, key = _kept(text, files, functions, say)
    if not kept:
        return ready(_fresh(text, files, functions, key, say))
    try:
        return ready(kept)
    except Exception as error:  # nothing that lies there may stop a tool
        if _is_right(kept, say):
            raise
        say(f"what was kept is compiled again: {error}")
        image = _fresh(text, files, functions, key, say)
        if image == kept:
            _note_right(kept, say)
            raise
    return ready(image)


def _compiled(text: str, files: Files, functions: Sequence[str], say: Say) -> BpfObject:
    kept, key = _kept(text, files, functions, say)
    return kept or _fresh(text, files, functions, key, say)


def _kept(
    text: str, files: Files, functions: Sequence[str], say: Say
) -> tuple[Optional[BpfObject], str]:
    """Return what an earlier start kept, None if that is nothing or nothing that fits.

    And the key to keep the next one under, "" where there is no usable cache.
    """
    with cache.attempt("no cache of compiled programs", say):
        where = cache.place()
        key = cache.key_of(text, files, functions, _FLAGS)
        data = cache.take(key, say)
        image = unpack(data, key) if data is not None else None
        if image and image.programs.keys() == set(functions):
            say(f"compiled programs taken from {where}")
            return image, key
        if data is not None:
            say(f"{where}/{key[:12]}... is thrown away: its content is wrong")
        return None, key
    return None, ""


def _fresh(text: str, files: Files, functions: Sequence[str], key: str, say: Say) -> BpfObject:
    begin = time.monotonic()
    image = unpack(_compile(text, files, functions))
    assert image
    say(f"compiled in {(time.monotonic() - begin) * 1000:.0f} ms")
    if key:
        with cache.attempt("not kept for the next start", say):
            cache.keep(key, pack(image, key))
    return image


def _is_right(image: BpfObject, say: Say) -> bool:
    """Return whether an earlier start compiled the same image, which the kernel refused."""
    with cache.attempt("no cache", say):
        return cache.take(cache.key_of("refused", pack(image).hex()), say) == b"right"
    return False


def _note_right(image: BpfObject, say: Say) -> None:
    # Or each start on this kernel would compile it again before the next alternative is tried.
    with cache.attempt("no cache", say):
        cache.keep(cache.key_of("refused", pack(image).hex()), b"right")


def _compile(text: str, files: Files, functions: Sequence[str]) -> bytes:
    directory = _private_directory()
    try:
        _write_files(Path(directory), files)
        answer, noise = _in_child(lambda: _build(text, directory, functions))
    finally:
        _remove(directory)
    if not answer.startswith(MAGIC):
        raise _error(json.loads(answer), noise)
    return answer


# --- in the child ---------------------------------------------------------------------------------


def _build(text: str, directory: str, functions: Sequence[str]) -> bytes:
    os.environ["BCC_KERNEL_SOURCE"] = directory
    try:
        import bcc

        bcc.BPF.dump_func  # noqa: B018 - PyPI's bcc, which is something else, has none
    except (ModuleNotFoundError, AttributeError) as error:
        return _failure("no-bcc", error)
    except Exception as error:  # libbcc is missing, there is not enough memory for it
        return _failure("bad-bcc", error)
    unmap_text_pages()
    try:
        # Load nothing: that is done by `netbpf.bpf.loader`, which can say what went wrong.
        bcc.BPF._trace_autoload = lambda _: None
        module = bcc.BPF(text=text, cflags=list(_FLAGS))
        return pack(_image(bcc.lib, module, functions))
    except Exception as error:  # bcc raises plain Exception
        return _failure("compile", error)


def _failure(kind: str, error: Exception) -> bytes:
    return json.dumps({"error": kind, "detail": str(error)}).encode()


def _image(library: Any, module: Any, functions: Sequence[str]) -> BpfObject:
    # bcc has made the maps already: they end with this process, and are made again from what the
    # kernel tells of them, which is right where libbcc's own numbers are those before rounding.
    _declare(library)
    shapes, places = [], {}
    for place in range(library.bpf_num_tables(module.module)):
        descriptor = library.bpf_table_fd_id(module.module, place)
        name = library.bpf_table_name(module.module, place).decode()
        shapes.append(spec_of(name, descriptor))
        places[descriptor] = place
    codes = {name: with_maps(module.dump_func(name.encode()), places) for name in functions}
    return BpfObject(tuple(shapes), codes)


def _declare(library: Any) -> None:
    # bcc's bindings leave these undeclared: ctypes would then take pointers for numbers of 32 bits.
    library.bpf_num_tables.argtypes = [ctypes.c_void_p]
    library.bpf_num_tables.restype = ctypes.c_size_t
    library.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.bpf_table_name.restype = ctypes.c_char_p
    library.bpf_table_fd_id.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.bpf_table_fd_id.restype = ctypes.c_int


def unmap_text_pages() -> None:
    """Unmap the pages of shared libraries' code: those that are needed again are still cached.

    Linking LLVM and clang touches some 60 MB that compiling a small program never comes back to.
    """
    for line in lines_of(Path("/proc/self/maps").read_bytes()):
        span, mode, _, _, _, *path = line.split(maxsplit=5)
        if mode == "r-xp" and path and "/lib" in path[0]:
            start, end = (int(word, 16) for word in span.split("-"))
            advise(start, end - start)


def _in_child(work: Callable[[], bytes]) -> tuple[bytes, str]:
    """Return what `work` returns in a forked child, and all that is printed there."""
    ours, theirs = os.pipe()
    output = tempfile.TemporaryFile()
    child = os.fork()
    if child == 0:
        _child(work, theirs, output.fileno())
    os.close(theirs)
    with open(ours, "rb") as channel:
        answer = channel.read()
    _, status = os.waitpid(child, 0)
    output.seek(0)
    noise = output.read(1 << 22).decode(errors="replace")
    output.close()
    if status:
        answer = json.dumps({"error": "died", "detail": f"wait status {status}"}).encode()
    return answer, noise


def _child(work: Callable[[], bytes], channel: int, output: int) -> None:
    status = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        with open(channel, "wb") as file:
            file.write(work())
        status = 0
    finally:
        os._exit(status)  # no atexit, no buffers of the parent flushed twice


# --- in the parent --------------------------------------------------------------------------------


def _error(answer: Mapping[str, Any], noise: str) -> NetbpfError:
    detail = str(answer["detail"])
    if answer["error"] == "no-bcc":
        return Unsupported(
            "bcc's Python bindings are missing for this Python",
            BCC_HINT,
            detail,
        )
    if answer["error"] == "bad-bcc":
        reason = detail or "out of memory"
        return Unsupported(f"bcc's Python bindings cannot be loaded: {reason}", BCC_HINT)
    first = next((line for line in noise.splitlines() if "error:" in line), detail)
    everything = "\n".join(part for part in (detail, noise.strip()) if part)
    return NetbpfError(
        f"cannot compile the BPF program: {first.strip()}", "see all with -v", everything
    )


def _private_directory() -> str:
    try:
        return detached_mount("tmpfs")
    except OSError:
        # Without CAP_SYS_ADMIN, or before 5.2: an ordinary directory, removed after compiling.
        return tempfile.mkdtemp(prefix="netbpf-")


def _remove(directory: str) -> None:
    if directory.startswith("/proc/self/fd/"):
        os.close(int(directory.rpartition("/")[2]))
    else:
        shutil.rmtree(directory, ignore_errors=True)


def _header_files(headers: Mapping[str, str]) -> Files:
    machine = {"x86_64": "x86", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    own = (program_directory() / "include" / "kernel").iterdir()
    files = {f"include/linux/{path.name}": path.read_text() for path in sorted(own)}
    files.update({f"include/netbpf/{name}": text for name, text in headers.items()})
    empty = ("linux/bpf_common.h", "uapi/linux/bpf.h", "uapi/linux/if_packet.h")
    files.update({f"include/{name}": "" for name in empty})
    files[f"arch/{machine}/include/asm/page.h"] = ""
    return files


def _write_files(directory: Path, files: Files) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
