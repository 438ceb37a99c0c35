"""Create the maps of a compiled program and load its functions, with bpf(2) alone.

bcc's process has ended by then. So cached and fresh programs take the same path, names of C
functions carry no meaning, and errors have the kernel's own error number.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Callable, NamedTuple, Optional

from netbpf.bpf.constants import with_constants
from netbpf.bpf.map_memory import bytes_of
from netbpf.bpf.maps import possible_cpus
from netbpf.bpf.object import BpfObject, MapSpec, map_references, with_maps
from netbpf.bpf.preemption import Switches, find_switches, without_preemption
from netbpf.declare.needs import MEMORY
from netbpf.declare.probe_kinds import ProbeKind, type_of
from netbpf.errors import AttachRefused, NetbpfError, Unsupported
from netbpf.kernel.select import Selection
from netbpf.system.privileges import memory_is_limited, privilege_error, refusal_reason
from netbpf.system.syscalls import bpf, load_program

_MAP_CREATE, _OBJECT_INFO = 0, 15  # commands of bpf(2), include/uapi/linux/bpf.h
_LOG_BYTES = (1 << 24) - 1  # the maximum before 5.13
_LOG_SHOWN = 1 << 16

_NONE: Mapping[str, int] = {}
FindTarget = Callable[[str], int]  # name of a kernel function -> its BTF id, or 0


class Entry(NamedTuple):
    """A function to load: its probe, C function, unique program name, kind and target.

    `target` is a function in the kernel's BTF, "" if the target is only given when attaching.
    `attach_type` is 0 if it is that of the kind.
    """

    probe: str
    function: str
    program: str
    kind: ProbeKind
    target: str
    attach_type: int = 0


class Loaded(NamedTuple):
    """Descriptors of the loaded programs (see Selection.programs) and maps, by name.

    `memory` has the size in bytes of each map, including those that only programs use.
    """

    programs: dict[str, int]
    maps: dict[str, int]
    memory: Mapping[str, int] = {}


def entries_of(selections: Sequence[Selection]) -> list[Entry]:
    """Return the entries to load for these selections."""
    entries = []
    for selection in selections:
        if not selection.alternative:
            continue
        kind = selection.alternative.how
        for program, targets in selection.programs:
            target = kind.btf_prefix + targets[0] if kind.typed else ""
            attach_type = type_of(kind, targets[0] if targets else "")
            entries.append(
                Entry(selection.probe.name, selection.entry, program, kind, target, attach_type)
            )
    return entries


def load(
    bpf_object: BpfObject,
    entries: Sequence[Entry],
    maps: Sequence[str],
    find_target: FindTarget,
    constants: Sequence[int] = (),
    shared: Mapping[str, int] = _NONE,
) -> Loaded:
    """Create the maps that these entries or the reader (`maps`) need, and load the entries.

    A map that is in `shared`, {name: descriptor}, is used instead of a new one. Raises
    AttachRefused if the kernel refuses a program, NetbpfError if it refuses a map.
    """
    codes = [with_constants(bpf_object.programs[entry.function], constants) for entry in entries]
    user_space = any(entry.kind.user_space for entry in entries)
    switches = find_switches(find_target) if user_space else None
    used = {index for code in codes for _, index in map_references(code)}
    used |= {index for index, spec in enumerate(bpf_object.maps) if spec.name in maps}
    made: dict[int, int] = {}
    own = [spec for p, spec in enumerate(bpf_object.maps) if p in used and spec.name not in shared]
    sizes = {spec.name: bytes_of(spec, possible_cpus()) for spec in own}
    loaded = Loaded({}, {}, sizes)
    try:
        for index, spec in enumerate(bpf_object.maps):
            if index in used:
                existing = shared.get(spec.name)
                made[index] = _make_map(spec) if existing is None else os.dup(existing)
        for entry, code in zip(entries, codes):
            target = _target_id(entry, find_target)
            loaded.programs[entry.program] = _load(entry, with_maps(code, made), target, switches)
    except BaseException:
        for descriptor in (*made.values(), *loaded.programs.values()):
            os.close(descriptor)
        raise
    for index, descriptor in made.items():
        if bpf_object.maps[index].name in maps:
            loaded.maps[bpf_object.maps[index].name] = descriptor
        else:
            os.close(descriptor)  # the programs keep the map
    return loaded


def spec_of(name: str, descriptor: int) -> MapSpec:
    """Return the kernel's description of a map, from which it can be created again."""
    info = ctypes.create_string_buffer(24)  # struct bpf_map_info up to map_flags
    bpf(_OBJECT_INFO, struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info)))
    kind, _, key_size, value_size, entries, flags = struct.unpack("=6I", info.raw)
    return MapSpec(name, kind, key_size, value_size, entries, flags)


def _make_map(spec: MapSpec) -> int:
    # union bpf_attr of BPF_MAP_CREATE up to map_name, whose last byte must be zero.
    attributes = struct.pack("=7I16s", *spec[1:], 0, 0, spec.name.encode()[:15])
    try:
        return _raising_memlock(lambda: bpf(_MAP_CREATE, attributes))
    except OSError as error:
        if error.errno == errno.EPERM and memory_is_limited():
            raise privilege_error([MEMORY]) from error
        raise NetbpfError(
            f"the kernel refused the map '{spec.name}' ({error.strerror})",
            "reduce its memory with --map-entries or --buffer",
            f"{spec}",
        ) from error


def _load(entry: Entry, code: bytes, target: int, switches: Optional[Switches]) -> int:
    attach = (entry.attach_type or entry.kind.attach_type, target)

    def load(code: bytes, log: tuple[int, int] = (0, 0)) -> int:
        return load_program(entry.kind.program_type, code, entry.function, attach, log)

    if switches and entry.kind.user_space:
        with suppress(OSError):  # without a JIT compiler: no kfunc calls, and no per-CPU stack
            return _retrying(partial(load, without_preemption(code, switches)))
    call = partial(load, code)
    try:
        return _raising_memlock(lambda: _retrying(call))
    except OSError as error:
        # The verifier returns EACCES for most of what it rejects, so that is no missing privilege.
        reason = refusal_reason("the kernel refused to load it", error, (errno.EPERM,))
        raise AttachRefused(entry.probe, reason, "", _verifier_log(call)) from error


def _retrying(call: Callable[[], int]) -> int:
    for _ in range(4):
        # EAGAIN: since 5.0 the verifier stops if a signal is pending, which Python then handles.
        with suppress(BlockingIOError):
            return call()
    return call()


def _verifier_log(call: Callable[[tuple[int, int]], int]) -> str:
    """Return the end of the verifier's log, from loading the program once more."""
    buffer = mmap.mmap(-1, _LOG_BYTES)  # only pages that are written take memory
    with suppress(OSError):
        os.close(call((ctypes.addressof(ctypes.c_char.from_buffer(buffer)), _LOG_BYTES)))
    length = buffer.find(b"\0")
    return buffer[max(0, length - _LOG_SHOWN) : length].decode(errors="replace").strip()


def _raising_memlock(call: Callable[[], int]) -> int:
    """Call; after EPERM raise RLIMIT_MEMLOCK, which limits BPF memory before 5.11, and retry."""
    try:
        return call()
    except OSError as error:
        # Not EACCES, which the verifier returns for most of what it rejects.
        if error.errno != errno.EPERM or not _raise_limit():
            raise
        return call()


def _raise_limit() -> bool:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    for limit in (resource.RLIM_INFINITY, hard):
        if soft != limit:
            # Raising the hard limit needs CAP_SYS_RESOURCE.
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
                return True
    return False


def _target_id(entry: Entry, find_target: FindTarget) -> int:
    if not entry.target:
        return 0
    type_id = 0
    with suppress(Unsupported):  # this kernel has no BTF, only a file was given
        type_id = find_target(entry.target)
    if not type_id:
        raise AttachRefused(entry.probe, f"the kernel's types do not have '{entry.target}'")
    return type_id
