"""Compile and load a C program with bcc, without kernel headers, in a process of its own.

bcc needs a directory that looks like kernel headers. A few lines are enough, as the kernel's
structs come from `netbpf.kernel.layout`. They live in a detached tmpfs that nobody else sees and
that vanishes with the process. Clang and LLVM (some 100 MB) run in a forked child, which hands the
loaded programs and maps over as descriptors and ends: the memory goes back as soon as tracing
starts, and nothing of what bcc prints can reach the terminal.

This is the only module that imports bcc.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from netbpf.errors import AttachRefused, NetbpfError, Unsupported
from netbpf.kernel.layout import program_directory
from netbpf.kernel.select import Choice
from netbpf.kernel.syscalls import advise, detached_mount

# bpf_prog_type, include/uapi/linux/bpf.h
_PROGRAM_TYPES = {"rawtp": 17, "tp": 5, "fentry": 26, "fexit": 26, "iter": 26}
_KPROBE = 2  # kprobes and uprobes, entries and returns
_FDS_PER_MESSAGE = 200  # SCM_MAX_FD is 253
BCC_HINT = (
    "use /usr/bin/python3 with the distribution's python3-bpfcc (Debian, Ubuntu) or "
    "python3-bcc (Fedora); PyPI's 'bcc' is something else"
)


class Entry(NamedTuple):
    """A C entry to load: for which probe, its function, the program's name, its bpf_prog_type."""

    probe: str
    function: str
    name: str
    kind: int


class Loaded(NamedTuple):
    """Descriptors of what is in the kernel now: programs (see Choice.programs), maps by name."""

    programs: dict[str, int]
    maps: dict[str, int]


def compile_and_load(
    text: str, header: str, choices: Sequence[Choice], maps: Sequence[str]
) -> Loaded:
    """Compile `text` with the generated `header`; load the entry of every choice.

    Raises AttachRefused if the kernel refuses one program, Unsupported if bcc is missing, and
    NetbpfError (with the compiler's output as detail) if the program does not compile.
    """
    entries = [
        Entry(c.probe.name, c.entry, _kernel_name(c, targets), _PROGRAM_TYPES.get(c.kind, _KPROBE))
        for c in choices
        for _, targets in c.programs
    ]
    directory = _private_directory()
    try:
        _write_headers(Path(directory), header)
        answer, fds = _in_child(lambda: _build(text, directory, entries, maps))
    finally:
        _remove(directory)
    if "error" in answer:
        raise _error(answer)
    names = [name for choice in choices for name, _ in choice.programs]
    programs = dict(zip(names, fds[: len(names)]))
    return Loaded(programs, dict(zip(maps, fds[len(names) :])))


def _kernel_name(choice: Choice, targets: Sequence[str]) -> str:
    # bcc takes the target of these kinds from the program's name. The module part of
    # kfunc__MODULE__fn came with bcc 0.31.
    target = targets[0] if targets else ""
    prefix = {"iter": "bpf_iter__", "fentry": "kfunc__", "fexit": "kretfunc__"}.get(choice.kind)
    return prefix + target if prefix else choice.entry


# --- in the child ---------------------------------------------------------------------------------


def _build(
    text: str, directory: str, entries: Sequence[Entry], maps: Sequence[str]
) -> tuple[dict[str, Any], list[int]]:
    os.environ["BCC_KERNEL_SOURCE"] = directory
    try:
        import bcc

        bcc.BPF.load_func  # noqa: B018 - PyPI's bcc, which is something else, has none
    except (ImportError, OSError, AttributeError) as error:  # OSError: libbcc is missing
        return {"error": "no-bcc", "detail": str(error)}, []
    drop_code_pages()
    try:
        # Attach nothing by itself: the attacher does, and can say what went wrong.
        bcc.BPF._trace_autoload = lambda _: None
        module = bcc.BPF(text=text, cflags=["-Wno-unused-function", "-fno-jump-tables"])
    except Exception as error:  # bcc raises plain Exception
        return {"error": "compile", "detail": str(error)}, []
    bcc.lib = library = _Renaming(bcc.lib)
    fds = []
    for entry in entries:
        try:
            fds.append(_load(module, library, entry))
        except Exception as error:  # noqa: PERF203 - the answer names the probe
            return {"error": "load", "probe": entry.probe, "detail": str(error)}, []
    fds += [library.bpf_table_fd(module.module, name.encode()) for name in maps]
    return {"ok": True}, _keep(module, fds)


def drop_code_pages() -> None:
    """Unmap the pages of shared libraries' code: those that are needed again are still cached.

    Linking LLVM and clang touches some 60 MB that compiling a small program never comes back to.
    """
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, mode, _, _, _, *path = line.split(maxsplit=5)
        if mode == "r-xp" and path and "/lib" in path[0]:
            start, end = (int(word, 16) for word in span.split("-"))
            advise(start, end - start)


class _Renaming:
    """libbcc, but a program may have another name than its C function.

    Two programs can then have the same target, which bcc reads from the program's name.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self.function = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def bpf_function_start(self, module: Any, _: bytes) -> Any:
        return self._library.bpf_function_start(module, self.function)

    def bpf_function_size(self, module: Any, _: bytes) -> Any:
        return self._library.bpf_function_size(module, self.function)


def _load(module: Any, library: _Renaming, entry: Entry) -> int:
    library.function = entry.function.encode()
    prefix, _, target = entry.name.partition("func__")
    names = [f"{prefix}func__vmlinux__{target}", entry.name] if target else [entry.name]
    for name in names:
        module.funcs.clear()
        try:
            return int(module.load_func(name.encode(), entry.kind).fd)
        except Exception:
            if name == names[-1]:
                raise
    raise AssertionError("unreachable")


def _keep(module: Any, fds: list[int]) -> list[int]:
    # bcc closes its descriptors when its object goes: ours must stay open until they are sent.
    module.cleanup = lambda: None
    return [os.dup(fd) for fd in fds]


def _in_child(work: Any) -> tuple[dict[str, Any], list[int]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    output = tempfile.TemporaryFile()
    child = os.fork()
    if child == 0:
        _child(work, theirs, output.fileno())
    theirs.close()
    message, fds = b"", list[int]()
    while True:
        part, more, _, _ = socket.recv_fds(ours, 1 << 16, _FDS_PER_MESSAGE)
        if not part:
            break
        message, fds = message + part.rstrip(b"\0"), fds + list(more)
    ours.close()
    _, status = os.waitpid(child, 0)
    output.seek(0)
    noise = output.read(1 << 22).decode(errors="replace")
    output.close()
    if not message:
        message = json.dumps({"error": "died", "detail": f"wait status {status}"}).encode()
    return {**json.loads(message), "noise": noise}, fds


def _child(work: Any, channel: socket.socket, output: int) -> None:
    status = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        answer, fds = work()
        socket.send_fds(channel, [json.dumps(answer).encode()], fds[:_FDS_PER_MESSAGE])
        for start in range(_FDS_PER_MESSAGE, len(fds), _FDS_PER_MESSAGE):
            socket.send_fds(channel, [b"\0"], fds[start : start + _FDS_PER_MESSAGE])
        status = 0
    finally:
        os._exit(status)  # no atexit, no buffers of the parent flushed twice


# --- in the parent --------------------------------------------------------------------------------


def _error(answer: Mapping[str, Any]) -> NetbpfError:
    noise, detail = str(answer["noise"]), str(answer.get("detail", ""))
    everything = "\n".join(part for part in (detail, noise.strip()) if part)
    if answer["error"] == "no-bcc":
        return Unsupported(
            "bcc's Python bindings are missing for this Python",
            BCC_HINT,
            detail,
        )
    if answer["error"] == "load":
        return AttachRefused(
            str(answer["probe"]),
            f"the kernel refused to load it ({_refusal(noise)})",
            "",
            everything,
        )
    first = next((line for line in noise.splitlines() if "error:" in line), detail)
    return NetbpfError(
        f"cannot compile the BPF program: {first.strip()}", "see all with -v", everything
    )


def _refusal(noise: str) -> str:
    for line in noise.splitlines():
        if "Failed to load program: " in line:
            return line.partition("Failed to load program: ")[2].strip()
    return "no reason given"


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


def _write_headers(directory: Path, header: str) -> None:
    machine = {"x86_64": "x86", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    own = (program_directory() / "include" / "kernel").iterdir()
    files = {f"include/linux/{path.name}": path.read_text() for path in own}
    files["include/netbpf/kernel.h"] = header
    empty = ("linux/bpf_common.h", "uapi/linux/bpf.h", "uapi/linux/if_packet.h")
    files.update({f"include/{name}": "" for name in empty})
    files[f"arch/{machine}/include/asm/page.h"] = ""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
