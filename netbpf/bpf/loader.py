"""Get a compiled program into the kernel: make its maps, load its functions, by bpf(2) alone.

Not through bcc, whose process ends with the compiler: so a start from the cache and a fresh one go
one way, names of C functions mean nothing, and a refusal comes with the kernel's own error number.
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
from netbpf.declare.probe_kinds import ProbeKind
from netbpf.errors import AttachRefused, NetbpfError, Unsupported
from netbpf.kernel.select import Selection
from netbpf.system.privileges import memory_is_limited, privilege_error, refusal_reason
from netbpf.system.syscalls import bpf, load_program

_MAP_CREATE, _OBJECT_INFO = 0, 15  # commands of bpf(2), include/uapi/linux/bpf.h
_LOG_BYTES = (1 << 24) - 1  # the most that kernels before 5.13 take
_LOG_SHOWN = 1 << 16

FindTarget = Callable[[str], int]  # from a function's name to its id in the kernel's own BTF, or 0


class Entry(NamedTuple):
    """A function to load: for which probe, the program's name among all, its kind and target.

    `target` is the function in the kernel's BTF that it is for, "" if attaching names it.
    """

    probe: str
    function: str
    program: str
    kind: ProbeKind
    target: str


class Loaded(NamedTuple):
    """Descriptors of what is in the kernel now: programs (see Selection.programs), maps by name.

    `memory` has the bytes of each map, also of those that only programs use.
    """

    programs: dict[str, int]
    maps: dict[str, int]
    memory: Mapping[str, int] = {}


def entries_of(selections: Sequence[Selection]) -> list[Entry]:
    """Return what is to be loaded for these selections."""
    found = []
    for selection in selections:
        if not selection.alternative:
            continue
        kind = selection.alternative.how
        for program, targets in selection.programs:
            target = kind.btf_prefix + targets[0] if kind.typed else ""
            found.append(Entry(selection.probe.name, selection.entry, program, kind, target))
    return found


def load(
    image: BpfObject,
    entries: Sequence[Entry],
    maps: Sequence[str],
    find_target: FindTarget,
    numbers: Sequence[int] = (),
) -> Loaded:
    """Make the maps that these entries or the reader (`maps`) need, and load the entries.

    Raises AttachRefused if the kernel refuses a program, NetbpfError if it refuses a map.
    """
    codes = [with_constants(image.programs[entry.function], numbers) for entry in entries]
    user_space = any(entry.kind.user_space for entry in entries)
    switches = find_switches(find_target) if user_space else None
    used = {place for code in codes for _, place in map_references(code)}
    used |= {place for place, shape in enumerate(image.maps) if shape.name in maps}
    made: dict[int, int] = {}
    sizes = {image.maps[p].name: bytes_of(image.maps[p], possible_cpus()) for p in used}
    loaded = Loaded({}, {}, sizes)
    try:
        for place, shape in enumerate(image.maps):
            if place in used:
                made[place] = _make_map(shape)
        for entry, code in zip(entries, codes):
            target = _target_id(entry, find_target)
            loaded.programs[entry.program] = _load(entry, with_maps(code, made), target, switches)
    except BaseException:
        for descriptor in (*made.values(), *loaded.programs.values()):
            os.close(descriptor)
        raise
    for place, descriptor in made.items():
        if image.maps[place].name in maps:
            loaded.maps[image.maps[place].name] = descriptor
        else:
            os.close(descriptor)  # the programs hold it
    return loaded


def spec_of(name: str, descriptor: int) -> MapSpec:
    """Return what the kernel tells of a map, which is as it can be made again."""
    told = ctypes.create_string_buffer(24)  # struct bpf_map_info as far as map_flags
    bpf(_OBJECT_INFO, struct.pack("=IIQ", descriptor, len(told), ctypes.addressof(told)))
    kind, _, key_size, value_size, entries, flags = struct.unpack("=6I", told.raw)
    return MapSpec(name, kind, key_size, value_size, entries, flags)


def _make_map(shape: MapSpec) -> int:
    # union bpf_attr of BPF_MAP_CREATE as far as map_name, whose last byte must be zero.
    attributes = struct.pack("=7I16s", *shape[1:], 0, 0, shape.name.encode()[:15])
    try:
        return _unlimited(lambda: bpf(_MAP_CREATE, attributes))
    except OSError as error:
        if error.errno == errno.EPERM and memory_is_limited():
            raise privilege_error([MEMORY]) from error
        raise NetbpfError(
            f"the kernel refused the map '{shape.name}' ({error.strerror})",
            "smaller ones take less memory: --map-entries, --buffer",
            f"{shape}",
        ) from error


def _load(entry: Entry, code: bytes, target: int, switches: Optional[Switches]) -> int:
    attach = (entry.kind.attach_type, target)

    def load(code: bytes, log: tuple[int, int] = (0, 0)) -> int:
        return load_program(entry.kind.program_type, code, entry.function, attach, log)

    if switches and entry.kind.user_space:
        with suppress(OSError):  # without a JIT compiler: no such calls, and no such stack
            return _patiently(partial(load, without_preemption(code, switches)))
    call = partial(load, code)
    try:
        return _unlimited(lambda: _patiently(call))
    except OSError as error:
        # EACCES is the verifier's word for most of what it refuses.
        words = refusal_reason("the kernel refused to load it", error, (errno.EPERM,))
        raise AttachRefused(entry.probe, words, "", _verifier_log(call)) from error


def _patiently(call: Callable[[], int]) -> int:
    for _ in range(4):
        # EAGAIN: since 5.0 the verifier gives up when a signal waits. It is Python that handles it.
        with suppress(BlockingIOError):
            return call()
    return call()


def _verifier_log(call: Callable[[tuple[int, int]], int]) -> str:
    """Return the end of what the verifier says when it is asked once more."""
    buffer = mmap.mmap(-1, _LOG_BYTES)  # only the pages that it writes exist
    with suppress(OSError):
        os.close(call((ctypes.addressof(ctypes.c_char.from_buffer(buffer)), _LOG_BYTES)))
    length = buffer.find(b"\0")
    return buffer[max(0, length - _LOG_SHOWN) : length].decode(errors="replace").strip()


def _unlimited(call: Callable[[], int]) -> int:
    """Call, and once more without RLIMIT_MEMLOCK, which counts BPF memory before 5.11."""
    try:
        return call()
    except OSError as error:
        # Not EACCES, which is the verifier's word for most of what it refuses.
        if error.errno != errno.EPERM or not _raise_limit():
            raise
        return call()


def _raise_limit() -> bool:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    for limit in (resource.RLIM_INFINITY, hard):
        if soft != limit:
            # Above the hard limit only with CAP_SYS_RESOURCE.
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
                return True
    return False


def _target_id(entry: Entry, find_target: FindTarget) -> int:
    if not entry.target:
        return 0
    found = 0
    with suppress(Unsupported):  # no BTF in this kernel, only in a file
        found = find_target(entry.target)
    if not found:
        raise AttachRefused(entry.probe, f"the kernel's types do not have '{entry.target}'")
    return found
