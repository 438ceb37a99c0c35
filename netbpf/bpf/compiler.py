"""Compile a C program with bcc in a child process, without kernel headers, or take it from cache.

bcc needs a directory of kernel headers. A few lines are enough, as the kernel's structs come from
`netbpf.bpf.layout`. They are on a detached tmpfs that no other process can see and that vanishes
with the process. Clang and LLVM (about 100 MB) run in a forked child, which returns instructions
and map descriptions as bytes and ends: its memory is freed before anything is loaded, and bcc's
output cannot reach the terminal. The same bytes are cached, so that the next start does not need
bcc.

This is the only module that imports bcc.
"""

from __future__ import annotations

import ctypes
import json
import os
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
    "python3-bcc (Fedora); PyPI's 'bcc' is another project"
)


_NONE: Mapping[str, int] = {}
Files = Mapping[str, str]  # bcc's kernel header directory: text by path
Log = Callable[[str], None]


def compile_and_load(
    text: str,
    headers: Mapping[str, str],
    selections: Sequence[Selection],
    maps: Sequence[str],
    find_target: FindTarget,
    log: Log,
    shared: Mapping[str, int] = _NONE,
) -> Loaded:
    """Compile `text`, unless it is cached, and load the entries of `selections`.

    `headers` are the generated headers by name in <netbpf/>; their LOAD_CONSTANT()s are patched in
    at load time. `maps` names the maps that the reader needs, `find_target` returns BTF ids of
    kernel functions, `shared` are maps of another program to use, {name: descriptor}. Raises
    AttachRefused if the kernel refuses a program, Unsupported if bcc is missing, and NetbpfError
    (with the compiler's output as detail) if `text` does not compile.
    """
    header, constants = take_constants(headers["kernel.h"])
    entries = entries_of(selections)
    functions = sorted({entry.function for entry in entries})
    files = _header_files({**headers, "kernel.h": header})

    def load_object(bpf_object: BpfObject) -> Loaded:
        return load(bpf_object, entries, maps, find_target, constants, shared)

    cached, key = _cached(text, files, functions, log)
    if not cached:
        return load_object(_compiled(text, files, functions, key, log))
    try:
        return load_object(cached)
    except Exception as error:  # no content of the cache may keep a tool from starting
        if _is_confirmed(cached, log):
            raise
        log(f"the cached program is compiled again: {error}")
        bpf_object = _compiled(text, files, functions, key, log)
        if bpf_object == cached:
            _confirm(cached, log)
            raise
    return load_object(bpf_object)


def _cached(
    text: str, files: Files, functions: Sequence[str], log: Log
) -> tuple[Optional[BpfObject], str]:
    """Return the cached object, or None, and the key to store it under.

    The key is "" if the cache cannot be used.
    """
    with cache.attempt("no cache of compiled programs", log):
        path = cache.location()
        key = cache.key_of(text, files, functions, _FLAGS)
        data = cache.get(key, log)
        bpf_object = unpack(data, key) if data is not None else None
        if bpf_object and bpf_object.programs.keys() == set(functions):
            log(f"compiled programs taken from {path}")
            return bpf_object, key
        if data is not None:
            log(f"{path}/{key[:12]}... is ignored: its content is invalid")
        return None, key
    return None, ""


def _compiled(text: str, files: Files, functions: Sequence[str], key: str, log: Log) -> BpfObject:
    begin = time.monotonic()
    bpf_object = unpack(_compile(text, files, functions))
    assert bpf_object
    log(f"compiled in {(time.monotonic() - begin) * 1000:.0f} ms")
    if key:
        with cache.attempt("not cached for the next start", log):
            cache.put(key, pack(bpf_object, key))
    return bpf_object


def _is_confirmed(bpf_object: BpfObject, log: Log) -> bool:
    """Return whether an earlier start compiled the same object and the kernel refused it."""
    with cache.attempt("no cache", log):
        return cache.get(cache.key_of("refused", pack(bpf_object).hex()), log) == b"right"
    return False


def _confirm(bpf_object: BpfObject, log: Log) -> None:
    # So that later starts on this kernel try the next alternative without compiling it again.
    with cache.attempt("no cache", log):
        cache.put(cache.key_of("refused", pack(bpf_object).hex()), b"right")


def _compile(text: str, files: Files, functions: Sequence[str]) -> bytes:
    directory = _private_directory()
    try:
        _write_files(Path(directory), files)
        answer, output = _in_child(lambda: _build(text, directory, functions))
    finally:
        _remove(directory)
    if not answer.startswith(MAGIC):
        raise _error(json.loads(answer), output)
    return answer


# --- in the child ---------------------------------------------------------------------------------


def _build(text: str, directory: str, functions: Sequence[str]) -> bytes:
    os.environ["BCC_KERNEL_SOURCE"] = directory
    try:
        import bcc

        bcc.BPF.dump_func  # noqa: B018 - PyPI's bcc, another project, does not have it
    except (ModuleNotFoundError, AttributeError) as error:
        return _failure("no-bcc", error)
    except Exception as error:  # libbcc is missing, or there is not enough memory for it
        return _failure("bad-bcc", error)
    unmap_text_pages()
    try:
        # Load nothing: `netbpf.bpf.loader` does, and reports errors in detail.
        bcc.BPF._trace_autoload = lambda _: None
        module = bcc.BPF(text=text, cflags=list(_FLAGS))
        return pack(_object(bcc.lib, module, functions))
    except Exception as error:  # bcc raises plain Exception
        return _failure("compile", error)


def _failure(kind: str, error: Exception) -> bytes:
    return json.dumps({"error": kind, "detail": str(error)}).encode()


def _object(library: Any, module: Any, functions: Sequence[str]) -> BpfObject:
    # bcc has created the maps, which end with this process. They are created again from the
    # kernel's description, as libbcc's own numbers are from before rounding.
    _declare(library)
    specs, indexes = [], {}
    for index in range(library.bpf_num_tables(module.module)):
        descriptor = library.bpf_table_fd_id(module.module, index)
        name = library.bpf_table_name(module.module, index).decode()
        specs.append(spec_of(name, descriptor))
        indexes[descriptor] = index
    codes = {name: with_maps(module.dump_func(name.encode()), indexes) for name in functions}
    return BpfObject(tuple(specs), codes)


def _declare(library: Any) -> None:
    # bcc's bindings do not declare these, and ctypes would truncate pointers to 32 bits.
    library.bpf_num_tables.argtypes = [ctypes.c_void_p]
    library.bpf_num_tables.restype = ctypes.c_size_t
    library.bpf_table_name.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.bpf_table_name.restype = ctypes.c_char_p
    library.bpf_table_fd_id.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.bpf_table_fd_id.restype = ctypes.c_int


def unmap_text_pages() -> None:
    """Unmap the code pages of shared libraries; those used again come from the page cache.

    Linking LLVM and clang touches about 60 MB that compiling a small program does not use again.
    """
    for line in lines_of(Path("/proc/self/maps").read_bytes()):
        span, mode, _, _, _, *path = line.split(maxsplit=5)
        if mode == "r-xp" and path and "/lib" in path[0]:
            start, end = (int(address, 16) for address in span.split("-"))
            advise(start, end - start)


def _in_child(work: Callable[[], bytes]) -> tuple[bytes, str]:
    """Return the result of `work` in a forked child, and the text that the child prints."""
    reader, writer = os.pipe()
    output = open(os.memfd_create("netbpf-compiler"), "w+b")
    child = os.fork()
    if child == 0:
        _child(work, writer, output.fileno())
    os.close(writer)
    with open(reader, "rb") as channel:
        answer = channel.read()
    _, status = os.waitpid(child, 0)
    output.seek(0)
    text = output.read(1 << 22).decode(errors="replace")
    output.close()
    if status:
        answer = json.dumps({"error": "died", "detail": f"wait status {status}"}).encode()
    return answer, text


def _child(work: Callable[[], bytes], channel: int, output: int) -> None:
    status = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        with open(channel, "wb") as file:
            file.write(work())
        status = 0
    finally:
        os._exit(status)  # skip atexit handlers and the parent's unflushed buffers


# --- in the parent --------------------------------------------------------------------------------


def _error(answer: Mapping[str, Any], output: str) -> NetbpfError:
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
    first = next((line for line in output.splitlines() if "error:" in line), detail)
    everything = "\n".join(part for part in (detail, output.strip()) if part)
    return NetbpfError(
        f"cannot compile the BPF program: {first.strip()}", "-v shows all errors", everything
    )


def _private_directory() -> str:
    try:
        return detached_mount("tmpfs")
    except OSError:
        # Without CAP_SYS_ADMIN or before 5.2: an ordinary directory, removed after compiling.
        import tempfile

        return tempfile.mkdtemp(prefix="netbpf-")


def _remove(directory: str) -> None:
    if directory.startswith("/proc/self/fd/"):
        os.close(int(directory.rpartition("/")[2]))
    else:
        import shutil

        shutil.rmtree(directory, ignore_errors=True)


def _header_files(headers: Mapping[str, str]) -> Files:
    name = os.uname().machine
    machine = {"x86_64": "x86", "aarch64": "arm64"}.get(name, name)
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
